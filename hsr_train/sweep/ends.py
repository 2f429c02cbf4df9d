"""What a trial came to, as its study is told: complete, pruned or failed, each with its notes; `worker` runs it.

A trial that was stopped came to nothing and is given back. So is one that ended by what would end the next one, too: a
full disk, a folder that cannot be written, or data that are gone. These errors end the sweep.
"""

from __future__ import annotations

import logging
import re
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hsr_train.errors import HsrTrainError, InputError, Problem, PrunedError, RunError
from hsr_train.run.directory import is_run
from hsr_train.run.status import read_status
from hsr_train.sweep.disk import remedy
from hsr_train.sweep.objectives import broken, values_of
from hsr_train.sweep.study_types import Spec

log = logging.getLogger(__name__)

INPUT = ("data.", "model.weights", "synthetic.")
"""Keys of what a run that goes on must find as it was."""
TRACEBACK = "Traceback (most recent call last)"


@dataclass(frozen=True)
class End:
    """What a trial came to.

    Attributes:
        state: complete, pruned or fail.
        values: The objectives, of a complete one.
        notes: Attributes of the trial, see `study`.
        said: The same for a log.
    """

    state: str
    values: list[float] | None
    notes: dict[str, Any]
    said: str


def complete(spec: Spec, record: Mapping[str, Any]) -> End:
    """Return the end of a trial whose run is whole.

    Args:
        spec: The study.
        record: Its training_result.json, or what stands for it.

    Raises:
        RunError: It has no value of an objective, or of a limit.
    """
    values, limits = values_of(spec.objectives, record), spec.constraints
    measured = dict(zip(limits, values_of([*limits], record), strict=True))
    notes = {
        "metrics": record.get("metrics") or {},
        "measured": measured,
        "seconds": round(60 * float(record.get("training_time_minutes") or 0), 3),
        "epochs": record.get("epochs_completed"),
    }
    text = ", ".join(f"{name} {value:.4g}" for name, value in zip(spec.objectives, values, strict=True))
    if over := broken(limits, measured):
        text += f"; it breaks {over}"
    return End("complete", values, notes, text)


def pruned(error: PrunedError, place: Path, seconds: float) -> End:
    """Return the end of a trial that its study gave up.

    Args:
        error: What says so.
        place: Where its run is.
        seconds: Since it was taken, of one whose run does not say how long it took.
    """
    return End("pruned", None, {"seconds": round(seconds, 3)} | _cut_short(place), str(error))


def failed(error: Exception, place: Path, seconds: float) -> End:
    """Return the end of a trial that is at fault itself.

    Args:
        error: What it ended with.
        place: Where its run is.
        seconds: Since it was taken.
    """
    notes = {
        "error": _traced(error, place),
        "cause": cause_of(error),
        "exit_status": error.exit_status if isinstance(error, HsrTrainError) else 1,
        "seconds": round(seconds, 3),
    }
    return End("fail", None, notes, _said(error))


def disk_full(error: Exception, spec: Spec, name: str) -> RunError:
    """Return the error that ends a sweep on a full disk, with the trial's name."""
    return RunError(f"{_said(error)}\n{_given_back(name, 'make space')}{remedy(spec)}")


def fault_of_all(
    error: Exception, spec: Spec, require_input: Callable[[], None], place: Path, *, has_begun: bool
) -> InputError | None:
    """Return what is wrong with the input of all trials, if it is that which ended one; None: it is the trial's own.

    Where its folder cannot be made or written, or no trial could be prepared now, none is at fault. Nor is one that had
    begun, and whose data or weights are not what it began with; those that it searches itself are its own.

    Args:
        error: What it ended with.
        spec: The study.
        require_input: Raises an InputError where no trial could be prepared.
        place: The trial's folder.
        has_begun: Whether its run was there before.
    """
    if closed := _not_writable(place):
        return closed
    searched = tuple(line.partition("=")[0] for line in spec.lines)
    if has_begun and isinstance(error, InputError):
        keys = [problem.key for problem in error.problems]
        if all(key.startswith(INPUT) and not key.startswith(searched) for key in keys):
            return error
    try:
        require_input()
    except InputError as refused:
        return refused
    except Exception as unknown:  # what the trial ended with is known, and counts
        log.warning("Whether all trials would end like this one is not known: %s", _said(unknown))
    return None


def _not_writable(place: Path) -> InputError | None:
    """Return what is wrong where a trial's folder cannot be made or written; no file is left there."""
    for folder in (place,) if is_run(place) else (place.parent, place):
        try:
            if folder != place:
                folder.mkdir(parents=True, exist_ok=True)
            if folder.exists():
                with tempfile.TemporaryFile(dir=folder):
                    pass
        except OSError as error:
            allowed = f"is no folder that can be written: {error.strerror or error}"
            remedy = "make it writable, or sweep.dir=ANOTHER for a new sweep"
            return InputError(Problem("sweep.dir", str(folder), allowed, remedy))
    return None


def no_fault_of(name: str, error: Exception, refused: InputError) -> InputError:
    """Return the error that ends a sweep whose input is at fault.

    Args:
        name: Of the trial.
        error: What it ended with.
        refused: From `fault_of_all`.
    """
    if str(error) != str(refused):
        own = InputError([replace(p, remedy="") for p in error.problems]) if isinstance(error, InputError) else error
        log.error("%s ended: %s", name, _said(own))  # what to type follows, and is for the sweep
    ends = InputError(refused.problems)
    ends.add_note(_given_back(name, "put this right"))
    return ends


def _given_back(name: str, first: str) -> str:
    return f"{name} is given back. To go on: {first}, then the same command again"


def cause_of(error: BaseException) -> str:
    """Return what is the same in errors of one cause: no paths, no numbers."""
    line = (str(error).splitlines() or [""])[0]
    line = re.sub(r"(?<!\w)\S*/\S+", "...", line)
    return f"{type(error).__name__}: {re.sub(r'[0-9]+([.][0-9]+)?', 'N', line)}"


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, HsrTrainError) else f"{type(error).__name__}: {error}"


def _traced(error: Exception, place: Path) -> str:
    """Return an error with its traceback: this process's, or the one that the run's own process left in its log."""
    text = "".join(traceback.format_exception(error))
    try:
        logged = (place / "logs" / "train.log").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return text
    start = logged.rfind(TRACEBACK)
    return text if start < 0 else f"{text}\nIn {place / 'logs' / 'train.log'}:\n{logged[start:]}"


def _cut_short(place: Path) -> dict[str, Any]:
    """Return the epochs of a run that was given up, and its seconds since it was last begun."""
    status = read_status(place / "status.json")
    if status is None:
        return {} if is_run(place) else {"by_fold": True}
    times = [datetime.fromisoformat(str(status[key])) for key in ("resumed", "started", "updated") if status.get(key)]
    return {"epochs": status.get("epoch"), "seconds": round((times[-1] - times[0]).total_seconds(), 3)}
