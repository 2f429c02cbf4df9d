"""`train.freeze`: which modules stay as they are, by count, by number or by name.

What ultralytics takes is a list of names below `model.`; it stops their gradients and holds their batch norms.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch

from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.weights import Weights, architecture_yaml, load_model
from hsr_train.errors import InputError, Problem

bring_up()
from ultralytics.nn.tasks import parse_model  # noqa: E402

BACKBONE = "backbone"
_MOST_NAMES = 8


def layers_of(start: Weights) -> tuple[Any, int]:
    """Return the modules of the network that training starts from, and how many of them are its backbone."""
    if start.file is not None:
        model = load_model(start.file)
        return model.model, len(model.yaml["backbone"])
    description = architecture_yaml(start.architecture)
    with torch.device("meta"):
        layers, _ = parse_model({**description, "nc": 1}, ch=3, verbose=False)
    return layers, len(description["backbone"])


def frozen_modules(freeze: Any, layers: Any, num_backbone: int) -> list[str]:
    """Return the names of the modules that `train.freeze` means, without parts of each other.

    Args:
        freeze: As in the schema.
        layers: The network's modules in order (`model.model`).
        num_backbone: How many of them are the backbone.

    Raises:
        InputError: There is no such module, or nothing would be left to train.
    """
    wanted = freeze if isinstance(freeze, list) else [freeze] if isinstance(freeze, str) else list(range(freeze or 0))
    weighty = [f"model.{name}" for name, module in layers.named_modules() if name and _has_weights(module)]
    last, found = len(layers) - 1, set()
    for one in wanted:
        if isinstance(one, int):
            if one > last:
                raise _refusal(freeze, f"the network has modules 0 to {last}, and at least one must be trained")
            found.add(f"model.{one}")
            continue
        names = [f"model.{i}" for i in range(num_backbone)] if one == BACKBONE else []
        names = names or [name for name in weighty if fnmatchcase(name, one.rstrip("."))]
        if not names:
            raise _refusal(freeze, f"no module with weights is called {one}; there are {_listed(layers, num_backbone)}")
        found.update(names)
    topmost = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    topmost.sort(key=lambda name: [(not part.isdigit(), part.zfill(4)) for part in name.split(".")])
    if topmost and all(_is_frozen(f"model.{name}", topmost) for name, _ in layers.named_parameters()):
        raise _refusal(freeze, f"the network has modules 0 to {last}, and at least one must be trained")
    return topmost


def described(names: list[str]) -> str:
    """Return names as a person would say them: `model.0 to model.9, model.22.cv2`."""
    runs: list[list[str]] = []
    for name in names:
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    words = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    more = f" and {len(words) - _MOST_NAMES} more" if len(words) > _MOST_NAMES else ""
    return ", ".join(words[:_MOST_NAMES]) + more


def _has_weights(module: Any) -> bool:
    return next(module.parameters(), None) is not None


def _follows(one: str, other: str) -> bool:
    numbers = [name.removeprefix("model.") for name in (one, other)]
    return all(n.isdigit() for n in numbers) and int(numbers[1]) == int(numbers[0]) + 1


def _is_frozen(parameter: str, names: list[str]) -> bool:
    return ".dfl." in parameter or any(parameter.startswith(f"{name}.") for name in names)


def _refusal(freeze: Any, allowed: str) -> InputError:
    typed = f"[{','.join(map(str, freeze))}]" if isinstance(freeze, list) else str(freeze)
    return InputError(Problem("train.freeze", typed, allowed, "train.freeze=backbone"))


def _listed(layers: Any, num_backbone: int) -> str:
    kinds = [type(layer).__name__ for layer in layers]
    return (
        f"backbone (model.0 to model.{num_backbone - 1}), "
        + ", ".join(f"model.{i} ({kind})" for i, kind in enumerate(kinds) if _has_weights(layers[i]))
        + f", their parts such as model.{len(kinds) - 1}.{next(name for name, _ in layers[-1].named_children())}, "
        "and patterns such as model.1*"
    )
