"""Searches that vary what they say: no two keys point at the same thing, and each one makes a difference.

That a key exists and that its ends are possible is found by composing them, see `sweeper.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import permutations
from typing import Any

from hsr_train.config.refusals import sets
from hsr_train.config.saved import plain
from hsr_train.errors import Problem
from hsr_train.sweep.objectives import MEASURE, MEMORY, TIME
from hsr_train.sweep.space import Dimension, Space, pasted

_NO_RESULT = ("tensorboard.", "export.", "output_dir", "data.cache_dir", "train.save_period", MEASURE)
_COSTS_ONLY = {"train.workers": {TIME}, "train.cache": {TIME}, "train.val_batch": {TIME, MEMORY}}
"""Keys that change no metric, and which costs they change."""
_LABELS = ("preset", "gpu_tier", "output_dir", "sweep")


def same_thing(space: Space) -> list[Problem]:
    """Return a problem for each two searched keys of which one also says what the other is.

    Must be called while Hydra is open on the configuration.
    """
    return [p for one, other in permutations(space.dimensions, 2) if (p := _overlap(one, other)) is not None]


def without_effect(space: Space, checked: Mapping[tuple[str, ...], Any], goals: list[str]) -> list[Problem]:
    """Return a problem for each searched key that changes nothing that is searched for or limited.

    Args:
        space: What is searched.
        checked: Experiments by their overrides, those of `Space.ends` among them.
        goals: What is searched for, and what is limited.
    """
    problems = []
    unread = (*_NO_RESULT, *(key for key, costs in _COSTS_ONLY.items() if not costs & set(goals)))
    for dimension in space.dimensions:
        if dimension.key.startswith(unread):
            allowed = f"has no effect on {', '.join(goals)}"
            problems.append(Problem(dimension.key, dimension.text, allowed, f"{dimension.key}=VALUE, or leave it out"))
            continue
        runs: dict[str, dict[str, Any]] = {}
        for value in dimension.values:
            runs[value] = _run(checked[tuple(space.first(dimension.key, value))])
            alike = next((other for other in runs if other != value and runs[other] == runs[value]), None)
            if alike is not None:
                allowed = f"{alike} and {value} come to the same run, as the rest is typed"
                remedy = f"leave one of them out, or what is typed beside {dimension.key}"
                problems.append(Problem(dimension.key, dimension.text, allowed, remedy))
                break
    return problems


def _overlap(one: Dimension, other: Dimension) -> Problem | None:
    """Say that the first key decides the second, too."""
    below = other.key.startswith(f"{one.key}.")
    setting = [value for value in one.values if one.is_discrete and other.key in sets(one.key, value)]
    if not below and not setting:
        return None
    allowed = f"is searched, and so is {one.key}, " + (f"which sets it, too: {one.key}={setting[0]}" if setting else "")
    remedy = f"search one of the two: {pasted(one.line)}"
    if below:
        allowed = f"is searched, and so is {one.key}, of which it is a part"
        remedy = f"search one of the two, or {one.key}.name=A,B with {other.key}"
        if other.key == f"{one.key}.name":
            remedy = f"search one of the two: {pasted(one.line)}"
    return Problem(other.key, other.text, allowed, remedy)


def _run(experiment: Any) -> dict[str, Any]:
    return {key: value for key, value in plain(experiment).items() if key not in _LABELS}
