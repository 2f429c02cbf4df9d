"""A training run in a child process, watched by a parent that stays small: it outlives what the kernel kills.

`cli` hands it each training job of the command. The parent waits, passes signals on, and ends as the child ended. If
the kernel killed the child for lack of memory, the run goes on in a new child from its last state; that child finds
`Origin.killed` set and takes the next rung of the ladder (`recovery`). Any other death is reported, not repeated.
`supervised_child` is the other half: what the child does, and the letters that it leaves for the parent.

The child is forked, before anything heavy is imported, and stays in the parent's process group: Ctrl-C and Ctrl-Z in a
terminal reach both, and SIGKILL of the group leaves nobody. Only Linux counts the kernel's kills. Elsewhere, in a
process with threads or torch, and from `hsr_train.execute`, the run is in the process that asks for it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from hsr_train.config.schema import Experiment
from hsr_train.errors import HsrTrainError, RunError
from hsr_train.hardware.oom_kills import OomKills, read_oom_kills
from hsr_train.processes import num_processes
from hsr_train.recovery import ADVICE, KILLED
from hsr_train.run.atomic import write_json
from hsr_train.run.changes import HOST_MEMORY, RESUMED, read_changes
from hsr_train.run.directory import RunDirectory
from hsr_train.run.log import attach_file, detach_file
from hsr_train.run.status import read_status
from hsr_train.supervised_child import OUTCOME, PR_SET_CHILD_SUBREAPER, RUN_DIR, Letters, prctl, work

log = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SI_KERNEL = 0x80  # the signal came from the kernel: a terminal's keys or its end, which reach the whole group
ORPHANS_END_S = 10.0


class ProcessDiedError(RunError):
    """The training process died without a word. Exit status: 128 and the signal's number, as shells have it."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


@dataclass(frozen=True)
class _End:
    """How a child ended.

    Attributes:
        letters: What it said: its run's directory, if it got that far; what its work returned, or the exception that
            ended it, unless it died before.
        code: Its exit status; the negative number of the signal that killed it.
        stop: The last signal that asked for the end.
        kills: The counts of the kernel's kills at its start and after its end.
    """

    letters: dict[str, Any]
    code: int
    stop: int | None
    kills: tuple[OomKills | None, OomKills | None]

    @property
    def run_dir(self) -> Path | None:
        """The run's directory, if it got that far."""
        return self.letters.get(RUN_DIR)

    @property
    def for_memory(self) -> bool:
        """Whether the kernel killed it for lack of memory."""
        before, after = self.kills
        known = before is not None and after is not None and before.source == after.source
        return self.code == -signal.SIGKILL and known and after.count > before.count  # type: ignore[union-attr]


def supervised(
    execute: Callable[[Any], Any], experiment: Experiment, compose: Callable[[list[str]], Experiment]
) -> Any:
    """Return what `execute(experiment)` returns in a child, or raise what it raises there.

    A mode other than train, and a process that cannot be forked safely, runs it here. The traceback of a defect is
    printed by the child; here it becomes a RunError.

    Args:
        execute: Imports what is heavy when it is called.
        experiment: What to run.
        compose: Makes the experiment of some overrides, to go on with a run.

    Raises:
        ProcessDiedError: A signal killed the child.
        RunError: The kernel killed it for lack of memory, and it is not started again.
    """
    obstacle = _obstacle()
    if obstacle is not None:
        log.debug("The run is not supervised: %s", obstacle)
    if obstacle is not None or experiment.mode != "train":
        return execute(experiment)
    restarts = 0
    while True:
        end = _run(execute, experiment)
        if OUTCOME in end.letters:
            return _deliver(end)
        _refuse_restart(end, experiment, restarts)
        assert end.run_dir is not None
        restarts += 1
        run = RunDirectory(end.run_dir)
        text = f"{_killed_for_memory(end)}. Going on from its last state with less"
        _note(run, logging.WARNING, text)
        log.warning("%s", text)
        started = experiment.origin.started
        experiment = compose([f"resume={run.path}", *_typed_again(experiment, run)])
        experiment.origin.killed, experiment.origin.started = True, started


def _obstacle() -> str | None:
    """Return why this process must not be forked for a run, or None."""
    if num_processes() > 1:
        return "several processes train together, and end together"
    if sys.platform != "linux":
        return "only Linux counts what the kernel kills for memory"
    if "torch" in sys.modules:
        return "torch is loaded already"
    if len(list(Path("/proc/self/task").iterdir())) > 1:
        return "the process has threads"
    return None


def _run(execute: Callable[[Any], Any], experiment: Experiment) -> _End:
    """Run it in a child, and wait for the child's end."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the child leaves behind becomes ours to end
    this = psutil.Process()
    others = set(this.children(recursive=True))
    kills = read_oom_kills()
    with Letters() as letters, _signals_held() as (held, mask):
        sys.stdout.flush()
        sys.stderr.flush()
        try:
            pid = os.fork()
        except OSError as error:
            raise RunError(f"cannot start the training process: {error.strerror or error}") from error
        if pid == 0:
            work(execute, experiment, letters, this.pid, mask)
        code, stop = _wait(pid, held)
        read = letters.read()
    if code < 0:
        _end_orphans(this, others)
    return _End(read, code, stop, (kills, read_oom_kills()))


@contextmanager
def _signals_held() -> Iterator[tuple[set[int], set[int]]]:
    """Keep signals for `_wait`; yield those and the mask as it was. What the user ignores (nohup) stays ignored."""
    held: set[int] = {signal.SIGCHLD, *(stop for stop in STOPS if signal.getsignal(stop) != signal.SIG_IGN)}
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would lose the child's status
    mask = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, held)}
    try:
        yield held, mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, before)


def _wait(pid: int, held: set[int]) -> tuple[int, int | None]:
    """Wait for a child's end, passing on what asks it to stop; return its exit code and the last such signal."""
    stop = None
    while True:
        info = signal.sigwaitinfo(held)
        if info.si_signo != signal.SIGCHLD:
            stop = info.si_signo
            if info.si_code != SI_KERNEL:
                os.kill(pid, stop)  # from `kill`; where that meant the group, the child takes both for one
            continue
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), stop


def _end_orphans(this: psutil.Process, others: set[psutil.Process]) -> None:
    """End what a killed child left: loader workers hold its memory until they notice, which takes them seconds."""
    orphans = [process for process in this.children(recursive=True) if process not in others]
    for process in orphans:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(orphans, timeout=ORPHANS_END_S)


def _deliver(end: _End) -> Any:
    if end.code < 0:
        log.warning("The training process was killed by %s after its work was done", _named(-end.code))
    outcome = end.letters[OUTCOME]
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _refuse_restart(end: _End, experiment: Experiment, restarts: int) -> None:
    """Raise how the child died, unless it was killed for memory and may be started again."""
    error: RunError | None = None
    if not end.for_memory:
        error = _death(end, experiment)
    else:
        reason = _reason_to_stop(end, experiment, restarts)
        if reason is not None:
            error = RunError(f"{_killed_for_memory(end)}{reason}.{_how_to_go_on(end, experiment)}")
    if error is not None:
        if end.run_dir is not None:
            _note(RunDirectory(end.run_dir), logging.ERROR, str(error), error.exit_status)
        raise error


def _reason_to_stop(end: _End, experiment: Experiment, restarts: int) -> str | None:
    """Return why a run does not go on that the kernel killed for memory, as the rest of a sentence."""
    help_, most = f"What would help: {ADVICE[HOST_MEMORY]}", experiment.recovery.max_retries
    if end.run_dir is None:
        return f", before training began. {help_}"
    if end.stop is not None:
        return ", while it was being stopped"
    if not experiment.recovery.enabled:
        return f". Recovery is off: type recovery.enabled=true, or {ADVICE[HOST_MEMORY]}"
    if restarts < most:
        return None
    rungs = [change for change in read_changes(RunDirectory(end.run_dir).changes) if change.place == KILLED]
    given_up = "; ".join(f"{change.key} {change.before} -> {change.after}" for change in rungs) or "nothing"
    spent = f"recovery.max_retries={most} allows no further restart by this command"
    return f", and {spent}. Given up so far: {given_up}. {help_}"


def _killed_for_memory(end: _End) -> str:
    epoch = end.run_dir and (read_status(RunDirectory(end.run_dir).status) or {}).get("epoch")
    when = f" after epoch {epoch}" if epoch else ""
    return f"The kernel killed the training process for lack of memory{when}"


def _death(end: _End, experiment: Experiment) -> ProcessDiedError:
    if end.code >= 0:
        how, status = f"ended with status {end.code} without a word", end.code or 1
    elif end.code == -signal.SIGKILL:
        counted = "not by the kernel for lack of memory as far as its counts tell"
        unknown = "by the kernel for lack of memory or by somebody: this system does not count the kernel's kills"
        how, status = f"was killed by SIGKILL, {counted if end.kills[1] else unknown}", 128 - end.code
    else:
        how, status = f"was killed by {_named(-end.code)}", 128 - end.code
    return ProcessDiedError(f"The training process {how}.{_how_to_go_on(end, experiment)}", status)


def _named(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal has no name


def _how_to_go_on(end: _End, experiment: Experiment) -> str:
    run_dir = end.run_dir or experiment.origin.resume_from
    return f" To go on: python -m hsr_train resume={run_dir}" if run_dir else ""


def _typed_again(experiment: Experiment, run: RunDirectory) -> list[str]:
    """Return what was typed on resume, which the child may not have recorded; without what recovery changed since."""
    origin = experiment.origin
    if origin.resume_from is None:
        return []
    since = read_changes(run.changes)[len(origin.changes) :]
    left_out = {"resume", "output_dir", *(change.key for change in since if change.cause != RESUMED)}
    return [line for line in origin.overrides if line.partition("=")[0].lstrip("+") not in left_out]


def _note(run: RunDirectory, level: int, text: str, exit_status: int | None = None) -> None:
    """Write how a child died into the run's log; with an exit status, also into status.json: nobody goes on."""
    try:
        with run.lock():
            handler = attach_file(run.train_log)
            handler.handle(log.makeRecord(log.name, level, __file__, 0, text, (), None))
            detach_file(handler)
            status = read_status(run.status)
            if exit_status is not None and status is not None:
                now = datetime.now().astimezone().isoformat(timespec="milliseconds")
                ended = {"state": "failed", "updated": now, "message": text, "exit_status": exit_status}
                write_json(run.status, status | ended)
    except HsrTrainError as error:  # the disk is full, or another command is already going on with the run
        log.warning("The end of the training process is not recorded: %s", error)
