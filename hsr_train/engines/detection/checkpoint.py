"""Files that a run leaves and continues from.

`weights/*.pt` are plain ultralytics checkpoints (float16 EMA, no class of ours inside) that YOLO("best.pt") loads
where hsr_train is not installed. `state/last.pt` holds what resuming needs, in full precision.
"""

from __future__ import annotations

import io
import random
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsr_train.engines.detection.library import bring_up
from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import write_bytes

bring_up()
from ultralytics import __version__ as ultralytics_version  # noqa: E402
from ultralytics.utils import DEFAULT_CFG_KEYS  # noqa: E402
from ultralytics.utils.torch_utils import unwrap_model  # noqa: E402

STATE_VERSION = 1


def serialize_weights(trainer: Any, metrics: dict[str, float]) -> bytes:
    """Return the EMA as a plain ultralytics checkpoint.

    Args:
        trainer: The trainer after an epoch.
        metrics: Validation metrics of this epoch, stored as train_metrics.
    """
    model = deepcopy(trainer.ema.ema)
    largest = torch.finfo(torch.float16).max
    for value in model.state_dict().values():  # the variance of a batch norm can be beyond float16
        if value.is_floating_point():
            value.clamp_(-largest, largest)
    model = model.half().to(memory_format=torch.contiguous_format)
    arguments = {k: v for k, v in vars(trainer.args).items() if k in DEFAULT_CFG_KEYS}
    model.criterion, model.args, model.task = None, arguments, "detect"
    for parameter in model.parameters():
        parameter.requires_grad = False
    buffer = io.BytesIO()
    torch.save(
        {
            "epoch": -1,
            "model": model,
            "ema": None,
            "optimizer": None,
            "train_args": arguments,
            "train_metrics": metrics,
            "date": datetime.now().astimezone().isoformat(),
            "version": ultralytics_version,
            "license": "AGPL-3.0 (https://ultralytics.com/license)",
            "docs": "https://docs.ultralytics.com",
        },
        buffer,
    )
    return buffer.getvalue()


def save_weights(serialized: bytes, *paths: Path) -> None:
    """Write one serialized checkpoint to several places, each whole or not at all."""
    for path in paths:
        write_bytes(path, serialized)


def save_state(path: Path, trainer: Any, epochs_done: int, best_epoch: int, stopped: bool) -> None:
    """Write the training state after an epoch.

    Args:
        path: state/last.pt of the run.
        trainer: The trainer after the epoch's validation.
        epochs_done: Epochs completed, counted from 1.
        best_epoch: The epoch whose weights are in best.pt.
        stopped: Training ended early; only what follows it is left to do.
    """
    model = unwrap_model(trainer.model)
    state = {
        "version": STATE_VERSION,
        "epochs_done": epochs_done,
        "best_epoch": best_epoch,
        "stopped": stopped,
        "best_fitness": trainer.best_fitness,
        "model": model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "stopper": {k: getattr(trainer.stopper, k) for k in ("best_fitness", "best_epoch", "possible_stop")},
        "criterion_updates": getattr(model.criterion, "updates", None),
        "random": _random_state(),
    }
    buffer = io.BytesIO()  # torch.save turns a full disk into an error of its own, write_bytes into a clear one
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any] | None:
    """Read a training state through torch's safe loading; None if the run ended before its first epoch did.

    Raises:
        InputError: If it is damaged or of another version.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            Problem("resume", str(path), f"the state is damaged ({type(error).__name__})", "start a new run")
        ) from error
    if state.get("version") != STATE_VERSION:
        raise InputError(
            Problem("resume", str(path), f"state version {state.get('version')}, this is version {STATE_VERSION}",
                    "resume with the version of hsr_train that began the run (see manifest.json)")
        )  # fmt: skip
    return state


def restore_state(trainer: Any, state: dict[str, Any]) -> None:
    """Put a loaded state into a freshly set-up trainer."""
    model = unwrap_model(trainer.model)
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["ema_updates"]
    for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True):
        saved["fused"] = group.get("fused")
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.best_fitness = state["best_fitness"]
    for key, value in state["stopper"].items():
        setattr(trainer.stopper, key, value)
    if state["criterion_updates"] is not None:
        model.criterion = model.init_criterion()
        model.criterion.updates = state["criterion_updates"] - 1
        model.criterion.update()
    _restore_random_state(state["random"])


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
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])
