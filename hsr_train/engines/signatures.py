"""How weights of one task are recognised by the engine of another, which can only say so.

`classification.weights` and `detection.weights` use it for a message; neither can read the other's files.
"""

from __future__ import annotations

from pathlib import Path

from hsr_train.errors import Problem

CLASSIFIER_FORMAT = "hsr_train classifier 1"
"""Marks our classifiers' files: {"format", "model_name", "classes", "state_dict", ...}."""
DETECTOR_CLASS = "ultralytics.nn.tasks.DetectionModel"
"""What a detector's file, of ours or of ultralytics, names first."""


def belongs_to(task: str, file: Path, what: str, this_task: str) -> Problem:
    """Return the problem of weights that belong to another task.

    Args:
        task: Whose they are.
        file: The weights.
        what: What the file holds, in words.
        this_task: The one that was asked for.
    """
    allowed = f"is {what}, and this is task={this_task}"
    return Problem("model.weights", str(file), allowed, f"type task={task}, or give weights for task={this_task}")
