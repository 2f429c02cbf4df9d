"""Files of cut-outs, masks and backgrounds: found, read and decoded, and what is wrong with each, by name.

`bank` and `backgrounds` build on it. Images are decoded to 8-bit BGR as training decodes them (EXIF rotation; grey,
16 bit and CMYK converted); only cut-outs keep their alpha.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from hsr_train.synthesis.store import Image

SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
"""Endings of images, in any letter case."""

MASK_LEVEL = 127
"""Mask and alpha values above it belong to the object."""


class BadImageError(Exception):
    """An image cannot be used; the text says why."""


class EmptyMaskError(BadImageError):
    """A mask shows no object."""


@dataclass
class SourceFile:
    """One image that is read, with its mask.

    Attributes:
        name: Path from the folder that was given, with slashes.
        image: The file.
        mask: The file of its mask, if that is one of its own.
        class_id: Which class a cut-out belongs to.
        image_hash: SHA-256 of the file.
        mask_hash: SHA-256 of the mask's file; empty without one.
    """

    name: str
    image: Path
    mask: Path | None = None
    class_id: int = -1
    image_hash: str = field(default="", init=False)
    mask_hash: str = field(default="", init=False)

    def hash(self) -> None:
        """Read the files and note what is in them."""
        self.image_hash = _sha256(self.image)
        self.mask_hash = _sha256(self.mask) if self.mask is not None else ""


def fingerprint(files: list[SourceFile], *words: object) -> str:
    """Return a SHA-256 over the names and contents of files that have been hashed, and over further words."""
    rows = ["\0".join((f.name, str(f.class_id), f.image_hash, f.mask_hash)) for f in files]
    text = "\n".join([*rows, *(repr(word) for word in words)])
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def images_in(folder: Path) -> list[Path]:
    """Return the images that lie directly in a folder, sorted."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def decode(path: Path, flags: int = cv2.IMREAD_COLOR) -> Image:
    """Return an image as 8-bit BGR, (height, width, 3).

    Raises:
        BadImageError: It cannot be read or decoded.
    """
    return _decode(path, flags)


def decode_cutout(file: SourceFile) -> tuple[Image, Image]:
    """Return the colours (height, width, 3) of an image and its mask (height, width): 255 where the object is, or 0.

    Raises:
        BadImageError: There is no object to be had from it.
    """
    if file.mask is not None:
        image = _decode(file.image, cv2.IMREAD_COLOR)
        return image, decode_mask(file.mask, image)
    pixels = _decode(file.image, cv2.IMREAD_UNCHANGED)
    if pixels.ndim != 3 or pixels.shape[2] != 4:
        raise BadImageError("has no alpha channel: a cut-out is a PNG with alpha, or images/ beside masks/")
    return np.ascontiguousarray(pixels[..., :3]), _judged(pixels[..., 3], "alpha")


def decode_mask(path: Path, image: Image) -> Image:
    """Return the mask of an image, (height, width): 255 where an object is, or 0.

    Raises:
        BadImageError: It cannot be decoded, has another size, is empty or full.
    """
    levels = _decode(path, cv2.IMREAD_COLOR).max(axis=2)
    if levels.shape != image.shape[:2]:
        sizes = [f"{shape[1]} x {shape[0]}" for shape in (levels.shape, image.shape)]
        raise BadImageError(f"its mask has {sizes[0]} pixels, the image {sizes[1]}")
    return _judged(levels, "mask")


def _judged(levels: Image, what: str) -> Image:
    mask = np.where(levels > MASK_LEVEL, 255, 0).astype(np.uint8)
    if not mask.any():
        raise EmptyMaskError(f"its {what} is empty: no value above {MASK_LEVEL}, the largest is {int(levels.max())}")
    if mask.all():
        raise BadImageError(f"its {what} is full: nothing is cut out")
    return mask


def _decode(path: Path, flags: int) -> Image:
    try:
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(raw, flags) if raw.size else None
    except OSError as error:
        raise BadImageError(f"cannot be read: {error.strerror or error}") from error
    except cv2.error as error:
        raise BadImageError("cannot be decoded") from error
    if pixels is None:
        raise BadImageError("cannot be decoded")
    if pixels.dtype == np.uint16:
        return (pixels // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise BadImageError(f"has values of type {pixels.dtype}, not 8 or 16 bit")
    return np.asarray(pixels, np.uint8)


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""  # said when it is decoded
