"""The schedule against ultralytics' own loop, re-expressed here from its formulas, and its properties by themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from hsr_train.engines.detection.schedule import Schedule, effective_batch

Step = tuple[int, int, float, float, float, int, bool]


def make(
    *,
    epochs: int = 10,
    images: int = 128,
    batch: int = 16,
    nbs: int = 64,
    warmup: float = 3.0,
    cosine: bool = False,
    lrf: float = 0.01,
    bias_lr: float = 0.1,
) -> Schedule:
    return Schedule(
        epochs=epochs,
        num_images=images,
        batch=batch,
        effective_batch=effective_batch(batch, nbs, images),
        lrf=lrf,
        cosine=cosine,
        warmup_epochs=warmup,
        warmup_bias_lr=bias_lr,
        warmup_momentum=0.8,
        momentum=0.937,
    )


def batch_sizes(images: int, batch: int) -> list[int]:
    return [min(batch, images - first) for first in range(0, images, batch)]


def ours(s: Schedule, lr0: float, batch: int | None = None) -> Iterator[Step]:
    """Walk through a run as `loop.py` does; `batch` other than the schedule's is a run after an out-of-memory error."""
    for epoch in range(s.epochs):
        images = pending = 0
        for number, size in enumerate(batch_sizes(s.num_images, batch or s.batch)):
            progress = s.warmup_progress(epoch, images)
            weights = s.learning_rate(lr0, epoch, progress, is_bias=False)
            biases = s.learning_rate(lr0, epoch, progress, is_bias=True)
            images, pending = images + size, pending + size
            steps = pending >= s.images_per_step(progress) or images >= s.num_images
            yield epoch, number, weights, biases, s.momentum_at(progress), s.images_per_step(progress), steps
            pending = 0 if steps else pending


def theirs(s: Schedule, lr0: float, nbs: int) -> Iterator[Step]:
    """Walk through `BaseTrainer._do_train` of ultralytics 8.4, but for a step at each epoch's end."""
    nb = math.ceil(s.num_images / s.batch)
    nominal = accumulate = max(round(nbs / s.batch), 1)
    warmup = min(s.warmup_epochs, max(s.epochs - 1, 0))
    nw = round(warmup * nb) if warmup > 0 else 0
    last_step = -1
    rates, momentum = [0.0, 0.0], s.momentum

    def factor(epoch: int) -> float:
        if s.cosine:
            return max((1 - math.cos(epoch * math.pi / s.epochs)) / 2, 0) * (s.lrf - 1) + 1
        return max(1 - epoch / s.epochs, 0) * (1.0 - s.lrf) + s.lrf

    for epoch in range(s.epochs):
        rates = [lr0 * factor(epoch)] * 2
        for i in range(nb):
            ni = i + nb * epoch
            if nw and ni <= nw:
                accumulate = max(1, int(np.interp(ni, [0, nw], [1, nominal]).round()))
                rates = [
                    float(np.interp(ni, [0, nw], [start, lr0 * factor(epoch)])) for start in (0.0, s.warmup_bias_lr)
                ]
                momentum = float(np.interp(ni, [0, nw], [s.warmup_momentum, s.momentum]))
            steps = ni - last_step >= accumulate or i == nb - 1
            yield epoch, i, *rates, momentum, accumulate * s.batch, steps
            last_step = ni if steps else last_step


SIZES = [(16, 64, 128), (4, 64, 100), (8, 8, 50), (48, 64, 500), (2, 4, 9), (5, 64, 333), (64, 64, 64)]
PLANS = [(10, 3.0, False), (10, 3.0, True), (3, 3.0, False), (1, 3.0, False), (7, 0.0, True), (5, 1.7, False)]
CASES = [
    pytest.param(batch, nbs, epochs, warmup, cosine, images, id=f"{batch}-{nbs}-{epochs}-{warmup}-{cosine}-{images}")
    for batch, nbs, images in SIZES
    for epochs, warmup, cosine in PLANS
    if round(nbs / batch) <= math.ceil(images / batch)
]


def test_cases_cover_the_grid() -> None:
    assert len(CASES) >= 40


@pytest.mark.parametrize(("batch", "nbs", "epochs", "warmup", "cosine", "images"), CASES)
def test_rates_momentum_and_steps_equal_ultralytics(
    batch: int, nbs: int, epochs: int, warmup: float, cosine: bool, images: int
) -> None:
    s = make(epochs=epochs, images=images, batch=batch, nbs=nbs, warmup=warmup, cosine=cosine)
    for mine, expected in zip(ours(s, 0.002), theirs(s, 0.002, nbs), strict=True):
        assert mine[:2] == expected[:2]
        assert mine[2:5] == pytest.approx(expected[2:5], rel=1e-12, abs=1e-15), mine[:2]
        assert mine[5:] == expected[5:], mine[:2]


def test_accumulation_rounds_as_ultralytics_in_every_batch_of_many_warmups() -> None:
    """Ties of the rounding are where a formula that is only almost equal shows."""
    for batch, nbs, nw in itertools.product((1, 2, 4, 8, 16, 24, 48), (8, 32, 64, 128), (1, 2, 3, 7, 10, 24, 99, 100)):
        accumulate = max(round(nbs / batch), 1)
        s = Schedule(2, nw * batch, batch, accumulate * batch, 0.01, False, 1.0, 0.0, 0.8, 0.9)
        assert s.warmup_batches == nw
        for ni in range(nw + 1):
            expected = max(1, int(np.interp(ni, [0, nw], [1, accumulate]).round()))
            assert s.images_per_step(s.warmup_progress(0, ni * batch)) == expected * batch, (batch, nbs, nw, ni)


@pytest.mark.parametrize("divisor", [2, 4, 8])
@pytest.mark.parametrize("warmup", [0.0, 3.0])
def test_smaller_batch_keeps_steps_rate_and_momentum_per_image(divisor: int, warmup: float) -> None:
    s = make(images=256, batch=16, warmup=warmup, epochs=6)

    def at_steps(batch: int) -> list[tuple[int, int]]:
        return [(e, (n + 1) * batch) for e, n, *_, steps in ours(s, 0.001, batch) if steps]

    small = at_steps(16 // divisor)
    assert small == at_steps(16)
    by_place = {(e, n * 16): rest for e, n, *rest, _ in ours(s, 0.001)}
    halved = {(e, n * (16 // divisor)): rest for e, n, *rest, _ in ours(s, 0.001, 16 // divisor)}
    for place, values in by_place.items():
        assert halved[place] == pytest.approx(values)


def test_batch_larger_than_nbs_is_its_own_effective_batch() -> None:
    assert effective_batch(96, 64, 1000) == 96
    assert all(steps for *_, steps in ours(make(batch=96, images=1000), 0.001))


@pytest.mark.parametrize(
    ("batch", "nbs", "images", "expected"),
    [(16, 64, 1000, 64), (48, 64, 1000, 48), (24, 64, 1000, 72), (4, 64, 8, 8), (4, 64, 9, 12), (8, 8, 5, 8)],
)
def test_effective_batch_is_the_nearest_multiple_within_an_epoch(
    batch: int, nbs: int, images: int, expected: int
) -> None:
    assert effective_batch(batch, nbs, images) == expected


def test_every_epoch_ends_with_a_step_and_uses_every_image_once() -> None:
    for images, batch, nbs in itertools.product((1, 7, 64, 65), (1, 4, 16, 100), (1, 8, 64)):
        s = make(images=images, batch=batch, nbs=nbs, epochs=4)
        last = {}
        for epoch, *_, steps in ours(s, 0.001):
            last[epoch] = steps
        assert last == dict.fromkeys(range(4), True)


@pytest.mark.parametrize("cosine", [False, True])
def test_decay_falls_from_one_towards_lrf(cosine: bool) -> None:
    s = make(cosine=cosine, epochs=50, lrf=0.02)
    factors = [s.decay(epoch) for epoch in range(51)]
    assert factors[0] == 1
    assert factors[50] == pytest.approx(0.02)
    assert all(a > b for a, b in itertools.pairwise(factors))


def test_warmup_is_never_longer_than_all_but_the_last_epoch() -> None:
    for epochs, warmup in itertools.product(range(1, 8), (0.0, 0.5, 3.0, 100.0)):
        s = make(epochs=epochs, warmup=warmup)
        assert s.warmup_batches <= (epochs - 1) * 8
        assert s.warmup_progress(epochs - 1, s.num_images) == 1
        if epochs == 1 or warmup == 0:
            assert s.warmup_batches == 0
            assert s.warmup_progress(0, 0) == 1


def test_warmup_progress_rises_without_a_jump_over_epochs_of_an_odd_size() -> None:
    s = make(images=37, batch=8, warmup=3.0, epochs=9)
    seen = [s.warmup_progress(e, i * 8) for e in range(4) for i in range(5)]
    assert seen == sorted(seen)
    assert max(b - a for a, b in itertools.pairwise(seen)) == pytest.approx(1 / s.warmup_batches)
    assert (seen[0], seen[-1]) == (0, 1)


def test_warmup_counts_the_batches_of_epochs_of_different_lengths() -> None:
    images = [40, 24, 16, 8]
    s = replace(make(epochs=4, images=40, batch=8, warmup=1.7), images_in=images.__getitem__)
    assert s.warmup_batches == 5 + 2  # of the second epoch's three
    assert [s.warmup_progress(0, 16), s.warmup_progress(1, 0), s.warmup_progress(1, 8)] == [2 / 7, 5 / 7, 6 / 7]
    assert [s.warmup_progress(1, 16), s.warmup_progress(2, 0)] == [1.0, 1.0]
