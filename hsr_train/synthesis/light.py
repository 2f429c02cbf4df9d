"""Light on pasted objects and their shadows, the same for all objects of an image; both are off unless asked for.

`composer` draws one light for each image. What a shadow costs grows with its object's pixels, as pasting does.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from hsr_train.synthesis.paste import Sprite, inside_of
from hsr_train.synthesis.store import Image

_RAMP = 0.35
"""At full strength an object's side towards the light is brighter by this share, the other one darker."""
_GAIN = 0.25
"""At full strength all objects of an image are brighter or darker by up to this share."""
_ROOM = 0.35
"""How far beyond its object a shadow reaches at most, as a share of the object's width and height."""
_SHAPED_PX = 32
"""Longest side, about, of the small copy on which a shadow is shaped: it is soft."""


class Light(NamedTuple):
    """Where light comes from.

    Attributes:
        x: Towards the right, of a vector of length 1.
        y: Downwards; it comes from above, so it is negative.
        gain: -1 (dim) to 1 (bright).
    """

    x: float
    y: float
    gain: float


def draw_light(rng: np.random.Generator) -> Light:
    """Draw a light from above, up to 70 degrees from the vertical."""
    angle, gain = rng.uniform(-1, 1, 2).tolist()
    angle *= np.radians(70)
    return Light(float(np.sin(angle)), -float(np.cos(angle)), gain)


def shade(colours: Image, whole: tuple[int, int], part: tuple[slice, slice], light: Light, strength: float) -> Image:
    """Return an object's colours under a light: a smooth ramp across it, and a gain.

    Args:
        colours: (h, w, 3) of the part of the object that lies within the image.
        whole: Height and width of the object.
        part: Rows and columns of it that `colours` are.
        light: Of the image.
        strength: 0 to 1.
    """
    down, right = (np.linspace(-1, 1, size, dtype=np.float32)[cut] for size, cut in zip(whole, part, strict=True))
    level = 1 + strength * _GAIN * light.gain
    gains = level + strength * _RAMP * (light.y * down[:, None] + light.x * right[None, :])
    gray = np.round(128 * gains).astype(np.uint8)
    return np.asarray(cv2.multiply(colours, cv2.merge([gray, gray, gray]), scale=1 / 128), np.uint8)


def cast_shadow(image: Image, sprite: Sprite, left: int, top: int, light: Light, shape: float, depth: float) -> None:
    """Darken an image where an object, which is painted afterwards, keeps light away; no label depends on it.

    Args:
        image: To be changed.
        sprite: The object.
        left: Of the sprite in the image, in pixels; may lie outside.
        top: Likewise.
        light: Of the image.
        shape: 0: right behind the object, as of one that hangs or lies; 1: flat on the ground in front of the light.
        depth: 0 to 1: how dark.
    """
    height, width = sprite.alpha.shape
    room = (round(_ROOM * width) + 1, round(_ROOM * height) + 1)
    x0, y0 = max(left - room[0], 0), max(top - room[1], 0)
    x1 = min(left + width + room[0], image.shape[1])
    y1 = min(top + height + room[1], image.shape[0])
    if x0 >= x1 or y0 >= y1:
        return
    step = max(max(height, width) / _SHAPED_PX, 1.0)
    size = tuple(max(round((length + 2 * more) / step), 8) for length, more in zip((width, height), room, strict=True))
    flat = 1 - 0.7 * shape
    away = -0.15 * (1 - shape)  # in the object's own size
    lean = -0.3 * shape * light.x * width / height
    base = sprite.y + sprite.height
    # Of a point in the sprite: its place in the small copy, flattened onto the base and leaning away from the light.
    matrix = np.array(
        [
            [1, -lean, room[0] + lean * base + away * light.x * width],
            [0, flat, room[1] + (1 - flat) * base + away * light.y * height],
        ]
    )
    small = cv2.warpAffine(inside_of(sprite.alpha) * 255, matrix / step, size, flags=cv2.INTER_LINEAR)
    for _ in range(2):
        small = cv2.blur(small, (5, 5), borderType=cv2.BORDER_CONSTANT)
    small[[0, -1]] = 0
    small[:, [0, -1]] = 0
    dark = np.round(128 - (0.25 + 0.4 * depth) / 255 * 128 * small.astype(np.float32)).astype(np.uint8)
    gray = cv2.resize(dark, (width + 2 * room[0], height + 2 * room[1]))
    gray = gray[y0 - top + room[1] :, x0 - left + room[0] :][: y1 - y0, : x1 - x0]
    place = image[y0:y1, x0:x1]
    place[:] = cv2.multiply(place, cv2.merge([gray, gray, gray]), scale=1 / 128)
