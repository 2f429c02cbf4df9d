"""Scores of a network on a split: what validation, the reports and predictions are made from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.samples import normalise
from hsr_train.engines.together import Together


@dataclass
class Outcome:
    """What a network says about n images of k classes.

    Attributes:
        targets: (n,) class numbers.
        probabilities: (n, k), rows add up to 1.
        loss: Mean cross-entropy.
    """

    targets: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the right one."""
        return float((self.probabilities.argmax(1) == self.targets).mean())

    @property
    def macro_f1(self) -> float:
        """Mean over the classes of F1; a class that is neither there nor predicted does not count."""
        predicted = self.probabilities.argmax(1)
        num_classes = self.probabilities.shape[1]
        right = np.bincount(self.targets[predicted == self.targets], minlength=num_classes)
        both = np.bincount(self.targets, minlength=num_classes) + np.bincount(predicted, minlength=num_classes)
        return float((2 * right[both > 0] / both[both > 0]).mean())

    def metrics(self) -> dict[str, float]:
        """Return the figures by the names that training_result.json has."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1}


@torch.no_grad()
def score(
    model: nn.Module,
    loader: Any,
    inputs: ClassifyInputs,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    together: Together | None = None,
) -> Outcome:
    """Run a network over one pass of a loader, in evaluation mode.

    Args:
        model: Gives (images, classes) scores.
        loader: Yields pictures (n, 3, side, side) of uint8, targets and numbers.
        inputs: Device, mean and standard deviation.
        autocast: The precision in which scores are computed.
        together: The processes whose loaders share the images; each gets the outcome of all.
    """
    was_training = model.training
    model.eval()
    device = torch.device(inputs.device)
    parts, targets, indices = [], [], []
    try:
        for pictures, wanted, numbers in loader:
            with autocast():
                scores = model(normalise(pictures.to(device, non_blocking=True), inputs.mean, inputs.std))
            parts.append(scores.double().log_softmax(1).cpu().numpy())
            targets.append(wanted.numpy())
            indices.append(numbers.numpy())
    finally:
        model.train(was_training)
    found = [np.concatenate(arrays) for arrays in (parts, targets, indices)]
    if together is not None and together.count > 1:
        found = _in_order(together.of_all(found))
    logarithms, known, _ = found
    loss = -float(np.take_along_axis(logarithms, known[:, None], 1).mean())
    return Outcome(known, np.exp(logarithms), loss)


def _in_order(found: list[list[Any]]) -> list[Any]:
    """Put the arrays of several processes together, by the indices that come last; those below 0 do not count."""
    arrays = [np.concatenate(column) for column in zip(*found, strict=True)]
    order = np.argsort(arrays[-1], kind="stable")
    order = order[arrays[-1][order] >= 0]
    return [array[order] for array in arrays]
