"""From a photo and a mask to a cut-out: judged, cropped, no larger than needed, with colours that go on at its edge.

`bank` keeps what comes out; `photos` and `sources` say what goes in.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hsr_train.synthesis.paste import EDGE_PX, edge_levels
from hsr_train.synthesis.store import Image

MIN_MASK_PIXELS = 100
MIN_SIDE_PX = 32
PAD_PX = EDGE_PX + 1
"""Pixels around an object, in its edge's colours, over which a soft edge fades."""
CRUMB = 0.01
"""Parts of a mask smaller than this share of its largest part are dropped: they would widen the box."""
VERSION = 3
"""Of what is cut out and kept; another one makes every bank anew."""

TOO_FEW = f"has fewer than {MIN_MASK_PIXELS} mask pixels"
TOO_NARROW = f"is narrower than {MIN_SIDE_PX} pixels"


class Cutout(NamedTuple):
    """An object ready to be pasted.

    Attributes:
        pixels: (h, w, 4) BGRA; see `ObjectBank.pixels`.
        size_per_side: See `ObjectBank.size_per_side`.
    """

    pixels: Image
    size_per_side: float


def cut_out(image: Image, mask: Image, photo_side: float, side: int, largest_scale: float) -> Cutout | str:
    """Cut an object out, no larger than it will be needed.

    Args:
        image: (h, w, 3) photo, or a part of it.
        mask: (h, w), 255 or 0.
        photo_side: Longest side of the whole photo in pixels.
        side: Side of a composed image in pixels.
        largest_scale: Largest factor by which an object is enlarged.

    Returns:
        The cut-out, or why the object is not accepted.
    """
    nominal = side / photo_side
    mask = _without_crumbs(mask)
    num_pixels = int(cv2.countNonZero(mask))
    x, y, width, height = cv2.boundingRect(mask)
    if num_pixels < MIN_MASK_PIXELS:
        return TOO_FEW
    if min(width, height) < MIN_SIDE_PX:
        return TOO_NARROW
    image, mask = image[y : y + height, x : x + width], mask[y : y + height, x : x + width]
    colours = _spread(image, mask)
    shrink = min(1.0, nominal * largest_scale, 1.5 * side / max(width, height))
    if shrink < 1.0:
        size = (max(round(width * shrink), 2), max(round(height * shrink), 2))
        colours = np.asarray(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.uint8)
    colours = np.asarray(cv2.copyMakeBorder(colours, *(PAD_PX,) * 4, cv2.BORDER_REPLICATE), np.uint8)
    mask = np.asarray(cv2.copyMakeBorder(mask, *(PAD_PX,) * 4, cv2.BORDER_CONSTANT, value=0), np.uint8)
    return Cutout(np.dstack([colours, edge_levels(mask)]), nominal / shrink / side)


def _without_crumbs(mask: Image) -> Image:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count <= 2:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.concatenate([[False], areas >= CRUMB * areas.max()])
    return np.where(kept[labels], 255, 0).astype(np.uint8)


def _spread(image: Image, mask: Image) -> Image:
    """Give each pixel outside of the mask the colour of the nearest one inside, so that no soft edge shows another."""
    outside = np.where(mask > 0, 0, 255).astype(np.uint8)
    if not outside.any():
        return np.ascontiguousarray(image)
    _, labels = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    inside = mask > 0
    colours = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    colours[labels[inside]] = image[inside]
    return np.asarray(colours[labels], np.uint8)
