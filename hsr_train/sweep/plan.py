"""From the words of a search to what is to be done: everything checked, and nothing begun.

`sweeper.py` is called by Hydra and lets workers do it; no optuna here.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsr_train.config.overrides import Typed
from hsr_train.decisions import Decision, Decisions
from hsr_train.errors import InputError, Problem
from hsr_train.hardware import detect
from hsr_train.passwords import without_passwords
from hsr_train.sweep.after import after_problems, first_words, stages_after
from hsr_train.sweep.objectives import LATENCY, LIMITED, MEASURE, chosen, limits, not_measurable
from hsr_train.sweep.pruning import chosen_pruning, is_undecided, never_prunes
from hsr_train.sweep.space import Space, as_searched, left_out, overridden, read_space
from hsr_train.sweep.study_types import NO_MATTER, Pruning, Spec
from hsr_train.sweep.urls import storage_url
from hsr_train.sweep.varied import same_thing, without_effect
from hsr_train.sweep.warm import own_values, warm_start_problems
from hsr_train.sweep.worker import Job

log = logging.getLogger(__name__)

N_TRIALS = 20
"""Of a search whose number of trials nobody typed."""


@dataclass(frozen=True)
class Group:
    """A choice of `hydra/sweeper/sampler`.

    Attributes:
        name: Its name.
        options: Its content, a class (`_target_`) among it.
    """

    name: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Search:
    """A search whose every word is checked.

    Attributes:
        space: What is searched, and what is typed for every trial.
        first: Experiment of its first point.
        objectives: What is searched for.
        directions: maximize or minimize, for each.
        constraints: Limits by name.
        sampler: `sweep.sampler`, decided.
        group: What was chosen of Hydra's samplers.
        pruning: How trials are given up.
        checked: Experiments of the grid, or of the search's ends, by their overrides.
        later: Experiments of what comes after the search, of its first point.
        is_typed: Whether a searched key was typed, beside what a file of sweeps/ searches.
        decisions: What was decided.
    """

    space: Space
    first: Any
    objectives: list[str]
    directions: list[str]
    constraints: dict[str, float]
    sampler: str
    group: Group | None
    pruning: Pruning | None
    checked: dict[tuple[str, ...], Any]
    later: list[Any]
    is_typed: bool
    decisions: Decisions


def checked_search(
    arguments: list[str], params: Mapping[str, str] | None, group: Group | None, config_loader: Any, job: Job
) -> Search:
    """Return a search that can begin.

    Args:
        arguments: What was typed.
        params: `hydra.sweeper.params`, what a file searches.
        group: Choice of `hydra/sweeper/sampler`.
        config_loader: Hydra's, for its grammar.
        job: Composes experiments.

    Raises:
        InputError: With everything that is refused.
    """
    space = read_space(arguments, params, config_loader)
    first = _first(space, job, set(params or {}) - set(left_out(arguments, params)))
    is_typed = any("=" in a and a.partition("=")[0] in {d.key for d in space.dimensions} for a in arguments)
    space = space.without("sweep.")  # a trial's own record says nothing of the search
    settings, decided = first.sweep, list[Decision]()
    objectives, directions, problems = chosen(first)
    constraints, wrong = limits(first)
    goals = list(dict.fromkeys([*objectives, *constraints]))
    problems += wrong + not_measurable(first, goals, detect())
    if LATENCY in goals and MEASURE not in [d.key for d in space.dimensions]:
        space = space.with_fixed(f"{MEASURE}=true")
    sampler = group.name if group is not None else _sampler(space, settings)
    problems += _of_group(group, arguments) + _problems(space, first, sampler)
    problems += warm_start_problems(settings, sampler) + same_thing(space)
    checked, refused = _composed(space, space.grid() if sampler == "grid" else space.ends(), job)
    problems += refused
    pruning, wrong = chosen_pruning(first, checked.values(), objectives, sampler, decided)
    problems += wrong
    problems += [] if problems else without_effect(space, checked, goals)
    problems += after_problems(settings, space, Typed.parse(arguments).keys, list(checked.values()))
    if problems:
        raise InputError(problems)
    later = [job.compose(overridden(space.first(), words)) for words in first_words(settings, list(checked.values()))]
    decisions = Decisions()
    for decision in decided:
        decisions.record(decision.key, decision.value, decision.reason)
    for key in left_out(arguments, params):
        log.info("%s is typed, and so not what sweep= would search", key)
    trains = [e.train for e in checked.values()]
    lengths = set() if any(map(is_undecided, trains)) else {train.epochs for train in trains}
    if settings.pruner_warmup is not None and (idle := never_prunes(pruning, lengths)) is not None:
        log.warning("%s", idle)
    if constraints and sampler not in LIMITED:
        log.info("sweep.sampler=%s does not look at sweep.constraints; what breaks one only has no rank", sampler)
    return Search(
        space, first, objectives, directions, constraints, sampler, group, pruning, checked, later, is_typed, decisions
    )


def specs_of(search: Search, job: Job) -> tuple[list[Spec], Path]:
    """Return the study of a search and those of what comes after it, and the sweep's folder."""
    space, settings, sampler = search.space, search.first.sweep, search.sampler
    options = dict(search.group.options) if search.group is not None else None
    home, name = _place(search)
    spec = Spec(
        url=storage_url(settings.storage, home),
        name=name,
        task=search.first.task,
        objectives=search.objectives,
        directions=search.directions,
        n_trials=_n_trials(search),
        lines=[d.line for d in space.dimensions],
        fixed=_fixed(space),
        sampler=sampler,
        seed=settings.seed if options is None or options.get("seed") is None else int(options["seed"]),
        own=own_values(space, job) if sampler != "grid" else {},
        enqueue=[dict(point) for point in settings.enqueue],
        warm_start=settings.warm_start,
        warm_start_best=settings.warm_start_best,
        command=[without_passwords(word) for word in sys.argv],
        pruning=search.pruning,
        constraints=search.constraints,
        keep_states=settings.keep_states,
        sampler_options=None if sampler == "grid" else options,
    )
    return [spec, *stages_after(settings, spec, list(search.checked.values()), home)], home


def _first(space: Space, job: Job, of_file: set[str]) -> Any:
    """Return the experiment of a search's first point.

    Args:
        space: What is searched.
        job: Composes experiments.
        of_file: Searched keys that nobody typed: of the file that sweep= names.

    Raises:
        InputError: It is refused.
    """
    try:
        return job.compose(space.first())
    except InputError as error:
        # Where the file is refused as a whole, such as one of another task, its keys are not at fault.
        hidden = of_file if any(p.key == "sweep" for p in error.problems) else set()
        raise InputError([as_searched(p, space) for p in error.problems if p.key not in hidden]) from error


def _composed(
    space: Space, points: Sequence[Sequence[str]], job: Job
) -> tuple[dict[tuple[str, ...], Any], list[Problem]]:
    """Return the experiments of some points, and what is wrong with any."""
    checked: dict[tuple[str, ...], Any] = {}
    problems: list[Problem] = []
    for point in points:
        try:
            checked[tuple(point)] = job.compose(point)
        except InputError as error:
            found = [as_searched(p, space) for p in error.problems]
            problems += [p for p in found if p not in problems]
    return checked, problems


def _of_group(group: Group | None, arguments: list[str]) -> list[Problem]:
    """Return what does not go with a choice of `hydra/sweeper/sampler`."""
    if group is None:
        return []
    problems = []
    for key, typed in (word.lstrip("+").split("=", 1) for word in arguments if "=" in word):
        if key == "sweep.sampler" and typed != group.name:
            allowed = f"is another one than hydra/sweeper/sampler={group.name}"
            problems.append(Problem(key, typed, allowed, "type one of them"))
    if group.options.get("constraints_func") is not None:
        function = str(group.options["constraints_func"])
        allowed, key = "would not reach the study's own process", "hydra.sweeper.sampler.constraints_func"
        problems.append(Problem(key, function, allowed, "sweep.constraints={METRIC: MOST}"))
    return problems


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


def _n_trials(search: Search) -> int:
    n_trials, num_points = search.first.sweep.n_trials, len(search.checked)
    if search.sampler == "grid":
        return min(n_trials or num_points, num_points)
    if n_trials is None:
        search.decisions.record("sweep.n_trials", N_TRIALS, "nobody typed how many of a search without end")
    return int(n_trials or N_TRIALS)


def _fixed(space: Space) -> list[str]:
    return sorted(line for line in space.fixed if not line.lstrip("+").startswith(NO_MATTER))


def _place(search: Search) -> tuple[Path, str]:
    """Return the sweep's folder and the study's name: the same for the same command, on every machine."""
    experiment, space, typed = search.first, search.space, search.is_typed
    settings = experiment.sweep
    chosen = [line.partition("=")[2] for line in _fixed(space) if line.startswith("sweep=")]
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
