"""What is said of a plan: the lines of mode=check, and the name of a fold's run. `preparation.py` made the plan."""

from __future__ import annotations

from hsr_train.config.schema import DetectExperiment
from hsr_train.data.detection_set import DetectionSet
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.synthetic import Synthesis
from hsr_train.engines.detection.weights import Weights
from hsr_train.hardware import Machine
from hsr_train.run.naming import described

# What names a run of a fold beside its data; see `run.naming`.
_WORDS = {
    "model.name": "model",
    "train.batch": "batch",
    "train.epochs": "epochs",
    "train.max_steps": "steps",
    "optimizer.lr0": "lr0",
    "optimizer.name": "optimizer",
    "optimizer.llrd.enabled": "llrd",
    "optimizer.llrd.decay_rate": "llrd_decay",
    "train.imgsz": "imgsz",
    "train.seed": "seed",
    "model.weights": "weights",
}


def run_name(experiment: DetectExperiment, dataset: DetectionSet | None) -> str | None:
    """Return the name of a fold's run: the same at each start, so that all folds can be found again."""
    if experiment.mode != "train" or dataset is None or dataset.fold is None:
        return None
    file = dataset.yaml_path
    name = file.parent.name if file.stem in ("data", "dataset") else file.stem
    return described(
        experiment, name, dataset.fold, _WORDS, ("train", "optimizer", "augmentation", "synthetic", "ultralytics")
    )


def summary(
    experiment: DetectExperiment,
    machine: Machine,
    start: Weights,
    dataset: DetectionSet | None,
    synthesis: Synthesis | None,
    decisions: Decisions,
) -> list[str]:
    """Return the plan in words."""
    train, optimizer = experiment.train, experiment.optimizer
    lines = ["Hardware", *(f"  {line}" for line in machine.describe())]
    if dataset is not None:
        lines += dataset.summary()
    if synthesis is not None:
        lines += synthesis.summary()
    origin = str(start.file or "from scratch")
    if start.url is not None:
        origin = f"not on this machine: training would download {start.url}"
    lines += [
        "Plan",
        f"  model {start.architecture}, weights {origin}",
        f"  {train.epochs} epochs, {train.imgsz} px, batch {train.batch} (validation {train.val_batch}), "
        f"{train.workers} workers, cache {train.cache}, device {train.device}, amp {train.amp}",
        f"  optimizer {optimizer.name}, lr0 {optimizer.lr0}, patience {train.patience}, preset {experiment.preset}, "
        f"tier {experiment.gpu_tier}",
        f"  results under {experiment.output_dir}",
        "Decisions",
        *(f"  {machine.without_note(str(decision))}" for decision in decisions),
    ]
    return lines
