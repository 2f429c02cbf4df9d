"""status.json: what a run is doing, kept fresh by a heartbeat, and whether the process behind it still lives.

`StatusWriter` is the outermost block of a run: the exception that leaves it decides the final state. `directory`
reads the file to find runs that can be continued.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import psutil

from hsr_train.errors import HsrTrainError, NotReproducedError, PrunedError, RunError, Terminated
from hsr_train.run.atomic import write_json

if TYPE_CHECKING:
    from hsr_train.run.directory import RunDirectory

log = logging.getLogger(__name__)

STALE_AFTER_S = 60.0


class StatusWriter:
    """Keeps status.json true while its block runs, and says at the end how the run ended.

    Leaving normally means completed (0), Ctrl-C interrupted (130), SIGTERM interrupted (143), a search that gives it up
    pruned, anything else failed with the error's exit status. A resumed run keeps its first start.

    Args:
        run: The run's directory; the caller holds its lock.
        mode: What runs (train, validate, …); only a training run can be resumed.
        clock: Seconds since the epoch; tests pass their own.
        interval_s: Seconds between heartbeats.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        mode: str = "train",
        clock: Callable[[], float] = time.time,
        interval_s: float = 5.0,
    ) -> None:
        self.path = run.status
        self._clock = clock
        self._interval_s = interval_s
        self._guard = threading.Lock()
        self._ending = threading.Event()
        self._ended = threading.Event()
        self._complained = False
        self._error: RunError | None = None
        before = read_status(self.path) or {}
        start = self._now()
        self._fields: dict[str, Any] = {
            "state": "running",
            "mode": mode,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "process": process_identity(os.getpid()),
            "started": before.get("started", start),
            "resumed": start if before else None,
            "updated": start,
            "epoch": before.get("epoch"),
            "epochs": before.get("epochs"),
            "message": "",
            "exit_status": None,
        }
        self._thread = threading.Thread(target=self._beat, name="status heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        state, exit_status, message = _outcome(error)
        with self._guard:
            self._fields.update(state=state, exit_status=exit_status, message=message)
        interrupt = self._join()
        if error is None and self._error is not None:
            raise self._error
        if error is None and interrupt is not None:
            raise interrupt

    def progress(self, **fields: Any) -> None:
        """Set `epoch`, `epochs`, `message` or further fields and write the file at once; meant for once an epoch.

        A disk that refuses is logged once and not raised: the run's own files decide whether it can go on.
        """
        with self._guard:
            self._fields.update(fields)
        self._try_write()

    def _now(self) -> str:
        return datetime.fromtimestamp(self._clock()).astimezone().isoformat(timespec="milliseconds")

    def _beat(self) -> None:
        while not self._ending.wait(self._interval_s):
            self._try_write()
        # The last word is written here and not in the main thread, where a second Ctrl-C could cut it short.
        try:
            self._write()
        except RunError as error:
            self._error = error
            level = logging.ERROR if self.path.parent.is_dir() else logging.DEBUG  # its removal is told elsewhere
            log.log(level, "The run's end is not recorded: %s", error)
        finally:
            self._ended.set()

    def _join(self) -> KeyboardInterrupt | None:
        """Wait for the last write; an impatient Ctrl-C is handed back instead of breaking it off."""
        interrupt = None
        self._ending.set()
        # Not join(): in Python 3.11 an interrupted join takes the thread for ended and returns at once from then on.
        while not self._ended.is_set():
            try:
                self._ended.wait()
            except KeyboardInterrupt as error:
                interrupt = error
        return interrupt

    def _try_write(self) -> None:
        try:
            self._write()
            self._complained = False
        except RunError as error:
            if not self._complained:
                log.warning("The status is not up to date: %s", error)
            self._complained = True

    def _write(self) -> None:
        """Write the file, and no directory for it: one that was removed stays away.

        Raises:
            RunError: The disk refused, or the run's directory is gone.
        """
        with self._guard:
            self._fields["updated"] = self._now()
            try:
                write_json(self.path, self._fields, make_folder=False)
            except FileNotFoundError as error:
                raise RunError(f"cannot write {self.path}: the run's directory is gone") from error
            except OSError as error:
                raise RunError(f"cannot write {self.path}: {error.strerror or error}") from error


def read_status(path: Path) -> dict[str, Any] | None:
    """Return the content of a status.json, or None if there is none that can be read."""
    with suppress(OSError, ValueError):
        status = json.loads(Path(path).read_text(encoding="utf-8"))
        if isinstance(status, dict):
            return status
    return None


def is_alive(status: dict[str, Any], *, now: float | None = None, stale_after_s: float = STALE_AFTER_S) -> bool:
    """Whether the process that wrote `status` still runs.

    On the same machine the process is looked up, its start included, so that a reused number is not mistaken for
    it. A status from another machine or container counts as alive while its heartbeat is fresh.

    Args:
        status: What `read_status` returned.
        now: Seconds since the epoch; default: the clock.
        stale_after_s: Age of a heartbeat from elsewhere that is still fresh.
    """
    if status.get("state") != "running":
        return False
    pid, theirs, own = status.get("pid"), status.get("process"), process_identity(os.getpid())
    if isinstance(pid, int) and isinstance(theirs, dict) and own is not None:
        here = status.get("host") == socket.gethostname() and theirs.get("space") == own["space"]
        if here:
            return process_identity(pid) == theirs
    try:
        updated = datetime.fromisoformat(str(status.get("updated"))).timestamp()
    except ValueError:
        return False
    return (time.time() if now is None else now) - updated < stale_after_s


def process_identity(pid: int) -> dict[str, Any] | None:
    """Return what tells the process `pid` from every other one that ever had this number, or None if there is none.

    Returns:
        `space`: in which boot and which namespace the number counts; `start`: ticks since boot. Ticks rather than
        wall time, since small computers set their clock minutes after booting.
    """
    try:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return None
        proc = Path("/proc")
        if not (proc / "self" / "stat").exists():
            return {"space": f"boot {psutil.boot_time():.0f}", "start": round(psutil.Process(pid).create_time())}
        boot = (proc / "sys/kernel/random/boot_id").read_text().strip()
        # The second field is the program's name in parentheses and may hold anything; the start is the 22nd.
        start = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
        return {"space": f"{boot} {Path('/proc/self/ns/pid').readlink()}", "start": start}
    except (OSError, psutil.Error):
        return None


def _outcome(error: BaseException | None) -> tuple[str, int, str]:
    """Return state, exit status and message for the exception that ended a run."""
    if error is None:
        return "completed", 0, ""
    if isinstance(error, NotReproducedError):
        return "completed", error.exit_status, str(error)
    if isinstance(error, PrunedError):
        return "pruned", error.exit_status, str(error)
    if isinstance(error, Terminated):
        return "interrupted", 143, "stopped by SIGTERM"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130, "stopped by Ctrl-C"
    if isinstance(error, HsrTrainError):
        return "failed", error.exit_status, str(error)
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        return ("completed" if code == 0 else "failed"), code, f"exit status {code}"
    return "failed", 1, f"{type(error).__name__}: {error}".strip()
