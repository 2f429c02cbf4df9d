"""What a sweep keeps on disk: whose training states are removed, what is said of it, and whether the rest will fit."""

from __future__ import annotations

import io
import json
import shutil
from collections import namedtuple
from collections.abc import Iterator
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from composing import compose_equal_words_once
from sweep_engine import SweepEngine

from hsr_train import compose
from hsr_train.cli import main
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.registry import ENGINES
from hsr_train.errors import InputError, RunError
from hsr_train.run import state_removal
from hsr_train.run.directory import RunDirectory
from hsr_train.run.find import find_run, obstacle
from hsr_train.run.state_removal import remove_states, removed_by
from hsr_train.sweep import disk, reporting
from hsr_train.sweep.disk import Disk, Size, in_bytes, remedy, runs_of, size_of, spare, warning
from hsr_train.sweep.over import ended
from hsr_train.sweep.study import Study
from hsr_train.sweep.study_types import BEST, SEEDS, WORKER, Ended, Spec, Standing
from hsr_train.sweep.summary import Summary, TrialSummary
from hsr_train.sweep.worker import this_process

WORDS = ["train.device=cpu", "train.epochs=2", "train.close_mosaic=1", "tensorboard.enabled=false"]
SPEC = Spec("", "s", "detect", ["mAP50-95"], ["maximize"], 9, ["x=interval(0,1)"], [], "random", 1)
Usage = namedtuple("Usage", "total used free")


class StatefulEngine(SweepEngine):
    """The engine that trains nothing, with the files of states that a training leaves."""

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Count epochs; each of the last two leaves a state of 1000 bytes."""
        result = super().train(plan, context)
        for epoch in (1, 2):
            (context.run.state / f"epoch{epoch}.pt").write_bytes(bytes(1000))
        return result


def made_run(path: Path, state: str = "completed", epochs: tuple[int, ...] = (9, 10)) -> RunDirectory:
    """Make as much of a run as says that it is one, with states of 1000 bytes."""
    run = RunDirectory(path)
    for folder in (run.state, run.weights):
        folder.mkdir(parents=True)
    (path / "config.yaml").write_text("task: detect\n")
    (path / "status.json").write_text(json.dumps({"state": state, "mode": "train", "started": "2026-01-01T00:00:00"}))
    (run.weights / "last.pt").write_bytes(bytes(300))
    run.changes.write_text("[]")
    for epoch in epochs:
        (run.state / f"epoch{epoch}.pt").write_bytes(bytes(1000))
    return run


def states(home: Path) -> list[str]:
    """Return the trials that have states, from a sweep's folder."""
    return sorted({file.parent.parent.name for file in home.rglob("*.pt") if file.parent.name == "state"})


# ---- a run's states


def test_states_go_and_what_a_reproduction_needs_stays(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    assert remove_states(run, "sweep.keep_states=none") == 2000
    assert {file.name for file in run.state.iterdir()} == {"changes.json", "removed.json"}
    assert (run.weights / "last.pt").is_file()
    assert json.loads(run.removed_states.read_text())["states"] == ["epoch9.pt", "epoch10.pt"]
    assert remove_states(run, "sweep.keep_states=none") == 0, "again, it is nothing"


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_states_of_a_run_that_is_not_over_stay(state: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", state)
    assert remove_states(run, "x") == 0 and states(tmp_path) == ["run"] and removed_by(run) is None


def test_states_of_a_run_that_somebody_holds_stay(tmp_path: Path) -> None:
    run = made_run(tmp_path / "run")
    with run.lock(), pytest.raises(InputError, match="in use by process"):
        remove_states(run, "x")
    assert len(list(run.state.glob("*.pt"))) == 2


def test_the_newest_state_stays_where_the_disk_has_no_room_for_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made_run(tmp_path / "run")

    def refuse(*_: object) -> None:
        raise RunError("No space left on device")

    monkeypatch.setattr(state_removal, "write_json", refuse)
    with pytest.raises(RunError):
        remove_states(run, "x")
    assert [file.name for file in run.state.glob("*.pt")] == ["epoch10.pt"] and obstacle(run.path, True) is None


@pytest.mark.parametrize("state", ["completed", "pruned"])
def test_who_goes_on_is_told_who_removed_the_states_and_what_to_type(state: str, tmp_path: Path) -> None:
    run = made_run(tmp_path / "run", state)
    remove_states(run, "sweep.keep_states=best")
    for extended in (True, False):
        told = obstacle(run.path, extended)
        assert told is not None and "\n" not in "".join(told)
        assert (
            told[0]
            == "its training states were removed by sweep.keep_states=best when it was over, and it cannot go on"
        )
        assert f"reproduce={run.path} train.epochs=N" in told[1]
        assert f"model.weights={run.path / 'weights' / 'last.pt'}" in told[1]
    (run.state / "epoch10.pt").touch()
    assert removed_by(run) is None and obstacle(run.path, True) is None, "they were put back"


def test_the_last_run_is_one_that_can_go_on(tmp_path: Path) -> None:
    remove_states(made_run(tmp_path / "b"), "x")
    made_run(tmp_path / "a")
    assert find_run("last", tmp_path, extended=True) == tmp_path / "a"


# ---- which trials


def trial(number: int, *values: float, state: str = "complete", **more: Any) -> TrialSummary:
    return TrialSummary(number, state, list(values) or None, **more)


def summary(trials: list[TrialSummary], *directions: str, **more: Any) -> Summary:
    ways = list(directions) or ["maximize"]
    return Summary("s", "detect", [f"goal {n}" for n in range(len(ways))], ways, 9, [], trials, **more)


def test_the_best_is_one_and_of_equal_ones_the_earlier() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.9), trial(3, state="pruned"), trial(4, state="fail")]
    found = ended(summary([*trials, trial(5, state="running"), trial(6, state="stopped")]))
    assert found == Ended(complete=[0, 1, 2], pruned=[3], best=[1])
    assert spare(found, "all") == [] and spare(found, "best") == [0, 2, 3] and spare(found, "none") == [0, 1, 2, 3]


def test_who_was_not_among_the_best_never_is_whatever_trials_come(tmp_path: Path) -> None:
    """So two workers, of which one has read the study earlier, never remove what the other keeps as the best."""
    trials = [trial(n, v) for n, v in enumerate((0.3, 0.7, 0.7, 0.2, 0.9, 0.9, 0.1))]
    for order in (trials, trials[::-1], trials[3:] + trials[:3]):
        gone: set[int] = set()
        for count in range(1, len(order) + 1):
            found = ended(summary(order[:count]))
            assert not gone & set(found.best)
            gone |= set(spare(found, "best"))


def test_of_several_goals_the_whole_front_is_kept() -> None:
    trials = [trial(0, 0.9, 5.0), trial(1, 0.8, 6.0), trial(2, 0.7, 1.0)]
    assert sorted(ended(summary(trials, "maximize", "minimize")).best) == [0, 2]


def test_where_none_holds_the_limits_the_nearest_is_kept_until_one_does() -> None:
    limits = {"latency_ms": 20.0}
    slow = [trial(n, v, measured={"latency_ms": ms}, broken="x") for n, v, ms in ((0, 0.9, 40.0), (1, 0.1, 21.0))]
    assert ended(summary(slow, constraints=limits)).best == [1]
    assert ended(summary([*slow, trial(2, 0.2, measured={"latency_ms": 9.0})], constraints=limits)).best == [2]


def test_a_stage_keeps_the_best_of_its_own_and_a_search_its_own_best() -> None:
    repeats = [trial(0, 0.4, of=1), trial(1, 0.6, of=0), trial(2, state="fail", of=0)]
    found = summary([trial(0, 0.5), trial(1, 0.9)], repeats=repeats, retrained=[trial(0, 0.8, of=1)])
    assert ended(found).best == [1], "not the one with the better mean, whose states are gone"
    assert ended(found, SEEDS) == Ended([0, 1], [], [1]) and ended(found, BEST) == Ended([0], [], [0])


def test_runs_of_a_trial_are_its_own_or_those_of_its_folds(tmp_path: Path) -> None:
    one = made_run(tmp_path / "0")
    folds = [made_run(tmp_path / "1" / "classify" / f"x_fold_{fold}") for fold in (0, 1)]
    (tmp_path / "1" / "classify" / "x_folds").mkdir()
    assert list(runs_of(tmp_path / "0")) == [one] and list(runs_of(tmp_path / "1")) == folds
    assert list(runs_of(tmp_path / "elsewhere")) == []
    assert size_of(tmp_path / "1").states == 4000 and size_of(tmp_path / "0").whole > 2300


# ---- workers of a study


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Any]:
    """Open one study in a file, once for each worker of it."""
    opened: list[Study] = []

    def join(keep_states: str = "all") -> tuple[Study, Disk]:
        spec = replace(SPEC, url=f"journal:{tmp_path / 'study.log'}", n_trials=6, keep_states=keep_states)
        study = Study()
        opened.append(study)
        study.open(spec, this_process() | {"host": f"machine {len(opened)}"})
        return study, Disk(study, spec, tmp_path)

    yield join
    for study in opened:
        study.close()


def finish(study: Study, home: Path, state: str, value: float | None = None, has_told: bool = True) -> int:
    claim = study.claim()
    assert claim is not None and claim.number is not None
    made_run(home / "trials" / str(claim.number), {"complete": "completed", "fail": "failed"}.get(state, state))
    if has_told:
        assert study.tell(claim.number, state, None if value is None else [value], {})
    return claim.number


def test_only_trials_that_are_over_and_told_lose_their_states(workers: Any, tmp_path: Path) -> None:
    study, mine = workers("best")
    for state, value in (("complete", 0.5), ("pruned", None), ("complete", 0.9), ("fail", None)):
        mine.after_trial(finish(study, tmp_path, state, value))
    finish(study, tmp_path, "complete", has_told=False)
    shutil.rmtree(tmp_path / "trials" / "1")  # it is on another machine
    mine.tidy()
    assert states(tmp_path) == ["2", "3", "4"]
    other, theirs = workers("none")
    finish(other, tmp_path, "complete", 0.95)
    theirs.tidy()
    mine.tidy()
    assert states(tmp_path) == ["3", "4"], "whoever keeps less decides"


def test_two_workers_may_remove_the_same_while_another_trial_becomes_the_best(
    workers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (study, mine), (other, theirs) = workers("best"), workers("best")
    first, second = finish(study, tmp_path, "complete", 0.5), finish(other, tmp_path, "complete", 0.6)
    seen = study.ended(tmp_path)
    third = finish(other, tmp_path, "complete", 0.9)
    theirs.tidy()
    mine._tidy(seen)  # it knows of two, and second was the best
    assert (first, second, third) == (0, 1, 2) and states(tmp_path) == ["2"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_trial_with_which_somebody_goes_on_by_hand_is_left_in_one_line(
    workers: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk, "AGAIN_S", 0.0)
    study, mine = workers("none")
    number = finish(study, tmp_path, "complete", 0.5)
    with RunDirectory(tmp_path / "trials" / str(number)).lock():
        mine.tidy()
        mine.tidy()
    assert states(tmp_path) == ["0"] and caplog.text.count("stay: ") == 1
    mine.tidy()
    assert states(tmp_path) == []


# ---- whether it will fit

MB = 10**6
SIZE = Size(343 * MB, 257 * MB)


def standing(waiting: int, running: int = 0) -> Standing:
    return Standing(30, {"waiting": waiting, "running": running}, {}, [], 0, [])


def said(free: int, keep: str = "all", waiting: int = 29, done: int = 1, **more: Any) -> str | None:
    over = Ended(list(range(done)), [], [0])
    return warning(replace(SPEC, keep_states=keep, **more), SIZE, standing(waiting), over, free)


def test_what_will_not_fit_is_said_with_figures_and_what_to_type() -> None:
    assert said(5000 * MB) == (
        "29 trials to come may need 9.9 GB of disk space (343 MB each, 257 MB of it training states; "
        "sweep.keep_states=all), and 5.0 GB are free: the same command with sweep.keep_states=best or none, "
        "or another output_dir"
    )


@pytest.mark.parametrize(
    ("keep", "free", "goals", "typed"),
    [
        ("all", 29 * 343 * MB, 1, None),
        ("all", 29 * 343 * MB - 1, 1, "sweep.keep_states=best or none"),
        ("best", (29 * 86 + 257) * MB, 1, None),
        ("best", (29 * 86 + 257) * MB - 1, 1, "sweep.keep_states=none"),
        ("none", (29 * 86 + 257) * MB, 1, None),
        ("none", (29 * 86 + 257) * MB - 1, 1, "make space"),
        ("all", 2000 * MB, 1, "make space"),
        ("best", 5000 * MB, 2, "sweep.keep_states=none"),
    ],
)
def test_each_value_counts_what_it_keeps(keep: str, free: int, goals: int, typed: str | None) -> None:
    text = said(free, keep, objectives=["mAP50-95", "latency_ms"][:goals])
    assert (
        text is None
        if typed is None
        else text is not None and f"are free: {typed}" in text.replace("the same command with ", "")
    )


def test_what_would_be_removed_is_room_too() -> None:
    assert "make space" in str(said(200 * MB, waiting=5, done=1))
    assert "sweep.keep_states=best or none" in str(said(200 * MB, waiting=5, done=25))


def test_running_trials_have_their_states_at_once() -> None:
    tight = replace(SPEC, keep_states="none")
    one, four = (warning(tight, SIZE, standing(8, n), Ended([0], [], [0]), 1200 * MB) for n in (0, 3))
    assert one is None and four is not None and "11 trials to come may need 2.0 GB" in four


def test_bytes_are_said_as_disks_are_sold() -> None:
    assert [in_bytes(n) for n in (1_240_000, 343_000_000, 7_460_000_000)] == ["1.2 MB", "343 MB", "7.5 GB"]


def test_a_full_disk_names_the_key_unless_it_is_typed() -> None:
    assert "sweep.keep_states=none" in remedy(SPEC) and remedy(replace(SPEC, keep_states="best")) == ""


@pytest.mark.parametrize("worker", ["0", "1"])
def test_of_a_commands_workers_one_warns_once_after_the_first_result(
    worker: str, workers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(WORKER, worker)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 5000))
    study, mine = workers()
    mine.after_trial(finish(study, tmp_path, "pruned"))
    mine.after_trial(finish(study, tmp_path, "fail"))
    assert "to come" not in caplog.text
    for _ in range(2):
        mine.after_trial(finish(study, tmp_path, "complete", 0.5))
    assert caplog.text.count("to come may need") == (worker == "0")
    assert states(tmp_path) == ["0", "1", "2", "3"]


# ---- the command


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A search on a disk that is too small, and the same command with `sweep.keep_states=best`."""
    home, logs = tmp_path_factory.mktemp("disk") / "sweep", []
    words = ["-m", *WORDS, "optimizer.lr0=0.0001,0.001", f"sweep.dir={home}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home.parent)
        patch.setitem(ENGINES, "detect", "test_sweep_disk:StatefulEngine")
        patch.setattr(reporting, "write_report", lambda *_: None)
        patch.setattr(shutil, "disk_usage", lambda _: Usage(9, 9, 20 * MB))
        patch.setattr(disk, "size_of", lambda _: Size(21 * MB, 15 * MB))
        compose_equal_words_once(patch)
        for more in ([], ["sweep.keep_states=best"]):
            with redirect_stderr(io.StringIO()) as log:
                assert main([*words, *more]) == 0
            logs.append(log.getvalue())
    return home, logs


def test_a_sweep_removes_what_it_is_asked_to_and_is_no_other_search(swept: tuple[Path, list[str]]) -> None:
    home, (first, second) = swept
    assert "1 trial to come may need 21 MB" in first and first.count("to come") == 1
    assert "the same command with sweep.keep_states=none, or another" in first and "removed" not in first
    assert "sweep.keep_states=best: removed the training states of trials/0, 0.0 MB" in second
    assert states(home) == ["1"] and "Trial 0" not in second and "to come" not in second
    assert (home / "best.yaml").is_file()
    assert (home / "leaderboard.csv").read_text().splitlines()[1].startswith("1,1,complete,")


def test_a_trial_without_states_is_reproduced_and_not_gone_on_with(swept: tuple[Path, list[str]]) -> None:
    place = swept[0] / "trials" / "0"
    with pytest.raises(InputError) as refused:
        compose([f"resume={place}", "train.epochs=200"])
    (problem,) = refused.value.problems
    assert problem.key == "resume" and "removed by sweep.keep_states=best" in str(problem)
    again = compose([f"reproduce={place}", "train.epochs=200"])
    assert again.train.epochs == 200 and again.optimizer.lr0 == 0.0001  # type: ignore[attr-defined]
    going_on = compose([f"resume={swept[0] / 'trials' / '1'}", "train.epochs=200"])
    assert going_on.origin.resume_from == str(swept[0] / "trials" / "1")
