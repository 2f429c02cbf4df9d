"""Why Hydra refused, in our words: every override is looked at, then the file at fault.

Hydra stops at the first fault and names what it saw; a user wants all of them, with the key or choice that was
probably meant (`names.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast, get_origin

import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.default_element import ConfigDefault, GroupDefault
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hsr_train.config.architectures import FAMILIES
from hsr_train.config.architectures import split as detector
from hsr_train.config.names import nearest, unknown_key
from hsr_train.config.overrides import Typed
from hsr_train.config.registration import SCHEMAS
from hsr_train.config.schema import DetectExperiment, Experiment
from hsr_train.config.strict import describe, leaves, shown
from hsr_train.errors import Problem

# Everything that Hydra, OmegaConf and YAML raise about a configuration.
REFUSED = (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError)

_FIRST_LINE = "begin the file with the line: # @package _global_"
_INTERNAL_GROUPS = {"schema", "generated", "hydra"}


def explain(error: Exception, typed: Typed, config_name: str) -> tuple[list[Problem], Typed]:
    """Say what is wrong with a command that Hydra refused.

    Must be called while Hydra is still open on the configuration.

    Args:
        error: What Hydra raised.
        typed: The overrides.
        config_name: The primary configuration.

    Returns:
        The problems, at least one, and the overrides that are not to blame.
    """
    own, asked = _task_in(config_name, set()), typed.value("task")
    if own is not None and asked in SCHEMAS and asked != own:
        allowed = f"--config-name {config_name} is of task={own}"
        return [Problem("task", asked, allowed, "leave task= out, or --config-name")], Typed([], [])
    schema = SCHEMAS[nearest(str(asked or own), SCHEMAS) or "detect"]
    problems, lines, parsed = [], [], []
    for line, override in zip(typed.lines, typed.parsed, strict=True):
        problem = _override(override, line, schema)
        if problem is None:
            lines.append(line)
            parsed.append(override)
        else:
            problems.append(problem)
    return problems or [describe_error(error, schema)], Typed(lines, parsed)


def choices_of(schema: type[Experiment]) -> dict[str, list[str]]:
    """Return the choices that fit a task, by group; groups without any are left out."""
    fitting = {group: [o for o in sorted(_options(group)) if _fits(group, o, schema)] for group in sorted(_groups())}
    return {group: options for group, options in fitting.items() if options}


def describe_error(error: Exception, schema: type[Experiment] = DetectExperiment) -> Problem:
    """Describe a refusal that no override of ours explains: the fault is in a file, or in Hydra's own options."""
    if isinstance(error, MissingConfigException):
        return _missing_file(error)
    if isinstance(error, yaml.YAMLError):
        return _not_yaml(error)
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(error)
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip() or str(cause)
    file = text.split("'")[1] + ".yaml" if text.startswith("In '") else ""
    if not isinstance(cause, OmegaConfBaseException) or not cause.full_key:
        if "incompatible container types" in text:
            return Problem(file or "configuration", "", "must hold keys with values, not a list or a single value")
        return Problem(file or "configuration", "", " ".join(text.split()))
    where = f"{file}: " if file else ""
    if cause.full_key in ("preset", "gpu_tier", "task"):
        allowed = f"is a text, and not the section that {file or 'a file'} makes of it"
        return Problem(where + cause.full_key, "", allowed, _FIRST_LINE)
    types = {name: hint for name, hint, _ in leaves(schema)}
    section, _, inner = cause.full_key.partition(".")
    is_global = inner == "hydra" or any(name == inner or name.startswith(f"{inner}.") for name in types)
    if cause.full_key not in types and file.startswith(f"{section}/") and is_global:
        allowed = f"unknown key: without its first line {file} holds keys of the section {section}"
        return Problem(where + cause.full_key, "", allowed, _FIRST_LINE)
    if cause.full_key not in types and "not in" in str(cause):
        return unknown_key(cause.full_key, schema, where=where)
    value = str(cause).partition("\n")[0]
    if value.startswith("Value '") and cause.full_key in types:
        return Problem(where + cause.full_key, value.split("'")[1], f"must be {describe(types[cause.full_key])}")
    if cause.full_key in types and "incompatible container types" in value:
        remedy = f"{cause.full_key}=[{{...}}]" if get_origin(types[cause.full_key]) is list else ""
        return Problem(where + cause.full_key, "", f"must be {describe(types[cause.full_key])}", remedy)
    remedy = f"{cause.full_key}=VALUE" if cause.full_key in types and "interpolation" in value else ""
    return Problem(where + cause.full_key, "", value, remedy)


def _task_in(config_name: str, seen: set[str]) -> str | None:
    """Return the task that a primary configuration chooses itself, or through one that it begins with."""
    found = _loaded(config_name)
    if found is None or config_name in seen:
        return None
    entries = found.defaults_list or []
    for entry in entries:
        if isinstance(entry, GroupDefault) and entry.group == "task":
            return str(entry.value)
    below = [e.path for e in entries if isinstance(e, ConfigDefault) and e.path and not e.is_self()]
    return next((task for path in below if (task := _task_in(path, seen | {config_name}))), None)


def _override(override: Override, line: str, schema: type[Experiment]) -> Problem | None:
    key = override.key_or_group
    if override.is_hydra_override() or override.package is not None:
        return None
    if override.is_sweep_override():
        values = line.partition("=")[2]
        is_call = "(" in line  # which a shell reads as its own, and which is no list
        remedy = f"--multirun '{line}'" if is_call else f"--multirun {line}, or for a list {key}=[{values}]"
        return Problem(key, values, "several values need --multirun", remedy)
    if override.is_delete():
        return Problem(key, line, "nothing can be removed", f"{key}=VALUE")
    value = override.value()
    options = _options(key)
    if options:
        if value in options:
            choice = str(value)
            others = [known for known in SCHEMAS.values() if _fits(key, choice, known)]
            # What fits no task has a fault in its file, which is described as such.
            return of_another_task(key, choice, schema) if others and schema not in others else None
        fitting = [option for option in options if _fits(key, option, schema)]
        return _unknown_choice(key, shown(value), fitting or options, schema)
    types = {name: hint for name, hint, _ in leaves(schema)}
    if key not in types and not any(name.startswith(f"{key}.") for name in types):
        return unknown_key(key, schema, shown(value), _groups())
    if override.is_add():
        return Problem(key, line, "exists already and needs no plus sign", line.lstrip("+"))
    blank = OmegaConf.structured(schema)
    OmegaConf.set_struct(blank, True)  # As Hydra has it.
    try:
        OmegaConf.update(blank, key, value, merge=True)
    except OmegaConfBaseException as error:
        full = error.full_key or key
        if key in types and full.startswith(f"{key}."):  # A mapping such as adjust.at_most, which grows with a plus.
            return Problem(key, shown(value), "has no such entry yet", f"+{line}")
        if full not in types:
            return unknown_key(full, schema) if full != key else _a_section(key, value)
        is_list = get_origin(types[full]) is list
        remedy = f"{key}=[{value}]" if is_list and isinstance(value, str) else ""
        remedy = f"'{key}=[{line.partition('=')[2]}]'" if is_list and isinstance(value, dict) else remedy
        return Problem(full, shown(value), f"must be {describe(types[full])}", remedy)
    return None


def _a_section(key: str, value: object) -> Problem:
    return Problem(key, shown(value), "is a section of keys", f"{key}.KEY=VALUE")


def _options(group: str) -> list[str]:
    if group.partition("/")[0] in _INTERNAL_GROUPS:
        return []
    return _loader().get_group_options(group)


def _loaded(name: str) -> ConfigResult | None:
    """Return a file of the configuration, or None where there is none that can be read."""
    try:
        return _loader().repository.load_config(name)
    except REFUSED:  # Whoever chooses it is told why.
        return None


def _fits(group: str, option: str, schema: type[Experiment]) -> bool:
    """Whether a choice is made for a task: the task has every key that it sets."""
    found = _loaded(f"{group}/{option}")
    if group == "task" or found is None or not isinstance(found.config, DictConfig):
        return True
    values = cast(dict[str, Any], OmegaConf.to_container(found.config, resolve=False))
    if group == "model" and "name" in values:
        return (detector(str(values["name"])) is not None) == (schema is DetectExperiment)
    prefix = "" if found.header.get("package") == "_global_" else f"{group}."
    known = {key for key, _, _ in leaves(schema)}
    if not prefix and SCHEMAS.get(str(values.get("task")), schema) is not schema:
        return False
    keys = [key for key in _flat(values, prefix) if not key.startswith("hydra.")]  # a search says what it searches
    # A mapping such as adjust.at_most is one key, whatever is in it.
    return all(key in known or any(key.startswith(f"{name}.") for name in known) for key in keys)


def is_of_another_task(group: str, option: Any, schema: type[Experiment]) -> bool:
    """Return whether a group's choice is made for another task."""
    return isinstance(option, str) and not _fits(group, option, schema)


def sets(group: str, option: str) -> set[str]:
    """Return the keys that a choice sets, and the groups that it chooses, with what these set; {} if it is none."""
    found = _loaded(f"{group}/{option}") if option in _options(group) else None
    if found is None or not isinstance(found.config, DictConfig):
        return set()
    prefix = "" if found.header.get("package") == "_global_" else f"{group}."
    keys = set(_flat(cast(dict[str, Any], OmegaConf.to_container(found.config, resolve=False)), prefix))
    for entry in found.defaults_list or []:
        if isinstance(entry, GroupDefault) and not entry.is_self() and isinstance(entry.value, str):
            chosen = str(entry.group).lstrip("/")
            keys |= {chosen} | sets(chosen, entry.value)
    return keys


def _flat(node: Any, prefix: str) -> Iterator[str]:
    for name, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def of_another_task(group: str, value: str, schema: type[Experiment]) -> Problem:
    """Return the problem of a choice that is made for another task."""
    fitting = [option for option in _options(group) if _fits(group, option, schema)]
    task = next(name for name, known in SCHEMAS.items() if known is schema)
    others = [f"task={name}" for name, known in SCHEMAS.items() if known is not schema and _fits(group, value, known)]
    whose = (
        f"belongs to {' or '.join(others)}, and this is task={task}" if others else f"sets keys that task={task} lacks"
    )
    if not fitting:
        return Problem(group, value, whose, "leave it out")
    if group == "sweep" and others:
        return Problem(group, value, f"{whose}; there are {', '.join(sorted(fitting))}", f"{others[0]} {group}={value}")
    alike = [option for option in sorted(fitting) if option.endswith(value) or value.endswith(option)]
    meant = (alike or sorted(fitting))[0]
    return Problem(group, value, f"{whose}; there are {', '.join(sorted(fitting))}", f"{group}={meant}")


def _loader() -> ConfigLoaderImpl:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader


def _groups() -> list[str]:
    return [g for g in _loader().list_groups("") if g not in _INTERNAL_GROUPS]


def _unknown_choice(group: str, value: str, options: list[str], schema: type[Experiment] = DetectExperiment) -> Problem:
    meant = nearest(value, options)
    if group == "model":
        stem, dot, ending = value.rpartition(".")
        if dot and ending in ("pt", "pth", "onnx", "yaml") and stem not in options:
            return Problem(group, value, "is a file, and not an architecture", f"model.weights={value}")
        if schema is not DetectExperiment:  # Nearly every name of the libraries is like one that has a file.
            allowed = f"has no file of its own; there are {', '.join(sorted(options))}"
            other = f"model.name={value}" if value.startswith("timm/") else f"model.name={value} if torchvision has it"
            return Problem(group, value, allowed, f"did you mean model={meant}? or {other}" if meant else other)
        if meant is None:
            families = [f"{f}{{{','.join(s)}}}" for f, s in FAMILIES.items() if f"{f}{s[0]}" in options]
            allowed = f"is no detector of this program; there are {', '.join(families)}"
            return Problem(group, value, allowed, "model=yolov8n")
    allowed = f"must be one of {', '.join(sorted(options))}"
    return Problem(group, value, allowed, f"{group}={meant or sorted(options)[0]}")


def _missing_file(error: MissingConfigException) -> Problem:
    missing = (error.missing_cfg_file or "").removesuffix(".yaml")
    group, _, name = missing.rpartition("/")
    options = list(error.options or _options(group))
    if not group:
        return Problem("--config-name", missing, "there is no such file in conf or the --config-dir")
    problem = _unknown_choice(group, name, options) if options else None
    file = str(error).split("'")[1] if str(error).startswith("In '") else "config"
    where = f"{file}.yaml: " if file not in ("config", "hydra/config") else ""
    if problem is None:
        return Problem(f"{where}{missing}", "", "there is no such file in conf or the --config-dir")
    return Problem(where + problem.key, problem.value, problem.allowed, problem.remedy)


def _not_yaml(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    place = f"{mark.name}:{mark.line + 1}" if mark is not None else "configuration"
    return Problem(place, "", f"is not YAML: {getattr(error, 'problem', None) or ' '.join(str(error).split())}")


def _not_utf8(error: UnicodeDecodeError) -> Problem:
    """Find the file: the error holds its bytes, and no name."""
    for source in GlobalHydra.instance().config_loader().get_sources():
        for path in Path(source.path).rglob("*.yaml") if source.scheme() == "file" else ():
            try:
                path.read_text(encoding="utf-8")
            except UnicodeDecodeError as found:
                return Problem(str(path), "", f"is not UTF-8: {found.reason} at byte {found.start}", "save it as UTF-8")
    return Problem("configuration", "", f"is not UTF-8: {error.reason}")
