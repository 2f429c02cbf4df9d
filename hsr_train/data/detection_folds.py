"""mode=split of a YOLO set: its train and val images, put together, become folds, as index files beside data.yaml.

The test split that data.yaml names stays as it is; where it names none, the last share of `data.ratio` is held out.
`groups` says what stays together, `stratify` draws by the classes in the images, `index_files` writes and
`near_duplicates` looks for what still straddles. The same files and arguments give the same folds.
"""

# ruff: noqa: PTH118 (paths are plain strings here)

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from hsr_train.config.schema import DataConfig
from hsr_train.data.class_folders import some
from hsr_train.data.description import absolute_path, read_description
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.detection_splits import index_line, other_set, splits_folder
from hsr_train.data.division import Flags, Ints, Scheme, scheme_of, size_lines
from hsr_train.data.groups import Naming, find_groups, join_copies
from hsr_train.data.index_files import index_contents, list_fingerprint, read_record, refuse_foreign, replace_indexes
from hsr_train.data.near_duplicates import straddling
from hsr_train.data.stratify import (
    LabelledUnits,
    draw_labelled_folds,
    draw_labelled_holdouts,
    draw_labelled_test,
)
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

_NAMING = Naming("the folder that data.yaml names", "the image's path from the set's root, such as images/train/1.jpg")
_MOST_CLASS_LINES = 40


def write_detection_splits(config: DataConfig, decisions: Decisions) -> list[str]:
    """Divide a YOLO set and write its index files; an earlier division by this function is replaced.

    Args:
        config: `path`, `folds`, `scheme`, `ratio`, `seed`, `groups`, `on_bad`.
        decisions: Receives what is left out.

    Returns:
        Lines that tell a person what was made and what is odd about it.

    Raises:
        InputError: Settings or files do not allow it.
        RunError: The disk refused.
    """
    scheme = scheme_of(config)
    folder = splits_folder(config.path)
    refuse_foreign(folder)
    _refuse_other(folder, absolute_path(Path.cwd(), config.path))
    pooled = load_detection_set(replace(config, fold=None), decisions, need=("train",), pooled=True)
    images, hashes, classes = _images(pooled, "train")
    given, given_hashes, given_classes = _images(pooled, "test")
    asked = replace(scheme, test=0.0) if given else scheme
    units, notes = _units(config, pooled, images, hashes, classes)
    test, vals = _draw(units, asked, "groups" if config.groups else "images")
    _check(units, test, vals)

    every = [*images, *given]
    held_out = np.concatenate([test, np.ones(len(given), np.bool_)])
    vals = [np.concatenate([val, np.zeros(len(given), np.bool_)]) for val in vals]
    names = [pooled.relative(image) for image in every]
    files = index_contents([index_line(folder, image) for image in every], held_out, vals)
    record = {
        **asdict(scheme),
        "data": pooled.yaml_path.name,
        "ratio": list(config.ratio),
        "classes": pooled.names,
        "images": {name: content.count(b"\n") for name, content in files.items()},
        "left_out": pooled.left_out,
        "fingerprint": list_fingerprint(names),
    }
    if given:
        notes.append("data.yaml names a test split: it stays the test set, and data.ratio holds out nothing more")
        asked = replace(asked, test=len(given) / len(every))
    notes += straddling(names, every, [*hashes, *given_hashes], [held_out, *vals])
    what = replace_indexes(folder, files, record)
    told = f"{len(every):,} images, {len(pooled.names)} classes"
    return [
        what,
        *size_lines(asked, told, units.num_units, held_out, vals),
        *_table(pooled.names, [*classes, *given_classes], held_out, vals),
        *notes,
        f"Train on it: data.path={pooled.yaml_path} data.fold=0, or every fold: data.fold=all",
    ]


def _refuse_other(folder: Path, yaml_path: Path) -> None:
    try:
        division = read_record(folder)
    except InputError:
        return  # unfinished or damaged: it is replaced
    if division and division.get("data") != yaml_path.name:
        raise InputError(other_set(folder, yaml_path, division))


def _images(pooled: DetectionSet, split: str) -> tuple[list[str], list[str], list[Ints]]:
    """Return absolute paths, content hashes and classes of a split's images, by name; empty if there is none."""
    part = pooled.splits.get(split)
    if part is None:
        return [], [], []
    classes = [np.unique(boxes[:, 0]).astype(np.int64) for boxes in part.labels]
    rows = sorted(zip(map(str, part.images), part.hashes, classes, strict=True), key=lambda row: row[0])
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _units(
    config: DataConfig, pooled: DetectionSet, images: Sequence[str], hashes: Sequence[str], classes: Sequence[Ints]
) -> tuple[LabelledUnits, list[str]]:
    """Form what stays together: exact copies, and groups."""
    notes: list[str] = []
    groups: list[str | None] = [None] * len(images)
    if config.groups is not None:
        names = [pooled.relative(image) for image in images]
        groups, notes = find_groups(config.groups, names, _levels(config, pooled.root, images), _NAMING)
    of, copies = join_copies(hashes, groups)
    return LabelledUnits(of, classes, len(pooled.names)), notes + copies


def _levels(config: DataConfig, root: Path, images: Sequence[str]) -> list[list[str]]:
    """Return for each image its folders below the one that data.yaml names, or below the last one named images."""
    description = read_description(config.path, Decisions(), need=("train",))
    entries = [str(entry) for entries in description.entries.values() for entry in entries if entry.is_dir()]
    tops = sorted((f"{path}{os.sep}" for e in entries for path in {e, os.path.realpath(e)}), key=len, reverse=True)
    found = []
    for image in images:
        top = next((top for top in tops if image.startswith(top)), None)
        if top is None:
            head, marker, _ = image.rpartition(f"{os.sep}images{os.sep}")
            top = f"{head}{marker}" if marker else os.path.join(root, "")
        found.append(list(Path(image.removeprefix(top)).parts[:-1]))
    return found


def _draw(units: LabelledUnits, scheme: Scheme, word: str) -> tuple[Flags, list[Flags]]:
    """Return (n,) which images are held out, and for each fold (n,) which validate.

    Raises:
        InputError: There are fewer units than splits.
    """
    need = (scheme.folds if scheme.scheme == "kfold" else 2) + (scheme.test > 0)
    if units.num_units < need:
        what = f"{scheme.folds} folds" if scheme.scheme == "kfold" else "train and val"
        allowed = f"{what}{' and a test set' if scheme.test else ''} need {need} {word}, and there are"
        most = units.num_units - (scheme.test > 0)
        remedy = f"data.folds={most}" if scheme.scheme == "kfold" and most >= 2 else f"more {word}"
        raise InputError(Problem("data.folds", str(scheme.folds), f"{allowed} {units.num_units}", remedy))
    test = draw_labelled_test(units, scheme.test, scheme.seed)
    if scheme.scheme == "kfold":
        vals = draw_labelled_folds(units, ~test, scheme.folds, scheme.seed)
    else:
        vals = draw_labelled_holdouts(units, ~test, scheme.val, scheme.folds, scheme.seed)
    if scheme.test and not test.any():
        raise InputError(_nothing("the test set", "data.ratio"))
    return test[units.of], [val[units.of] for val in vals]


def _nothing(what: str, key: str = "data.groups") -> Problem:
    return Problem(key, what, "gets no image: what stays together is too large for its share", "smaller groups, fewer "
                   "folds, or other shares: data.ratio=[0.7,0.15,0.15]")  # fmt: skip


def _check(units: LabelledUnits, test: Flags, vals: Sequence[Flags]) -> None:
    """Refuse folds that nothing can be trained on, or that measure nothing.

    Raises:
        InputError: With all of them.
    """
    labelled = np.array([len(ids) > 0 for ids in units.classes], np.bool_)
    problems = []
    for fold, val in enumerate(vals):
        train = ~(test | val)
        if not val.any():
            problems.append(_nothing(f"val of fold {fold}"))
        elif not (train & labelled).any() or not (val & labelled).any():
            where = "val" if (train & labelled).any() else "train"
            allowed = f"has no image with an object in {where}"
            problems.append(Problem("data.folds", f"fold {fold}", allowed, "more labelled images, or fewer folds"))
    if problems:
        raise InputError(problems)


def _table(names: Sequence[str], classes: Sequence[Ints], test: Flags, vals: Sequence[Flags]) -> list[str]:
    """Return the images of each class by split, and what is odd about them."""
    whole = LabelledUnits(np.arange(len(classes)), classes, len(names))
    total, held_out = whole.count(np.ones(len(classes), np.bool_)), whole.count(test)
    counts = [whole.count(val) for val in vals]
    rows = [*names, "(no object)"]
    shown = [i for i in range(len(rows)) if total[i] or i < len(names)]
    if len(shown) > _MOST_CLASS_LINES:
        shown = sorted(sorted(shown, key=lambda i: -total[i])[:_MOST_CLASS_LINES])
    width = max([20, *(len(rows[i]) for i in shown)])
    head = "".join(f"{f'val {fold}':>9}" for fold in range(len(vals)))
    lines = [f"  {'images of each class':{width}} {'all':>8} {'test':>8}{head}"]
    for i in shown:
        lines.append(f"  {rows[i]:{width}} {total[i]:8,} {held_out[i]:8,}{''.join(f'{c[i]:9,}' for c in counts)}")
    if hidden := sum(total > 0) - sum(total[i] > 0 for i in shown):
        lines.append(f"  and {hidden} more classes, each in at most {min(total[i] for i in shown):,} images")
    there = total[: len(names)] > 0
    where = {**({"test": held_out} if test.any() else {}), **{f"val of fold {i}": c for i, c in enumerate(counts)}}
    empty = {name: int((there & (count[: len(names)] == 0)).sum()) for name, count in where.items()}
    if any(empty.values()):
        lacking = some((f"{name} ({number})" for name, number in empty.items() if number), 10)
        lines.append(f"Splits without an image of some classes (how many): {lacking}")
    for fold, count in enumerate(counts):
        lost = there & ((total - held_out - count)[: len(names)] == 0)
        untrained = [name for name, is_lost in zip(names, lost, strict=True) if is_lost]
        if untrained:
            lines.append(f"Fold {fold} trains without an image of {some(untrained)}: it cannot learn them")
    return lines
