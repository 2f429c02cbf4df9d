"""Composed images in the loader beside the plain mosaic loader, ultralytics' copy_paste and a set written to disk.

    .venv/bin/python benchmarks/synthesis.py            # 8 minutes, on drawn cut-outs and backgrounds

In each round every loader has its turn in this process: `--samples` places of an epoch's order, after some that do not
count. Ratios are taken within a round, and their medians count; processor time bears other work on the machine, the
clock does not. All loaders have the same images at 640 px, labelled with polygons, and default augmentation:
- plain: the real images alone, with mosaic; decoded when they are needed, and kept decoded in RAM;
- ours: two composed images for each real one, from 200 cut-outs and 200 backgrounds; again both ways;
- copy_paste: ultralytics' own, among the objects of the real images, in its two modes;
- written before: the same composed images from a set that `mode=synthesize` writes; the writing is timed.

Then: memory of each loader worker beyond the plain loader (Linux only); where the time of composing goes, and its
distance to copying the same pixels; what pasting one object costs, by its size and the image's. Exit status 1 where
a goal is missed: 0.85 of the plain loader's images for each second of processor time, 50 MB more for each worker.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch
from classify_sets import spread
from side_by_side import command_line, machine

import hsr_train
from hsr_train.config.schema import DataConfig, SyntheticConfig
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.dataset import RunDataset, epoch_order, make_loader
from hsr_train.engines.detection.options import training_arguments
from hsr_train.synthesis import Composer, FolderBackgrounds, ObjectBank
from hsr_train.synthesis import composer as composing
from hsr_train.synthesis.paste import blend, edge_levels, hull_of, match_colour, transform
from hsr_train.synthesis.writer import write_set

from ultralytics.cfg import get_cfg  # isort: skip (after hsr_train, which isolates it)

SPEED_GOAL, MEMORY_GOAL_MB = 0.85, 50
SIDE, RATIO, CLASSES = 640, 2, 10
PLAIN, OURS, WRITTEN = "plain", "ours, ratio 2", "written before"
IN_RAM = {"plain, in RAM": PLAIN, "ours, in RAM": OURS}
NAMES = [f"thing_{i}" for i in range(CLASSES)]
STEPS = {
    "outlines of what is seen": "outline_of", "turning and sizing": "transform", "colour": "match_colour",
    "blending": "blend", "hiding": "hide",
}  # fmt: skip


def draw_sources(root: Path, count: int) -> None:
    """Write `count` cut-outs by class, of 60 to 240 pixels, and as many backgrounds."""
    rng = np.random.default_rng(0)
    for number in range(count):
        height, width = rng.integers(60, 240, 2).tolist()
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        reach = rng.uniform(0.6, 1.0, 16)
        points = np.stack([np.cos(angles) * reach * (width / 2 - 1), np.sin(angles) * reach * (height / 2 - 1)], axis=1)
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [np.round(points + (width / 2, height / 2)).astype(np.int32)], 255)
        pixels = np.dstack([textured(rng, width, height), mask])
        write(root / "cutouts" / NAMES[number % CLASSES] / f"{number:04}.png", pixels)
        write(root / "backgrounds" / f"{number:04}.jpg", textured(rng, 1280, 960))


def textured(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """Return smooth patches of colour with some grain, which takes about as long to decode as a photograph."""
    small = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16)
    grain = rng.integers(-9, 10, picture.shape, dtype=np.int8)
    return (picture + grain).clip(0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels)[1].tobytes())


class Contest:
    """The sets and the loaders.

    Args:
        root: An empty folder.
        options: `images` and `sources`.
    """

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self.root = root
        draw_sources(root, options.sources)
        self.bank = ObjectBank.read(root / "cutouts", NAMES, cache_dir=root / "cache", side=SIDE)
        self.backgrounds = FolderBackgrounds.read(root / "backgrounds", cache_dir=root / "cache", side=SIDE)
        self.real = self._written("real", options.images, seed=1)
        started = time.process_time()
        both = self._written("written", RATIO * options.images, seed=0)
        self.writing_ms = 1000 * (time.process_time() - started) / (RATIO * options.images)
        lines = [str(path) for one in (self.real, both) for path in one.splits["train"].images]
        (root / "both.txt").write_text("".join(f"{line}\n" for line in lines))
        self.both = self._load(self._describe("both", root / "both.txt"))
        self.data: dict[str, RunDataset] = {
            PLAIN: self.dataset(self.real),
            OURS: self.dataset(self.real, self.composer()),
            "copy_paste, flip": self.dataset(self.real, copy_paste=0.5, copy_paste_mode="flip"),
            "copy_paste, mixup": self.dataset(self.real, copy_paste=0.5, copy_paste_mode="mixup"),
            WRITTEN: self.dataset(self.both),
            "plain, in RAM": self.dataset(self.real, cache="ram"),
            "ours, in RAM": self.dataset(self.real, self.composer(), cache="ram"),
        }

    def composer(self, **more: Any) -> Composer:
        """Return what composes, with outlines."""
        return Composer(self.bank, self.backgrounds, SyntheticConfig(**more), side=SIDE, seed=0, outlines=True)

    def _written(self, name: str, count: int, seed: int) -> DetectionSet:
        """Write composed images as a set of its own; labels are polygons."""
        folder = self.root / name
        composer = self.composer()
        composer.seed = seed
        write_set(composer, folder, NAMES, count, record={"seed": seed}, validation=[], workers=1)
        (folder / "labels" / "train").rename(folder / "boxes")
        (folder / "polygons" / "train").rename(folder / "labels" / "train")
        return self._load(self._describe(name, folder / "images" / "train"))

    def _describe(self, name: str, train: Path) -> Path:
        listed = "".join(f"  {i}: {one}\n" for i, one in enumerate(NAMES))
        file = self.root / f"{name}.yaml"
        file.write_text(f"train: {train}\nval: {self.root / 'real' / 'images' / 'train'}\nnames:\n{listed}")
        return file

    def _load(self, file: Path) -> DetectionSet:
        config = DataConfig(path=str(file), cache_dir=str(self.root / "cache"), on_leak="warn")
        return load_detection_set(config, Decisions())

    def dataset(self, data: DetectionSet, composer: Composer | None = None, **more: Any) -> RunDataset:
        """Return a training set as a run has it; `more` are further arguments of the library."""
        train = data.splits["train"]
        made = hsr_train.compose(
            ["task=detect", "augmentation=default", f"train.imgsz={SIDE}", "train.cache=none", "train.workers=0"]
        )
        arguments = training_arguments(made, "cpu", self.root / "unused") | more
        return RunDataset(
            train,
            get_cfg(overrides=arguments),
            augment=True,
            open_epochs=10**6,
            cache_dir=self.root / "cache",
            batch_size=16,
            stride=32,
            names=NAMES,
            composer=composer,
            num_composed=RATIO * len(train) if composer is not None else 0,
        )


def measure(data: RunDataset, epoch: int, samples: int) -> tuple[float, float]:
    """Return milliseconds of processor time, and of the clock, for a sample."""
    order = epoch_order(0, epoch, len(data))
    warm = min(32, len(order) - samples)
    if data.cache != "ram":  # a large set has nothing left of its last epoch
        data.ims, data.buffer = [None] * data.ni, []
    data._composed.clear()
    for index in order[:warm]:
        data[epoch, int(index)]
    started, spent = time.perf_counter(), time.process_time()
    for index in order[warm : warm + samples]:
        data[epoch, int(index)]
    return 1000 * (time.process_time() - spent) / samples, 1000 * (time.perf_counter() - started) / samples


def memory_of_workers(data: RunDataset) -> dict[str, float]:
    """Return MB for each of two loader workers after an epoch: its own, clean pages of files that it alone has, PSS."""
    loader = make_loader(data, batch_size=16, at_once=16, workers=2, seed=0, shuffle=True, start_epoch=0, pin=False)
    found: dict[str, list[float]] = {"own": [], "files": [], "pss": []}
    try:
        for _ in loader:
            pass
        for worker in loader.iterator._workers:
            maps = psutil.Process(worker.pid).memory_maps(grouped=False)
            found["own"].append(sum(one.private_dirty for one in maps) / 1e6)
            found["files"].append(sum(one.private_clean for one in maps) / 1e6)
            found["pss"].append(sum(one.pss for one in maps) / 1e6)
    finally:
        loader.close()
    return {name: statistics.mean(values) for name, values in found.items()}


def parts_of_composing(composer: Composer, count: int) -> dict[str, float]:
    """Return milliseconds of each step of composing an image, and of copying the pixels that it handles."""
    spent = dict.fromkeys(["background", *STEPS], 0.0)

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                spent[name] += time.thread_time() - started - clock

        return call

    started = time.thread_time()
    for _ in range(1000):
        time.thread_time()
    clock = (time.thread_time() - started) / 1000  # what looking at the clock takes

    for index in range(50):
        composer.compose(1, index)
    started = time.thread_time()
    for index in range(count):
        composer.compose(0, index)
    whole = time.thread_time() - started
    originals = {attribute: getattr(composing, attribute) for attribute in STEPS.values()}
    sprites: list[tuple[Any, Any]] = []
    backgrounds = composer.backgrounds
    drawn = timed("background", backgrounds.draw)
    placed = composing.blend

    class Timed:
        def draw(self, *arguments: Any) -> Any:
            return drawn(*arguments)

    composer.backgrounds = Timed()
    try:
        for name, attribute in STEPS.items():
            setattr(composing, attribute, timed(name, originals[attribute]))
        for index in range(count):
            composer.compose(0, index)
        composer.backgrounds = backgrounds
        for attribute, function in originals.items():
            setattr(composing, attribute, function)

        def remember(place: Any, colours: Any, *rest: Any) -> None:
            sprites.append((place.copy(), colours))
            placed(place, colours, *rest)

        composing.blend = remember
        for index in range(count):
            composer.compose(0, index)
    finally:
        composer.backgrounds = backgrounds
        for attribute, function in originals.items():
            setattr(composing, attribute, function)
    copied = 0.0
    for index in range(count):
        rng = np.random.default_rng(index)
        started = time.thread_time()
        backgrounds.draw(rng, SIDE)
        copied += time.thread_time() - started - clock
    for place, colours in sprites:
        started = time.thread_time()
        place[:] = colours
        copied += time.thread_time() - started - clock
    result = {name: 1000 * value / count for name, value in spent.items()}
    result["whole"], result["copying"] = 1000 * whole / count, 1000 * copied / count
    result["drawing, placing, labels"] = result["whole"] - sum(1000 * value / count for value in spent.values())
    return result


def one_object(side: int, image_side: int) -> float:
    """Return milliseconds to turn, size, colour and blend an object of some size into an image of some size."""
    rng = np.random.default_rng(0)
    mask = np.zeros((side + 10, side + 10), np.uint8)
    cv2.circle(mask, (side // 2 + 5, side // 2 + 5), side // 2, 255, -1)
    pixels = np.dstack([textured(rng, side + 10, side + 10), edge_levels(mask)])
    image, hull = textured(rng, image_side, image_side), hull_of(pixels)
    times = []
    for number in range(60):
        started = time.thread_time()
        sprite = transform(pixels, 1.0, 7.0, False, hull)
        assert sprite is not None
        height, width = sprite.alpha.shape
        place = image[20 : 20 + height, 30 : 30 + width]
        colours = match_colour(sprite.colours, sprite.alpha, place, 0.7)
        blend(place, colours, sprite.alpha, ("hard", "feathered", "gaussian", "poisson")[number % 4], 0.5, sprite.slope)
        times.append(time.thread_time() - started)
    return 1000 * statistics.mean(sorted(times)[:40])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=240, help="real images")
    parser.add_argument("--sources", type=int, default=200, help="cut-outs, and as many backgrounds")
    parser.add_argument("--samples", type=int, default=60, help="of each turn that count")
    parser.add_argument("--rounds", type=int, default=5, help="0: only memory, and where time goes")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    print(f"{command_line()}\n{machine()}")
    with tempfile.TemporaryDirectory() as folder:
        contest = Contest(Path(folder), options)
        store = contest.backgrounds.pixels
        sizes = [contest.bank.pixels.num_bytes, store.num_bytes if store is not None else 0]
        print(f"{options.images} real images; cut-outs {sizes[0] / 1e6:.0f} MB, backgrounds {sizes[1] / 1e6:.0f} MB")
        ratio = show_speeds(contest, options) if options.rounds else math.nan
        more = show_memory(contest) if sys.platform == "linux" else 0.0
        show_parts(contest)
    print("\n| one object of n x n pixels | 32 | 64 | 128 | 256 | 512 |\n|---|---|---|---|---|---|")
    for image_side in (640, 1280):
        row = " | ".join(f"{one_object(side, image_side):.3f}" for side in (32, 64, 128, 256, 512))
        print(f"| ms in an image of {image_side} pixels | {row} |")
    met = not ratio < SPEED_GOAL, more <= MEMORY_GOAL_MB
    print(f"\nGoal: {SPEED_GOAL} of the plain loader's speed: {'met' if met[0] else 'MISSED'} ({ratio:.3f})")
    print(f"Goal: {MEMORY_GOAL_MB} MB for each worker: {'met' if met[1] else 'MISSED'} ({more:.0f})")
    return 0 if all(met) else 1


def show_speeds(contest: Contest, options: argparse.Namespace) -> float:
    """Let every loader have its turns, and print them; return our ratio by processor time."""
    rounds = [
        {name: measure(data, number, options.samples) for name, data in contest.data.items()}
        for number in range(options.rounds)
    ]
    print("\n| loader | ms of processor time an image | images/s to plain: processor time | clock |\n|---|---|---|---|")
    ratios = {}
    for name in contest.data:
        to = "plain, in RAM" if name in IN_RAM else PLAIN
        each = [[one[to][kind] / one[name][kind] for one in rounds] for kind in (0, 1)]
        ratios[name] = statistics.median(each[0])
        spent = spread([one[name][0] for one in rounds], 2)
        print(f"| {name} | {spent} | {spread(each[0], 3)} | {spread(each[1], 3)} |")
    read = statistics.median(one[WRITTEN][0] for one in rounds)
    share = RATIO / (1 + RATIO)
    plain = statistics.median(one[PLAIN][0] for one in rounds)
    print(f"Writing took {contest.writing_ms:.1f} ms of processor time an image, so `{WRITTEN}` comes to")
    for epochs in (1, 10, 100):
        print(f"  {plain / (read + share * contest.writing_ms / epochs):.3f} of plain over {epochs} epochs")
    return min(ratio for name, ratio in ratios.items() if OURS in (name, IN_RAM.get(name)))


def show_memory(contest: Contest) -> float:
    """Print what each loader worker holds; return how many MB more of its own it has for composing."""
    fresh = {PLAIN: contest.dataset(contest.real), OURS: contest.dataset(contest.real, contest.composer())}
    found = {name: memory_of_workers(data) for name, data in fresh.items()}
    more = {kind: found[OURS][kind] - found[PLAIN][kind] for kind in found[PLAIN]}
    print("\n| MB for each of two workers | its own | of files, mapped by it alone | PSS |\n|---|---|---|---|")
    for name, row in {**found, "more": more}.items():
        print(f"| {name} | {row['own']:.0f} | {row['files']:.0f} | {row['pss']:.0f} |")
    return more["own"]


def show_parts(contest: Contest) -> None:
    """Print where the time of composing goes."""
    parts = parts_of_composing(contest.composer(), 300)
    whole, copying = parts.pop("whole"), parts.pop("copying")
    print("\n| composing an image | ms | share |\n|---|---|---|")
    for name, spent in sorted(parts.items(), key=lambda item: -item[1]):
        print(f"| {name} | {spent:.3f} | {100 * spent / whole:.0f} % |")
    print(f"| all | {whole:.3f} | |\n| copying its background and the boxes of its objects | {copying:.3f} | |")
    print(f"Composing takes {whole / copying:.1f} times what copying takes.")


if __name__ == "__main__":
    sys.exit(main())
