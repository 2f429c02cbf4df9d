"""In whose hands a trial is: a worker signs what it takes, and takes over what a dead one left.

A trial's user attribute `worker` says who has it, as `run.status` describes a process, with a heartbeat.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from hsr_train.run.status import is_alive, read_status

log = logging.getLogger(__name__)

DEAD_AFTER_S = 300.0
"""Without a heartbeat, on another machine; on this one the process is looked up."""
SETTLE_S = 0.5
"""Who takes a trial over says so and looks again after this time, since storages have no lock for it."""


class Hands:
    """One worker's hands on the trials of a study.

    Args:
        storage: Of the study.
        study_id: The study's.
        worker: Who it is, as `run.status` describes a process.
        called: Returns what a trial is called, by its number.
    """

    def __init__(
        self, storage: BaseStorage, study_id: int, worker: dict[str, Any], called: Callable[[int], str]
    ) -> None:
        self._storage, self._study_id, self._worker, self._called = storage, study_id, worker, called
        self.current: int | None = None
        """Number of the trial that it runs."""

    def take(self, trial: FrozenTrial) -> bool:
        """Claim a waiting trial; the storage grants it to one worker."""
        number = self._id(trial)
        try:
            # Before and after: who is killed in between must be known, and who lost the race must not be.
            self.sign(number)
            if not self._storage.set_trial_state_values(number, TrialState.RUNNING):
                return False
            self.sign(number)
            return True
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def sign(self, trial_id: int) -> None:
        """Say that a trial is in these hands, now."""
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        self._storage.set_trial_user_attr(trial_id, "worker", self._worker | {"state": "running", "updated": now})

    def has(self, trial: FrozenTrial) -> bool:
        """Whether a trial is signed by this worker."""
        return self._is_me(trial.user_attrs.get("worker") or {})

    def _is_me(self, process: Mapping[str, Any]) -> bool:
        return all(process.get(key) == self._worker[key] for key in ("host", "pid", "process"))

    def take_back(self, trials: list[FrozenTrial]) -> tuple[bool, bool]:
        """Let trials of dead workers wait again; return whether a run of one is still ending, and whether any waits."""
        dead = [t for t in trials if t.state == TrialState.RUNNING and self._is_dead(t)]
        ending = [t for t in dead if self._run_is_alive(t)]
        dead = [t for t in dead if t not in ending]
        if not dead:
            return bool(ending), False
        token = uuid.uuid4().hex
        for trial in dead:
            self._storage.set_trial_user_attr(self._id(trial), "taken_over_by", token)
        time.sleep(SETTLE_S)
        for trial in dead:
            now = self._storage.get_trial(self._id(trial))
            mine = now.user_attrs.get("taken_over_by") == token
            same = now.user_attrs.get("worker") == trial.user_attrs.get("worker")
            if now.state == TrialState.RUNNING and mine and same:
                log.info("%s was left by %s and goes on", self._called(trial.number), _who(trial))
                self._storage.set_trial_state_values(self._id(trial), TrialState.WAITING)
        return bool(ending), True

    def _is_dead(self, trial: FrozenTrial) -> bool:
        if self.has(trial):
            return trial.number != self.current
        return not is_alive(trial.user_attrs.get("worker") or {}, stale_after_s=DEAD_AFTER_S)

    def _run_is_alive(self, trial: FrozenTrial) -> bool:
        """Whether a run outlives its worker for a moment, to tidy up."""
        directory = trial.user_attrs.get("directory")
        status = read_status(Path(directory) / "status.json") if directory else None
        # One of this process itself has ended, even if a full disk kept it from saying so.
        return status is not None and not self._is_me(status) and is_alive(status)

    def _id(self, trial: FrozenTrial) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)


def _who(trial: FrozenTrial) -> str:
    worker = trial.user_attrs.get("worker") or {}
    return f"process {worker.get('pid')} on {worker.get('host')}"
