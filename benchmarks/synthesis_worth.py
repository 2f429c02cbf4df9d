"""What composed images are worth: mAP on real validation images by ratio, online and offline, at equal cost.

    python benchmarks/synthesis_worth.py demo-few --weights yolov8n.pt --output worth
    python benchmarks/synthesis_worth.py SET/data.yaml --annotated CUTOUTS --backgrounds FOLDER --images 64 \\
        --group '^([0-9]+)_' --weights yolov8n.pt --output worth 'synthetic.objects=[6,12]'

Each cell of the table is one training by the real command, with one ratio and one seed. All take the same number of
optimizer steps, in the same number of epochs: an epoch has a fixed number of samples, of which ratio r leaves one in
1 + r to the real images, listed as often as that takes. So warm-up, rate, the end of mosaic and the number of
validations agree too. `--offline` trains on a list of real and written images instead (mode=synthesize, r for each real
image, written once; their time is not counted). `--equal-time` gives each ratio the steps for which the training time
of ratio 0 suffices. What a step costs is told by the share of training that a run waits for its images, since the
network's part is the same in all of them: other work on the machine slows both parts down alike.

The figure of a cell is that of its last epoch: nothing is chosen by looking at the validation images. A finished cell
is not run again: it is a file in --output, under the hash of everything that it was told.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from side_by_side import command_line, environment, machine, ours

from hsr_train.config.schema import DataConfig
from hsr_train.data.demo import ensure_demo_set
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions

DEMO = "demo-few"
METRIC = "mAP50-95"
SMALL = 0.03
"""A difference in cost per step that is not worth a training of another length."""
RECIPE = [
    "model=yolov8n", "gpu_tier=cpu", "train.device=cpu", "train.workers=0", "train.cache=ram", "train.save_period=0",
    "train.patience=0", "train.close_mosaic=1", "tensorboard.enabled=false", "optimizer.warmup_epochs=0.5",
]  # fmt: skip


@dataclass(frozen=True)
class RealSet:
    """Few real images, the real validation images, and what is composed from."""

    name: str
    names: list[str]
    train: list[str]
    val: list[str]
    annotated: Path
    backgrounds: Path | None
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        kind: online or offline.
        ratio: Composed images for each real one.
        seed: Of training and composition.
        steps: Optimizer steps, a multiple of the epochs.
    """

    kind: str
    ratio: int
    seed: int
    steps: int

    @property
    def title(self) -> str:
        """What a person calls it and the same with other seeds."""
        return f"{self.kind} {self.ratio}" if self.ratio else "0, real images only"


@dataclass(frozen=True)
class Outcome:
    """What a training came to: the metric after its last epoch and at its best, and its cost.

    Attributes:
        last: METRIC of the last epoch.
        best: METRIC of the best epoch.
        map50: mAP50 of the last epoch.
        wait_share: Of the training time, validation left out, the part that went into loading and composing.
        wall_s: The whole command on the clock.
    """

    last: float
    best: float
    map50: float
    wait_share: float
    wall_s: float

    @property
    def step_cost(self) -> float:
        """Time of a training step, relative to the network's part of it."""
        return 1 / (1 - self.wait_share)


class Bench:
    """Runs cells in a folder, and keeps their outcomes there."""

    def __init__(self, real: RealSet, options: argparse.Namespace) -> None:
        self.real, self.options = real, options
        self.folder = Path(options.output).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.environment = environment(self.folder, OMP_NUM_THREADS="1")

    def run(self, cell: Cell) -> Outcome:
        """Return a cell's outcome, training first if it is not there."""
        words = self._words(cell)
        told = {
            "train": self.real.train, "val": self.real.val, "cell": asdict(cell), "words": words,
            "composition": self._composition() if cell.ratio else [], "weights": str(self.options.weights),
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
        name = f"{self.real.name}_{cell.kind}{cell.ratio}_{cell.steps}steps_seed{cell.seed}_{key}"
        file = self.folder / f"{name}.json"
        if not file.is_file():
            outcome = self._train(cell, words, self.folder / name)
            text = json.dumps({"outcome": asdict(outcome), **told}, indent=1)
            file.with_suffix(".part").write_text(text + "\n", encoding="utf-8")
            file.with_suffix(".part").rename(file)
            print(f"{cell.title}, seed {cell.seed}, {cell.steps} steps: {outcome}", file=sys.stderr, flush=True)
        return Outcome(**json.loads(file.read_text(encoding="utf-8"))["outcome"])

    def _words(self, cell: Cell) -> list[str]:
        """Return what the command is told whatever the ratio, but for the places of files."""
        o = self.options
        words = [
            *RECIPE, f"train.epochs={o.epochs}", f"train.imgsz={o.imgsz}", f"train.batch={o.batch}",
            f"train.nbs={o.batch}", f"train.freeze={o.freeze or 'null'}", f"optimizer.lr0={o.lr0}",
            f"train.seed={cell.seed}",
        ]  # fmt: skip
        return [*words, *(w for w in self.real.overrides if not w.startswith("synthetic."))]

    def _composition(self) -> list[str]:
        """Return what is said of composed images, the same online and offline."""
        places = {"annotated_dir": self.real.annotated, "backgrounds_dir": self.real.backgrounds}
        said = [f"synthetic.{key}={place}" for key, place in places.items() if place is not None]
        return said + [word for word in self.real.overrides if word.startswith("synthetic.")]

    def _train(self, cell: Cell, words: list[str], home: Path) -> Outcome:
        shutil.rmtree(home, ignore_errors=True)  # of a training that was interrupted
        samples = cell.steps * self.options.batch // self.options.epochs
        num_real = samples // (1 + cell.ratio)
        listed = _repeated(self.real.train, num_real)
        more = []
        if cell.kind == "offline":
            listed += _repeated(self._written(cell), samples - num_real)
        elif cell.ratio:
            more = [f"synthetic.ratio={cell.ratio}", *self._composition()]
        data = self._describe(home / "set", listed)
        cache = self.folder / "cache"
        more += [f"data.path={data}", f"data.cache_dir={cache}", f"output_dir={home}"]
        command = ours(f"model.weights={self.options.weights.resolve()}", *words, *more)
        began = time.monotonic()
        with (self.folder / f"{home.name}.log").open("w") as log:
            done = subprocess.run(command, env=self.environment, stdout=log, stderr=log, check=False)
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}, see {log.name}")
        (run,) = home.glob("detect/*")
        rows, times = _rows(run / "results.csv"), _rows(run / "timings.csv")
        scores = [float(row[METRIC]) for row in rows]
        share = sum(float(row["wait_s"]) for row in times) / sum(float(row["train_s"]) for row in times)
        shutil.rmtree(home)
        return Outcome(scores[-1], max(scores), float(rows[-1]["mAP50"]), share, time.monotonic() - began)

    def _written(self, cell: Cell) -> list[str]:
        """Return the images of a composed set on disk, writing it first."""
        count = cell.ratio * len(self.real.train)
        what = "_".join(self._composition()) + str([self.real.train, self.options.imgsz])
        key = hashlib.sha256(what.encode()).hexdigest()[:12]
        home = self.folder / "sets" / f"{self.real.name}_{count}_seed{cell.seed}_{key}"
        data = self._describe(home.with_name(f"{home.name}_real"), self.real.train)
        words = [
            "mode=synthesize", f"data.path={data}", f"data.cache_dir={self.folder / 'cache'}", f"output_dir={home}",
            f"synthetic.count={count}", f"train.imgsz={self.options.imgsz}", f"train.seed={cell.seed}",
        ]  # fmt: skip
        command = ours(*words, *self._composition())
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        return sorted(str(path) for path in (home / "images" / "train").iterdir())[:count]

    def _describe(self, folder: Path, train: list[str]) -> Path:
        """Write a data.yaml with these training images and the real validation images."""
        folder.mkdir(parents=True, exist_ok=True)
        names = "".join(f"  {i}: {json.dumps(name)}\n" for i, name in enumerate(self.real.names))
        (folder / "train.txt").write_text("".join(f"{path}\n" for path in train), encoding="utf-8")
        (folder / "val.txt").write_text("".join(f"{path}\n" for path in self.real.val), encoding="utf-8")
        text = f"path: .\ntrain: train.txt\nval: val.txt\nnames:\n{names}"
        (folder / "data.yaml").write_text(text, encoding="utf-8")
        return folder / "data.yaml"


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _repeated(paths: list[str], count: int) -> list[str]:
    """Return a list of `count`, in which each path stands as often as any other, or once more."""
    return (paths * (count // len(paths) + 1))[:count]


def read_set(options: argparse.Namespace) -> RealSet:
    """Return the few real images of a set: all of them, or `--images`, one of each group, drawn with seed 0."""
    folder, overrides = options.output.absolute() / "cache", list(options.overrides)
    annotated, backgrounds = options.annotated, options.backgrounds
    data = Path(options.data)
    if options.data == DEMO:
        data = ensure_demo_set(folder).with_name("few.yaml")
        annotated, backgrounds = data.parent / "annotated", data.parent / "backgrounds"
    elif annotated is None:
        sys.exit("a set other than demo-few needs --annotated")
    if options.training_backgrounds:
        backgrounds = None
    dataset = load_detection_set(DataConfig(path=str(data), cache_dir=str(folder)), Decisions())
    groups: dict[str, list[str]] = {}
    for image in map(str, dataset.splits["train"].images):
        found = re.search(options.group, Path(image).name)
        groups.setdefault(found.group(1) if found else image, []).append(image)
    rng = np.random.default_rng(0)
    chosen = [sorted(groups)[i] for i in rng.permutation(len(groups))[: options.images]]
    train = sorted(groups[key][int(rng.integers(len(groups[key])))] for key in chosen)
    rng.shuffle(train)
    name = DEMO if options.data == DEMO else data.absolute().parent.name
    val = [str(path) for path in dataset.splits["val"].images]
    backgrounds = backgrounds and backgrounds.absolute()
    return RealSet(name, dataset.names, train, val, annotated.absolute(), backgrounds, overrides)


def table(outcomes: dict[Cell, Outcome]) -> list[str]:
    """Return a Markdown table: one line for each kind, ratio and length."""
    lines = [
        f"| composed for each real | steps | {METRIC}: mean, sd | by seed | against ratio 0, by seed | mAP50 | "
        "time of a step, to ratio 0 |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = {cell.seed: outcome.last for cell, outcome in outcomes.items() if not cell.ratio}
    cheapest = _cost(outcomes, 0)
    for title, steps in dict.fromkeys((cell.title, cell.steps) for cell in outcomes):
        group = {c.seed: o for c, o in outcomes.items() if (c.title, c.steps) == (title, steps)}
        values = [outcome.last for outcome in group.values()]
        gains = [outcome.last - plain[seed] for seed, outcome in group.items() if seed in plain]
        shown = ", ".join(f"{gain:+.4f}" for gain in gains) if any(gains) else ""
        deviation = f"{stdev(values):.4f}" if len(values) > 1 else "one seed"
        lines.append(
            f"| {title} | {steps} | {mean(values):.4f}, {deviation} | {', '.join(f'{v:.4f}' for v in values)} | "
            f"{shown} | {mean(o.map50 for o in group.values()):.4f} | "
            f"{mean(o.step_cost for o in group.values()) / cheapest:.2f} |"
        )
    return lines


def _cost(outcomes: dict[Cell, Outcome], ratio: int) -> float:
    """Return the mean cost of a step online."""
    return mean(o.step_cost for cell, o in outcomes.items() if (cell.kind, cell.ratio) == ("online", ratio))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", help=f"{DEMO}, or a data.yaml")
    parser.add_argument("--weights", type=Path, required=True, help="pretrained weights of yolov8n")
    parser.add_argument("--annotated", type=Path, help="synthetic.annotated_dir")
    parser.add_argument("--backgrounds", type=Path, help="synthetic.backgrounds_dir; without: the training images")
    parser.add_argument("--training-backgrounds", action="store_true", help="also for demo-few: the training images")
    parser.add_argument("--images", type=int, help="how many real training images; default: all")
    parser.add_argument("--group", default="^(.*)$", help="of a file's name: images of a group are one scene")
    parser.add_argument("--ratios", type=int, nargs="*", default=[0, 1, 2, 4], help="composed while training")
    parser.add_argument("--offline", type=int, nargs="*", default=[], help="ratios with composed images on disk")
    parser.add_argument("--equal-time", type=int, nargs="*", default=[], help="ratios, with steps for equal time")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--epochs", type=int, default=4, help="in how many epochs the steps are made")
    parser.add_argument("--imgsz", type=int, default=128)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--freeze", type=int, default=10, help="first modules that are not trained")
    parser.add_argument("--lr0", type=float, default=0.004)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, one thread each")
    parser.add_argument("--output", type=Path, required=True, help="folder of the cells")
    parser.add_argument("overrides", nargs="*", help="further settings, such as synthetic.objects=[6,12]")
    options = parser.parse_intermixed_args()
    real = read_set(options)
    bench = Bench(real, options)
    steps = options.steps
    if 0 not in options.ratios:
        sys.exit("--ratios needs a 0, to compare with")
    if steps % options.epochs or any(steps * options.batch // options.epochs % (1 + r) for r in options.ratios):
        sys.exit("--steps must be a multiple of --epochs, and the images of an epoch one of 1 + each ratio")
    cells = [Cell("online", ratio, seed, steps) for seed in options.seeds for ratio in options.ratios]
    cells += [Cell("offline", ratio, seed, steps) for seed in options.seeds for ratio in options.offline]
    with ThreadPoolExecutor(options.jobs) as pool:
        outcomes = dict(zip(cells, pool.map(bench.run, cells), strict=True))
        costs = {ratio: _cost(outcomes, ratio) / _cost(outcomes, 0) for ratio in options.equal_time}
        cells = []
        for ratio, cost in costs.items():
            print(f"ratio {ratio}: a step takes {cost:.3f} times as long as one of ratio 0", file=sys.stderr)
            fewer = round(steps / cost / options.epochs) * options.epochs
            if cost > 1 + SMALL:
                cells += [Cell("online", ratio, seed, fewer) for seed in options.seeds]
        outcomes |= dict(zip(cells, pool.map(bench.run, cells), strict=True))
    print(machine())
    print(f"{real.name}: {len(real.train)} real training images, {len(real.val)} for validation\n`{command_line()}`\n")
    print("\n".join(table(outcomes)))


if __name__ == "__main__":
    main()
