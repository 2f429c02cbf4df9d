"""Why Hydra refused, in our words: every override looked at, with the key or choice that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hsr_train.config.architectures import FAMILIES
from hsr_train.config.overrides import Typed
from hsr_train.config.registration import SCHEMAS
from hsr_train.config.schema import DetectExperiment, Experiment
from hsr_train.config.strict import describe, leaves, nearest, shown
from hsr_train.errors import Problem

_INTERNAL_GROUPS = {"schema", "generated", "hydra"}


def explain(error: Exception, typed: Typed) -> tuple[list[Problem], Typed]:
    """Say what is wrong with a command that Hydra refused.

    Must be called while Hydra is still open on the configuration.

    Returns:
        The problems, at least one, and the overrides that are not to blame.
    """
    problems = []
    lines, parsed = [], []
    schema = _schema(typed)
    for line, override in zip(typed.lines, typed.parsed, strict=True):
        problem = _look_at(override, schema)
        if problem is None:
            lines.append(line)
            parsed.append(override)
        else:
            problems.append(problem)
    return problems or [_in_a_file(error, schema)], Typed(lines, parsed)


def described(error: Exception) -> Problem:
    """Return what Hydra says about its own options or a file, as one problem."""
    return _in_a_file(error, DetectExperiment)


def unknown_key(key: str, schema: type[Experiment] = DetectExperiment) -> Problem:
    """Return the problem of a key that does not exist, with the nearest that does."""
    meant = nearest_key(key, [name for name, _, _ in leaves(schema)])
    remedy = f"did you mean {meant}?" if meant else "python -m hsr_train --cfg job prints every key"
    return Problem(key, "", "unknown key", remedy)


def nearest_key(key: str, known: Iterable[str]) -> str | None:
    """Return the dotted key that was probably meant: spelt alike, or of the same last name in another section."""
    known = list(known)
    last = key.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for name in known:
        by_last.setdefault(name.rpartition(".")[2], name)
    if last in by_last and not nearest(key, known):
        return by_last[last]
    found = nearest(key, known)
    if found:
        return found
    alike = nearest(last, by_last)
    return by_last[alike] if alike else None


def _schema(typed: Typed) -> type[Experiment]:
    return SCHEMAS.get(str(typed.value("task", "detect")), DetectExperiment)


def _options(group: str) -> list[str]:
    if group.partition("/")[0] in _INTERNAL_GROUPS:
        return []
    return GlobalHydra.instance().config_loader().get_group_options(group)


def _look_at(override: Override, schema: type[Experiment]) -> Problem | None:
    key, line = override.key_or_group, override.input_line or ""
    if override.is_hydra_override() or override.package is not None:
        return None
    if override.is_sweep_override():
        values = line.partition("=")[2]
        return Problem(
            key, values, "several values need --multirun", f"--multirun {line}, or for a list {key}=[{values}]"
        )
    if override.is_delete():
        return Problem(key, line, "nothing can be removed", f"{key}=VALUE")
    options = _options(key)
    value = override.value()
    if options:
        return None if value in options else _unknown_choice(key, shown(value), options)
    types = {name: hint for name, hint, _ in leaves(schema)}
    sections = {name.rpartition(".")[0] for name in types}
    if key not in types and key not in sections:
        group = nearest(key, _groups()) if "." not in key else None
        if group and isinstance(value, str):
            return Problem(key, "", "unknown key", f"did you mean {group}={value}?")
        return unknown_key(key, schema)
    if override.is_add():
        return Problem(key, line, "exists already", line.lstrip("+"))
    try:
        OmegaConf.update(OmegaConf.structured(schema), key, value, merge=True)
    except OmegaConfBaseException as error:
        full = error.full_key or key
        if full not in types:
            return unknown_key(full, schema)
        remedy = f"{key}=[{shown(value)}]" if "list" in str(types[full]) and isinstance(value, str) else ""
        return Problem(full, shown(value), f"must be {describe(types[full])}", remedy)
    return None


def _groups() -> list[str]:
    groups = GlobalHydra.instance().config_loader().list_groups("")
    return [g for g in groups if g not in _INTERNAL_GROUPS]


def _unknown_choice(group: str, value: str, options: list[str]) -> Problem:
    meant = nearest(value, options)
    if group == "model":
        if value.endswith((".pt", ".pth")) and value[: value.rindex(".")] not in options:
            return Problem(group, value, "is a file, not an architecture", f"model.weights={value}")
        families = [f"{f}{{{','.join(s)}}}" for f, s in FAMILIES.items() if f"{f}{s[0]}" in options]
        if meant is None:
            return Problem(group, value, f"is no detector; there are {', '.join(families)}", f"model={options[0]}")
    allowed = f"must be one of {', '.join(sorted(options))}"
    return Problem(group, value, allowed, f"{group}={meant}" if meant else f"{group}={options[0]}")


def _in_a_file(error: Exception, schema: type[Experiment]) -> Problem:
    """Describe a refusal that no override explains: the fault is in a file, or in Hydra's own options."""
    inner: BaseException | None = error
    while inner is not None and not isinstance(inner, OmegaConfBaseException):
        inner = inner.__cause__ or inner.__context__
    first, _, rest = str(error).strip().partition("\n")
    if isinstance(inner, OmegaConfBaseException) and inner.full_key:
        file = first.partition("'")[2].partition("'")[0] if first.startswith("In '") else ""
        where = f"{file}.yaml: " if file else ""
        types = {name: hint for name, hint, _ in leaves(schema)}
        if inner.full_key not in types and "not in" in str(inner):
            problem = unknown_key(inner.full_key, schema)
            return Problem(where + problem.key, "", problem.allowed, problem.remedy)
        return Problem(where + inner.full_key, "", str(inner).partition("\n")[0])
    return Problem("configuration", "", " ".join([first, *rest.split()]))
