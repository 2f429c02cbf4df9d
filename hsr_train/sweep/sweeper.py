"""What Hydra calls for --multirun: from typed sweeps to a study, its workers, and the end of it all."""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.plugins.sweeper import Sweeper

from hsr_train.config.overrides import Typed
from hsr_train.decisions import Decisions
from hsr_train.errors import HsrTrainError, InputError, Problem
from hsr_train.hardware import detect
from hsr_train.run.log import success
from hsr_train.sweep.after import after_problems, first_words, stages_after
from hsr_train.sweep.agent import RemoteStudy, StudyDoor
from hsr_train.sweep.local import in_parallel
from hsr_train.sweep.objectives import LATENCY, LIMITED, MEASURE, chosen, limits, not_measurable
from hsr_train.sweep.pruning import chosen_pruning
from hsr_train.sweep.repeated import SEED
from hsr_train.sweep.space import Space, left_out, overridden, read_space
from hsr_train.sweep.study_types import NOUNS, Spec, Standing
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
        self.sampler = chosen.get("hydra/sweeper/sampler")
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
        sampler = str(self.sampler) if self.options is not None else _sampler(space, settings)
        problems += (
            self._of_sampler(arguments)
            + _problems(space, first, sampler)
            + warm_start_problems(settings, sampler)
            + same_thing(space)
        )
        points = space.grid() if sampler == "grid" else space.ends()
        checked: dict[tuple[str, ...], Any] = {}
        for point in points:
            try:
                checked[tuple(point)] = self.job.compose(point)
            except InputError as error:
                problems += [p for p in error.problems if p not in problems]
        decisions = Decisions()
        pruning, wrong = chosen_pruning(first, checked.values(), objectives, sampler, decisions)
        problems += wrong
        problems += [] if problems else without_effect(space, checked, goals)
        problems += after_problems(settings, space, Typed.parse(arguments).keys, list(checked.values()))
        later = [] if problems else self._composed_ahead(settings, space, list(checked.values()))
        if problems:
            raise InputError(problems)
        for key in left_out(arguments, self.params):
            log.info("%s is typed, and so not what sweep= would search", key)
        if first.mode == "check":
            for experiment in (*checked.values(), *later):
                self.job.run(experiment)
            return
        if constraints and sampler not in LIMITED:
            log.info("sweep.sampler=%s does not look at sweep.constraints; what breaks one only has no rank", sampler)
        options = self.options or {}
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
            seed=settings.seed if options.get("seed") is None else int(options["seed"]),
            own=own_values(space, self.job) if sampler != "grid" else {},
            enqueue=[dict(point) for point in settings.enqueue],
            warm_start=settings.warm_start,
            warm_start_best=settings.warm_start_best,
            command=[_without_password(word) for word in sys.argv],
            pruning=pruning,
            constraints=constraints,
            sampler_options=None if sampler == "grid" else self.options,
        )
        specs = [spec, *stages_after(settings, spec, list(checked.values()), home)]
        _make(home)
        log.info("Sweep of %d trials: %s", n_trials, home)

        def work() -> None:
            ends = []
            for number, each in enumerate(specs):
                study, has_more = _study(self.job), number + 1 < len(specs)
                try:
                    total = study.open(each, this_process()).n_trials
                    if each.stage:
                        log.info("%s", _said_first(each, total))
                    worker = Worker(
                        study, each, self.job, space.fixed, checked, home, settings.max_failures, total, has_more
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
            _conclude(specs, ends, closing, home)

        if settings.jobs > 1:
            checked.clear()  # each worker's share of the machine may mean another tier
            in_parallel(work, settings.jobs, self.job)
        else:
            work()

    def _composed_ahead(self, settings: Any, space: Space, experiments: list[Any]) -> list[Any]:
        """Return the search's first point as what comes after a search would have it, so that it can be refused now."""
        return [self.job.compose(overridden(space.first(), words)) for words in first_words(settings, experiments)]

    def _of_sampler(self, arguments: list[str]) -> list[Problem]:
        """Return what does not go with a choice of `hydra/sweeper/sampler`."""
        if self.options is None:
            return []
        problems = []
        for key, typed in (word.lstrip("+").split("=", 1) for word in arguments if "=" in word):
            if key == "sweep.sampler" and typed != self.sampler:
                allowed = f"is another one than hydra/sweeper/sampler={self.sampler}"
                problems.append(Problem(key, typed, allowed, "type one of them"))
        if self.options.get("constraints_func") is not None:
            function = str(self.options["constraints_func"])
            allowed, key = "would not reach the study's own process", "hydra.sweeper.sampler.constraints_func"
            problems.append(Problem(key, function, allowed, "sweep.constraints={METRIC: MOST}"))
        return problems


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
        remedy = "{}=A,B,C, or another sampler, such as tpe"
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


def _said_first(spec: Spec, total: int) -> str:
    """Say what a stage is about to do."""
    assert spec.stage is not None
    noun = NOUNS[spec.stage.kind]
    if not total:
        return f"No {noun}: no trial of the search is complete"
    if spec.stage.seeds:
        return (
            f"After the search, {total} {noun} of its best trials with {SEED} {', '.join(map(str, spec.stage.seeds))}"
        )
    return f"After the search, its winner at full length: {' '.join(spec.stage.words)}"


def _conclude(specs: Sequence[Spec], ends: Sequence[Standing], closing: Sequence[str], home: Path) -> None:
    """Say how the sweep stands.

    Args:
        specs: The search, and what came after it.
        ends: How each of these stands.
        closing: What is said of the latter.
        home: The sweep's folder.

    Raises:
        RunError: Trials failed.
    """
    standing = ends[0]
    open_states = sum(end.states[state] for end in ends for state in ("running", "waiting"))
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
        noun = NOUNS[spec.stage.kind] if spec.stage else "trials"
        counts = ", ".join(
            f"{end.states[state]} {name}" for state, name in ENDS.items() if not spec.stage or end.states[state]
        )
        log.info("%s: %s", noun.capitalize(), counts or "none")
        if end.failed:
            failures.append(f"{len(end.failed)} of {end.n_trials} {noun} failed: {', '.join(map(str, end.failed))}")
    if open_states:
        log.info("%d trials are in other hands; this worker has none left to take", open_states)
    if failures:
        raise failure([status for end in ends for status in end.failed.values()], "; ".join(failures))
    if not open_states:
        success(log, "Done: %s", home)


def _without_password(word: str) -> str:
    return re.sub(r"(://[^:/@\s]+):[^@\s]+@", r"\1:***@", word)
