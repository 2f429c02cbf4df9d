"""Finding the run that `resume=`, `reproduce=` and `runs=` mean, or saying what there is instead.

Reads what `status` and `directory` wrote, and nothing else: no lock, no change.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

from hsr_train.errors import InputError, Problem
from hsr_train.run.directory import NOT_A_RUN, RunDirectory, is_run
from hsr_train.run.state_removal import removed_by
from hsr_train.run.status import is_alive, read_status

log = logging.getLogger(__name__)


MOST_LISTED = 10
"""Runs that a message names."""


def find_run(reference: str, output_dir: Path, *, extended: bool = False) -> Path:
    """Find the run that `resume=` means; whether it can go on, `obstacle` tells.

    Args:
        reference: A run's directory, anything inside one (`weights/last.pt`, also `last.pt` alone without
            `weights/`), or `last`: the unfinished training run under `output_dir` that started last.
        output_dir: Where `last` looks.
        extended: For `last`: epochs are typed, so that it may be a finished run, the newest of all.

    Returns:
        The run's directory, absolute.

    Raises:
        InputError: There is none, or it is no run.
    """
    output_dir = Path(output_dir).expanduser().absolute()
    if reference == "last":
        return _newest(output_dir, extended)
    return locate_run(reference, output_dir, "resume")


def find_original(reference: str, output_dir: Path) -> Path:
    """Find the run that `reproduce=` means, finished or not.

    Args:
        reference: As for `find_run`, without `last`.
        output_dir: Whose runs a message lists.

    Raises:
        InputError: There is none, it is no run, or it is still running and its record still grows.
    """
    run = locate_run(reference, output_dir, "reproduce")
    status = read_status(run / "status.json")
    if status is not None and is_alive(status):
        raise InputError(Problem("reproduce", reference, *_still_running(status)))
    return run


def locate_run(reference: str, output_dir: Path, key: str) -> Path:
    """Return the directory of the run that a path names: the directory, or anything in it.

    Args:
        reference: What was typed.
        output_dir: Whose runs a message lists.
        key: The key that it was typed for.

    Raises:
        InputError: There is none, or it is no run.
    """
    path = Path(reference).expanduser().resolve()
    run = next((folder for folder in (path, *path.parents) if is_run(folder)), None)
    if run is None:
        raise InputError(_not_a_run(reference, path, Path(output_dir).expanduser().absolute(), key))
    if not path.exists() and not (path.parent == run and (run / "weights" / path.name).is_file()):
        there = ", ".join(sorted(f"weights/{file.name}" for file in (run / "weights").glob("*.pt"))) or "no weights yet"
        raise InputError(Problem(key, reference, f"no such file; this run has {there}", f"{key}={run}"))
    return run


def obstacle(run: Path, extended: bool = False) -> tuple[str, str] | None:
    """Return why a run cannot be continued and what to type instead, or None if it can.

    Args:
        run: Its directory.
        extended: It gets more epochs than it has, so that it may be finished.
    """
    status = read_status(run / "status.json")
    if status is None:
        return None  # the record was lost, the state may still be there
    if status.get("mode", "train") != "train":
        return f"that was mode={status['mode']}, which has nothing to continue", "name a training run"
    if by := removed_by(RunDirectory(run)):
        remedy = (
            f"the same from its start: reproduce={run} train.epochs=N; "
            f"or a new run from its weights: model.weights={run / 'weights' / 'last.pt'}"
        )
        return f"its training states were removed by {by} when it was over, and it cannot go on", remedy
    if status.get("state") == "completed" and not extended:
        remedy = (
            f"more epochs: train.epochs=N; or a new run from its weights: model.weights={run / 'weights' / 'last.pt'}"
        )
        return "that run is finished", remedy
    return _still_running(status) if is_alive(status) else None


def _still_running(status: dict[str, Any]) -> tuple[str, str]:
    who = f"process {status.get('pid')} on {status.get('host')}"
    return f"that run is still running as {who}", "wait for it, or stop it first"


def _newest(output_dir: Path, extended: bool) -> Path:
    runs = _runs_under(output_dir)
    fitting = [path for path in runs if obstacle(path, extended) is None]
    if not fitting:
        raise InputError(
            Problem("resume", "last", f"no unfinished run: {_listing(output_dir)}", "start a new run, or resume=DIR")
        )
    for run in runs[runs.index(fitting[-1]) + 1 :]:
        status = read_status(run / "status.json")
        if status is not None and is_alive(status):
            log.warning("Left alone: %s, which is newer and still running as process %s", run, status.get("pid"))
    return fitting[-1]


def _runs_under(output_dir: Path) -> list[Path]:
    """Return every run below `output_dir` in the order of their starts, without looking inside runs."""
    found = []
    for root, folders, files in os.walk(output_dir):
        if "config.yaml" in files and is_run(Path(root)):
            folders.clear()
            found.append(Path(root))
    return _in_order(found)


def _in_order(folders: Iterable[Path]) -> list[Path]:
    """Return those of some folders that are runs, in the order of their starts."""
    return sorted(filter(is_run, folders), key=lambda run: (_started(run), run.name))


def _started(run: Path) -> float:
    """Return the run's start in seconds since the epoch; 0 if its status is lost."""
    try:
        return datetime.fromisoformat(str((read_status(run / "status.json") or {}).get("started"))).timestamp()
    except ValueError:
        return 0.0


def _listing(output_dir: Path, runs: list[Path] | None = None) -> str:
    """Return the newest runs under `output_dir`, where they are not given, with their states, for messages."""
    runs = _runs_under(output_dir) if runs is None else runs
    if not runs:
        return f"{output_dir} holds no run"
    shown = runs[: -MOST_LISTED - 1 : -1]
    lines = [f"{run} ({(read_status(run / 'status.json') or {}).get('state', 'no status')})" for run in shown]
    lines += [f"and {len(runs) - len(shown)} older"] if len(runs) > len(shown) else []
    return f"{output_dir} holds, the newest first," + "".join(f"\n      {line}" for line in lines)


def _not_a_run(reference: str, path: Path, output_dir: Path, key: str = "resume") -> Problem:
    what = NOT_A_RUN if path.exists() else "no such file or directory"
    held = _in_order(file.parent for depth in ("*", "*/*") for file in path.glob(f"{depth}/config.yaml"))
    if held and key in ("resume", "reproduce"):  # such as the folds of a cross-validation
        fitting = held if key == "reproduce" else [run for run in held if obstacle(run) is None]
        said = f"{what}; {_listing(path, held)}"
        return Problem(key, reference, said, f"one of these: {key}={[*held, *fitting][-1]}")
    remedy = {"resume": "resume=DIR, or resume=last", "runs": "mode=compare 'runs=[DIR,DIR]'"}.get(key, f"{key}=DIR")
    return Problem(key, reference, f"{what}; {_listing(output_dir)}", remedy)
