"""What Hydra calls for --multirun: from typed sweeps to a study, its workers, and the end of it all."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper

from hsr_train.decisions import Decisions
from hsr_train.errors import HsrTrainError, InputError, Problem
from hsr_train.hardware import detect
from hsr_train.run.log import success
from hsr_train.sweep.agent import RemoteStudy, StudyDoor
from hsr_train.sweep.local import in_parallel
from hsr_train.sweep.objectives import LATENCY, LIMITED, MEASURE, chosen, limits, not_measurable
from hsr_train.sweep.pruning import chosen_pruning
from hsr_train.sweep.space import Space, left_out, read_space
from hsr_train.sweep.study_types import Spec, Standing
from hsr_train.sweep.urls import storage_url
from hsr_train.sweep.varied import same_thing, without_effect
from hsr_train.sweep.warm import own_values, warm_start_problems
from hsr_train.sweep.worker import Worker, failure, this_process

log = logging.getLogger(__name__)

N_TRIALS = 20
"""Of a search whose number of trials nobody typed."""
ENDS = {"complete": "complete", "pruned": "pruned", "fail": "failed"}
NO_MATTER = (
    "sweep.",
    "hydra.",
    "tensorboard.",
    "output_dir",
    "data.cache_dir",
    "train.workers",
    "train.device",
    MEASURE,
)
"""Typed keys that make no other study: they change how its trials run, and not what comes out."""


class HsrSweeper(Sweeper):
    """`hydra/sweeper=hsr`; the task function is the command's job (`worker.Job`)."""

    def __init__(self, params: dict[str, str] | None = None) -> None:
        self.params = params

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep the job; Hydra's launcher takes no part."""
        self.config_loader = hydra_context.config_loader
        self.job = task_function

    def sweep(self, arguments: list[str]) -> None:
        """Check everything that is searched, then run what is missing of the study.

        Raises:
            InputError: A configuration is refused (before any trial has started), or all failures were such.
            RunError: Trials failed for other reasons known to us.
        """
        space = read_space(arguments, self.params, self.config_loader)
        first = self.job.compose(space.first())
        typed = any("=" in a and a.partition("=")[0] in {d.key for d in space.dimensions} for a in arguments)
        space = space.without("sweep.")  # a trial's own record says nothing of the search
        settings = first.sweep
        objectives, directions, problems = chosen(first)
        constraints, wrong = limits(first)
        goals = list(dict.fromkeys([*objectives, *constraints]))
        problems += wrong + not_measurable(first, goals, detect())
        if LATENCY in goals and MEASURE not in [d.key for d in space.dimensions]:
            space = space.with_fixed(f"{MEASURE}=true")
        sampler = _sampler(space, settings)
        problems += _problems(space, first, sampler) + warm_start_problems(settings, sampler) + same_thing(space)
        decisions = Decisions()
        pruning, wrong = chosen_pruning(first, objectives, sampler, decisions)
        problems += wrong
        points = space.grid() if sampler == "grid" else space.ends()
        checked: dict[tuple[str, ...], Any] = {}
        for point in points:
            try:
                checked[tuple(point)] = self.job.compose(point)
            except InputError as error:
                problems += [p for p in error.problems if p not in problems]
        problems += [] if problems else without_effect(space, checked, goals)
        if problems:
            raise InputError(problems)
        for key in left_out(arguments, self.params):
            log.info("%s is typed, and so not what sweep= would search", key)
        if first.mode == "check":
            for experiment in checked.values():
                self.job.run(experiment)
            return
        if constraints and sampler not in LIMITED:
            log.info("sweep.sampler=%s does not look at sweep.constraints; what breaks one only has no rank", sampler)
        n_trials = _n_trials(space, settings, sampler, len(points), decisions)
        home, name = _place(first, space, typed)
        spec = Spec(
            url=storage_url(settings.storage, home),
            name=name,
            task=first.task,
            objectives=objectives,
            directions=directions,
            n_trials=n_trials,
            lines=[d.line for d in space.dimensions],
            fixed=_fixed(space),
            sampler=sampler,
            seed=settings.seed,
            own=own_values(space, self.job) if sampler != "grid" else {},
            enqueue=[dict(point) for point in settings.enqueue],
            warm_start=settings.warm_start,
            warm_start_best=settings.warm_start_best,
            command=[_without_password(word) for word in sys.argv],
            pruning=pruning,
            constraints=constraints,
        )
        _make(home)
        log.info("Sweep of %d trials: %s", n_trials, home)

        def work() -> None:
            study = _study(self.job)
            try:
                study.open(spec, this_process())
                worker = Worker(study, spec, self.job, space.fixed, checked, home, settings.max_failures)
                study.show(home)
                try:
                    worker.work()
                except HsrTrainError:
                    study.show(home, final=True)
                    raise
                study.show(home, final=True)
                _conclude(study.standing(), spec, home)
            finally:
                study.close()

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


def _sampler(space: Space, settings: Any) -> str:
    if settings.sampler != "auto":
        return str(settings.sampler)
    return "tpe" if space.continuous or settings.n_trials is not None else "grid"


def _problems(space: Space, experiment: Any, sampler: str) -> list[Problem]:
    problems = []
    if not space.dimensions:
        remedy = "--multirun KEY=A,B or 'KEY=interval(A,B)', or leave --multirun out"
        problems.append(Problem("--multirun", "", "nothing is searched: no key has several values", remedy))
    if sampler == "grid":
        allowed = "is a range to sample from, which a grid cannot do"
        remedy = "{}=A,B,C, or sweep.sampler=tpe"
        problems += [Problem(d.key, d.text, allowed, remedy.format(d.key)) for d in space.continuous]
    if experiment.mode not in ("train", "check"):
        allowed = "has nothing that a search could compare"
        problems.append(Problem("mode", experiment.mode, allowed, "hydra/sweeper=basic, which runs each and no more"))
    for point in experiment.sweep.enqueue:
        if not isinstance(point, dict):
            allowed = "must be a list of mappings from searched keys to values"
            problems.append(Problem("sweep.enqueue", str(point), allowed, "sweep.enqueue=[{optimizer.lr0: 0.01}]"))
    return problems


def _n_trials(space: Space, settings: Any, sampler: str, num_points: int, decisions: Decisions) -> int:
    if sampler == "grid":
        return min(settings.n_trials or num_points, num_points)
    if settings.n_trials is None:
        decisions.record("sweep.n_trials", N_TRIALS, "nobody typed how many of a search without end")
    return int(settings.n_trials or N_TRIALS)


def _fixed(space: Space) -> list[str]:
    return sorted(line for line in space.fixed if not line.lstrip("+").startswith(NO_MATTER))


def _place(experiment: Any, space: Space, typed: bool) -> tuple[Path, str]:
    """Return the sweep's folder and the study's name: the same for the same command, on every machine.

    Args:
        experiment: Of the search's first point.
        space: What is searched.
        typed: Whether a searched key was typed, beside what a file of sweeps/ searches.
    """
    settings = experiment.sweep
    chosen = [line.partition("=")[2] for line in space.fixed if line.startswith("sweep=")]
    words = chosen or [d.key.rpartition(".")[2] for d in space.dimensions]
    goals = [str(settings.objective), *([str(sorted(settings.constraints.items()))] if settings.constraints else [])]
    text = "\n".join([experiment.task, *(d.line for d in space.dimensions), *_fixed(space), *goals])
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    typed = typed or any(key.startswith("sweep.constraints") for key in experiment.origin.typed)
    is_as_written = chosen and not typed and all(line.startswith(("sweep=", "task=")) for line in _fixed(space))
    default = re.sub(r"[^\w.+-]+", "_", "_".join(words))[:80] + ("" if is_as_written else f"_{digest}")
    output_dir = Path(experiment.output_dir).expanduser().absolute()
    home = Path(settings.dir).expanduser().absolute() if settings.dir else output_dir / "sweeps" / default
    return home, settings.study_name or home.name


def _make(home: Path) -> None:
    try:
        (home / "trials").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"cannot be made: {error.strerror or error}"
        raise InputError(Problem("sweep.dir", str(home), reason, "sweep.dir=FOLDER that can be written")) from error


def _conclude(standing: Standing, spec: Spec, home: Path) -> None:
    """Say how the sweep stands.

    Raises:
        RunError: Trials failed.
    """
    running, waiting = standing.states["running"], standing.states["waiting"]
    for number, values, overrides in standing.best:
        named = ", ".join(f"{n} {v:.4g}" for n, v in zip(spec.objectives, values, strict=True))
        log.info("Best: trial %d, %s, with %s", number, named, " ".join(overrides))
    if standing.nearest is not None:
        text = (
            "No trial holds sweep.constraints, and so there is no best.yaml. The nearest is trial %d, which breaks %s"
        )
        log.warning(text, *standing.nearest)
    counts = ", ".join(f"{standing.states[state]} {name}" for state, name in ENDS.items())
    log.info("Trials: %s", counts)
    if running or waiting:
        log.info("%d trials are in other hands; this worker has none left to take", running + waiting)
    if standing.failed:
        which = ", ".join(map(str, standing.failed))
        raise failure(standing, f"{len(standing.failed)} of {standing.n_trials} trials failed: {which}")
    if not running and not waiting:
        success(log, "Done: %s", home)


def _without_password(word: str) -> str:
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", word)
