"""What the processes that train one network tell each other, through torch.distributed; one alone tells itself.

Made once in a training, before its first attempt; `processes` knows who was started. Shared by the engines that use
torch: `Share` says which images of a batch are a process's own, `shortage_named` what is said when memory runs out.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from hsr_train.engines.memory import cause_of
from hsr_train.errors import RunError
from hsr_train.processes import num_processes, rank
from hsr_train.recovery import DivergedError, Recovery

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""A process whose partner died is ended by the launcher; one that checks a large set is waited for."""


@dataclass(frozen=True)
class Share:
    """What one of several processes takes of each batch: every `count`-th image.

    Attributes:
        rank: The process's number, from 0.
        count: How many processes there are.
    """

    rank: int = 0
    count: int = 1

    def size(self, batch_size: int, least: int) -> int:
        """Return the size of each share; with more places than images, some images fill a place without counting."""
        return max(-(-batch_size // self.count), least) if self.count > 1 else batch_size

    def most(self, batch_size: int) -> int:
        """Return how many images of a batch the largest share has."""
        return -(-batch_size // self.count)

    def real(self, batch_size: int) -> int:
        """Return how many images of this share count; they stand before those that do not."""
        return len(range(self.rank, batch_size, self.count))

    def of(self, batch: np.ndarray, least: int) -> np.ndarray:
        """Return this share of a batch's indices."""
        if self.count == 1:
            return batch
        own = batch[self.rank :: self.count]
        return np.concatenate([own, np.resize(batch, self.size(len(batch), least) - len(own))])


WHOLE = Share()


class Together:
    """The processes of one training.

    Args:
        device: Where this process trains, such as cpu or cuda:1; None: it is alone, whoever started it.

    Attributes:
        rank: This process's number, from 0.
        count: How many there are.
        share: What this process takes of each batch.
    """

    def __init__(self, device: str | None = None) -> None:
        self.rank, self.count, self.share = 0, 1, WHOLE
        if device is None or num_processes() == 1:
            return
        self.rank, self.count = rank(), num_processes()
        self.share = Share(self.rank, self.count)
        for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29500")):  # mpirun says neither
            os.environ.setdefault(name, value)
        on_gpu = device.startswith("cuda")
        if on_gpu:
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        # Nothing is lost yet by an assistant that ends at once; while it waits, Python would not hear the signal.
        with _loss_of_others_named(self), _ended_by_sigterm(self.rank > 0):
            dist.init_process_group(backend, rank=self.rank, world_size=self.count, timeout=PATIENCE)

    def of_first(self, value: T) -> T:
        """Return the first process's value; it travels pickled."""
        if self.count == 1:
            return value
        values = [value]
        with _loss_of_others_named(self):
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def of_all(self, value: T) -> list[T]:
        """Return every process's value, in the order of their numbers."""
        if self.count == 1:
            return [value]
        values: list[T] = [value] * self.count
        with _loss_of_others_named(self):
            dist.all_gather_object(values, value)
        return values

    @torch.no_grad()
    def even_buffers(self, model: nn.Module) -> None:
        """Give a network the first process's buffers (running means): in training, each process has its own."""
        if self.count > 1:
            with _loss_of_others_named(self):
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)

    @torch.no_grad()
    def add_up(self, tensor: Tensor) -> Tensor:
        """Make a tensor the sum of every process's; all get the same bits."""
        if self.count > 1:
            with _loss_of_others_named(self):
                dist.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the gradients of a step the sums of every process's; one that had no image in the step adds nothing."""
        if self.count == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        summed = self.add_up(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, part in zip(gradients, torch.split(summed, sizes), strict=True):
            gradient.copy_(part.view_as(gradient))

    def leave(self) -> None:
        """Part from the others, when the training is over."""
        if self.count > 1:
            dist.destroy_process_group()


@contextmanager
def _loss_of_others_named(together: Together) -> Iterator[None]:
    """Say in one line that another process has gone, as torch reports it in several ways."""
    try:
        yield
    except RuntimeError as error:
        if cause_of(error) is not None:
            raise
        cause = str(error).strip().splitlines()[0]
        raise RunError(
            f"Process {together.rank} of {together.count} cannot go on without the others, one of which has ended "
            f"({cause})"
        ) from error


@contextmanager
def _ended_by_sigterm(applies: bool) -> Iterator[None]:
    """Let SIGTERM end the process without a word."""
    if not applies or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def shortage_named(together: Together, recovery: Recovery, remedy: str) -> Iterator[None]:
    """Say in one line what to do about a shortage in one of several processes.

    Args:
        together: The processes.
        recovery: Where the training is.
        remedy: What to type.

    Raises:
        RunError: Instead of the shortage.
    """
    try:
        yield
    except Exception as error:
        cause = cause_of(error)
        if cause is None:
            raise
        if isinstance(error, DivergedError):
            recovery.config.enabled = False  # says what to type, without going back
            recovery.take(cause, rate=error.rate)
        raise RunError(
            f"{cause[0].upper()}{cause[1:]} in process {together.rank} of {together.count}, in epoch {recovery.epoch} "
            f"({recovery.place}). Several processes cannot go back together: start again with {remedy}"
        ) from error
