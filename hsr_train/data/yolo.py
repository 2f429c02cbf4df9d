"""The door of the data room for detection: from a data.yaml to a checked `DetectionSet`.

`load_detection_set` asks `description` what the file says, `listing` which files that means, `files` what is in them
and `judge` what is wrong with the set as a whole; `split` makes a validation split where there is none. Called by an
engine's `prepare`; never writes into the user's folders.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hsr_train.config.schema import DataConfig
from hsr_train.data.cache import Known, cache_root, index_path, load_index, save_index
from hsr_train.data.description import SPLITS, Description, read_description
from hsr_train.data.detection_set import DetectionSet, DetectionSplit
from hsr_train.data.files import examine_files
from hsr_train.data.judge import file_problems, leak_problems, set_problems, set_warnings
from hsr_train.data.labels import LabelRules
from hsr_train.data.listing import Listing, label_path, list_split
from hsr_train.data.report import Names, input_error
from hsr_train.data.split import choose_validation
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

log = logging.getLogger(__name__)


def load_detection_set(
    config: DataConfig,
    decisions: Decisions,
    *,
    need: Sequence[str] = ("train", "val"),
    rehash: bool = False,
    progress: bool = True,
) -> DetectionSet:
    """Check a YOLO set and return it.

    Args:
        config: `path` is a data.yaml; `on_bad`, `on_leak`, `val_fraction`, `seed` and `cache_dir` are honoured.
        decisions: Receives every automatic choice.
        need: Splits that must be there. Where train is among them, val and test are loaded too if the set has them;
            otherwise only these are.
        rehash: Read every file again instead of trusting what is known by path, size and modification time.
        progress: Show a bar on a terminal if the check takes longer than a second.

    Raises:
        InputError: With every problem found (the first 50 in the message, all of them in a file that it names).
    """
    description = read_description(config.path, decisions)
    _check_splits(description, config, need)
    splits = _splits_to_load(description, config, need)
    warnings: list[str] = []
    listings = _list_files(description, splits, need, warnings)
    root = cache_root(config)
    rules = LabelRules(len(description.names), description.pose_columns)
    known = _examine(root, description, listings, rules, prune="train" in need, rehash=rehash, progress=progress)

    names = Names(description.root)
    problems, broken = file_problems(listings, known, names)
    images = {split: listing.images for split, listing in listings.items()}
    skipped: list[Problem] = []
    num_skipped = 0
    if problems and config.on_bad == "skip":
        skipped, problems = problems, []
        num_skipped = len(broken) + sum(len(listing.bad_lines) for listing in listings.values())
        images = {split: [i for i in paths if i not in broken] for split, paths in images.items()}
        log.warning("data.on_bad=skip: %d broken images are left out; the run's manifest lists them", num_skipped)
        decisions.record("data.on_bad", "skip", f"{num_skipped} broken images are left out")
    if config.val_fraction is not None:
        images = _split_off_validation(images, known, config.val_fraction, config.seed, decisions)
    remedies = []
    if problems:
        count = len(broken) + sum(len(listing.bad_lines) for listing in listings.values())
        remedies.append(
            Problem("data.on_bad", "error", f"{count:,} broken images or labels stop the run",
                    "repair them, or train without them: data.on_bad=skip")
        )  # fmt: skip
    leaks, leak_remedy = leak_problems(images, known, names, need)
    if leaks and config.on_leak == "error":
        problems += leaks
        remedies.append(leak_remedy)
    elif leaks:
        warnings.append(f"data.on_leak=warn: {leak_remedy.allowed}; validation is too optimistic")
    whole, whole_remedies = set_problems(images, known, names, need)
    problems += whole
    remedies += whole_remedies
    if problems:
        report = root / "data" / f"{index_path(root, description.yaml_path).stem}-problems.txt"
        raise input_error(description.yaml_path, problems, remedies, report)

    loaded = [split for split in SPLITS if split in images and (split in need or "train" in need)]
    warnings += set_warnings(description, listings, {split: images[split] for split in loaded}, known, rules, names)
    for warning in warnings:
        log.warning("%s", warning)
    return _assemble(description, {split: images[split] for split in loaded}, known, skipped, num_skipped, warnings)


def _check_splits(description: Description, config: DataConfig, need: Sequence[str]) -> None:
    """Raise if a needed split is not in data.yaml, or `data.val_fraction` has no effect."""
    problems = []
    for split in need:
        if split in description.entries or (split == "val" and config.val_fraction is not None):
            continue
        remedy = "data.val_fraction=0.2" if split == "val" else f"add `{split}:` to the data.yaml"
        problems.append(Problem(f"{description.yaml_path}: {split}", "missing", f"a {split} split is needed", remedy))
    if config.val_fraction is not None and "val" in description.entries:
        problems.append(
            Problem("data.val_fraction", str(config.val_fraction), "has no effect: the set has a validation split",
                    "leave it out, or remove `val:` from the data.yaml")
        )  # fmt: skip
    if problems:
        raise InputError(problems)


def _splits_to_load(description: Description, config: DataConfig, need: Sequence[str]) -> list[str]:
    wanted = set(SPLITS) if "train" in need else set(need)
    if "val" in wanted and config.val_fraction is not None:
        wanted.add("train")
    return [split for split in SPLITS if split in wanted and split in description.entries]


def _list_files(
    description: Description, splits: Sequence[str], need: Sequence[str], warnings: list[str]
) -> dict[str, Listing]:
    """Find the files of the splits; an optional split without images is left out with a warning."""
    listings: dict[str, Listing] = {}
    problems: list[Problem] = []
    for split in splits:
        listing = list_split(split, description.entries[split], description.root)
        if not listing.images and not listing.bad_lines and not listing.missing:
            where = ", ".join(map(str, description.entries[split]))
            listing.missing.append(
                Problem(f"data.path ({split})", where, "has no image", f"put images there or correct `{split}:`")
            )
        if not listing.missing:
            listings[split] = listing
        elif split in need or split == "train":
            problems += listing.missing
        else:
            what = "; ".join(f"{p.value}: {p.allowed}" for p in listing.missing)
            warnings.append(f"The {split} split is not used: {what}")
    if problems:
        raise InputError(problems)
    return listings


def _examine(
    root: Path,
    description: Description,
    listings: dict[str, Listing],
    rules: LabelRules,
    *,
    prune: bool,
    rehash: bool,
    progress: bool,
) -> dict[str, Known]:
    """Read the files or trust the index, and bring the index up to date, also if this is interrupted."""
    started = time.monotonic()
    pairs = {image: label_path(image) for listing in listings.values() for image in listing.images}
    index = index_path(root, description.yaml_path)
    before = load_index(index, rules)
    known = dict(before)
    try:
        examine_files(pairs, known, rules, rehash=rehash, progress=progress)
        if prune:
            known = {image: known[image] for image in pairs}
    finally:
        num_read = sum(entry is not before.get(image) for image, entry in known.items())
        if num_read or len(known) != len(before):
            save_index(index, known, rules)
    log.info(
        "Checked %d images in %.1f s: %d read, %d unchanged since the last start",
        len(pairs), time.monotonic() - started, num_read, len(pairs) - num_read,
    )  # fmt: skip
    return known


def _split_off_validation(
    images: dict[str, list[str]], known: dict[str, Known], fraction: float, seed: int, decisions: Decisions
) -> dict[str, list[str]]:
    train = images["train"]
    chosen = choose_validation([known[image].image_hash for image in train], fraction, seed)
    parts = {True: [], False: []}  # type: dict[bool, list[str]]
    for image, is_val in zip(train, chosen, strict=True):
        parts[is_val].append(image)
    decisions.record(
        "data.val_fraction",
        fraction,
        f"{len(parts[True])} of {len(train)} training images validate, chosen by content and seed {seed}",
    )
    return {**images, "train": parts[False], "val": parts[True]}


def _assemble(
    description: Description,
    images: dict[str, list[str]],
    known: dict[str, Known],
    skipped: list[Problem],
    num_skipped: int,
    warnings: list[str],
) -> DetectionSet:
    entries = {split: [known[image] for image in paths] for split, paths in images.items()}
    all_polygons = all(entry.labels.polygons is not None for rows in entries.values() for entry in rows)
    splits = {}
    for split, rows in entries.items():
        splits[split] = DetectionSplit(
            name=split,
            images=[Path(image) for image in images[split]],
            shapes=np.array([row.shape for row in rows], np.int64).reshape(-1, 2),
            labels=[row.labels.boxes for row in rows],
            segments=[row.labels.polygons or [] if all_polygons else [] for row in rows],
            hashes=[row.image_hash for row in rows],
            label_hashes=[row.label_hash for row in rows],
        )
    return DetectionSet(
        description.yaml_path, description.root, description.names, splits, skipped, num_skipped, warnings
    )
