"""Which pruner a sweep has, or why none, and at which steps its trials are compared; no optuna, which `pruners` asks.

Trials of one length are compared epoch by epoch (cross-validations fold by fold). Where their lengths may differ, they
are compared at marks: 20 of each run, at equal shares of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from hsr_train.decisions import Decision
from hsr_train.errors import Problem
from hsr_train.sweep.objectives import METRICS
from hsr_train.sweep.study_types import Pruning, counted

KEY = "sweep.pruner"
WHOLE = "wilcoxon"
"""Of trials that are cross-validations: it compares fold by fold."""
MARKS = 20
"""Of the whole run, each at a twentieth of it; the last one is its end, which is not reported."""
SHARE = "twentieth of the run"
_LENGTHS = ("max_steps", "time_budget", "finish_by")
"""Of `train`: what decides the number of epochs later, for each trial by itself."""


def chosen_pruning(
    experiment: Any, points: Iterable[Any], objectives: list[str], sampler: str, decided: list[Decision]
) -> tuple[Pruning | None, list[Problem]]:
    """Return how a sweep gives trials up, and what is wrong with what was typed for it.

    Args:
        experiment: Of the search's first point.
        points: Further points of it, which together have all that a trial's length may depend on.
        objectives: What is searched for.
        sampler: `sweep.sampler`, decided.
        decided: Receives the pruner if nobody typed one; nothing is logged, since the search may be refused yet.

    Returns:
        None where no epoch has a value that could be reported.
    """
    settings = experiment.sweep
    asked, obstacle = str(settings.pruner), _obstacle(experiment, objectives)
    if obstacle is not None:
        if asked not in ("auto", "none"):
            return None, [Problem(KEY, asked, f"cannot be: {obstacle}", f"{KEY}=none, or leave it out")]
        if asked == "auto":
            decided.append(Decision(KEY, "none", obstacle))
        return None, []
    name, problems = asked, []
    if asked == "auto":
        name, reason = _automatic(experiment, sampler)
        decided.append(Decision(KEY, name, reason))
    elif asked != "none" and (asked == WHOLE) != experiment.is_cross_validation:
        folds = "data.fold=all, whose trials are compared fold by fold"
        if asked == WHOLE:
            problems.append(Problem(KEY, asked, f"is for {folds}", f"{KEY}=median, or leave it out"))
        else:
            problems.append(Problem(KEY, asked, f"compares epochs, and not {folds}", f"{KEY}={WHOLE}"))
    if asked == "hyperband" and settings.constraints:
        allowed = "compares with trials that break sweep.constraints, too"
        problems.append(Problem(KEY, asked, allowed, f"{KEY}=median, or leave it out"))
    epochs, startup = int(experiment.train.epochs), int(settings.pruner_startup)
    if not experiment.is_cross_validation and have_different_lengths([experiment, *points]):
        return Pruning(name, 0, startup, MARKS, is_by_share=True, quiet=settings.pruner_warmup), problems
    warmup = warmup_of(epochs) if settings.pruner_warmup is None else int(settings.pruner_warmup)
    return Pruning(name, warmup, startup, epochs), problems


def never_prunes(pruning: Pruning | None, lengths: Collection[int]) -> str | None:
    """Return why no trial can be given up, if a typed warm-up is longer than every trial.

    Args:
        pruning: Of the study.
        lengths: Epochs of its trials; none where they are decided later.
    """
    if pruning is None or pruning.name in ("none", WHOLE) or not lengths:
        return None
    quiet = pruning.quiet if pruning.is_by_share else pruning.warmup
    if quiet is None or quiet + 1 < max(lengths):  # the last epoch is not reported
        return None
    text = "sweep.pruner_warmup=%d: no trial is ever given up by sweep.pruner=%s, since none has more than %s"
    return text % (quiet, pruning.name, counted(max(lengths), "epoch"))


def have_different_lengths(points: Iterable[Any]) -> bool:
    """Return whether the trials of a search may have different numbers of epochs.

    Args:
        points: Experiments with both ends of each interval and every choice.
    """
    trains = [experiment.train for experiment in points]
    return any(map(is_undecided, trains)) or len({train.epochs for train in trains}) > 1


def is_undecided(train: Any) -> bool:
    """Return whether the number of a run's epochs is decided later than its configuration.

    Args:
        train: Section `train` of its experiment.
    """
    return any(getattr(train, key) is not None for key in _LENGTHS)


def step_name(pruning: Pruning | None) -> str:
    """Return what a study's steps are; a study keeps to it."""
    return SHARE if pruning is not None and pruning.is_by_share else "epoch"


def reports(
    pruning: Pruning | None, epoch: int, epochs: int, value: float, known: Mapping[int, float]
) -> tuple[dict[int, float], bool]:
    """Return what an epoch adds to a trial's steps, and whether its pruner is to be asked.

    An epoch, or the first of several, that ends between two marks counts at the one that it has passed. A mark that a
    long epoch has run over gets the value of the epoch before: what was known there. So a trial is compared with what
    others had come to when they were as far, within a twentieth, and with none before its first epoch. Shown the same
    epoch again, it adds what is missing, and nothing twice.

    Args:
        pruning: Of the study.
        epoch: From 1, or a fold.
        epochs: Of the whole run, as far as is known now.
        value: The objective after it.
        known: The trial's steps in the study.
    """
    if pruning is None or not pruning.is_by_share:
        return ({} if epoch in known else {epoch: value}), True
    mark, last, news = MARKS * epoch // epochs, max(known, default=0), {}
    if mark > last:
        news = {between: known[last] for between in range(last + 1, mark) if last}
        news[mark] = value
    is_due = mark > MARKS * (epoch - 1) // epochs or bool(news)
    return news, is_due and (mark > 1 if pruning.quiet is None else epoch > pruning.quiet)


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
