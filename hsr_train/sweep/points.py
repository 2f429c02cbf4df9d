"""The search space in Optuna's terms, and the points in it that no sampler chooses."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping
from typing import Any

from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hsr_train.errors import InputError, Problem
from hsr_train.sweep.previous import best_points
from hsr_train.sweep.study_types import Spec

log = logging.getLogger(__name__)


def given_points(spec: Spec, space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the points that are not the sampler's, by number; what one of them lacks, the sampler adds.

    They are what the configuration has without a search, those of the user, the best of another sweep, and a grid's.

    Raises:
        InputError: A point of the user lies outside the space, or the other sweep cannot be read.
    """
    own, points = _own(spec, space), _asked(spec, space)
    points = [*([own] if own and own not in points else []), *points]  # what the user lists twice is tried twice
    if spec.warm_start is not None:
        points += [p for p in _previous(spec, space) if p and p not in points]
    if spec.sampler == "grid":
        choices = [_all_values(d) for d in space.values()]
        combinations = [dict(zip(space, values, strict=True)) for values in itertools.product(*choices)]
        points += [p for p in combinations if p not in points]
    return points


def distributions(lines: list[str]) -> dict[str, BaseDistribution]:
    """Return Optuna's form of what was typed, by the plugin's own grammar."""
    space, _, _ = create_params_from_overrides(lines)
    return space


def _all_values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return list(range(distribution.low, distribution.high + 1, distribution.step))
    assert isinstance(distribution, FloatDistribution) and distribution.step is not None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    return [min(distribution.low + number * distribution.step, distribution.high) for number in range(count)]


def _fitting(distribution: BaseDistribution, value: Any) -> Any:
    """Return a value as the space has it; None if it lies outside."""
    if isinstance(distribution, CategoricalDistribution):
        return next((choice for choice in distribution.choices if _is_same(choice, value)), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value if distribution._contains(distribution.to_internal_repr(value)) else None


def _is_same(choice: Any, value: Any) -> bool:
    if isinstance(choice, bool) or isinstance(value, bool):
        return choice is value
    return choice == value or str(choice) == str(value)


def _own(spec: Spec, space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return the configuration's own values; a line says which ones are left to the sampler, and why."""
    point = {key: found for key, value in spec.own.items() if (found := _fitting(space[key], value)) is not None}
    for key, value in spec.own.items():
        if key not in point:
            log.info("Trial 0 has not the configuration's own %s=%s, which is outside of this search", key, value)
    return point


def _asked(spec: Spec, space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the points that the user gave.

    Raises:
        InputError: With every value that lies outside.
    """
    problems = []
    for key, value in ((key, value) for point in spec.enqueue for key, value in point.items()):
        if key not in space or _fitting(space[key], value) is None:
            allowed = f"is outside the search of {key}" if key in space else f"is not searched: {', '.join(space)}"
            problems.append(Problem("sweep.enqueue", f"{key}: {value}", allowed, "leave it out, or widen the search"))
    if problems:
        raise InputError(problems)
    return [{key: _fitting(space[key], value) for key, value in point.items()} for point in spec.enqueue]


def _previous(spec: Spec, space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the best points of another sweep, as far as they lie in the space."""
    points = []
    for number, values in best_points(spec):
        point = {k: found for k, v in values.items() if k in space and (found := _fitting(space[k], v)) is not None}
        lost = [f"{key}={value}" for key, value in values.items() if key not in point]
        shown = " ".join(f"{key}={value}" for key, value in point.items()) or "nothing"
        end = f"; outside of this search: {', '.join(lost)}" if lost else ""
        log.info("From trial %d of %s: %s%s", number, spec.warm_start, shown, end)
        points.append(point)
    return points


def difference(key: str, theirs: Any, mine: Any) -> str:
    """Say how an attribute of another study differs from ours."""
    if key == "fixed":
        only = [f"it has {line}" for line in theirs if line not in mine]
        return ", ".join(only + [f"it lacks {line}" for line in mine if line not in theirs])
    if key == "space":
        names = [name for name in {*theirs, *mine} if theirs.get(name) != mine.get(name)]
        return "it searches " + ", ".join(f"{n} in {_shown(theirs[n])}" if n in theirs else f"no {n}" for n in names)
    return f"its {key}: {theirs}"


def _shown(distribution: Mapping[str, Any]) -> str:
    of = distribution["attributes"]
    if "choices" in of:
        return ",".join(map(str, of["choices"]))
    return f"{'tag(log,' if of.get('log') else ''}interval({of['low']},{of['high']}){')' if of.get('log') else ''}"
