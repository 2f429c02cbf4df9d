"""Sweeps that meet a fault: a disk that is full, a key that is pressed twice, a storage or a search that cannot be.

The disk is the tmpfs of `test_faults_disk.py`; trials are those of `sweep_engine.py`.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_faults_disk
import test_sweep
from sweep_engine import SweepEngine
from test_faults_disk import Disk, before
from test_sweep import LR, Sweep, ended, require_complete, until

from hsr_train.cli import main
from hsr_train.run.atomic import is_disk_refusal
from hsr_train.sweep import reporting, study
from hsr_train.sweep.storage import refused
from hsr_train.sweep.study_types import Spec
from hsr_train.sweep.urls import storage_url
from hsr_train.sweep.worker import this_process

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
        assert last == "Trial 1 is given back. To go on: make space, then the same command again"
    disk.make_space()
    status, errors = sweep.run(*words)
    assert status == 0, errors
    require_complete(sweep, 2, f"sqlite:///{file}")
    assert "Trial 1 is done" in errors if what == "the study" else "Trial 1 goes on" in errors
    assert sum(line.startswith("0 ") for line in sweep.epochs()) == 2  # trial 0 was not touched again


def test_a_disk_that_refuses_is_known_by_the_words_of_the_system_and_of_sqlite() -> None:
    assert is_disk_refusal("cannot write a/b: No space left on device (0.0 MB free there)")
    assert is_disk_refusal("cannot write a/b: Read-only file system (9.0 MB free there)")
    assert is_disk_refusal("database or disk is full")
    assert not is_disk_refusal("cannot write a/b: Permission denied (9.0 MB free there)")


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
