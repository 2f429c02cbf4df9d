"""What a command searches: the typed sweeps, read with Hydra's own grammar; no optuna, so that it costs nothing.

`study.py` makes Optuna's distributions of the same texts, with the plugin's own function.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, Transformer

from hsr_train.config.overrides import Typed, written
from hsr_train.errors import InputError, Problem


@dataclass(frozen=True)
class Dimension:
    """One searched key.

    Attributes:
        key: Key or group.
        text: What was typed for it.
        values: All its values as its trials type them; of an interval, its two ends.
        is_discrete: Whether those are all.
    """

    key: str
    text: str
    values: tuple[str, ...]
    is_discrete: bool

    @property
    def line(self) -> str:
        """The override, as typed."""
        return f"{self.key}={self.text}"


@dataclass(frozen=True)
class Space:
    """What is searched, and what is the same for every trial.

    Attributes:
        dimensions: The searched keys, in the order of typing.
        fixed: All other overrides.
    """

    dimensions: tuple[Dimension, ...]
    fixed: tuple[str, ...]

    @property
    def continuous(self) -> list[Dimension]:
        """The keys without a finite list of values."""
        return [d for d in self.dimensions if not d.is_discrete]

    def without(self, prefix: str) -> Space:
        """Return the same search without some of what is fixed."""
        return Space(self.dimensions, tuple(f for f in self.fixed if not f.lstrip("+").startswith(prefix)))

    def with_fixed(self, line: str) -> Space:
        """Return the same search with one override more, in place of what else is typed for its key."""
        key = line.partition("=")[0]
        return Space(self.dimensions, (*(f for f in self.fixed if f.lstrip("+").partition("=")[0] != key), line))

    def first(self, but: str | None = None, value: str = "") -> list[str]:
        """Return the overrides of one point: the first value of each key, and of one key, if it is named, another."""
        return [*self.fixed, *(f"{d.key}={value if d.key == but else d.values[0]}" for d in self.dimensions)]

    def last(self) -> list[str]:
        """Return the overrides of one point: the last value of each key."""
        return [*self.fixed, *(f"{d.key}={d.values[-1]}" for d in self.dimensions)]

    def grid(self) -> list[list[str]]:
        """Return the overrides of every combination."""
        lines = [[f"{d.key}={value}" for value in d.values] for d in self.dimensions]
        return [[*self.fixed, *point] for point in itertools.product(*lines)]

    def ends(self) -> list[list[str]]:
        """Return the overrides of points that together have every choice and both ends of every interval."""
        return [self.first(), *(self.first(d.key, value) for d in self.dimensions for value in d.values[1:])]


def read_space(arguments: Sequence[str], params: Mapping[str, Any] | None, config_loader: Any) -> Space:
    """Read the typed overrides, and `hydra.sweeper.params` for keys that are not typed.

    Raises:
        InputError: An interval that is empty, a choice of one, a key that is searched twice, or several tasks.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    typed = parser.parse_overrides(list(arguments))
    keys = Typed(list(arguments), typed).keys
    lines = [f"{key}={value}" for key, value in (params or {}).items() if key not in keys]
    overrides = [*parser.parse_overrides(lines), *typed]
    problems = [problem for o in overrides if o.is_sweep_override() for problem in _problems(o)]
    counts = Counter(o.key_or_group for o in overrides if not o.is_delete())
    searched = [o.key_or_group for o in overrides if o.is_sweep_override()]
    problems += [
        Problem(key, "", "is typed more than once, and one of these is a search", f"{key}=... once")
        for key in dict.fromkeys(searched)
        if counts[key] > 1
    ]
    if problems:
        raise InputError(problems)
    fixed = tuple(str(o.input_line) for o in overrides if not o.is_sweep_override())
    return Space(tuple(_dimension(o) for o in overrides if o.is_sweep_override()), fixed)


def overridden(words: Sequence[str], by: Sequence[str]) -> list[str]:
    """Return overrides with others behind them, without those of the same keys."""
    keys = {word.partition("=")[0].lstrip("+") for word in by}
    return [*(word for word in words if word.partition("=")[0].lstrip("+") not in keys), *by]


def pasted(line: str) -> str:
    """Return an override as it may be pasted into a shell: in quotes where it needs them."""
    return f'"{line}"' if "'" in line and not set('"$`\\!') & set(line) else shlex.quote(line)


def as_searched(problem: Problem, space: Space) -> Problem:
    """Return what is wrong with one value of a searched key, with the whole search in its remedy."""
    found = next((d for d in space.dimensions if d.key == problem.key), None)
    if found is None:
        return problem
    if not found.is_discrete and problem.allowed.startswith("must be a whole number"):
        return replace(problem, value=found.text, remedy=pasted(f"{found.key}=int({found.text})"))
    if problem.allowed == "unknown key" and re.fullmatch(r"[\w./]+=\S*", problem.remedy):
        return replace(problem, remedy=pasted(f"{problem.remedy.partition('=')[0]}={found.text}"))
    return problem


def left_out(arguments: Sequence[str], params: Mapping[str, Any] | None) -> list[str]:
    """Return the keys that a file would search, and that are typed."""
    typed = Typed.parse(arguments)
    return [key for key in params or {} if key in typed.keys]


def _problems(override: Override) -> list[Problem]:
    key, text = override.key_or_group, _text(override)
    if key == "task":  # each task has keys of its own
        remedy = "one command for each task, such as --multirun task=classify"
        return [Problem("task", text, "a grid is of one task", remedy)]
    if key.startswith("sweep.") or key == "sweep":
        return [Problem(key, text, "cannot be searched", f"{key}=[{text}] if a list is meant")]
    value = override.value()
    if isinstance(value, IntervalSweep):
        start, end = float(value.start or 0), float(value.end or 0)
        tags = "log" in value.tags
        if start == end:
            return [Problem(key, text, "is an empty interval: both ends are the same", f"{key}={value.start}")]
        if start > end:
            turned = f"interval({value.end},{value.start})"
            remedy = pasted(f"{key}=tag(log,{turned})" if tags else f"{key}={turned}")
            return [Problem(key, text, "is an empty interval: it begins above its end", remedy)]
        if tags and start <= 0:
            remedy = pasted(f"{key}=tag(log,interval(1e-5,{end}))")
            return [Problem(key, text, "a logarithmic interval begins above 0", remedy)]
        return []
    values = _values(override)
    if not values:
        return [Problem(key, text, "stands for no value at all", f"{key}=A,B")]
    if len(values) == 1:
        return [Problem(key, text, "is a choice of one, which leaves nothing to search", pasted(f"{key}={values[0]}"))]
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        return [
            Problem(key, text, f"names {twice[0]} more than once", pasted(f"{key}={','.join(dict.fromkeys(values))}"))
        ]
    return []


def _dimension(override: Override) -> Dimension:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return Dimension(override.key_or_group, _text(override), (str(value.start), str(value.end)), False)
    values = tuple(_values(override))
    text = ",".join(values) if isinstance(value, Glob) or "glob(" in _text(override) else _text(override)
    return Dimension(override.get_key_element(), text, values, True)


def _values(override: Override) -> list[str]:
    """Return the values of a choice as its trials type them, of which Optuna has these forms, too."""
    return [written(override.key_or_group, value) for value in override.sweep_iterator(transformer=Transformer.encode)]


def _text(override: Override) -> str:
    return (override.input_line or "").partition("=")[2]
