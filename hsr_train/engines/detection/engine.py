"""task=detect: trains, validates, predicts and exports through ultralytics what `preparation.py` has checked."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hsr_train.config.schema import DetectExperiment
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.detection import checkpoint
from hsr_train.engines.detection.evaluate import Evaluation, evaluate
from hsr_train.engines.detection.export import ExportError, export_model
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.monitor import Monitor
from hsr_train.engines.detection.options import passed_through
from hsr_train.engines.detection.predict import predict
from hsr_train.engines.detection.preparation import prepare
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.errors import RunError
from hsr_train.hardware import Machine
from hsr_train.run.atomic import free_space, write_json, write_text
from hsr_train.run.curves import plot_curves
from hsr_train.run.directory import RunDirectory

log = logging.getLogger(__name__)

_STATE_BYTES_PER_PARAMETER = 16
"""Model, EMA and the two moments of an Adam-like optimizer, in float32."""


class DetectionEngine:
    """YOLO detectors."""

    def prepare(self, experiment: DetectExperiment, machine: Machine, decisions: Decisions) -> Plan:
        """See `preparation.prepare`."""
        return prepare(experiment, machine, decisions)

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Train from the start or from the saved state, evaluate best.pt and export it."""
        experiment, inputs, run = plan.experiment, plan.inputs, context.run
        assert isinstance(experiment, DetectExperiment)
        state = checkpoint.load_state(run.state / "last.pt") if context.resuming else None
        start_epoch = state["epochs_done"] if state else 0
        trainer = RunTrainer(experiment, inputs, run, start_epoch)
        try:
            _require_space(trainer, run)
            if state:
                checkpoint.restore_state(trainer, state)
                log.info("Resuming after epoch %d of %d", start_epoch, experiment.train.epochs)
            monitor = Monitor(
                run,
                context.status,
                context.events,
                num_groups=len(trainer.optimizer.param_groups),
                has_dfl=trainer.has_dfl,
                epochs=experiment.train.epochs,
                epochs_done=start_epoch,
            )
            loop = Loop(trainer, experiment, run, monitor, state["best_epoch"] if state else 0)
            epochs_completed = start_epoch if state and state["stopped"] else loop.train()
        finally:
            trainer.close()
        log.info("Evaluating best.pt (epoch %d)", loop.best_epoch)
        best = self._evaluate(plan, run.weights / "best.pt", "val", run.plots)
        for line in best.table():
            log.info("%s", line)
        plot_curves(monitor.results, run.plots / "results.png")
        monitor.pictures(run.plots, "val_batch*.jpg", "val_samples", epochs_completed)
        monitor.pictures(run.plots, "*.png", "plots", epochs_completed)
        exports, failure = self._try_export(plan, run.weights / "best.pt", run.weights)
        return Result(
            run_dir=run.path,
            metrics=best.metrics,
            epochs_completed=epochs_completed,
            best_epoch=loop.best_epoch,
            best_model_path="weights/best.pt",
            last_model_path="weights/last.pt",
            exports=exports,
            failure=failure,
            extra={"per_class": best.per_class, "speed_ms": best.speed_ms},
        )

    def validate(self, plan: Plan, context: RunContext) -> Result:
        """Evaluate given weights on `data.split`."""
        run, split = context.run, plan.experiment.data.split
        assert plan.inputs.weights.file is not None
        evaluation = self._evaluate(plan, plan.inputs.weights.file, split, run.plots)
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
        exports, failure = self._try_export(plan, plan.inputs.weights.file, folder)
        write_json(context.run.path / "exports.json", exports)
        return Result(run_dir=context.run.path, exports=exports, failure=failure)

    def _evaluate(self, plan: Plan, model: Path, split: str, output_dir: Path) -> Evaluation:
        experiment, inputs = plan.experiment, plan.inputs
        assert isinstance(experiment, DetectExperiment) and inputs.dataset is not None
        return evaluate(
            model,
            inputs.dataset,
            split,
            imgsz=experiment.train.imgsz,
            batch=inputs.val_batch,
            device=inputs.device,
            workers=experiment.train.workers,
            cache_dir=inputs.cache_dir,
            output_dir=output_dir,
            options=passed_through(experiment),
        )

    def _try_export(self, plan: Plan, model: Path, output_dir: Path) -> tuple[list[dict[str, Any]], ExportError | None]:
        """Export what is asked for; a failure is returned, so that the rest of the run is recorded all the same."""
        experiment, inputs = plan.experiment, plan.inputs
        assert isinstance(experiment, DetectExperiment)
        if not experiment.export.formats:
            return [], None
        try:
            exports = export_model(
                model,
                experiment.export.formats,
                config=experiment.export,
                imgsz=experiment.train.imgsz,
                device=inputs.device,
                dataset=inputs.dataset,
                split="val" if experiment.mode == "train" else experiment.data.split,
                workers=experiment.train.workers,
                cache_dir=inputs.cache_dir,
                output_dir=output_dir,
                options=passed_through(experiment),
            )
        except ExportError as error:
            return error.exports, error
        return exports, None


def _require_space(trainer: RunTrainer, run: RunDirectory) -> None:
    """Refuse to train what could not be saved: the state in float32, twice while it is replaced, and weights."""
    parameters = sum(p.numel() for p in trainer.model.parameters())
    needed = parameters * (2 * _STATE_BYTES_PER_PARAMETER + 3 * 2)
    if shutil.disk_usage(run.path).free < needed:
        raise RunError(
            f"{run.path}: {free_space(run.path)}, the state and weights of this model need {needed / 1e6:.0f} MB"
        )
