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
    thin: bool = False,
    **content: Any,
) -> Path:
    """Write a plain checkpoint with random weights.

    Args:
        path: The .pt file.
        architecture: An ultralytics model name; one with `-seg` is a segmentation model.
        names: Class names of the head.
        imgsz: The image size in its training arguments, pixels.
        thin: Whether to take a quarter of the channels and one convolution for each block, in layers of the same
            numbers: a run costs as much as the number of its tensors.
        **content: Replaces entries of the checkpoint.
    """
    names = names or ["a", "b"]
    kind = SegmentationModel if "-seg" in architecture else DetectionModel
    layers = yaml_model_load(f"{architecture}.yaml")
    if thin:
        layers["scales"][layers["scale"]][1] /= 4
        for layer in (*layers["backbone"], *layers["head"]):
            if layer[2] in ("C2f", "C3k2", "C2PSA", "SPPF"):
                layer[1:] = [1, "Conv", [layer[3][0], 1, 1]]
    model = kind(layers, nc=len(names), verbose=False).half()
    model.names = dict(enumerate(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "ema": None, "train_args": {"imgsz": imgsz}, **content}, path)
    return path
