"""A training on a part of a GPU's memory, as if the card were smaller; for `probe_vs_autobatch.py`.

    python benchmarks/capped.py 8 ours train.batch=probe train.device=0 …    # what is typed after `python -m hsr_train`
    python benchmarks/capped.py 8 yolo detect train batch=-1 device=0 …      # what is typed after `yolo`
    python benchmarks/capped.py 8 probe                                      # our measuring process

Of the first GPU, torch may take so many GiB less what CUDA takes for itself on a card (`CONTEXT_GIB`), and whoever asks
torch or our own detection for the card's size or free memory is told of the smaller card. At its end a line says what
happened from the first training step on: CAPPED {"batch": …, "batch_after": …, "shortages": …}. Unrun where there is no
GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

GIB = 2**30
CONTEXT_GIB = 0.5
ANSWER = "CAPPED "


class Properties:
    """A GPU's properties with another size."""

    def __init__(self, real: Any, total_memory: int) -> None:
        self._real, self.total_memory = real, total_memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def cap(gib: float) -> None:
    """Make the first GPU a smaller one, for this process."""
    import torch

    from hsr_train.hardware import machine, nominal_gb, pin_cuda_order

    pin_cuda_order()
    cuda, total = torch.cuda, int(gib * GIB)
    allowance = total - int(CONTEXT_GIB * GIB)
    properties, list_gpus = cuda.get_device_properties, machine.list_gpus
    cuda.set_per_process_memory_fraction(allowance / properties(0).total_memory, 0)
    cuda.get_device_properties = lambda *where: Properties(properties(*where), total)
    cuda.mem_get_info = lambda *_: (max(allowance - cuda.memory_reserved(0), 0), total)

    def smaller(*args: Any) -> Any:
        gpus, note = list_gpus(*args)
        small = {"total_bytes": total, "free_bytes": total, "nominal_gb": nominal_gb(total)}
        return (replace(gpus[0], **small), *gpus[1:]), note

    machine.list_gpus = smaller


def shortages() -> int:
    """Return how often torch had no memory to give in this process."""
    import torch

    return int(torch.cuda.memory_stats(0).get("num_ooms", 0))


class Story:
    """What became of a training: its batch when it began and when it ended, and the shortages from then on."""

    def __init__(self) -> None:
        self.batch = self.batch_after = self._before = 0

    def begin(self, batch: int) -> None:
        """Note the batch of the first step; only the first beginning counts."""
        if not self.batch:
            self.batch, self._before = batch, shortages()
        self.batch_after = batch

    def tell(self) -> None:
        """Print it."""
        found = {"batch": self.batch, "batch_after": self.batch_after, "shortages": shortages() - self._before}
        print(ANSWER + json.dumps(found), flush=True)


def ours(gib: float, words: list[str], story: Story) -> int:
    """Run our command; the probe's own process is capped like this one."""
    from hsr_train.cli import main
    from hsr_train.engines.detection import loop, probe

    probe.CHILD = (str(Path(__file__).resolve()), str(gib), "probe")
    train = loop.Loop.train

    def noting(this: Any) -> int:
        story.begin(int(this.experiment.train.batch))
        return train(this)

    loop.Loop.train = noting
    return main(words)


def yolo(words: list[str], story: Story) -> int:
    """Run the `yolo` command with our timings.csv; what its search for a batch takes is not part of the peak."""
    import torch

    sys.argv = ["yolo", *words]  # the library remembers them when it is imported
    from ultralytics.cfg import entrypoint
    from ultralytics.utils.callbacks import base
    from yolo_timed import Stopwatch

    def begin(trainer: Any) -> None:
        torch.cuda.reset_peak_memory_stats(0)
        story.begin(int(trainer.batch_size))

    Stopwatch().install()
    base.default_callbacks["on_train_start"].append(begin)
    # After a shortage the library begins the epoch anew with a smaller batch.
    base.default_callbacks["on_train_epoch_start"].append(lambda trainer: story.begin(int(trainer.batch_size)))
    entrypoint()
    return 0


def measure() -> int:
    """Be the process that measures for train.batch=probe."""
    from hsr_train.engines.detection.probe_child import main

    main()
    return 0


def run() -> int:
    gib, who, words = float(sys.argv[1]), sys.argv[2], sys.argv[3:]
    cap(gib)
    story = Story()
    verbs: dict[str, Callable[[], int]] = {
        "ours": lambda: ours(gib, words, story), "yolo": lambda: yolo(words, story), "probe": measure,
    }  # fmt: skip
    try:
        return verbs[who]()
    finally:
        if who != "probe":
            story.tell()


if __name__ == "__main__":
    sys.exit(run())
