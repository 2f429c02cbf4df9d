"""Plain data to typed dataclasses, strictly: the closed world, enforced in one place.

Used for what Hydra composed (`compose.py`) and for the saved configuration of a run (`saved.py`). Nothing is
converted except a whole number where a fraction is expected; every problem is reported, not only the first.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from hsr_train.errors import Problem

MISSING = "???"


def fields_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """Return the fields of a dataclass that are configuration, by name."""
    return {f.name: f for f in dataclasses.fields(cls) if not f.metadata.get("omegaconf_ignore")}


def leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """Yield dotted key, type and field of every value in a tree of dataclasses."""
    hints = typing.get_type_hints(cls)
    for name, f in fields_of(cls).items():
        if dataclasses.is_dataclass(hints[name]):
            yield from leaves(typing.cast(type, hints[name]), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", hints[name], f


def build(cls: type, data: Any, prefix: str = "", where: str = "") -> tuple[Any, list[Problem]]:
    """Make an instance of a dataclass from nested mappings.

    Args:
        cls: The dataclass.
        data: Its values; what is absent keeps its default.
        prefix: Dotted key of `data` in the whole, with a final dot.
        where: A file's name that is put before each key in a problem, for example `config.yaml: `.

    Returns:
        The instance (defaults where a value was refused) and all problems.
    """
    if not isinstance(data, Mapping):
        return cls(), [Problem(f"{where}{prefix.rstrip('.')}", shown(data), "must be a section of keys and values")]
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    known, hints = fields_of(cls), typing.get_type_hints(cls)
    for name, value in data.items():
        key = f"{where}{prefix}{name}"
        if name not in known:
            problems.append(_unknown(key, prefix, str(name), list(known)))
        elif dataclasses.is_dataclass(hints[name]):
            values[name], inner = build(typing.cast(type, hints[name]), value, f"{prefix}{name}.", where)
            problems += inner
        elif isinstance(value, str) and value == MISSING:
            problems.append(Problem(key, "", "has no value", f"{prefix}{name}=..."))
        elif fits(value, hints[name]):
            values[name] = float(value) if _wants_float(value, hints[name]) else value
        else:
            problems.append(Problem(key, shown(value), f"must be {describe(hints[name])}"))
    return cls(**values), problems


def fits(value: Any, hint: Any) -> bool:
    """Tell whether a plain value has the declared type."""
    if hint is Any:
        return True
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, arg) for arg in args)
    if hint is type(None):
        return value is None
    if origin is list:
        return isinstance(value, list) and all(fits(item, args[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint) or (hint is float and isinstance(value, int))


def describe(hint: Any) -> str:
    """Say in plain words what a type accepts."""
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is list:
        return f"a list such as [A,B], each {describe(args[0])}"
    if origin is dict:
        return "a mapping such as {KEY:VALUE}, each value " + describe(args[1])
    return names.get(hint, "any value")


def shown(value: Any) -> str:
    """Return a value as a user would type it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ",".join(shown(v) for v in value) + "]"
    return str(value)


def _unknown(key: str, prefix: str, name: str, known: list[str]) -> Problem:
    from hsr_train.config.names import nearest

    meant = nearest(name, known)
    remedy = f"did you mean {prefix}{meant}?" if meant else f"known here: {', '.join(known)}"
    return Problem(key, "", "unknown key", remedy)


def _wants_float(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int):
        return False
    accepted = typing.get_args(hint) or (hint,)
    return float in accepted and int not in accepted
