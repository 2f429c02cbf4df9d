"""What a run with preset=high_performance says at its start; `preparation` logs it when everything is decided.

The wording is fixed, since teams search their logs for it; on a machine without a GPU it says what is true there.
"""

from __future__ import annotations

from typing import Any

from hsr_train.config.schema import DetectExperiment
from hsr_train.hardware import Machine

HIGH_PERFORMANCE = "high_performance"
CACHE_WORDS = {
    "disk": "disk (disk-based, memory-safe)",
    "ram": "ram (memory-based)",
    "none": "none",
}


def announcement(experiment: DetectExperiment, machine: Machine, device: str, asked_batch: Any) -> list[str]:
    """Return the lines of hardware and settings.

    Args:
        experiment: With every `auto` decided.
        machine: What there is.
        device: A torch device, such as cpu or cuda:0.
        asked_batch: `train.batch` as it was asked for; a batch that was typed is not called automatic.
    """
    train = experiment.train
    gpu = next((gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device), None)
    if gpu is None:
        lines = ["GPU: none, training on the CPU"]
        based_on = f"gpu_tier={experiment.gpu_tier}"
    else:
        lines = [f"GPU: {gpu.name}", f"GPU Memory: {gpu.nominal_gb:.1f} GB"]
        based_on = f"{gpu.nominal_gb:.1f}GB VRAM"
    if asked_batch == "auto":
        lines.append(f"Auto batch size: {train.batch} (based on {based_on})")
    return [
        *lines,
        "Training settings (high-performance mode):",
        f"  - Batch size: {train.batch}",
        f"  - Workers: {train.workers}",
        f"  - AMP (Mixed Precision): {train.amp}",
        f"  - Cache: {CACHE_WORDS[str(train.cache)]}",
        f"  - Cosine LR: {train.cos_lr}",
    ]
