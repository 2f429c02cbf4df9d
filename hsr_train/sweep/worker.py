"""One worker: it takes a trial, runs it like any other run, tells the study, and takes the next.

A trial's run lies in `trials/<number>`, one of a stage after the search in that stage's folder. A run that is there
already goes on by exact resume, or, if it is finished, is only told.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from hsr_train.errors import HsrTrainError, InputError, Problem, PrunedError, RunError
from hsr_train.run.atomic import is_full, write_json
from hsr_train.run.directory import RunDirectory, is_run
from hsr_train.run.status import process_identity, read_status
from hsr_train.sweep.agent import StudyDoor
from hsr_train.sweep.disk import Disk
from hsr_train.sweep.ends import End, complete, disk_full, failed, fault_of_all, no_fault_of, pruned
from hsr_train.sweep.own_runs import require_own
from hsr_train.sweep.space import overridden
from hsr_train.sweep.study_types import Claim, Spec, in_other_hands
from hsr_train.sweep.watch import Watch

log = logging.getLogger(__name__)

POLL_S = 0.3
OTHERS_S = 1.0
"""How often a worker that waits for the others' last trials looks."""
SAME_CAUSE = 3
"""So many first trials that all fail for one cause end a sweep."""
GO_ON = "To go on: type the same command again"


class Job(Protocol):
    """How the command runs an experiment."""

    def compose(self, overrides: Sequence[str]) -> Any:
        """Return the checked experiment of some overrides."""
        ...

    def again(self, overrides: list[str]) -> Any:
        """Return the experiment that goes on with a run."""
        ...

    def rehearse(self, experiment: Any) -> None:
        """Prepare it, and do no more."""
        ...

    def run(self, experiment: Any, watch: Watch | None = None) -> Any:
        """Run it: supervised, recovered, recorded; each epoch (of a cross-validation, each fold) is shown."""
        ...


def this_process() -> dict[str, Any]:
    """Return who this is, in the words of `run.status`."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "process": process_identity(os.getpid())}


@dataclass(frozen=True)
class Worker:
    """One worker.

    Attributes:
        study: Its door to the study.
        spec: What the study is.
        job: How a trial runs.
        overrides: What is typed for every trial.
        checked: Experiments composed ahead, by their overrides.
        home: The sweep's folder.
        max_failures: `sweep.max_failures`.
        total: Number of trials of the whole study.
        require_input: Refuses what no trial could be prepared with now.
        is_patient: Whether to wait for trials in other hands, since something comes after them.
    """

    study: StudyDoor
    spec: Spec
    job: Job
    overrides: Sequence[str]
    checked: dict[tuple[str, ...], Any]
    home: Path
    max_failures: int
    total: int
    require_input: Callable[[], None]
    is_patient: bool = False

    def work(self) -> None:
        """Run trials until none is left for this worker.

        Raises:
            RunError: Too many failed.
            InputError: The same, where the input was at fault each time.
        """
        is_waiting, disk = False, Disk(self.study, self.spec, self.home)
        disk.tidy()  # an earlier command may have kept more
        while True:
            claim = self.study.claim()
            if claim is None or claim.number is None:
                others = self._in_other_hands() if claim is None and self.is_patient else 0
                if claim is None and not others:
                    return
                if others and not is_waiting:
                    log.info("%s; waiting for what they come to", in_other_hands(others))
                    is_waiting = True
                _wait(OTHERS_S if others else POLL_S)
                continue
            has_result = self._trial(claim.number, claim)
            disk.after_trial(claim.number)
            self.study.show(self.home)
            if not has_result:
                self._require_hope()

    def _in_other_hands(self) -> int:
        states = self.study.standing().states
        return states["running"] + states["waiting"]

    def _trial(self, number: int, claim: Claim) -> bool:
        """Run one trial and tell of it; return whether it came to a result."""
        place, name = self.home / self.spec.folder / str(number), self.spec.called(number)
        of = f" of {self.total}" if self.total > 1 else ""
        log.info("%s%s: %s", name, of, " ".join(claim.overrides))
        try:
            require_own(self.spec, claim.overrides, place)
            self.study.note(number, {"directory": str(place)})
            end = self._end(claim, place)
        except KeyboardInterrupt as stop:
            self._give_back(number)
            stop.__notes__ = [GO_ON]  # and not how its run would go on by itself
            raise
        except HsrTrainError:
            self._give_back(number)
            raise
        if end.state == "fail":
            log.error("%s with %s failed: %s", name, " ".join(claim.overrides), end.said)
        if not self.study.tell(number, end.state, end.values, end.notes):
            log.warning("%s was taken over by another worker meanwhile; its result is not told", name)
        elif end.state != "fail":
            log.info("%s: %s", name, end.said)
        return end.state != "fail"

    def _end(self, claim: Claim, place: Path) -> End:
        """Run one trial; return what it came to.

        Raises:
            HsrTrainError: It came to nothing, and is not at fault: the next one would end like it.
        """
        began, has_begun, name = time.monotonic(), is_run(place), self.spec.called(claim.number)
        try:
            return complete(self.spec, self._record(claim, place))
        except PrunedError as error:
            return pruned(error, place, time.monotonic() - began)
        except Exception as error:
            if is_full(str(error)):
                raise disk_full(error, self.spec, name) from error
            if refused := fault_of_all(error, self.spec, self.require_input, place, has_begun=has_begun):
                raise no_fault_of(name, error, refused) from error
            return failed(error, place, time.monotonic() - began)

    def _give_back(self, number: int) -> None:
        try:
            self.study.release(number)
        except HsrTrainError as error:  # the stop goes on; the trial is found by its dead worker
            log.warning("%s is not given back: %s", self.spec.called(number), error)

    def _record(self, claim: Claim, place: Path) -> dict[str, Any]:
        """Run a trial, or what is missing of it; return its training_result.json, or what stands for it."""
        if claim.directory is not None and Path(claim.directory) != place and not is_run(place):
            log.warning(
                "%s starts anew: its run is not on this machine (%s)", self.spec.called(claim.number), claim.directory
            )
        run, status = RunDirectory(place), read_status(place / "status.json") if is_run(place) else None
        if status is not None and status.get("state") == "completed":
            log.info("%s is done: %s", self.spec.called(claim.number), place)
            return _read(run)
        if status is not None and status.get("state") == "pruned":
            raise PrunedError(str(status.get("message")))
        if status is not None:
            log.info("%s goes on: %s", self.spec.called(claim.number), place)
            if this_process().items() <= status.items():  # it ended here, and a full disk kept it from saying so
                write_json(run.status, status | {"state": "failed"})
            self.job.run(self.job.again([f"resume={place}"]), self._watch(claim.number))
            return _read(run)
        overrides = tuple(overridden(self.overrides, claim.overrides))
        experiment = self.checked.pop(overrides, None) or self.job.compose(overrides)
        if experiment.is_cross_validation:  # it finds its own folds again
            experiment.output_dir = str(place)
            result = self.job.run(experiment, self._watch(claim.number, "fold"))
            return {"metrics": dict(result.metrics), **result.extra.get("costs", {})}
        _clear(place)
        experiment.origin.run_dir = str(place)
        result = self.job.run(experiment, self._watch(claim.number))
        return _read(run) if run.training_result.is_file() else {"metrics": dict(result.metrics)}

    def _watch(self, number: int | None, of: str = "epoch") -> Watch | None:
        if self.spec.pruning is None or number is None:
            return None
        return Watch(self.study.reporter(), number, self.spec.objectives[0], of)

    def _require_hope(self) -> None:
        """End a sweep whose trials fail.

        Raises:
            RunError: They do.
        """
        standing = self.study.standing()
        causes = standing.recent_failures
        if len(causes) == standing.recent == SAME_CAUSE and len(set(causes)) == 1:
            text = f"The sweep ends: its first {SAME_CAUSE} trials failed for the same cause: {causes[0]}"
        elif len(causes) >= self.max_failures:
            text = f"The sweep ends: {len(causes)} trials failed, and sweep.max_failures={self.max_failures}"
        else:
            return
        raise failure(standing.failed.values(), text)


def _wait(seconds: float) -> None:
    try:
        time.sleep(seconds)
    except KeyboardInterrupt as stop:
        stop.add_note(GO_ON)
        raise


def failure(statuses: Collection[int], text: str) -> HsrTrainError:
    """Return the error of a sweep with failed trials: of the input, if each of them was by its exit status."""
    if statuses and all(status == InputError.exit_status for status in statuses):
        return InputError(Problem("--multirun", "", text))
    return RunError(text)


def _read(run: RunDirectory) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(run.training_result.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise RunError(f"{run.training_result} cannot be read: {error}") from error


def _clear(place: Path) -> None:
    """Remove what a run left that was killed before it had its records.

    Raises:
        InputError: There is more.
    """
    if not place.exists():
        return
    valuable = [name for name in ("results.csv", "config.yaml") if (place / name).exists()]
    valuable += [
        name for name in ("state", "weights") if any((place / name).glob("*"))
    ]  # made empty before config.yaml
    if valuable:
        allowed = f"is no run that can go on, and holds {', '.join(valuable)}"
        raise InputError(Problem("trial", str(place), allowed, f"restore it, or move it away: mv {place} {place}.old"))
    log.info("Removed: %s, which was killed before it had a record", place)
    shutil.rmtree(place)
