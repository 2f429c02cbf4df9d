"""Weights files: a dictionary of plain values with a state_dict, which torch loads safely and without hsr_train."""

from __future__ import annotations

import io
from typing import Any

import torch

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.training import weights_content
from hsr_train.run.atomic import write_bytes
from hsr_train.run.directory import RunDirectory


def write_weights(
    experiment: ClassifyExperiment, inputs: ClassifyInputs, run: RunDirectory, state: dict[str, Any], imgsz: int
) -> None:
    """Write last.pt of a state, and best.pt and epoch<N>.pt if they are due.

    Also done on resume, since a run may have been killed between its state and its weights files.

    Args:
        experiment: With the name of the network.
        inputs: Classes and normalisation.
        run: The run's directory.
        state: From `Training.snapshot`.
        imgsz: The side in pixels that images are evaluated at.
    """
    number, period = state["epochs_done"], experiment.train.save_period
    targets = [run.weights / "last.pt"]
    if state["best_epoch"] == number:
        targets.append(run.weights / "best.pt")
    if period and number % period == 0:
        targets.append(run.weights / f"epoch{number}.pt")
    content = weights_content(experiment, inputs, imgsz) | {
        "epoch": number,
        "metrics": state["metrics"],
        "state_dict": state["ema"] if state["ema"] is not None else state["model"],
    }
    if state["replaced"]:
        content["replaced"] = state["replaced"]
    if "privacy" in state["policy"]:
        content["private"] = state["policy"]["privacy"]
    buffer = io.BytesIO()
    torch.save(content, buffer)
    for path in targets:
        write_bytes(path, buffer.getbuffer())
