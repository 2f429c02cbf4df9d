"""`resume=`: the experiment as its run recorded it, with the few overrides that may still change.

Neither today's YAML nor presets nor the detection of a tier take part; the record is read strictly (`saved.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

from hsr_train.config.overlay import is_among, listed, overlay, start_anew
from hsr_train.config.overrides import Typed
from hsr_train.config.reproduce import go_on_repeating
from hsr_train.config.saved import dump, load, plain
from hsr_train.config.schema import AnyExperiment, Experiment, Origin
from hsr_train.config.strict import shown
from hsr_train.config.values import check_values
from hsr_train.errors import InputError, Problem
from hsr_train.pace import time_problems
from hsr_train.run.changes import RESUMED, Change, apply, get_value, read_changes, undo
from hsr_train.run.record import flat

if TYPE_CHECKING:
    from hsr_train.run.directory import RunDirectory

# What a continued run may do differently without becoming another experiment; a final dot allows a whole section.
CHANGEABLE = (
    "data.cache_dir",
    "data.path",
    "data.raw",
    "export.",
    "recovery.",
    "tensorboard.",
    "train.cache",
    "train.device",
    "train.epochs",
    "train.finish_by",
    "train.measure_latency",
    "train.patience",
    "train.save_period",
    "train.time_budget",
    "train.val_batch",
    "train.workers",
)


def resumed(typed: Typed) -> AnyExperiment:
    """Return the experiment of the run that `resume=` names.

    Raises:
        InputError: No such run, a record that the schema refuses, or an override that would change the experiment.
    """
    # Here: composing needs the run room for nothing else.
    from hsr_train.run.directory import RunDirectory
    from hsr_train.run.find import find_run, obstacle

    reference = str(typed.value("resume"))
    output_dir = str(typed.value("output_dir", Experiment.output_dir))
    directory = RunDirectory(find_run(reference, Path(output_dir), extended="train.epochs" in typed.keys))
    run = directory.path
    saved = load(directory.config_yaml)
    changes = read_changes(directory.changes)
    apply(saved, changes)  # a run may have been killed between the two files
    _refuse_edits(saved, changes, directory)
    recorded = dump(saved)
    searched = reference == "last"  # output_dir then says where, and changes nothing
    experiment, problems = overlay(saved, typed, "resume", _refusal, apart=("output_dir",) if searched else ())
    hindered = obstacle(run, extended=experiment.train.epochs > saved.train.epochs)
    if hindered is not None:
        problems.insert(0, Problem("resume", reference, *hindered))
    if experiment.train.epochs < saved.train.epochs:
        allowed = f"the run has {saved.train.epochs}, and can only be extended"
        problems.append(Problem("train.epochs", str(experiment.train.epochs), allowed, "leave it out"))
    problems += _of_time(experiment, typed)
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
        changes=changes + _typed_changes(saved, experiment),
    )
    if saved.reproduce is not None:
        go_on_repeating(experiment.origin, directory, changes)
    return experiment


def _of_time(experiment: AnyExperiment, typed: Typed) -> list[Problem]:
    """Let what is typed now replace the time that the run had, or the time that of its epochs."""
    train = experiment.train
    mine = {"train.epochs", "train.time_budget", "train.finish_by"} & set(typed.keys)
    for name in ("time_budget", "finish_by"):
        if mine and f"train.{name}" not in mine:
            setattr(train, name, None)
    return time_problems(train, mine)


def _refuse_edits(saved: AnyExperiment, changes: Sequence[Change], run: RunDirectory) -> None:
    """Refuse a config.yaml that is not what the run recorded: whoever edits it wants another experiment.

    Raises:
        InputError: A key differs from the manifest's copy.
    """
    from hsr_train.run.manifest import read_manifest

    recorded = read_manifest(run).get("config")
    if recorded is None:  # of an earlier version
        return
    begun = deepcopy(saved)
    undo(begun, changes)
    now = flat(plain(begun))
    remedy = "put the recorded value back, or start a new run"
    problems = [
        Problem(f"{run.config_yaml}: {key}", shown(now[key]), f"was {shown(value)} when the run began", remedy)
        for key, value in flat(recorded).items()
        if key in now and now[key] != value
    ]
    if problems:
        raise InputError(problems)


def _typed_changes(saved: AnyExperiment, experiment: AnyExperiment) -> list[Change]:
    """Return what is typed now as changes of the run, except what leaves the training as it is."""
    return [
        Change(0, "resume", key, key, get_value(saved, key), get_value(experiment, key), RESUMED)
        for key in CHANGEABLE
        if key.startswith("train.") and get_value(saved, key) != get_value(experiment, key)
    ]


def _refusal(key: str, was: str, now: str, line: str) -> Problem | None:
    if is_among(key, CHANGEABLE):
        return None
    allowed = f"the run has {was}, and may change only {listed(CHANGEABLE)}"
    return Problem(key, now, allowed, start_anew(line, "resume"))
