"""Composed images with exact labels: a pure function of (seed, epoch, index).

First everything is drawn and placed, then it is found out, from the front to the back, what of each object can be
seen, and only then it is painted, from the back to the front. Boxes are tight around what is visible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.config.schema.synthetic import SyntheticConfig
from hsr_train.synthesis.backgrounds import Backgrounds, Floats, Scene
from hsr_train.synthesis.bank import ObjectBank
from hsr_train.synthesis.paste import Sprite, blend, hull_of, match_colour, transform
from hsr_train.synthesis.store import Image

_STREAM = 0x5C1
"""Keeps these draws apart from others of the same seed, epoch and index."""
_TRIES = 50
_LARGEST = 0.95
"""An object is never larger than this share of the image."""
MIN_BOX_PX = 2


class Composed(NamedTuple):
    """A composed image.

    Attributes:
        image: (h, w, 3) BGR.
        boxes: (k, 4) x0, y0, x1, y1 in pixels.
        classes: (k,) class ids.
        outlines: For each box a (p, 2) polygon in pixels around what is visible; empty where the background has
            objects of which only boxes are known, and where nobody asked for them.
    """

    image: Image
    boxes: Floats
    classes: npt.NDArray[np.int64]
    outlines: list[Floats]


@dataclass
class _Placed:
    """A sprite at its place: the part of it that lies within the image."""

    sprite: Sprite
    class_id: int
    mode: str
    softness: float
    place: tuple[slice, slice]
    part: tuple[slice, slice]
    visible: npt.NDArray[np.bool_] | None = None


class Composer:
    """Composes images from a bank and backgrounds.

    Args:
        bank: The objects.
        backgrounds: What they are pasted onto.
        config: How.
        side: Longest side of the images in pixels.
        seed: Every image is a function of it, the epoch and the index.
        real_counts: Objects of each class in the real set, for `balance=inverse`.
        outlines: Return outlines too.
    """

    def __init__(
        self,
        bank: ObjectBank,
        backgrounds: Backgrounds,
        config: SyntheticConfig,
        *,
        side: int = 640,
        seed: int = 0,
        real_counts: list[int] | None = None,
        outlines: bool = False,
    ) -> None:
        self.bank, self.backgrounds, self.config = bank, backgrounds, config
        self.side, self.seed, self.outlines = side, seed, outlines
        chances = class_chances(bank, config.balance, real_counts)
        self._hulls: dict[int, npt.NDArray[np.float64]] = {}
        self._limits = np.cumsum(chances / chances.sum())

    def compose(self, epoch: int, index: int) -> Composed:
        """Return image `index` of an epoch."""
        rng = np.random.default_rng((self.seed, epoch, index, _STREAM))
        scene = self.backgrounds.draw(rng, self.side)
        placed = self._place(rng, scene)
        height, width = scene.image.shape[:2]
        covered = np.zeros((height, width), np.uint8)
        placed = [one for one in reversed(placed) if self._see(one, covered)][::-1]
        boxes, classes, outlines = self._label_scene(scene, covered) if len(scene.boxes) else ([], [], [])
        for one in placed:
            self._paint(one, scene.image)
            if one.visible is None:
                continue
            seen = one.visible.astype(np.uint8)
            x, y, w, h = cv2.boundingRect(seen)
            if min(w, h) < MIN_BOX_PX:
                continue
            top, left = one.place[0].start, one.place[1].start
            boxes.append([left + x, top + y, left + x + w, top + y + h])
            classes.append(one.class_id)
            if self.outlines:
                outlines.append(_outline(seen, left, top))
        return Composed(
            scene.image,
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(classes, np.int64),
            outlines if self.outlines and len(outlines) == len(boxes) else [],
        )

    def _place(self, rng: np.random.Generator, scene: Scene) -> list[_Placed]:
        """Draw objects and find a place for each, the later ones in front."""
        config, bank = self.config, self.bank
        height, width = scene.image.shape[:2]
        taken = scene.boxes.tolist()
        placed = []
        fewest, most = config.objects
        for _ in range(int(rng.integers(fewest, most + 1))):
            which, size, turn, mirror, mode, softness = rng.random(6)
            spots = rng.random((_TRIES, 2))
            number = min(int(np.searchsorted(self._limits, which, side="right")), len(bank) - 1)
            pixels = bank.pixels[number]
            low, high = config.scale
            scale = bank.size_per_side[number] * self.side * (low + (high - low) * size)
            degrees = config.rotation * (2 * turn - 1)
            sin, cos = abs(np.sin(np.radians(degrees))), abs(np.cos(np.radians(degrees)))
            h, w = pixels.shape[:2]
            needed = np.array([w * cos + h * sin, w * sin + h * cos])
            scale = min(scale, float((_LARGEST * np.array([width, height]) / needed).min()))
            sprite = transform(pixels, scale, degrees, bool(mirror < config.fliplr), self._hull(number))
            if sprite is None:
                continue
            spot = self._spot(sprite, spots, taken, width, height)
            if spot is None:
                continue
            x, y = spot
            taken.append(_clipped([x, y, x + sprite.width, y + sprite.height], width, height))
            left, top = x - sprite.x, y - sprite.y
            sh, sw = sprite.alpha.shape
            rows, columns = slice(max(top, 0), min(top + sh, height)), slice(max(left, 0), min(left + sw, width))
            part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
            blending = config.blend[int(mode * len(config.blend))]
            placed.append(_Placed(sprite, int(bank.classes[number]), blending, softness, (rows, columns), part))
        return placed

    def _hull(self, number: int) -> npt.NDArray[np.float64]:
        """Return the hull of a cut-out, found once."""
        if number not in self._hulls:
            self._hulls[number] = hull_of(self.bank.pixels[number])
        return self._hulls[number]

    def _spot(
        self, sprite: Sprite, spots: npt.NDArray[np.float64], taken: list[list[float]], width: int, height: int
    ) -> tuple[int, int] | None:
        """Return the first of the drawn places where the object overlaps no other too much."""
        size = np.array([sprite.width, sprite.height])
        beyond = np.floor(size * self.config.truncation)
        lows, highs = -beyond, np.array([width, height]) - size + beyond
        corners = np.round(lows + spots * np.maximum(highs - lows, 0)).astype(np.int64)
        if taken:
            limit = np.array([width, height])
            first, last = np.maximum(corners, 0), np.minimum(corners + size, limit)
            overlaps = _iou(np.hstack([first, last]).astype(np.float64), np.array(taken, np.float64))
            corners = corners[overlaps.max(axis=1) <= self.config.max_overlap]
        return (int(corners[0, 0]), int(corners[0, 1])) if len(corners) else None

    def _see(self, one: _Placed, covered: Image) -> bool:
        """Note what of an object can be seen; return whether it is pasted at all.

        Args:
            one: The object; everything in front of it has been looked at.
            covered: (h, w) 1 where something lies in front; the object is added.
        """
        whole = one.sprite.alpha > 127
        there = covered[one.place]
        visible = whole[one.part] & (there == 0)
        share = int(np.count_nonzero(visible)) / int(np.count_nonzero(whole))
        is_labelled = share >= 1 - self.config.max_occlusion and share > 0
        if not is_labelled and self.config.hidden == "remove":
            return False
        one.visible = visible if is_labelled else None
        there[visible] = 1
        return True

    def _paint(self, one: _Placed, image: Image) -> None:
        place = image[one.place]
        colours, alpha = one.sprite.colours[one.part], one.sprite.alpha[one.part]
        if not place.size:
            return
        if self.config.color_match:
            colours = match_colour(colours, alpha, place, self.config.color_match)
        blend(place, np.ascontiguousarray(colours), alpha, one.mode, one.softness, one.sprite.slope)

    def _label_scene(self, scene: Scene, covered: Image) -> tuple[list[list[float]], list[int], list[Floats]]:
        """Return the labels that a background's own objects have left, made tight where something covers them."""
        boxes: list[list[float]] = []
        classes: list[int] = []
        outlines: list[Floats] = []
        has_outlines = len(scene.outlines) == len(scene.boxes)
        for i, box in enumerate(scene.boxes):
            outline = scene.outlines[i] if has_outlines else None
            x0, y0 = np.floor(box[:2]).astype(int).tolist()
            x1, y1 = np.ceil(box[2:]).astype(int).tolist()
            there = covered[y0:y1, x0:x1]
            left = box.tolist()
            if there.any():
                own = np.ones_like(there)
                if outline is not None:
                    own[:] = 0
                    cv2.fillPoly(own, [np.round(outline - (x0, y0)).astype(np.int32)], 1)
                whole = max(int(np.count_nonzero(own)), 1)
                own[there > 0] = 0
                x, y, w, h = cv2.boundingRect(own)
                if np.count_nonzero(own) / whole < 1 - self.config.max_occlusion or min(w, h) < MIN_BOX_PX:
                    continue
                tight = [x0 + x, y0 + y, x0 + x + w, y0 + y + h]
                left = [max(left[0], tight[0]), max(left[1], tight[1]), min(left[2], tight[2]), min(left[3], tight[3])]
                if outline is not None:
                    outline = _outline(own, x0, y0)
            boxes.append(left)
            classes.append(int(scene.classes[i]))
            if self.outlines and outline is not None:
                outlines.append(outline)
        return boxes, classes, outlines


def class_chances(bank: ObjectBank, balance: str, real_counts: list[int] | None) -> npt.NDArray[np.float64]:
    """Return how often each cut-out is drawn, of shape (n,), up to a factor.

    Args:
        bank: The cut-outs.
        balance: none: each as often; uniform: each class as often; inverse: a class the more, the rarer it is among
            `real_counts`.
        real_counts: Objects of each class in the real set.
    """
    if balance == "none":
        return np.ones(len(bank))
    of_class = np.bincount(bank.classes, minlength=len(bank.names)).astype(np.float64)
    wanted = np.ones(len(bank.names))
    if balance == "inverse":
        wanted = 1 / (1 + np.array(real_counts or [0] * len(bank.names), np.float64))
    return np.asarray((wanted / np.maximum(of_class, 1))[bank.classes])


def _clipped(box: list[int], width: int, height: int) -> list[float]:
    return [max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height)]


def _iou(one: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the overlaps of boxes (n, 4) with boxes (k, 4), of shape (n, k)."""
    first = np.maximum(one[:, None, :2], other[None, :, :2])
    last = np.minimum(one[:, None, 2:], other[None, :, 2:])
    shared = np.maximum(last - first, 0).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (one, other)]
    return np.asarray(shared / np.maximum(areas[0][:, None] + areas[1][None, :] - shared, 1e-9))


def _outline(seen: Image, left: int, top: int) -> Floats:
    """Return one polygon around all visible parts, in pixels of the image."""
    contours, _ = cv2.findContours(seen, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    points = np.concatenate([contour.reshape(-1, 2) for contour in contours]).astype(np.float32)
    return np.asarray(points + np.array([left, top], np.float32), np.float32)
