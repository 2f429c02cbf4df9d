"""mode=export: each format is written, verified against its weights, and refused when it differs."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from lively_weights import write_lively_checkpoint
from yolo_sets import SHARED, make_yolo_set

from hsr_train.config.schema import DataConfig, ExportConfig
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.engines.detection import export
from hsr_train.engines.detection.evaluate import Evaluation
from hsr_train.engines.detection.export import ExportError, check_export, export_model
from hsr_train.engines.detection.parity import Parity, Subject, check, sample
from hsr_train.errors import InputError

IMGSZ = 96


@pytest.fixture(scope="module")
def cache(shared_cache: Path) -> Path:
    return shared_cache


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> DetectionSet:
    yaml_path = make_yolo_set(tmp_path_factory.mktemp("set"), n_val=4, size=(72, 96))
    config = DataConfig(path=str(yaml_path), cache_dir=str(cache))
    return load_detection_set(config, Decisions(), need=("val",), progress=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lively_checkpoint(tmp_path_factory.mktemp("weights") / "My best.v2.pt", imgsz=IMGSZ)


def run(weights: Path, dataset: DetectionSet | None, cache: Path, output: Path, *formats: str, **more: Any) -> Any:
    options = more.pop("options", None)
    return export_model(
        weights,
        formats,
        config=ExportConfig(**more),
        imgsz=IMGSZ,
        device="cpu",
        dataset=dataset,
        split="val",
        workers=0,
        cache_dir=cache,
        output_dir=output,
        options=options,
    )


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_export_onnx_and_torchscript_agree_with_weights(
    weights: Path, dataset: DetectionSet, cache: Path, tmp_path: Path
) -> None:
    import onnx
    import onnxruntime

    data_before = everything_below(dataset.root)
    exports = run(weights, dataset, cache, tmp_path / "out", "onnx", "torchscript")
    assert everything_below(tmp_path / "out") == ["My best.v2.onnx", "My best.v2.torchscript"]
    assert everything_below(weights.parent) == [weights.name]
    assert everything_below(dataset.root) == data_before
    assert not (Path.home() / ".cache/Microsoft").exists()  # onnxruntime's telemetry
    assert [entry["format"] for entry in exports] == ["onnx", "torchscript"]
    for entry in exports:
        parity = entry["parity"]
        assert entry["size_bytes"] == (tmp_path / "out" / entry["path"]).stat().st_size
        assert entry["seconds"] > 0
        assert parity["passed"] and parity["images"] == 4 and parity["boxes"] > 100
        assert 0 < parity["max_box_difference_px"] < 0.1 and parity["max_score_difference"] < 1e-3
        assert parity["mAP50_difference"] <= 0.002 and parity["mAP50-95_difference"] <= 0.002
    metadata = {p.key: p.value for p in onnx.load(tmp_path / "out" / "My best.v2.onnx").metadata_props}
    assert metadata["names"] == "{0: 'a', 1: 'b'}"
    assert metadata["imgsz"] == f"[{IMGSZ}, {IMGSZ}]" and metadata["stride"] == "32" and metadata["task"] == "detect"
    session = onnxruntime.InferenceSession(tmp_path / "out" / "My best.v2.onnx", providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": np.zeros((1, 3, IMGSZ, IMGSZ), np.float32)})
    assert output.shape == (1, 6, 189)


def shift_boxes(file: Path, pixels: float) -> None:
    """Let an ONNX file put every box some pixels to the right."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(file)
    offset = np.zeros((1, 6, 1), np.float32)
    offset[:, 0] = pixels
    last = next(node for node in model.graph.node if "output0" in node.output)
    last.output[:] = ["before" if name == "output0" else name for name in last.output]
    model.graph.initializer.append(numpy_helper.from_array(offset, "offset"))
    model.graph.node.append(helper.make_node("Add", ["before", "offset"], ["output0"]))
    onnx.save(model, file)


def change_one_weight(file: Path) -> None:
    """Let an ONNX file have one other weight, in its first layer."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(file)
    first = next(i for i in model.graph.initializer if len(i.dims) == 4)
    values = numpy_helper.to_array(first).copy()
    values.flat[0] += 1
    first.CopyFrom(numpy_helper.from_array(values, first.name))
    onnx.save(model, file)


def tampering(monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]) -> None:
    """Let the exporter damage what it writes."""
    real = export.Exporter

    class Tampering(real):  # type: ignore[misc, valid-type]
        def __call__(self, model: Any) -> str:
            file = super().__call__(model=model)
            damage(Path(file))
            return str(file)

    monkeypatch.setattr(export, "Exporter", Tampering)


@pytest.mark.parametrize(
    "damage", [lambda file: shift_boxes(file, 2.0), change_one_weight], ids=["boxes shifted", "one weight"]
)
def test_export_tampered_onnx_is_refused_and_removed(
    damage: Callable[[Path], None],
    weights: Path,
    dataset: DetectionSet,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "My best.v2.onnx").write_text("an older export of other weights")
    tampering(monkeypatch, damage)
    with pytest.raises(ExportError) as caught:
        run(weights, dataset, cache, tmp_path, "onnx")
    assert everything_below(tmp_path) == []
    text = str(caught.value)
    assert "My best.v2.onnx does not agree with My best.v2.pt and was removed (4 val images)" in text
    assert "export.simplify=false" in text and "export.opset" in text
    (entry,) = caught.value.exports
    assert not entry["parity"]["passed"] and entry["parity"]["unmatched"] > 10
    assert entry["parity"]["max_box_difference_px"] > 1 or entry["parity"]["max_score_difference"] > 1e-3


def test_export_shift_below_tolerance_passes(
    weights: Path, dataset: DetectionSet, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tampering(monkeypatch, lambda file: shift_boxes(file, 0.5))
    (entry,) = run(weights, dataset, cache, tmp_path, "onnx")
    assert 0.3 < entry["parity"]["max_box_difference_px"] < 0.7


def test_export_torchscript_of_another_network_is_refused_and_onnx_kept(
    weights: Path, dataset: DetectionSet, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export.Exporter

    class Confused(real):  # type: ignore[misc, valid-type]
        def __call__(self, model: Any) -> str:
            if self.args.format == "torchscript":
                model = deepcopy(model)
                with torch.no_grad():
                    next(model.parameters())[0] += 0.1
            return str(super().__call__(model=model))

    monkeypatch.setattr(export, "Exporter", Confused)
    with pytest.raises(ExportError, match="torchscript does not agree") as caught:
        run(weights, dataset, cache, tmp_path, "onnx", "torchscript")
    assert everything_below(tmp_path) == ["My best.v2.onnx"]
    assert [entry["parity"]["passed"] for entry in caught.value.exports] == [True, False]


def test_export_impossible_opset_says_what_to_type(
    weights: Path, dataset: DetectionSet, cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"could not be exported as onnx: .*\n    -> try .*export.opset, such as 17"):
        run(weights, dataset, cache, tmp_path, "onnx", opset=99)
    assert everything_below(tmp_path) == []


def test_export_without_data_compares_on_drawn_scenes_without_map(weights: Path, cache: Path, tmp_path: Path) -> None:
    (entry,) = run(weights, None, cache, tmp_path, "torchscript")
    parity = entry["parity"]
    assert parity["compared_on"] == "drawn scenes" and parity["images"] == 16 and parity["boxes"] > 100
    assert parity["mAP50_difference"] is None and parity["mAP50-95_difference"] is None


def test_export_dynamic_takes_other_shapes(weights: Path, dataset: DetectionSet, cache: Path, tmp_path: Path) -> None:
    import onnxruntime

    (entry,) = run(weights, dataset, cache, tmp_path, "onnx", dynamic=True, simplify=False)
    assert entry["dynamic"] and entry["parity"]["passed"]
    session = onnxruntime.InferenceSession(tmp_path / entry["path"], providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": np.zeros((3, 3, 64, 128), np.float32)})
    assert output.shape == (3, 6, 168)


@pytest.mark.slow
def test_export_nms_free_head_when_asked_for(dataset: DetectionSet, cache: Path, tmp_path: Path) -> None:
    import onnxruntime

    file = write_lively_checkpoint(tmp_path / "w" / "yolo26n.pt", "yolo26n", imgsz=IMGSZ)
    (entry,) = run(file, dataset, cache, tmp_path / "out", "onnx", options={"nms": False, "conf": 0.9, "iou": 0.1})
    assert entry["parity"]["boxes"] > 100
    session = onnxruntime.InferenceSession(tmp_path / "out" / "yolo26n.onnx", providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [1, 189, 6]


def test_export_weights_that_find_nothing_are_compared_by_proposals(
    dataset: DetectionSet, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_checkpoint(tmp_path / "w" / "random.pt")
    with caplog.at_level(logging.WARNING):
        (entry,) = run(file, dataset, cache, tmp_path / "out", "torchscript")
    assert entry["parity"]["score_threshold"] == 0 and entry["parity"]["boxes"] > 100
    assert "The weights find nothing" in caplog.text


def test_check_export_names_every_missing_package_and_unknown_format(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    gone = ("onnxruntime", "onnxslim")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    with pytest.raises(InputError) as caught:
        check_export(["onnx", "tflite"], ExportConfig())
    text = str(caught.value)
    assert "tflite: is none of onnx, torchscript" in text
    assert "onnxruntime, onnxslim are not installed" in text and 'pip install "hsr_train[export]"' in text
    check_export(["torchscript"], ExportConfig())


def test_sample_takes_images_evenly(dataset: DetectionSet) -> None:
    images = dataset.splits["val"].images
    assert sample(dataset, "val", 2).splits["val"].images == [images[0], images[-1]]
    assert sample(dataset, "val", 100).splits["val"].images == images
    assert len(sample(dataset, "val", 3).splits["val"].labels) == 3


class Canned(Subject):
    """A model whose answers are written down: after suppression, and before it."""

    kept: list[list[float]]
    proposed: list[list[float]]

    def run(self, images: list[str] | None = None, **options: Any) -> Evaluation:
        rows = self.kept if images is None else self.proposed
        metrics = {"mAP50": self.map50, "mAP50-95": 0.5}  # type: ignore[attr-defined]
        return Evaluation(metrics, [], {}, {"image": np.array(rows, np.float64).reshape(-1, 6)})


def canned(
    dataset: DetectionSet, kept: list[list[float]], proposed: list[list[float]] | None = None, map50: float = 0.5
) -> Subject:
    subject = Canned(Path(), "cpu", dataset, "val", IMGSZ, False, 0, Path(), Path(), {"max_det": 3})
    for name, value in (("kept", kept), ("proposed", kept if proposed is None else proposed), ("map50", map50)):
        object.__setattr__(subject, name, value)
    return subject


def compare(original: Subject, exported: Subject) -> Parity:
    return check(original, exported, original.run())


BOX = [10.0, 10.0, 50.0, 50.0, 0.8, 0.0]
RIVAL = [14.0, 10.0, 54.0, 50.0, 0.8, 0.0]


def moved(row: list[float], pixels: float = 0.0, score: float = 0.0, to_class: float = 0.0) -> list[float]:
    return [row[0] + pixels, *row[1:4], row[4] + score, row[5] + to_class]


@pytest.mark.parametrize(
    ("other", "passes"),
    [
        (moved(BOX, pixels=0.99), True),
        (moved(BOX, pixels=1.01), False),
        (moved(BOX, score=0.00099), True),
        (moved(BOX, score=-0.00101), False),
        (moved(BOX, to_class=1.0), False),
        (moved(BOX, pixels=float("nan")), False),
    ],
)
def test_parity_bounds_of_one_box(dataset: DetectionSet, other: list[float], passes: bool) -> None:
    parity = compare(canned(dataset, [BOX]), canned(dataset, [other]))
    assert (not parity.failures) is passes


def test_parity_missing_and_additional_boxes_fail(dataset: DetectionSet) -> None:
    two = [BOX, [60.0, 60.0, 90.0, 90.0, 0.3, 1.0]]
    assert compare(canned(dataset, two), canned(dataset, [BOX])).unmatched == 1
    assert compare(canned(dataset, [BOX]), canned(dataset, two)).unmatched == 1
    assert compare(canned(dataset, [BOX]), canned(dataset, [])).failures


def test_parity_box_only_below_the_threshold_does_not_count(dataset: DetectionSet) -> None:
    faint = [60.0, 60.0, 90.0, 90.0, 0.009, 1.0]
    assert not compare(canned(dataset, [BOX, faint]), canned(dataset, [BOX])).failures


def test_parity_tie_of_suppression_is_no_difference(dataset: DetectionSet) -> None:
    both = [BOX, RIVAL]
    parity = compare(canned(dataset, [BOX], both), canned(dataset, [RIVAL], both))
    assert not parity.failures and parity.ties == 2
    other = compare(canned(dataset, [BOX], both), canned(dataset, [RIVAL], [RIVAL]))
    assert other.failures and other.unmatched == 1


def test_parity_end_of_a_full_list_may_differ(dataset: DetectionSet) -> None:
    def full(last: list[float]) -> list[list[float]]:
        return [BOX, [60.0, 60.0, 90.0, 90.0, 0.5, 1.0], last]

    one, other = [0.0, 60.0, 9.0, 90.0, 0.20, 1.0], [40.0, 60.0, 50.0, 90.0, 0.2003, 1.0]
    assert not compare(canned(dataset, full(one)), canned(dataset, full(other))).failures


def test_parity_other_map_fails(dataset: DetectionSet) -> None:
    parity = compare(canned(dataset, [BOX]), canned(dataset, [BOX], map50=0.4975))
    assert parity.failures == ["mAP50 differs by 0.0025, allowed 0.002"]
    assert not compare(canned(dataset, [BOX]), canned(dataset, [BOX], map50=0.4985)).failures


def test_parity_without_any_box_fails(dataset: DetectionSet) -> None:
    parity = compare(canned(dataset, []), canned(dataset, []))
    assert parity.failures == ["neither finds a single box, so nothing could be compared"]


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "weights/yolov8n.pt").is_file(), reason="needs pretrained weights")
@pytest.mark.parametrize("dynamic", [False, True])
def test_export_pretrained_weights_on_photographs(cache: Path, tmp_path: Path, dynamic: bool) -> None:
    config = DataConfig(path=str(SHARED / "detect/coco8_seg/data.yaml"), cache_dir=str(cache))
    photographs = load_detection_set(config, Decisions(), need=("val",), progress=False)
    exports = export_model(
        SHARED / "weights/yolov8n.pt",
        ["onnx", "torchscript"],
        config=ExportConfig(dynamic=dynamic),
        imgsz=640,
        device="cpu",
        dataset=photographs,
        split="val",
        workers=0,
        cache_dir=cache,
        output_dir=tmp_path,
    )
    for entry in exports:
        assert entry["parity"]["boxes"] > 100
        assert entry["parity"]["max_box_difference_px"] < 0.05 and entry["parity"]["max_score_difference"] < 1e-4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_export_on_gpu_agrees_in_full_float32(
    weights: Path, dataset: DetectionSet, cache: Path, tmp_path: Path
) -> None:
    exports = export_model(
        weights,
        ["onnx", "torchscript"],
        config=ExportConfig(),
        imgsz=IMGSZ,
        device="cuda:0",
        dataset=dataset,
        split="val",
        workers=0,
        cache_dir=cache,
        output_dir=tmp_path,
    )
    assert [entry["device"] for entry in exports] == ["cpu", "cuda:0"]
