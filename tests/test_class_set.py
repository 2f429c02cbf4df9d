"""Classification sets through the door: layouts, class ids, folds, broken files, leaks, what is recorded."""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from class_sets import lines, load, make_divided, make_folders, split
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from yolo_sets import SHARED, write_picture

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data.class_splits import list_folds
from hsr_train.errors import InputError

COUNTS = {"bee": 10, "ant": 8}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """A set with train/, val/ and test/."""
    root = tmp_path / "ready"
    for seed, (name, counts) in enumerate({"train": {"bee": 4, "ant": 3}, "val": {"ant": 1, "bee": 2},
                                           "test": {"ant": 1, "bee": 1}}.items()):  # fmt: skip
        make_folders(root / name, counts, seed=seed)
    return root


@pytest.fixture
def raw(tmp_path: Path, cache: Path) -> Path:
    """A set with raw/ and splits/ of three folds."""
    return make_divided(tmp_path / "insects", COUNTS, cache, folds=3)


def refusal(cache: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        load(cache, **options)
    assert caught.value.exit_status == 2
    return str(caught.value)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def names(checked, split: str) -> list[str]:
    return [image.relative_to(checked.root).as_posix() for image in checked.splits[split].images]


# Layouts


def test_train_val_test_folders_are_loaded_with_one_numbering(ready, cache):
    checked = load(cache, path=ready)
    assert (checked.classes, checked.fold, checked.name) == (["ant", "bee"], None, "ready")
    assert checked.counts == {"train": [3, 4], "val": [1, 2], "test": [1, 1]}
    train = checked.splits["train"]
    assert names(checked, "train")[:4] == ["train/ant/000.png", "train/ant/001.png", "train/ant/002.png",
                                           "train/bee/000.png"]  # fmt: skip
    assert train.targets.tolist() == [0, 0, 0, 1, 1, 1, 1] and train.targets.dtype == np.int64
    assert train.shapes.tolist() == [[24, 24]] * 7 and len(set(train.hashes)) == 7
    assert all(image.is_absolute() for image in train.images)


@pytest.mark.parametrize("key", ["raw", "path"])
def test_raw_and_splits_are_loaded_by_either_key(raw, cache, key):
    checked = load(cache, **{key: raw if key == "raw" else raw.parent}, fold=1)
    assert (checked.fold, checked.name, checked.root) == (1, "insects", raw.parent)
    assert names(checked, "train") == lines(raw, "fold_1_train.txt")
    assert names(checked, "val") == lines(raw, "fold_1_val.txt")
    assert names(checked, "test") == lines(raw, "test.txt")
    assert checked.division["folds"] == 3


def test_classes_are_the_same_where_a_split_lacks_one(raw, cache):
    path = raw.parent / "splits" / "fold_0_val.txt"
    path.write_text("".join(f"{line}\n" for line in lines(raw, path.name) if "/bee/" in line))
    checked = load(cache, raw=raw)
    assert checked.classes == ["ant", "bee"] and set(checked.splits["val"].targets.tolist()) == {1}
    assert any("1 of 2 classes have no image in val: ant" in warning for warning in checked.warnings)


def test_class_missing_in_val_is_a_warning_and_moves_no_id(ready, cache):
    shutil.rmtree(ready / "val" / "ant")
    checked = load(cache, path=ready)
    assert checked.counts["val"] == [0, 2] and "ant" in checked.warnings[0]


def test_need_only_val_loads_only_val_with_the_classes_of_train(ready, cache):
    shutil.rmtree(ready / "val" / "ant")
    checked = load(cache, path=ready, need=("val",))
    assert list(checked.splits) == ["val"] and checked.classes == ["ant", "bee"]


def test_need_only_test_asks_for_no_fold(raw, cache):
    checked = load(cache, raw=raw, need=("test",), fold="all")
    assert list(checked.splits) == ["test"] and checked.fold is None


def test_fold_argument_overrides_the_configuration(raw, cache):
    config = ClassifyDataConfig(raw=str(raw), cache_dir=str(cache), fold="all")
    assert list_folds(config) == [0, 1, 2]
    assert load(cache, raw=raw, fold=2).fold == 2


def test_set_without_a_test_split_is_loaded_without(ready, raw, cache):
    shutil.rmtree(ready / "test")
    (raw.parent / "splits" / "test.txt").unlink()
    assert list(load(cache, path=ready).splits) == ["train", "val"]
    shutil.rmtree(raw.parent / "splits")
    split(raw, cache, folds=3, ratio=[0.8, 0.2, 0.0])
    assert list(load(cache, raw=raw).splits) == ["train", "val"]


def test_images_in_folders_below_the_class_belong_to_it(ready, cache):
    write_picture(ready / "train" / "ant" / "nest" / "deep" / "x.jpg", seed=999)
    checked = load(cache, path=ready)
    assert "train/ant/nest/deep/x.jpg" in names(checked, "train") and checked.counts["train"] == [4, 4]


def test_index_written_on_windows_is_read(raw, cache):
    before = load(cache, raw=raw)
    path = raw.parent / "splits" / "fold_0_val.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"/", b"\\").replace(b"\n", b"\r\n"))
    assert names(load(cache, raw=raw), "val") == names(before, "val")


# Fingerprint and record


def test_fingerprint_stays_when_the_set_moves_and_changes_with_any_byte_name_or_fold(raw, cache, tmp_path):
    before = load(cache, raw=raw)
    moved = tmp_path / "elsewhere"
    raw.parent.rename(moved)
    after = load(cache, raw=moved / "raw")
    assert after.fingerprint == before.fingerprint
    assert load(cache, raw=moved / "raw", fold=1).fingerprint != before.fingerprint
    image = after.splits["train"].images[0]
    write_picture(image, size=(24, 24), seed=77)
    changed = load(cache, raw=moved / "raw")
    assert changed.fingerprint != before.fingerprint
    assert changed.split_fingerprint("val") == before.split_fingerprint("val")


def test_fingerprint_changes_when_an_image_changes_its_class(ready, cache):
    before = load(cache, path=ready).fingerprint
    (ready / "train" / "ant" / "002.png").rename(ready / "train" / "bee" / "x.png")
    assert load(cache, path=ready).fingerprint != before


def test_record_has_the_keys_that_drift_reads_and_is_json(raw, cache):
    checked = load(cache, raw=raw)
    record = json.loads(json.dumps(checked.record()))
    assert {"path", "root", "fingerprint", "names", "splits", "num_skipped", "skipped", "warnings"} <= set(record)
    assert record["names"] == ["ant", "bee"] and record["fold"] == 0
    assert record["splits"]["val"]["images"] == len(checked.splits["val"])
    assert record["splits"]["train"]["images_per_class"] == checked.counts["train"]
    rows = list(checked.files())
    assert len(rows) == sum(COUNTS.values()) and {row[0] for row in rows} == {"train", "val", "test"}
    assert all(len(row) == 4 and row[1].startswith("raw/") and len(row[2]) == 64 and not row[3] for row in rows)
    text = "\n".join(checked.summary())
    assert "2 classes, fold 0" in text and "ant" in text


def test_second_load_reads_nothing_and_rehash_reads_all(ready, cache, caplog):
    caplog.set_level(logging.INFO)
    first = load(cache, path=ready)
    assert "12 read, 0 unchanged" in caplog.text
    assert load(cache, path=ready).fingerprint == first.fingerprint
    assert "0 read, 12 unchanged" in caplog.text
    caplog.clear()
    load(cache, path=ready, rehash=True)
    assert "12 read, 0 unchanged" in caplog.text


# Stale and broken index files


def test_missing_index_names_the_file_and_the_command(tmp_path, cache):
    raw = make_folders(tmp_path / "set" / "raw", COUNTS)
    text = refusal(cache, raw=raw)
    assert f"Index file not found: {tmp_path}/set/splits/fold_0_train.txt" in text
    assert f"mode=split task=classify data.raw={raw}" in text
    assert "data.fold: two: a number from 0" in refusal(cache, raw=raw, fold="two")
    with pytest.raises(InputError, match="Index file not found"):
        list_folds(ClassifyDataConfig(raw=str(raw)))


def test_index_line_that_names_a_file_that_is_gone_is_named(raw, cache):
    line = lines(raw, "fold_0_train.txt")[1]
    (raw.parent / line).unlink()
    text = refusal(cache, raw=raw)
    assert f"fold_0_train.txt:2: {line}" in text and "gone" in text and "mode=split" in text


def test_images_added_since_are_a_warning_with_their_count(raw, cache):
    for index in range(2):
        write_picture(raw / "bee" / f"new{index}.png", seed=500 + index)
    (warning,) = load(cache, raw=raw).warnings
    assert warning.startswith("2 images of ") and "raw/bee/new0.png" in warning and "mode=split" in warning


def test_images_that_the_division_left_out_are_not_called_new(tmp_path, cache):
    raw = make_folders(tmp_path / "set" / "raw", COUNTS)
    (raw / "bee" / "000.png").write_bytes(b"broken")
    split(raw, cache, folds=3, on_bad="skip")
    assert load(cache, raw=raw).warnings == []


def test_command_that_divides_again_has_the_arguments_of_last_time(tmp_path, cache):
    raw = make_folders(tmp_path / "set" / "raw", COUNTS)
    options = {"folds": 3, "seed": 7, "ratio": [0.7, 0.2, 0.1], "scheme": "holdout", "groups": r"pattern:^(\d+)\."}
    split(raw, cache, **options)
    write_picture(raw / "bee" / "new.png", seed=500)
    (warning,) = load(cache, raw=raw).warnings
    typed = shlex.split(warning.partition("to divide again: ")[2])
    overrides = dict(override.split("=", 1) for override in typed)
    assert {key: yaml.safe_load(overrides[f"data.{key}"]) for key in ("folds", "seed", "ratio", "scheme")} == {
        key: options[key] for key in ("folds", "seed", "ratio", "scheme")
    }
    parsed = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(typed)}
    assert str(parsed["data.groups"]) == options["groups"]


def test_train_beside_raw_is_not_passed_over_silently(raw, cache):
    make_folders(raw.parent / "train", {"ant": 1, "bee": 1})
    assert any("raw/ and splits/ are used" in warning for warning in load(cache, path=raw.parent).warnings)


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ("raw/fly/000.png", "fly is no class"),
        ("/data/raw/ant/000.png", "absolute"),
        ("C:\\raw\\ant\\000.png", "absolute"),
        ("raw/000.png", "malformed"),
        ("ant/000.png", "malformed"),
        ("raw/ant/../ant/000.png", "malformed"),
        ("something else", "malformed"),
        ("raw/ant/notes.txt", "not an image"),
    ],
)
def test_index_line_that_does_not_do_is_named(raw, cache, new, expected):
    path = raw.parent / "splits" / "fold_0_train.txt"
    edit(path, lines(raw, path.name)[0], new)
    text = refusal(cache, raw=raw)
    assert f"{path}:1: " in text and expected in text


def test_index_that_names_an_image_twice_is_refused(raw, cache):
    path = raw.parent / "splits" / "fold_0_val.txt"
    with path.open("a") as file:
        file.write(lines(raw, path.name)[0] + "\n")
    assert "is named twice" in refusal(cache, raw=raw)


def test_empty_index_and_damaged_record_are_reported_together(raw, cache):
    (raw.parent / "splits" / "fold_0_val.txt").write_text("\n\n")
    (raw.parent / "splits" / "split.json").write_text("{")
    text = refusal(cache, raw=raw)
    assert "fold_0_val.txt: is empty" in text and "split.json: cannot be read" in text


@pytest.mark.parametrize("fold", [3, -1, "two"])
def test_fold_out_of_range_names_the_folds(raw, cache, fold):
    text = refusal(cache, raw=raw, fold=fold)
    assert f"data.fold: {fold}: one of 0, 1, 2" in text


def test_fold_of_a_set_without_folds_is_refused(ready, cache):
    assert "no folds" in refusal(cache, path=ready, fold=1)
    with pytest.raises(InputError, match="no folds"):
        list_folds(ClassifyDataConfig(path=str(ready)))


# Folders that are no set


def test_path_that_is_no_set_says_what_to_type(tmp_path, cache, ready):
    folders = make_folders(tmp_path / "mine", {"ant": 1, "bee": 1})
    text = refusal(cache, path=folders)
    assert f"mode=split task=classify data.raw={folders}" in text
    (tmp_path / "flat").mkdir()
    write_picture(tmp_path / "flat" / "x.png")
    assert "images without class folders" in refusal(cache, path=tmp_path / "flat")
    assert "is a file" in refusal(cache, path=tmp_path / "flat" / "x.png")
    text = refusal(cache, path=tmp_path / "reday")
    assert "no such folder" in text and "ready" in text
    assert "type one of the two" in refusal(cache, path=ready, raw=folders)
    (tmp_path / "half" / "splits").mkdir(parents=True)
    assert "no raw/" in refusal(cache, path=tmp_path / "half")


def test_missing_val_says_what_to_rename_or_type(ready, cache):
    (ready / "val").rename(ready / "validation")
    assert "rename validation/ to val/" in refusal(cache, path=ready)
    shutil.rmtree(ready / "validation")
    assert f"mode=split task=classify data.raw={ready / 'train'}" in refusal(cache, path=ready)


def test_classes_that_differ_between_train_and_val_are_named(ready, cache):
    (ready / "val" / "ant").rename(ready / "val" / "ants")
    text = refusal(cache, path=ready)
    assert "val/ants: is no class of train" in text and "ant, bee" in text


def test_empty_class_one_class_and_loose_images_are_reported(ready, cache):
    (ready / "train" / "fly").mkdir()
    write_picture(ready / "val" / "loose.png")
    text = refusal(cache, path=ready)
    assert "fly: is a class without an image" in text and "beside the class folders: loose.png" in text
    shutil.rmtree(ready / "train" / "fly")
    shutil.rmtree(ready / "train" / "bee")
    assert "has only one class: ant" in refusal(cache, path=ready)


def test_val_without_any_image_is_refused(ready, cache):
    shutil.rmtree(ready / "val")
    (ready / "val" / "ant").mkdir(parents=True)
    assert "has no image of any class" in refusal(cache, path=ready)


# Files


def test_broken_and_foreign_files_are_one_report_or_left_out(ready, cache):
    good = (ready / "train" / "ant" / "000.png").read_bytes()
    (ready / "train" / "ant" / "cut.png").write_bytes(good[: len(good) // 2])
    jpeg = cv2.imencode(".jpg", cv2.imread(str(ready / "train" / "bee" / "000.png")))[1].tobytes()
    (ready / "val" / "bee" / "cut.jpg").write_bytes(jpeg[:-40])
    (ready / "train" / "bee" / "empty.jpg").write_bytes(b"")
    (ready / "train" / "bee" / "page.jpg").write_bytes(b"<html>not found</html>")
    (ready / "train" / "bee" / "readme.txt").write_text("hello")
    (ready / "test" / "bee" / "paper.pdf").write_bytes(b"%PDF-1.4")
    (ready / "train" / "bee" / ".DS_Store").write_bytes(b"\0")
    (ready / "train" / "Thumbs.db").write_bytes(b"\0")
    text = refusal(cache, path=ready)
    bad = ["train/ant/cut.png", "val/bee/cut.jpg", "train/bee/empty.jpg", "train/bee/page.jpg", "train/bee/readme.txt",
           "test/bee/paper.pdf"]  # fmt: skip
    assert all(f"{name}: " in text for name in bad)
    assert "DS_Store" not in text and "Thumbs" not in text and "data.on_bad=skip" in text
    checked = load(cache, path=ready, on_bad="skip")
    assert checked.num_skipped == 6 and {problem.key for problem in checked.skipped} == set(bad)
    assert checked.counts == {"train": [3, 4], "val": [1, 2], "test": [1, 1]}
    assert "6 files" in "\n".join(checked.summary())


def test_files_left_out_are_named_the_first_on_the_console_and_all_in_the_log(ready, cache, caplog):
    for number in range(8):
        (ready / "train" / "ant" / f"cut{number}.png").write_bytes(b"cut")
    caplog.set_level("DEBUG", "hsr_train")
    load(cache, path=ready, on_bad="skip")
    said = {level: "\n".join(r.getMessage() for r in caplog.records if r.levelname == level)
            for level in ("WARNING", "DEBUG")}  # fmt: skip
    assert "8 files" in said["WARNING"] and "and 3 more" in said["WARNING"]
    assert [f"cut{n}.png" in said["WARNING"] for n in range(8)] == [True] * 5 + [False] * 3
    assert all(f"train/ant/cut{n}.png: " in said["DEBUG"] for n in range(8))


def test_split_of_broken_images_only_is_refused_even_with_skip(ready, cache):
    for file in (ready / "val").rglob("*.png"):
        file.write_bytes(b"nothing")
    assert "data (val): no image is left" in refusal(cache, path=ready, on_bad="skip")


def save_unusual(folder: Path) -> dict[str, tuple[int, int]]:
    """Write images of every unusual kind; return (height, width) as they are seen, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    colour = Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 60, 3), dtype=np.uint8))
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("P").save(folder / "palette.png")
    colour.convert("L").save(folder / "grey.png")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.convert("1").save(folder / "bits.png")
    deep = np.random.default_rng(4).integers(0, 65535, (40, 60, 3), dtype=np.uint16)
    cv2.imwrite(str(folder / "deep.png"), deep)
    cv2.imwrite(str(folder / "deep.tif"), deep[..., 0])
    colour.save(folder / "moving.webp", save_all=True, append_images=[colour.rotate(180)], duration=50, lossless=True)
    colour.save(folder / "moving.png", save_all=True, append_images=[colour.rotate(180)])
    colour.save(folder / "PROGRESSIVE.JPG", progressive=True)
    turned = colour.getexif()
    turned[0x0112] = 6
    colour.save(folder / "turned.jpg", exif=turned)
    shapes = {file.name: (40, 60) for file in folder.iterdir()}
    return {**shapes, "turned.jpg": (60, 40)}


def test_unusual_images_are_read(ready, cache):
    expected = save_unusual(ready / "train" / "ant" / "odd")
    checked = load(cache, path=ready)
    shapes = {
        image.name: tuple(shape)
        for image, shape in zip(checked.splits["train"].images, checked.splits["train"].shapes.tolist(), strict=True)
    }
    assert len(expected) == 11
    assert {name: shapes[name] for name in expected} == expected


def test_gif_is_a_clear_problem(ready, cache):
    picture = Image.fromarray(np.zeros((40, 60), np.uint8))
    picture.save(ready / "train" / "ant" / "moving.gif", save_all=True, append_images=[picture])
    text = refusal(cache, path=ready)
    assert "train/ant/moving.gif: is not an image (" in text and "png" in text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folder_that_cannot_be_listed_is_named(ready, cache):
    (ready / "train" / "ant").chmod(0)
    try:
        assert "cannot be listed" in refusal(cache, path=ready)
    finally:
        (ready / "train" / "ant").chmod(0o755)


def test_link_that_leads_up_does_not_go_round_for_ever(ready, cache):
    (ready / "train" / "ant" / "again").symlink_to(ready / "train", target_is_directory=True)
    assert load(cache, path=ready).counts["train"] == [3, 4]


# Leaks


def test_copy_in_two_splits_stops_or_warns(ready, cache):
    shutil.copy(ready / "train" / "ant" / "000.png", ready / "val" / "ant" / "copy.png")
    shutil.copy(ready / "val" / "bee" / "000.png", ready / "test" / "bee" / "copy.png")
    text = refusal(cache, path=ready)
    assert "val/ant/copy.png: lies in val and, as train/ant/000.png, in train" in text
    assert "test/bee/copy.png" in text and "data.on_leak=warn" in text
    checked = load(cache, path=ready, on_leak="warn")
    assert any("2 images lie in two splits" in warning for warning in checked.warnings)


def test_image_that_two_index_files_name_is_a_leak(raw, cache):
    line = lines(raw, "fold_0_train.txt")[0]
    with (raw.parent / "splits" / "test.txt").open("a") as file:
        file.write(f"{line}\n")
    assert f"{line}: in train and test" in refusal(cache, raw=raw)


def test_same_picture_in_two_classes_is_a_warning(ready, cache):
    shutil.copy(ready / "train" / "ant" / "000.png", ready / "train" / "bee" / "copy.png")
    assert any("more than one class" in warning for warning in load(cache, path=ready).warnings)


@pytest.mark.skipif(not (SHARED / "classify" / "grocery").is_dir(), reason="the real set is not on this machine")
def test_real_set_is_loaded_with_all_its_classes(cache):
    checked = load(cache, path=SHARED / "classify" / "grocery")
    assert len(checked.classes) == 43
    assert {name: len(split) for name, split in checked.splits.items()} == {"train": 2640, "val": 296, "test": 516}
