"""mode=export: a classifier as ONNX or TorchScript, kept only if it gives the probabilities of its weights.

ONNX is written and run on the CPU: the file is the same, and its numbers do not depend on a GPU's rounding.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.engines.classification.augment import CENTRE
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.samples import normalise
from hsr_train.engines.classification.training import samples
from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.atomic import atomic_path, write_json

log = logging.getLogger(__name__)

MOST_IMAGES = 64
VIEWS = (f"the middle square, {CENTRE:g} of the short side", "the whole image, squeezed")
"""What of an image a network without augmentation sees."""
TOLERANCE = 1e-3
"""Largest difference of a probability; float32 on one machine differs by some 1e-6."""

Probabilities = npt.NDArray[np.float64]
Run = Callable[[Tensor], Probabilities]


def check_export(experiment: ClassifyExperiment) -> None:
    """Say what stands in the way of an export, before anything is trained.

    Raises:
        InputError: Packages are missing.
    """
    needed = ["onnx", "onnxruntime"] if "onnx" in experiment.export.formats else []
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        allowed = f"{', '.join(missing)} not installed"
        raise InputError(Problem("export.formats", "onnx", allowed, 'pip install "hsr_train[export,classify]"'))


def export_classifier(
    experiment: ClassifyExperiment, inputs: ClassifyInputs, model: nn.Module, file: Path, folder: Path
) -> list[dict[str, Any]]:
    """Write a network in every asked format, each compared with the original on real images.

    The input is (images, 3, side, side) of float32, normalised; `<stem>.json` beside the files, and the
    metadata of an ONNX file, say how, and which class an output is. The output is scores before softmax.

    Args:
        experiment: `export`, `train.imgsz` and how images are read.
        inputs: The images that are compared on, classes and normalisation; without a set, random ones serve.
        model: The network, in evaluation mode.
        file: Its weights file; exports are named after it.
        folder: Where they go.

    Returns:
        For each format: format, path (file name), parity, seconds, size_bytes.

    Raises:
        RunError: A format does not agree with its weights, or the disk refused.
    """
    check_export(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    network = model.cpu()
    batch = _images(experiment, inputs)
    about: dict[str, Any] = {
        "classes": inputs.classes,
        "imgsz": experiment.train.imgsz,
        "mean": inputs.mean,
        "std": inputs.std,
        "view": VIEWS[experiment.augmentation.crop == "resize"],
        "input": "RGB / 255, minus mean, divided by std",
    }
    with torch.no_grad():
        expected = _softmax(network(batch))
    done = []
    for name in experiment.export.formats:
        started = time.perf_counter()
        path = folder / f"{file.stem}.{name}"
        path.unlink(missing_ok=True)
        with atomic_path(path) as draft:
            run = {"onnx": _to_onnx, "torchscript": _to_torchscript}[name](experiment, network, batch, draft)
            if name == "onnx":
                _describe(draft, about)
            difference = float(np.abs(run(batch) - expected).max())
            if difference > TOLERANCE:
                raise RunError(
                    f"{name}: probabilities differ by {difference:.2g}, more than {TOLERANCE:g}: {path} is not kept"
                )
        parity = {"passed": True, "images": len(batch), "max_probability_difference": difference}
        done.append(
            {
                "format": name,
                "path": path.name,
                "parity": parity,
                "seconds": round(time.perf_counter() - started, 3),
                "size_bytes": path.stat().st_size,
            }
        )
        log.info("%s: %s agrees with %s on %d images (at most %.1g)", name, path, file.name, len(batch), difference)
    write_json(folder / f"{file.stem}.json", about)
    return done


def _describe(path: Path, about: dict[str, Any]) -> None:
    """Put the description into an ONNX file too, each value as JSON: a file that is copied alone still tells it."""
    onnx = importlib.import_module("onnx")
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()})
    onnx.save(model, str(path))


def _images(experiment: ClassifyExperiment, inputs: ClassifyInputs) -> Tensor:
    """Return a normalised batch of real images, or of noise where there is no set."""
    side = experiment.train.imgsz
    if inputs.dataset is None:
        generator = torch.Generator().manual_seed(0)
        pictures = torch.randint(0, 256, (16, 3, side, side), generator=generator, dtype=torch.uint8)
    else:
        split = inputs.dataset.splits.get("val") or next(iter(inputs.dataset.splits.values()))
        views = samples(experiment, split, side, augment=False)
        chosen = np.linspace(0, len(views) - 1, min(MOST_IMAGES, len(views))).astype(int)
        pictures = torch.stack([views[0, int(i)][0] for i in chosen])
    return normalise(pictures, inputs.mean, inputs.std)


def _to_onnx(experiment: ClassifyExperiment, network: nn.Module, batch: Tensor, path: Path) -> Run:
    onnxruntime = importlib.import_module("onnxruntime")
    dynamic = experiment.export.dynamic
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            network,
            (batch[:1],),
            str(path),
            input_names=["images"],
            output_names=["scores"],
            opset_version=experiment.export.opset,
            dynamic_axes={"images": {0: "batch"}, "scores": {0: "batch"}} if dynamic else None,
            dynamo=False,  # the newer exporter needs onnxscript, and gives the same graph for these networks
        )
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Probabilities:
        parts = [images] if dynamic else list(images[:, None])
        return _softmax(torch.cat([torch.from_numpy(session.run(None, {"images": p.numpy()})[0]) for p in parts]))

    return run


def _to_torchscript(experiment: ClassifyExperiment, network: nn.Module, batch: Tensor, path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit announces its retirement
        traced: Any = torch.jit.trace(network, batch[:1])  # type: ignore[no-untyped-call]
        traced.save(str(path))
        loaded: Any = torch.jit.load(str(path))  # type: ignore[no-untyped-call]

    def run(images: Tensor) -> Probabilities:
        with torch.no_grad():
            return _softmax(torch.cat([loaded(part) for part in list(images[:, None])]))

    return run


def _softmax(scores: Tensor) -> Probabilities:
    return scores.double().softmax(1).numpy()
