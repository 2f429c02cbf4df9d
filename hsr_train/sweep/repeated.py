"""What repeats of a trial with other seeds come to: their mean and standard deviation.

The value that got a trial chosen is not among them. It was the best of many, and so in part luck; the repeats were
begun after the choice, and know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hsr_train.sweep.summary import TrialSummary

SEED = "train.seed"


@dataclass(frozen=True)
class Repeated:
    """The repeats of one trial.

    Attributes:
        results: (seed, objectives) of each complete one.
        failed: How many failed.
        open: How many are still under way.
    """

    results: list[tuple[str, list[float]]]
    failed: int = 0
    open: int = 0

    @property
    def mean(self) -> list[float] | None:
        """Mean of each objective; None: no repeat is complete."""
        return [fmean(values) for values in self._columns] or None

    @property
    def sd(self) -> list[float] | None:
        """Sample standard deviation of each objective; None: fewer than two repeats are complete."""
        return [stdev(values) for values in self._columns] if len(self.results) > 1 else None

    @property
    def _columns(self) -> list[tuple[float, ...]]:
        return list(zip(*(values for _, values in self.results), strict=True))

    def text(self, objectives: Sequence[str]) -> str:
        """Return `mAP50-95 0.412 ± 0.008`, of each objective that is named; nothing if no repeat is complete."""
        return ", ".join(f"{name} {self.shown(place)}" for place, name in enumerate(objectives) if self.results)

    def shown(self, place: int) -> str:
        """Return `0.412 ± 0.008` of an objective, by its place; nothing if no repeat is complete."""
        mean, sd = self.mean, self.sd
        return "" if mean is None else f"{mean[place]:.4g}" + ("" if sd is None else f" ± {sd[place]:.2g}")

    @property
    def over(self) -> str:
        """Over how many seeds the mean is."""
        return f"{len(self.results)} seed{'s' if len(self.results) != 1 else ''}"


def repeated(repeats: Sequence[TrialSummary]) -> dict[int, Repeated]:
    """Return what repeats come to, by the number of the trial that they repeat.

    Args:
        repeats: Those that were begun.
    """
    by_trial: dict[int, list[TrialSummary]] = {}
    for repeat in repeats:
        if repeat.of is not None:
            by_trial.setdefault(repeat.of, []).append(repeat)
    return {
        number: Repeated(
            [(str(r.params.get(SEED)), r.values) for r in runs if r.state == "complete" and r.values is not None],
            failed=sum(r.state == "fail" for r in runs),
            open=sum(r.state not in ("complete", "fail") for r in runs),
        )
        for number, runs in by_trial.items()
    }
