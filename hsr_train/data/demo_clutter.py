"""Unlabelled things of the built-in demo set: look-alikes of the classes in `demo_objects`, and common clutter.

A plain carton is not a cereal box, a vase not a bottle, a tumbler not a mug, a plate not a bowl: a detector that goes
by colour or outline alone is punished on them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hsr_train.data.demo_objects import bands, revolved, smooth_profile, stand
from hsr_train.data.demo_shapes import Box, Chain, Shape
from hsr_train.data.demo_textures import Rng, hsv, muted, noise, plain, tinted, vivid, wood
from hsr_train.data.demo_things import Material, Thing
from hsr_train.data.demo_vectors import ORIGIN, Array, Offset, rotation


def make_clutter(rng: Rng) -> Thing:
    """Return one unlabelled thing, posed, with its lowest point at height 0."""
    return stand(_MAKERS[int(rng.integers(0, len(_MAKERS)))](rng))


def _yaw(rng: Rng) -> float:
    return float(rng.uniform(0, 2 * np.pi))


def _paint(rng: Rng) -> Array:
    return vivid(rng) if rng.random() < 0.3 else muted(rng)


def _carton(rng: Rng) -> Thing:
    card = plain(rng, hsv(rng.uniform(0.07, 0.1), rng.uniform(0.3, 0.5), rng.uniform(0.5, 0.75)), 0.08)
    taped = card.copy()
    taped[28:36] = hsv(0.1, 0.25, 0.8)
    half = (rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.08), rng.uniform(0.04, 0.12))
    return Thing([(Box(half), ORIGIN, Material((card, card, taped), gloss=0.02))], rotation=rotation(_yaw(rng)))


def _vase(rng: Rng) -> Thing:
    h, r = rng.uniform(0.13, 0.24), rng.uniform(0.045, 0.07)
    neck = r * rng.uniform(0.35, 0.6)
    outline = smooth_profile(
        [(r * 0.5, 0.0), (r, h * rng.uniform(0.3, 0.5)), (neck, h * 0.82), (neck * rng.uniform(1.2, 1.7), h)], 3
    )
    shape = revolved((0, 0), *outline, (neck * 0.8, h * 0.8), (0, h * 0.6), hollow=True)
    glaze = tinted(_paint(rng), noise(rng, (96, 96), (6, 3), 3), rng.uniform(0.05, 0.3))
    return Thing([(shape, ORIGIN, Material((glaze,), gloss=0.45, shininess=50))])


def _tumbler(rng: Rng) -> Thing:
    h, r = rng.uniform(0.09, 0.14), rng.uniform(0.03, 0.038)
    wide = r * rng.uniform(1.15, 1.35)
    shape = revolved((0, 0), (r, 0), (wide, h), (wide - 0.003, h), (r - 0.003, 0.012), (0, 0.012), hollow=True)
    tint = hsv(rng.uniform(0.45, 0.65), rng.uniform(0.05, 0.35), rng.uniform(0.55, 0.9))
    texture = bands(shape, [(2, tint), (5, tint * np.float32(0.8))])
    return Thing([(shape, ORIGIN, Material((texture,), gloss=0.9, shininess=80))])


def _candle(rng: Rng) -> Thing:
    h, r = rng.uniform(0.07, 0.16), rng.uniform(0.025, 0.04)
    shape = revolved((0, 0), (r, 0), (r, h), (r * 0.8, h), (0, h))
    wax = plain(rng, hsv(rng.random(), rng.uniform(0.05, 0.5), rng.uniform(0.7, 0.95)), 0.04)
    wick = Chain(np.array([[0, 0, h], [0.001, 0, h + 0.006]], np.float32), np.array([0.0018, 0.0015], np.float32))
    dark = np.full((4, 4, 3), 0.15, np.float32)
    return Thing([(shape, ORIGIN, Material((wax,), gloss=0.15)), (wick, ORIGIN, Material((dark,)))])


def _paper_roll(rng: Rng) -> Thing:
    h, r = rng.uniform(0.09, 0.22), rng.uniform(0.045, 0.06)
    shape = revolved((0.02, 0), (r, 0), (r, h), (0.02, h), (0.02, 0), hollow=True)
    paper = plain(rng, hsv(0.1, rng.uniform(0, 0.08), rng.uniform(0.85, 0.95)), 0.06)
    lying = np.pi / 2 if rng.random() < 0.3 else 0.0
    return Thing([(shape, ORIGIN, Material((paper,), gloss=0.0))], rotation=rotation(_yaw(rng), lying))


def _book(rng: Rng) -> Thing:
    w, d, h = rng.uniform(0.11, 0.16), rng.uniform(0.015, 0.04), rng.uniform(0.16, 0.23)
    cover = plain(rng, _paint(rng) * np.float32(0.85), 0.05, 96)
    cover[20:26, 16:80] = cover[32:35, 24:72] = hsv(0.1, 0.2, 0.9)
    pages = np.broadcast_to(hsv(0.1, 0.1, 0.9), (32, 32, 3)).copy()
    pages[::3] *= np.float32(0.9)
    flat = -np.pi / 2 if rng.random() < 0.7 else 0.0
    return Thing(
        [(Box((w / 2, d / 2, h / 2)), ORIGIN, Material((pages, cover, pages)))], rotation=rotation(_yaw(rng), flat)
    )


def _block(rng: Rng) -> Thing:
    half = (rng.uniform(0.04, 0.07), rng.uniform(0.025, 0.045), rng.uniform(0.015, 0.03))
    grain = wood(rng) if rng.random() < 0.6 else plain(rng, _paint(rng), 0.03)
    return Thing([(Box(half), ORIGIN, Material((grain,), gloss=0.1))], rotation=rotation(_yaw(rng)))


def _plate(rng: Rng) -> Thing:
    r = rng.uniform(0.08, 0.12)
    shape = revolved((0, 0), (r * 0.6, 0), (r, 0.018), (r, 0.021), (r * 0.62, 0.006), (0, 0.006), hollow=True)
    china = hsv(rng.random(), rng.uniform(0, 0.4), rng.uniform(0.75, 0.95))
    texture = bands(shape, [(3, china), (4, china if rng.random() < 0.5 else _paint(rng)), (5, china)])
    return Thing([(shape, ORIGIN, Material((texture,), gloss=0.4, shininess=50))])


def _cucumber(rng: Rng) -> Thing:
    n, length, thick = 18, rng.uniform(0.14, 0.24), rng.uniform(0.016, 0.024)
    s = np.linspace(0, 1, n)
    bow = rng.uniform(0, 0.015)
    curve = np.stack([(s - 0.5) * length, bow * (2 * s - 1) ** 2, np.zeros(n)], 1).astype(np.float32)
    radii = (thick * np.clip(np.minimum(s, 1 - s) / 0.12 + 0.45, 0, 1) ** 0.7).astype(np.float32)
    hue = rng.uniform(0.27, 0.36) if rng.random() < 0.6 else rng.uniform(0.02, 0.08)  # a cucumber or a carrot
    skin = tinted(hsv(hue, 0.75, rng.uniform(0.3, 0.7)), noise(rng, (64, 32), (16, 8), 2), 0.25)
    return Thing([(Chain(curve, radii), ORIGIN, Material((skin,), gloss=0.2))], rotation=rotation(_yaw(rng)))


def _remote(rng: Rng) -> Thing:
    face = np.empty((64, 24, 3), np.float32)
    face[:] = hsv(0.6, 0.1, rng.uniform(0.08, 0.25))
    for y in range(8, 56, 8):
        face[y : y + 4, 4:8] = face[y : y + 4, 10:14] = face[y : y + 4, 16:20] = hsv(0, 0, 0.6)
    face[4:8, 4:8] = hsv(0, 0.8, 0.8)
    side = face[:2, :2].copy()
    half = (rng.uniform(0.02, 0.026), rng.uniform(0.07, 0.1), 0.009)
    return Thing([(Box(half), ORIGIN, Material((side, side, face), gloss=0.3))], rotation=rotation(_yaw(rng)))


def _plant(rng: Rng) -> Thing:
    r, h = rng.uniform(0.04, 0.06), rng.uniform(0.06, 0.09)
    pot = revolved((0, 0), (r * 0.7, 0), (r, h), (r * 0.9, h), (r * 0.88, h * 0.85), (0, h * 0.85), hollow=True)
    clay = (
        hsv(rng.uniform(0.02, 0.08), rng.uniform(0.3, 0.7), rng.uniform(0.4, 0.75))
        if rng.random() < 0.6
        else muted(rng)
    )
    earth = bands(pot, [(4, clay), (5, hsv(0.07, 0.5, 0.15))])
    parts: list[tuple[Shape, Offset, Material]] = [(pot, ORIGIN, Material((earth,), gloss=0.1))]
    leaf = Material((plain(rng, hsv(rng.uniform(0.25, 0.38), 0.7, rng.uniform(0.3, 0.6)), 0.2),), gloss=0.15)
    for _ in range(int(rng.integers(3, 6))):
        angle, far, high = _yaw(rng), rng.uniform(0.03, 0.1), rng.uniform(0.06, 0.15)
        s = np.linspace(0, 1, 12)
        out = np.stack(
            [np.cos(angle) * far * s**1.5, np.sin(angle) * far * s**1.5, h * 0.8 + high * np.sin(s * 2.1)], 1
        )
        width = 0.0025 + 0.011 * np.sin(np.pi * s**1.3)
        parts.append((Chain(out.astype(np.float32), width.astype(np.float32)), ORIGIN, leaf))
    return Thing(parts)


_MAKERS: tuple[Callable[[Rng], Thing], ...] = (
    _carton, _vase, _tumbler, _candle, _paper_roll, _book, _block, _plate, _cucumber, _remote, _plant,
)  # fmt: skip
