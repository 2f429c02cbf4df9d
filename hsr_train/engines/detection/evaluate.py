"""Evaluate a weights file, or what was exported from it, on a checked split."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hsr_train.data.detection_set import DetectionSet
from hsr_train.engines.detection.dataset import RunDataset, make_loader
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.trainer import dataset_description
from hsr_train.engines.detection.weights import inspect

bring_up()
import ultralytics.engine.validator as validator_module  # noqa: E402
from ultralytics.models.yolo.detect import DetectionValidator  # noqa: E402
from ultralytics.utils import ops  # noqa: E402

log = logging.getLogger(__name__)


@dataclass
class Evaluation:
    """What a model achieves on a split.

    Attributes:
        metrics: mAP50, mAP50-95, precision, recall, in [0, 1].
        per_class: One row per class that has boxes: class, images, boxes and the metrics.
        speed_ms: Milliseconds per image for preprocess, inference and postprocess.
        boxes: By image file name: rows (x1, y1, x2, y2, score, class) in pixels of the original image; only if asked.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, Any]]
    speed_ms: dict[str, float]
    boxes: dict[str, np.ndarray] = field(default_factory=dict)

    def table(self) -> list[str]:
        """Return the per-class table as lines of text."""
        width = max([len(row["class"]) for row in self.per_class] + [5])
        lines = [f"{'class':<{width}}  images   boxes  precision  recall   mAP50  mAP50-95"]
        total = {
            "class": "all",
            "images": "",
            "boxes": sum(row["boxes"] for row in self.per_class),
            **self.metrics,
        }
        lines += [
            f"{row['class']:<{width}}  {row['images']:>6}  {row['boxes']:>6}  {row['precision']:>9.4f}  "
            f"{row['recall']:.4f}  {row['mAP50']:.4f}    {row['mAP50-95']:.4f}"
            for row in [total, *self.per_class]
        ]
        return lines


class _Collecting(DetectionValidator):  # type: ignore[misc]
    """Keeps every image's boxes when asked to."""

    keep_boxes = False

    def init_metrics(self, model: Any) -> None:
        super().init_metrics(model)
        self.boxes: dict[str, np.ndarray] = {}

    def update_metrics(self, preds: list[dict[str, Any]], batch: dict[str, Any]) -> None:
        if self.keep_boxes:
            for si, pred in enumerate(preds):
                prepared = self._prepare_batch(si, batch)
                scaled = ops.scale_boxes(
                    prepared["imgsz"], pred["bboxes"].clone(), prepared["ori_shape"], prepared["ratio_pad"]
                )
                rows = np.column_stack([scaled.cpu(), pred["conf"].cpu(), pred["cls"].cpu()])
                self.boxes[str(prepared["im_file"])] = rows.astype(np.float64)
        super().update_metrics(preds, batch)


@contextmanager
def _dataset_is(description: dict[str, Any]) -> Iterator[None]:
    """Hand the validator a checked set where it would read, and maybe download, data.yaml."""
    original = validator_module.check_det_dataset
    validator_module.check_det_dataset = lambda *args, **kwargs: description
    try:
        yield
    finally:
        validator_module.check_det_dataset = original


def evaluate(
    model: Path,
    dataset: DetectionSet,
    split: str,
    *,
    imgsz: int,
    batch: int,
    at_once: int | None = None,
    device: str,
    workers: int,
    cache_dir: Path,
    output_dir: Path,
    plots: bool = True,
    rect: bool = True,
    keep_boxes: bool = False,
    options: dict[str, Any] | None = None,
) -> Evaluation:
    """Run a model over a split.

    Args:
        model: A .pt file, or an exported one.
        dataset: The checked set.
        split: train, val or test; must be in the set.
        imgsz: Longer side of the network input in pixels.
        batch: Images that are padded to a common shape.
        at_once: Images per forward pass; default: a batch.
        device: A torch device, such as cpu or cuda:0.
        workers: Loader processes.
        cache_dir: Our cache folder.
        output_dir: Where plots go.
        plots: Write curves, confusion matrices and sample pictures.
        rect: Pad to a batch's own shape instead of to a square; exported models of fixed shape need squares.
        keep_boxes: Also return every image's boxes.
        options: Further ultralytics options (`options.passed_through`).
    """
    description = dataset_description(dataset)
    arguments = {
        **(options or {}),
        "task": "detect",
        "mode": "val",
        "model": str(model),
        "data": "data.yaml",
        "split": split,
        "imgsz": imgsz,
        "batch": batch,
        "device": device.removeprefix("cuda:"),
        "workers": workers,
        "plots": plots,
        "rect": rect,
        "verbose": False,
    }
    validator = _Collecting(save_dir=output_dir, args=arguments)
    validator.keep_boxes = keep_boxes
    data = RunDataset(
        dataset.splits[split],
        validator.args,
        augment=False,
        open_epochs=0,
        cache_dir=cache_dir,
        batch_size=batch,
        stride=inspect(model, None).stride if model.suffix == ".pt" else 32,  # exported files get squares
        names=dataset.names,
        rect=rect,
    )
    validator.dataloader = make_loader(
        data,
        batch_size=batch,
        at_once=at_once or batch,
        workers=workers,
        seed=0,
        shuffle=False,
        start_epoch=0,
        pin=device.startswith("cuda"),
    )
    try:
        with _dataset_is(description):
            validator(model=str(model))
    finally:
        validator.dataloader.close()
    return _collect(validator)


def metrics_of(validator: Any) -> dict[str, float]:
    """Return a validator's results under our names."""
    results = validator.metrics.results_dict
    names = {"mAP50": "mAP50(B)", "mAP50-95": "mAP50-95(B)", "precision": "precision(B)", "recall": "recall(B)"}
    return {ours: float(results[f"metrics/{theirs}"]) for ours, theirs in names.items()}


def _collect(validator: Any) -> Evaluation:
    metrics = validator.metrics
    per_class = []
    for row, class_id in enumerate(metrics.ap_class_index):
        precision, recall, ap50, ap = metrics.class_result(row)
        per_class.append(
            {
                "class": str(validator.names[int(class_id)]),
                "images": int(metrics.nt_per_image[class_id]),
                "boxes": int(metrics.nt_per_class[class_id]),
                "precision": float(precision),
                "recall": float(recall),
                "mAP50": float(ap50),
                "mAP50-95": float(ap),
            }
        )
    return Evaluation(
        metrics=metrics_of(validator),
        per_class=per_class,
        speed_ms={k: float(v) for k, v in validator.speed.items() if k != "loss"},
        boxes=validator.boxes,
    )
