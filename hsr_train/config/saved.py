"""A run's own `config.yaml`: plain YAML of the typed experiment, written and read back strictly through the schema."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import yaml

from hsr_train.config.registration import SCHEMAS
from hsr_train.config.schema import AnyExperiment, Experiment
from hsr_train.config.strict import build, fields_of, shown
from hsr_train.errors import InputError, Problem


def plain(experiment: Experiment) -> dict[str, Any]:
    """Return an experiment's configuration, without its origin, as nested dictionaries."""
    values = asdict(experiment)
    return {name: values[name] for name in fields_of(type(experiment))}


def dump(experiment: Experiment) -> str:
    """Return the YAML text of an experiment; `load` reads it back."""
    return yaml.safe_dump(plain(experiment), sort_keys=False, allow_unicode=True, width=1000)


def load(source: str | Path) -> AnyExperiment:
    """Read an experiment back.

    Args:
        source: A path (`Path`), or the YAML text itself (`str`).

    Raises:
        InputError: The file cannot be read, or it has unknown keys or wrong types; every one is named.
    """
    name = str(source) if isinstance(source, Path) else "the saved configuration"
    try:
        data = yaml.safe_load(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    except OSError as error:
        raise InputError(Problem(name, "", f"cannot be read: {error.strerror or error}")) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        remedy = "restore the file from a copy, or start a new run"
        raise InputError(Problem(name, "", f"is not YAML: {' '.join(str(error).split())}", remedy)) from error
    task = data.get("task") if isinstance(data, dict) else None
    if task not in SCHEMAS:
        known = ", ".join(SCHEMAS)
        allowed = f"must be one of {known}: is this a run's config.yaml?"
        raise InputError(Problem(f"{name}: task", shown(task), allowed, "restore the file from a copy"))
    experiment, problems = build(SCHEMAS[task], data, where=f"{name}: ")
    if problems:
        raise InputError(problems)
    return cast(AnyExperiment, experiment)
