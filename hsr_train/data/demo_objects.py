"""The six labelled classes of the built-in demo set, each instance with its own size, proportions and colours.

`make` builds an instance of a class around its own origin and turns it into a pose in which such a thing is found;
`stand` puts it on its feet. The unlabelled look-alikes are in `demo_clutter`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hsr_train.data.demo_shapes import Box, Chain, Revolved
from hsr_train.data.demo_textures import Rng, hsv, noise, package, small_print, tinted, tone, write
from hsr_train.data.demo_things import Material, Thing
from hsr_train.data.demo_vectors import ORIGIN, Array, rotation

CLASSES = ("mug", "bottle", "cereal_box", "can", "banana", "bowl")


def make(label: int, rng: Rng) -> Thing:
    """Return one instance of a class, posed, with its lowest point at height 0.

    Args:
        label: Index in `CLASSES`.
        rng: Source of every choice.
    """
    thing = _MAKERS[label](rng)
    thing.label = label
    return stand(thing)


def stand(thing: Thing) -> Thing:
    """Move a thing so that its lowest point is at height 0 and the middle of its outline at x = y = 0."""
    thing.position = np.zeros(3, np.float32)
    points = thing.points()
    low, high = points.min(0), points.max(0)
    thing.position = -np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]], np.float32)
    return thing


def revolved(*points: tuple[float, float], hollow: bool = False) -> Revolved:
    """Return the shape with this profile (r, z)."""
    return Revolved(np.array(points, np.float32), hollow)


def bands(shape: Revolved, colours: Sequence[tuple[int, Array]], *, height: int = 128, width: int = 128) -> Array:
    """Return a texture for a turned shape, coloured by stretches of its profile.

    Args:
        shape: The shape.
        colours: (index of the profile point up to which it reaches, colour), in order.
        height: Texture rows.
        width: Texture columns.
    """
    out = np.empty((height, width, 3), np.float32)
    top = 0
    for end, colour in colours:
        bottom = max(top, round(float(shape.rows[end]) * height))
        out[top:bottom] = colour
        top = bottom
    out[top:] = colours[-1][1]
    return out


def rows_of(shape: Revolved, texture: Array, first: int, last: int) -> Array:
    """Return the view of a texture that lies between two profile points, upside up."""
    height = len(texture)
    return texture[round(float(shape.rows[first]) * height) : round(float(shape.rows[last]) * height)][::-1]


def smooth_profile(points: Sequence[tuple[float, float]], per_span: int = 4) -> list[tuple[float, float]]:
    """Return a profile through these points with rounded corners (Catmull-Rom)."""
    p = np.array([points[0], *points, points[-1]])
    out = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        for t in np.arange(per_span) / per_span:
            r, z = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            out.append((max(float(r), 0.0), float(z)))
    return [*out, points[-1]]


def _mug(rng: Rng) -> Thing:
    r, h, wall = rng.uniform(0.04, 0.05), rng.uniform(0.085, 0.115), 0.004
    foot, lip = r * rng.uniform(0.78, 1.0), r * rng.uniform(1.0, 1.1)
    body = revolved(
        (0, 0), (foot, 0), (r, 0.018), (lip, h), (lip - wall, h), (r - wall, 0.022), (foot * 0.9, 0.01), (0, 0.01),
        hollow=True,
    )  # fmt: skip
    outside = tone(rng, (0.6, 0.75, 0.65), (0.6, 0.75, 0.65), (0.9, 0.5, 0.85))
    inside = hsv(0.1, 0.06, 0.93) if rng.random() < 0.6 else outside * np.float32(0.9)
    drink = hsv(0.07, 0.7, rng.uniform(0.15, 0.35)) if rng.random() < 0.4 else inside * np.float32(0.85)
    texture = bands(body, [(3, outside), (5, inside), (7, drink)])
    face = rows_of(body, texture, 2, 3)
    kind = rng.integers(0, 4)
    if kind == 0:
        face[len(face) // 3 : 2 * len(face) // 3] = tone(rng, (0.12, 0.8, 0.9), (0.6, 0.8, 0.4))
    elif kind == 1:
        spots = np.add.outer(np.arange(len(face)) % 10 < 5, np.arange(128) % 16 < 8) == 2
        face[spots] = hsv(0, 0, 0.95)
    elif kind == 2:
        write(face[:, 8:56], "FIT", 1 - outside, 0.5, 0.5, 0.4)
    angle = np.linspace(-1.35, 1.35, 13)
    out, high = rng.uniform(0.024, 0.034), h * rng.uniform(0.28, 0.36)
    curve = np.stack([r * 0.94 + out * np.cos(angle), np.zeros(13), h * 0.5 + high * np.sin(angle)], 1)
    handle = Chain(curve.astype(np.float32), np.full(13, rng.uniform(0.0045, 0.0065), np.float32))
    glaze = Material((texture,), gloss=0.35, shininess=50)
    plain_glaze = Material((np.broadcast_to(outside, (4, 4, 3)).copy(),), gloss=0.35, shininess=50)
    upside_down = rng.random() < 0.05
    pose = rotation(rng.uniform(0, 2 * np.pi), np.pi if upside_down else 0.0)
    return Thing([(body, ORIGIN, glaze), (handle, ORIGIN, plain_glaze)], rotation=pose)


def _bottle(rng: Rng) -> Thing:
    r, h = rng.uniform(0.033, 0.042), rng.uniform(0.17, 0.22)
    neck, shoulder = r * rng.uniform(0.32, 0.5), h * rng.uniform(0.52, 0.7)
    collar = shoulder + (h - shoulder) * rng.uniform(0.45, 0.65)
    shoulders = smooth_profile([(r, shoulder), (r * 0.8, shoulder + (collar - shoulder) * 0.45), (neck, collar)], 3)
    waist = r * rng.uniform(0.86, 1.0)
    low, high = h * rng.uniform(0.14, 0.2), shoulder * rng.uniform(0.8, 0.92)
    cap_r, cap_z = neck * 1.2, h * rng.uniform(0.88, 0.93)
    points = [(0.0, 0.0), (r * 0.9, 0.0), (r, 0.012), (waist, low), (waist, high), *shoulders, (neck, cap_z)]
    body = revolved(*points, (cap_r, cap_z), (cap_r, h), (0, h))
    glass = tone(rng, (0.38, 0.8, 0.45), (0.38, 0.8, 0.45), (0.06, 0.75, 0.3))
    end = len(points) - 1
    texture = bands(body, [(end, glass), (end + 3, tone(rng, (0.0, 0.85, 0.8), (0.62, 0.8, 0.6)))], height=160)
    label = rows_of(body, texture, 3, 4)
    label[:] = tone(rng, (0.13, 0.1, 0.95), (0.13, 0.6, 0.95))
    ink = tone(rng, (0.0, 0.9, 0.6), (0.6, 0.8, 0.4))
    label[: max(1, len(label) // 8)] = label[-max(1, len(label) // 8) :] = ink
    for start in (0, 64):
        write(label[:, start : start + 64], str(rng.choice(["POPS", "FIT", "COCOS"])), ink, 0.5, 0.45, 0.35)
    lying = rng.random() < 0.07
    pose = rotation(rng.uniform(0, 2 * np.pi), np.pi / 2 if lying else 0.0, 0.0)
    spin = rotation(rng.uniform(0, 2 * np.pi))
    return Thing([(body, ORIGIN, Material((texture,), gloss=0.7, shininess=70))], rotation=pose @ spin)


def _cereal_box(rng: Rng) -> Thing:
    w, d, h = rng.uniform(0.105, 0.145), rng.uniform(0.045, 0.065), rng.uniform(0.15, 0.2)
    base = tone(rng, (0.07, 0.85, 0.95), (0.07, 0.85, 0.95), (0.77, 0.55, 0.6))
    accent = tone(rng, (0.13, 0.8, 0.95), (0.99, 0.85, 0.8))
    ink = hsv(0.1, 0.1, 0.98) if accent[1] < 0.5 else hsv(0.62, 0.9, 0.4)
    front = package(rng, base, ink, accent)
    side = np.empty((96, 32, 3), np.float32)
    side[:] = base * np.float32(0.95)
    small_print(rng, side, ink, (0.1, 0.9))
    lid = np.empty((24, 64, 3), np.float32)
    lid[:] = accent
    lid[11:13] = accent * np.float32(0.7)
    box = Box((w / 2, d / 2, h / 2))
    pose = rotation(rng.uniform(0, 2 * np.pi))
    if rng.random() < 0.3:
        pose = rotation(rng.uniform(-0.7, 0.7) + np.pi * rng.integers(0, 2))
    if rng.random() < 0.07:
        pose = rotation(rng.uniform(0, 2 * np.pi), -np.pi / 2)
    return Thing([(box, ORIGIN, Material((side, front, lid), gloss=0.12))], rotation=pose)


def _can(rng: Rng) -> Thing:
    r, h = rng.uniform(0.035, 0.045), rng.uniform(0.095, 0.125)
    if rng.random() < 0.1:
        r, h = rng.uniform(0.042, 0.052), rng.uniform(0.045, 0.065)
    body = revolved(
        (0, 0.003), (r * 0.88, 0.003), (r * 0.9, 0), (r, 0.008), (r, h - 0.01), (r * 0.9, h),
        (r * 0.82, h), (r * 0.78, h), (0, h),
    )  # fmt: skip
    metal = hsv(0.6, 0.04, rng.uniform(0.68, 0.82))
    texture = bands(
        body,
        [
            (3, metal),
            (4, tone(rng, (0.99, 0.9, 0.8), (0.99, 0.9, 0.55))),
            (6, metal),
            (7, metal * np.float32(0.6)),
            (8, metal * np.float32(0.9)),
        ],
    )
    face = rows_of(body, texture, 3, 4)
    second, ink = tone(rng, (0.13, 0.4, 0.95)), hsv(0, 0, rng.choice([0.08, 0.97]))
    kind = rng.integers(0, 3)
    if kind == 0:
        face[len(face) // 2 :] = second
    elif kind == 1:
        y, x = np.mgrid[0 : len(face), 0:128]
        face[((x + y) // 16) % 2 == 0] = second
    else:
        face[: len(face) // 4] = face[-len(face) // 4 :] = second
    for start in (0, 43, 86):
        write(face[:, start : start + 42], str(rng.choice(["OATS", "RICE", "POPS"])), ink, 0.5, 0.5, 0.3)
    lying = rng.random() < 0.07
    pose = rotation(rng.uniform(0, 2 * np.pi), np.pi / 2 if lying else 0.0) @ rotation(rng.uniform(0, 2 * np.pi))
    return Thing([(body, ORIGIN, Material((texture,), gloss=0.6, shininess=35))], rotation=pose)


def _banana(rng: Rng) -> Thing:
    bend, length = rng.uniform(1.1, 1.9), rng.uniform(0.16, 0.2)
    thick, n = rng.uniform(0.018, 0.023), 20
    angle = np.linspace(-bend / 2, bend / 2, n)
    radius = length / bend
    curve = np.stack([radius * np.sin(angle), radius * (1 - np.cos(angle)), np.zeros(n)], 1)
    s = np.linspace(0, 1, n)
    radii = thick * np.clip(np.minimum(s / 0.3, (1 - s) / 0.22), 0, 1) ** 0.55
    radii = np.maximum(radii, thick * np.where(s < 0.5, 0.3, 0.25))
    ripe = rng.random()
    skin = hsv(0.145 + 0.03 * (1 - ripe), rng.uniform(0.7, 0.9), rng.uniform(0.8, 0.95))
    texture = np.empty((104, 48, 3), np.float32)
    texture[:] = skin
    spots = noise(rng, (104, 48), (26, 16), 2) > rng.uniform(0.75, 1.6)
    texture[spots] *= np.float32(0.55)
    texture[:, ::12] *= np.float32(0.85)
    texture[:7] = hsv(0.12, 0.6, 0.4)
    texture[-5:] = hsv(0.08, 0.6, 0.15)
    chain = Chain(curve.astype(np.float32), radii.astype(np.float32))
    pose = rotation(rng.uniform(0, 2 * np.pi), rng.uniform(-0.15, 0.3) if rng.random() < 0.7 else -np.pi / 2)
    return Thing([(chain, ORIGIN, Material((texture,), gloss=0.15, shininess=15))], rotation=pose)


def _bowl(rng: Rng) -> Thing:
    r, h, wall = rng.uniform(0.06, 0.08), rng.uniform(0.045, 0.07), 0.005
    foot = r * rng.uniform(0.4, 0.55)
    belly = rng.uniform(0.78, 0.88)
    outer = smooth_profile([(foot, 0.006), (r * belly, h * 0.45), (r, h)], 3)
    inner = smooth_profile([(r - wall, h), (r * belly - wall, h * 0.5), (foot, 0.014)], 3)
    inner.append((0.0, 0.014))
    shape = revolved((0, 0), (foot, 0), *outer, *inner, hollow=True)
    outside = tone(rng, (0.48, 0.65, 0.65), (0.5, 0.75, 0.5))
    inside = hsv(0.1, 0.06, 0.93) if rng.random() < 0.6 else outside * np.float32(0.9)
    rim = 1 + len(outer)
    texture = bands(shape, [(rim, outside), (rim + len(inner), inside)])
    if rng.random() < 0.5:
        rows_of(shape, texture, rim - 3, rim)[:] = tone(rng, (0.48, 0.7, 0.35), (0.12, 0.1, 0.95))
    parts = [(shape, ORIGIN, Material((texture,), gloss=0.4, shininess=45))]
    if rng.random() < 0.45:
        level = h * 0.72
        meal = tinted(hsv(rng.uniform(0, 0.16), rng.uniform(0.3, 0.9), 0.75), noise(rng, (64, 64), (10, 10), 2), 0.4)
        parts.append((revolved((0, level), (r * 0.92 - wall, level)), ORIGIN, Material((meal,), gloss=0.1)))
    elif rng.random() < 0.1:
        return Thing(parts, rotation=rotation(rng.uniform(0, 6.28), np.pi))
    return Thing(parts, rotation=rotation(rng.uniform(0, 2 * np.pi)))


_MAKERS: tuple[Callable[[Rng], Thing], ...] = (_mug, _bottle, _cereal_box, _can, _banana, _bowl)
