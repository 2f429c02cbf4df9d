"""The folds of a YOLO set: which images each has, by the index files in `splits/` beside the data.yaml.

A line is what ultralytics reads wherever it is called: `./` and the path from the list's own folder. `yolo` asks which
files a fold consists of; `detection_folds` writes them.
"""

# Paths are plain strings here: pathlib takes several times as long, which counts at 100,000 files.
# ruff: noqa: PTH109, PTH113, PTH118

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hsr_train.config.schema import DataConfig
from hsr_train.data.cache import Known
from hsr_train.data.class_folders import SPLITS_FOLDER, some
from hsr_train.data.description import SPLITS, Description, absolute_path, read_description
from hsr_train.data.detection_set import relative_name
from hsr_train.data.index_files import (
    GONE,
    arguments,
    fold_numbers,
    index_name,
    index_names,
    read_index,
    read_record,
)
from hsr_train.data.listing import Listing
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

_MOST_PROBLEMS = 50


@dataclass
class Fold:
    """The splits of one fold.

    Attributes:
        number: Which; None where only the test set is asked for.
        listings: Its files, by split.
        division: What mode=split recorded.
        warnings: What is odd.
    """

    number: int | None
    listings: dict[str, Listing] = field(default_factory=dict)
    division: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def splits_folder(path: str | Path) -> Path:
    """Return the folder of a set's index files.

    Args:
        path: Its data.yaml, as it was typed.
    """
    return absolute_path(Path.cwd(), str(path)).parent / SPLITS_FOLDER


def index_line(folder: Path, image: str) -> str:
    """Return how an index file in a folder names an image, an absolute path."""
    return "./" + os.path.relpath(image, folder).replace(os.sep, "/")


def list_detection_folds(config: DataConfig) -> list[int]:
    """Return the folds of a divided set, for `data.fold=all`.

    Raises:
        InputError: There are none.
    """
    description = read_description(config.path, Decisions(), need=("train",))
    folder = splits_folder(description.yaml_path)
    _require_own(folder, description.yaml_path)
    if folds := fold_numbers(folder):
        return folds
    raise InputError(_not_divided(folder, description.yaml_path, "train", 0))


def find_fold(description: Description, own: Mapping[str, Listing], fold: int | str, need: Sequence[str]) -> Fold:
    """Find the images of a fold.

    Args:
        description: The set's data.yaml.
        own: The files of the splits that it names; whatever a fold has is among them.
        fold: Which.
        need: Splits that must be there; where train is among them, val and test are wanted, too.

    Raises:
        InputError: The set is not divided, has no such fold, or its index files do not fit its images.
    """
    folder, yaml_path = splits_folder(description.yaml_path), description.yaml_path
    wanted = [split for split in SPLITS if split in need or "train" in need]
    folds, number = fold_numbers(folder), int(fold) if str(fold).isdecimal() else -1
    division = _require_own(folder, yaml_path)
    of_fold = any(split != "test" for split in wanted)
    if of_fold and folds and number not in folds:
        allowed = f"one of {', '.join(map(str, folds))}"
        raise InputError(Problem("data.fold", str(fold), allowed, f"data.fold={folds[0]}"))
    found = Fold(number if of_fold else None, division=division)
    present = {image for listing in own.values() for image in listing.images}
    problems: list[Problem] = []

    def find(line: str) -> tuple[str, str]:
        candidates = [os.path.normpath(os.path.join(base, line)) for base in (folder, description.root)]
        image = next((path for path in candidates if path in present), candidates[0])
        if image in present:
            return image, ""
        return image, f"is in no split of {yaml_path}" if os.path.isfile(image) else GONE

    for split in wanted:
        path = folder / index_name(split, number)
        if path.exists():
            images, faults = read_index(path, find, again=_again(yaml_path, division))
            problems += _first(faults)
            found.listings[split] = Listing(images=sorted(images), folders=_folders(own))
        elif split != "test" or "test" in need:
            problems.append(_not_divided(folder, yaml_path, split, max(number, 0), division))
    if problems:
        raise InputError(problems)
    next(iter(found.listings.values())).bad_lines = [line for listing in own.values() for line in listing.bad_lines]
    if "train" in need:
        named = {image for listing in found.listings.values() for image in listing.images}
        unnamed = {relative_name(description.root, image) for image in present - named}
        added = sorted(unnamed - set(division.get("left_out", ())))
        if added:
            found.warnings.append(
                f"{len(added):,} images of {yaml_path} are in no split, so they are not used: {some(added)}; "
                f"to divide again: {_again(yaml_path, division)}"
            )
    return found


def pool(
    images: Mapping[str, Sequence[str]], known: Mapping[str, Known], warnings: list[str]
) -> tuple[dict[str, list[str]], set[str]]:
    """Put train and val together for dividing; what is in test, too, by path or by content, stays out.

    Args:
        images: Absolute paths by split.
        known: What is in the files.
        warnings: Receives what is odd.

    Returns:
        The images as train and, where there are some, test, each once; and those that stay out.
    """
    listed = [*images.get("train", ()), *images.get("val", ())]
    test = list(dict.fromkeys(images.get("test", ())))
    contents = {known[image].image_hash for image in test}
    merged = sorted(set(listed))
    copies = {image for image in merged if known[image].image_hash in contents} - set(test)
    shared = set(merged) & set(test)
    if copies or shared:
        warnings.append(f"{len(copies | shared):,} images of train and val are test images, too: they are in no fold")
    if len(merged) < len(listed):
        warnings.append(f"{len(listed) - len(merged):,} images are listed more than once; in a fold each counts once")
    return {"train": [i for i in merged if i not in copies | shared]} | ({"test": test} if test else {}), copies


def _folders(own: Mapping[str, Listing]) -> set[str]:
    return set().union(*(listing.folders for listing in own.values()))


def _require_own(folder: Path, yaml_path: Path) -> dict[str, Any]:
    """Return the record of a division, which may be empty.

    Raises:
        InputError: It is damaged or unfinished, or of another set.
    """
    division = read_record(folder)
    if division and division.get("data") != yaml_path.name:
        raise InputError(other_set(folder, yaml_path, division))
    return division


def other_set(folder: Path, yaml_path: Path, division: Mapping[str, Any]) -> Problem:
    """Return the problem of index files that belong to another set."""
    whose = division.get("data", "a set of class folders")
    remedy = f"give {yaml_path.name} a folder of its own, with `path: {yaml_path.parent}` in it"
    return Problem(str(folder), "", f"holds the splits of {whose}, not of {yaml_path.name}", remedy)


def _first(problems: list[Problem]) -> list[Problem]:
    """Return the first problems of an index file and the last, which says what to type."""
    hidden = len(problems) - _MOST_PROBLEMS
    if hidden <= 0:
        return problems
    return [*problems[: _MOST_PROBLEMS - 1], Problem(f"and {hidden:,} more lines", "", "likewise"), problems[-1]]


def _again(yaml_path: Path, division: Mapping[str, Any]) -> str:
    """Return the command that divides the set, with the arguments of last time where they are known."""
    return " ".join([f"mode=split data.path={yaml_path}", *arguments(division, DataConfig())])


def _not_divided(
    folder: Path, yaml_path: Path, split: str, fold: int, division: Mapping[str, Any] | None = None
) -> Problem:
    others = index_names(folder)
    there = f" ({folder} holds {some(others)})" if others else ""
    where = f"{folder / index_name(split, fold)}{there}"
    if split == "test" and others:
        return Problem("data.split", "test", f"the set was divided without a test set{there}", "data.split=val")
    return Problem("Index file not found", "", where, _again(yaml_path, division or {}))
