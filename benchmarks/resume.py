"""Does a run that is killed and resumed end like one that was not? Ours and ultralytics' side by side, and the price.

    .venv/bin/python benchmarks/resume.py             # about 4 minutes on two cores

1. Ours, on a small built-in demo set, 4 epochs of 64 px: uninterrupted; killed with SIGKILL, the whole process group,
   in the middle of epoch 3, and resumed; killed three times, once of them while a state is written. Compared are all
   numbers of the last state (full precision), results.csv and the TensorBoard curves (without those of times).
2. Ultralytics, on the same data with the same settings: twice uninterrupted; killed at the same batch, and resumed
   with `resume=True`. Compared are the numbers in last.pt (half precision) and results.csv.
3. What saving costs in a short run of `preset=demo`: the share of an epoch's time in which training stands still for
   it, what writing a state takes in the background, and the size of the file.

The kill is the process's own, at a chosen call of a library function, so that it comes in mid-epoch on any machine.
Exit status 1 if ours differs at all, or if saving takes more than 2 % of an epoch.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from faults import KILL, TRAINING, Fault
from side_by_side import (
    Commands,
    command_line,
    load_state,
    machine,
    newest_state,
    ours,
    small_demo_set,
    theirs,
    yolo_settings,
)

GOAL = 0.02
WRITINGS = 5
EPOCHS, IMAGES, BATCH = 4, 64, 8
BATCHES = IMAGES // BATCH


@dataclass
class Difference:
    """How far two runs are apart: the largest difference of any number, None where there is nothing to compare.

    Attributes:
        weights: What the optimizer trains, and its moving average.
        rest: What else the last file holds: statistics of batch norm and, in our state, the optimizer and generators.
        results: results.csv without times.
        curves: TensorBoard's, without times.
    """

    weights: float
    rest: float
    results: float
    curves: float | None


def killed_at_batch(number: int) -> Fault:
    """Return a kill of the whole process group in a batch, counted from the start of the process."""
    return Fault("ultralytics.nn.tasks", "DetectionModel.loss", number, KILL, TRAINING)


def killed_while_saving(number: int) -> Fault:
    """Return one in a call of torch.save: ours saves a state, then weights, then the next epoch's state."""
    return Fault("torch.serialization", "save", number, KILL)


ONCE = (killed_at_batch(2 * BATCHES + BATCHES // 2),)
"""In the middle of epoch 3."""
THREE_TIMES = (killed_at_batch(BATCHES // 2), killed_while_saving(3), killed_at_batch(2 * BATCHES + BATCHES // 2))
"""In epoch 1, when there is no state yet; while the state of epoch 2 is written; in epoch 4."""


class Bench:
    """Runs both sides on one small demo set in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.commands = folder, Commands(folder)
        self.data = small_demo_set(folder, IMAGES, 16)

    def overrides(self, name: str) -> list[str]:
        """Return what is typed for one run of ours; mosaic and accumulation make it harder to repeat."""
        return [
            "preset=demo", "gpu_tier=cpu", "train.device=cpu", f"data.path={self.data}",
            f"data.cache_dir={self.folder / 'cache'}", f"output_dir={self.folder / 'ours' / name}",
            f"train.epochs={EPOCHS}", "train.imgsz=64", f"train.batch={BATCH}", f"train.nbs={2 * BATCH}",
            "augmentation.mosaic=1", "train.close_mosaic=1", "optimizer.warmup_epochs=1", "tensorboard.serve=false",
        ]  # fmt: skip

    def train_ours(self, name: str, kills: Sequence[Fault] = ()) -> Path:
        """Train, killed and resumed as often as there are kills; return the run's directory."""
        command = ours(*self.overrides(name))
        for kill in kills:
            self.commands.run(command, kill)
            command = ours(f"resume={self._directory(name)}")
        self.commands.succeed(command)
        return self._directory(name)

    def _directory(self, name: str) -> Path:
        (directory,) = (self.folder / "ours" / name / "detect").iterdir()
        return directory

    def train_theirs(self, name: str, kills: Sequence[Fault] = ()) -> Path:
        """Train with ultralytics, killed and resumed likewise; return the run's directory."""
        settings = yolo_settings(self.overrides(name), self.commands.environment)
        project = self.folder / "theirs"
        command = theirs("yolov8n.yaml", settings | {"data": str(self.data), "project": str(project), "name": name})
        for kill in kills:
            self.commands.run(command, kill)
            command = theirs(project / name / "weights" / "last.pt", {"resume": True})
        self.commands.succeed(command)
        return project / name


def leaves(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value in nested containers with its name."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{name}.{key}")
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            yield from leaves(value, f"{name}.{i}")
    else:
        yield name, node


def largest_difference(one: Any, other: Any) -> float:
    """Return the largest difference of any number in two nested containers; infinite where anything else differs."""
    import torch

    first, second = dict(leaves(one)), dict(leaves(other))
    if first.keys() != second.keys():
        return float("inf")
    largest = 0.0
    for name, value in first.items():
        if isinstance(value, torch.Tensor) and value.shape == second[name].shape and value.numel():
            apart = (value.double() - second[name].double()).abs().nan_to_num(nan=float("inf")).max().item()
        elif isinstance(value, int | float) and isinstance(second[name], int | float):
            apart = abs(value - second[name])
        else:
            apart = 0.0 if str(value) == str(second[name]) else float("inf")
        largest = max(largest, apart)
    return largest


def table(path: Path) -> list[dict[str, float | str]]:
    """Return the rows of a results.csv without times."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) if v else "" for k, v in row.items() if k.strip() != "time"} for row in rows]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """Return a run's TensorBoard curves, as TensorBoard's own reader finds them, without those of times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    reader = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    reader.Reload()
    tags = [tag for tag in reader.Tags()["scalars"] if not tag.startswith(("time/", "system/"))]
    return {tag: [(point.step, point.value) for point in reader.Scalars(tag)] for tag in sorted(tags)}


def apart(files: Sequence[Any], runs: Sequence[Path], points: Sequence[Any] | None) -> Difference:
    """Compare what two runs have saved last, their results.csv and their curves."""
    values = [dict(leaves(file)) for file in files]
    trained = [{k: v for k, v in named.items() if is_weight(k)} for named in values]
    rest = [{k: v for k, v in named.items() if not is_weight(k)} for named in values]
    return Difference(
        largest_difference(*trained),
        largest_difference(*rest),
        largest_difference(*(table(run / "results.csv") for run in runs)),
        None if points is None else largest_difference(*points),
    )


def is_weight(name: str) -> bool:
    """Return whether a saved number is one that the optimizer trains, or its moving average."""
    in_network = name.startswith((".model.", ".ema."))
    return in_network and not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def ours_apart(*runs: Path) -> Difference:
    """Compare two runs of ours."""
    return apart([load_state(run) for run in runs], runs, [curves(run) for run in runs])


def theirs_apart(*runs: Path) -> Difference:
    """Compare two runs of ultralytics."""
    import torch

    files = [torch.load(run / "weights" / "last.pt", weights_only=False) for run in runs]
    return apart([{"model": file["model"].state_dict()} for file in files], runs, None)


def cost_of_saving(commands: Commands, epochs: int) -> tuple[float, str]:
    """Train a few epochs of `preset=demo`; return the median share of saving, and lines about it and the file."""
    from hsr_train.engines.states import write_state

    output = commands.folder / "cost"
    words = [f"data.cache_dir={commands.folder / 'cache'}", f"output_dir={output}", "tensorboard.serve=false"]
    commands.succeed(ours("preset=demo", "gpu_tier=cpu", "train.device=cpu", f"train.epochs={epochs}", *words))
    (run,) = (output / "detect").iterdir()
    rows = table(run / "timings.csv")[1:]  # the first epoch holds what happens once
    saving, epoch = ([float(row[name]) for row in rows] for name in ("save_s", "epoch_s"))
    shares = [s / e for s, e in zip(saving, epoch, strict=True)]
    share, epoch_s = statistics.median(shares), statistics.median(epoch)
    state = load_state(run)
    size = newest_state(run).stat().st_size
    parameters = sum(moments["exp_avg"].numel() for moments in state["optimizer"]["state"].values())
    (commands.folder / "again").mkdir()
    writing = []
    for _ in range(WRITINGS):
        started = time.perf_counter()
        write_state(commands.folder / "again", state)
        writing.append(time.perf_counter() - started)
    write_s = statistics.median(writing)
    return share, (
        f"Training stands still for {1000 * statistics.median(saving):.0f} ms of {epoch_s:.2f} s while weights and "
        f"state are copied: {share:.2%} of an epoch's time ({min(shares):.2%} to {max(shares):.2%} in {len(shares)} "
        f"epochs). The state is written while the next epoch trains; alone, writing takes {1000 * write_s:.0f} ms "
        f"({write_s / epoch_s:.2%}). A state file: {size / 1e6:.1f} MB, {size / parameters:.1f} bytes for each of "
        f"{parameters / 1e6:.2f} million parameters."
    )


def show(name: str, difference: Difference) -> None:
    """Print one row."""
    cells = ["–" if value is None else f"{value:.3g}" for value in astuple(difference)]
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cost-epochs", type=int, default=6, help="epochs of the run that times the saving")
    options = parser.parse_args()
    from hsr_train.engines.detection.library import bring_up

    print(f"`{command_line()}`: {machine()}\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        bench = Bench(folder)
        bring_up()  # for reading checkpoints here; it changes the environment, of which the commands have a copy
        print("Largest difference to an uninterrupted run with the same settings:\n")
        print("| | weights | what else is saved | results.csv | TensorBoard |\n|---|---|---|---|---|", flush=True)
        reference = bench.train_ours("uninterrupted")
        once = ours_apart(reference, bench.train_ours("once", ONCE))
        show("ours, killed in epoch 3 of 4 and resumed", once)
        three = ours_apart(reference, bench.train_ours("three", THREE_TIMES))
        show("ours, killed three times and resumed", three)
        reference = bench.train_theirs("uninterrupted")
        show("ultralytics, repeated without interruption", theirs_apart(reference, bench.train_theirs("again")))
        show(
            "ultralytics, killed in epoch 3 of 4 and resumed", theirs_apart(reference, bench.train_theirs("once", ONCE))
        )
        share, line = cost_of_saving(bench.commands, options.cost_epochs)
    same = once == three == Difference(0, 0, 0, 0)
    print(f"\n{line}\n\nGoals: no difference: {'met' if same else 'MISSED'}; ", end="")
    print(f"saving takes at most {GOAL:.0%} of an epoch: {'met' if share <= GOAL else 'MISSED'}")
    return 0 if same and share <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
