"""Makes the loss of a share of a batch what it is in the loss of the whole batch.

ultralytics divides the loss of a batch by the sum of its target scores and multiplies it by its images. Both are those
of the whole batch here, so that the gradients of several processes add up to what one process would find; what the
library's own data-parallel training adds up are losses that each process has divided by its own sum. `trainer.py` puts
this in where several processes train together (`engines.together`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from hsr_train.engines.together import Together

Loss = tuple[torch.Tensor, dict[str, torch.Tensor]]


class SharedLoss:
    """Put into a network's criterion: its loss, and what is reported of it, add up to those of the whole batch.

    Args:
        model: The network that is trained; not its EMA, which one process validates.
        together: The processes.
    """

    def __init__(self, model: Any, together: Together) -> None:
        self._together, self._device = together, next(model.parameters()).device
        self._scores = torch.zeros(())  # the sum of the targets of this share, as the assigner found them last
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        heads = [getattr(model.criterion, name, None) for name in ("one2many", "one2one")]
        self._criteria: list[Any] = [head for head in heads if head is not None] or [model.criterion]
        for criterion in self._criteria:
            criterion.assigner.register_forward_hook(self._note)
            criterion.loss = partial(self._of_whole, criterion.loss)

    def skip(self) -> None:
        """Take part in a loss to which this process has no image."""
        for _ in self._criteria:
            self._together.add_up(torch.zeros(2, device=self._device))

    def _note(self, assigner: Any, arguments: Any, found: Any) -> None:
        self._scores = found[2].sum().float()

    def _of_whole(self, loss_of: Any, predictions: Any, batch: Any) -> Loss:
        """Return the loss of a share, times the images of the whole batch, and its items."""
        loss, items = loss_of(predictions, batch)
        images = float(predictions["boxes"].shape[0])
        whole = self._together.add_up(torch.stack([self._scores, self._scores.new_tensor(images)]))
        part = self._scores.clamp(min=1) / whole[0].clamp(min=1)
        return loss * (part * whole[1] / images), {name: value * part for name, value in items.items()}
