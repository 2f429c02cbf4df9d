"""The `yolo` command, with a row of timings.csv for each epoch beside its results.csv, as a run of ours writes it.

    python benchmarks/yolo_timed.py detect train data=SET/data.yaml model=yolov8n.yaml epochs=3

The command is the library's own; six of its callbacks take the time, and our sampler and our table do the rest, so
that both sides are measured by the same code. `val_s` holds saving too. Used by `train_vs_yolo.py` and `capped.py`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hsr_train.engines.memory import peak_gpu_gib
from hsr_train.hardware import detect
from hsr_train.hardware.usage import UsageSampler
from hsr_train.run.directory import RunDirectory
from hsr_train.run.throughput import Timings


@dataclass
class Times:
    """Seconds of one epoch."""

    train_s: float = 0.0
    wait_s: float = 0.0
    val_s: float = 0.0
    save_s: float = 0.0


class Stopwatch:
    """Callbacks of one training."""

    def __init__(self) -> None:
        self._times = Times()
        self._started = self._asked = self._trained = 0.0

    def install(self) -> None:
        """Let every trainer that is made from now on call this."""
        from ultralytics.utils.callbacks import base

        for event in ("on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end",
                      "on_train_epoch_end", "on_fit_epoch_end"):  # fmt: skip
            # A function, since the library copies methods together with their object.
            base.default_callbacks[event].append(lambda trainer, event=event: getattr(self, event)(trainer))

    def on_train_start(self, trainer: Any) -> None:
        """Start to sample what the machine does."""
        machine = detect()
        gpu = next((gpu for gpu in machine.gpus if str(trainer.device) == f"cuda:{gpu.index}"), None)
        self._usage = UsageSampler(gpu.uuid if gpu else None, machine.cores)
        self._usage.__enter__()
        self._timings = Timings(RunDirectory(Path(trainer.save_dir)), None, self._usage, 0)

    def on_train_epoch_start(self, _: Any) -> None:
        """Begin an epoch."""
        self._times = Times()
        self._started = self._asked = time.perf_counter()

    def on_train_batch_start(self, _: Any) -> None:
        """Note how long the batch was waited for."""
        self._times.wait_s += time.perf_counter() - self._asked

    def on_train_batch_end(self, _: Any) -> None:
        """Begin to wait for the next batch."""
        self._asked = time.perf_counter()

    def on_train_epoch_end(self, _: Any) -> None:
        """Note the end of the training part; that there is no further batch was waited for, too."""
        self._trained = time.perf_counter()
        self._times.wait_s += self._trained - self._asked
        self._times.train_s = self._trained - self._started

    def on_fit_epoch_end(self, trainer: Any) -> None:
        """Write the row of an epoch; the library calls this once more after its final evaluation."""
        if not self._times.train_s:
            return
        now = time.perf_counter()
        self._times.val_s = now - self._trained
        memory_gib = peak_gpu_gib(trainer.device)
        images = len(trainer.train_loader.dataset)
        self._timings.epoch(
            trainer.epoch + 1, self._times, now - self._started, images=images, gpu_memory_gib=memory_gib
        )
        self._times = Times()


def main() -> None:
    Stopwatch().install()
    from ultralytics.cfg import entrypoint

    entrypoint()


if __name__ == "__main__":
    main()
