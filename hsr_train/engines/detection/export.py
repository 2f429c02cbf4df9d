"""mode=export: weights in deployment formats, each kept only if it passes the parity gate (`parity.py`).

The library exports into a scratch folder inside the output folder; a file gets its name after it has passed, so that
an export that is there is one that agrees with its weights.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsr_train.config.schema import DataConfig, ExportConfig
from hsr_train.data.demo import ensure_demo_set
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.evaluate import Evaluation
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.parity import Parity, Subject, check, sample
from hsr_train.engines.detection.weights import load_model
from hsr_train.engines.memory import cause_of
from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.atomic import DISK_ERRORS, atomic_path, describe_disk_error

bring_up()
from ultralytics.engine.exporter import Exporter  # noqa: E402
from ultralytics.utils import DEFAULT_CFG_DICT  # noqa: E402

log = logging.getLogger(__name__)

FORMATS = ("onnx", "torchscript")
MOST_IMAGES, LEAST_IMAGES = 100, 16
_WORK_PER_THREAD = 65e12
"""Parameters x pixels x images that one CPU thread may compare: 50 images with yolov8n at 640 px, some 10 s a model."""

_GRAPH_OPTIONS = ("nms", "agnostic_nms", "max_det")


class ExportError(RunError):
    """At least one format could not be exported or does not agree with its weights.

    Attributes:
        exports: One entry per format, those that passed and those that did not.
    """

    def __init__(self, message: str, exports: list[dict[str, Any]]) -> None:
        self.exports = exports
        super().__init__(message)


def check_export(formats: Sequence[str], config: ExportConfig) -> None:
    """Say what stands in the way of an export, before anything is trained.

    Raises:
        InputError: For every unknown format and for optional packages that are not installed.
    """
    problems = [
        Problem("export.formats", name, f"is none of {', '.join(FORMATS)}", "export.formats=[onnx]")
        for name in formats
        if name not in FORMATS
    ]
    if "onnx" in formats:
        needed = ["onnx", "onnxruntime"] + ["onnxslim"] * config.simplify
        missing = [name for name in needed if importlib.util.find_spec(name) is None]
        if missing:
            verb = "are" if len(missing) > 1 else "is"
            problems.append(
                Problem(
                    "export.formats", "onnx", f"{', '.join(missing)} {verb} not installed",
                    'pip install "hsr_train[export]"',
                )
            )  # fmt: skip
    if problems:
        raise InputError(problems)


def export_model(
    model: Path,
    formats: Sequence[str],
    *,
    config: ExportConfig,
    imgsz: int,
    device: str,
    dataset: DetectionSet | None,
    split: str,
    workers: int,
    cache_dir: Path,
    output_dir: Path,
    options: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Export weights and compare each file with them on images.

    ONNX is exported and run on the CPU: the file is the same, and its numbers do not depend on a GPU's rounding.
    TorchScript is tied to the kind of device that it was traced on, so it is traced and run on `device`.

    Args:
        model: A plain .pt checkpoint; nothing is written beside it.
        formats: Of `FORMATS`.
        config: The export section.
        imgsz: Side of the square input in pixels.
        device: A torch device, such as cpu or cuda:0.
        dataset: Images to compare on; None draws scenes, which have no labels for these classes.
        split: Their split.
        workers: Loader processes.
        cache_dir: Our cache folder.
        output_dir: Where `<stem>.onnx` and `<stem>.torchscript` go.
        options: Further ultralytics options (`options.passed_through`); those that change the graph are honoured.

    Returns:
        For each format: format, path (file name), parity (figures of the gate), seconds, size_bytes, and more.

    Raises:
        InputError: See `check_export`; or the weights cannot be loaded.
        ExportError: A format failed; its file, and an older one of that name, are gone, the others are there.
        RunError: The disk refused.
    """
    check_export(formats, config)
    network = load_model(model)
    compared_on = f"{split} images" if dataset is not None else "drawn scenes"
    if dataset is None:
        dataset, split = _drawn_scenes(network, cache_dir), "val"
        log.info("No data given: comparing on drawn scenes, without mAP")
    work = sum(p.numel() for p in network.parameters()) * imgsz**2
    most = int(np.clip(_WORK_PER_THREAD * torch.get_num_threads() / work, LEAST_IMAGES, MOST_IMAGES))
    dataset = sample(dataset, split, most)
    chosen = {key: value for key, value in (options or {}).items() if key in _GRAPH_OPTIONS}
    exports: list[dict[str, Any]] = []
    reference: Evaluation | None = None
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=output_dir) as scratch:
            original = Subject(
                model=model,
                device=device,
                dataset=dataset,
                split=split,
                imgsz=imgsz,
                dynamic=config.dynamic,
                workers=workers,
                cache_dir=cache_dir,
                output_dir=Path(scratch),
                options=chosen,
            )
            for name in formats:
                start = time.monotonic()
                target = output_dir / f"{model.stem}.{name}"
                entry: dict[str, Any] = {"format": name, "path": target.name, "imgsz": imgsz, "dynamic": config.dynamic}
                exports.append(entry)
                where = "cpu" if name == "onnx" else device
                log.info("Exporting %s as %s (%d px)", model.name, name, imgsz)
                try:
                    file = _export(network, model, name, config, imgsz, where, chosen, Path(scratch))
                except _RefusedError as error:
                    entry |= {"error": str(error)}
                    continue
                log.info("Comparing %s with %s on %d %s", name, model.name, len(dataset.splits[split]), compared_on)
                reference = reference or original.run()
                parity = check(original, replace(original, model=file, device=where), reference)
                entry |= {"device": where, "parity": parity.as_json() | {"compared_on": compared_on}}
                entry["seconds"] = round(time.monotonic() - start, 2)
                if parity.failures:
                    target.unlink(missing_ok=True)
                    continue
                entry["size_bytes"] = file.stat().st_size
                with atomic_path(target) as temporary:
                    shutil.move(file, temporary)
                _report(entry, parity)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunError(describe_disk_error(output_dir, error)) from error
    _raise_failures(exports, model, config)
    return exports


class _RefusedError(Exception):
    """The library could not export; the text says why."""


def _export(
    network: Any,
    model: Path,
    name: str,
    config: ExportConfig,
    imgsz: int,
    device: str,
    options: dict[str, Any],
    scratch: Path,
) -> Path:
    """Export into the scratch folder and return the file."""
    network.args = {**DEFAULT_CFG_DICT, **network.args}
    network.task = "detect"
    network.pt_path = str(scratch / "model.pt")  # names the exported file; the weights' own folder is not ours
    arguments: dict[str, Any] = {
        "mode": "export",
        "task": "detect",
        "format": name,
        "imgsz": imgsz,
        "batch": 1,
        "device": device.removeprefix("cuda:"),
        "dynamic": config.dynamic,
        **{key: value for key, value in options.items() if key != "nms" or value is False},
    }
    if name == "onnx":
        arguments |= {"simplify": config.simplify, "opset": config.opset}
    with warnings.catch_warnings():
        # Tracing warns of every branch on a shape and of its own retirement; whether the trace is right, the gate says.
        warnings.simplefilter("ignore")
        try:
            return Path(Exporter(overrides=arguments)(model=network))
        except OSError:
            raise
        except Exception as error:  # the exporters of torch and onnx raise whatever they like
            if cause_of(error) is not None:
                raise
            log.debug("Exporting %s as %s failed", model, name, exc_info=True)
            raise _RefusedError(
                f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            ) from error


def _drawn_scenes(network: Any, cache_dir: Path) -> DetectionSet:
    """Return scenes of the demo set's kind, without labels, under the class names of the network."""
    yaml_path = ensure_demo_set(cache_dir, num_train=1, num_val=LEAST_IMAGES, num_cutouts=1, num_backgrounds=1)
    config = DataConfig(path=str(yaml_path), cache_dir=str(cache_dir))
    scenes = load_detection_set(config, Decisions(), need=("val",), progress=False)
    val = scenes.splits["val"]
    unlabelled = replace(
        val, labels=[np.zeros((0, 5), np.float32) for _ in val.images], segments=[[] for _ in val.images]
    )
    return replace(scenes, names=list(network.names.values()), splits={"val": unlabelled})


def _report(entry: dict[str, Any], parity: Parity) -> None:
    if not parity.score_threshold:
        log.warning("The weights find nothing: only proposals of negligible score were compared. Train them longer")
    differences = "".join(f", {name} {value:.5f}" for name, value in parity.metric_differences.items())
    log.info(
        "%s (%.1f MB) agrees with its weights: %d boxes on %d images, differences at most %.4f px, score %.6f%s",
        entry["path"],
        entry["size_bytes"] / 1e6,
        parity.boxes,
        parity.images,
        parity.max_box_difference_px,
        parity.max_score_difference,
        differences,
    )


def _raise_failures(exports: list[dict[str, Any]], model: Path, config: ExportConfig) -> None:
    lines = []
    for entry in exports:
        remedy = _remedy(entry["format"], config)
        if "error" in entry:
            lines.append(f"{model.name} could not be exported as {entry['format']}: {entry['error']}\n    -> {remedy}")
        elif entry["parity"]["failures"]:
            found = "; ".join(entry["parity"]["failures"])
            lines.append(
                f"{entry['path']} does not agree with {model.name} and was removed "
                f"({entry['parity']['images']} {entry['parity']['compared_on']}): {found}\n    -> {remedy}"
            )
    if lines:
        raise ExportError("\n".join(lines), exports)


def _remedy(name: str, config: ExportConfig) -> str:
    if name == "torchscript":
        return "try export.formats=[onnx], or train.device=cpu" + ", or export.dynamic=false" * config.dynamic
    opset = 17 if config.opset != 17 else 16
    return "try " + "export.simplify=false, " * config.simplify + f"or another export.opset, such as {opset}"
