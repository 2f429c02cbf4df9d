"""A YOLO set of composed images on disk, for other trainers: what `Composer.compose` returns, image by image.

An interrupted set is gone on with: an image is whole when its label file is there, which is written last.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import write_bytes, write_json, write_text
from hsr_train.synthesis.backgrounds import Floats
from hsr_train.synthesis.composer import Composed, Composer

RECORD = "synthesis.json"
_JPEG_QUALITY = 95
_EPOCH = 0


def write_set(
    composer: Composer,
    folder: Path,
    names: Sequence[str],
    count: int,
    *,
    record: dict[str, Any],
    validation: Sequence[Path],
    workers: int,
) -> int:
    """Write `images/train`, `labels/train`, `polygons/train`, `val.txt` and data.yaml.

    Args:
        composer: Its images 0 to count - 1 of epoch 0 are written; polygons if it makes outlines.
        folder: Empty, missing, or begun by an earlier call with the same record; may then get more images.
        names: Class names by id.
        count: Number of images.
        record: What the images depend on; kept in synthesis.json.
        validation: Real images for data.yaml's val.
        workers: Threads.

    Returns:
        How many images were written now; the others were there.

    Raises:
        InputError: The folder holds something else.
        RunError: The disk refused.
    """
    _claim(folder, record)
    listed = "\n".join(f"  {i}: {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(names))
    missing = [i for i in range(count) if not _label(folder, i).is_file()]
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        jobs = pool.map(lambda index: _write(composer, folder, index), missing)
        for _ in tqdm(jobs, total=len(missing), desc="Composing", file=sys.stderr, leave=False, disable=None):
            pass
    write_text(folder / "val.txt", "".join(f"{path}\n" for path in validation))
    write_text(folder / "data.yaml", f"path: .\ntrain: images/train\nval: val.txt\nnames:\n{listed}\n")
    return len(missing)


def _claim(folder: Path, record: dict[str, Any]) -> None:
    """Make the folder this set's, unless it is something else's.

    Raises:
        InputError: It is.
    """
    file = folder / RECORD
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(record)):
            allowed = f"holds a set that was composed otherwise: {RECORD} has its settings"
            raise InputError(Problem("output_dir", str(folder), allowed, "output_dir=ANOTHER"))
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(Problem("output_dir", str(folder), "must be a new or empty folder", "output_dir=ANOTHER"))
    else:
        write_json(file, record)


def _label(folder: Path, index: int) -> Path:
    return folder / "labels" / "train" / f"{index:06}.txt"


def _write(composer: Composer, folder: Path, index: int) -> None:
    composed = composer.compose(_EPOCH, index)
    content = cv2.imencode(".jpg", composed.image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    write_bytes(folder / "images" / "train" / f"{index:06}.jpg", content.tobytes())
    if composer.outlines:
        write_text(folder / "polygons" / "train" / f"{index:06}.txt", _polygon_lines(composed))
    write_text(_label(folder, index), _box_lines(composed))


def _box_lines(composed: Composed) -> str:
    size = _size(composed)
    first, last = composed.boxes[:, :2] / size, composed.boxes[:, 2:] / size
    return _lines(composed, list(np.hstack([(first + last) / 2, last - first])))


def _polygon_lines(composed: Composed) -> str:
    size = _size(composed)
    return _lines(composed, [points / size for points in composed.outlines])


def _lines(composed: Composed, rows: Sequence[Floats]) -> str:
    pairs = zip(composed.classes.tolist(), rows, strict=True)
    return "".join(f"{c} {' '.join(f'{v:.6f}' for v in row.ravel().tolist())}\n" for c, row in pairs)


def _size(composed: Composed) -> Floats:
    return np.array(composed.image.shape[1::-1], np.float32)
