"""Private training: what a step costs beside a plain one, and how accurate a network is at which epsilon.

    .venv/bin/python benchmarks/classify_dp.py            # 5 minutes on two cores

The images are the handwritten digits that scikit-learn brings along (1,797 of 8 x 8 pixels, ten classes), enlarged to
32 x 32 and written as PNG files by split and class: 1,297 for training, 200 for validation, 300 for the test. Our
command trains a small transformer of timm on them from random weights, first plainly and then with `trainer=dp` at each
`--epsilon`. The accuracy is that of the last epoch's weights on the test images, so that nothing is chosen.

A step's cost is compared between runs of the same network, batch and images, in images per second as timings.csv has
them, without the first epoch; private batches are Poisson samples of about that size.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from classify_sets import run_checked, spread, train_ours
from side_by_side import command_line, machine, ours
from sklearn.datasets import load_digits

NETWORK, COSTS = "timm/test_vit", ("timm/test_vit", "resnet18")
SPLITS = {"test": 300, "val": 200, "train": 1297}
FEW = {"val": 32, "train": 256}  # enough to time a step
SIDE_PX = 32


@dataclass
class Trained:
    """A run: its directory, images per second of each epoch but the first, and its last epsilon (0: not private)."""

    directory: Path
    speeds: list[float]
    epsilon: float


def write_digits(root: Path, counts: dict[str, int]) -> Path:
    """Write so many digits of each split as `<split>/<class>/<number>.png` and return the folder."""
    digits = load_digits()
    splits = [split for split, count in counts.items() for _ in range(count)]
    order = np.random.default_rng(0).permutation(len(digits.images))
    for split, number in zip(splits, order[: len(splits)], strict=True):
        file = root / split / str(digits.target[number]) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = np.round(digits.images[number] * (255 / 16)).astype(np.uint8)
        cv2.imwrite(str(file), cv2.resize(picture, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_CUBIC))
    return root


def train(data: Path, folder: Path, network: str, batch: int, epochs: int, *more: str) -> Trained:
    """Train a network from random weights."""
    directory = train_ours(
        [
            f"data.path={data}", f"model.name={network}", "model.weights=scratch", f"train.imgsz={SIDE_PX}",
            f"train.batch={batch}", f"train.epochs={epochs}", "augmentation=classify_none", "train.workers=0",
            "tensorboard.enabled=false", *more,
        ],
        folder,
    )  # fmt: skip
    with (directory / "timings.csv").open(encoding="utf-8") as file:
        speeds = [float(row["images_per_s"]) for row in csv.DictReader(file)][1:]
    with (directory / "results.csv").open(encoding="utf-8") as file:
        last = list(csv.DictReader(file))[-1]
    return Trained(directory, speeds, float(last.get("epsilon", 0)))


def test_accuracy(trained: Trained, data: Path, folder: Path) -> float:
    """Return the accuracy of last.pt on the test images, by `mode=validate`."""
    output = folder / "validated" / trained.directory.name
    words = ["mode=validate", f"model.weights={trained.directory / 'weights' / 'last.pt'}", f"data.path={data}"]
    run_checked(ours("task=classify", *words, "data.split=test", f"output_dir={output}"), folder)
    (found,) = output.rglob("classification_report_test.json")
    return float(json.loads(found.read_text(encoding="utf-8"))["accuracy"])


def costs(folder: Path, options: argparse.Namespace) -> None:
    """Print how many times longer a private step takes, for each network."""
    data = write_digits(folder / "few", FEW)
    print("| network | plain, images/s | private, images/s | plain / private |\n|---|---|---|---|")
    for network in COSTS:
        speeds: dict[str, list[float]] = {"standard": [], "dp": []}
        for _ in range(options.repeats):
            for trainer, measured in speeds.items():
                private = ["trainer.noise_multiplier=1", "trainer.target_epsilon=1000"] if trainer == "dp" else []
                run = train(data, folder, network, 32, 3, f"trainer={trainer}", *private, "optimizer.lr=0.0001")
                measured.append(statistics.median(run.speeds))
        ratios = [plain / private for plain, private in zip(*speeds.values(), strict=True)]
        cells = [spread(speeds["standard"], 0), spread(speeds["dp"], 0), spread(ratios, 1)]
        print(f"| {network} | {' | '.join(cells)} |", flush=True)


def accuracies(data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Print the accuracy at each epsilon, plain training first."""
    print("\n| trainer | epsilon at delta 1e-5 | test accuracy: mean (by seed) |\n|---|---|---|")
    plain = ["optimizer.lr=0.001"]
    budgets = [None, *options.epsilon]
    for budget in budgets:
        words, batch, epochs = plain, 32, options.plain_epochs
        if budget is not None:
            words = ["trainer=dp", f"trainer.target_epsilon={budget}", f"optimizer.lr={options.lr}"]
            words += [f"trainer.gradient_accumulation_steps={options.accumulate}"]
            batch, epochs = 128, options.epochs
        found, epsilon = [], 0.0
        for seed in options.seeds:
            run = train(data, folder, NETWORK, batch, epochs, f"train.seed={seed}", *words)
            epsilon = max(epsilon, run.epsilon)
            found.append(test_accuracy(run, data, folder))
        name = "standard" if budget is None else "dp"
        by_seed = ", ".join(f"{accuracy:.3f}" for accuracy in found)
        print(f"| {name} | {epsilon:.2f} | {statistics.mean(found):.3f} ({by_seed}) |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epsilon", type=float, nargs="+", default=[3.0, 8.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=15, help="of private training")
    parser.add_argument("--plain-epochs", type=int, default=15)
    parser.add_argument("--accumulate", type=int, default=2, help="batches of 128 images to a private step")
    parser.add_argument("--lr", type=float, default=0.003, help="of private training")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each kind whose cost is compared")
    options = parser.parse_args()
    print(f"{command_line()}\n{machine('torch', 'opacus', 'timm')}\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        costs(folder, options)
        accuracies(write_digits(folder / "digits", SPLITS), folder, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
