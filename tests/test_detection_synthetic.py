"""Composed images in a detection run: counted, mixed with the real ones, the same whatever loads them, recorded."""

from __future__ import annotations

import hashlib
import shutil
from copy import deepcopy
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from cutouts import BLUE, RED, cutout, make_backgrounds, make_cutouts, write
from detection_runs import differences, last_state, overrides, quick_pictures, read_json, resume, rows, train
from fault_runs import events
from yolo_sets import make_yolo_set

import hsr_train
from hsr_train.config.schema import DataConfig, SyntheticConfig
from hsr_train.data.demo import CLASSES, ensure_demo_set
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.composition import Composition, Sources
from hsr_train.engines.detection.dataset import RunDataset, make_loader
from hsr_train.engines.detection.options import training_arguments
from hsr_train.engines.detection.synthetic import Synthesis
from hsr_train.engines.together import Together
from hsr_train.errors import InputError
from hsr_train.pace import Pace
from hsr_train.run.directory import RunDirectory
from hsr_train.synthesis import Composer, FolderBackgrounds, ObjectBank

from ultralytics.cfg import get_cfg  # isort: skip (after hsr_train, which isolates it)

NUM_REAL = 9
Key = tuple[int, int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cut-outs, backgrounds, a set with boxes and one with polygons."""
    root = tmp_path_factory.mktemp("synthetic")
    make_cutouts(root / "cutouts")
    make_backgrounds(root / "backgrounds", colour=(40, 90, 60))
    for kind in ("boxes", "polygons"):
        make_yolo_set(root / kind, n_train=NUM_REAL, n_val=3, polygons=kind == "polygons", seed=len(kind))
    return root


@cache
def composed() -> Any:
    return hsr_train.compose(overrides(Path("data.yaml"), Path("out"), Path("cache"), augmentation="default"))


def build(folder: Path, work: Path, kind: str = "boxes", *, on_real: bool = False, images: str = "none",
          single_cls: bool = False, epochs: int = 9, **settings: Any) -> RunDataset:  # fmt: skip
    """A training set with composed images."""
    data = load_detection_set(
        DataConfig(path=str(folder / kind / "data.yaml"), cache_dir=str(folder / "cache")), Decisions()
    )
    made = deepcopy(composed())
    made.train.cache, made.ultralytics.single_cls = images, single_cls
    config = SyntheticConfig(**{"ratio": 0.5, **settings})
    bank = ObjectBank.read(folder / "cutouts", data.names, cache_dir=folder / "cache", side=64)
    backgrounds = FolderBackgrounds.read(folder / "backgrounds", cache_dir=folder / "cache", side=64)
    synthesis = Synthesis(config, bank, None if on_real else backgrounds, data)
    return RunDataset(
        data.splits["train"],
        get_cfg(overrides=training_arguments(made, "cpu", work)),
        augment=True,
        open_epochs=2,
        cache_dir=work / "cache",
        batch_size=4,
        stride=32,
        names=data.names,
        composer=synthesis.composer(64, 0),
        num_composed=synthesis.composition(epochs),
    )


def digest(image: torch.Tensor, classes: torch.Tensor, boxes: torch.Tensor) -> str:
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(t.numpy()).tobytes() for t in (image, classes, boxes))
    ).hexdigest()


def by_hand(data: RunDataset, keys: list[Key]) -> dict[Key, str]:
    samples = {key: data[key] for key in keys}
    return {key: digest(s["img"], s["cls"], s["bboxes"]) for key, s in samples.items()}


def by_loader(data: RunDataset, workers: int, batch: int, epochs: range) -> dict[Key, str]:
    found: dict[Key, str] = {}
    loader = make_loader(data, batch_size=batch, at_once=batch, workers=workers, seed=0, shuffle=True,
                         start_epoch=epochs.start, pin=False)  # fmt: skip
    try:
        for epoch in epochs:
            loader.sampler.epoch = epoch
            for b in loader:
                for i, file in enumerate(b["im_file"]):
                    name = Path(file).stem
                    composed = name.startswith("composed_")
                    index = NUM_REAL + int(name.removeprefix("composed_")) if composed else data.im_files.index(file)
                    own = b["batch_idx"] == i
                    assert (epoch, index) not in found
                    found[epoch, index] = digest(b["img"][i], b["cls"][own], b["bboxes"][own])
    finally:
        loader.close()
    return found


KINDS = [("boxes", False), ("boxes", True), ("polygons", True), ("polygons", False)]


@pytest.mark.parametrize(("kind", "on_real"), KINDS)
def test_samples_do_not_depend_on_workers_order_cache_or_batch(
    folder: Path, tmp_path: Path, kind: str, on_real: bool
) -> None:
    data = build(folder, tmp_path, kind, on_real=on_real)
    assert len(data) == NUM_REAL + 4
    keys = [(epoch, index) for epoch in range(3) for index in range(len(data))]
    expected: dict[Key, str] = {}
    for key in keys:  # each from a data set that has loaded nothing else before
        expected |= by_hand(build(folder, tmp_path, kind, on_real=on_real), [key])
    assert len(set(expected.values())) == len(keys)
    assert by_hand(data, keys[::-1]) == expected
    assert by_hand(build(folder, tmp_path, kind, on_real=on_real, images="ram"), keys) == expected
    assert by_loader(data, workers=2, batch=3, epochs=range(3)) == expected
    later = {key: value for key, value in expected.items() if key[0] == 2}
    assert by_loader(data, workers=0, batch=13, epochs=range(2, 3)) == later


@pytest.mark.parametrize(("kind", "on_real"), KINDS)
def test_composed_image_is_another_one_in_each_epoch_and_is_not_changed(
    folder: Path, tmp_path: Path, kind: str, on_real: bool
) -> None:
    data = build(folder, tmp_path, kind, on_real=on_real)
    seen = set()
    for epoch in range(4):
        data[epoch, NUM_REAL]
        kept = data._composed[epoch, 0].image.copy()
        seen.add(kept.tobytes())
        for index in range(len(data)):
            data[epoch, index]["img"].zero_()
        again = data._composed.get((epoch, 0))
        assert again is None or np.array_equal(again.image, kept)
    assert len(seen) == 4


@pytest.mark.parametrize(("kind", "on_real"), KINDS)
def test_labels_of_composed_images_are_in_the_librarys_form(
    folder: Path, tmp_path: Path, kind: str, on_real: bool
) -> None:
    data = build(folder, tmp_path, kind, on_real=on_real)
    real, composed = data.get_image_and_label(0), data.get_image_and_label(NUM_REAL)
    assert real.keys() == composed.keys()
    _, boxes, classes, _ = data._compose(0)
    assert len(boxes)
    instances = composed["instances"]
    assert len(instances.segments) == (len(boxes) if kind == "polygons" else 0)
    assert composed["cls"].shape == (len(boxes), 1) and composed["cls"][:, 0].tolist() == classes.tolist()
    instances.convert_bbox("xyxy")
    instances.denormalize(*composed["img"].shape[1::-1])
    assert np.abs(instances.bboxes - boxes).max() < 1e-3


def test_single_class_holds_for_composed_images(folder: Path, tmp_path: Path) -> None:
    data = build(folder, tmp_path, single_cls=True, balance="uniform", ratio=3.0)
    assert any(data._compose(number).classes.any() for number in range(27))
    assert not any(data[0, index]["cls"].any() for index in range(len(data)))


def test_composed_images_are_among_the_partners_of_a_mosaic(folder: Path, tmp_path: Path) -> None:
    data = build(folder, tmp_path, ratio=1.0)
    data[0, 0]
    asked = {number for _, number in data._composed}
    for index in range(NUM_REAL):
        data[0, index]
        asked |= {number for _, number in data._composed}
    assert len(asked) > 3


# ---- numbers that change from epoch to epoch


@pytest.mark.parametrize(
    ("schedule", "close", "epochs", "numbers"),
    [
        ("constant", 0, 3, [20, 20, 20]),
        ("constant", 2, 4, [20, 20, 0, 0]),
        ("linear", 0, 4, [20, 15, 10, 5]),
        ("linear", 1, 5, [20, 15, 10, 5, 0]),
        ("linear", 9, 3, [20, 0, 0]),  # a time budget has left only three: the first one is never closed
    ],
)
def test_composition_of_each_epoch(schedule: str, close: int, epochs: int, numbers: list[int]) -> None:
    composition = Composition(10, 2.0, schedule, close, epochs)
    assert [composition(epoch) for epoch in range(epochs)] == numbers
    assert composition.images(0) == 30 and composition.load(epochs - 1, epochs) == (10 + numbers[-1]) / 30
    assert composition.is_constant == (schedule == "constant" and close == 0)


CHANGING: dict[str, Any] = {"ratio": 1.5, "schedule": "linear", "close_epochs": 1}
NUMBERS = [14, 9, 4, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_of_different_lengths_have_each_image_once_whatever_loads_them(
    folder: Path, tmp_path: Path, workers: int
) -> None:
    data = build(folder, tmp_path, epochs=4, **CHANGING)
    keys = [(epoch, index) for epoch, number in enumerate(NUMBERS) for index in range(NUM_REAL + number)]
    expected = by_hand(data, keys)
    assert by_loader(data, workers, batch=4, epochs=range(4)) == expected
    later = {key: value for key, value in expected.items() if key[0] >= 2}
    assert by_loader(data, workers, batch=5, epochs=range(2, 4)) == later


@pytest.mark.parametrize("workers", [0, 2])
def test_renewed_loader_goes_on_with_what_is_planned_now(folder: Path, tmp_path: Path, workers: int) -> None:
    data = build(folder, tmp_path, epochs=4, **CHANGING)
    loader = make_loader(data, batch_size=4, at_once=4, workers=workers, seed=0, shuffle=True, start_epoch=0, pin=False)
    images = lambda: sum(len(batch["im_file"]) for batch in loader)  # noqa: E731
    try:
        assert images() == NUM_REAL + NUMBERS[0]
        data.num_composed = Composition(NUM_REAL, 1.5, "linear", 0, 2)
        loader.renew(1)
        assert len(loader) == 4 and images() == NUM_REAL + 7
    finally:
        loader.close()


def test_labels_are_counted_by_the_source_of_their_image(folder: Path, tmp_path: Path) -> None:
    data = build(folder, tmp_path, ratio=1.0)
    sources = Sources(data.composer, list(data.data["names"].values()))
    batch = RunDataset.collate_fn([data[2, index] for index in range(len(data))])
    sources.count(batch)
    sources.end_epoch(Together())
    assert "source" not in batch
    real = np.concatenate([label["cls"] for label in data.labels]).astype(int).ravel()
    made = np.concatenate([data.composer.compose(2, number).classes for number in range(NUM_REAL)])
    assert sources.counts.tolist() == [np.bincount(classes, minlength=2).tolist() for classes in (real, made)]
    sources.end_epoch(Together())
    assert not sources.counts.any()


# ---- runs


def start(folder: Path, output: Path, **more: Any) -> list[str]:
    """What is typed for a small run with composed images."""
    given = {"synthetic__annotated_dir": folder / "cutouts", "synthetic__backgrounds_dir": folder / "backgrounds"}
    settings = {"synthetic__ratio": 0.5, "tensorboard__enabled": "false", "train__epochs": 2, **given, **more}
    return overrides(folder / "boxes" / "data.yaml", output, folder / "cache", **settings)


def execute(words: list[str]) -> Path:
    with quick_pictures():
        found = hsr_train.execute(hsr_train.compose(words)).run_dir
    assert found is not None
    return found


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(start(folder, tmp_path_factory.mktemp("run")))


def test_run_counts_real_and_composed_images(finished: Path) -> None:
    found = read_json(finished / "training_result.json")["synthetic"]
    assert found == {"real": NUM_REAL, "composed": 4, "images_per_epoch": [13, 13]}
    log = RunDirectory(finished).train_log.read_text()
    assert "on 13 images, validating on 3" in log
    assert "Composed images: 4 beside 9 real ones in every epoch, 3 cut-outs of 2 of 2 classes on 3 backgrounds" in log
    assert "validation, early stopping and best.pt look at real images only" in log
    manifest = read_json(finished / "manifest.json")["fingerprints"]["data"]["synthetic"]
    assert manifest["cutouts_per_class"] == {"a": 2, "b": 1} and manifest["backgrounds"] == 3
    listed = (finished / "data_files.csv").read_text()
    assert listed.count("cut-outs,") == 3 and listed.count("backgrounds,") == 3


CHANGING_RUN = {"train__epochs": 4, **{f"synthetic__{key}": value for key, value in CHANGING.items()}}


@pytest.fixture(scope="module")
def changing(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return execute(start(folder, tmp_path_factory.mktemp("changing"), tensorboard__enabled="true", **CHANGING_RUN))


def test_changing_numbers_of_composed_images_are_trained_on_and_recorded(changing: Path) -> None:
    found = read_json(changing / "training_result.json")["synthetic"]
    assert found == {"real": 9, "composed": 14, "images_per_epoch": [23, 18, 13, 9]}
    log = RunDirectory(changing).train_log.read_text()
    assert "14 beside 9 real ones in the first epoch, fewer in each later one, none in the last one" in log
    curves = events(RunDirectory(changing).tensorboard)
    for name in ("a", "b"):
        real, composed = (dict(curves[f"synthetic/{name}/{kind}"]) for kind in ("real", "composed"))
        assert set(real) == {1, 2, 3, 4} and len(set(real.values())) == 1
        assert composed[4] == 0
    composed_in = lambda epoch: sum(dict(curves[f"synthetic/{name}/composed"])[epoch] for name in "ab")  # noqa: E731
    assert composed_in(1) > composed_in(3) > 0
    assert curves["synthetic/composed"] == [(1, None), (2, None), (3, None)]


def interrupted(words: list[str], in_epoch: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Start a run and interrupt it in an epoch, counted from 0."""
    from hsr_train.engines.detection.loop import Loop

    begin = Loop.backward

    def stop(self: Loop, batch: Any) -> Any:
        if self.trainer.epoch == in_epoch:
            raise KeyboardInterrupt
        return begin(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "backward", stop)
        execute(words)
    (output,) = (word.removeprefix("output_dir=") for word in words if word.startswith("output_dir="))
    (run,) = (Path(output) / "detect").iterdir()
    return run


def same(one: Path, other: Path) -> bool:
    found = [(rows(run), last_state(run)) for run in (one, other)]
    return found[0][0] == found[1][0] and all(
        differences(found[0][1][part], found[1][1][part]) == [] for part in ("ema", "optimizer")
    )


@pytest.mark.slow
def test_run_that_is_resumed_where_numbers_change_ends_as_the_uninterrupted_one(
    folder: Path, changing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two loader processes that are epochs ahead, where the whole run had none."""
    run = interrupted(start(folder, tmp_path, train__workers=2, **CHANGING_RUN), 1, monkeypatch)
    with quick_pictures():
        resume(run, "train.workers=1")
    assert same(run, changing)
    kept = [read_json(folder / "training_result.json")["synthetic"] for folder in (run, changing)]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_numbers_follow_epochs_that_are_planned_by_time_and_can_be_repeated(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, ...]] = []

    def plan(self: Pace, done: int, epochs: int, epoch_s: float, val_s: float, load: Any) -> int:
        asked.append(tuple(load(epoch, 4) for epoch in range(4)))
        return 4 if done < 2 else 3

    words = start(folder, tmp_path / "out", train__workers=2, **CHANGING_RUN | {"train__epochs": None})
    words = [*words, "train.time_budget=1h"]
    with monkeypatch.context() as patch:
        patch.setattr(Pace, "plan", plan)
        run = execute([word for word in words if not word.startswith("train.close_mosaic")])
    images = read_json(run / "training_result.json")["synthetic"]["images_per_epoch"]
    assert images == [NUM_REAL + n for n in (14, 9, 0)]  # of 50, of 4, and of 3 epochs
    assert asked[0] == tuple((NUM_REAL + n) / 23 for n in NUMBERS)
    again = execute([f"reproduce={run}", f"output_dir={tmp_path / 'again'}"])
    assert same(again, run)


@pytest.mark.slow
def test_extended_run_composes_what_one_of_that_length_does_and_can_be_repeated(folder: Path, tmp_path: Path) -> None:
    settings = CHANGING_RUN | {"train__epochs": 2, "train__close_mosaic": 0}
    run = execute(start(folder, tmp_path / "out", **settings))
    with quick_pictures():
        resume(run, "train.epochs=4")
    images = read_json(run / "training_result.json")["synthetic"]["images_per_epoch"]
    assert images == [NUM_REAL + n for n in (14, 0, 4, 0)]
    log = RunDirectory(run).train_log.read_text()
    assert "Composed images, too, are from there on as many as a run of 4 epochs has" in log
    assert same(execute([f"reproduce={run}", f"output_dir={tmp_path / 'again'}"]), run)


def test_changed_or_new_cutouts_and_backgrounds_are_noticed(folder: Path, finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("cache"))
    words = [f"reproduce={finished}", f"synthetic.annotated_dir={copy / 'cutouts'}", f"output_dir={tmp_path}"]
    words += [f"synthetic.backgrounds_dir={copy / 'backgrounds'}", "mode=check"]
    hsr_train.execute(hsr_train.compose(words))  # moved, and the same
    write(copy / "cutouts" / "a" / "one.png", cutout((9, 9, 200)))
    write(copy / "cutouts" / "a" / "new.png", cutout(RED))
    (copy / "backgrounds" / "2.png").unlink()
    with pytest.raises(InputError) as caught:
        hsr_train.execute(hsr_train.compose(words))
    for text in ("a/one.png: the image changed", "a/new.png: is new in cut-outs", "2.png: is gone from backgrounds"):
        assert text in str(caught.value)


def test_distractors_are_recorded_and_hashed_like_cutouts(folder: Path, tmp_path: Path) -> None:
    lamp = write(tmp_path / "distractors" / "lamp" / "one.png", cutout((30, 200, 30)))
    words = start(folder, tmp_path, synthetic__distractors_dir=tmp_path / "distractors", synthetic__shadow=0.5)
    run = execute([*words, "synthetic.light=0.5"])
    assert "1 distractor besides, without a label" in RunDirectory(run).train_log.read_text()
    manifest = read_json(run / "manifest.json")["fingerprints"]["data"]["synthetic"]
    assert manifest["distractors"] == 1 and manifest["cutouts"] == 3
    assert "distractors,lamp/one.png," in (run / "data_files.csv").read_text()
    write(lamp, cutout((30, 30, 200)))
    with pytest.raises(InputError, match=r"lamp/one.png: the image changed"):
        hsr_train.execute(hsr_train.compose([f"reproduce={run}", f"output_dir={tmp_path}", "mode=check"]))


def test_number_of_distractors_without_any_is_refused(folder: Path, tmp_path: Path) -> None:
    words = [*start(folder, tmp_path), "synthetic.distractors=[1,3]"]
    with pytest.raises(InputError, match=r"synthetic.distractors: .*has no effect without distractors_dir"):
        hsr_train.compose(words)
    with pytest.raises(InputError, match=r"must be two whole numbers, the smaller one first, at least 0"):
        hsr_train.compose([*words[:-1], "synthetic.distractors=[3,1]", f"synthetic.distractors_dir={tmp_path}"])


def test_training_images_serve_as_backgrounds(folder: Path, tmp_path: Path) -> None:
    run = execute(start(folder, tmp_path, synthetic__backgrounds_dir=None))
    assert "on the training images" in RunDirectory(run).train_log.read_text()


def test_preview_is_a_picture_and_trains_nothing(folder: Path, tmp_path: Path) -> None:
    run = execute([*start(folder, tmp_path), "mode=preview", "synthetic.ratio=0"])
    picture = cv2.imread(str(run / "preview.png"))
    assert picture is not None and picture.shape[1] > 1000
    assert not (run / "weights").exists() and not (run / "training_result.json").exists()


def test_ratio_of_zero_is_a_run_without_composed_images(folder: Path, tmp_path: Path) -> None:
    words = [*start(folder, tmp_path, synthetic__ratio=0), "mode=check"]
    assert hsr_train.compose(words).synthetic.enabled is False
    experiment = hsr_train.compose(words)
    assert any(d.key == "synthetic.enabled" and "ratio is 0" in d.reason for d in experiment.origin.decisions)
    assert hsr_train.execute(experiment).status == "checked"


# ---- how many and how large


def test_what_the_labels_show_is_decided_and_recorded(folder: Path, tmp_path: Path) -> None:
    """A photo of 100 pixels with a cut-out of 60 by 60, and objects of a quarter of that size."""
    make_yolo_set(tmp_path / "set", n_train=10, n_val=2)
    for i, file in enumerate(sorted((tmp_path / "set" / "labels" / "train").iterdir())):
        file.write_text("".join(f"1 0.5 {0.2 * (k + 1)} 0.15 0.15\n" for k in range(4 if i == 0 else 2)))
    photo, mask = np.full((100, 100, 3), BLUE, np.uint8), np.zeros((100, 100), np.uint8)
    mask[20:80, 20:80] = 255
    write(tmp_path / "cutouts" / "b" / "images" / "photo.png", photo)
    write(tmp_path / "cutouts" / "b" / "masks" / "photo_mask.png", mask)
    words = [w for w in start(tmp_path, tmp_path, synthetic__backgrounds_dir=folder / "backgrounds")
             if not w.startswith("data.path=")]  # fmt: skip
    run = execute([*words, f"data.path={tmp_path / 'set' / 'data.yaml'}"])
    decided = {d["key"]: d["value"] for d in read_json(run / "manifest.json")["decisions"]}
    assert decided["synthetic.objects"] == [2, 2] and decided["synthetic.scale"] == [0.25, 0.25]
    assert "  objects:\n  - 2\n  - 2\n" in (run / "config.yaml").read_text()


def test_size_of_what_is_cut_out_of_the_training_images_is_kept(large: Path, tmp_path: Path) -> None:
    plan = check(large, tmp_path, "polygons", enabled="true")
    config, reasons = plan.experiment.synthetic, {d.key: d.reason for d in plan.decisions}
    assert (config.objects, config.scale) == ([1, 3], [0.5, 1.5])
    assert "have objects of their own" in reasons["synthetic.objects"] and "cut out of" in reasons["synthetic.scale"]


def test_typed_numbers_are_taken(large: Path, folder: Path, tmp_path: Path) -> None:
    more = {"annotated_dir": folder / "cutouts", "objects": "[2,2]", "scale": "[1,1]"}
    plan = check(large, tmp_path, "boxes", **more)
    assert (plan.experiment.synthetic.objects, plan.experiment.synthetic.scale) == ([2, 2], [1, 1])
    assert not {"synthetic.objects", "synthetic.scale"} & {d.key for d in plan.decisions}


# ---- where cut-outs come from


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets whose objects are large enough to be cut out, of polygons and of boxes, and masks of the second."""
    root = tmp_path_factory.mktemp("large")
    for kind in ("boxes", "polygons"):
        make_yolo_set(root / kind, n_train=4, n_val=2, size=(256, 256), polygons=kind == "polygons", seed=len(kind))
        (root / kind / "labels" / "train" / "0000.txt").write_text(
            "0 0.3 0.3 0.7 0.3 0.7 0.7 0.3 0.7\n" if kind == "polygons" else "0 0.5 0.5 0.4 0.4\n"
        )
    mask = np.zeros((256, 256), np.uint8)
    mask[80:176, 80:176] = 255
    write(root / "masks" / "0000.png", mask)
    make_backgrounds(root / "backgrounds")
    return root


def check(large: Path, tmp_path: Path, kind: str, **more: Any) -> Any:
    """The plan of a run: what is prepared, without training."""
    from hsr_train.engines.detection.preparation import prepare
    from hsr_train.hardware import detect

    typed = {f"synthetic__{key}": value for key, value in more.items()}
    words = overrides(large / kind / "data.yaml", tmp_path / "out", tmp_path / "cache", **typed)
    return prepare(hsr_train.compose([*words, "mode=check"]), detect(), Decisions())


def test_backgrounds_and_polygons_switch_it_on(large: Path, tmp_path: Path) -> None:
    plan = check(large, tmp_path, "polygons", backgrounds_dir=large / "backgrounds")
    assert plan.experiment.synthetic.enabled is True
    record = plan.fingerprints["data"]["synthetic"]
    assert record["source"] == "polygons" and record["cutouts"] >= 1
    assert any(d.key == "synthetic.enabled" and d.value is True for d in plan.decisions)
    assert "cut out of the training images by their polygons" in "\n".join(plan.summary)


def test_backgrounds_and_boxes_leave_it_off_and_say_what_would_switch_it_on(large: Path, tmp_path: Path) -> None:
    plan = check(large, tmp_path, "boxes", backgrounds_dir=large / "backgrounds")
    assert plan.experiment.synthetic.enabled is False and plan.inputs.synthesis is None
    (reason,) = (d.reason for d in plan.decisions if d.key == "synthetic.enabled")
    assert "labels are boxes" in reason and "synthetic.masks=grabcut" in reason


def test_polygons_alone_leave_it_off_until_it_is_asked_for(large: Path, tmp_path: Path) -> None:
    assert check(large, tmp_path, "polygons").inputs.synthesis is None
    plan = check(large, tmp_path, "polygons", enabled="true")
    assert plan.fingerprints["data"]["synthetic"]["source"] == "polygons"


def test_boxes_alone_are_refused_where_cutouts_are_asked_for(large: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="labels are boxes") as caught:
        check(large, tmp_path, "boxes", enabled="true")
    assert "synthetic.annotated_dir=FOLDER" in str(caught.value) and "synthetic.masks=grabcut" in str(caught.value)


def test_masks_are_hashed_with_the_data(large: Path, tmp_path: Path) -> None:
    plan = check(large, tmp_path, "boxes", masks_dir=large / "masks")
    record = plan.fingerprints["data"]["synthetic"]
    assert (record["source"], record["cutouts"]) == ("masks_dir", 1)
    assert sum(record["left_out"].values()) == len(record["rejected"]) > 0
    assert [row[:2] for row in plan.data_files() if row[0] == "masks"] == [("masks", "0000.png")]
    assert plan.experiment.synthetic.masks_dir == str(large / "masks")


def test_grabcut_is_recorded_as_the_source(large: Path, tmp_path: Path) -> None:
    image = np.full((256, 256, 3), (60, 150, 60), np.uint8)
    cv2.circle(image, (128, 128), 46, RED, -1)
    copy = tmp_path / "set"
    shutil.copytree(large / "boxes", copy)
    write(copy / "images" / "train" / "0000.jpg", image)
    plan = check(tmp_path, tmp_path, "set", masks="grabcut")
    assert plan.fingerprints["data"]["synthetic"]["source"] == "grabcut"


def test_preview_shows_the_cutouts_too(large: Path, tmp_path: Path) -> None:
    words = overrides(large / "polygons" / "data.yaml", tmp_path, tmp_path / "cache", train__imgsz=128)
    run = execute([*words, "mode=preview"])
    assert all(cv2.imread(str(run / name)) is not None for name in ("preview.png", "cutouts.png"))


# ---- the built-in set


def test_demo_cutouts_and_backgrounds_are_those_of_the_set_that_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = partial(ensure_demo_set, num_train=4, num_val=2, num_cutouts=1, num_backgrounds=2)
    for place in ("preparation", "cutouts"):
        monkeypatch.setattr(f"hsr_train.engines.detection.{place}.ensure_demo_set", small)
    words = ["preset=demo", "data.path=demo-few", "synthetic.annotated_dir=demo", "synthetic.backgrounds_dir=demo"]
    words += ["train.epochs=1", f"output_dir={tmp_path}", f"data.cache_dir={tmp_path}", "train.device=cpu"]
    words += ["tensorboard.enabled=false", "train.workers=0", "train.imgsz=64"]
    experiment = hsr_train.compose(words)
    with quick_pictures():
        run = hsr_train.execute(experiment).run_dir
    assert run is not None
    own = read_json(run / "manifest.json")["fingerprints"]["data"]["synthetic"]
    assert own["cutouts_per_class"] == dict.fromkeys(CLASSES, 1) and own["backgrounds"] == 2
    decided = {d["key"]: d["value"] for d in read_json(run / "manifest.json")["decisions"]}
    assert decided["synthetic.scale"][1] < 1  # close-ups
    assert read_json(run / "training_result.json")["synthetic"]["composed"] > 0
    saved = (run / "config.yaml").read_text()
    assert "annotated_dir: demo\n" in saved and "path: demo-few\n" in saved


@pytest.mark.parametrize("key", ["annotated_dir", "backgrounds_dir"])
def test_demo_cutouts_and_backgrounds_are_refused_with_other_data(key: str) -> None:
    with pytest.raises(InputError, match=f"synthetic.{key}: demo: is the built-in set's, for data.path=demo"):
        hsr_train.compose(["data.path=my/data.yaml", "synthetic.annotated_dir=x", f"synthetic.{key}=demo"])


def test_demo_preset_alone_composes_nothing() -> None:
    assert hsr_train.compose(["preset=demo"]).synthetic.enabled is False
    typed = hsr_train.compose(["preset=demo", "synthetic.annotated_dir=demo", "synthetic.scale=[1,2]"])
    assert typed.synthetic.scale == [1, 2]


# ---- bad input


BAD = {
    "synthetic.ratio=-1": "synthetic.ratio: -1.*at least 0",
    "synthetic.objects=[3,1]": "must be two whole numbers, the smaller one first, at least 1 and at most 100, or auto",
    "synthetic.objects=[1,2.5]": "must be two whole numbers",
    "synthetic.objects=3": "must be two whole numbers",
    "synthetic.scale=[0,1]": "above 0",
    "synthetic.scale=[1,2,3]": "must be two numbers",
    "synthetic.scale=large": "or auto\n.*synthetic.scale=\\[0.5,1.5\\]",
    "synthetic.blend=[soft]": "must be some of hard, feathered, gaussian, poisson",
    "synthetic.blend=[]": "must be some of",
    "synthetic.balance=even": "none, uniform, inverse",
    "synthetic.schedule=cosine": "constant, linear",
    "synthetic.close_epochs=-1": "at least 0",
    "synthetic.close_epochs=2": "must be below train.epochs=2",
    "synthetic.enabled=perhaps": "must be auto, true or false",
    "synthetic.enabled=false": "synthetic.annotated_dir: .*has no effect without synthetic.enabled=true",
}


@pytest.mark.parametrize("override", BAD)
def test_impossible_value_is_refused(folder: Path, tmp_path: Path, override: str) -> None:
    with pytest.raises(InputError, match=BAD[override]):
        hsr_train.compose([*start(folder, tmp_path, synthetic__ratio=None), override])


@pytest.mark.parametrize("word", ["synthetic.ratio=1", "synthetic.schedule=linear", "synthetic.cutouts_per_class=9"])
def test_what_has_no_effect_without_cutouts_is_refused(word: str) -> None:
    with pytest.raises(InputError, match="has no effect without cut-outs"):
        hsr_train.compose([word])


@pytest.mark.parametrize(
    "second", ["synthetic.masks=grabcut", "synthetic.masks_dir=x", "synthetic.cutouts_per_class=9"]
)
def test_cutouts_come_from_one_source(folder: Path, tmp_path: Path, second: str) -> None:
    key = second.partition("=")[0]
    with pytest.raises(InputError) as caught:
        hsr_train.compose([*start(folder, tmp_path), second])
    assert [problem.key for problem in caught.value.problems] == [key]


def test_preview_of_classification_is_refused() -> None:
    with pytest.raises(InputError, match="for detectors"):
        hsr_train.compose(["task=classify", "mode=preview"])


def test_bad_folders_are_named_together_before_anything_is_made(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    more = {"synthetic__annotated_dir": tmp_path / "nowhere", "synthetic__backgrounds_dir": tmp_path / "empty"}
    with pytest.raises(InputError) as caught:
        train(folder / "boxes" / "data.yaml", tmp_path / "out", folder / "cache", **more)
    assert {problem.key for problem in caught.value.problems} == {
        "synthetic.annotated_dir",
        "synthetic.backgrounds_dir",
    }
    assert not (tmp_path / "out").exists()


# ---- a set on disk


def synthesize(folder: Path, output: Path, count: int, *more: str) -> None:
    own = ["synthetic.scale=[0.5,1.5]", "synthetic.objects=[1,3]"]
    words = [*start(folder, output), "mode=synthesize", f"synthetic.count={count}", *own, *more]
    assert hsr_train.execute(hsr_train.compose(words)).status == "synthesized"


def test_set_of_composed_images_can_be_trained_on_and_gone_on_with(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    synthesize(folder, made, 4)
    first = {path: path.stat().st_mtime_ns for path in made.rglob("0*.*")}
    assert len(first) == 3 * 4
    (made / "labels" / "train" / "000002.txt").unlink()
    before = (made / "images" / "train" / "000002.jpg").read_bytes()
    synthesize(folder, made, 6)
    assert (made / "images" / "train" / "000002.jpg").read_bytes() == before
    kept = [path for path in first if "000002" not in path.name]
    assert all(path.stat().st_mtime_ns == first[path] for path in kept)
    data = load_detection_set(DataConfig(path=str(made / "data.yaml"), cache_dir=str(tmp_path / "cache")), Decisions())
    assert len(data.splits["train"]) == 6 and len(data.splits["val"]) == 3
    bank = ObjectBank.read(folder / "cutouts", data.names, cache_dir=folder / "cache", side=64, photo_side=64.0)
    backgrounds = FolderBackgrounds.read(folder / "backgrounds", cache_dir=folder / "cache", side=64)
    composer = Composer(bank, backgrounds, SyntheticConfig(), side=64)
    for index, label in enumerate(data.splits["train"].labels):
        _, boxes, classes, _ = composer.compose(0, index)
        assert label[:, 0].tolist() == classes.tolist()
        centres, sizes = label[:, 1:3] * 64, label[:, 3:5] * 64
        assert np.abs(np.hstack([centres - sizes / 2, centres + sizes / 2]) - boxes).max(initial=0) < 0.01


def test_folder_of_another_set_is_not_written_to(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    synthesize(folder, made, 2)
    with pytest.raises(InputError, match="was composed otherwise"):
        synthesize(folder, made, 2, "train.seed=1")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="must be a new or empty folder"):
        synthesize(folder, tmp_path / "full", 2)


def test_count_without_its_mode_and_the_mode_without_a_count_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"synthetic\.count: null: mode=synthesize needs a number"):
        hsr_train.compose([*start(folder, tmp_path), "mode=synthesize"])
    with pytest.raises(InputError, match="has no effect without mode=synthesize"):
        hsr_train.compose([*start(folder, tmp_path), "synthetic.count=3"])
