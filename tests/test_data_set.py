"""A whole set through the door: splits, broken files, leaks, the split by fraction, what is recorded."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from yolo_sets import SHARED, make_yolo_set, write_picture

from hsr_train.config.schema import DataConfig
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError


def load(yaml_path: Path, cache: Path, *, need=("train", "val"), rehash=False, **options) -> DetectionSet:
    config = DataConfig(path=str(yaml_path), cache_dir=str(cache), **options)
    return load_detection_set(config, Decisions(), need=need, rehash=rehash, progress=False)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def refusal(cache):
    def refuse(yaml_path: Path, **options) -> str:
        with pytest.raises(InputError) as caught:
            load(yaml_path, cache, **options)
        assert caught.value.exit_status == 2
        return str(caught.value)

    return refuse


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def truncate(image: Path) -> None:
    raw = image.read_bytes()
    image.write_bytes(raw[: len(raw) // 2])


# What a sound set becomes


def test_sound_set_is_loaded_with_images_shapes_and_labels(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set", n_train=3, n_val=2, size=(48, 64))
    checked = load(yaml_path, cache)
    train = checked.splits["train"]
    assert checked.names == ["a", "b"]
    assert list(checked.splits) == ["train", "val"]
    assert train.images == [tmp_path / "set" / "images" / "train" / f"{i:04}.jpg" for i in range(3)]
    assert train.shapes.tolist() == [[48, 64]] * 3
    for image, boxes in zip(train.images, train.labels, strict=True):
        written = np.loadtxt(str(image).replace("images", "labels")[:-4] + ".txt", ndmin=2)
        np.testing.assert_allclose(boxes, written, rtol=1e-6)
    assert train.segments == [[], [], []]
    assert sum(checked.counts["train"]) == train.num_boxes
    assert checked.skipped == [] and checked.warnings == []


def test_polygon_set_keeps_its_polygons(tmp_path, cache):
    train = load(make_yolo_set(tmp_path / "set", polygons=True), cache).splits["train"]
    for boxes, polygons in zip(train.labels, train.segments, strict=True):
        assert len(boxes) == len(polygons) > 0
        for (_, x, y, width, height), points in zip(boxes, polygons, strict=True):
            assert points.shape == (5, 2)
            np.testing.assert_allclose(points.max(0) - points.min(0), [width, height], rtol=1e-5)
            np.testing.assert_allclose((points.max(0) + points.min(0)) / 2, [x, y], rtol=1e-5)


def test_one_box_among_polygons_makes_all_boxes(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set", polygons=True)
    (tmp_path / "set/labels/train/0001.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    checked = load(yaml_path, cache)
    assert all(segments == [] for segments in checked.splits["train"].segments)
    assert any("polygons" in warning for warning in checked.warnings)


def test_image_without_label_or_with_an_empty_one_is_a_background(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set", n_train=4)
    (tmp_path / "set/labels/train/0000.txt").unlink()
    (tmp_path / "set/labels/train/0001.txt").write_text("\n")
    train = load(yaml_path, cache).splits["train"]
    assert train.num_backgrounds == 2
    assert train.labels[0].shape == (0, 5)


def test_label_without_image_is_a_warning(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    (tmp_path / "set/labels/val/lonely.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "set/labels/train/other").mkdir()
    (tmp_path / "set/labels/train/other/lost.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "set/labels/val/classes.txt").write_text("a\nb\n")
    checked = load(yaml_path, cache)
    assert checked.warnings == ["2 label files have no image: labels/train/other/lost.txt, labels/val/lonely.txt"]


def test_repeated_label_lines_are_a_warning(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    (tmp_path / "set/labels/train/0002.txt").write_text("0 0.5 0.5 0.1 0.1\n" * 3 + "1 0.5 0.5 0.1 0.1\n")
    checked = load(yaml_path, cache)
    assert len(checked.splits["train"].labels[2]) == 2
    assert checked.warnings == ["train: 2 repeated label lines are left out: labels/train/0002.txt"]


def test_class_without_a_training_box_is_a_warning(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    replace(yaml_path, "  1: b\n", "  1: b\n  2: rare\n")
    assert load(yaml_path, cache).warnings == ["1 of 3 classes have no box in train: rare"]


def test_labels_beside_images_without_an_images_folder(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    for split in ("train", "val"):
        (tmp_path / "set" / split).mkdir()
        for kind in ("images", "labels"):
            for file in (tmp_path / "set" / kind / split).iterdir():
                file.rename(tmp_path / "set" / split / file.name)
        replace(yaml_path, f"images/{split}", split)
    (tmp_path / "set/train/notes.txt").write_text("taken in the kitchen\n")
    (tmp_path / "set/train/lonely.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    checked = load(yaml_path, cache)
    assert all(len(boxes) for boxes in checked.splits["train"].labels)
    assert checked.warnings == ["1 label files have no image: train/lonely.txt"]


@pytest.mark.parametrize("name", ["my set, (v2)", "Küche 台所 'x'", "images"])
def test_paths_with_spaces_commas_parentheses_and_other_scripts(tmp_path, cache, name):
    yaml_path = make_yolo_set(tmp_path / name / "set")
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        folder = tmp_path / name / "set" / kind / "train"
        (folder / f"0000.{suffix}").rename(folder / f"Löffel (1), neu #2.{suffix}")
    train = load(yaml_path, cache).splits["train"]
    assert len(train) == 4
    assert all(len(boxes) for boxes in train.labels)


def test_name_that_is_not_utf8_is_read_and_reported(tmp_path, cache, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    image = Path(os.fsdecode(os.fsencode(tmp_path / "set/images/train/") + b"/\xff\xfe.jpg"))
    write_picture(tmp_path / "x.jpg", seed=77).rename(image)
    assert image in load(yaml_path, cache).splits["train"].images
    load(yaml_path, cache)
    truncate(image)
    refusal(yaml_path).encode()


def test_hidden_and_foreign_files_are_no_images(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    folder = tmp_path / "set/images/train"
    (folder / "._0000.jpg").write_bytes(b"made by a file manager")
    (folder / ".hidden").mkdir()
    (folder / ".hidden/x.jpg").write_bytes(b"")
    (folder / "Thumbs.db").write_bytes(b"x")
    assert len(load(yaml_path, cache).splits["train"]) == 4


def test_subfolders_upper_case_suffixes_and_links_are_followed(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    write_picture(tmp_path / "set/images/train/deep/er/IMG.JPG", seed=50)
    (tmp_path / "set/labels/train/deep/er").mkdir(parents=True)
    (tmp_path / "set/labels/train/deep/er/IMG.txt").write_text("0 0.5 0.5 0.1 0.1")
    write_picture(tmp_path / "elsewhere/linked.png", seed=51)
    (tmp_path / "set/images/train/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/images/train/loop").symlink_to(tmp_path / "set/images")
    train = load(yaml_path, cache).splits["train"]
    names = [image.name for image in train.images]
    assert names == ["0000.jpg", "0001.jpg", "0002.jpg", "0003.jpg", "IMG.JPG", "linked.png"]
    assert len(train.labels[4]) == 1


def test_linked_split_folder_finds_the_labels_where_it_leads(tmp_path, cache):
    make_yolo_set(tmp_path / "real")
    yaml_path = make_yolo_set(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/images/train")
    shutil.rmtree(tmp_path / "set/labels/train")
    (tmp_path / "set/images/train").symlink_to(tmp_path / "real/images/train")
    val = tmp_path / "set/images/val"
    for i, image in enumerate(sorted(val.iterdir())):
        write_picture(image, seed=90 + i)
    assert all(len(boxes) for boxes in load(yaml_path, cache).splits["train"].labels)


# Splits


def test_list_file_lines_relative_to_it_to_the_root_and_absolute(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    root = tmp_path / "set"
    (root / "lists").mkdir()
    lines = ["../images/train/0000.jpg", "./../images/train/0001.jpg", "images/train/0002.jpg"]
    lines.append(str(root / "images/train/0003.jpg"))
    (root / "lists/train.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    replace(yaml_path, "train: images/train", "train: lists/train.txt")
    train = load(yaml_path, cache).splits["train"]
    assert [image.name for image in train.images] == ["0000.jpg", "0001.jpg", "0002.jpg", "0003.jpg"]
    assert all(len(boxes) for boxes in train.labels)


def test_list_of_a_folder_and_a_list_file(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    write_picture(tmp_path / "more/images/x.jpg", seed=60)
    (tmp_path / "set/more.txt").write_text("../more/images/x.jpg\n")
    replace(yaml_path, "train: images/train", "train: [images/train, more.txt]")
    assert len(load(yaml_path, cache).splits["train"]) == 5


def test_bad_lines_of_a_list_file_are_reported_or_skipped(tmp_path, cache, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    (tmp_path / "set/train.txt").write_text("images/train/0000.jpg\nimages/train/gone.jpg\nlabels/train/0000.txt\n")
    replace(yaml_path, "train: images/train", "train: train.txt")
    message = refusal(yaml_path)
    assert "train.txt:2: images/train/gone.jpg: no such image" in message
    assert "train.txt:3: labels/train/0000.txt: is not an image" in message
    assert len(load(yaml_path, cache, on_bad="skip").splits["train"]) == 1


def test_image_listed_twice_counts_twice_and_is_a_warning(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    (tmp_path / "set/train.txt").write_text("images/train/0000.jpg\nimages/train/0001.jpg\n./images/train/0000.jpg\n")
    replace(yaml_path, "train: images/train", "train: train.txt")
    checked = load(yaml_path, cache)
    assert len(checked.splits["train"]) == 3
    assert any("more than once" in warning for warning in checked.warnings)


def test_missing_split_folder_is_refused(tmp_path, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    replace(yaml_path, "images/val", "images/valid")
    replace(yaml_path, "images/train", "images/trian")
    message = refusal(yaml_path)
    assert f"{tmp_path}/set/images/valid: no such folder" in message
    assert f"{tmp_path}/set/images/trian: no such folder" in message
    assert f"{tmp_path}/set holds data.yaml, images, labels" in message


def test_split_with_an_impossible_name_is_refused(tmp_path, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    replace(yaml_path, "images/val", "x" * 300)
    assert "no such folder or list file" in refusal(yaml_path)


def test_empty_split_is_refused(tmp_path, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/images/val")
    (tmp_path / "set/images/val").mkdir()
    assert "data.path (val)" in refusal(yaml_path)
    assert "has no image" in refusal(yaml_path)


def test_one_image_as_a_split_is_refused(tmp_path, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    replace(yaml_path, "val: images/val", "val: images/val/0000.jpg")
    assert "is one image" in refusal(yaml_path)


def test_test_split_is_loaded_where_it_is_and_its_absence_is_a_warning(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    replace(yaml_path, "names:", "test: images/test\nnames:")
    checked = load(yaml_path, cache)
    assert list(checked.splits) == ["train", "val"]
    assert "test split is not used" in checked.warnings[0]
    write_picture(tmp_path / "set/images/test/0.jpg", seed=70)
    assert list(load(yaml_path, cache).splits) == ["train", "val", "test"]


def test_only_the_needed_split_is_read_for_validation(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/images/train")
    assert list(load(yaml_path, cache, need=("val",)).splits) == ["val"]


def test_training_split_without_any_label_is_refused(tmp_path, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    shutil.rmtree(tmp_path / "set/labels/train")
    assert "not one has a label (looked for labels/train/0000.txt" in refusal(yaml_path)


# Broken files


def test_every_problem_is_in_one_report(tmp_path, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    root = tmp_path / "set"
    truncate(root / "images/train/0000.jpg")
    (root / "images/train/0001.jpg").write_bytes(b"")
    (root / "labels/train/0002.txt").write_text("0 0.5 0.5 0.2\n0 0.5 0.5 0.2 nan\n")
    (root / "labels/val/0001.txt").write_text("7 0.5 0.5 0.2 0.2\n0 0.95 0.5 0.4 0.2\n")
    write_picture(root / "images/val/small.png", size=(8, 8))
    message = refusal(yaml_path)
    for part in (
        "images/train/0000.jpg: is cut off",
        "images/train/0001.jpg: the file is empty",
        "labels/train/0002.txt:1: 4 numbers",
        "labels/train/0002.txt:2: nan",
        "labels/val/0001.txt:1: class 7",
        "labels/val/0001.txt:2: box from",
        "images/val/small.png: is 8 x 8 pixels",
        "problems of 5 files",
        "data.on_bad=skip",
    ):
        assert part in message
    assert message == refusal(yaml_path), "what is known from the first start is reported alike"


def test_long_report_is_cut_and_written_in_full(tmp_path, cache, refusal):
    yaml_path = make_yolo_set(tmp_path / "set", n_train=40)
    for label in (tmp_path / "set/labels/train").iterdir():
        label.write_text("5 0.5 0.5 0.1 0.1\n0 2 0.5 0.1 0.1\n")
    message = refusal(yaml_path)
    assert message.count("labels/train/") == 50
    assert "and 30 more problems" in message
    report = next((cache / "data").glob("*-problems.txt"))
    assert str(report) in message
    text = report.read_text()
    assert text.count("labels/train/") == 80
    assert str(yaml_path) in text


def test_skip_trains_without_broken_images_and_records_them(tmp_path, cache, caplog):
    yaml_path = make_yolo_set(tmp_path / "set")
    truncate(tmp_path / "set/images/train/0000.jpg")
    (tmp_path / "set/labels/train/0001.txt").write_text("0 0.5 0.5 0.2\n0 0.5\n1 0.5 0.5 0.1 0.1")
    decisions = Decisions()
    config = DataConfig(path=str(yaml_path), cache_dir=str(cache), on_bad="skip")
    with caplog.at_level(logging.WARNING):
        checked = load_detection_set(config, decisions, progress=False)
    assert [image.name for image in checked.splits["train"].images] == ["0002.jpg", "0003.jpg"]
    assert checked.num_skipped == 2
    assert [problem.key for problem in checked.skipped] == [
        "images/train/0000.jpg",
        "labels/train/0001.txt:1",
        "labels/train/0001.txt:2",
    ]
    assert [(d.key, d.value) for d in decisions] == [("data.on_bad", "skip")]
    warned = [r.message.split(" (")[0] for r in caplog.records if r.levelno >= logging.WARNING]
    assert warned == ["2 broken images are left out"]


def test_skip_that_leaves_a_split_empty_is_refused(tmp_path, refusal):
    yaml_path = make_yolo_set(tmp_path / "set", n_val=1)
    truncate(tmp_path / "set/images/val/0000.jpg")
    assert "data.path (val): no image is left" in refusal(yaml_path, on_bad="skip")


def test_skip_changes_nothing_on_a_sound_set(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    assert load(yaml_path, cache, on_bad="skip").fingerprint == load(yaml_path, cache).fingerprint


# The same picture on both sides


def test_same_content_in_train_and_val_is_refused_or_warned_about(tmp_path, cache, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    shutil.copy(tmp_path / "set/images/train/0002.jpg", tmp_path / "set/images/val/other.jpg")
    message = refusal(yaml_path)
    assert "images/val/other.jpg: the same content as images/train/0002.jpg" in message
    assert "1 of 3 validation images are training images, too" in message
    assert "data.on_leak=warn" in message
    checked = load(yaml_path, cache, on_leak="warn")
    assert len(checked.splits["val"]) == 3
    assert "1 of 3 validation images" in checked.warnings[0]


def test_train_and_val_the_same_folder_is_said_plainly(tmp_path, cache, refusal):
    yaml_path = make_yolo_set(tmp_path / "set")
    replace(yaml_path, "images/val", "images/train")
    message = refusal(yaml_path)
    assert "train and val are the same files" in message
    assert "0000.jpg" not in message
    assert load(yaml_path, cache, on_leak="warn").splits["val"].num_boxes > 0


def test_test_images_from_train_are_a_warning(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    replace(yaml_path, "names:", "test: images/train\nnames:")
    assert any("4 test images are training images" in warning for warning in load(yaml_path, cache).warnings)


# A validation split by fraction


def fraction_set(root: Path, n_train: int = 20) -> Path:
    return make_yolo_set(root, n_train=n_train, n_val=0)


def test_fraction_splits_by_content_the_same_way_every_time(tmp_path, cache):
    yaml_path = fraction_set(tmp_path / "set")
    first = load(yaml_path, cache, val_fraction=0.25)
    again = load(yaml_path, tmp_path / "other cache", val_fraction=0.25)
    assert [len(first.splits[s]) for s in ("train", "val")] == [15, 5]
    assert first.splits["val"].images == again.splits["val"].images
    assert not set(first.splits["val"].images) & set(first.splits["train"].images)
    other = load(yaml_path, cache, val_fraction=0.25, seed=1)
    assert other.splits["val"].images != first.splits["val"].images


def test_fraction_moves_few_images_when_some_are_added(tmp_path, cache):
    yaml_path = fraction_set(tmp_path / "set", 40)
    before = set(load(yaml_path, cache, val_fraction=0.25).splits["val"].images)
    for i in range(4):
        write_picture(tmp_path / f"set/images/train/new{i}.jpg", seed=500 + i)
    after = set(load(yaml_path, cache, val_fraction=0.25).splits["val"].images)
    assert len(before) == 10 and len(after) == 11
    assert len(before - after) <= 4


def test_fraction_keeps_copies_of_a_picture_together(tmp_path, cache):
    yaml_path = fraction_set(tmp_path / "set")
    for i in range(20):
        shutil.copy(tmp_path / f"set/images/train/{i:04}.jpg", tmp_path / f"set/images/train/copy{i}.jpg")
    checked = load(yaml_path, cache, val_fraction=0.25)
    assert [len(checked.splits[s]) for s in ("train", "val")] == [30, 10]
    assert not set(checked.splits["val"].hashes) & set(checked.splits["train"].hashes)


def test_fraction_of_a_single_image_is_refused(tmp_path, refusal):
    assert "data.path (val): no image is left" in refusal(fraction_set(tmp_path / "set", 1), val_fraction=0.5)


def test_fraction_is_recorded(tmp_path, cache):
    decisions = Decisions()
    config = DataConfig(path=str(fraction_set(tmp_path / "set")), cache_dir=str(cache), val_fraction=0.1)
    load_detection_set(config, decisions, progress=False)
    assert [(d.key, d.value) for d in decisions] == [("data.val_fraction", 0.1)]
    assert "2 of 20" in decisions[0].reason


def test_validation_alone_takes_the_same_fraction(tmp_path, cache):
    yaml_path = fraction_set(tmp_path / "set")
    both = load(yaml_path, cache, val_fraction=0.25)
    alone = load(yaml_path, cache, val_fraction=0.25, need=("val",))
    assert list(alone.splits) == ["val"]
    assert alone.splits["val"].images == both.splits["val"].images


# What is recorded


def test_fingerprint_survives_a_move_and_notices_every_change(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    original = load(yaml_path, cache).fingerprint
    shutil.copytree(tmp_path / "set", tmp_path / "moved")
    assert load(tmp_path / "moved/data.yaml", cache).fingerprint == original
    changes = {
        "names": lambda: replace(yaml_path, "0: a", "0: cup"),
        "label": lambda: (tmp_path / "set/labels/val/0000.txt").write_text("0 0.5 0.5 0.1 0.1"),
        "image": lambda: write_picture(tmp_path / "set/images/train/0001.jpg", seed=99),
        "renamed": lambda: (tmp_path / "set/images/train/0003.jpg").rename(tmp_path / "set/images/train/0009.jpg"),
        "added": lambda: write_picture(tmp_path / "set/images/val/new.jpg", seed=98),
    }
    seen = {original}
    for name, change in changes.items():
        change()
        fingerprint = load(yaml_path, cache).fingerprint
        assert fingerprint not in seen, name
        seen.add(fingerprint)


def test_record_is_json_and_summary_names_every_class(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set", classes=("cup", "bottle"))
    checked = load(yaml_path, cache)
    record = json.loads(json.dumps(checked.record()))
    assert record["fingerprint"] == checked.fingerprint
    assert record["splits"]["train"]["images"] == 4
    assert record["splits"]["train"]["boxes_per_class"] == checked.counts["train"]
    text = "\n".join(checked.summary())
    assert "cup" in text and "bottle" in text and f"{checked.splits['train'].num_boxes} boxes" in text


def test_summary_of_many_classes_shows_those_with_boxes(tmp_path, cache):
    names = tuple(f"kind{i}" for i in range(80))
    checked = load(make_yolo_set(tmp_path / "set", classes=names), cache)
    text = "\n".join(checked.summary())
    present = [name for name, *n in zip(names, *checked.counts.values(), strict=True) if any(n)]
    assert all(f" {name} " in text for name in present)
    assert f"{80 - len(present)} more classes" in text


def test_user_folders_stay_as_they_were(tmp_path, cache):
    yaml_path = make_yolo_set(tmp_path / "set")
    truncate(tmp_path / "set/images/train/0000.jpg")

    def listing():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}

    before = listing()
    load(yaml_path, cache, on_bad="skip")
    assert listing() == before


# Real sets


@pytest.mark.parametrize(
    ("name", "images", "polygons"),
    [
        ("coco8_seg", 8, True),
        pytest.param("robocup_msl_mini", 360, False, marks=pytest.mark.slow),
        pytest.param("household_scenes", 625, False, marks=pytest.mark.slow),
    ],
)
def test_real_set_is_sound(name, images, polygons, cache):
    yaml_path = SHARED / "detect" / name / "data.yaml"
    if not yaml_path.exists():
        pytest.skip(f"{name} is not on this machine")
    checked = load(yaml_path, cache)
    assert sum(map(len, checked.splits.values())) == images
    assert all(split.num_boxes for split in checked.splits.values())
    assert any(len(s) for split in checked.splits.values() for s in split.segments) == polygons
