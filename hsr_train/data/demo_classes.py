"""The built-in classification set: single household objects, drawn on the spot and divided into five folds.

The pictures are those of `demo_scene.cutout`, cropped at random around the object; `demo` has the rules by which a
drawn folder is put in its place whole. `class_set` asks for it where `data.path=demo`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.data import demo
from hsr_train.data.class_folders import RAW, SPLITS_FOLDER
from hsr_train.data.demo_objects import CLASSES
from hsr_train.data.demo_scene import cutout
from hsr_train.data.division import Scheme, Units, divide
from hsr_train.data.index_files import index_contents, list_fingerprint, write_indexes
from hsr_train.errors import RunError
from hsr_train.run.atomic import DISK_ERRORS, describe_disk_error, write_json

log = logging.getLogger(__name__)

SIDE_PX = 112
NUM_FOLDS = 5
_RATIO = (0.7, 0.15, 0.15)
_STREAM = 4  # `demo_draw` has the ones before
_VERSION = 1
_JPEG_QUALITY = 90

_README = """\
The built-in classification set of hsr_train
============================================

{num_images} pictures of each of {num_classes} household objects, drawn by hsr_train's own generator (seed {seed});
nothing here is a photograph.

  raw/      one folder for each class
  splits/   a held-out test set and {num_folds} folds of the rest, as mode=split makes them
  {marker}  lists every file; a set that lacks one is drawn again

This folder is a cache. It may be deleted at any time; hsr_train draws it again when it is needed.
"""


def ensure_demo_classes(cache_root: Path, *, seed: int = 42, num_images: int = 40) -> Path:
    """Return the folder of the built-in set, with raw/ and splits/, drawing it first where it is not there whole.

    The same arguments give the same bytes (on one version of numpy, OpenCV and scikit-learn). It is drawn into a
    folder beside its place and renamed, so that several processes may ask for it at the same time.

    Args:
        cache_root: Folder for the set's own folder; created if need be.
        seed: Of all pictures and of the folds; 0 or more.
        num_images: Pictures of each class; at least 8, for five folds and a test set.

    Raises:
        RunError: The disk refused.
        InputError: scikit-learn is missing.
    """
    if seed < 0 or num_images < 8:
        raise ValueError(f"seed must not be negative, images of a class not fewer than 8: {seed}, {num_images}")
    root = Path(cache_root).expanduser().absolute()
    name = f"demo-classes-{_code_digest()}-seed{seed}-{num_images}"
    home = root / name
    if demo.is_whole(home):
        return home
    try:
        demo._clear_drafts(root, name)
        draft = root / f".{name}.draft-{os.getpid()}-{secrets.token_hex(4)}"
        try:
            _fill(draft, home, seed, num_images)
            demo._put_in_place(draft, home)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise RunError(f"the built-in set: {describe_disk_error(Path(error.filename or home), error)}") from error
    return home


def draw_object(seed: int, label: int, index: int) -> npt.NDArray[np.uint8]:
    """Return one picture (SIDE_PX, SIDE_PX, 3) in OpenCV's channel order: a square cut at random around an object."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([_VERSION, seed, _STREAM, label, index])))
    image, mask = cutout(rng, label)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    size = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    side = int(min(len(image), size * rng.uniform(1.0, 2.0)))
    top, left = (_start(rng, int(axis[0] + axis[-1]) // 2, side, len(image)) for axis in (rows, columns))
    part = image[top : top + side, left : left + side]
    return np.asarray(cv2.resize(part, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA), np.uint8)


def _start(rng: np.random.Generator, middle: int, side: int, whole: int) -> int:
    """Return where a cut begins along one axis: around the object's middle, up to a tenth of the side off it."""
    begin = middle - side / 2 + rng.uniform(-0.1, 0.1) * side
    return int(np.clip(begin, 0, whole - side))


def _fill(draft: Path, home: Path, seed: int, num_images: int) -> None:
    start = time.monotonic()
    log.info("Drawing the built-in classification set, %d pictures, into %s", num_images * len(CLASSES), home)
    names = []
    for label, name in sorted(enumerate(CLASSES), key=lambda item: item[1]):
        folder = draft / RAW / name
        folder.mkdir(parents=True)
        for index in range(num_images):
            file = folder / f"{name}_{index:03d}.jpg"
            encoded = cv2.imencode(".jpg", draw_object(seed, label, index), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
            file.write_bytes(encoded[1].tobytes())
            names.append(f"{RAW}/{name}/{file.name}")
    _divide(draft, names, seed)
    facts = {"seed": seed, "num_images": num_images}
    text = _README.format(**facts, num_classes=len(CLASSES), num_folds=NUM_FOLDS, marker=demo.MARKER)
    (draft / "README.txt").write_text(text, encoding="utf-8")
    sizes = {f.relative_to(draft).as_posix(): f.stat().st_size for f in sorted(draft.rglob("*")) if f.is_file()}
    write_json(draft / demo.MARKER, {**facts, "files": sizes})
    log.info("Drew it in %.1f s, %.1f MB", time.monotonic() - start, sum(sizes.values()) / 1e6)


def _divide(draft: Path, names: Sequence[str], seed: int) -> None:
    """Divide the pictures as mode=split would; none is a copy of another."""
    classes = sorted(CLASSES)
    labels = np.array([classes.index(name.split("/")[1]) for name in names], np.int64)
    units = Units(np.arange(len(names)), labels, len(classes))
    scheme = Scheme("kfold", NUM_FOLDS, _RATIO[2], _RATIO[1] / (_RATIO[0] + _RATIO[1]), seed)
    files = index_contents(names, *divide(units, scheme, classes, mixed=False))
    record = {
        **asdict(scheme),
        "ratio": list(_RATIO),
        "classes": classes,
        "images": {name: content.count(b"\n") for name, content in files.items()},
        "left_out": [],
        "fingerprint": list_fingerprint(names),
    }
    write_indexes(draft / SPLITS_FOLDER, files, record)


def _code_digest() -> str:
    """Eight characters that change with the code that draws and divides."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for file in [*sorted(here.glob("demo*.py")), here / "division.py", here / "index_files.py"]:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:8]
