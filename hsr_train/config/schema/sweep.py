"""The section `sweep`: how a search runs, whatever it searches; it acts only under `--multirun`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hsr_train.config.schema.knob import knob

SAMPLERS = ("auto", "grid", "tpe", "random", "cmaes", "gp", "qmc", "nsgaii")

PRUNERS = ("auto", "median", "hyperband", "percentile", "patient", "wilcoxon", "none")

KEPT = ("all", "best", "none")


@dataclass
class SweepConfig:
    """One study of many runs; see docs/sweeps.md."""

    n_trials: int | None = knob(
        None, "Trials of the whole study, for all workers together; null: every combination, or 20 of a search.", ge=1
    )
    dir: str | None = knob(None, "Folder of the sweep; default: sweeps/NAME under output_dir.")
    study_name: str | None = knob(None, "Name of the study in its storage; default: the folder's.")
    storage: str | None = knob(
        None, "Where the study is kept: a database URL or journal:FILE; default: study.db in the sweep's folder."
    )
    jobs: int = knob(1, "Workers on this machine; each gets a GPU of its own, or a share of the cores.", ge=1)
    objective: Any = knob(None, "What is searched for, or a list of several; default: the task's validation metric.")
    direction: Any = knob(None, "maximize or minimize, or a list; default: what suits the objective.")
    constraints: Any = knob(
        None, "Limits, such as {peak_vram_gb: 8, recall: 0.6}: at most of costs, at least of metrics; null: none."
    )
    sampler: str = knob("auto", "How values are chosen; auto: grid or tpe.", choices=SAMPLERS)
    seed: int = knob(42, "Seed of the sampler; a trial's values follow from it, its number and earlier results.", ge=0)
    pruner: str = knob("auto", "What ends a hopeless trial early; auto: median, and none of a grid.", choices=PRUNERS)
    pruner_warmup: int | None = knob(None, "Epochs of a trial before it may be pruned; null: a twentieth of all.", ge=0)
    pruner_startup: int = knob(3, "Complete trials before any is pruned.", ge=0)
    keep_states: str = knob(
        "all",
        "Training states that stay on disk, for resume=, when a trial is over; best: the best trial's.",
        choices=KEPT,
    )
    max_failures: int = knob(5, "Failed trials after which a command ends the sweep.", ge=1)
    enqueue: list[Any] = knob([], "Points that are tried after the preset's own, such as [{optimizer.lr0: 0.01}].")
    warm_start: str | None = knob(None, "Folder of another sweep, whose best points are tried after those.")
    warm_start_best: int = knob(3, "How many points of it.", ge=1)
    seeds: int = knob(0, "After the search: repeats of each of the best trials, with other seeds; 0: none.", ge=0)
    top_k: int = knob(3, "How many trials are repeated.", ge=1)
    retrain_best: bool = knob(False, "At the end: train the winner at full length, without train.max_steps.")
    retrain_epochs: int | None = knob(None, "Epochs of that; null: train.epochs, as the configuration has it.", ge=1)
