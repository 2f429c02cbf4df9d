"""What `resume=` refuses, and what it makes of a record that was edited, torn or lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from detection_runs import last_state, quick_pictures, read_json, resume, rows

import hsr_train
from hsr_train.engines.states import state_files
from hsr_train.errors import InputError


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    """A finished run of three epochs."""
    copy = tmp_path / "detect" / "run"
    shutil.copytree(whole_run, copy)
    return copy


def interrupt(run: Path, epochs: int) -> None:
    """Make it one that was killed after some epochs and would have had more."""
    status = read_json(run / "status.json")
    (run / "status.json").write_text(json.dumps({**status, "state": "interrupted"}))
    kept = (run / "results.csv").read_text().splitlines(keepends=True)[: epochs + 1]
    (run / "results.csv").write_text("".join(kept))
    for number, file in state_files(run / "state"):
        if number > epochs:
            file.unlink()


def problems(*words: str) -> dict[str, str]:
    with pytest.raises(InputError) as caught:
        hsr_train.execute(hsr_train.compose(words))
    return {problem.key: f"{problem.allowed} -> {problem.remedy}" for problem in caught.value.problems}


def test_finished_run_does_not_hide_a_slip_of_the_pen(run: Path) -> None:
    found = problems(f"resume={run}", "train.epocs=20")
    assert "that run is finished" in found["resume"]
    assert "train.epochs=20" in found["train.epocs"]


def test_as_many_epochs_as_it_has_are_no_extension(run: Path) -> None:
    assert "that run is finished" in problems(f"resume={run}", "train.epochs=3")["resume"]


def test_edited_configuration_is_refused_by_key(run: Path) -> None:
    interrupt(run, 2)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("lr0: 0.001", "lr0: 0.05"))
    ((key, text),) = problems(f"resume={run}").items()
    assert key == f"{config}: optimizer.lr0"
    assert "was 0.001 when the run began" in text


def test_lost_states_are_refused_instead_of_beginning_again(run: Path) -> None:
    interrupt(run, 2)
    shutil.rmtree(run / "state")
    found = problems(f"resume={run}")["resume"]
    assert "holds no state, though results.csv has 2 epochs" in found
    assert f"model.weights={run / 'weights' / 'last.pt'}" in found
    assert len(rows(run)) == 2


def test_torn_row_is_trained_again_from_the_state_before(
    run: Path, whole_run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupt(run, 3)
    table = run / "results.csv"
    table.write_bytes(table.read_bytes()[:-20])
    with quick_pictures():
        resume(run)
    assert "The state of epoch 3 is not used: results.csv has no row of that epoch" in caplog.text
    assert table.read_text() == (whole_run / "results.csv").read_text()
    assert last_state(run)["epochs_done"] == 3
