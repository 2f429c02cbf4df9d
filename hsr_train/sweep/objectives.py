"""What a search may look for, by task: exact names, as training_result.json has them, and which way is better.

`sweep.objective` names goals, `sweep.constraints` limits; both are metrics of best.pt, or costs of the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hsr_train.config.strict import shown
from hsr_train.errors import Problem, RunError
from hsr_train.hardware import Machine, parse_device

MAXIMIZE, MINIMIZE = "maximize", "minimize"
METRICS = {"detect": ("mAP50-95", "mAP50", "precision", "recall"), "classify": ("accuracy", "macro_f1")}
TIME, LATENCY, MEMORY = "training_time_minutes", "latency_ms", "peak_vram_gb"
COSTS = (TIME, LATENCY, MEMORY)
"""Beside the metrics in training_result.json; less is better."""
MEASURE = "train.measure_latency"
"""The key without which a run has no latency."""
LIMITED = ("tpe", "gp", "nsgaii", "nsgaiii")
"""Samplers that take broken constraints into account."""


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


def limits(experiment: Any) -> tuple[dict[str, float], list[Problem]]:
    """Return `sweep.constraints` by name (at most of a cost, at least of a metric), and what is wrong with them."""
    given, key = experiment.sweep.constraints, "sweep.constraints"
    if given is None:
        return {}, []
    known, example = available(experiment.task), f"'{key}={{{LATENCY}: 20}}'"
    if not isinstance(given, Mapping):
        return {}, [Problem(key, shown(given), "must be a mapping from values to limits", example)]
    found, problems = {}, []
    for name, value in given.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if name not in known:
            allowed = f"task={experiment.task} reports no such value; there are {', '.join(known)}"
            problems.append(Problem(key, str(name), allowed, example))
        elif not is_number:
            problems.append(Problem(key, f"{name}: {shown(value)}", "must be a number", example))
        elif name in COSTS and value <= 0:
            allowed = "holds for no run: at most this much, and all need more than 0"
            problems.append(Problem(key, f"{name}: {shown(value)}", allowed, example))
        elif name not in COSTS and not 0 < value <= 1:
            why = "holds for no run" if value > 1 else "holds for every run"
            allowed = f"{why}: at least this much, of a value from 0 to 1"
            problems.append(Problem(key, f"{name}: {shown(value)}", allowed, f"'{key}={{{name}: 0.6}}'"))
        else:
            found[str(name)] = float(value)
    return found, problems


def not_measurable(experiment: Any, names: Sequence[str], machine: Machine) -> list[Problem]:
    """Return a problem for each goal or limit that a run on this machine could not come to.

    Args:
        experiment: Of the search's first point.
        names: Of goals and limits.
        machine: What there is.
    """
    problems = []
    has_gpu = bool(machine.gpus) and parse_device(experiment.train.device) != "cpu"
    settings = experiment.sweep
    in_limits = isinstance(settings.constraints, Mapping) and MEMORY in settings.constraints
    if MEMORY in names and not has_gpu:
        key = "sweep.constraints" if in_limits else "sweep.objective"
        problems.append(Problem(key, MEMORY, "is memory of a GPU, and this runs on the CPU", "leave it out"))
    if LATENCY in names and MEASURE in experiment.origin.typed and not experiment.train.measure_latency:
        problems.append(Problem(MEASURE, "false", f"the search is for {LATENCY}", "leave it out"))
    return problems


def values_of(names: Sequence[str], record: Mapping[str, Any]) -> list[float]:
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
            hint = f"; {MEASURE}=true measures it" if name == LATENCY else ""
            raise RunError(f"The run has no {name}: {shown(value)}{hint}")
        values.append(float(value))
    return values


def excess(limited: Mapping[str, float], measured: Mapping[str, float]) -> dict[str, float]:
    """Return by how much each limit is broken, as a share of it, so that all weigh alike; up to 0 it holds.

    Args:
        limited: From `limits`.
        measured: A trial's values by the same names.
    """
    return {
        name: (measured[name] - limit if name in COSTS else limit - measured[name]) / limit
        for name, limit in limited.items()
    }


def broken(limited: Mapping[str, float], measured: Mapping[str, float]) -> str:
    """Say which limits do not hold, such as `latency_ms 31.2 > 20`; nothing where all do."""
    over = [name for name, share in excess(limited, measured).items() if share > 0]
    return ", ".join(f"{n} {measured[n]:.6g} {'>' if n in COSTS else '<'} {limited[n]:g}" for n in over)


def described(limited: Mapping[str, float]) -> str:
    """Say what the limits are, such as `latency_ms at most 20, recall at least 0.6`."""
    return ", ".join(f"{name} at {'most' if name in COSTS else 'least'} {limit:g}" for name, limit in limited.items())


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
