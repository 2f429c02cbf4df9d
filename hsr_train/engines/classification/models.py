"""Networks by name: torchvision's classifiers and, as timm/NAME, those of timm.

Only this file asks the two libraries for networks and for what their pretrained weights expect of an image;
`weights.py` fills them. timm is imported when a name of it is used.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from functools import cache
from types import MethodType
from typing import Any, cast

import torch
import torchvision
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from hsr_train.errors import InputError, Problem

TIMM = "timm/"
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FEW_PARTS = 5
"""A network with fewer parts that have weights is opened further, or `train.freeze` could only take all or nothing."""

_WITH_AUX = ("googlenet", "inception_v3")
Numbers = tuple[float, float, float]


@cache
def torchvision_names() -> tuple[str, ...]:
    """Return the names of torchvision's classifiers, sorted."""
    return tuple(torchvision.models.list_models(module=torchvision.models))


def load_timm() -> Any:
    """Return the module timm.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise InputError(
            Problem("model.name", TIMM, "timm is not installed", 'type pip install "hsr_train[classify]"')
        ) from error
    return timm


def check_name(name: str) -> Problem | None:
    """Return what is wrong with the name of a model, or None; nothing is built."""
    if not name.startswith(TIMM):
        return None if name in torchvision_names() else _unknown_to_torchvision(name)
    try:
        timm = load_timm()
    except InputError as error:
        return Problem("model.name", name, error.problems[0].allowed, error.problems[0].remedy)
    bare, _, tag = name.removeprefix(TIMM).partition(".")
    if not timm.is_model(bare):
        return _unknown(
            name, f"is none of the {len(timm.list_models())} models of timm", bare, timm.list_models(), TIMM
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{bare}.*")]
    if tag and tag not in tags:
        allowed = f"timm has these weights of {bare}: {', '.join(tags) or 'none'}"
        return Problem("model.name", name, allowed, f"type model.name={TIMM}{bare}")
    return None


def _unknown_to_torchvision(name: str) -> Problem:
    names = torchvision_names()
    allowed = f"is none of the {len(names)} classifiers of torchvision"
    try:
        if load_timm().is_model(name.partition(".")[0]):
            return Problem("model.name", name, f"{allowed}, but one of timm", f"type model.name={TIMM}{name}")
    except InputError:
        return _unknown(name, f"{allowed} (timm is not installed)", name, names, "")
    return _unknown(name, allowed, name, names, "")


def _unknown(name: str, allowed: str, word: str, words: Any, prefix: str) -> Problem:
    near = [f"{prefix}{name}" for name in difflib.get_close_matches(word.lower(), words, n=1)]
    if not near and not prefix and "timm" in sys.modules:
        near = [f"{TIMM}{name}" for name in difflib.get_close_matches(word.lower(), load_timm().list_models(), n=1)]
    remedy = "such as model.name=resnet18 or model.name=timm/resnet26d"
    if near:
        remedy = f"did you mean {near[0]}? type model.name={near[0]}"
    return Problem("model.name", name, allowed, remedy)


def build(name: str, num_classes: int) -> nn.Module:
    """Return a network with random weights that gives (images, num_classes) scores.

    The auxiliary outputs of googlenet and inception_v3 are switched off.

    Args:
        name: A torchvision classifier or timm/NAME; `check_name` knows them.
        num_classes: Outputs of the head.

    Raises:
        InputError: If there is no such model.
    """
    if problem := check_name(name):
        raise InputError(problem)
    if name.startswith(TIMM):
        return cast(nn.Module, load_timm().create_model(name.removeprefix(TIMM), num_classes=num_classes))
    options = {"aux_logits": False, "init_weights": True} if name in _WITH_AUX else {}
    return cast(nn.Module, torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options))


def outline(name: str, num_classes: int) -> nn.Module:
    """Return a network as `build` does, with shapes alone: no weights, hardly any time; no random numbers are drawn."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return build(name, num_classes)
        except NotImplementedError:  # the regnets compute with values while they are being built
            with _WeightsOnMeta():
                return build(name, num_classes).to("meta")


class _WeightsOnMeta(TorchFunctionMode):
    """Leaves new weights without values, which `torch.empty` is asked for; the largest have 640 million to draw."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if func is torch.empty and given.get("device") is None:
            given["device"] = "meta"
        return func(*args, **given)


def check_imgsz(name: str, imgsz: int) -> Problem | None:
    """Return a problem if a network cannot take square images of a side in pixels, found without computing anything."""
    network = outline(name, 2).eval()
    try:
        with torch.no_grad(), warnings.catch_warnings(action="ignore"):
            network(torch.empty(1, 3, imgsz, imgsz, device="meta"))
    except NotImplementedError:  # an operation that cannot say its shape without computing
        return None
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0][:120]
        native = _native_size(name)
        return Problem("train.imgsz", str(imgsz), f"{name} can't take it ({reason})", f"type train.imgsz={native}")
    return None


def needs_two(name: str, imgsz: int) -> bool:
    """Return whether a network cannot train on a single image: some batch norm would see one value per channel."""
    network = outline(name, 2).train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            network(torch.empty(1, 3, imgsz, imgsz, device="meta"))
    except ValueError as error:  # what `check_imgsz` has let pass fails for this reason alone
        return "more than 1 value per channel" in str(error)
    except (NotImplementedError, RuntimeError):  # an operation that cannot say its shape without computing
        return False
    return False


def _native_size(name: str) -> int:
    """Return the side that a network was designed for, in pixels."""
    if name.startswith(TIMM):
        config = load_timm().get_pretrained_cfg(name.removeprefix(TIMM))
        return int(config.input_size[-1]) if config else 224
    return int(torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0])


def preprocessing(name: str) -> tuple[Numbers, Numbers]:
    """Return mean and standard deviation per RGB channel, of values in [0, 1], that the pretrained weights expect."""
    if name.startswith(TIMM):
        config = load_timm().get_pretrained_cfg(name.removeprefix(TIMM))
        return (_three(config.mean), _three(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
    if name in _WITH_AUX:
        # Trained by others on values in [-1, 1]; torchvision converts inside the network, which build leaves off.
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    transforms = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return _three(transforms.mean), _three(transforms.std)


def _three(values: Any) -> Numbers:
    first, second, third = (float(v) for v in values)
    return first, second, third


def heads_of(model: nn.Module) -> list[str]:
    """Return the dotted names of the layers that give the classes: one, or two in timm's distilled networks."""
    get_classifier: Any = getattr(model, "get_classifier", None)
    if get_classifier is not None:
        found = get_classifier()
        layers = list(found) if isinstance(found, tuple | list) else [found]
        names = [name for name, module in model.named_modules() if any(module is layer for layer in layers)]
    else:
        names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    if not names:
        raise ValueError(f"{type(model).__name__} has no layer that gives classes")
    return names


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the dotted name of the last layer that gives the classes, and the layer."""
    name = heads_of(model)[-1]
    return name, model.get_submodule(name)


def parts_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the dotted names and modules of a network's children, in order.

    Where fewer than `FEW_PARTS` of them have weights (features and classifier, say), the largest is replaced by its
    own children, until there are enough.
    """
    parts = list(model.named_children())
    while sum(_size(module) > 0 for _, module in parts) < FEW_PARTS:
        openable = [i for i, (_, module) in enumerate(parts) if _size(module) and any(module.children())]
        if not openable:
            break
        at = max(openable, key=lambda i: _size(parts[i][1]))
        name, module = parts[at]
        parts[at : at + 1] = [(f"{name}.{child}", inner) for child, inner in module.named_children()]
    return parts


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def freeze(model: nn.Module, how: int | str) -> list[str]:
    """Exclude weights from training; frozen batch norms also keep their statistics, whatever `model.train()` says.

    Args:
        model: Changed in place.
        how: The first that many of `parts_of`, or "backbone" for all but the head. Weights outside of every part
            (class tokens, position embeddings) are frozen with the first.

    Returns:
        The names of what was frozen, in order.

    Raises:
        InputError: If `how` would leave nothing to train, or is another word.
    """
    heads = heads_of(model)
    if how == "backbone":
        within = [name for name, _ in model.named_modules() if any(_is_within(name, head) for head in heads)]
        for name, module in model.named_modules():
            if name not in within:
                _freeze_own(module)
        return ["backbone"]
    parts = parts_of(model)
    most = next(i for i, (name, _) in enumerate(parts) if any(_is_within(head, name) for head in heads))
    if not isinstance(how, int) or isinstance(how, bool) or not 0 <= how <= most:
        raise InputError(
            Problem(
                "train.freeze",
                str(how),
                f"a number from 0 to {most} (after that comes {parts[most][0]}, which gives the classes), or backbone",
                f"type train.freeze={most} or train.freeze=backbone",
            )
        )
    if how:
        kept = [name for name, _ in parts]
        for name, module in model.named_modules():
            if not any(_is_within(name, part) for part in kept):
                _freeze_own(module)
    for _, part in parts[:how]:
        for module in part.modules():
            _freeze_own(module)
    return [name for name, _ in parts[:how]]


def _is_within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")


def _freeze_own(module: nn.Module) -> None:
    """Freeze the parameters that a module holds itself, not those of its children."""
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)
    if isinstance(module, _NormBase):
        module.eval()
        module.train = MethodType(_stay_in_eval_mode, module)  # type: ignore[method-assign]


def _stay_in_eval_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def mismatch(outputs: int, classes: int, file: str | None = None) -> Problem:
    """Return the problem of a head that does not fit the data.

    Args:
        outputs: Of the network: what was typed for model.num_classes, or the head of a file.
        classes: In the data.
        file: The weights file whose head it is, if it is one.
    """
    said = f"Model output size ({outputs}) doesn't match dataset classes ({classes})"
    if file is None:
        remedy = f"leave model.num_classes out, since it is read from the data, or type model.num_classes={classes}"
        return Problem("model.num_classes", "", said, remedy)
    remedy = f"give weights that were trained on these {classes} classes, or the data of the weights"
    return Problem("model.weights", file, said, remedy)
