"""Many images read at the same time: memory is bounded, what cannot be used is noted, what takes long says so.

`bank` and `backgrounds` read all their images through it; which of them are unusable is one message.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

from hsr_train.errors import InputError, Problem
from hsr_train.synthesis.files import BadImageError, SourceFile

log = logging.getLogger(__name__)

_AT_ONCE = 32
"""Items whose results are held at the same time: what bounds the memory."""
_LINE_EVERY_S = 30.0
_MOST_LINES = 20

T = TypeVar("T")
R = TypeVar("R")


def read_all(items: Sequence[T], read: Callable[[T], R], doing: str) -> Iterator[tuple[T, R | BadImageError]]:
    """Yield each item with what `read` returned for it, in order; a `BadImageError` is yielded instead of raised.

    Args:
        items: What is read.
        read: Called in several threads.
        doing: What a person is told while it takes long ("Reading backgrounds").
    """

    def one(item: T) -> R | BadImageError:
        try:
            return read(item)
        except BadImageError as error:
            return error

    said = time.monotonic()
    bar = tqdm(total=len(items), desc=doing, unit="image", file=sys.stderr, leave=False, delay=1, disable=None)
    with ThreadPoolExecutor() as pool, bar:
        for start in range(0, len(items), _AT_ONCE):
            some = items[start : start + _AT_ONCE]
            yield from zip(some, pool.map(one, some), strict=True)
            bar.update(len(some))
            if time.monotonic() - said > _LINE_EVERY_S:
                said = time.monotonic()
                log.info("%s: %d of %d images", doing, start + len(some), len(items))


def hash_all(files: Sequence[SourceFile]) -> None:
    """Note what is in each file."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(SourceFile.hash, files))


def refuse_bad(key: str, given: str, bad: Mapping[str, str], total: int, *, skip_bad: bool, some_left: bool) -> None:
    """Refuse unusable files, unless they may be left out and others remain.

    Args:
        key: Which setting they belong to.
        given: Its value.
        bad: Why each cannot be used, by name.
        total: How many files there are.
        skip_bad: They may be left out.
        some_left: Others can be used.

    Raises:
        InputError: Names them.
    """
    if not bad or (skip_bad and some_left):
        return
    problems = [Problem(f"{key} ({name})", "", why) for name, why in list(bad.items())[:_MOST_LINES]]
    what = f"{len(bad)} of {total} files cannot be used"
    remedy = "repair them" + (", or leave them out: data.on_bad=skip" if some_left else "")
    raise InputError([*problems, Problem(key, given, what, remedy)])
