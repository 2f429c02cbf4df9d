"""How fast the data check is, beside merely decoding the same images.

    .venv/bin/python benchmarks/data_check.py

Draws sets of small JPEGs with labels in a temporary folder and times, in each of several rounds, (1) reading and
decoding every image with as many threads as the check uses, (2) the first check, with an empty cache folder, and
(3) the second start; (2) and (3) include the fingerprint. Reports the median over the rounds of the ratios within a
round, so that other work on the machine counts little, and of processor time as well as of time on the clock. Exit
status 1 if a goal is missed on the clock: the first check at 80 % of the speed of decoding or more, the second start
under 5 % of the first check's time and at 2,000 images per second of one core's time or more.

The share of 5 % holds from some 500 px on (`--sizes 320` shows it): the first check of smaller images is so fast that
looking at the dates of two files for each image is a larger part of it.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from hsr_train.config.schema import DataConfig
from hsr_train.data.files import num_threads
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions

BOXES_PER_IMAGE = 6


def draw_set(root: Path, num_images: int, size: int) -> list[Path]:
    rng = np.random.default_rng(size)
    images = []
    for i in range(num_images):
        split = "val" if i % 5 == 0 else "train"
        image = root / "images" / split / f"{i:06}.jpg"
        label = root / "labels" / split / f"{i:06}.txt"
        image.parent.mkdir(parents=True, exist_ok=True)
        label.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)
        picture = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
        image.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
        boxes = np.column_stack(
            [rng.uniform(0.3, 0.7, (BOXES_PER_IMAGE, 2)), rng.uniform(0.05, 0.5, (BOXES_PER_IMAGE, 2))]
        )
        label.write_text(
            "".join(f"{(i + k) % 10} {' '.join(f'{v:.6f}' for v in box)}\n" for k, box in enumerate(boxes))
        )
        images.append(image)
    names = [f"class_{i}" for i in range(10)]
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {names}\n")
    return images


def decode_all(images: list[Path]) -> None:
    def decode(chunk: list[Path]) -> None:
        for path in chunk:
            if cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR) is None:
                raise ValueError(path)

    with ThreadPoolExecutor(num_threads()) as pool:
        list(pool.map(decode, [images[i : i + 32] for i in range(0, len(images), 32)]))


def check(root: Path, cache: Path) -> None:
    config = DataConfig(path=str(root / "data.yaml"), cache_dir=str(cache))
    _ = load_detection_set(config, Decisions(), progress=False).fingerprint


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return the seconds that passed, and the processor time in seconds."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def measure(num_images: int, size: int, rounds: int) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        root, cache = Path(folder, "set"), Path(folder, "cache")
        images = draw_set(root, num_images, size)
        decode_all(images)  # Files and threads are warm for everybody.
        times = []
        for _ in range(rounds):
            shutil.rmtree(cache, ignore_errors=True)
            times.append([timed(lambda: decode_all(images)), *(timed(lambda: check(root, cache)) for _ in range(2))])
    seconds = np.array(times)  # (rounds, 3 things, clock or processor)
    decode_s, first_s, second_s = np.median(seconds[:, :, 0], axis=0)
    speed, speed_cpu = np.median(seconds[:, 0] / seconds[:, 1], axis=0)
    share = np.median(seconds[:, 2, 0] / seconds[:, 1, 0])
    per_core = num_images / np.median(seconds[:, 2, 1])
    good = bool(speed >= 0.8 and share < 0.05 and per_core >= 2000)
    print(
        f"{num_images} images of {size} px, {num_threads()} threads: decoding {num_images / decode_s:,.0f} images/s, "
        f"first check {num_images / first_s:,.0f} ({speed:.0%} of decoding; {speed_cpu:.0%} in processor time), "
        f"second start {num_images / second_s:,.0f} ({share:.1%} of the first check's time, {per_core:,.0f} per core): "
        f"{'goals met' if good else 'GOAL MISSED'}"
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[640])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    results = [measure(arguments.images, size, arguments.rounds) for size in arguments.sizes]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
