"""Combinations: what one value cannot say alone, checked before anything heavy is imported."""

from __future__ import annotations

from hsr_train.config import architectures
from hsr_train.config.names import nearest, unknown_key
from hsr_train.config.schema import (
    DEMO_SETS,
    AnyExperiment,
    ClassifyExperiment,
    DetectExperiment,
    Experiment,
    OptimizerConfig,
)
from hsr_train.config.strict import leaves, shown
from hsr_train.config.synthetic import check_synthetic
from hsr_train.config.values import check_values
from hsr_train.decisions import Decision
from hsr_train.errors import Problem
from hsr_train.length import check_budget, check_epochs
from hsr_train.pace import time_problems

WEIGHT_WORDS = ("auto", "pretrained", "scratch")
VERBS_WITH_WEIGHTS = ("validate", "predict", "export")

PRIVACY_KEYS = tuple(
    f"trainer.{name}" for name in ("noise_multiplier", "max_grad_norm", "target_epsilon", "target_delta")
)


def check(experiment: Experiment, typed: set[str], *, settled: bool = False) -> tuple[list[Problem], list[Decision]]:
    """Check an experiment and put its values into their normal form, in place.

    Args:
        experiment: Of the right types (`strict.build`).
        typed: Keys and groups from the command line: what was typed is never changed, and refused without effect.
        settled: Nothing is decided any more: whatever is no longer possible is refused, too.

    Returns:
        All problems, and the choices made in place of values that nobody typed.
    """
    problems = check_values(experiment)
    decisions: list[Decision] = []
    problems += _runs(experiment, typed)
    known = {key for key, _, _ in leaves(type(experiment))}
    bounded = [key for key in experiment.adjust.at_most if key not in known]
    problems += [unknown_key(key, type(experiment), where="adjust.at_most: ") for key in bounded]
    if not experiment.recovery.enabled:
        problems += [
            Problem(key, "", "has no effect with recovery.enabled=false", "leave one of the two out")
            for key in sorted(typed)
            if key.startswith("recovery.") and key != "recovery.enabled"
        ]
    if isinstance(experiment, DetectExperiment):
        utilization = "hardware.max_vram_utilization"
        if utilization in typed and experiment.train.batch != "probe":
            share = shown(experiment.hardware.max_vram_utilization)
            allowed = "has no effect without train.batch=probe"
            problems.append(Problem(utilization, share, allowed, "train.batch=probe, or leave it out"))
        if not experiment.data.path:
            problems.append(Problem("data.path", "", "has no value", "data.path=my/data.yaml"))
        problems += _model(experiment.model.name)
        problems += _verb(experiment)
        problems += _folds_of_detection(experiment, typed)
        fixed = {key for key, _, _ in leaves(type(experiment))} if settled else typed
        problems += _automatic_optimizer(experiment.optimizer, fixed, decisions)
        problems += _layer_rates(experiment.optimizer, typed)
        problems += check_synthetic(experiment, typed, decisions)
        problems += check_budget(experiment.train, typed, decisions) + check_epochs(experiment, fixed, decisions)
    if isinstance(experiment, ClassifyExperiment):
        problems += _classify(experiment, typed) + check_budget(experiment.train, typed, decisions)
    if isinstance(experiment, (DetectExperiment, ClassifyExperiment)):
        problems += time_problems(experiment.train, typed) + _time(experiment)
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.key, problem)
    return list(first.values()), decisions


def _time(e: AnyExperiment) -> list[Problem]:
    """Refuse a time for what cannot keep to one."""
    key = "time_budget" if e.train.time_budget is not None else "finish_by"
    value, trainer = getattr(e.train, key), getattr(getattr(e, "trainer", None), "name", None)
    if value is None:
        return []
    if trainer == "dp":
        allowed = "a private training is planned by its epochs: trainer.target_epsilon"
        return [Problem(f"train.{key}", value, allowed, "leave it out, and type train.epochs")]
    if trainer == "accelerate":
        allowed = "is kept by one process, and trainer=accelerate is for several"
        return [Problem(f"train.{key}", value, allowed, "trainer=standard or mixed_precision")]
    if e.is_cross_validation and key == "finish_by":
        allowed = "the first fold would take it all"
        return [Problem("train.finish_by", value, allowed, "train.time_budget=10min  (for each fold)")]
    return []


def _classify(e: ClassifyExperiment, typed: set[str]) -> list[Problem]:
    """Refuse what has no effect, or what a private training cannot have."""
    problems = _verb(e)
    if e.mode in ("preview", "synthesize"):
        problems.append(Problem("mode", e.mode, "is about composed images, which are for detectors", "task=detect"))
    if not e.data.path and e.data.raw is None:
        problems.append(Problem("data.path", "", "has no value", "data.path=my/set, or data.raw=my/raw"))
    if architectures.split(e.model.name) is not None:
        allowed = "is a detector, and this is task=classify"
        problems.append(Problem("model.name", e.model.name, allowed, "model=resnet18, or task=detect"))
    if e.mode == "split" and e.data.raw is None:
        allowed = "mode=split needs the folder that holds one folder for each class"
        problems.append(Problem("data.raw", "null", allowed, "data.raw=my/raw"))
    if e.data.raw is not None and "data.path" in typed and e.mode != "predict":
        allowed = "the images are those of data.raw"
        problems.append(Problem("data.path", e.data.path, allowed, "type one of data.raw and data.path"))
    mixed = [key for key in ("mixup", "cutmix") if getattr(e.augmentation, key) > 0]
    if e.trainer.name == "dp":
        if e.trainer.noise_multiplier is None and e.trainer.target_epsilon is None:
            allowed = "trainer=dp needs the noise, or the epsilon that it is derived from"
            problems.append(Problem("trainer.noise_multiplier", "null", allowed, "trainer.target_epsilon=3.0"))
        problems += [
            Problem(f"augmentation.{key}", shown(getattr(e.augmentation, key)),
                    "blends images, and trainer=dp bounds what one image can do", f"augmentation.{key}=0")
            for key in mixed
        ]  # fmt: skip
    else:
        problems += [
            Problem(key, shown(getattr(e.trainer, key.removeprefix("trainer."))), "has no effect without trainer=dp",
                    "trainer=dp, or leave it out")
            for key in PRIVACY_KEYS
            if key in typed
        ]  # fmt: skip
    if e.trainer.name not in ("mixed_precision", "accelerate") and "trainer.amp_dtype" in typed:
        allowed = f"has no effect with trainer={e.trainer.name}"
        problems.append(Problem("trainer.amp_dtype", e.trainer.amp_dtype, allowed, "trainer=mixed_precision"))
    if e.trainer.name == "mixed_precision" and e.trainer.amp_dtype == "no":
        problems.append(Problem("trainer.amp_dtype", "no", "is no mixed precision", "trainer=standard"))
    return problems


def _folds_of_detection(e: DetectExperiment, typed: set[str]) -> list[Problem]:
    """Refuse folds of a set that has none, and what has no effect with or without folds."""
    data, divides = e.data, e.mode == "split"
    problems = []
    if data.path in DEMO_SETS and divides:
        allowed = "the built-in set has its own train and val"
        problems.append(Problem("data.path", data.path, allowed, "data.path=my/data.yaml"))
    elif data.path in DEMO_SETS and data.fold is not None:
        allowed = "the built-in set has no folds"
        problems.append(Problem("data.fold", shown(data.fold), allowed, "data.path=my/data.yaml, after mode=split"))
    if data.val_fraction is not None and (divides or data.fold is not None):
        allowed = "has no effect with folds, which bring their own val"
        problems.append(Problem("data.val_fraction", shown(data.val_fraction), allowed, "leave it out"))
    if not divides:
        problems += [
            Problem(key, shown(getattr(data, key.removeprefix("data."))), "has no effect without mode=split",
                    f"first mode=split data.path={data.path} ..., then data.fold=all")
            for key in ("data.folds", "data.scheme", "data.ratio", "data.groups")
            if key in typed
        ]  # fmt: skip
    elif "data.fold" in typed:
        problems.append(Problem("data.fold", shown(data.fold), "mode=split makes every fold", "data.folds=5"))
    return problems


def _runs(e: Experiment, typed: set[str]) -> list[Problem]:
    """Refuse keys that name other runs where they have no effect."""
    problems = []
    if e.mode == "compare" and len(e.runs) != 2:
        allowed = f"mode=compare needs two runs, here are {len(e.runs)}"
        problems.append(Problem("runs", shown(e.runs), allowed, "mode=compare 'runs=[DIR,DIR]'"))
    elif e.mode != "compare" and e.runs:
        problems.append(Problem("runs", shown(e.runs), "has no effect without mode=compare", "type mode=compare too"))
    if e.reproduce is None and (e.on_drift != Experiment.on_drift or "on_drift" in typed):
        problems.append(
            Problem("on_drift", e.on_drift, "has no effect without reproduce=", "reproduce=DIR, or leave it out")
        )
    return problems


def _model(name: str) -> list[Problem]:
    if architectures.split(name) is not None:
        return []
    meant = nearest(name.lower(), architectures.NAMES)
    if meant:
        return [Problem("model.name", name, "is no known detector", f"model.name={meant}")]
    allowed = f"is no detector; there are {architectures.summary()}"
    return [Problem("model.name", name, allowed, "model=yolov8n, or task=classify for an image classifier")]


def _verb(e: AnyExperiment) -> list[Problem]:
    problems = []
    if e.mode in VERBS_WITH_WEIGHTS and e.model.weights in WEIGHT_WORDS:
        allowed = f"mode={e.mode} needs a weights file"
        problems.append(Problem("model.weights", e.model.weights, allowed, "model.weights=RUN/weights/best.pt"))
    is_classifier = isinstance(e, ClassifyExperiment)
    if e.mode == "predict" and e.data.path in (["demo"] if is_classifier else DEMO_SETS):
        what = "an image or a folder" if is_classifier else "an image, a folder or a video"
        allowed = f"mode=predict needs {what}"
        problems.append(Problem("data.path", e.data.path, allowed, "data.path=FOLDER"))
    if e.mode == "export" and not e.export.formats:
        allowed = "mode=export needs at least one format"
        problems.append(Problem("export.formats", "[]", allowed, "export.formats=[onnx]"))
    return problems


def _automatic_optimizer(o: OptimizerConfig, typed: set[str], decisions: list[Decision]) -> list[Problem]:
    problems = []
    defaults = OptimizerConfig()
    for name in ("lr0", "momentum"):
        key, value = f"optimizer.{name}", getattr(o, name)
        if o.name != "auto" and value is None:
            allowed = f"is needed with optimizer.name={o.name}"
            problems.append(Problem(key, "null", allowed, f"{key}={getattr(defaults, name)}"))
        elif o.name == "auto" and value is not None and key in typed:
            remedy = f"leave it out, or name an optimizer: optimizer=adamw {key}={shown(value)}"
            problems.append(Problem(key, shown(value), "has no effect with optimizer=auto, which chooses it", remedy))
        elif o.name == "auto" and value is not None:
            setattr(o, name, None)
            decisions.append(Decision(key, None, f"optimizer=auto chooses it; without that {shown(value)}"))
    return problems


def _layer_rates(o: OptimizerConfig, typed: set[str]) -> list[Problem]:
    key = "optimizer.llrd.decay_rate"
    if key not in typed or o.llrd.enabled:
        return []
    allowed = "has no effect while optimizer.llrd.enabled is false"
    return [Problem(key, shown(o.llrd.decay_rate), allowed, "optimizer.llrd.enabled=true")]
