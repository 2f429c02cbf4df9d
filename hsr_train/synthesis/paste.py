"""One object: turned, sized, coloured and blended into its place. What it costs grows with the object's own pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.synthesis.store import Image

_MARGIN = 3
"""Pixels kept around an object's mask, over which a soft edge fades."""
_AREA_BELOW = 0.6
"""Factors below it average pixels; linear interpolation would skip some."""
_SOLVED_PX = 48
"""Longest side at which Poisson blending is solved for."""
_DEEP = 0.3
"""Share of its field that is left deep inside of an object."""
_MEAN_PX = 24
"""Mean colours are taken over a grid of at least this many pixels each way."""
_GRAY_LAB = (0.5, 1.0, 1.0)
"""Lightness is matched half as strongly as colour: an object in the shade stays recognisable."""


@dataclass
class Sprite:
    """An object as it will be pasted.

    Attributes:
        colours: (h, w, 3) BGR, valid outside of the mask too.
        alpha: (h, w) 0 to 255; above 127 is the object.
        x: Left edge of the tight box within it.
        y: Top edge.
        width: Of the tight box in pixels.
        height: Of the tight box in pixels.
    """

    colours: Image
    alpha: Image
    x: int
    y: int
    width: int
    height: int


def transform(pixels: Image, scale: float, degrees: float, mirrored: bool) -> Sprite | None:
    """Turn and size a cut-out.

    Args:
        pixels: (h, w, 4) BGRA with a border of alpha 0.
        scale: Factor on its size.
        degrees: Counter-clockwise.
        mirrored: Left and right exchanged before it is turned.

    Returns:
        The sprite, or None where nothing is left of it.
    """
    if mirrored:
        pixels = np.asarray(cv2.flip(pixels, 1), np.uint8)
    if scale < _AREA_BELOW:
        size = (max(round(pixels.shape[1] * scale), 3), max(round(pixels.shape[0] * scale), 3))
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        pixels[[0, -1], :, 3] = 0  # what lies beyond is filled with the border
        pixels[:, [0, -1], 3] = 0
        scale = 1.0
    if degrees or scale != 1.0:
        height, width = pixels.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, scale)
        cos, sin = abs(matrix[0, 0]), abs(matrix[0, 1])
        new = (math.ceil(width * cos + height * sin), math.ceil(width * sin + height * cos))
        matrix[0, 2] += (new[0] - width) / 2
        matrix[1, 2] += (new[1] - height) / 2
        turned = cv2.warpAffine(pixels, matrix, new, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        pixels = np.asarray(turned, np.uint8)
    x, y, width, height = cv2.boundingRect((pixels[..., 3] > 127).astype(np.uint8))
    if min(width, height) < 2:
        return None
    left, top = max(x - _MARGIN, 0), max(y - _MARGIN, 0)
    cut = pixels[top : y + height + _MARGIN, left : x + width + _MARGIN]
    return Sprite(cut[..., :3], cut[..., 3], x - left, y - top, width, height)


def match_colour(colours: Image, alpha: Image, place: Image, strength: float) -> Image:
    """Move an object's mean colour towards that of its place, in LAB.

    The means alone are taken to LAB and back; every pixel is shifted by their difference, at a tenth of the cost.

    Args:
        colours: (h, w, 3) BGR.
        alpha: (h, w); above 127 is the object.
        place: (h, w, 3) what will lie beneath.
        strength: 0 leaves it, 1 gives it the mean colour of the place, but for lightness.
    """
    step = max(min(alpha.shape) // _MEAN_PX, 1)
    some = np.s_[step // 2 :: step, step // 2 :: step]
    own = _mean_lab(colours[some], alpha[some] > 127)
    there = _mean_lab(place[some], None)
    both = np.stack([own, own + strength * np.array(_GRAY_LAB, np.float32) * (there - own)])[None]
    before, after = 255 * cv2.cvtColor(both, cv2.COLOR_LAB2BGR)[0]
    return np.asarray(cv2.add(colours, np.array([*(after - before).tolist(), 0.0])), np.uint8)


def _mean_lab(colours: Image, inside: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.float32]:
    """Return the mean LAB colour, (3,), of an image or of a part of it."""
    lab = cv2.cvtColor(np.ascontiguousarray(colours, np.float32) / 255, cv2.COLOR_BGR2LAB)
    mask = None if inside is None or not inside.any() else inside.astype(np.uint8)
    return np.array(cv2.mean(lab, mask)[:3], np.float32)


def blend(place: Image, colours: Image, alpha: Image, mode: str, softness: float) -> None:
    """Paste into a part of an image, in place.

    Args:
        place: (h, w, 3) part of the image.
        colours: (h, w, 3) of the object.
        alpha: (h, w); above 127 is the object.
        mode: One of `schema.synthetic.BLENDS`.
        softness: 0 to 1: how wide a soft edge is.
    """
    inside = alpha > 127
    if mode == "poisson":
        colours = _seamless(place, colours, inside, softness) if inside.any() else colours
        softness = 0.0
    if mode == "hard":
        place[:] = cv2.copyTo(colours, inside.astype(np.uint8), np.ascontiguousarray(place))
        return
    if mode in (
        "feathered",
        "poisson",
    ):  # a ramp that begins at the edge and rises inwards: nothing lies outside of the mask
        padded = np.asarray(cv2.copyMakeBorder(inside.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0))
        distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
        weight = np.minimum(distance / (1 + 2 * softness), 1, dtype=np.float32)
    else:
        sigma = 0.5 + 1.5 * softness
        soft = cv2.GaussianBlur(inside.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
        weight = np.asarray(soft, np.float32)
    place[:] = cv2.blendLinear(colours, np.ascontiguousarray(place), weight, 1 - weight)


def _seamless(place: Image, colours: Image, inside: npt.NDArray[np.bool_], softness: float) -> Image:
    """Return an object's colours changed so that they meet their surroundings at the edge.

    Poisson blending adds to the object the smooth field that closes the seam. Being smooth, it is solved for on a
    small copy. Away from the edge it fades to a part of itself: all of it would let a banana vanish on a lawn.
    """
    height, width = inside.shape
    factor = min(1.0, _SOLVED_PX / max(height, width))
    size = (max(round(width * factor), 3), max(round(height * factor), 3))
    small, beneath = (cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in (colours, place))
    mask = np.asarray(cv2.resize(inside.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)) * 255
    mask[[0, -1], :] = 0  # the solver needs a pixel of the image around the mask
    mask[:, [0, -1]] = 0
    x, y, w, h = cv2.boundingRect(mask)
    if min(w, h) < 5:
        return colours
    centre = (x + w // 2, y + h // 2)
    cloned = cv2.seamlessClone(small, beneath, mask.copy(), centre, cv2.NORMAL_CLONE)  # it changes the mask
    field = cloned.astype(np.float32) - small
    depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3) / max(w, h)
    field *= (_DEEP + (1 - _DEEP) * np.exp(-depth / (0.03 + 0.1 * softness)))[..., None]
    field[mask == 0] = 0
    whole = np.asarray(cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR), np.float32)
    return np.asarray(np.clip(colours + whole, 0, 255), np.uint8)
