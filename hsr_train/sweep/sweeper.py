"""What Hydra calls for --multirun: from typed sweeps to a study, its workers, and the end of it all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper

from hsr_train.errors import HsrTrainError, InputError, Problem
from hsr_train.run.log import success
from hsr_train.sweep.agent import RemoteStudy, StudyDoor
from hsr_train.sweep.checking import check_points, rehearse
from hsr_train.sweep.local import in_parallel
from hsr_train.sweep.own_runs import require_own_runs
from hsr_train.sweep.plan import Group, checked_search, specs_of
from hsr_train.sweep.repeated import SEED
from hsr_train.sweep.study_types import WINNER, Spec, Standing, counted, in_other_hands, is_first_worker
from hsr_train.sweep.worker import Worker, failure, this_process

log = logging.getLogger(__name__)

ENDS = {"complete": "complete", "pruned": "pruned", "fail": "failed"}


class HsrSweeper(Sweeper):
    """`hydra/sweeper=hsr`; the task function is the command's job (`worker.Job`)."""

    def __init__(self, params: dict[str, str] | None = None, sampler: dict[str, Any] | None = None) -> None:
        self.params = params
        self.options = sampler

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep the job, and what was chosen of Hydra's groups.

        Raises:
            InputError: Hydra's launcher is to take part, which it does not.
        """
        self.config_loader = hydra_context.config_loader
        self.job = task_function
        chosen = config.hydra.runtime.choices
        sampler = chosen.get("hydra/sweeper/sampler")
        self.group = Group(str(sampler), self.options) if self.options is not None else None
        launcher = chosen.get("hydra/launcher")
        if launcher not in (None, "basic"):
            allowed = "takes no part: a sweep's workers take its trials themselves"
            remedy = "sweep.jobs=N for N workers here, or the same command as N jobs (docs/sweeps.md, On a cluster)"
            raise InputError(Problem("hydra/launcher", str(launcher), allowed, remedy))

    def sweep(self, arguments: list[str]) -> None:
        """Check everything that is searched, then run what is missing of the study.

        Raises:
            InputError: A configuration is refused (before any trial has started), or all failures were such.
            RunError: Trials failed for other reasons known to us.
        """
        search = checked_search(arguments, self.params, self.group, self.config_loader, self.job)
        specs, home = specs_of(search, self.job)
        require_own_runs(specs[0], home)
        if search.first.mode == "check":
            door = _study(self.job)
            try:
                _require_makeable(home)
                unasked = door.check(specs[0], home)
            finally:
                door.close()
            check_points(search, specs, home, self.job, unasked)
            return
        settings, checked = search.first.sweep, search.checked
        if not any((home / "trials").glob("*/status.json")):
            rehearse(search, self.job)
        _make(home)
        log.info("Sweep of %s: %s", counted(int(specs[0].n_trials or 0), "trial"), home)

        # Of several workers in one terminal, the first that finds nothing open says how it ended.
        turn = get_context("fork").Lock() if settings.jobs > 1 else None

        def work() -> None:
            ends: list[Standing] = []
            for number, each in enumerate(specs):
                study, has_more = _study(self.job), number + 1 < len(specs)
                try:
                    total = study.open(each, this_process()).n_trials
                    if each.stage and is_first_worker():
                        log.info("%s", _said_first(each, total, ends[0]))
                    worker = Worker(
                        study=study,
                        spec=each,
                        job=self.job,
                        overrides=search.space.fixed,
                        checked=checked,
                        home=home,
                        max_failures=settings.max_failures,
                        total=total,
                        require_input=partial(rehearse, search, self.job),
                        is_patient=has_more,
                    )
                    study.show(home)
                    try:
                        worker.work()
                    except HsrTrainError:
                        study.show(home, final=True)
                        raise
                    study.show(home, final=not has_more)
                    ends.append(study.standing())
                    closing = study.closing(home)
                finally:
                    study.close()
            is_over = not any(end.num_open for end in ends)
            says = turn.acquire(False) if turn is not None and is_over else is_first_worker()
            _conclude(specs, ends, closing, home, says=says)

        if settings.jobs > 1:
            checked.clear()  # each worker's share of the machine may mean another tier
            in_parallel(work, settings.jobs, self.job)
        else:
            work()


def _study(job: Any) -> StudyDoor:
    """Return a door to the study: in a process of its own where this one forks its runs."""
    if job.supervise:
        return RemoteStudy()
    from hsr_train.sweep.study import Study

    return Study()


def _make(home: Path) -> None:
    try:
        (home / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made: {error.strerror or error}"
        raise InputError(Problem("sweep.dir", str(home), reason, "sweep.dir=FOLDER that can be written")) from error


def _require_makeable(home: Path) -> None:
    """Refuse a folder that cannot be made, and leave none behind.

    Raises:
        InputError: It cannot.
    """
    missing = [folder for folder in (home / "trials", home, *home.parents) if not folder.exists()]
    _make(home)
    with suppress(OSError):  # a search that has begun in it since
        for folder in missing:
            folder.rmdir()


def _said_first(spec: Spec, total: int, search: Standing) -> str:
    """Say what a stage is about to do: so many runs."""
    assert spec.stage is not None
    if not total:
        what, complete = "run at full length" if spec.is_winner else "repeats", search.states["complete"]
        why = f"of its {counted(complete, 'complete trial')} none holds sweep.constraints"
        return f"After the search, no {what}: {why if complete else 'none of its trials is complete'}"
    if spec.stage.seeds:
        seeds, best = ", ".join(map(str, spec.stage.seeds)), total // len(spec.stage.seeds)
        whose = "its best trial" if best == 1 else f"its {best} best trials"
        return f"After the search, {counted(total, 'repeat')} of {whose} with {SEED} {seeds}"
    return f"After the search, its winner at full length: {' '.join(spec.stage.words)}"


def _conclude(
    specs: Sequence[Spec], ends: Sequence[Standing], closing: Sequence[str], home: Path, *, says: bool
) -> None:
    """Say how the sweep stands.

    Args:
        specs: The search, and what came after it.
        ends: How each of these stands.
        closing: What is said of the latter.
        home: The sweep's folder.
        says: Whether another worker in this terminal does not say it.

    Raises:
        RunError: Trials failed.
        SystemExit: The same, and another worker says it.
    """
    statuses = [status for end in ends for status in end.failed.values()]
    if not says:
        if statuses:
            raise SystemExit(failure(statuses, "").exit_status)
        return
    standing = ends[0]
    open_states = sum(end.num_open for end in ends)
    for number, values, overrides in standing.best:
        named = ", ".join(f"{n} {v:.4g}" for n, v in zip(specs[0].objectives, values, strict=True))
        log.info(
            "%s: trial %d, %s, with %s", "Best of the search" if closing else "Best", number, named, " ".join(overrides)
        )
    if standing.nearest is not None:
        text = (
            "No trial holds sweep.constraints, and so there is no best.yaml. The nearest is trial %d, which breaks %s"
        )
        log.warning(text, *standing.nearest)
    for line in closing:
        log.info("%s", line)
    failures = []
    for spec, end in zip(specs, ends, strict=True):
        log.info("%s", _counts(spec, end))
        if end.failed:
            failures.append(_failed(spec, end))
    if open_states:
        log.info("%s; this worker has none left to take", in_other_hands(open_states))
    if failures:
        raise failure(statuses, "; ".join(failures))
    if not open_states:
        success(log, "Done: %s", home)


def _counts(spec: Spec, end: Standing) -> str:
    """Say how many of a study's trials came to what; of the winner at full length, what it came to."""
    found = {name: end.states[state] for state, name in ENDS.items() if not spec.stage or end.states[state]}
    if spec.is_winner:
        return f"{spec.called(None)}: {', '.join(found) or 'none'}"
    return f"{spec.noun}s: {', '.join(f'{number} {name}' for name, number in found.items()) or 'none'}"


def _failed(spec: Spec, end: Standing) -> str:
    """Say which of a study's trials failed."""
    if spec.is_winner:
        return f"{WINNER} failed"
    total = counted(end.n_trials, spec.noun.lower())
    return f"{len(end.failed)} of {total} failed: {', '.join(map(str, end.failed))}"
