"""Which images make a batch, as pure functions of (seed, epoch): their order, and what goes through the network.

`dataset.make_loader` loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from torch.utils.data import Sampler

SampleKey = tuple[int, int]
"""Epoch and index."""


def epoch_order(seed: int, epoch: int, num_samples: int) -> np.ndarray:
    """Return the indices of a shuffled epoch, of shape (num_samples,)."""
    return np.random.default_rng((seed, epoch)).permutation(num_samples)


class EpochSampler(Sampler[SampleKey]):
    """Yields (epoch, index) in an order that depends on the seed and the epoch alone.

    Each `iter()` is the next epoch; the loader calls it without end, and ahead of time.

    Args:
        num_samples: Of each epoch, or what tells that of an epoch.
        seed: Of the order.
        start_epoch: The first epoch, counted from 0.
        shuffle: Whether the order is drawn anew for each epoch.
    """

    def __init__(
        self, num_samples: int | Callable[[int], int], seed: int, start_epoch: int = 0, shuffle: bool = True
    ) -> None:
        self.num_samples, self.seed, self.shuffle = num_samples, seed, shuffle
        self.next_epoch = start_epoch
        self.epoch = start_epoch
        """The one that the loader hands over, which may be behind the next one that it fetches."""

    def __iter__(self) -> Iterator[SampleKey]:
        epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
        num_samples = self._samples_in(epoch)
        order = epoch_order(self.seed, epoch, num_samples) if self.shuffle else np.arange(num_samples)
        return iter([(epoch, int(i)) for i in order])

    def __len__(self) -> int:
        return self._samples_in(self.epoch)

    def _samples_in(self, epoch: int) -> int:
        return self.num_samples if isinstance(self.num_samples, int) else self.num_samples(epoch)


class SplitBatches(Sampler[list[SampleKey]]):
    """Batches of a size, each handed over in nearly equal parts of at most `at_once` samples.

    No part crosses the border of a batch, so that whatever memory allows, gradients add up over the same images.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, at_once: int) -> None:
        self.sampler, self.batch_size, self.at_once = sampler, batch_size, at_once

    def __iter__(self) -> Iterator[list[SampleKey]]:
        keys = list(self.sampler)
        start = 0
        for size in self._sizes(len(keys)):
            yield keys[start : start + size]
            start += size

    def __len__(self) -> int:
        return len(self._sizes(len(self.sampler)))

    def _sizes(self, num_samples: int) -> list[int]:
        """Return the sizes of the parts of an epoch."""
        whole, rest = divmod(num_samples, self.batch_size)
        return _parts(self.batch_size, self.at_once) * whole + _parts(rest, self.at_once)


def _parts(size: int, most: int) -> list[int]:
    count = -(-size // most)
    return [size // count + (i < size % count) for i in range(count)]
