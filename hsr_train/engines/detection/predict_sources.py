"""What mode=predict works on: the images and videos behind a path, and the names of their results.

Used by `predict.py`; knows nothing of networks.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from hsr_train.data.images import IMAGE_SUFFIXES
from hsr_train.engines.detection.library import bring_up
from hsr_train.errors import InputError, Problem

bring_up()
from ultralytics.data.utils import VID_FORMATS  # noqa: E402

_WRITABLE = frozenset(("bmp", "jpeg", "jpg", "png", "tif", "tiff", "webp"))
"""Image formats that OpenCV writes; results of others are JPEGs."""

_KEY = "data.path"
_REMEDY = "data.path=IMAGE, FOLDER or VIDEO"


@dataclass(frozen=True)
class Item:
    """An image or a video.

    Attributes:
        path: The file.
        name: Its path within the folder that was given, with forward slashes.
        is_video: Whether it is a video.
        annotated: Where its picture with boxes goes, relative to the output folder.
        label: Where its label file goes, relative to the output folder; a video's is a folder with a file per frame.
    """

    path: Path
    name: str
    is_video: bool
    annotated: str
    label: str


@dataclass
class Sources:
    """What was found.

    Attributes:
        items: Images and videos, sorted by name.
        skipped: Number of other files by ending.
        unreadable: Folders that could not be opened, with the reason.
    """

    items: list[Item]
    skipped: dict[str, int] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)


def find_sources(source: Path, output_dir: Path) -> Sources:
    """List the images and videos behind a path.

    A folder is searched with its sub-folders; hidden files, linked folders and `output_dir` are left out.

    Raises:
        InputError: If there is nothing to work on.
    """
    formats = f"an image ({', '.join(sorted(IMAGE_SUFFIXES))}), a video ({', '.join(sorted(VID_FORMATS))}) or a folder"
    if source.is_dir():
        files, skipped, unreadable = _walk(source, output_dir)
        if not files:
            found = ", ".join(f"{count} {kind}" for kind, count in skipped.items()) or "; ".join(unreadable) or "empty"
            raise InputError(
                Problem(_KEY, str(source), f"is a folder without images or videos ({found})", f"{_REMEDY}: {formats}")
            )
        return Sources(_name_results(source, files), skipped, unreadable)
    if not source.exists():
        raise InputError(Problem(_KEY, str(source), "does not exist", _REMEDY))
    if not source.is_file() or _suffix(source.name) not in IMAGE_SUFFIXES | VID_FORMATS:
        raise InputError(Problem(_KEY, str(source), f"is not {formats}", _REMEDY))
    return Sources(_name_results(source.parent, [source.name]))


def _walk(folder: Path, output_dir: Path) -> tuple[list[str], dict[str, int], list[str]]:
    files: list[str] = []
    skipped: Counter[str] = Counter()
    unreadable: list[str] = []
    own = output_dir.resolve()

    def refuse(error: OSError) -> None:
        unreadable.append(f"{error.filename}: cannot be opened: {error.strerror}")

    for root, folders, names in os.walk(folder, onerror=refuse):
        here = Path(root)
        links = [name for name in folders if (here / name).is_symlink()]
        hidden = [name for name in folders if name.startswith(".") and name not in links]
        skipped.update({"linked folders": len(links), "hidden folders": len(hidden)})
        folders[:] = sorted(
            name for name in folders if name not in links and name not in hidden and (here / name).resolve() != own
        )
        for name in sorted(names):
            if name.startswith("."):
                skipped["hidden"] += 1
            elif _suffix(name) in IMAGE_SUFFIXES | VID_FORMATS:
                files.append((here / name).relative_to(folder).as_posix())
            else:
                skipped[f".{_suffix(name)}" if _suffix(name) else "without an ending"] += 1
    return sorted(files), {kind: count for kind, count in sorted(skipped.items()) if count}, unreadable


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower().removeprefix(".")


def _name_results(folder: Path, names: list[str]) -> list[Item]:
    """Give every file names of its own for its results: `a.jpg` and `a.png` must not share `labels/a.txt`."""
    stems = Counter(str(PurePosixPath(name).with_suffix("")) for name in names)
    taken = {f"annotated/{name}" for name in names if _suffix(name) in _WRITABLE}
    items = []
    for name in names:
        stem = str(PurePosixPath(name).with_suffix(""))
        base = stem if stems[stem] == 1 else name
        if _suffix(name) in VID_FORMATS:
            annotated, label = _free(f"annotated/{base}", ".mp4", taken), f"labels/{name}"
            items.append(Item(folder / name, name, True, annotated, label))
        else:
            own = _suffix(name) in _WRITABLE
            annotated = f"annotated/{name}" if own else _free(f"annotated/{base}", ".jpg", taken)
            items.append(Item(folder / name, name, False, annotated, _free(f"labels/{base}", ".txt", taken)))
        taken.update((items[-1].annotated, items[-1].label))
    return items


def _free(base: str, suffix: str, taken: set[str]) -> str:
    name, number = f"{base}{suffix}", 1
    while name in taken:
        number += 1
        name = f"{base}-{number}{suffix}"
    return name
