"""What is typed now, laid on what a run recorded: the part that `resume=` and `reproduce=` share.

Only KEY=VALUE goes with them; groups, sections and unknown keys are refused. Which keys may differ is the matter of
`resume.py` and `reproduce.py`.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection
from typing import Any

from hsr_train.config.names import unknown_key
from hsr_train.config.overrides import Typed
from hsr_train.config.paths import CONF_DIR
from hsr_train.config.saved import plain
from hsr_train.config.schema import AnyExperiment
from hsr_train.config.strict import build, leaves, shown
from hsr_train.errors import Problem

Refusal = Callable[[str, str, str, str], Problem | None]
"""From a key, its recorded and its typed value as one would type them, and the line: why not; None if it may differ."""


def overlay(
    saved: AnyExperiment, typed: Typed, option: str, refusal: Refusal, apart: Collection[str] = ()
) -> tuple[AnyExperiment, list[Problem]]:
    """Lay overrides on a recorded experiment.

    Args:
        saved: As its run recorded it; not changed.
        typed: The overrides; one that repeats what is recorded is always allowed.
        option: resume or reproduce, for messages; that key itself is left out.
        refusal: Says which keys may differ.
        apart: Further keys that are not meant for the experiment.

    Returns:
        The experiment and all problems.
    """
    problems: list[Problem] = []
    data = copy.deepcopy(plain(saved))
    known = {key for key, _, _ in leaves(type(saved))}
    for override, line in zip(typed.parsed, typed.lines, strict=True):
        key = override.key_or_group
        if override.is_hydra_override() or key == option or key in apart:
            continue
        if override.is_sweep_override() or override.is_delete():
            problems.append(Problem(key, line, f"only KEY=VALUE goes with {option}=", "leave it out"))
            continue
        value = override.value()
        if key not in known:
            problems.append(_not_a_value(key, line, shown(value), saved, option))
            continue
        node, last = _place(data, key)
        if node[last] == value and type(node[last]) is type(value):
            continue
        refused = refusal(key, shown(node[last]), shown(value), line)
        if refused is not None:
            problems.append(refused)
        else:
            node[last] = value
    experiment, wrong = build(type(saved), data)
    return experiment, problems + wrong


def is_among(key: str, allowed: Collection[str]) -> bool:
    """Whether a key is listed; an entry with a final dot stands for its whole section."""
    return any(key == entry or (entry[-1] == "." and key.startswith(entry)) for entry in allowed)


def listed(allowed: Collection[str]) -> str:
    """Return such a list for a message."""
    return ", ".join(f"{key}*" if key.endswith(".") else key for key in allowed)


def start_anew(line: str, option: str) -> str:
    """Return the remedy of an override that does not go with an option."""
    return f"leave it out, or start a new run without {option}=: {line}"


def _place(data: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *sections, last = key.split(".")
    for section in sections:
        data = data[section]
    return data, last


def _not_a_value(key: str, line: str, value: str, saved: AnyExperiment, option: str) -> Problem:
    if key in (f.name for f in dataclasses.fields(saved)) or (CONF_DIR / key).is_dir():
        allowed = f"groups and sections take no part in {option}=; the run keeps its own"
        return Problem(key, line, allowed, start_anew(line, option))
    return unknown_key(key, type(saved), value)
