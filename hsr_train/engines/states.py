"""state/epoch<N>.pt: what going on to the bit needs, in full precision. The newest two are kept.

A file is an ordinary torch file (safe loading) followed by one line with its SHA-256. An engine's `snapshot` copies
the tensors while training stands still; `Saver` serialises and writes them in a thread of its own while it goes on.
The state is an epoch's commit: weights files are written after it, and made again from it on resume. Shared by the
engines that use torch; each decides what its state holds, `version`, `epochs_done`, `model` and `ema` among it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import random
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.atomic import free_space, write_bytes
from hsr_train.run.directory import RunDirectory

log = logging.getLogger(__name__)

STATE_VERSION = 2
KEPT = 2
_BYTES_PER_PARAMETER = 16
"""Model, EMA and the two moments of an Adam-like optimizer, in float32."""
_MARK = b"\nhsr_train state sha256 "
_TRAILER_BYTES = len(_MARK) + 64 + 1
_NAME = re.compile(r"epoch(\d+)\.pt")


def copied(value: Any) -> Any:
    """Return nested containers with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.clone() if value.device.type == "cpu" else value.cpu()
    if isinstance(value, dict):
        return {k: copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(v) for v in value)
    return value


def write_state(folder: Path, state: dict[str, Any]) -> Path:
    """Write a snapshot with its checksum, and drop all but the newest `KEPT` states.

    Raises:
        RunError: The disk refused; the earlier states are untouched.
    """
    buffer = io.BytesIO()  # torch.save turns a full disk into an error of its own, write_bytes into a clear one
    torch.save(state, buffer)
    buffer.write(_MARK + hashlib.sha256(buffer.getbuffer()).hexdigest().encode() + b"\n")
    path = folder / f"epoch{state['epochs_done']}.pt"
    write_bytes(path, buffer.getbuffer())
    for number, file in state_files(folder):
        if number <= state["epochs_done"] - KEPT:
            file.unlink(missing_ok=True)
    return path


def require_space(model: torch.nn.Module, run: RunDirectory) -> None:
    """Refuse to train what could not be saved: states in float32, one more while it is written, and weights.

    Raises:
        RunError: The disk has too little space.
    """
    parameters = sum(p.numel() for p in model.parameters())
    needed = parameters * ((KEPT + 1) * _BYTES_PER_PARAMETER + 3 * 2)
    held = sum(file.stat().st_size for folder in (run.state, run.weights) for file in folder.glob("*.pt"))
    if shutil.disk_usage(run.path).free + held < needed:
        raise RunError(
            f"{run.path}: {free_space(run.path)}, the states and weights of this model need {needed / 1e6:.0f} MB"
        )


def state_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the states of a run with their epochs, the newest first."""
    found = [(int(m[1]), file) for file in folder.glob("epoch*.pt") if (m := _NAME.fullmatch(file.name))]
    return sorted(found, reverse=True)


def newest_state(folder: Path, last_row: int | None = None) -> dict[str, Any] | None:
    """Return the newest sound state; None if the run ended before its first epoch did.

    Args:
        folder: `state/` of a run.
        last_row: The last epoch in results.csv, if a later state is to be passed over for one that the table has.

    Raises:
        InputError: There are states, and all of them are damaged or of another version.
    """
    found = state_files(folder)
    if last_row is not None and any(number <= last_row for number, _ in found):
        for number, _ in found:
            if number > last_row:
                log.warning("The state of epoch %d is not used: results.csv has no row of that epoch", number)
        found = [(number, file) for number, file in found if number <= last_row]
    problems: list[Problem] = []
    for number, file in found:
        try:
            return _read(file)
        except _DamagedError as error:
            weights = folder.parent / "weights" / "last.pt"
            remedy = f"start a new run from its weights: model.weights={weights}" if not problems else ""
            problems.append(Problem("resume", str(file), str(error), remedy))
            log.debug("The state of epoch %d: %s", number, error)
            if len(problems) < len(found):
                log.warning("The state of epoch %d is not used: %s: %s", number, file, error)
    if problems:
        raise InputError(problems)
    return None


def weights_digest(state: dict[str, Any]) -> str:
    """Return a SHA-256 over the weights and the EMA of a state, in full precision, with names and shapes.

    The file's own checksum would not do: the order of the optimizer's entries differs where a run was resumed.
    """
    digest = hashlib.sha256()
    for part in ("model", "ema"):
        for name, value in (state[part] or {}).items():
            digest.update(f"{part} {name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class _DamagedError(Exception):
    """A state file is not what was written; the text says in which way."""


def _read(file: Path) -> dict[str, Any]:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise _DamagedError(f"cannot be read: {error.strerror or error}") from error
    payload, trailer = memoryview(data)[:-_TRAILER_BYTES], data[-_TRAILER_BYTES:]
    if not (trailer.startswith(_MARK) and trailer.endswith(b"\n")):
        raise _DamagedError(f"is damaged: its {len(data):,} bytes do not end with a checksum")
    if hashlib.sha256(payload).hexdigest().encode() != trailer[len(_MARK) : -1]:
        raise _DamagedError("is damaged: its checksum is another one")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise whatever they like
        raise _DamagedError(f"cannot be loaded ({type(error).__name__})") from error
    if state.get("version") != STATE_VERSION:
        remedy = "resume with the version of hsr_train that began the run (see manifest.json)"
        raise _DamagedError(f"has version {state.get('version')}, this is version {STATE_VERSION}: {remedy}")
    return state


class Saver:
    """Runs one job at a time in a thread of its own; a failure is raised by the next call in the main thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "state")
        self._running: Future[None] | None = None

    def submit(self, job: Callable[[], None]) -> None:
        """Wait for the last job, then start this one.

        Raises:
            RunError: The last job failed.
        """
        self.flush()
        self._running = self._pool.submit(job)

    def check(self) -> None:
        """Raise what the last job raised, if it has ended; does not wait."""
        if self._running is not None and self._running.done():
            self.flush()

    def flush(self) -> None:
        """Wait for the last job and raise what it raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        try:
            self.flush()
        except RunError as failure:
            if error is None:
                raise
            log.warning("%s", failure)  # something else ended the run


def random_state() -> dict[str, Any]:
    """Return the state of every generator: Python, numpy, torch, CUDA."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(saved: dict[str, Any]) -> None:
    """Put the generators back to where `random_state` found them."""
    random.setstate(saved["python"])
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.device_count() == len(saved["cuda"]):
        torch.cuda.set_rng_state_all(saved["cuda"])
