"""Where a detection run's figures go: results.csv, timings.csv, status.json, TensorBoard and the log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hsr_train.engines.detection.layer_rates import rates_by_kind, rates_by_module
from hsr_train.engines.memory import peak_gpu_gib
from hsr_train.run.directory import RunDirectory
from hsr_train.run.events import EventWriter
from hsr_train.run.log import duration
from hsr_train.run.results import ResultsTable
from hsr_train.run.status import StatusWriter
from hsr_train.run.throughput import Timings, Usage

log = logging.getLogger(__name__)

METRIC_COLUMNS = ("mAP50", "mAP50-95", "precision", "recall")
LOSS_COLUMNS = ("box_loss", "cls_loss", "dfl_loss")


class Monitor:
    """Records epochs of one run.

    Args:
        run: The run's directory.
        status: Its heartbeat.
        writer: TensorBoard events, or None if switched off.
        num_groups: Kinds of parameters that the optimizer tells apart; each has a column of its (highest) rate.
        has_dfl: The model's box loss has a distribution focal part; else that column is empty and l1_loss is added.
        epochs: Planned epochs.
        epochs_done: Rows beyond this epoch are dropped: the run goes on from here.
        purge: Drop also what an earlier process has written to TensorBoard beyond it.
        usage: Measures what the machine does meanwhile.
    """

    def __init__(
        self,
        run: RunDirectory,
        status: StatusWriter,
        writer: EventWriter | None,
        *,
        num_groups: int,
        has_dfl: bool,
        epochs: int,
        epochs_done: int,
        purge: bool,
        usage: Usage | None = None,
    ) -> None:
        self.status, self.writer, self.epochs = status, writer, epochs
        rates = [f"lr_{i}" for i in range(num_groups)]
        val = [f"val_{name}" for name in LOSS_COLUMNS]
        other = () if has_dfl else ("l1_loss", "val_l1_loss")
        self.results = ResultsTable(run.results_csv, ("epoch", *LOSS_COLUMNS, *METRIC_COLUMNS, *val, *other, *rates))
        removed = self.results.truncate_after(epochs_done)
        self.timings = Timings(run, writer, usage, epochs_done)
        if writer is not None and (purge or removed):
            writer.purge_after(epochs_done)
        self.best = max((float(row["mAP50"] or 0) for row in self.results.rows()), default=0.0)
        self._image_s: list[float] = []

    def epoch(
        self,
        trainer: Any,
        epoch: int,
        losses: dict[str, float],
        metrics: dict[str, float],
        val_losses: dict[str, float],
        times: Any,
        epoch_s: float,
    ) -> None:
        """Record one epoch (counted from 0)."""
        number = epoch + 1
        groups = rates_by_kind(trainer.optimizer)
        rates = {f"lr_{i}": group["lr"] for i, group in groups.items()}
        row = {"epoch": number, **losses, **metrics, **val_losses, **rates}
        self.results.append(dict.fromkeys(self.results.columns) | row)
        memory_gib = peak_gpu_gib(trainer.device)
        self.timings.epoch(number, times, epoch_s, images=times.images, gpu_memory_gib=memory_gib)
        self.status.progress(epoch=number, epochs=self.epochs, mAP50=metrics["mAP50"])
        if self.writer is None:
            return
        names = {f"lr_{i}": f"lr/{i}_{group.get('param_group', 'group')}" for i, group in groups.items()}
        scalars = {
            **{f"train/{k}": v for k, v in losses.items()},
            **{f"val/{k.removeprefix('val_')}": v for k, v in val_losses.items()},
            **{f"metrics/{k}": v for k, v in metrics.items()},
            **{names[k]: v for k, v in rates.items()},
            **{f"lr_by_module/{k}": v for k, v in rates_by_module(trainer.optimizer).items()},
        }
        for tag, value in scalars.items():
            self.writer.scalar(tag, float(value), number)
        self.writer.flush()

    def report(
        self,
        epoch: int,
        losses: dict[str, float],
        metrics: dict[str, float],
        epoch_s: float,
        best_epoch: int,
        improved: bool,
        images: int,
        images_left: int,
    ) -> None:
        """Log one line about an epoch: losses, metrics, best so far, time and what is left."""
        self._image_s.append(epoch_s / images)
        if improved:
            self.best = metrics["mAP50"]
        left_s = images_left * sum(self._image_s[-5:]) / len(self._image_s[-5:])
        log.info(
            "Epoch %d/%d | train %s | val mAP50 %.4f mAP50-95 %.4f P %.3f R %.3f | best mAP50 %.4f (epoch %d) "
            "| %.1f s, %s left",
            epoch + 1,
            self.epochs,
            " ".join(f"{k.removesuffix('_loss')} {v:.4f}" for k, v in losses.items()),
            *(metrics[k] for k in METRIC_COLUMNS),
            self.best,
            best_epoch,
            epoch_s,
            duration(left_s),
        )

    def images_per_epoch(self) -> list[int]:
        """Return how many images each epoch so far was trained on."""
        rows = self.timings.table.rows()
        return [round((row["images_per_s"] or 0) * (row["train_s"] or 0)) for row in rows]

    def pictures(self, folder: Path, pattern: str, tag: str, step: int) -> None:
        """Put the pictures of a folder into TensorBoard."""
        if self.writer is None:
            return
        for path in sorted(folder.glob(pattern)):
            image = cv2.imread(str(path))
            if image is not None:
                self.writer.image(f"{tag}/{path.stem}", np.ascontiguousarray(image[..., ::-1], np.uint8), step)
