"""What is wrong or odd about a set as a whole, once every file is known.

Called by `yolo` with the splits of `listing` and what `files` found out. Problems stop the run or are skipped, as
`data.on_bad` and `data.on_leak` say; warnings are said once and go into the manifest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from hsr_train.data.cache import Known
from hsr_train.data.description import Description
from hsr_train.data.labels import LabelRules
from hsr_train.data.listing import Listing, orphan_labels
from hsr_train.data.report import Names
from hsr_train.errors import Problem

_EXAMPLES = 3
Images = Mapping[str, Sequence[str]]


def file_problems(
    listings: Mapping[str, Listing], known: Mapping[str, Known], names: Names
) -> tuple[list[Problem], set[str]]:
    """Return what is wrong with list files, images and label files, and the images that are concerned."""
    problems: list[Problem] = []
    broken: dict[str, None] = {}
    for listing in listings.values():
        problems += listing.bad_lines
        for image in dict.fromkeys(listing.images):
            entry = known[image]
            if image in broken or not (entry.image_fault or entry.labels.faults):
                continue
            broken[image] = None
            if entry.image_fault:
                problems.append(Problem(names.of(image), "", entry.image_fault))
            for fault in entry.labels.faults:
                where = f"{names.of(entry.label_path)}:{fault.line}" if fault.line else names.of(entry.label_path)
                problems.append(Problem(where, fault.value, fault.allowed))
    return problems, set(broken)


def leak_problems(
    images: Images, known: Mapping[str, Known], names: Names, need: Sequence[str]
) -> tuple[list[Problem], Problem]:
    """Return the validation images that are training images, too, and what to type about them."""
    train, val = images.get("train", []), images.get("val", [])
    first = {known[image].image_hash: image for image in reversed(train) if known[image].image_hash}
    leaks = [image for image in val if known[image].image_hash in first]
    remedy = Problem(
        "data.on_leak", "error", f"{len(leaks):,} of {len(val):,} validation images are training images, too",
        "remove them from one side, or go on with data.on_leak=warn",
    )  # fmt: skip
    if leaks and set(train) == set(val):
        same = Problem(
            "data.path", f"{len(val):,} images", "train and val are the same images: they measure nothing new"
        )
        remedy = Problem(
            "data.on_leak", "error", "train and val are the same images",
            "give val its own folder, or remove `val:` and type data.val_fraction=0.2; or data.on_leak=warn",
        )  # fmt: skip
        return [same], remedy
    problems = [
        Problem(names.of(image), f"the same picture as {names.of(first[known[image].image_hash])}",
                "an image belongs to train or to val")
        for image in leaks
    ]  # fmt: skip
    return problems, remedy


def set_problems(
    images: Images, known: Mapping[str, Known], names: Names, need: Sequence[str]
) -> tuple[list[Problem], list[Problem]]:
    """Return splits that are left without an image, and a training split without any label."""
    problems = [
        Problem(f"data.path ({split})", "no image is left", "every image of this split is broken or was split off")
        for split in need
        if not images.get(split)
    ]
    train = images.get("train", [])
    if "train" in need and train and not any(len(known[image].labels.boxes) for image in train):
        faulty = any(known[image].labels.faults for image in train)
        if not faulty:
            where = names.of(known[train[0]].label_path)
            problems.append(
                Problem("data.path (train)", f"{len(train):,} images", f"not one has a label (looked for {where}, …)",
                        "put the label files there: labels/ beside images/, with the same names")
            )  # fmt: skip
    return problems, []


def set_warnings(
    description: Description,
    listings: Mapping[str, Listing],
    images: Images,
    known: Mapping[str, Known],
    rules: LabelRules,
    names: Names,
) -> list[str]:
    """Return what is odd about a set and allowed, one line each."""
    warnings = []
    every = {image for paths in images.values() for image in paths}
    folders = {folder for listing in listings.values() for folder in listing.folders}
    lists = [str(entry) for entries in description.entries.values() for entry in entries]
    listed = {image for listing in listings.values() for image in listing.images}
    if orphans := orphan_labels(folders, listed, lists, rules):
        warnings.append(f"{len(orphans):,} label files have no image: {_some(map(names.of, orphans))}")
    if repeated := [names.of(i) for i in every if known[i].labels.num_duplicates]:
        count = sum(known[i].labels.num_duplicates for i in every)
        warnings.append(f"{count:,} repeated label lines are left out, in the labels of {_some(sorted(repeated))}")
    for split, paths in images.items():
        if twice := [names.of(image) for image, count in Counter(paths).items() if count > 1]:
            warnings.append(
                f"{split} lists {len(twice):,} images more than once, and they count so often: {_some(twice)}"
            )
    polygons = [known[image].labels.polygons for image in every if len(known[image].labels.boxes)]
    if any(polygons) and not all(polygons):
        warnings.append("Some label files hold boxes and some polygons: all are used as boxes, and no polygon as such")
    if "train" in images:
        present = {int(c) for image in images["train"] for c in known[image].labels.boxes[:, 0]}
        if absent := [name for i, name in enumerate(description.names) if i not in present]:
            warnings.append(f"{len(absent)} of {len(description.names)} classes have no box in train: {_some(absent)}")
        contents = {known[image].image_hash for image in images["train"]}
        if seen := [names.of(i) for i in images.get("test", []) if known[i].image_hash in contents]:
            warnings.append(f"{len(seen):,} test images are training images, too: {_some(seen)}")
    if images.get("val") and not any(len(known[image].labels.boxes) for image in images["val"]):
        warnings.append("val has no labelled object: every metric on it is 0")
    return warnings


def _some(items: Iterable[str]) -> str:
    shown = list(items)
    return ", ".join(shown[:_EXAMPLES]) + (" ..." if len(shown) > _EXAMPLES else "")
