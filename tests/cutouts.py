"""Small cut-outs and backgrounds, drawn and written for a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

RED, BLUE = (0, 0, 255), (255, 0, 0)


def write(path: Path, pixels: np.ndarray) -> Path:
    """Write an image in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ok, content = cv2.imencode(path.suffix, pixels)
    assert ok
    path.write_bytes(content.tobytes())
    return path


def ellipse(size: tuple[int, int] = (60, 40)) -> np.ndarray:
    """A mask of (height, width) pixels: 255 within the largest ellipse, 0 around it."""
    mask = np.zeros(size, np.uint8)
    cv2.ellipse(mask, (size[1] // 2, size[0] // 2), (size[1] // 2 - 2, size[0] // 2 - 2), 0, 0, 360, 255, -1)
    return mask


def cutout(colour: Any, size: tuple[int, int] = (60, 40)) -> np.ndarray:
    """A BGRA cut-out in one colour."""
    return np.dstack([np.full((*size, 3), colour, np.uint8), ellipse(size)])


def make_cutouts(root: Path) -> Path:
    """Class a: two red RGBA cut-outs. Class b: a blue photo with a mask of its own."""
    write(root / "a" / "one.png", cutout(RED))
    write(root / "a" / "two.png", cutout(RED, (44, 70)))
    photo = np.full((120, 120, 3), (30, 200, 30), np.uint8)
    photo[20:80, 30:90] = BLUE
    mask = np.zeros((120, 120), np.uint8)
    mask[20:80, 30:90] = 255
    write(root / "b" / "images" / "photo.png", photo)
    write(root / "b" / "masks" / "photo_mask.png", mask)
    return root


def make_backgrounds(root: Path, count: int = 3, colour: Any = (0, 0, 0)) -> Path:
    """Plain images of different sizes."""
    for number in range(count):
        write(root / f"{number}.png", np.full((150 + 40 * number, 200, 3), colour, np.uint8))
    return root
