"""What a sweep refuses to take for its own: runs and studies of another search, a total below what was begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import test_sweep
from sweep_engine import SweepEngine
from test_sweep import LR, Sweep, require_complete

from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.directory import RunDirectory
from hsr_train.sweep.ends import fault_of_all
from hsr_train.sweep.study_types import Spec

sweep = test_sweep.sweep  # the fixture


@pytest.mark.slow
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


def test_input_that_breaks_in_mid_sweep_burns_no_trial(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    images, prepare, train = sweep.folder / "images", SweepEngine.prepare, SweepEngine.train
    images.mkdir()

    def prepare_with(engine: SweepEngine, *arguments: Any) -> Any:
        if not images.exists():
            raise InputError(Problem("data.path (train)", str(images), "no such folder", "put it back"))
        return prepare(engine, *arguments)

    def train_without(engine: SweepEngine, plan: Any, context: Any) -> Any:
        if plan.experiment.train.seed == 2 and not context.resuming:
            images.rmdir()
            raise FileNotFoundError(f"{images}/1.jpg")
        return train(engine, plan, context)

    monkeypatch.setattr(SweepEngine, "prepare", prepare_with)
    monkeypatch.setattr(SweepEngine, "train", train_without)
    for ended in (f"Trial 1 ended: FileNotFoundError: {images}/1.jpg", "Trial 1 goes on"):
        status, errors = sweep.run("train.seed=1,2,3")
        assert status == 2 and ended in errors and "Traceback" not in errors
        assert sweep.states() == ["complete", "waiting", "waiting"]
        *_, said, remedy, last = [line.rpartition(" | ")[2] for line in errors.splitlines()]
        assert said == f"data.path (train): {images}: no such folder" and remedy == "    -> put it back"
        assert last == "Trial 1 is given back. To go on: put this right, then the same command again"
    images.mkdir()
    status, errors = sweep.run("train.seed=1,2,3")
    assert status == 0, errors
    require_complete(sweep, 3)


def test_a_trial_whose_folder_cannot_be_made_is_given_back(sweep: Sweep) -> None:
    place = sweep.home / "trials" / "1"
    place.parent.mkdir(parents=True)
    place.touch()
    status, errors = sweep.run("train.seed=1,2")
    assert status == 2 and "Traceback" not in errors and sweep.states() == ["complete", "waiting"]
    *_, said, remedy, last = [line.rpartition(" | ")[2] for line in errors.splitlines()]
    assert said == f"sweep.dir: {place}: is no folder that can be written: Not a directory"
    assert remedy == "    -> make it writable, or sweep.dir=ANOTHER for a new sweep"
    assert last == "Trial 1 is given back. To go on: put this right, then the same command again"
    place.unlink()
    status, errors = sweep.run("train.seed=1,2")
    assert status == 0, errors
    require_complete(sweep, 2)


GONE = InputError(Problem("data.path (val)", "a/b", "no such folder"))
CHANGED = InputError(Problem("data.path", "a", "the data are no longer what this run began with"))
FAULTS = [
    ("what no trial can be prepared with", RunError("no image"), GONE, "train.batch=4,8", False, GONE),
    ("it can be prepared", RunError("no image"), None, "train.batch=4,8", False, None),
    ("a value of its own", InputError(Problem("train.batch", "4", "too small")), None, "train.batch=4,8", False, None),
    ("what its values need", InputError(Problem("train.imgsz", "9", "")), None, "model.name=a,b", False, None),
    ("not known", RunError("no image"), RunError("killed"), "train.batch=4,8", False, None),
    ("a run that goes on", CHANGED, None, "train.batch=4,8", True, CHANGED),
    ("a run that goes on with data of its own", CHANGED, None, "data.path=a,b", True, None),
    ("a damaged run", InputError(Problem("resume", "trials/0", "holds no state")), None, "train.batch=4,8", True, None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "prepared", "line", "has_begun", "found"), [c[1:] for c in FAULTS], ids=[c[0] for c in FAULTS]
)
def test_whose_fault_it_is(
    error: Exception, prepared: Exception | None, line: str, has_begun: bool, found: Exception | None, tmp_path: Path
) -> None:
    def require_input() -> None:
        if prepared is not None:
            raise prepared

    spec = Spec("sqlite://", "s", "detect", ["recall"], ["maximize"], 2, [line], [], "tpe", 1)
    assert fault_of_all(error, spec, require_input, tmp_path / "trials" / "1", has_begun=has_begun) is found


@pytest.mark.parametrize("name", ["trials", "trials/1"])
def test_a_folder_that_cannot_be_made_is_no_trials_fault(name: str, tmp_path: Path) -> None:
    spec = Spec("sqlite://", "s", "detect", ["recall"], ["maximize"], 2, ["train.seed=1,2"], [], "tpe", 1)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()  # the superuser, who may run this, may write in every folder
    place = tmp_path / "trials" / "1"
    with pytest.raises(InputError) as met:
        RunDirectory.make(place)
    refused = fault_of_all(met.value, spec, lambda: None, place, has_begun=False)
    assert refused is not None
    (problem,) = refused.problems
    assert (problem.key, problem.value) == ("sweep.dir", str(tmp_path / name))
    assert problem.allowed.startswith("is no folder that can be written: ")
    assert problem.remedy == "make it writable, or sweep.dir=ANOTHER for a new sweep"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [(tmp_path / name).name]
