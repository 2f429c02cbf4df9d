"""Where the time of a training goes: a row of timings.csv for each epoch, and at the end what held it up.

The engines' monitors call `Timings`, which asks `hardware.usage` what the machine did meanwhile; `bookkeeping` calls
`summarise` and `bottleneck` when training is over. Both are pure functions of figures: advice is given only where they
support it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

from hsr_train.run.directory import RunDirectory
from hsr_train.run.events import EventWriter
from hsr_train.run.results import Cell, ResultsTable

USAGE_COLUMNS = ("gpu_util", "gpu_process_gib", "gpu_used_share", "cpu_util", "host_memory_gib", "host_available_gib")
NEWER_COLUMNS = ("gpu_memory_gib", *USAGE_COLUMNS)
"""Runs of earlier versions lack some of these."""
TIMING_COLUMNS = (
    "epoch", "epoch_s", "train_s", "wait_s", "val_s", "save_s", "images_per_s", "wait_share", *NEWER_COLUMNS,
)  # fmt: skip

WAITS = 0.15
"""A larger share of training spent waiting for data is worth a change."""
HARDLY_WAITS = 0.05
GPU_IS_BUSY = 0.9
"""The host may wait while the GPU still has work in its queue: a GPU that is this busy is not starved."""
GPU_IS_IDLE = 0.7
MEMORY_IS_FREE = 0.5
CPU_IS_BUSY = 0.9
VALIDATES = 0.4
LEAST_S = 1.0
"""Steady epochs that train for a shorter time together support no advice."""


class Usage(Protocol):
    """What `hardware.usage.UsageSampler` is to this room."""

    def take(self, started: float, trained: float) -> dict[str, float | None]:
        """Return the values of `USAGE_COLUMNS` for an epoch that ends now."""
        ...


class EpochTimes(Protocol):
    """Seconds of one epoch."""

    train_s: float
    wait_s: float
    val_s: float
    save_s: float


class Timings:
    """Records the time and the machine's use of each epoch.

    Args:
        run: The run's directory.
        writer: TensorBoard events, or None if switched off.
        usage: Measures the machine; None leaves its columns empty.
        epochs_done: Rows beyond this epoch are dropped: the run goes on from here.
    """

    def __init__(self, run: RunDirectory, writer: EventWriter | None, usage: Usage | None, epochs_done: int) -> None:
        self._writer, self._usage = writer, usage
        self.table = ResultsTable(run.timings_csv, TIMING_COLUMNS, NEWER_COLUMNS)
        self.table.truncate_after(epochs_done)

    def epoch(
        self, number: int, times: EpochTimes, epoch_s: float, *, images: int, gpu_memory_gib: float | None
    ) -> None:
        """Record an epoch that ends now.

        Args:
            number: Counted from 1.
            times: Where its seconds went.
            epoch_s: How many there were.
            images: Trained on in it.
            gpu_memory_gib: Peak of what torch reserved on the GPU; None on a CPU.
        """
        started = time.perf_counter() - epoch_s
        usage = self._usage.take(started, started + times.train_s) if self._usage is not None else {}
        row: dict[str, Cell] = {
            "epoch": number,
            "epoch_s": epoch_s,
            "train_s": times.train_s,
            "wait_s": times.wait_s,
            "val_s": times.val_s,
            "save_s": times.save_s,
            "images_per_s": images / times.train_s,
            "wait_share": times.wait_s / times.train_s,
            "gpu_memory_gib": gpu_memory_gib,
            **{name: usage.get(name) for name in USAGE_COLUMNS},
        }
        self.table.append(row)
        if self._writer is None:
            return
        for name, value in row.items():
            if name != "epoch" and value is not None:
                self._writer.scalar(f"{'system' if name in NEWER_COLUMNS else 'time'}/{name}", float(value), number)


@dataclass(frozen=True)
class Setup:
    """What a training ran with, as far as its speed depends on it.

    Attributes:
        device: cpu, or a GPU as torch names it.
        cores: Cores that it could use.
        workers: `train.workers`.
        most_workers: As many loader processes as the machine allows.
        cache: `train.cache`: ram, disk or none.
        fitting_cache: Where decoded images would fit: ram, disk or none.
        batch: `train.batch`.
        val_batch: `train.val_batch`.
        imgsz: `train.imgsz`.
        given_up: Keys that recovery had to lower; no advice raises them again.
    """

    device: str
    cores: int
    workers: int
    most_workers: int
    cache: str
    fitting_cache: str
    batch: int
    val_batch: int
    imgsz: int
    given_up: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True)
class Figures:
    """What several epochs came to; shares lie in [0, 1], None is not known.

    Attributes:
        epochs: How many.
        is_steady: Whether their first one, which starts workers and fills caches, is left out.
        train_s: Seconds of training in all.
        images: Per epoch.
        images_per_s: Median.
        wait_share: Of the training's time, waiting for data.
        val_share: Of the epochs' time, validating.
        gpu_util: Mean of the training's time.
        gpu_used_share: Most of the GPU's memory that was in use.
        cpu_util: Mean of the training's time, of all usable cores.
        epoch_s: Median seconds of an epoch with its validation.
    """

    epochs: int
    is_steady: bool
    train_s: float
    images: int
    images_per_s: float
    wait_share: float
    val_share: float
    gpu_util: float | None = None
    gpu_used_share: float | None = None
    cpu_util: float | None = None
    epoch_s: float | None = None

    def describe(self) -> str:
        """Return one line for a person."""
        epochs = "1 epoch" if self.epochs == 1 else f"the median of {self.epochs} epochs"
        gpu = f", GPU busy {_percent(self.gpu_util)}" if self.gpu_util is not None else ""
        cpu = f", {_percent(self.cpu_util)} of the cores used" if self.cpu_util is not None else ""
        return (
            f"{self.images_per_s:.1f} images/s ({epochs}), waiting for data {_percent(self.wait_share)} of training, "
            f"validation {_percent(self.val_share)} of the time{gpu}{cpu}"
        )


def summarise(rows: Sequence[Mapping[str, Cell]], after: int = 0) -> Figures | None:
    """Return the figures of the epochs after a given one, without the first of them if there are more.

    Args:
        rows: Of timings.csv.
        after: The last epoch that ran otherwise: in an earlier process, or with other settings. Where none follows,
            all rows count, and are not steady.
    """
    follow = [row for row in rows if _number(row, "epoch") > after]
    steady = follow[1:]
    chosen = steady or follow or rows
    if not chosen:
        return None
    train_s, epoch_s, wait_s, val_s = (
        math.fsum(_number(row, name) for row in chosen) for name in ("train_s", "epoch_s", "wait_s", "val_s")
    )
    used = [value for row in chosen if (value := row.get("gpu_used_share")) is not None]
    return Figures(
        epochs=len(chosen),
        is_steady=bool(steady),
        train_s=train_s,
        images=round(_number(chosen[-1], "images_per_s") * _number(chosen[-1], "train_s")),
        images_per_s=median(_number(row, "images_per_s") for row in chosen),
        wait_share=wait_s / train_s if train_s else 0.0,
        val_share=val_s / epoch_s if epoch_s else 0.0,
        gpu_util=_mean(chosen, "gpu_util"),
        gpu_used_share=max(used, default=None),
        cpu_util=_mean(chosen, "cpu_util"),
        epoch_s=median(_number(row, "epoch_s") for row in chosen),
    )


def bottleneck(figures: Figures, setup: Setup) -> str | None:
    """Return what held the training up and the setting that would help; None where the figures do not say."""
    if not figures.is_steady or figures.train_s < LEAST_S:
        return None
    on_gpu = setup.device != "cpu"
    gpu_util = figures.gpu_util if on_gpu else None
    if figures.wait_share > WAITS and not (gpu_util is not None and gpu_util >= GPU_IS_BUSY):
        who = "GPU" if on_gpu else "training"
        waited = f"The {who} waited for data {_percent(figures.wait_share)} of the time"
        return f"{waited}: {_against_waiting(figures, setup)}"
    has_memory = on_gpu and figures.gpu_used_share is not None and figures.gpu_used_share < MEMORY_IS_FREE
    if not has_memory:
        return None
    free = _percent(1 - (figures.gpu_used_share or 0.0))
    may_grow = "train.batch" not in setup.given_up and 2 * setup.batch <= figures.images
    if gpu_util is not None and gpu_util < GPU_IS_IDLE and figures.wait_share < HARDLY_WAITS and may_grow:
        advice = _change("batch", 2 * setup.batch, setup)
        return f"The GPU was busy {_percent(gpu_util)} of the time, and {free} of its memory stayed free: {advice}"
    if figures.val_share > VALIDATES and "train.val_batch" not in setup.given_up:
        advice = _change("val_batch", 2 * setup.val_batch, setup)
        took = _percent(figures.val_share)
        return f"Validation took {took} of the time, and {free} of the GPU's memory stayed free: {advice}"
    return None


def _against_waiting(figures: Figures, setup: Setup) -> str:
    cores_are_busy = figures.cpu_util is not None and figures.cpu_util >= CPU_IS_BUSY
    if setup.workers < setup.most_workers and not cores_are_busy and "train.workers" not in setup.given_up:
        return _change("workers", _enough_workers(figures.wait_share, setup), setup)
    why = f"all {setup.cores} cores are busy" if cores_are_busy else "more train.workers would not fit this machine"
    if setup.cache == "none" and setup.fitting_cache != "none" and "train.cache" not in setup.given_up:
        return f"{_change('cache', setup.fitting_cache, setup)}, since {why}"
    return f"{why}; a smaller train.imgsz (now {setup.imgsz}) loads faster"


def _enough_workers(wait_share: float, setup: Setup) -> int:
    """Return how many loader processes keep up with the training, and one more.

    What loading takes is `workers` times the whole time, or without workers the time waited; what it may take is the
    time not waited.
    """
    loading = setup.workers if setup.workers else wait_share
    needed = math.ceil(loading / max(1 - wait_share, 0.01)) + 1
    return min(max(needed, setup.workers + 1), setup.most_workers)


def _change(name: str, value: Any, setup: Setup) -> str:
    return f"train.{name}={value} (now {getattr(setup, name)})"


def _mean(rows: Sequence[Mapping[str, Cell]], name: str) -> float | None:
    """Return the mean of a column, each epoch weighed by its training time."""
    parts = [(_number(row, "train_s"), value) for row in rows if (value := row.get(name)) is not None]
    seconds = math.fsum(s for s, _ in parts)
    return math.fsum(s * value for s, value in parts) / seconds if seconds else None


def _number(row: Mapping[str, Cell], name: str) -> float:
    return float(row[name] or 0)


def _percent(share: float | None) -> str:
    return f"{100 * (share or 0.0):.0f} %"
