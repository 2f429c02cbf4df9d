"""Vectors for the built-in demo set's small ray caster: three arrays, one per component, of as many numbers as rays.

Everything is float32. World axes: x to the right, y away from the camera, z up; lengths in metres. `demo_shapes`,
`demo_things`, `demo_camera` and `demo_light` calculate with these.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int32]
Indices = npt.NDArray[np.intp]
Vec = tuple[Array, Array, Array]  # three components of equal or broadcastable shape
Offset = tuple[float, float, float]

ORIGIN: Offset = (0.0, 0.0, 0.0)


def dot(a: Vec | Array, b: Vec | Array) -> Array:
    """Return the scalar products of vectors given as three arrays each."""
    return np.asarray(a[0] * b[0] + a[1] * b[1] + a[2] * b[2])


def unit(v: Vec) -> Vec:
    """Return vectors brought to unit length."""
    inverse = np.asarray(1 / np.maximum(np.sqrt(dot(v, v)), np.float32(1e-9)), np.float32)
    return v[0] * inverse, v[1] * inverse, v[2] * inverse


def shift(v: Vec, by: Vec | Array | Offset) -> Vec:
    """Return vectors less another: points seen from there."""
    if by is ORIGIN:
        return v
    a, b, c = (x - np.asarray(y, np.float32) for x, y in zip(v, by, strict=True))
    return a, b, c


def turn(r: Array, v: Vec | Array) -> Vec:
    """Return vectors turned by a rotation matrix; written out, since a matrix product may round by thread count."""
    a, b, c = (v[0] * r[k, 0] + v[1] * r[k, 1] + v[2] * r[k, 2] for k in range(3))
    return a, b, c


def turn_back(r: Array, v: Vec | Array) -> Vec:
    """Return vectors turned by the inverse of a rotation matrix."""
    return turn(r.T, v)


def rotation(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """Return the matrix that turns about y by `roll`, then about x by `pitch`, then about z by `yaw` (radians)."""
    cy, sy, cp, sp, cr, sr = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
    about_z = np.array([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cr, 0, sr], [0, 1, 0], [-sr, 0, cr]])
    return np.asarray(about_z @ about_x @ about_y, np.float32)
