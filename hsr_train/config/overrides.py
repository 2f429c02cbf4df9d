"""What was typed: quoting of paths for Hydra's grammar, and parsing into keys and values.

Hydra refuses commas, parentheses, spaces in places, quotes and non-ASCII characters in a bare value. Users type paths
as their shell knows them, so values of path keys are quoted here before Hydra sees them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from hsr_train.config.names import nearest
from hsr_train.errors import InputError, Problem
from hsr_train.passwords import without_password

PATH_KEYS = (
    "data.path",
    "data.raw",
    "data.groups",
    "data.cache_dir",
    "model.weights",
    "output_dir",
    "resume",
    "reproduce",
    "sweep.dir",
    "sweep.warm_start",
)
PATH_LIST_KEYS = ("model.weights_dirs", "runs")

FUNCTIONS = ("interval", "choice", "range", "tag", "int")
"""Of Hydra's functions, those that say what is searched."""

_ASSIGNMENT = re.compile(r"(?P<key>\+{0,2}(?P<name>[\w.]+))=(?P<value>.*)", re.DOTALL)
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_DISTRIBUTION = re.compile(r"(?P<name>log|uniform|log_?uniform)\((?P<inner>.*)\)")
_INTERPOLATION = re.compile(r"(\\*)\$\{")


def quote_paths(overrides: Sequence[str], sweep: bool = False) -> list[str]:
    """Quote the values of path keys, so that any path may be typed as it is.

    What is quoted already stays, so the function may be applied twice.

    Args:
        overrides: Hydra overrides.
        sweep: Under --multirun a bare comma separates the values of a sweep, unless the whole value is a path that
            exists.
    """
    return [_quote_override(o, sweep) for o in overrides]


def _quote_override(override: str, sweep: bool) -> str:
    match = _ASSIGNMENT.fullmatch(override)
    if match is None:
        return override
    key, name, value = match["key"], match["name"], match["value"]
    if name in PATH_KEYS:
        if sweep and _looks_like_sweep(value) and not Path(value).exists():
            return override
        return f"{key}={_quote(value)}"
    if name in PATH_LIST_KEYS and value.startswith("[") and value.endswith("]") and not set("'\"") & set(value):
        return f"{key}=[{','.join(_quote(item.strip()) for item in value[1:-1].split(',') if item.strip())}]"
    return override


def _quote(value: str) -> str:
    if value in ("", "null", "???") or _QUOTED.fullmatch(value):
        return value
    # OmegaConf reads ${...} as a reference; a backslash makes it text, and backslashes before it count in pairs.
    literal = _INTERPOLATION.sub(lambda m: m[1] * 2 + "\\${", value)
    return QuotedString(literal, Quote.single).with_quotes()


def written(key: str, value: object) -> str:
    """Return what to type for a value that a search has chosen, as Hydra's grammar reads it.

    A text that means something else there is put in quotes; paths get theirs in `quote_paths`.

    Args:
        key: The searched key.
        value: One of its choices, as `Transformer.encode` returns it.
    """
    text = str(value)
    if not isinstance(value, str) or key in PATH_KEYS:
        return text
    try:
        is_read = not OverridesParser.create().parse_override(f"{key}={text}").is_sweep_override()
    except HydraException:
        is_read = False
    return text if is_read else QuotedString(text, Quote.double).with_quotes()


def _looks_like_sweep(value: str) -> bool:
    return not _QUOTED.fullmatch(value) and ("," in value or value.startswith(("choice(", "glob(")))


@dataclass(frozen=True)
class Typed:
    """The overrides of one command, parsed.

    Attributes:
        lines: As given.
        parsed: One entry per line.
    """

    lines: list[str]
    parsed: list[Override]

    @classmethod
    def parse(cls, overrides: Sequence[str]) -> Typed:
        """Parse overrides.

        Raises:
            InputError: With every override that Hydra's grammar refuses.
        """
        parser = OverridesParser.create()
        parsed, problems = [], []
        for line in overrides:
            try:
                parsed.append(parser.parse_override(line))
            except HydraException as error:
                problems.append(_unreadable(line, parser, " ".join(str(error).partition("\n")[0].split())))
        if problems:
            raise InputError(problems)
        return cls(list(overrides), parsed)

    @property
    def of_task(self) -> tuple[str, ...]:
        """The lines without those that set Hydra's own keys."""
        return tuple(line for line, o in zip(self.lines, self.parsed, strict=True) if not o.is_hydra_override())

    @property
    def keys(self) -> set[str]:
        """Keys and groups that were typed, Hydra's own left out; `train={epochs:3}` types `train.epochs`."""
        found: set[str] = set()
        for override in self.parsed:
            if not override.is_hydra_override():
                value = None if override.is_sweep_override() else override.value()
                found.update(_leaves(override.key_or_group, value))
        return found

    def value(self, key: str, default: Any = None) -> Any:
        """Return the value typed last for a key."""
        values = [o.value() for o in self.parsed if o.key_or_group == key and not o.is_sweep_override()]
        return values[-1] if values else default


def _leaves(key: str, value: Any) -> list[str]:
    if not isinstance(value, dict) or not value:
        return [key]
    return [leaf for name, inner in value.items() for leaf in _leaves(f"{key}.{name}", inner)]


def _as_interval(value: str) -> str | None:
    """Return an interval for a distribution as other programs write it, such as `log(1e-4,1e-2)`."""
    match = _DISTRIBUTION.fullmatch(value)
    if match is None:
        return None
    inner = match["inner"] if match["inner"].startswith("interval(") else f"interval({match['inner']})"
    return f"tag(log,{inner})" if "log" in match["name"] else inner


def _unreadable(line: str, parser: OverridesParser, reason: str) -> Problem:
    key, sign, value = line.partition("=")
    if not sign:
        return Problem(line, "", "is neither KEY=VALUE nor an option", f"{line.lstrip('+~')}=VALUE")
    fault = reason.partition(" while evaluating ")[2].partition("': ")[2]
    if fault.startswith("Unknown function "):
        name = fault.split("'")[1]
        meant = nearest(name, parser.functions.functions)
        right = value.replace(f"{name}(", f"{meant}(") if meant else QuotedString(value, Quote.double).with_quotes()
        right = _as_interval(value) or right
        return Problem(key, value, f"there is no function {name}; there are {', '.join(FUNCTIONS)}", f"'{key}={right}'")
    if fault:
        return Problem(key, value, f"is no proper call: {fault}", f"'{key}=interval(A,B)', or {key}=A,B,C")
    value = without_password(value) if key.lstrip("+") == "sweep.storage" else value
    quoted = QuotedString(value.replace(":***@", ":PASSWORD@"), Quote.double).with_quotes()
    return Problem(
        key or line,
        value,
        "has characters that mean something else here, and stands without quotes",
        f"'{key}={quoted}'",
    )
