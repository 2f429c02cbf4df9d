"""Our measured batch (`train.batch=probe`) beside ultralytics' estimate (`batch=-1`), on cards of four sizes.

    python benchmarks/probe_vs_autobatch.py            # needs a GPU of 24 GB or more; an hour
    python benchmarks/probe_vs_autobatch.py --models yolov8n --sizes 8 --epochs 1

The smaller cards are imitated (`capped.py`): torch gets only a part of the GPU's memory, and who asks for the card's
size is told of the small one. Each row is two real trainings at 640 px from random weights, with the same settings but
the batch: which batch was found, how much of the card the training took at its peak, and how often memory ran out in
it (in the search for a batch it may). Goals: no shortage, and at most `hardware.max_vram_utilization` of the card. The
probe reckons with the worst case of objects in an image, which these trainings need not meet. Exit status 1 if a goal
is missed or there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from capped import ANSWER, CONTEXT_GIB, GIB
from run_records import Speed
from side_by_side import command_line, copy_set, environment, machine, small_demo_set, yolo_settings

from hsr_train.hardware import detect

CAPPED = Path(__file__).resolve().parent / "capped.py"
SHARE = 0.85  # hardware.max_vram_utilization


@dataclass(frozen=True)
class Outcome:
    """One training.

    Attributes:
        batch: Found by the search; None where there was none.
        batch_after: In the end.
        shortages: While it trained.
        share: Of the card at the peak, with what CUDA takes for itself; None where no epoch was completed.
        error: The last line of a command that failed.
    """

    batch: int | None
    batch_after: int | None
    shortages: int
    share: float | None
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Whether it ended well within the card."""
        return not self.error and not self.shortages and self.share is not None and self.share <= SHARE


class Bench:
    """Runs both sides in `folder`."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.environment = environment(folder, CUDA_VISIBLE_DEVICES=os.environ.get("CUDA_VISIBLE_DEVICES", "0"))
        self.data = copy_set(options.data, folder / "set") if options.data else small_demo_set(folder, 512, 64)

    def overrides(self, model: str, output: Path, batch: str) -> list[str]:
        """Return what is typed for one run of ours."""
        return [
            f"model={model}", "model.weights=scratch", f"data.path={self.data}", f"output_dir={output}",
            f"data.cache_dir={output / 'cache'}", "train.device=0", f"train.batch={batch}", "train.amp=true",
            f"train.imgsz={self.options.imgsz}", f"train.epochs={self.options.epochs}", "train.close_mosaic=0",
            "train.patience=0", "train.save_period=0", "train.cache=none", "train.workers=4", "tensorboard.serve=false",
        ]  # fmt: skip

    def ours(self, model: str, gib: int) -> Outcome:
        """Train with the batch that our probe finds; nothing is known from an earlier row."""
        output = self.folder / f"ours_{model}_{gib}"
        return self._outcome(gib, ["ours", *self.overrides(model, output, "probe")], output / "detect")

    def yolo(self, model: str, gib: int) -> Outcome:
        """Train with the batch that ultralytics estimates."""
        output = self.folder / f"yolo_{model}_{gib}"
        settings = yolo_settings(self.overrides(model, output, "16"), self.environment)
        settings |= {"data": self.data, "model": f"{model}.yaml", "project": output, "name": "run", "batch": -1}
        words = [f"{key}={value}" for key, value in settings.items()]
        return self._outcome(gib, ["yolo", "detect", "train", *words], output)

    def _outcome(self, gib: int, words: Sequence[str], parent: Path) -> Outcome:
        done = subprocess.run(
            [sys.executable, str(CAPPED), str(gib), *words], env=self.environment, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
        return outcome(done.stdout, done.returncode, gib, next(parent.glob("*/timings.csv"), None))


def outcome(output: str, status: int, gib: int, timings: Path | None) -> Outcome:
    """Return what a capped training came to.

    Args:
        output: What it printed, with the line of `capped.Story`.
        status: Its exit status.
        gib: The card.
        timings: Its timings.csv, if it came so far.
    """
    *before, last = output.split(ANSWER)
    told = json.loads(last.splitlines()[0]) if before else {}
    peak_gib = Speed.of(timings.parent).gpu_gib if timings and len(timings.read_text().splitlines()) > 1 else None
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith(ANSWER)]
    return Outcome(
        told.get("batch") or None,
        told.get("batch_after") or None,
        told.get("shortages", 0),
        None if peak_gib is None else (peak_gib + CONTEXT_GIB) / gib,
        lines[-1][-120:] if status and lines else "",
    )


def row(model: str, gib: int, sides: Sequence[Outcome]) -> str:
    """Return one line of the table."""
    cells = [model, f"{gib} GB"]
    for side in sides:
        shrunk = f" → {side.batch_after}" if side.batch_after != side.batch else ""
        cells += [
            "–" if side.batch is None else f"{side.batch}{shrunk}",
            "–" if side.share is None else f"{side.share:.0%}",
            f"{side.shortages}" + (f"; ended: {side.error}" if side.error else ""),
        ]
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["yolov8n", "yolov8m", "yolov8x"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[6, 8, 12, 24], help="of the cards, in GB")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--data", type=Path, help="data.yaml whose files lie beside it; default: 512 drawn images")
    options = parser.parse_args()
    gpus = detect().gpus
    if not gpus:
        sys.exit(f"probe_vs_autobatch.py needs a GPU: {detect().gpu_note or 'there is none'}. Nothing was measured.")
    sizes = [size for size in options.sizes if size * GIB <= gpus[0].total_bytes]
    print(f"`{command_line()}`: {machine()}; {gpus[0].describe()}")
    for size in options.sizes:
        if size not in sizes:
            print(f"{size} GB: not measured, the card has less")
    print("\n| model | card | ours: batch | peak | shortages | batch=-1: batch | peak | shortages |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options)
        for model in options.models:
            for gib in sizes:
                sides = bench.ours(model, gib), bench.yolo(model, gib)
                good += sides[0].is_good
                print(row(model, gib, sides), flush=True)
    wanted = len(options.models) * len(sizes)
    print(f"\nOurs without a shortage and within {SHARE:.0%} of the card: {good} of {wanted}")
    return 0 if good == wanted else 1


if __name__ == "__main__":
    sys.exit(main())
