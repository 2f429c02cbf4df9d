"""The search space in Optuna's terms, and the points in it that no sampler chooses."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from hsr_train.errors import InputError, Problem
from hsr_train.sweep.study_types import Spec


def given_points(spec: Spec, space: Mapping[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Return the points that are not the sampler's, by number: those of the user, then those of a grid.

    Raises:
        InputError: A point of the user lies outside the space.
    """
    points = [_point(p, space) for p in spec.enqueue]
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


def _point(point: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
    """Return a point that the user gave, in the space's own values.

    Raises:
        InputError: It lies outside.
    """
    values: dict[str, Any] = {}
    problems = []
    for key, value in point.items():
        distribution = space.get(key)
        if isinstance(distribution, CategoricalDistribution):
            found = [choice for choice in distribution.choices if str(choice) == str(value)]
            values[key] = found[0] if found else None
            fits = bool(found)
        elif distribution is None:
            fits = False
        else:
            values[key] = value
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            fits = number and distribution._contains(distribution.to_internal_repr(value))
        if not fits:
            allowed = f"is outside the search of {key}" if key in space else f"is not searched: {', '.join(space)}"
            problems.append(Problem("sweep.enqueue", f"{key}: {value}", allowed, "leave it out, or widen the search"))
    if problems:
        raise InputError(problems)
    return values


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
