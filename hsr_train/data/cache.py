"""Our cache folder, and the index of what is known about a set's files.

`cache_root` is the one place that decides where caches lie; the demo set and weights use it too. The index remembers,
for each image that `files` has read, its hash, shape, labels and faults; an entry is trusted as long as path, size and
modification time in nanoseconds of the image and its label file are the same. One file for each set, replaced as a
whole, so that several starts at once are safe; a damaged file is rebuilt.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import logging
import os
import tempfile
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsr_train.config.schema import DividedDataConfig
from hsr_train.data.labels import Fault, Floats, LabelRules, Labels
from hsr_train.errors import RunError
from hsr_train.run.atomic import write_bytes

log = logging.getLogger(__name__)

Stamp = tuple[int, int]
"""Size in bytes and modification time in nanoseconds; `ABSENT` for a file that does not exist."""

ABSENT: Stamp = (-1, -1)
_VERSION = 1
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(slots=True)
class Known:
    """What is known about one image and its label file.

    Attributes:
        image_stamp: Of the image when it was read.
        image_hash: SHA-256 of the image file; hexadecimal, empty if it could not be read.
        shape: Height and width in pixels, after EXIF rotation.
        image_fault: What is wrong with the image; empty if nothing.
        label_path: The label file that was looked for last.
        label_stamp: Of the label file; `ABSENT` for a background without one.
        label_hash: SHA-256 of the label file; empty if there is none.
        labels: Its content.
    """

    image_stamp: Stamp
    image_hash: str
    shape: tuple[int, int]
    image_fault: str
    label_path: str
    label_stamp: Stamp
    label_hash: str
    labels: Labels


def cache_root(config: DividedDataConfig) -> Path:
    """Return our cache folder, made if need be.

    `data.cache_dir` if typed, else `hsr_train` under `$XDG_CACHE_HOME` or `~/.cache`. Where that cannot be written, a
    temporary folder, with a warning.
    """
    if config.cache_dir:
        wanted = Path(os.path.expanduser(config.cache_dir))  # noqa: PTH111 (an unknown ~user is a folder name)
    else:
        base = os.environ.get("XDG_CACHE_HOME", "")
        wanted = (Path(base) if Path(base).is_absolute() else Path("~/.cache").expanduser()) / "hsr_train"
    wanted = Path(os.path.abspath(wanted))  # noqa: PTH100 (keeps symbolic links)
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as err:
        return _temporary_root(wanted, err.strerror or str(err))


@functools.cache
def _temporary_root(wanted: Path, reason: str) -> Path:
    """Make the substitute for a folder that cannot be written: one for each process, warned about once."""
    root = Path(tempfile.mkdtemp(prefix="hsr_train-cache-"))
    log.warning("The cache folder %s cannot be written (%s); using %s for this run", wanted, reason, root)
    return root


def index_path(root: Path, yaml_path: Path) -> Path:
    """Return where the index of a set lies: keyed by the location of its data.yaml."""
    key = hashlib.sha256(os.fsencode(yaml_path)).hexdigest()[:16]
    return root / "data" / f"{key}.index"


def load_index(path: Path, rules: LabelRules) -> dict[str, Known]:
    """Read the index of a set.

    Args:
        path: From `index_path`.
        rules: Labels that were judged by other rules are not trusted (their images are).

    Returns:
        What is known, by absolute image path; empty if there is no index or it is damaged (one logged line).
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as err:
        log.warning("The data index %s cannot be read (%s); every file is read again", path, err.strerror)
        return {}
    digest, content = raw[:_DIGEST_BYTES], raw[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        log.warning("The data index %s is damaged; every file is read again", path)
        return {}
    return _decode(content, rules)


def save_index(path: Path, known: dict[str, Known], rules: LabelRules) -> None:
    """Write the index of a set; a folder that cannot be written costs a warning, not the run."""
    try:
        content = _encode(known, rules)
        write_bytes(path, hashlib.sha256(content).digest() + content)
    except (OSError, RunError) as err:
        log.warning("The data index was not written, so the next start reads every file again: %s", err)


def _encode(known: dict[str, Known], rules: LabelRules) -> bytes:
    """Pack the entries column by column: arrays for numbers, one JSON text for the rest."""
    rows = list(known.values())
    polygons = [p for row in rows for p in row.labels.polygons or []]
    text = {
        "version": _VERSION,
        "rules": astuple(rules),
        "paths": list(known),
        "label_paths": [row.label_path for row in rows],
        "image_hashes": [row.image_hash for row in rows],
        "label_hashes": [row.label_hash for row in rows],
        "image_faults": {i: row.image_fault for i, row in enumerate(rows) if row.image_fault},
        "label_faults": {i: [astuple(f) for f in row.labels.faults] for i, row in enumerate(rows) if row.labels.faults},
        "duplicates": {i: row.labels.num_duplicates for i, row in enumerate(rows) if row.labels.num_duplicates},
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        text=np.frombuffer(json.dumps(text).encode(), np.uint8),
        numbers=np.array([(*r.image_stamp, *r.label_stamp, *r.shape) for r in rows], np.int64).reshape(-1, 6),
        num_boxes=np.array([len(r.labels.boxes) for r in rows], np.int64),
        boxes=np.concatenate([np.zeros((0, 5), np.float32), *(r.labels.boxes for r in rows)]),
        num_polygons=np.array([-1 if r.labels.polygons is None else len(r.labels.polygons) for r in rows], np.int64),
        num_points=np.array([len(p) for p in polygons], np.int64),
        points=np.concatenate([np.zeros((0, 2), np.float32), *polygons]),
    )
    return buffer.getvalue()


def _decode(raw: bytes, rules: LabelRules) -> dict[str, Known]:
    with np.load(io.BytesIO(raw), allow_pickle=False) as file:
        text = json.loads(file["text"].tobytes())
        if text["version"] != _VERSION:
            return {}
        numbers = file["numbers"].tolist()
        boxes = _pieces(file["boxes"], file["num_boxes"])
        points = _pieces(file["points"], file["num_points"])
        num_polygons = file["num_polygons"].tolist()
    label_paths = text["label_paths"] if text["rules"] == list(astuple(rules)) else [""] * len(numbers)
    image_faults, label_faults, duplicates = text["image_faults"], text["label_faults"], text["duplicates"]
    columns = (text["paths"], text["image_hashes"], label_paths, text["label_hashes"], numbers, boxes, num_polygons)
    known: dict[str, Known] = {}
    taken = 0
    for i, (path, image_hash, label, label_hash, row, box, count) in enumerate(zip(*columns, strict=True)):
        key = str(i)
        faults = [Fault(*fault) for fault in label_faults[key]] if key in label_faults else []
        labels = Labels(box, points[taken : taken + count] if count >= 0 else None, faults, duplicates.get(key, 0))
        taken += max(count, 0)
        image_size, image_time, label_size, label_time, height, width = row
        known[path] = Known(
            (image_size, image_time), image_hash, (height, width), image_faults.get(key, ""),
            label, (label_size, label_time), label_hash, labels,
        )  # fmt: skip
    return known


def _pieces(rows: Floats, lengths: npt.NDArray[np.int64]) -> list[Floats]:
    """Cut an array into pieces of the given lengths."""
    ends = np.cumsum(lengths).tolist()
    return [rows[start:end] for start, end in zip([0, *ends], ends, strict=False)]
