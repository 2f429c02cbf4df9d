"""The epoch loop: forward, backward, step, validate, record. Drives `RunTrainer`, owns the order of events.

Gradients accumulate over images (`schedule.py`). An epoch ends clean: nothing pending; its row of results is on disk,
then its state, then weights files, so that a run killed at any moment resumes from the last whole epoch.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from hsr_train.config.schema import DetectExperiment
from hsr_train.ending import require_unstopped
from hsr_train.engines.base import RunContext
from hsr_train.engines.detection.averaging import WeightAverage
from hsr_train.engines.detection.checkpoint import write_weights
from hsr_train.engines.detection.composition import is_shown
from hsr_train.engines.detection.dataset import PREFETCHED
from hsr_train.engines.detection.evaluate import metrics_of
from hsr_train.engines.detection.layer_rates import FACTOR
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.monitor import Monitor
from hsr_train.engines.detection.schedule import Schedule, effective_batch
from hsr_train.engines.detection.state import snapshot
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.engines.memory import data_errors_named, persevere
from hsr_train.engines.states import Saver, write_state
from hsr_train.recovery import OPTIMIZER_STEP, TRAINING_STEP, VALIDATION, VALIDATION_BATCH, DivergedError
from hsr_train.run.log import success

bring_up()
from ultralytics.utils.torch_utils import autocast, unwrap_model  # noqa: E402

log = logging.getLogger(__name__)

NUM_SAMPLE_BATCHES = 3


@dataclass
class EpochTimes:
    """Images of one epoch, and its seconds: training in all, waiting for the loader, validating, saving."""

    images: int = 0
    train_s: float = 0.0
    wait_s: float = 0.0
    val_s: float = 0.0
    save_s: float = 0.0


class Loop:
    """Trains from `trainer.start_epoch` to the last epoch or until nothing improves.

    Args:
        trainer: Set up, and restored if the run goes on.
        experiment: With every `auto` decided.
        run: The run's directory.
        monitor: Where figures go.
        context: The run's directory, its records, and what to give up when memory runs out.
        saver: Writes states and weights.
        best_epoch: The epoch (from 1) whose weights are in best.pt; 0 if there is none.
        average: Of the last epochs' weights; collects if train.swa is on.
    """

    has_records = True

    def __init__(
        self,
        trainer: RunTrainer,
        experiment: DetectExperiment,
        monitor: Monitor,
        context: RunContext,
        saver: Saver,
        best_epoch: int,
        average: WeightAverage,
    ) -> None:
        self.trainer, self.experiment, self.monitor = trainer, experiment, monitor
        self.context, self.run, self.recovery, self.saver = context, context.run, context.recovery, saver
        self.pace, self.best_epoch, self.average = context.pace, best_epoch, average
        self.is_cut = False  # the time was up in mid-epoch
        self.schedule = schedule_of(trainer)

    def train(self) -> int:
        """Run the remaining epochs and return how many were completed in all."""
        trainer = self.trainer
        trainer.epoch = trainer.start_epoch
        log.info(
            "Training %s on %d images, validating on %d, %d px, batch %d, effective batch %d, %d workers, on %s",
            self.experiment.model.name, trainer.images_per_epoch, len(trainer.test_loader.dataset),
            trainer.args.imgsz, self.experiment.train.batch, self.schedule.effective_batch, trainer.args.workers,
            trainer.device,
        )  # fmt: skip
        trainer.optimizer.zero_grad()
        epoch = trainer.start_epoch - 1
        while (epoch := epoch + 1) < trainer.epochs:  # which a time budget may change
            self.recovery.at(TRAINING_STEP, epoch + 1)
            self.recovery.stop_if_due()
            self._require_records()
            self.pace.begin()
            started = time.perf_counter()
            times = EpochTimes()
            with data_errors_named(epoch + 1):
                losses = self._train_epoch(epoch, times)
                times.train_s = time.perf_counter() - started
                if self._finish_epoch(epoch, losses, times, started):
                    return epoch + 1
        return int(trainer.epochs)

    def _train_epoch(self, epoch: int, times: EpochTimes) -> dict[str, float]:
        """Train one epoch and return the mean of each loss over its batches."""
        trainer = self.trainer
        trainer.epoch = trainer.train_loader.sampler.epoch = epoch
        trainer._model_train()
        means: dict[str, torch.Tensor] = {}
        images, pending = 0, 0  # of all processes that share the batches
        shows_samples = epoch in (0, self.schedule.epochs - trainer.args.close_mosaic) and self.has_records
        bar = self._bar(epoch)
        for number, (num_images, batch) in enumerate(_parts(trainer, times)):
            require_unstopped()
            self.saver.check()
            if trainer.sources is not None and batch is not None:
                trainer.sources.count(batch)
            first = images - images % trainer.batch_size  # of the batch, if memory allows only a part of it at once
            progress = self.schedule.warmup_progress(epoch, first)
            self._set_rates(epoch, progress)
            trainer.seed_step(epoch, first)
            items = self.backward(batch) if batch is not None else self._skip(means)
            means = {k: (means[k] * number + v) / (number + 1) if means else v for k, v in items.items()}
            images += num_images
            pending += num_images
            if pending >= self.schedule.images_per_step(progress) or images >= trainer.images_per_epoch:
                self.recovery.at(OPTIMIZER_STEP)
                trainer.optimizer_step()
                self.recovery.at(TRAINING_STEP)
                pending = 0
                self.is_cut = images < trainer.images_per_epoch and self._must_end(images)
            if shows_samples and batch is not None and number < NUM_SAMPLE_BATCHES:
                trainer.plot_training_samples(batch, number + epoch * len(trainer.train_loader))
            if batch is not None:
                self._advance(bar, means, batch)
            if self.is_cut:
                break
        bar.close()
        times.images = images
        if shows_samples:
            self.monitor.pictures(self.run.plots, "train_batch*.jpg", "train_samples", epoch + 1)
        criterion = unwrap_model(trainer.model).criterion
        if hasattr(criterion, "update"):
            criterion.update()
        if trainer.sources is not None:
            trainer.sources.end_epoch(trainer.together)
        losses = _sums(trainer.together.of_all({k: float(v) for k, v in means.items()}))
        self._refuse_divergence(epoch, losses)
        return losses

    def _must_end(self, images: int) -> bool:
        """Whether an epoch that has come to so many images must end now for the rest to be done in time."""
        total = self.trainer.images_per_epoch
        if not self.pace.must_end(images / total, len(self.trainer.test_loader.dataset) / total):
            return False
        log.warning(
            "The time is up: the epoch ends after %d of %d images, so the run can't be reproduced", images, total
        )
        return True

    def _replan(self, done: int, epoch_s: float, val_s: float) -> None:
        """Let the time that is left decide how many epochs there are, and the schedule follow."""
        trainer, before = self.trainer, self.trainer.epochs
        epochs = done if self.is_cut else self.pace.plan(done, before, epoch_s, val_s, trainer.load)
        if epochs == before:
            return
        loader = trainer.train_loader
        is_renewed = trainer.plan_images(done, epochs)
        # Epochs that may be on their way already.
        ahead = 0 if is_renewed else 1 + math.ceil(loader.num_workers * PREFETCHED / len(loader))
        close = self._close_mosaic(done + ahead, epochs, loader.dataset.open_epochs)
        self.recovery.plan(done + 1, epochs=epochs, close_mosaic=close)
        trainer.epochs = trainer.args.epochs = self.monitor.epochs = epochs
        trainer.args.close_mosaic = close
        loader.dataset.open_epochs = epochs - close
        self.schedule = replace(self.schedule, epochs=epochs)
        log.info("Planned by time: %d epochs, not %d", epochs, before)

    def _close_mosaic(self, settled: int, epochs: int, open_epochs: int) -> int:
        """Return how many of the last epochs go without mosaic.

        Args:
            settled: Epochs whose samples may be loaded by now: what holds for them stays.
            epochs: Planned by now.
            open_epochs: With mosaic, as planned before.
        """
        wanted: int = self.recovery.initial("train.close_mosaic")
        typed = "train.close_mosaic" in self.experiment.origin.typed
        now_open = epochs - (min(wanted, epochs - 1) if typed else min(wanted, epochs // 5))
        kept = open_epochs if open_epochs < settled else max(now_open, settled)
        return epochs - min(kept, epochs)

    def _refuse_divergence(self, epoch: int, losses: dict[str, float]) -> None:
        ema = self.trainer.ema
        weights: list[torch.Tensor] = list(ema.ema.state_dict().values()) if ema is not None else []
        finite = all(math.isfinite(v) for v in losses.values()) and all(torch.isfinite(v).all() for v in weights)
        if all(self.trainer.together.of_all(finite)):
            return
        log.warning("Training diverged in epoch %d: losses or weights are no numbers any more (%s)", epoch + 1, losses)
        raise DivergedError(self.trainer.base_rate)

    def backward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Add the gradients of a batch, or of a part of one; return its losses."""
        trainer = self.trainer
        with autocast(trainer.amp, device=trainer.device.type):
            batch = trainer.preprocess_batch(batch)
            if trainer.args.compile:
                predictions = trainer.model(batch["img"])
                loss, trainer.loss_items = unwrap_model(trainer.model).loss(batch, predictions)
            else:
                loss, trainer.loss_items = trainer.model(batch)
            trainer.loss = loss.sum()
        trainer.loss_names = trainer.loss_names or tuple(trainer.loss_items)
        trainer.scaler.scale(trainer.loss).backward()
        return {k: v.detach() for k, v in trainer.loss_items.items()}

    def _skip(self, means: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Let the others train a part of which this process has no image; return its losses, which are zero."""
        assert self.trainer.shared_loss is not None
        self.trainer.shared_loss.skip()
        return {k: torch.zeros_like(v) for k, v in means.items()}

    def _set_rates(self, epoch: int, progress: float) -> None:
        for group in self.trainer.optimizer.param_groups:
            is_bias = group.get("param_group") == "bias"
            group["lr"] = self.schedule.learning_rate(
                group["initial_lr"], epoch, progress, is_bias=is_bias, factor=group.get(FACTOR, 1.0)
            )
            if "momentum" in group:
                group["momentum"] = self.schedule.momentum_at(progress)

    def _finish_epoch(self, epoch: int, losses: dict[str, float], times: EpochTimes, started: float) -> bool:
        """Validate, record and save an epoch; return whether it was the last."""
        trainer = self.trainer
        validating = time.perf_counter()
        results = self._validate()
        times.val_s = time.perf_counter() - validating
        metrics = metrics_of(trainer.validator)
        trainer.fitness = float(trainer.validator.metrics.fitness)
        improved = not trainer.best_fitness or trainer.fitness > trainer.best_fitness
        if improved:
            trainer.best_fitness, self.best_epoch = trainer.fitness, epoch + 1
        stop = trainer.together.of_first(bool(trainer.stopper(epoch + 1, trainer.fitness)))
        self._replan(epoch + 1, time.perf_counter() - started, times.val_s)
        val_losses = {f"val_{k}": float(results[f"val/{k}"]) for k in losses}

        saving = time.perf_counter()
        self.saver.flush()
        if self.experiment.train.swa:
            self.average.add(unwrap_model(trainer.model), epoch + 1, trainer.epochs)
        state = snapshot(
            trainer,
            epochs_done=epoch + 1,
            best_epoch=self.best_epoch,
            stopped=stop,
            metrics=metrics,
            average=self.average,
        )
        times.save_s = time.perf_counter() - saving
        if trainer.sources is not None:
            self._record_sources(epoch)
        self.monitor.epoch(trainer, epoch, losses, metrics, val_losses, times, time.perf_counter() - started)
        self.context.require_records()  # an epoch with a state is not trained again, so its curves must be there
        self.saver.submit(partial(self._save, state))
        if epoch + 1 < trainer.epochs and not stop:
            self.rehearse()

        left, took_s = sum(map(trainer.images_in, range(epoch + 1, trainer.epochs))), time.perf_counter() - started
        self.monitor.report(epoch, losses, metrics, took_s, self.best_epoch, improved, times.images, left)
        if improved and trainer.fitness > 0:
            success(log, "New best model saved! mAP50: %.4f", metrics["mAP50"])
        if stop:
            log.info("Stopped early: no better validation fitness for %d epochs", self.experiment.train.patience)
        elif epoch + 1 < trainer.epochs:
            self.context.watch(epoch + 1, trainer.epochs, metrics)
        return stop

    def _require_records(self) -> None:
        self.context.require_records()

    def _record_sources(self, epoch: int) -> None:
        """Write what the images of an epoch were made of."""
        sources, writer = self.trainer.sources, self.monitor.writer
        assert sources is not None
        if writer is None:
            return
        sources.record(writer, epoch + 1)
        has_composed = self.trainer.train_loader.dataset.num_composed(epoch) > 0
        if has_composed and is_shown(epoch, self.schedule.epochs):
            sources.show(writer, epoch + 1)

    def _validate(self) -> dict[str, float]:
        """Validate the EMA; where memory runs out, once more with a smaller batch."""
        trainer, recovery = self.trainer, self.recovery

        def attempt() -> dict[str, float]:
            recovery.at(VALIDATION)
            recovery.stop_if_due()
            if trainer.test_at_once != self.experiment.train.val_batch:
                trainer.renew_validation()
            results: dict[str, float] = trainer.validator(trainer)
            return results

        results = persevere(attempt, recovery, only=VALIDATION_BATCH)
        recovery.at(TRAINING_STEP)
        return results

    def rehearse(self) -> None:
        """Try what comes after training, where its time must be known."""
        if self.pace.is_limited:
            self.saver.flush()  # its weights are needed
            self.pace.rehearse()
            self.recovery.at(TRAINING_STEP)

    def _save(self, state: dict[str, Any]) -> None:
        """Write a state and then the weights files of its epoch; not in the main thread."""
        write_state(self.run.state, state)
        write_weights(self.trainer.weights_file, self.run, state, self.experiment.train.save_period)

    def _bar(self, epoch: int) -> Any:
        return tqdm(
            total=len(self.trainer.train_loader),
            desc=f"Epoch {epoch + 1}/{self.trainer.epochs}, best mAP50 {self.monitor.best:.3f}",
            disable=not sys.stderr.isatty(),
            leave=False,
            dynamic_ncols=True,
        )

    def _advance(self, bar: Any, means: dict[str, torch.Tensor], batch: dict[str, Any]) -> None:
        bar.update()
        if not bar.disable:
            shown = " ".join(f"{k.removesuffix('_loss')} {float(v):.3g}" for k, v in means.items())
            memory = f"{self.trainer._get_memory():.3g}G " if self.trainer.device.type == "cuda" else ""
            bar.set_postfix_str(f"{memory}{shown} boxes {len(batch['cls'])} px {batch['img'].shape[-1]}", refresh=False)


def schedule_of(trainer: RunTrainer) -> Schedule:
    """Return the plan of a run."""
    args, batch, images = trainer.args, trainer.batch_size, len(trainer.train_loader.dataset)
    return Schedule(
        epochs=trainer.epochs,
        num_images=images,
        batch=batch,
        effective_batch=effective_batch(batch, args.nbs, images),
        lrf=args.lrf,
        cosine=bool(args.cos_lr),
        warmup_epochs=args.warmup_epochs,
        warmup_bias_lr=args.warmup_bias_lr,
        warmup_momentum=args.warmup_momentum,
        momentum=args.momentum,
        images_in=trainer.images_in if trainer.composition is not None else None,
    )


def _parts(trainer: RunTrainer, times: EpochTimes) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Yield for each part of an epoch how many images it has, and this process's batch of them if there is one."""
    batches = _timed(trainer.train_loader, times)
    for part in trainer.parts():
        yield part.images, next(batches) if part.own else None


def _sums(shares: list[dict[str, float]]) -> dict[str, float]:
    """Return the sums by name; a share without images has no names."""
    return {name: sum(share.get(name, 0.0) for share in shares) for name in max(shares, key=len)}


def _timed(loader: Any, times: EpochTimes) -> Iterator[dict[str, Any]]:
    """Yield one epoch of batches, adding up the time spent waiting for them."""
    batches = iter(loader)
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        times.wait_s += time.perf_counter() - asked
        if batch is None:
            return
        yield batch


warnings.filterwarnings("ignore", message=".*does not have a deterministic implementation.*")
