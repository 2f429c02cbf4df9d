"""How many composed images each epoch has, and what TensorBoard is shown of them.

`synthetic.Synthesis` makes a `Composition`, by which `dataset` fills its epochs and `schedule` and `pace` count images;
`loop` gives batches and epochs to `Sources`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hsr_train.engines.together import Together
from hsr_train.run.events import EventWriter
from hsr_train.synthesis import Composer
from hsr_train.synthesis.preview import contact_sheet

SOURCE = "source"
"""Key of a sample: whether its image is composed, and the classes of its labels before it was mixed with others."""
NUM_SHOWN = 4
"""Epochs of which composed images are shown: the first and, evenly spread, later ones."""


@dataclass(frozen=True)
class Composition:
    """The images of a run's epochs.

    Attributes:
        num_real: Real images, in every epoch.
        ratio: Composed images for each real one, in the first epoch.
        schedule: constant or linear.
        close_epochs: Epochs at the end that are real alone; the first one never is.
        epochs: Planned epochs.
    """

    num_real: int
    ratio: float
    schedule: str
    close_epochs: int
    epochs: int

    def __call__(self, epoch: int) -> int:
        """Return the number of composed images in an epoch, counted from 0."""
        is_open = max(self.epochs - self.close_epochs, 1)
        if epoch >= is_open:
            return 0
        share = 1 - epoch / is_open if self.schedule == "linear" else 1.0
        return round(self.ratio * share * self.num_real)

    def images(self, epoch: int) -> int:
        """Return the number of images in an epoch, counted from 0."""
        return self.num_real + self(epoch)

    def load(self, epoch: int, epochs: int) -> float:
        """Return the images of an epoch, relative to the first one's, in a run of so many."""
        run = replace(self, epochs=epochs)
        return run.images(epoch) / run.images(0)

    @property
    def is_constant(self) -> bool:
        """Whether all epochs have as many, whatever their number."""
        return self.schedule == "constant" and not self.close_epochs


class Sources:
    """What a run's composed images are, for people to follow.

    Args:
        composer: Composes them.
        names: Class names by id, as the network has them.
    """

    def __init__(self, composer: Composer, names: list[str]) -> None:
        self._composer, self._names = composer, names
        self.counts = np.zeros((2, len(names)), np.int64)
        """(2, classes): labels of the last epoch's real and of its composed images, each image counted once."""
        self._so_far = np.zeros_like(self.counts)  # of this epoch, in this process

    def count(self, batch: dict[str, Any]) -> None:
        """Count the labels of a batch's own images, not of those that they were mixed with."""
        for is_composed, classes in batch.pop(SOURCE):
            self._so_far[int(is_composed)] += np.bincount(classes, minlength=len(self._names))

    def end_epoch(self, together: Together) -> None:
        """Add up what all processes have counted, and begin anew."""
        self.counts = np.sum(together.of_all(self._so_far), axis=0)
        self._so_far = np.zeros_like(self.counts)

    def record(self, writer: EventWriter, epoch: int) -> None:
        """Write the counts of an epoch (from 1)."""
        for kind, row in zip(("real", "composed"), self.counts.tolist(), strict=True):
            for name, count in zip(self._names, row, strict=True):
                writer.scalar(f"synthetic/{name}/{kind}", count, epoch)

    def show(self, writer: EventWriter, epoch: int) -> None:
        """Draw some composed images of an epoch (from 1) with their boxes."""
        sheet = contact_sheet(self._composer, [], self._composer.bank.names, epoch=epoch - 1)
        writer.image("synthetic/composed", np.ascontiguousarray(sheet[..., ::-1], np.uint8), epoch)


def is_shown(epoch: int, epochs: int) -> bool:
    """Return whether composed images of an epoch (from 0) are shown."""
    return epoch in {number * epochs // NUM_SHOWN for number in range(NUM_SHOWN)}


def classes_of(column: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return the classes in a label's column, (n, 1) or (n,), as whole numbers (n,)."""
    return column.astype(np.int64).ravel()
