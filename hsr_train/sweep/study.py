"""A study of n trials that any number of workers share: claiming, taking over, telling.

The n trials wait in the storage from the start, and the only way to one is from WAITING to RUNNING, which a storage
grants to one worker. So `n_trials` is the total by construction: what a race enqueued beyond it is never claimed. A
trial of a dead worker goes back to WAITING and keeps its number.

A trial's user attributes: `worker` (who has it, as `run.status` describes a process, with a heartbeat), `overrides`,
`directory`; `pruned_at`, the epoch after which it is given up; at its end `metrics`, `seconds`, `epochs`, or `error`
(with a traceback), `cause`, `exit_status`. The study's: `format`, `task`, `objectives`, `space`, `command`.
"""

from __future__ import annotations

import json
import logging
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.status import is_alive, read_status
from hsr_train.sweep.points import difference, distributions, given_points
from hsr_train.sweep.pruners import pruner_for
from hsr_train.sweep.reporting import Reporter
from hsr_train.sweep.samplers import drawn, sampler_for
from hsr_train.sweep.storage import close_storage, open_storage, refused, shown_url
from hsr_train.sweep.study_types import Claim, Spec, Standing
from hsr_train.sweep.summary import Summary, summarize
from hsr_train.sweep.watch import Report

log = logging.getLogger(__name__)

FORMAT = 1
DEAD_AFTER_S = 300.0
"""Without a heartbeat, on another machine; on this one the process is looked up."""
HEARTBEAT_S = 30.0
STALLED_S = 2.0
"""So long without a new trial, whoever made the study is gone, or its total was raised: the rest is ours to add."""
SETTLE_S = 0.5
"""Who takes a trial over says so and looks again after this time, since storages have no lock for it."""
RETRIES_S = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses while a storage does not answer in the middle of a sweep."""


class Study:
    """One worker's door to a study."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._current: int | None = None
        self._is_open = False
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._storage: optuna.storages.BaseStorage | None = None
        self._reporter: Reporter | None = None

    def open(self, spec: Spec, worker: dict[str, Any]) -> Standing:
        """Find the study or make it, and see to it that its trials wait.

        Args:
            spec: What it is.
            worker: Who asks, as `run.status` describes a process.

        Raises:
            InputError: The storage cannot be used, the study is another one, or the space is not possible.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spec, self.worker = spec, worker
        self.space = distributions(spec.lines)
        self.points = given_points(spec, self.space)
        self.n_trials = spec.n_trials or len(self.points)
        if spec.sampler == "grid":
            self.n_trials = min(self.n_trials, len(self.points))
        sampler_for(spec.sampler, spec.seed, 0)
        self.storage = self._storage = open_storage(spec.url)
        directions = [StudyDirection[name.upper()] for name in spec.directions]
        with self._told():
            try:
                study = optuna.create_study(storage=self.storage, study_name=spec.name, directions=directions)
                is_new = True
            except optuna.exceptions.DuplicatedStudyError:
                study, is_new = optuna.load_study(study_name=spec.name, storage=self.storage), False
            self.study_id = self.storage.get_study_id_from_name(spec.name)
            if not is_new:
                self._let_its_maker_finish(study)
            self._require_same(study)
            missing = self.n_trials - len(self._trials())
            for _ in range(missing):
                if not is_new and len(self._trials()) >= self.n_trials:  # another one adds them, too
                    break
                study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))
            self._before = {t.number for t in self._trials() if t.state.is_finished()}
        self._heart = threading.Thread(target=self._beat, name="sweep heartbeat", daemon=True)
        self._heart.start()
        self._is_open = True
        return self.standing()

    def claim(self) -> Claim | None:
        """Take the next trial; None if every one is finished or in the hands of a living worker."""
        with self._told(), self._lock:
            trials = self._trials()
            busy, taken_back = self._take_back(trials)
            for trial in self._trials() if taken_back else trials:
                if trial.state == TrialState.WAITING and self._take(trial):
                    self._current = trial.number
                    return Claim(trial.number, self._overrides(trial), trial.user_attrs.get("directory"))
            return Claim(None) if busy else None

    def note(self, number: int, notes: Mapping[str, Any]) -> None:
        """Set attributes of a trial."""
        with self._told(), self._lock:
            for key, value in notes.items():
                self.storage.set_trial_user_attr(self._id(number), key, value)

    def tell(self, number: int, state: str, values: list[float] | None, notes: Mapping[str, Any]) -> bool:
        """Record a trial's end.

        Args:
            number: Of the trial.
            state: complete, pruned or fail.
            values: The objectives, of a complete one.
            notes: Further attributes.

        Returns:
            Whether it was still this worker's.
        """
        for pause_s in (*RETRIES_S, None):
            try:
                with self._told(), self._lock:
                    trial = self.storage.get_trial(self._id(number))
                    if trial.state != TrialState.RUNNING or not self._is_mine(trial):
                        self._current = None
                        return False
                    self.note(number, notes)
                    self._study(number).tell(number, values, TrialState[state.upper()])
                    self._current = None
                    return True
            except RunError:
                if pause_s is None:
                    raise
                log.warning("The storage refuses the result of trial %d; trying again in %.1f s", number, pause_s)
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    def report(self, number: int, epoch: int, value: float) -> bool:
        """Record the objective after an epoch of this worker's trial; return whether to give the trial up.

        A run that goes on shows its last epoch again: what was recorded stays, and so does what was decided.
        """
        with self._told(), self._lock:
            try:
                trial = self.storage.get_trial(self._id(number))
                if trial.state != TrialState.RUNNING or not self._is_mine(trial):
                    return False
                if "pruned_at" in trial.user_attrs:
                    return True
                if epoch not in trial.intermediate_values:
                    self.storage.set_trial_intermediate_value(self._id(number), epoch, value)
                    trial = self.storage.get_trial(self._id(number))
                study = self._study(number)
                if not study.pruner.prune(study, trial):
                    return False
                self.storage.set_trial_user_attr(self._id(number), "pruned_at", epoch)
                return True
            finally:
                self.storage.remove_session()  # of this thread, which may be one that ends now

    def reporter(self) -> Report:
        """Return the way by which a training reports its epochs: in this process, this one."""
        return self.report

    def release(self, number: int) -> None:
        """Give a trial back, to be gone on with later."""
        with self._told(), self._lock:
            self._current = None
            trial = self.storage.get_trial(self._id(number))
            if trial.state == TrialState.RUNNING and self._is_mine(trial):
                self.storage.set_trial_state_values(self._id(number), TrialState.WAITING)

    def standing(self) -> Standing:
        """Return how the study stands."""
        with self._told(), self._lock:
            trials = self._trials()
            states = {s.name.lower(): sum(t.state == s for t in trials) for s in TrialState}
            failed = [t for t in trials if t.state == TrialState.FAIL]
            recent = [t for t in trials if t.state.is_finished() and t.number not in self._before]
            recent.sort(key=lambda t: t.datetime_complete or datetime.max)
            causes = [str(t.user_attrs.get("cause", "")) for t in recent if t.state == TrialState.FAIL]
            study = self._study(0)
            several = len(self.spec.objectives) > 1
            best = [] if not states["complete"] else study.best_trials if several else [study.best_trial]
            return Standing(
                n_trials=self.n_trials,
                states=states,
                failed={t.number: int(t.user_attrs.get("exit_status", 1)) for t in failed},
                recent_failures=causes,
                recent=len(recent),
                best=[(t.number, list(t.values), list(t.user_attrs.get("overrides", []))) for t in best],
            )

    def show(self, home: Path, *, final: bool = False) -> None:
        """Write what shows how the study stands into the sweep's folder; what cannot be written is one warning.

        Args:
            home: The folder.
            final: Whether to draw what takes seconds in any case; else seldom enough.
        """
        if self._reporter is None:
            self._reporter = Reporter(home, lambda: self._summary(home))
        self._reporter.write(final=final)

    def _summary(self, home: Path) -> tuple[optuna.Study, Summary]:
        with self._told(), self._lock:
            study = self._study(0)
            return study, summarize(study, self._trials(), self.n_trials, home)

    def _let_its_maker_finish(self, study: optuna.Study) -> None:
        """Wait while somebody else makes this study: two who add its trials at once would add too many."""
        before, since = -1, time.monotonic()
        while time.monotonic() - since < STALLED_S:
            count = len(self._trials())
            if count >= self.n_trials and "format" in study.user_attrs:
                return
            if count != before:
                before, since = count, time.monotonic()
            time.sleep(random.uniform(0.05, 0.15))

    def _trials(self) -> list[FrozenTrial]:
        trials = self.storage.get_all_trials(self.study_id, deepcopy=False)
        return sorted((t for t in trials if t.number < self.n_trials), key=lambda t: t.number)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _study(self, number: int) -> optuna.Study:
        """Return the study with the sampler of one trial: made anew, so that it depends on the number alone."""
        sampler = sampler_for(self.spec.sampler, self.spec.seed, number)
        pruner = pruner_for(self.spec.pruning)
        return optuna.load_study(study_name=self.spec.name, storage=self.storage, sampler=sampler, pruner=pruner)

    def _take(self, trial: FrozenTrial) -> bool:
        """Claim a waiting trial; the storage grants it to one worker."""
        number = self._id(trial.number)
        try:
            # Before and after: who is killed in between must be known, and who lost the race must not be.
            self._sign(number)
            if not self.storage.set_trial_state_values(number, TrialState.RUNNING):
                return False
            self._sign(number)
            return True
        except optuna.exceptions.UpdateFinishedTrialError:
            return False

    def _sign(self, trial_id: int) -> None:
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        self.storage.set_trial_user_attr(trial_id, "worker", self.worker | {"state": "running", "updated": now})

    def _is_mine(self, trial: FrozenTrial) -> bool:
        return self._is_me(trial.user_attrs.get("worker") or {})

    def _is_me(self, process: Mapping[str, Any]) -> bool:
        return all(process.get(key) == self.worker[key] for key in ("host", "pid", "process"))

    def _take_back(self, trials: list[FrozenTrial]) -> tuple[bool, bool]:
        """Let trials of dead workers wait again; return whether a run of one is still ending, and whether any waits."""
        dead = [t for t in trials if t.state == TrialState.RUNNING and self._is_dead(t)]
        ending = [t for t in dead if self._run_is_alive(t)]
        dead = [t for t in dead if t not in ending]
        if not dead:
            return bool(ending), False
        token = uuid.uuid4().hex
        for trial in dead:
            self.storage.set_trial_user_attr(self._id(trial.number), "taken_over_by", token)
        time.sleep(SETTLE_S)
        for trial in dead:
            now = self.storage.get_trial(self._id(trial.number))
            mine = now.user_attrs.get("taken_over_by") == token
            same = now.user_attrs.get("worker") == trial.user_attrs.get("worker")
            if now.state == TrialState.RUNNING and mine and same:
                log.info("Trial %d was left by %s and goes on", trial.number, _who(trial))
                self.storage.set_trial_state_values(self._id(trial.number), TrialState.WAITING)
        return bool(ending), True

    def _is_dead(self, trial: FrozenTrial) -> bool:
        if self._is_mine(trial):
            return trial.number != self._current
        return not is_alive(trial.user_attrs.get("worker") or {}, stale_after_s=DEAD_AFTER_S)

    def _run_is_alive(self, trial: FrozenTrial) -> bool:
        """Whether a run outlives its worker for a moment, to tidy up."""
        directory = trial.user_attrs.get("directory")
        status = read_status(Path(directory) / "status.json") if directory else None
        # One of this process itself has ended, even if a full disk kept it from saying so.
        return status is not None and not self._is_me(status) and is_alive(status)

    def _overrides(self, trial: FrozenTrial) -> list[str]:
        """Return what a trial searches: what it was given before, or what the sampler says."""
        stored: list[str] | None = trial.user_attrs.get("overrides")
        if stored is not None:
            return stored
        values = self._suggest(trial)
        trial_id = self._id(trial.number)
        for name, distribution in self.space.items():
            if name not in trial.params:  # it was killed in the middle of this
                internal = distribution.to_internal_repr(values[name])
                self.storage.set_trial_param(trial_id, name, internal, distribution)
        overrides = [f"{name}={values[name]}" for name in self.space]
        self.storage.set_trial_user_attr(trial_id, "overrides", overrides)
        return overrides

    def _suggest(self, trial: FrozenTrial) -> dict[str, Any]:
        """Ask the sampler for all values at once, whatever a killed worker stored of them: the same each time."""
        fixed = self.points[trial.number] if trial.number < len(self.points) else {}
        if fixed.keys() == self.space.keys():
            return fixed
        return drawn(self._study(trial.number), trial, self.space, fixed)

    def _require_same(self, study: optuna.Study) -> None:
        """Refuse a study of something else; sign a new one.

        Raises:
            InputError: Its space, its objectives or what is the same for all trials differ.
        """
        mine = {
            "task": self.spec.task,
            "objectives": self.spec.objectives,
            "space": {name: json.loads(optuna.distributions.distribution_to_json(d)) for name, d in self.space.items()},
            "fixed": sorted(self.spec.fixed),
        }
        theirs = study.user_attrs
        if "format" not in theirs and not study.get_trials(deepcopy=False):  # or its maker was killed
            for key, value in (mine | {"command": self.spec.command, "format": FORMAT}).items():
                study.set_user_attr(key, value)
            return
        differing = [key for key, value in mine.items() if key in theirs and theirs[key] != value]
        directions = [d.name.lower() for d in study.directions]
        if directions != self.spec.directions:
            differing.append("directions")
        if differing or theirs.get("format") != FORMAT:
            what = "; ".join(difference(key, theirs.get(key), mine.get(key)) for key in differing) or "it is not ours"
            allowed = f"the study of this name in {shown_url(self.spec.url)} is another one: {what}"
            remedy = "sweep.study_name=ANOTHER, or sweep.dir=ANOTHER"
            raise InputError(Problem("sweep.study_name", self.spec.name, allowed, remedy))

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say in one line that a storage failed.

        Raises:
            InputError: It cannot be used.
            RunError: It was in use already, and refuses now.
        """
        try:
            yield
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError) as error:
            problem = refused(self.spec.url, error)
            if not self._is_open:
                raise problem from error
            raise RunError(f"{problem}\nNothing is lost. To go on: the same command again") from error

    def _beat(self) -> None:
        """Say every half minute that the current trial is in living hands, for those on other machines."""
        while not self._ended.wait(HEARTBEAT_S):
            with self._lock:
                if self._current is not None:
                    try:
                        with self._told():
                            self._sign(self._id(self._current))
                    except RunError as error:
                        log.warning("No heartbeat: %s", error)
                    finally:
                        self.storage.remove_session()
            if self._reporter is not None:
                self._reporter.show()
                self.storage.remove_session()

    def close(self) -> None:
        """End the heartbeat and the connections."""
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        if self._storage is not None:
            close_storage(self._storage)


def _who(trial: FrozenTrial) -> str:
    worker = trial.user_attrs.get("worker") or {}
    return f"process {worker.get('pid')} on {worker.get('host')}"
