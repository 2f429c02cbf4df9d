"""Our training beside the `yolo` command's, and beside the ceiling: the same step without a loader.

    .venv/bin/python benchmarks/train_vs_yolo.py SET/data.yaml WEIGHTS.pt            # 45 minutes on two idle cores
    .venv/bin/python benchmarks/train_vs_yolo.py SET/data.yaml WEIGHTS.pt --quick    # 3 minutes; says little
    .venv/bin/python benchmarks/train_vs_yolo.py SET/data.yaml yolov8n yolov8s yolov8m    # on a GPU

A model is a weights file, or a name: then it begins with random weights. All train with the same settings and seeds,
on a copy of the set in a temporary folder: the settings that `--cfg job` prints are handed to `yolo`, so they cannot
drift apart. For each model and seed the runs follow each other: ours, `yolo`, the ceiling (`fed_from_device.py`), and
on a CPU, where `yolo` allows no loader workers, ours with two of them. On a GPU ours is `preset=high_performance`, at
640 px with the batch of the GPU's tier.

An epoch lasts from one row of results.csv to the next, whoever writes it: training, validation, saving and monitoring
are all in it. The first epoch holds what happens once, and the last one plots that only `yolo` draws then: both are
left out, and epochs of the same seed and number are compared. Images/s, the share of time waiting, processor time for
each image and how busy the GPU is (NVML) are of the training part alone, from timings.csv, which `yolo_timed.py` lets
`yolo` write too; there only the first epoch is left out. Start-up lasts from the start of the process to the line that
announces training; the first one of each command checks the labels. Processor time counts the loader workers; unlike
the time on the clock it bears other work on the machine. Accuracy is that of best.pt, measured by plain ultralytics for
both, where training began with a weights file. Exit status 1 if the median ratio of epoch times is above 1.03.
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
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import yaml
from epoch_times import CEILING, OURS, YOLO, Run, report
from run_records import Speed
from side_by_side import command_line, copy_set, environment, machine, ours, yolo_settings

from hsr_train.hardware import detect

GOAL = 1.03
IMAGES_GOAL, BUSY_GOAL = 0.99, 0.95
HERE = Path(__file__).resolve().parent
ANNOUNCES_TRAINING = re.compile(r"\| Training \S+ on \d+ images|Starting training for")
EVALUATE = """
import json, sys
from ultralytics import YOLO
metrics = YOLO(sys.argv[1]).val(data=sys.argv[2], imgsz=int(sys.argv[3]), batch=32, device=sys.argv[4], plots=False)
print("METRICS", json.dumps({"mAP50": metrics.box.map50, "mAP50-95": metrics.box.map}))
"""


class Bench:
    """Runs all commands in `folder` on a copy of the set that `data` describes."""

    def __init__(self, folder: Path, data: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.on_gpu = options.device != "cpu"
        self.data = copy_set(data, folder / "set")
        self.environment = environment(folder)
        self.batch = options.batch or self._tiers_batch()

    def _tiers_batch(self) -> int:
        words = [f"train.device={self.options.device}", f"data.path={self.data}"]
        printed = subprocess.run(
            ours("--cfg", "job", *words), env=self.environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return int(yaml.safe_load(printed.stdout)["train"]["batch"])

    def overrides(self, model: str, seed: int, workers: int, epochs: int) -> list[str]:
        """Return what is typed for one run of ours."""
        options = self.options
        is_file = Path(model).is_file()
        start = [f"model.weights={Path(model).resolve()}"] if is_file else [f"model={model}", "model.weights=scratch"]
        hardware = ["preset=high_performance"] if self.on_gpu else ["gpu_tier=cpu"]
        return [
            *start, *hardware, f"train.device={options.device}", f"data.path={self.data}",
            f"data.cache_dir={self.folder / 'cache'}", f"output_dir={self.folder / 'ours'}", "tensorboard.serve=false",
            f"train.epochs={epochs}", f"train.imgsz={options.imgsz}", f"train.batch={self.batch}",
            f"train.nbs={options.nbs}", f"train.close_mosaic={options.close_mosaic}", "train.patience=100",
            "train.save_period=0", f"train.cache={options.cache}", f"train.seed={seed}", f"train.workers={workers}",
        ]  # fmt: skip

    def ours(self, model: str, seed: int, workers: int, epochs: int, who: str) -> Run:
        """Train with our command, or fed from the device, and evaluate its best.pt."""
        run = Run(who, Path(model).name, seed)
        before = self._our_directories()
        words = self.overrides(model, seed, workers, epochs)
        command = [sys.executable, str(HERE / "fed_from_device.py"), *words] if who == CEILING else ours(*words)
        self._train(run, command, lambda: next(iter(self._our_directories() - before), None))
        (directory,) = self._our_directories() - before
        if who != CEILING:
            run.metrics = self._evaluate(model, directory)
        return run

    def yolo(self, model: str, seed: int, workers: int, epochs: int) -> Run:
        """Train with the `yolo` command, with the settings that ours has, and evaluate its best.pt."""
        run = Run(YOLO, Path(model).name, seed)
        settings = yolo_settings(self.overrides(model, seed, workers, epochs), self.environment)
        start = Path(model).resolve() if Path(model).is_file() else f"{model}.yaml"
        name = f"{Path(model).stem}_{seed}"
        settings |= {"data": self.data, "model": start, "project": self.folder / "theirs", "name": name}
        command = [sys.executable, str(HERE / "yolo_timed.py"), "detect", "train"]
        command += [f"{key}={value}" for key, value in settings.items()]
        directory = self.folder / "theirs" / name
        self._train(run, command, lambda: directory)
        run.metrics = self._evaluate(model, directory)
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
        run.speed = Speed.of(find_directory())

    def _evaluate(self, model: str, directory: Path) -> dict[str, float]:
        """Return the accuracy of best.pt; nothing where training began with random weights, since it says nothing."""
        if not Path(model).is_file():
            return {}
        words = [str(directory / "weights" / "best.pt"), str(self.data), str(self.options.imgsz), self.options.device]
        environment = self.environment | {"YOLO_VERBOSE": "false"}
        output = subprocess.run(
            [sys.executable, "-c", EVALUATE, *words],
            env=environment, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        line = next(line for line in output.stdout.splitlines() if line.startswith("METRICS"))
        metrics: dict[str, float] = json.loads(line.removeprefix("METRICS"))
        return metrics

    def all_of(self, model: str, seed: int) -> Sequence[Any]:
        """Return the runs of a model and a seed, each to be called."""
        options = self.options
        same = model, seed, options.workers, options.epochs
        runs: list[Any] = [lambda: self.ours(*same, OURS), lambda: self.yolo(*same), lambda: self.ours(*same, CEILING)]
        if options.worker_epochs:
            runs.append(lambda: self.ours(model, seed, 2, options.worker_epochs, "ours, 2 workers"))
        return runs


def cpu_time(process: psutil.Process) -> float:
    """Return the processor seconds that a process and its children have used so far."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [process, *process.children(recursive=True)]
        return sum(member.cpu_times().user + member.cpu_times().system for member in family)
    return math.nan


def parsed() -> argparse.Namespace:
    """Return what was typed, with defaults that suit the device."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="data.yaml of a YOLO set whose files all lie beside it")
    parser.add_argument("models", nargs="+", help="pretrained .pt files, or names such as yolov8s")
    parser.add_argument("--quick", action="store_true", help="one seed, 3 epochs, 96 px: does it run at all")
    parser.add_argument("--device", help="cpu, or a GPU's number; default: the first GPU if there is one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--workers", type=int, help="default: 0, which is all that yolo allows on a CPU; on a GPU 8")
    parser.add_argument("--worker-epochs", type=int, help="epochs of our runs with two workers, 0: none; on a CPU 4")
    parser.add_argument("--imgsz", type=int, help="default: 320, on a GPU 640")
    parser.add_argument("--batch", type=int, help="default: 16, on a GPU the tier's")
    parser.add_argument("--nbs", type=int, help="default: 32, on a GPU 64")
    parser.add_argument("--close-mosaic", type=int, default=2)
    parser.add_argument("--cache", choices=("none", "ram", "disk"), help="default: none, on a GPU disk")
    parser.add_argument("--json", type=Path, help="also write every measurement here")
    options = parser.parse_args()
    options.device = options.device or ("0" if detect().gpus else "cpu")
    cores = detect().cores
    on_cpu = {"workers": 0, "worker_epochs": 4, "imgsz": 320, "batch": 16, "nbs": 32, "cache": "none"}
    on_gpu = {"workers": min(8, cores), "worker_epochs": 0, "imgsz": 640, "batch": None, "nbs": 64, "cache": "disk"}
    for name, value in (on_cpu if options.device == "cpu" else on_gpu).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.quick:
        options.seeds, options.epochs, options.imgsz = [0], 3, 96
        options.worker_epochs = min(options.worker_epochs, 3)
        options.close_mosaic = 1
    return options


def main() -> int:
    options = parsed()
    print(f"`{command_line()}`: {machine()}\n")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.data, options)
        print(
            f"device {options.device}, {options.imgsz} px, batch {bench.batch}, {options.workers} workers", flush=True
        )
        for model in options.models:
            for seed in options.seeds:
                for measure in bench.all_of(model, seed):
                    run = measure()
                    runs.append(run)
                    accuracy = "".join(f", {name} {value:.4f}" for name, value in run.metrics.items())
                    print(
                        f"{run.model}, {run.who}, seed {seed}: start-up {run.startup_s:.1f} s, epochs "
                        f"{' '.join(f'{s:.2f}' for s in run.epochs_s)} s, CPU {run.cpu_s:.0f} s, "
                        f"{run.speed.images_per_s:.1f} images/s, load before {run.load_before:.2f}{accuracy}",
                        flush=True,
                    )
    if options.json:
        options.json.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n", encoding="utf-8")
    print()
    found = report(runs)
    for model, (epochs, images) in found.items():
        print(
            f"\n{model}: goal: epochs of at most {GOAL} of yolo's: {_verdict(epochs <= GOAL)} ({epochs:.3f}); at least "
            f"{IMAGES_GOAL} of its images/s: {_verdict(images >= IMAGES_GOAL)} ({images:.3f})"
        )
        busy = [r.speed.gpu_util for r in runs if (r.model, r.who) == (model, OURS) and r.speed and r.speed.gpu_util]
        if busy:
            print(f"GPU busy at least {BUSY_GOAL:.0%}: {_verdict(min(busy) >= BUSY_GOAL)} ({min(busy):.1%})")
    return 0 if all(epochs <= GOAL for epochs, _ in found.values()) else 1


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
