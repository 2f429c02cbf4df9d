"""What a search may look for, by task: exact names, as training_result.json has them, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hsr_train.config.strict import shown
from hsr_train.errors import Problem, RunError

MAXIMIZE, MINIMIZE = "maximize", "minimize"
METRICS = {"detect": ("mAP50-95", "mAP50", "precision", "recall"), "classify": ("accuracy", "macro_f1")}
COSTS = ("training_time_minutes",)
"""Beside the metrics in training_result.json; less is better."""


def available(task: str) -> tuple[str, ...]:
    """Return the objectives of a task, its metrics first."""
    return METRICS[task] + COSTS


def default(experiment: Any) -> str:
    """Return the validation metric that also chooses best.pt."""
    return str(getattr(experiment.train, "best", None) or METRICS[experiment.task][0])


def chosen(experiment: Any) -> tuple[list[str], list[str], list[Problem]]:
    """Return the objectives of an experiment's sweep, the direction of each, and what is wrong with them."""
    settings = experiment.sweep
    names = [default(experiment)] if settings.objective is None else _listed(settings.objective)
    known, problems = available(experiment.task), []
    for name in names:
        if name not in known:
            allowed = f"task={experiment.task} reports no such value; there are {', '.join(known)}"
            problems.append(Problem("sweep.objective", shown(name), allowed, f"sweep.objective={known[0]}"))
    if len(set(map(str, names))) < len(names) or not names:
        remedy = f"sweep.objective={known[0]}"
        problems.append(Problem("sweep.objective", shown(settings.objective), "must name each value once", remedy))
    directions = [MINIMIZE if name in COSTS else MAXIMIZE for name in names]
    if settings.direction is not None:
        directions = _listed(settings.direction)
        if len(directions) != len(names) or any(d not in (MAXIMIZE, MINIMIZE) for d in directions):
            allowed = f"must be {MAXIMIZE} or {MINIMIZE}, for each of {', '.join(map(str, names))}"
            example = [MAXIMIZE] * len(names) if len(names) > 1 else MAXIMIZE
            remedy = f"leave it out, or sweep.direction={shown(example)}"
            problems.append(Problem("sweep.direction", shown(settings.direction), allowed, remedy))
    return [str(name) for name in names], directions, problems


def values_of(names: list[str], record: Mapping[str, Any]) -> list[float]:
    """Return the objectives of a finished run.

    Args:
        names: The objectives.
        record: Content of its training_result.json.

    Raises:
        RunError: One is missing, or is no number.
    """
    metrics = record.get("metrics") or {}
    values = []
    for name in names:
        value = metrics.get(name, record.get(name))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RunError(f"The run has no {name}: {shown(value)}")
        values.append(float(value))
    return values


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
