"""The largest batch that fits on a card, found by measuring: grow, bisect, decide. No torch.

`search_batch` is a pure function of a measurement that an engine brings (`engines/detection/probe.py` measures in a
process of its own); `Budget` says how much of a card may be taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hsr_train.errors import InputError, Problem
from hsr_train.hardware.gpus import GIB, Gpu

KEY = "train.batch"
UTILIZATION_KEY = "hardware.max_vram_utilization"

Measure = Callable[[int], int | None]
"""From images per batch to the peak in bytes; None where memory ran out."""


@dataclass(frozen=True)
class Budget:
    """What a training may take of a card.

    Attributes:
        total_bytes: The card's memory.
        held_bytes: What other processes hold of it.
        share: The part of the card that all processes together may fill, in (0, 1].
    """

    total_bytes: int
    held_bytes: int
    share: float

    @classmethod
    def of(cls, gpu: Gpu, share: float) -> Budget:
        """Return the budget on a card as it is now, before this training has taken anything."""
        return cls(gpu.total_bytes, max(gpu.total_bytes - gpu.free_bytes, 0), share)

    @property
    def limit_bytes(self) -> int:
        """Bytes that this training may take at its peak."""
        return max(int(self.total_bytes * self.share) - self.held_bytes, 0)

    def __str__(self) -> str:
        text = f"{_gib(self.limit_bytes)} may be used: {self.share:.0%} of {_gib(self.total_bytes)}"
        return f"{text}, less {_gib(self.held_bytes)} that are taken already" if self.held_bytes else text


@dataclass(frozen=True)
class FoundBatch:
    """What a search came to.

    Attributes:
        batch: Images per batch; measured, and within the budget.
        curve: Every measurement in the order of the batches: bytes, or None where memory ran out.
    """

    batch: int
    curve: dict[int, int | None]

    @property
    def peak_bytes(self) -> int:
        """The peak at the batch that was found."""
        peak = self.curve[self.batch]
        assert peak is not None
        return peak


def search_batch(measure: Measure, budget: Budget, *, start: int, most: int) -> FoundBatch:
    """Return the largest batch within a budget.

    Doubles while everything fits, halves while nothing does, then bisects. No batch is measured twice; what is
    returned was measured. A curve that wobbles can only make the search stop at another batch that fits.

    Args:
        measure: Called with a batch.
        budget: What may be taken.
        start: The first batch to try.
        most: The largest batch that makes sense (the images of an epoch).

    Raises:
        InputError: Not even one image fits.
    """
    curve: dict[int, int | None] = {}
    fitting, too_many = 0, most + 1
    if not budget.limit_bytes:
        raise InputError(_nothing_fits("nothing is left of the card", budget))
    batch = min(start, most)
    while too_many - fitting > 1:
        peak = curve[batch] = measure(batch)
        if peak is not None and peak <= budget.limit_bytes:
            fitting = batch
        else:
            too_many = batch
        if too_many > most:
            batch = min(2 * fitting, most)
        elif not fitting:
            batch = max(too_many // 2, 1)
        else:
            batch = (fitting + too_many) // 2
    if not fitting:
        peak = curve[1]
        needed = "more than is free" if peak is None else _gib(peak)
        raise InputError(_nothing_fits(f"a batch of one image takes {needed}", budget))
    return FoundBatch(fitting, dict(sorted(curve.items())))


def _nothing_fits(why: str, budget: Budget) -> Problem:
    remedy = "a smaller model or train.imgsz, or free the card (nvidia-smi shows who holds it)"
    return Problem(KEY, "probe", f"{why}; {budget} ({UTILIZATION_KEY})", remedy)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB"
