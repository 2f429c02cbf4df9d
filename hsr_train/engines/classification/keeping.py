"""What is kept of each epoch: figures, state and weights, in the order that makes a kill at any moment harmless.

`Keeper` has the run's directory; `Silent` stands in its place in a process that only assists another one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.engines.base import RunContext
from hsr_train.engines.classification.checkpoint import write_weights
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.records import Figures, Records, Times
from hsr_train.engines.states import Saver, write_state

Snapshot = Callable[[], dict[str, Any]]


class Keeper:
    """Keeps the epochs of one attempt.

    Args:
        context: The run's directory and its records.
        records: Where figures go.
        saver: Writes states and weights.
        experiment: With the name of the network.
        inputs: Classes and normalisation.
        imgsz: The side in pixels that images are evaluated at.
    """

    def __init__(
        self,
        context: RunContext,
        records: Records,
        saver: Saver,
        experiment: ClassifyExperiment,
        inputs: ClassifyInputs,
        imgsz: int,
    ) -> None:
        self._context, self._records, self._saver = context, records, saver
        self._experiment, self._inputs, self._imgsz = experiment, inputs, imgsz

    def begin(self, epoch: int) -> None:
        """Say that an epoch (counted from 0) begins, if its records can be kept."""
        self._context.require_records()
        self._records.begin(epoch)

    def check(self) -> None:
        """Raise what went wrong in saving the last epoch."""
        self._saver.check()

    def flush(self) -> None:
        """Wait until the last epoch is saved."""
        self._saver.flush()

    def replan(self, epochs: int) -> None:
        """Count on another number of epochs."""
        self._records.epochs = epochs

    def keep(
        self, epoch: int, figures: Figures, times: Times, started: float, snapshot: Snapshot, *, improved: bool
    ) -> None:
        """Record an epoch, and save its state while the next one goes on.

        Args:
            epoch: Counted from 0.
            figures: What it came to.
            times: Where its seconds went; `save_s` is filled in.
            started: `time.perf_counter()` at its start.
            snapshot: Copies the training state.
            improved: Whether it is the best so far.
        """
        saving = time.perf_counter()
        self._saver.flush()
        state = snapshot()
        times.save_s = time.perf_counter() - saving
        seconds = time.perf_counter() - started
        self._records.epoch(epoch, figures, times, seconds)
        self._context.require_records()  # an epoch with a state is not trained again, so its curves must be there
        self._saver.submit(partial(self._save, state))
        self._records.report(epoch, figures, seconds, improved=improved)

    def watch(self, number: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Show an epoch (counted from 1, of so many) to whoever watches the run, who may end it."""
        self._context.watch(number, epochs, metrics)

    def _save(self, state: dict[str, Any]) -> None:
        """Write a state and then the weights files of its epoch; not in the main thread."""
        write_state(self._context.run.state, state)
        write_weights(self._experiment, self._inputs, self._context.run, state, self._imgsz)


class Silent:
    """Keeps nothing: another process does."""

    def begin(self, epoch: int) -> None:
        """See `Keeper`."""

    def check(self) -> None:
        """See `Keeper`."""

    def flush(self) -> None:
        """See `Keeper`."""

    def replan(self, epochs: int) -> None:
        """See `Keeper`."""

    def keep(
        self, epoch: int, figures: Figures, times: Times, started: float, snapshot: Snapshot, *, improved: bool
    ) -> None:
        """See `Keeper`."""

    def watch(self, number: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """See `Keeper`."""
