"""What a supervised child does: it prepares for its parent's death, works, and leaves letters for the parent.

`supervisor` forks and calls `work`; `execution` announces the run's directory. The letters lie in an unnamed file that
both have open: unlike a pipe it cannot fill up, and what a killed child left can be read after its end.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

from hsr_train.errors import HsrTrainError, RunError, Terminated

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
RUN_DIR, OUTCOME = "run directory", "outcome"
EASIER_TO_KILL = 100  # in thousandths of the memory, as the kernel scores processes
_LENGTH = struct.Struct("<Q")

_letters: Letters | None = None  # to the parent of this process; None where nobody supervises


class Letters:
    """Sent by the child, read by the parent when the child has ended; one torn by the child's death does not count."""

    def __init__(self) -> None:
        # In memory where that can be had, since the disk may be full.
        self._file = os.memfd_create("hsr_train") if hasattr(os, "memfd_create") else _unnamed_file()
        self.run_dir: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._file)

    def send(self, subject: str, content: Any) -> None:
        """Send something that can be pickled."""
        letter = pickle.dumps((subject, content))
        with open(self._file, "wb", closefd=False) as file:  # noqa: PTH123 (a descriptor is no path)
            file.write(_LENGTH.pack(len(letter)) + letter)

    def read(self) -> dict[str, Any]:
        """Return what was sent, by subject."""
        os.lseek(self._file, 0, os.SEEK_SET)
        with open(self._file, "rb", closefd=False) as file:  # noqa: PTH123
            data = file.read()
        found: dict[str, Any] = {}
        while len(data) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data)
            letter, data = data[_LENGTH.size :][:length], data[_LENGTH.size + length :]
            if len(letter) == length:
                found.update([pickle.loads(letter)])
        return found


def announce(run_dir: Path) -> None:
    """Tell the parent, if there is one, that a run has its directory and its records: from now on it can go on."""
    if _letters is not None:
        _letters.run_dir = run_dir
        _letters.send(RUN_DIR, run_dir)


def work(execute: Callable[[Any], Any], experiment: Any, letters: Letters, parent: int, mask: set[int]) -> NoReturn:
    """Execute an experiment in a child that was just forked, and leave with its exit status.

    It leaves by SystemExit, not `os._exit`, so that everything above it is unwound and what was registered for the
    process's end runs.

    Args:
        execute: What to call.
        experiment: Its argument.
        letters: Where the outcome goes.
        parent: The parent's process number.
        mask: Signals to block while working; others are held back until all is ready for them.
    """
    global _letters
    status = 1
    try:
        outcome: Any = None
        try:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:
                raise Terminated  # it died before it could be said what should happen then
            faulthandler.enable()
            _be_killed_first()
            _letters = letters
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            outcome, status = execute(experiment), 0
        except HsrTrainError as error:
            outcome, status = error, error.exit_status
        except (KeyboardInterrupt, SystemExit) as stop:
            outcome, status = stop, exit_status(stop)
        except Exception as defect:
            sys.excepthook(*sys.exc_info())
            outcome, status = _described(defect, letters.run_dir), 1
        letters.send(OUTCOME, outcome)
    except Exception:  # Above, Hydra would take it for a failed job and start the next one here.
        sys.excepthook(*sys.exc_info())
    raise SystemExit(status)


def exit_status(stop: BaseException) -> int:
    """Return the exit status of what ends a command without being an error."""
    if isinstance(stop, SystemExit):
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 143 if isinstance(stop, Terminated) else 130


def prctl(option: int, value: int) -> None:
    """Call Linux' prctl; a kernel or sandbox without the option leaves things as they are."""
    ctypes.CDLL(None).prctl(ctypes.c_int(option), *(ctypes.c_ulong(number) for number in (value, 0, 0, 0)))


def _be_killed_first() -> None:
    """Let the kernel prefer this process and its loader workers to the parent, and to the robot's other programs."""
    path = Path("/proc/self/oom_score_adj")
    with suppress(OSError):
        score = int(path.read_text())
        if score > -1000:  # that one means never
            path.write_text(str(min(score + EASIER_TO_KILL, 1000)))


def _described(defect: Exception, run_dir: Path | None) -> RunError:
    where = "above" if run_dir is None else f"above and in {run_dir / 'logs' / 'train.log'}"
    how = "" if run_dir is None else f" To go on: python -m hsr_train resume={run_dir}"
    return RunError(f"A defect ended the run: {type(defect).__name__}: {defect}. Its traceback stands {where}.{how}")


def _unnamed_file() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
