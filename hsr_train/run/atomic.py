"""Files that are written whole or not at all: a temporary sibling, fsync, rename, fsync of the folder.

Used by every room that leaves a file behind. A reader sees the old content or the new, never half of it; after a
kill at most a hidden temporary file stays, which `remove_leftovers` clears when the run is opened again.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import numbers
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hsr_train.errors import RunError

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""What only writing meets."""
DISK_ERRORS = DISK_FULL | frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EIO,
        errno.EFBIG,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.ELOOP,
        errno.EISDIR,
        errno.ESTALE,
    }
)
_LEFTOVER = re.compile(r"^\..+\.tmp-\d+-\d+(\.[^.]*)?$")
_counter = itertools.count()


def write_bytes(path: Path, data: bytes | memoryview, *, make_folder: bool = True) -> None:
    """Replace the file at `path` by `data`, whole or not at all; `make_folder`: as in `atomic_path`.

    Raises:
        RunError: The disk refused (full, read-only, no permission); what was there before is untouched.
    """
    with atomic_path(path, make_folder=make_folder) as temporary, temporary.open("wb") as file:
        file.write(data)


def write_text(path: Path, text: str, *, make_folder: bool = True) -> None:
    r"""Write `text` as UTF-8 with `\n` line ends; file-name bytes that are not UTF-8 appear as backslash escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), make_folder=make_folder)


def write_json(path: Path, obj: Any, *, make_folder: bool = True) -> None:
    """Write `obj` as JSON with an indent of 2, keys in insertion order.

    NaN and the infinities become null: JSON has no word for them, and a run whose loss went wrong still needs its
    record. Paths become strings, numpy scalars numbers, tuples and sets lists (sets sorted, for they have no order).

    Raises:
        TypeError: `obj` holds something that has no JSON form.
        RunError: The disk refused.
    """
    write_text(
        path, json.dumps(_plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n", make_folder=make_folder
    )


@contextmanager
def atomic_path(path: Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Yield a temporary sibling of `path` for the body to write; rename it to `path` if the body succeeds.

    The sibling is hidden and keeps the suffix (image and model writers look at it). It need not exist beforehand and
    must exist afterwards. It is removed if the body fails.

    Args:
        path: The file.
        make_folder: Whether to make the folders that it lies in; else the body fails where they are missing.

    Raises:
        RunError: The disk refused a step of ours or a write of the body.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}-{next(_counter)}{path.suffix}")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        if os.name == "posix":
            _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        # An error that names another file came from what the body read, and is not ours to explain.
        if isinstance(error, OSError) and error.errno in DISK_ERRORS and _concerns(error, path, temporary):
            raise RunError(describe_disk_error(path, error)) from error
        raise


def remove_leftovers(folder: Path) -> int:
    """Delete temporary files that killed processes left in `folder` and below. Only for the holder of the lock.

    Returns:
        How many were deleted.
    """
    found = [Path(root) / name for root, _, names in os.walk(folder) for name in names if _LEFTOVER.match(name)]
    for file in found:
        file.unlink(missing_ok=True)
    return len(found)


def describe_disk_error(path: Path, error: OSError) -> str:
    """Return one line that names the path, the system's reason, and the free space where that can be known."""
    reason = error.strerror or str(error)
    return f"cannot write {path}: {reason} ({free_space(path)})"


def is_full(text: str) -> bool:
    """Whether an error says that a disk is full: by its text, which it keeps from process to process."""
    return "disk is full" in text or any(os.strerror(number) in text for number in (errno.ENOSPC, errno.EDQUOT))


def free_space(path: Path) -> str:
    """Return the free space of the disk that holds `path` (or its nearest existing parent), as text."""
    for folder in (Path(path), *Path(path).parents):
        try:
            free_bytes = shutil.disk_usage(folder).free
        except OSError:
            continue
        return f"{free_bytes / 1e6:,.1f} MB free there"
    return "free space unknown"


def _concerns(error: OSError, path: Path, temporary: Path) -> bool:
    if error.filename is None:
        return True
    named = Path(os.fsdecode(error.filename))
    return named in (path, temporary, path.parent) or named in path.parents


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems cannot sync a folder; the rename itself is still atomic there.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF)):
            raise
    finally:
        os.close(descriptor)


def _plain(obj: Any) -> Any:
    """Return `obj` with everything replaced that JSON cannot hold, recursively."""
    if obj is None or isinstance(obj, (str, bool)):
        return obj
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, (set, frozenset)):
        return sorted(_plain(value) for value in obj)
    if isinstance(obj, (list, tuple)):
        return [_plain(value) for value in obj]
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, numbers.Integral):
        return int(obj)
    if isinstance(obj, numbers.Real):
        return float(obj) if math.isfinite(obj) else None
    if getattr(obj, "ndim", None) == 0 and hasattr(obj, "item"):
        return _plain(obj.item())  # numpy.bool_ and zero-dimensional arrays
    raise TypeError(f"{type(obj).__name__} has no JSON form: {obj!r}")
