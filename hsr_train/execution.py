"""From a typed experiment to a recorded run: the path that the command and `hsr_train.execute` share.

Neighbours: `config/` made the experiment, an engine does the work, `run/` keeps the record. The directory is written
in order: configuration, manifest, the engine's files, training_result.json, summary.txt, and status.json last.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any, cast

from hsr_train import processes
from hsr_train.bookkeeping import (
    describe,
    earlier_seconds,
    make_record,
    so_far,
    throughput,
    timings_of,
    write_down,
    write_end,
    write_inputs,
)
from hsr_train.config import saved
from hsr_train.config.schema import Experiment
from hsr_train.decisions import Decisions
from hsr_train.engines.base import ComposingEngine, Engine, Plan, Result, RunContext, SharedEngine, Watch
from hsr_train.engines.registry import load_engine
from hsr_train.errors import HsrTrainError, InputError, Problem, PrunedError, RunError
from hsr_train.hardware import detect
from hsr_train.hardware.usage import UsageSampler
from hsr_train.pace import Pace, deadline_of, time_on_cores
from hsr_train.recovery import Recovery
from hsr_train.run.atomic import DISK_ERRORS, describe_disk_error, free_space, write_text
from hsr_train.run.changes import Change, write_changes
from hsr_train.run.directory import RunDirectory
from hsr_train.run.events import EventWriter, has_tag
from hsr_train.run.log import TrainLogHandler, attach_file, detach_file, duration, success
from hsr_train.run.manifest import build_manifest
from hsr_train.run.results import last_epoch
from hsr_train.run.status import StatusWriter
from hsr_train.run.tensorboard import TensorboardServer, serve_forever
from hsr_train.supervised_child import announce
from hsr_train.verification import Reproduction, check_fingerprints, comparison, require_states

log = logging.getLogger(__name__)

LEAST_FREE_BYTES = 16 * 2**20
LEAST_TIME_S = 10.0
"""Of a time budget, after the start: less cannot hold an epoch and what comes after it."""


def execute(experiment: Experiment, watch: Watch | None = None) -> Result:
    """Do what an experiment asks.

    Args:
        experiment: From `compose`; not changed.
        watch: Is told each epoch of a training, and may end it.

    Returns:
        What the run achieved; `run_dir` is None for mode=check, split, synthesize, compare and tensorboard, and in a
        process that only assists another one.

    Raises:
        InputError: The input is at fault; for most causes before a directory is made.
        RunError: The run could not go on, or, a NotReproducedError, a reproduction came out different.
    """
    processes.require_fit(experiment)
    if not processes.is_first():
        cast(SharedEngine, load_engine(experiment.task)).assist(experiment, detect())
        return Result(run_dir=None, status="assisted")
    output_dir = Path(experiment.output_dir).expanduser().absolute()
    if experiment.mode == "compare":
        print(comparison(experiment))
        return Result(run_dir=None, status="compared")
    if experiment.mode == "tensorboard":
        serve_forever(output_dir, experiment.tensorboard.host, experiment.tensorboard.port)
        return Result(run_dir=None)
    with _remembered_log() as remembered:
        reproduction = Reproduction(experiment) if experiment.origin.reproduce_from is not None else None
        engine, machine = load_engine(experiment.task), detect()
        decisions = Decisions(experiment.origin.decisions)
        for decision in decisions:  # on the console already, when the experiment was composed; now for train.log
            log.debug("Decided: %s", decision)
        if experiment.mode == "split":
            print("\n".join(engine.split(experiment, decisions)))
            return Result(run_dir=None, status="split")
        plan = engine.prepare(experiment, machine, decisions)
        manifest = build_manifest(
            decisions=plan.decisions,
            fingerprints=plan.fingerprints,
            machine=machine.record(),
            seeds=plan.seeds,
            command=sys.argv,
        )
        if reproduction is not None:
            reproduction.check_drift(plan, manifest)
        if experiment.mode == "check":
            print("\n".join([*plan.summary, *_promised(plan.experiment)]))
            return Result(run_dir=None, status="checked")
        if experiment.mode == "synthesize":
            print("\n".join(cast(ComposingEngine, engine).synthesize(plan)))
            return Result(run_dir=None, status="synthesized")
        resumed = experiment.origin.resume_from
        pace = _pace(plan.experiment, RunDirectory.open(Path(resumed)) if resumed is not None else None)
        if resumed is not None:
            run = RunDirectory.open(Path(resumed))
        else:
            label = experiment.preset if experiment.mode == "train" else experiment.mode
            _require_space(output_dir)
            place = experiment.origin.run_dir
            name = plan.run_name or RunDirectory.dated(label)
            run = RunDirectory.make(Path(place)) if place else RunDirectory.create(output_dir, experiment.task, name)
        with run.lock(), ExitStack() as stack:
            handler = attach_file(run.train_log)
            stack.callback(detach_file, handler)
            remembered.setTarget(handler)
            remembered.flush()
            stack.callback(remembered.setTarget, None)
            try:
                return _run(engine, plan, run, manifest, reproduction, stack, handler, pace, watch)
            except BaseException as error:
                write_down(error, handler)
                raise


def _require_space(output_dir: Path) -> None:
    """Refuse a disk on which not even a run's records fit, before a directory is made."""
    folder = next(f for f in (output_dir, *output_dir.parents) if f.exists())
    if shutil.disk_usage(folder).free < LEAST_FREE_BYTES:
        reason = f"the disk is full: {free_space(folder)}"
        raise InputError(
            Problem("output_dir", str(output_dir), reason, "make space, or output_dir=FOLDER on another disk")
        )


def _run(
    engine: Engine,
    plan: Plan,
    run: RunDirectory,
    manifest: dict[str, Any],
    reproduction: Reproduction | None,
    stack: ExitStack,
    handler: TrainLogHandler,
    pace: Pace,
    watch: Watch | None,
) -> Result:
    experiment, since = plan.experiment, time.monotonic()
    resuming = experiment.origin.resume_from is not None
    if resuming:
        require_states(run)
        check_fingerprints(plan, run)  # before anything is changed
    earlier_s = earlier_seconds(run)
    status = stack.enter_context(StatusWriter(run, mode=experiment.mode))
    if reproduction is not None:
        reproduction.start(run)
    write_inputs(plan, run, manifest, resuming)
    log.info("Run directory: %s", run.path)
    announce(run.path)
    url = _serve(experiment, run, stack)
    events = _events(experiment, run, resuming, stack)
    recovery = _recovery(experiment, run, events)
    before = last_epoch(run.timings_csv) or 0
    context = RunContext(run, status, events, recovery, resuming, handler, pace, _usage(plan, stack))
    context.watch = watch or context.watch
    outcome, error = "completed", None
    result = Result(run_dir=run.path)
    verbs = {"train": engine.train, "validate": engine.validate, "predict": engine.predict, "export": engine.export}
    if experiment.mode == "preview":
        verbs["preview"] = cast(ComposingEngine, engine).preview
    try:
        result = _perform(verbs[experiment.mode], plan, context)
        error = str(result.failure) if result.failure else None
    except BaseException as failure:
        outcome = _outcome_of(failure)
        error, result = describe(failure), so_far(run)
        if experiment.mode == "train" and run.config_yaml.is_file():
            when = " when the cause is gone" if outcome == "failed" else ""
            failure.add_note(f"To go on{when}: {processes.command()} resume={run.path}")
        raise
    finally:
        if experiment.mode == "train":
            training_time_s = earlier_s + time.monotonic() - since
            record = make_record(plan, result, manifest["machine"], outcome, error, training_time_s, url, run)
            record.recovery = [change.record() for change in recovery.rungs]
            record.throughput = throughput(plan, run, recovery, before)
            write_end(run, record)
    if reproduction is not None:
        reproduction.finish(engine, run, recovery)
    if result.failure is not None:
        raise result.failure
    if pace.late_s():
        log.warning("Late by %s: the machine was slower at the end than before", duration(pace.late_s()))
    success(log, "Done: %s", run.path)
    if reproduction is not None:
        reproduction.conclude()
    return result


def _outcome_of(failure: BaseException) -> str:
    if isinstance(failure, PrunedError):
        return "pruned"
    return "interrupted" if isinstance(failure, KeyboardInterrupt) else "failed"


def _perform(verb: Callable[[Plan, RunContext], Result], plan: Plan, context: RunContext) -> Result:
    """Let the engine work; say in one line if the run's directory or the disk fails it.

    Raises:
        RunError: The directory is gone, or a disk refused, whatever library wrote there.
    """
    try:
        result = verb(plan, context)
        context.require_records()  # a run without a part of its record is not completed
    except (OSError, HsrTrainError) as error:
        context.require_directory()
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise RunError(describe_disk_error(Path(error.filename or context.run.path), error)) from error
        raise
    return result


@contextmanager
def _remembered_log() -> Iterator[MemoryHandler]:
    """Keep what is logged before the run's directory exists, so that train.log holds it too."""
    package = logging.getLogger("hsr_train")
    package.setLevel(logging.DEBUG)  # whoever shows records chooses among them; see run/log.py
    handler = MemoryHandler(capacity=10_000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
    package.addHandler(handler)
    try:
        yield handler
    finally:
        package.removeHandler(handler)
        handler.close()


def _serve(experiment: Experiment, run: RunDirectory, stack: ExitStack) -> str | None:
    settings = experiment.tensorboard
    on_terminal = sys.stderr.isatty() and experiment.mode == "train"
    if not settings.enabled or not (settings.serve is True or (settings.serve == "auto" and on_terminal)):
        return None
    run.tensorboard.mkdir(exist_ok=True)
    try:
        server = stack.enter_context(TensorboardServer(run.tensorboard, settings.host, settings.port))
    except RunError as error:
        if settings.serve is True:
            raise
        log.warning("TensorBoard is not served: %s", error)
        return None
    log.info("TensorBoard: %s", server.url)
    return server.url


def _events(experiment: Experiment, run: RunDirectory, resuming: bool, stack: ExitStack) -> EventWriter | None:
    if not experiment.tensorboard.enabled or experiment.mode != "train":
        return None
    writer = stack.enter_context(EventWriter(run.tensorboard))
    if not resuming or not has_tag(run.tensorboard, "config"):  # it may have been killed before
        writer.text("config", f"```yaml\n{saved.dump(experiment)}\n```")
    return writer


def _promised(experiment: Experiment) -> list[str]:
    """Return the line that says when a run would be done that began now; none without a deadline."""
    now = time.time()
    deadline = deadline_of(experiment.train, now)  # type: ignore[attr-defined]
    if deadline is None:
        return []
    ends = datetime.fromtimestamp(deadline).astimezone()
    return [f"Begun now: done by {ends:%A %H:%M:%S}, in {duration(deadline - now)}; epochs follow from measured times"]


def _pace(experiment: Experiment, run: RunDirectory | None) -> Pace:
    """Return the time of a training; a run that goes on has the rest of its budget, unless a new one is typed."""
    if experiment.mode != "train":
        return Pace()
    origin, started = experiment.origin, experiment.origin.started or time.time()
    goes_on = run is not None and not origin.killed and "train.time_budget" not in origin.typed
    used_s = earlier_seconds(run) if goes_on and run is not None else 0.0
    deadline = deadline_of(experiment.train, started, used_s)  # type: ignore[attr-defined]
    pace = Pace(deadline, started, cores=time_on_cores)
    if pace.deadline is not None:
        ends = datetime.fromtimestamp(pace.deadline).astimezone()
        used = f"; earlier epochs took {duration(used_s)}" if used_s else ""
        log.info("To be done by %s, in %s%s", f"{ends:%A %H:%M:%S}", duration(max(pace.left_s, 0)), used)
        pace.require(LEAST_TIME_S)
        if run is not None:
            rows = timings_of(run)
            images = [round(row["images_per_s"] * row["train_s"]) for row in rows]
            pace.recall([row["epoch_s"] for row in rows], [row["val_s"] for row in rows], images)
    return pace


def _usage(plan: Plan, stack: ExitStack) -> UsageSampler | None:
    """Watch the machine until the run ends."""
    if plan.experiment.mode != "train":
        return None
    machine = detect()
    uuid = next((gpu.uuid for gpu in machine.gpus if f"cuda:{gpu.index}" == plan.device), None)
    return stack.enter_context(UsageSampler(uuid, machine.cores))


def _recovery(experiment: Experiment, run: RunDirectory, events: EventWriter | None) -> Recovery:
    def save(changes: Sequence[Change]) -> None:
        if changes:
            write_changes(run.changes, changes)
        write_text(run.config_yaml, saved.dump(experiment))

    def announce(change: Change) -> None:
        if events is not None:
            events.text("recovery", str(change), change.epoch)
            events.flush()

    origin = experiment.origin
    return Recovery(
        experiment, save, list(origin.changes), list(origin.replay), announce=announce, killed=origin.killed
    )
