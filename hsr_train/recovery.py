"""The out-of-memory ladder: what a run gives up, in which order, and the record of it. Pure decisions, no torch.

An engine notices a shortage, frees everything, calls `Recovery.take` and goes on from its last saved state; the
supervisor does the same for a process that the kernel killed. Each rung changes one key of the experiment. The
effective batch, the learning rate and the weight decay stay: engines split a batch of the initial size instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hsr_train.config.schema import RecoveryConfig
from hsr_train.errors import RunError
from hsr_train.run.changes import DIVERGED, GPU_MEMORY, HOST_MEMORY, PLANNED, RESUMED, Change, get_value, set_value

log = logging.getLogger(__name__)

START, TRAINING_STEP, OPTIMIZER_STEP = "start", "training step", "optimizer step"
VALIDATION, FINAL_EVALUATION, EXPORT, KILLED = "validation", "final evaluation", "export", "killed by the kernel"
WITHOUT_GRADIENTS = (VALIDATION, FINAL_EVALUATION, EXPORT)

BATCH, IMAGE_SIZE, CACHE, WORKERS = "batch", "image size", "cache", "workers"
VALIDATION_BATCH, EXPORT_DEVICE = "validation batch", "export device"
LEARNING_RATE, MIXED_PRECISION = "learning rate", "mixed precision"
LADDERS = {GPU_MEMORY: (BATCH, IMAGE_SIZE, CACHE, WORKERS), HOST_MEMORY: (CACHE, WORKERS, BATCH)}
RATE_FACTOR = 0.5
ADVICE = {
    GPU_MEMORY: "a smaller model (model=), or a smaller image (train.imgsz)",
    HOST_MEMORY: "more memory or swap, or fewer other programs",
}


class DivergedError(Exception):
    """Losses or weights are no numbers any more.

    Attributes:
        rate: The initial learning rate of the run.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        super().__init__("losses or weights are no numbers any more")


class ReplayDueError(Exception):
    """A reproduction has come to the epoch in which the original changed; handled like the shortage it was."""


@dataclass
class Recovery:
    """The changes of one run.

    Attributes:
        experiment: The configuration as it is now; changed in place.
        save: Writes the changes and the configuration to the run's directory.
        changes: What was changed so far, in order; from the run's directory if it goes on.
        replay: What a reproduction still has to repeat, in order.
        announce: Shows a change and its epoch outside the log (TensorBoard).
        killed: The kernel killed the process that ran this before: its rung is still to be taken.
        stride: Image sizes are multiples of it, in pixels; at least 32.
        epoch: Where the run is, counted from 1.
        place: Where in the epoch the run is; one of the names above.
    """

    experiment: Any
    save: Callable[[Sequence[Change]], None]
    changes: list[Change] = field(default_factory=list)
    replay: list[Change] = field(default_factory=list)
    announce: Callable[[Change], None] = lambda change: None
    killed: bool = False
    stride: int = 32
    epoch: int = 1
    place: str = START

    @property
    def config(self) -> RecoveryConfig:
        """The `recovery` section."""
        config: RecoveryConfig = self.experiment.recovery
        return config

    @property
    def rungs(self) -> list[Change]:
        """What recovery changed, without what was typed on resume or planned by time."""
        return [change for change in self.changes if change.cause not in (RESUMED, PLANNED)]

    def initial(self, key: str) -> Any:
        """Return the value of a key before any change."""
        first = next((change for change in self.changes if change.key == key), None)
        return get_value(self.experiment, key) if first is None else first.before

    def begin(self, epoch: int) -> None:
        """Start an attempt at an epoch (from 1): date what was typed on resume, and record the configuration."""
        self.at(START, epoch)
        self.changes = [_dated(change, epoch) for change in self.changes]
        self.save(self.changes)
        if self.killed:
            self.killed = False
            self.at(KILLED)
            self.take(HOST_MEMORY)
            # Where it died is not known: what validation takes must not stay what it was.
            if self.next_rung(HOST_MEMORY) == VALIDATION_BATCH:
                self.take(HOST_MEMORY)
            self.at(START)

    def at(self, place: str, epoch: int | None = None) -> None:
        """Note where the run is."""
        self.place, self.epoch = place, self.epoch if epoch is None else epoch

    def announce_again(self, epochs_done: int) -> None:
        """Show again what was dropped from TensorBoard together with the epochs after `epochs_done`: it still holds."""
        for change in self.changes:
            if change.epoch > epochs_done:
                self.announce(change)

    def stop_if_due(self) -> None:
        """End the attempt where a change is due that a reproduction repeats; `take` then repeats it.

        Raises:
            ReplayDueError: A change is due.
        """
        if self._is_due():
            raise ReplayDueError(str(self.replay[0]))

    def _is_due(self) -> bool:
        if not self.replay or self.replay[0].epoch > self.epoch:
            return False
        change = self.replay[0]
        before_steps, at_steps = change.place not in WITHOUT_GRADIENTS, self.place not in WITHOUT_GRADIENTS
        return change.epoch < self.epoch or before_steps == at_steps

    def next_rung(self, cause: str | None) -> str | None:
        """Return the name of what would be given up next, without doing so; None if nothing is left."""
        if self._is_due():
            return self.replay[0].rung
        return next((rung for rung, _, _ in self._possible(cause)), None) if cause in LADDERS else None

    def take(self, cause: str | None, *, rate: float | None = None) -> Change:
        """Decide on the next change, apply it to the experiment, record and log it.

        Args:
            cause: GPU_MEMORY, HOST_MEMORY or DIVERGED; None where a change is due that is replayed.
            rate: The initial learning rate, where the optimizer chose it by itself.

        Raises:
            RunError: Recovery is switched off, or nothing is left to give up.
        """
        repeated = self._is_due()
        if repeated:
            change = self.replay.pop(0)
        elif cause in LADDERS:
            change = self._rung(cause)
        else:
            change = self._remedy(rate)
        set_value(self.experiment, change.key, change.after)
        self.changes.append(change)
        self.save(self.changes)
        if repeated:
            log.info("Repeated from the original: %s", change)
        else:
            log.warning("Recovery: %s; going on from the last state", change)
        self.announce(change)
        return change

    def plan(self, epoch: int, **values: int) -> None:
        """Change keys of `train` because of the time that is left.

        Args:
            epoch: The first one (from 1) that runs with them.
            **values: By the keys' names.
        """
        for name, value in values.items():
            key, before = f"train.{name}", get_value(self.experiment, f"train.{name}")
            if value != before:
                set_value(self.experiment, key, value)
                self.changes.append(Change(epoch, START, name, key, before, value, PLANNED))
        self.save(self.changes)

    def _rung(self, cause: str) -> Change:
        where = f"{cause[0].upper()}{cause[1:]} in epoch {self.epoch} ({self.place}): {self._described()}."
        if not self.config.enabled:
            raise RunError(f"{where} Recovery is switched off: type recovery.enabled=true, or {ADVICE[cause]}.")
        for rung, key, value in self._possible(cause):
            return Change(self.epoch, self.place, rung, key, get_value(self.experiment, key), value, cause)
        raise RunError(f"{where} Nothing is left to give up. What would help: {ADVICE[cause]}.")

    def _possible(self, cause: str | None) -> Iterator[tuple[str, str, Any]]:
        """Yield what could be given up, next first: name, key, new value."""
        train, export = self.experiment.train, self.experiment.export
        if self.place == EXPORT and cause == GPU_MEMORY:
            if export.device != "cpu":
                yield EXPORT_DEVICE, "export.device", "cpu"
            return
        killed_at_large = self.place == KILLED and train.val_batch > 2 * train.batch
        if killed_at_large or self.place in (VALIDATION, FINAL_EVALUATION):
            if train.val_batch > 1:
                yield VALIDATION_BATCH, "train.val_batch", train.val_batch // 2
            if cause == GPU_MEMORY:
                return  # neither the training batch nor the loaders take the GPU's memory here
        trains = self.place not in (FINAL_EVALUATION, EXPORT)
        for rung in LADDERS.get(cause or "", ()):
            # A single image of one stride has one value per channel, which batch normalisation cannot use.
            if rung == BATCH and trains and train.batch > self.config.min_batch and train.imgsz >= 2 * self.stride:
                yield BATCH, "train.batch", max(train.batch // 2, self.config.min_batch)
            elif rung == IMAGE_SIZE and trains:
                smaller = (train.imgsz - 1) // self.stride * self.stride
                if smaller >= max(self.config.min_imgsz, 2 * self.stride):
                    yield IMAGE_SIZE, "train.imgsz", smaller
            elif rung == CACHE and train.cache != "none":
                yield CACHE, "train.cache", "none"
            elif rung == WORKERS and train.workers > 0:
                yield WORKERS, "train.workers", train.workers // 2
        if self.place == KILLED and train.val_batch > 1:
            yield VALIDATION_BATCH, "train.val_batch", train.val_batch // 2

    def _remedy(self, rate: float | None) -> Change:
        retries = sum(change.cause == DIVERGED for change in self.changes)
        experiment = self.experiment
        rate_key, (precision_key, mixed, full) = experiment.RATE_KEY, experiment.PRECISION
        configured = get_value(experiment, rate_key)
        before = configured if configured is not None else rate
        if not self.config.enabled or retries >= self.config.max_nan_retries or before is None:
            raise RunError(
                f"Training diverged in epoch {self.epoch}: losses or weights are no numbers any more, after {retries} "
                f"retries (recovery.max_nan_retries={self.config.max_nan_retries}). The weights and the state of the "
                f"last good epoch are intact. Start again with a lower rate ({rate_key}={before}), without mixed "
                f"precision ({precision_key}={str(full).lower()}), and look at the data."
            )
        if get_value(experiment, precision_key) == mixed:
            return Change(self.epoch, self.place, MIXED_PRECISION, precision_key, mixed, full, DIVERGED)
        lower = before * RATE_FACTOR
        return Change(self.epoch, self.place, LEARNING_RATE, rate_key, before, lower, DIVERGED)

    def rate_factor(self) -> float:
        """Return by what remedies have multiplied the initial learning rate."""
        factor = 1.0
        for change in self.rungs:
            if change.key == self.experiment.RATE_KEY:
                factor *= change.after / change.before
        return factor

    def _described(self) -> str:
        train = self.experiment.train
        return (
            f"batch {train.batch}, validation batch {train.val_batch}, {train.imgsz} px, cache {train.cache}, "
            f"{train.workers} workers"
        )


def _dated(change: Change, epoch: int) -> Change:
    """Return a change with the epoch from which it holds, in a run that goes on at an epoch."""
    if change.cause == PLANNED:  # for an epoch whose predecessor was not saved in time
        return replace(change, epoch=min(change.epoch, epoch))
    return replace(change, epoch=change.epoch or epoch)
