"""Where a run's weights come from: found, checked and loaded before training starts.

Foreign checkpoints are pickles. They are read with torch's safe loading and ultralytics' allow-list of model classes;
whatever else a file names is refused, with its name in the message.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import urllib.request
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hsr_train.config.schema import ModelConfig
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.signatures import CLASSIFIER_FORMAT, belongs_to
from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import atomic_path

bring_up()
from ultralytics.nn.tasks import DetectionModel, guess_model_scale, parse_model, torch_safe_load  # noqa: E402
from ultralytics.utils import ROOT, YAML  # noqa: E402

log = logging.getLogger(__name__)

DOWNLOAD_URL = "https://github.com/ultralytics/assets/releases/download/v8.4.0/{name}.pt"
"""Source of pretrained weights; checked against ultralytics.utils.downloads by the contract test."""


@dataclass(frozen=True)
class Weights:
    """What training starts from, or what is evaluated.

    Attributes:
        source: scratch, pretrained, file, or state (of a run that goes on).
        architecture: Name of the model, such as yolov8n.
        file: The checkpoint, or None for scratch.
        sha256: Of the file, or None.
        names: Class names of the file's head by id, or None.
        imgsz: Image size that the file was trained with in pixels, or None.
        num_modules: Modules of the network, as train.freeze counts them.
        stride: Largest stride in pixels; image sizes are multiples of it.
        url: Where pretrained weights would be downloaded from; then they are not here.
    """

    source: str
    architecture: str
    file: Path | None = None
    sha256: str | None = None
    names: list[str] | None = None
    imgsz: int | None = None
    num_modules: int = 0
    stride: int = 32
    url: str | None = None


def resolve(
    config: ModelConfig,
    *,
    cache_dir: Path,
    is_demo: bool,
    model_is_typed: bool,
    decisions: Decisions,
    fetch: bool = True,
) -> Weights:
    """Find the weights that `model.weights` asks for, checking a file before it is used.

    Args:
        config: The model section.
        cache_dir: Our cache; downloaded weights lie in its `weights` folder.
        is_demo: Whether the data is the built-in demo set, which may train from scratch.
        model_is_typed: Whether the user named the architecture; a file must then agree with it.
        decisions: Receives what `auto` became.
        fetch: Download what is not here; else only say where it would come from.

    Raises:
        InputError: If a file is missing, damaged, of another task, contradicts a typed model, or pretrained weights
            cannot be had.
    """
    if config.weights == "scratch":
        return _scratch(config.name)
    if config.weights not in ("auto", "pretrained"):
        return inspect(Path(config.weights).expanduser(), config.name if model_is_typed else None)
    found = _search(config, cache_dir)
    if found is None and not fetch:
        return replace(_scratch(config.name), source="pretrained", url=DOWNLOAD_URL.format(name=config.name))
    found = found or _download(config.name, cache_dir)
    if found is not None:
        weights = inspect(found, config.name)
        if config.weights == "auto":
            decisions.record("model.weights", str(found), "pretrained weights found")
        return replace(weights, source="pretrained")
    if config.weights == "auto" and is_demo:
        log.warning("Pretrained weights of %s can't be had: the demo set trains from scratch.", config.name)
        decisions.record("model.weights", "scratch", "no pretrained weights found, and this is the demo set")
        return _scratch(config.name)
    looked_in = ", ".join(str(folder) for folder in _folders(config, cache_dir))
    raise InputError(
        Problem(
            "model.weights",
            config.weights,
            f"{config.name}.pt is neither in {looked_in} nor could it be downloaded",
            f"put {config.name}.pt into one of these, or type model.weights=FILE.pt, "
            "or model.weights=scratch to train without pretrained weights",
        )
    )


def _scratch(name: str) -> Weights:
    description = architecture_yaml(name)
    num_modules = len(description["backbone"]) + len(description["head"])
    return Weights("scratch", name, num_modules=num_modules, stride=64 if name.endswith("-p6") else 32)


def _folders(config: ModelConfig, cache_dir: Path) -> list[Path]:
    return [*(Path(d).expanduser() for d in config.weights_dirs), Path.cwd(), cache_dir / "weights"]


def _search(config: ModelConfig, cache_dir: Path) -> Path | None:
    for folder in _folders(config, cache_dir):
        candidate = folder / f"{config.name}.pt"
        if candidate.is_file():
            return candidate.resolve()
    return None


def _download(name: str, cache_dir: Path, timeout_s: float = 10.0) -> Path | None:
    url, target = DOWNLOAD_URL.format(name=name), cache_dir / "weights" / f"{name}.pt"
    log.info("Downloading %s ...", url)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=timeout_s) as response,
            atomic_path(target) as temporary,
            temporary.open("wb") as file,
        ):
            while block := response.read(1 << 20):
                file.write(block)
            promised = response.headers["Content-Length"]
            if promised is not None and file.tell() != int(promised):  # urllib does not notice a cut connection
                raise ConnectionError(f"cut off after {file.tell()} of {promised} bytes")
    except (OSError, http.client.HTTPException) as error:
        log.info("No download: %s", getattr(error, "reason", error) or type(error).__name__)
        return None
    log.info("Stored %s", target)
    return target


def load_model(file: Path) -> Any:
    """Return the detection model of a checkpoint in float32, through safe loading.

    Raises:
        InputError: If the file is missing, damaged, holds classes outside the allow-list or another task's model.
    """
    if not file.is_file():
        what = "is a folder, not a file" if file.is_dir() else "does not exist"
        raise InputError(Problem("model.weights", str(file), what, "type model.weights=FILE.pt, pretrained or scratch"))
    try:
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols, before the same file is refused
            checkpoint, _ = torch_safe_load(file, safe_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise InputError(Problem("model.weights", str(file), _why_refused(error), "use another .pt file")) from error
    if checkpoint.get("format") == CLASSIFIER_FORMAT:
        held = f"an image classifier ({checkpoint.get('model_name')}, {len(checkpoint.get('classes', []))} classes)"
        raise InputError(belongs_to("classify", file, held, "detect"))
    model = next((checkpoint[key] for key in ("ema", "model") if checkpoint.get(key) is not None), None)
    if not isinstance(model, DetectionModel):
        held = "nothing" if model is None else type(model).__name__
        raise InputError(
            Problem(
                "model.weights",
                str(file),
                f"holds {held} where an ultralytics detection model should be",
                "use the .pt file of a detector, such as a run's weights/best.pt",
            )
        )
    if type(model) is not DetectionModel:
        task = type(model).__name__.removesuffix("Model").lower()
        raise InputError(
            Problem("model.weights", str(file), f"is a {task} model", "use the .pt file of a detection model")
        )
    model.args = checkpoint.get("train_args") or {}
    return model.float()


def _why_refused(error: Exception) -> str:
    cause = error.__cause__ or error
    named = re.search(r"GLOBAL (\S+)", str(cause))
    if named:
        return f"names {named.group(1)}, which is not on the allow-list of model classes: it is not loaded"
    if "TorchScript" in str(error):
        return "is a TorchScript archive, which can be run but not trained"
    reason = "" if "\n" in str(cause) else f": {cause}"  # long texts give advice that is not ours
    return f"is not a readable checkpoint ({type(cause).__name__}{reason[:200]})"


def inspect(file: Path, typed_name: str | None) -> Weights:
    """Check a weights file and describe it.

    Args:
        file: A plain ultralytics checkpoint.
        typed_name: Architecture that the file must have, or None for whatever it holds.

    Raises:
        InputError: See `load_model`; also if the architectures differ.
    """
    model = load_model(file)
    name = architecture_name(model)
    if typed_name is not None and not _same_architecture(model, typed_name):
        raise InputError(
            Problem(
                "model.weights",
                str(file),
                f"holds {name}, but model={typed_name} is asked for",
                f"drop model={typed_name} to take the file's architecture, or give weights of {typed_name}",
            )
        )
    names = list(model.names.values()) if isinstance(model.names, dict) else list(model.names)
    imgsz = model.args.get("imgsz")
    return Weights(
        source="file",
        architecture=typed_name or name,
        file=file.resolve(),
        sha256=fingerprint(file),
        names=names,
        imgsz=int(imgsz) if isinstance(imgsz, int) else None,
        num_modules=len(model.model),
        stride=max(int(model.stride.max()), 32),
    )


def fingerprint(file: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def architecture_name(model: Any) -> str:
    """Return a model's name as users type it, from the YAML that it carries."""
    stem, scale = Path(str(model.yaml.get("yaml_file", "custom"))).stem, str(model.yaml.get("scale") or "")
    if guess_model_scale(f"{stem}.yaml") or not scale:
        return stem
    return re.sub(r"\d+", rf"\g<0>{scale}", stem, count=1)


def architecture_yaml(name: str) -> dict[str, Any]:
    """Return the description of a model, always the library's own.

    The library's loader would take a file of that name from the current directory.
    """
    stems = (name, re.sub(r"(\d)[nsmlx]", r"\1", name, count=1))
    file = next(file for stem in stems for file in (ROOT / "cfg" / "models").rglob(f"{stem}.yaml"))
    return {**YAML.load(file), "scale": guess_model_scale(f"{name}.yaml"), "yaml_file": f"{name}.yaml"}


def _same_architecture(model: Any, name: str) -> bool:
    with torch.device("meta"):  # shapes alone: no time, no memory
        layers, _ = parse_model({**architecture_yaml(name), "nc": len(model.names)}, ch=3, verbose=False)
    ours = {key: value.shape for key, value in model.model.state_dict().items()}
    theirs = {key: value.shape for key, value in layers.state_dict().items()}
    return ours == theirs
