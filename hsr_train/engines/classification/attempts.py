"""Training in attempts: each sets everything up anew from the newest state, so that nothing of a failed one is left."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.engines.base import Plan, RunContext
from hsr_train.engines.classification.checkpoint import write_weights
from hsr_train.engines.classification.keeping import Keeper, Silent
from hsr_train.engines.classification.loop import Loop
from hsr_train.engines.classification.records import Records
from hsr_train.engines.classification.training import Training
from hsr_train.engines.memory import persevere
from hsr_train.engines.states import Saver, newest_state, require_space
from hsr_train.engines.together import Together, shortage_named
from hsr_train.pace import Pace
from hsr_train.processes import command
from hsr_train.recovery import START, Recovery
from hsr_train.run.results import last_epoch

log = logging.getLogger(__name__)


@dataclass
class Trained:
    """What training came to.

    Attributes:
        epochs: Completed in all.
        best_epoch: The one (from 1) whose weights are in best.pt.
        privacy: How private all weights together are, where trainer=dp made them.
    """

    epochs: int
    best_epoch: int
    privacy: dict[str, Any] | None = None


class Attempts:
    """The attempts of the process that has the run's directory."""

    def __init__(self, plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.experiment, ClassifyExperiment)
        self.experiment, self.inputs, self.context = plan.experiment, plan.inputs, context
        self.together = Together(self.inputs.device)
        self._purge = context.resuming

    def all(self) -> Trained:
        """Make attempts until one succeeds.

        Raises:
            RunError: Nothing is left to give up; or memory ran out in one of several processes, which cannot go back
                together.
        """
        if self.together.count == 1:
            if self.experiment.trainer.name == "accelerate":
                log.info("trainer=accelerate, one process; for more: %s ...", command(2))
            return persevere(self.next, self.context.recovery)
        log.info(
            "%d processes share each batch of %d x %d images",
            self.together.count, self.together.count, self.experiment.train.batch,
        )  # fmt: skip
        with shortage_named(self.together, self.context.recovery, _remedy(self.experiment)):
            trained = self.next()
        self.together.leave()
        return trained

    def next(self) -> Trained:
        """Train from the newest state to the end."""
        experiment, context, recovery = self.experiment, self.context, self.context.recovery
        state = newest_state(context.run.state, last_epoch(context.run.results_csv))
        done = state["epochs_done"] if state else 0
        recovery.begin(done + 1)
        recovery.stop_if_due()
        if state:
            log.info("Going on after epoch %d of %d", done, experiment.train.epochs)
        elif self._purge:
            log.info("There is no state yet: training begins at epoch 1")
        self._say_if_others(state)
        self.together.of_first((experiment, self.inputs, recovery.changes, state))
        with Saver() as saver:
            training = Training(experiment, self.inputs, recovery, state, self.together)
            try:
                self._describe(training)
                require_space(training.model, context.run)
                if state:
                    write_weights(experiment, self.inputs, context.run, state, training.measured_imgsz)
                trainer = experiment.trainer
                records = Records(
                    context,
                    epochs=experiment.train.epochs,
                    epochs_done=done,
                    purge=self._purge,
                    device=self.inputs.device,
                    delta=trainer.target_delta if trainer.name == "dp" else None,
                )
                if self._purge:
                    recovery.announce_again(done)
                self._purge = False
                keeper = Keeper(context, records, saver, experiment, self.inputs, training.measured_imgsz)
                is_over = _is_over(training)
                if state and not is_over and done < experiment.train.epochs:
                    context.watch(done, experiment.train.epochs, state["metrics"])
                epochs = done if is_over else Loop(training, experiment, keeper, recovery, context.pace).train()
            finally:
                training.close()
        recovery.at(START, epochs + 1)
        recovery.stop_if_due()  # a reproduction may have to repeat an extension
        return Trained(epochs, training.best_epoch, training.policy.privacy())

    def _say_if_others(self, state: dict[str, Any] | None) -> None:
        before, now = state.get("processes", 1) if state else self.together.count, self.together.count
        if before != now:
            log.warning("%d processes trained this run before, %d do now: its batches are others", before, now)

    def _describe(self, training: Training) -> None:
        """Log what the attempt starts from."""
        freeze, epochs = self.experiment.train.freeze, self.experiment.train.epochs
        for note in training.notes:
            log.info("%s", note)
        if freeze:
            trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
            log.info("train.freeze=%s: %s parameters are trained", freeze, f"{trained:,}")
        if training.extended_from is not None and not self.context.pace.is_limited:
            log.info(
                "Extended from %d to %d epochs: from epoch %d on the learning rate is what a run of %d epochs has "
                "there, and patience counts anew",
                training.extended_from, epochs, training.start_epoch + 1, epochs,
            )  # fmt: skip


def assist(experiment: ClassifyExperiment, device: str) -> None:
    """Do this process's share of the training that the first process leads.

    Args:
        experiment: As composed here; what counts comes from the first process.
        device: Where this process trains.

    Raises:
        RunError: Memory ran out here.
    """
    together = Together(device)
    nothing: Any = (experiment, None, [], None)
    experiment, inputs, changes, state = together.of_first(nothing)
    inputs.device = device
    recovery = Recovery(experiment, lambda _: None, list(changes))
    with shortage_named(together, recovery, _remedy(experiment)):
        training = Training(experiment, inputs, recovery, state, together)
        try:
            if not _is_over(training):
                Loop(training, experiment, Silent(), recovery, Pace()).train()
        finally:
            training.close()
    together.leave()


def _remedy(experiment: ClassifyExperiment) -> str:
    """Return what needs less memory and makes the same steps."""
    batch, steps = experiment.train.batch, experiment.trainer.gradient_accumulation_steps
    return f"train.batch={max(batch // 2, 1)} trainer.gradient_accumulation_steps={2 * steps}"


def _is_over(training: Training) -> bool:
    """Whether no epoch is left to train."""
    if training.policy.is_spent and training.start_epoch < training.experiment.train.epochs:
        log.info("No step is left: one more would exceed trainer.target_epsilon")
        return True
    return training.has_stopped
