"""Sweeps that meet a fault: a disk that is full, a key that is pressed twice, a storage or a search that cannot be.

The disk is the tmpfs of `test_faults_disk.py`; trials are those of `sweep_engine.py`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import test_faults_disk
import test_sweep
from sweep_engine import SweepEngine
from test_faults_disk import Disk, before
from test_sweep import Sweep, ended, require_complete, until

from hsr_train.errors import InputError
from hsr_train.run.atomic import is_full
from hsr_train.sweep import reporting, study
from hsr_train.sweep.storage import close_storage, open_storage
from hsr_train.sweep.urls import storage_url

sweep, disk = test_sweep.sweep, test_faults_disk.disk  # the fixtures
SEEDS = "train.seed=1,2"


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave report.html out, which takes most of these tests' time: `test_sweep_report.py` is about it."""
    monkeypatch.setattr(reporting, "write_report", lambda *_: None)


# ---- a full disk


@pytest.mark.parametrize("what", ["everything", "the study"])
def test_full_disk_in_a_trial_ends_the_sweep_and_the_same_command_goes_on_when_there_is_space(
    what: str, sweep: Sweep, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "RETRIES_S", (0.01,))
    sweep.home, file = (sweep.folder if what == "the study" else disk.path) / "sweep", disk.path / "study.db"
    words = (SEEDS, f"sweep.storage=sqlite:///{file}", "sweep.study_name=sweep")
    with before(SweepEngine, "train", 2, lambda *_: disk.fill()):
        status, errors = sweep.run(*words)
    assert status == 1 and "Traceback" not in errors
    *_, first, second, last = [line.rpartition(" | ")[2] for line in errors.splitlines()]
    if what == "the study":
        assert "study.db: cannot be used: database or disk is full" in first and "make space there" in second
        assert last == "Nothing is lost. To go on: the same command again"
    else:
        assert "trials/1" in second and "No space left on device (0.0 MB free there)" in second
        go_on = "make space, then the same command again (with sweep.keep_states=none it removes the states of finished"
        assert last == f"Trial 1 is given back. To go on: {go_on} trials first)"
    disk.make_space()
    status, errors = sweep.run(*words)
    assert status == 0, errors
    require_complete(sweep, 2, f"sqlite:///{file}")
    assert "Trial 1 is done" in errors if what == "the study" else "Trial 1 goes on" in errors
    assert sum(line.startswith("0 ") for line in sweep.epochs()) == 2  # trial 0 was not touched again


def test_a_full_disk_is_known_by_the_words_of_the_system_and_of_sqlite() -> None:
    assert is_full("cannot write a/b: No space left on device (0.0 MB free there)")
    assert is_full("cannot write a/b: Disk quota exceeded (9.0 MB free there)")
    assert is_full("database or disk is full")
    assert not is_full("cannot write a/b: Permission denied (9.0 MB free there)")


def test_a_trial_killed_between_its_folders_and_its_record_starts_again_and_one_with_weights_does_not(
    sweep: Sweep,
) -> None:
    for number, name in enumerate(("status.json", "weights/best.pt")):
        file = sweep.home / "trials" / str(number) / name
        for folder in ("state", "weights", "plots"):
            (file.parents[len(Path(name).parts) - 1] / folder).mkdir(parents=True)
        file.write_text("{}")
    status, errors = sweep.run("train.seed=1,2")
    assert status == 2 and sweep.states() == ["complete", "fail"]
    assert "which was killed before it had a record" in errors
    assert "is no run that can go on, and holds weights" in errors and "mv " in errors
    assert (sweep.home / "trials" / "1" / "weights" / "best.pt").is_file()


# ---- a storage that cannot be


def test_a_read_only_disk_is_refused_in_one_line_and_a_study_on_it_stays(sweep: Sweep, disk: Disk) -> None:
    url = storage_url(None, disk.path)
    close_storage(open_storage(url))
    subprocess.run(["mount", "-o", "remount,ro", str(disk.path)], check=True)
    for read_only in (url, storage_url(f"{disk.path}/new.db", disk.path), f"journal:{disk.path / 'new.journal'}"):
        with pytest.raises(InputError) as found:
            open_storage(read_only)
        (problem,) = found.value.problems
        assert problem.key == "sweep.storage" and problem.value == read_only
        assert problem.allowed.startswith("cannot be used: ") and problem.remedy.startswith("make it")
    assert (disk.path / "study.db").is_file()


ELSEWHERE = (
    "see that its server runs, and knows this user and this database, "
    "or sweep.storage=postgresql://USER:PASSWORD@HOST/NAME"
)
NO_URL = "sweep.storage=postgresql://USER@HOST/NAME, or "
UNUSABLE = [
    ("mysqll://me:secret@host/x", "is of no kind of database known here", "sweep.storage=postgresql://USER@HOST/NAME"),
    ("postgresql://me:secret@127.0.0.1:1/x", "cannot be used: connection failed", ELSEWHERE),
    ("postgresql://me:secret@127.0.0.1:5543x/x", "is no database URL: its port is no whole number", NO_URL),
    ("://me:secret@127.0.0.1", "is no database URL", NO_URL),
    ("postgresql://me:s@secret@127.0.0.1:1/x", "has an @ in its user or password", "type %40 for it"),
    ("mysql+nodriver://me:secret@host/x", "is of no kind of database known here", "sweep.storage=postgresql://"),
]


@pytest.mark.parametrize(("url", "allowed", "remedy"), UNUSABLE, ids=range(len(UNUSABLE)))
def test_a_storage_that_cannot_be_reached_is_one_line_without_its_password(url: str, allowed: str, remedy: str) -> None:
    with pytest.raises(InputError) as found:
        open_storage(url)
    (problem,) = found.value.problems
    assert problem.allowed.startswith(allowed) and problem.remedy.startswith(remedy)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    ("url", "module", "remedy"),
    [
        ("mysql://me@host/x", "MySQLdb", "pip install pymysql, and sweep.storage=mysql+pymysql://USER@HOST/NAME"),
        ("mysql+pymysql://me@host/x", "pymysql", "pip install pymysql"),
        ("postgresql://me@host/x", "psycopg", "pip install 'hsr_train[postgres]'"),
    ],
)
def test_a_driver_that_is_not_installed_is_named(
    url: str, module: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as found:
        open_storage(url)
    (problem,) = found.value.problems
    assert problem.allowed == f"needs a package that is not installed: {module}" and problem.remedy == remedy


# ---- workers that are stopped


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_second_ctrl_c_ends_it_at_once_and_loses_nothing(jobs: int, sweep: Sweep) -> None:
    words = (SEEDS, f"sweep.jobs={jobs}")
    process = sweep.start(*words, SWEEP_EPOCH_S="30", SWEEP_TIDY_S="10")
    until(lambda: len(sweep.epochs()) == jobs)
    os.killpg(process.pid, signal.SIGINT)
    until((sweep.folder / "tidying").exists)
    time.sleep(1.2)  # within a second it would be the same wish
    os.killpg(process.pid, signal.SIGINT)
    status, errors = ended(process)
    assert status == 130 and "type the same command again" in errors
    assert not (sweep.folder / "tidied").exists()
    assert sweep.states() == ["waiting"] * 2
    status, errors = sweep.run(SEEDS)
    assert status == 0, errors
    require_complete(sweep, 2)
    assert "Trial 0 goes on" in errors


@pytest.mark.slow
def test_the_trial_of_a_killed_worker_goes_on_with_the_other_one(sweep: Sweep) -> None:
    process = sweep.start(SEEDS, "sweep.jobs=2", SWEEP_EPOCH_S="2")
    until(lambda: len({line.split()[0] for line in sweep.epochs()}) == 2)
    psutil.Process(process.pid).children()[0].kill()
    status, errors = ended(process)
    assert status == 1 and "1 of 2 workers were killed (SIGKILL)" in errors
    require_complete(sweep, 2)
    assert "and goes on" in errors
