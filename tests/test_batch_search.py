"""The search for the largest batch, on cards that exist only as a function from batch to bytes."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from fake_machines import GIB, gpu

from hsr_train.errors import InputError
from hsr_train.hardware import Budget, search_batch
from hsr_train.hardware.batch_search import Measure

MIB = 2**20


class Card:
    """A card on which a training takes `base` and `per_image` bytes; memory runs out beyond what is free.

    Guarantees: counts every measurement; None exactly where the peak is more than `free`.
    """

    def __init__(
        self, base: int, per_image: int, free: int, wobble: Callable[[int], float] = lambda batch: 1.0
    ) -> None:
        self.base, self.per_image, self.free, self.wobble = base, per_image, free, wobble
        self.measured: list[int] = []

    def __call__(self, batch: int) -> int | None:
        self.measured.append(batch)
        peak = int((self.base + self.per_image * batch) * self.wobble(batch))
        return peak if peak <= self.free else None


def largest(measure: Measure, budget: Budget, most: int = 10_000) -> int:
    """The answer, found by trying every batch."""
    fitting = [b for b in range(1, most + 1) if (p := measure(b)) is not None and p <= budget.limit_bytes]
    return max(fitting)


@pytest.mark.parametrize("start", [1, 8, 64, 500])
@pytest.mark.parametrize("per_image_mib", [1, 37, 180, 750, 5000])
def test_search_finds_the_largest_batch_of_a_monotone_curve_in_few_measurements(start: int, per_image_mib: int) -> None:
    budget = Budget(24 * GIB, 0, 0.85)
    card = Card(2 * GIB, per_image_mib * MIB, free=24 * GIB)
    found = search_batch(card, budget, start=start, most=300)
    assert found.batch == largest(card, budget, 300)
    assert found.peak_bytes <= budget.limit_bytes
    assert list(found.curve) == sorted(found.curve)
    tried = card.measured[: len(found.curve)]
    assert len(set(tried)) == len(tried) == len(found.curve) <= 20


def test_search_on_a_card_of_which_another_process_holds_half_finds_less_than_half() -> None:
    card = gpu(0, 24.0)
    alone = Budget.of(card, 0.85)
    shared = Budget(card.total_bytes, card.total_bytes // 2, 0.85)
    assert shared.limit_bytes == pytest.approx(0.35 * card.total_bytes, abs=2)
    whole = search_batch(Card(GIB, 400 * MIB, free=24 * GIB), alone, start=8, most=999).batch
    half = search_batch(Card(GIB, 400 * MIB, free=12 * GIB), shared, start=8, most=999).batch
    assert (whole, half) == (49, 18)
    assert "8.4 GiB may be used: 85% of 24.0 GiB, less 12.0 GiB that are taken already" in str(shared)


def test_search_goes_down_where_the_first_try_runs_out_of_memory() -> None:
    card = Card(GIB, 2 * GIB, free=8 * GIB)
    found = search_batch(card, Budget(8 * GIB, 0, 0.85), start=8, most=99)
    assert card.measured[0] == 8
    assert found.curve[8] is None
    assert found.batch == 2


@pytest.mark.parametrize("seed", range(20))
def test_search_on_a_noisy_curve_returns_a_batch_that_was_measured_within_the_budget(seed: int) -> None:
    def wobble(batch: int) -> float:
        return 1 + 0.03 * random.Random(seed * 1000 + batch).uniform(-1, 1)

    budget = Budget(12 * GIB, GIB, 0.85)
    noisy = Card(GIB, 300 * MIB, free=11 * GIB, wobble=wobble)
    found = search_batch(noisy, budget, start=8, most=999)
    plain = search_batch(Card(GIB, 300 * MIB, free=11 * GIB), budget, start=8, most=999)
    assert found.peak_bytes <= budget.limit_bytes
    assert abs(found.batch - plain.batch) <= 0.06 * plain.batch + 1


def test_search_stops_at_the_images_of_an_epoch() -> None:
    card = Card(GIB, MIB, free=24 * GIB)
    assert search_batch(card, Budget(24 * GIB, 0, 0.85), start=8, most=21).batch == 21
    assert max(card.measured) == 21
    assert search_batch(card, Budget(24 * GIB, 0, 0.85), start=8, most=3).batch == 3


@pytest.mark.parametrize(
    ("free_gib", "needed"), [(1.0, "a batch of one image takes more than is free"), (6, "one image takes 5.0 GiB")]
)
def test_smallest_batch_that_does_not_fit_is_refused_with_figures_and_what_to_type(
    free_gib: float, needed: str
) -> None:
    card = Card(4 * GIB, GIB, free=int(free_gib * GIB))
    with pytest.raises(InputError) as refused:
        search_batch(card, Budget(6 * GIB, 2 * GIB, 0.85), start=8, most=99)
    (problem,) = refused.value.problems
    assert (problem.key, problem.value) == ("train.batch", "probe")
    assert needed in problem.allowed
    assert "3.1 GiB may be used: 85% of 6.0 GiB, less 2.0 GiB" in problem.allowed
    assert "hardware.max_vram_utilization" in problem.allowed
    assert "train.imgsz" in problem.remedy
    assert card.measured == [8, 4, 2, 1]


def test_card_that_others_fill_is_refused_without_a_measurement() -> None:
    card = Card(GIB, GIB, free=GIB)
    with pytest.raises(InputError, match="nothing is left of the card"):
        search_batch(card, Budget(8 * GIB, 7 * GIB, 0.85), start=8, most=99)
    assert card.measured == []
