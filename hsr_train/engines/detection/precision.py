"""Whether mixed precision may be used: measured on the model itself instead of on downloaded weights."""

from __future__ import annotations

import logging
from typing import Any

import torch

log = logging.getLogger(__name__)


def mixed_precision_works(model: Any, imgsz: int = 256, tolerance: float = 0.1) -> bool:
    """Return whether float16 autocasting gives a model's float32 answer on its own GPU.

    Some cards (the GTX 16 series) return NaN or zeros in float16.

    Args:
        model: A detection model on the device that will train.
        imgsz: Side of the random test image in pixels.
        tolerance: Largest accepted relative difference of the raw outputs (L2 norm).
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return False
    was_training = model.training
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, imgsz, imgsz, generator=generator).to(device)
    model.eval()
    try:
        with torch.no_grad():
            exact = _prediction(model(image)).float()
            with torch.autocast("cuda"):
                mixed = _prediction(model(image)).float()
    finally:
        model.train(was_training)
    difference = (exact - mixed).norm() / exact.norm().clamp_min(1e-6)
    works = bool(torch.isfinite(mixed).all()) and float(difference) <= tolerance
    log.debug("Mixed precision differs from float32 by %.4f (relative)", float(difference))
    return works


def _prediction(output: Any) -> torch.Tensor:
    while isinstance(output, (tuple, list)):
        output = output[0]
    result: torch.Tensor = output
    return result
