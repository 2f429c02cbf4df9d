"""What the built-in demo set's scenes are made of: rigid things of one or several shapes, and their surfaces.

Shapes come from `demo_shapes`, textures from `demo_textures`; `demo_objects`, `demo_clutter` and `demo_rooms` build
things of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from hsr_train.data.demo_shapes import Shape, Surface
from hsr_train.data.demo_vectors import ORIGIN, Array, Ints, Offset, Vec, shift, turn, turn_back

_CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)


@dataclass(frozen=True)
class Material:
    """How a surface looks: one texture for all faces or one per face, and its shine."""

    textures: tuple[Array, ...]
    tile_m: float = 0.0  # > 0: the texture repeats (mirrored) every so many metres
    gloss: float = 0.1
    shininess: float = 20.0

    @cached_property
    def _pyramids(self) -> list[tuple[Array, Ints, Ints, Ints]]:
        """Return per texture all its levels as one list of texels, and per level its start, height and width."""
        out: list[tuple[Array, Ints, Ints, Ints]] = []
        for texture in self.textures:
            levels = [np.asarray(texture, np.float32)]
            while min(levels[-1].shape[:2]) > 8:
                h, w = levels[-1].shape[:2]
                smaller = cv2.resize(levels[-1], (w // 2, h // 2), interpolation=cv2.INTER_AREA)
                levels.append(np.asarray(smaller, np.float32))
            heights, widths = np.array([level.shape[:2] for level in levels], np.int32).T
            starts = np.concatenate([[0], np.cumsum(heights * widths)[:-1]]).astype(np.int32)
            texels = np.ascontiguousarray(np.concatenate([level.reshape(-1, 3) for level in levels]).T)
            out.append((texels, starts, heights, widths))
        return out

    def look_up(self, at: Surface, pixel_m: Array) -> Vec:
        """Return colours, three arrays (n,), each from the level whose texels are about one pixel.

        Args:
            at: The hits.
            pixel_m: (n,) size of a pixel at each hit, in metres.
        """
        u, v, size_m = at.u, at.v, at.size_m
        if self.tile_m > 0:
            size_m = self.tile_m
            u, v = (_mirrored(x * np.float32(1 / self.tile_m)) for x in (u, v))
        if len(self.textures) == 1 or at.face is None:
            return _gather(self._pyramids[0], u, v, pixel_m / np.float32(size_m))
        out = (np.empty_like(u), np.empty_like(u), np.empty_like(u))
        for face, pyramid in enumerate(self._pyramids):
            here = np.flatnonzero(at.face == face)
            if len(here):
                found = _gather(pyramid, u[here], v[here], pixel_m[here] / np.float32(size_m))
                for plane, values in zip(out, found, strict=True):
                    plane[here] = values
        return out


def _mirrored(x: Array) -> Array:
    """Return a coordinate folded into 0 to 1, every other period backwards."""
    return np.asarray(np.abs(x - 2 * np.floor(x * np.float32(0.5) + np.float32(0.5))), np.float32)


def _gather(pyramid: tuple[Array, Ints, Ints, Ints], u: Array, v: Array, pixel: Array) -> Vec:
    texels, starts, heights, widths = pyramid
    level = np.zeros(len(u), np.intp)
    for k in range(1, len(starts)):
        coarser = pixel >= np.float32((1 << k) / widths[0])
        if not coarser.any():
            break
        level += coarser
    h, w = heights[level], widths[level]
    x = np.minimum(np.maximum((u * w).astype(np.int32), 0), w - 1)
    y = np.minimum(np.maximum((v * h).astype(np.int32), 0), h - 1)
    at = starts[level] + y * w + x
    return texels[0][at], texels[1][at], texels[2][at]


@dataclass
class Thing:
    """One rigid object: parts in a common frame, and that frame's place in the world; only the place may change.

    Attributes:
        parts: Shapes, each with its own offset in the object's frame, and materials.
        label: Class index, or None for furniture and unlabelled clutter.
        casts: Whether it throws a shadow.
    """

    parts: Sequence[tuple[Shape, Offset, Material]]
    label: int | None = None
    casts: bool = True
    rotation: Array = field(default_factory=lambda: np.eye(3, dtype=np.float32))
    position: Array = field(default_factory=lambda: np.zeros(3, np.float32))

    @cached_property
    def _turned_points(self) -> Array:
        out = []
        for shape, at, _ in self.parts:
            centres, radii = shape.points()
            turned = np.stack(turn(self.rotation, (centres + np.array(at, np.float32)).T), 1)
            if not isinstance(radii, float):  # a cube around each ball, along the world's axes
                turned = (turned[:, None] + _CUBE * radii[:, None, None]).reshape(-1, 3)
            out.append(turned)
        return np.concatenate(out).astype(np.float32)

    def points(self) -> Array:
        """Return points in the world, (n, 3), whose hull encloses the thing and whose extents are the thing's."""
        return self._turned_points + self.position

    def local(self, points: Vec) -> Vec:
        """Return points of the world in the thing's frame."""
        return turn_back(self.rotation, shift(points, self.position))

    def to_local(self, point: Array, at: Offset = ORIGIN) -> Vec:
        """Return one point (3,) of the world in the thing's frame, or in that of the part that sits at an offset."""
        a, b, c = ((point - self.position) @ self.rotation - np.array(at, np.float32))[:, None]
        return a, b, c

    def hit(self, o: Vec, d: Vec) -> tuple[Array, Ints]:
        """Intersect rays given in the thing's frame; the code holds the part (times 64) and the shape's own code."""
        t, code = self.parts[0][0].hit(shift(o, self.parts[0][1]), d)
        for i, (shape, at, _) in enumerate(self.parts[1:], 1):
            t2, code2 = shape.hit(shift(o, at), d)
            closer = t2 < t
            code[closer] = code2[closer] + 64 * i
            t = np.minimum(t, t2)
        return t, code
