"""Which files a split consists of: folders and list files become images, and each image gets its label file.

Between `description` (what data.yaml says) and `files` (which reads them). Only names are looked at here. As `yolo`
does, a folder is searched with its subfolders, hidden files are left out, and the label of `…/images/a/b.jpg` is
`…/labels/a/b.txt`; without a folder named `images` the label lies beside its image.
"""

# Paths are plain strings here: pathlib takes several times as long, which counts at 100,000 files.
# ruff: noqa: PTH110, PTH112, PTH113, PTH114, PTH118, PTH120, PTH208

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hsr_train.data.description import absolute_path
from hsr_train.data.images import IMAGE_SUFFIXES
from hsr_train.data.labels import LabelRules, parse_labels
from hsr_train.errors import Problem

_IMAGES, _LABELS = f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}"
_MOST_NAMES = 10
_CLASS_LIST = "classes.txt"
"""Labelling tools leave this list of class names among the labels."""


@dataclass
class Listing:
    """The files of one split.

    Attributes:
        images: Absolute paths, sorted; a path that a list file repeats is repeated.
        folders: The folders that the split names.
        missing: Entries that do not exist or cannot be read; nothing can go on without them.
        bad_lines: Lines of list files that lead to no image.
    """

    images: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    missing: list[Problem] = field(default_factory=list)
    bad_lines: list[Problem] = field(default_factory=list)


def list_split(split: str, entries: Iterable[Path], root: Path) -> Listing:
    """Find the images of a split.

    Args:
        split: train, val or test; for messages.
        entries: Its folders and list files, absolute.
        root: The set's root: relative lines of a list file may be meant from here, too.
    """
    listing = Listing()
    for entry in entries:
        if os.path.isdir(entry):
            folder = _with_labels(str(entry))
            listing.folders.add(folder)
            listing.images += _walk(split, folder, listing.missing)
        elif not os.path.exists(entry):
            listing.missing.append(
                Problem(f"data.path ({split})", str(entry), "no such folder or list file",
                        f"correct `{split}:` or `path:` in the data.yaml; {_holds(root)}")
            )  # fmt: skip
        elif _is_image(entry.name):
            listing.missing.append(
                Problem(f"data.path ({split})", str(entry), "is one image; a folder or a list file (.txt) is needed")
            )
        else:
            _read_list(split, entry, root, listing)
    listing.images.sort()
    return listing


def label_path(image: str) -> str:
    """Return where the label file of an image lies (whether or not it exists)."""
    head, images, tail = image.rpartition(_IMAGES)
    return f"{head}{_LABELS if images else ''}{tail}".rpartition(".")[0] + ".txt"


def orphan_labels(listings: Iterable[Listing], lists: Iterable[Path], rules: LabelRules) -> list[str]:
    """Return the label files that no image of their folder belongs to, sorted.

    Args:
        listings: The set's splits; the label folders of their folders and images are searched.
        lists: List files, which are no labels.
        rules: How to tell labels from other text files where both lie beside the images.
    """
    image_folders: dict[str, str] = {}
    for listing in listings:
        for folder in {image.rpartition(os.sep)[0] for image in listing.images}:
            image_folders[_label_folder(folder)] = folder
        for folder in listing.folders:
            top = _label_folder(folder)
            for sub, _, _ in os.walk(top):
                image_folders.setdefault(sub, folder + sub[len(top) :])
    known_lists = set(map(str, lists))
    orphans = []
    for labels, folder in image_folders.items():
        stems = {name.rpartition(".")[0] for name in _names(folder) if _is_image(name)}
        for name in _names(labels):
            if name[:-4] in stems or not name.endswith(".txt") or name == _CLASS_LIST:
                continue
            path = os.path.join(labels, name)
            if path not in known_lists and (labels != folder or _holds_labels(path, rules)):
                orphans.append(path)
    return sorted(orphans)


def _label_folder(folder: str) -> str:
    return os.path.dirname(label_path(os.path.join(folder, "x.jpg")))


def _holds(root: Path) -> str:
    """Tell what lies where an entry was looked for."""
    names = sorted(_names(str(root)))
    return f"{root} holds {', '.join(names[:_MOST_NAMES])}" + (" ..." if len(names) > _MOST_NAMES else "")


def _names(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError:
        return []  # No label folder: every image is a background, which the counts show.


def _holds_labels(path: str, rules: LabelRules) -> bool:
    try:
        labels = parse_labels(Path(path).read_bytes(), rules)
    except OSError:
        return False
    return bool(len(labels.boxes)) and not labels.faults


def _is_image(name: str) -> bool:
    return name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def _with_labels(folder: str) -> str:
    """Return the folder, or what it links to if only there the labels are found (as `yolo` would find them)."""
    real = os.path.realpath(folder)
    if real == folder or os.path.isdir(_label_folder(folder)) or not os.path.isdir(_label_folder(real)):
        return folder
    return real


def _walk(split: str, folder: str, missing: list[Problem]) -> Iterator[str]:
    """Yield the images of a folder and its subfolders; links are followed, but never back into a folder above."""

    def unreadable(err: OSError) -> None:
        missing.append(Problem(f"data.path ({split})", str(err.filename), f"cannot be listed: {err.strerror}"))

    for parent, subs, names in os.walk(folder, followlinks=True, onerror=unreadable):
        above = os.path.realpath(parent)
        subs[:] = [sub for sub in subs if not sub.startswith(".") and not _leads_up(os.path.join(parent, sub), above)]
        for name in names:
            if not name.startswith(".") and _is_image(name):
                yield os.path.join(parent, name)


def _leads_up(path: str, parent: str) -> bool:
    """Say whether a link leads to a folder that holds it, which would go round for ever."""
    return os.path.islink(path) and f"{parent}{os.sep}".startswith(os.path.join(os.path.realpath(path), ""))


def _read_list(split: str, path: Path, root: Path, listing: Listing) -> None:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        what = err.strerror if isinstance(err, OSError) else "it is not UTF-8 text"
        listing.missing.append(Problem(f"data.path ({split})", str(path), f"the list cannot be read: {what}"))
        return
    bases = [path.parent, root]
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text:
            continue
        candidates = [str(absolute_path(base, text)) for base in bases]
        image = next((c for c in candidates if os.path.isfile(c)), None)
        if image is None:
            looked = " and ".join(dict.fromkeys(candidates))
            listing.bad_lines.append(Problem(f"{path}:{number}", text, f"no such image (looked for {looked})"))
        elif not _is_image(image):
            listing.bad_lines.append(Problem(f"{path}:{number}", text, "is not an image of a known format"))
        else:
            listing.images.append(image)
