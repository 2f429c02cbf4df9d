"""What is different between two manifests, between two lists of data files, and between two outcomes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest

from hsr_train.errors import InputError
from hsr_train.run.changes import set_value
from hsr_train.run.data_files import changed_files, read_data_files, write_data_files
from hsr_train.run.directory import RunDirectory
from hsr_train.run.drift import KINDS, compare_manifests, moved
from hsr_train.run.manifest import SECTIONS, read_manifest
from hsr_train.run.reproduction import Outcome, compare_outcomes, read_outcome, relative_difference

MANIFEST: dict[str, Any] = {
    "platform": "Linux-6.1-x86_64",
    "python": {"version": "3.11.9", "executable": "/usr/bin/python"},
    "packages": {"torch": "2.15.0", "numpy": "2.2.0"},
    "environment": {"OMP_NUM_THREADS": "2", "SLURM_JOB_ID": "1", "YOLO_CONFIG_DIR": "/tmp/a"},
    "machine": {
        "gpus": [{"name": "RTX 4090", "driver": "590.1", "free_bytes": 5}],
        "cpu_name": "Ryzen",
        "cores": 8,
        "ram_available_bytes": 7,
    },
    "seeds": {"train.seed": 0},
    "fingerprints": {
        "weights": {"file": "/w/yolov8n.pt", "sha256": "aa"},
        "data": {
            "path": "/d/data.yaml",
            "fingerprint": "f1",
            "names": ["a", "b"],
            "splits": {"train": {"images": 9}, "val": {"images": 3}},
        },
    },
    "git": {"root": "/r", "commit": "abc", "diff": "", "dirty": False},
    "created": "2026-11-20",
    "working_directory": "/r",
}
FILES = [
    ("train", "images/a.jpg", "i1", "l1"),
    ("train", "images/b.jpg", "i2", ""),
    ("val", "images/c.jpg", "i3", "l3"),
]


def changed(**values: Any) -> dict[str, Any]:
    """Return the manifest with other values; `__` stands for a dot."""
    manifest = copy.deepcopy(MANIFEST)
    for key, value in values.items():
        set_value(manifest, key.replace("__", "."), value)
    return manifest


def lines(before: dict[str, Any], now: dict[str, Any], *files: Any) -> list[str]:
    return [str(drift) for drift in compare_manifests(before, now, *files)]


def test_same_manifest_has_no_drift() -> None:
    assert lines(MANIFEST, copy.deepcopy(MANIFEST), FILES, FILES) == []
    assert moved(MANIFEST, MANIFEST) == []


def test_what_differs_at_every_start_is_no_drift() -> None:
    now = changed(
        created="2027", working_directory="/x", environment__SLURM_JOB_ID="2", environment__YOLO_CONFIG_DIR="/tmp/b",
        machine__ram_available_bytes=1, python__executable="/venv/python", git__root="/elsewhere",
    )  # fmt: skip
    now["machine"]["gpus"][0]["free_bytes"] = 1
    assert lines(MANIFEST, now) == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"packages": {"torch": "2.16.0", "numpy": "2.2.0"}}, ["packages: torch: 2.15.0 -> 2.16.0"]),
        ({"packages": {"torch": "2.15.0"}}, ["packages: numpy: 2.2.0 -> none"]),
        ({"packages": {**MANIFEST["packages"], "polars": "1"}}, ["packages: polars: none -> 1"]),
        ({"python__version": "3.12.1"}, ["python: version: 3.11.9 -> 3.12.1"]),
        ({"platform": "Linux-6.9"}, ["platform: system: Linux-6.1-x86_64 -> Linux-6.9"]),
        ({"seeds": {"train.seed": 3}}, ["seeds: train.seed: 0 -> 3"]),
        ({"environment": {}}, ["environment: OMP_NUM_THREADS: 2 -> none"]),
        ({"machine__cpu_name": "Xeon"}, ["hardware: CPU: Ryzen -> Xeon"]),
        ({"machine__cores": 4}, ["hardware: cores: 8 -> 4"]),
        ({"machine__gpus": []}, ["hardware: GPU: RTX 4090 (driver 590.1) -> none"]),
        (
            {"machine__gpus": [{"name": "RTX 4090", "driver": "600"}]},
            ["hardware: GPU: RTX 4090 (driver 590.1) -> RTX 4090 (driver 600)"],
        ),
        ({"git__commit": "def"}, ["code: git commit: abc -> def"]),
        ({"git__diff": "+1", "git__dirty": True}, ["code: uncommitted changes: none -> changed files"]),
        ({"git__dirty": True}, ["code: uncommitted changes: none -> files that git does not know"]),
        ({"git": None}, ["code: git commit: abc -> no git checkout"]),
        ({"git": {"root": None, "refused": "not yours"}}, ["code: git commit: abc -> no git checkout"]),
        (
            {"fingerprints__weights": {"file": "", "sha256": None}},
            ["weights: /w/yolov8n.pt: sha256 aa -> scratch"],
        ),
        (
            {"fingerprints__data__fingerprint": "f2", "fingerprints__data__names": ["a", "c"]},
            ["data: names: ['a', 'b'] -> ['a', 'c']"],
        ),
        (
            {"fingerprints__data__fingerprint": "f2", "fingerprints__data__splits": {"train": {"images": 10}}},
            ["data: /d/data.yaml: other files; 9 train + 3 val images then, 10 train images now"],
        ),
    ],
)  # fmt: skip
def test_each_kind_of_drift_is_one_line(values: dict[str, Any], expected: list[str]) -> None:
    assert lines(MANIFEST, changed(**values)) == expected


def test_other_uncommitted_changes_are_drift() -> None:
    before, now = changed(git__diff="+1", git__dirty=True), changed(git__diff="+2", git__dirty=True)
    assert lines(before, now) == ["code: uncommitted changes: other ones"]


def test_without_git_on_both_sides_the_version_counts() -> None:
    before, now = changed(git=None), changed(git=None, packages={**MANIFEST["packages"], "hsr_train": "2"})
    assert lines(before, now) == ["packages: hsr_train: none -> 2"]


def test_all_drift_is_told_the_likeliest_cause_first() -> None:
    now = changed(
        platform="x", python__version="3.12", packages={}, environment={}, machine__cores=1, seeds={}, git=None,
        fingerprints__data__fingerprint="f2", fingerprints__weights__sha256="bb",
    )  # fmt: skip
    kinds = [drift.kind for drift in compare_manifests(MANIFEST, now)]
    assert list(dict.fromkeys(kinds)) == list(KINDS)


def test_what_moved_with_its_content_is_no_drift_and_told() -> None:
    now = changed(fingerprints__data__path="/new/data.yaml", fingerprints__weights__file="/new/w.pt")
    assert lines(MANIFEST, now) == []
    assert [line.split()[1] for line in moved(MANIFEST, now)] == ["data", "weights"]
    assert all("/new/" in line for line in moved(MANIFEST, now))


def test_drift_of_data_names_ten_files_and_counts_the_rest() -> None:
    before = [("train", f"images/{i:03}.jpg", "x", "y") for i in range(25)]
    now = [("train", f"images/{i:03}.jpg", "z", "y") for i in range(25)]
    found = lines(MANIFEST, changed(fingerprints__data__fingerprint="f2"), before, now)
    assert found[0] == "data: images/000.jpg: the image changed"
    assert len(found) == 11
    assert found[-1] == "data: /d/data.yaml: and 15 further changes"


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (FILES, []),
        ([("train", "images/a.jpg", "new", "l1"), *FILES[1:]], [("images/a.jpg", "the image changed")]),
        ([("train", "images/a.jpg", "i1", "new"), *FILES[1:]], [("images/a.jpg", "its label file changed")]),
        ([("train", "images/a.jpg", "i1", ""), *FILES[1:]], [("images/a.jpg", "its label file is gone")]),
        (
            [FILES[0], ("train", "images/b.jpg", "i2", "l"), FILES[2]],
            [("images/b.jpg", "its label file is new")],
        ),
        (FILES[1:], [("images/a.jpg", "is gone from train")]),
        ([*FILES, ("val", "images/d.jpg", "i", "l")], [("images/d.jpg", "is new in val")]),
        (
            [*FILES[1:], ("val", *FILES[0][1:])],
            [("images/a.jpg", "is gone from train"), ("images/a.jpg", "is new in val")],
        ),
    ],
)
def test_changed_files_are_named_with_what_happened_to_them(now: Any, expected: list[tuple[str, str]]) -> None:
    assert changed_files(FILES, now) == expected


def test_data_files_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "data_files.csv"
    files = [*FILES, ("val", 'odd, "name"\nü\udcff.jpg', "i", "")]
    write_data_files(path, files)
    read = read_data_files(path)
    assert read is not None and read[:3] == FILES
    assert changed_files(read, files) == [], "a name that is no text is the same name"


def test_run_without_data_files_has_none(tmp_path: Path) -> None:
    assert read_data_files(tmp_path / "data_files.csv") is None


@pytest.mark.parametrize("content", [b"", b"a,b\n", b"split,image,image_hash,label_hash\ntrain,x\n", b"\xff\n"])
def test_damaged_data_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data_files.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=str(path)):
        read_data_files(path)


@pytest.mark.parametrize("section", SECTIONS)
def test_manifest_without_a_section_is_damaged(tmp_path: Path, section: str) -> None:
    (tmp_path / "manifest.json").write_text("{" + ", ".join(f'"{s}": {{}}' for s in SECTIONS if s != section) + "}")
    with pytest.raises(InputError, match=f"manifest.json.*no {section}"):
        read_manifest(RunDirectory(tmp_path), SECTIONS)


# ---- outcomes


def outcome(*losses: float | None, finished: bool = True, **metrics: float) -> Outcome:
    epochs = {i: {"epoch": float(i), "loss": loss} for i, loss in enumerate(losses, start=1)}
    return Outcome(["epoch", "loss"], epochs, dict(metrics), finished)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (1.0, 1.0, 0.0),
        (0.0, 0.0, 0.0),
        (2.0, 1.0, 0.5),
        (-1.0, 1.0, 2.0),
        (0.0, 1e-300, 1.0),
        (math.nan, math.nan, 0.0),
        (None, None, 0.0),
        (None, 1.0, math.inf),
        (math.nan, 1.0, math.inf),
        (math.inf, 1.0, math.inf),
        (math.inf, math.inf, 0.0),
    ],
)
def test_relative_difference(one: float | None, other: float | None, expected: float) -> None:
    assert relative_difference(one, other) == relative_difference(other, one) == expected


def test_same_outcomes_do_not_differ() -> None:
    found = compare_outcomes(outcome(1.0, math.nan, None, m=0.5), outcome(1.0, math.nan, None, m=0.5))
    assert (found.epochs_compared, found.first, found.largest, found.not_compared) == (3, None, None, [])


def test_first_and_largest_difference_have_their_place() -> None:
    found = compare_outcomes(outcome(1.0, 2.0, 4.0, m=0.5), outcome(1.0, 2.1, 8.0, m=0.5))
    assert str(found.first) == "epoch 2, loss: 2.0 -> 2.1"
    assert str(found.largest) == "epoch 3, loss: 4.0 -> 8.0"
    assert found.largest is not None and found.largest.relative == 0.5


def test_within_the_bound_is_the_same_and_the_largest_is_told() -> None:
    found = compare_outcomes(outcome(1.0, 2.0), outcome(1.0, 2.0001), bound=1e-3)
    assert found.first is None
    assert found.largest is not None and 0 < found.largest.relative < 1e-3
    assert compare_outcomes(outcome(1.0, 2.0), outcome(1.0, 2.1), bound=1e-3).first is not None


def test_final_metrics_count() -> None:
    found = compare_outcomes(outcome(1.0, m=0.5), outcome(1.0, m=0.6))
    assert str(found.first) == "final m: 0.5 -> 0.6"


@pytest.mark.parametrize("bound", [0.0, 0.9])
@pytest.mark.parametrize("other", [outcome(1.0, 1.0), outcome(1.0, 1.0, 1.0, 1.0)])
def test_another_number_of_epochs_differs_whatever_the_bound(other: Outcome, bound: float) -> None:
    assert str(compare_outcomes(outcome(1.0, 1.0, 1.0), other, bound).first) == f"epochs: 3 -> {len(other.epochs)}"


def test_unfinished_original_is_compared_as_far_as_it_came() -> None:
    original = outcome(1.0, 2.0, finished=False)
    assert compare_outcomes(original, outcome(1.0, 2.0, 3.0)).first is None
    assert str(compare_outcomes(original, outcome(1.0)).first) == "epochs: 2 -> 1"


def test_columns_of_one_run_only_are_named() -> None:
    other = Outcome(["epoch", "loss", "extra"], {1: {"epoch": 1.0, "loss": 1.0, "extra": 2.0}}, {}, True)
    found = compare_outcomes(outcome(1.0), other)
    assert (found.first, found.not_compared) == (None, ["extra"])


def test_outcome_of_a_run_that_has_none_yet_is_empty(tmp_path: Path) -> None:
    found = read_outcome(RunDirectory(tmp_path))
    assert (found.epochs, found.metrics, found.finished) == ({}, {}, False)


def test_outcome_leaves_a_torn_last_line_out(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("epoch,loss\n1,0.5\n2,nan\n3,\n4,0.")
    found = read_outcome(RunDirectory(tmp_path))
    assert list(found.epochs) == [1, 2, 3]
    assert found.epochs[1] == {"epoch": 1.0, "loss": 0.5}
    assert math.isnan(found.epochs[2]["loss"] or 0) and found.epochs[3]["loss"] is None


@pytest.mark.parametrize("text", ["epoch,loss\n1\n", "epoch,loss\n1,x\n", "epoch,loss\nx,1\n", "epoch,loss\n\n"])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(InputError, match="results.csv"):
        read_outcome(RunDirectory(tmp_path))
