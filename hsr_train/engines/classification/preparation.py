"""What is checked and decided before a run: data, weights, device, precision, workers. Trains nothing.

Called by `engine.ClassificationEngine.prepare`; its `Plan` is what mode=check prints.
"""

from __future__ import annotations

import logging
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.data.cache import cache_root
from hsr_train.data.class_set import ClassificationSet, load_classification_set
from hsr_train.data.class_splits import take_division
from hsr_train.decisions import Decision, Decisions
from hsr_train.engines.base import Plan
from hsr_train.engines.classification import privacy, weights
from hsr_train.engines.classification.description import run_name, summary
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.models import (
    check_imgsz,
    check_name,
    freeze,
    mismatch,
    needs_two,
    outline,
    preprocessing,
)
from hsr_train.engines.classification.policy import load_accelerate, mixed_dtype
from hsr_train.engines.classification.predict import find_images
from hsr_train.engines.classification.reports import load_metrics
from hsr_train.engines.classification.samples import cached_bytes
from hsr_train.engines.devices import num_sharing, own_device
from hsr_train.engines.states import newest_state
from hsr_train.errors import InputError, Problem
from hsr_train.hardware import Machine, choose_cache, choose_workers, pin_cuda_order
from hsr_train.length import decide_epochs
from hsr_train.run.directory import RunDirectory

log = logging.getLogger(__name__)

DEMO = "demo"
VERBS_WITH_WEIGHTS = ("validate", "predict", "export")


def prepare(experiment: ClassifyExperiment, machine: Machine, decisions: Decisions) -> Plan:
    """Check data, weights and device, and decide every `auto`. Writes only to the cache folder.

    Raises:
        InputError: With every problem found.
    """
    asked, experiment = experiment, deepcopy(experiment)
    pin_cuda_order()
    load_accelerate()
    load_metrics()
    cache_dir = cache_root(experiment.data)
    problems: list[Problem] = []
    device, dataset, start, sources = "cpu", None, None, None
    left_out: list[Problem] = []
    try:
        device = decide_device(experiment, machine, decisions)
    except InputError as error:
        problems += error.problems
    checkpoint = None
    try:
        if experiment.mode in VERBS_WITH_WEIGHTS:
            checkpoint = _classifier(experiment, decisions)
        start = _resolve_weights(experiment, decisions)
    except InputError as error:
        problems += error.problems
    try:
        dataset = _load_data(experiment, decisions)
        if experiment.mode == "predict":
            skip = experiment.data.on_bad == "skip"
            sources, left_out = find_images(Path(experiment.data.path).expanduser().absolute(), skip=skip)
    except InputError as error:
        problems += error.problems
    if not problems or check_name(experiment.model.name) is None:
        found = check_imgsz(experiment.model.name, experiment.train.imgsz) or _check_batch(experiment)
        problems += [found] if found else []
        problems += _check_freeze(experiment)
    if problems or start is None:
        raise InputError(problems)
    classes = _classes(experiment, dataset, checkpoint)
    if experiment.mode in ("train", "check") and dataset is not None:
        _decide_epochs(experiment, len(dataset.splits["train"].images), decisions)
    if experiment.trainer.name == "dp" and experiment.mode not in VERBS_WITH_WEIGHTS and dataset is not None:
        privacy.decide(experiment, len(dataset.splits["train"].images), decisions)
    _decide_loading(experiment, machine, decisions)
    _make_absolute(experiment)
    mean, std = preprocessing(experiment.model.name)
    fingerprints: dict[str, Any] = {"weights": {"file": str(start.file or ""), "sha256": start.sha256}}
    if dataset is not None:
        fingerprints["data"] = dataset.record()
    return Plan(
        experiment=experiment,
        decisions=decisions,
        fingerprints=fingerprints,
        seeds={"train.seed": experiment.train.seed, "data.seed": experiment.data.seed},
        summary=summary(experiment, machine, start, dataset, decisions),
        inputs=ClassifyInputs(dataset, start, classes, device, mean, std, cache_dir, sources, left_out),
        data_files=dataset.files if dataset is not None else tuple,
        run_name=run_name(asked, dataset) if experiment.mode == "train" and dataset is not None else None,
        device=device,
        fitting_cache=partial(_fitting_cache, experiment, dataset, cache_dir),
    )


def decide_device(experiment: ClassifyExperiment, machine: Machine, decisions: Decisions) -> str:
    """Return where this process trains, such as cuda:0, and decide what of mixed precision depends on it.

    Raises:
        InputError: See `devices.own_device`.
    """
    device = own_device(experiment, machine, decisions)
    trainer, mixed = experiment.trainer, mixed_dtype(experiment)
    if device == "cpu" and mixed == "float16":
        trainer.amp_dtype = "bfloat16"
        decisions.record("trainer.amp_dtype", "bfloat16", "float16 is not for training on a CPU")
    if device == "cpu" and mixed is not None:
        log.warning("Mixed precision is for GPUs: most CPUs are much slower with it than with trainer=standard")
    return device


def _check_freeze(experiment: ClassifyExperiment) -> list[Problem]:
    try:
        if experiment.train.freeze and experiment.mode not in VERBS_WITH_WEIGHTS:
            freeze(outline(experiment.model.name, 2), experiment.train.freeze)
    except InputError as error:
        return error.problems
    return []


def _check_batch(experiment: ClassifyExperiment) -> Problem | None:
    name, train = experiment.model.name, experiment.train
    private = experiment.trainer.name == "dp"  # has no batch norm
    if experiment.mode in VERBS_WITH_WEIGHTS or private or train.batch > 1 or not needs_two(name, train.imgsz):
        return None
    allowed = f"{name} at {train.imgsz} px normalises over a batch, which takes two images at least"
    return Problem("train.batch", str(train.batch), allowed, "type train.batch=2")


def _classifier(experiment: ClassifyExperiment, decisions: Decisions) -> weights.Checkpoint:
    """Read the weights of a mode that uses a trained classifier; network and image size are the file's."""
    file = Path(experiment.model.weights).expanduser()
    found = weights.read(file)
    if found.model_name is None or found.classes is None:
        allowed = "does not say which network and which classes it is of"
        raise InputError(Problem("model.weights", str(file), allowed, "use weights/best.pt of a run of task=classify"))
    typed = experiment.origin.typed
    if not {"model", "model.name"} & set(typed) and experiment.model.name != found.model_name:
        experiment.model.name = found.model_name
        decisions.record("model.name", found.model_name, "the network of the weights file")
    if "train.imgsz" not in typed and found.more.get("imgsz") not in (None, experiment.train.imgsz):
        experiment.train.imgsz = int(found.more["imgsz"])
        decisions.record("train.imgsz", experiment.train.imgsz, "the size that the weights were trained with")
    if "augmentation.crop" not in typed and found.more.get("crop") not in (None, experiment.augmentation.crop):
        experiment.augmentation.crop = str(found.more["crop"])
        decisions.record("augmentation.crop", experiment.augmentation.crop, "how the weights were evaluated")
    return found


def _resolve_weights(experiment: ClassifyExperiment, decisions: Decisions) -> weights.Start:
    resumed = experiment.origin.resume_from
    state = newest_state(RunDirectory.open(Path(resumed)).state) if resumed is not None else None
    if state is not None:  # what the run started from is not needed any more, and may be gone
        file = Path(experiment.model.weights)
        there = file.is_file()
        return weights.Start("state", file if there else None, weights.fingerprint(file) if there else None)
    is_demo = experiment.data.path == DEMO and experiment.data.raw is None
    fetch = experiment.mode != "check"
    start = weights.resolve(experiment.model, is_demo=is_demo, decisions=decisions, fetch=fetch)
    if start.url is None:
        experiment.model.weights = str(start.file) if start.file else "scratch"
    return start


def _load_data(experiment: ClassifyExperiment, decisions: Decisions) -> ClassificationSet | None:
    data = experiment.data
    untold = experiment.mode == "export" and data.path == DEMO and data.raw is None
    if experiment.mode == "predict" or untold:
        return None
    need = {"validate": (data.split,), "export": (data.split,)}.get(experiment.mode, ("train", "val"))
    origin = experiment.origin
    rehash = origin.resume_from is not None or origin.reproduce_from is not None
    found = load_classification_set(data, decisions, need=need, rehash=rehash)
    if problems := take_division(data, set(origin.typed), found.division, decisions):
        raise InputError(problems)
    return found


def _classes(
    experiment: ClassifyExperiment, dataset: ClassificationSet | None, checkpoint: weights.Checkpoint | None
) -> list[str]:
    """Return the names of the outputs; a classifier and its data must agree on them."""
    known = list(checkpoint.classes or []) if checkpoint is not None else None
    typed = experiment.model.num_classes
    if dataset is None:
        assert known is not None
        return known
    if typed is not None and typed != len(dataset.classes):
        raise InputError(mismatch(typed, len(dataset.classes)))
    if known is not None and known != dataset.classes:
        if len(known) != len(dataset.classes):
            raise InputError(mismatch(len(known), len(dataset.classes), experiment.model.weights))
        differing = [f"{a} / {b}" for a, b in zip(known, dataset.classes, strict=True) if a != b]
        allowed = f"its classes are not those of the data, such as {differing[0]}"
        raise InputError(Problem("model.weights", experiment.model.weights, allowed, "use weights of these classes"))
    experiment.model.num_classes = len(dataset.classes)
    return list(dataset.classes)


def _decide_loading(experiment: ClassifyExperiment, machine: Machine, decisions: Decisions) -> None:
    train = experiment.train
    train.val_batch = train.val_batch or 2 * train.batch
    workers = choose_workers(train.workers, machine, batch_bytes=3 * train.val_batch * train.imgsz**2)
    _take(train, "workers", workers, decisions)


def _decide_epochs(experiment: ClassifyExperiment, num_images: int, decisions: Decisions) -> None:
    """Turn a budget of steps into epochs."""
    train, every = experiment.train, experiment.trainer.gradient_accumulation_steps
    if experiment.trainer.name == "dp":
        per_epoch = privacy.steps_per_epoch(privacy.sample_rate(num_images, train.batch * every))
    else:
        whole, rest = divmod(num_images, train.batch * num_sharing(experiment))
        is_last = rest > 1 or (rest == 1 and not needs_two(experiment.model.name, train.imgsz))
        per_epoch = -(-(whole + is_last) // every)
    decide_epochs(train, lambda epochs: epochs * per_epoch, decisions)


def _fitting_cache(
    experiment: ClassifyExperiment, dataset: ClassificationSet | None, cache_dir: Path, machine: Machine
) -> str:
    """Return whether the decoded images would fit into a machine's memory: ram or none."""
    if dataset is None:
        return "none"
    imgsz, augmentation = experiment.train.imgsz, experiment.augmentation
    needed = sum(cached_bytes(split.images, split.shapes, imgsz, augmentation) for split in dataset.splits.values())
    decision = choose_cache("auto", ram_bytes=needed, disk_bytes=0, machine=machine, cache_dir=cache_dir)
    return "ram" if decision.value == "ram" else "none"


def _take(section: Any, field: str, decision: Decision, decisions: Decisions) -> None:
    if getattr(section, field) != decision.value:
        decisions.record(decision.key, decision.value, decision.reason)
    setattr(section, field, decision.value)


def _make_absolute(experiment: ClassifyExperiment) -> None:
    """Paths in the saved configuration do not depend on where the command was typed."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    data = experiment.data
    experiment.output_dir = absolute(experiment.output_dir)
    if data.path != DEMO:
        data.path = absolute(data.path)
    data.raw = absolute(data.raw) if data.raw is not None else None
    data.cache_dir = absolute(data.cache_dir) if data.cache_dir is not None else None
    experiment.model.weights_dirs = [absolute(folder) for folder in experiment.model.weights_dirs]
