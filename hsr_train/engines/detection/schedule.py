"""Learning rate, momentum and gradient accumulation as pure functions of the images seen.

They count images, not batches, so that a batch made smaller in mid-run changes neither the effective batch nor the
rate. Without such a change they equal ultralytics' own schedule, but for a step at each epoch's end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The plan of one run.

    Attributes:
        epochs: Planned epochs.
        num_images: Images per epoch; where epochs differ, of the one with the most.
        batch: Images per batch at the start of the run.
        effective_batch: Images per optimizer step after warm-up.
        lrf: Final learning rate as a fraction of the initial one.
        cosine: Cosine instead of linear decay.
        warmup_epochs: Length of the warm-up.
        warmup_bias_lr: Learning rate of biases when warm-up starts.
        warmup_momentum: Momentum when warm-up starts.
        momentum: Momentum after warm-up.
        images_in: Returns the images of an epoch, counted from 0, where epochs differ.
    """

    epochs: int
    num_images: int
    batch: int
    effective_batch: int
    lrf: float
    cosine: bool
    warmup_epochs: float
    warmup_bias_lr: float
    warmup_momentum: float
    momentum: float
    images_in: Callable[[int], int] | None = None

    @property
    def warmup_batches(self) -> int:
        """Length of the warm-up in batches of the initial size; the last epoch is always regular."""
        epochs = min(self.warmup_epochs, max(self.epochs - 1, 0))
        return round(self._batches_before(int(epochs)) + epochs % 1 * self._batches_in(int(epochs)))

    @property
    def num_steps(self) -> int:
        """Optimizer steps of the whole run; they grow in warm-up, and each epoch ends with one."""
        return sum(self._steps_in(epoch) for epoch in range(self.epochs))

    def _steps_in(self, epoch: int) -> int:
        batches = self._batches_in(epoch)
        if self.warmup_progress(epoch, 0) >= 1:
            return math.ceil(batches / (self.images_per_step(1.0) // self.batch))
        steps = pending = 0
        for number in range(batches):
            pending += self.batch
            progress = self.warmup_progress(epoch, number * self.batch)
            if pending >= self.images_per_step(progress) or number + 1 == batches:
                steps, pending = steps + 1, 0
        return steps

    def warmup_progress(self, epoch: int, images_in_epoch: int) -> float:
        """Return how far warm-up has come, in [0, 1], before a batch is processed.

        Args:
            epoch: Counted from 0.
            images_in_epoch: Images of this epoch already processed.
        """
        if epoch >= self.warmup_epochs or not self.warmup_batches:
            return 1.0
        batches = images_in_epoch / self.batch + self._batches_before(epoch)
        return min(batches / self.warmup_batches, 1.0)

    def _batches_in(self, epoch: int) -> int:
        return math.ceil((self.num_images if self.images_in is None else self.images_in(epoch)) / self.batch)

    def _batches_before(self, epoch: int) -> int:
        return sum(self._batches_in(earlier) for earlier in range(epoch))

    def decay(self, epoch: int) -> float:
        """Return the learning-rate factor of an epoch, from 1 down to lrf."""
        if self.cosine:
            return max((1 - math.cos(epoch * math.pi / self.epochs)) / 2, 0) * (self.lrf - 1) + 1
        return max(1 - epoch / self.epochs, 0) * (1.0 - self.lrf) + self.lrf

    def learning_rate(
        self, initial: float, epoch: int, progress: float, *, is_bias: bool, factor: float = 1.0
    ) -> float:
        """Return a parameter group's rate; biases go from warmup_bias_lr (times `factor`), all others rise from 0.

        Args:
            initial: The group's rate after warm-up.
            epoch: Counted from 0.
            progress: Of the warm-up.
            is_bias: Whether the group holds biases.
            factor: What part of the base rate `initial` is, where rates differ by layer.
        """
        start = self.warmup_bias_lr * factor if is_bias else 0.0
        return start + (initial * self.decay(epoch) - start) * progress

    def momentum_at(self, progress: float) -> float:
        """Return the momentum during and after warm-up."""
        return self.warmup_momentum + (self.momentum - self.warmup_momentum) * progress

    def images_per_step(self, progress: float) -> int:
        """Return after how many images the optimizer steps: from one batch up to the effective batch."""
        batches = 1 + (self.effective_batch / self.batch - 1) * progress
        return max(1, round(batches)) * self.batch


def effective_batch(batch: int, nominal: int, num_images: int) -> int:
    """Return the images per optimizer step: the multiple of batch nearest to nominal, at least one batch.

    Args:
        batch: Images per batch.
        nominal: train.nbs.
        num_images: Images per epoch; a step happens at each epoch's end, so more is never reached.
    """
    batches_per_epoch = math.ceil(num_images / batch)
    return batch * min(max(round(nominal / batch), 1), batches_per_epoch)
