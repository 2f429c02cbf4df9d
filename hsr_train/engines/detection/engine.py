"""task=detect: trains, validates, predicts and exports through ultralytics what `preparation.py` has checked."""

from __future__ import annotations

import logging
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hsr_train.config.schema import DetectExperiment
from hsr_train.data.detection_folds import write_detection_splits
from hsr_train.data.detection_splits import list_detection_folds
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.detection.attempts import Attempts, assist
from hsr_train.engines.detection.averaging import recalibrated, serialized
from hsr_train.engines.detection.evaluate import Evaluation, evaluate
from hsr_train.engines.detection.export import ExportError, export_model
from hsr_train.engines.detection.latency import latency_ms
from hsr_train.engines.detection.monitor import Monitor
from hsr_train.engines.detection.options import passed_through
from hsr_train.engines.detection.predict import predict
from hsr_train.engines.detection.preparation import prepare
from hsr_train.engines.detection.synthetic import write_composed_set, write_preview
from hsr_train.engines.devices import own_device
from hsr_train.engines.latency import ALL_S
from hsr_train.engines.memory import persevere, rehearse
from hsr_train.engines.states import newest_state, weights_digest
from hsr_train.hardware import Machine, pin_cuda_order
from hsr_train.pace import Ending
from hsr_train.recovery import EXPORT, FINAL_EVALUATION
from hsr_train.run.atomic import write_bytes, write_json, write_text
from hsr_train.run.curves import plot_curves
from hsr_train.run.directory import RunDirectory
from hsr_train.run.log import success

log = logging.getLogger(__name__)

PICTURES_S, EXPORT_S = 5.0, 20.0
"""Guesses for a run that must be done in time: drawing what one evaluation draws; one export, until it was tried."""


class DetectionEngine:
    """YOLO detectors."""

    def prepare(self, experiment: DetectExperiment, machine: Machine, decisions: Decisions) -> Plan:
        """See `preparation.prepare`."""
        return prepare(experiment, machine, decisions)

    def split(self, experiment: DetectExperiment, decisions: Decisions) -> list[str]:
        """See `data.detection_folds.write_detection_splits`."""
        return write_detection_splits(experiment.data, decisions)

    def folds(self, experiment: DetectExperiment) -> list[int]:
        """Return the folds of the data, as `mode=split` made them."""
        return list_detection_folds(experiment.data)

    def ensemble(self, plan: Plan, runs: list[RunDirectory], folder: Path) -> dict[str, float]:
        """Return nothing: boxes of several detectors are not combined here, and each fold stands for itself."""
        return {}

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Train from the start or from the newest state, evaluate best.pt and export it."""
        run, recovery = context.run, context.recovery
        context.pace.expect(self._ending(plan, context))
        trained = Attempts(plan, context).all()
        recovery.at(FINAL_EVALUATION, trained.epochs)
        log.info("Evaluating best.pt (epoch %d)", trained.best_epoch)
        best = persevere(lambda: self._evaluate(plan, context, run.weights / "best.pt", "val", run.plots), recovery)
        for line in best.table():
            log.info("%s", line)
        averaged = self._average(plan, context, best)
        splits = {"val": best}
        fold = plan.inputs.dataset.fold
        if fold is not None and "test" in plan.inputs.dataset.splits:
            splits["test"] = self._test(plan, context)
        plot_curves(trained.monitor.results, run.plots / "results.png")
        trained.monitor.pictures(run.plots, "val_batch*.jpg", "val_samples", trained.epochs)
        trained.monitor.pictures(run.plots, "*.png", "plots", trained.epochs)
        latency = self._latency(plan, context)
        exports, failure = self._try_export(plan, context, run.weights / "best.pt", run.weights)
        return Result(
            run_dir=run.path,
            metrics=best.metrics,
            epochs_completed=trained.epochs,
            best_epoch=trained.best_epoch,
            best_model_path="weights/best.pt",
            last_model_path="weights/last.pt",
            exports=exports,
            latency_ms=latency,
            failure=failure,
            extra={
                "per_class": best.per_class,
                "speed_ms": best.speed_ms,
                **({} if averaged is None else {"swa": averaged}),
                **self._composed(plan, trained.monitor),
                **({} if fold is None else {"fold": fold, "splits": {s: found.metrics for s, found in splits.items()}}),
            },
        )

    def _ending(self, plan: Plan, context: RunContext) -> Ending:
        """Return what comes after training, for a run that must be done in time."""
        splits = plan.inputs.dataset.splits
        others = ("test",) if plan.inputs.dataset.fold is not None and "test" in splits else ()
        images = [len(splits[split].images) for split in ("val", *others)]
        formats = plan.experiment.export.formats
        return Ending(
            evaluated=sum(images) / images[0],
            fixed_s=PICTURES_S * len(images) + (ALL_S if plan.experiment.train.measure_latency else 0.0),
            rest_s=EXPORT_S * len(formats),
            rehearse=partial(rehearse, partial(self._try_export, plan, context, context.run.weights / "last.pt"))
            if formats
            else None,
        )

    def assist(self, experiment: DetectExperiment, machine: Machine) -> None:
        """See `attempts.assist`."""
        pin_cuda_order()
        assist(experiment, own_device(experiment, machine, Decisions()))

    def validate(self, plan: Plan, context: RunContext) -> Result:
        """Evaluate given weights on `data.split`."""
        run, split = context.run, plan.experiment.data.split
        assert plan.inputs.weights.file is not None
        context.recovery.at(FINAL_EVALUATION)
        evaluation = persevere(
            lambda: self._evaluate(plan, context, plan.inputs.weights.file, split, run.plots), context.recovery
        )
        table = evaluation.table()
        for line in table:
            log.info("%s", line)
        write_text(run.path / "validation.txt", "\n".join(table) + "\n")
        report = {
            "weights": str(plan.inputs.weights.file),
            "data": plan.experiment.data.path,
            "split": split,
            "metrics": evaluation.metrics,
            "per_class": evaluation.per_class,
            "speed_ms": evaluation.speed_ms,
        }
        write_json(run.path / "validation.json", report)
        return Result(run_dir=run.path, metrics=evaluation.metrics, extra={"per_class": evaluation.per_class})

    def predict(self, plan: Plan, context: RunContext) -> Result:
        """Run given weights over images or a video."""
        experiment, inputs = plan.experiment, plan.inputs
        assert isinstance(experiment, DetectExperiment)
        prediction = predict(
            inputs.weights.file,
            inputs.sources,
            config=experiment.predict,
            imgsz=experiment.train.imgsz,
            device=inputs.device,
            output_dir=context.run.path / "predictions",
            options=passed_through(experiment),
        )
        return Result(run_dir=context.run.path, extra={"prediction": asdict(prediction)})

    def export(self, plan: Plan, context: RunContext) -> Result:
        """Export given weights."""
        folder = context.run.path / "exports"
        folder.mkdir()
        assert plan.inputs.weights.file is not None
        exports, failure = self._try_export(plan, context, plan.inputs.weights.file, folder)
        write_json(context.run.path / "exports.json", exports)
        return Result(run_dir=context.run.path, exports=exports, failure=failure)

    def preview(self, plan: Plan, context: RunContext) -> Result:
        """Write a picture of composed images beside real ones, and one of the cut-outs."""
        train, path = plan.experiment.train, context.run.path / "preview.png"
        write_preview(plan.inputs.synthesis, path, side=train.imgsz, seed=train.seed)
        log.info("Look at %s, and at cutouts.png beside it", path)
        return Result(run_dir=context.run.path)

    def synthesize(self, plan: Plan) -> list[str]:
        """Write a set of composed images."""
        assert isinstance(plan.experiment, DetectExperiment)
        return write_composed_set(plan.inputs.synthesis, plan.experiment)

    def weights_digest(self, run: RunDirectory) -> tuple[int, str] | None:
        """Return the epoch of the newest state and a SHA-256 over its weights."""
        state = newest_state(run.state)
        return None if state is None else (state["epochs_done"], weights_digest(state))

    def _average(self, plan: Plan, context: RunContext, best: Evaluation) -> dict[str, Any] | None:
        """Make swa.pt of the last epochs' mean and keep it if it is better than best.pt; None if train.swa is off."""
        experiment, recovery, target = plan.experiment, context.recovery, context.run.weights / "swa.pt"
        assert isinstance(experiment, DetectExperiment)
        if not experiment.train.swa:
            return None
        state = newest_state(context.run.state)
        kept = state.get("swa") if state else None
        if kept is None:
            target.unlink(missing_ok=True)  # of a run that was extended since
            log.warning("train.swa: training ended before the epochs that would have been averaged")
            return {"epochs": 0, "metrics": None, "kept": False}

        def attempt() -> Evaluation:
            recovery.stop_if_due()
            checkpoint = recalibrated(
                context.run.weights / "best.pt",
                kept["mean"],
                experiment,
                plan.inputs,
                imgsz=recovery.initial("train.imgsz"),
                batch=recovery.initial("train.batch"),
            )
            write_bytes(target, serialized(checkpoint, {}))
            found = self._evaluate(plan, context, target, "val", context.run.plots / "swa")
            write_bytes(target, serialized(checkpoint, found.metrics))
            return found

        log.info("Averaging the weights of %d epochs, and measuring the batch norms anew", kept["epochs"])
        found = persevere(attempt, recovery)
        ours, theirs = found.metrics["mAP50-95"], best.metrics["mAP50-95"]
        is_better = ours > theirs
        if is_better:
            success(log, "swa.pt is better than best.pt and kept beside it: mAP50-95 %.4f, not %.4f", ours, theirs)
        else:
            target.unlink()
            log.info("The averaged weights are not better and not kept: mAP50-95 %.4f, best.pt %.4f", ours, theirs)
        return {"epochs": kept["epochs"], "metrics": found.metrics, "kept": is_better}

    def _composed(self, plan: Plan, monitor: Monitor) -> dict[str, Any]:
        """Return how many images of the first epoch were real and how many composed, if any were, and all of each."""
        synthesis = plan.inputs.synthesis
        if synthesis is None:
            return {}
        real = len(plan.inputs.dataset.splits["train"])
        images = monitor.images_per_epoch()
        return {"synthetic": {"real": real, "composed": synthesis.num_composed, "images_per_epoch": images}}

    def _test(self, plan: Plan, context: RunContext) -> Evaluation:
        """Evaluate best.pt on the test set, which all folds share."""
        run = context.run
        log.info("On the test set:")
        found = persevere(
            lambda: self._evaluate(plan, context, run.weights / "best.pt", "test", run.plots / "test"), context.recovery
        )
        for line in found.table():
            log.info("%s", line)
        return found

    def _latency(self, plan: Plan, context: RunContext) -> float | None:
        """Return the milliseconds that best.pt takes for one image; None if nobody asked."""
        experiment, inputs, imgsz = plan.experiment, plan.inputs, context.recovery.initial("train.imgsz")
        assert isinstance(experiment, DetectExperiment)
        if not experiment.train.measure_latency:
            return None
        found = persevere(
            lambda: latency_ms(
                context.run.weights / "best.pt",
                inputs.dataset.splits["val"].images,
                config=experiment.predict,
                imgsz=imgsz,
                device=inputs.device,
                output_dir=context.run.path,
                options=passed_through(experiment),
            ),
            context.recovery,
        )
        log.info("Latency: %.2f ms for one image of %d px, network and boxes (%s)", found, imgsz, inputs.device)
        return found

    def _evaluate(self, plan: Plan, context: RunContext, model: Path, split: str, output_dir: Path) -> Evaluation:
        experiment, inputs, recovery = plan.experiment, plan.inputs, context.recovery
        assert isinstance(experiment, DetectExperiment) and inputs.dataset is not None
        recovery.stop_if_due()
        return evaluate(
            model,
            inputs.dataset,
            split,
            imgsz=recovery.initial("train.imgsz"),
            batch=recovery.initial("train.val_batch"),
            at_once=experiment.train.val_batch,
            device=inputs.device,
            workers=experiment.train.workers,
            cache_dir=inputs.cache_dir,
            output_dir=output_dir,
            options=passed_through(experiment),
        )

    def _try_export(
        self, plan: Plan, context: RunContext, model: Path, output_dir: Path
    ) -> tuple[list[dict[str, Any]], ExportError | None]:
        """Export what is asked for; a failure is returned, so that the rest of the run is recorded all the same."""
        experiment, inputs, recovery = plan.experiment, plan.inputs, context.recovery
        assert isinstance(experiment, DetectExperiment)
        if not experiment.export.formats:
            return [], None
        recovery.at(EXPORT)

        def attempt() -> list[dict[str, Any]]:
            recovery.stop_if_due()
            return export_model(
                model,
                experiment.export.formats,
                config=experiment.export,
                imgsz=recovery.initial("train.imgsz"),
                device="cpu" if experiment.export.device == "cpu" else inputs.device,
                dataset=inputs.dataset,
                split="val" if experiment.mode == "train" else experiment.data.split,
                workers=experiment.train.workers,
                cache_dir=inputs.cache_dir,
                output_dir=output_dir,
                options=passed_through(experiment),
            )

        try:
            return persevere(attempt, recovery), None
        except ExportError as error:
            return error.exports, error
