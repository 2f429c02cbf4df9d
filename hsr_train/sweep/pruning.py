"""Which pruner a sweep has, and why it may have none; no optuna, which `pruners` asks for them."""

from __future__ import annotations

from typing import Any

from hsr_train.decisions import Decisions
from hsr_train.errors import Problem
from hsr_train.sweep.objectives import METRICS
from hsr_train.sweep.study_types import Pruning

KEY = "sweep.pruner"
WHOLE = "wilcoxon"
"""Of trials that are cross-validations: it compares fold by fold."""


def chosen_pruning(
    experiment: Any, objectives: list[str], sampler: str, decisions: Decisions
) -> tuple[Pruning | None, list[Problem]]:
    """Return how a sweep gives trials up, and what is wrong with what was typed for it.

    Args:
        experiment: Of the search's first point.
        objectives: What is searched for.
        sampler: `sweep.sampler`, decided.
        decisions: Receives the pruner if nobody typed one.

    Returns:
        None where no epoch has a value that could be reported.
    """
    settings = experiment.sweep
    asked, obstacle = str(settings.pruner), _obstacle(experiment, objectives)
    if obstacle is not None:
        if asked not in ("auto", "none"):
            return None, [Problem(KEY, asked, f"cannot be: {obstacle}", f"{KEY}=none, or leave it out")]
        if asked == "auto":
            decisions.record(KEY, "none", obstacle)
        return None, []
    name, problems = asked, []
    if asked == "auto":
        name, reason = _automatic(experiment, sampler)
        decisions.record(KEY, name, reason)
    elif asked != "none" and (asked == WHOLE) != experiment.is_cross_validation:
        folds = "data.fold=all, whose trials are compared fold by fold"
        if asked == WHOLE:
            problems.append(Problem(KEY, asked, f"is for {folds}", f"{KEY}=median, or leave it out"))
        else:
            problems.append(Problem(KEY, asked, f"compares epochs, and not {folds}", f"{KEY}={WHOLE}"))
    if asked == "hyperband" and settings.constraints:
        allowed = "compares with trials that break sweep.constraints, too"
        problems.append(Problem(KEY, asked, allowed, f"{KEY}=median, or leave it out"))
    epochs = int(experiment.train.epochs)
    warmup = warmup_of(epochs) if settings.pruner_warmup is None else int(settings.pruner_warmup)
    return Pruning(name, warmup, int(settings.pruner_startup), epochs), problems


def warmup_of(epochs: int) -> int:
    """Return the epochs before any pruning if nobody typed them: 1 of 5, 2 of 50, 5 of 100."""
    return max(epochs // 20, 1)


def _obstacle(experiment: Any, objectives: list[str]) -> str | None:
    """Return why no epoch's value says how a trial will end."""
    if len(objectives) > 1:
        return f"several objectives, {', '.join(objectives)}, of which a trial may still be the best in one"
    if objectives and objectives[0] not in METRICS[experiment.task]:
        return f"{objectives[0]} is known at a run's end only"
    return None


def _automatic(experiment: Any, sampler: str) -> tuple[str, str]:
    if sampler == "grid":
        return "none", "a grid is there to compare whole runs"
    if experiment.is_cross_validation:
        return WHOLE, "trials are cross-validations, compared fold by fold"
    return "median", "a trial below the median of the others at its epoch is given up"
