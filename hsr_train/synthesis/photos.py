"""Training images as sources of cut-outs: which of their objects are worth cutting out, before a pixel is decoded.

`masks` finds the chosen objects' pixels, `sources` gives photos their mask files, `bank` keeps what comes out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsr_train.synthesis.backgrounds import Floats
from hsr_train.synthesis.cutting import MIN_SIDE_PX, TOO_NARROW
from hsr_train.synthesis.files import SourceFile

NO_MASK = "has no mask in synthetic.masks_dir"
CROWDED = "lies mostly within other boxes: its box says too little"
MOST_CROWDED = 0.3
"""Share of a box within other boxes above which GrabCut is not tried: it cannot tell whose the pixels are."""


@dataclass
class Photo:
    """A training image with its labels.

    Attributes:
        name: Path from the data's root, with slashes.
        image: The file.
        image_hash: Its SHA-256.
        height: In pixels, as it is decoded.
        width: In pixels.
        labels: (k, 5) class, centre x, centre y, width, height; fractions of the image.
        segments: k polygons, (p, 2) fractions; or an empty list.
        whole_masks: Masks of all its objects together.
        object_masks: Masks of one object each, in any order.
    """

    name: str
    image: Path
    image_hash: str
    height: int
    width: int
    labels: Floats
    segments: list[Floats]
    whole_masks: list[SourceFile] = field(default_factory=list)
    object_masks: list[SourceFile] = field(default_factory=list)

    @property
    def boxes(self) -> Floats:
        """(k, 4) x0, y0, x1, y1 in pixels, within the image."""
        size = np.array([self.width, self.height], np.float32)
        centres, halves = self.labels[:, 1:3] * size, self.labels[:, 3:5] * size / 2
        return np.hstack([np.maximum(centres - halves, 0), np.minimum(centres + halves, size)]).astype(np.float32)

    @property
    def masks(self) -> list[SourceFile]:
        """Every mask file."""
        return [*self.whole_masks, *self.object_masks]

    def object_name(self, number: int) -> str:
        """Return what a person is told of an object: objects count from 1."""
        return f"{self.name} #{number + 1}"

    def content(self) -> str:
        """Return a SHA-256 over everything that cut-outs depend on."""
        digest = hashlib.sha256("\0".join((self.name, self.image_hash)).encode("utf-8", "surrogateescape"))
        for array in (self.labels, *self.segments):
            digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        for file in self.masks:
            digest.update("\0".join((file.name, file.mask_hash, file.image_hash)).encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def choose_objects(
    photos: Sequence[Photo], masks: str, num_classes: int, most: int
) -> tuple[list[list[int]], dict[str, str]]:
    """Choose which objects of each photo are cut out.

    Args:
        photos: With their masks.
        masks: Where masks come from: polygons, grabcut or masks_dir.
        num_classes: Number of classes.
        most: Most objects of a class. Which ones is drawn, the same ones each time.

    Returns:
        For each photo the numbers of the chosen objects, and by its name why each other one is left out.
    """
    left_out: dict[str, str] = {}
    candidates: list[list[tuple[int, int]]] = [[] for _ in range(num_classes)]
    for p, photo in enumerate(photos):
        boxes = photo.boxes
        sides = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) if len(boxes) else np.zeros(0)
        covered = _covered(boxes) if masks == "grabcut" else np.zeros(len(boxes))
        for k, class_id in enumerate(photo.labels[:, 0].astype(int).tolist()):
            if masks == "masks_dir" and not photo.masks:
                left_out[photo.object_name(k)] = NO_MASK
            elif sides[k] < MIN_SIDE_PX - 1:  # a pixel less: the mask has the last word
                left_out[photo.object_name(k)] = TOO_NARROW
            elif covered[k] > MOST_CROWDED:
                left_out[photo.object_name(k)] = CROWDED
            else:
                candidates[class_id].append((p, k))
    chosen: list[list[int]] = [[] for _ in photos]
    for class_id, objects in enumerate(candidates):
        order = (
            np.random.default_rng(class_id).permutation(len(objects)) if len(objects) > most else range(len(objects))
        )
        for rank, i in enumerate(order):
            p, k = objects[i]
            if rank < most:
                chosen[p].append(k)
            else:
                left_out[photos[p].object_name(k)] = f"is not drawn: synthetic.cutouts_per_class={most}"
    return [sorted(numbers) for numbers in chosen], left_out


def _covered(boxes: Floats) -> npt.NDArray[np.float64]:
    """Return which share of each box lies within any other one, (k,)."""
    shares = np.zeros(len(boxes))
    whole = np.stack([np.floor(boxes[:, 0]), np.floor(boxes[:, 1]), np.ceil(boxes[:, 2]), np.ceil(boxes[:, 3])], 1)
    pixels = whole.astype(int)
    for k, (x0, y0, x1, y1) in enumerate(pixels.tolist()):
        inside = np.zeros((max(y1 - y0, 1), max(x1 - x0, 1)), bool)
        for other in np.delete(pixels, k, axis=0) - [x0, y0, x0, y0]:
            left, top, right, bottom = np.maximum(other, 0).tolist()
            inside[top:bottom, left:right] = True
        shares[k] = inside.mean()
    return shares
