"""What the process of `probe.ProbeProcess` does: train and validate on worst-case batches, and tell the peak.

Usage: python -m hsr_train.engines.detection.probe_child, with a pickled `Request` and then batch sizes on standard
input; an answer for each on standard output: the peak in bytes, None where memory ran out, and what else went wrong.

Network, loss, precision, optimizer, EMA and validation are those of a run (`RunTrainer`, `Loop`); only the images are
made up, each with as many objects as the set's worst.
"""

from __future__ import annotations

import os
import pickle
import re
import resource
import sys
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.probe import Request
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.engines.memory import cause_of, free_memory
from hsr_train.recovery import Recovery
from hsr_train.run.changes import GPU_MEMORY, HOST_MEMORY
from hsr_train.run.directory import RunDirectory

# The second step runs with the optimizer's own memory; each adds up two batches, since gradients then stay meanwhile.
NUM_STEPS = 2
BATCHES_PER_STEP = 2
# Sides of the made-up objects, as fractions of the image.
OBJECT_SIDES = (0.02, 0.2)


class _Trainer(RunTrainer):
    """A run's trainer that draws no pictures."""

    def plot_training_labels(self) -> None:
        """Draw nothing."""


class _Steps(Loop):
    """The loop's own forward and backward pass, without its schedule and records."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer


class _OneBatch:
    """What the validator needs of a loader: one batch, and how many images it has."""

    def __init__(self, batch: dict[str, Any]) -> None:
        self.batch, self.dataset = batch, batch["im_file"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield dict(self.batch)

    def __len__(self) -> int:
        return 1


class Probe:
    """A training that is set up once and measured with several batches, until memory runs out in it.

    Args:
        request: What to measure.
        folder: A temporary folder, where the trainer may write.
    """

    def __init__(self, request: Request, folder: Path) -> None:
        self.request = request
        experiment = deepcopy(request.experiment)  # the request serves again after a shortage
        self._val_batch = experiment.train.val_batch
        experiment.train.val_batch = 1
        run = RunDirectory(folder)
        for place in (run.plots, run.weights):
            place.mkdir(exist_ok=True)
        self.trainer = _Trainer(experiment, request.inputs, run, Recovery(experiment, lambda changes: None))
        self.trainer.epoch = 0
        self.on_gpu = self.trainer.device.type == "cuda"
        stride = int(self.trainer.stride)
        largest = int(experiment.train.imgsz * (1 + float(experiment.train.multi_scale)))
        self._train_side = max(largest // stride, 1) * stride
        self._val_side = experiment.train.imgsz + stride  # rectangular batches are padded by half a stride
        self.trainer.args.multi_scale = 0.0  # the images come in their largest size

    def measure(self, batch: int) -> int | None:
        """Return the peak in bytes with a batch, None where memory ran out. On a CPU it is the process's peak so far.

        Args:
            batch: Images per forward pass in training.
        """
        free_memory()
        self._start_counting()
        ooms = self._num_ooms()
        try:
            self._train(batch)
            self._validate(self._val_batch or 2 * batch)
            # The library catches some shortages and goes on, slowly, on the CPU: that does not fit either.
            fitted = self._num_ooms() == ooms
        except Exception as error:
            if cause_of(error) not in (GPU_MEMORY, HOST_MEMORY):
                raise
            fitted = False
        return self._peak_bytes() if fitted else None

    def _train(self, batch: int) -> None:
        trainer, steps = self.trainer, _Steps(self.trainer)
        trainer._model_train()
        for _ in range(NUM_STEPS):
            for _ in range(BATCHES_PER_STEP):
                steps.backward(self._made_up(batch, self._train_side, self.request.train_objects))
            trainer.optimizer_step()

    def _validate(self, batch: int) -> None:
        made_up = self._made_up(batch, self._val_side, self.request.val_objects)
        self.trainer.validator.dataloader = _OneBatch(made_up)
        self.trainer.validator(self.trainer)

    def _made_up(self, batch: int, side: int, objects: int) -> dict[str, Any]:
        """Return images of noise with objects anywhere, in the form of `RunDataset.collate_fn`."""
        generator = torch.Generator().manual_seed(0)
        count, (least, most) = batch * objects, OBJECT_SIDES
        sides = torch.rand(count, 2, generator=generator) * (most - least) + least
        centres = sides / 2 + torch.rand(count, 2, generator=generator) * (1 - sides)
        num_classes = int(self.trainer.data["nc"])
        return {
            "img": torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, generator=generator),
            "cls": torch.randint(0, num_classes, (count, 1), generator=generator).float(),
            "bboxes": torch.cat([centres, sides], 1),
            "batch_idx": torch.arange(batch).repeat_interleave(objects).float(),
            "im_file": [f"{number}.jpg" for number in range(batch)],
            "ori_shape": [(side, side)] * batch,
            "resized_shape": [(side, side)] * batch,
            "ratio_pad": [((1.0, 1.0), (0.0, 0.0))] * batch,
        }

    def _start_counting(self) -> None:
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.trainer.device)

    def _num_ooms(self) -> int:
        return int(torch.cuda.memory_stats(self.trainer.device)["num_ooms"]) if self.on_gpu else 0

    def _peak_bytes(self) -> int:
        """Return what the process takes of the card at its peak: torch's share, and CUDA's own beside it."""
        device = self.trainer.device
        if not self.on_gpu:
            return _peak_resident_bytes()
        free, _ = torch.cuda.mem_get_info(device)
        outside = max(self.request.free_bytes - free - torch.cuda.memory_reserved(device), 0)
        return torch.cuda.max_memory_reserved(device) + outside


def _peak_resident_bytes() -> int:
    """Return the most main memory that this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # where getrusage begins with what the parent had
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found is not None:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Answer until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not end up among the answers
    request: Request = pickle.load(sys.stdin.buffer)
    with tempfile.TemporaryDirectory(prefix="hsr_train_") as folder:
        probe: Probe | None = None
        while True:
            try:
                batch: int = pickle.load(sys.stdin.buffer)
            except EOFError:
                return
            peak, failure = None, None
            try:
                probe = probe or Probe(request, Path(folder))
                peak = probe.measure(batch)
            except Exception as error:
                if cause_of(error) not in (GPU_MEMORY, HOST_MEMORY):
                    failure = f"{type(error).__name__}: {error}"
            if peak is None:  # what was left in the middle of a step is not gone on with
                probe = None
                free_memory()
            pickle.dump((peak, failure), answers)
            answers.flush()


if __name__ == "__main__":
    main()
