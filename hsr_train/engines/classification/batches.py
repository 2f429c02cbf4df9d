"""Which images make a batch, as pure functions of (seed, epoch): shuffled, in order, or drawn one by one.

`samples.make_loader` loads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from hsr_train.engines.together import Share

SampleKey = tuple[int, int]
"""Epoch and index."""

_POISSON = 2  # sets these draws apart from those of `augment.drawing`


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Return the indices of a shuffled epoch, of shape (num_samples,)."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


@dataclass(frozen=True)
class Poisson:
    """Batches that each image enters by itself, with the same probability: what the accounts of privacy assume.

    Attributes:
        rate: The probability.
        steps: Batches in an epoch; some may be empty.
    """

    rate: float
    steps: int

    def sizes(self, seed: int, epoch: int, num_samples: int) -> list[int]:
        """Return the sizes of an epoch's batches."""
        rng = np.random.default_rng((seed, epoch, 0, _POISSON))
        return [int(size) for size in rng.binomial(num_samples, self.rate, self.steps)]

    def batch(self, seed: int, epoch: int, step: int, num_samples: int, size: int) -> np.ndarray:
        """Return the indices of a batch of a drawn size, of shape (size,)."""
        rng = np.random.default_rng((seed, epoch, step + 1, _POISSON))
        return rng.choice(num_samples, size, replace=False)


def part_sizes(size: int, most: int, least: int = 1) -> list[int]:
    """Return the sizes of the fewest parts of at most `most` that a batch comes in, as equal as can be.

    None is smaller than `least`, even if some are larger than `most` then.
    """
    count = max(1, min(-(-size // most), size // least))
    return [size // count + (i < size % count) for i in range(count)]


class EndlessBatches(Sampler[list[SampleKey]]):
    """This process's shares of the batches of epoch after epoch; the order depends on seed and epoch alone."""

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        start_epoch: int,
        shuffle: bool,
        least: int,
        poisson: Poisson | None,
        share: Share,
    ) -> None:
        self.num_samples, self.seed, self.next_epoch, self.shuffle = num_samples, seed, start_epoch, shuffle
        self._poisson, self.share, self.least = poisson, share, least
        whole, rest = divmod(num_samples, batch_size)
        self._sizes = [batch_size] * whole + ([rest] if rest >= least else [])

    def sizes(self, epoch: int) -> list[int]:
        """Return the sizes of an epoch's batches."""
        return self._sizes if self._poisson is None else self._poisson.sizes(self.seed, epoch, self.num_samples)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        while True:
            epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
            for batch in self._batches(epoch):
                yield [(epoch, int(i)) for i in self.share.of(batch, self.least)]

    def _batches(self, epoch: int) -> Iterator[np.ndarray]:
        sizes = self.sizes(epoch)
        if self._poisson is not None:
            for step, size in enumerate(sizes):
                yield self._poisson.batch(self.seed, epoch, step, self.num_samples, size)
            return
        order = epoch_order(self.seed, epoch, self.num_samples) if self.shuffle else np.arange(self.num_samples)
        start = 0
        for size in sizes:
            yield order[start : start + size]
            start += size
