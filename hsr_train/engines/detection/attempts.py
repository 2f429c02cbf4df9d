"""Training in attempts: each sets everything up anew from the newest state, so that nothing of a failed one is left.

The first attempt of a resumed run, the next one after a rung of the ladder, and an uninterrupted run take one path.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hsr_train.config.schema import DetectExperiment
from hsr_train.engines.base import Plan, RunContext
from hsr_train.engines.detection.assisting import AssistingLoop
from hsr_train.engines.detection.averaging import WeightAverage
from hsr_train.engines.detection.checkpoint import write_weights
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.monitor import Monitor
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.engines.memory import persevere
from hsr_train.engines.states import Saver, newest_state, require_space
from hsr_train.engines.together import Together, shortage_named
from hsr_train.recovery import START, Recovery
from hsr_train.run.directory import RunDirectory
from hsr_train.run.results import last_epoch

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """What training came to.

    Attributes:
        epochs: Epochs completed in all.
        best_epoch: The epoch (from 1) whose weights are in best.pt.
        monitor: Its records.
    """

    epochs: int
    best_epoch: int
    monitor: Monitor


class Attempts:
    """The attempts of one process at one run."""

    def __init__(self, plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.experiment, DetectExperiment)
        self.experiment, self.inputs, self.context = plan.experiment, plan.inputs, context
        self.together = Together(self.inputs.device)
        self._purge = context.resuming

    def all(self) -> Trained:
        """Make attempts until one succeeds.

        Raises:
            RunError: Nothing is left to give up; or memory ran out in one of several processes, which cannot go back
                together.
        """
        together, train = self.together, self.experiment.train
        if together.count == 1:
            return persevere(self.next, self.context.recovery)
        log.info("%d processes share each batch of %d x %d images", together.count, together.count, train.batch)
        with shortage_named(together, self.context.recovery, _remedy(self.experiment)):
            trained = self.next()
        together.leave()
        return trained

    def next(self) -> Trained:
        """Train from the newest state to the end."""
        experiment, context, recovery = self.experiment, self.context, self.context.recovery
        recovery.stride = max(self.inputs.weights.stride, recovery.stride)
        state = newest_state(context.run.state, last_epoch(context.run.results_csv))
        done = state["epochs_done"] if state else 0
        recovery.begin(done + 1)
        recovery.stop_if_due()
        if state:
            log.info("Going on after epoch %d of %d", done, experiment.train.epochs)
        elif self._purge:
            log.info("There is no state yet: training begins at epoch 1")
        self._say_if_others(state)
        self.together.of_first((experiment, self.inputs, recovery.changes, recovery.stride, state))
        with Saver() as saver:
            trainer = RunTrainer(experiment, self.inputs, context.run, recovery, state, self.together)
            try:
                require_space(trainer.model, context.run)
                extended = _extend(trainer, state) if state and not context.pace.is_limited else False
                if state:
                    write_weights(trainer.weights_file, context.run, state, experiment.train.save_period)
                monitor = Monitor(
                    context.run,
                    context.status,
                    context.events,
                    num_groups=trainer.num_rates,
                    has_dfl=trainer.has_dfl,
                    epochs=experiment.train.epochs,
                    epochs_done=done,
                    purge=self._purge,
                    usage=context.usage,
                )
                if self._purge:
                    recovery.announce_again(done)
                self._purge = False
                average = WeightAverage(state.get("swa") if state else None, trainer.device)
                loop = Loop(trainer, experiment, monitor, context, saver, state["best_epoch"] if state else 0, average)
                finished = state is not None and state["stopped"] and not extended
                if state and not finished and done < trainer.epochs:
                    context.watch(done, trainer.epochs, state["metrics"])
                epochs = done if finished else loop.train()
            finally:
                trainer.close()
        recovery.at(START, epochs + 1)
        recovery.stop_if_due()  # a reproduction may have to repeat an extension
        return Trained(epochs, loop.best_epoch, monitor)

    def _say_if_others(self, state: dict[str, Any] | None) -> None:
        before, now = state.get("processes", 1) if state else self.together.count, self.together.count
        if before != now:
            log.warning("%d processes trained this run before, %d do now: its batches are others", before, now)


def assist(experiment: DetectExperiment, device: str) -> None:
    """Do this process's share of the training that the first process leads.

    Args:
        experiment: As composed here; what counts comes from the first process.
        device: Where this process trains.

    Raises:
        RunError: Memory ran out here, or another process has ended.
    """
    together = Together(device)
    nothing: Any = (experiment, None, [], 32, None)
    experiment, inputs, changes, stride, state = together.of_first(nothing)
    recovery = Recovery(experiment, lambda _: None, list(changes), stride=stride)
    with (
        shortage_named(together, recovery, _remedy(experiment)),
        TemporaryDirectory(prefix="hsr_train_") as folder,
        Saver() as saver,
    ):
        run = RunDirectory(Path(folder))  # where the library would write
        for place in (run.plots, run.weights):
            place.mkdir()
        trainer = RunTrainer(experiment, replace(inputs, device=device), run, recovery, state, together)
        try:
            if not (state and state["stopped"] and not _extend(trainer, state)):
                AssistingLoop(trainer, experiment, recovery, saver).train()
        finally:
            trainer.close()
    together.leave()


def _remedy(experiment: DetectExperiment) -> str:
    """Return what needs less memory and makes the same steps: train.nbs images, as before."""
    return f"train.batch={max(int(experiment.train.batch) // 2, 1)}"


def _extend(trainer: RunTrainer, state: dict[str, Any]) -> bool:
    """Say what a run with more epochs than its state was made for does with them; return whether it has more."""
    before, now, done = state["epochs"], trainer.epochs, state["epochs_done"]
    if now <= before:
        return False
    trainer.stopper.best_epoch = done  # patience counts from here
    log.info(
        "Extended from %d to %d epochs: from epoch %d on the learning rate is what a run of %d epochs has there, "
        "mosaic is off in the last %d of them, and patience counts anew",
        before, now, done + 1, now, trainer.args.close_mosaic,
    )  # fmt: skip
    if trainer.composition is not None:
        log.info("Composed images, too, are from there on as many as a run of %d epochs has", now)
    return True
