"""One image file: decoded to its last byte, as training will decode it.

`files` calls `examine_image` on every image of a set. The decoder is OpenCV, as in ultralytics' `imread`, so that
shapes (EXIF rotation, grey, 16 bit, several pages) agree; Pillow serves the formats that OpenCV lacks.

What is detected: every image that does not decode, and every JPEG that is cut off. Releases of OpenCV before 5 fill
the missing part of such a JPEG with grey and say nothing, therefore its end marker is looked for as well. What no
decoder reports (a changed byte in the middle of a JPEG, zeros at the end of a BMP) is not detected.

JPEGs are decoded at an eighth of their size: the compressed data is read to its end, which is all that can go wrong,
at less than half the time.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

IMAGE_SUFFIXES = frozenset(
    ("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
)
"""Files with these endings, in any letter case, are images of a set: the list of ultralytics."""

MIN_SIDE_PX = 10
"""Smaller images are refused, as `yolo` does."""

_PILLOW_SUFFIXES = ("avif", "heic", "heif")
_JPEG_START = b"\xff\xd8"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold a JPEG's size."""
_MARKER = re.compile(rb"\xff+([\x02-\xcf\xd8-\xfe])", re.DOTALL)
"""A marker that opens a segment or ends the image; restart markers and escaped data bytes are passed over."""


@contextmanager
def quiet_decoder() -> Iterator[None]:
    """Keep OpenCV from printing its own lines about broken files: they are in our report, with their names."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def examine_image(raw: bytes, suffix: str) -> tuple[tuple[int, int], str]:
    """Decode an image.

    Args:
        raw: The file's content.
        suffix: The ending of its name, in lower case and without the dot.

    Returns:
        Height and width in pixels after EXIF rotation ((0, 0) if it does not decode), and what is wrong with it
        (empty if nothing is).
    """
    if not raw:
        return (0, 0), "the file is empty"
    shape = _decoded_shape(raw, suffix)
    if raw.startswith(_JPEG_START) and not _jpeg_is_complete(raw):
        return shape or (0, 0), "is cut off: the end of the JPEG is missing"
    if shape is None:
        return (0, 0), "cannot be decoded"
    if min(shape) < MIN_SIDE_PX:
        return shape, f"is {shape[1]} x {shape[0]} pixels, smaller than {MIN_SIDE_PX}"
    return shape, ""


def _decoded_shape(raw: bytes, suffix: str) -> tuple[int, int] | None:
    buffer = np.frombuffer(raw, np.uint8)
    try:
        if suffix in ("tif", "tiff"):
            # Colour TIFFs are read page by page and unrotated by ultralytics, grey ones like every other image.
            ok, pages = cv2.imdecodemulti(buffer, cv2.IMREAD_UNCHANGED)
            if ok and pages[0].ndim == 3:
                return pages[0].shape[0], pages[0].shape[1]
        if suffix in _PILLOW_SUFFIXES and (size := _pillow_shape(raw)):
            return size
        if size := _jpeg_size(raw):
            small = cv2.imdecode(buffer, cv2.IMREAD_REDUCED_COLOR_8)
            if small is None:
                return None
            eighth, turned = (-(-size[0] // 8), -(-size[1] // 8)), (-(-size[1] // 8), -(-size[0] // 8))
            if small.shape[:2] == eighth and (eighth != turned or size[0] == size[1]):
                return size
            if small.shape[:2] == turned and eighth != turned:
                return size[::-1]
        image = cv2.imdecode(buffer, cv2.IMREAD_COLOR)  # Other formats, and JPEGs whose rotation does not show.
    except cv2.error:
        return None
    return None if image is None else (image.shape[0], image.shape[1])


def _pillow_shape(raw: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(raw)) as opened, ImageOps.exif_transpose(opened) as image:
            image.load()
            return image.height, image.width
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        return None
    except ModuleNotFoundError:  # ultralytics, once imported, makes Pillow ask for a plug-in that it cannot do without
        return None


def _jpeg_size(raw: bytes) -> tuple[int, int] | None:
    """Return height and width from a JPEG's header, before rotation; None for other content."""
    position = 2 if raw.startswith(_JPEG_START) else len(raw)
    while found := _MARKER.search(raw, position):
        start, marker = found.end(), found[1][0]
        if marker in _FRAMES:
            height, width = (int.from_bytes(raw[i : i + 2], "big") for i in (start + 3, start + 5))
            return (height, width) if height and width else None
        if marker in (0xD9, 0xDA):
            return None
        position = start + int.from_bytes(raw[start : start + 2], "big")
    return None


def _jpeg_is_complete(raw: bytes) -> bool:
    """Say whether a JPEG has its end-of-image marker after its last scan.

    The marker's two bytes may also stand in an embedded thumbnail, so the segments are walked. Cameras append data
    after the marker; that is no fault.
    """
    if raw.endswith(b"\xff\xd9"):
        return True
    position = 2
    while found := _MARKER.search(raw, position):
        if found[1] == b"\xd9":
            return True
        position = found.end() + int.from_bytes(raw[found.end() : found.end() + 2], "big")
    return False
