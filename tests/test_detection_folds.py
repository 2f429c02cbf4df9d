"""mode=split of a YOLO set, and what a fold of it is: what stays together, what is refused, what a run reads."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from yolo_sets import SHARED, make_yolo_set, write_picture

from hsr_train.config.schema import DataConfig
from hsr_train.data.detection_folds import write_detection_splits
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.detection_splits import list_detection_folds
from hsr_train.data.stratify import LabelledUnits, draw_labelled_folds, draw_labelled_test
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A set of 20 training and 6 validation images, and no test split."""
    return make_yolo_set(tmp_path / "set", n_train=20, n_val=6, size=(24, 24))


def split(data: Path, cache: Path, **options: object) -> str:
    config = DataConfig(path=str(data), cache_dir=str(cache), **options)  # type: ignore[arg-type]
    return "\n".join(write_detection_splits(config, Decisions()))


def load(data: Path, cache: Path, need: tuple[str, ...] = ("train", "val"), **options: object) -> DetectionSet:
    config = DataConfig(path=str(data), cache_dir=str(cache), **options)  # type: ignore[arg-type]
    return load_detection_set(config, Decisions(), need=need, progress=False)


def refusal(function, *args: object, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **options)
    assert caught.value.exit_status == 2
    return str(caught.value)


def named(data: Path, name: str) -> list[str]:
    """The images of an index file, relative to the set."""
    lines = (data.parent / "splits" / name).read_text().splitlines()
    return [line.removeprefix("./../") for line in lines]


def all_images(data: Path) -> set[str]:
    return {file.relative_to(data.parent).as_posix() for file in (data.parent / "images").rglob("*.jpg")}


def written(data: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (data.parent / "splits").iterdir()}


def everything_else(data: Path) -> dict[Path, bytes]:
    files = (file for file in data.parent.rglob("*") if file.is_file() and file.parent.name != "splits")
    return {file: file.read_bytes() for file in files}


def add_test_split(data: Path, count: int = 3) -> None:
    root = data.parent
    for i in range(count):
        write_picture(root / "images" / "test" / f"t{i}.jpg", size=(24, 24), seed=9_000 + i)
        (root / "labels" / "test").mkdir(parents=True, exist_ok=True)
        (root / "labels" / "test" / f"t{i}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    data.write_text(data.read_text().replace("names:", "test: images/test\nnames:"))


# What the folds are


def test_kfold_pools_train_and_val_and_holds_out_a_test_set(data, cache):
    before = everything_else(data)
    text = split(data, cache, folds=3)
    test, vals = set(named(data, "test.txt")), [set(named(data, f"fold_{i}_val.txt")) for i in range(3)]
    assert len(test) == 4 and set.union(test, *vals) == all_images(data)
    assert len(test) + sum(map(len, vals)) == 26
    for i, val in enumerate(vals):
        assert set(named(data, f"fold_{i}_train.txt")) == all_images(data) - test - val
    assert {name.split("/")[1] for val in vals for name in val} == {"train", "val"}
    assert "images of each class" in text and "val 2" in text
    assert everything_else(data) == before


def test_test_split_of_the_set_stays_the_test_set(data, cache):
    add_test_split(data)
    text = split(data, cache, folds=2)
    assert set(named(data, "test.txt")) == {f"images/test/t{i}.jpg" for i in range(3)}
    assert len(named(data, "fold_0_val.txt")) + len(named(data, "fold_1_val.txt")) == 26
    assert "stays the test set" in text


def test_set_without_val_is_divided_as_well(tmp_path, cache):
    data = make_yolo_set(tmp_path / "set", n_train=12, n_val=0, size=(24, 24))
    split(data, cache, folds=2)
    assert set(load(data, cache, fold=1).splits) == {"train", "val", "test"}


def test_copy_of_a_test_image_is_in_no_fold(data, cache, caplog):
    add_test_split(data)
    shutil.copyfile(data.parent / "images/test/t0.jpg", data.parent / "images/train/0003.jpg")
    split(data, cache, folds=2)
    assert "1 images of train and val are test images, too" in caplog.text
    assert "images/train/0003.jpg" not in named(data, "fold_0_train.txt") + named(data, "fold_0_val.txt")
    caplog.clear()
    load(data, cache, fold=0)
    assert "in no split" not in caplog.text


def test_copies_stay_in_one_split_although_they_lay_in_train_and_val(data, cache):
    shutil.copyfile(data.parent / "images/train/0003.jpg", data.parent / "images/val/0001.jpg")
    assert "exact copies" in split(data, cache, folds=4)
    pair = {"images/train/0003.jpg", "images/val/0001.jpg"}
    assert all(len(pair & set(named(data, f"fold_{i}_val.txt"))) in (0, 2) for i in range(4))
    load(data, cache, fold=0)


def test_holdout_draws_every_fold_anew(data, cache):
    split(data, cache, scheme="holdout", folds=3, ratio=[0.5, 0.25, 0.25])
    vals = [set(named(data, f"fold_{i}_val.txt")) for i in range(3)]
    assert vals[0] != vals[1] and all(len(val) in (6, 7) for val in vals)


def test_same_arguments_give_the_same_bytes_and_another_seed_others(data, cache):
    split(data, cache)
    first = written(data)
    assert "the same as before" in split(data, cache)
    assert written(data) == first
    text = split(data, cache, folds=3, seed=7)
    assert "replaced the earlier splits of 5 folds" in text and not (data.parent / "splits/fold_4_val.txt").exists()
    assert written(data)["test.txt"] != first["test.txt"]


def test_ultralytics_reads_the_lists_from_any_folder(data, cache, tmp_path, monkeypatch):
    from hsr_train.engines.detection.library import bring_up

    bring_up()
    from ultralytics.data.base import BaseDataset
    from ultralytics.data.utils import img2label_paths

    split(data, cache)
    monkeypatch.chdir(tmp_path)
    reader = SimpleNamespace(prefix="", fraction=1.0)
    found = BaseDataset.get_img_files(reader, str(data.parent / "splits" / "fold_0_train.txt"))
    assert len(found) == len(named(data, "fold_0_train.txt")) > 0
    assert all(Path(image).is_file() and Path(label).is_file()
               for image, label in zip(found, img2label_paths(found), strict=True))  # fmt: skip


def test_near_duplicates_in_two_splits_are_reported(tmp_path, cache):
    import cv2

    data = make_yolo_set(tmp_path / "set", n_train=8, n_val=2, size=(64, 64))
    for i in range(8):
        image = cv2.imread(str(data.parent / f"images/train/{i:04}.jpg"))
        cv2.imwrite(str(data.parent / f"images/train/near{i}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 60])
        shutil.copyfile(data.parent / f"labels/train/{i:04}.txt", data.parent / f"labels/train/near{i}.txt")
    assert "look the same and lie in different splits" in split(data, cache)


# By class


def test_stratified_folds_have_their_share_of_every_class_and_of_backgrounds():
    rng = np.random.default_rng(0)
    chances = np.geomspace(0.5, 0.02, 10)
    classes = [np.flatnonzero(rng.random(10) < chances) for _ in range(1000)]
    units = LabelledUnits(np.arange(1000), classes, 10)
    test = draw_labelled_test(units, 0.15, 0)
    whole = units.count(np.ones(1000, np.bool_))
    assert np.abs(units.count(test) - 0.15 * whole).max() < 2
    counts = np.array([units.count(val) for val in draw_labelled_folds(units, ~test, 5, 0)])
    assert counts.sum(0).tolist() == (whole - units.count(test)).tolist()
    assert np.ptp(counts, axis=0).max() <= 2


def test_rare_class_is_in_every_fold(data, cache):
    data.write_text(data.read_text() + "  2: rare\n")
    for i in (0, 1, 2, 3):
        with (data.parent / f"labels/train/{i:04}.txt").open("a") as file:
            file.write("2 0.5 0.5 0.1 0.1\n")
    split(data, cache, folds=4, ratio=[0.7, 0.3, 0.0])
    assert [load(data, cache, fold=i).counts["val"][2] for i in range(4)] == [1, 1, 1, 1]


def test_class_of_one_fold_is_told(data, cache):
    data.write_text(data.read_text() + "  2: rare\n")
    (data.parent / "labels/train/0000.txt").write_text("2 0.5 0.5 0.1 0.1\n")
    text = split(data, cache, folds=3, ratio=[0.7, 0.3, 0.0])
    assert "trains without an image of rare" in text and "Splits without an image of some classes" in text


# What stays together


@pytest.mark.parametrize("groups", ["level:1", r"pattern:^(\w+)_\d+", "table"])
@pytest.mark.parametrize("scheme", ["kfold", "holdout"])
def test_groups_never_straddle(tmp_path, cache, groups, scheme):
    data = make_yolo_set(tmp_path / "set", n_train=1, n_val=1, size=(24, 24))
    shutil.rmtree(data.parent / "images")
    shutil.rmtree(data.parent / "labels")
    rows = [("file", "group")]
    for i in range(36):
        side, recording = ("train", "val")[i % 3 == 2], f"rec{i % 9}"
        name = f"{side}/{recording}/{recording}_{i}"
        write_picture(data.parent / "images" / f"{name}.jpg", size=(24, 24), seed=i)
        (data.parent / "labels" / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        (data.parent / "labels" / f"{name}.txt").write_text(f"{i % 2} 0.5 0.5 0.2 0.2\n")
        rows.append((f"images/{name}.jpg", recording))
    if groups == "table":
        groups = str(tmp_path / "groups.csv")
        with Path(groups).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    assert "9 groups" in split(data, cache, groups=groups, folds=3, scheme=scheme)
    for fold in range(3):
        seen: dict[str, str] = {}
        for name in ("test.txt", f"fold_{fold}_train.txt", f"fold_{fold}_val.txt"):
            for image in named(data, name):
                assert seen.setdefault(image.split("/")[2], name) == name
        assert len(seen) == 9


def test_level_without_such_folders_is_refused(data, cache):
    assert "fewer than 1 folders below the folder that data.yaml names" in refusal(split, data, cache, groups="level:1")


# What a run reads


def test_fold_is_what_is_loaded_and_recorded(data, cache):
    split(data, cache, folds=2)
    sets = [load(data, cache, fold=i) for i in range(2)]
    for i, checked in enumerate(sets):
        files = list(checked.files())
        for part in ("train", "val"):
            assert {row[1] for row in files if row[0] == part} == set(named(data, f"fold_{i}_{part}.txt"))
        assert {row[1] for row in files if row[0] == "test"} == set(named(data, "test.txt"))
        assert checked.record()["fold"] == i and checked.record()["division"]["folds"] == 2
        assert checked.summary()[0].endswith(f"fold {i}")
        assert all(len(boxes) for boxes in checked.splits["train"].labels)
    own = load(data, cache)
    assert own.fold is None and len(own.splits["train"]) == 20 and "test" not in own.splits
    assert len({checked.fingerprint for checked in (*sets, own)}) == 3
    assert load(data, cache, ("test",), fold=0).splits.keys() == {"test"}


def test_division_moves_with_its_set(data, cache, tmp_path):
    split(data, cache, folds=2)
    before = load(data, cache, fold=1).fingerprint
    moved = shutil.move(data.parent, tmp_path / "elsewhere") / data.name
    assert load(moved, cache, fold=1).fingerprint == before


def test_root_apart_from_the_data_yaml(data, cache, tmp_path):
    apart = tmp_path / "lists" / "data.yaml"
    apart.parent.mkdir()
    apart.write_text(data.read_text().replace("path: .", f"path: {data.parent}"))
    split(apart, cache, folds=2)
    assert not (data.parent / "splits").exists()
    assert {row[1] for row in load(apart, cache, fold=0).files()} == all_images(data)


@pytest.mark.parametrize("on_bad", ["error", "skip"])
def test_index_that_names_a_lost_image_is_refused(data, cache, on_bad):
    split(data, cache, folds=2)
    lost = named(data, "fold_1_val.txt")[0]
    (data.parent / lost).unlink()
    text = refusal(load, data, cache, fold=1, on_bad=on_bad)
    assert "fold_1_val.txt:1" in text and "it is gone since the splits were made" in text
    assert f"mode=split data.path={data} data.folds=2" in text


def test_added_image_is_told_and_a_left_out_one_is_not(data, cache, caplog):
    (data.parent / "images/train/0005.jpg").write_bytes(b"no image")
    assert "data.on_bad=skip" in refusal(split, data, cache)
    split(data, cache, folds=2, on_bad="skip")
    assert "images/train/0005.jpg" not in named(data, "fold_0_train.txt") + named(data, "fold_0_val.txt")
    load(data, cache, fold=0)
    assert "in no split" not in caplog.text
    write_picture(data.parent / "images/val/new.jpg", size=(24, 24), seed=77)
    load(data, cache, fold=0)
    assert "1 images of" in caplog.text and "images/val/new.jpg" in caplog.text and "data.folds=2" in caplog.text


def test_fold_that_is_not_there(data, cache):
    text = refusal(load, data, cache, fold=0)
    assert "Index file not found" in text and f"mode=split data.path={data}" in text
    assert "Index file not found" in refusal(list_detection_folds, DataConfig(path=str(data)))
    split(data, cache, folds=3)
    assert list_detection_folds(DataConfig(path=str(data), fold="all")) == [0, 1, 2]
    assert "data.fold: 3: one of 0, 1, 2" in refusal(load, data, cache, fold=3)
    (data.parent / "splits/fold_1_val.txt").unlink()
    assert "fold_1_val.txt" in refusal(load, data, cache, fold=1)
    split(data, cache, folds=3, ratio=[0.7, 0.3, 0.0])
    assert "divided without a test set" in refusal(load, data, cache, ("test",), fold=0)


def test_unfinished_division_is_refused_until_it_is_made_again(data, cache):
    split(data, cache, folds=2)
    (data.parent / "splits" / "split.json").write_text(json.dumps({"complete": False}))
    assert "interrupted" in refusal(load, data, cache, fold=0)
    split(data, cache, folds=2)
    load(data, cache, fold=0)


# What cannot be divided


def test_index_files_of_somebody_else_are_not_replaced(data, cache):
    own = data.parent / "splits" / "fold_0_train.txt"
    own.parent.mkdir()
    own.write_text("images/train/0000.jpg\n")
    assert "not made by mode=split" in refusal(split, data, cache)
    (own.parent / "fold_0_val.txt").write_text("images/val/0000.jpg\n")
    assert len(load(data, cache, fold=0).splits["train"]) == 1, "lines from the set's root will do"


def test_splits_of_another_data_yaml_beside_it_are_not_replaced_nor_read(data, cache):
    split(data, cache)
    other = data.with_name("small.yaml")
    other.write_text(data.read_text())
    for function, options in ((split, {}), (load, {"fold": 0})):
        assert "holds the splits of data.yaml, not of small.yaml" in refusal(function, other, cache, **options)


def test_more_folds_than_images_or_groups(data, cache):
    assert "30 folds and a test set need 31 images, and there are 26" in refusal(split, data, cache, folds=30)
    text = refusal(split, data, cache, groups=r"pattern:^(\d)")
    assert "groups" in text and not (data.parent / "splits").exists()


def test_folds_without_a_labelled_image(data, cache):
    for file in (data.parent / "labels").rglob("*.txt"):
        file.write_text("")
    (data.parent / "labels/train/0000.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    assert "has no image with an object in train" in refusal(split, data, cache, folds=2, ratio=[0.5, 0.5, 0.0])


@pytest.mark.skipif(not (SHARED / "detect" / "robocup_msl_mini").is_dir(), reason="the real set is not on this machine")
def test_real_set_by_recording_date(tmp_path, cache):
    source = SHARED / "detect" / "robocup_msl_mini"
    data = tmp_path / "set" / "data.yaml"
    data.parent.mkdir()
    data.write_text((source / "data.yaml").read_text().replace("path: .", f"path: {source}"))
    split(data, cache, groups=r"pattern:^(\d{8})_", folds=3)
    dates: dict[str, int] = {}
    for fold in range(3):
        checked = load(data, cache, fold=fold)
        assert all(checked.counts["val"]) and all(checked.counts["train"])
        for image in checked.splits["val"].images:
            assert dates.setdefault(image.name[:8], fold) == fold
    assert len(dates) == 29
