"""What objects are pasted onto: crops of a folder's empty images, or whole training images with their own labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.errors import InputError, Problem
from hsr_train.synthesis.files import BadImageError, SourceFile, decode, fingerprint, images_in
from hsr_train.synthesis.reading import hash_all, read_all, refuse_bad
from hsr_train.synthesis.store import Image, PixelStore, build_store

KEY = "synthetic.backgrounds_dir"
ZOOM = 1.4
"""The square parts of a background have between 1 / ZOOM of its shorter side and all of it, the same share each time:
it is kept in the size in which a part has as many pixels as a composed image, and is only copied."""
_VERSION = 2

Floats = npt.NDArray[np.float32]


class Scene(NamedTuple):
    """An image that objects can be pasted onto.

    Attributes:
        image: (h, w, 3) BGR, to be written to.
        boxes: (k, 4) x0, y0, x1, y1 in pixels, of the objects that are in it already.
        classes: (k,) their classes.
        outlines: For each of them a (p, 2) polygon in pixels; empty where only boxes are known.
    """

    image: Image
    boxes: Floats
    classes: npt.NDArray[np.int64]
    outlines: list[Floats]


class Backgrounds(Protocol):
    """Where scenes come from."""

    def draw(self, rng: np.random.Generator, side: int) -> Scene:
        """Return a scene whose longest side is `side` pixels."""
        ...


@dataclass
class FolderBackgrounds:
    """Images without objects; a square part of one, at a random place and size, is a scene.

    Attributes:
        files: Every file of the folder.
        fingerprint: SHA-256 over them.
        pixels: The decoded images, or None where they are decoded when they are needed.
        used: Numbers of the files that can be used.
        rejected: Files that were left out, with the reason.
        side: Side of composed images in pixels, for which images are reduced.
    """

    files: list[SourceFile]
    fingerprint: str
    pixels: PixelStore | None
    used: list[int]
    rejected: dict[str, str]
    side: int

    def __len__(self) -> int:
        return len(self.used)

    @classmethod
    def read(
        cls,
        folder: Path | str,
        *,
        cache_dir: Path | str,
        side: int = 640,
        skip_bad: bool = False,
        limit_bytes: int = 2**30,
    ) -> FolderBackgrounds:
        """Read the images that lie directly in a folder.

        Args:
            folder: Images of any sizes.
            cache_dir: Where the decoded images are kept.
            side: Side of composed images in pixels.
            skip_bad: Leave unusable files out instead of refusing all.
            limit_bytes: Where decoded images may need more, they are decoded when they are needed.

        Raises:
            InputError: With every unusable file, or because there is none.
        """
        root = Path(folder)
        if not root.is_dir():
            what = "is not a folder" if root.exists() else "does not exist"
            raise InputError(Problem(KEY, str(folder), what, f"{KEY}=FOLDER, or null: the training images serve"))
        files = [SourceFile(path.name, path) for path in images_in(root)]
        if not files:
            remedy = "put images without objects there, or leave it out: the training images serve"
            raise InputError(Problem(KEY, str(folder), "holds no images", remedy))
        hash_all(files)
        stored = len(files) * (side * ZOOM) ** 2 * 3 * 1.8 <= limit_bytes  # of a 16:9 image
        key = fingerprint(files, _VERSION, side, stored)

        def make() -> tuple[Iterator[Image], dict[str, Any]]:
            notes: dict[str, Any] = {"used": [], "bad": {}}
            return _prepared(files, notes, side, stored), notes

        pixels, notes = build_store(Path(cache_dir) / "synthesis", key[:32], make)
        bad: dict[str, str] = notes["bad"]
        refuse_bad(KEY, str(folder), bad, len(files), skip_bad=skip_bad, some_left=bool(notes["used"]))
        return cls(files, fingerprint(files), pixels if stored else None, notes["used"], bad, side)

    def draw(self, rng: np.random.Generator, side: int) -> Scene:
        """Return a crop as a square scene without objects; it is mirrored with the whole image, by augmentation."""
        number = int(rng.integers(len(self.used)))
        x, y = rng.random(2)
        image = self._load(number)
        height, width = image.shape[:2]
        crop = max(round(min(height, width) / _zoom(self.used[number])), 1)
        left, top = round(x * (width - crop)), round(y * (height - crop))
        part = image[top : top + crop, left : left + crop]
        method = cv2.INTER_AREA if crop > 2 * side else cv2.INTER_LINEAR
        scene = cv2.resize(part, (side, side), interpolation=method) if crop != side else part.copy()
        return Scene(np.asarray(scene, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64), [])

    def _load(self, number: int) -> Image:
        if self.pixels is not None:
            return self.pixels[number]
        number = self.used[number]
        return _reduced(decode(self.files[number].image), round(self.side * _zoom(number)))


def _zoom(number: int) -> float:
    """Return the shorter side of file `number` as a multiple of that of its parts: evenly spread from 1 to ZOOM."""
    return 1 + (ZOOM - 1) * ((number + 0.5) * 0.618034 % 1)


def _prepared(files: list[SourceFile], notes: dict[str, Any], side: int, stored: bool) -> Iterator[Image]:
    def one(job: tuple[int, SourceFile]) -> Image:
        return _reduced(decode(job[1].image), round(side * _zoom(job[0])))

    for (number, file), result in read_all(list(enumerate(files)), one, "Reading backgrounds"):
        if isinstance(result, BadImageError):
            notes["bad"][file.name] = str(result)
            continue
        notes["used"].append(number)
        if stored:
            yield result


def _reduced(image: Image, shorter: int) -> Image:
    height, width = image.shape[:2]
    factor = shorter / min(height, width)
    if factor >= 1:
        return image
    size = (max(round(width * factor), 1), max(round(height * factor), 1))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


class TrainingBackgrounds:
    """Training images as scenes, with the objects that are in them.

    Args:
        images: The files.
        labels: For each image (k, 5) class, centre x, centre y, width, height; fractions of the image.
        segments: For each image k polygons, (p, 2) fractions; or an empty list.
        load: Returns image `number` with its longest side `side`, not to be written to; default: decode the file.
    """

    def __init__(
        self,
        images: Sequence[Path],
        labels: Sequence[Floats],
        segments: Sequence[list[Floats]],
        load: Callable[[int, int], Image] | None = None,
    ) -> None:
        self.images, self.labels, self.segments = images, labels, segments
        self.load = load or self._decode

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, rng: np.random.Generator, side: int) -> Scene:
        """Return a random image, whole, with its labels."""
        return self.scene(int(rng.integers(len(self.images))), side)

    def scene(self, number: int, side: int) -> Scene:
        """Return image `number` as a scene."""
        image = self.load(number, side).copy()
        size = np.array([image.shape[1], image.shape[0]], np.float32)
        labels = self.labels[number]
        centres, halves = labels[:, 1:3] * size, labels[:, 3:5] * size / 2
        boxes = np.hstack([np.maximum(centres - halves, 0), np.minimum(centres + halves, size)]).astype(np.float32)
        outlines = [np.asarray(points * size, np.float32) for points in self.segments[number]]
        return Scene(image, boxes, labels[:, 0].astype(np.int64), outlines)

    def _decode(self, number: int, side: int) -> Image:
        image = decode(self.images[number])
        factor = side / max(image.shape[:2])
        size = (max(round(image.shape[1] * factor), 1), max(round(image.shape[0] * factor), 1))
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), np.uint8)
