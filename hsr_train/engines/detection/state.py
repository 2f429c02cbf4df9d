"""state/epoch<N>.pt: what going on to the bit needs, in full precision. The newest two are kept.

A file is an ordinary torch file (safe loading) followed by one line with its SHA-256. `snapshot` copies the tensors
while training stands still; `Saver` serialises and writes them in a thread of its own while it goes on. The state is
an epoch's commit: weights files are written after it, and made again from it on resume.
"""

from __future__ import annotations

import hashlib
import io
import logging
import random
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch

from hsr_train.engines.detection.library import bring_up
from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.atomic import write_bytes

bring_up()
from ultralytics.utils.torch_utils import unwrap_model  # noqa: E402

log = logging.getLogger(__name__)

STATE_VERSION = 2
KEPT = 2
_MARK = b"\nhsr_train state sha256 "
_TRAILER_BYTES = len(_MARK) + 64 + 1
_NAME = re.compile(r"epoch(\d+)\.pt")


def snapshot(
    trainer: Any, *, epochs_done: int, best_epoch: int, stopped: bool, metrics: dict[str, float]
) -> dict[str, Any]:
    """Copy the training state to main memory.

    Args:
        trainer: The trainer after an epoch's validation.
        epochs_done: Epochs completed, counted from 1.
        best_epoch: The epoch whose weights are in best.pt.
        stopped: Training ended early; only what follows it is left to do.
        metrics: Of this epoch, for its weights file.
    """
    model = unwrap_model(trainer.model)
    state = {
        "version": STATE_VERSION,
        "epochs_done": epochs_done,
        "epochs": trainer.epochs,
        "best_epoch": best_epoch,
        "stopped": stopped,
        "metrics": dict(metrics),
        "best_fitness": trainer.best_fitness,
        "network": trainer.structure,
        "names": dict(model.names),
        "num_modules": len(model.model),
        "stride": int(trainer.stride),
        "model": model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "stopper": {k: getattr(trainer.stopper, k) for k in ("best_fitness", "best_epoch", "possible_stop")},
        "criterion_updates": getattr(model.criterion, "updates", None),
        "random": _random_state(),
    }
    copied: dict[str, Any] = _copied(state)
    return copied


def _copied(value: Any) -> Any:
    """Return nested containers with every tensor copied to the CPU."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        return value.clone() if value.device.type == "cpu" else value.cpu()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(v) for v in value)
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
        for name, value in state[part].items():
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


def restore_state(trainer: Any, state: dict[str, Any]) -> None:
    """Put a loaded state into a freshly set-up trainer of the same network."""
    model = unwrap_model(trainer.model)
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["ema_updates"]
    fresh = [{k: g[k] for k in ("fused", "initial_lr") if k in g} for g in trainer.optimizer.param_groups]
    trainer.optimizer.load_state_dict(state["optimizer"])
    for group, kept in zip(trainer.optimizer.param_groups, fresh, strict=True):
        group.update(kept)
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.best_fitness = state["best_fitness"]
    for key, value in state["stopper"].items():
        setattr(trainer.stopper, key, value)
    if state["criterion_updates"] is not None:
        model.criterion = model.init_criterion()
        model.criterion.updates = state["criterion_updates"] - 1
        model.criterion.update()
    _restore_random_state(state["random"])


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


def _random_state() -> dict[str, Any]:
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (str(kind), np.asarray(keys).tolist(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(saved: dict[str, Any]) -> None:
    random.setstate(saved["python"])
    kind, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.device_count() == len(saved["cuda"]):
        torch.cuda.set_rng_state_all(saved["cuda"])
