"""What a run's timings.csv says of its speed, in the words of the benchmarks: `train_vs_yolo.py` and its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from hsr_train.hardware import detect
from hsr_train.run.results import ResultsTable
from hsr_train.run.throughput import NEWER_COLUMNS, TIMING_COLUMNS, summarise


@dataclass(frozen=True)
class Speed:
    """The steady epochs of one run, those after its first.

    Attributes:
        images_per_s: Median over the epochs, of their training part.
        wait_share: Part of the training's time in which it waited for data.
        cpu_ms: Processor time of the training part for each image, loader workers included, in milliseconds.
        gpu_util: Mean of the training part; None without a GPU.
        gpu_gib: The most that torch held on the GPU.
        host_gib: The most main memory that the processes of the run had.
    """

    images_per_s: float
    wait_share: float
    cpu_ms: float | None
    gpu_util: float | None
    gpu_gib: float | None
    host_gib: float | None

    @classmethod
    def of(cls, run: Path) -> Speed:
        """Read a run's directory."""
        rows = ResultsTable(run / "timings.csv", TIMING_COLUMNS, NEWER_COLUMNS).rows()
        figures = summarise(rows)
        assert figures is not None, f"{run} has no epochs"
        cpu_ms = None
        if figures.cpu_util is not None:
            cpu_s = figures.cpu_util * detect().cores * figures.train_s
            cpu_ms = 1000 * cpu_s / (figures.images * figures.epochs)
        gpu, host = (
            [float(row[name] or 0) for row in rows if row[name] is not None]
            for name in ("gpu_memory_gib", "host_memory_gib")
        )
        return cls(
            figures.images_per_s,
            figures.wait_share,
            cpu_ms,
            figures.gpu_util,
            max(gpu, default=None),
            max(host, default=None),
        )


def middle(values: Sequence[float | None], form: str = ".2f") -> str:
    """Return the median with its range as text; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    text = format(median(known), form)
    return f"{text} ({min(known):{form}} to {max(known):{form}})" if len(known) > 1 else text


def ratio(one: float | None, other: float | None) -> float | None:
    """Return one by the other, or None where either is unknown."""
    return None if one is None or not other else one / other
