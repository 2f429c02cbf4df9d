"""Which images make a batch, as pure functions of (seed, epoch): their order, and what goes through the network.

`dataset.make_loader` loads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from hsr_train.engines.together import WHOLE, Share

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
    """This process's shares of batches of a size, each handed over in nearly equal parts of at most `at_once` samples.

    No part crosses the border of a batch, so that whatever memory allows, gradients add up over the same images.
    """

    def __init__(self, sampler: EpochSampler, batch_size: int, at_once: int, share: Share = WHOLE) -> None:
        self.sampler, self.batch_size, self.at_once, self.share = sampler, batch_size, at_once, share

    def __iter__(self) -> Iterator[list[SampleKey]]:
        keys = list(self.sampler)
        for first in range(0, len(keys), self.batch_size):
            own = keys[first : first + self.batch_size][self.share.rank :: self.share.count]
            start = 0
            for part in self._parts(min(self.batch_size, len(keys) - first)):
                if part.own:
                    yield own[start : start + part.own]
                    start += part.own

    def __len__(self) -> int:
        return sum(part.own > 0 for part in self.parts())

    def parts(self) -> list[Part]:
        """Return an epoch's parts, with those that hold no image of this process."""
        whole, rest = divmod(len(self.sampler), self.batch_size)
        return self._parts(self.batch_size) * whole + self._parts(rest)

    def _parts(self, size: int) -> list[Part]:
        """Divide a batch; every process has as many parts as the one with the most images."""
        count = -(-self.share.most(size) // self.at_once)
        shares = [Share(rank, self.share.count).real(size) for rank in range(self.share.count)]
        divided = [[share // count + (i < share % count) for i in range(count)] for share in shares]
        return [Part(divided[self.share.rank][i], sum(sizes[i] for sizes in divided)) for i in range(count)]


@dataclass(frozen=True)
class Part:
    """What goes through the network at once.

    Attributes:
        own: Images of this process.
        images: Images of all processes that share the batch.
    """

    own: int
    images: int
