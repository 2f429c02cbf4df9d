"""mode=compare: two runs side by side, from their directories alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_drift import FILES, MANIFEST, changed

import hsr_train
from hsr_train.cli import main
from hsr_train.errors import InputError
from hsr_train.run.changes import GPU_MEMORY, Change, write_changes
from hsr_train.run.compare import compare_runs
from hsr_train.run.data_files import write_data_files
from hsr_train.run.directory import RunDirectory

RUNG = Change(2, "training step", "batch", "train.batch", 8, 4, GPU_MEMORY)


def write_run(
    folder: Path,
    *,
    config: str = "task: detect\ntrain:\n  epochs: 2\n  batch: 8\n  freeze: null\n",
    manifest: dict[str, Any] = MANIFEST,
    results: str = "epoch,loss\n1,0.5\n2,0.25\n",
    metrics: dict[str, float] | None = None,
    changes: list[Change] | None = None,
) -> RunDirectory:
    """Write what mode=compare reads; a run with metrics is finished."""
    folder.mkdir(parents=True)
    run = RunDirectory(folder)
    run.config_yaml.write_text(config)
    run.manifest.write_text(json.dumps(manifest))
    run.results_csv.write_text(results)
    run.status.write_text(json.dumps({"state": "completed" if metrics else "interrupted", "mode": "train"}))
    write_data_files(run.data_files, FILES)
    if metrics:
        run.training_result.write_text(json.dumps({"metrics": metrics}))
    if changes:
        write_changes(run.changes, changes)
    return run


def sections(text: str) -> dict[str, list[str]]:
    """Return the lines below each headline, without their indent."""
    found: dict[str, list[str]] = {}
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following and set(following) == {"-"}:
            found[line] = []
        elif found and line.strip() and set(line) != {"-"}:
            found[list(found)[-1]].append(line.strip())
    return found


def test_run_and_itself_have_no_difference(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", metrics={"mAP50": 0.5})
    found = sections(compare_runs(run, run))
    assert found["Configuration"] == found["Environment"] == ["no difference"]
    assert found["Metrics"][:2] == ["epochs compared: 2 (A has 2, B has 2)", "no difference"]


def test_keys_that_differ_are_shown_as_typed(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a")
    config = "task: detect\ntrain:\n  epochs: 3\n  batch: 8\n  freeze: [0, 1]\nmodel:\n  name: yolov8n\n"
    other = write_run(tmp_path / "b", config=config)
    rows = [line.split(maxsplit=2) for line in sections(compare_runs(one, other))["Configuration"]]
    assert rows == [
        ["key", "A", "B"],
        ["train.epochs", "2", "3"],
        ["train.freeze", "null", "[0, 1]"],
        ["model.name", "-", "yolov8n"],
    ]


def test_configurations_are_compared_as_the_runs_began(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a")
    config = "task: detect\ntrain:\n  epochs: 2\n  batch: 4\n  freeze: null\n"
    other = write_run(tmp_path / "b", config=config, changes=[RUNG])
    found = sections(compare_runs(one, other))
    assert found["Configuration"] == ["no difference"]
    assert found["Metrics"][-2:] == ["A changed nothing on its way", f"B changed {RUNG}"]


def test_environment_and_data_files_that_differ_are_named(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a")
    now = changed(packages={"torch": "3", "numpy": "2.2.0"}, fingerprints__data__fingerprint="f2")
    other = write_run(tmp_path / "b", manifest=now)
    write_data_files(other.data_files, [("train", "images/a.jpg", "new", "l1"), *FILES[1:]])
    assert sections(compare_runs(one, other))["Environment"] == [
        "data: images/a.jpg: the image changed",
        "packages: torch: 2.15.0 -> 3",
    ]


def test_runs_of_two_folds_do_not_look_like_damaged_data(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", manifest=changed(fingerprints__data__fold=0))
    fold = {"fingerprints__data__fingerprint": "f2", "fingerprints__data__fold": 1}
    now = changed(packages={"torch": "3", "numpy": "2.2.0"}, **fold)
    other = write_run(tmp_path / "b", manifest=now)
    swapped = [({"train": "val", "val": "train"}[row[0]], *row[1:]) for row in FILES]
    write_data_files(other.data_files, swapped)
    said = sections(compare_runs(one, other))["Environment"]
    assert said[0].startswith("The runs are of different folds: A is fold 0, B is fold 1")
    assert said[1:] == ["Their images are the same", "packages: torch: 2.15.0 -> 3"]
    write_data_files(other.data_files, [("val", "images/a.jpg", "new", "l1"), *swapped[1:]])
    assert "data: images/a.jpg: the image changed" in sections(compare_runs(one, other))["Environment"]


def test_data_that_lie_elsewhere_are_told(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a")
    other = write_run(tmp_path / "b", manifest=changed(fingerprints__data__path="/new/data.yaml"))
    (line,) = sections(compare_runs(one, other))["Environment"]
    assert line.startswith("The data moved") and "/new/data.yaml" in line


def test_metrics_that_differ_have_their_epoch_and_column(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", metrics={"mAP50": 0.5, "recall": 0.25})
    other = write_run(tmp_path / "b", results="epoch,loss\n1,0.5\n2,0.2\n", metrics={"mAP50": 0.75, "recall": 0.25})
    found = sections(compare_runs(one, other))["Metrics"]
    assert found[1] == "first difference: epoch 2, loss: 0.25 -> 0.2"
    assert found[2] == "largest difference: final mAP50: 0.5 -> 0.75 (0.333 of the larger)"
    assert [line.split() for line in found[3:6]] == [
        ["final", "A", "B"],
        ["mAP50", "0.5", "0.75"],
        ["recall", "0.25", "0.25"],
    ]


def test_unfinished_run_is_compared_as_far_as_it_came(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", results="epoch,loss\n1,0.5\n")
    other = write_run(tmp_path / "b", metrics={"mAP50": 0.5})
    found = sections(compare_runs(one, other))["Metrics"]
    assert found[:2] == ["epochs compared: 1 (A has 1, unfinished, B has 2)", "no difference"]
    assert found[3].split() == ["mAP50", "-", "0.5"]
    assert sections(compare_runs(other, one))["Metrics"][1] == "no difference"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "task: [", "cannot be read"),
        ("config.yaml", "a", "holds no sections"),
        ("manifest.json", "{}", "has no python"),
        ("manifest.json", None, "cannot be read"),
        ("results.csv", "epoch,loss\n1\n", "is damaged"),
        ("training_result.json", "{", "cannot be read"),
        ("state/changes.json", '[{"epoch": 1}]', "is damaged"),
        ("state/changes.json", json.dumps([{**RUNG.record(), "key": "a.b"}]), "is no key of this run"),
    ],
)
def test_damaged_file_is_named(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    one, other = write_run(tmp_path / "a"), write_run(tmp_path / "b", metrics={"mAP50": 0.5}, changes=[RUNG])
    if content is None:
        (other.path / name).unlink()
    else:
        (other.path / name).write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        compare_runs(one, other)
    assert str(other.path / name) in str(caught.value)


def test_command_prints_to_standard_output_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_run(tmp_path / "out" / "first run, (really)")
    other = write_run(tmp_path / "out" / "second")
    assert main(["mode=compare", f"runs=['{one.path}',{other.path}]", f"output_dir={tmp_path / 'none'}"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"A: {one.path}\nB: {other.path}\n")
    assert list(sections(printed)) == ["Configuration", "Environment", "Metrics"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_runs_may_be_named_by_a_file_and_with_a_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "my run")
    assert main(["mode=compare", f"runs=[{run.manifest}, {run.path}]"]) == 0
    assert capsys.readouterr().out.startswith(f"A: {run.path}\nB: {run.path}\n")


def test_comparison_loads_no_engine(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    program = (
        "import sys\nfrom hsr_train.cli import main\n"
        f"assert main(['mode=compare', 'runs=[{run.path},{run.path}]']) == 0\n"
        "print(*sorted({'torch', 'ultralytics', 'cv2'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], env=os.environ, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == ""
    assert "no difference" in done.stdout


@pytest.mark.parametrize(
    ("typed", "key", "words"),
    [
        (["mode=compare"], "runs", "needs two runs, here are 0"),
        (["mode=compare", "runs=[A]"], "runs", "needs two runs, here are 1"),
        (["mode=compare", "runs=[A,A,A]"], "runs", "here are 3"),
        (["runs=[A,A]"], "runs", "has no effect without mode=compare"),
        (["mode=compare", "runs=[A,nowhere]"], "runs", "no such file"),
    ],
)
def test_wrong_number_of_runs_is_refused(tmp_path: Path, typed: list[str], key: str, words: str) -> None:
    run = write_run(tmp_path / "A")
    words_typed = [word.replace("A", str(run.path)) for word in typed]
    with pytest.raises(InputError, match=words) as caught:
        hsr_train.execute(hsr_train.compose([*words_typed, f"output_dir={tmp_path}"]))
    assert [problem.key for problem in caught.value.problems] == [key]
    assert caught.value.problems[0].remedy
