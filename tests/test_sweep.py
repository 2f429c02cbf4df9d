"""Sweeps, with real processes and a real study: `sweep_engine.py` is the command with an engine that trains nothing."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import refused_commands
from composing import compose_equal_words_once
from fake_machines import gpu, machine
from optuna.trial import FrozenTrial, TrialState
from refused_commands import Refused

from hsr_train.cli import main
from hsr_train.engines.registry import ENGINES
from hsr_train.sweep import reporting, study
from hsr_train.sweep.local import leases
from hsr_train.sweep.points import distributions
from hsr_train.sweep.study_types import Spec
from hsr_train.sweep.worker import this_process

refused = refused_commands.refused  # the fixture
TESTS = Path(__file__).parent
LR = "optimizer.lr0=tag(log,interval(1e-4,1e-2))"
BATCH = "train.batch=choice(4,8,16,32)"
WORDS = ["train.device=cpu", "train.epochs=2", "train.close_mosaic=1", "tensorboard.enabled=false"]
ENOUGH_S = 300


class Sweep:
    """The command in a folder of its own, with one sweep in `sweep/`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.monkeypatch = monkeypatch
        self.capsys = capsys
        monkeypatch.chdir(folder)
        monkeypatch.setitem(ENGINES, "detect", "sweep_engine:SweepEngine")
        compose_equal_words_once(monkeypatch)
        self.home = folder / "sweep"
        monkeypatch.setattr(reporting, "write_report", lambda *_: None)
        self.begun: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        whole = {**os.environ, **environment}
        whole["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), os.environ["PYTHONPATH"]])
        home = [] if any(word.startswith("sweep.dir=") for word in words) else [f"sweep.dir={self.home}"]
        process = subprocess.Popen(
            [sys.executable, str(TESTS / "sweep_engine.py"), "-m", *WORDS, *home, *words], cwd=self.folder, env=whole,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.begun.append(process)
        return process

    def run(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run it in this process, where nothing is supervised and the study has no process of its own.

        Its report.html is not drawn, which takes longer than all the rest: see test_sweep_report.py.
        """
        for name in ("SWEEP_EPOCH_S", "SWEEP_FAILS", "SWEEP_DEFECTS"):
            self.monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            self.monkeypatch.setenv(name, value)
        home = (
            [] if any(word.startswith("sweep.dir=") for word in words) else [f"sweep.dir={os.path.relpath(self.home)}"]
        )
        status = main(["-m", *WORDS, *home, *words])
        return status, self.capsys.readouterr().err

    def killed_until_complete(self, *words: str, seed: int, **environment: str) -> int:
        """Start it and kill it at a random moment, again and again, until it completes; return the number of kills.

        The first ones hit its start; the later ones wait for an epoch, so that a busy machine gets on, too.
        """
        chance, kills = random.Random(seed), 0
        while True:
            begun, process = len(self.epochs()), self.start(*words, **environment)
            if kills >= 3:
                until(lambda begun=begun, process=process: len(self.epochs()) > begun or process.poll() is not None)  # type: ignore[misc]
            try:
                _, errors = process.communicate(timeout=chance.uniform(0, 3 + kills / 2))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                kills += 1
            else:
                assert process.returncode == 0, errors
                return kills

    def trials(self, name: str = "sweep", storage: Any = None) -> list[FrozenTrial]:
        storage = storage or f"sqlite:///{self.home / 'study.db'}"
        if isinstance(storage, str):
            storage = optuna.storages.RDBStorage(storage)
        found = optuna.load_study(study_name=name, storage=storage).get_trials()
        if isinstance(storage, optuna.storages.RDBStorage):
            storage.remove_session()
            storage.engine.dispose()
        return found

    def states(self) -> list[str]:
        return [t.state.name.lower() for t in self.trials()]

    def directories(self) -> list[str]:
        return sorted(path.name for path in (self.home / "trials").iterdir())

    def epochs(self) -> list[str]:
        """Return `trial epoch process` of each epoch that was begun."""
        file = self.folder / "begun.txt"
        return file.read_text().splitlines() if file.exists() else []


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=ENOUGH_S)
    return process.returncode, errors


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Sweep]:
    made = Sweep(tmp_path, monkeypatch, capsys)
    yield made
    for process in made.begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def require_complete(sweep: Sweep, n: int, storage: Any = None) -> None:
    """Exactly n trials, all complete, each with its own whole run."""
    trials = sweep.trials(storage=storage)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * n
    assert sweep.directories() == sorted(str(number) for number in range(n))
    for trial in trials:
        run = sweep.home / "trials" / str(trial.number)
        result = json.loads((run / "training_result.json").read_text())
        assert json.loads((run / "status.json").read_text())["state"] == "completed"
        assert result["metrics"]["mAP50-95"] == trial.value
        assert json.loads((run / "state" / "epochs.json").read_text()) == [1, 2]
        assert trial.user_attrs["directory"] == str(run)
        assert result["config"]["optimizer"]["lr0"] == trial.params.get(
            "optimizer.lr0", result["config"]["optimizer"]["lr0"]
        )


def test_search_runs_its_trials_in_directories_of_their_own(sweep: Sweep) -> None:
    status, errors = sweep.run(LR, BATCH, "sweep.n_trials=3")
    assert status == 0, errors
    require_complete(sweep, 3)
    best = max(sweep.trials(), key=lambda t: t.value or 0)
    assert f"Best: trial {best.number}, mAP50-95 {best.value:.4g}" in errors
    assert best.user_attrs["metrics"]["recall"] == best.value and best.user_attrs["epochs"] == 2


def test_the_same_command_again_runs_nothing_and_a_larger_total_runs_the_rest(sweep: Sweep) -> None:
    assert sweep.run(LR, "sweep.n_trials=2")[0] == 0
    before = [(t.params, t.value) for t in sweep.trials()]
    assert sweep.run(LR, "sweep.n_trials=2")[0] == 0
    assert len(sweep.epochs()) == 4
    assert sweep.run(LR, "sweep.n_trials=4")[0] == 0
    require_complete(sweep, 4)
    assert [(t.params, t.value) for t in sweep.trials()][:2] == before
    assert len(sweep.epochs()) == 8


def test_choices_alone_are_the_full_grid_through_the_same_study(sweep: Sweep) -> None:
    status, errors = sweep.run("optimizer.lr0=1e-3,1e-2", "train.batch=range(8,24,8)")
    assert status == 0, errors
    require_complete(sweep, 4)
    points = [(t.params["optimizer.lr0"], t.params["train.batch"]) for t in sweep.trials()]
    assert points == [(0.001, 8), (0.001, 16), (0.01, 8), (0.01, 16)]


def suggested(folder: Path, name: str, seed: int, sampler: str = "tpe", n: int = 12) -> list[list[str]]:
    """Return what a study's trials would search, each told as soon as it was claimed."""
    url = f"sqlite:///{folder / name}.db"
    spec = Spec(url, name, "detect", ["recall"], ["maximize"], n, [LR, BATCH], [], sampler, seed)
    door = study.Study()
    door.open(spec, this_process())
    found = []
    while (claim := door.claim()) is not None:
        assert claim.number is not None
        found.append(claim.overrides)
        door.tell(claim.number, "complete", [claim.number % 5 / 10], {})
    door.close()
    return found


def test_a_seeded_search_suggests_the_same_and_another_seed_does_not(tmp_path: Path) -> None:
    first = suggested(tmp_path, "a", 1)
    assert len({str(point) for point in first}) == 12
    assert first == suggested(tmp_path, "b", 1)
    assert suggested(tmp_path, "c", 2, n=3) != first[:3]


@pytest.mark.parametrize("sampler", ["random", "qmc", "nsgaii"])
def test_samplers_by_name(tmp_path: Path, sampler: str) -> None:
    assert len({str(point) for point in suggested(tmp_path, sampler, 1, sampler, n=4)}) == 4


STOPS = [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]


@pytest.mark.parametrize("number", STOPS)
def test_a_stopped_trial_goes_on_with_its_number_and_from_its_state(sweep: Sweep, number: signal.Signals) -> None:
    process = sweep.start(LR, "sweep.n_trials=2", SWEEP_EPOCH_S="1.5")
    until(lambda: any(line.startswith("0 2") for line in sweep.epochs()))
    os.killpg(process.pid, number)
    status, errors = ended(process)
    assert status == {signal.SIGKILL: -9, signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    if number != signal.SIGKILL:
        assert sweep.states() == ["waiting", "waiting"]
        assert "type the same command again" in errors
    status, errors = sweep.run(LR, "sweep.n_trials=2")
    assert status == 0, errors
    require_complete(sweep, 2)
    begun = [line.rpartition(" ")[0] for line in sweep.epochs()]
    assert begun == ["0 1", "0 2", "0 2", "1 1", "1 2"]
    assert "Trial 0 goes on" in errors


@pytest.mark.slow
def test_a_worker_killed_alone_leaves_a_trial_that_is_taken_over_when_its_run_has_ended(sweep: Sweep) -> None:
    process = sweep.start(LR, "sweep.n_trials=1", SWEEP_EPOCH_S="1")
    until(lambda: len(sweep.epochs()) == 1)
    process.kill()
    status, errors = sweep.run(LR, "sweep.n_trials=1")
    assert status == 0, errors
    require_complete(sweep, 1)


def test_a_finished_run_that_was_not_told_is_told_and_not_run_again(sweep: Sweep) -> None:
    assert sweep.run(LR, "sweep.n_trials=1")[0] == 0
    for file in sweep.home.glob("study.db*"):
        file.unlink()
    status, errors = sweep.run(LR, "sweep.n_trials=1")
    assert status == 0, errors
    require_complete(sweep, 1)
    assert len(sweep.epochs()) == 2 and "Trial 0 is done" in errors


@pytest.mark.slow
def test_a_second_terminal_joins_and_takes_the_next_trial(sweep: Sweep) -> None:
    words = (LR, BATCH, "sweep.n_trials=6")
    both = [sweep.start(*words, SWEEP_EPOCH_S="0.3") for _ in range(2)]
    for process in both:
        status, errors = ended(process)
        assert status == 0, errors
    require_complete(sweep, 6)
    assert len(sweep.epochs()) == 12
    assert len({t.user_attrs["worker"]["pid"] for t in sweep.trials()}) == 2


@pytest.mark.slow
def test_jobs_share_cores_and_trials(sweep: Sweep) -> None:
    status, errors = ended(sweep.start(LR, "sweep.n_trials=4", "sweep.jobs=2", SWEEP_EPOCH_S="0.3"))
    assert status == 0, errors
    assert errors.count(f"Done: {sweep.home}\n") == errors.count("Trials: 4 complete") == 1
    require_complete(sweep, 4)
    assert len({t.user_attrs["worker"]["pid"] for t in sweep.trials()}) == 2
    environment = json.loads((sweep.home / "trials" / "0" / "environment.json").read_text())
    assert environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"]


@pytest.mark.slow
def test_ctrl_c_ends_all_jobs_and_gives_their_trials_back(sweep: Sweep) -> None:
    process = sweep.start(LR, "sweep.n_trials=4", "sweep.jobs=2", SWEEP_EPOCH_S="2")
    until(lambda: len({line.split()[0] for line in sweep.epochs()}) == 2)
    os.killpg(process.pid, signal.SIGINT)
    assert ended(process)[0] == 130
    assert sweep.states() == ["waiting"] * 4


@pytest.mark.slow
def test_a_journal_file_holds_a_study_and_a_job_that_is_ended_and_queued_again_goes_on(sweep: Sweep) -> None:
    journal = sweep.folder / "shared disk.log"
    words = (LR, "sweep.n_trials=4", f"sweep.storage='{journal}'")
    both = [sweep.start(*words, SWEEP_EPOCH_S="1.5") for _ in range(2)]
    until(lambda: len({line.split()[0] for line in sweep.epochs() if line.split()[1] == "2"}) == 2)
    os.killpg(both[0].pid, signal.SIGTERM)  # every process of it, as a scheduler does at a job's time limit
    status, errors = ended(both[0])
    assert status == 143 and "type the same command again" in errors
    both[0] = sweep.start(*words, SWEEP_EPOCH_S="0.3")
    for process in both:
        status, errors = ended(process)
        assert status == 0, errors
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    require_complete(sweep, 4, storage)
    assert not (sweep.home / "study.db").exists()
    begun = [line.rpartition(" ")[0] for line in sweep.epochs()]
    assert sorted(set(begun)) == [f"{trial} {epoch}" for trial in range(4) for epoch in (1, 2)] and len(begun) == 9


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(sweep: Sweep) -> None:
    status, errors = sweep.run("train.seed=1,2,3", SWEEP_FAILS="e.train.seed == 2", SWEEP_DEFECTS="e.train.seed == 3")
    assert status == 1
    assert sweep.states() == ["complete", "fail", "fail"]
    failed, defect = sweep.trials()[1:]
    assert "RunError: the fan of card 2" in failed.user_attrs["error"]
    assert "Traceback" in defect.user_attrs["error"] and "ZeroDivisionError: a defect" in defect.user_attrs["error"]
    assert "2 of 3 trials failed: 1, 2" in errors
    status, errors = sweep.run("train.seed=1,2,3")
    assert status == 1 and sweep.states() == ["complete", "fail", "fail"]  # they are finished, as failed


def test_the_first_three_failing_for_one_cause_end_the_sweep_at_once(sweep: Sweep) -> None:
    status, errors = sweep.run("train.seed=1,2,3,4,5", SWEEP_FAILS="True")
    assert status == 1
    assert sweep.states() == ["fail"] * 3 + ["waiting"] * 2
    assert "its first 3 trials failed for the same cause: RunError: the fan of card N stands still" in errors
    status, errors = sweep.run("train.seed=1,2,3,4,5")  # the cause is gone
    assert sweep.states() == ["fail"] * 3 + ["complete"] * 2


def test_max_failures_ends_the_sweep(sweep: Sweep) -> None:
    status, errors = sweep.run("train.seed=1,2,3,4", "sweep.max_failures=2", SWEEP_FAILS="e.train.seed > 1")
    assert status == 1
    assert sweep.states() == ["complete", "fail", "fail", "waiting"]
    assert "2 trials failed, and sweep.max_failures=2" in errors


def test_another_search_under_the_same_name_is_refused(sweep: Sweep) -> None:
    assert sweep.run(LR, "sweep.n_trials=1")[0] == 0
    status, errors = sweep.run("optimizer.lr0=interval(1e-4,1e-1)", "sweep.n_trials=1")
    assert status == 2
    assert "is another one: it searches optimizer.lr0 in tag(log,interval(0.0001,0.01))" in errors
    status, errors = sweep.run(LR, "sweep.n_trials=1", "train.seed=7")
    assert status == 2 and "trials/0: holds the run of another search, without train.seed=7" in errors
    shutil.rmtree(sweep.home / "trials" / "0" / ".hydra")  # as if the trial had run on another machine
    status, errors = sweep.run(LR, "sweep.n_trials=1", "train.seed=7")
    assert status == 2 and "it lacks train.seed=7" in errors
    require_complete(sweep, 1)


def test_points_of_the_user_are_tried_first(sweep: Sweep) -> None:
    words = (LR, BATCH, "sweep.n_trials=2")
    assert sweep.run(*words, "sweep.enqueue=[{optimizer.lr0: 0.002, train.batch: 16}]")[0] == 0
    assert [t.params for t in sweep.trials()] == [
        {"optimizer.lr0": 0.001, "train.batch": 4},  # the configuration's own
        {"optimizer.lr0": 0.002, "train.batch": 16},
    ]
    status, errors = sweep.run(*words, "sweep.enqueue=[{optimizer.lr0: 2, train.bath: 16}]", "sweep.dir=other")
    assert status == 2
    assert "optimizer.lr0: 2: is outside" in errors and "train.bath: 16: is not searched" in errors


REFUSED = [
    (
        ["sweep.objective=map", "sweep.direction=up", "sweep.sampler=grid", "optimizer.lr0=interval(1e-4,7)"],
        [
            "sweep.objective: map: task=detect reports no such value; there are mAP50-95, mAP50",
            "sweep.direction: up: must be maximize or minimize",
            "optimizer.lr0: interval(1e-4,7): is a range to sample from, which a grid cannot do",
        ],
    ),
    (["optimizer.lr0=interval(1e-4,7)"], ["optimizer.lr0: 7.0: must be above 0"]),
    (
        ["optimizer.lr0=interval(1e-2,1e-4)", "optimizer.momentum=interval(0.1,0.1)", "train.batch=choice(8)"],
        [
            "it begins above its end",
            "-> 'optimizer.lr0=interval(0.0001,0.01)'",
            "both ends are the same",
            "train.batch: choice(8): is a choice of one",
        ],
    ),
    (
        ["optimizer.lr0=tag(log,interval(0,1e-2))", "train.batch=8,8", "train.seed=1,2", "train.seed=3"],
        ["a logarithmic interval begins above 0", "names 8 more than once", "train.seed: is typed more than once"],
    ),
    (["mode=validate", "model.weights=x.pt"], ["nothing is searched", "hydra/sweeper=basic"]),
    (["train.bath=4,8"], ["-> train.batch=4,8"]),
    (
        ["train.batch=tag(log,interval(8,32))"],
        ["train.batch: tag(log,interval(8,32)): must be a whole", "-> 'train.batch=int(tag(log,interval(8,32)))'"],
    ),
    (["task=detect,classify"], ["a grid is of one task"]),
    (["train.seed=1,2", "sweep.storage=nonsense"], ["is no database URL and no journal file"]),
    (["train.seed=1,2", "sweep.storage=journal:/proc/x/y.log"], ["cannot be used"]),
    (["train.seed=1,2", "sweep.storage=postgresql://me:secret@127.0.0.1:1/x"], ["cannot be used"]),
    (["train.seed=1,2", "sweep.dir=/proc/x"], ["sweep.dir: /proc/x: cannot be made"]),
]


@pytest.mark.parametrize(("words", "messages"), REFUSED, ids=lambda v: v[-1])
def test_refused_before_any_trial(words: list[str], messages: list[str], refused: Refused, tmp_path: Path) -> None:
    assert "secret" not in refused(["-m", "train.device=cpu", *words], messages)
    assert not list(tmp_path.rglob("status.json"))


def test_keys_of_a_sweep_are_refused_without_multirun(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep.n_trials=3", "train.device=cpu"]) == 2
    assert "sweep.n_trials: 3: has no effect without --multirun" in capsys.readouterr().err


def test_a_read_only_study_is_refused_in_one_line(sweep: Sweep) -> None:
    sweep.home.mkdir()
    (sweep.home / "study.db").mkdir()  # even for root
    status, errors = sweep.run(LR, "sweep.n_trials=1")
    assert status == 2 and "sweep.storage" in errors and "unable to open database file" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_other_sweepers_work_as_hydra_has_them(sweep: Sweep) -> None:
    assert main(["-m", *WORDS, "hydra/sweeper=basic", "train.seed=1,2"]) == 0
    runs = list((sweep.folder / "outputs" / "detect").iterdir())
    assert len(runs) == 2 and not sweep.home.exists()
    sweeper = "hydra.sweeper"
    words = ["hydra/sweeper=optuna", f"{sweeper}.n_trials=2", f"{sweeper}.n_jobs=1", f"{sweeper}.direction=maximize"]
    assert main(["-m", *WORDS, *words, LR]) == 0
    assert "best_value: 0." in (sweep.folder / "optimization_results.yaml").read_text()


def test_a_file_of_a_search_names_it_and_what_is_typed_beats_it(sweep: Sweep) -> None:
    file = sweep.folder / "ours" / "sweep" / "team_lr.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(
        "# @package _global_\n"
        "sweep: {n_trials: 2, objective: recall, seed: 3}\n"
        "hydra: {sweeper: {params: {optimizer.lr0: 'interval(1e-4,1e-2)', train.batch: 'choice(8,16)'}}}\n"
    )
    words = ["--config-dir", "ours", "-m", "sweep=team_lr"]
    assert main(words) == 0
    home = sweep.folder / "outputs" / "sweeps" / "team_lr"
    trials = sweep.trials("team_lr", f"sqlite:///{home / 'study.db'}")
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 2
    assert set(trials[0].params) == {"optimizer.lr0", "train.batch"}
    assert trials[0].value == trials[0].user_attrs["metrics"]["recall"]
    assert main([*words, "train.batch=4", "sweep.n_trials=1"]) == 0
    (other,) = [path for path in home.parent.iterdir() if path != home]
    (trial,) = sweep.trials(other.name, f"sqlite:///{other / 'study.db'}")
    assert set(trial.params) == {"optimizer.lr0"}


def test_each_job_gets_a_gpu_or_a_share_of_the_cores(caplog: pytest.LogCaptureFixture) -> None:
    two = machine(gpu(0, 24), gpu(1, 24))
    assert [lease["CUDA_VISIBLE_DEVICES"] for lease in leases(two, 3)] == [two.gpus[n].uuid for n in (0, 1, 0)]
    assert "3 workers share 2 GPUs" in caplog.text
    none = machine()
    assert {lease["OMP_NUM_THREADS"] for lease in leases(none, 2)} == {str(none.cores // 2)}


def test_mode_check_prepares_the_ends_and_runs_nothing(sweep: Sweep) -> None:
    assert main(["-m", *WORDS, f"sweep.dir={sweep.home}", LR, BATCH, "sweep.n_trials=9", "mode=check"]) == 0
    said = sweep.capsys.readouterr().out
    assert re.findall("Point . of .: .*", said)[1::3] == [
        "Point 2 of 5: optimizer.lr0=0.01 train.batch=4", "Point 5 of 5: optimizer.lr0=0.0001 train.batch=32",
    ]  # fmt: skip
    assert said.endswith(f"Checked: 5 points of a search of 9 trials, sampler tpe, pruner median, in {sweep.home}\n")
    assert not sweep.home.exists() and sweep.epochs() == []


def test_a_storage_that_fails_in_mid_sweep_ends_it_and_nothing_is_lost(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "RETRIES_S", (0.01,))
    tell = optuna.Study.tell

    def refuse(self: optuna.Study, number: int, *arguments: Any) -> FrozenTrial:
        if number == 1:
            raise optuna.exceptions.StorageInternalError("database or disk is full")
        return tell(self, number, *arguments)

    monkeypatch.setattr(optuna.Study, "tell", refuse)
    status, errors = sweep.run(LR, "sweep.n_trials=3")
    assert status == 1 and "database or disk is full" in errors and "the same command again" in errors
    monkeypatch.setattr(optuna.Study, "tell", tell)
    status, errors = sweep.run(LR, "sweep.n_trials=3")
    assert status == 0 and "Trial 1 is done" in errors
    require_complete(sweep, 3)


def test_the_plugins_grammar_is_what_the_study_is_made_of() -> None:
    space = distributions([LR, BATCH, "train.epochs=range(2,8,2)", "train.seed=int(interval(0,9))"])
    assert space["optimizer.lr0"] == optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True)
    assert space["train.batch"] == optuna.distributions.CategoricalDistribution([4, 8, 16, 32])
    assert space["train.epochs"] == optuna.distributions.IntDistribution(2, 6, step=2)
    assert space["train.seed"] == optuna.distributions.IntDistribution(0, 9)


# ---- a real database server


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database on a server of our own; it may not run as root."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("no PostgreSQL here")
    pytest.importorskip("psycopg")
    folder = Path(f"/tmp/hsr_pg_{os.getpid()}")  # a socket's path may have 107 characters
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    options: dict[str, Any] = {"user": "nobody", "group": None, "extra_groups": []} if os.getuid() == 0 else {}
    options.pop("group", None)

    def call(*words: str) -> None:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, timeout=60, **options)
        assert done.returncode == 0, done.stdout + done.stderr

    data = folder / "data"
    try:
        call("initdb", "-D", str(data), "-U", "hsr", "--auth=trust", "--no-sync")
        settings = f"-k {folder} -c listen_addresses='' -c fsync=off"
        call("pg_ctl", "-D", str(data), "-w", "-l", str(folder / "log"), "-o", settings, "start")
        try:
            yield f"postgresql://hsr@/postgres?host={folder}"
        finally:
            call("pg_ctl", "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_two_processes_share_a_study_on_postgresql(sweep: Sweep, postgres: str) -> None:
    words = (LR, BATCH, "sweep.n_trials=6", f"sweep.storage='{postgres}'")
    both = [sweep.start(*words, SWEEP_EPOCH_S="0.3") for _ in range(2)]
    for process in both:
        status, errors = ended(process)
        assert status == 0, errors
    require_complete(sweep, 6, postgres)
    assert len({t.user_attrs["worker"]["pid"] for t in sweep.trials(storage=postgres)}) == 2


# ---- killed again and again


@pytest.mark.slow
def test_killed_again_and_again_it_completes_as_if_it_had_not_been(sweep: Sweep) -> None:
    words = (LR, BATCH, "sweep.n_trials=6", "sweep.sampler=tpe")
    assert sweep.run(*words, "sweep.dir=whole")[0] == 0
    whole = sweep.trials("whole", f"sqlite:///{sweep.folder / 'whole' / 'study.db'}")
    (sweep.folder / "begun.txt").unlink()
    kills = sweep.killed_until_complete(*words, seed=7, SWEEP_EPOCH_S="0.2")
    assert kills >= 3
    require_complete(sweep, 6)
    assert all((sweep.home / "trials" / name / "born").is_file() for name in sweep.directories())
    assert [(t.params, t.value) for t in sweep.trials()] == [(t.params, t.value) for t in whole]
