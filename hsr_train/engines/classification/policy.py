"""How a training step is made (`trainer=`): precision, the scaling of the loss that float16 needs, several processes.

The loop calls a policy and knows nothing of it; that of trainer=dp is in `privacy.py`. accelerate carries them; only
this file imports it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.errors import InputError, Problem

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16"}


def load_accelerate() -> Any:
    """Return the module accelerate.

    Raises:
        InputError: It is not installed.
    """
    try:
        return importlib.import_module("accelerate")
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        remedy = "pip install 'hsr_train[classify]'"
        raise InputError(Problem("task", "classify", "accelerate is not installed", remedy)) from error


def precision(experiment: ClassifyExperiment, device: str) -> Callable[[], AbstractContextManager[Any]]:
    """Return what makes the context in which a network is evaluated: as in training, so that figures agree."""
    dtype = mixed_dtype(experiment)
    return nullcontext if dtype is None else partial(torch.autocast, torch.device(device).type, dtype=DTYPES[dtype])


def mixed_dtype(experiment: ClassifyExperiment) -> str | None:
    """Return the name of the 16-bit type that activations have, or None."""
    trainer = experiment.trainer
    mixed = trainer.name in ("mixed_precision", "accelerate") and trainer.amp_dtype in DTYPES
    return trainer.amp_dtype if mixed else None


class Policy:
    """One way to make steps.

    Args:
        experiment: `trainer` and `train.clip_norm`.
        device: Where the network is.
    """

    def __init__(self, experiment: ClassifyExperiment, device: torch.device) -> None:
        accelerate = load_accelerate()
        mixed = _PRECISIONS.get(mixed_dtype(experiment) or "", "no")
        # One process makes runs of several precisions, one after the other; accelerate remembers the first.
        accelerate.state.AcceleratorState._reset_state()
        self._accelerator = accelerate.Accelerator(cpu=device.type == "cpu", mixed_precision=mixed)
        self._clip_norm = experiment.train.clip_norm

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Take charge of an optimizer and its network; return what is called to train the network."""
        self._model = model
        self._optimizer: Any = self._accelerator.prepare_optimizer(optimizer, device_placement=False)
        return model

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which scores and loss are computed."""
        context: AbstractContextManager[None] = self._accelerator.autocast()
        return context

    def begin(self, epoch: int) -> None:
        """Make ready for an epoch, counted from 0."""

    def part(self, *, closes_step: bool) -> AbstractContextManager[None]:
        """Return the context of a forward and a backward pass: a part of a step, and maybe its last one."""
        return nullcontext()

    def backward(self, losses: Tensor, step_images: int) -> None:
        """Add the gradients of a part of a step.

        Args:
            losses: (n,), of each image.
            step_images: Images of the whole step.
        """
        self._accelerator.backward(losses.sum() / step_images)

    def step(self) -> None:
        """Make the step that the gradients add up to, and forget them."""
        if self._clip_norm is not None:
            self._accelerator.clip_grad_norm_(self._model.parameters(), self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad()

    @property
    def is_spent(self) -> bool:
        """Whether no further step may be made."""
        return False

    def privacy(self) -> dict[str, Any] | None:
        """Return how private the weights are by now; None: not at all."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what resuming needs."""
        scaler = self._accelerator.scaler
        return {"scaler": scaler.state_dict() if scaler is not None else {}}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned, unless the precision is another one by now."""
        scaler = self._accelerator.scaler
        if scaler is not None and state["scaler"]:
            scaler.load_state_dict(state["scaler"])


class SharedPolicy(Policy):
    """Steps whose images several processes share: each adds up its own gradients, and at the end of a step all get
    the sum, so that every process makes the same step.
    """

    def __init__(self, experiment: ClassifyExperiment, device: torch.device, num_processes: int) -> None:
        super().__init__(experiment, device)
        self._num_processes = num_processes
        self._shared: nn.Module

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Also let every process begin with the weights of the first."""
        super().prepare(model, optimizer)
        shared: nn.Module = self._accelerator.prepare_model(model, device_placement=False)
        self._shared = shared
        return shared

    def part(self, *, closes_step: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged at the end of a step only."""
        context: AbstractContextManager[None] = (
            nullcontext() if closes_step else self._accelerator.no_sync(self._shared)
        )
        return context

    def backward(self, losses: Tensor, step_images: int) -> None:
        """See the parent; the exchange divides by the number of processes, which is undone here."""
        self._accelerator.backward(losses.sum() * self._num_processes / step_images)
