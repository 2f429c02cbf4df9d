"""`task=classify`: image classifiers of torchvision and timm behind the engine's door."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.data.class_splits import list_folds
from hsr_train.data.folds import write_splits
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.classification.attempts import Attempts, assist
from hsr_train.engines.classification.ensemble import evaluate_together
from hsr_train.engines.classification.evaluate import score
from hsr_train.engines.classification.export import export_classifier
from hsr_train.engines.classification.latency import latency_ms
from hsr_train.engines.classification.network import load_network
from hsr_train.engines.classification.policy import load_accelerate, precision
from hsr_train.engines.classification.predict import predict
from hsr_train.engines.classification.preparation import decide_device, prepare
from hsr_train.engines.classification.reports import Evaluation, calibration_picture, confusion_picture, write_reports
from hsr_train.engines.classification.samples import make_loader
from hsr_train.engines.classification.training import samples
from hsr_train.engines.latency import ALL_S
from hsr_train.engines.memory import persevere, rehearse
from hsr_train.engines.states import newest_state, weights_digest
from hsr_train.errors import HsrTrainError
from hsr_train.hardware import Machine
from hsr_train.pace import Ending
from hsr_train.recovery import EXPORT, FINAL_EVALUATION
from hsr_train.run.directory import RunDirectory

log = logging.getLogger(__name__)

PICTURES_S, EXPORT_S = 4.0, 20.0
"""Guesses for a run that must be done in time: drawing what one split has; one export, until it was tried."""


class ClassificationEngine:
    """Image classifiers."""

    def prepare(self, experiment: ClassifyExperiment, machine: Machine, decisions: Decisions) -> Plan:
        """See `preparation.prepare`."""
        return prepare(experiment, machine, decisions)

    def split(self, experiment: ClassifyExperiment, decisions: Decisions) -> list[str]:
        """See `data.folds.write_splits`."""
        return write_splits(experiment.data, decisions)

    def folds(self, experiment: ClassifyExperiment) -> list[int]:
        """Return the folds of the data, as `mode=split` made them."""
        return list_folds(experiment.data)

    def ensemble(self, plan: Plan, runs: list[RunDirectory], folder: Path) -> dict[str, float]:
        """Average the probabilities of all folds' best networks on the test set, and report on it."""
        assert isinstance(plan.experiment, ClassifyExperiment)
        found = evaluate_together(plan.experiment, plan.inputs, runs)
        if found is None:
            return {}
        write_reports(found, folder / "logs", folder / "plots")
        return _metrics(found)

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Train from the start or from the newest state, then report on best.pt for every split, and export it."""
        run, recovery = context.run, context.recovery
        assert isinstance(plan.experiment, ClassifyExperiment)
        fold = plan.inputs.dataset.fold
        if fold is not None:
            log.info("Using fold: %d", fold)
        log.info("Classes: %s", plan.inputs.classes)
        context.pace.expect(self._ending(plan, context))
        trained = Attempts(plan, context).all()
        recovery.at(FINAL_EVALUATION, trained.epochs)
        log.info("Evaluating best.pt (epoch %d)", trained.best_epoch)
        best = run.weights / "best.pt"
        found = {split: self._report(plan, context, best, split) for split in plan.inputs.dataset.splits}
        latency = self._latency(plan, context, best)
        exports, failure = self._try_export(plan, context, best, run.weights)
        return Result(
            run_dir=run.path,
            metrics=_metrics(found["val"]),
            epochs_completed=trained.epochs,
            best_epoch=trained.best_epoch,
            best_model_path="weights/best.pt",
            last_model_path="weights/last.pt",
            exports=exports,
            latency_ms=latency,
            failure=failure,
            extra={
                "classes": plan.inputs.classes,
                "fold": fold,
                "splits": {split: _metrics(evaluation) for split, evaluation in found.items()},
                "per_class": {split: evaluation.per_class for split, evaluation in found.items()},
                **({"privacy": trained.privacy} if trained.privacy else {}),
            },
        )

    def _ending(self, plan: Plan, context: RunContext) -> Ending:
        """Return what comes after training, for a run that must be done in time."""
        splits, formats = plan.inputs.dataset.splits, plan.experiment.export.formats
        export = partial(self._try_export, plan, context, context.run.weights / "last.pt")
        return Ending(
            evaluated=sum(len(split.images) for split in splits.values()) / len(splits["val"].images),
            fixed_s=PICTURES_S * len(splits) + (ALL_S if plan.experiment.train.measure_latency else 0.0),
            rest_s=EXPORT_S * len(formats),
            rehearse=partial(rehearse, export) if formats else None,
        )

    def assist(self, experiment: ClassifyExperiment, machine: Machine) -> None:
        """See `attempts.assist`."""
        load_accelerate()
        assist(experiment, decide_device(experiment, machine, Decisions()))

    def validate(self, plan: Plan, context: RunContext) -> Result:
        """Report on given weights for `data.split`."""
        context.recovery.at(FINAL_EVALUATION)
        file, split = Path(plan.experiment.model.weights), plan.experiment.data.split
        found = self._report(plan, context, file, split)
        log.info("%s", found.report_text().rstrip())
        return Result(
            run_dir=context.run.path, metrics=_metrics(found), extra={"split": split, "per_class": found.per_class}
        )

    def predict(self, plan: Plan, context: RunContext) -> Result:
        """Write the probabilities of every image, and a sheet of pictures."""
        assert isinstance(plan.experiment, ClassifyExperiment)
        experiment = plan.experiment
        context.recovery.at(FINAL_EVALUATION)
        file = Path(experiment.model.weights)
        for line in persevere(
            lambda: predict(experiment, plan.inputs, load_network(file, plan.inputs.device), context.run),
            context.recovery,
        ):
            log.info("%s", line)
        return Result(
            run_dir=context.run.path, extra={"images": len(plan.inputs.sources), "left_out": len(plan.inputs.left_out)}
        )

    def export(self, plan: Plan, context: RunContext) -> Result:
        """Write given weights in other formats, each compared with the original."""
        exports, failure = self._try_export(
            plan, context, Path(plan.experiment.model.weights), context.run.path / "exports"
        )
        return Result(run_dir=context.run.path, exports=exports, failure=failure)

    def weights_digest(self, run: RunDirectory) -> tuple[int, str] | None:
        """Return epoch and digest of the newest sound state."""
        state = newest_state(run.state)
        return None if state is None else (state["epochs_done"], weights_digest(state))

    def _report(self, plan: Plan, context: RunContext, file: Path, split: str) -> Evaluation:
        """Evaluate weights on a split, and write its report, pictures and TensorBoard entries."""
        experiment, inputs, run = plan.experiment, plan.inputs, context.run
        assert isinstance(experiment, ClassifyExperiment)

        def attempt() -> Evaluation:
            part, train = inputs.dataset.splits[split], experiment.train
            at_once = int(train.val_batch or train.batch)
            loader = make_loader(
                samples(experiment, part, context.recovery.initial("train.imgsz"), augment=False),
                batch_size=at_once,
                at_once=at_once,
                workers=train.workers,
                seed=train.seed,
                shuffle=False,
                start_epoch=0,
                pin=inputs.device != "cpu",
            )
            try:
                network = load_network(file, inputs.device)
                outcome = score(network, loader, inputs, precision(experiment, inputs.device))
            finally:
                loader.close()
            return Evaluation(split, inputs.classes, outcome.targets, outcome.probabilities, part.images, outcome.loss)

        found = persevere(attempt, context.recovery)
        write_reports(found, run.path / "logs", run.plots)
        if context.events is not None:
            context.events.image(f"Confusion_Matrix/{split}", confusion_picture(found), 0)
            context.events.image(f"Reliability/{split}", calibration_picture(found), 0)
            context.events.text(f"Classification_Report/{split}", f"```\n{found.report_text()}\n```")
            context.events.scalar(f"{split.capitalize()}/Accuracy", found.accuracy, 0)
            context.events.scalar(f"{split.capitalize()}/ECE", found.calibration.error, 0)
            context.events.flush()
        log.info(
            "%s: accuracy %.4f, macro F1 %.4f, calibration error %.4f (%d images)",
            split, found.accuracy, found.macro_f1, found.calibration.error, len(found.images),
        )  # fmt: skip
        return found

    def _latency(self, plan: Plan, context: RunContext, file: Path) -> float | None:
        """Return the milliseconds that weights take for one image; None if nobody asked."""
        experiment, inputs, imgsz = plan.experiment, plan.inputs, context.recovery.initial("train.imgsz")
        assert isinstance(experiment, ClassifyExperiment)
        if not experiment.train.measure_latency:
            return None
        found = persevere(lambda: latency_ms(file, inputs, experiment.augmentation, imgsz), context.recovery)
        log.info("Latency: %.2f ms for one image of %d px (%s)", found, imgsz, inputs.device)
        return found

    def _try_export(
        self, plan: Plan, context: RunContext, file: Path, folder: Path
    ) -> tuple[list[dict[str, Any]], HsrTrainError | None]:
        experiment = plan.experiment
        assert isinstance(experiment, ClassifyExperiment)
        if not experiment.export.formats:
            return [], None
        context.recovery.at(EXPORT)
        try:
            return persevere(
                lambda: export_classifier(
                    experiment, plan.inputs, load_network(file, plan.inputs.device), file, folder
                ),
                context.recovery,
            ), None
        except HsrTrainError as error:
            log.warning("%s", error)
            return [], error


def _metrics(found: Evaluation) -> dict[str, float]:
    return {"accuracy": found.accuracy, "macro_f1": found.macro_f1}
