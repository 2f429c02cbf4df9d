"""The rooms of the built-in demo set: a table, a shelf or a floor, as a household robot's head camera sees them.

Each room is furniture (things without labels), the surfaces on which `demo_scene` may put things, a camera and a lamp.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hsr_train.data.demo_camera import Camera
from hsr_train.data.demo_light import Light
from hsr_train.data.demo_shapes import Box, Panel
from hsr_train.data.demo_textures import FLOORS, TABLE_TOPS, Rng, muted, package, plain, vivid, wallpaper, wood
from hsr_train.data.demo_things import Material, Thing
from hsr_train.data.demo_vectors import ORIGIN, Array, rotation


@dataclass(frozen=True)
class Support:
    """A horizontal rectangle on which things may stand.

    Attributes:
        centre: (3,) in the world.
        half: Half its width and depth.
        yaw: Turn about z.
        clearance: Height of the free space above, metres.
    """

    centre: Array
    half: tuple[float, float]
    yaw: float = 0.0
    clearance: float = 9.0

    def at(self, u: npt.ArrayLike, v: npt.ArrayLike) -> Array:
        """Return the points (..., 3) at -1 to 1 along width and depth."""
        x, y = np.asarray(u) * self.half[0], np.asarray(v) * self.half[1]
        c, s = np.cos(self.yaw), np.sin(self.yaw)
        return self.centre + np.stack([c * x - s * y, s * x + c * y, np.zeros_like(x)], -1).astype(np.float32)


@dataclass(frozen=True)
class Room:
    """A place to be photographed.

    Attributes:
        furniture: What stands there anyway.
        supports: Where things may be put.
        camera: The robot's view.
        light: The lamp.
    """

    furniture: list[Thing]
    supports: list[Support]
    camera: Camera
    light: Light


def _point(x: float, y: float, z: float) -> Array:
    return np.array([x, y, z], np.float32)


def _slab(
    centre: Array, half: tuple[float, float, float], material: Material, yaw: float = 0.0, casts: bool = True
) -> Thing:
    box = Box(half, metric_uv=material.tile_m > 0)
    return Thing([(box, ORIGIN, material)], rotation=rotation(yaw), position=centre, casts=casts)


def _panel(centre: Array, half: tuple[float, float], material: Material, *, facing: float | None = None) -> Thing:
    """Return a flat rectangle, lying, or upright with a yaw (0: towards the camera); it throws no shadow."""
    turned = rotation() if facing is None else rotation(facing, np.pi / 2)
    return Thing([(Panel(half), ORIGIN, material)], rotation=turned, position=centre, casts=False)


def _shell(rng: Rng, floor_z: float, wall_y: float) -> list[Thing]:
    """Return floor, back wall with its skirting and two side walls, pictures on the wall and furniture before it."""
    floor = Material(
        (FLOORS[int(rng.integers(0, len(FLOORS)))](rng),), rng.uniform(0.5, 1.1), gloss=rng.uniform(0, 0.25)
    )
    wall = Material((wallpaper(rng),), rng.uniform(0.5, 1.2), gloss=0.0)
    side = Material((plain(rng, muted(rng)),), 1.0, gloss=0.0)
    trim = Material((plain(rng, muted(rng)),), 0.5)
    things = [
        _panel(_point(0, 0, floor_z), (6, 8), floor),
        _panel(_point(0, wall_y, floor_z + 1.5), (6, 1.5), wall, facing=0.0),
        _panel(_point(0, wall_y - 0.01, floor_z + 0.04), (6, 0.04), trim, facing=0.0),
    ]
    for sign in (-1, 1):
        things.append(
            _panel(_point(sign * rng.uniform(1.4, 3.0), 0, floor_z + 1.5), (8, 1.5), side, facing=sign * np.pi / 2)
        )
    for _ in range(int(rng.integers(0, 3))):
        half = (rng.uniform(0.12, 0.3), rng.uniform(0.12, 0.3))
        if rng.random() < 0.5:
            face = package(rng, muted(rng), vivid(rng), vivid(rng))
        else:
            face = plain(rng, vivid(rng) if rng.random() < 0.4 else muted(rng), 0.3)
        at = _point(rng.uniform(-0.8, 0.8), wall_y - 0.012, floor_z + rng.uniform(0.9, 1.7))
        things.append(_slab(at, (half[0], 0.012, half[1]), Material((face,), gloss=0.1), casts=False))
    for _ in range(int(rng.integers(0, 3))):  # cupboards, a sofa's side, a door
        size = (rng.uniform(0.15, 0.5), rng.uniform(0.1, 0.25), rng.uniform(0.2, 0.8))
        front = wood(rng) if rng.random() < 0.5 else plain(rng, muted(rng), 0.1)
        lines = front.copy()
        lines[::48] *= np.float32(0.5)
        lines[:, ::32] *= np.float32(0.6)
        at = _point(rng.uniform(-1.3, 1.3), wall_y - size[1], floor_z + size[2])
        things.append(_slab(at, size, Material((front, lines, front), gloss=0.1), casts=False))
    return things


def _camera(
    rng: Rng, size: tuple[int, int], target: Array, distance: float, elevation: float, azimuth: float, zoom: float
) -> Camera:
    away = np.array(
        [np.sin(azimuth) * np.cos(elevation), -np.cos(azimuth) * np.cos(elevation), np.sin(elevation)], np.float32
    )
    tilt = float(rng.normal(0, 0.04))
    return Camera(target + np.float32(distance) * away, target, zoom * size[0], size[0], size[1], tilt)


def _light(rng: Rng, target: Array, *, height: tuple[float, float]) -> Light:
    """Return a lamp somewhere above, from candle-warm to cloudy blue, with more or less light from everywhere."""
    angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1.5)
    at = target + _point(far * float(np.cos(angle)), far * float(np.sin(angle)) - 0.3, rng.uniform(*height))
    reach = float(np.linalg.norm(at - target))
    warm = rng.uniform(-1, 1)
    colour = np.array([1 + 0.25 * warm, 1.0, 1 - 0.35 * warm], np.float32)
    share = rng.uniform(0.3, 0.7)  # of the lamp; the rest comes from everywhere
    around = rng.uniform(-0.5, 0.5)
    sky = np.array([1 + 0.15 * around, 1.0, 1 - 0.2 * around], np.float32) * np.float32(1 - share)
    bounce = sky * np.array([0.75, 0.65, 0.55], np.float32)
    lamp = colour * np.float32(share * min(reach, 3.0) ** 2 / 2.25)
    return Light(at, lamp, sky, bounce, rng.uniform(0.6, 1.6))


def table(rng: Rng, size: tuple[int, int]) -> Room:
    """Return a table in front of a wall, seen from above its edge."""
    half = (rng.uniform(0.4, 0.75), rng.uniform(0.28, 0.45))
    yaw, thick = rng.uniform(-0.4, 0.4), 0.02
    top_texture = TABLE_TOPS[int(rng.integers(0, len(TABLE_TOPS)))](rng)
    top = Material((top_texture,), rng.uniform(0.35, 0.8), gloss=rng.uniform(0, 0.3), shininess=30)
    furniture = _shell(rng, -0.74, half[1] + rng.uniform(0.25, 1.8))
    furniture.append(_slab(_point(0, 0, -thick), (*half, thick), top, yaw))
    leg = Material((plain(rng, muted(rng), 0.1),))
    support = Support(_point(0, 0, 0), half, yaw)
    for u, v in ((-0.93, -0.9), (-0.93, 0.9), (0.93, -0.9), (0.93, 0.9)):
        furniture.append(_slab(support.at(u, v) - _point(0, 0, 0.38), (0.025, 0.025, 0.34), leg, yaw))
    target = support.at(rng.uniform(-0.3, 0.3), rng.uniform(-0.35, 0.3)) + _point(0, 0, rng.uniform(0.02, 0.1))
    elevation = rng.uniform(0.42, 0.85)
    camera = _camera(
        rng, size, target, rng.uniform(0.42, 0.54), elevation, rng.uniform(-0.4, 0.4), rng.uniform(0.95, 1.15)
    )
    return Room(furniture, [support], camera, _light(rng, target, height=(0.9, 2.0)))


def shelf(rng: Rng, size: tuple[int, int]) -> Room:
    """Return a shelf with three boards, seen from the front."""
    width, depth, step = rng.uniform(0.45, 0.7), rng.uniform(0.13, 0.18), rng.uniform(0.28, 0.36)
    board = Material((wood(rng) if rng.random() < 0.6 else plain(rng, muted(rng)),), 0.6, gloss=0.1)
    back = board if rng.random() < 0.5 else Material((wallpaper(rng),), 0.8)
    furniture = _shell(rng, -1.0, depth + rng.uniform(0.02, 0.5))
    supports = []
    for k in (-1, 0, 1):
        furniture.append(_slab(_point(0, 0, k * step - 0.01), (width, depth, 0.01), board))
        if k < 1:
            supports.append(Support(_point(0, -0.02, k * step), (width - 0.05, depth - 0.04), 0.0, step - 0.03))
    for x in (-width, width):
        furniture.append(_slab(_point(x, 0, 0), (0.012, depth, 1.5 * step), board))
    if rng.random() < 0.7:
        furniture.append(_panel(_point(0, depth, 0), (width, 1.5 * step), back, facing=0.0))
    target = _point(rng.uniform(-0.25, 0.25), -0.05, rng.uniform(-0.12, 0.14))
    azimuth, elevation = rng.uniform(-0.3, 0.3), rng.uniform(0.05, 0.4)
    camera = _camera(rng, size, target, rng.uniform(0.47, 0.59), elevation, azimuth, rng.uniform(1.0, 1.25))
    light = _light(rng, camera.position * np.float32(0.6), height=(0.2, 1.0))
    return Room(furniture, supports, camera, light)


def floor(rng: Rng, size: tuple[int, int]) -> Room:
    """Return a floor with a rug or without, a wall further back."""
    furniture = _shell(rng, 0.0, rng.uniform(0.6, 1.8))
    if rng.random() < 0.4:
        rug = Material((plain(rng, muted(rng) * np.float32(0.8), 0.2),), 0.4, gloss=0.0)
        at = _point(rng.uniform(-0.4, 0.4), rng.uniform(-0.3, 0.3), 0.003)
        furniture.append(_panel(at, (rng.uniform(0.4, 0.8), rng.uniform(0.3, 0.5)), rug))
    target = _point(rng.uniform(-0.1, 0.1), 0, rng.uniform(0.0, 0.1))
    support = Support(_point(0, 0, 0.003), (0.65, 0.5))
    camera = _camera(
        rng,
        size,
        target,
        rng.uniform(0.5, 0.63),
        rng.uniform(0.4, 0.95),
        rng.uniform(-0.5, 0.5),
        rng.uniform(1.2, 1.4),
    )
    return Room(furniture, [support], camera, _light(rng, target, height=(1.0, 2.2)))


def studio(rng: Rng, size: tuple[int, int], middle: Array, reach: float) -> Room:
    """Return an empty table close up, for photographing one thing.

    Args:
        rng: Source of randomness.
        size: Width and height of the picture.
        middle: (3,) centre of the thing.
        reach: Radius of the sphere around it, metres.
    """
    top_texture = TABLE_TOPS[int(rng.integers(0, len(TABLE_TOPS)))](rng)
    furniture = _shell(rng, -0.74, rng.uniform(0.7, 1.6))
    furniture.append(_slab(_point(0, 0, -0.02), (0.6, 0.4, 0.02), Material((top_texture,), 0.6, gloss=0.1)))
    zoom = 0.36 * 0.85 / reach
    camera = _camera(rng, size, middle, 0.85, rng.uniform(0.15, 0.8), rng.uniform(-0.5, 0.5), zoom)
    return Room(furniture, [], camera, _light(rng, middle, height=(0.9, 2.0)))


ROOMS = (table, shelf, floor)
