"""`sweep.seeds` and `sweep.retrain_best`: what is asked for after a search, as specs of studies, and what is refused.

No optuna. Which trials are repeated or retrained is known when the search is over: see `stages.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hsr_train.errors import Problem
from hsr_train.sweep.pruning import is_undecided
from hsr_train.sweep.repeated import SEED
from hsr_train.sweep.space import Space
from hsr_train.sweep.study_types import BEST, FOLDERS, SEEDS, Spec, Stage, stage_name

EPOCHS, MAX_STEPS = "train.epochs", "train.max_steps"


def after_problems(settings: Any, space: Space, typed: set[str], experiments: Sequence[Any]) -> list[Problem]:
    """Return what is wrong with what is to come after a search.

    Args:
        settings: Section `sweep`.
        space: What is searched.
        typed: Keys that were typed.
        experiments: Of the search's points.
    """
    problems, seeds = [], str(settings.seeds)
    if settings.seeds:
        if any(d.key == SEED for d in space.dimensions):
            allowed, remedy = f"does not go with a search of {SEED}", "leave it out: the search compares seeds already"
            problems.append(Problem("sweep.seeds", seeds, allowed, remedy))
        if any(e.task == "classify" and e.trainer.name == "dp" for e in experiments):
            allowed = "would make the noise of trainer=dp follow from seeds that anybody can guess"
            problems.append(Problem("sweep.seeds", seeds, allowed, "leave it out"))
    elif "sweep.top_k" in typed:
        shown, allowed = str(settings.top_k), "has no effect without sweep.seeds, the number of repeats of each"
        problems.append(Problem("sweep.top_k", shown, allowed, f"sweep.seeds=3 sweep.top_k={shown}"))
    if not settings.retrain_best:
        if settings.retrain_epochs is not None:
            shown, allowed = str(settings.retrain_epochs), "has no effect without sweep.retrain_best=true"
            remedy = f"sweep.retrain_best=true sweep.retrain_epochs={shown}"
            problems.append(Problem("sweep.retrain_epochs", shown, allowed, remedy))
    elif same := [e.train.epochs for e in experiments if _is_full(e, settings.retrain_epochs)]:
        is_typed = settings.retrain_epochs is not None
        key, shown = (
            ("sweep.retrain_epochs", str(settings.retrain_epochs)) if is_typed else ("sweep.retrain_best", "true")
        )
        allowed = f"would be the trial's own run again, which has {EPOCHS}={max(same)} and no {MAX_STEPS}"
        remedy = f"sweep.retrain_epochs={3 * max(e.train.epochs for e in experiments)}, or leave sweep.retrain_best out"
        problems.append(Problem(key, shown, allowed, remedy))
    elif settings.retrain_epochs is not None:
        most = max((e.train.epochs for e in experiments if not is_undecided(e.train)), default=0)
        if settings.retrain_epochs < most:
            allowed, shown = f"is no full length: a trial has {EPOCHS}={most}", str(settings.retrain_epochs)
            problems.append(Problem("sweep.retrain_epochs", shown, allowed, f"sweep.retrain_epochs={3 * most}"))
    return problems


def stages_after(settings: Any, spec: Spec, experiments: Sequence[Any], home: Path) -> list[Spec]:
    """Return what is to come after a search, in its order.

    Args:
        settings: Section `sweep`.
        spec: The search, with its number of trials.
        experiments: Of its points.
        home: The sweep's folder.
    """
    stage = Stage(SEEDS, spec.name, int(spec.n_trials or 0), home)
    stages = []
    if settings.seeds:
        seeds = other_seeds(settings, experiments)
        stages.append(_spec(spec, replace(stage, seeds=seeds, top_k=settings.top_k), "Repeat"))
    if settings.retrain_best:
        words = full_length(settings, experiments)
        epochs = settings.retrain_epochs or max(e.train.epochs for e in experiments)
        stages.append(_spec(spec, replace(stage, kind=BEST, words=words, epochs=epochs), "Winner"))
    return stages


def other_seeds(settings: Any, experiments: Sequence[Any]) -> tuple[int, ...]:
    """Return the seeds of the repeats: the next ones after the search's own, the same for each trial.

    They depend on nothing but that, so that the same command asks for the same runs, and a larger number for more.
    """
    first = max(e.train.seed for e in experiments) + 1
    return tuple(range(first, first + settings.seeds))


def full_length(settings: Any, experiments: Sequence[Any]) -> tuple[str, ...]:
    """Return what makes a trial one of full length."""
    steps = [f"{MAX_STEPS}=null"] if any(e.train.max_steps is not None for e in experiments) else []
    epochs = [f"{EPOCHS}={settings.retrain_epochs}"] if settings.retrain_epochs is not None else []
    return (*steps, *epochs)


def first_words(settings: Any, experiments: Sequence[Any]) -> list[tuple[str, ...]]:
    """Return what will be typed beside a trial's own words: the first repeat's, and the retraining's."""
    seeds = [(f"{SEED}={seed}",) for seed in other_seeds(settings, experiments)[:1]]
    return [*seeds, *([full_length(settings, experiments)] if settings.retrain_best else [])]


def _spec(search: Spec, stage: Stage, noun: str) -> Spec:
    """Return the study of a stage: no sampler, no pruner, its trials are given."""
    return Spec(
        url=search.url,
        name=stage_name(search.name, stage.kind),
        task=search.task,
        objectives=search.objectives,
        directions=search.directions,
        n_trials=None,
        lines=[],
        fixed=search.fixed,
        sampler="random",
        seed=search.seed,
        command=search.command,
        folder=FOLDERS[stage.kind],
        noun=noun,
        stage=stage,
        keep_states=search.keep_states,
    )


def _is_full(experiment: Any, epochs: int | None) -> bool:
    """Whether a trial is as long as its retraining would be."""
    return experiment.train.max_steps is None and epochs in (None, experiment.train.epochs)
