"""The built-in demo set: the same bytes every time, labels that fit what is drawn, and never half a set."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import hsr_train
from hsr_train.config.schema import DataConfig
from hsr_train.data import demo
from hsr_train.data.demo import FEW_SHOTS, MARKER, ensure_demo_set, is_whole
from hsr_train.data.demo_draw import Plan, draw, folders, generator, label_lines
from hsr_train.data.demo_objects import CLASSES, make
from hsr_train.data.demo_scene import (
    HEIGHT,
    MIN_SIDE_PX,
    MIN_VISIBLE_SHARE,
    WIDTH,
    Photograph,
    background,
    cutout,
    scene,
)
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, RunError

SMALL = {"num_train": 2, "num_val": 1, "num_cutouts": 0, "num_backgrounds": 0}


def _bytes(data_yaml: Path) -> dict[str, str]:
    home = data_yaml.parent
    files = (f for f in sorted(home.rglob("*")) if f.is_file())
    return {f.relative_to(home).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def photographs() -> list[Photograph]:
    return [scene(generator(42, "train", i)) for i in range(40)]


def test_ensure_demo_set_any_number_of_workers_gives_the_same_bytes(tmp_path: Path) -> None:
    counts = {"num_train": 20, "num_val": 4, "num_cutouts": 1, "num_backgrounds": 2}
    one = ensure_demo_set(tmp_path / "one", seed=3, **counts, workers=1)
    two = ensure_demo_set(tmp_path / "two", seed=3, **counts, workers=2)
    assert _bytes(one) == _bytes(two)
    assert one.parent.name == two.parent.name


def test_ensure_demo_set_another_seed_draws_other_pictures(tmp_path: Path) -> None:
    a, b = (ensure_demo_set(tmp_path, seed=seed, **SMALL) for seed in (1, 2))
    assert a.parent != b.parent
    for name in ("images/train/demo_00000.jpg", "images/train/demo_00001.jpg", "images/val/demo_00000.jpg"):
        assert (a.parent / name).read_bytes() != (b.parent / name).read_bytes()


def test_draw_a_picture_does_not_depend_on_the_number_of_pictures(tmp_path: Path) -> None:
    a = ensure_demo_set(tmp_path, seed=1, **SMALL)
    plan = Plan(1, 999, 999, 0, 0)
    for folder in folders(plan):
        (tmp_path / "alone" / folder).mkdir(parents=True)
    draw(tmp_path / "alone", 1, "train", 1)
    name = "images/train/demo_00001.jpg"
    assert (tmp_path / "alone" / name).read_bytes() == (a.parent / name).read_bytes()


def test_draw_train_and_val_pictures_differ(tmp_path: Path) -> None:
    home = ensure_demo_set(tmp_path, **SMALL).parent
    assert (home / "images/train/demo_00000.jpg").read_bytes() != (home / "images/val/demo_00000.jpg").read_bytes()


def test_ensure_demo_set_layout_is_a_yolo_set_with_cutouts_and_backgrounds(tmp_path: Path) -> None:
    data = ensure_demo_set(tmp_path, num_train=3, num_val=2, num_cutouts=2, num_backgrounds=1, workers=1)
    home = data.parent
    description = yaml.safe_load(data.read_text(encoding="utf-8"))
    assert description["path"] == "." and description["nc"] == len(CLASSES) >= 6
    assert description["names"] == dict(enumerate(CLASSES))
    for split, count in (("train", 3), ("val", 2)):
        images = sorted((home / description[split]).glob("*.jpg"))
        assert len(images) == count
        assert all((home / "labels" / split / f"{image.stem}.txt").is_file() for image in images)
        assert cv2.imread(str(images[0])).shape == (HEIGHT, WIDTH, 3)
    for name in CLASSES:
        images = sorted((home / "annotated" / name / "images").iterdir())
        assert len(images) == 2
        for image in images:
            mask = cv2.imread(str(home / "annotated" / name / "masks" / f"{image.stem}_mask.png"), cv2.IMREAD_UNCHANGED)
            assert mask.shape == cv2.imread(str(image)).shape[:2]
            assert set(np.unique(mask)) == {0, 255}
    assert len(list((home / "backgrounds").glob("*.jpg"))) == 1
    assert "may be deleted" in (home / "README.txt").read_text(encoding="utf-8")


def test_scene_boxes_enclose_exactly_what_is_visible(photographs: list[Photograph]) -> None:
    for photograph in photographs:
        for seen in photograph.objects:
            left, top, right, bottom = seen.box
            inside = seen.mask[top:bottom, left:right]
            assert inside.sum() == seen.mask.sum()
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_scene_no_two_objects_claim_a_pixel(photographs: list[Photograph]) -> None:
    for photograph in photographs:
        claims = np.zeros((HEIGHT, WIDTH), int)
        for seen in photograph.objects:
            claims += seen.mask
        assert claims.max() <= 1


def test_scene_keeps_only_objects_that_can_be_seen(photographs: list[Photograph]) -> None:
    for seen in (s for p in photographs for s in p.objects):
        left, top, right, bottom = seen.box
        assert MIN_VISIBLE_SHARE <= seen.share <= 1
        assert min(right - left, bottom - top) >= MIN_SIDE_PX


def test_scene_masks_show_something_else_than_their_surroundings(photographs: list[Photograph]) -> None:
    # Colours on both sides of the outline: a mask that was shifted against the picture would not part them.
    steps, shifted = [], []
    for photograph in photographs:
        image = photograph.image.astype(np.float32)
        for seen in photograph.objects:
            steps.append(_step_across_outline(image, seen.mask))
            shifted.append(_step_across_outline(image, np.roll(seen.mask, (9, 9), (0, 1))))
    assert np.mean(steps) > 1.4 * np.mean(shifted)


def _step_across_outline(image: np.ndarray, mask: np.ndarray) -> float:
    small = mask.astype(np.uint8)
    ring = cv2.dilate(small, np.ones((5, 5), np.uint8)) > cv2.dilate(small, np.ones((3, 3), np.uint8))
    rim = cv2.erode(small, np.ones((3, 3), np.uint8)) > cv2.erode(small, np.ones((5, 5), np.uint8))
    if not ring.any() or not rim.any():
        return 0.0
    near = (
        cv2.blur(image * rim[..., None], (9, 9)) / np.maximum(cv2.blur(rim.astype(np.float32), (9, 9)), 1e-4)[..., None]
    )
    return float(np.abs(near - image)[ring & (cv2.blur(rim.astype(np.float32), (9, 9)) > 0.05)].mean())


def test_scene_set_has_overlap_truncation_scale_and_empty_pictures(photographs: list[Photograph]) -> None:
    objects = [s for p in photographs for s in p.objects]
    heights = [s.box[3] - s.box[1] for s in objects]
    assert any(not scene(generator(42, "val", i)).objects for i in range(80))
    assert sum(s.share < 0.9 for s in objects) > 0.1 * len(objects)
    assert sum(0 in s.box[:2] or s.box[2] == WIDTH or s.box[3] == HEIGHT for s in objects) > 0.05 * len(objects)
    assert max(heights) > 4 * min(heights)
    brightness = [p.image.mean() for p in photographs]
    assert max(brightness) > 1.5 * min(brightness)


def test_scene_classes_are_balanced(photographs: list[Photograph]) -> None:
    counts = Counter(s.label for p in photographs for s in p.objects)
    assert set(counts) == set(range(len(CLASSES)))
    assert max(counts.values()) < 3 * min(counts.values())


def test_label_lines_are_normalised_boxes_of_the_objects(photographs: list[Photograph]) -> None:
    for photograph in photographs:
        lines = label_lines(photograph).splitlines()
        assert len(lines) == len(photograph.objects)
        for line, seen in zip(lines, photograph.objects, strict=True):
            label, x, y, w, h = (float(text) for text in line.split())
            box = ((x - w / 2) * WIDTH, (y - h / 2) * HEIGHT, (x + w / 2) * WIDTH, (y + h / 2) * HEIGHT)
            assert label == seen.label
            assert box == pytest.approx(seen.box, abs=0.01)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_make_stands_on_the_ground_and_varies(label: int) -> None:
    things = [make(label, np.random.default_rng(i)) for i in range(6)]
    assert all(t.label == label for t in things)
    assert all(t.points()[:, 2].min() == pytest.approx(0, abs=1e-5) for t in things)
    assert len({round(float(np.ptp(t.points(), axis=0).max()), 4) for t in things}) == len(things)


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_cutout_shows_the_whole_object_large_enough_to_be_pasted(label: int) -> None:
    image, mask = cutout(generator(42, "cutout", label), label)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert rows[0] > 0 and columns[0] > 0 and rows[-1] < mask.shape[0] - 1 and columns[-1] < mask.shape[1] - 1
    assert min(np.ptp(rows), np.ptp(columns)) >= 32
    colour, around = image[mask].astype(float).mean(0), image[~mask].astype(float).mean(0)
    assert np.abs(colour - around).max() > 8


def test_background_holds_no_object() -> None:
    assert background(generator(42, "background", 0)).shape == (HEIGHT, WIDTH, 3)


def test_ensure_demo_set_whole_set_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ensure_demo_set(tmp_path, **SMALL)

    def refuse(*_: object) -> None:
        raise AssertionError("drew again")

    monkeypatch.setattr(demo, "_fill", refuse)
    (data.parent / "labels" / "train.cache").write_text("another program's file")
    assert ensure_demo_set(tmp_path, **SMALL) == data


@pytest.mark.parametrize("damage", ["no marker", "broken marker", "missing image", "cut label", "empty folder"])
def test_ensure_demo_set_half_a_set_is_drawn_again(tmp_path: Path, damage: str) -> None:
    data = ensure_demo_set(tmp_path, **SMALL)
    home, whole = data.parent, _bytes(data)
    image, label = home / "images/train/demo_00000.jpg", home / "labels/train/demo_00000.txt"
    if damage == "no marker":
        (home / MARKER).unlink()
    elif damage == "broken marker":
        (home / MARKER).write_text('{"files": {')
    elif damage == "missing image":
        image.unlink()
    elif damage == "cut label":
        label.write_text(label.read_text() + "0 0.5")
    else:
        for file in home.rglob("*"):
            if file.is_file():
                file.unlink()
    assert not is_whole(home)
    assert _bytes(ensure_demo_set(tmp_path, **SMALL)) == whole
    assert [p.name for p in tmp_path.iterdir()] == [home.name]


def test_ensure_demo_set_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo.draw_share

    def stop_half_way(folder: Path, plan: Plan, share: int, num_shares: int) -> None:
        real(folder, Plan(plan.seed, 1, 0, 0, 0), share, num_shares)
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "draw_share", stop_half_way)
    with pytest.raises(KeyboardInterrupt):
        ensure_demo_set(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_ensure_demo_set_draft_of_a_killed_process_is_cleared_when_old(tmp_path: Path) -> None:
    name = Plan(42, *SMALL.values()).name
    old, young = tmp_path / f".{name}.draft-1-aaaa", tmp_path / f".{name}.draft-2-bbbb"
    for draft in (old, young):
        (draft / "images").mkdir(parents=True)
    os.utime(old, (1, 1))
    ensure_demo_set(tmp_path, **SMALL)
    assert not old.exists() and young.exists()


def test_ensure_demo_set_two_at_once_both_get_a_whole_set(tmp_path: Path) -> None:
    results: list[Path] = []
    both = [threading.Thread(target=lambda: results.append(ensure_demo_set(tmp_path, **SMALL))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(results) == 2 and results[0] == results[1]
    assert is_whole(results[0].parent)
    assert len(list(tmp_path.iterdir())) == 1


def test_ensure_demo_set_drawing_process_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = demo.folders
    monkeypatch.setattr(demo, "folders", lambda plan: [f for f in real(plan) if f != Path("labels/val")])
    with pytest.raises(RunError, match=r"drawing the demo set failed .*labels/val"):
        ensure_demo_set(tmp_path, num_train=31, num_val=1, num_cutouts=0, num_backgrounds=0, workers=2)
    assert list(tmp_path.iterdir()) == []


def test_ensure_demo_set_cache_folder_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(RunError, match="cache"):
        ensure_demo_set(tmp_path / "cache", **SMALL)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"num_train": 0}, {"num_val": -1}])
def test_ensure_demo_set_impossible_counts_are_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        ensure_demo_set(tmp_path, **{**SMALL, **wrong})


def test_ensure_demo_set_marker_tells_what_was_drawn(tmp_path: Path) -> None:
    facts = json.loads((ensure_demo_set(tmp_path, seed=5, **SMALL).parent / MARKER).read_text(encoding="utf-8"))
    assert (facts["seed"], facts["num_train"], facts["num_val"]) == (5, 2, 1)
    assert "data.yaml" in facts["files"] and "README.txt" in facts["files"]


def test_ensure_demo_set_few_yaml_has_ten_training_images_of_each_class(tmp_path: Path) -> None:
    home = ensure_demo_set(tmp_path, num_train=30, num_val=2, num_cutouts=0, num_backgrounds=0).parent
    few, whole = (load_detection_set(DataConfig(path=str(home / n)), Decisions()) for n in ("few.yaml", "data.yaml"))
    train = few.splits["train"]
    shots = Counter(int(c) for label in train.labels for c in set(label[:, 0]))
    assert len(train) < 30 and set(train.images) < set(whole.splits["train"].images)
    assert min(shots.values()) == FEW_SHOTS and len(shots) == len(CLASSES)
    assert few.splits["val"].images == whole.splits["val"].images and few.names == whole.names


@pytest.mark.parametrize("name", ["demo", "demo-few"])
def test_built_in_set_is_neither_divided_nor_predicted_on(name: str) -> None:
    for words in (["mode=split"], ["data.fold=0"], ["mode=predict", "model.weights=best.pt"]):
        with pytest.raises(InputError, match="built-in set has|mode=predict needs"):
            hsr_train.compose([f"data.path={name}", *words])
