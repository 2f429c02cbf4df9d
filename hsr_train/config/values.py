"""Single values: ranges, choices, and the forms that YOLO users type.

`check_values` turns `cache=True`, `batch=-1`, `device=0` and the like into the one form that the rest of the program
knows. How values go together is the matter of `checks.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field
from typing import Any

from hsr_train.config.names import nearest
from hsr_train.config.schema import (
    CLASSIFY_OPTIMIZERS,
    OPTIMIZERS,
    ClassifyExperiment,
    ClassifyOptimizerConfig,
    ClassifyTrainConfig,
    DetectExperiment,
    DividedDataConfig,
    Experiment,
    ExportConfig,
    OptimizerConfig,
    TensorboardConfig,
    TrainConfig,
)
from hsr_train.config.strict import leaves, shown
from hsr_train.errors import Problem
from hsr_train.hardware import parse_device

EXPORT_FORMATS = ("onnx", "torchscript")
CACHES = ("auto", "ram", "disk", "none")
CLASSIFY_CACHES = ("none", "ram")
STRIDE_PX = 32
RATIO_TOLERANCE = 1e-6  # 0.7 + 0.2 + 0.1 is not quite 1

_RULES = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def check_values(experiment: Experiment) -> list[Problem]:
    """Check each value for itself and put it into its normal form, in place.

    Args:
        experiment: Of the right types (`strict.build`).

    Returns:
        All problems, at most one for each key.
    """
    problems = []
    for key, _, field in leaves(type(experiment)):
        value: Any = experiment
        for part in key.split("."):
            value = getattr(value, part)
        problems += _limits(key, value, field)
    problems += _tensorboard(experiment.tensorboard) + _export(experiment.export)
    if isinstance(experiment, DetectExperiment):
        problems += _folds(experiment.data, "must be a fold from 0, all, or null: none")
        problems += _train(experiment.train) + _optimizer(experiment.optimizer, OPTIMIZERS)
    if isinstance(experiment, ClassifyExperiment):
        problems += _classify(experiment) + _optimizer(experiment.optimizer, CLASSIFY_OPTIMIZERS)
    return problems


def one_of(key: str, value: Any, choices: tuple[str, ...], default: str) -> Problem:
    """Return the problem of a value that is none of its choices, with the one that was probably meant."""
    word = str(value)
    meant = next((c for c in choices if c.lower() == word.lower()), None) or nearest(word, choices) or default
    return Problem(key, shown(value), f"must be one of {', '.join(choices)}", f"{key}={meant}")


def _limits(key: str, value: Any, field: Field[Any]) -> list[Problem]:
    limits: Mapping[str, Any] = field.metadata
    if "choices" in limits:
        return [] if value in limits["choices"] else [one_of(key, value, limits["choices"], str(field.default))]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return []
    rules = [rule for rule in _RULES if rule in limits]
    if math.isfinite(value) and all(_holds(value, rule, limits[rule]) for rule in rules):
        return []
    words = [f"{_RULES[rule]} {limits[rule]}" for rule in rules] + ["finite"] * (not math.isfinite(value))
    return [
        Problem(key, shown(value), f"must be {' and '.join(words)}", f"{key}={shown(field.default)} is the default")
    ]


def _holds(value: float, rule: str, bound: float) -> bool:
    return {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[rule]


def _train(t: TrainConfig) -> list[Problem]:
    problems = []
    if isinstance(t.batch, str) and t.batch.lstrip("+-").isdigit():
        t.batch = int(t.batch)
    if t.batch == -1:
        t.batch = "auto"
    if t.batch not in ("auto", "probe") and (isinstance(t.batch, str) or t.batch < 1):
        allowed = "must be auto, probe or at least 1"
        problems.append(Problem("train.batch", shown(t.batch), allowed, "train.batch=auto"))
    problems += _cache(t, CACHES)
    if isinstance(t.multi_scale, bool):
        t.multi_scale = 0.5 if t.multi_scale else 0.0
    t.multi_scale = float(t.multi_scale)
    if not 0 <= t.multi_scale <= 1:
        allowed = "must be between 0 and 1"
        problems.append(Problem("train.multi_scale", shown(t.multi_scale), allowed, "train.multi_scale=0.5"))
    if t.imgsz >= STRIDE_PX and t.imgsz % STRIDE_PX:
        below = t.imgsz // STRIDE_PX * STRIDE_PX
        remedy = f"train.imgsz={below}  ({below} or {below + STRIDE_PX})"
        problems.append(Problem("train.imgsz", str(t.imgsz), f"must be a multiple of {STRIDE_PX}", remedy))
    problems += _device(t)
    if isinstance(t.freeze, str) and t.freeze.isdigit():
        t.freeze = int(t.freeze)
    modules = t.freeze if isinstance(t.freeze, list) else [t.freeze]
    if t.freeze is not None and not all((type(m) is int and m >= 0) or (isinstance(m, str) and m) for m in modules):
        allowed = "must be null, a number of modules, a name such as backbone, or a list of module numbers and names"
        problems.append(Problem("train.freeze", shown(t.freeze), allowed, "train.freeze=10"))
    return problems


def _classify(e: ClassifyExperiment) -> list[Problem]:
    t = e.train
    problems = _cache(t, CLASSIFY_CACHES) + _device(t)
    if isinstance(t.freeze, str) and t.freeze.isdigit():
        t.freeze = int(t.freeze)
    if t.freeze is not None and t.freeze != "backbone" and (isinstance(t.freeze, str) or t.freeze < 0):
        allowed = "must be null, a number of parts, or backbone"
        problems.append(Problem("train.freeze", shown(t.freeze), allowed, "train.freeze=backbone"))
    return problems + _folds(e.data, "must be a fold from 0, or all")


def _folds(d: DividedDataConfig, allowed: str) -> list[Problem]:
    problems = []
    if isinstance(d.fold, str) and d.fold.isdigit():
        d.fold = int(d.fold)
    if d.fold is not None and d.fold != "all" and (isinstance(d.fold, str) or d.fold < 0):
        problems.append(Problem("data.fold", shown(d.fold), allowed, "data.fold=0"))
    if len(d.ratio) != 3 or min(d.ratio) < 0 or not abs(sum(d.ratio) - 1) <= RATIO_TOLERANCE:
        allowed = "must be three shares, train, val and test, that add up to 1"
        problems.append(Problem("data.ratio", shown(d.ratio), allowed, "data.ratio=[0.7,0.15,0.15]"))
    return problems


def _cache(t: TrainConfig | ClassifyTrainConfig, choices: tuple[str, ...]) -> list[Problem]:
    t.cache = {"true": "ram", "false": "none"}.get(str(t.cache).lower(), str(t.cache).lower())
    return [] if t.cache in choices else [one_of("train.cache", t.cache, choices, choices[0])]


def _device(t: TrainConfig | ClassifyTrainConfig) -> list[Problem]:
    device = parse_device(t.device)
    if device is None:
        allowed = "must be auto, cpu, a GPU number, or a list of them"
        return [Problem("train.device", shown(t.device), allowed, "train.device=auto")]
    t.device = device[0] if isinstance(device, list) and len(device) == 1 else device
    return []


def _optimizer(o: OptimizerConfig | ClassifyOptimizerConfig, names: tuple[str, ...]) -> list[Problem]:
    o.name = next((name for name in names if name.lower() == o.name.lower()), o.name)
    return [] if o.name in names else [one_of("optimizer.name", o.name, names, "AdamW")]


def _tensorboard(t: TensorboardConfig) -> list[Problem]:
    words: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}
    serve = words.get(str(t.serve).lower())
    if serve is None:
        allowed = "must be auto, true or false"
        return [Problem("tensorboard.serve", shown(t.serve), allowed, "tensorboard.serve=auto")]
    t.serve = serve
    return []


def _export(e: ExportConfig) -> list[Problem]:
    unknown = [name for name in e.formats if name not in EXPORT_FORMATS]
    if not unknown:
        return []
    meant = nearest(unknown[0], EXPORT_FORMATS) or EXPORT_FORMATS[0]
    allowed = f"known formats are {', '.join(EXPORT_FORMATS)}"
    return [Problem("export.formats", shown(e.formats), allowed, f"export.formats=[{meant}]")]
