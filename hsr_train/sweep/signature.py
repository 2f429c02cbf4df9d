"""What a study is signed with, so that no other search goes on with it; see `study` for its attributes."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution

from hsr_train.errors import InputError, Problem
from hsr_train.sweep.points import difference
from hsr_train.sweep.pruning import step_name
from hsr_train.sweep.stages import SIGNED
from hsr_train.sweep.storage import shown_url
from hsr_train.sweep.study_types import Spec, is_first_worker
from hsr_train.sweep.summary import is_begun

log = logging.getLogger(__name__)

FORMAT = 1
SEED = "sweep.seed"
"""Key of what decides the values of trials to come; typed, in a file, or with `hydra/sweeper/sampler`."""


def require_same(study: optuna.Study, spec: Spec, space: Mapping[str, BaseDistribution]) -> None:
    """Refuse a study of something else; sign a new one.

    Raises:
        InputError: Its space, its objectives or what is the same for all trials differ.
    """
    mine = {
        "task": spec.task,
        "objectives": spec.objectives,
        "constraints": spec.constraints,
        "space": {name: json.loads(optuna.distributions.distribution_to_json(d)) for name, d in space.items()},
        "fixed": sorted(spec.fixed),
        "step": step_name(spec.pruning),
    } | ({} if spec.stage is None else {SIGNED: spec.stage.kind})
    theirs = study.user_attrs
    if "format" not in theirs and not study.get_trials(deepcopy=False):  # or its maker was killed
        for key, value in (mine | {"command": spec.command, "seed": spec.seed, "format": FORMAT}).items():
            study.set_user_attr(key, value)
        return
    absent: dict[str, Any] = {"constraints": {}}  # in studies of before there were any
    differing = [key for key, value in mine.items() if theirs.get(key, absent.get(key, value)) != value]
    directions = [d.name.lower() for d in study.directions]
    if directions != spec.directions:
        differing.append("directions")
    if differing or theirs.get("format") != FORMAT:
        what = "; ".join(difference(key, theirs.get(key), mine.get(key)) for key in differing) or "it is not ours"
        allowed = f"the study of this name in {shown_url(spec.url)} is another one: {what}"
        remedy = "sweep.study_name=ANOTHER, or sweep.dir=ANOTHER"
        raise InputError(Problem("sweep.study_name", spec.name, allowed, remedy))
    first = theirs.get("seed", spec.seed)
    if spec.stage is None and spec.sampler != "grid" and spec.seed != first and is_first_worker():
        begun = f"this sweep was begun with {SEED}={first}"
        log.info("%s=%d changes only trials that are not begun yet: %s", SEED, spec.seed, begun)


def require_enough(study: optuna.Study, n_trials: int) -> None:
    """Refuse a total that would leave out what has been begun.

    Raises:
        InputError: It would.
    """
    begun = [trial.number for trial in study.get_trials(deepcopy=False) if is_begun(trial)]
    if begun and max(begun) >= n_trials:
        least = max(begun) + 1
        allowed = f"is less than the {least} trials that this sweep has begun"
        raise InputError(Problem("sweep.n_trials", str(n_trials), allowed, f"sweep.n_trials={least}, or more"))
