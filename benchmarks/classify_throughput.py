"""Our training of a classifier beside a plain PyTorch loop: images per second and time per epoch.

    .venv/bin/python benchmarks/classify_throughput.py                   # 10 minutes, on drawn photographs
    .venv/bin/python benchmarks/classify_throughput.py --data FOLDER     # train/<class> and val/<class>
    .venv/bin/python benchmarks/classify_throughput.py --baseline        # ours alone: 244 images of 2 classes at 224 px

The plain loop is what one writes by hand: ImageFolder, DataLoader, torchvision's v2 transforms on tensors, AdamW with a
cosine, mean loss and accuracy of each epoch, validation, last.pt and best.pt. Network, weights (random), images, batch,
augmentation, optimizer and workers are those of our command (`python -m hsr_train task=classify`), which does the rest
of its work too: state for exact resume, tables, TensorBoard.

Both run as commands, in turn; with `--together` at the same time, which is fairer where other work comes and goes: each
then has the same share of the machine, whatever that is. Two figures of an epoch: images per second of the training
part, as timings.csv has them and the plain loop takes them, and the whole epoch, from one row of the table to the next,
on the clock and in processor time (loader workers included), which bears other work on the machine. The first epoch of
each run does not count. Exit status 1 if the median ratio of images per second is below 0.97.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from classify_sets import cpu_time, default_workers, draw_set, plain_transforms, python, spread
from side_by_side import command_line, environment, machine, ours

GOAL = 0.97
LR = 0.001


@dataclass
class Run:
    """What was measured of one run, without its first epoch: all per epoch."""

    images_per_s: list[float] = field(default_factory=list)
    epochs_s: list[float] = field(default_factory=list)
    epochs_cpu_s: list[float] = field(default_factory=list)


def plain_loop(data: Path, folder: Path, options: argparse.Namespace) -> None:
    """Train by hand; writes timings.csv with a row for each epoch."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.models import get_model

    torch.manual_seed(0)
    train = ImageFolder(data / "train", plain_transforms(options.imgsz, augment=True, tensors=True))
    val = ImageFolder(data / "val", plain_transforms(options.imgsz, augment=False, tensors=True))
    lasting = {"num_workers": options.workers, "persistent_workers": options.workers > 0}
    loader = DataLoader(train, options.batch, shuffle=True, **lasting)
    val_loader = DataLoader(val, 2 * options.batch, **lasting)
    model = get_model(options.model, num_classes=len(train.classes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs * len(loader), eta_min=LR * 0.01)
    criterion = nn.CrossEntropyLoss()
    best = -1.0
    for epoch in range(1, options.epochs + 1):
        started, loss_sum, hits = time.perf_counter(), 0.0, 0
        model.train()
        for images, targets in loader:
            optimizer.zero_grad()
            scores = model(images)
            loss = criterion(scores, targets)
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_sum += loss.item() * len(images)
            hits += int((scores.argmax(1) == targets).sum())
        train_s = time.perf_counter() - started
        model.eval()
        with torch.no_grad():
            right = sum(int((model(images).argmax(1) == targets).sum()) for images, targets in val_loader)
        torch.save(model.state_dict(), folder / "last.pt")
        if right > best:
            best = right
            torch.save(model.state_dict(), folder / "best.pt")
        print(
            f"epoch {epoch}: loss {loss_sum / len(train):.4f} accuracy {hits / len(train):.4f} val {right / len(val)}"
        )
        with (folder / "timings.csv").open("a", encoding="utf-8") as file:
            if epoch == 1:
                file.write("epoch,images_per_s\n")
            file.write(f"{epoch},{len(train) / train_s}\n")


def our_words(data: Path, folder: Path, options: argparse.Namespace) -> list[str]:
    """Return what is typed for ours."""
    return [
        "task=classify", f"data.path={data}", f"data.cache_dir={folder / 'cache'}", f"output_dir={folder / 'out'}",
        f"model.name={options.model}", "model.weights=scratch", "augmentation=classify_default",
        "optimizer=classify_adamw", f"optimizer.lr={LR}", f"train.imgsz={options.imgsz}",
        f"train.batch={options.batch}", f"train.epochs={options.epochs}", f"train.workers={options.workers}",
        "train.seed=0", "tensorboard.serve=false", "data.on_leak=warn", *options.overrides,
    ]  # fmt: skip


def watch(command: list[str], folder: Path, name: str) -> Run:
    """Run a training command, and take the time whenever the table `name` somewhere in `folder` has another row."""
    log = folder / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, env=environment(folder), cwd=folder, stdout=file, stderr=subprocess.STDOUT)
    watched = psutil.Process(process.pid)
    moments: list[tuple[float, float]] = []
    table = None
    while process.poll() is None:
        time.sleep(0.05)
        table = table or next(iter(folder.rglob(name)), None)
        rows = len(table.read_text(encoding="utf-8").splitlines()) - 1 if table else 0
        if rows > len(moments) and table:
            moments.append((table.stat().st_mtime, cpu_time(watched)))
    if process.returncode or table is None:
        sys.exit(f"exit status {process.returncode}: {' '.join(command)}\n{log.read_text(encoding='utf-8')[-4000:]}")
    with table.open(encoding="utf-8") as file:
        speeds = [float(row["images_per_s"]) for row in csv.DictReader(file)]
    pairs = list(itertools.pairwise(moments))
    return Run(speeds[1:], [after[0] - before[0] for before, after in pairs], [b[1] - a[1] for a, b in pairs])


def baseline(options: argparse.Namespace, folder: Path) -> None:
    """Time ours alone on as many images as the hymenoptera set has: 244 for training, 153 for validation."""
    data = draw_set(folder / "set", {"train": 244, "val": 153}, classes=2, size=(500, 375))
    options.imgsz, options.batch, options.model = 224, 32, "resnet18"
    run = watch(ours(*our_words(data, folder, options)), folder, "timings.csv")
    print(f"resnet18, 244 images of 2 classes, 224 px, batch 32, {options.workers} workers, 153 validated:")
    print(f"s per epoch {spread(run.epochs_s, 1)}, processor s {spread(run.epochs_cpu_s, 1)}")
    print(f"training alone: {spread([244 / speed for speed in run.images_per_s], 1)} s")


def compare(options: argparse.Namespace, folder: Path) -> float:
    """Let both train in turn, print the table, and return the median ratio of images per second."""
    data = options.data.resolve() if options.data else None
    if data is None:
        counts = {"train": options.images, "val": options.images // 4}
        data = draw_set(folder / "set", counts, classes=8, size=(500, 375))
    here = python(str(Path(__file__).resolve()), "--imgsz", str(options.imgsz), "--batch", str(options.batch))
    here += ["--workers", str(options.workers), "--epochs", str(options.epochs), "--model", options.model]
    runs: dict[str, list[Run]] = {"ours": [], "plain loop": []}
    for repeat in range(options.repeats):
        order = list(runs) if repeat % 2 == 0 else list(runs)[::-1]  # neither always has the warmer cache
        commands = {}
        for who in order:
            place = folder / f"{who.replace(' ', '_')}{repeat}"
            place.mkdir()
            hand = [*here, "--data", str(data), "--plain", str(place)]
            commands[place] = ours(*our_words(data, place, options)) if who == "ours" else hand
        with ThreadPoolExecutor(len(commands) if options.together else 1) as threads:
            found = threads.map(watch, commands.values(), commands, itertools.repeat("timings.csv"))
            for who, run in zip(order, found, strict=True):
                runs[who].append(run)
                print(f"{who}: {' '.join(f'{speed:.1f}' for speed in run.images_per_s)} images/s", flush=True)
    print("\n| | images/s, training | ratio | s per epoch | ratio | processor s per epoch | ratio |")
    print("|---|---|---|---|---|---|---|")
    ratios = {}
    for who, group in runs.items():
        cells = []
        for what, digits in (("images_per_s", 1), ("epochs_s", 2), ("epochs_cpu_s", 2)):
            mine = [statistics.median(getattr(run, what)) for run in group]
            theirs = [statistics.median(getattr(run, what)) for run in runs["plain loop"]]
            ratios[who, what] = [a / b for a, b in zip(mine, theirs, strict=True)]
            cells += [spread(mine, digits), spread(ratios[who, what], 3)]
        print(f"| {who} | {' | '.join(cells)} |")
    return statistics.median(ratios["ours", "images_per_s"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with train/<class> and val/<class>; default: a drawn set")
    parser.add_argument("--baseline", action="store_true", help="ours alone, on as many images as hymenoptera has")
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=768, help="of the drawn set; a quarter more for validation")
    parser.add_argument("--imgsz", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--epochs", type=int, default=3, help="of each run; the first does not count")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--together", action="store_true", help="both at the same time, not in turn")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)  # the plain loop, as a command
    parser.add_argument("overrides", nargs="*", help="more to type for ours, such as train.deterministic=false")
    options = parser.parse_intermixed_args()
    if options.plain:
        plain_loop(options.data, options.plain, options)
        return 0
    print(f"{command_line()}\n{machine('torch', 'torchvision')}")
    with tempfile.TemporaryDirectory() as name:
        if options.baseline:
            baseline(options, Path(name))
            return 0
        ratio = compare(options, Path(name))
    print(f"\nGoal: a median ratio of at least {GOAL}: {'met' if ratio >= GOAL else 'MISSED'} ({ratio:.3f})")
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
