"""What becomes of a run that is out of memory once? Ours and ultralytics' side by side, at sixteen places.

    .venv/bin/python benchmarks/oom.py             # about 6 minutes on two cores

Each row is a run of yolov8n from random weights, 3 epochs of 64 px on a small built-in demo set, followed by an
export, once with our command and once with ultralytics' own Python interface and the same settings. In each, one call
of one library function raises `torch.cuda.OutOfMemoryError("CUDA out of memory. (injected)")`, or, in a loader worker,
`MemoryError`: the same call of the same function for both. Everything runs on the CPU. Ultralytics' handler looks at
the error's text and not at the device, so that it takes the injected error for a real one.

Exit status 1 unless every run of ours completes, with all epochs, the effective batch that it began with, and a record
(training_result.json, config.yaml) of the change at the right place and epoch.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from faults import GPU_MEMORY, HOST_MEMORY, IN_WORKER, TRAINING, Fault
from side_by_side import Commands, command_line, load_state, machine, ours, small_demo_set, theirs, yolo_settings

EPOCHS, IMAGES, BATCH, WORKERS = 3, 32, 8, 2
BATCHES = IMAGES // BATCH
COLUMNS = ("run", "change or error", "epochs", "effective batch")
ERROR = re.compile(r"^(?:[\w.]*Error|[\w.]*Exception)\b.*|.*\| ERROR +\| .*", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    """One row.

    Attributes:
        place: Where the error comes, in words.
        recorded: The place as our record must name it.
        epoch: In which epoch, counted from 1; None outside of them.
        fault: The error.
    """

    place: str
    recorded: str
    epoch: int | None
    fault: Fault


@dataclass(frozen=True)
class Outcome:
    """What became of one run.

    Attributes:
        completed: The whole of it, with its evaluation and its export.
        truthful: The record holds this one change, at its place and epoch, and config.yaml its value; None where
            there is no record.
        epochs: Rows of results.csv.
        how: What was done about the error, or what it ended with.
        effective_batch: Images per optimizer step: ours, counted over the run; ultralytics', as set in the end. None
            where the run ended early.
    """

    completed: bool
    truthful: bool | None
    epochs: int
    how: str
    effective_batch: float | None


def cases() -> Iterator[Case]:
    """Yield all rows. In mid-epoch is the second batch of four; validation has one batch."""
    tasks, validator = "ultralytics.nn.tasks", "ultralytics.models.yolo.detect.val"
    to_device = Fault(tasks, "DetectionModel.to", 1, GPU_MEMORY)
    yield Case("start: the model to its device", "start", None, to_device)
    for epoch in (1, 2, EPOCHS):
        middle = (epoch - 1) * BATCHES + 2
        forward = Fault(tasks, "DetectionModel.loss", middle, GPU_MEMORY, TRAINING)
        backward = Fault("torch._tensor", "Tensor.backward", middle, GPU_MEMORY)
        step = Fault("torch.optim.adamw", "AdamW.step", middle, GPU_MEMORY)
        validation = Fault(validator, "DetectionValidator.postprocess", epoch, GPU_MEMORY)
        yield Case("forward and loss", "training step", epoch, forward)
        yield Case("backward", "training step", epoch, backward)
        yield Case("optimizer step", "optimizer step", epoch, step)
        yield Case("validation", "validation", epoch, validation)
    final = Fault(validator, "DetectionValidator.postprocess", EPOCHS + 1, GPU_MEMORY)
    yield Case("final evaluation", "final evaluation", None, final)
    yield Case("export: tracing", "export", None, Fault("torch.jit._trace", "trace", 1, GPU_MEMORY))
    # A worker reads half of an epoch, 16 images. The 20th is one of epoch 2, read ahead.
    sample = IMAGES // WORKERS + 4
    worker = Fault("ultralytics.data.base", "BaseDataset.__getitem__", sample, HOST_MEMORY, IN_WORKER)
    yield Case("loader worker: MemoryError", "training step", 2, worker)


class Bench:
    """Runs both sides on one small demo set in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, Commands(folder)
        self.data = small_demo_set(folder, IMAGES, BATCH)
        self.settings = yolo_settings(self.overrides(folder), self.commands.environment)

    def overrides(self, output: Path) -> list[str]:
        """Return what is typed for one run of ours."""
        return [
            "preset=demo", "gpu_tier=cpu", "train.device=cpu", f"data.path={self.data}",
            f"data.cache_dir={self.folder / 'cache'}", f"output_dir={output}", f"train.epochs={EPOCHS}",
            "train.imgsz=64", f"train.batch={BATCH}", f"train.nbs={BATCH}", f"train.val_batch={2 * BATCH}",
            f"train.workers={WORKERS}", "export.formats=[torchscript]", "tensorboard.serve=false",
        ]  # fmt: skip

    def ours(self, number: int, case: Case) -> Outcome:
        """Run our command with the fault."""
        output = self.folder / f"ours{number}"
        done = self.commands.run(ours(*self.overrides(output)), case.fault)
        (run,) = (output / "detect").iterdir()
        completed, truthful, how = done.returncode == 0, None, last_error(done.stdout)
        if completed:
            result = json.loads((run / "training_result.json").read_text(encoding="utf-8"))
            changes = result["recovery"]
            completed = result["status"] == "completed" and len(result["exports"]) == 1
            truthful = is_true(changes, case, yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8")))
            how = described([(change["rung"], change["from"], change["to"]) for change in changes])
        # Each step updates the moving average, and what was undone is not counted: this is what really happened.
        per_step = EPOCHS * IMAGES / load_state(run)["ema_updates"] if completed else None
        return Outcome(completed, truthful, num_rows(run / "results.csv"), how, per_step)

    def theirs(self, number: int, case: Case) -> Outcome:
        """Run ultralytics with the fault."""
        where = {"data": str(self.data), "project": str(self.folder / "theirs"), "name": str(number)}
        command = theirs("yolov8n.yaml", self.settings | where, workers=WORKERS, export="torchscript")
        done = self.commands.run(command, case.fault)
        epochs = num_rows(self.folder / "theirs" / str(number) / "results.csv")
        if done.returncode:
            return Outcome(False, None, epochs, last_error(done.stdout), None)
        last = json.loads(done.stdout.rpartition("RESULT ")[2])
        reduced = re.findall(r"with batch=(\d+)\. Reducing to batch=(\d+)", done.stdout)
        how = described([("batch", before, after) for before, after in reduced])
        return Outcome(True, None, epochs, how, last["batch"] * last["accumulate"])


def is_true(changes: list[dict[str, Any]], case: Case, config: Any) -> bool:
    """Return whether the record is one change at the case's place and epoch, which config.yaml holds too."""
    if len(changes) != 1 or changes[0]["place"] != case.recorded:
        return False
    value = functools.reduce(lambda node, name: node[name], changes[0]["key"].split("."), config)
    return value == changes[0]["to"] and case.epoch in (None, changes[0]["epoch"])


def described(changes: Sequence[tuple[str, Any, Any]]) -> str:
    """Return changes as text: what, before, after."""
    return "; ".join(f"{what} {before} → {after}" for what, before, after in changes) or "nothing recorded"


def num_rows(path: Path) -> int:
    """Return how many epochs a results.csv has."""
    return len(path.read_text(encoding="utf-8").splitlines()) - 1 if path.is_file() else 0


def last_error(output: str) -> str:
    """Return the last line that says what went wrong."""
    lines = ERROR.findall(output) or output.strip().splitlines()
    return str(lines[-1]).rpartition("| ")[2].strip() if lines else "no word"


def row(case: Case, left: Outcome, right: Outcome) -> str:
    """Return one row of the table."""
    cells: list[object] = [case.place, case.epoch or "–"]
    for outcome in (left, right):
        cells += ["completed" if outcome.completed else "**ended**", outcome.how]
        cells += [outcome.epochs, "–" if outcome.effective_batch is None else f"{outcome.effective_batch:g}"]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only places that contain this text")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs at a time; no time is measured")
    options = parser.parse_args()
    chosen = [case for case in cases() if options.only in case.place]
    print(f"`{command_line()}`: {machine()}\n")
    names = [f"{who}: {what}" for who in ("ours", "ultralytics") for what in COLUMNS]
    print(f"| place | epoch | {' | '.join(names)} |\n|{'---|' * (2 + len(names))}", flush=True)
    good, theirs_completed = 0, 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        bench = Bench(Path(folder))
        runs = [
            (case, pool.submit(bench.ours, number, case), pool.submit(bench.theirs, number, case))
            for number, case in enumerate(chosen)
        ]
        for case, left, right in runs:
            outcome = left.result()
            print(row(case, outcome, right.result()), flush=True)
            kept = outcome.epochs == EPOCHS and outcome.effective_batch == BATCH
            good += outcome.completed and bool(outcome.truthful) and kept
            theirs_completed += right.result().completed
    print(
        f"\nCompleted: ours {good} of {len(runs)}, each with {EPOCHS} epochs, the effective batch of {BATCH} and a "
        f"true record; ultralytics {theirs_completed} of {len(runs)}"
    )
    return 0 if good == len(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
