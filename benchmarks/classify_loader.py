"""Our loader of classification images beside torchvision's, timm's and merely decoding.

    .venv/bin/python benchmarks/classify_loader.py                       # 5 minutes, on drawn photographs
    .venv/bin/python benchmarks/classify_loader.py --data FOLDER         # one folder for each class

Every loader delivers shuffled batches of normalised float32 squares after a random crop, a flip and changes of
brightness, contrast and saturation, of the same strength for all, from the same number of processes:
- ours, with `normalise` in the main process, where training has it too;
- torchvision's ImageFolder and DataLoader with its v2 transforms, on Pillow images and on tensors;
- timm's create_loader, with its prefetcher, which normalises in the main process, and without;
- the ceilings: a DataLoader that only reads and decodes, with OpenCV, with Pillow, and with OpenCV as ours does it (a
  JPEG at the eighth, quarter or half of its size that still suffices). Our loader may pass the ceiling of others.

In each round every loader has its turn: one epoch that does not count, then `--epochs` that do. Ratios are taken
within a round, and the medians of them count; processor time beside the clock bears other work on the machine. Exit
status 1 if ours is below 1.0 times the fastest of torchvision's or of timm's two on the clock.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from classify_sets import JITTER, MEAN, MIN_AREA, STD, cpu_time, default_workers, draw_set, plain_transforms, spread
from PIL import Image
from side_by_side import command_line, machine
from timm.data import ImageDataset, create_loader
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from hsr_train.config.schema.classify import ClassifyAugmentationConfig
from hsr_train.engines.classification.samples import ImageSamples, make_loader, normalise, read_picture

GOAL = 1.0
OURS, TORCHVISION, TIMM = "ours", ("torchvision on Pillow", "torchvision on tensors"), ("timm, prefetcher", "timm")
SEED = 0


class Decoding(Dataset[int]):
    """Reads and decodes, and returns nothing of it."""

    def __init__(self, images: list[Path], decode: Callable[[Path], object]) -> None:
        self.images, self.decode = images, decode

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> int:
        self.decode(self.images[index])
        return index


def with_opencv(path: Path) -> object:
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)


def with_pillow(path: Path) -> object:
    with Image.open(path) as image:
        return image.convert("RGB")


def one_thread(_: int) -> None:
    cv2.setNumThreads(0)


class Contest:
    """The loaders, each as a context that gives a function to pass once over all images.

    Args:
        root: A folder with one folder for each class.
        options: `imgsz`, `batch` and `workers`.
    """

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root, self.options = root, options
        files = ImageFolder(root).samples
        self.images, self.targets = [Path(file) for file, _ in files], [target for _, target in files]
        least_side = self._samples()._view.least_side
        self.entries = {
            OURS: self._ours,
            TORCHVISION[0]: partial(self._torchvision, tensors=False),
            TORCHVISION[1]: partial(self._torchvision, tensors=True),
            TIMM[0]: partial(self._timm, prefetcher=True),
            TIMM[1]: partial(self._timm, prefetcher=False),
            "decoding alone, OpenCV": partial(self._decoding, with_opencv),
            "decoding alone, Pillow": partial(self._decoding, with_pillow),
            "decoding alone, as ours": partial(self._decoding, partial(read_picture, least_side=least_side)),
        }

    def _samples(self) -> ImageSamples:
        augmentation = ClassifyAugmentationConfig(
            min_area=MIN_AREA, brightness=JITTER, contrast=JITTER, saturation=JITTER
        )
        return ImageSamples(
            self.images, self.targets, imgsz=self.options.imgsz, augmentation=augmentation, augment=True, seed=SEED
        )

    @contextmanager
    def _ours(self) -> Iterator[Callable[[], None]]:
        batch, workers = self.options.batch, self.options.workers
        loader = make_loader(self._samples(), batch_size=batch, at_once=batch, workers=workers, seed=SEED, shuffle=True)
        try:
            yield partial(follow, loader, lambda images: normalise(images, MEAN, STD))
        finally:
            loader.close()

    @contextmanager
    def _torchvision(self, *, tensors: bool) -> Iterator[Callable[[], None]]:
        transforms = plain_transforms(self.options.imgsz, augment=True, tensors=tensors)
        yield partial(follow, self._plain(ImageFolder(self.root, transforms)))

    @contextmanager
    def _timm(self, *, prefetcher: bool) -> Iterator[Callable[[], None]]:
        options = self.options
        loader = create_loader(
            ImageDataset(str(self.root)), options.imgsz, options.batch, is_training=True, scale=(MIN_AREA, 1.0),
            hflip=0.5, color_jitter=JITTER, interpolation="bilinear", mean=MEAN, std=STD, num_workers=options.workers,
            use_prefetcher=prefetcher, device=torch.device("cpu"), persistent_workers=options.workers > 0,
        )  # fmt: skip
        yield partial(follow, loader)

    @contextmanager
    def _decoding(self, decode: Callable[[Path], object]) -> Iterator[Callable[[], None]]:
        yield partial(follow, self._plain(Decoding(self.images, decode)))

    def _plain(self, dataset: Dataset[Any]) -> DataLoader[Any]:
        options = self.options
        return DataLoader(
            dataset, options.batch, shuffle=True, num_workers=options.workers, worker_init_fn=one_thread,
            persistent_workers=options.workers > 0,
        )  # fmt: skip


def follow(loader: Any, finish: Callable[[Any], object] | None = None) -> None:
    """Take every batch of an epoch; `finish` is done to its images."""
    for batch in loader:
        if finish is not None:
            finish(batch[0])


def measure(contest: Contest, epochs: int) -> dict[str, tuple[float, float]]:
    """Let every loader have its turn; return images per second, and per processor second, by name."""
    speeds = {}
    this = psutil.Process()
    for name, entry in contest.entries.items():
        with entry() as run_epoch:
            run_epoch()
            started, spent = time.perf_counter(), cpu_time(this)
            for _ in range(epochs):
                run_epoch()
            count = epochs * len(contest.images)
            speeds[name] = (count / (time.perf_counter() - started), count / (cpu_time(this) - spent))
    return speeds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with one folder for each class; default: a drawn set")
    parser.add_argument("--images", type=int, default=512, help="of the drawn set")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), help="width and height of its images")
    parser.add_argument("--imgsz", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--epochs", type=int, default=1, help="that count, in each turn")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)  # the cores belong to the loaders
    print(f"{command_line()}\n{machine('torch', 'torchvision', 'timm')}")
    with tempfile.TemporaryDirectory() as folder:
        root = options.data or draw_set(
            Path(folder), {"train": options.images}, classes=8, size=tuple(options.size)
        ) / "train"  # fmt: skip
        contest = Contest(root, options)
        print(f"{len(contest.images)} images, {options.imgsz} px, batch {options.batch}, {options.workers} workers")
        rounds = []
        for number in range(options.rounds):
            rounds.append(measure(contest, options.epochs))
            print(f"round {number + 1}: {', '.join(f'{n} {s:.0f}' for n, (s, _) in rounds[-1].items())}", flush=True)
    print("\n| loader | images/s: median (range) | ours / it, clock | ours / it, processor time |\n|---|---|---|---|")
    clock = {}
    for name in contest.entries:
        ratio = [[speeds[OURS][k] / speeds[name][k] for speeds in rounds] for k in (0, 1)]
        clock[name] = statistics.median(ratio[0])
        speed = spread([speeds[name][0] for speeds in rounds], 0)
        print(f"| {name} | {speed} | {spread(ratio[0], 2)} | {spread(ratio[1], 2)} |")
    found = {"torchvision": min(clock[n] for n in TORCHVISION), "timm": min(clock[n] for n in TIMM)}
    for name, ratio_to in found.items():
        print(f"Goal: at least {GOAL} times {name}: {'met' if ratio_to >= GOAL else 'MISSED'} ({ratio_to:.2f})")
    return 0 if min(found.values()) >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
