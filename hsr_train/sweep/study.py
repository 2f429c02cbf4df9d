"""A study of n trials that any number of workers share: claiming, taking over, telling.

The n trials wait in the storage from the start, and the only way to one is from WAITING to RUNNING, which a storage
grants to one worker. So `n_trials` is the total by construction: what a race enqueued beyond it is never claimed. A
trial of a dead worker goes back to WAITING and keeps its number (`takeover`).

What comes after a search is a study, too, with trials that are given (`stages`).

A trial's user attributes: `worker` (who has it, as `run.status` describes a process, with a heartbeat), `overrides`,
`directory`; `pruned_at`, the epoch (with `by_fold`, the fold) after which it is given up; at its end `metrics`,
`measured` (what has a limit), `seconds`, `epochs`, or `error` (with a traceback), `cause`, `exit_status`. The study's:
`format`, `task`, `objectives`, `constraints`, `space`, `step` (what reports are counted in), `seed` and `command` of
the beginning.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hsr_train.config.overrides import written
from hsr_train.errors import RunError
from hsr_train.sweep.foreseen import foresee
from hsr_train.sweep.objectives import broken, excess
from hsr_train.sweep.over import ended
from hsr_train.sweep.points import distributions, given_points
from hsr_train.sweep.progress import closing
from hsr_train.sweep.pruners import FeasibleStudy, pruner_for
from hsr_train.sweep.pruning import reports
from hsr_train.sweep.reporting import Reporter
from hsr_train.sweep.samplers import drawn, sampler_for
from hsr_train.sweep.signature import require_enough, require_same
from hsr_train.sweep.stages import Planned, distinct, planned, with_stages
from hsr_train.sweep.storage import close_storage, open_storage, refused
from hsr_train.sweep.study_types import Claim, Ended, Spec, Stage, Standing
from hsr_train.sweep.summary import Summary, summarize
from hsr_train.sweep.takeover import Hands
from hsr_train.sweep.watch import Report

log = logging.getLogger(__name__)

HEARTBEAT_S = 30.0
STALLED_S = 2.0
"""So long without a new trial, whoever made the study is gone, or its total was raised: the rest is ours to add."""
RETRIES_S = (0.5, 1.0, 2.0, 5.0, 10.0)
"""Pauses while a storage does not answer in the middle of a sweep."""


class Study:
    """One worker's door to a study."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_open = False
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._storage: optuna.storages.BaseStorage | None = None
        self._reporter: Reporter | None = None
        self._planned: list[Planned] = []

    def open(self, spec: Spec, worker: dict[str, Any]) -> Standing:
        """Find the study or make it, and see to it that its trials wait.

        Args:
            spec: What it is.
            worker: Who asks, as `run.status` describes a process.

        Raises:
            InputError: The storage cannot be used, the study is another one, or the space is not possible.
        """
        self._prepare(spec)
        self.storage = self._storage = open_storage(spec.url)
        directions = [StudyDirection[name.upper()] for name in spec.directions]
        with self._told():
            try:
                study = optuna.create_study(storage=self.storage, study_name=spec.name, directions=directions)
                is_new = True
            except optuna.exceptions.DuplicatedStudyError:
                study, is_new = optuna.load_study(study_name=spec.name, storage=self.storage), False
            self.study_id = self.storage.get_study_id_from_name(spec.name)
            self.hands = Hands(self.storage, self.study_id, worker, spec.called)
            if spec.stage is None:
                self._add_missing(study, is_new)
            else:
                self._add_planned(study, spec.stage)
            self._before = {t.number for t in self._trials() if t.state.is_finished()}
        self._heart = threading.Thread(target=self._beat, name="sweep heartbeat", daemon=True)
        self._heart.start()
        self._is_open = True
        return self.standing()

    def check(self, spec: Spec, home: Path) -> str | None:
        """Refuse what `open` would, without a server; return what was left unasked (`foreseen`)."""
        self._prepare(spec)
        with self._told():
            return foresee(spec, self.space, self.n_trials, home)

    def _prepare(self, spec: Spec) -> None:
        """Find out what is searched and where it begins, before the storage is touched."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.spec = spec
        self.space = distributions(spec.lines) if spec.lines else {}
        self.points = given_points(spec, self.space)
        self.n_trials = spec.n_trials or len(self.points)
        if spec.sampler == "grid":
            self.n_trials = min(self.n_trials, len(self.points))
        sampler_for(spec.sampler, spec.seed, 0, spec.sampler_options)

    def claim(self) -> Claim | None:
        """Take the next trial; None if every one is finished or in the hands of a living worker."""
        with self._told(), self._lock:
            trials = self._trials()
            busy, taken_back = self.hands.take_back(trials)
            for trial in self._trials() if taken_back else trials:
                if trial.state == TrialState.WAITING and self.hands.take(trial):
                    self.hands.current = trial.number
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
                    if trial.state != TrialState.RUNNING or not self.hands.has(trial):
                        self.hands.current = None
                        return False
                    self.note(number, notes)
                    limits = self.spec.constraints if values is not None else {}
                    for name, share in excess(limits, notes.get("measured", {})).items():
                        # What `Trial.set_constraint` does, for which there is no such object; again, it is the same.
                        self.storage.set_trial_system_attr(self._id(number), f"constraints:{name}", share)
                    self._study(number).tell(number, values, TrialState[state.upper()])
                    self.hands.current = None
                    return True
            except RunError:
                if pause_s is None:
                    raise
                log.warning("The storage refuses the result of trial %d; trying again in %.1f s", number, pause_s)
                time.sleep(pause_s)
        raise AssertionError("unreachable")

    def report(self, number: int, epoch: int, epochs: int, value: float) -> bool:
        """Record the objective after an epoch, of so many, of this worker's trial; return whether to give the trial up.

        A run that goes on shows its last epoch again: what was recorded stays, and so does what was decided.
        """
        with self._told(), self._lock:
            try:
                trial = self.storage.get_trial(self._id(number))
                if trial.state != TrialState.RUNNING or not self.hands.has(trial):
                    return False
                if "pruned_at" in trial.user_attrs:
                    return True
                news, is_due = reports(self.spec.pruning, epoch, epochs, value, trial.intermediate_values)
                for step, of_step in news.items():
                    self.storage.set_trial_intermediate_value(self._id(number), step, of_step)
                study = self._study(number)
                if self.spec.constraints:
                    study = FeasibleStudy(study.study_name, self.storage, study.sampler, study.pruner)
                if not is_due or not study.pruner.prune(study, self.storage.get_trial(self._id(number))):
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
            self.hands.current = None
            trial = self.storage.get_trial(self._id(number))
            if trial.state == TrialState.RUNNING and self.hands.has(trial):
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
            complete = [t for t in trials if t.state == TrialState.COMPLETE]
            best = _best_of(study) if complete else []
            nearest = None
            if complete and not best:
                trial = min(complete, key=_violation)
                nearest = trial.number, broken(self.spec.constraints, trial.user_attrs["measured"])
            return Standing(
                n_trials=self.n_trials,
                states=states,
                failed={t.number: int(t.user_attrs.get("exit_status", 1)) for t in failed},
                recent_failures=causes,
                recent=len(recent),
                best=[(t.number, list(t.values), list(t.user_attrs.get("overrides", []))) for t in best],
                nearest=nearest,
            )

    def ended(self, home: Path) -> Ended:
        """Return which trials are over; of a stage, its own.

        Args:
            home: The sweep's folder.
        """
        stage = self.spec.stage
        return ended(self._summary(home)[1], None if stage is None else stage.kind)

    def show(self, home: Path, *, final: bool = False) -> None:
        """Write what shows how the study stands into the sweep's folder; what cannot be written is one warning.

        Args:
            home: The folder.
            final: Whether to draw what takes seconds in any case; else seldom enough.
        """
        if self._reporter is None:
            self._reporter = Reporter(home, lambda: self._summary(home))
        self._reporter.write(final=final)

    def closing(self, home: Path) -> list[str]:
        """Return what is to be said at the end of what came after the search; nothing if there is nothing."""
        return closing(self._summary(home)[1])

    def _summary(self, home: Path) -> tuple[optuna.Study, Summary]:
        """Return the search and what came after it, whichever of them this study is."""
        stage = self.spec.stage
        name, n_trials = (self.spec.name, self.n_trials) if stage is None else (stage.search, stage.n_trials)
        with self._told(), self._lock:
            study = optuna.load_study(study_name=name, storage=self.storage)
            trials = [t for t in study.get_trials(deepcopy=False) if t.number < n_trials]
            summary = summarize(study, sorted(trials, key=lambda t: t.number), n_trials, home)
            return study, with_stages(summary, self.storage, home, stage, self._planned)

    def _add_missing(self, study: optuna.Study, is_new: bool) -> None:
        """Let a search have its total."""
        if not is_new:
            self._let_its_maker_finish(study)
        require_same(study, self.spec, self.space)
        require_enough(study, self.n_trials)
        missing = self.n_trials - len(self._trials())
        for _ in range(missing):
            if not is_new and len(self._trials()) >= self.n_trials:  # another one adds them, too
                break
            study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING))

    def _add_planned(self, study: optuna.Study, stage: Stage) -> None:
        """Let a stage have the runs that it is asked for; whoever adds them at the same time does no harm."""
        require_same(study, self.spec, self.space)
        self._planned = planned(stage, self._summary(stage.home)[1])
        self.n_trials = len(self._planned)
        there = {tuple(t.user_attrs["overrides"]) for t in self._trials()}
        for run in self._planned:
            if run.overrides not in there:
                notes = {"overrides": list(run.overrides), "of": run.of}
                study.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=notes))

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
        if self.spec.stage is not None:
            return distinct(trials, self._planned)
        return sorted((t for t in trials if t.number < self.n_trials), key=lambda t: t.number)

    def _id(self, number: int) -> int:
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def _study(self, number: int) -> optuna.Study:
        """Return the study with the sampler of one trial: made anew, so that it depends on the number alone."""
        sampler = sampler_for(self.spec.sampler, self.spec.seed, number, self.spec.sampler_options)
        pruner = pruner_for(self.spec.pruning)
        return optuna.load_study(study_name=self.spec.name, storage=self.storage, sampler=sampler, pruner=pruner)

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
        overrides = [f"{name}={written(name, values[name])}" for name in self.space]
        self.storage.set_trial_user_attr(trial_id, "overrides", overrides)
        return overrides

    def _suggest(self, trial: FrozenTrial) -> dict[str, Any]:
        """Ask the sampler for all values at once, whatever a killed worker stored of them: the same each time."""
        fixed = self.points[trial.number] if trial.number < len(self.points) else {}
        if fixed.keys() == self.space.keys():
            return fixed
        return drawn(self._study(trial.number), trial, self.space, fixed)

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
                if self.hands.current is not None:
                    try:
                        with self._told():
                            self.hands.sign(self._id(self.hands.current))
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


def _best_of(study: optuna.Study) -> list[FrozenTrial]:
    """Return the best trial, or all of the Pareto front; none where none holds the constraints."""
    if len(study.directions) > 1:
        return study.best_trials
    try:
        return [study.best_trial]
    except ValueError:
        return []


def _violation(trial: FrozenTrial) -> float:
    return sum(max(share, 0.0) for share in trial.constraints.values())
