"""Decoded images in one file that loader processes share: a read-only memory map, whose pages the kernel holds once.

`bank` and `backgrounds` keep their pixels here. A store is built once for each content and found again by its key.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hsr_train.run.atomic import atomic_path, write_json

Image = npt.NDArray[np.uint8]


class PixelStore:
    """Images of any sizes, one after another in a file.

    Args:
        path: The file of pixels.
        shapes: Height, width and channels of each image.
    """

    def __init__(self, path: Path, shapes: list[list[int]]) -> None:
        self.path, self.shapes = path, [tuple(shape) for shape in shapes]
        sizes = [height * width * channels for height, width, channels in self.shapes]
        self._ends = np.cumsum([0, *sizes]).tolist()
        self._pixels: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, index: int) -> Image:
        """Return an image that cannot be written to, (height, width, channels); nothing is copied."""
        if self._pixels is None:
            self._pixels = np.memmap(self.path, np.uint8, "r")
        return self._pixels[self._ends[index] : self._ends[index + 1]].reshape(self.shapes[index])

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the file itself instead of getting a copy of the pixels."""
        return self.__dict__ | {"_pixels": None}

    @property
    def num_bytes(self) -> int:
        """Size of all images in bytes."""
        return int(self._ends[-1])


def build_store(folder: Path, key: str, make: Callable[[], tuple[Iterable[Image], dict[str, Any]]]) -> tuple[
    PixelStore, dict[str, Any]
]:  # fmt: skip
    """Return the store of a key, and what was noted with it; made if it is not there or was damaged.

    Args:
        folder: Where stores lie.
        key: A name that stands for the content and for how it was prepared.
        make: Yields the images and returns notes that JSON can hold, complete when the last image was taken.
    """
    pixels, notes_file = folder / f"{key}.pixels", folder / f"{key}.json"
    try:
        found = json.loads(notes_file.read_text(encoding="utf-8"))
        store, notes = PixelStore(pixels, found["shapes"]), dict(found["notes"])
        if pixels.stat().st_size == store.num_bytes:
            return store, notes
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: made anew below
    shapes: list[list[int]] = []
    with atomic_path(pixels) as temporary, temporary.open("wb") as file:
        images, notes = make()
        for image in images:
            shapes.append(list(image.shape))
            file.write(np.ascontiguousarray(image).data)
    write_json(notes_file, {"shapes": shapes, "notes": notes})
    return PixelStore(pixels, shapes), notes
