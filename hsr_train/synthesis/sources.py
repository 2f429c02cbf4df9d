"""Which files cut-outs come from: a folder by class, or a folder of masks of training images."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from hsr_train.errors import InputError, Problem
from hsr_train.synthesis.files import SourceFile, images_in
from hsr_train.synthesis.photos import Photo

KEY = "synthetic.annotated_dir"
DISTRACTORS_KEY = "synthetic.distractors_dir"
MASKS_KEY = "synthetic.masks_dir"
LAYOUT = "CLASS/images/* with CLASS/masks/<stem>_mask.png, or CLASS/*.png with alpha"
MASKS_LAYOUT = "<stem>.png or <stem>_mask.png for all objects of a training image, or <stem>_<n>.png for each"
_ONE_OBJECT = re.compile(r"(.+)_\d+")


def find_cutouts(folder: Path, names: list[str]) -> list[SourceFile]:
    """List the cut-outs of a folder: `CLASS/images/*` with their masks, and `CLASS/*.png` with alpha.

    Raises:
        InputError: There is no such folder, none of a class, or one of no class of the data.
    """
    _must_be_folder(folder, KEY, LAYOUT)
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
        beside = len(images_in(folder))
        holds = f"holds no class folder; {beside} images lie beside" if beside and not places else "holds no images"
        raise InputError(Problem(KEY, str(folder), holds, f"put cut-outs there: {LAYOUT}"))
    return files


def find_distractors(folder: Path, names: list[str]) -> list[SourceFile]:
    """List the cut-outs of objects that are none of the classes: laid out as for `find_cutouts`, or without folders.

    Raises:
        InputError: There is no such folder, none in it, or a folder that is named as a class of the data.
    """
    _must_be_folder(folder, DISTRACTORS_KEY, LAYOUT)
    places = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    places = [folder, *sorted(path for path in places if path.name not in ("images", "masks"))]
    known = {name.casefold() for name in names}
    clashes = [path.name for path in places[1:] if path.name.casefold() in known]
    if clashes:
        allowed, remedy = "is a class of the data: its objects would have no label", f"move it to {KEY}"
        raise InputError([Problem(f"{DISTRACTORS_KEY} ({name})", "", allowed, remedy) for name in clashes])
    files = [file for place in places for file in _of_class(place, folder, 0)]
    if not files:
        raise InputError(Problem(DISTRACTORS_KEY, str(folder), "holds no images", f"put cut-outs there: {LAYOUT}"))
    return files


def find_masks(folder: Path, photos: Sequence[Photo]) -> list[SourceFile]:
    """Give each photo the masks that bear its name, and return them all. A photo may have none.

    Raises:
        InputError: There is no such folder, no mask of any photo, or photos with masks share a name.
    """
    _must_be_folder(folder, MASKS_KEY, MASKS_LAYOUT)
    by_stem = {photo.image.stem: photo for photo in photos}
    shared = {stem for stem, count in Counter(photo.image.stem for photo in photos).items() if count > 1}
    own = {photo.image.resolve() for photo in photos}
    found: list[SourceFile] = []
    unclear: list[str] = []
    for path in images_in(folder):
        stem, numbered = path.stem, _ONE_OBJECT.fullmatch(path.stem)
        is_whole = True
        if stem not in by_stem:
            if stem.endswith("_mask"):
                stem = stem.removesuffix("_mask")
            elif numbered is not None:
                stem, is_whole = numbered[1], False
        if stem not in by_stem or path.resolve() in own:
            continue
        if stem in shared:
            unclear.append(path.name)
            continue
        file = SourceFile(path.name, path)
        found.append(file)
        (by_stem[stem].whole_masks if is_whole else by_stem[stem].object_masks).append(file)
    if unclear:
        allowed = f"{len(unclear)} masks fit several training images of the same name: {', '.join(unclear[:5])}"
        raise InputError(Problem(MASKS_KEY, str(folder), allowed, "give the images names of their own"))
    if not found:
        example = photos[0].image.stem if photos else "photo"
        allowed = f"holds no mask of a training image, such as {example}.png"
        raise InputError(Problem(MASKS_KEY, str(folder), allowed, f"put masks there: {MASKS_LAYOUT}"))
    return found


def _must_be_folder(folder: Path, key: str, layout: str) -> None:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(Problem(key, str(folder), what, f"{key}=FOLDER with {layout}"))


def _of_class(place: Path, folder: Path, class_id: int) -> Iterator[SourceFile]:
    for path in images_in(place):
        if path.suffix.lower() == ".png":
            yield SourceFile(path.relative_to(folder).as_posix(), path, None, class_id)
    if (place / "images").is_dir():
        for path in images_in(place / "images"):
            candidates = [place / "masks" / f"{path.stem}{ending}" for ending in ("_mask.png", ".png")]
            mask = next((mask for mask in candidates if mask.is_file()), candidates[0])
            yield SourceFile(path.relative_to(folder).as_posix(), path, mask, class_id)
