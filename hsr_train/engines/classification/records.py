"""Where a classification run's figures go: results.csv, timings.csv, status.json, TensorBoard and the log."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass

import torch

from hsr_train.engines.base import RunContext
from hsr_train.engines.memory import peak_gpu_gib
from hsr_train.run.log import duration, success
from hsr_train.run.results import ResultsTable
from hsr_train.run.throughput import Timings

log = logging.getLogger(__name__)

COLUMNS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc", "val_macro_f1", "lr")
CURVES = {
    "train_loss": "Loss/train",
    "val_loss": "Loss/val",
    "train_acc": "Accuracy/train",
    "val_acc": "Accuracy/val",
    "val_macro_f1": "Macro_F1/val",
    "lr": "Learning_Rate",
}


@dataclass
class Figures:
    """What one epoch came to; losses are means over images, the others shares in [0, 1]."""

    train_loss: float
    train_acc: float
    val_loss: float
    val_acc: float
    val_macro_f1: float
    lr: float
    epsilon: float | None = None


@dataclass
class Times:
    """Where an epoch's seconds went, and how many images they were for."""

    train_s: float = 0.0
    wait_s: float = 0.0
    val_s: float = 0.0
    save_s: float = 0.0
    images: int = 0


class Records:
    """Records epochs of one run.

    Args:
        context: The run's directory, heartbeat and TensorBoard events.
        epochs: Planned epochs.
        epochs_done: Rows beyond this epoch are dropped: the run goes on from here.
        delta: Of the epsilon that a private training records; None for any other training.
        purge: Drop also what an earlier process has written to TensorBoard beyond it.
        device: Where this process trains.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        epochs: int,
        epochs_done: int,
        purge: bool,
        device: str,
        delta: float | None = None,
    ) -> None:
        self.status, self.writer, self.epochs, self.delta = context.status, context.events, epochs, delta
        columns = COLUMNS if delta is None else (*COLUMNS, "epsilon")
        self.results = ResultsTable(context.run.results_csv, columns)
        removed = self.results.truncate_after(epochs_done)
        self.timings = Timings(context.run, context.events, context.usage, epochs_done)
        self.device = torch.device(device)
        if self.writer is not None and (purge or removed):
            self.writer.purge_after(epochs_done)
        self._seconds: list[float] = []

    def begin(self, epoch: int) -> None:
        """Say which epoch (counted from 0) begins."""
        log.info("Epoch %d/%d", epoch, self.epochs - 1)
        log.info("-" * 50)

    def epoch(self, epoch: int, figures: Figures, times: Times, epoch_s: float) -> None:
        """Record one epoch (counted from 0)."""
        number, values = epoch + 1, asdict(figures)
        self.results.append({name: number if name == "epoch" else values[name] for name in self.results.columns})
        memory_gib = peak_gpu_gib(self.device)
        self.timings.epoch(number, times, epoch_s, images=times.images, gpu_memory_gib=memory_gib)
        self.status.progress(epoch=number, epochs=self.epochs, val_acc=figures.val_acc)
        if self.writer is not None:
            for name, tag in CURVES.items():
                self.writer.scalar(tag, values[name], number)
            if self.delta is not None and figures.epsilon is not None:
                self.writer.scalar("Privacy/epsilon", figures.epsilon, number)
                self.writer.scalar("Privacy/delta", self.delta, number)
            self.writer.flush()

    def report(self, epoch: int, figures: Figures, epoch_s: float, *, improved: bool) -> None:
        """Log what an epoch came to, and what is left."""
        self._seconds.append(epoch_s)
        left_s = (self.epochs - epoch - 1) * sum(self._seconds[-5:]) / len(self._seconds[-5:])
        log.info("train Loss: %.4f Acc: %.4f", figures.train_loss, figures.train_acc)
        log.info(
            "val Loss: %.4f Acc: %.4f Macro F1: %.4f | %.1f s, %s left",
            figures.val_loss, figures.val_acc, figures.val_macro_f1, epoch_s, duration(left_s),
        )  # fmt: skip
        if improved:
            success(log, "New best model saved! Acc: %.4f", figures.val_acc)
