"""The epoch loop of a process that assists another one, which has the run: its share of each batch, and no more."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from hsr_train.config.schema import DetectExperiment
from hsr_train.engines.detection.loop import EpochTimes, Loop, schedule_of
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.engines.states import Saver
from hsr_train.pace import Pace
from hsr_train.recovery import Recovery


class AssistingLoop(Loop):
    """The share of a process that has no directory, validates nothing and says nothing.

    Args:
        trainer: Set up, and restored if the run goes on.
        experiment: With every `auto` decided.
        recovery: Knows where the training is.
        saver: Has nothing to save.
    """

    has_records = False

    def __init__(self, trainer: RunTrainer, experiment: DetectExperiment, recovery: Recovery, saver: Saver) -> None:
        self.trainer, self.experiment, self.recovery, self.saver = trainer, experiment, recovery, saver
        self.pace, self.is_cut, self.schedule = Pace(), False, schedule_of(trainer)

    def _require_records(self) -> None:
        """See the parent; there are none."""

    def _finish_epoch(self, epoch: int, losses: dict[str, float], times: EpochTimes, started: float) -> bool:
        """Wait until the first process has validated; return whether it stops early."""
        return bool(self.trainer.together.of_first(False))

    def _bar(self, epoch: int) -> Any:
        return tqdm(disable=True)
