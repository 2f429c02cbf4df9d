"""The object bank: cut-outs of every class, decoded, cropped to the object and kept in one shared file.

`find_cutouts` lists what a folder holds, `ObjectBank.read` decodes and judges it. `composer` draws from the bank.
"""

from __future__ import annotations

import difflib
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.errors import InputError, Problem
from hsr_train.synthesis.files import BadImageError, SourceFile, decode_cutout, fingerprint, images_in
from hsr_train.synthesis.paste import EDGE_PX, edge_levels
from hsr_train.synthesis.store import Image, PixelStore, build_store

log = logging.getLogger(__name__)

KEY = "synthetic.annotated_dir"
DISTRACTORS_KEY = "synthetic.distractors_dir"
MIN_MASK_PIXELS = 100
MIN_SIDE_PX = 32
DISTRACTOR = "distractor"
"""What stands for the class of objects without one."""
PAD_PX = EDGE_PX + 1
"""Pixels around an object, in its edge's colours, over which a soft edge fades."""
CRUMB = 0.01
"""Parts of a mask smaller than this share of its largest part are dropped: they would widen the box."""
_VERSION = 2
_AT_ONCE = 32
"""Images that are decoded at the same time: what bounds the memory of building a bank."""
_MOST_LINES = 20
_LAYOUT = "CLASS/images/* with CLASS/masks/<stem>_mask.png, or CLASS/*.png with alpha"


@dataclass
class ObjectBank:
    """Cut-outs ready to be pasted.

    Attributes:
        pixels: BGRA images; alpha says how far the edge is, see `edge_levels`, and around the object, where it is at
            most 127, colours go on as at its edge.
        classes: (n,) class ids.
        size_per_side: (n,) factor on the stored pixels for each pixel of a composed image's side that gives the object
            the size which it had in its photo.
        names: Class names by id.
        files: Every file that was read, the unusable ones too.
        fingerprint: SHA-256 over the files.
        rejected: Files that were left out, with the reason.
    """

    pixels: PixelStore
    classes: npt.NDArray[np.int64]
    size_per_side: npt.NDArray[np.float64]
    names: list[str]
    files: list[SourceFile]
    fingerprint: str
    rejected: dict[str, str]

    def __len__(self) -> int:
        return len(self.classes)

    @classmethod
    def read(
        cls,
        folder: Path | str,
        names: Sequence[str],
        *,
        cache_dir: Path | str,
        side: int = 640,
        photo_side: float | None = None,
        largest_scale: float = 1.5,
        skip_bad: bool = False,
        limit_bytes: int | None = None,
        distractors: bool = False,
    ) -> ObjectBank:
        """Read the cut-outs of a folder.

        Args:
            folder: One folder for each class, see `find_cutouts`.
            names: Class names of the data; the index is the class id.
            cache_dir: Where the decoded bank is kept.
            side: Side of composed images in pixels; objects are kept no larger than they are needed there.
            photo_side: Longest side in pixels of the photos that RGBA cut-outs are from; default: `side`. An image
                with a mask is such a photo itself.
            largest_scale: Largest factor by which an object is enlarged.
            skip_bad: Leave unusable files out instead of refusing all.
            limit_bytes: Largest allowed bank.
            distractors: The objects are of none of the classes; see `find_distractors`.

        Raises:
            InputError: With every unusable file, or because nothing can be used.
        """
        setting = DISTRACTORS_KEY if distractors else KEY
        files = (find_distractors if distractors else find_cutouts)(Path(folder), list(names))
        with ThreadPoolExecutor() as pool:
            list(pool.map(SourceFile.hash, files))
        photo = float(photo_side or side)
        key = fingerprint(files, _VERSION, side, photo, largest_scale, MIN_MASK_PIXELS, MIN_SIDE_PX, CRUMB, PAD_PX)

        def make() -> tuple[Iterator[Image], dict[str, Any]]:
            notes: dict[str, Any] = {"used": [], "sizes": [], "bad": {}, "rejected": {}}
            return _prepared(files, notes, side, photo, largest_scale, limit_bytes, setting), notes

        pixels, notes = build_store(Path(cache_dir) / "synthesis", key[:32], make)
        bad: dict[str, str] = notes["bad"]
        if bad and not skip_bad:
            problems = [Problem(f"{setting} ({name})", "", why) for name, why in list(bad.items())[:_MOST_LINES]]
            what = f"{len(bad)} of {len(files)} files cannot be used"
            remedy = "repair them, or leave them out: data.on_bad=skip"
            raise InputError([*problems, Problem(setting, str(folder), what, remedy)])
        rejected = bad | notes["rejected"]
        if not notes["used"]:
            reasons = "; ".join(f"{count} x {why}" for why, count in Counter(rejected.values()).most_common(5))
            allowed = f"holds no usable cut-out: {reasons}"
            raise InputError(Problem(setting, str(folder), allowed, f"put some there: {_LAYOUT}"))
        classes = np.array([files[i].class_id for i in notes["used"]])
        print_of = fingerprint(files)
        names = [DISTRACTOR] if distractors else list(names)
        return cls(pixels, classes, np.array(notes["sizes"]), names, files, print_of, rejected)

    @property
    def counts(self) -> dict[str, int]:
        """Cut-outs by class, for the classes that have any."""
        return {self.names[i]: n for i, n in enumerate(np.bincount(self.classes).tolist()) if n}


def find_cutouts(folder: Path, names: list[str]) -> list[SourceFile]:
    """List the cut-outs of a folder: `CLASS/images/*` with their masks, and `CLASS/*.png` with alpha.

    Raises:
        InputError: There is no such folder, none of a class, or one of no class of the data.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(Problem(KEY, str(folder), what, f"{KEY}=FOLDER with {_LAYOUT}"))
    places = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    unknown = [path.name for path in places if path.name not in names]
    if unknown:
        problems = []
        for name in unknown:
            close = difflib.get_close_matches(name, names, 1)
            remedy = f"rename it to {close[0]}" if close else "move it away, or rename it to a class of the data"
            known = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            problems.append(Problem(f"{KEY} ({name})", "", f"is no class of the data, which has {known}", remedy))
        raise InputError(problems)
    files = [file for place in places for file in _of_class(place, folder, names.index(place.name))]
    if not files:
        raise InputError(Problem(KEY, str(folder), "holds no images", f"put cut-outs there: {_LAYOUT}"))
    return files


def find_distractors(folder: Path, names: list[str]) -> list[SourceFile]:
    """List the cut-outs of objects that are none of the classes: laid out as for `find_cutouts`, or without folders.

    Raises:
        InputError: There is no such folder, none in it, or a folder that is named as a class of the data.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(Problem(DISTRACTORS_KEY, str(folder), what, f"{DISTRACTORS_KEY}=FOLDER with {_LAYOUT}"))
    places = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    places = [folder, *sorted(path for path in places if path.name not in ("images", "masks"))]
    known = {name.casefold() for name in names}
    clashes = [path.name for path in places[1:] if path.name.casefold() in known]
    if clashes:
        allowed, remedy = (
            "is a class of the data: its objects would have no label",
            "move it to synthetic.annotated_dir",
        )
        raise InputError([Problem(f"{DISTRACTORS_KEY} ({name})", "", allowed, remedy) for name in clashes])
    files = [file for place in places for file in _of_class(place, folder, 0)]
    if not files:
        raise InputError(Problem(DISTRACTORS_KEY, str(folder), "holds no images", f"put cut-outs there: {_LAYOUT}"))
    return files


def _of_class(place: Path, folder: Path, class_id: int) -> Iterator[SourceFile]:
    for path in images_in(place):
        if path.suffix.lower() == ".png":
            yield SourceFile(path.relative_to(folder).as_posix(), path, None, class_id)
    if (place / "images").is_dir():
        for path in images_in(place / "images"):
            candidates = [place / "masks" / f"{path.stem}{ending}" for ending in ("_mask.png", ".png")]
            mask = next((mask for mask in candidates if mask.is_file()), candidates[0])
            yield SourceFile(path.relative_to(folder).as_posix(), path, mask, class_id)


def _prepared(
    files: list[SourceFile],
    notes: dict[str, Any],
    side: int,
    photo: float,
    largest: float,
    limit: int | None,
    setting: str,
) -> Iterator[Image]:
    """Yield the accepted cut-outs, and note which they are, their sizes, and what was wrong with the others."""
    total = 0

    def one(file: SourceFile) -> tuple[Image, float] | str | BadImageError:
        try:
            if file.mask is not None and not file.mask.is_file():
                raise BadImageError(f"has no mask: masks/{file.mask.name} or masks/{file.image.stem}.png")
            image, mask = decode_cutout(file)
            frame = photo if file.mask is None else float(max(mask.shape))
            return _crop(image, mask, side / frame, largest, side)
        except BadImageError as error:
            return error

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(files), _AT_ONCE):
            some = files[start : start + _AT_ONCE]
            for number, (file, result) in enumerate(zip(some, pool.map(one, some), strict=True), start):
                if isinstance(result, BadImageError):
                    notes["bad"][file.name] = str(result)
                elif isinstance(result, str):
                    notes["rejected"][file.name] = result
                else:
                    total += result[0].nbytes
                    if limit is not None and total > limit:
                        allowed = f"its cut-outs need more than {limit / 2**20:,.0f} MiB of memory"
                        remedy = "fewer cut-outs, or a smaller train.imgsz"
                        raise InputError(Problem(setting, f"{len(files)} files", allowed, remedy))
                    notes["used"].append(number)
                    notes["sizes"].append(result[1])
                    yield result[0]


def _crop(image: Image, mask: Image, nominal: float, largest: float, side: int) -> tuple[Image, float] | str:
    """Cut an object out, no larger than it will be needed.

    Args:
        image: (h, w, 3).
        mask: (h, w), 255 or 0.
        nominal: Factor to the object's size in a composed image.
        largest: Largest factor on top of that.
        side: Side of a composed image.

    Returns:
        BGRA pixels and `ObjectBank.size_per_side`, or why the object is not accepted.
    """
    mask = _without_crumbs(mask)
    num_pixels = int(cv2.countNonZero(mask))
    x, y, width, height = cv2.boundingRect(mask)
    if num_pixels < MIN_MASK_PIXELS:
        return f"has fewer than {MIN_MASK_PIXELS} mask pixels"
    if min(width, height) < MIN_SIDE_PX:
        return f"is narrower than {MIN_SIDE_PX} pixels"
    image, mask = image[y : y + height, x : x + width], mask[y : y + height, x : x + width]
    colours = _spread(image, mask)
    shrink = min(1.0, nominal * largest, 1.5 * side / max(width, height))
    if shrink < 1.0:
        size = (max(round(width * shrink), 2), max(round(height * shrink), 2))
        colours = np.asarray(cv2.resize(colours, size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.uint8)
    colours = np.asarray(cv2.copyMakeBorder(colours, *(PAD_PX,) * 4, cv2.BORDER_REPLICATE), np.uint8)
    mask = np.asarray(cv2.copyMakeBorder(mask, *(PAD_PX,) * 4, cv2.BORDER_CONSTANT, value=0), np.uint8)
    return np.dstack([colours, edge_levels(mask)]), nominal / shrink / side


def _without_crumbs(mask: Image) -> Image:
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    if count <= 2:
        return mask
    areas = stats[1:, cv2.CC_STAT_AREA]
    kept = np.concatenate([[False], areas >= CRUMB * areas.max()])
    return np.where(kept[labels], 255, 0).astype(np.uint8)


def _spread(image: Image, mask: Image) -> Image:
    """Give each pixel outside of the mask the colour of the nearest one inside, so that no soft edge shows another."""
    outside = np.where(mask > 0, 0, 255).astype(np.uint8)
    if not outside.any():
        return np.ascontiguousarray(image)
    _, labels = cv2.distanceTransformWithLabels(outside, cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL)
    inside = mask > 0
    colours = np.zeros((int(labels.max()) + 1, 3), np.uint8)
    colours[labels[inside]] = image[inside]
    return np.asarray(colours[labels], np.uint8)
