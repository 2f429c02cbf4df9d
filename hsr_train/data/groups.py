"""`data.groups`: which images belong together, so that no recording straddles two splits.

Three ways to say it: `level:N`, the path of the first N folders below the class; `pattern:REGEX`, its first
parenthesis on the file's name; or a CSV file with the columns file and group, file relative to the raw folder. The
same name is the same group in every class. Called by `folds`.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from hsr_train.data.class_folders import some
from hsr_train.data.description import absolute_path
from hsr_train.errors import InputError, Problem

_KEY = "data.groups"
_FORMS = "level:N, pattern:REGEX, or a CSV file with the columns file and group"


def find_groups(spec: str, files: Sequence[str]) -> tuple[list[str | None], list[str]]:
    """Return the group of each image.

    Args:
        spec: What was typed.
        files: Images, `<class>/<file>` relative to the raw folder.

    Returns:
        For each image its group's name, None for an image that is one of its own; and lines about what is odd.

    Raises:
        InputError: The text means nothing, or names no group of any image.
    """
    kind, _, rest = spec.partition(":")
    notes: list[str] = []
    if kind == "level":
        groups = _by_level(rest, files)
        what = f"lie in fewer than {rest} folders below their class"
    elif kind == "pattern":
        groups = _by_pattern(rest, files)
        what = f"do not match {rest}"
    else:
        groups, notes = _by_table(spec, files)
        what = "have no row"
    alone = [file for file, group in zip(files, groups, strict=True) if group is None]
    if len(alone) == len(files):
        raise InputError(Problem(_KEY, spec, f"finds no group: all {len(files):,} images {what}", _FORMS))
    if alone:
        notes.append(f"{len(alone):,} images {what}; each is a group of its own: {some(alone)}")
    return groups, notes


def _by_level(text: str, files: Sequence[str]) -> list[str | None]:
    if not text.isdecimal() or not int(text):
        raise InputError(Problem(_KEY, f"level:{text}", "level:N needs a number from 1", "data.groups=level:1"))
    folders = [file.split("/")[1:-1] for file in files]
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


def _by_table(text: str, files: Sequence[str]) -> tuple[list[str | None], list[str]]:
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
                    "a row for each image; file is <class>/<file>, relative to the raw folder")
        )  # fmt: skip
    if problems:
        raise InputError(problems)
    extra = sorted(set(table) - set(files))
    notes = [f"{len(extra):,} rows of {path.name} name no image of the set: {some(extra)}"] if extra else []
    return [table[file] for file in files], notes
