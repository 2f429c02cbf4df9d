"""What is said of a plan: the lines of mode=check, and the name of its run. `preparation.py` made the plan."""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from hsr_train.config.schema import ClassifyAugmentationConfig, ClassifyExperiment
from hsr_train.data.class_folders import DEMO
from hsr_train.data.class_set import ClassificationSet
from hsr_train.decisions import Decisions
from hsr_train.engines.classification.weights import Start
from hsr_train.hardware import Machine

MOST_CHARACTERS = 120
"""Of a run's name; a longer one is cut and ends with a hash of the whole."""

# Keys that name a run: what stands there for them, where that is not the last part of the key. These come first.
_WORDS = {
    "model.name": "model",
    "train.batch": "batch",
    "train.epochs": "epochs",
    "optimizer.lr": "lr",
    "optimizer.name": "optimizer",
    "trainer.name": "trainer",
    "train.imgsz": "imgsz",
    "train.seed": "seed",
    "model.weights": "weights",
    "data.on_bad": "on_bad",
    "trainer.gradient_accumulation_steps": "accumulation",
    "trainer.noise_multiplier": "noise",
    "trainer.target_epsilon": "epsilon",
    "trainer.target_delta": "delta",
}
# Whole sections name it; these of their keys change how a run goes, and not what comes out.
_SECTIONS = ("train", "optimizer", "trainer", "augmentation")
_LEFT_OUT = {f"train.{name}" for name in ("workers", "cache", "val_batch", "save_period", "device", "deterministic")}
_GROUPS = {"model": "model.name", "trainer": "trainer.name", "optimizer": "optimizer.name"}
_CHOICES = ("preset", "augmentation")


def run_name(experiment: ClassifyExperiment, dataset: ClassificationSet) -> str:
    """Return `<dataset>[_<key>_<value>...][_fold_<i>]`: whatever was typed that changes training, in a fixed order.

    Args:
        experiment: As typed, before anything was decided.
        dataset: For its name and fold.
    """
    typed = {_GROUPS.get(key, key) for key in experiment.origin.typed}
    keys = [*_WORDS, *(f"{part}.{f.name}" for part in _SECTIONS for f in fields(getattr(experiment, part)))]
    parts = [dataset.name]
    for key in dict.fromkeys(keys):
        if key in typed and key not in _LEFT_OUT:
            section, _, name = key.partition(".")
            value = getattr(getattr(experiment, section), name)
            parts.append(f"{_WORDS.get(key, name)}_{_short(value, is_path=key == 'model.weights')}")
    for group in _CHOICES:
        if group in typed:
            chosen = [line.partition("=")[2] for line in experiment.origin.overrides if line.startswith(f"{group}=")]
            parts.append(f"{group}_{chosen[-1].removeprefix('classify_')}" if chosen else group)
    if "data.seed" in typed and experiment.data.raw is None and experiment.data.path == DEMO:
        parts.append(f"data_seed_{experiment.data.seed}")
    end = "" if dataset.fold is None else f"_fold_{dataset.fold}"
    return _bounded(re.sub(r"[^\w.+-]+", "_", "_".join(parts)), MOST_CHARACTERS - len(end)) + end


def _short(value: Any, *, is_path: bool) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return Path(value).stem if is_path else str(value)


def _bounded(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: most - len(digest) - 1].rstrip('_')}_{digest}"


def summary(
    experiment: ClassifyExperiment,
    machine: Machine,
    start: Start,
    dataset: ClassificationSet | None,
    decisions: Decisions,
) -> list[str]:
    """Return the plan in words."""
    train, optimizer, trainer = experiment.train, experiment.optimizer, experiment.trainer
    lines = ["Hardware", *(f"  {line}" for line in machine.describe())]
    if dataset is not None:
        lines += dataset.summary()
    steps = trainer.gradient_accumulation_steps
    precision = f" in {trainer.amp_dtype}" if trainer.name == "mixed_precision" else ""
    accumulation = f", {steps} batches to a step" if steps > 1 else ""
    lines += [
        "Plan",
        f"  model {experiment.model.name}, weights {_origin(start)}",
        *([f"  {_head(start, len(dataset.classes))}"] if dataset is not None else []),
        f"  {train.epochs} epochs, {train.imgsz} px, batch {train.batch} (validation {train.val_batch}), "
        f"{train.workers} workers, cache {train.cache}, device {train.device}",
        f"  trainer {trainer.name}{precision}{accumulation}, freeze {train.freeze or 'nothing'}, "
        f"ema {train.ema or 'none'}",
        f"  augmentation: {_augmentation(experiment.augmentation)}",
        f"  optimizer {optimizer.name}, lr {optimizer.lr}, schedule {optimizer.schedule}, preset {experiment.preset}",
        f"  results under {experiment.output_dir}",
        "Decisions",
        *(f"  {machine.without_note(str(decision))}" for decision in decisions),
    ]
    return lines


def _origin(start: Start) -> str:
    if start.url is not None:
        return f"not on this machine: training would download {start.url}"
    return str(start.file or "from scratch")


def _head(start: Start, num_classes: int) -> str:
    """Say what becomes of the layer that gives the classes."""
    if start.source in ("scratch", "state") or start.outputs == num_classes:
        return f"head: {num_classes} classes" + (", as in the weights" if start.outputs == num_classes else "")
    held = "new" if start.outputs is None else f"replaced: {start.outputs} outputs in the weights"
    return f"head: {held} -> {num_classes} classes"


def _augmentation(augmentation: ClassifyAugmentationConfig) -> str:
    """Return what is switched on."""
    values = {f.name: getattr(augmentation, f.name) for f in fields(augmentation)}
    if augmentation.crop != "random_resized":
        del values["min_area"]
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (0, "none"))
