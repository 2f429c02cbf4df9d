"""Weights files for tests, in the form that ultralytics writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from hsr_train.engines.detection.library import bring_up

bring_up()
from ultralytics.nn.tasks import DetectionModel, SegmentationModel, yaml_model_load  # noqa: E402


def write_checkpoint(
    path: Path,
    architecture: str = "yolov8n",
    *,
    names: list[str] | None = None,
    imgsz: int = 96,
    width: float | None = None,
    **content: Any,
) -> Path:
    """Write a plain checkpoint with random weights.

    Args:
        path: The .pt file.
        architecture: An ultralytics model name; one with `-seg` is a segmentation model.
        names: Class names of the head.
        imgsz: The image size in its training arguments, pixels.
        width: Channels as a share of the family's; default: the architecture's own.
        **content: Replaces entries of the checkpoint.
    """
    names = names or ["a", "b"]
    kind = SegmentationModel if "-seg" in architecture else DetectionModel
    layers = yaml_model_load(f"{architecture}.yaml")
    if width is not None:
        layers["scales"][layers["scale"]][1] = width
    model = kind(layers, nc=len(names), verbose=False).half()
    model.names = dict(enumerate(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "ema": None, "train_args": {"imgsz": imgsz}, **content}, path)
    return path
