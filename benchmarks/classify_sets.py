"""What the benchmarks of `task=classify` share: a drawn set of class folders, a plain loop's transforms, our command.

Used by `classify_throughput.py`, `classify_loader.py` and `classify_dp.py`. A drawn picture is a smooth patch of random
colours with some grain, so that its JPEG takes about as long to decode as a photograph of its size.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
from side_by_side import environment, ours

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MIN_AREA, JITTER = 0.35, 0.2  # of augmentation=classify_default


def draw_set(root: Path, images: dict[str, int], *, classes: int, size: tuple[int, int]) -> Path:
    """Write `<split>/<class>/<number>.jpg` and return the folder.

    Args:
        root: Where; created.
        images: How many of each split.
        classes: Among which they are dealt out in turn.
        size: Width and height in pixels.
    """
    rng = np.random.default_rng(0)
    for split, count in images.items():
        for number in range(count):
            file = root / split / f"class_{number % classes}" / f"{number:05}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            small = rng.integers(0, 255, (9, 12, 3), dtype=np.uint8)
            picture = cv2.resize(small, size, interpolation=cv2.INTER_CUBIC).astype(np.int16)
            picture += rng.normal(0, 6, picture.shape).astype(np.int16)
            file.write_bytes(cv2.imencode(".jpg", picture.clip(0, 255).astype(np.uint8))[1].tobytes())
    return root


def plain_transforms(imgsz: int, *, augment: bool, tensors: bool) -> Any:
    """Return torchvision's v2 transforms that do what `augmentation=classify_default` asks for.

    Args:
        imgsz: Side of the square in pixels.
        augment: Draw at random; otherwise the middle of the image.
        tensors: Become a tensor first, as torchvision advises, or crop, flip and change colours as a Pillow image.
    """
    import torch
    from torchvision.transforms import v2

    steps: list[Any]
    if augment:
        steps = [
            v2.RandomResizedCrop(imgsz, scale=(MIN_AREA, 1.0)), v2.RandomHorizontalFlip(),
            v2.ColorJitter(JITTER, JITTER, JITTER),
        ]  # fmt: skip
    else:
        steps = [v2.Resize(round(imgsz * 256 / 224)), v2.CenterCrop(imgsz)]
    steps.insert(0 if tensors else len(steps), v2.ToImage())
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])


def cpu_time(process: psutil.Process) -> float:
    """Return the processor seconds of a process and its descendants so far, those that have ended included."""
    total = 0.0
    for member in [process, *process.children(recursive=True)]:
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def train_ours(words: Sequence[str], folder: Path) -> Path:
    """Train with our command, and return the run's directory.

    Raises:
        RuntimeError: The command failed.
    """
    output = folder / "ours"
    before = set(output.glob("classify/*"))
    quiet = ["tensorboard.serve=false", f"output_dir={output}", f"data.cache_dir={folder / 'cache'}"]
    run_checked(ours("task=classify", *words, *quiet), folder)
    (made,) = set(output.glob("classify/*")) - before
    return made


def run_checked(command: Sequence[str], folder: Path) -> str:
    """Run a command that must end well, and return what it printed."""
    done = subprocess.run(
        command, env=environment(folder), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"exit status {done.returncode}: {' '.join(command)}\n{done.stdout[-4000:]}")
    return done.stdout


def spread(values: Sequence[float], digits: int) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def default_workers() -> int:
    """Return as many loader processes as there are cores, at most 8."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


def python(*words: str) -> list[str]:
    """Return a command of this interpreter."""
    return [sys.executable, *words]
