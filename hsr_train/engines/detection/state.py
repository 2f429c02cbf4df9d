"""What the state of a detector's training holds, taken and put back; files and checksums are the matter of `states`."""

from __future__ import annotations

from typing import Any

from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.states import STATE_VERSION, copied, random_state, restore_random_state

bring_up()
from ultralytics.utils.torch_utils import unwrap_model  # noqa: E402


def snapshot(
    trainer: Any, *, epochs_done: int, best_epoch: int, stopped: bool, metrics: dict[str, float], average: Any = None
) -> dict[str, Any]:
    """Copy the training state to main memory.

    Args:
        trainer: The trainer after an epoch's validation.
        epochs_done: Epochs completed, counted from 1.
        best_epoch: The epoch whose weights are in best.pt.
        stopped: Training ended early; only what follows it is left to do.
        metrics: Of this epoch, for its weights file.
        average: Of the last epochs' weights (`averaging.WeightAverage`), or None if the run has none.
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
        "processes": trainer.together.count,
        "random": random_state(),
        "swa": average.state() if average is not None else None,
    }
    kept: dict[str, Any] = copied(state)
    return kept


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
    restore_random_state(state["random"])
