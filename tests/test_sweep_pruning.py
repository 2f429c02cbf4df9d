"""Trials that are given up: through the command, with the engine of `sweep_engine.py`, whose epochs have values."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import sqlite3
import threading
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import classify_runs
import optuna
import pytest
import test_sweep
from optuna.trial import FrozenTrial, TrialState
from test_sweep import BATCH, LR, Sweep, ended, until

import hsr_train
from hsr_train.cli import main
from hsr_train.config.schema import DetectExperiment, TrainConfig
from hsr_train.config.schema.sweep import SweepConfig
from hsr_train.decisions import Decisions
from hsr_train.errors import PrunedError, RunError
from hsr_train.sweep.pruners import pruner_for
from hsr_train.sweep.pruning import MARKS, chosen_pruning, reports
from hsr_train.sweep.study import Study
from hsr_train.sweep.study_types import Pruning, Spec
from hsr_train.sweep.summary import summarize
from hsr_train.sweep.watch import Door, Watch, listen
from hsr_train.sweep.worker import this_process

sweep = test_sweep.sweep  # the fixture
GOOD, BAD = "{optimizer.lr0: 0.001}", "{optimizer.lr0: 0.0001}"
EARLY = ("train.epochs=5", "sweep.pruner_startup=2", "sweep.pruner_warmup=1")


def points(*values: str) -> tuple[str, ...]:
    """Return what is typed for trials of these points, one after the other."""
    return (LR, *EARLY, f"sweep.n_trials={len(values)}", f"sweep.enqueue=[{', '.join(values)}]")


def record(sweep: Sweep, number: int) -> dict[str, Any]:
    run = sweep.home / "trials" / str(number)
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found | {"summary": (run / "summary.txt").read_text()}


def told(trials: list[FrozenTrial]) -> list[Any]:
    return [(t.params, t.state, t.value, t.intermediate_values) for t in trials]


@pytest.mark.parametrize(
    "supervised",
    [
        pytest.param(False, id="in this process"),
        pytest.param(True, id="in a process of its own", marks=pytest.mark.slow),
    ],
)
def test_a_hopeless_trial_ends_within_its_epoch_and_keeps_its_record(sweep: Sweep, supervised: bool) -> None:
    words = points(GOOD, GOOD, BAD, GOOD)
    status, errors = ended(sweep.start(*words)) if supervised else sweep.run(*words)
    assert status == 0, errors
    assert sweep.states() == ["complete", "complete", "pruned", "complete"]
    pruned = sweep.trials()[2]
    assert list(pruned.intermediate_values) == [1, 2] and pruned.value == pruned.intermediate_values[2]
    assert pruned.value == pytest.approx(0.78 - 0.3 / 2)
    assert list(sweep.trials()[0].intermediate_values) == [1, 2, 3, 4]
    assert [line.split()[1] for line in sweep.epochs() if line.startswith("2 ")] == ["1", "2"]
    kept = record(sweep, 2)
    assert kept["state"] == "pruned" and re.search(r"Status +pruned\n", kept["summary"])
    assert pruned.user_attrs["epochs"] == 2 and pruned.user_attrs["seconds"] > 0
    assert "Trial 2: Pruned after epoch 2: mAP50-95 0.63" in errors
    assert "Trials: 3 complete, 1 pruned, 0 failed" in errors and "Best: trial 0" in errors
    assert "Decided: sweep.pruner = median" in errors


def test_a_pruned_trial_counts_as_tried_and_is_not_resumed(sweep: Sweep) -> None:
    words = points(GOOD, GOOD, BAD)
    assert sweep.run(*words)[0] == 0
    begun = sweep.epochs()
    status, errors = sweep.run(*words)
    assert status == 0 and sweep.epochs() == begun, errors
    for file in sweep.home.glob("study.db*"):  # it was killed before it was told
        file.unlink()
    status, errors = sweep.run(*words)
    assert status == 0 and sweep.epochs() == begun, errors
    assert sweep.states() == ["complete", "complete", "pruned"]
    assert "Trial 2: Pruned after epoch 2: mAP50-95 0.63" in errors


def test_nothing_is_pruned_in_a_grid_unless_a_pruner_is_typed(sweep: Sweep) -> None:
    words = ("optimizer.lr0=1e-3,1.1e-3,1e-4", *EARLY)
    status, errors = sweep.run(*words)
    assert status == 0 and sweep.states() == ["complete"] * 3
    assert "sweep.pruner = none (a grid is there to compare whole runs)" in errors
    assert list(sweep.trials()[2].intermediate_values) == [1, 2, 3, 4]  # for whoever looks at the study
    status, errors = sweep.run(*words, "sweep.pruner=median", "sweep.dir=other")
    assert status == 0 and "2 complete, 1 pruned" in errors


@pytest.mark.parametrize("name", ["median", "hyperband", "percentile", "patient"])
def test_every_pruner_by_name(name: str) -> None:
    study = optuna.create_study(direction="maximize", pruner=pruner_for(Pruning(name, 1, 2, 12)))
    for _ in range(8):
        good = study.ask()
        for epoch in range(1, 12):
            good.report(1 - 0.5 / epoch, epoch)
            good.should_prune()  # who is asked about it notes what it was worth
        study.tell(good, 0.95)
    ends = []
    for _ in range(6):  # a trial that gets worse and worse
        bad = study.ask()
        for epoch in range(1, 12):
            bad.report(0.3 / epoch, epoch)
            if bad.should_prune():
                ends.append(epoch)
                study.tell(bad, state=TrialState.PRUNED)
                break
        else:
            study.tell(bad, 0.0)
    assert len(ends) >= (1 if name == "hyperband" else 6)  # it has brackets that begin late
    assert min(ends) >= 2


@pytest.mark.parametrize("name", ["median", "percentile"])
@pytest.mark.parametrize(("warmup", "startup", "end"), [(0, 2, 1), (3, 2, 4), (1, 9, None)])
def test_nothing_is_pruned_before_warmup_and_startup(name: str, warmup: int, startup: int, end: int | None) -> None:
    study = optuna.create_study(direction="maximize", pruner=pruner_for(Pruning(name, warmup, startup, 8)))
    for _ in range(4):
        good = study.ask()
        for epoch in range(1, 8):
            good.report(0.9, epoch)
        study.tell(good, 0.9)
    bad, found = study.ask(), None
    for epoch in range(1, 8):
        bad.report(0.1, epoch)
        if bad.should_prune():
            found = epoch
            break
    assert found == end


# ---- trials of different lengths, compared at marks


def shown(epochs: int, last: int, **options: Any) -> list[tuple[dict[int, float], bool]]:
    """Return what the epochs of a run add to a study, their values being their numbers; the last one is never shown."""
    known: dict[int, float] = {}
    found = []
    for epoch in range(1, last + 1):
        news, is_due = reports(replace(MARKED, **options), epoch, epochs, float(epoch), known)
        known |= news
        found.append((news, is_due))
    return found


MARKED = Pruning("median", 0, 2, MARKS, is_by_share=True)


def test_a_mark_has_the_epoch_that_passed_it_and_one_run_over_that_before() -> None:
    assert shown(3, 2) == [({6: 1.0}, True), (dict.fromkeys(range(7, 13), 1.0) | {13: 2.0}, True)]
    assert [list(news) for news, _ in shown(20, 4)] == [[1], [2], [3], [4]]
    assert [news for news, _ in shown(60, 7)] == [{}, {}, {1: 3.0}, {}, {}, {2: 6.0}, {}]
    assert reports(None, 7, 9, 0.5, {}) == ({7: 0.5}, True)  # of one length: by epoch


def test_nothing_is_pruned_at_the_first_mark_or_in_typed_epochs_nor_between_marks() -> None:
    assert [is_due for _, is_due in shown(60, 7)] == [False] * 5 + [True, False]
    assert [is_due for _, is_due in shown(3, 2, quiet=1)] == [False, True]
    assert [is_due for _, is_due in shown(20, 4, quiet=0)] == [True] * 4


def test_an_epoch_shown_again_adds_only_what_is_missing() -> None:
    known = {6: 1.0} | dict.fromkeys(range(7, 13), 1.0) | {13: 2.0}
    for told in range(1, len(known)):  # killed between two of them
        half = dict(list(known.items())[:told])
        news, is_due = reports(MARKED, 2, 3, 2.0, half)
        assert half | news == known and is_due
    assert reports(MARKED, 2, 3, 2.0, known) == ({}, True)
    assert reports(MARKED, 7, 60, 7.0, {1: 3.0, 2: 6.0}) == ({}, False)
    assert reports(MARKED, 8, 9, 8.0, {10: 7.0}) == (dict.fromkeys(range(11, 17), 7.0) | {17: 8.0}, True)  # replanned


def test_a_median_needs_as_many_trials_at_a_mark_as_before_any_pruning() -> None:
    study = optuna.create_study(direction="maximize", pruner=pruner_for(MARKED))
    for epochs in (2, 4, 40):
        trial = study.ask()
        for news, _ in shown(epochs, epochs - 1):
            for mark, value in news.items():
                trial.report(value / epochs, mark)
        study.tell(trial, 1.0)
    for mark, end in ((5, True), (9, True), (10, True), (16, False)):  # at 16 one of them has been
        bad = study.ask()
        bad.report(0.0, mark)
        assert bad.should_prune() == end
        study.tell(bad, state=TrialState.PRUNED)


@pytest.mark.parametrize(
    ("trains", "differ"),
    [
        ([{}, {}], False),
        ([{}, {"epochs": 6}], True),
        ([{"max_steps": 600}], True),
        ([{"time_budget": "1h"}], True),
        ([{"finish_by": "18:00"}], True),
    ],
)
def test_which_searches_have_trials_of_different_lengths(trains: list[dict[str, Any]], differ: bool) -> None:
    experiments = [DetectExperiment(train=TrainConfig(epochs=5)) for _ in trains]
    for experiment, train in zip(experiments, trains, strict=True):
        for key, value in train.items():
            setattr(experiment.train, key, value)
    settings = SweepConfig(pruner_warmup=2)
    experiments[0].sweep = settings
    pruning, problems = chosen_pruning(experiments[0], experiments[1:], ["mAP50"], "tpe", Decisions())
    assert pruning is not None and not problems
    assert (pruning.is_by_share, pruning.steps, pruning.quiet) == ((True, MARKS, 2) if differ else (False, 5, None))
    assert pruning.warmup == (0 if differ else 2)


def test_a_study_of_trials_of_different_lengths(tmp_path: Path) -> None:
    spec = Spec(f"sqlite:///{tmp_path}/s.db", "s", "detect", ["mAP50"], ["maximize"], 4, [LR], [], "random", 1)
    door = Study()
    door.open(replace(spec, pruning=MARKED), this_process())
    ends = []
    for epochs, value in ((4, 0.8), (40, 0.9), (40, 0.1), (2, 0.2)):
        claim = door.claim()
        assert claim is not None and claim.number is not None
        epoch = next((e for e in range(1, epochs) if door.report(claim.number, e, epochs, value * e / epochs)), None)
        ends.append(epoch)
        if epoch is not None:
            assert door.report(claim.number, epoch, epochs, 1.0)  # it goes on after a kill, and hears the same
        door.tell(claim.number, "complete" if epoch is None else "pruned", None if epoch else [value], {})
    assert ends == [None, None, 10, 1]  # two others have a value from a quarter of the run on
    with door._told():
        trials = door._trials()
        summary = summarize(door._study(0), trials, 4, tmp_path)
    door.close()
    assert list(trials[0].intermediate_values) == [*range(5, 16)] and trials[2].intermediate_values[5] == 0.025
    assert summary.trials[2].values == [0.025] and not any(t.steps for t in summary.trials)  # these are no epochs


REFUSED = [
    (["sweep.pruner=medium"], "-> sweep.pruner=median"),
    (["sweep.pruner=median", "sweep.objective=[mAP50,training_time_minutes]"], "cannot be: several objectives, mAP50"),
    (["sweep.pruner=median", "sweep.objective=training_time_minutes"], "is known at a run's end only"),
    (["sweep.pruner=wilcoxon"], "is for data.fold=all"),
    (["sweep.pruner=median", "data.fold=all", "data.path=my/data.yaml"], "-> sweep.pruner=wilcoxon"),
    (["sweep.pruner_warmup=-1"], "sweep.pruner_warmup: -1: must be"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["-m", "train.device=cpu", "sweep.n_trials=2", LR, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        ("[mAP50,recall]", "several objectives, mAP50, recall"),
        ("training_time_minutes", "training_time_minutes is known at a run's end only"),
    ],
)
def test_pruning_is_off_and_says_so(sweep: Sweep, objective: str, reason: str) -> None:
    status, errors = sweep.run(*points(GOOD, GOOD, BAD), f"sweep.objective={objective}")
    assert status == 0, errors
    assert f"sweep.pruner = none ({reason}" in errors
    assert sweep.states() == ["complete"] * 3
    assert not sweep.trials()[0].intermediate_values


@pytest.mark.slow
def test_jobs_prune_too(sweep: Sweep) -> None:
    values = [GOOD] * 3 + [BAD] * 5
    status, errors = ended(sweep.start(*points(*values), "sweep.jobs=2", SWEEP_EPOCH_S="0.1"))
    assert status == 0, errors
    assert sweep.states().count("pruned") >= 3 and sweep.states()[:3] == ["complete"] * 3
    assert len({t.user_attrs["worker"]["pid"] for t in sweep.trials()}) == 2


# ---- killed


def test_a_trial_that_goes_on_tells_no_epoch_twice_and_ends_where_it_would_have(sweep: Sweep) -> None:
    words = points(GOOD, GOOD, BAD)
    process = sweep.start(*words, SWEEP_EPOCH_S="0.4")
    until(lambda: "2 2" in " ".join(line.rpartition(" ")[0] for line in sweep.epochs()))
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    assert list(sweep.trials()[2].intermediate_values) == [1]
    status, errors = sweep.run(*words)
    assert status == 0, errors
    assert sweep.states() == ["complete", "complete", "pruned"]
    assert list(sweep.trials()[2].intermediate_values) == [1, 2]


def test_a_trial_killed_before_its_epoch_was_told_or_its_end_recorded_is_given_up_when_it_goes_on(
    sweep: Sweep,
) -> None:
    words = points(GOOD, GOOD, BAD)
    assert sweep.run(*words)[0] == 0
    with closing(sqlite3.connect(sweep.home / "study.db")) as study, study:
        trial = "trial_id = (SELECT trial_id FROM trials WHERE number = 2)"
        study.execute(f"UPDATE trials SET state = 'RUNNING', datetime_complete = NULL WHERE {trial}")
        study.execute(f"DELETE FROM trial_user_attributes WHERE {trial} AND key = 'pruned_at'")
        study.execute(f"DELETE FROM trial_intermediate_values WHERE {trial} AND step = 2")
        study.execute(f"DELETE FROM trial_values WHERE {trial}")
    status = sweep.home / "trials" / "2" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"state": "interrupted"}))
    begun = sweep.epochs()
    code, errors = sweep.run(*words)
    assert code == 0 and sweep.epochs() == begun, errors
    pruned = sweep.trials()[2]
    assert pruned.state == TrialState.PRUNED and list(pruned.intermediate_values) == [1, 2]
    assert record(sweep, 2)["state"] == "pruned"


@pytest.mark.slow
def test_killed_again_and_again_it_prunes_as_if_it_had_not_been(sweep: Sweep) -> None:
    words = (LR, BATCH, "sweep.n_trials=8", "train.epochs=4", "sweep.pruner_startup=1", "sweep.pruner_warmup=0")
    assert sweep.run(*words, "sweep.dir=whole")[0] == 0
    whole = sweep.trials("whole", f"sqlite:///{sweep.folder / 'whole' / 'study.db'}")
    assert sum(t.state == TrialState.PRUNED for t in whole) >= 2
    assert sweep.killed_until_complete(*words, seed=11, SWEEP_EPOCH_S="0.15") >= 3
    assert told(sweep.trials()) == told(whole)


# ---- the way to the study


def test_a_report_comes_through_the_socket_and_its_error_comes_back() -> None:
    heard = []

    def report(number: int, epoch: int, epochs: int, value: float) -> bool:
        heard.append((number, epoch, epochs, value, threading.current_thread() is threading.main_thread()))
        if epoch == 3:
            raise RunError("the disk is full")
        return epoch == 2

    door = listen(report)
    assert [door(7, 1, 5, 0.5), door(7, 2, 5, 0.25)] == [False, True]
    assert heard == [(7, 1, 5, 0.5, False), (7, 2, 5, 0.25, False)]
    with pytest.raises(RunError, match="the disk is full"):
        door(7, 3, 5, 0.1)
    stranger = Watch(Door(door.address, b"another"), 7, "mAP50")
    stranger(2, 5, {"mAP50": 0.1})  # is not listened to
    assert len(heard) == 3
    with pytest.raises(PrunedError, match="Pruned after epoch 2: mAP50 0.1"):
        Watch(door, 7, "mAP50")(2, 5, {"mAP50": 0.1})


def test_a_training_whose_study_is_gone_goes_on_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(Door("\0hsr_train_nobody", b"key"), 1, "mAP50")
    for epoch in (1, 2, 3):
        watch(epoch, 5, {"mAP50": 0.1})
    (warning,) = [r.getMessage() for r in caplog.records]
    assert warning.startswith("The study is not told of epoch 1, and prunes nothing: ConnectionRefusedError")


# ---- cross-validations, compared fold by fold


def test_folds_that_are_all_worse_than_the_best_trials_end_a_trial() -> None:
    study = optuna.create_study(direction="maximize", pruner=pruner_for(Pruning("wilcoxon", 1, 5, 10)))
    for folds, end in (((0.8, 0.82, 0.78, 0.81), None), ((0.7, 0.73, 0.66, 0.7), 3), ((0.7, 0.84, 0.8, 0.82), None)):
        trial, found = study.ask(), None
        for fold, value in enumerate(folds, 1):
            trial.report(value, fold)
            if found is None and trial.should_prune():
                found = fold
        assert found == end
        study.tell(trial, sum(folds) / 4 if end is None else None, TrialState.PRUNED if end else None)


def test_a_cross_validation_shows_each_fold_but_the_last_and_may_end(tmp_path: Path, shared_cache: Path) -> None:
    raw = classify_runs.draw(tmp_path / "raw", dict.fromkeys(classify_runs.COLOURS, 8))
    said = ["task=classify", f"data.raw={raw}", f"data.cache_dir={shared_cache}"]
    assert main(["mode=split", *said, "data.folds=3", "data.ratio=[0.6,0.2,0.2]"]) == 0
    small: dict[str, Any] = {"data__path": None, "data__raw": raw, "data__fold": "all", "train__epochs": 1}
    words = classify_runs.overrides(raw, tmp_path / "out", shared_cache, **small)
    shown: list[tuple[int, Mapping[str, float]]] = []

    def watch(fold: int, folds: int, metrics: Mapping[str, float]) -> None:
        shown.append((fold, metrics))
        assert folds == 3
        if len(shown) == 2:
            raise PrunedError("worse in both")

    with classify_runs.quick_pictures(), pytest.raises(PrunedError) as end:
        hsr_train.execute(hsr_train.compose(words), watch)
    assert not getattr(end.value, "__notes__", [])
    assert [fold for fold, _ in shown] == [1, 2] and all(0 <= metrics["accuracy"] <= 1 for _, metrics in shown)
    with classify_runs.quick_pictures():
        hsr_train.execute(hsr_train.compose(words), lambda fold, _, metrics: shown.append((fold, metrics)))
    assert [fold for fold, _ in shown[2:]] == [1, 2]  # those that were done are shown again, so that none is missing
    assert [metrics for _, metrics in shown[2:]] == [metrics for _, metrics in shown[:2]]


# ---- a real training


@pytest.mark.slow
def test_a_classifier_that_learns_nothing_is_given_up(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = classify_runs.make_set(tmp_path / "set")
    words = classify_runs.overrides(data, tmp_path / "out", shared_cache, train__epochs=4, optimizer__lr=None)
    search = ["optimizer.lr=tag(log,interval(1e-7,1e-2))", "sweep.n_trials=3", "sweep.dir=sweep"]
    first = "sweep.enqueue=[{optimizer.lr: 0.0011}, {optimizer.lr: 1e-7}]"  # after trial 0, the default
    assert main(["-m", *words, *search, first, "sweep.pruner_startup=2"]) == 0
    assert "Trials: 2 complete, 1 pruned, 0 failed" in capsys.readouterr().err
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    trials = optuna.load_study(study_name="sweep", storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()
    assert list(trials[2].intermediate_values) == [1, 2]
    with (tmp_path / "sweep" / "trials" / "2" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_acc"]) for row in rows] == list(trials[2].intermediate_values.values())
    assert (tmp_path / "sweep" / "trials" / "2" / "weights" / "best.pt").is_file()
    assert (tmp_path / "sweep" / "trials" / "2" / "state" / "epoch2.pt").is_file()
