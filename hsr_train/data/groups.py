"""`data.groups`: which images belong together, so that no recording straddles two splits.

Three ways to say it: `level:N`, the path of the first N folders below the class (of a YOLO set: below the folder that
data.yaml names); `pattern:REGEX`, its first parenthesis on the file's name; or a CSV file with the columns file and
group. The same name is the same group in every class and folder. Called by `folds` and `detection_folds`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hsr_train.data.class_folders import some
from hsr_train.data.description import absolute_path
from hsr_train.errors import InputError, Problem

_KEY = "data.groups"
_FORMS = "level:N, pattern:REGEX, or a CSV file with the columns file and group"


@dataclass(frozen=True)
class Naming:
    """How messages speak of a set's files.

    Attributes:
        top: Below what the levels are counted.
        file: What the CSV's column holds.
    """

    top: str
    file: str


def find_groups(
    spec: str, files: Sequence[str], folders: Sequence[Sequence[str]], naming: Naming
) -> tuple[list[str | None], list[str]]:
    """Return the group of each image.

    Args:
        spec: What was typed.
        files: Names of the images, with slashes, as the CSV has them.
        folders: For each image the folders that it lies in, from the one that is level 1.
        naming: For messages.

    Returns:
        For each image its group's name, None for an image that is one of its own; and lines about what is odd.

    Raises:
        InputError: The text means nothing, or names no group of any image.
    """
    kind, _, rest = spec.partition(":")
    notes: list[str] = []
    if kind == "level":
        groups = _by_level(rest, folders)
        what = f"lie in fewer than {rest} folders below {naming.top}"
    elif kind == "pattern":
        groups = _by_pattern(rest, files)
        what = f"do not match {rest}"
    else:
        groups, notes = _by_table(spec, files, naming)
        what = "have no row"
    alone = [file for file, group in zip(files, groups, strict=True) if group is None]
    if len(alone) == len(files):
        raise InputError(Problem(_KEY, spec, f"finds no group: all {len(files):,} images {what}", _FORMS))
    if alone:
        notes.append(f"{len(alone):,} images {what}; each is a group of its own: {some(alone)}")
    return groups, notes


def join_copies(hashes: Sequence[str], groups: Sequence[str | None]) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Number what stays together: exact copies, and groups; a chain of both is one unit.

    Args:
        hashes: Content hash of each image.
        groups: From `find_groups`; None for an image that is in none.

    Returns:
        (n,) number of each image's unit, from 0; and a line about copies, if there are any.
    """
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def top(node: tuple[str, str]) -> tuple[str, str]:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]
            node = parent[node]
        return node

    for content, group in zip(hashes, groups, strict=True):
        if group is not None:
            parent[top(("content", content))] = top(("group", group))
    numbers: dict[tuple[str, str], int] = {}
    of = [numbers.setdefault(top(("content", content)), len(numbers)) for content in hashes]
    copies = len(hashes) - len(set(hashes))
    notes = [f"{copies:,} images are exact copies of others; copies stay in one split"] if copies else []
    return np.array(of, np.int64), notes


def _by_level(text: str, folders: Sequence[Sequence[str]]) -> list[str | None]:
    if not text.isdecimal() or not int(text):
        raise InputError(Problem(_KEY, f"level:{text}", "level:N needs a number from 1", "data.groups=level:1"))
    return ["/".join(parts[: int(text)]) if len(parts) >= int(text) else None for parts in folders]


def _by_pattern(text: str, files: Sequence[str]) -> list[str | None]:
    try:
        pattern = re.compile(text)
    except re.error as err:
        raise InputError(Problem(_KEY, f"pattern:{text}", f"is no regular expression: {err}", _FORMS)) from err
    if not pattern.groups:
        raise InputError(
            Problem(
                _KEY,
                f"pattern:{text}",
                "has no parentheses around what names the group",
                r"""'data.groups="pattern:^(\w+)_\d+"'""",
            )
        )
    matches = (pattern.search(file.rpartition("/")[2]) for file in files)
    return [match[1] if match else None for match in matches]


def _by_table(text: str, files: Sequence[str], naming: Naming) -> tuple[list[str | None], list[str]]:
    path = absolute_path(Path.cwd(), text)
    if not path.is_file():
        raise InputError(Problem(_KEY, text, "no such file", _FORMS))
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = set(reader.fieldnames or ())
            rows = [(row.get("file"), row.get("group")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise InputError(Problem(_KEY, text, f"cannot be read: {err}", _FORMS)) from err
    if missing := {"file", "group"} - columns:
        what = f"has no column {' and no column '.join(sorted(missing))}"
        raise InputError(Problem(_KEY, text, what, "its first line: file,group"))
    table: dict[str, str] = {}
    problems = []
    for number, (name, group) in enumerate(rows, 2):
        if not name or not group:
            problems.append(Problem(f"{path}:{number}", str(name or ""), "a row has a file and a group"))
        elif table.setdefault(name.replace("\\", "/"), group) != group:
            problems.append(Problem(f"{path}:{number}", name, f"is in group {table[name]} already"))
    if absent := [file for file in files if file not in table]:
        problems.append(
            Problem(_KEY, text, f"has no row for {len(absent):,} of {len(files):,} images: {some(absent)}",
                    f"a row for each image; file is {naming.file}")
        )  # fmt: skip
    if problems:
        raise InputError(problems)
    extra = sorted(set(table) - set(files))
    notes = [f"{len(extra):,} rows of {path.name} name no image of the set: {some(extra)}"] if extra else []
    return [table[file] for file in files], notes
