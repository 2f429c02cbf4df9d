"""Pictures that look the same and are not the same file: shots of a burst, resized or recompressed copies.

`folds` and `detection_folds` call it once when a set is divided, since such pairs in two splits make the validation
look better than it is. A picture is boiled down to 64 bits, the signs of its lowest spatial frequencies against their
median; two pictures that differ in few bits, and whose small grey copies agree as well, look the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.data.class_folders import some
from hsr_train.data.files import num_threads
from hsr_train.data.images import quiet_decoder

MOST_BITS = 10
"""Of 64, that may differ."""

LEAST_AGREEMENT = 0.93
"""Correlation of the small grey copies. Re-encoded, halved or brightened copies of shop photos reach 0.98; of 3.5
million pairs of different photos four passed both limits, each of one object from nearly one place."""

_SIDE = 32
_LOW = 8
_PAIRS_AT_ONCE = 4_000_000


def near_duplicates(paths: Sequence[str], hashes: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return (k, 2) indices of pictures that look the same, the smaller first, in order.

    Exact copies are left out, and pictures that do not decode, or are of one colour.

    Args:
        paths: Image files.
        hashes: Content hash of each.
    """
    with quiet_decoder(), ThreadPoolExecutor(num_threads()) as pool:
        small = np.array(list(pool.map(_small, paths, chunksize=32)), np.float32).reshape(-1, _SIDE * _SIDE)
    spread = small.std(1)
    small = (small - small.mean(1, keepdims=True)) / np.maximum(spread, 1e-6)[:, None]
    codes = _codes(small)
    usable = spread > 1  # grey values of 255
    contents = np.unique(np.array(hashes, dtype=np.str_), return_inverse=True)[1]
    step = max(1, _PAIRS_AT_ONCE // max(1, len(paths)))
    found = [np.zeros((0, 2), np.int64)]
    for start in range(0, len(paths), step):
        block = codes[start : start + step]
        close = np.bitwise_count(block[:, None] ^ codes[None, start:]) <= MOST_BITS
        pairs = np.argwhere(np.triu(close, 1)) + start
        pairs = pairs[usable[pairs].all(1) & (contents[pairs[:, 0]] != contents[pairs[:, 1]])]
        for part in np.array_split(pairs, 1 + len(pairs) // 10_000):
            agreement = np.einsum("ij,ij->i", small[part[:, 0]], small[part[:, 1]]) / (_SIDE * _SIDE)
            found.append(part[agreement >= LEAST_AGREEMENT])
    return np.concatenate(found)


def straddling(
    names: Sequence[str], paths: Sequence[str], hashes: Sequence[str], splits: Sequence[npt.NDArray[np.bool_]]
) -> list[str]:
    """Report pictures that look the same and lie in two splits of some fold.

    Args:
        names: For messages.
        paths: Image files.
        hashes: Content hash of each.
        splits: The test set and each fold's validation set: (n,) which images are in it.
    """
    pairs = near_duplicates(paths, hashes)
    apart = np.zeros(len(pairs), np.bool_)
    for split in splits:
        apart |= split[pairs[:, 0]] != split[pairs[:, 1]]
    pairs = pairs[apart]
    if not len(pairs):
        return []
    examples = some(f"{names[a]} = {names[b]}" for a, b in pairs)
    num_images = len(np.unique(pairs))
    return [
        f"{len(pairs):,} pairs of images look the same and lie in different splits ({num_images:,} images): "
        f"{examples}; remove one of each, or keep them together: data.groups"
    ]


def _small(path: str) -> npt.NDArray[np.float32]:
    """Return a picture's grey values, 32 x 32; zeros where it does not decode."""
    raw = np.frombuffer(Path(path).read_bytes(), np.uint8)
    image = cv2.imdecode(raw, cv2.IMREAD_REDUCED_GRAYSCALE_2) if len(raw) else None
    if image is None:
        return np.zeros((_SIDE, _SIDE), np.float32)
    return np.asarray(cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), np.float32)


def _codes(small: npt.NDArray[np.float32]) -> npt.NDArray[np.uint64]:
    """Return 64 bits for each small picture: low frequencies of its cosine transform above their median."""
    codes = np.zeros(len(small), np.uint64)
    for i, picture in enumerate(small):
        low = cv2.dct(picture.reshape(_SIDE, _SIDE))[:_LOW, :_LOW].ravel()
        bits = low > np.median(low[1:])  # the first is the mean brightness
        codes[i] = np.packbits(bits).view(np.uint64)[0]
    return codes
