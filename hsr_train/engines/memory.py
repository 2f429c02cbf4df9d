"""Running out of memory, as torch and its loaders report it, and how an attempt is repeated with less.

Shared by the engines that use torch; what is given up is decided by `hsr_train.recovery`.
"""

from __future__ import annotations

import errno
import gc
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import torch

from hsr_train.errors import RunError
from hsr_train.recovery import DivergedError, Recovery, ReplayDueError
from hsr_train.run.atomic import DISK_FULL
from hsr_train.run.changes import DIVERGED, GPU_MEMORY, HOST_MEMORY

log = logging.getLogger(__name__)

T = TypeVar("T")

# An error of a loader worker arrives as text, at times under another type.
_GPU = re.compile(r"(CUDA|cuBLAS|CUBLAS|cuDNN|CUDNN|HIP)\b.{0,80}(out of memory|ALLOC_FAILED|ALLOCATION_FAILED)", re.S)
_HOST = re.compile(
    r"can't allocate memory|not enough memory|MemoryError|Insufficient memory|unable to mmap|Cannot allocate memory"
    r"|shared memory object|is killed by signal: (Killed|Bus error)|out of shared memory"
    r"|unable to (write to|allocate) .{0,80}(No space left|shared memory)|/torch_\S+.{0,40}No space left",
    re.S,
)


def peak_gpu_gib(device: torch.device) -> float | None:
    """Return the most memory that torch has held on a GPU since the last call; None on a CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_reserved(device) / 2**30
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def cause_of(error: BaseException) -> str | None:
    """Return which memory an error says is exhausted, or that numbers went wrong; None for any other error."""
    if isinstance(error, DivergedError):
        return DIVERGED
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return GPU_MEMORY
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return HOST_MEMORY
    if isinstance(error, (RuntimeError, OSError)) or type(error).__module__.startswith("cv2"):
        text = str(error)
        if "exited unexpectedly" in text and error.__cause__ is not None:  # how a loader announces a worker's death
            return cause_of(error.__cause__)
        return GPU_MEMORY if _GPU.search(text) else HOST_MEMORY if _HOST.search(text) else None
    return None


def persevere(attempt: Callable[[], T], recovery: Recovery, *, only: str | None = None) -> T:
    """Repeat an attempt, giving something up each time, until memory suffices.

    Args:
        attempt: Starts from the last saved state; calls `recovery.at` on its way. Nothing of a failed attempt may be
            held by the caller, since its memory must be free before the next one.
        recovery: Decides what to give up.
        only: The one rung after which this attempt can be repeated; any other is left to the caller's caller.

    Raises:
        RunError: Nothing is left to give up.
    """
    while True:
        try:
            return attempt()
        except Exception as error:
            cause = cause_of(error)
            if cause is None and not isinstance(error, ReplayDueError):
                raise
            if only is not None and recovery.next_rung(cause) != only:
                raise
            log.debug("%s (%s)", type(error).__name__, recovery.place, exc_info=error)
            rate = error.rate if isinstance(error, DivergedError) else None
            _forget(error)
        free_memory()
        recovery.take(cause, rate=rate)


def rehearse(export: Callable[[Path], object]) -> None:
    """Export into a folder that is removed again, to know how long it takes; what fails is said in time."""
    log.info("Trying the export, to know how long it takes")
    with TemporaryDirectory(prefix="hsr_train_") as folder:
        export(Path(folder))


@contextmanager
def data_errors_named(epoch: int) -> Iterator[None]:
    """Say in one line that the data cannot be read any more; shortages and full disks pass as they are.

    Args:
        epoch: Counted from 1.

    Raises:
        RunError: Reading failed.
    """
    try:
        yield
    except OSError as error:
        if cause_of(error) is not None or error.errno in DISK_FULL:
            raise
        cause = str(error).strip().splitlines()[-1]  # a loader worker's error has its traceback as text
        raise RunError(f"The data cannot be read any more in epoch {epoch}: {cause}") from error


def free_memory() -> None:
    """Give back what nothing refers to any more: cycles first, then the GPU's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _forget(error: BaseException | None) -> None:
    """Let go of the frames of an error and of those behind it: their variables hold the tensors of the attempt."""
    while error is not None:
        if error.__traceback__ is not None:
            traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
