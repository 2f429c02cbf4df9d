"""Removing the training states of a run that is over, and the record of it that `resume=` is answered from.

Only files of states go. state/changes.json stays: a run that recovered from something is not reproduced without it.
state/removed.json says why there is no state; `find.obstacle` tells who wants to go on.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from hsr_train.errors import RunError
from hsr_train.run.atomic import describe_disk_error, write_json
from hsr_train.run.directory import RunDirectory
from hsr_train.run.status import read_status

OVER = ("completed", "pruned")


def state_files(run: RunDirectory) -> list[Path]:
    """Return the files of a run's states, the oldest first."""
    return sorted(run.state.glob("*.pt"), key=lambda file: (len(file.name), file.name))


def remove_states(run: RunDirectory, by: str) -> int:
    """Remove the states of a run that is over; any number of processes may try to at once.

    Args:
        run: A run's directory.
        by: What asked for it, such as `sweep.keep_states=none`.

    Returns:
        How many bytes that were; 0 if there is nothing to remove, or the run is not over.

    Raises:
        InputError: Another process holds the run, or its directory cannot be written.
        RunError: The disk refused.
    """
    if not state_files(run):
        return 0
    with run.lock():  # nobody goes on with it meanwhile
        files, status = state_files(run), read_status(run.status)
        if not files or status is None or status.get("state") not in OVER:
            return 0
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        record = {"by": by, "removed": now, "states": [file.name for file in files]}
        try:
            num_bytes = sum(file.stat().st_size for file in files)
            # The newest is enough to go on, and goes when the record is there, for which a full disk has room by then.
            for file in files[:-1]:
                file.unlink()
            write_json(run.removed_states, record)
            files[-1].unlink()
        except OSError as error:
            raise RunError(describe_disk_error(run.state, error)) from error
        return num_bytes


def removed_by(run: RunDirectory) -> str | None:
    """Return what asked for the removal of a run's states; None: they were not removed, or were put back."""
    if not run.removed_states.is_file() or state_files(run):
        return None
    try:
        return str(json.loads(run.removed_states.read_text(encoding="utf-8"))["by"])
    except (OSError, ValueError, KeyError, TypeError):  # damaged; that it is there says enough
        return "somebody"
