"""Which engine runs a task. The one place to edit when an engine is added.

Values are `module:Class`, imported only when the task is chosen, so that `--help` and `--cfg` stay light.
"""

from __future__ import annotations

from importlib import import_module

from hsr_train.engines.base import Engine
from hsr_train.errors import InputError, Problem

ENGINES = {
    "detect": "hsr_train.engines.detection.engine:DetectionEngine",
    "classify": "hsr_train.engines.classification.engine:ClassificationEngine",
}


def load_engine(task: str) -> Engine:
    """Return a new engine for a task.

    Raises:
        InputError: For a task that has no engine.
    """
    if task not in ENGINES:
        raise InputError(Problem("task", task, f"one of {', '.join(ENGINES)}", f"task={next(iter(ENGINES))}"))
    module, _, name = ENGINES[task].partition(":")
    engine: Engine = getattr(import_module(module), name)()
    return engine
