"""data.yaml: what it may say, and how each mistake is reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from yolo_sets import make_yolo_set

from hsr_train.data.description import Description, read_description
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError


def read(path: Path, need=("train", "val"), val_fraction=None) -> Description:
    return read_description(path, Decisions(), need=need, val_fraction=val_fraction)


def refusal(path: Path, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert caught.value.exit_status == 2
    return str(caught.value)


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "data.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def valid(names: str, more: str = "") -> str:
    return f"train: images/train\nval: images/val\n{names}\n{more}"


@pytest.mark.parametrize(
    "names",
    [
        "names: [cup, bottle]",
        "names: {0: cup, 1: bottle}",
        "names:\n  1: bottle\n  0: cup",
        "names: [cup, bottle]\nnc: 2",
    ],
)
def test_names_as_list_and_as_map(tmp_path, names):
    assert read(write(tmp_path, valid(names))).names == ["cup", "bottle"]


def test_names_stay_what_was_written(tmp_path):
    assert read(write(tmp_path, valid("names: [yes, 010, 1e3, null, Tasse-groß]"))).names == [
        "yes",
        "010",
        "1e3",
        "null",
        "Tasse-groß",
    ]


def test_byte_order_mark_is_accepted(tmp_path):
    assert read(write(tmp_path, b"\xef\xbb\xbf" + valid("names: [a]").encode())).names == ["a"]


def test_nc_without_names_generates_them_and_says_so(tmp_path):
    decisions = Decisions()
    description = read_description(write(tmp_path, valid("nc: 3")), decisions, need=("train", "val"))
    assert description.names == ["class_0", "class_1", "class_2"]
    assert "no names" in decisions[0].reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (valid("names: [a, b]\nnc: 3"), ["nc: 3", "`names` has 2 entries"]),
        (valid("names: [a, b]\nnc: many"), ["nc: many", "whole number"]),
        (valid("names: {0: a, 2: b}"), ["names: 0, 2", "0 to 1"]),
        (valid("names: {1: a, 2: b}"), ["without a gap"]),
        (valid("names: {x: a}"), ["names: x"]),
        (valid("names: [a, [b]]"), ["class 1"]),
        (valid("names: [a, '']"), ["class 1"]),
        (valid("names: cup"), ["must be a list"]),
        (valid(""), ["names: missing"]),
        (valid("names: []"), ["names: missing"]),
        (valid("names: [a]\nchannels: 4"), ["channels: 4", "must be 3"]),
        (valid("names: [a]\nkpt_shape: [17]"), ["kpt_shape", "2 or 3"]),
        ("names: [a]\nval: images/val\n", ["train: is missing", "train: images/train"]),
        ("names: [a]\ntrain: images/train\n", ["val: is missing", "data.val_fraction=0.2"]),
        ("names: [a]\ntrain: {a: b}\nval: v\n", ["train", "a folder of images, a list file"]),
        (valid("names: [a]", "path: [x]"), ["path", "must be one folder"]),
        (valid("names: [a]", "path: /nowhere/set"), ["path: /nowhere/set", "no such folder"]),
        (valid("names: [a]", "train: elsewhere"), ["data.yaml:4", "`train` is given twice"]),
        (valid("names: {0: a, 0: b}"), ["`0` is given twice"]),
        ("train: [a\nval: b", ["not valid YAML"]),
        ("train: a\n\tval: b", ["data.yaml:2", "not valid YAML"]),
        ("- a\n- b\n", ["holds a list"]),
        ("just words", ["holds plain text"]),
        ("", ["the file is empty"]),
        ("\n# only a comment\n", ["needed"]),
    ],
)
def test_mistake_is_refused_with_what_is_wrong(tmp_path, text, expected):
    message = refusal(write(tmp_path, text))
    for part in expected:
        assert part in message


def test_repeated_class_name_is_a_warning(tmp_path, caplog):
    assert read(write(tmp_path, valid("names: [cup, cup]"))).names == ["cup", "cup"]
    assert "the same name: cup" in caplog.text


def test_all_mistakes_come_in_one_message(tmp_path):
    message = refusal(write(tmp_path, "names: {0: a, 2: b}\nnc: 3\nchannels: 1\npath: nowhere\n"))
    for part in ("nc: 3", "names: 0, 2", "channels: 1", "no such folder", "train: is missing", "val: is missing"):
        assert part in message


@pytest.mark.parametrize("raw", ["names: [Spüle]".encode("latin-1"), valid("names: [a]").encode("utf-16")])
def test_other_encodings_are_refused(tmp_path, raw):
    assert "not UTF-8" in refusal(write(tmp_path, raw))


def test_missing_file_names_the_ones_that_are_there(tmp_path):
    there = write(tmp_path, valid("names: [a]"))
    message = refusal(tmp_path / "date.yaml")
    assert "no such file" in message
    assert f"data.path={there}" in message


def test_folder_instead_of_file_names_the_yaml_in_it(tmp_path):
    there = write(tmp_path, valid("names: [a]"))
    assert f"data.path={there}" in refusal(tmp_path)


def test_val_fraction_needs_no_val_and_has_no_effect_beside_one(tmp_path):
    without = write(tmp_path, "train: images/train\nnames: [a]\n")
    assert set(read(without, val_fraction=0.2).entries) == {"train"}
    beside = write(tmp_path, valid("names: [a]"))
    assert "data.val_fraction: 0.2: has no effect" in refusal(beside, val_fraction=0.2)


def test_only_needed_splits_are_demanded(tmp_path):
    path = write(tmp_path, "val: images/val\nnames: [a]\n")
    assert set(read(path, need=("val",)).entries) == {"val"}
    assert "a test split is needed" in refusal(path, need=("test",))


def test_validation_is_read_as_val(tmp_path):
    path = write(tmp_path, "train: images/train\nvalidation: images/val\nnames: [a]\n")
    assert read(path).entries["val"] == [tmp_path / "images/val"]


@pytest.mark.parametrize("root", ["", "path: .", "path: ../set", "path: {tmp}/set", "path: ''", "path: null"])
def test_root_is_relative_to_the_yaml(tmp_path, root):
    yaml_path = make_yolo_set(tmp_path / "set")
    yaml_path.write_text(valid("names: [a, b]", root.format(tmp=tmp_path)))
    assert read(yaml_path).entries["train"] == [tmp_path / "set" / "images" / "train"]


def test_stale_path_falls_back_to_the_folder_of_the_yaml_and_says_so(tmp_path):
    yaml_path = make_yolo_set(tmp_path / "set")
    yaml_path.write_text(valid("names: [a, b]", "path: /home/somebody/set"))
    decisions = Decisions()
    description = read_description(yaml_path, decisions, need=("train", "val"))
    assert description.root == tmp_path / "set"
    assert "/home/somebody/set" in decisions[0].reason


def test_splits_written_relative_to_a_folder_above_are_found_beside_the_yaml(tmp_path):
    make_yolo_set(tmp_path / "set")
    yaml_path = write(tmp_path / "set", "train: ../images/train\nval: ../images/val\nnames: [a, b]\n")
    decisions = Decisions()
    description = read_description(yaml_path, decisions, need=("train", "val"))
    assert description.entries["val"] == [tmp_path / "set" / "images" / "val"]
    assert len(decisions) == 2


def test_upwards_from_a_linked_folder_is_meant_from_where_the_link_leads(tmp_path):
    make_yolo_set(tmp_path / "disk/set")
    write(tmp_path / "disk/set", valid("names: [a, b]", "path: ../set"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home/current").symlink_to(tmp_path / "disk/set")
    assert read(tmp_path / "home/current/data.yaml").entries["train"] == [tmp_path / "disk/set/images/train"]


def test_split_as_a_list_of_folders(tmp_path):
    path = write(tmp_path, "train: [one, two]\nval: /abs/three\nnames: [a]\n")
    entries = read(path).entries
    assert entries == {"train": [tmp_path / "one", tmp_path / "two"], "val": [Path("/abs/three")]}


def test_odd_paths_are_refused_like_any_other(tmp_path):
    assert "no such file" in refusal(Path("~nobody-by-this-name/data.yaml"))
    assert "no such folder" in refusal(write(tmp_path, valid("names: [a]", f"path: {'x' * 300}")))


def test_download_key_is_not_executed(tmp_path):
    marker = tmp_path / "executed"
    read(write(tmp_path, valid("names: [a]", f"download: bash touch {marker}")))
    read(write(tmp_path, valid("names: [a]", f"download: open({str(marker)!r}, 'w')")))
    assert not marker.exists()


def test_yaml_tags_build_no_objects(tmp_path):
    marker = tmp_path / "executed"
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{marker}']]"
    read(write(tmp_path, valid("names: [a]", f"note: {tag}")))
    assert not marker.exists()


def test_empty_val_counts_as_none(tmp_path):
    path = write(tmp_path, "train: images/train\nval: null\nnames: [a]\n")
    assert set(read(path, val_fraction=0.5).entries) == {"train"}
    assert "val: is missing" in refusal(path)
