"""What is checked and decided before a run: data, weights, device, batch, workers, cache. Trains nothing.

Called by `engine.DetectionEngine.prepare`; its `Plan` is what mode=check prints.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hsr_train.config.schema import DEMO_SETS, DetectExperiment
from hsr_train.data.cache import cache_root
from hsr_train.data.demo import ensure_demo_set
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decision, Decisions
from hsr_train.engines.base import Plan
from hsr_train.engines.detection import weights
from hsr_train.engines.detection.cutouts import DEMO, SHOWING
from hsr_train.engines.detection.description import run_name, summary
from hsr_train.engines.detection.export import check_export
from hsr_train.engines.detection.high_performance import HIGH_PERFORMANCE, announcement
from hsr_train.engines.detection.options import refused
from hsr_train.engines.detection.predict_sources import find_sources
from hsr_train.engines.detection.probe import cpu_batch, probe_batch
from hsr_train.engines.detection.schedule import Schedule, effective_batch
from hsr_train.engines.detection.synthetic import Synthesis, prepare_synthesis
from hsr_train.engines.detection.trainer import DetectionInputs
from hsr_train.engines.devices import least_device, num_sharing, own_device
from hsr_train.engines.states import newest_state
from hsr_train.errors import InputError, Problem
from hsr_train.hardware import Machine, choose_batch, choose_cache, choose_workers, pin_cuda_order
from hsr_train.length import check_epochs, decide_epochs
from hsr_train.run.data_files import DataFile
from hsr_train.run.directory import RunDirectory

log = logging.getLogger(__name__)


def prepare(experiment: DetectExperiment, machine: Machine, decisions: Decisions) -> Plan:
    """Check data, weights and device, and decide every `auto`. Writes only to the cache folder.

    Raises:
        InputError: With every problem found.
    """
    asked, experiment = experiment, deepcopy(experiment)
    pin_cuda_order()
    cache_dir = cache_root(experiment.data)
    problems: list[Problem] = []
    device, dataset, start = "cpu", None, None
    try:
        device = own_device(experiment, machine, decisions)
    except InputError as error:
        problems += error.problems
    try:
        check_export(experiment.export.formats, experiment.export)
    except InputError as error:
        problems += error.problems
    try:
        start = _resolve_weights(experiment, cache_dir, decisions)
    except InputError as error:
        problems += error.problems
    sources = Path(experiment.data.path).expanduser().absolute() if experiment.mode == "predict" else None
    try:
        dataset = _load_data(experiment, cache_dir, decisions)
    except InputError as error:
        problems += error.problems
    if sources is not None:
        try:
            find_sources(sources, Path(experiment.output_dir).expanduser().absolute())
        except InputError as error:
            problems += error.problems
    synthesis: Synthesis | None = None
    try:
        if dataset is not None:
            synthesis = prepare_synthesis(experiment, dataset, machine, cache_dir, decisions)
    except InputError as error:
        problems += error.problems
    if problems or start is None:
        raise InputError(problems)
    if experiment.mode in ("validate", "predict", "export"):
        _take_image_size(experiment, start, decisions)
    if dataset is not None and start.names is not None and experiment.origin.resume_from is None:
        _compare_classes(experiment, start, dataset)
    least = least_device(experiment, machine, device)
    _decide_batch(experiment, machine, least, dataset, start, cache_dir, decisions)
    num_composed = synthesis.num_composed if synthesis is not None else 0
    _decide_loading(experiment, machine, device, dataset, cache_dir, decisions, num_composed)
    if experiment.mode in ("train", "check") and dataset is not None:
        _decide_epochs(experiment, dataset, synthesis, decisions)
        epochs = experiment.train.epochs
        composed = set(map(synthesis.composition(epochs), range(epochs))) if synthesis is not None else {0}
        problems = refused(experiment, start, dataset, composed, num_sharing(experiment))
        if problems:
            raise InputError(problems)
    if experiment.mode == "train" and experiment.preset == HIGH_PERFORMANCE:
        log.info("%s", "\n".join(announcement(experiment, machine, device, asked.train.batch)))
    _make_absolute(experiment)
    inputs = DetectionInputs(
        dataset=dataset,
        weights=start,
        device=device,
        cache_dir=cache_dir,
        sources=sources,
        synthesis=synthesis,
    )
    fingerprints: dict[str, Any] = {"weights": {"file": str(start.file or ""), "sha256": start.sha256}}
    if dataset is not None:
        fingerprints["data"] = dataset.record()
    if synthesis is not None:
        if experiment.mode != "check":
            for line in synthesis.summary():
                log.info("%s", line)
        own = synthesis.record()
        both = f"{fingerprints['data']['fingerprint']}\n{own['fingerprint']}"
        fingerprints["data"] |= {"fingerprint": hashlib.sha256(both.encode()).hexdigest(), "synthetic": own}
    return Plan(
        experiment=experiment,
        decisions=decisions,
        fingerprints=fingerprints,
        seeds={"train.seed": experiment.train.seed, "data.seed": experiment.data.seed},
        summary=summary(experiment, machine, start, dataset, synthesis, decisions),
        inputs=inputs,
        data_files=partial(_data_files, dataset, synthesis),
        run_name=run_name(asked, dataset),
        device=device,
        fitting_cache=partial(_fitting_cache, dataset, experiment.train.imgsz, cache_dir),
    )


def _data_files(dataset: DetectionSet | None, synthesis: Synthesis | None) -> Iterator[DataFile]:
    """Yield every file that a run reads images from."""
    for source in (dataset, synthesis):
        if source is not None:
            yield from source.files()


def _take(section: Any, field: str, decision: Decision, decisions: Decisions) -> None:
    """Put a decided value in its place; record it only if it differs from what was configured."""
    if getattr(section, field) != decision.value:
        decisions.record(decision.key, decision.value, decision.reason)
    setattr(section, field, decision.value)


def _is_typed(experiment: DetectExperiment, *keys: str) -> bool:
    return not set(keys).isdisjoint(experiment.origin.typed)


def _resolve_weights(experiment: DetectExperiment, cache_dir: Path, decisions: Decisions) -> weights.Weights:
    resumed = experiment.origin.resume_from
    state = newest_state(RunDirectory.open(Path(resumed)).state) if resumed is not None else None
    if state is not None:  # what the run started from is not needed any more, and may be gone
        started_from = Path(experiment.model.weights)
        return weights.Weights(
            source="state",
            architecture=experiment.model.name,
            file=started_from if started_from.is_file() else None,
            sha256=weights.fingerprint(started_from) if started_from.is_file() else None,
            names=list(state["names"].values()),
            num_modules=state["num_modules"],
            stride=max(state["stride"], 32),
        )
    found = weights.resolve(
        experiment.model,
        cache_dir=cache_dir,
        is_demo=experiment.data.path in DEMO_SETS,
        model_is_typed=_is_typed(experiment, "model", "model.name"),
        decisions=decisions,
        fetch=experiment.mode not in ("check", *SHOWING),
    )
    experiment.model.name = found.architecture
    if found.url is None:
        experiment.model.weights = str(found.file) if found.file else "scratch"
    return found


def _load_data(experiment: DetectExperiment, cache_dir: Path, decisions: Decisions) -> DetectionSet | None:
    untold = experiment.mode == "export" and not _is_typed(experiment, "data.path", "data")
    if experiment.mode == "predict" or untold:
        return None
    config = deepcopy(experiment.data)
    if config.path in DEMO_SETS:
        decisions.record("data.path", config.path, "the built-in demo set; your own: data.path=my/data.yaml")
        config.path = str(ensure_demo_set(cache_dir, seed=config.seed).with_name(DEMO_SETS[config.path]))
    need = {"validate": (config.split,), "export": (config.split,)}.get(experiment.mode, ("train", "val"))
    origin = experiment.origin
    recorded = origin.resume_from is not None or origin.reproduce_from is not None
    if recorded and not Path(config.path).exists():
        allowed = "the run's data lay there, and are not there now"
        raise InputError(Problem("data.path", config.path, allowed, "if they have moved: data.path=NEW/data.yaml"))
    return load_detection_set(config, decisions, need=need, rehash=recorded)


def _take_image_size(experiment: DetectExperiment, start: weights.Weights, decisions: Decisions) -> None:
    if start.imgsz is not None and not _is_typed(experiment, "train.imgsz"):
        experiment.train.imgsz = start.imgsz
        decisions.record("train.imgsz", start.imgsz, "the size that the weights were trained with")


def _compare_classes(experiment: DetectExperiment, start: weights.Weights, dataset: DetectionSet) -> None:
    """Other classes are normal when fine-tuning and an error when evaluating."""
    assert start.names is not None
    if start.names == dataset.names or (experiment.ultralytics.single_cls and len(start.names) == 1):
        return
    if experiment.mode in ("train", "check", *SHOWING):
        shared = len(set(start.names) & set(dataset.names))
        log.info(
            "The weights know %d classes, the data %d, %d by the same name: the head is replaced where they differ",
            len(start.names), len(dataset.names), shared,
        )  # fmt: skip
    elif len(start.names) != len(dataset.names):
        raise InputError(
            Problem(
                "model.weights",
                f"{len(start.names)} classes ({_some(start.names)})",
                f"the data has {len(dataset.names)} ({_some(dataset.names)})",
                "use weights that were trained on these classes",
            )
        )
    else:
        log.warning("Class names differ: weights %s, data %s; compared by number", start.names, dataset.names)


def _some(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _decide_batch(
    experiment: DetectExperiment,
    machine: Machine,
    device: str,
    dataset: DetectionSet | None,
    start: weights.Weights,
    cache_dir: Path,
    decisions: Decisions,
) -> None:
    """Decide the images per forward pass; what a run would refuse is refused before anything is measured."""
    train, asked = experiment.train, experiment.train.batch
    table = choose_batch("auto" if asked == "probe" else asked, machine=machine, device=device, imgsz=train.imgsz,
                         tier_batch=experiment.origin.tier_batch)  # fmt: skip
    if asked != "probe":
        _take(train, "batch", table, decisions)
        return
    train.batch = table.value
    if experiment.mode == "train" and dataset is not None:
        problems = refused(experiment, start, dataset, processes=num_sharing(experiment))
        if problems:
            raise InputError(problems)
        found = probe_batch(experiment, machine, device, dataset, start, cache_dir)
    elif device == "cpu":
        found = [cpu_batch(experiment)]
    else:
        found = [replace(table, reason=f"mode={experiment.mode} measures nothing; {table.reason}")]
    for decision in found:
        decisions.record(decision.key, decision.value, decision.reason)
    train.batch = found[0].value


def _decide_loading(
    experiment: DetectExperiment,
    machine: Machine,
    device: str,
    dataset: DetectionSet | None,
    cache_dir: Path,
    decisions: Decisions,
    num_composed: int,
) -> None:
    """Decide the validation's batch, workers and cache; the batch is a number already."""
    train = experiment.train
    number = int(train.batch)
    train.val_batch = train.val_batch or 2 * number
    workers = choose_workers(train.workers, machine, batch_bytes=3 * train.val_batch * train.imgsz**2)
    _take(train, "workers", workers, decisions)
    if device == "cpu" and train.amp:
        decisions.record("train.amp", False, "no effect on a CPU")
        train.amp = False
    if dataset is None:
        return
    ram_bytes, disk_bytes = _cache_bytes(dataset, train.imgsz, cache_dir)
    ram_bytes *= num_sharing(experiment)  # each process keeps its own
    cache = choose_cache(
        str(train.cache), ram_bytes=ram_bytes, disk_bytes=disk_bytes, machine=machine, cache_dir=cache_dir
    )
    _take(train, "cache", cache, decisions)
    if "train" in dataset.splits and experiment.origin.resume_from is None:  # a resumed run keeps its own
        images = len(dataset.splits["train"].images) + num_composed
        count = num_sharing(experiment)
        step = effective_batch(number * count, train.nbs, images)
        if step != train.nbs:
            shared = f"{count} x " if count > 1 else ""
            reason = (
                f"the multiple of {shared}train.batch={number} nearest to train.nbs={train.nbs}, within {images} images"
            )
            decisions.record("effective batch", step, reason)
        log.info("Effective batch %d, learning rate %s", step, experiment.optimizer.lr0 or "by optimizer=auto")


def _decide_epochs(
    experiment: DetectExperiment, dataset: DetectionSet, synthesis: Synthesis | None, decisions: Decisions
) -> None:
    """Turn a budget of steps into epochs, and let what depends on their number follow.

    Raises:
        InputError: There are too few for what is asked.
    """
    train, optimizer = experiment.train, experiment.optimizer
    if train.max_steps is None:
        return
    batch, real = int(train.batch) * num_sharing(experiment), len(dataset.splits["train"].images)

    def steps(epochs: int) -> int:
        composition = synthesis.composition(epochs) if synthesis is not None else None
        images = composition.images(0) if composition is not None else real
        return Schedule(
            epochs=epochs,
            num_images=images,
            batch=batch,
            effective_batch=effective_batch(batch, train.nbs, images),
            lrf=optimizer.lrf,
            cosine=train.cos_lr,
            warmup_epochs=optimizer.warmup_epochs,
            warmup_bias_lr=optimizer.warmup_bias_lr,
            warmup_momentum=optimizer.warmup_momentum,
            momentum=optimizer.momentum or 0.0,
            images_in=composition.images if composition is not None else None,
        ).num_steps

    decide_epochs(train, steps, decisions)
    made: list[Decision] = []
    problems = check_epochs(experiment, set(experiment.origin.typed), made)
    if problems:
        raise InputError(problems)
    for decision in made:
        decisions.record(decision.key, decision.value, decision.reason)


def _cache_bytes(dataset: DetectionSet, imgsz: int, cache_dir: Path) -> tuple[int, int]:
    """Return what a cache of the decoded images takes in memory, and what is still to be written for one on disk."""
    shapes = np.concatenate([split.shapes for split in dataset.splits.values()])
    scale = imgsz / shapes.max(axis=1)
    ram_bytes = int((np.ceil(shapes * scale[:, None]).prod(axis=1) * 3).sum())
    stored = {path.stem for path in (cache_dir / "images").glob("*.npy")}
    hashes = [h for split in dataset.splits.values() for h in split.hashes]
    missing = np.array([h not in stored for h in hashes])
    return ram_bytes, int((shapes.prod(axis=1) * 3 * missing).sum())


def _fitting_cache(dataset: DetectionSet | None, imgsz: int, cache_dir: Path, machine: Machine) -> str:
    """Return where `train.cache=auto` would keep the images on a machine."""
    if dataset is None:
        return "none"
    ram_bytes, disk_bytes = _cache_bytes(dataset, imgsz, cache_dir)
    decision = choose_cache("auto", ram_bytes=ram_bytes, disk_bytes=disk_bytes, machine=machine, cache_dir=cache_dir)
    return str(decision.value)


def _make_absolute(experiment: DetectExperiment) -> None:
    """Paths in the saved configuration do not depend on where the command was typed."""
    experiment.output_dir = str(Path(experiment.output_dir).expanduser().absolute())
    if experiment.data.path not in DEMO_SETS:
        experiment.data.path = str(Path(experiment.data.path).expanduser().absolute())
    if experiment.data.cache_dir is not None:
        experiment.data.cache_dir = str(Path(experiment.data.cache_dir).expanduser().absolute())
    for key in ("annotated_dir", "masks_dir", "backgrounds_dir", "distractors_dir"):
        folder = getattr(experiment.synthetic, key)
        if folder not in (None, DEMO):
            setattr(experiment.synthetic, key, str(Path(folder).expanduser().absolute()))
    experiment.model.weights_dirs = [str(Path(d).expanduser().absolute()) for d in experiment.model.weights_dirs]
