"""The epoch loop: train, validate, record, save; one for every policy.

`attempts` sets up what it drives; after a shortage of memory a new attempt begins at the last state.
"""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.ending import require_unstopped
from hsr_train.engines.classification.evaluate import Outcome, score
from hsr_train.engines.classification.keeping import Keeper, Silent
from hsr_train.engines.classification.records import Figures, Times
from hsr_train.engines.classification.samples import normalise
from hsr_train.engines.classification.schedule import rate_factor
from hsr_train.engines.classification.training import Step, Training
from hsr_train.engines.memory import data_errors_named, persevere
from hsr_train.pace import Pace
from hsr_train.recovery import OPTIMIZER_STEP, TRAINING_STEP, VALIDATION, VALIDATION_BATCH, DivergedError, Recovery

log = logging.getLogger(__name__)


class Loop:
    """Drives one attempt.

    Args:
        training: Set up, and restored if the run goes on.
        experiment: With every `auto` decided.
        keeper: Where figures and states go.
        recovery: What to give up when memory runs out.
        pace: How much time there is.
    """

    def __init__(
        self,
        training: Training,
        experiment: ClassifyExperiment,
        keeper: Keeper | Silent,
        recovery: Recovery,
        pace: Pace,
    ) -> None:
        self.training, self.experiment, self.keeper, self.recovery = training, experiment, keeper, recovery
        self.epochs = experiment.train.epochs
        self.pace, self.is_cut = pace, False  # whether the time was up in mid-epoch

    def train(self) -> int:
        """Run the remaining epochs and return how many were completed in all."""
        training = self.training
        log.info("Dataset sizes: %s", {name: len(split.images) for name, split in training.dataset.splits.items()})
        log.info("Starting Training")
        epoch = training.start_epoch - 1
        while (epoch := epoch + 1) < self.epochs:  # which a time budget may change
            self.recovery.at(TRAINING_STEP, epoch + 1)
            self.recovery.stop_if_due()
            self.keeper.begin(epoch)
            self.pace.begin()
            started = time.perf_counter()
            times = Times()
            with data_errors_named(epoch + 1):
                figures = self._train_epoch(epoch, times)
                times.train_s = time.perf_counter() - started
                if self._finish_epoch(epoch, figures, times, started):
                    return epoch + 1
        return self.epochs

    def _train_epoch(self, epoch: int, times: Times) -> tuple[float, float]:
        """Train one epoch and return mean loss and accuracy over its images."""
        training = self.training
        policy, steps = training.policy, training.steps()
        total = sum(step.images for step in steps)
        training.model.train()
        policy.begin(epoch)
        # On the device, so that no step waits for its figures.
        loss_sum = torch.zeros((), dtype=torch.float64, device=training.device)
        hits = torch.zeros((), dtype=torch.int64, device=training.device)
        images, seen, pending, done = 0, 0, 0, 0  # of this process; seen counts fillers too, done is of all processes
        coming = iter(steps)
        step = next(coming)
        bar = self._bar(epoch, total)
        for pictures, targets, numbers in _timed(training.train_loader, times):
            require_unstopped()
            self.keeper.check()
            self._set_rate(epoch + done / max(total, 1))
            pending += len(pictures)
            closes = pending == step.share
            if len(pictures):  # a private step may have drawn none
                training.seed_step(epoch, seen)
                with policy.part(closes_step=closes):
                    losses, right = self._backward(pictures, targets, numbers, step.images)
                loss_sum += losses
                hits += right
            images += int((numbers >= 0).sum())
            seen += len(pictures)
            if closes:
                self.recovery.at(OPTIMIZER_STEP)
                policy.step()
                if training.ema is not None:
                    training.ema.update_parameters(training.model)
                self.recovery.at(TRAINING_STEP)
                bar.update(step.images)
                done += step.images
                pending, step = 0, next(coming, Step(0, 0))
                self.is_cut = done < total and self._must_end(done, total)
            if policy.is_spent or self.is_cut:
                break
        bar.close()
        sums = training.together.of_all((float(loss_sum), int(hits), images))
        loss_total, right_total, times.images = (sum(column) for column in zip(*sums, strict=True))
        loss = loss_total / max(times.images, 1)
        self._refuse_divergence(epoch, loss)
        return loss, right_total / max(times.images, 1)

    def _backward(self, pictures: Tensor, targets: Tensor, numbers: Tensor, step_images: int) -> tuple[Tensor, Tensor]:
        """Add the gradients of a part of a step; return the sum of its losses, and how many scores were right."""
        training, policy = self.training, self.training.policy
        batch = normalise(pictures.to(training.device, non_blocking=True), training.inputs.mean, training.inputs.std)
        targets = targets.to(training.device, non_blocking=True)
        with policy.autocast():
            scores = training.forward(batch)
            losses = functional.cross_entropy(
                scores.float(),
                targets,
                self._class_weights(),
                reduction="none",
                label_smoothing=self.experiment.train.label_smoothing,
            )
        wanted = targets if targets.ndim == 1 else targets.argmax(1)  # of blended images the larger share
        right = scores.detach().argmax(1) == wanted
        if bool((numbers < 0).any()):
            counts = (numbers >= 0).to(training.device)
            losses, right = losses * counts, right & counts
        policy.backward(losses, step_images)
        return losses.detach().double().sum(), right.sum()

    def _class_weights(self) -> Tensor | None:
        weights = self.training.class_weights
        return None if weights is None else weights.to(self.training.device)

    def _set_rate(self, progress: float) -> None:
        factor = rate_factor(self.experiment.optimizer, progress, self.epochs)
        self.rate = self.training.lr * factor
        for group in self.training.optimizer.param_groups:
            group["lr"] = self.rate

    def _refuse_divergence(self, epoch: int, loss: float) -> None:
        finite = all(torch.isfinite(value).all() for value in self.training.evaluated.state_dict().values())
        if math.isfinite(loss) and finite:
            return
        log.warning("Training diverged in epoch %d: losses or weights are no numbers any more (%s)", epoch + 1, loss)
        raise DivergedError(self.training.lr)

    def _finish_epoch(self, epoch: int, trained: tuple[float, float], times: Times, started: float) -> bool:
        """Validate, record and save an epoch; return whether training stops early after it."""
        training, train = self.training, self.experiment.train
        validating = time.perf_counter()
        found = self._validate()
        times.val_s = time.perf_counter() - validating
        private = training.policy.privacy()
        figures = Figures(*trained, found.loss, found.accuracy, found.macro_f1, self.rate)
        if private is not None:
            figures.epsilon = private["epsilon"]
        now = found.accuracy if train.best == "accuracy" else found.macro_f1
        improved = training.best_score is None or now > training.best_score
        if improved:
            training.best_score, training.best_epoch, training.patient_since = now, epoch + 1, epoch + 1
        self._replan(epoch + 1, time.perf_counter() - started, times.val_s)
        patient = bool(train.patience) and epoch + 1 - training.patient_since >= train.patience
        spent = training.policy.is_spent and epoch + 1 < self.epochs
        stop = patient or spent
        snapshot = partial(training.snapshot, epochs_done=epoch + 1, stopped=stop, metrics=found.metrics())
        self.keeper.keep(epoch, figures, times, started, snapshot, improved=improved)
        if self.pace.is_limited and epoch + 1 < self.epochs and not stop:
            self.keeper.flush()  # its weights are needed
            self.pace.rehearse()
            self.recovery.at(TRAINING_STEP)
        if private is not None:
            log.info(
                "Epsilon: %.4f at delta %g, after %d steps", private["epsilon"], private["delta"], private["steps"]
            )
        if spent:
            log.info("Stopped: a further step would exceed trainer.target_epsilon")
        elif stop:
            log.info("Stopped early: no better val %s for %d epochs", train.best, train.patience)
        elif epoch + 1 < self.epochs:
            self.keeper.watch(epoch + 1, self.epochs, found.metrics())
        return stop

    def _must_end(self, done: int, total: int) -> bool:
        """Whether an epoch that has come to so many images must end now for the rest to be done in time."""
        if not self.pace.must_end(done / total, len(self.training.dataset.splits["val"].images) / total):
            return False
        log.warning("The time is up: the epoch ends after %d of %d images, so the run can't be reproduced", done, total)
        return True

    def _replan(self, done: int, epoch_s: float, val_s: float) -> None:
        """Let the time that is left decide how many epochs there are, and the schedule follow."""
        epochs = done if self.is_cut else self.pace.plan(done, self.epochs, epoch_s, val_s)
        if epochs != self.epochs:
            log.info("Planned by time: %d epochs, not %d", epochs, self.epochs)
            self.recovery.plan(done + 1, epochs=epochs)
            self.epochs = epochs
            self.keeper.replan(epochs)

    def _validate(self) -> Outcome:
        """Validate; where memory runs out, once more with a smaller batch."""
        training, recovery = self.training, self.recovery

        def attempt() -> Outcome:
            recovery.at(VALIDATION)
            recovery.stop_if_due()
            training.together.even_buffers(training.evaluated)
            loader = training.loader("val", self.experiment.train.val_batch)
            try:
                return score(training.evaluated, loader, training.inputs, training.policy.autocast, training.together)
            finally:
                loader.close()

        found = persevere(attempt, recovery, only=VALIDATION_BATCH)
        recovery.at(TRAINING_STEP)
        return found

    def _bar(self, epoch: int, total: int) -> Any:
        return tqdm(
            total=total,
            desc=f"Epoch {epoch}/{self.epochs - 1}",
            unit="image",
            disable=not sys.stderr.isatty(),
            leave=False,
            dynamic_ncols=True,
        )


def _timed(loader: Any, times: Times) -> Iterator[Any]:
    """Yield one epoch of batches, adding up the time spent waiting for them."""
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        times.wait_s += time.perf_counter() - asked
        if batch is None:
            return
        yield batch
