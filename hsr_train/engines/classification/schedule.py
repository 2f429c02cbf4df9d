"""Learning rate and warm-up as pure functions of the images seen: nothing of a schedule needs to be saved.

They count images, not batches, so that a batch made smaller in mid-run changes no rate, and they know the epochs, so
that an extended run has the rate that a run of that length has there.
"""

from __future__ import annotations

import math

from hsr_train.config.schema import ClassifyOptimizerConfig

ONE_CYCLE_RISE = 0.3
ONE_CYCLE_START = 1 / 25


def rate_factor(config: ClassifyOptimizerConfig, progress: float, epochs: int) -> float:
    """Return by what `optimizer.lr` is multiplied.

    Args:
        config: `schedule` and its parameters.
        progress: Epochs done, with the fraction of the present one.
        epochs: Planned epochs.
    """
    if config.schedule == "one_cycle":
        return _one_cycle(config, progress, epochs)
    warmup = min(config.warmup_epochs, epochs)
    rising = progress / warmup if progress < warmup else 1.0
    return rising * _decay(config, progress, epochs)


def _decay(config: ClassifyOptimizerConfig, progress: float, epochs: int) -> float:
    """Steps fall between epochs; cosine falls with every image, and reaches `final` at the last one."""
    if config.schedule == "step":
        return float(config.gamma ** (int(progress) // config.step_size))
    if config.schedule == "cosine":
        return _cosine(1.0, config.final, progress / epochs)
    return 1.0


def _one_cycle(config: ClassifyOptimizerConfig, progress: float, epochs: int) -> float:
    """Rise from a 25th of the rate, for `warmup_epochs` or 30 % of the epochs, then fall to `final`."""
    top = min(config.warmup_epochs, epochs) or ONE_CYCLE_RISE * epochs
    if progress < top:
        return _cosine(ONE_CYCLE_START, 1.0, progress / top)
    return _cosine(1.0, config.final, (progress - top) / (epochs - top) if epochs > top else 1.0)


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
