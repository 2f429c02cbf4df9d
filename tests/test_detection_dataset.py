"""A sample is a function of (seed, epoch, index) alone, whatever loads it; what is cached is never changed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import asdict, fields
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detection_runs import overrides
from yolo_sets import make_yolo_set, write_picture

import hsr_train
from hsr_train.config.schema import AugmentationConfig, DataConfig, DetectExperiment
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.engines.detection import dataset as dataset_module
from hsr_train.engines.detection.batches import EpochSampler, epoch_order
from hsr_train.engines.detection.dataset import RunDataset, make_loader
from hsr_train.engines.detection.options import training_arguments

from ultralytics.cfg import get_cfg  # isort: skip (after hsr_train, which isolates it)
from ultralytics.data.augment import Albumentations  # isort: skip

EPOCHS, PLAIN_FROM = 4, 3
SETS = [
    pytest.param("boxes", "default", id="boxes-default"),
    pytest.param("boxes", "none", id="boxes-none"),
    pytest.param("boxes", "light", id="boxes-light"),
    pytest.param("polygons", "strong", id="polygons-strong"),
]
CACHES, BATCHES = ("none", "ram", "disk"), (1, 4, 64)
PAIRS = [(w, cache, BATCHES[(w + n) % 3]) for w in range(4) for n, cache in enumerate(CACHES)]
"""Workers, cache and batch: every two of them together at least once."""
Key = tuple[int, int]


def load(path: Path, cache_dir: Path) -> DetectionSet:
    return load_detection_set(DataConfig(path=str(path), cache_dir=str(cache_dir)), Decisions())


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> dict[str, DetectionSet]:
    """Eleven images of different shapes, one without an object, with boxes or with polygons."""
    found = {}
    for kind in ("boxes", "polygons"):
        root = tmp_path_factory.mktemp(kind)
        yaml_path = make_yolo_set(root, n_train=11, n_val=3, polygons=kind == "polygons", seed=len(kind))
        for number, size in ((1, (40, 90)), (2, (120, 50)), (3, (64, 63))):
            write_picture(root / "images" / "train" / f"{number:04}.jpg", size=size, seed=number)
        (root / "labels" / "train" / "0004.txt").write_text("")
        found[kind] = load(yaml_path, shared_cache)
    return found


@cache
def composed(augmentation: str) -> DetectExperiment:
    return hsr_train.compose(overrides(Path("data.yaml"), Path("out"), Path("cache"), augmentation=augmentation))


def experiment(augmentation: str) -> DetectExperiment:
    return deepcopy(composed(augmentation))


def build(
    data: DetectionSet,
    folder: Path,
    augmentation: str = "default",
    *,
    cache: str = "none",
    split: str = "train",
    augment: bool = True,
    batch: int = 4,
    rect: bool | None = None,
    open_epochs: int = PLAIN_FROM,
    **arguments: Any,
) -> RunDataset:
    made = experiment(augmentation)
    made.train.cache = cache
    if augmentation == "strong":
        made.augmentation.copy_paste = 0.5
    for name, value in arguments.items():
        section = made.augmentation if hasattr(made.augmentation, name) else made.train
        setattr(section, name, value)
    return RunDataset(
        data.splits[split],
        get_cfg(overrides=training_arguments(made, "cpu", folder)),
        augment=augment,
        open_epochs=open_epochs,
        cache_dir=folder / "cache",
        batch_size=batch,
        stride=32,
        names=data.names,
        rect=rect,
    )


def digest(image: torch.Tensor, classes: torch.Tensor, boxes: torch.Tensor) -> str:
    content = b"".join(np.ascontiguousarray(t.numpy()).tobytes() for t in (image, classes, boxes))
    return hashlib.sha256(content).hexdigest()


def by_hand(data: RunDataset, keys: list[Key]) -> dict[Key, str]:
    """Fetch samples in the given order."""
    samples = {key: data[key] for key in keys}
    return {key: digest(s["img"], s["cls"], s["bboxes"]) for key, s in samples.items()}


def by_loader(
    data: RunDataset, *, workers: int, batch: int, epochs: range = range(EPOCHS), seed: int = 0
) -> dict[Key, str]:
    """Fetch whole epochs as training does."""
    found: dict[Key, str] = {}
    loader = make_loader(
        data,
        batch_size=batch,
        at_once=batch,
        workers=workers,
        seed=seed,
        shuffle=True,
        start_epoch=epochs.start,
        pin=False,
    )
    try:
        for epoch in epochs:
            for b in loader:
                for i, file in enumerate(b["im_file"]):
                    own = b["batch_idx"] == i
                    key = (epoch, data.im_files.index(file))
                    assert key not in found
                    found[key] = digest(b["img"][i], b["cls"][own], b["bboxes"][own])
    finally:
        loader.close()
    return found


SQUARE = [0, *range(4, 11)]
"""Images of the network's own size; others are centred half a pixel apart in training and validation."""
KEYS = [(epoch, index) for epoch in range(EPOCHS) for index in range(11)]


@pytest.fixture(scope="module")
def reference(
    sets: dict[str, DetectionSet], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], dict[Key, str]]:
    """Every sample, each from a data set that has loaded nothing else before."""
    made: dict[tuple[str, str], dict[Key, str]] = {}

    def get(kind: str, augmentation: str) -> dict[Key, str]:
        if (kind, augmentation) not in made:
            folder = tmp_path_factory.mktemp("reference")
            fresh = {}
            for key in KEYS:
                fresh |= by_hand(build(sets[kind], folder, augmentation=augmentation), [key])
            made[kind, augmentation] = fresh
        return made[kind, augmentation]

    return get


# ---- a function of (seed, epoch, index)


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
@pytest.mark.parametrize(("kind", "augmentation"), SETS)
def test_sample_does_not_depend_on_cache_or_order_of_access(
    sets: dict[str, DetectionSet], reference: Any, tmp_path: Path, kind: str, augmentation: str, cache: str
) -> None:
    expected = reference(kind, augmentation)
    keys = [*KEYS, *KEYS]
    random.Random(cache).shuffle(keys)
    data = build(sets[kind], tmp_path, augmentation=augmentation, cache=cache)
    assert by_hand(data, keys) == expected
    assert by_hand(data, KEYS[::-1]) == expected


@pytest.mark.parametrize(
    ("workers", "cache", "batch"), [(0, "none", 4), (2, "ram", 3), (2, "none", 11), (1, "disk", 1)]
)
def test_sample_does_not_depend_on_workers_or_batch_size(
    sets: dict[str, DetectionSet], reference: Any, tmp_path: Path, workers: int, cache: str, batch: int
) -> None:
    """Four epochs, so that workers fetch ahead over the border where mixing ends."""
    data = build(sets["polygons"], tmp_path, augmentation="strong", cache=cache, batch=batch)
    assert by_loader(data, workers=workers, batch=batch) == reference("polygons", "strong")


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "cache", "batch"), PAIRS)
@pytest.mark.parametrize(("kind", "augmentation"), SETS)
def test_sample_does_not_depend_on_anything_else(
    sets: dict[str, DetectionSet],
    reference: Any,
    tmp_path: Path,
    kind: str,
    augmentation: str,
    workers: int,
    cache: str,
    batch: int,
) -> None:
    data = build(sets[kind], tmp_path, augmentation=augmentation, cache=cache, batch=batch)
    assert by_loader(data, workers=workers, batch=batch) == reference(kind, augmentation)


def test_start_at_a_later_epoch_gives_the_samples_of_that_epoch(
    sets: dict[str, DetectionSet], reference: Any, tmp_path: Path
) -> None:
    data = build(sets["boxes"], tmp_path)
    expected = {key: value for key, value in reference("boxes", "default").items() if key[0] >= 2}
    assert by_loader(data, workers=2, batch=4, epochs=range(2, EPOCHS)) == expected


def test_global_generators_have_no_influence(sets: dict[str, DetectionSet], reference: Any, tmp_path: Path) -> None:
    data = build(sets["boxes"], tmp_path)
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        assert by_hand(data, KEYS) == reference("boxes", "default")


def test_seed_epoch_and_index_each_give_another_sample(
    sets: dict[str, DetectionSet], reference: Any, tmp_path: Path
) -> None:
    samples = reference("boxes", "default")
    assert len(set(samples.values())) == len(samples)
    other = by_hand(build(sets["boxes"], tmp_path, seed=1), KEYS)
    assert not set(other.values()) & set(samples.values())


# ---- the order


def test_order_is_a_permutation_that_depends_on_seed_and_epoch_alone() -> None:
    orders = {(seed, epoch): tuple(epoch_order(seed, epoch, 50)) for seed in range(3) for epoch in range(3)}
    assert len(set(orders.values())) == 9
    assert all(sorted(order) == list(range(50)) for order in orders.values())
    assert orders == {(seed, epoch): tuple(epoch_order(seed, epoch, 50)) for seed, epoch in reversed(orders)}


def test_sampler_counts_epochs_from_where_it_starts() -> None:
    sampler, later = EpochSampler(7, seed=3), EpochSampler(7, seed=3, start_epoch=2)
    epochs = [list(sampler) for _ in range(4)]
    assert [list(later), list(later)] == epochs[2:]
    assert [{epoch for epoch, _ in order} for order in epochs] == [{0}, {1}, {2}, {3}]
    assert len({tuple(index for _, index in order) for order in epochs}) == 4
    assert list(EpochSampler(4, 0, shuffle=False)) == [(0, 0), (0, 1), (0, 2), (0, 3)]


def test_batch_larger_than_the_set_gives_every_image_once(sets: dict[str, DetectionSet], tmp_path: Path) -> None:
    data = build(sets["boxes"], tmp_path, batch=64)
    assert len(by_loader(data, workers=0, batch=64)) == len(KEYS)


# ---- mosaic


def partners(data: RunDataset, epochs: range) -> dict[Key, Counter[int]]:
    """Return which other images each sample was made of."""
    seen: dict[Key, Counter[int]] = defaultdict(Counter)
    original = data.get_image_and_label
    current: Key = (0, 0)

    def noting(index: int) -> dict[str, Any]:
        seen[current][index] += 1
        label: dict[str, Any] = original(index)
        return label

    data.get_image_and_label = noting  # type: ignore[method-assign]
    for epoch in epochs:
        for index in range(len(data)):
            current = (epoch, index)
            data[current]
            seen[current][index] -= 1
    return {key: +count for key, count in seen.items()}


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_mosaic_partners_come_from_the_whole_set(sets: dict[str, DetectionSet], tmp_path: Path, cache: str) -> None:
    data = build(sets["boxes"], tmp_path, cache=cache, mosaic=1.0, mixup=0.0, open_epochs=40)
    drawn = partners(data, range(40))
    assert {sum(count.values()) for count in drawn.values()} == {3}
    total = sum((Counter(count) for count in drawn.values()), Counter())
    share = 3 * 40 * 11 / 11
    assert set(total) == set(range(11))
    assert all(0.6 * share < number < 1.4 * share for number in total.values())


def test_mosaic_partners_of_a_large_set_are_neighbours_in_the_order_of_the_epoch(
    sets: dict[str, DetectionSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "MOSAIC_WINDOW", 4)
    data = build(sets["boxes"], tmp_path, mosaic=1.0, mixup=0.0, open_epochs=60)
    drawn = partners(data, range(60))
    for (epoch, index), count in drawn.items():
        order = epoch_order(0, epoch, 11).tolist()
        assert all(abs(order.index(other) - order.index(index)) <= 3 for other in count)
    met = {(index, other) for (_, index), count in drawn.items() for other in count}
    assert len(met) == 11 * 11, "over many epochs every image meets every other"


def test_images_in_memory_are_bounded_without_a_cache(
    sets: dict[str, DetectionSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset_module, "MOSAIC_WINDOW", 2)
    data = build(sets["boxes"], tmp_path)
    by_hand(data, KEYS)
    assert sum(image is not None for image in data.ims) <= 2 * 2


# ---- the last epochs


def plain_image(data: DetectionSet, folder: Path, index: int) -> torch.Tensor:
    """Return the letterboxed original."""
    image: torch.Tensor = build(data, folder, augment=False, rect=False)[0, index]["img"]
    return image


def test_epochs_without_mosaic_are_plain(sets: dict[str, DetectionSet], tmp_path: Path) -> None:
    mixing = {"mosaic": 1.0, "mixup": 1.0, "cutmix": 1.0, "copy_paste": 1.0}
    data = build(sets["polygons"], tmp_path, augmentation="none", **mixing)
    for index in SQUARE:
        original = plain_image(sets["polygons"], tmp_path, index)
        assert not torch.equal(data[PLAIN_FROM - 1, index]["img"], original)
        for epoch in (PLAIN_FROM, PLAIN_FROM + 5):
            assert torch.equal(data[epoch, index]["img"], original)


def test_epochs_without_mosaic_keep_colour_and_geometry_changes(sets: dict[str, DetectionSet], tmp_path: Path) -> None:
    data = build(sets["boxes"], tmp_path)
    assert not any(partners(data, range(PLAIN_FROM, PLAIN_FROM + 2)).values())
    images = {digest(s["img"], s["cls"], s["bboxes"]) for s in (data[epoch, 0] for epoch in range(3, 9))}
    assert len(images) == 6


@pytest.mark.parametrize("epoch", [0, PLAIN_FROM])
def test_without_augmentation_a_sample_is_the_letterboxed_original(
    sets: dict[str, DetectionSet], tmp_path: Path, epoch: int
) -> None:
    data = build(sets["boxes"], tmp_path, augmentation="none")
    for index in SQUARE:
        assert torch.equal(data[epoch, index]["img"], plain_image(sets["boxes"], tmp_path, index))


# ---- the settings

KNOBS: dict[str, float] = {
    "hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 10.0, "translate": 0.1, "scale": 0.5, "shear": 5.0,
    "perspective": 0.001, "flipud": 1.0, "fliplr": 1.0, "bgr": 1.0, "mosaic": 1.0, "mixup": 1.0, "cutmix": 1.0,
    "copy_paste": 1.0,
}  # fmt: skip


def test_every_setting_of_the_section_has_a_test_below() -> None:
    assert {f.name for f in fields(AugmentationConfig)} == {*KNOBS, "copy_paste_mode"}


def test_default_is_that_of_the_first_seed() -> None:
    section = asdict(experiment("default").augmentation)
    promised = {"hsv_h": 0.015, "hsv_s": 0.7, "hsv_v": 0.4, "degrees": 10.0, "translate": 0.1, "scale": 0.5,
                "fliplr": 0.5, "mosaic": 1.0, "mixup": 0.1}  # fmt: skip
    assert {key: section[key] for key in promised} == promised
    assert not any(value for key, value in section.items() if key not in promised and key != "copy_paste_mode")


@pytest.mark.parametrize("knob", KNOBS)
def test_setting_changes_the_samples(sets: dict[str, DetectionSet], tmp_path: Path, knob: str) -> None:
    """By itself, on pictures of the network's size: everything else is off."""
    keys = [(epoch, index) for index in SQUARE for epoch in range(PLAIN_FROM)]
    plain = by_hand(build(sets["polygons"], tmp_path, "none"), keys)
    changed = by_hand(build(sets["polygons"], tmp_path, "none", **{knob: KNOBS[knob]}), keys)
    same = sum(plain[key] == changed[key] for key in keys)
    assert same < len(keys)
    assert same == 0 or knob in ("cutmix", "copy_paste"), "these two need room for what they copy"
    again = by_hand(build(sets["polygons"], tmp_path, "none", **{knob: 0.0}), keys)
    assert again == plain


def test_flips_and_channels_change_as_they_say(sets: dict[str, DetectionSet], tmp_path: Path) -> None:
    plain = build(sets["polygons"], tmp_path, "none")[0, 0]
    for knob, dimension in (("fliplr", 2), ("flipud", 1), ("bgr", 0)):
        changed = build(sets["polygons"], tmp_path, "none", **{knob: 1.0})[0, 0]
        assert torch.equal(changed["img"], plain["img"].flip(dimension)), knob
        if dimension:
            axis = 2 - dimension
            assert torch.allclose(changed["bboxes"][:, axis], 1 - plain["bboxes"][:, axis], atol=1e-5), knob


# ---- caches


def decoded(data: RunDataset, index: int) -> np.ndarray:
    image = cv2.imread(data.im_files[index])
    assert image is not None
    height, width = image.shape[:2]
    ratio = data.imgsz / max(height, width)
    size = (min(int(np.ceil(width * ratio)), data.imgsz), min(int(np.ceil(height * ratio)), data.imgsz))
    return cv2.resize(image, size, interpolation=cv2.INTER_LINEAR) if ratio != 1 else image


CHANGES: dict[str, dict[str, Any]] = {
    "everything": {"augmentation": "strong", "mosaic": 1.0, "copy_paste": 1.0},
    "objects copied, no mosaic": {"augmentation": "strong", "mosaic": 0.0, "copy_paste": 1.0},
    "colours alone": {"augmentation": "none", "hsv_h": 0.5, "hsv_s": 0.9, "hsv_v": 0.9, "fliplr": 1.0, "bgr": 1.0},
    "validation": {"augment": False, "rect": False},
}


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_cached_images_are_never_changed(
    sets: dict[str, DetectionSet], tmp_path: Path, cache: str, changes: str
) -> None:
    """Colours and copied objects are changed in place: a step before them must have made a picture of its own."""
    data = build(sets["polygons"], tmp_path, cache=cache, **CHANGES[changes])
    before = {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*.npy")}
    assert len(before) == (11 if cache == "disk" else 0)
    for key in KEYS * 2:
        sample = data[key]
        sample["img"].zero_()
    held = [index for index in range(11) if data.ims[index] is not None]
    assert held or changes == "validation"
    for index in held:
        assert np.array_equal(data.ims[index], decoded(data, index)), index
    assert {file: file.read_bytes() for file in (tmp_path / "cache").rglob("*.npy")} == before


def test_disk_cache_lies_in_our_folder_keyed_by_content(sets: dict[str, DetectionSet], tmp_path: Path) -> None:
    split = sets["boxes"].splits["train"]
    beside = sorted(split.images[0].parent.iterdir())
    data = build(sets["boxes"], tmp_path, cache="disk")
    assert {file.stem for file in (tmp_path / "cache" / "images").iterdir()} == set(split.hashes)
    assert sorted(split.images[0].parent.iterdir()) == beside
    for index, file in enumerate(data.im_files):
        assert np.array_equal(np.load(data.npy_files[index]), cv2.imread(file))


def test_disk_cache_of_rectangular_batches_belongs_to_the_right_image(
    sets: dict[str, DetectionSet], tmp_path: Path
) -> None:
    """Validation sorts images by shape after their files were listed."""
    data = build(sets["boxes"], tmp_path, cache="disk", augment=False)
    assert data.im_files != [str(p) for p in sets["boxes"].splits["train"].images], "the order must have changed"
    for index in range(11):
        assert np.array_equal(np.load(data.npy_files[index]), cv2.imread(data.im_files[index]))
    plain = build(sets["boxes"], tmp_path / "other", augment=False)
    keys = [(0, index) for index in range(11)]
    assert by_hand(data, keys) == by_hand(plain, keys)


@pytest.mark.parametrize("damage", [b"", b"\x93NUMPY\x01\x00 broken", None])
def test_damaged_file_of_the_disk_cache_is_replaced_by_the_image(
    sets: dict[str, DetectionSet], reference: Any, tmp_path: Path, damage: bytes | None
) -> None:
    data = build(sets["boxes"], tmp_path, cache="disk")
    for file in data.npy_files:
        file.write_bytes(file.read_bytes()[:-10] if damage is None else damage)
    assert by_hand(data, KEYS) == reference("boxes", "default")


def test_npy_files_beside_the_images_are_not_read(
    sets: dict[str, DetectionSet], reference: Any, tmp_path: Path
) -> None:
    """Left by another program, with other content and a newer date."""
    strays = [image.with_suffix(".npy") for image in sets["boxes"].splits["train"].images]
    try:
        for stray in strays:
            np.save(stray, np.zeros((64, 64, 3), np.uint8))
        for cache in ("none", "ram", "disk"):
            assert by_hand(build(sets["boxes"], tmp_path, cache=cache), KEYS) == reference("boxes", "default")
    finally:
        for stray in strays:
            stray.unlink()


# ---- what is taken from the checked set


def test_labels_are_those_of_the_checked_set(sets: dict[str, DetectionSet], tmp_path: Path) -> None:
    split = sets["boxes"].splits["train"]
    data = build(sets["boxes"], tmp_path, augment=False)
    expected = {str(image): labels for image, labels in zip(split.images, split.labels, strict=True)}
    for label in data.labels:
        assert np.array_equal(np.hstack([label["cls"], label["bboxes"]]), expected[label["im_file"]])
    assert sum(not len(label["cls"]) for label in data.labels) == 1


def test_single_class_changes_the_samples_and_not_the_checked_set(
    sets: dict[str, DetectionSet], tmp_path: Path
) -> None:
    split = sets["boxes"].splits["train"]
    before = [labels.copy() for labels in split.labels]
    made = experiment("default")
    made.ultralytics.single_cls = True
    data = RunDataset(
        split,
        get_cfg(overrides=training_arguments(made, "cpu", tmp_path)),
        augment=True,
        open_epochs=1,
        cache_dir=tmp_path,
        batch_size=4,
        stride=32,
        names=sets["boxes"].names,
    )
    assert all(not label["cls"].any() for label in data.labels)
    assert all(np.array_equal(a, b) for a, b in zip(split.labels, before, strict=True))
    assert any(labels[:, 0].any() for labels in split.labels)


def transforms_of(transform: Any) -> Iterator[Any]:
    yield transform
    for child in [*getattr(transform, "transforms", []), getattr(transform, "pre_transform", None)]:
        if child is not None:
            yield from transforms_of(child)


@pytest.mark.parametrize("mode", ["flip", "mixup"])
def test_no_transform_is_there_because_of_an_installed_package(
    sets: dict[str, DetectionSet], tmp_path: Path, mode: str
) -> None:
    data = build(sets["polygons"], tmp_path, augmentation="strong", copy_paste_mode=mode)
    for pipeline in (data._mixing, data._plain):
        found = list(transforms_of(pipeline))
        assert len(found) > 8
        assert not any(isinstance(t, Albumentations) for t in found)


def test_copy_paste_by_mixing_is_a_function_of_its_key_too(sets: dict[str, DetectionSet], tmp_path: Path) -> None:
    make = {"augmentation": "strong", "copy_paste_mode": "mixup", "copy_paste": 1.0}
    data = build(sets["polygons"], tmp_path, **make)
    assert by_hand(data, KEYS) == by_hand(build(sets["polygons"], tmp_path, cache="ram", **make), KEYS[::-1])


# ---- workers


def test_worker_leaves_ctrl_c_to_the_main_process_and_obeys_sigterm(
    sets: dict[str, DetectionSet], tmp_path: Path
) -> None:
    """An exit status of 0, since torch raises in the main process for any other end of a worker."""
    loader = make_loader(
        build(sets["boxes"], tmp_path),
        batch_size=4,
        at_once=4,
        workers=1,
        seed=0,
        shuffle=True,
        start_epoch=0,
        pin=False,
    )
    try:
        batches = iter(loader)
        next(batches)
        (worker,) = loader.iterator._workers
        os.kill(worker.pid, signal.SIGINT)
        assert len([next(batches), next(batches)]) == 2
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(timeout=10)
        assert worker.exitcode == 0
    finally:
        loader.close()
