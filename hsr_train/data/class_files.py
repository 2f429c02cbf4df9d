"""The files of a classification set, read or trusted from the index, and what is wrong with them.

Between `class_set` and `folds`, which ask, and `files` and `cache`, which read and remember.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data.cache import Known, cache_root, index_path, load_index, save_index
from hsr_train.data.class_folders import some
from hsr_train.data.files import examine_files
from hsr_train.data.labels import LabelRules
from hsr_train.errors import Problem

log = logging.getLogger(__name__)

MOST_NAMED = 5
"""Files named on the console, where a log file names all."""

_NO_LABELS = LabelRules(0)


def examine_images(
    config: ClassifyDataConfig, folder: Path, images: Sequence[str], *, prune: bool, rehash: bool, progress: bool
) -> dict[str, Known]:
    """Read images, or trust the index, and bring the index up to date, also if this is interrupted.

    Args:
        config: For its `cache_dir`.
        folder: What the index belongs to: the folder of class folders, or of splits.
        images: Absolute paths.
        prune: Forget every other image.
        rehash: Read all of them again.
        progress: Show a bar on a terminal if it takes longer than a second.
    """
    started = time.monotonic()
    index = index_path(cache_root(config), folder)
    before = load_index(index, _NO_LABELS)
    known = dict(before)
    try:
        examine_files(dict.fromkeys(images, ""), known, _NO_LABELS, rehash=rehash, progress=progress)
        if prune:
            known = {image: known[image] for image in images}
    finally:
        num_read = sum(entry is not before.get(image) for image, entry in known.items())
        if num_read or len(known) != len(before):
            save_index(index, known, _NO_LABELS)
    log.info(
        "Checked %d images in %.1f s: %d read, %d unchanged since the last start",
        len(images), time.monotonic() - started, num_read, len(images) - num_read,
    )  # fmt: skip
    return known


def problems_file(config: ClassifyDataConfig, folder: Path) -> Path:
    """Return where the full list of a set's problems goes."""
    index = index_path(cache_root(config), folder)
    return index.with_name(f"{index.stem}-problems.txt")


def bad_images(images: Mapping[str, str], known: Mapping[str, Known]) -> dict[str, Problem]:
    """Return what is wrong with images, by name.

    Args:
        images: Absolute path by name.
        known: From `examine_images`.
    """
    faults = {name: known[path].image_fault for name, path in images.items()}
    return {name: Problem(name, "", fault) for name, fault in faults.items() if fault}


def bad_remedy(count: int, folder: Path) -> Problem:
    """Return the line that says what to type about broken files."""
    return Problem(
        "data.on_bad", "error", f"{how_many(count)} in {folder} {'is' if count == 1 else 'are'} broken, or no image",
        "repair or remove, or go on without: data.on_bad=skip",
    )  # fmt: skip


def tell_left_out(broken: Sequence[Problem]) -> None:
    """Log what data.on_bad=skip leaves out: the first on the console, every one in the run's log file."""
    many = len(broken) > MOST_NAMED
    named = "\n".join(f"  {problem.key}: {problem.allowed}" for problem in broken[:MOST_NAMED])
    more = f"\n  and {len(broken) - MOST_NAMED:,} more, in the run's logs/train.log" if many else ""
    log.warning("Left out (data.on_bad=skip): %s\n%s%s", how_many(len(broken)), named, more)
    if many:
        log.debug("All that is left out:\n%s", "\n".join(f"  {p.key}: {p.allowed}" for p in broken))


def how_many(count: int, noun: str = "file") -> str:
    """Return a number of things in words, with the noun in its number."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def leak_problems(splits: Mapping[str, Mapping[str, str]]) -> list[Problem]:
    """Return the images that two splits share, by content; the last problem says what to type.

    Args:
        splits: Content hash by name, by split.
    """
    problems: list[Problem] = []
    for first, second in combinations(splits, 2):
        there = {content: name for name, content in reversed(list(splits[first].items()))}
        for name, content in splits[second].items():
            if other := there.get(content):
                what = f"lies in {second} and, as {other}, in {first}" if other != name else f"in {first} and {second}"
                problems.append(Problem(name, what, "an image belongs to one split"))
    if problems:
        problems.append(
            Problem("data.on_leak", "error", f"{len(problems):,} images lie in two splits",
                    "remove them from one, or go on with data.on_leak=warn; mode=split keeps copies together")
        )  # fmt: skip
    return problems


def contradictions(classes: Mapping[str, str], hashes: Mapping[str, str]) -> list[str]:
    """Return a warning about pictures that lie in more than one class.

    Args:
        classes: Class by name.
        hashes: Content hash by name.
    """
    by_content: dict[str, list[str]] = {}
    for name, content in hashes.items():
        by_content.setdefault(content, []).append(name)
    found = [names for names in by_content.values() if len({classes[name] for name in names}) > 1]
    if not found:
        return []
    what = "1 picture lies" if len(found) == 1 else f"{len(found):,} pictures lie"
    lines = [f"{what} in more than one class, which no network can learn; keep each in one of them:"]
    lines += [f"  {some([' = '.join(names)])}" for names in found[:MOST_NAMED]]
    lines += [f"  and {len(found) - MOST_NAMED:,} more"] if len(found) > MOST_NAMED else []
    return ["\n".join(lines)]
