"""What goes between a worker and its study, as plain values; `study.py` has the study itself."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NO_MATTER = (
    "sweep.",
    "sweep={",
    "hydra.",
    "mode=",
    "tensorboard.",
    "output_dir",
    "data.cache_dir",
    "train.workers",
    "train.device",
    "train.measure_latency",
)
"""Typed keys that make no other study: they change how its trials run, and not what comes out."""
WORKER = "HSR_TRAIN_SWEEP_WORKER"
"""Environment variable: which of `sweep.jobs` workers this is, from 0."""
SEEDS, BEST = "seeds", "best"
FOLDERS = {SEEDS: "repeats", BEST: "retrained"}
"""What comes after a search, and where its runs lie in the sweep's folder."""
WINNER = "the winner at full length"
"""The one run of the last of these, in words."""


@dataclass(frozen=True)
class Pruning:
    """How a study gives trials up.

    Attributes:
        name: `sweep.pruner`, decided.
        warmup: Steps of a trial before that, where these are no marks.
        startup: Trials that must be complete before that.
        steps: Of a whole trial: epochs or folds; of trials of different lengths, marks (`pruning.MARKS`).
        is_by_share: Whether they are marks.
        quiet: Epochs of such a trial before that; None: the first mark.
    """

    name: str
    warmup: int
    startup: int
    steps: int
    is_by_share: bool = False
    quiet: int | None = None


@dataclass(frozen=True)
class Stage:
    """What a study is that comes after a search, and whose trials follow from the search's results.

    Attributes:
        kind: seeds or best.
        search: Name of the search's study, in the same storage.
        n_trials: Its total.
        home: The sweep's folder.
        seeds: With which the best trials are repeated.
        top_k: How many of them.
        words: What the winner is trained with at full length, beside its own overrides.
        epochs: How long that is at most; 0: it is no such stage.
    """

    kind: str
    search: str
    n_trials: int
    home: Path
    seeds: tuple[int, ...] = ()
    top_k: int = 0
    words: tuple[str, ...] = ()
    epochs: int = 0


@dataclass(frozen=True)
class Spec:
    """What a study is.

    Attributes:
        url: Its storage, from `storage_url`.
        name: Its name there.
        task: The task.
        objectives: Names of what is searched for.
        directions: maximize or minimize, for each.
        n_trials: Total; None: the whole grid.
        lines: The searched keys, as typed.
        fixed: What else decides what a trial comes to; another value makes another study.
        sampler: `sweep.sampler`, decided, or the choice of `hydra/sweeper/sampler`.
        seed: Of the sampler.
        own: What the searched keys are without the search: trial 0, as far as it lies in the space.
        enqueue: Points that are tried next.
        warm_start: Folder of another sweep whose best points come after those.
        warm_start_best: How many.
        command: What was typed.
        pruning: How trials are given up; None: they report no epochs.
        constraints: `sweep.constraints`: at most of a cost, at least of a metric.
        folder: Where the runs of its trials lie, below the sweep's folder.
        noun: What a trial of it is called.
        stage: What comes after a search; None: it is the search.
        keep_states: `sweep.keep_states`.
        sampler_options: Content of `hydra/sweeper/sampler`, its class (`_target_`) among them; None: ours.
    """

    url: str
    name: str
    task: str
    objectives: list[str]
    directions: list[str]
    n_trials: int | None
    lines: list[str]
    fixed: list[str]
    sampler: str
    seed: int
    own: dict[str, Any] = field(default_factory=dict)
    enqueue: list[dict[str, Any]] = field(default_factory=list)
    warm_start: str | None = None
    warm_start_best: int = 3
    command: list[str] = field(default_factory=list)
    pruning: Pruning | None = None
    constraints: dict[str, float] = field(default_factory=dict)
    keep_states: str = "all"
    sampler_options: dict[str, Any] | None = None
    folder: str = "trials"
    noun: str = "Trial"
    stage: Stage | None = None

    @property
    def is_winner(self) -> bool:
        """Whether its one trial is the winner at full length."""
        return self.stage is not None and self.stage.kind == BEST

    def called(self, number: int | None) -> str:
        """Return what a trial of it is called at a line's beginning, such as `Trial 3`."""
        return WINNER.capitalize() if self.is_winner else f"{self.noun} {number}"


def is_first_worker() -> bool:
    """Return whether this is the only worker in its terminal, or the one that speaks for all of them."""
    return os.environ.get(WORKER, "0") == "0"


def counted(number: int, noun: str) -> str:
    """Return such as `1 trial` or `2 trials`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def in_other_hands(number: int) -> str:
    """Say how many trials other workers have."""
    return f"{counted(number, 'trial')} {'is' if number == 1 else 'are'} in other hands"


def stage_name(search: str, kind: str) -> str:
    """Return the name of the study that comes after a search."""
    return f"{search}.{kind}"


@dataclass(frozen=True)
class Claim:
    """A trial that this worker has, or none for now.

    Attributes:
        number: Its number; None: all that is left is being tidied up elsewhere, ask again soon.
        overrides: What it searches, as it would be typed.
        directory: Where its run was before, if it was begun.
    """

    number: int | None
    overrides: list[str] = field(default_factory=list)
    directory: str | None = None


@dataclass(frozen=True)
class Ended:
    """Numbers of the trials of a study that are over, without those that failed.

    Attributes:
        complete: Those that have a result.
        pruned: Those that were given up.
        best: Of the complete ones the best (of several objectives: the Pareto front), or, where none holds the
            constraints, the one that breaks them least.
    """

    complete: list[int]
    pruned: list[int]
    best: list[int]


@dataclass(frozen=True)
class Standing:
    """How a study stands.

    Attributes:
        n_trials: Its total.
        states: Number of trials by state.
        failed: Of each failed trial its exit status, by number.
        recent_failures: Causes of the failures since this worker came, in their order.
        recent: How many trials ended since then.
        best: Number, values and overrides of the best trial (of several objectives: of each on the Pareto front).
        nearest: Where no complete trial holds the constraints: number of the one that breaks them least, and how.
    """

    n_trials: int
    states: dict[str, int]
    failed: dict[int, int]
    recent_failures: list[str]
    recent: int
    best: list[tuple[int, list[float], list[str]]]
    nearest: tuple[int, str] | None = None

    @property
    def num_open(self) -> int:
        """Number of trials that are not over."""
        return self.states["running"] + self.states["waiting"]
