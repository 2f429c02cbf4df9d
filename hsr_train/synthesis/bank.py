"""The object bank: cut-outs of every class, decoded, cropped to the object and kept in one shared file.

`sources` and `photos` say what is cut out, `cutting` and `masks` do it; `composer` draws from the bank,
`cutout_sheet` shows it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.errors import InputError, Problem
from hsr_train.synthesis.cutting import (
    CRUMB,
    MIN_MASK_PIXELS,
    MIN_SIDE_PX,
    PAD_PX,
    VERSION,
    Cutout,
    cut_out,
)
from hsr_train.synthesis.files import BadImageError, SourceFile, decode_cutout, fingerprint
from hsr_train.synthesis.masks import cut_objects
from hsr_train.synthesis.photos import Photo, choose_objects
from hsr_train.synthesis.reading import hash_all, read_all, refuse_bad
from hsr_train.synthesis.sources import (
    DISTRACTORS_KEY,
    KEY,
    LAYOUT,
    MASKS_KEY,
    find_cutouts,
    find_distractors,
    find_masks,
)
from hsr_train.synthesis.store import Image, PixelStore, build_store

_RULES = (VERSION, MIN_MASK_PIXELS, MIN_SIDE_PX, CRUMB, PAD_PX)
DISTRACTOR = "distractor"
"""What stands for the class of objects without one."""
_MOST_NAMED = 1000
"""Names of objects left out that are kept; they are counted all."""
_PER_CLASS_KEY = "synthetic.cutouts_per_class"
_ASKED_BY = {"polygons": "data.path", "grabcut": "synthetic.masks", "masks_dir": MASKS_KEY}

_Found = tuple[str, int, Cutout | str | BadImageError]
"""Name, class id and what came of it: a cut-out, why it is not accepted, or why its file cannot be used."""


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
        files: Every file that was read besides the training set's own, the unusable ones too.
        fingerprint: SHA-256 over the files.
        rejected: What was left out, with the reason: files of a folder, objects of training images (the first 1,000).
        source: annotated_dir, polygons, grabcut or masks_dir.
        left_out: How many were left out, by reason.
    """

    pixels: PixelStore
    classes: npt.NDArray[np.int64]
    size_per_side: npt.NDArray[np.float64]
    names: list[str]
    files: list[SourceFile]
    fingerprint: str
    rejected: dict[str, str]
    source: str = "annotated_dir"
    left_out: dict[str, int] = field(default_factory=dict)

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
        hash_all(files)
        photo = float(photo_side or side)

        def one(file: SourceFile) -> Cutout | str:
            if file.mask is not None and not file.mask.is_file():
                raise BadImageError(f"has no mask: masks/{file.mask.name} or masks/{file.image.stem}.png")
            image, mask = decode_cutout(file)
            frame = photo if file.mask is None else float(max(mask.shape))
            return cut_out(image, mask, frame, side, largest_scale)

        def all_of_them() -> Iterator[_Found]:
            for file, result in read_all(files, one, "Reading cut-outs"):
                yield file.name, file.class_id, result

        key = fingerprint(files, *_RULES, side, photo, largest_scale)
        too_large = Problem(setting, f"{len(files)} files", "", "fewer cut-outs, or a smaller train.imgsz")
        pixels, notes = build_store(
            Path(cache_dir) / "synthesis", key[:32], partial(_gathered, all_of_them, {}, limit_bytes, too_large)
        )
        bad: dict[str, str] = notes["bad"]
        refuse_bad(setting, str(folder), bad, len(files), skip_bad=skip_bad, some_left=len(bad) < len(files))
        rejected = bad | notes["rejected"]
        if not notes["classes"]:
            _refuse_empty(setting, str(folder), Counter(rejected.values()), f"put some there: {LAYOUT}")
        names = [DISTRACTOR] if distractors else names
        return cls._of(pixels, notes, names, files, rejected, "annotated_dir", Counter(rejected.values()))

    @classmethod
    def from_photos(
        cls,
        photos: Sequence[Photo],
        names: Sequence[str],
        masks: str,
        *,
        masks_dir: Path | str | None = None,
        per_class: int = 500,
        cache_dir: Path | str,
        side: int = 640,
        largest_scale: float = 1.5,
        skip_bad: bool = False,
        limit_bytes: int | None = None,
    ) -> ObjectBank:
        """Cut objects out of training images; what is cut off at an image's border is left out.

        Args:
            photos: The training images with their labels.
            names: Class names of the data; the index is the class id.
            masks: What tells an object from its surroundings: polygons, grabcut or masks_dir.
            masks_dir: The folder of masks, see `find_masks`.
            per_class: Most objects of a class that are tried.
            cache_dir: Where the decoded bank is kept.
            side: Side of composed images in pixels; objects are kept no larger than they are needed there.
            largest_scale: Largest factor by which an object is enlarged.
            skip_bad: Leave photos with an unusable mask out instead of refusing all.
            limit_bytes: Largest allowed bank.

        Raises:
            InputError: With every unusable mask, or because nothing can be used.
        """
        files = find_masks(Path(masks_dir), photos) if masks_dir is not None else []
        hash_all(files)
        chosen, left_out = choose_objects(photos, masks, len(names), per_class)
        work = [(photo, numbers) for photo, numbers in zip(photos, chosen, strict=True) if numbers]

        def one(item: tuple[Photo, list[int]]) -> list[tuple[int, Cutout | str]]:
            return cut_objects(*item, masks, side=side, largest_scale=largest_scale)

        def all_of_them() -> Iterator[_Found]:
            for (photo, _), results in read_all(work, one, "Cutting out objects"):
                if isinstance(results, BadImageError):
                    yield photo.name, -1, results
                    continue
                for number, result in results:
                    yield photo.object_name(number), int(photo.labels[number, 0]), result

        library = cv2.__version__ if masks == "grabcut" else ""
        words = [*(photo.content() for photo in photos), masks, library, per_class, *_RULES, side, largest_scale]
        key = hashlib.sha256(repr(words).encode()).hexdigest()
        asked, given = _ASKED_BY[masks], str(masks_dir or masks)
        remedy = f"{_PER_CLASS_KEY}={max(per_class // 4, 1)}, or a smaller train.imgsz"
        too_large = Problem(_PER_CLASS_KEY, str(per_class), "", remedy)
        pixels, notes = build_store(
            Path(cache_dir) / "synthesis", key[:32], partial(_gathered, all_of_them, left_out, limit_bytes, too_large)
        )
        bad: dict[str, str] = notes["bad"]
        refuse_bad(asked, given, bad, len(work), skip_bad=skip_bad, some_left=len(bad) < len(work))
        counts = Counter(notes["left_out"]) + Counter(bad.values())
        if not notes["classes"]:
            _refuse_empty(asked, given, counts, "synthetic.annotated_dir=FOLDER, or synthetic.enabled=false")
        return cls._of(pixels, notes, names, files, bad | notes["rejected"], masks, counts)

    @classmethod
    def _of(
        cls,
        pixels: PixelStore,
        notes: dict[str, Any],
        names: Sequence[str],
        files: list[SourceFile],
        rejected: dict[str, str],
        source: str,
        left_out: Counter[str],
    ) -> ObjectBank:
        classes, sizes = np.array(notes["classes"], np.int64), np.array(notes["sizes"])
        print_of, counts = fingerprint(files), dict(left_out.most_common())
        return cls(pixels, classes, sizes, list(names), files, print_of, rejected, source, counts)

    @property
    def sizes(self) -> npt.NDArray[np.float64]:
        """(n,) size that each object had in its photo: square root of its box's area, in longest sides of the photo."""
        inner = np.array([shape[:2] for shape in self.pixels.shapes], np.float64) - 2 * PAD_PX
        return np.asarray(np.sqrt(inner.prod(axis=1)) * self.size_per_side)

    @property
    def counts(self) -> dict[str, int]:
        """Cut-outs by class, for the classes that have any."""
        return {self.names[i]: n for i, n in enumerate(np.bincount(self.classes).tolist()) if n}


def _refuse_empty(key: str, given: str, reasons: Counter[str], remedy: str) -> None:
    told = "; ".join(f"{count} x {why}" for why, count in reasons.most_common(5)) or "no objects"
    raise InputError(Problem(key, given, f"gives no usable cut-out: {told}", remedy))


def _gathered(
    found: Callable[[], Iterator[_Found]], left_out: dict[str, str], limit_bytes: int | None, too_large: Problem
) -> tuple[Iterator[Image], dict[str, Any]]:
    """Return the accepted cut-outs, and notes of their classes, their sizes, and what was wrong with the others."""
    notes: dict[str, Any] = {"classes": [], "sizes": [], "bad": {}, "rejected": {}, "left_out": {}}

    def leave_out(name: str, why: str) -> None:
        notes["left_out"][why] = notes["left_out"].get(why, 0) + 1
        if len(notes["rejected"]) < _MOST_NAMED:
            notes["rejected"][name] = why

    def images() -> Iterator[Image]:
        total = 0
        for name, why in left_out.items():
            leave_out(name, why)
        for name, class_id, result in found():
            if isinstance(result, BadImageError):
                notes["bad"][name] = str(result)
            elif isinstance(result, str):
                leave_out(name, result)
            else:
                total += result.pixels.nbytes
                if limit_bytes is not None and total > limit_bytes:
                    allowed = f"its cut-outs need more than {limit_bytes / 2**20:,.0f} MiB of memory"
                    raise InputError(Problem(too_large.key, too_large.value, allowed, too_large.remedy))
                notes["classes"].append(class_id)
                notes["sizes"].append(result.size_per_side)
                yield result.pixels

    return images(), notes
