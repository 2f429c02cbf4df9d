"""What depends on the machine or on the tier, found out before the final composition: tier, model steps, bounds.

`compose.py` asks here and hands the answers to Hydra as generated entries (`registration.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hsr_train import hardware
from hsr_train.config.architectures import step
from hsr_train.decisions import Decision


def tier_for(device: Any) -> Decision:
    """Choose the tier of the hardware that `train.device` names.

    Raises:
        InputError: The device is malformed or not there.
    """
    return hardware.choose_tier(hardware.detect(), device)


def adjustment(config: Mapping[str, Any], typed: set[str], groups: set[str]) -> tuple[dict[str, Any], list[Decision]]:
    """Turn a preset's `adjust:` into values.

    Args:
        config: The first composition, without an adjustment.
        typed: Keys and groups from the command line; they are left alone, since they would win anyway.
        groups: The choices of the group `model`.

    Returns:
        A configuration node (empty if nothing changes) and the decisions that it stands for.
    """
    node: dict[str, Any] = {}
    decisions = []
    asked, preset, tier = config["adjust"], config["preset"], config["gpu_tier"]
    name = config["model"]["name"]
    moved = step(name, asked["model_steps"])
    if moved != name and not typed & {"model", "model.name"}:
        # The group is chosen anew, so that the record of choices tells the truth where a file for the size exists.
        node |= {"defaults": [{"override /model": moved}, "_self_"]} if moved in groups else {}
        node["model"] = {"name": moved}
        size = "larger" if asked["model_steps"] > 0 else "smaller"
        sizes = "one size" if abs(asked["model_steps"]) == 1 else f"{abs(asked['model_steps'])} sizes"
        decisions.append(
            Decision("model.name", moved, f"preset={preset}: {sizes} {size} than {name} of gpu_tier={tier}")
        )
    for key, bound in asked["at_most"].items():
        value = _get(config, key)
        if not isinstance(value, bool) and isinstance(value, (int, float)) and value > bound and key not in typed:
            _set(node, key, bound)
            decisions.append(Decision(key, bound, f"preset={preset}: at most {bound}; gpu_tier={tier} has {value}"))
    return node, decisions


def _get(config: Mapping[str, Any], key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = value
