"""`reproduce=`: the experiment as its run began it, to be run once more in a directory of its own.

Like `resume.py` it reads the record strictly; neither today's YAML nor presets nor the detection of a tier take part.
What the original changed on its way (state/changes.json) is undone here and repeated by `recovery` at its epoch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hsr_train.config.checks import check
from hsr_train.config.overlay import is_among, overlay, start_anew
from hsr_train.config.overrides import Typed
from hsr_train.config.saved import dump, load, plain
from hsr_train.config.schema import AnyExperiment, Experiment, Origin
from hsr_train.config.strict import build, leaves, shown
from hsr_train.config.values import check_values
from hsr_train.errors import InputError, Problem
from hsr_train.run.changes import RESUMED, Change, changes_of, get_value, read_changes, undo

if TYPE_CHECKING:
    from hsr_train.run.directory import RunDirectory

# What may be typed without making it another experiment; whether data and weights are the same, their hashes tell.
FREE = (
    "output_dir",
    "tensorboard.",
    "mode",
    "on_drift",
    "reproduce",
    "data.path",
    "data.cache_dir",
    "synthetic.annotated_dir",
    "synthetic.masks_dir",
    "synthetic.backgrounds_dir",
    "synthetic.distractors_dir",
    "model.weights",
    "model.weights_dirs",
    "train.measure_latency",
)
# Names of choices that were made when the original was composed, and keys without a meaning here.
_FIXED = ("task", "preset", "gpu_tier", "adjust.", "resume", "runs")
# Typed on resume of the original to suit a machine. It leaves results as they are, or, the device, cannot be repeated.
_OF_THE_MACHINE = (
    *(f"train.{name}" for name in ("device", "workers", "cache", "save_period", "time_budget", "finish_by")),
)


def reproduced(typed: Typed) -> AnyExperiment:
    """Return the experiment of the run that `reproduce=` names.

    Raises:
        InputError: No such run, a record that the schema refuses, or an override that means nothing here.
    """
    # Here: composing needs the run room for nothing else.
    from hsr_train.run.directory import RunDirectory
    from hsr_train.run.find import find_original

    reference = str(typed.value("reproduce"))
    if typed.value("resume") is not None:
        remedy = "reproduce=DIR for a new run, or resume=DIR to go on with the old one"
        raise InputError(Problem("resume", str(typed.value("resume")), "does not go with reproduce=", remedy))
    original = RunDirectory(find_original(reference, Path(str(typed.value("output_dir", Experiment.output_dir)))))
    begun, changes = _begun(original.config_yaml, original.changes)
    experiment, problems = overlay(begun, typed, "reproduce", _refusal)
    if begun.mode != "train":
        allowed = f"is a run of mode={begun.mode}, and only training is reproduced"
        problems.insert(0, Problem("reproduce", reference, allowed, "name a training run"))
    elif experiment.mode not in ("train", "check"):
        problems.append(Problem("mode", experiment.mode, "with reproduce= there are train and check", "mode=check"))
    experiment.reproduce = str(original.path)
    # Each value must be possible. The combinations were checked, and decided on, when the original began; those that
    # are typed now are only checked: nothing is decided anew.
    problems += [p for p in check_values(experiment) if p.key not in {p.key for p in problems}]
    variation = _variation(begun, experiment, typed)
    if variation:
        found, _ = check(experiment, set(typed.keys), settled=True)
        problems += [p for p in found if p.key not in {p.key for p in problems}]
    if problems:
        raise InputError(problems)
    experiment.origin = Origin(
        overrides=typed.lines,
        typed=sorted(typed.keys),
        config_yaml=dump(begun),
        hydra_yaml="# Not composed: read from the record of the run that is reproduced.\n",
        reproduce_from=str(original.path),
        replay=[change for change in changes if not _is_left_out(change, typed)],
        variation=variation,
    )
    return experiment


def go_on_repeating(origin: Origin, run: RunDirectory, changes: list[Change]) -> None:
    """Give a resumed reproduction back what it repeats.

    Args:
        origin: Of the resumed run; changed in place.
        run: Its directory.
        changes: What has changed in it so far: what of that was repeated is not repeated again.

    Raises:
        InputError: reproduction.json is damaged.
    """
    from hsr_train.run.reproduction import read_reproduction

    record = read_reproduction(run)
    origin.reproduce_from, origin.variation = record["original"], record["variation"]
    origin.replay = changes_of(record["replay"], run.reproduction)
    for change in changes:
        if origin.replay and change == origin.replay[0]:
            origin.replay.pop(0)


def _begun(config_yaml: Path, changes_json: Path) -> tuple[AnyExperiment, list[Change]]:
    """Return the experiment as its run began, and what changed on the way."""
    saved, changes = load(config_yaml), read_changes(changes_json)
    known = {key for key, _, _ in leaves(type(saved))}
    unknown = [change.key for change in changes if change.key not in known]
    if unknown:
        raise InputError(Problem(str(changes_json), "", f"is damaged: there is no key {unknown[0]}"))
    undo(saved, changes)
    saved.reproduce, saved.on_drift = None, Experiment.on_drift  # of a run that was a reproduction itself
    saved.train.time_budget = saved.train.finish_by = None  # what they came to is among the changes
    begun, problems = build(type(saved), plain(saved), where=f"{changes_json}: ")
    if problems:
        raise InputError(problems)
    return begun, changes


def _refusal(key: str, was: str, now: str, line: str) -> Problem | None:
    if not is_among(key, _FIXED):
        return None
    allowed = f"the original has {was}, and groups and labels take no part in reproduce="
    return Problem(key, now, allowed, start_anew(line, "reproduce"))


def _variation(begun: AnyExperiment, experiment: AnyExperiment, typed: Typed) -> list[str]:
    """Return what is typed that makes it another experiment, in the words of the command line."""
    return [
        f"{key}={shown(get_value(experiment, key))} (original: {shown(get_value(begun, key))})"
        for key, _, _ in leaves(type(begun))
        if key in typed.keys and not is_among(key, FREE) and get_value(experiment, key) != get_value(begun, key)
    ]


def _is_left_out(change: Change, typed: Typed) -> bool:
    """Whether a change of the original is not repeated: what is typed now stays."""
    return change.key in typed.keys or (change.cause == RESUMED and change.key in _OF_THE_MACHINE)
