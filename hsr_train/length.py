"""How many epochs a run has: what a budget of optimizer steps comes to, and what has to fit into the epochs.

`config.checks` asks where `train.epochs` says it; with `train.max_steps` an engine asks, once data and batch are known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from hsr_train.config.schema import SWA_LEAST_EPOCHS, DetectExperiment, TrainConfig
from hsr_train.decisions import Decision, Decisions
from hsr_train.errors import Problem

log = logging.getLogger(__name__)


def check_budget(train: Any, typed: set[str], decisions: list[Decision]) -> list[Problem]:
    """Refuse `train.max_steps` beside what decides the length, too; a typed `train.epochs` replaces that of a file."""
    if train.max_steps is None:
        return []
    shown = str(train.max_steps)
    for key in ("time_budget", "finish_by"):
        if getattr(train, key) is not None:
            allowed = f"does not go with train.{key}, which decides how long training takes"
            return [Problem("train.max_steps", shown, allowed, f"train.max_steps=null, or leave train.{key} out")]
    if "train.epochs" not in typed:
        return []
    if "train.max_steps" in typed:
        allowed = "has no effect with train.epochs, which says how long training takes"
        return [Problem("train.max_steps", shown, allowed, "type one of them")]
    train.max_steps = None
    reason = f"train.epochs={train.epochs} is typed; without that {shown}"
    decisions.append(Decision("train.max_steps", None, reason))
    return []


def decide_epochs(train: Any, steps: Callable[[int], int], decisions: Decisions) -> None:
    """Turn `train.max_steps` into `train.epochs`: the most that it pays for, at least one. From then on it is null.

    Args:
        train: Section `train`; changed in place.
        steps: Returns the optimizer steps of a whole run of so many epochs; more epochs have more.
        decisions: What was decided.
    """
    budget: int | None = train.max_steps
    if budget is None:
        return
    least, most = 1, 2
    while steps(most) <= budget:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if steps(middle) <= budget else (least, middle)
    total, per_epoch = steps(least), steps(1)
    if total > budget:
        log.warning("One epoch has %d optimizer steps, more than train.max_steps=%d: it is the least", total, budget)
    if total == per_epoch * least:
        reason = f"train.max_steps={budget} at {per_epoch} steps an epoch"
    else:
        reason = f"train.max_steps={budget}; these have {total} steps, as epochs differ"
    train.epochs, train.max_steps = least, None
    decisions.record("train.epochs", least, reason)


def check_epochs(e: DetectExperiment, typed: set[str], decisions: list[Decision]) -> list[Problem]:
    """Check and decide what has to fit into the epochs of a detector; nothing while their number is unknown.

    Args:
        e: The experiment; `train.close_mosaic` is shortened in place.
        typed: Keys that are never changed.
        decisions: Takes what was decided.
    """
    if e.train.max_steps is not None:
        return []
    return _close_mosaic(e.train, typed, decisions) + _averaging(e) + _close_epochs(e, typed)


def _close_mosaic(t: TrainConfig, typed: set[str], decisions: list[Decision]) -> list[Problem]:
    fifth = t.epochs // 5
    if "train.close_mosaic" in typed:
        if t.close_mosaic < max(t.epochs, 1):
            return []
        allowed = f"must be below train.epochs={t.epochs}"
        return [Problem("train.close_mosaic", str(t.close_mosaic), allowed, f"train.close_mosaic={fifth}")]
    if t.close_mosaic > fifth >= 0:
        reason = f"a fifth of train.epochs={t.epochs}; without this rule {t.close_mosaic}"
        t.close_mosaic = fifth
        decisions.append(Decision("train.close_mosaic", fifth, reason))
    return []


def _averaging(e: DetectExperiment) -> list[Problem]:
    if not e.train.swa or e.mode not in ("train", "check"):
        return []
    if e.train.time_budget is not None or e.train.finish_by is not None:
        allowed = "averages the last fifth of the epochs, whose number a time budget changes"
        return [Problem("train.swa", "true", allowed, "train.swa=false, or train.epochs instead of the time")]
    if e.train.epochs >= SWA_LEAST_EPOCHS:
        return []
    allowed = f"averages the last epochs of at least {SWA_LEAST_EPOCHS}, and train.epochs is {e.train.epochs}"
    return [Problem("train.swa", "true", allowed, f"train.epochs={SWA_LEAST_EPOCHS} or train.swa=false")]


def _close_epochs(e: DetectExperiment, typed: set[str]) -> list[Problem]:
    close = e.synthetic.close_epochs
    if close < max(e.train.epochs, 1) or "synthetic.close_epochs" not in typed:
        return []
    allowed, remedy = f"must be below train.epochs={e.train.epochs}", f"synthetic.close_epochs={e.train.epochs // 5}"
    return [Problem("synthetic.close_epochs", str(close), allowed, remedy)]
