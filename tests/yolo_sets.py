"""A small YOLO set, drawn and written for a test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
"""Real sets, where the machine has them."""


def write_picture(path: Path, *, size: tuple[int, int] = (64, 64), seed: int = 0) -> Path:
    """Write a picture of smooth coloured noise, (height, width) pixels; each seed gives another content."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
    return path


def make_yolo_set(
    root: Path,
    *,
    n_train: int = 4,
    n_val: int = 2,
    size: tuple[int, int] = (64, 64),
    classes: Sequence[str] = ("a", "b"),
    polygons: bool = False,
    seed: int = 0,
) -> Path:
    """Write a valid set and return its data.yaml.

    Images are `images/{train,val}/<number>.jpg`, (height, width) pixels, each with other content and two to three
    labels in `labels/`: boxes, or polygons of five points. The classes take turns. Without validation images there is
    no `val:`.
    """
    rng = np.random.default_rng(seed)
    yaml_path = root / "data.yaml"
    counts = {"train": n_train, "val": n_val}
    number = 0
    for split, count in counts.items():
        (root / "images" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            write_picture(root / "images" / split / f"{index:04}.jpg", size=size, seed=seed * 1_000_003 + number)
            lines = []
            for box in range(int(rng.integers(2, 4))):
                x, y = rng.uniform(0.3, 0.7, 2)
                width, height = rng.uniform(0.1, 0.5, 2)
                numbers = [x, y, width, height]
                if polygons:
                    angles = np.linspace(0, 2 * np.pi, 5, endpoint=False)
                    points = np.stack([x + np.cos(angles) * width / 2, y + np.sin(angles) * height / 2], 1)
                    numbers = points.ravel().tolist()
                lines.append(f"{(number + box) % len(classes)} " + " ".join(f"{v:.6f}" for v in numbers))
            (root / "labels" / split / f"{index:04}.txt").write_text("\n".join(lines) + "\n")
            number += 1
    splits = "".join(f"{split}: images/{split}\n" for split, count in counts.items() if count)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(classes))
    yaml_path.write_text(f"path: .\n{splits}names:\n{names}", encoding="utf-8")
    return yaml_path
