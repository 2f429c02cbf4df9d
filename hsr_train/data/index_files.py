"""Index files of a divided set: `test.txt`, `fold_<i>_train.txt`, `fold_<i>_val.txt`, and the record `split.json`.

`folds` and `detection_folds` write them, `class_splits` and `detection_splits` read them. A classifier's line is
`raw/<class>/<file>`, relative to the folder that holds the raw folder; a detector's is what ultralytics reads,
`./` and the path from the list's own folder. `split.json` is written twice: first as unfinished, last as complete, so
that a division that was interrupted between two files is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from hsr_train.config.schema import DividedDataConfig
from hsr_train.data.class_folders import is_image, some
from hsr_train.data.division import Flags
from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import write_bytes, write_json

RECORD = "split.json"
GONE = "no such image: it is gone since the splits were made"
_INDEX = re.compile(r"test\.txt|fold_(\d+)_(?:train|val)\.txt")


def index_name(split: str, fold: int) -> str:
    """Return the file name of a split's index; the test set is the same for every fold."""
    return "test.txt" if split == "test" else f"fold_{fold}_{split}.txt"


def index_names(folder: Path) -> list[str]:
    """Return the names of the index files that a folder holds."""
    return sorted(name for name in os.listdir(folder) if _INDEX.fullmatch(name)) if folder.is_dir() else []  # noqa: PTH208


def fold_numbers(folder: Path) -> list[int]:
    """Return the folds that a folder has index files of, in order."""
    return sorted({int(m[1]) for name in index_names(folder) if (m := _INDEX.fullmatch(name)) and m[1]})


def list_fingerprint(names: Iterable[str]) -> str:
    """SHA-256 over file names, in any order."""
    return hashlib.sha256("\n".join(sorted(names)).encode("utf-8", "surrogateescape")).hexdigest()


def read_record(folder: Path) -> dict[str, Any]:
    """Return what `mode=split` recorded; empty for splits that it did not make.

    Raises:
        InputError: The record is damaged, or the division was interrupted.
    """
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        complete = record["complete"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise InputError(Problem(str(path), "", f"cannot be read: {err}", "make the splits again: mode=split")) from err
    if not complete:
        raise InputError(
            Problem(str(folder), "", "mode=split was interrupted here; its files may not fit together",
                    "type its command again")
        )  # fmt: skip
    return dict(record)


def _index_bytes(lines: Iterable[str]) -> bytes:
    """Return the content of an index file; names that are no UTF-8 keep their bytes."""
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def index_contents(names: Sequence[str], test: Flags, vals: Sequence[Flags]) -> dict[str, bytes]:
    """Return the content of each index file; lines are sorted by class, then name, if `names` are."""

    def content(chosen: Flags) -> bytes:
        return _index_bytes(name for name, is_in in zip(names, chosen, strict=True) if is_in)

    files = {index_name("test", 0): content(test)} if test.any() else {}
    for fold, val in enumerate(vals):
        files[index_name("train", fold)] = content(~(test | val))
        files[index_name("val", fold)] = content(val)
    return files


def write_indexes(folder: Path, files: Mapping[str, bytes], record: Mapping[str, Any]) -> None:
    """Replace all index files of a folder; those of an earlier division that are not among them are removed.

    Args:
        folder: Made if need be.
        files: Content by file name.
        record: For `split.json`; says nothing about time or place, so that the same division gives the same bytes.

    Raises:
        RunError: The disk refused.
    """
    write_json(folder / RECORD, {"complete": False})
    for name in set(index_names(folder)) - set(files):
        (folder / name).unlink()
    for name, content in files.items():
        write_bytes(folder / name, content)
    write_json(folder / RECORD, {"complete": True, **record})


def arguments(division: Mapping[str, Any], plain: DividedDataConfig) -> list[str]:
    """Return what was typed to make a division, as far as it is no default.

    Args:
        division: From `read_record`; may be empty.
        plain: The defaults.
    """
    words = []
    for key in ("scheme", "folds", "ratio", "seed", "groups"):
        value = division.get(key)
        if value is not None and value != getattr(plain, key):
            text = json.dumps(value, separators=(",", ":")) if key == "ratio" else str(value)
            words.append(f"'data.{key}=\"{text}\"'" if key == "groups" else f"data.{key}={text}")
    return words


def refuse_foreign(folder: Path) -> None:
    """Refuse to replace index files that were not made here: nobody could make them again.

    Raises:
        InputError: There are such files.
    """
    foreign = index_names(folder)
    if foreign and not (folder / RECORD).exists():
        raise InputError(
            Problem(str(folder), some(foreign), "these index files were not made by mode=split",
                    f"keep them and train, or move the folder away: mv {folder} {folder}-old")
        )  # fmt: skip


def replace_indexes(folder: Path, files: Mapping[str, bytes], record: Mapping[str, Any]) -> str:
    """Replace all index files of a folder as `write_indexes` does, and say how they compare with those before."""
    before = _contents(folder)
    earlier = read_record(folder) if _is_complete(folder) else {}
    write_indexes(folder, files, record)
    if not before:
        return f"Wrote {folder}"
    after = _contents(folder)
    if before == after:
        return f"Wrote {folder}; the same as before"
    gone = sorted(set(before) - set(after))
    what = f" of {earlier['folds']} folds (scheme {earlier['scheme']}, seed {earlier['seed']})" if earlier else ""
    return f"Wrote {folder}; replaced the earlier splits{what}" + (f", removed {some(gone)}" if gone else "")


def _contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in index_names(folder)}


def _is_complete(folder: Path) -> bool:
    try:
        return bool(read_record(folder))
    except InputError:
        return False  # it is replaced


def read_class_index(path: Path, raw_name: str, present: Set[str], *, again: str) -> tuple[list[str], list[Problem]]:
    """Read an index file of a set of classes.

    Args:
        path: Its place.
        raw_name: Name of the folder of class folders.
        present: The images that are there, in the form of the lines.
        again: The command that makes the splits.

    Returns:
        The images that it names, in its order; and what is wrong with it.
    """
    classes = {line.split("/")[1] for line in present}

    def find(line: str) -> tuple[str, str]:
        what = _fault(line, raw_name, classes)
        return line, what or ("" if line in present else GONE)

    return read_index(path, find, again=again)


def read_index(path: Path, find: Callable[[str], tuple[str, str]], *, again: str) -> tuple[list[str], list[Problem]]:
    """Read an index file.

    Args:
        path: Its place.
        find: From a line to its image's name, and what is wrong with the line; empty if nothing is.
        again: The command that makes the splits.

    Returns:
        The images that it names, in its order; and what is wrong with it.
    """
    try:
        text = path.read_bytes().removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return [], [Problem("Index file not found", "", str(path), again)]
    except OSError as err:
        return [], [Problem(str(path), "", f"cannot be read: {err.strerror}")]
    names: dict[str, None] = {}
    problems: list[Problem] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.strip():
            continue
        if "/" not in line:
            line = line.replace("\\", "/")  # written on Windows
        name, what = find(line)
        if name in names and what in ("", GONE):
            what = "is named twice in this file"
        if what:
            problems.append(Problem(f"{path}:{number}", line, what))
        names[name] = None
    if not names:
        problems.append(Problem(str(path), "", "is empty: it names no image", again))
    elif problems:
        problems.append(Problem(path.name, "", "names what is not there, or not in its form", again))
    return list(names), problems


def _fault(line: str, raw_name: str, classes: Set[str]) -> str:
    """Say what is wrong with the form of a line; empty if nothing is."""
    parts = line.split("/")
    form = f"a line is {raw_name}/<class>/<file>"
    if line.startswith(("/", "~")) or re.match(r"[A-Za-z]:[\\/]", line):
        return f"is an absolute path; {form}"
    if len(parts) < 3 or parts[0] != raw_name or any(part in ("", ".", "..") for part in parts):
        return f"is malformed; {form}"
    if parts[1] not in classes:
        return f"{parts[1]} is no class: there is no folder {raw_name}/{parts[1]} with images"
    return "" if is_image(parts[-1]) else "is not an image of a known format"
