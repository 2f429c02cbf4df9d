"""One object: turned, sized, coloured and blended into its place. What it costs grows with the object's own pixels.

`bank` keeps distances to an object's edge as alpha (`edge_levels`), so that every kind of edge is a table look-up here;
`light` shades objects and draws shadows; `composer` says what goes where.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.synthesis.store import Image

LEVELS_PER_PX = 8
"""Steps of alpha for each pixel of distance from the edge: up to 16 pixels can be told."""
EDGE_PX = 4
"""Pixels around an object, in a cut-out, in which alpha is above 0: as far as an edge can be soft."""
_EDGE = 127.5
"""Alpha right at the edge."""
_MARGIN = 3
"""Pixels kept around an object's mask, over which a soft edge fades."""
_AREA_BELOW = 0.6
"""Factors below it average pixels; linear interpolation would skip some."""
_SIGMOID = 0.8
"""tanh(0.8 x) runs from -1 to 1 as a step does that was blurred by a Gaussian."""
_SOLVED_PX = 32
"""Longest side, about, at which the field that closes a seam is found."""
_NEAR_PX, _FAR_PX = 5, 15
"""How far seam differences are spread there: the near ones count if there are any, then the far ones, then all."""
_DEEP = 0.3
"""Share of that field that is left deep inside of an object."""
_MOST_SHIFT = 80.0
"""Largest change of a colour by that field: what is bright before the dark stays so."""
_MIXED_PX = 1 << 15
"""Pixels that are mixed at once: what is in between then stays near the processor."""
_MEAN_PX = 24
"""Mean colours are taken over a grid of this many pixels each way."""
_GRAY_LAB = (0.5, 1.0, 1.0)
"""Lightness is matched half as strongly as colour: an object in the shade stays recognisable."""


@dataclass
class Sprite:
    """An object as it will be pasted.

    Attributes:
        colours: (h, w, 3) BGR, valid outside of the mask too.
        alpha: (h, w) 0 to 255, distances from the edge as in `edge_levels`; above 127 is the object.
        slope: Steps of alpha for each pixel.
        x: Left edge of the tight box within it.
        y: Top edge.
        width: Of the tight box in pixels.
        height: Of the tight box in pixels.
    """

    colours: Image
    alpha: Image
    slope: float
    x: int
    y: int
    width: int
    height: int


def edge_levels(mask: Image) -> Image:
    """Return how far each pixel is from the edge of a mask, as alpha that can be turned and sized with the colours.

    Args:
        mask: (h, w); above 127 is the object. Its outermost pixels should not be.

    Returns:
        (h, w): 127.5 would be at the edge, more is inside, `LEVELS_PER_PX` more for each pixel; 0 at the border.
    """
    inside = (mask > 127).astype(np.uint8)
    signed = cv2.distanceTransform(inside, cv2.DIST_L2, 5) - cv2.distanceTransform(1 - inside, cv2.DIST_L2, 5)
    signed += np.where(inside, np.float32(-0.5), np.float32(0.5))
    levels = np.clip(np.round(_EDGE + LEVELS_PER_PX * signed), 0, 255).astype(np.uint8)
    _clear_border(levels)
    return levels


def hull_of(pixels: Image) -> npt.NDArray[np.float64]:
    """Return the corners (k, 2), x and y, of the convex hull of a cut-out's object."""
    contours, _ = cv2.findContours(inside_of(pixels[..., 3]), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(cv2.convexHull(np.concatenate(contours)).reshape(-1, 2), np.float64)


def transform(
    pixels: Image, scale: float, degrees: float, mirrored: bool, hull: npt.NDArray[np.float64] | None = None
) -> Sprite | None:
    """Turn and size a cut-out.

    Args:
        pixels: (h, w, 4) BGRA, alpha as in `edge_levels`.
        scale: Factor on its size.
        degrees: Counter-clockwise.
        mirrored: Left and right exchanged before it is turned.
        hull: Of the object, from `hull_of`, where it is known: nothing is computed that lies far from it.

    Returns:
        The sprite, or None where nothing is left of it.
    """
    hull = hull_of(pixels) if hull is None else hull
    slope = LEVELS_PER_PX / scale
    if scale < _AREA_BELOW:
        size = (max(round(pixels.shape[1] * scale), 3), max(round(pixels.shape[0] * scale), 3))
        hull = (hull + 0.5) * (np.array(size) / pixels.shape[1::-1]) - 0.5
        pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        _clear_border(pixels[..., 3])
        scale = 1.0
    matrix = cv2.getRotationMatrix2D((0, 0), degrees, scale)
    if mirrored:
        matrix[:, 0] *= -1
    corners = hull @ matrix[:, :2].T
    first = np.floor(corners.min(axis=0)) - _MARGIN - 1
    size = tuple((np.ceil(corners.max(axis=0)) + _MARGIN + 2 - first).astype(int).tolist())
    matrix[:, 2] = -first
    turned = cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_LINEAR)
    alpha = np.asarray(cv2.split(turned)[3], np.uint8)
    x, y, width, height = cv2.boundingRect(inside_of(alpha))
    if min(width, height) < 2:
        return None
    return Sprite(np.asarray(cv2.cvtColor(turned, cv2.COLOR_BGRA2BGR), np.uint8), alpha, slope, x, y, width, height)


def inside_of(alpha: Image) -> Image:
    """Return 1 where an object is and 0 elsewhere."""
    return np.asarray(cv2.threshold(alpha, 127, 1, cv2.THRESH_BINARY)[1], np.uint8)


def match_colour(colours: Image, alpha: Image, place: Image, strength: float) -> Image:
    """Move an object's mean colour towards that of its place, in LAB.

    The means alone are taken to LAB and back; every pixel is shifted by their difference.

    Args:
        colours: (h, w, 3) BGR.
        alpha: (h, w); above 127 is the object.
        place: (h, w, 3) what will lie beneath.
        strength: 0 leaves it, 1 gives it the mean colour of the place, but for lightness.
    """
    grid = (_MEAN_PX, _MEAN_PX)
    mask = inside_of(np.asarray(cv2.resize(alpha, grid, interpolation=cv2.INTER_NEAREST), np.uint8))
    some, beneath = (cv2.resize(image, grid, interpolation=cv2.INTER_NEAREST) for image in (colours, place))
    own, there = cv2.mean(some, mask if mask.any() else None)[:3], cv2.mean(beneath)[:3]
    means = np.array([[own, there]], np.float32) / 255
    lab = cv2.cvtColor(means, cv2.COLOR_BGR2LAB)
    lab[0, 1] = lab[0, 0] + strength * np.array(_GRAY_LAB, np.float32) * (lab[0, 1] - lab[0, 0])
    after = 255 * cv2.cvtColor(lab, cv2.COLOR_LAB2BGR)[0, 1]
    shift = np.round(after - np.array(own, np.float32)).astype(np.int16).tolist()
    more, less = ([max(sign * value, 0) for value in shift] for sign in (1, -1))
    brighter = cv2.add(colours, _plain(colours.shape, more)) if any(more) else colours
    return np.asarray(cv2.subtract(brighter, _plain(colours.shape, less)) if any(less) else brighter, np.uint8)


def blend(place: Image, colours: Image, alpha: Image, mode: str, softness: float, slope: float = LEVELS_PER_PX) -> None:
    """Paste into a part of an image, in place.

    Args:
        place: (h, w, 3) part of the image.
        colours: (h, w, 3) of the object.
        alpha: (h, w), as in `edge_levels`.
        mode: One of `schema.synthetic.BLENDS`.
        softness: 0 to 1: how wide a soft edge is.
        slope: Steps of alpha for each pixel.
    """
    if mode == "poisson":
        colours = _seamless(place, colours, alpha, softness)
        softness = 0.0
    if mode == "hard":
        place[:] = cv2.copyTo(colours, inside_of(alpha), np.ascontiguousarray(place))
        return
    mix(place, colours, np.asarray(cv2.LUT(alpha, _weights(mode, softness, slope)), np.int16))


def mix(place: Image, colours: Image, weight: npt.NDArray[np.int16]) -> None:
    """Put colours over a part of an image, in place, as strongly as `weight`, (h, w), says: 0 not at all, 128 fully."""
    rows = max(_MIXED_PX // max(place.shape[1], 1), 1)
    for first in range(0, len(place), rows):
        part = slice(first, first + rows)
        mixed, there = colours[part].astype(np.int16), place[part].astype(np.int16)
        mixed -= there
        mixed *= np.asarray(cv2.merge([weight[part]] * 3), np.int16)  # at most 255 x 128
        mixed += 64
        mixed >>= 7
        mixed += there
        place[part] = mixed


def _weights(mode: str, softness: float, slope: float) -> npt.NDArray[np.int16]:
    """Return how much of an object is seen, 0 to 128, for each step of alpha."""
    distance = (np.arange(256) - _EDGE) / slope
    if mode == "gaussian":
        reach = min(_MARGIN, EDGE_PX * LEVELS_PER_PX / slope)
        ends = np.tanh(_SIGMOID * np.array([-reach, reach]) / (0.5 + 1.5 * softness))
        weight = (np.tanh(_SIGMOID * distance / (0.5 + 1.5 * softness)) - ends[0]) / (ends[1] - ends[0])
        weight[0], weight[255] = 0, 1
    else:  # a ramp that begins at the edge and rises inwards: nothing lies outside of the mask
        weight = np.where(distance > 0, (distance + 0.5) / (1 + 2 * softness), 0)
        weight[255] = 1
    return np.asarray(np.round(128 * np.clip(weight, 0, 1)), np.int16)


def _seamless(place: Image, colours: Image, alpha: Image, softness: float) -> Image:
    """Return an object's colours changed so that they meet their surroundings at the edge.

    As Poisson blending does, it adds to the object a smooth field that closes the seam. Being smooth, it is found on a
    small copy: the differences along the edge are spread inwards, near ones before far ones. Away from the edge it
    fades to a part of itself: all of it would let a banana vanish on a lawn.
    """
    height, width = alpha.shape
    step = max(max(height, width) // _SOLVED_PX, 1)
    size = (max(width // step, 3), max(height // step, 3))
    small, beneath, levels = (cv2.resize(image, size) for image in (colours, place, alpha))
    padded = cv2.copyMakeBorder(inside_of(np.asarray(levels)), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    ring = ((depth > 0) & (depth < 1.5)).astype(np.float32)
    seams = np.asarray(
        cv2.merge([*cv2.split((beneath.astype(np.float32) - small) * ring[..., None]), ring]), np.float32
    )
    near, far = (cv2.blur(seams, (px, px), borderType=cv2.BORDER_CONSTANT) for px in (_NEAR_PX, _FAR_PX))
    spread = near + 3e-2 * far + 1e-3 * np.array(cv2.mean(seams), np.float32)
    field = np.clip(spread[..., :3] / np.maximum(spread[..., 3:], 1e-9), -_MOST_SHIFT, _MOST_SHIFT)
    inwards = np.exp(-np.maximum(depth - 1, 0) / max(size) / (0.02 + 0.06 * softness))
    field *= (_DEEP + (1 - _DEEP) * inwards)[..., None]
    shifted = (field + 128).astype(np.uint8)
    whole = cv2.resize(shifted, (width, height))
    return np.asarray(cv2.addWeighted(colours, 1, whole, 1, -128), np.uint8)


def _clear_border(levels: Image) -> None:
    levels[[0, -1]] = 0
    levels[:, [0, -1]] = 0


def _plain(shape: tuple[int, ...], colour: list[int]) -> Image:
    """Return an image in one colour: OpenCV adds it faster than it adds a colour."""
    image = np.empty(shape, np.uint8)
    image.reshape(shape[0], -1)[:] = np.frombuffer(bytes(colour) * shape[1], np.uint8)
    return image
