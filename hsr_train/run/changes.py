"""state/changes.json: what was changed in the middle of a run, and from which epoch on.

Rungs of the out-of-memory ladder, remedies against diverging numbers, and keys typed on resume are one kind of thing:
from some epoch on, a configuration value is another one. `recovery` and `config.resume` append; a reproduction undoes
them in the configuration (`undo`) and replays them at their epoch. The file is the truth: config.yaml follows it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import write_json

GPU_MEMORY = "out of GPU memory"
HOST_MEMORY = "out of host memory"
DIVERGED = "numbers gone wrong"
RESUMED = "typed on resume"
PLANNED = "planned by time"


@dataclass(frozen=True)
class Change:
    """One value that is another one from some epoch on.

    Attributes:
        epoch: The first epoch (from 1) that runs with it, wholly or from `place` on; 0 until that is known.
        place: Where the run was: start, training step, optimizer step, validation, final evaluation, export; killed
            where the kernel ended the process; resume.
        rung: Its name for people: batch, image size, cache, workers, validation batch, learning rate, …
        key: The configuration key.
        before: The value until then.
        after: The value from then on.
        cause: GPU_MEMORY, HOST_MEMORY, DIVERGED, RESUMED or PLANNED.
    """

    epoch: int
    place: str
    rung: str
    key: str
    before: Any
    after: Any
    cause: str

    def record(self) -> dict[str, Any]:
        """Return it as files keep it."""
        values = asdict(self)
        return {"from" if name == "before" else "to" if name == "after" else name: v for name, v in values.items()}

    def __str__(self) -> str:
        return f"{self.key} {self.before} -> {self.after} in epoch {self.epoch} ({self.cause}, {self.place})"


def write_changes(path: Path, changes: Sequence[Change]) -> None:
    """Write the file.

    Raises:
        RunError: The disk refused.
    """
    write_json(path, [change.record() for change in changes])


def read_changes(path: Path) -> list[Change]:
    """Return a run's changes in their order; none if there is no file.

    Raises:
        InputError: The file is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(Problem(str(path), "", f"cannot be read: {error.strerror or error}")) from error
    try:
        return changes_of(json.loads(text), path)
    except ValueError as error:
        raise _damaged(path, error) from error


def changes_of(records: Any, path: Path) -> list[Change]:
    """Return changes from the form that files keep (`Change.record`).

    Args:
        records: A list of mappings.
        path: The file that holds them, for the message.

    Raises:
        InputError: They are damaged.
    """
    try:
        rows = [{"before": row["from"], "after": row["to"], **row} for row in records]
        return [Change(**{name: value for name, value in row.items() if name not in ("from", "to")}) for row in rows]
    except (KeyError, TypeError) as error:
        raise _damaged(path, "it is no list of changes") from error


def _damaged(path: Path, error: Exception | str) -> InputError:
    remedy = "restore it from a copy, or start a new run"
    return InputError(Problem(str(path), "", f"is damaged: {error}", remedy))


def get_value(config: Any, key: str) -> Any:
    """Return what a dotted key holds in a tree of dataclasses or mappings."""
    for name in key.split("."):
        config = config[name] if isinstance(config, dict) else getattr(config, name)
    return config


def set_value(config: Any, key: str, value: Any) -> None:
    """Set what a dotted key holds in a tree of dataclasses or mappings."""
    *sections, last = key.split(".")
    node = get_value(config, ".".join(sections)) if sections else config
    if isinstance(node, dict):
        node[last] = value
    else:
        setattr(node, last, value)


def apply(config: Any, changes: Sequence[Change]) -> None:
    """Bring a configuration to where the changes left it."""
    for change in changes:
        set_value(config, change.key, change.after)


def undo(config: Any, changes: Sequence[Change]) -> None:
    """Bring a configuration back to what the run began with."""
    for change in reversed(changes):
        set_value(config, change.key, change.before)
