"""Whether a repeated run came out the same: results.csv epoch by epoch, final metrics, weights; reproduction.json.

`hsr_train.verification` asks for the comparison and writes the record; `compare` shows the same for any two runs.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import write_json
from hsr_train.run.directory import RunDirectory
from hsr_train.run.status import read_status

CUDA_BOUND = 1e-3
"""Largest relative difference that counts as the same on CUDA. Not measured yet: with deterministic kernels on the
same card the aim is 0. On a CPU the bound is 0: same means the same bits."""

SAME, DIFFERENT, VARIATION, RUNNING = "same", "different", "variation", "running"

Cell = float | None


@dataclass(frozen=True)
class Difference:
    """One place where two runs differ.

    Attributes:
        epoch: Counted from 1; None for what is known of the whole run only.
        column: Of results.csv; `final <metric>`, `weights` or `epochs` where it is none.
        original: Its value; None where it has none.
        reproduction: The other run's.
    """

    epoch: int | None
    column: str
    original: Any
    reproduction: Any

    @property
    def relative(self) -> float:
        """The difference as a fraction of the larger value; infinite where one is missing or no finite number."""
        return relative_difference(self.original, self.reproduction)

    def record(self) -> dict[str, Any]:
        """Return it as reproduction.json keeps it."""
        return {**asdict(self), "relative": self.relative}

    def __str__(self) -> str:
        place = f"epoch {self.epoch}, {self.column}" if self.epoch else self.column
        values = ("none" if value is None else str(value) for value in (self.original, self.reproduction))
        return f"{place}: {' -> '.join(values)}"


@dataclass
class Outcome:
    """What one run looks like from outside.

    Attributes:
        columns: Of results.csv.
        epochs: Its rows by epoch.
        metrics: Of best.pt, from training_result.json; empty if the run is unfinished.
        finished: Whether it is.
    """

    columns: Sequence[str] = ()
    epochs: dict[int, dict[str, Cell]] = field(default_factory=dict)
    metrics: dict[str, Cell] = field(default_factory=dict)
    finished: bool = False


@dataclass
class Comparison:
    """Two outcomes side by side.

    Attributes:
        epochs_compared: Epochs that both have.
        first: The first difference beyond the bound, or None.
        largest: The largest difference, within the bound or not, or None if there is none at all.
        not_compared: Columns that only one of the two has.
    """

    epochs_compared: int
    first: Difference | None
    largest: Difference | None
    not_compared: list[str]


def relative_difference(one: Any, other: Any) -> float:
    """Return the difference of two values as a fraction of the larger magnitude; NaN equals NaN."""
    if one == other:
        return 0.0
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        if math.isnan(one) and math.isnan(other):
            return 0.0
        if math.isfinite(one) and math.isfinite(other):
            return abs(one - other) / max(abs(one), abs(other))
    return math.inf


def read_outcome(run: RunDirectory) -> Outcome:
    """Read what a run achieved, finished or not.

    Raises:
        InputError: A file is damaged.
    """
    columns, epochs = _read_results(run.results_csv)
    finished = (read_status(run.status) or {}).get("state") == "completed"
    metrics = _read_json(run.training_result).get("metrics", {}) if run.training_result.is_file() else {}
    return Outcome(columns, epochs, dict(metrics), finished)


def compare_outcomes(original: Outcome, reproduction: Outcome, bound: float = 0.0) -> Comparison:
    """Compare two runs: every column of every epoch that both have, then how many epochs, then the final metrics.

    Args:
        original: An unfinished one is compared as far as it came.
        reproduction: The other run.
        bound: Largest relative difference that counts as none.
    """
    shared = [column for column in original.columns if column in reproduction.columns]
    both = sorted(original.epochs.keys() & reproduction.epochs.keys())
    differences = [
        Difference(epoch, column, original.epochs[epoch][column], reproduction.epochs[epoch][column])
        for epoch in both
        for column in shared
    ]
    # An unfinished run was to go on: epochs that it lacks are no difference.
    lacking = original.finished and reproduction.epochs.keys() - original.epochs.keys()
    if lacking or (reproduction.finished and original.epochs.keys() - reproduction.epochs.keys()):
        lengths = (len(original.epochs), len(reproduction.epochs))
        differences.append(Difference(None, "epochs", *lengths))
    if original.metrics and reproduction.metrics:
        names = [*original.metrics, *(name for name in reproduction.metrics if name not in original.metrics)]
        differences += [
            Difference(None, f"final {name}", original.metrics.get(name), reproduction.metrics.get(name))
            for name in names
        ]
    first = next((d for d in differences if d.relative > (bound if d.column != "epochs" else 0)), None)
    largest = max(differences, key=lambda d: d.relative, default=None)
    if largest is not None and not largest.relative:
        largest = None
    not_compared = sorted(set(original.columns) ^ set(reproduction.columns))
    return Comparison(len(both), first, largest, not_compared)


def write_reproduction(run: RunDirectory, record: Mapping[str, Any]) -> None:
    """Write reproduction.json.

    Raises:
        RunError: The disk refused.
    """
    write_json(run.reproduction, record)


def read_reproduction(run: RunDirectory) -> dict[str, Any]:
    """Return a reproduction's record, which a resumed one goes on with.

    Raises:
        InputError: It is missing or damaged.
    """
    record = _read_json(run.reproduction)
    expected = {"original": str, "variation": list, "drift": list, "replay": list}
    wrong = [name for name, kind in expected.items() if not isinstance(record.get(name), kind)]
    if wrong:
        raise _damaged(run.reproduction, f"is damaged: it has no {', '.join(wrong)}")
    return record


def _read_results(path: Path) -> tuple[list[str], dict[int, dict[str, Cell]]]:
    """Return columns and rows by epoch; nothing if there is no file, and no torn last line."""
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        columns, *rows = list(csv.reader(whole.splitlines())) or [[]]
        values = [dict(zip(columns, map(_cell, row), strict=True)) for row in rows]
        return columns, {int(str(row[0])): cells for row, cells in zip(rows, values, strict=True)}
    except FileNotFoundError:
        return [], {}
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise _damaged(path, f"is damaged: {error}") from error


def _cell(text: str) -> Cell:
    return float(text) if text else None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, f"cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict):
        raise _damaged(path, "holds no mapping")
    return content


def _damaged(path: Path, what: str) -> InputError:
    return InputError(Problem(str(path), "", what, "restore it from a copy"))
