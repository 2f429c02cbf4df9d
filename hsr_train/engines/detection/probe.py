"""train.batch=probe: the largest batch that a GPU takes, measured in a process of its own (`probe_child`).

`preparation` asks; `hardware.batch_search` decides. A process of its own, so that running out of memory there costs
this one nothing, and all that it held is free when training starts. Measurements are kept in our cache folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import IO, Any, Self

from hsr_train.config.schema import AugmentationConfig, DetectExperiment
from hsr_train.data.detection_set import DetectionSet, DetectionSplit
from hsr_train.decisions import Decision
from hsr_train.engines.detection.options import passed_through
from hsr_train.engines.detection.trainer import DetectionInputs
from hsr_train.engines.detection.weights import Weights
from hsr_train.errors import RunError
from hsr_train.hardware import Budget, Gpu, Machine, detect, search_batch
from hsr_train.run.atomic import write_json

log = logging.getLogger(__name__)

KEY = "train.batch"
FIRST_TRY = 8
# Numbers of objects are rounded up, so that folds of one set share their measurements.
OBJECTS_STEP = 8
MIB = 2**20
CHILD = ("-P", "-m", "hsr_train.engines.detection.probe_child")  # as words for Python


@dataclass(frozen=True)
class Request:
    """What the measuring process needs to know.

    Attributes:
        experiment: As it will be trained, without workers and cache.
        inputs: Weights, device and a set of one image for each split: its classes count, its images are not read.
        train_objects: Objects in every training image.
        val_objects: Objects in every validation image.
        free_bytes: What was free on the GPU before that process started.
    """

    experiment: DetectExperiment
    inputs: DetectionInputs
    train_objects: int
    val_objects: int
    free_bytes: int = 0


def probe_batch(
    experiment: DetectExperiment, machine: Machine, device: str, dataset: DetectionSet, start: Weights, cache_dir: Path
) -> list[Decision]:
    """Measure the largest batch that stays under `hardware.max_vram_utilization`.

    Args:
        experiment: With train.batch=probe.
        machine: What there is.
        device: What `resolve_device` returned.
        dataset: The checked set.
        start: What training starts from.
        cache_dir: Our cache folder.

    Returns:
        The batch with its reason, and the curve; without a GPU the tier's batch alone.

    Raises:
        InputError: Not even one image fits.
        RunError: The measuring process failed for another reason than memory.
    """
    if device == "cpu":
        return [cpu_batch(experiment)]
    gpu = next(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device)
    # What is free may have changed since the machine was looked at.
    gpu = next((now for now in detect(refresh=True).gpus if now.uuid == gpu.uuid), gpu)
    budget = Budget.of(gpu, experiment.hardware.max_vram_utilization)
    request = replace(make_request(experiment, dataset, start, device, cache_dir), free_bytes=gpu.free_bytes)
    memory = Memory(cache_dir / "probes", identity(request, gpu), gpu.free_bytes)
    since = time.monotonic()
    log.info("Measuring the largest batch: %s", budget)
    with ProbeProcess(request) as process:

        def measure(batch: int) -> int | None:
            if batch not in memory:
                memory.keep(batch, process.measure(batch))
                log.info("Batch %d: %s", batch, _shown(memory[batch]))
            return memory[batch]

        found = search_batch(measure, budget, start=FIRST_TRY, most=len(dataset.splits["train"]))
    seconds = time.monotonic() - since
    how = f"measured in {seconds:.0f} s" if process.num_measured else "measured before, from the cache"
    curve = {str(batch): None if peak is None else round(peak / MIB) for batch, peak in found.curve.items()}
    return [
        Decision(KEY, found.batch, f"{how}: {_shown(found.peak_bytes)} at the peak; {budget}"),
        Decision("batch probe", curve, f"peak in MiB by batch, null where memory ran out; {how}"),
    ]


def cpu_batch(experiment: DetectExperiment) -> Decision:
    """Return the batch where there is no GPU to measure on."""
    return Decision(KEY, experiment.origin.tier_batch, "the tier's batch, since probing needs a GPU")


def make_request(
    experiment: DetectExperiment, dataset: DetectionSet, start: Weights, device: str, cache_dir: Path
) -> Request:
    """Return what is to be measured: the experiment with the set's worst case of objects."""
    experiment = deepcopy(experiment)
    experiment.train.workers, experiment.train.cache, experiment.train.batch = 0, "none", 1
    train, val = dataset.splits["train"], dataset.splits["val"]
    one_each = replace(dataset, splits={"train": _first(train), "val": _first(val)})
    return Request(
        experiment,
        DetectionInputs(one_each, start, device, cache_dir),
        train_objects=_rounded(worst_case(train, experiment.augmentation)),
        val_objects=_rounded(max((len(boxes) for boxes in val.labels), default=0)),
    )


def worst_case(split: DetectionSplit, augmentation: AugmentationConfig) -> int:
    """Return how many objects an augmented image may hold: those of the fullest images that may be put into one."""
    images = (4 if augmentation.mosaic else 1) * (2 if augmentation.mixup or augmentation.cutmix else 1)
    counts = sorted((len(boxes) for boxes in split.labels), reverse=True)
    return round(sum(counts[:images]) * (1 + augmentation.copy_paste))


def identity(request: Request, gpu: Gpu) -> dict[str, Any]:
    """Return everything that the memory of a training depends on, as plain values."""
    experiment, weights, dataset = request.experiment, request.inputs.weights, request.inputs.dataset
    train = experiment.train
    assert dataset is not None
    return {
        "model": weights.architecture,
        "num_modules": weights.num_modules,
        "weights": weights.sha256 if weights.source == "file" else None,  # a file may hold what no name tells
        "num_classes": len(dataset.names),
        "imgsz": train.imgsz,
        "multi_scale": train.multi_scale,
        "val_batch": train.val_batch,
        "amp": train.amp,
        "deterministic": train.deterministic,
        "freeze": train.freeze,
        "optimizer": asdict(experiment.optimizer),
        "ultralytics": passed_through(experiment),
        "objects": [request.train_objects, request.val_objects],
        "gpu": [gpu.name, gpu.uuid, gpu.total_bytes, gpu.driver],
        "versions": {name: metadata.version(name) for name in ("torch", "ultralytics", "hsr_train")},
    }


class Memory:
    """Earlier measurements of one identity: a batch that fitted or not is not measured again.

    Args:
        folder: Where the files lie.
        identity: What was measured.
        free_bytes: What is free now; where memory ran out with less, it may not run out today.
    """

    def __init__(self, folder: Path, identity: dict[str, Any], free_bytes: int) -> None:
        text = json.dumps(identity, sort_keys=True, default=str)
        self._identity, self._free_bytes = json.loads(text), free_bytes
        self._file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
        self._known: dict[str, dict[str, int | None]] = {}
        try:
            stored = json.loads(self._file.read_text(encoding="utf-8"))
            self._known = stored["curve"] if stored["identity"] == self._identity else {}
        except FileNotFoundError:
            pass  # nothing was measured yet
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("The measurements in %s cannot be read (%s); measuring again", self._file, error)

    def __contains__(self, batch: int) -> bool:
        entry = self._known.get(str(batch))
        return entry is not None and (entry["peak"] is not None or self._free_bytes <= (entry["free"] or 0))

    def __getitem__(self, batch: int) -> int | None:
        return self._known[str(batch)]["peak"]

    def keep(self, batch: int, peak: int | None) -> None:
        """Remember a measurement, on disk too; a folder that cannot be written costs a warning."""
        self._known[str(batch)] = {"peak": peak, "free": self._free_bytes}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, {"identity": self._identity, "curve": self._known})
        except (OSError, RunError) as error:
            log.warning("The measurement was not kept, so the next start measures again: %s", error)


class ProbeProcess:
    """Measures in a process of its own, started when first needed and anew after the kernel has killed it."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._child: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self.num_measured = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def measure(self, batch: int) -> int | None:
        """Return the peak in bytes of training and validating with a batch; None where memory ran out.

        Raises:
            RunError: Something else went wrong.
        """
        self.num_measured += 1
        is_new = self._child is None
        child = self._child or self._start()
        assert child.stdin is not None and child.stdout is not None
        try:
            if is_new:
                pickle.dump(self._request, child.stdin)
            pickle.dump(batch, child.stdin)
            child.stdin.flush()
            peak, failure = pickle.load(child.stdout)
        except (EOFError, BrokenPipeError):
            child.wait()
            last_words = self._last_words()
            self._end()
            if child.returncode == -signal.SIGKILL:  # what the kernel does when main memory runs out
                return None
            raise _failed(f"it ended with status {child.returncode}{last_words}") from None
        if failure is not None:
            raise _failed(failure)
        measured: int | None = peak
        return measured

    def _start(self) -> subprocess.Popen[bytes]:
        root = str(Path(__file__).parents[3])  # the child runs this package, wherever it was found
        path = os.pathsep.join(part for part in (root, os.environ.get("PYTHONPATH", "")) if part)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _end)
        self._child = subprocess.Popen(
            [sys.executable, *CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches us, and we end it
        )
        return self._child

    def _last_words(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f": {lines[-1]}" if lines else ""

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None
        if self._errors is not None:
            self._errors.close()
            self._errors = None


def _failed(why: str) -> RunError:
    return RunError(
        f"train.batch=probe could not measure: {why}. Without a measurement: train.batch=auto, or a number."
    )


def _first(split: DetectionSplit) -> DetectionSplit:
    """Return a split of its first image alone."""
    first = {name: getattr(split, name)[:1] for name in ("images", "shapes", "labels", "segments", "hashes")}
    return replace(split, **first, label_hashes=split.label_hashes[:1])


def _rounded(objects: int) -> int:
    return max(-(-objects // OBJECTS_STEP), 1) * OBJECTS_STEP


def _shown(peak: int | None) -> str:
    return "out of memory" if peak is None else f"{peak / 2**30:.1f} GiB"
