"""Ranges, choices and combinations: what a type cannot say, checked before anything heavy is imported.

`check` also puts the forms that YOLO users type (`cache=True`, `batch=-1`, `device=0`) into the one form that the rest
of the program knows.
"""

from __future__ import annotations

import math
from typing import Any

from hsr_train.config import architectures
from hsr_train.config.names import nearest, unknown_key
from hsr_train.config.schema import OPTIMIZERS, DetectExperiment, Experiment
from hsr_train.config.strict import leaves, shown
from hsr_train.decisions import Decision
from hsr_train.errors import Problem
from hsr_train.hardware import parse_device

EXPORT_FORMATS = ("onnx", "torchscript")
CACHES = ("auto", "ram", "disk", "none")
WEIGHT_WORDS = ("auto", "pretrained", "scratch")
STRIDE_PX = 32


def check(experiment: Experiment, typed: set[str]) -> tuple[list[Problem], list[Decision]]:
    """Check an experiment and put its values into their normal form, in place.

    Args:
        experiment: Of the right types (`strict.build`).
        typed: Keys and groups from the command line: what was typed is never changed, only refused.

    Returns:
        All problems, and the choices made in place of values that nobody typed.
    """
    problems = _ranges(experiment)
    decisions: list[Decision] = []
    known = {key for key, _, _ in leaves(type(experiment))}
    bounded = [key for key in experiment.adjust.at_most if key not in known]
    problems += [unknown_key(key, type(experiment), where="adjust.at_most: ") for key in bounded]
    if not experiment.data.path:
        problems.append(Problem("data.path", "", "has no value", "data.path=my/data.yaml"))
    if isinstance(experiment, DetectExperiment):
        for part in (_train, _model, _optimizer, _verbs):
            part(experiment, typed, problems, decisions)
    seen: dict[str, Problem] = {}
    for problem in problems:
        seen.setdefault(problem.key, problem)
    return list(seen.values()), decisions


def _ranges(experiment: Experiment) -> list[Problem]:
    problems = []
    for key, _, f in leaves(type(experiment)):
        value: Any = experiment
        for part in key.split("."):
            value = getattr(value, part)
        choices = f.metadata.get("choices")
        if choices and value not in choices:
            meant = nearest(str(value), list(choices)) or next(
                (c for c in choices if c.lower() == str(value).lower()), None
            )
            problems.append(
                Problem(key, shown(value), f"must be one of {', '.join(choices)}", f"{key}={meant or f.default}")
            )
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            wanted = _bounds(f.metadata)
            if not math.isfinite(value) or not all(_holds(value, rule, bound) for rule, bound in wanted):
                words = " and ".join(f"{_WORDS[rule]} {bound}" for rule, bound in wanted) or "a number"
                words += "" if math.isfinite(value) else ", and finite"
                default = shown(f.default)
                problems.append(Problem(key, shown(value), f"must be {words}", f"{key}={default} is the default"))
    return problems


_WORDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


def _bounds(metadata: Any) -> list[tuple[str, float]]:
    return [(rule, metadata[rule]) for rule in _WORDS if rule in metadata]


def _holds(value: float, rule: str, bound: float) -> bool:
    return {"ge": value >= bound, "gt": value > bound, "le": value <= bound, "lt": value < bound}[rule]


def _train(e: DetectExperiment, typed: set[str], problems: list[Problem], decisions: list[Decision]) -> None:
    t = e.train
    if isinstance(t.batch, str) and t.batch.lstrip("+-").isdigit():
        t.batch = int(t.batch)
    if t.batch == -1:
        t.batch = "auto"
    if t.batch != "auto" and (isinstance(t.batch, str) or t.batch < 1):
        problems.append(Problem("train.batch", shown(t.batch), "must be auto or at least 1", "train.batch=auto"))
    t.cache = {"true": "ram", "false": "none"}.get(str(t.cache).lower(), str(t.cache).lower())
    if t.cache not in CACHES:
        problems.append(Problem("train.cache", t.cache, f"must be one of {', '.join(CACHES)}", "train.cache=auto"))
    if isinstance(t.multi_scale, bool):
        t.multi_scale = 0.5 if t.multi_scale else 0.0
    t.multi_scale = float(t.multi_scale)
    if not 0 <= t.multi_scale <= 1:
        problems.append(
            Problem("train.multi_scale", shown(t.multi_scale), "must be between 0 and 1", "train.multi_scale=0.5")
        )
    if t.imgsz >= STRIDE_PX and t.imgsz % STRIDE_PX:
        below = t.imgsz // STRIDE_PX * STRIDE_PX
        sizes = f"{below} or {below + STRIDE_PX}"
        problems.append(
            Problem(
                "train.imgsz", str(t.imgsz), f"must be a multiple of {STRIDE_PX}", f"train.imgsz={below}  ({sizes})"
            )
        )
    _device(t, problems)
    _freeze(t, problems)
    _close_mosaic(t, typed, problems, decisions)


def _device(t: Any, problems: list[Problem]) -> None:
    device = parse_device(t.device)
    if device is None:
        allowed = "must be auto, cpu, a GPU number, or a list of them"
        problems.append(Problem("train.device", shown(t.device), allowed, "train.device=auto"))
    elif isinstance(device, list) and len(device) == 1:
        t.device = device[0]
    else:
        t.device = device


def _freeze(t: Any, problems: list[Problem]) -> None:
    numbers = t.freeze if isinstance(t.freeze, list) else [t.freeze]
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers)
    if t.freeze is not None and not whole:
        allowed = "must be null, a number of modules, or a list of module numbers"
        problems.append(Problem("train.freeze", shown(t.freeze), allowed, "train.freeze=10"))


def _close_mosaic(t: Any, typed: set[str], problems: list[Problem], decisions: list[Decision]) -> None:
    if "train.close_mosaic" in typed:
        if t.close_mosaic >= t.epochs and t.close_mosaic > 0:
            allowed = f"must be below train.epochs={t.epochs}"
            problems.append(
                Problem("train.close_mosaic", str(t.close_mosaic), allowed, f"train.close_mosaic={t.epochs // 5}")
            )
        return
    if t.close_mosaic > t.epochs // 5:
        was, t.close_mosaic = t.close_mosaic, t.epochs // 5
        reason = f"a fifth of train.epochs={t.epochs}; the preset has {was}"
        decisions.append(Decision("train.close_mosaic", t.close_mosaic, reason))


def _model(e: DetectExperiment, typed: set[str], problems: list[Problem], decisions: list[Decision]) -> None:
    name = e.model.name
    if architectures.split(name) is None:
        meant = nearest(name.lower(), list(architectures.NAMES))
        if meant:
            problems.append(Problem("model.name", name, "is no known detector", f"model.name={meant}"))
        else:
            allowed = f"is no detector; there are {architectures.summary()}"
            problems.append(Problem("model.name", name, allowed, "model=yolov8n"))


def _optimizer(e: DetectExperiment, typed: set[str], problems: list[Problem], decisions: list[Decision]) -> None:
    o = e.optimizer
    o.name = next((name for name in OPTIMIZERS if name.lower() == o.name.lower()), o.name)
    if o.name not in OPTIMIZERS:
        meant = nearest(o.name, OPTIMIZERS) or "AdamW"
        problems.append(
            Problem("optimizer.name", o.name, f"must be one of {', '.join(OPTIMIZERS)}", f"optimizer.name={meant}")
        )
    for key in ("lr0", "momentum"):
        value = getattr(o, key)
        if o.name != "auto":
            if value is None:
                problems.append(
                    Problem(
                        f"optimizer.{key}", "null", f"is needed with optimizer.name={o.name}", f"optimizer.{key}=0.9"
                    )
                )
        elif value is not None:
            if f"optimizer.{key}" in typed:
                allowed = "has no effect with optimizer=auto, which chooses it"
                remedy = f"leave it out, or name an optimizer: optimizer=adamw optimizer.{key}={shown(value)}"
                problems.append(Problem(f"optimizer.{key}", shown(value), allowed, remedy))
            else:
                setattr(o, key, None)
                decisions.append(
                    Decision(f"optimizer.{key}", None, f"optimizer=auto chooses it; without it there is {value}")
                )


def _verbs(e: DetectExperiment, typed: set[str], problems: list[Problem], decisions: list[Decision]) -> None:
    if e.mode in ("validate", "predict", "export") and e.model.weights in WEIGHT_WORDS:
        allowed = f"mode={e.mode} needs a weights file"
        problems.append(Problem("model.weights", e.model.weights, allowed, "model.weights=RUN/weights/best.pt"))
    if e.mode == "predict" and e.data.path == "demo":
        allowed = "mode=predict needs an image, a folder or a video"
        problems.append(Problem("data.path", "demo", allowed, "data.path=FOLDER"))
    unknown = [f for f in e.export.formats if f not in EXPORT_FORMATS]
    if unknown:
        meant = nearest(unknown[0], list(EXPORT_FORMATS)) or EXPORT_FORMATS[0]
        allowed = f"known formats are {', '.join(EXPORT_FORMATS)}"
        problems.append(Problem("export.formats", shown(e.export.formats), allowed, f"export.formats=[{meant}]"))
    elif e.mode == "export" and not e.export.formats:
        problems.append(
            Problem("export.formats", "[]", "mode=export needs at least one format", "export.formats=[onnx]")
        )
    words: dict[str, bool | str] = {"true": True, "false": False, "auto": "auto"}
    serve = words.get(str(e.tensorboard.serve).lower())
    if serve is None:
        problems.append(
            Problem(
                "tensorboard.serve", shown(e.tensorboard.serve), "must be auto, true or false", "tensorboard.serve=auto"
            )
        )
    else:
        e.tensorboard.serve = serve
