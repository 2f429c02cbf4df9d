"""An experiment in ultralytics' words: our keys as the library's arguments, and what it could not do with them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hsr_train.config.schema import DetectExperiment
from hsr_train.data.detection_set import DetectionSet
from hsr_train.engines.detection.freezing import frozen_modules, layers_of
from hsr_train.engines.detection.weights import Weights
from hsr_train.errors import InputError, Problem


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
        "freeze": train.freeze,  # as names: `RunTrainer.setup_model`, which knows the network
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


def refused(
    experiment: DetectExperiment,
    start: Weights,
    dataset: DetectionSet,
    composed: Collection[int] = (0,),
    processes: int = 1,
) -> list[Problem]:
    """Return what ultralytics would refuse with a traceback after the start, or ignore without a word.

    Args:
        experiment: With every `auto` decided.
        start: The network.
        dataset: The checked set; has a train split.
        composed: Numbers of composed images that epochs have.
        processes: How many share each batch.
    """
    train, images = experiment.train, dataset.splits["train"]
    problems = []
    if train.imgsz % start.stride:
        nearest = max(round(train.imgsz / start.stride), 1) * start.stride
        allowed = f"{start.architecture} needs a multiple of {start.stride}"
        problems.append(Problem("train.imgsz", str(train.imgsz), allowed, f"train.imgsz={nearest}"))
    smallest = max(int(train.imgsz * (1 - float(train.multi_scale))) // start.stride, 1) * start.stride
    batch = int(train.batch)
    whole = batch * processes
    alone = [number for extra in composed if ((number := len(images) + extra) % whole or whole) < 2 * processes]
    if smallest < 2 * start.stride and alone:
        holds = "would hold one image" if processes == 1 else "would leave a process with one image"
        allowed = (
            f"the last batch of an epoch ({alone[0]} images) {holds}, at {smallest} px a single value per channel, "
            "which batch normalisation cannot use"
        )
        larger = "train.multi_scale=0" if train.imgsz >= 2 * start.stride else f"train.imgsz={2 * start.stride}"
        problems.append(Problem("train.batch", str(batch), allowed, f"{larger}, or another train.batch"))
    if train.freeze and start.source != "state":  # a run that goes on was checked when it began
        try:
            frozen_modules(train.freeze, *layers_of(start))
        except InputError as error:
            problems += error.problems
    if experiment.augmentation.copy_paste and not any(len(segments) for segments in images.segments):
        allowed = "has no effect: it copies outlines, and these labels are not all polygons"
        share = str(experiment.augmentation.copy_paste)
        problems.append(Problem("augmentation.copy_paste", share, allowed, "augmentation.copy_paste=0"))
    return problems
