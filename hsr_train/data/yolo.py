"""The door of the data room for detection: from a data.yaml to a checked `DetectionSet`.

`load_detection_set` asks `description` what the file says, `listing` which files that means, `files` what is in them
and `judge` what is wrong with the set as a whole; `split` makes a validation split where there is none, and
`detection_splits` reads those of a fold. Called by an engine's `prepare`; never writes into the user's folders
(`detection_folds` does, when mode=split asks for it).
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
from hsr_train.data.detection_splits import Fold, find_fold, pool
from hsr_train.data.files import examine_files
from hsr_train.data.judge import file_problems, leak_problems, set_problems, set_warnings
from hsr_train.data.labels import LabelRules
from hsr_train.data.listing import Listing, label_path, list_split, orphan_labels
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
    pooled: bool = False,
) -> DetectionSet:
    """Check a YOLO set and return it.

    Args:
        config: `path` is a data.yaml; `fold`, `on_bad`, `on_leak`, `val_fraction`, `seed` and `cache_dir` are
            honoured.
        decisions: Receives every automatic choice.
        need: Splits that must be there. Where train is among them, val and test are loaded too if the set has them;
            otherwise only these are.
        rehash: Read every file again instead of trusting what is known by path, size and modification time.
        progress: Show a bar on a terminal if the check takes longer than a second.
        pooled: For dividing: train is all of the set's train and val, each image once, without those of test.

    Raises:
        InputError: With every problem found (the first 50 in the message, all of them in a file that it names).
    """
    folded = config.fold is not None
    given = ("train",) if folded else need
    description = read_description(config.path, decisions, need=given, val_fraction=config.val_fraction)
    warnings: list[str] = []
    listings = _list_files(description, config, given, warnings)
    fold: Fold | None = None
    if config.fold is not None:
        fold = find_fold(description, listings, config.fold, need)
        listings = fold.listings
        warnings += fold.warnings
    root = cache_root(config)
    index = index_path(root, description.yaml_path)
    rules = LabelRules(len(description.names), description.pose_columns)
    known = _examine(index, listings, rules, prune="train" in need, rehash=rehash, progress=progress)

    names = Names(description.root)
    images = {split: listing.images for split, listing in listings.items()}
    left_out: set[str] = set()
    problems, broken = file_problems(listings, known, names)
    num_broken = len(broken) + sum(len(listing.bad_lines) for listing in listings.values())
    remedies: list[Problem] = []
    skipped: list[Problem] = []
    if num_broken and config.on_bad == "skip":
        problems, skipped = skipped, problems
        images = {split: [i for i in paths if i not in broken] for split, paths in images.items()}
        left_out = {image for listing in listings.values() for image in listing.images if image in broken}
        log.warning("%d broken images are left out (data.on_bad=skip); the run's manifest lists them", num_broken)
        decisions.record("data.on_bad", "skip", f"{num_broken} broken images are left out")
    elif num_broken:
        remedies.append(
            Problem("data.on_bad", "error", f"problems of {num_broken:,} files in {description.root} stop the run",
                    "repair them, or train without them: data.on_bad=skip")
        )  # fmt: skip
    if pooled:
        images, copies = pool(images, known, warnings)
        left_out |= copies
    if config.val_fraction is not None:
        images = _split_off_validation(images, known, config.val_fraction, config.seed, decisions)
    leaks, leak_remedy = leak_problems(images, known, names)
    if leak_remedy and config.on_leak == "error":
        problems += leaks
        remedies.append(leak_remedy)
    elif leak_remedy:
        warnings.append(f"{leak_remedy.allowed}; validation will look better than it is (data.on_leak=warn)")
    problems += set_problems(images, known, names, need)
    if problems:
        raise input_error(description.yaml_path, problems, remedies, index.with_name(f"{index.stem}-problems.txt"))

    images = {split: images[split] for split in SPLITS if images.get(split) and (split in need or "train" in need)}
    checked = _assemble(description, images, known)
    checked.skipped, checked.num_skipped = skipped, num_broken
    checked.left_out = sorted(checked.relative(image) for image in left_out)
    if fold is not None:
        checked.fold, checked.division = fold.number, fold.division
    orphans = orphan_labels(listings.values(), description.list_files, rules)
    checked.warnings = warnings + set_warnings(checked, images, known, orphans, names)
    for warning in checked.warnings:
        log.warning("%s", warning)
    return checked


def _list_files(
    description: Description, config: DataConfig, need: Sequence[str], warnings: list[str]
) -> dict[str, Listing]:
    """Find the files of the splits to load; an optional split without images is left out with a warning.

    Raises:
        InputError: A needed split does not exist or has no image.
    """
    wanted = {*SPLITS} if "train" in need else {*need}
    if config.val_fraction is not None and "val" in wanted:
        wanted.add("train")
    listings: dict[str, Listing] = {}
    problems: list[Problem] = []
    for split, entries in description.entries.items():
        if split not in wanted:
            continue
        listing = list_split(split, entries, description.root)
        if not (listing.images or listing.bad_lines or listing.missing):
            where = ", ".join(map(str, entries))
            listing.missing.append(
                Problem(f"data.path ({split})", where, "has no image", f"put images there, or correct `{split}:`")
            )
        if not listing.missing:
            listings[split] = listing
        elif split in need or split == "train":
            problems += listing.missing
        else:
            what = "; ".join(f"{p.value}: {p.allowed}" for p in listing.missing)
            warnings.append(f"The set's {split} split is not used: {what}")
    if problems:
        raise InputError(problems)
    return listings


def _examine(
    index: Path, listings: dict[str, Listing], rules: LabelRules, *, prune: bool, rehash: bool, progress: bool
) -> dict[str, Known]:
    """Read the files or trust the index, and bring the index up to date, also if this is interrupted."""
    started = time.monotonic()
    pairs = {image: label_path(image) for listing in listings.values() for image in listing.images}
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
    val = [image for image, is_val in zip(train, chosen, strict=True) if is_val]
    rest = [image for image, is_val in zip(train, chosen, strict=True) if not is_val]
    decisions.record(
        "data.val_fraction", fraction, f"{len(val)} of {len(train)} images validate, chosen by content and seed {seed}"
    )
    return {**images, "train": rest, "val": val}


def _assemble(description: Description, images: dict[str, list[str]], known: dict[str, Known]) -> DetectionSet:
    entries = {split: [known[image] for image in paths] for split, paths in images.items()}
    all_polygons = all(entry.labels.polygons is not None for rows in entries.values() for entry in rows)
    splits = {
        split: DetectionSplit(
            name=split,
            images=[Path(image) for image in images[split]],
            shapes=np.array([row.shape for row in rows], np.int64).reshape(-1, 2),
            labels=[row.labels.boxes for row in rows],
            segments=[row.labels.polygons or [] if all_polygons else [] for row in rows],
            hashes=[row.image_hash for row in rows],
            label_hashes=[row.label_hash for row in rows],
        )
        for split, rows in entries.items()
    }
    return DetectionSet(description.yaml_path, description.root, description.names, splits)
