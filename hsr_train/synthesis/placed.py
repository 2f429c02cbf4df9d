"""Objects at their places, and what lies behind what: the geometry that `composer` makes labels from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.synthesis.backgrounds import Floats
from hsr_train.synthesis.paste import Sprite
from hsr_train.synthesis.store import Image

UNLABELLED = -1
"""Class of a distractor."""


@dataclass
class Placed:
    """A sprite at its place.

    Attributes:
        sprite: The whole object.
        class_id: Its class; `UNLABELLED` for a distractor.
        mode: How it is blended.
        soft: 0 to 1: how wide a soft edge is.
        shadow: Whether it has one, its shape and depth, each 0 to 1; see `light.cast_shadow`.
        left: Of the sprite in the image, in pixels; may lie outside.
        top: Likewise.
        place: Rows and columns of the image that it covers.
        part: The rows and columns of the sprite that lie there.
        inside: (h, w) 1 where the object is, in that part.
        seen: 1 where it is seen; None without a label.
    """

    sprite: Sprite
    class_id: int
    mode: str
    soft: float
    shadow: tuple[float, float, float]
    left: int
    top: int
    place: tuple[slice, slice]
    part: tuple[slice, slice]
    inside: Image
    seen: Image | None = None


def hide(mask: Image, left: int, top: int, fronts: Sequence[Placed]) -> bool:
    """Clear what lies behind others in a mask whose corner is at (left, top); return whether any may cover it."""
    bottom, right = top + mask.shape[0], left + mask.shape[1]
    touched = False
    for one in fronts:
        rows, columns = one.place
        y0, y1 = max(top, rows.start), min(bottom, rows.stop)
        x0, x1 = max(left, columns.start), min(right, columns.stop)
        if y0 < y1 and x0 < x1:
            there = one.inside[y0 - rows.start : y1 - rows.start, x0 - columns.start : x1 - columns.start]
            mask[y0 - top : y1 - top, x0 - left : x1 - left][there > 0] = 0
            touched = True
    return touched


def overlaps_of(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the overlaps of boxes (n, 4) with boxes (k, 4), of shape (n, k)."""
    first = np.maximum(one[:, None, :2], other[None, :, :2])
    last = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(last - first, 0).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (one, other)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None, :] - shared, 1e-9))


def outline_of(seen: Image, left: int, top: int) -> Floats:
    """Return one polygon around all visible parts, in pixels of the image."""
    contours, _ = cv2.findContours(seen, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = np.concatenate([contour.reshape(-1, 2) for contour in contours]).astype(np.float32)
    return np.asarray(points + np.array([left, top], np.float32), np.float32)
