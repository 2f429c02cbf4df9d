"""What a sweep refuses to take for its own: runs and studies of another search, a total below what was begun."""

from __future__ import annotations

from typing import Any

import pytest
import test_sweep
from sweep_engine import SweepEngine
from test_sweep import LR, Sweep

from hsr_train.errors import InputError, Problem

sweep = test_sweep.sweep  # the fixture


def test_folder_with_runs_of_another_search_is_refused_whatever_the_storage(sweep: Sweep) -> None:
    assert sweep.run(LR, "sweep.n_trials=2")[0] == 0
    before = (sweep.home / "leaderboard.csv").read_text()
    for words, said in (
        (("train.batch=choice(8,16)", "sweep.n_trials=2"), "without train.batch=..."),
        ((LR, "train.seed=3", "sweep.n_trials=2"), "without train.seed=3"),
    ):
        status, errors = sweep.run(*words, "sweep.storage=journal:other.journal")
        assert status == 2, errors
        assert "trials/0: holds the run of another search" in errors and said in errors
        assert (sweep.home / "leaderboard.csv").read_text() == before


def test_run_with_other_values_than_the_trials_is_not_taken_for_its_result(sweep: Sweep) -> None:
    words = (LR, "sweep.n_trials=2")
    assert sweep.run(*words)[0] == 0
    (old,) = [t.params["optimizer.lr0"] for t in sweep.trials() if t.number == 1]
    for file in sweep.home.glob("study.db*"):
        file.unlink()
    status, errors = sweep.run(*words, "sweep.seed=9")
    assert status == 2, errors
    assert f"trials/1: holds the run of another search, with optimizer.lr0={old}" in errors
    assert [t.state.name for t in sweep.trials()] == ["COMPLETE", "WAITING"]


def test_total_below_what_was_begun_is_refused_and_nothing_is_rewritten(sweep: Sweep) -> None:
    assert sweep.run(LR, "sweep.n_trials=3")[0] == 0
    before = (sweep.home / "leaderboard.csv").read_text()
    status, errors = sweep.run(LR, "sweep.n_trials=2")
    assert status == 2
    assert "sweep.n_trials: 2: is less than the 3 trials that this sweep has begun" in errors
    assert (sweep.home / "leaderboard.csv").read_text() == before


def test_what_all_trials_would_be_refused_for_is_found_before_the_first(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:

        def refuse(*_: object) -> None:
            raise InputError(Problem("data.path", "nowhere", "no such folder"))

        patch.setattr(SweepEngine, "prepare", refuse)
        status, errors = sweep.run(LR, "sweep.n_trials=2")
    assert status == 2 and "data.path: nowhere: no such folder" in errors
    assert not sweep.home.exists()
    assert sweep.run(LR, "sweep.n_trials=2")[0] == 0


def test_what_one_point_alone_is_refused_for_ends_that_trial_alone(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = SweepEngine.prepare

    def refuse(engine: SweepEngine, experiment: Any, *more: Any) -> Any:
        if experiment.train.batch == 8:
            raise InputError(Problem("train.batch", "8", "is more than there are images"))
        return prepare(engine, experiment, *more)

    monkeypatch.setattr(SweepEngine, "prepare", refuse)
    status, errors = sweep.run("train.batch=8,16")
    assert status == 2, errors
    assert sweep.states() == ["fail", "complete"]
