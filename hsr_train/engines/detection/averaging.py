"""Stochastic weight averaging (`train.swa`): the mean of the last epochs' weights, and what becomes of it.

`WeightAverage` collects while `loop.py` trains and is part of the state; `recalibrated` makes a weights file of it,
with batch norms measured anew, since the statistics of a mean network are not the mean of statistics. `engine.py`
decides whether it is kept.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hsr_train.config.schema import DetectExperiment
from hsr_train.engines.detection.dataset import RunDataset, make_loader
from hsr_train.engines.detection.freezing import frozen_modules
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.options import training_arguments
from hsr_train.engines.detection.trainer import DetectionInputs

bring_up()
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.nn.tasks import torch_safe_load  # noqa: E402

SHARE, FEWEST, MOST = 0.2, 5, 15


def averaged_epochs(epochs: int) -> int:
    """Return how many of the last epochs are averaged: a fifth, at least 5 and at most 15."""
    return min(max(int(SHARE * epochs), FEWEST), MOST)


class WeightAverage:
    """The running mean of a network's weights over epochs.

    Args:
        kept: What `state` returned, or None.
        device: Where the mean lies: that of the network.
    """

    def __init__(self, kept: Mapping[str, Any] | None, device: torch.device) -> None:
        self._since = int(kept["since"]) if kept else 0
        self.epochs = int(kept["epochs"]) if kept else 0
        self._mean = {k: v.to(device) for k, v in kept["mean"].items()} if kept else {}

    def add(self, model: Any, epoch: int, planned: int) -> None:
        """Take an epoch in if it is one of the last; epochs that are not among them any more are forgotten.

        Args:
            model: The network after the epoch, not its EMA.
            epoch: Counted from 1.
            planned: Epochs in all; more than before if the run was extended.
        """
        first = planned - averaged_epochs(planned) + 1
        if self._since < first:
            self._since, self.epochs, self._mean = 0, 0, {}
        if epoch < first:
            return
        self._since, self.epochs = self._since or epoch, self.epochs + 1
        for name, value in model.state_dict().items():
            if name in self._mean and value.is_floating_point():
                self._mean[name].lerp_(value.detach(), 1 / self.epochs)
            else:
                self._mean[name] = value.detach().clone()

    def state(self) -> dict[str, Any] | None:
        """Return what the next process needs, or None as long as there is no mean."""
        return {"since": self._since, "epochs": self.epochs, "mean": self._mean} if self.epochs else None


def recalibrated(
    best: Path,
    mean: Mapping[str, torch.Tensor],
    experiment: DetectExperiment,
    inputs: DetectionInputs,
    *,
    imgsz: int,
    batch: int,
) -> dict[str, Any]:
    """Return a checkpoint of the form of best.pt with the mean weights and batch norms measured on the training images.

    The images come without augmentation. Batch norms of frozen modules are kept.

    Args:
        best: best.pt of the run: the network and its form.
        mean: Of the state.
        experiment: With every `auto` decided.
        inputs: Checked data and device.
        imgsz: Of the run's beginning, pixels.
        batch: Of the run's beginning, in images; statistics are those of batches.
    """
    assert inputs.dataset is not None
    checkpoint, _ = torch_safe_load(best, safe_only=True)
    model = checkpoint["model"].float()
    model.load_state_dict(mean)
    frozen = frozen_modules(experiment.train.freeze, model.model, len(model.yaml["backbone"]))
    arguments = get_cfg(overrides=training_arguments(experiment, inputs.device, best.parent) | {"imgsz": imgsz})
    loader = make_loader(
        RunDataset(
            inputs.dataset.splits["train"],
            arguments,
            augment=False,
            open_epochs=0,
            cache_dir=inputs.cache_dir,
            batch_size=batch,
            stride=inputs.weights.stride,
            names=inputs.dataset.names,
            rect=False,
        ),
        batch_size=batch,
        at_once=min(batch, int(experiment.train.val_batch or batch)),
        workers=experiment.train.workers,
        seed=experiment.train.seed,
        shuffle=True,
        start_epoch=0,
        pin=inputs.device.startswith("cuda"),
    )
    try:
        _measure_norms(model.to(inputs.device), frozen, loader)
    finally:
        loader.close()
    largest = torch.finfo(torch.float16).max  # as in `WeightsFile`
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.clamp_(-largest, largest)
    checkpoint["model"] = model.cpu().half().eval()
    return dict(checkpoint)


@torch.no_grad()
def _measure_norms(model: Any, frozen: list[str], loader: Any) -> None:
    kept = {id(module) for name in frozen for module in model.get_submodule(name).modules()}
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    model.train()
    for norm in norms:
        if id(norm) in kept:
            norm.eval()
        else:
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all batches
    device = next(model.parameters()).device
    for images in loader:
        model(images["img"].to(device).float() / 255)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def serialized(checkpoint: Mapping[str, Any], metrics: Mapping[str, float]) -> bytes:
    """Return a checkpoint as the bytes of a file.

    Args:
        checkpoint: See `recalibrated`.
        metrics: On the validation images, stored as train_metrics.
    """
    buffer = io.BytesIO()
    torch.save({**checkpoint, "train_metrics": dict(metrics)}, buffer)
    return buffer.getvalue()
