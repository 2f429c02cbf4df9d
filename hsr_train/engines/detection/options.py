"""An experiment in ultralytics' words: the one translation table between our keys and the library's arguments."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hsr_train.config.schema import DetectExperiment


def passed_through(experiment: DetectExperiment) -> dict[str, Any]:
    """Return the options of the `ultralytics` section that were set."""
    return {key: value for key, value in asdict(experiment.ultralytics).items() if value is not None}


def training_arguments(experiment: DetectExperiment, device: str, save_dir: Path) -> dict[str, Any]:
    """Return the overrides for an ultralytics trainer.

    Args:
        experiment: With every `auto` decided.
        device: A torch device, such as cpu or cuda:0.
        save_dir: Where the library writes what it writes by itself.
    """
    train, optimizer = experiment.train, experiment.optimizer
    arguments: dict[str, Any] = {
        "task": "detect",
        "mode": "train",
        "model": f"{experiment.model.name}.yaml",
        "data": "data.yaml",
        "pretrained": False,
        "save_dir": str(save_dir),
        "exist_ok": True,
        "epochs": train.epochs,
        "batch": train.batch,
        "imgsz": train.imgsz,
        "patience": train.patience,
        "workers": train.workers,
        "cache": False if train.cache == "none" else train.cache,
        "amp": train.amp,
        "close_mosaic": train.close_mosaic,
        "cos_lr": train.cos_lr,
        "multi_scale": train.multi_scale,
        "freeze": train.freeze,
        "seed": train.seed,
        "deterministic": train.deterministic,
        "device": device.removeprefix("cuda:"),
        "nbs": train.nbs,
        "save_period": -1,
        "optimizer": optimizer.name,
        "lrf": optimizer.lrf,
        "weight_decay": optimizer.weight_decay,
        "warmup_epochs": optimizer.warmup_epochs,
        "warmup_momentum": optimizer.warmup_momentum,
        "warmup_bias_lr": optimizer.warmup_bias_lr,
        "plots": True,
        "verbose": False,
        **asdict(experiment.augmentation),
        **passed_through(experiment),
    }
    if optimizer.lr0 is not None:
        arguments["lr0"] = optimizer.lr0
    if optimizer.momentum is not None:
        arguments["momentum"] = optimizer.momentum
    return arguments
