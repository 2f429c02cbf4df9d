"""Our command, whose training is fed from one batch that lies on the device: what it comes to if nothing is loaded.

    python benchmarks/fed_from_device.py WORDS        # what is typed after `python -m hsr_train`

The first batch that the loader gives is put on the device as it is, and trained on again and again, an epoch's number
of images in each epoch. Everything else is the run's own: step, precision, validation, records. Used by
`train_vs_yolo.py`, for what no loader can exceed; the first epoch holds the loading and does not count.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from hsr_train.cli import main


class Feed:
    """Stands in for the loader of a training."""

    def __init__(self) -> None:
        self._device: Any = None
        self._batch: dict[str, Any] | None = None

    def install(self) -> None:
        """Let the loop of this process take its batches from here."""
        from hsr_train.engines.detection import loop

        train_epoch = loop.Loop._train_epoch

        def noting(this: Any, epoch: int, times: Any) -> Any:
            self._device = this.trainer.device
            return train_epoch(this, epoch, times)

        loop.Loop._train_epoch = noting
        loop._timed = self.epoch

    def epoch(self, loader: Any, times: Any) -> Iterator[dict[str, Any]]:
        """Yield an epoch's number of images."""
        if self._batch is None:
            first = next(iter(loader))
            self._batch = {k: v.to(self._device) if hasattr(v, "to") else v for k, v in first.items()}
        left, size = len(loader.dataset), len(self._batch["img"])
        while left > 0:
            yield part(self._batch, min(left, size))
            left -= size


def part(batch: dict[str, Any], images: int) -> dict[str, Any]:
    """Return the first images of a batch; a new dictionary, since the trainer puts its own values in."""
    if images == len(batch["img"]):
        return dict(batch)
    objects = batch["batch_idx"] < images
    return {k: v[objects] if k in ("cls", "bboxes", "batch_idx") else v[:images] for k, v in batch.items()}


if __name__ == "__main__":
    Feed().install()
    sys.exit(main())
