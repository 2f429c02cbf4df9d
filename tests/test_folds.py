"""mode=split: what the folds are, what stays together, and what cannot be divided."""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from class_sets import lines, make_divided, make_folders, split
from yolo_sets import SHARED, write_picture

from hsr_train.data import index_files
from hsr_train.data.division import Scheme, Units, divide
from hsr_train.data.near_duplicates import near_duplicates
from hsr_train.errors import InputError

COUNTS = {"bee": 20, "ant": 12, "wasp": 9}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "set" / "raw", COUNTS)


def refusal(raw: Path, cache: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        split(raw, cache, **options)
    assert caught.value.exit_status == 2
    return str(caught.value)


def all_lines(raw: Path) -> set[str]:
    return {f"raw/{file.relative_to(raw).as_posix()}" for file in raw.rglob("*.png")}


def written(raw: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in (raw.parent / "splits").iterdir()}


# What the folds are


def test_kfold_val_sets_are_disjoint_and_cover_all_but_the_test_set(raw, cache):
    split(raw, cache, folds=4)
    test = set(lines(raw, "test.txt"))
    vals = [set(lines(raw, f"fold_{i}_val.txt")) for i in range(4)]
    assert set.union(test, *vals) == all_lines(raw)
    assert len(test) + sum(map(len, vals)) == sum(COUNTS.values())
    for i, val in enumerate(vals):
        assert set(lines(raw, f"fold_{i}_train.txt")) == all_lines(raw) - test - val
    assert len(written(raw)) == 1 + 2 * 4 + 1


def test_kfold_shares_are_those_asked_for_in_every_class(raw, cache):
    split(raw, cache, folds=4, ratio=[0.6, 0.15, 0.25])
    for name, count in COUNTS.items():
        test = [line for line in lines(raw, "test.txt") if line.startswith(f"raw/{name}/")]
        assert abs(len(test) - count * 0.25) < 1
        for fold in range(4):
            val = [line for line in lines(raw, f"fold_{fold}_val.txt") if line.startswith(f"raw/{name}/")]
            assert abs(len(val) - (count - len(test)) / 4) < 1


def test_holdout_draws_every_fold_anew_with_the_first_two_shares(raw, cache):
    split(raw, cache, scheme="holdout", folds=3, ratio=[0.5, 0.25, 0.25])
    vals = [set(lines(raw, f"fold_{i}_val.txt")) for i in range(3)]
    assert vals[0] != vals[1] != vals[2]
    assert vals[0] & vals[1]  # unlike folds of a partition; 10 of 31 each
    rest = all_lines(raw) - set(lines(raw, "test.txt"))
    for i, val in enumerate(vals):
        assert val | set(lines(raw, f"fold_{i}_train.txt")) == rest
        assert abs(len(val) - len(rest) / 3) <= 1


def test_holdout_one_fold_is_enough(raw, cache):
    split(raw, cache, scheme="holdout", folds=1)
    assert sorted(written(raw)) == ["fold_0_train.txt", "fold_0_val.txt", "split.json", "test.txt"]


def test_lines_are_sorted_by_class_then_name_and_relative_to_the_parent(raw, cache):
    raw = raw.rename(raw.with_name("pictures"))
    split(raw, cache)
    found = lines(raw, "fold_0_train.txt")
    assert all(line.startswith("pictures/") and (raw.parent / line).is_file() for line in found)
    assert found == sorted(found, key=lambda line: line.split("/"))
    assert {line.split("/")[1] for line in found} == set(COUNTS)


def test_same_arguments_give_the_same_bytes_and_say_so(raw, cache):
    assert "same as before" not in split(raw, cache)
    before = written(raw)
    assert "the same as before" in split(raw, cache)
    assert written(raw) == before


def test_result_does_not_depend_on_the_order_of_the_directory(raw, cache, tmp_path, monkeypatch):
    split(raw, cache)
    listdir, walk = os.listdir, os.walk
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path), reverse=True))
    monkeypatch.setattr(os, "walk", lambda *a, **k: ((p, s, sorted(n, reverse=True)) for p, s, n in walk(*a, **k)))
    other = tmp_path / "other" / "raw"
    shutil.copytree(raw, other)
    split(other, cache)
    assert written(other) == written(raw)


def test_another_seed_gives_another_test_set_and_other_folds(raw, cache):
    split(raw, cache, seed=1)
    one = written(raw)
    split(raw, cache, seed=2**40)
    two = written(raw)
    assert one["test.txt"] != two["test.txt"] and one["fold_0_val.txt"] != two["fold_0_val.txt"]


def test_fewer_folds_than_before_remove_the_stale_files_and_say_so(raw, cache):
    split(raw, cache, folds=5)
    text = split(raw, cache, folds=3)
    assert "replaced the earlier splits of 5 folds" in text and "fold_3_train.txt" in text
    assert not (raw.parent / "splits" / "fold_3_val.txt").exists()
    assert (raw.parent / "splits" / "fold_2_val.txt").exists()


def test_index_files_of_somebody_else_are_not_replaced(raw, cache):
    own = raw.parent / "splits" / "fold_0_train.txt"
    own.parent.mkdir()
    own.write_text("raw/ant/000.png\n")
    assert "not made by mode=split" in refusal(raw, cache)
    assert own.read_text() == "raw/ant/000.png\n"


def test_record_names_arguments_and_counts(raw, cache):
    split(raw, cache, folds=4, seed=7, ratio=[0.7, 0.2, 0.1])
    record = json.loads((raw.parent / "splits" / "split.json").read_text())
    assert (record["complete"], record["folds"], record["seed"], record["ratio"]) == (True, 4, 7, [0.7, 0.2, 0.1])
    assert record["classes"] == ["ant", "bee", "wasp"]
    assert record["images"]["test.txt"] == len(lines(raw, "test.txt"))


def test_interrupted_division_is_not_taken_for_a_whole_one(raw, cache, monkeypatch):
    split(raw, cache)
    write = index_files.write_bytes
    calls = []

    def fail_later(path: Path, data: bytes) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(index_files, "write_bytes", fail_later)
    with pytest.raises(KeyboardInterrupt):
        split(raw, cache, seed=1)
    with pytest.raises(InputError, match="interrupted"):
        index_files.read_record(raw.parent / "splits")
    monkeypatch.undo()
    split(raw, cache, seed=1)
    assert index_files.read_record(raw.parent / "splits")["seed"] == 1


def test_test_share_of_zero_writes_no_test_set(raw, cache):
    split(raw, cache, ratio=[0.8, 0.2, 0.0])
    assert not (raw.parent / "splits" / "test.txt").exists()
    assert sum(len(lines(raw, f"fold_{i}_val.txt")) for i in range(5)) == sum(COUNTS.values())


def test_shares_hold_in_sum_where_classes_are_small(tmp_path, cache):
    raw = make_divided(tmp_path / "set", {f"c{i}": 10 for i in range(8)}, cache, ratio=[0.7, 0.15, 0.15])
    assert len(lines(raw, "test.txt")) == 12  # 1.5 of each class: half of the classes give one, half give two


def test_every_class_is_in_the_test_set_however_small_it_is(tmp_path, cache):
    raw = make_divided(tmp_path / "set", {"many": 60, "few": 4}, cache, folds=3, ratio=[0.8, 0.1, 0.1])
    assert sum(line.startswith("raw/few/") for line in lines(raw, "test.txt")) == 1


def test_hidden_and_system_files_do_not_count(raw, cache):
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "._000.png"):
        (raw / "ant" / name).write_bytes(b"\x00\x05")
    (raw / ".ipynb_checkpoints").mkdir()
    (raw / "LICENSE").write_text("free")
    split(raw, cache)
    assert "._" not in "".join(lines(raw, "fold_0_train.txt"))


def test_names_of_any_bytes_come_back_from_the_index(tmp_path, cache):
    raw = make_folders(tmp_path / "set" / "raw", {"bière & Öl": 8, "日本": 8})
    (raw / "日本" / "000.png").rename(raw / "日本" / os.fsdecode(b"caf\xe9 1.png"))
    split(raw, cache)
    content = b"".join((raw.parent / "splits" / f"fold_0_{s}.txt").read_bytes() for s in ("train", "val"))
    content += (raw.parent / "splits" / "test.txt").read_bytes()
    assert "raw/日本/".encode() + b"caf\xe9 1.png\n" in content


# What stays together


def parts_of(raw: Path, folds: int, group_of) -> dict[str, set[str]]:
    """For each group the parts of the set it lies in: the test set, and the validation set of each fold."""
    parts: dict[str, set[str]] = {}
    for name in ["test.txt", *(f"fold_{i}_val.txt" for i in range(folds))]:
        for line in lines(raw, name):
            parts.setdefault(group_of(line), set()).add(name)
    return parts


def make_recordings(folder: Path, *, recordings: int = 8, shots: int = 3) -> Path:
    """Two classes; each recording is a folder in each, and the names say it as well."""
    seed = 0
    for name in ("cup", "pan"):
        for recording in range(recordings):
            for shot in range(shots):
                place = folder / name / f"{name}-rec{recording}" / f"{name}{recording}_{shot}.png"
                write_picture(place, size=(24, 24), seed=(seed := seed + 1))
    return folder


@pytest.mark.parametrize("scheme", ["kfold", "holdout"])
@pytest.mark.parametrize("groups", ["level:1", r"pattern:^(\w+\d)_"])
def test_groups_never_straddle(tmp_path, cache, groups, scheme):
    raw = make_recordings(tmp_path / "set" / "raw")
    text = split(raw, cache, groups=groups, folds=3, scheme=scheme)
    assert "16 groups" in text and "farthest off, since groups stay whole" in text
    for fold in range(3):
        seen: dict[str, str] = {}
        for name in ("test.txt", f"fold_{fold}_train.txt", f"fold_{fold}_val.txt"):
            assert lines(raw, name)
            for line in lines(raw, name):
                assert seen.setdefault(line.split("/")[2], name) == name
        assert len(seen) == 16


def test_groups_from_a_table_never_straddle(tmp_path, cache):
    raw = make_recordings(tmp_path / "set" / "raw")
    table = tmp_path / "groups.csv"
    files = sorted(file.relative_to(raw).as_posix() for file in raw.rglob("*.png"))
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("file", "group"), *((name, name.split("rec")[1][0]) for name in files)])
    split(raw, cache, groups=str(table), folds=3)
    parts = parts_of(raw, 3, lambda line: line.split("rec")[1][0])  # the same recording in both classes
    assert len(parts) == 8 and all(len(where) == 1 for where in parts.values())


def test_exact_copies_stay_together_without_groups(raw, cache):
    for index in range(5):
        shutil.copy(raw / "bee" / f"{index:03}.png", raw / "bee" / f"copy{index}.png")
    text = split(raw, cache)
    assert "5 images are exact copies" in text
    content = {file.as_posix(): file.read_bytes() for file in raw.rglob("*.png")}
    parts = parts_of(raw, 5, lambda line: str(hash(content[(raw.parent / line).as_posix()])))
    assert all(len(where) == 1 for where in parts.values())


def test_copies_across_two_groups_join_them(tmp_path, cache):
    raw = make_recordings(tmp_path / "set" / "raw")
    shutil.copy(raw / "cup/cup-rec0/cup0_0.png", raw / "cup/cup-rec1/cup1_9.png")
    assert "15 groups" in split(raw, cache, groups="level:1", folds=3)
    parts = parts_of(raw, 3, lambda line: line.split("/")[2])
    assert parts["cup-rec0"] == parts["cup-rec1"] and len(parts["cup-rec0"]) == 1


def test_same_picture_in_two_classes_is_a_warning_with_both_places(raw, cache, caplog):
    shutil.copy(raw / "bee" / "000.png", raw / "ant" / "000.png")
    split(raw, cache)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "1 picture lies in more than one class" in warning
    assert "\n  raw/ant/000.png = raw/bee/000.png" in warning


def test_near_duplicates_across_splits_are_reported(tmp_path, cache):
    raw = tmp_path / "set" / "raw"
    rng = np.random.default_rng(0)
    for name in ("cup", "pan"):
        for index in range(12):
            write_picture(raw / name / f"{index:02}.png", size=(120, 160), seed=int(rng.integers(1 << 30)))
    assert "look the same" not in split(raw, cache)
    for index in range(12):  # a smaller, brighter JPEG of each cup
        image = cv2.imread(str(raw / "cup" / f"{index:02}.png"))
        image = cv2.convertScaleAbs(cv2.resize(image, (100, 75), interpolation=cv2.INTER_AREA), alpha=1.0, beta=5)
        (raw / "cup" / f"{index:02}_small.jpg").write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    text = split(raw, cache)
    (line,) = [line for line in text.splitlines() if "look the same" in line]
    apart = parts_of(raw, 5, lambda line: line.split("/")[2][:2] + line.split("/")[1])
    num_apart = sum(len(where) > 1 for where in apart.values())
    assert num_apart and line.startswith(f"{num_apart} pairs")
    assert "_small.jpg" in line
    together = split(raw, cache, groups=r"pattern:^(\d+)")
    assert "look the same" not in together


def test_pictures_alike_in_the_rough_only_are_no_near_duplicates(tmp_path):
    rough = cv2.resize(np.random.default_rng(5).normal(size=(5, 5)), (32, 32), interpolation=cv2.INTER_CUBIC) * 15
    wave = np.cos(np.pi * (2 * np.arange(32) + 1) * 24 / 64)  # one frequency, above those that are compared first
    fine = 60 * np.outer(wave, wave)
    paths = []
    for name, picture in (("a", rough + fine), ("b", rough - fine), ("c", rough + fine + 10)):
        large = np.clip(picture + 120, 0, 255).astype(np.uint8).repeat(4, 0).repeat(4, 1)
        paths.append(str(tmp_path / f"{name}.png"))
        cv2.imwrite(paths[-1], large)
    assert near_duplicates(paths, ["a", "b", "c"]).tolist() == [[0, 2]]
    assert near_duplicates(paths, ["a", "b", "a"]).tolist() == []  # exact copies are no news


# What cannot be divided


def test_ratio_that_adds_up_but_for_rounding_is_accepted(raw, cache):
    assert sum([0.7, 0.2, 0.1]) != 1
    split(raw, cache, ratio=[0.7, 0.2, 0.1])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ratio": [0.7, 0.2, 0.2]}, "adds up to 1.1"),
        ({"ratio": [0.7, 0.15, 0.150002]}, "adds up to"),
        ({"ratio": [0.9, 0.2, -0.1]}, "negative"),
        ({"ratio": [float("nan"), 0.2, 0.1]}, "negative"),
        ({"ratio": [0.8, 0.2]}, "three numbers"),
        ({"ratio": [0.0, 0.0, 1.0]}, "leaves nothing for train"),
        ({"ratio": [0.8, 0.0, 0.2], "scheme": "holdout"}, "leaves nothing for train and val"),
        ({"folds": 1}, "data.scheme=holdout"),
        ({"folds": 9}, "class wasp: 9 images, 1 of them for the test set"),
        ({"groups": "level:0"}, "level:1"),
        ({"groups": "level:two"}, "level:1"),
        ({"groups": "level:1"}, "finds no group"),
        ({"groups": "pattern:("}, "no regular expression"),
        ({"groups": "pattern:x"}, "parentheses"),
        ({"groups": "pattern:(x)"}, "finds no group"),
        ({"groups": "missing.csv"}, "no such file"),
    ],
)
def test_setting_that_does_not_do_is_one_clear_problem(raw, cache, options, expected):
    text = refusal(raw, cache, **options)
    assert expected in text and "->" in text
    assert not (raw.parent / "splits").exists()


def test_two_wrong_settings_are_reported_at_once(raw, cache):
    text = refusal(raw, cache, ratio=[1.0], folds=1)
    assert "data.ratio" in text and "data.folds" in text


def test_class_with_one_image_is_named_with_what_would_do(tmp_path, cache):
    raw = make_folders(tmp_path / "set" / "raw", {"a": 10, "b": 1})
    text = refusal(raw, cache)
    assert "class b: 1 image;" in text and "5 folds need 5" in text and "remove its folder" in text


def test_small_classes_are_listed_in_one_message(tmp_path, cache):
    raw = make_folders(tmp_path / "set" / "raw", {"a": 20, "b": 1, "c": 3})
    with pytest.raises(InputError) as caught:
        split(raw, cache)
    (problem,) = caught.value.problems
    assert problem.key == "data.folds" and problem.allowed.startswith("2 classes have too few images")
    assert problem.allowed.endswith("b has 1 image; c has 3 images, 1 of them for the test set")
    assert "data.folds=" not in problem.remedy  # one class would remain too small


def test_empty_classes_are_listed_in_one_message(raw, cache):
    for name in ("fly", "moth"):
        (raw / name).mkdir()
    text = refusal(raw, cache)
    assert "holds 2 classes without an image: fly, moth" in text and text.count("\n") == 1


def test_class_with_fewer_images_than_folds_names_the_folds_that_would_do(tmp_path, cache):
    raw = make_folders(tmp_path / "set" / "raw", {"a": 20, "b": 5})
    assert "data.folds=4" in refusal(raw, cache)
    split(raw, cache, folds=4)


def test_fewer_groups_than_folds_is_refused(tmp_path, cache):
    raw = make_recordings(tmp_path / "set" / "raw", recordings=3, shots=6)
    assert "cup has 3 groups, 1 of them for the test set" in refusal(raw, cache, groups="level:1")


def test_broken_table_of_groups_names_every_line(raw, cache, tmp_path):
    table = tmp_path / "groups.csv"
    table.write_text("file,group\nant/000.png,a\nant/000.png,b\nant/001.png,\n")
    text = refusal(raw, cache, groups=str(table))
    assert f"{table}:3" in text and f"{table}:4" in text and "no row for 40 of 41 images" in text
    table.write_text("name,group\nant/000.png,a\n")
    assert "has no column file" in refusal(raw, cache, groups=str(table))


def test_empty_class_one_class_and_loose_images_are_reported(raw, cache, tmp_path):
    (raw / "fly").mkdir()
    write_picture(raw / "loose.png")
    text = refusal(raw, cache)
    assert "is a class without an image" in text and "1 images beside the class folders: loose.png" in text
    single = make_folders(tmp_path / "single", {"only": 9})
    assert "has only one class: only" in refusal(single, cache)
    wrapped = make_folders(tmp_path / "wrapped" / "unpacked", {"a": 3, "b": 3}).parent
    assert f"data.raw={wrapped / 'unpacked'}" in refusal(wrapped, cache)
    (tmp_path / "nothing").mkdir()
    assert "has no class folder" in refusal(tmp_path / "nothing", cache)
    for index in range(3):
        write_picture(tmp_path / "flat" / f"{index}.png")
    assert "holds 3 images beside the class folders" in refusal(tmp_path / "flat", cache)


def test_folder_that_is_a_file_missing_or_divided_already(raw, cache, tmp_path):
    assert "no such folder" in refusal(tmp_path / "set" / "rwa", cache) and "raw" in str(raw)
    (tmp_path / "file.zip").write_bytes(b"PK")
    assert "is a file" in refusal(tmp_path / "file.zip", cache)
    for name in ("train", "val"):
        make_folders(tmp_path / "ready" / name, {"a": 1, "b": 1})
    assert "divided already" in refusal(tmp_path / "ready", cache)


def test_what_is_no_image_is_reported_or_left_out(raw, cache, caplog):
    (raw / "ant" / "notes.txt").write_text("seen in May")
    (raw / "ant" / "scan.pdf").write_bytes(b"%PDF-1.4")
    (raw / "bee" / "moving.gif").write_bytes(b"GIF89a")
    (raw / "bee" / "000.png").write_bytes((raw / "bee" / "000.png").read_bytes()[:60])
    text = refusal(raw, cache)
    for name in ("raw/ant/notes.txt", "raw/ant/scan.pdf", "raw/bee/moving.gif", "raw/bee/000.png"):
        assert name in text
    assert "data.on_bad=skip" in text
    with caplog.at_level("DEBUG"):
        split(raw, cache, on_bad="skip")
    assert "4 files\n" in caplog.text and "raw/ant/notes.txt: is not an image" in caplog.text
    named = {line for i in range(5) for line in lines(raw, f"fold_{i}_val.txt")} | set(lines(raw, "test.txt"))
    assert named == all_lines(raw) - {"raw/bee/000.png"}


def test_missing_scikit_learn_is_reported_with_what_installs_it(raw, cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    assert "pip install 'hsr_train[classify]'" in refusal(raw, cache)


def test_divide_class_that_a_group_takes_from_training_is_refused():
    units = Units(np.array([0, 1, 2, 3, 4, 4, 5]), np.array([0, 0, 0, 0, 1, 0, 1]), 2)
    with pytest.raises(InputError, match="class b"):
        divide(units, Scheme("kfold", 3, 0.0, 0.2, 0), ["a", "b"], mixed=True, word="groups")


@pytest.mark.skipif(not (SHARED / "classify" / "grocery").is_dir(), reason="the real set is not on this machine")
def test_real_set_is_divided_with_every_class_in_every_split(tmp_path, cache):
    raw = tmp_path / "set" / "raw"
    raw.parent.mkdir()
    raw.symlink_to(SHARED / "classify" / "grocery" / "train")
    split(raw, cache)
    for name in ["test.txt", *(f"fold_{i}_val.txt" for i in range(5))]:
        assert len({line.split("/")[1] for line in lines(raw, name)}) == 43
    assert len(lines(raw, "test.txt")) == 396
