"""What the processes that train one network tell each other, through accelerate; a process alone tells itself.

Made once in a training, before its first attempt; `processes` knows who was started.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TypeVar

import torch
from torch import nn

from hsr_train.engines.classification.policy import load_accelerate
from hsr_train.processes import num_processes

T = TypeVar("T")

PATIENCE = timedelta(days=1)
"""A process whose partner died is ended by the launcher; one that checks a large set is waited for."""


class Together:
    """The processes of one training.

    Args:
        device: Where this process trains, such as cpu or cuda:1.

    Attributes:
        rank: This process's number, from 0.
        count: How many there are.
    """

    def __init__(self, device: str) -> None:
        self.rank, self.count = 0, 1
        if num_processes() > 1:
            self._accelerate = load_accelerate()
            state = self._accelerate.PartialState(cpu=device == "cpu", timeout=PATIENCE)
            self.rank, self.count = state.process_index, state.num_processes

    def of_first(self, value: T) -> T:
        """Return the first process's value; it travels pickled."""
        if self.count == 1:
            return value
        values = [value]
        self._accelerate.utils.broadcast_object_list(values, from_process=0)
        return values[0]

    def of_all(self, value: T) -> list[T]:
        """Return every process's value, in the order of their numbers."""
        if self.count == 1:
            return [value]
        values: list[T] = self._accelerate.utils.gather_object([value])
        return values

    @torch.no_grad()
    def even_buffers(self, model: nn.Module) -> None:
        """Give a network the first process's buffers (running means): in training, each process has its own."""
        if self.count > 1:
            for buffer in model.buffers():
                self._accelerate.utils.broadcast(buffer, from_process=0)

    def leave(self) -> None:
        """Part from the others, when the training is over."""
        if self.count > 1:
            self._accelerate.PartialState().destroy_process_group()
