"""Our training beside the `yolo` command's: time per epoch, start-up and accuracy.

    .venv/bin/python benchmarks/train_vs_yolo.py SET/data.yaml WEIGHTS.pt            # 30 minutes on two idle cores
    .venv/bin/python benchmarks/train_vs_yolo.py SET/data.yaml WEIGHTS.pt --quick    # 2 minutes; says little

Both train from the same weights, with the same settings and seeds, on a copy of the set in a temporary folder: the
settings that `--cfg job` prints are handed to `yolo`, so they cannot drift apart. For each seed three runs follow each
other: ours without loader workers, `yolo` (which allows none on a CPU), and ours with two workers for a few epochs.

An epoch lasts from one row of results.csv to the next, whoever writes it: training, validation, saving and monitoring
are all in it. The first epoch holds what happens once, and the last one plots that only `yolo` draws then: both are
left out, and epochs of the same seed and number are compared. Start-up lasts from the start of the process to the line
that announces training; the first one of each command checks the labels. The processor time of an epoch is taken
too, with the loader workers' share: unlike the time on the clock it bears other work on the machine. Accuracy is that
of best.pt, measured by plain ultralytics for both. Exit status 1 if the median ratio of epoch times is above 1.03.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from side_by_side import copy_set, environment, yolo_settings

GOAL = 1.03
ANNOUNCES_TRAINING = re.compile(r"\| Training \S+ on \d+ images|Starting training for")
EVALUATE = """
import json, sys
from ultralytics import YOLO
metrics = YOLO(sys.argv[1]).val(data=sys.argv[2], imgsz=int(sys.argv[3]), batch=32, device="cpu", plots=False)
print("METRICS", json.dumps({"mAP50": metrics.box.map50, "mAP50-95": metrics.box.map}))
"""


@dataclass
class Run:
    """One training run: who, with which seed, and what was measured; all times in seconds."""

    who: str
    seed: int
    startup_s: float = 0.0
    epochs_s: list[float] = field(default_factory=list)
    epochs_cpu_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    cpu_s: float = 0.0
    load_before: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


class Bench:
    """Runs both commands in `folder` on a copy of the set that `data` describes."""

    def __init__(self, folder: Path, data: Path, weights: Path, options: argparse.Namespace) -> None:
        self.folder, self.weights, self.options = folder, weights.resolve(), options
        self.data = copy_set(data, folder / "set")
        self.environment = environment(folder)

    def overrides(self, seed: int, workers: int, epochs: int) -> list[str]:
        """Return what is typed for one run of ours."""
        options = self.options
        return [
            f"data.path={self.data}", f"data.cache_dir={self.folder / 'cache'}", f"model.weights={self.weights}",
            f"output_dir={self.folder / 'ours'}", "tensorboard.serve=false", "gpu_tier=cpu", "train.device=cpu",
            f"train.epochs={epochs}", f"train.imgsz={options.imgsz}", f"train.batch={options.batch}",
            f"train.nbs={options.nbs}", f"train.close_mosaic={options.close_mosaic}", "train.patience=100",
            "train.save_period=0", f"train.cache={options.cache}", f"train.seed={seed}", f"train.workers={workers}",
        ]  # fmt: skip

    def ours(self, seed: int, workers: int, epochs: int) -> Run:
        """Train with our command and evaluate its best.pt."""
        run = Run(f"ours, {workers} workers", seed)
        before = self._our_directories()
        command = [sys.executable, "-m", "hsr_train", *self.overrides(seed, workers, epochs)]
        self._train(run, command, lambda: next(iter(self._our_directories() - before), None))
        (directory,) = self._our_directories() - before
        run.metrics = self._evaluate(directory / "weights" / "best.pt")
        return run

    def yolo(self, seed: int, epochs: int) -> Run:
        """Train with the `yolo` command, with the settings that ours has, and evaluate its best.pt."""
        run = Run("yolo", seed)
        settings = yolo_settings(self.overrides(seed, 0, epochs), self.environment)
        settings |= {"data": self.data, "model": self.weights, "project": self.folder / "theirs", "name": f"seed{seed}"}
        command = [str(Path(sys.executable).with_name("yolo")), "detect", "train"]
        command += [f"{key}={value}" for key, value in settings.items()]
        directory = self.folder / "theirs" / f"seed{seed}"
        self._train(run, command, lambda: directory)
        run.metrics = self._evaluate(directory / "weights" / "best.pt")
        return run

    def _our_directories(self) -> set[Path]:
        return set((self.folder / "ours" / "detect").glob("*"))

    def _train(self, run: Run, command: list[str], find_directory: Any) -> None:
        """Run a training command and take the times at which it starts to train and its results grow."""
        run.load_before = os.getloadavg()[0]
        spent = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.time()
        log = self.folder / "last_command.log"
        process = subprocess.Popen(
            command, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace",
        )  # fmt: skip
        watched = psutil.Process(process.pid)
        announced: list[float] = []

        def read() -> None:
            assert process.stdout is not None
            with log.open("w", encoding="utf-8") as file:
                for line in process.stdout:
                    if ANNOUNCES_TRAINING.search(line):
                        announced.append(time.time())
                    file.write(line)

        reader = threading.Thread(target=read)
        reader.start()
        rows: list[float] = []
        spent_at: list[float] = []  # processor time when training is announced, then at each row
        running = True
        while running:
            running = process.poll() is None
            time.sleep(0.05)
            if announced and not spent_at:
                spent_at.append(cpu_time(watched))
            directory = find_directory()
            table = directory / "results.csv" if directory else None
            if table and table.is_file():
                # The row's own time: what is between two polls does not matter.
                moment, count = table.stat().st_mtime, len(table.read_text(encoding="utf-8").splitlines()) - 1
                if count > len(rows):
                    rows.append(moment)
                    spent_at.append(cpu_time(watched))
        reader.join()
        if process.returncode or not announced:
            sys.exit(
                f"exit status {process.returncode}: {' '.join(command)}\n{log.read_text(encoding='utf-8')[-4000:]}"
            )
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        run.total_s = time.time() - started
        run.cpu_s = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
        run.startup_s = announced[0] - started
        run.epochs_s = [end - start for start, end in zip([announced[0], *rows], rows, strict=False)]
        run.epochs_cpu_s = [end - start for start, end in itertools.pairwise(spent_at)]

    def _evaluate(self, best: Path) -> dict[str, float]:
        command = [sys.executable, "-c", EVALUATE, str(best), str(self.data), str(self.options.imgsz)]
        environment = self.environment | {"YOLO_VERBOSE": "false"}
        output = subprocess.run(command, env=environment, cwd=self.folder, capture_output=True, text=True, check=True)
        line = next(line for line in output.stdout.splitlines() if line.startswith("METRICS"))
        metrics: dict[str, float] = json.loads(line.removeprefix("METRICS"))
        return metrics


def cpu_time(process: psutil.Process) -> float:
    """Return the processor seconds that a process and its children have used so far."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        return sum(member.cpu_times().user + member.cpu_times().system for member in family)
    return math.nan


def counted(run: Run, seconds: list[float]) -> dict[int, float]:
    """Return the seconds of the epochs that count, by number: neither the first nor the last, if there are more."""
    last = max(len(run.epochs_s), 3)
    return {number: s for number, s in enumerate(seconds, start=1) if 1 < number < last}


def ratios(ours: Sequence[Run], theirs: Sequence[Run], what: str) -> list[float]:
    """Return our epochs' seconds divided by theirs, for the same seed and number of the epoch."""
    reference = {(run.seed, number): s for run in theirs for number, s in counted(run, getattr(run, what)).items()}
    return [
        s / reference[run.seed, number]
        for run in ours for number, s in counted(run, getattr(run, what)).items() if (run.seed, number) in reference
    ]  # fmt: skip


def spread(values: Sequence[float], digits: int) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(runs: list[Run]) -> float:
    """Print the tables and return the median ratio without workers."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.who, []).append(run)
    print("\n| | s per epoch: median (range) | ratio to yolo | CPU s per epoch | ratio to yolo |")
    print("|---|---|---|---|---|")
    medians = {}
    for who, group in groups.items():
        cells = []
        for what in ("epochs_s", "epochs_cpu_s"):
            ratio = ratios(group, groups["yolo"], what)
            medians[who, what] = statistics.median(ratio)
            seconds = [s for run in group for s in counted(run, getattr(run, what)).values()]
            cells += [spread(seconds, 2), spread(ratio, 3)]
        print(f"| {who} | {' | '.join(cells)} |")
    print(
        "\n| | epochs | mAP50 of best.pt: mean, by seed | mAP50-95: mean, by seed | whole command, s "
        "| first start-up, s | later, s |"
    )
    print("|---|---|---|---|---|---|---|")
    for who, group in groups.items():
        cells = []
        for name in ("mAP50", "mAP50-95"):
            values = [run.metrics[name] for run in group]
            cells.append(f"{statistics.mean(values):.4f} ({', '.join(f'{v:.4f}' for v in values)})")
        later = spread([run.startup_s for run in group[1:]], 1) if group[1:] else ""
        cells += [f"{statistics.median(run.total_s for run in group):.0f}", f"{group[0].startup_s:.1f}", later]
        print(f"| {who} | {len(group[0].epochs_s)} | {' | '.join(cells)} |")
    return medians["ours, 0 workers", "epochs_s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data.yaml of a YOLO set whose files all lie beside it")
    parser.add_argument("weights", type=Path, help="a pretrained .pt file")
    parser.add_argument("--quick", action="store_true", help="one seed, 3 epochs, 96 px: does it run at all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--worker-epochs", type=int, default=4, help="epochs of the runs with two workers, 0: none")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--nbs", type=int, default=32)
    parser.add_argument("--close-mosaic", type=int, default=2)
    parser.add_argument("--cache", choices=("none", "ram", "disk"), default="none")
    parser.add_argument("--json", type=Path, help="also write every measurement here")
    options = parser.parse_args()
    if options.quick:
        options.seeds, options.epochs, options.worker_epochs, options.imgsz = [0], 3, 3, 96
    runs: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.data, options.weights, options)
        for seed in options.seeds:
            for who in ("ours", "yolo", *(("ours with workers",) if options.worker_epochs else ())):
                if who == "yolo":
                    run = bench.yolo(seed, options.epochs)
                elif who == "ours":
                    run = bench.ours(seed, 0, options.epochs)
                else:
                    run = bench.ours(seed, 2, options.worker_epochs)
                runs.append(run)
                print(
                    f"{run.who}, seed {seed}: start-up {run.startup_s:.1f} s, epochs "
                    f"{' '.join(f'{s:.2f}' for s in run.epochs_s)} s, CPU {run.cpu_s:.0f} s, load before "
                    f"{run.load_before:.2f}, mAP50 {run.metrics['mAP50']:.4f}, mAP50-95 {run.metrics['mAP50-95']:.4f}",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n", encoding="utf-8")
    ratio = report(runs)
    verdict = "met" if ratio <= GOAL else "MISSED"
    print(f"\nGoal: a median ratio of at most {GOAL} without workers: {verdict} ({ratio:.3f})")
    return 0 if ratio <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
