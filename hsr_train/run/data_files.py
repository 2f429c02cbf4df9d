"""data_files.csv: which files a run was trained on, with their hashes, so that a later start can name what changed.

An engine's `prepare` provides the rows (`engines.base.Plan.data_files`), `execution` writes them beside the manifest;
`resume=` and `reproduce=` compare. About 170 bytes an image.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import write_text

DataFile = tuple[str, str, str, str]
"""Split; image, relative to the set's root; SHA-256 of the image; SHA-256 of its label file, empty without one."""

COLUMNS = ("split", "image", "image_hash", "label_hash")


def write_data_files(path: Path, files: Iterable[DataFile]) -> None:
    """Write the table.

    Raises:
        RunError: The disk refused.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(files)
    write_text(path, buffer.getvalue())


def read_data_files(path: Path) -> list[DataFile] | None:
    """Return the table; None where a run has none (it was begun by an earlier version).

    Raises:
        InputError: It is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    if tuple(header) != COLUMNS or any(len(row) != len(COLUMNS) for row in rows):
        raise _damaged(path, f"is damaged: not a table of {', '.join(COLUMNS)}")
    return [(row[0], row[1], row[2], row[3]) for row in rows]


def changed_files(before: Iterable[DataFile], now: Iterable[DataFile]) -> list[tuple[str, str]]:
    """Return every file that is not what it was, and in which way, by name.

    Args:
        before: From a run's data_files.csv.
        now: From the set as it is; names that are no text are compared as the file would hold them.
    """
    old = {(split, image): hashes for split, image, *hashes in before}
    new = {(split, _written(image)): hashes for split, image, *hashes in now}
    found = [(image, f"is gone from {split}") for split, image in old.keys() - new.keys()]
    found += [(image, f"is new in {split}") for split, image in new.keys() - old.keys()]
    for split, image in old.keys() & new.keys():
        (old_image, old_label), (new_image, new_label) = old[split, image], new[split, image]
        if old_image != new_image:
            found.append((image, "the image changed"))
        if old_label != new_label:
            what = "changed" if old_label and new_label else "is new" if new_label else "is gone"
            found.append((image, f"its label file {what}"))
    return sorted(found)


def _written(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _damaged(path: Path, what: str) -> InputError:
    return InputError(Problem(str(path), "", what, "restore it from a copy, or delete it: changes are then not named"))
