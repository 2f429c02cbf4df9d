"""The section `synthetic` as a whole: pairs, lists, and what has no effect; called by `checks.py`."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from hsr_train.config.schema import DEMO_SETS, DetectExperiment
from hsr_train.config.schema.synthetic import AUTO, BLENDS, SyntheticConfig
from hsr_train.config.strict import shown
from hsr_train.decisions import Decision
from hsr_train.errors import Problem

SOURCES = ("annotated_dir", "masks", "masks_dir")
"""Keys that say where cut-outs come from; without any, from polygons, which only the labels can tell."""
_DEFAULT = SyntheticConfig()
_FREE_WHEN_OFF = {"synthetic.enabled"}
_SHOWING = ("preview", "synthesize")
_DEMO = "demo"


def check_synthetic(e: DetectExperiment, typed: set[str], decisions: list[Decision]) -> list[Problem]:
    """Check the section, and decide `enabled=auto`, unless that takes the labels: then `auto` it stays."""
    config = e.synthetic
    problems = [problem for name in (*AUTO, "distractors") for problem in _range(name, getattr(config, name))]
    problems += _blends(config.blend)
    if "synthetic.distractors" in typed and config.distractors_dir is None:
        allowed, remedy = "has no effect without distractors_dir", "synthetic.distractors_dir=FOLDER, or leave it out"
        problems.append(Problem("synthetic.distractors", shown(config.distractors), allowed, remedy))
    for key in ("annotated_dir", "masks_dir", "backgrounds_dir", "distractors_dir"):
        if getattr(config, key) == "":
            problems.append(Problem(f"synthetic.{key}", "", "has no value", f"synthetic.{key}=FOLDER"))
        if getattr(config, key) == _DEMO and e.data.path not in DEMO_SETS:
            allowed = f"is the built-in set's, for data.path={' or '.join(DEMO_SETS)} alone"
            remedy = f"synthetic.{key}=FOLDER (a folder of that name: ./{_DEMO})"
            if "sweep" in typed and f"synthetic.{key}" not in typed:
                remedy = f"synthetic.{key}=FOLDER, or search without composed images: sweep=detect_lr_batch"
            problems.append(Problem(f"synthetic.{key}", _DEMO, allowed, remedy))
    if config.enabled not in (True, False, "auto"):
        return [*problems, Problem("synthetic.enabled", shown(config.enabled), "must be auto, true or false")]
    if e.mode == "synthesize" and config.count is None:
        problems.append(Problem("synthetic.count", "null", "mode=synthesize needs a number", "synthetic.count=5000"))
    if e.mode == "synthesize" and "output_dir" not in typed:
        allowed = "mode=synthesize writes the set itself there"
        problems.append(Problem("output_dir", e.output_dir, allowed, "output_dir=my/composed"))
    if e.mode != "synthesize" and "synthetic.count" in typed:
        allowed = "has no effect without mode=synthesize"
        problems.append(Problem("synthetic.count", shown(config.count), allowed, "synthetic.ratio=2, or leave it out"))
    sources = [key for key in SOURCES if getattr(config, key) != getattr(_DEFAULT, key)]
    for key in sources[1:]:
        value, allowed = shown(getattr(config, key)), f"cut-outs come from synthetic.{sources[0]} already"
        problems.append(Problem(f"synthetic.{key}", value, allowed, "type one of them"))
    asked = config.enabled is True or e.mode in _SHOWING
    if config.enabled is False or not (asked or sources or config.backgrounds_dir is not None):
        missing, remedy = "cut-outs", "synthetic.annotated_dir=FOLDER"
        if config.enabled is False:
            missing = remedy = "synthetic.enabled=true"
        problems += [
            Problem(key, shown(getattr(config, key.removeprefix("synthetic."))), f"has no effect without {missing}",
                    f"{remedy}, or leave it out")
            for key in sorted(typed)
            if key.startswith("synthetic.") and key not in _FREE_WHEN_OFF
        ]  # fmt: skip
    if "synthetic.cutouts_per_class" in typed and config.annotated_dir is not None:
        allowed = "is about training images, and synthetic.annotated_dir is given"
        problems.append(
            Problem("synthetic.cutouts_per_class", shown(config.cutouts_per_class), allowed, "leave it out")
        )
    if config.enabled == "auto" and (sources or config.backgrounds_dir is None or config.ratio == 0):
        config.enabled = bool(sources) and config.ratio > 0
        if sources and config.ratio == 0 and not problems:
            decisions.append(Decision("synthetic.enabled", False, "synthetic.ratio is 0: nothing is composed"))
        if config.enabled and not problems:
            decisions.append(Decision("synthetic.enabled", True, f"synthetic.{sources[0]} is given"))
    return problems


def _range(name: str, value: Any) -> list[Problem]:
    """Check a pair of least and largest."""
    if name in AUTO and value == "auto":
        return []
    limits = next(f.metadata for f in fields(SyntheticConfig) if f.name == name)
    low = limits.get("ge", limits.get("gt"))
    kinds = (int, float) if "gt" in limits else (int,)
    if isinstance(value, list) and len(value) == 2 and all(type(number) in kinds for number in value):
        good = value[0] <= value[1] <= limits["le"] and value[0] >= low
        if good and not ("gt" in limits and value[0] <= low):
            return []
    example = shown(AUTO.get(name) or SyntheticConfig().__dict__[name])
    what = "numbers" if "gt" in limits else "whole numbers"
    bound = "above" if "gt" in limits else "at least"
    allowed = f"must be two {what}, the smaller one first, {bound} {low} and at most {limits['le']}"
    if name in AUTO:
        allowed += ", or auto"
    return [Problem(f"synthetic.{name}", shown(value), allowed, f"synthetic.{name}={example}")]


def _blends(value: list[str]) -> list[Problem]:
    if value and set(value) <= set(BLENDS):
        return []
    return [Problem("synthetic.blend", shown(value), f"must be some of {', '.join(BLENDS)}", "synthetic.blend=[hard]")]
