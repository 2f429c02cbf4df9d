"""What is wrong or odd about a set as a whole, once every file is known.

Called by `yolo` with the splits of `listing` and what `files` found out. Problems stop the run or are skipped, as
`data.on_bad` and `data.on_leak` say; warnings are logged once and go into the manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from hsr_train.data.cache import Known
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.listing import Listing
from hsr_train.data.report import Names
from hsr_train.errors import Problem

Images = Mapping[str, Sequence[str]]
"""Absolute image paths by split."""

_EXAMPLES = 3


def file_problems(
    listings: Mapping[str, Listing], known: Mapping[str, Known], names: Names
) -> tuple[list[Problem], set[str]]:
    """Return what is wrong with list files, images and label files, and the images that are concerned."""
    problems: list[Problem] = []
    broken: set[str] = set()
    for listing in listings.values():
        problems += listing.bad_lines
        for image in listing.images:
            entry = known[image]
            if not (entry.image_fault or entry.labels.faults) or image in broken:
                continue
            broken.add(image)
            if entry.image_fault:
                problems.append(Problem(names.of(image), "", entry.image_fault))
            label = names.of(entry.label_path)
            for fault in entry.labels.faults:
                problems.append(Problem(f"{label}:{fault.line}" if fault.line else label, fault.value, fault.allowed))
    return problems, broken


def leak_problems(images: Images, known: Mapping[str, Known], names: Names) -> tuple[list[Problem], Problem | None]:
    """Return the validation images that are training images, too, and the line that says what to type about them."""
    train, val = images.get("train", []), images.get("val", [])
    first = {known[image].image_hash: image for image in reversed(train) if known[image].image_hash}
    leaks = [image for image in val if known[image].image_hash in first]
    if not leaks:
        return [], None
    if set(train) == set(val):
        same = Problem(
            "data.path", f"{len(val):,} images", "train and val are the same files: val measures nothing new"
        )
        remedy = Problem(
            "data.on_leak", "error", "train and val are the same files",
            "give val its own images, or remove `val:` and type data.val_fraction=0.2; or type data.on_leak=warn",
        )  # fmt: skip
        return [same], remedy
    problems = [
        Problem(
            names.of(image),
            f"the same content as {names.of(first[known[image].image_hash])}",
            "an image belongs to train or to val, not to both",
        )
        for image in leaks
    ]
    return problems, Problem(
        "data.on_leak", "error", f"{len(leaks):,} of {len(val):,} validation images are training images, too",
        "remove them from one side, or go on with data.on_leak=warn",
    )  # fmt: skip


def set_problems(images: Images, known: Mapping[str, Known], names: Names, need: Sequence[str]) -> list[Problem]:
    """Return needed splits that are left without an image, and a training split without any label."""
    problems = [
        Problem(f"data.path ({split})", "no image is left", "every image of this split is broken, or went to val")
        for split in need
        if not images.get(split)
    ]
    train = images.get("train", [])
    if "train" in need and train and not any(len(known[i].labels.boxes) or known[i].labels.faults for i in train):
        problems.append(
            Problem("data.path (train)", f"{len(train):,} images",
                    f"not one has a label (looked for {names.of(known[train[0]].label_path)} and the like)",
                    "put the label files there, named like their images")
        )  # fmt: skip
    return problems


def set_warnings(
    checked: DetectionSet, images: Images, known: Mapping[str, Known], orphans: Sequence[str], names: Names
) -> list[str]:
    """Return what is odd about a set and allowed, one line each."""
    warnings = []
    if orphans:
        warnings.append(f"{len(orphans):,} label files have no image: {_some(map(names.of, orphans))}")
    for split, paths in images.items():
        if repeated := [image for image in paths if known[image].labels.num_duplicates]:
            count = sum(known[image].labels.num_duplicates for image in repeated)
            files = _some(names.of(known[image].label_path) for image in repeated)
            warnings.append(f"{split}: {count:,} repeated label lines are left out: {files}")
        if len(set(paths)) < len(paths):
            twice = [names.of(image) for image, count in Counter(paths).items() if count > 1]
            warnings.append(f"{split} lists {len(twice):,} images more than once; they count as often: {_some(twice)}")
    polygons = [known[image].labels.polygons for paths in images.values() for image in paths]
    if any(polygons) and None in polygons:
        warnings.append("Some labels are polygons and some are boxes: all are used as boxes")
    counts = checked.counts
    if "train" in counts and (
        absent := [name for name, n in zip(checked.names, counts["train"], strict=True) if not n]
    ):
        warnings.append(f"{len(absent)} of {len(checked.names)} classes have no box in train: {_some(absent)}")
    if "val" in counts and not any(counts["val"]):
        warnings.append("val has no labelled object: every metric on it is 0")
    if "train" in images and "test" in images:
        contents = {known[image].image_hash for image in images["train"]}
        if seen := [names.of(image) for image in images["test"] if known[image].image_hash in contents]:
            warnings.append(f"{len(seen):,} test images are training images, too: {_some(seen)}")
    return warnings


def _some(items: Iterable[str]) -> str:
    shown = list(items)
    return ", ".join(shown[:_EXAMPLES]) + (" ..." if len(shown) > _EXAMPLES else "")
