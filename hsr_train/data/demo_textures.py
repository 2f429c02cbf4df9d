"""Surfaces for the built-in demo set: wood, stone, cloth, tiles, printed packages.

Every function returns an RGB texture (h, w, 3), float32, 0 to 1, and draws its randomness from the generator given.
`demo_things.Material` wraps them around shapes.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import cv2
import numpy as np

from hsr_train.data.demo_vectors import Array

Rng = np.random.Generator

# Three columns by five rows, one row per digit: its three bits are the pixels.
_LETTERS = {
    "A": "25755", "C": "34443", "E": "74647", "F": "74644", "I": "72227", "K": "55655", "L": "44447", "O": "25552",
    "P": "65644", "R": "65655", "S": "34216", "T": "72222", "U": "55557",
}  # fmt: skip
WORDS = ("OATS", "CRISP", "FLAKES", "POPS", "COCOS", "FIT", "RICE", "TREAT")


def hsv(h: float, s: float, v: float) -> Array:
    """Return an RGB colour (3,) from hue, saturation and value, each 0 to 1 (the hue wraps around)."""
    return np.array(colorsys.hsv_to_rgb(h % 1.0, min(max(s, 0), 1), min(max(v, 0), 1)), np.float32)


def vivid(rng: Rng) -> Array:
    """Return a strong colour as packages and crockery have."""
    return hsv(rng.random(), rng.uniform(0.55, 0.95), rng.uniform(0.45, 0.95))


def tone(rng: Rng, *choices: tuple[float, float, float]) -> Array:
    """Return one of some usual colours, given as hue, saturation and value, a little varied."""
    h, s, v = choices[int(rng.integers(0, len(choices)))]
    return hsv(h + rng.uniform(-0.025, 0.025), s * rng.uniform(0.8, 1.1), v * rng.uniform(0.85, 1.1))


def muted(rng: Rng) -> Array:
    """Return a calm colour as walls and furniture have."""
    return hsv(rng.random(), rng.uniform(0.03, 0.2), rng.uniform(0.4, 0.92))


def noise(rng: Rng, size: tuple[int, int], cells: tuple[int, int], octaves: int = 3) -> Array:
    """Return smooth noise (h, w) around 0 with values of about -1 to 1.

    Args:
        rng: Source of randomness.
        size: Height and width.
        cells: Rows and columns of the coarsest grid; unequal numbers stretch the noise.
        octaves: Each further grid is twice as fine and half as strong.
    """
    out = np.zeros(size, np.float32)
    for k in range(octaves):
        grid = rng.uniform(-1, 1, (cells[0] << k, cells[1] << k)).astype(np.float32)
        out += np.asarray(cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC), np.float32) * 0.5**k
    return out / np.float32(1.3)


def tinted(colour: Array, pattern: Array, strength: float) -> Array:
    """Return a colour made lighter and darker by a pattern (h, w) around 0."""
    shade = np.maximum(1 + np.float32(strength) * pattern, 0)
    return np.asarray(cv2.merge([np.minimum(shade * c, 1) for c in colour]), np.float32)


def plain(rng: Rng, colour: Array, strength: float = 0.05, size: int = 64) -> Array:
    """Return a nearly even surface."""
    return tinted(colour, noise(rng, (size, size), (4, 4), 2), strength)


def wood(rng: Rng) -> Array:
    """Return straight grain, from birch to walnut."""
    tone = rng.uniform(0, 1)
    light = hsv(rng.uniform(0.06, 0.1), rng.uniform(0.3, 0.6), 0.85 - 0.5 * tone)
    bend = noise(rng, (128, 128), (2, 2), 2)
    grain = noise(rng, (128, 128), (24, 2), 3)
    rings = np.sin((np.linspace(0, rng.uniform(6, 16), 128)[:, None] + 1.2 * bend) * 2 * np.pi).astype(np.float32)
    return tinted(light, 0.5 * grain + 0.35 * rings, rng.uniform(0.12, 0.3))


def stone(rng: Rng) -> Array:
    """Return marble or speckled laminate."""
    base = hsv(rng.random(), rng.uniform(0, 0.12), rng.uniform(0.3, 0.92))
    veins = np.abs(noise(rng, (128, 128), (4, 4), 4))
    speckle = rng.standard_normal((128, 128)).astype(np.float32)
    return tinted(base, 0.6 - veins * 2 + 0.25 * rng.random() * speckle, rng.uniform(0.08, 0.25))


def checked_cloth(rng: Rng) -> Array:
    """Return a chequered table-cloth."""
    stripes = (np.arange(128) // rng.integers(8, 32)) % 2
    both = (stripes[:, None] + stripes[None, :]) / 2
    a, b = hsv(rng.random(), rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.8)), hsv(0.1, 0.05, rng.uniform(0.75, 0.95))
    cloth = a * both[..., None] + b * (1 - both[..., None])
    return np.clip(cloth + 0.03 * rng.standard_normal((128, 128, 1)), 0, 1).astype(np.float32)


def tiles(rng: Rng) -> Array:
    """Return floor or wall tiles with joints, two shades."""
    n = int(rng.integers(2, 6))
    shades = np.clip(muted(rng) + rng.uniform(-0.08, 0.08, (n, n, 1)), 0, 1).astype(np.float32)
    size = 128 // n
    out = np.kron(shades, np.ones((size, size, 1), np.float32))
    joint = int(rng.integers(1, 4))
    at = np.arange(len(out)) % size < joint
    out[at], out[:, at] = rng.uniform(0.3, 0.85), rng.uniform(0.3, 0.85)
    return np.clip(out + 0.04 * noise(rng, out.shape[:2], (6, 6), 3)[..., None], 0, 1).astype(np.float32)


def planks(rng: Rng) -> Array:
    """Return a parquet or laminate floor."""
    base, n = wood(rng), int(rng.integers(4, 9))
    rows = np.arange(128) * n // 128
    out: Array = base * rng.uniform(0.8, 1.1, n).astype(np.float32)[rows][:, None, None]
    for k in range(n):
        top = k * 128 // n
        out[top : top + 2] *= 0.6
        seam = int(rng.integers(0, 126))
        out[top : (k + 1) * 128 // n, seam : seam + 2] *= 0.65
    return np.clip(out, 0, 1).astype(np.float32)


def carpet(rng: Rng) -> Array:
    """Return a rough even floor."""
    rough = rng.standard_normal((128, 128)).astype(np.float32)
    return tinted(muted(rng) * np.float32(0.8), 0.6 * rough + noise(rng, (128, 128), (3, 3), 3), 0.12)


def wallpaper(rng: Rng) -> Array:
    """Return painted plaster, stripes or bricks."""
    kind = rng.integers(0, 4)
    if kind == 0:
        width = int(rng.integers(6, 30))
        stripe = ((np.arange(128) // width) % 2 - 0.5).astype(np.float32)
        return tinted(muted(rng), np.broadcast_to(stripe, (128, 128)), rng.uniform(0.05, 0.25))
    if kind == 1:
        y, x = np.mgrid[0:128, 0:128]
        joint = (y % 24 < 2) | ((x + (y // 24 % 2) * 24) % 48 < 2)
        brick = hsv(rng.uniform(0.0, 0.09), rng.uniform(0.1, 0.6), rng.uniform(0.45, 0.85))
        return tinted(brick, noise(rng, (128, 128), (8, 4), 3) * 0.5 + joint * np.float32(0.9), rng.uniform(0.15, 0.4))
    return tinted(muted(rng), noise(rng, (128, 128), (3, 3), 4), rng.uniform(0.02, 0.12))


FLOORS: tuple[Callable[[Rng], Array], ...] = (planks, tiles, carpet, stone, wood)
TABLE_TOPS: tuple[Callable[[Rng], Array], ...] = (wood, wood, stone, checked_cloth, lambda rng: plain(rng, muted(rng)))


def write(texture: Array, word: str, colour: Array, x: float, y: float, height: float) -> None:
    """Write a word in block letters, in place.

    Args:
        texture: What to write on.
        word: Of the letters in `_LETTERS`.
        colour: (3,).
        x: Centre, as a share of the width.
        y: Centre, as a share of the height.
        height: Of the letters, as a share of the texture's height; smaller where the word would not fit.
    """
    bits = np.concatenate([_glyph(c) for c in word], 1)[:, :-1]
    rows, columns = texture.shape[:2]
    dot = max(1, min(int(height * rows / 5), columns * 9 // 10 // bits.shape[1]))
    ink = np.kron(bits, np.ones((dot, dot), bool))
    top, left = int(y * rows - ink.shape[0] / 2), int(x * columns - ink.shape[1] / 2)
    top, left = max(0, min(top, rows - ink.shape[0])), max(0, min(left, columns - ink.shape[1]))
    texture[top : top + ink.shape[0], left : left + ink.shape[1]][ink] = colour


def _glyph(letter: str) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    rows = [[bool(int(d) >> k & 1) for k in (2, 1, 0)] + [False] for d in _LETTERS[letter]]
    return np.array(rows)


def package(rng: Rng, base: Array, ink: Array, accent: Array, *, size: tuple[int, int] = (144, 96)) -> Array:
    """Return the front of a package: a word, a picture of the food, a band, small print.

    Args:
        rng: Source of randomness.
        base: Colour of the cardboard.
        ink: Colour of the word.
        accent: Colour of band and picture.
        size: Height and width.
    """
    h, w = size
    out = np.empty((h, w, 3), np.float32)
    out[:] = base
    if rng.random() < 0.5:
        cv2.ellipse(out, (w // 2, 0), (int(w * 0.75), int(h * rng.uniform(0.3, 0.5))), 0, 0, 360, _bgr(accent), -1)
    else:
        slant = int(h * rng.uniform(-0.15, 0.15))
        top, bottom = int(h * 0.1), int(h * rng.uniform(0.32, 0.45))
        corners = np.array([[0, top + slant], [w, top - slant], [w, bottom - slant], [0, bottom + slant]], np.int32)
        cv2.fillPoly(out, [corners], _bgr(accent))
    write(out, str(rng.choice(WORDS)), ink, 0.5, 0.24, 0.16)
    centre = (int(w * rng.uniform(0.4, 0.6)), int(h * rng.uniform(0.62, 0.7)))
    plate = int(w * rng.uniform(0.28, 0.38))
    cv2.ellipse(out, centre, (plate, int(plate * 0.8)), 0, 0, 360, (0.95, 0.95, 0.92), -1)
    food = hsv(rng.uniform(0.02, 0.14), rng.uniform(0.5, 0.9), rng.uniform(0.5, 0.9))
    for _ in range(24):
        angle, far = rng.uniform(0, 2 * np.pi), plate * 0.7 * np.sqrt(rng.random())
        at = (int(centre[0] + far * np.cos(angle)), int(centre[1] + 0.8 * far * np.sin(angle)))
        cv2.circle(out, at, int(rng.integers(3, 7)), _bgr(food * np.float32(rng.uniform(0.7, 1.2))), -1)
    small_print(rng, out, ink, (0.9, 0.97))
    return np.clip(out, 0, 1)


def small_print(rng: Rng, texture: Array, ink: Array, rows: tuple[float, float]) -> None:
    """Draw lines that read as text from afar, in place, between two heights given as shares."""
    h, w = texture.shape[:2]
    for y in range(int(rows[0] * h), int(rows[1] * h), 4):
        x = int(0.08 * w)
        while x < 0.9 * w:
            length = int(rng.integers(3, 12))
            texture[y : y + 2, x : min(x + length, int(0.92 * w))] = ink
            x += length + 3


def _bgr(colour: Array) -> tuple[float, float, float]:
    """Return a colour as the tuple that OpenCV's drawing functions take (the channel order stays RGB)."""
    return float(colour[0]), float(colour[1]), float(colour[2])
