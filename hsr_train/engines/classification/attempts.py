"""Training in attempts: each sets everything up anew from the newest state, so that nothing of a failed one is left."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.engines.base import Plan, RunContext
from hsr_train.engines.classification.checkpoint import write_weights
from hsr_train.engines.classification.loop import Loop
from hsr_train.engines.classification.records import Records
from hsr_train.engines.classification.training import Training
from hsr_train.engines.states import Saver, newest_state, require_space
from hsr_train.recovery import START
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
    """The attempts of one process at one run."""

    def __init__(self, plan: Plan, context: RunContext) -> None:
        assert isinstance(plan.experiment, ClassifyExperiment)
        self.experiment, self.inputs, self.context = plan.experiment, plan.inputs, context
        self._purge = context.resuming

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
        with Saver() as saver:
            training = Training(experiment, self.inputs, recovery, state)
            try:
                for note in training.notes:
                    log.info("%s", note)
                if experiment.train.freeze:
                    trained = sum(p.numel() for p in training.model.parameters() if p.requires_grad)
                    log.info("train.freeze=%s: %s parameters are trained", experiment.train.freeze, f"{trained:,}")
                require_space(training.model, context.run)
                extended = _extend(training, state) if state else False
                if state:
                    write_weights(experiment, self.inputs, context.run, state, training.measured_imgsz)
                trainer = experiment.trainer
                records = Records(
                    context,
                    epochs=experiment.train.epochs,
                    epochs_done=done,
                    purge=self._purge,
                    delta=trainer.target_delta if trainer.name == "dp" else None,
                )
                if self._purge:
                    recovery.announce_again(done)
                self._purge = False
                finished = state is not None and state["stopped"] and not extended
                if training.policy.is_spent and done < experiment.train.epochs:
                    finished = True
                    log.info("No step is left: one more would exceed trainer.target_epsilon")
                epochs = done if finished else Loop(training, experiment, records, context, saver).train()
            finally:
                training.close()
        recovery.at(START, epochs + 1)
        recovery.stop_if_due()  # a reproduction may have to repeat an extension
        return Trained(epochs, training.best_epoch, training.policy.privacy())


def _extend(training: Training, state: dict[str, Any]) -> bool:
    """Say what a run with more epochs than its state was made for does with them; return whether it has more."""
    before, now, done = state["epochs"], training.experiment.train.epochs, state["epochs_done"]
    if now <= before:
        return False
    training.patient_since = done
    log.info(
        "Extended from %d to %d epochs: from epoch %d on the learning rate is what a run of %d epochs has there, and "
        "patience counts anew",
        before, now, done + 1, now,
    )  # fmt: skip
    return True
