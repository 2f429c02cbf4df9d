"""Composed images with exact labels: a pure function of (seed, epoch, index).

First everything is drawn and placed, then it is found out, from the front to the back, what of each object can be
seen, and only then it is painted, from the back to the front. Boxes are tight around what is visible.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.config.schema.synthetic import AUTO, SyntheticConfig
from hsr_train.synthesis.backgrounds import Backgrounds, Floats, Scene
from hsr_train.synthesis.bank import ObjectBank
from hsr_train.synthesis.light import Light, cast_shadow, draw_light, shade
from hsr_train.synthesis.paste import Sprite, blend, hull_of, inside_of, match_colour, transform
from hsr_train.synthesis.placed import UNLABELLED, Placed, hide, outline_of, overlaps_of
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


class Composer:
    """Composes images from a bank and backgrounds.

    Args:
        bank: The objects.
        backgrounds: What they are pasted onto.
        config: How; `auto` stands for what it is without labels to look at, see `fitting`.
        side: Longest side of the images in pixels.
        seed: Every image is a function of it, the epoch and the index.
        real_counts: Objects of each class in the real set, for `balance=inverse`.
        outlines: Return outlines too.
        distractors: Objects without a label, pasted among the others.
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
        distractors: ObjectBank | None = None,
    ) -> None:
        self.bank, self.backgrounds, self.config = bank, backgrounds, config
        self.side, self.seed, self.outlines = side, seed, outlines
        objects, scale = (
            AUTO[name] if pair == "auto" else pair
            for name, pair in (("objects", config.objects), ("scale", config.scale))
        )
        self._objects: tuple[int, int] = (objects[0], objects[1])
        self._scale: tuple[float, float] = (scale[0], scale[1])
        chances = class_chances(bank, config.balance, real_counts)
        self.distractors = distractors
        self.partial_outlines = False
        """Return outlines also where some objects have none; these are (0, 2) then."""
        self._hulls: dict[int, npt.NDArray[np.float64]] = {}
        self._distractor_hulls: dict[int, npt.NDArray[np.float64]] = {}
        self._limits = np.cumsum(chances / chances.sum())

    def compose(self, epoch: int, index: int) -> Composed:
        """Return image `index` of an epoch."""
        rng = np.random.default_rng((self.seed, epoch, index, _STREAM))
        scene = self.backgrounds.draw(rng, self.side)
        light = draw_light(rng)
        fronts: list[Placed] = []
        for one in reversed(self._place(rng, scene)):
            if self._see(one, fronts):
                fronts.append(one)
        boxes, classes, outlines = self._label_scene(scene, fronts)
        for one in reversed(fronts):
            self._paint(one, scene.image, light)
            if one.seen is None:
                continue
            x, y, w, h = cv2.boundingRect(one.seen)
            if min(w, h) < MIN_BOX_PX:
                continue
            top, left = one.place[0].start, one.place[1].start
            boxes.append([left + x, top + y, left + x + w, top + y + h])
            classes.append(one.class_id)
            if self.outlines:
                outlines.append(outline_of(one.seen, left, top))
        whole = self.partial_outlines or all(len(points) for points in outlines)
        return Composed(
            scene.image,
            np.array(boxes, np.float32).reshape(-1, 4),
            np.array(classes, np.int64),
            outlines if self.outlines and whole else [],
        )

    def _place(self, rng: np.random.Generator, scene: Scene) -> list[Placed]:
        """Draw objects and find a place for each, the later ones in front."""
        fewest, most = self._objects
        num_objects = int(rng.integers(fewest, most + 1))
        are_distractors = np.zeros(num_objects, np.bool_)
        if self.distractors is not None:
            fewest, most = self.config.distractors
            are_distractors = rng.permutation(num_objects + int(rng.integers(fewest, most + 1))) >= num_objects
        taken = scene.boxes.tolist()
        placed = []
        for is_distractor in are_distractors.tolist():
            one = self._place_one(rng, is_distractor, taken, *scene.image.shape[:2])
            if one is not None:
                placed.append(one)
        return placed

    def _place_one(
        self, rng: np.random.Generator, is_distractor: bool, taken: list[list[float]], height: int, width: int
    ) -> Placed | None:
        """Draw one object and its place; None where there is none. Its box is added to those that are taken."""
        config = self.config
        which, size, turn, mirror, mode, soft, *shadow = rng.random(9).tolist()
        spots = rng.random((_TRIES, 2))
        if is_distractor and self.distractors is not None:
            bank, hulls, class_id = self.distractors, self._distractor_hulls, UNLABELLED
            number = int(which * len(bank))
        else:
            bank, hulls = self.bank, self._hulls
            number = min(int(np.searchsorted(self._limits, which, side="right")), len(bank) - 1)
            class_id = int(bank.classes[number])
        pixels = bank.pixels[number]
        if number not in hulls:
            hulls[number] = hull_of(pixels)
        low, high = self._scale
        scale = bank.size_per_side[number] * self.side * (low + (high - low) * size)
        degrees = config.rotation * (2 * turn - 1)
        sin, cos = abs(math.sin(math.radians(degrees))), abs(math.cos(math.radians(degrees)))
        h, w = pixels.shape[:2]
        scale = min(scale, _LARGEST * width / (w * cos + h * sin), _LARGEST * height / (w * sin + h * cos))
        sprite = transform(pixels, scale, degrees, mirror < config.fliplr, hulls[number])
        spot = None if sprite is None else self._spot(sprite, spots, taken, width, height)
        if sprite is None or spot is None:
            return None
        x, y = spot
        taken.append([max(x, 0), max(y, 0), min(x + sprite.width, width), min(y + sprite.height, height)])
        left, top = x - sprite.x, y - sprite.y
        sh, sw = sprite.alpha.shape
        rows, columns = slice(max(top, 0), min(top + sh, height)), slice(max(left, 0), min(left + sw, width))
        part = (slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left))
        blending = config.blend[int(mode * len(config.blend))]
        inside = inside_of(sprite.alpha[part])
        return Placed(
            sprite, class_id, blending, soft, tuple(shadow), left, top, (rows, columns), part, inside
        )  # fmt: skip

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
            overlaps = overlaps_of(np.hstack([first, last]).astype(np.float64), np.array(taken, np.float64))
            corners = corners[overlaps.max(axis=1) <= self.config.max_overlap]
        return (int(corners[0, 0]), int(corners[0, 1])) if len(corners) else None

    def _see(self, one: Placed, fronts: list[Placed]) -> bool:
        """Note what of an object can be seen behind those in front; return whether it is pasted at all."""
        if one.class_id == UNLABELLED:
            return True
        seen = one.inside.copy()
        hide(seen, one.place[1].start, one.place[0].start, fronts)
        is_whole = one.inside.shape == one.sprite.alpha.shape
        whole = cv2.countNonZero(one.inside if is_whole else inside_of(one.sprite.alpha))
        share = cv2.countNonZero(seen) / whole
        is_labelled = share >= 1 - self.config.max_occlusion and share > 0
        one.seen = seen if is_labelled else None
        return is_labelled or self.config.hidden == "keep"

    def _paint(self, one: Placed, image: Image, light: Light) -> None:
        config, sprite, place = self.config, one.sprite, image[one.place]
        if not place.size:
            return
        has_shadow, shape, depth = one.shadow
        if has_shadow < config.shadow:
            cast_shadow(image, sprite, one.left, one.top, light, shape, depth)
        colours, alpha = sprite.colours[one.part], sprite.alpha[one.part]
        if config.color_match:
            colours = match_colour(colours, alpha, place, config.color_match)
        if config.light:
            colours = shade(colours, sprite.alpha.shape, one.part, light, config.light)
        blend(place, colours, alpha, one.mode, one.soft, sprite.slope)

    def _label_scene(self, scene: Scene, fronts: list[Placed]) -> tuple[list[list[float]], list[int], list[Floats]]:
        """Return the labels that a background's own objects have left, made tight where something covers them."""
        boxes: list[list[float]] = []
        classes: list[int] = []
        outlines: list[Floats] = []
        has_outlines = len(scene.outlines) == len(scene.boxes)
        for i, box in enumerate(scene.boxes):
            outline = scene.outlines[i] if has_outlines else None
            x0, y0 = np.floor(box[:2]).astype(int).tolist()
            x1, y1 = np.ceil(box[2:]).astype(int).tolist()
            free = np.ones((y1 - y0, x1 - x0), np.uint8)
            left = box.tolist()
            if hide(free, x0, y0, fronts) and cv2.countNonZero(free) < free.size:
                own = free
                if outline is not None:
                    own = np.zeros_like(free)
                    cv2.fillPoly(own, [np.round(outline - (x0, y0)).astype(np.int32)], 1)
                whole = max(cv2.countNonZero(own) if outline is not None else own.size, 1)
                own &= free
                x, y, w, h = cv2.boundingRect(own)
                if cv2.countNonZero(own) / whole < 1 - self.config.max_occlusion or min(w, h) < MIN_BOX_PX:
                    continue
                tight = [x0 + x, y0 + y, x0 + x + w, y0 + y + h]
                left = [max(left[0], tight[0]), max(left[1], tight[1]), min(left[2], tight[2]), min(left[3], tight[3])]
                if outline is not None:
                    outline = outline_of(own, x0, y0)
            boxes.append(left)
            classes.append(int(scene.classes[i]))
            if self.outlines:
                outlines.append(np.zeros((0, 2), np.float32) if outline is None else outline)
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
