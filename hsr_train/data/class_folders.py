"""Which images a classification set consists of: the folders of their classes, in three layouts.

Only names are looked at here; `class_set` and `folds` call it. The layouts:

* `data.path=DIR` with train/<class>/ and val/<class>/, perhaps test/<class>/;
* `data.path=DIR` with raw/<class>/ and splits/;
* `data.raw=DIR` with <class>/, whose splits lie in splits/ beside it.

Class ids come from the sorted class folders of the whole set, so they are the same in every split and fold. What lies
in splits/ is the business of `index_files`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data.description import absolute_path
from hsr_train.data.images import IMAGE_SUFFIXES
from hsr_train.errors import InputError, Problem

SPLITS = ("train", "val", "test")
DEMO = "demo"
RAW, SPLITS_FOLDER = "raw", "splits"
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini", "__macosx")
_SPLIT_NAMES = {"train", "val", "test", "valid", "validation", "training", "testing"}
_MOST_NAMES = 10


@dataclass(frozen=True)
class Layout:
    """Where a set lies.

    Attributes:
        path: What was typed, absolute.
        root: What image names are relative to.
        raw: The folder of class folders; None where each split has a folder of its own.
        name: For run names.
    """

    path: Path
    root: Path
    raw: Path | None
    name: str

    @property
    def splits(self) -> Path:
        """The folder of index files, where `raw` is one."""
        return self.root / SPLITS_FOLDER


@dataclass
class ClassFolders:
    """What a folder of class folders holds.

    Attributes:
        folder: Absolute.
        images: By class, sorted: the images' names relative to `folder`, with slashes, sorted.
        strangers: Files in class folders that are no images, named likewise.
        loose: Images that lie beside the class folders.
        unreadable: Folders that cannot be listed.
    """

    folder: Path
    images: dict[str, list[str]] = field(default_factory=dict)
    strangers: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)
    unreadable: list[Problem] = field(default_factory=list)


def find_layout(config: ClassifyDataConfig) -> Layout:
    """Find out which layout was typed; the built-in set is no folder and not known here.

    Raises:
        InputError: It is none, with what to type instead.
    """
    if config.raw is not None:
        if config.path != DEMO:
            both = Problem("data.raw", config.raw, f"data.path={config.path} names a set, too", "type one of the two")
            raise InputError(both)
        raw = _existing("data.raw", config.raw)
        if _is_divided(raw):
            divided = Problem("data.raw", str(raw), "is divided already: it holds train and val", f"data.path={raw}")
            raise InputError(divided)
        return Layout(raw, raw.parent, raw, config.name or _name_of(raw))
    path = _existing("data.path", config.path)
    name = config.name or path.name
    if (path / RAW).is_dir():
        return Layout(path, path, path / RAW, name)
    if (path / "train").is_dir() or (path / "val").is_dir():
        return Layout(path, path, None, name)
    raise InputError(_no_layout(path))


def list_classes(folder: Path) -> ClassFolders:
    """Find the images of each class folder and its subfolders; hidden and system files do not count."""
    found = ClassFolders(folder)
    for name in sorted(_names(folder, found.unreadable)):
        if (folder / name).is_dir():
            images = found.images.setdefault(name, [])
            for file in sorted(_walk(folder, name, found.unreadable)):
                (images if is_image(file) else found.strangers).append(file)
        elif is_image(name):
            found.loose.append(name)
    return found


def class_problems(found: ClassFolders, key: str, *, complete: bool = True) -> list[Problem]:
    """Return what is wrong with the classes of a folder: none, one, an empty one, images without a class.

    Args:
        found: From `list_classes`.
        key: Which key named the folder, for messages.
        complete: Whether the folder must have every class; val and test may lack some.
    """
    problems = list(found.unreadable)
    folder = str(found.folder)
    if found.loose:
        problems.append(
            Problem(key, folder, f"holds {len(found.loose):,} images beside the class folders: {some(found.loose)}",
                    "put each image into the folder of its class")
        )  # fmt: skip
    if not complete:
        return problems
    empty = [name for name, images in found.images.items() if not images]
    if len(empty) == 1:
        problems.append(
            Problem(f"{folder}{os.sep}{empty[0]}", "", "is a class without an image", "put images there, or remove it")
        )
    elif empty:
        allowed = f"holds {len(empty)} classes without an image: {some(empty, _MOST_NAMES)}"
        problems.append(Problem(key, folder, allowed, "put images there, or remove these folders"))
    if not found.images and not found.loose:
        problems.append(Problem(key, folder, "has no class folder", "one folder for each class, with its images"))
    elif len(found.images) == 1:
        ((name, images),) = found.images.items()
        inner = sorted({file.split("/")[1] for file in images if file.count("/") >= 2})
        wrapped = len(inner) > 1 and all(file.count("/") >= 2 for file in images)
        remedy = f"are its folders the classes? then {key.split()[0]}={found.folder / name}" if wrapped else (
            "one folder for each class; a classifier needs at least two"
        )  # fmt: skip
        problems.append(Problem(key, folder, f"has only one class: {name}", remedy))
    return problems


def stranger_problems(found: ClassFolders, root: Path) -> list[Problem]:
    """Return one problem for each file in a class folder that is no image; named relative to `root`."""
    folder = os.path.relpath(found.folder, root)
    return [
        Problem(
            file if folder == "." else f"{folder}/{file}", "", f"is not an image ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
        for file in found.strangers
    ]


def is_image(name: str) -> bool:
    """Say whether a file's name ends like an image's."""
    return "." in name and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES


def some(items: Iterable[str], most: int = 3) -> str:
    """Return the first few names for a message; bytes that are no UTF-8 are replaced."""
    names = [os.fsencode(item).decode("utf-8", "replace") for item in items]
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")


def _existing(key: str, text: str) -> Path:
    """Return the absolute path of a folder that was typed."""
    path = absolute_path(Path.cwd(), text)
    if path.is_dir():
        return path
    if path.exists():
        raise InputError(Problem(key, text, "is a file", f"{key}={path.parent}, or the folder that holds the classes"))
    beside = sorted(n for n in _names(path.parent, []) if (path.parent / n).is_dir()) if path.parent.is_dir() else []
    where = f"{path.parent} holds {some(beside, _MOST_NAMES)}" if beside else f"looked for {path}"
    raise InputError(Problem(key, text, "no such folder", where))


def _no_layout(path: Path) -> Problem:
    """Return the problem of a folder that is none of the layouts."""
    names = sorted(_names(path, []))
    folders = [name for name in names if (path / name).is_dir()]
    if folders == [SPLITS_FOLDER]:
        return Problem("data.path", str(path), "holds splits/ and no raw/", "put the class folders into raw/")
    if wrong := [name for name in folders if name.lower() in _SPLIT_NAMES]:
        return Problem("data.path", str(path), f"holds {some(wrong)}", "rename these folders to train, val and test")
    if folders:
        return Problem(
            "data.path", str(path), f"holds neither train/ and val/ nor raw/ and splits/, but {some(folders)}",
            f"are these the classes? mode=split task=classify data.raw={path}, then task=classify data.raw={path}",
        )  # fmt: skip
    what = "images without class folders" if any(map(is_image, names)) else "no folder"
    return Problem("data.path", str(path), f"holds {what}", "train/<class> and val/<class>, or raw/<class> and splits/")


def _is_divided(raw: Path) -> bool:
    """Say whether a folder holds splits instead of classes."""
    folders = {name.lower() for name in _names(raw, []) if (raw / name).is_dir()}
    return "train" in folders and len(folders) > 1 and folders <= _SPLIT_NAMES


def _name_of(raw: Path) -> str:
    return raw.parent.name if raw.name in (RAW, "train") else raw.name


def _names(folder: Path, unreadable: list[Problem]) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not _is_hidden(name)]  # noqa: PTH208 (names are wanted)
    except OSError as err:
        unreadable.append(Problem(str(folder), "", f"cannot be listed: {err.strerror}"))
        return []


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _OF_THE_SYSTEM


def _walk(folder: Path, class_name: str, unreadable: list[Problem]) -> Iterable[str]:
    """Yield the files of a class, named relative to `folder`; links are followed, but never back into one above."""

    def refuse(err: OSError) -> None:
        unreadable.append(Problem(str(err.filename), "", f"cannot be listed: {err.strerror}"))

    start = os.path.join(folder, class_name)  # noqa: PTH118
    cut = len(os.path.join(folder, ""))  # noqa: PTH118
    for parent, subs, names in os.walk(start, followlinks=True, onerror=refuse):
        above = f"{os.path.realpath(parent)}{os.sep}"
        subs[:] = [
            sub
            for sub in subs
            if not _is_hidden(sub) and not above.startswith(f"{os.path.realpath(f'{parent}{os.sep}{sub}')}{os.sep}")
        ]
        prefix = parent[cut:].replace(os.sep, "/")
        yield from (f"{prefix}/{name}" for name in names if not _is_hidden(name))
