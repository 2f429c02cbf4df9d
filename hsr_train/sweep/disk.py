"""A sweep's space on disk: `sweep.keep_states` after each trial, and a warning where the trials to come will not fit.

A worker's own business, on the disk that it writes to: what another machine keeps elsewhere is left. No optuna.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hsr_train.errors import HsrTrainError
from hsr_train.run.directory import RunDirectory, is_run
from hsr_train.run.state_removal import remove_states, state_files
from hsr_train.sweep.agent import StudyDoor
from hsr_train.sweep.study_types import Ended, Spec, Standing, counted, is_first_worker

log = logging.getLogger(__name__)

AGAIN_S = 0.2
KEY = "sweep.keep_states"
ALL, BEST, NONE = "all", "best", "none"
LESS = {ALL: (BEST, NONE), BEST: (NONE,), NONE: ()}
"""What keeps less, the most first."""


@dataclass(frozen=True)
class Size:
    """What one trial takes on disk.

    Attributes:
        whole: Bytes of its folder when its training is over.
        states: Bytes of the training states in it.
    """

    whole: int
    states: int


class Disk:
    """What a worker keeps on its disk of the trials of a study.

    Args:
        study: Its door to the study.
        spec: What the study is.
        home: The sweep's folder.
    """

    def __init__(self, study: StudyDoor, spec: Spec, home: Path) -> None:
        self._study, self._spec, self._home = study, spec, home
        self._folder = home / spec.folder
        self._is_to_warn = is_first_worker()  # each command has a disk of its own, its local workers share it
        self._said: set[str] = set()

    def tidy(self) -> None:
        """Remove the states that are not to be kept; what cannot be removed is one warning."""
        if self._spec.keep_states != ALL:
            self._tidy(self._study.ended(self._home))

    def after_trial(self, number: int) -> None:
        """Do what is due when the study was told of a trial.

        Args:
            number: Of the trial, which may have failed.
        """
        if self._spec.keep_states == ALL and not self._is_to_warn:
            return
        ended, size, text = self._study.ended(self._home), None, None
        try:
            if self._is_to_warn and number in ended.complete:
                self._is_to_warn, size = False, size_of(self._folder / str(number))
            self._tidy(ended)
            if size is not None:
                text = warning(self._spec, size, self._study.standing(), ended, shutil.disk_usage(self._home).free)
        except OSError as error:
            text = f"whether the trials to come will fit on the disk is not known: {error}"
        if text is not None:
            log.warning("%s: %s", self._home, text)

    def _tidy(self, ended: Ended) -> None:
        removed, num_bytes = [], 0
        for number in spare(ended, self._spec.keep_states):
            of_trial = sum(map(self._removed, runs_of(self._folder / str(number))))
            removed += [f"{self._spec.folder}/{number}"] if of_trial else []
            num_bytes += of_trial
        if removed:
            text = "%s=%s: removed the training states of %s, %s"
            log.info(text, KEY, self._spec.keep_states, ", ".join(removed), in_bytes(num_bytes))

    def _removed(self, run: RunDirectory) -> int:
        try:
            return remove_states(run, f"{KEY}={self._spec.keep_states}")
        except HsrTrainError as error:  # somebody goes on with it by hand, or the disk refuses: the sweep matters more
            if str(error) in self._said:
                return 0
            time.sleep(AGAIN_S)
            if state_files(run):  # it was no other worker that removes them
                self._said.add(str(error))
                log.warning("The training states of %s stay: %s", run.path, error)
            return 0


def spare(ended: Ended, keep: str) -> list[int]:
    """Return the numbers of the trials whose states are not kept.

    Args:
        ended: The trials that are over.
        keep: `sweep.keep_states`.
    """
    if keep == ALL:
        return []
    kept = set(ended.best) if keep == BEST else set()
    return sorted({*ended.complete, *ended.pruned} - kept)


def runs_of(place: Path) -> Iterator[RunDirectory]:
    """Yield the run of a trial that is here, or, of a cross-validation, the run of each fold.

    Args:
        place: The trial's folder.
    """
    if is_run(place):
        yield RunDirectory(place)
        return
    for config in sorted(place.glob("*/*/config.yaml")):
        if is_run(config.parent):
            yield RunDirectory(config.parent)


def size_of(place: Path) -> Size:
    """Return what a trial takes on disk.

    Args:
        place: Its folder.
    """
    whole = sum(file.lstat().st_size for file in place.rglob("*") if not file.is_dir())
    return Size(whole, sum(file.stat().st_size for run in runs_of(place) for file in state_files(run)))


def warning(spec: Spec, size: Size, standing: Standing, ended: Ended, free: int) -> str | None:
    """Return the line that says that the trials to come will not fit, and what to type; None: they will.

    Args:
        spec: The study.
        size: Of its first trial with a result.
        standing: How the study stands; what a running trial has on disk already is counted as still to come.
        ended: Its trials that are over.
        free: Bytes that are free when states that are not kept are removed.
    """
    needed = _needed(spec, size, standing, spec.keep_states)
    if needed <= free:
        return None
    held = {keep: len({*ended.complete, *ended.pruned}) - len(spare(ended, keep)) for keep in LESS}
    fitting = [
        keep
        for keep in LESS[spec.keep_states]
        if _needed(spec, size, standing, keep) <= free + size.states * (held[spec.keep_states] - held[keep])
    ]
    typed = [f"the same command with {KEY}={' or '.join(fitting)}"] if fitting else ["make space"]
    return (
        f"{counted(standing.num_open, 'trial')} to come may need {in_bytes(needed)} of disk space "
        f"({in_bytes(size.whole)} each, {in_bytes(size.states)} of it training states; {KEY}={spec.keep_states}), "
        f"and {in_bytes(free)} are free: {', '.join([*typed, 'or another output_dir'])}"
    )


def remedy(spec: Spec) -> str:
    """Return what a message about a full disk adds to `the same command again`."""
    return f" (with {KEY}={NONE} it removes the states of finished trials first)" if spec.keep_states == ALL else ""


def in_bytes(number: int) -> str:
    """Return such as `7.5 GB`, `343 MB` or `1.2 MB`, in powers of ten as disks are sold."""
    if number >= 1e9:
        return f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.{0 if number >= 1e7 else 1}f} MB"


def _needed(spec: Spec, size: Size, standing: Standing, keep: str) -> int:
    """Return the bytes that trials to come need beside what is there, at the time when it is most."""
    left = standing.num_open
    if keep == ALL or (keep == BEST and len(spec.objectives) > 1):  # all may be on the Pareto front
        return left * size.whole
    at_once = min(standing.states["running"] + 1, left)
    return left * (size.whole - size.states) + at_once * size.states
