"""Shapes that rays can hit, for the built-in demo set.

Its scenes are three-dimensional, so that overlap, perspective, shading and shadows are right by construction and the
label boxes follow from exact masks. `demo_things` puts shapes together, `demo_camera` looks at them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from hsr_train.data.demo_vectors import Array, Ints, Mask, Vec, dot, shift, unit

MISS = np.float32(1e9)
NEAR = np.float32(1e-3)
_TINY = np.float32(1e-12)  # added to divisors: far cheaper than looking for zeros

_CUBE = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float32)
_RING = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], 1) / np.cos(np.pi / 16)


@dataclass(frozen=True)
class Surface:
    """Where rays met a shape, in the shape's own frame; n hits.

    Attributes:
        normal: three arrays (n,), together of unit length, not yet turned towards the viewer.
        u: (n,) to the right in the texture; 0 to 1 over the face, or metres where the material has a `tile_m`.
        v: (n,) downwards in the texture, in the same unit.
        face: (n,) index of the texture, or None where there is but one.
        size_m: Length in metres of one unit of u.
    """

    normal: Vec
    u: Array
    v: Array
    face: Ints | None
    size_m: float


class Shape(Protocol):
    """What can be hit by rays, in its own frame."""

    def hit(self, o: Vec, d: Vec) -> tuple[Array, Ints]:
        """Return the ray parameter of the nearest hit (`MISS` where there is none) and a code for `surface`."""

    def surface(self, p: Vec, code: Ints) -> Surface:
        """Return normal and texture position of points, three arrays (n,), that `hit` found."""

    def points(self) -> tuple[Array, Array | float]:
        """Return centres (n, 3) and radii (n,) of balls whose hull is the shape's: for bounds, feet and footprints."""


def _nearest(t: Array, code: Ints, new: Array, new_code: int) -> Array:
    """Return the smaller of two ray parameters and note in `code` where the new one won."""
    code[new < t] = new_code
    return np.minimum(t, new)


def _or_miss(s: Array, valid: Mask) -> Array:
    """Return s where it is valid, else something not below `MISS`; several times faster than `np.where`."""
    return np.maximum(s, 0) + (~valid) * MISS


@dataclass(frozen=True)
class Panel:
    """A rectangle in the plane z = 0 around the origin, with texture positions in metres: floors and walls."""

    half: tuple[float, float]

    def hit(self, o: Vec, d: Vec) -> tuple[Array, Ints]:
        """Intersect with the plane."""
        t = -o[2] / (d[2] + _TINY)
        inside = (np.abs(o[0] + t * d[0]) < self.half[0]) & (np.abs(o[1] + t * d[1]) < self.half[1]) & (t > NEAR)
        return _or_miss(t, inside), np.zeros(t.shape, np.int32)

    def surface(self, p: Vec, code: Ints) -> Surface:
        """One normal for all."""
        none = np.zeros(1, np.float32)
        return Surface((none, none, none + 1), p[0], -p[1], None, 1.0)

    def points(self) -> tuple[Array, Array | float]:
        """Return the four corners."""
        return _CUBE[:4, ::-1] * np.array([*self.half, 0], np.float32), 0.0


@dataclass(frozen=True)
class Box:
    """A cuboid around its own origin. Faces 0, 1, 2 look along x, y, z (both ways)."""

    half: tuple[float, float, float]
    metric_uv: bool = False  # texture positions in metres

    def hit(self, o: Vec, d: Vec) -> tuple[Array, Ints]:
        """Intersect with three slabs; a ray that starts inside hits nothing."""
        near = far = None
        axis = np.zeros(np.broadcast_shapes(*(v.shape for v in d)), np.int32)
        for k, h in enumerate(self.half):
            inverse = np.float32(1) / (d[k] + _TINY)
            middle, reach = -o[k] * inverse, np.abs(inverse) * np.float32(h)
            t0, t1 = middle - reach, middle + reach
            if near is None or far is None:
                near, far = np.broadcast_to(t0, axis.shape).copy(), t1
            else:
                axis[t0 > near] = k
                near, far = np.maximum(near, t0), np.minimum(far, t1)
        assert near is not None and far is not None
        return np.minimum(_or_miss(near, (near < far) & (near > NEAR)), MISS), axis

    def surface(self, p: Vec, code: Ints) -> Surface:
        """Texture x follows the face's horizontal edge, y runs downwards."""
        normal = (np.zeros_like(p[0]), np.zeros_like(p[0]), np.zeros_like(p[0]))
        u, v = np.empty_like(p[0]), np.empty_like(p[0])
        for face, (across, down) in enumerate(((1, 2), (0, 2), (0, 1))):
            here = np.flatnonzero(code == face)
            if not len(here):
                continue
            side = np.sign(p[face][here])
            normal[face][here] = side
            a, b = p[across][here], -p[down][here]
            if face < 2:  # so that a word reads from left to right on both sides
                a = a * (side if face == 0 else -side)
            if not self.metric_uv:
                a, b = 0.5 + a / (2 * self.half[across]), 0.5 + b / (2 * self.half[down])
            u[here], v[here] = a, b
        return Surface(normal, u, v, code, 1.0 if self.metric_uv else 2 * max(self.half))

    def points(self) -> tuple[Array, Array | float]:
        """Return the eight corners."""
        return _CUBE * np.array(self.half, np.float32), 0.0


@dataclass(frozen=True)
class Revolved:
    """A profile (r, z) turned around z: bottles, cans, bowls. Texture x goes around, y along the profile's length.

    Corners of the profile flatter than about 40 degrees are shaded smoothly, sharper ones as edges.
    """

    profile: Array  # (n, 2): r, z
    hollow: bool = False  # some of it faces the axis and can be seen

    @cached_property
    def _edges(self) -> tuple[Array, Array, Array]:
        """Return per segment: unit normals at its start and end (m, 2 x 2 in r, z) and arc lengths (m + 1,)."""
        step = np.diff(self.profile, axis=0)
        length = np.maximum(np.sqrt((step * step).sum(1)), np.float32(1e-9))
        flat = np.stack([step[:, 1], -step[:, 0]], 1) / length[:, None]
        start, end = flat.copy(), flat.copy()
        for i in range(1, len(flat)):
            if float(flat[i - 1] @ flat[i]) > 0.75:
                mean = flat[i - 1] + flat[i]
                start[i] = end[i - 1] = mean / np.sqrt((mean * mean).sum())
        arc = np.concatenate([[0], np.cumsum(length)]).astype(np.float32)
        return start.astype(np.float32), end.astype(np.float32), (arc / arc[-1]).astype(np.float32)

    @property
    def rows(self) -> Array:
        """Texture y (0 to 1) of each profile point."""
        return self._edges[2]

    def hit(self, o: Vec, d: Vec) -> tuple[Array, Ints]:
        """Intersect with one cone frustum or flat ring per segment of the profile."""
        shape = np.broadcast_shapes(*(v.shape for v in d))
        t, code = np.full(shape, MISS, np.float32), np.zeros(shape, np.int32)
        dd, od = d[0] * d[0] + d[1] * d[1], o[0] * d[0] + o[1] * d[1]
        oo = o[0] * o[0] + o[1] * o[1]
        dz = d[2] + _TINY
        for i, ((r0, z0), (r1, z1)) in enumerate(zip(self.profile[:-1], self.profile[1:], strict=True)):
            if abs(z1 - z0) < 1e-6:
                s = (z0 - o[2]) / dz
                square = oo + s * (2 * od + s * dd)
                low, high = min(r0, r1), max(r0, r1)
                on_ring = (square <= high * high) & (square >= low * low) & (s > NEAR)
                t = _nearest(t, code, _or_miss(s, on_ring), i)
                continue
            slope = (r1 - r0) / (z1 - z0)
            radius = r0 + slope * (o[2] - z0)
            a = dd - (slope * slope) * (dz * dz) + _TINY
            b = od - radius * (slope * dz)
            c = oo - radius * radius
            root = b * b - a * c
            real = root >= 0
            if not real.any():
                continue
            root = np.sqrt(np.maximum(root, 0))
            if self.hollow or c.min() < 0:
                q = -b - np.copysign(root, b)
                solutions = [q / a, c / (q + _TINY)]
            else:  # seen from outside: only where the ray enters
                solutions = [c / (root - b + _TINY)]
            low, high = min(z0, z1), max(z0, z1)
            for s in solutions:
                z = o[2] + s * dz
                t = _nearest(t, code, _or_miss(s, real & (z >= low) & (z <= high) & (s > NEAR)), i)
        return t, code

    def surface(self, p: Vec, code: Ints) -> Surface:
        """Interpolate normals and texture rows along the profile."""
        start, end, arc = self._edges
        (ar, az), (br, bz) = (np.ascontiguousarray(self.profile[at].T) for at in (code, code + 1))
        r = np.sqrt(p[0] * p[0] + p[1] * p[1])
        dr, dz = br - ar, bz - az
        w = np.clip(((r - ar) * dr + (p[2] - az) * dz) / np.maximum(dr * dr + dz * dz, 1e-12), 0, 1)
        outward, upward = start[code].T * (1 - w) + end[code].T * w
        outward = outward / np.maximum(r, 1e-9)
        normal = unit((outward * p[0], outward * p[1], upward))
        u = np.arctan2(p[1], p[0]) * np.float32(0.5 / np.pi) + np.float32(0.5)
        v = arc[code] * (1 - w) + arc[code + 1] * w
        return Surface(normal, u, v, None, 2 * np.pi * float(self.profile[:, 0].max()))

    def points(self) -> tuple[Array, Array | float]:
        """Return rings of 16 points, slightly outside so that the hull contains the round shape."""
        out = np.empty((len(self.profile), 16, 3), np.float32)
        out[..., :2] = _RING * self.profile[:, :1, None]
        out[..., 2] = self.profile[:, 1:]
        return out.reshape(-1, 3), 0.0


@dataclass(frozen=True)
class Chain:
    """Overlapping spheres along a curve: a banana, a handle, a leaf."""

    centres: Array  # (n, 3)
    radii: Array  # (n,)

    def hit(self, o: Vec, d: Vec) -> tuple[Array, Ints]:
        """Intersect with each sphere."""
        shape = np.broadcast_shapes(*(v.shape for v in d))
        t, code = np.full(shape, MISS, np.float32), np.zeros(shape, np.int32)
        a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
        for i, (c, r) in enumerate(zip(self.centres, self.radii, strict=True)):
            x, y, z = o[0] - c[0], o[1] - c[1], o[2] - c[2]
            b = x * d[0] + y * d[1] + z * d[2]
            root = b * b - a * (x * x + y * y + z * z - r * r)
            s = (-b - np.sqrt(np.maximum(root, 0))) / a
            t = _nearest(t, code, _or_miss(s, (root >= 0) & (s > NEAR)), i)
        return t, code

    def surface(self, p: Vec, code: Ints) -> Surface:
        """Normals as of a tube, so that the single spheres do not show."""
        out = shift(p, self.centres[code].T)
        size = float(2 * np.pi * self.radii.max())
        tangent = np.gradient(self.centres, axis=0).astype(np.float32)
        tangent = (tangent / np.linalg.norm(tangent, axis=1, keepdims=True))[code].T
        along = dot(out, tangent) * ((code > 0) & (code < len(self.radii) - 1))
        normal = unit(shift(out, along * tangent))
        u = np.arctan2(normal[2], normal[1]) * np.float32(0.5 / np.pi) + np.float32(0.5)
        return Surface(normal, u, (code + np.float32(0.5)) / np.float32(len(self.radii)), None, size)

    def points(self) -> tuple[Array, Array | float]:
        """Return the spheres."""
        return self.centres, self.radii
