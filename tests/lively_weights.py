"""Weights that find many boxes without having been trained, for tests of prediction and export."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from hsr_train.engines.detection.library import bring_up

bring_up()
from ultralytics.nn.tasks import DetectionModel  # noqa: E402


def write_lively_checkpoint(
    path: Path, architecture: str = "yolov8n", *, names: tuple[str, ...] = ("a", "b"), imgsz: int = 96, seed: int = 0
) -> Path:
    """Write a plain checkpoint whose boxes and scores depend on the picture.

    Random weights answer every picture alike: normalisation is fitted to pictures first, then the last layers are
    turned up, so that scores spread over (0, 1) and boxes of one place differ from those of another.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = DetectionModel(f"{architecture}.yaml", nc=len(names), verbose=False)
    pictures = [
        cv2.resize(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), (imgsz, imgsz), interpolation=cv2.INTER_CUBIC)
        for _ in range(8)
    ]
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        model(batch)
        head = model.model[-1]
        for prefix in ("", "one2one_"):
            for branch in getattr(head, f"{prefix}cv3", None) or ():
                branch[-1].bias.fill_(-3.0)
            for branch in getattr(head, f"{prefix}cv2", None) or ():
                branch[-1].bias.fill_(2.0)
                branch[-1].weight *= 3 if head.reg_max > 1 else 0.5
    model = model.eval().half()
    model.names = dict(enumerate(names))
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "ema": None, "train_args": {"imgsz": imgsz}}, path)
    return path
