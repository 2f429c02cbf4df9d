"""What is done with a trained classifier (validate, predict, export), what is refused, and folds from mode=split on."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint
from classify_runs import COLOURS, draw, folder_of, make_set, overrides, quick_pictures, runs_in, train, weights_of
from detection_runs import read_json, rows

import hsr_train
from hsr_train.cli import main
from hsr_train.engines.base import Result
from hsr_train.engines.classification import export
from hsr_train.errors import InputError, RunError

UNTYPED = dict.fromkeys(("model__name", "model__weights", "train__epochs", "train__batch", "train__imgsz"))
CLASSES = sorted(COLOURS)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 18 training, 12 validation, 6 test images; not to be changed."""
    return make_set(tmp_path_factory.mktemp("data") / "colours", n_test=2)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The directory of a finished run of four epochs of a net that has learned a little; not to be changed."""
    more = {"train__epochs": 4, "train__imgsz": 48, "augmentation__crop": "resize"}
    with quick_pictures():
        return train(data, tmp_path_factory.mktemp("whole"), shared_cache, **more)


@pytest.fixture
def best(whole: Path) -> Path:
    return whole / "weights" / "best.pt"


Do = Callable[..., Result]


@pytest.fixture
def do(data: Path, tmp_path: Path, shared_cache: Path) -> Do:
    """Do what a mode does with weights; network, image size and batch are not typed."""

    def run(mode: str, weights: Path, source: Path | None = None, **more: Any) -> Result:
        given = {**UNTYPED, "mode": mode, "model__weights": weights, "optimizer__lr": None, **more}
        with quick_pictures():
            return hsr_train.execute(hsr_train.compose(overrides(source or data, tmp_path, shared_cache, **given)))

    return run


def refusal(*words: str) -> str:
    """Return why a command is refused."""
    with pytest.raises(InputError) as caught:
        hsr_train.execute(hsr_train.compose(list(words)))
    assert all(problem.remedy for problem in caught.value.problems)
    return str(caught.value)


# ---- validate


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_validation_of_a_split_has_the_figures_of_the_run(do: Do, whole: Path, best: Path, split: str) -> None:
    """Network, image size and crop are the file's."""
    result = do("validate", best, data__split=split)
    assert result.metrics == read_json(whole / "training_result.json")["splits"][split]
    name = f"classification_report_{split}.json"
    one, other = (read_json(run / "logs" / name) for run in (folder_of(result), whole))
    assert one["confusion"] == other["confusion"] and one["loss"] == pytest.approx(other["loss"])


def test_validation_shows_the_figures_of_each_class(do: Do, best: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = folder_of(do("validate", best))
    table = (run / "logs" / "classification_report_val.txt").read_text().rstrip()
    assert all(name in table for name in CLASSES) and table in caplog.text


def test_validation_of_the_best_epoch_has_the_figures_of_its_row(do: Do, whole: Path, best: Path) -> None:
    row = rows(whole)[weights_of(whole)["epoch"] - 1]
    metrics = do("validate", best).metrics
    assert (metrics["accuracy"], metrics["macro_f1"]) == pytest.approx(
        (float(row["val_acc"]), float(row["val_macro_f1"]))
    )


# ---- predict


def test_prediction_agrees_with_validation(do: Do, data: Path, best: Path) -> None:
    run = folder_of(do("predict", best, data / "val"))
    with (run / "predictions.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["file", "predicted", "top", *(f"p_{name}" for name in CLASSES)]
    assert [Path(row["file"]) for row in table] == sorted((data / "val").rglob("*.png"))
    shares = np.array([[float(row[f"p_{name}"]) for name in CLASSES] for row in table])
    assert shares.sum(1) == pytest.approx(1.0, abs=2e-6)
    assert [row["predicted"] for row in table] == [CLASSES[i] for i in shares.argmax(1)]
    assert all(row["top"].split("; ")[0] == row["predicted"] and row["top"].count(";") == 2 for row in table)
    right = [Path(row["file"]).parent.name == row["predicted"] for row in table]
    assert np.mean(right) == pytest.approx(do("validate", best).metrics["accuracy"])
    assert (run / "predictions.jpg").stat().st_size > 1000


def test_prediction_of_one_image_names_as_many_classes_as_asked(do: Do, data: Path, best: Path) -> None:
    run = folder_of(do("predict", best, data / "val" / "red" / "000.png", predict__top=1))
    (row,) = csv.DictReader((run / "predictions.csv").read_text().splitlines())
    assert row["top"] == row["predicted"]


def test_prediction_of_nothing_is_refused(do: Do, tmp_path: Path, best: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is a folder without images"):
        do("predict", best, tmp_path / "empty")


def test_broken_images_are_left_out_of_a_prediction_if_that_is_typed(
    do: Do, tmp_path: Path, best: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = draw(tmp_path / "mixed", {"red": 2, "blue": 1})
    (folder / "red" / "cut.png").write_bytes(b"cut")
    with pytest.raises(InputError) as caught:
        do("predict", best, folder)
    assert "cut.png" in str(caught.value) and "data.on_bad=skip" in caught.value.problems[-1].remedy
    result = do("predict", best, folder, data__on_bad="skip")
    assert result.extra == {"images": 3, "left_out": 1}
    table = list(csv.DictReader((folder_of(result) / "predictions.csv").read_text().splitlines()))
    assert len(table) == 3 and not any("cut.png" in row["file"] for row in table)
    assert re.search(r"Left out \(data.on_bad=skip\): 1 file\n.*red/cut.png: ", caplog.text)
    assert re.search(r"Probabilities of 3 images: \S+; left out as broken: 1 file", caplog.text)
    with pytest.raises(InputError, match="no sound image is left"):
        do("predict", best, folder / "red" / "cut.png", data__on_bad="skip")


# ---- export


@pytest.mark.parametrize(
    "name", [pytest.param("onnx", marks=pytest.mark.filterwarnings("ignore::DeprecationWarning")), "torchscript"]
)
def test_export_gives_the_probabilities_of_the_weights(do: Do, best: Path, name: str) -> None:
    if name == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    result = do("export", best, export__formats=f"[{name}]")
    (entry,) = result.exports
    folder = folder_of(result) / "exports"
    assert (entry["format"], entry["path"]) == (name, f"best.{name}")
    assert entry["parity"]["passed"] and entry["parity"]["images"] == 12
    assert entry["parity"]["max_probability_difference"] < 1e-4
    assert entry["size_bytes"] == (folder / entry["path"]).stat().st_size
    about = read_json(folder / "best.json")
    assert (about["classes"], about["imgsz"]) == (CLASSES, 48)
    if name == "onnx":
        session = importlib.import_module("onnxruntime").InferenceSession(str(folder / entry["path"]))
        inside = session.get_modelmeta().custom_metadata_map
        assert {key: json.loads(value) for key, value in inside.items()} == about


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_documented_use_of_an_onnx_file_gives_the_class_of_an_image(
    do: Do, best: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = folder_of(do("export", best, export__formats="[onnx]")) / "exports"
    guide = (Path(__file__).parents[1] / "docs" / "classification.md").read_text()
    (code,) = re.findall(r"```python\n(session = .*?)```", guide, re.DOTALL)
    asked = do("predict", best, data / "train", augmentation__crop="random_resized")
    table = list(csv.DictReader((folder_of(asked) / "predictions.csv").read_text().splitlines()))
    monkeypatch.chdir(folder)
    for row in table[::6]:
        shutil.copy(data / "train" / row["file"], "cup.jpg")
        capsys.readouterr()
        exec(code, {"onnxruntime": onnxruntime, "json": json, "cv2": cv2})
        assert capsys.readouterr().out.strip() == row["predicted"]


def test_export_without_a_set_is_compared_on_noise(best: Path, tmp_path: Path, shared_cache: Path) -> None:
    words = [
        "task=classify",
        "mode=export",
        f"model.weights={best}",
        "export.formats=[torchscript]",
        "train.device=cpu",
    ]
    result = hsr_train.execute(
        hsr_train.compose([*words, f"output_dir={tmp_path}", f"data.cache_dir={shared_cache}", "gpu_tier=cpu"])
    )
    assert result.exports[0]["parity"]["images"] == 16
    with warnings.catch_warnings(action="ignore"):  # torch.jit announces its retirement
        loaded = torch.jit.load(str(folder_of(result) / "exports" / "best.torchscript"))
    scores = loaded(torch.zeros(1, 3, 48, 48))
    assert scores.shape == (1, 3)


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript files whose scores are wrong for some class."""
    original = export._to_torchscript

    def spoil(*args: Any) -> Any:
        run = original(*args)
        return lambda images: np.roll(run(images), 1, axis=1)

    monkeypatch.setattr(export, "_to_torchscript", spoil)


@pytest.mark.usefixtures("spoiled")
def test_spoiled_export_is_refused_and_not_kept(do: Do, best: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"torchscript: probabilities differ by .* is not kept"):
        do("export", best, export__formats="[torchscript]")
    assert not list(tmp_path.rglob("*.torchscript"))


@pytest.mark.usefixtures("spoiled")
def test_spoiled_export_after_training_leaves_a_whole_record(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    with quick_pictures(), pytest.raises(RunError, match="is not kept"):
        train(data, tmp_path, shared_cache, train__epochs=1, export__formats="[torchscript]")
    (run,) = runs_in(tmp_path)
    result = read_json(run / "training_result.json")
    assert (result["exports"], len(result["splits"])) == ([], 3)
    assert not list(run.rglob("*.torchscript"))


# ---- refused


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The weights of a classifier of two classes."""
    two = make_set(tmp_path_factory.mktemp("two") / "two", n_train=2, n_val=1, classes=("blue", "red"))
    with quick_pictures():
        return train(two, two.parent, shared_cache, train__epochs=1) / "weights" / "best.pt"


MISMATCH = "Model output size (2) doesn't match dataset classes (3)"


def test_weights_of_another_number_of_classes_are_refused(do: Do, of_two: Path) -> None:
    for mode in ("validate", "export"):
        with pytest.raises(InputError, match=re.escape(MISMATCH)):
            do(mode, of_two, export__formats="[torchscript]")


def test_typed_number_of_classes_is_checked(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    assert MISMATCH in refusal(*overrides(data, tmp_path / "out", shared_cache, model__num_classes=2))
    assert not (tmp_path / "out").exists()


def test_weights_of_other_classes_are_refused(do: Do, best: Path, tmp_path: Path) -> None:
    other = make_set(tmp_path / "other", n_train=1, n_val=1)
    for split in ("train", "val"):
        (other / split / "red").rename(other / split / "pink")
    with pytest.raises(InputError, match="its classes are not those of the data, such as red / pink"):
        do("validate", best, other)


def test_training_starts_from_a_run_of_other_classes_with_a_new_head(
    data: Path, tmp_path: Path, shared_cache: Path, of_two: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with quick_pictures():
        run = train(data, tmp_path, shared_cache, model__weights=of_two, train__epochs=1)
    assert "New: classifier.1, which gives the classes (that of the file has 2 outputs)" in caplog.text
    assert weights_of(run)["classes"] == CLASSES


def test_detector_is_refused_as_a_classifier(do: Do, data: Path, tmp_path: Path, shared_cache: Path) -> None:
    detector = write_checkpoint(tmp_path / "detector.pt")
    for mode in ("validate", "predict", "export"):
        with pytest.raises(
            InputError, match=r"(?s)detector.pt: is a YOLO detector, and this is task=classify.*task=detect"
        ):
            do(mode, detector, export__formats="[torchscript]")
    said = refusal(*overrides(data, tmp_path / "out", shared_cache, model__weights=detector))
    assert "is a YOLO detector" in said and said.count("detector.pt") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["validate", "predict", "export", "train"])
def test_classifier_is_refused_as_a_detector(
    mode: str, best: Path, data: Path, small_set: Path, tmp_path: Path
) -> None:
    source = [f"data.path={data if mode == 'predict' else small_set}"]
    more = ["export.formats=[torchscript]", f"output_dir={tmp_path}", "train.device=cpu", "gpu_tier=cpu"]
    said = refusal(f"mode={mode}", f"model.weights={best}", f"data.cache_dir={tmp_path / 'cache'}", *source, *more)
    assert "is an image classifier (squeezenet1_1, 3 classes), and this is task=detect" in said
    assert "-> type task=classify" in said


def test_untrained_network_cannot_be_evaluated(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    assert "model.weights" in refusal(*overrides(data, tmp_path, shared_cache, mode="validate"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_says_what_to_type(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    said = refusal(*overrides(data, tmp_path / "out", shared_cache, train__device=0))
    assert "GPU 0 is not there" in said and "-> train.device=cpu" in said
    assert not (tmp_path / "out").exists()


# ---- folds


def test_folds_are_made_by_the_command_and_trained_on(
    tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = draw(tmp_path / "colours" / "raw", dict.fromkeys(COLOURS, 10))
    said = ["task=classify", f"data.raw={raw}", f"data.cache_dir={shared_cache}"]
    assert main(["mode=split", *said, "data.folds=3", "data.ratio=[0.6,0.2,0.2]"]) == 0
    splits = raw.parent / "splits"
    names = sorted(file.name for file in splits.glob("*.txt"))
    assert names == ["fold_0_train.txt", "fold_0_val.txt", "fold_1_train.txt", "fold_1_val.txt", "fold_2_train.txt",
                     "fold_2_val.txt", "test.txt"]  # fmt: skip
    assert capsys.readouterr().out
    small = {"data__path": None, "data__raw": raw, "data__fold": 1, "train__epochs": 1}
    with quick_pictures():
        run = train(raw, tmp_path / "out", shared_cache, **small)
    assert run.name.startswith("colours_") and run.name.endswith("_fold_1")
    result = read_json(run / "training_result.json")
    assert result["fold"] == 1 and list(result["splits"]) == ["train", "val", "test"]
    assert "| INFO     | Using fold: 1" in (run / "logs" / "train.log").read_text()
    for split, file in (("val", "fold_1_val.txt"), ("test", "test.txt")):
        report = read_json(run / "logs" / f"classification_report_{split}.json")
        assert report["images"] == len((splits / file).read_text().split())


def test_missing_index_says_which_and_what_to_type(
    tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = draw(tmp_path / "colours" / "raw", dict.fromkeys(COLOURS, 2))
    words = overrides(raw, tmp_path / "out", shared_cache, data__path=None, data__raw=raw)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"Index file not found: {raw.parent / 'splits' / 'fold_0_train.txt'}" in said
    assert said.count(f"mode=split task=classify data.raw={raw}") == 1 and "nor fold_0_val.txt" in said
    assert "Traceback" not in said and not (tmp_path / "out").exists()
