"""`resume=`: the experiment as its run recorded it, with the few overrides that may still change.

Neither today's YAML nor presets nor the detection of a tier take part; the record is read strictly (`saved.py`).
"""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

from hsr_train.config.names import unknown_key
from hsr_train.config.overrides import Typed
from hsr_train.config.paths import CONF_DIR
from hsr_train.config.saved import dump, load, plain
from hsr_train.config.schema import DetectExperiment, Experiment, Origin
from hsr_train.config.strict import build, leaves, shown
from hsr_train.config.values import check_values
from hsr_train.errors import InputError, Problem

# What a continued run may do differently without becoming another experiment; a final dot allows a whole section.
CHANGEABLE = (
    "data.cache_dir",
    "data.path",
    "export.",
    "tensorboard.",
    "train.cache",
    "train.device",
    "train.save_period",
    "train.val_batch",
    "train.workers",
)


def resumed(typed: Typed) -> DetectExperiment:
    """Return the experiment of the run that `resume=` names.

    Raises:
        InputError: No such run, a record that the schema refuses, or an override that would change the experiment.
    """
    from hsr_train.run.directory import find_run  # Here: composing needs the run room for nothing else.

    reference = str(typed.value("resume"))
    output_dir = str(typed.value("output_dir", Experiment.output_dir))
    run = find_run(reference, Path(output_dir))
    saved = load(run / "config.yaml")
    recorded = dump(saved)
    experiment, problems = _overlaid(saved, typed, searched=reference == "last")
    if saved.mode != "train":
        problems.insert(0, Problem("resume", reference, f"is a run of mode={saved.mode}, and only training goes on"))
    # Each value must be possible; the combinations were checked, and decided on, when the run began.
    found = check_values(experiment)
    known = {p.key for p in problems}
    problems += [p for p in found if p.key not in known]
    if problems:
        raise InputError(problems)
    experiment.origin = Origin(
        overrides=typed.lines,
        typed=sorted(typed.keys),
        config_yaml=recorded,
        resume_from=str(run),
    )
    return experiment


def _overlaid(saved: DetectExperiment, typed: Typed, searched: bool) -> tuple[DetectExperiment, list[Problem]]:
    problems: list[Problem] = []
    data = copy.deepcopy(plain(saved))
    known = {key for key, _, _ in leaves(type(saved))}
    for override, line in zip(typed.parsed, typed.lines, strict=True):
        key = override.key_or_group
        if override.is_hydra_override() or key == "resume" or (key == "output_dir" and searched):
            continue
        if override.is_sweep_override() or override.is_delete():
            problems.append(Problem(key, line, "only KEY=VALUE goes with resume=", "leave it out"))
            continue
        value = override.value()
        *sections, last = key.split(".")
        node = data
        for section in sections:
            node = node.get(section, {}) if isinstance(node, dict) else {}
        if key not in known:
            problems.append(_not_a_value(key, line, shown(value), saved))
        elif node.get(last) == value and type(node.get(last)) is type(value):
            continue
        elif not any(key == allowed or (allowed[-1] == "." and key.startswith(allowed)) for allowed in CHANGEABLE):
            was, now = shown(node.get(last)), shown(value)
            problems.append(
                Problem(key, now, f"the run has {was}, and may change only {_changeable()}", _new_run(line))
            )
        else:
            node[last] = value
    experiment, refused = build(type(saved), data)
    return experiment, problems + refused


def _not_a_value(key: str, line: str, value: str, saved: DetectExperiment) -> Problem:
    if key in (f.name for f in dataclasses.fields(saved)) or (CONF_DIR / key).is_dir():
        return Problem(key, line, "groups and sections take no part in resume=; the run keeps its own", _new_run(line))
    return unknown_key(key, type(saved), value)


def _changeable() -> str:
    return ", ".join(f"{key}*" if key.endswith(".") else key for key in CHANGEABLE)


def _new_run(line: str) -> str:
    return f"leave it out, or start a new run without resume=: {line}"
