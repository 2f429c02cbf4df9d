"""What a run's directory receives before and after an engine's work: what it is made of, and how it ended.

`execution` calls this in its order; the forms of the files are the matter of `run/`.
"""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from datetime import datetime
from typing import Any, cast

import yaml

from hsr_train.config import saved
from hsr_train.engines.base import Plan, Result
from hsr_train.errors import HsrTrainError, RunError, Terminated
from hsr_train.hardware import choose_workers, detect
from hsr_train.hardware.gpus import GIB
from hsr_train.recovery import Recovery
from hsr_train.run.atomic import write_json, write_text
from hsr_train.run.changes import PLANNED
from hsr_train.run.data_files import write_data_files
from hsr_train.run.directory import RunDirectory
from hsr_train.run.manifest import read_manifest
from hsr_train.run.record import RunRecord, write_summary, write_training_result
from hsr_train.run.results import ResultsTable
from hsr_train.run.status import read_status
from hsr_train.run.throughput import NEWER_COLUMNS, TIMING_COLUMNS, Setup, bottleneck, summarise

log = logging.getLogger(__name__)


def write_inputs(plan: Plan, run: RunDirectory, manifest: dict[str, Any], resuming: bool) -> None:
    """Record what the run is made of, before it starts."""
    experiment, origin = plan.experiment, plan.experiment.origin
    if resuming:
        first = read_manifest(run)
        changed = {k: v for k, v in manifest.items() if k in ("created", "command", "host", "packages", "decisions")}
        first.setdefault("resumes", []).append(changed)
        manifest = first
    else:
        folders = {"train": (run.weights, run.state, run.plots), "validate": (run.plots,)}
        for folder in (run.hydra_dir, *folders.get(experiment.mode, ())):
            folder.mkdir(exist_ok=True)
        write_text(run.hydra_dir / "config.yaml", origin.config_yaml)
        write_text(run.hydra_dir / "overrides.yaml", yaml.safe_dump(origin.overrides, allow_unicode=True))
        write_text(run.hydra_dir / "hydra.yaml", origin.hydra_yaml)
        if experiment.mode == "train":
            write_data_files(run.data_files, plan.data_files())
        manifest = manifest | {"config": saved.plain(experiment)}
    write_json(run.manifest, manifest)
    if not resuming:  # a resumed run's configuration changes when its state has been read: `Recovery.begin`
        write_text(run.config_yaml, saved.dump(experiment))


def earlier_seconds(run: RunDirectory) -> float:
    """Return how long the epochs took that a resumed run has behind it."""
    return sum(row["epoch_s"] for row in timings_of(run))


def timings_of(run: RunDirectory) -> list[dict[str, float]]:
    """Return the seconds of a run's epochs, those of training and validation, and their images, from timings.csv."""
    names = ("epoch_s", "val_s", "train_s", "images_per_s")
    if not run.timings_csv.is_file():
        return []
    with run.timings_csv.open(newline="", encoding="utf-8") as file:
        return [{name: float(row.get(name) or 0) for name in names} for row in csv.DictReader(file)]


def throughput(plan: Plan, run: RunDirectory, recovery: Recovery, before: int) -> dict[str, Any] | None:
    """Return how fast the training was and what held it up, and log it; None if no epoch was recorded.

    Args:
        plan: The run's.
        run: Its directory.
        recovery: What was given up on the way.
        before: Epochs that an earlier process recorded.
    """
    if not run.timings_csv.is_file():
        return None
    try:
        rows = ResultsTable(run.timings_csv, TIMING_COLUMNS, NEWER_COLUMNS).rows()
    except HsrTrainError as error:  # what ended the run matters more
        log.debug("%s", error)
        return None
    # Another number of epochs makes no epoch faster or slower.
    changed = [change.epoch - 1 for change in recovery.changes if change.cause != PLANNED]
    figures = summarise(rows, max(before, 0, *changed))
    if figures is None:
        return None
    train, machine = cast(Any, plan.experiment).train, detect()
    batch_bytes = 3 * int(train.val_batch) * int(train.imgsz) ** 2
    lowest = min((row["host_available_gib"] for row in rows if row["host_available_gib"] is not None), default=0)
    setup = Setup(
        device=plan.device,
        cores=machine.cores,
        workers=train.workers,
        most_workers=int(choose_workers(machine.cores, machine, batch_bytes=batch_bytes).value),
        cache=str(train.cache),
        fitting_cache=plan.fitting_cache(replace(machine, ram_available_bytes=int(lowest * GIB))),
        batch=train.batch,
        val_batch=train.val_batch,
        imgsz=train.imgsz,
        given_up=frozenset(change.key for change in recovery.rungs),
    )
    advice = bottleneck(figures, setup)
    log.info("Throughput: %s", figures.describe())
    if advice is not None:
        log.info("Bottleneck: %s", advice)
    return {
        "images_per_s": figures.images_per_s,
        "epoch_s": figures.epoch_s,
        "wait_share": figures.wait_share,
        "bottleneck": advice,
    }


def peak_vram_gb(run: RunDirectory) -> float | None:
    """Return the most memory that torch held on a GPU in any epoch, in units of 1e9 bytes; None on a CPU.

    All epochs of timings.csv count, those before a resume included.
    """
    if not run.timings_csv.is_file():
        return None
    try:
        rows = ResultsTable(run.timings_csv, TIMING_COLUMNS, NEWER_COLUMNS).rows()
    except HsrTrainError as error:  # as in `throughput`
        log.debug("%s", error)
        return None
    peak_gib = max((row["gpu_memory_gib"] for row in rows if row["gpu_memory_gib"] is not None), default=None)
    return None if peak_gib is None else round(peak_gib * GIB / 1e9, 4)


def so_far(run: RunDirectory) -> Result:
    """Return what a run had achieved when it was cut short."""
    epoch = (read_status(run.status) or {}).get("epoch")
    best, last = (f"weights/{name}.pt" if (run.weights / f"{name}.pt").is_file() else None for name in ("best", "last"))
    return Result(run_dir=run.path, epochs_completed=int(epoch or 0), best_model_path=best, last_model_path=last)


def make_record(
    plan: Plan,
    result: Result,
    system: dict[str, Any],
    outcome: str,
    error: str | None,
    training_time_s: float,
    url: str | None,
    run: RunDirectory,
) -> RunRecord:
    """Put together what is known about a run at its end."""
    ended = datetime.now().astimezone()
    started = datetime.fromisoformat((read_status(run.status) or {}).get("started") or ended.isoformat())
    config: dict[str, Any] = yaml.safe_load(saved.dump(plan.experiment))
    return RunRecord(
        status=outcome,
        started=started,
        ended=ended,
        training_time_s=training_time_s,
        epochs_completed=result.epochs_completed,
        epochs=config.get("train", {}).get("epochs"),
        metrics=result.metrics,
        config=config,
        system=system,
        best_model_path=result.best_model_path,
        last_model_path=result.last_model_path,
        tensorboard_url=url,
        exports=result.exports,
        best_epoch=result.best_epoch,
        latency_ms=result.latency_ms,
        peak_vram_gb=peak_vram_gb(run),
        error=error,
        extra=result.extra,
    )


def write_end(run: RunDirectory, record: RunRecord) -> None:
    """Write how the run ended; of a failed one only as far as a failing disk allows."""
    if record.status == "completed":
        write_training_result(run, record)
        write_summary(run, record)
    elif run.config_yaml.is_file():
        try:
            write_summary(run, record)
        except RunError as error:
            log.debug("%s", error)


def describe(failure: BaseException) -> str:
    """Return in one line what ended a run."""
    if isinstance(failure, Terminated):
        return "stopped by SIGTERM"
    return "stopped by Ctrl-C" if isinstance(failure, KeyboardInterrupt) else f"{type(failure).__name__}: {failure}"


def write_down(error: BaseException, handler: logging.Handler) -> None:
    """Put how a run ended into its train.log; the console gets it from whoever catches the error."""
    meant_for_users = isinstance(error, (HsrTrainError, KeyboardInterrupt))
    trace = None if meant_for_users else (type(error), error, error.__traceback__)
    text = str(error) if isinstance(error, HsrTrainError) else describe(error)
    handler.handle(log.makeRecord(log.name, logging.ERROR, __file__, 0, text, (), trace))
