"""What is said of a plan: the lines of mode=check, and the name of its run. `preparation.py` made the plan."""

from __future__ import annotations

from dataclasses import fields

from hsr_train.config.schema import ClassifyAugmentationConfig, ClassifyExperiment
from hsr_train.data.class_folders import DEMO
from hsr_train.data.class_set import ClassificationSet
from hsr_train.decisions import Decisions
from hsr_train.engines.classification.weights import Start
from hsr_train.hardware import Machine
from hsr_train.run.naming import described

# What names a run beside its data: what stands there for a key, where that is not the key's last part.
_WORDS = {
    "model.name": "model",
    "train.batch": "batch",
    "train.epochs": "epochs",
    "train.max_steps": "steps",
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


def run_name(experiment: ClassifyExperiment, dataset: ClassificationSet) -> str:
    """Return the name of a run; see `run.naming`.

    Args:
        experiment: As typed, before anything was decided.
        dataset: For its name and fold.
    """
    words = dict(_WORDS)
    if experiment.data.raw is None and experiment.data.path == DEMO:
        words["data.seed"] = "data_seed"
    sections = ("train", "optimizer", "trainer", "augmentation")
    return described(experiment, dataset.name, dataset.fold, words, sections)


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
