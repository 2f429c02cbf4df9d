"""The camera of the built-in demo set: where things are seen, and which is in front.

`demo_scene` can so drop an object that turns out to be hidden before `demo_light` shades anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from hsr_train.data.demo_shapes import MISS
from hsr_train.data.demo_things import Thing
from hsr_train.data.demo_vectors import Array, Indices, Ints, Vec


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: Metres.
        target: The point in the middle of the picture.
        focal: Focal length in pixels.
        width: Pixels.
        height: Pixels.
        tilt: Turn about the viewing axis, radians.
    """

    position: Array
    target: Array
    focal: float
    width: int
    height: int
    tilt: float = 0.0

    @cached_property
    def axes(self) -> tuple[Array, Array, Array]:
        """The unit vectors forward, right and up."""
        forward = self.target - self.position
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, np.array([0, 0, 1], np.float32))
        right = right / np.linalg.norm(right)
        up = np.cross(right, forward)
        c, s = np.cos(self.tilt), np.sin(self.tilt)
        return (
            forward.astype(np.float32),
            (c * right + s * up).astype(np.float32),
            (c * up - s * right).astype(np.float32),
        )

    def directions(self, x: Array, y: Array, frame: Array) -> Vec:
        """Return directions through pixels, in the frame of a thing; their length along forward is 1.

        Args:
            x: Columns, of the pixels' left edges.
            y: Rows.
            frame: The thing's rotation; the identity for the world's frame.
        """
        forward, right, up = np.stack(self.axes) @ frame
        across = (x + np.float32(0.5 - self.width / 2)) * np.float32(1 / self.focal)
        above = (np.float32(self.height / 2 - 0.5) - y) * np.float32(1 / self.focal)
        a, b, c = (across * right[k] + (forward[k] + above * up[k]) for k in range(3))
        return a, b, c

    def project(self, points: Array) -> Array:
        """Return pixel x, pixel y and depth of points (n, 3)."""
        depth, right, up = np.stack(self.axes) @ (points - self.position).T
        scale = self.focal / np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        return np.stack([self.width / 2 + right * scale, self.height / 2 - up * scale, depth], 1).astype(np.float32)


@dataclass(frozen=True)
class Layer:
    """Where one thing is hit if nothing is in front; n pixels of the picture.

    Attributes:
        thing: What was cast.
        centre: (3,) of the sphere around it.
        reach: Radius of that sphere, metres.
        pixels: (n,) flat indices into the picture.
        t: (n,) depth.
        code: (n,) for `Thing` and its shapes.
        whole: How many pixels the thing would fill if the picture went on beyond its borders.
    """

    thing: Thing
    centre: Array
    reach: float
    pixels: Indices
    t: Array
    code: Ints
    whole: int


def cast(thing: Thing, camera: Camera) -> Layer | None:
    """Find where a thing is seen, others left aside; None where it is out of sight.

    A labelled thing is also looked for beyond the picture (up to once its size), to know how much the border cuts off.
    """
    points = thing.points()
    in_front = _in_front(points, camera)
    if not len(in_front):
        return None
    outline = camera.project(in_front)[:, :2]
    (x0, y0), (x1, y1) = np.floor(outline.min(0)), np.ceil(outline.max(0))
    mx, my = (camera.width, camera.height) if thing.label is not None else (0, 0)
    left, right = int(max(x0, -mx)), int(min(x1, camera.width + mx))
    top, bottom = int(max(y0, -my)), int(min(y1, camera.height + my))
    if right <= left or bottom <= top:
        return None
    columns, rows = np.arange(left, right), np.arange(top, bottom)
    x, y = columns.astype(np.float32)[None, :], rows.astype(np.float32)[:, None]
    t, code = thing.hit(thing.to_local(camera.position), camera.directions(x, y, thing.rotation))
    hit = t < MISS
    whole = int(np.count_nonzero(hit))
    if mx:
        hit &= ((rows >= 0) & (rows < camera.height))[:, None] & ((columns >= 0) & (columns < camera.width))
    kept = np.flatnonzero(hit)
    if not len(kept):
        return None
    pixels = (rows[:, None] * camera.width + columns).ravel()[kept]
    centre = (points.min(0) + points.max(0)) / 2
    reach = float(np.sqrt(((points - centre) ** 2).sum(1).max()))
    return Layer(thing, centre, reach, pixels, t.ravel()[kept], code.ravel()[kept], whole)


def _in_front(points: Array, camera: Camera) -> Array:
    """Return points around the part of a thing that is in front of the camera: walls reach behind it."""
    ahead = (points - camera.position) @ camera.axes[0] - np.float32(0.05)
    front, behind = points[ahead > 0], points[ahead <= 0]
    if not len(behind) or not len(front):
        return front
    a, b = ahead[ahead > 0][:, None, None], ahead[ahead <= 0][None, :, None]
    cut = front[:, None] + (behind[None] - front[:, None]) * (a / (a - b))
    return np.concatenate([front, cut.reshape(-1, 3)])


@dataclass(frozen=True)
class View:
    """What is in front at each pixel; arrays (h, w).

    Attributes:
        owner: Index of the layer, -1 for none.
        depth: Of its surface, `MISS` for none.
        code: Of its surface, for `Thing` and its shapes.
    """

    owner: npt.NDArray[np.int16]
    depth: Array
    code: Ints


def look(layers: Sequence[Layer], camera: Camera) -> View:
    """Find which of the layers is in front at each pixel."""
    shape = (camera.height, camera.width)
    view = View(np.full(shape, -1, np.int16), np.full(shape, MISS, np.float32), np.zeros(shape, np.int32))
    owner, depth, code = view.owner.ravel(), view.depth.ravel(), view.code.ravel()  # views, not copies
    for i, layer in enumerate(layers):
        front = np.flatnonzero(layer.t < depth[layer.pixels])
        pixels = layer.pixels[front]
        owner[pixels], depth[pixels], code[pixels] = i, layer.t[front], layer.code[front]
    return view
