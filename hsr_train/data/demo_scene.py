"""One photograph of the built-in demo set with its labels, as a pure function of the generator it is given.

`demo_rooms` gives the place, `demo_objects` and `demo_clutter` the things, `demo_light` the light; here the things are
arranged, those that turn out to be hidden are taken away again, and the picture gets a camera's faults. `demo` numbers
the scenes and writes them down.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.data import demo_rooms
from hsr_train.data.demo_camera import Layer, cast, look
from hsr_train.data.demo_clutter import make_clutter
from hsr_train.data.demo_light import shade
from hsr_train.data.demo_objects import CLASSES, make
from hsr_train.data.demo_rooms import Room, Support
from hsr_train.data.demo_textures import Rng
from hsr_train.data.demo_things import Thing
from hsr_train.data.demo_vectors import Array, Mask

WIDTH, HEIGHT = 320, 240
CUTOUT_SIZE = 208

MIN_VISIBLE_SHARE = 0.6  # an object of which less is seen (hidden or cut off) is taken out of the scene
MIN_SIDE_PX = 14  # and so is one whose visible box is smaller than this
_SPREAD = 0.43  # of the picture's width and height: how far from its middle a thing's middle may be
_EMPTY_SHARE = 0.06  # of the scenes have no labelled object

Image = npt.NDArray[np.uint8]
BoxPx = tuple[int, int, int, int]


@dataclass(frozen=True)
class Seen:
    """One labelled object as the picture shows it.

    Attributes:
        label: Index in `CLASSES`.
        mask: (h, w) where it is visible.
        share: Of the whole object, that which is visible.
    """

    label: int
    mask: Mask
    share: float

    @property
    def box(self) -> BoxPx:
        """Left, top, right, bottom in pixels; right and bottom are exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True)
class Photograph:
    """A picture (h, w, 3) in OpenCV's channel order and the labelled objects in it."""

    image: Image
    objects: list[Seen]


def scene(rng: Rng) -> Photograph:
    """Draw a household scene: three to seven objects of `CLASSES`, clutter, sometimes no object at all."""
    room = _room(rng)
    count = 0 if rng.random() < _EMPTY_SHARE else int(rng.integers(4, 9))
    order = np.concatenate([rng.permutation(len(CLASSES)), rng.permutation(len(CLASSES))])
    wanted: list[int | None] = [int(c) for c in order[:count]]
    wanted += [None] * int(rng.integers(0, 3))
    return _photograph(rng, room, _arrange(rng, room, [wanted[i] for i in rng.permutation(len(wanted))]))


def background(rng: Rng) -> Image:
    """Draw a scene without any object of `CLASSES`; every other one holds some clutter."""
    room = _room(rng)
    clutter: list[int | None] = [None] * int(rng.choice([0, 1, 2, 3], p=[0.5, 0.2, 0.2, 0.1]))
    return _photograph(rng, room, _arrange(rng, room, clutter)).image


def cutout(rng: Rng, label: int) -> tuple[Image, Mask]:
    """Draw one object alone on a table, close up; return the picture and the mask (h, w) of the object."""
    thing = make(label, rng)
    points = thing.points()
    middle = (points.min(0) + points.max(0)) / 2
    reach = float(np.sqrt(((points - middle) ** 2).sum(1)).max())
    room = demo_rooms.studio(rng, (CUTOUT_SIZE, CUTOUT_SIZE), middle, reach)
    photograph = _photograph(rng, room, [thing])
    return photograph.image, photograph.objects[0].mask


def _room(rng: Rng) -> Room:
    kind = rng.choice(len(demo_rooms.ROOMS), p=[0.5, 0.25, 0.25])
    return demo_rooms.ROOMS[int(kind)](rng, (WIDTH, HEIGHT))


def _footprint(thing: Thing) -> npt.NDArray[np.float32]:
    return np.asarray(cv2.convexHull(thing.points()[:, :2].copy()), np.float32).reshape(-1, 2)


def _arrange(rng: Rng, room: Room, wanted: list[int | None]) -> list[Thing]:
    """Put things on the room's supports, in view and not inside each other; None stands for clutter.

    A thing for which no place is found in a number of tries is left out.
    """
    placed: list[Thing] = []
    taken: list[tuple[int, npt.NDArray[np.float32]]] = []
    for label in wanted:
        thing = make_clutter(rng) if label is None else make(label, rng)
        feet = thing.position.copy()
        height = float(thing.points()[:, 2].max())
        outline = _footprint(thing)
        tries = rng.uniform(-0.95, 0.95, (40, 2))
        choice = rng.integers(0, len(room.supports), 40)
        spots = np.empty((40, 3), np.float32)
        for k, support in enumerate(room.supports):
            spots[choice == k] = support.at(*tries[choice == k].T)
        x, y, depth = room.camera.project(spots + np.array([0, 0, height / 2], np.float32)).T
        in_view = (depth > 0.1) & (np.abs(x / WIDTH - 0.5) < _SPREAD) & (np.abs(y / HEIGHT - 0.5) < _SPREAD)
        for i in np.flatnonzero(in_view):
            which, support, here = int(choice[i]), room.supports[choice[i]], outline + spots[i, :2]
            if height > support.clearance or not _on(support, here):
                continue
            if any(w == which and _overlap(here, other) for w, other in taken):
                continue
            thing.position = feet + spots[i]
            placed.append(thing)
            taken.append((which, here))
            break
    return placed


def _on(support: Support, outline: npt.NDArray[np.float32]) -> bool:
    rel = outline - support.centre[:2]
    c, s = np.cos(support.yaw), np.sin(support.yaw)
    x, y = np.abs(c * rel[:, 0] + s * rel[:, 1]), np.abs(c * rel[:, 1] - s * rel[:, 0])
    return bool(x.max() <= support.half[0] and y.max() <= support.half[1])


def _overlap(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> bool:
    area, _ = cv2.intersectConvexConvex(a, b)
    return area > 1e-6


def _photograph(rng: Rng, room: Room, things: list[Thing]) -> Photograph:
    camera = room.camera
    layers = [layer for thing in (*room.furniture, *things) if (layer := cast(thing, camera)) is not None]
    while True:
        view = look(layers, camera)
        seen = [(i, s) for i, layer in enumerate(layers) if (s := _seen(layer, view.owner == i)) is not None]
        hidden = [(s.share, i) for i, s in seen if s.share < MIN_VISIBLE_SHARE or _too_small(s)]
        if not hidden:
            break
        del layers[min(hidden)[1]]  # one at a time: it may have been what hid another
    light = shade(layers, camera, room.light, view)
    return Photograph(_develop(rng, light), [s for _, s in seen])


def _seen(layer: Layer, mask: Mask) -> Seen | None:
    if layer.thing.label is None:
        return None
    return Seen(layer.thing.label, mask, float(mask.sum()) / layer.whole)


def _too_small(seen: Seen) -> bool:
    if not seen.mask.any():
        return True
    left, top, right, bottom = seen.box
    return min(right - left, bottom - top) < MIN_SIDE_PX


def _develop(rng: Rng, picture: Array) -> Image:
    """Turn light into an 8-bit picture: exposure, white balance, vignetting, blur, noise."""
    height, width = picture.shape[:2]
    exposure = 0.22 * 2 ** float(np.clip(rng.normal(0, 0.35), -0.8, 0.8)) / max(float(picture.mean()), 1e-3)
    gains = np.float32(exposure) * rng.normal(1, 0.06, 3).astype(np.float32)
    y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    vignette = 1 - np.float32(rng.uniform(0, 0.3)) * (x * x + y * y) / 2
    picture = picture * np.asarray(cv2.merge([vignette * g for g in gains]), np.float32)
    kind = rng.random()
    if kind < 0.25:
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.4, 0.9)), np.float32)
    elif kind < 0.33:  # the head moves
        length, angle = rng.uniform(2, 5), rng.uniform(0, np.pi)
        kernel = np.zeros((7, 7), np.float32)
        reach = np.array([np.cos(angle), np.sin(angle)]) * length / 2
        a, b = (3 - reach).round().astype(int), (3 + reach).round().astype(int)
        cv2.line(kernel, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), 1.0)
        picture = np.asarray(cv2.filter2D(picture, -1, kernel / kernel.sum()), np.float32)
    shot, read = rng.uniform(0.002, 0.02), rng.uniform(0.002, 0.012)
    dice = rng.integers(0, 256, (2, height, width, 3), np.uint8)  # two of them: near enough to a bell curve, and quick
    grain = (cv2.add(dice[0], dice[1], dtype=cv2.CV_32F) - np.float32(255)) / np.float32(104.5)
    picture = np.maximum(picture, 0)
    picture = picture / (1 + np.float32(0.25) * picture) * np.float32(1.25)  # highlights roll off
    picture = np.sqrt(picture) + grain * np.sqrt(np.float32(read * read) + np.float32(shot * shot) * picture)
    picture = np.minimum(np.maximum(picture, 0), 1) * np.float32(255)
    return np.asarray(cv2.cvtColor(picture.astype(np.uint8), cv2.COLOR_RGB2BGR), np.uint8)
