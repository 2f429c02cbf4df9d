"""Where a classifier's weights come from: found (`published.py`), checked, and put into a network of `models.py`.

Foreign files are pickles or safetensors; they are read with safe loading only, as plain tensors. What a run's own
weights files hold besides is described by `Checkpoint`.
"""

from __future__ import annotations

import hashlib
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hsr_train.config.schema.classify import ClassifyModelConfig
from hsr_train.decisions import Decisions
from hsr_train.engines.classification.models import TIMM, check_name, heads_of, outline
from hsr_train.engines.classification.published import Published, download, downloads_folder, published
from hsr_train.engines.signatures import CLASSIFIER_FORMAT, DETECTOR_CLASS, belongs_to
from hsr_train.errors import InputError, Problem

log = logging.getLogger(__name__)

FORMAT = CLASSIFIER_FORMAT

_STATES = ("state_dict_ema", "model_ema", "ema", "state_dict", "model_state_dict", "model")
"""Under which names training programs keep the weights, averaged ones first."""
_SUFFIXES = (".safetensors", ".pth", ".pt")
_AUXILIARY = re.compile(r"(aux[12]|AuxLogits)\.")  # of googlenet and inception_v3, which are built without them


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        source: scratch, pretrained or file.
        file: The weights, or None for scratch.
        sha256: Of the file, or None.
        note: One line for a person.
        outputs: Of the head in the file, where it has one.
        url: Where the file would be downloaded from; then it is not here.
    """

    source: str
    file: Path | None = None
    sha256: str | None = None
    note: str = ""
    outputs: int | None = None
    url: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A weights file, read.

    Attributes:
        state: Tensors by the name that they have in the network.
        model_name: The network, where the file says so (ours do).
        classes: Class names by id, where the file says so.
        more: What else the file holds at its top level.
    """

    state: dict[str, Tensor]
    model_name: str | None = None
    classes: list[str] | None = None
    more: dict[str, Any] = field(default_factory=dict)


def resolve(config: ClassifyModelConfig, *, is_demo: bool, decisions: Decisions, fetch: bool = True) -> Start:
    """Find the weights that `model.weights` asks for, checking a file before it is used.

    Args:
        config: The model section.
        is_demo: Whether the data is the built-in set, which may train from scratch.
        decisions: Receives what `auto` became.
        fetch: Download what is not here; else only say where it would come from.

    Raises:
        InputError: If a file is missing, damaged or of another network, or pretrained weights cannot be had.
    """
    if problem := check_name(config.name):
        raise InputError(problem)
    if config.weights == "scratch":
        return Start("scratch", note=f"{config.name} with random weights")
    if config.weights not in ("auto", "pretrained"):
        return _checked(Path(config.weights).expanduser(), config.name, "file")
    offered = published(config.name)
    found = _search(config, offered)
    if found is None and offered and not fetch:
        return Start("pretrained", url=offered[0].url)
    found = found or (download(offered[0]) if offered else None)
    if found is not None:
        start = _checked(found, config.name, "pretrained")
        if config.weights == "auto":
            decisions.record("model.weights", str(found), "pretrained weights found")
        return start
    if config.weights == "auto" and is_demo:
        log.warning("Pretrained weights of %s can't be had: the demo set trains from scratch.", config.name)
        decisions.record("model.weights", "scratch", "no pretrained weights found, and this is the demo set")
        return Start("scratch", note=f"{config.name} with random weights")
    raise InputError(_not_to_be_had(config, offered))


def _not_to_be_had(config: ClassifyModelConfig, offered: list[Published]) -> Problem:
    if not offered:
        return Problem(
            "model.weights",
            config.weights,
            f"nobody has published pretrained weights of {config.name}",
            "type model.weights=FILE, or model.weights=scratch to train without pretrained weights",
        )
    name, looked_in = offered[0].file_name, ", ".join(str(folder) for folder in _folders(config))
    return Problem(
        "model.weights",
        config.weights,
        f"{name} is neither in {looked_in} nor could it be downloaded",
        f"put {name} into one of these, or type model.weights=FILE, "
        "or model.weights=scratch to train without pretrained weights",
    )


def _folders(config: ClassifyModelConfig) -> list[Path]:
    return [*(Path(d).expanduser() for d in config.weights_dirs), Path.cwd(), downloads_folder()]


def _search(config: ClassifyModelConfig, offered: list[Published]) -> Path | None:
    plain = config.name.removeprefix(TIMM)
    names = [*(one.file_name for one in offered), *(f"{plain}{suffix}" for suffix in _SUFFIXES)]
    for folder in _folders(config):
        for name in names:
            if (folder / name).is_file():
                return (folder / name).resolve()
    return next((one.cached for one in offered if one.cached is not None), None)


def _checked(file: Path, name: str, source: str) -> Start:
    checkpoint = read(file)
    fitted = _fit(outline(name, 2), checkpoint, name, file)
    classes = f", trained on {len(checkpoint.classes)} classes" if checkpoint.classes else ""
    note = f"{name} from {file} ({len(fitted.taken)} tensors{classes})"
    return Start(source, file.resolve(), fingerprint(file), note, fitted.outputs)


def fingerprint(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def read(file: Path) -> Checkpoint:
    """Read a weights file with safe loading, its tensors on the CPU.

    Raises:
        InputError: If the file is missing, damaged, holds anything but tensors and plain values, or no tensors.
    """
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise InputError(Problem("model.weights", str(file), what, "type model.weights=FILE, pretrained or scratch"))
    if file.suffix in (".onnx", ".torchscript"):
        allowed = "is an exported file, and this needs the weights that it was made of"
        raise InputError(Problem("model.weights", str(file), allowed, "model.weights=RUN/weights/best.pt"))
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols, before the same file is refused
            content = _content(file)
    except Exception as error:  # a damaged pickle may raise anything
        if re.search(rf"GLOBAL {re.escape(DETECTOR_CLASS)}\b", str(error)):
            raise InputError(belongs_to("detect", file, "a YOLO detector", "classify")) from error
        raise InputError(Problem("model.weights", str(file), _why_refused(error), "use another file")) from error
    named = next((content[key] for key in _STATES if isinstance(content.get(key), Mapping)), content)
    state = {str(key): value for key, value in named.items() if isinstance(value, Tensor)}
    if not state:
        if f"{type(content.get('model')).__module__}.{type(content.get('model')).__name__}" == DETECTOR_CLASS:
            raise InputError(belongs_to("detect", file, "a YOLO detector", "classify"))
        raise InputError(Problem("model.weights", str(file), "holds no weights", "use a file with a state_dict"))
    more = {key: value for key, value in content.items() if value is not named and not isinstance(value, Tensor)}
    if content.get("format") != FORMAT:
        return Checkpoint(state, more=more)
    return Checkpoint(state, str(content["model_name"]), [str(c) for c in content["classes"]], more)


def _content(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(file))
    loaded = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping):
        raise TypeError(f"it holds {type(loaded).__name__}, not a dictionary")
    return dict(loaded)


def _why_refused(error: Exception) -> str:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return f"names {named[1]}, which is code and not weights: it is not loaded"
    if "TorchScript" in str(error):
        return "is a TorchScript archive, which can be run but not trained"
    reason = "" if "\n" in str(error) else f": {error}"  # long texts give advice that is not ours
    return f"is not a readable checkpoint ({type(error).__name__}{reason[:200]})"


def load_into(model: nn.Module, start: Start, name: str) -> list[str]:
    """Fill a network with the weights that `resolve` found.

    The head is left as it is where the file has none, or one for another number of classes.

    Args:
        model: What `build` returned; changed in place.
        start: From `resolve`.
        name: The network's name, for messages.

    Returns:
        Lines that say what was loaded and what stays new.

    Raises:
        InputError: If the file is not what it was, or belongs to another network.
    """
    if start.file is None:
        return [f"{name} starts from random weights"]
    fitted = _fit(model, read(start.file), name, start.file)
    model.load_state_dict(fitted.taken, strict=False)
    return [
        f"{len(fitted.taken)} of {len(model.state_dict())} tensors of {name} loaded from {start.file}",
        *fitted.notes,
    ]


@dataclass(frozen=True)
class _Fit:
    taken: dict[str, Tensor]
    notes: list[str]
    outputs: int | None


def _fit(model: nn.Module, checkpoint: Checkpoint, name: str, file: Path) -> _Fit:
    """Find out which tensors of a file go into a network.

    Raises:
        InputError: If it is another network's file.
    """
    if checkpoint.model_name not in (None, name):
        raise InputError(
            Problem(
                "model.weights",
                str(file),
                f"holds {checkpoint.model_name}, but model.name={name} is asked for",
                f"type model.name={checkpoint.model_name}, or give weights of {name}",
            )
        )
    ours = model.state_dict()
    theirs = {_modern(key): value for key, value in _unwrapped(checkpoint.state, model).items()}
    heads = tuple(f"{head}." for head in heads_of(model))
    same = {key: value for key, value in theirs.items() if key in ours and ours[key].shape == value.shape}
    body = [key for key in same if not key.startswith(heads)]
    differing = [k for k in theirs if k in ours and k not in same and not k.startswith(heads)]
    if differing or not body:
        why = "no tensor of the file has a name that this network knows"
        if differing:
            key = differing[0]
            why = f"{key} has the shape {tuple(theirs[key].shape)} in the file and {tuple(ours[key].shape)} here"
        raise InputError(
            Problem("model.weights", str(file), f"does not fit {name}: {why}", f"give weights of {name}")
        )  # fmt: skip
    new_heads = [head.removesuffix(".") for head in heads if any(k.startswith(head) and k not in same for k in ours)]
    taken = {k: v for k, v in same.items() if not k.startswith(tuple(f"{head}." for head in new_heads))}
    head = next((theirs[f"{name}weight"] for name in heads if f"{name}weight" in theirs), None)
    return _Fit(taken, list(_notes(ours, theirs, taken, new_heads)), None if head is None else int(head.shape[0]))


def _notes(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], taken: dict[str, Tensor], new_heads: list[str]
) -> Iterator[str]:
    for head in new_heads:
        held = theirs.get(f"{head}.weight")
        why = "the file has none" if held is None else f"that of the file has {held.shape[0]} outputs"
        yield f"New: {head}, which gives the classes ({why})"
    under = tuple(f"{head}." for head in new_heads)
    lacking = [k for k in ours if k not in theirs and not k.startswith(under) and not k.endswith("num_batches_tracked")]
    if lacking:
        yield f"New: {len(lacking)} tensors that the file lacks, such as {lacking[0]}"
    spare = [k for k in theirs if k not in ours and not k.startswith(under) and not _AUXILIARY.match(k)]
    if spare:
        yield f"Left out: {len(spare)} tensors of the file that the network has no place for, such as {spare[0]}"


def _unwrapped(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Remove what wrappers (DataParallel, torch.compile, opacus, other trainers) have put before every name."""
    children = {key.partition(".")[0] for key in model.state_dict()}
    while True:
        firsts = {key.partition(".")[0] for key in state}
        if len(firsts) != 1 or firsts <= children or not all("." in key for key in state):
            return state
        state = {key.partition(".")[2]: value for key, value in state.items()}


def _modern(key: str) -> str:
    """Return the present name of a tensor; the published densenets have those of torch 0.4."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key)
