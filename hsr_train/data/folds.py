"""mode=split: a folder of classes becomes one held-out test set and folds of the rest, as index files beside it.

`division` draws, `groups` says what stays together, `index_files` writes, `near_duplicates` looks for what still
straddles. The result depends on the seed, the names and the exact copies among the images, not on the order in which
the disk lists them. Exact copies always stay together.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data.cache import Known
from hsr_train.data.class_files import (
    bad_images,
    bad_remedy,
    contradictions,
    examine_images,
    how_many,
    problems_file,
    tell_left_out,
)
from hsr_train.data.class_folders import (
    DEMO,
    Layout,
    class_problems,
    find_layout,
    list_classes,
    some,
    stranger_problems,
)
from hsr_train.data.division import Flags, Scheme, Units, divide, scheme_of, size_lines
from hsr_train.data.groups import Naming, find_groups, join_copies
from hsr_train.data.index_files import index_contents, list_fingerprint, refuse_foreign, replace_indexes
from hsr_train.data.near_duplicates import straddling
from hsr_train.data.report import input_error
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

log = logging.getLogger(__name__)

_NAMING = Naming("their class", "<class>/<file>, relative to the raw folder")


def write_splits(config: ClassifyDataConfig, decisions: Decisions) -> list[str]:
    """Divide a set and write its index files; an earlier division by this function is replaced.

    Args:
        config: `raw` (or `path` with raw/ in it), `folds`, `scheme`, `ratio`, `seed`, `groups`, `on_bad`.
        decisions: Receives what is left out.

    Returns:
        Lines that tell a person what was made and what is odd about it.

    Raises:
        InputError: Settings, files or classes do not allow it; every problem in one message.
        RunError: The disk refused.
    """
    scheme = scheme_of(config)
    layout = _layout(config)
    assert layout.raw is not None
    refuse_foreign(layout.splits)
    found = list_classes(layout.raw)
    problems = class_problems(found, "data.raw")
    strangers = stranger_problems(found, layout.root)
    names = {f"{layout.raw.name}/{file}": str(layout.raw / file) for files in found.images.values() for file in files}
    problems += [Problem(name, "", "has a line break in its name", "rename it") for name in names if "\n" in name]
    known = examine_images(config, layout.raw, list(names.values()), prune=True, rehash=False, progress=True)
    bad = bad_images(names, known)
    skip = config.on_bad == "skip"
    num_bad = len(bad) + len(strangers)
    if num_bad and not skip:
        problems += [*strangers, *bad.values()]
    if problems:
        remedies = [bad_remedy(num_bad, layout.raw)] if num_bad and not skip else []
        raise input_error(layout.raw, problems, remedies, problems_file(config, layout.raw))
    if num_bad:
        tell_left_out([*strangers, *bad.values()])
        decisions.record("data.on_bad", "skip", f"{how_many(num_bad)} in no split: no sound images")

    kept = [name for name in names if name not in bad]
    classes = list(found.images)
    units, mixed, notes = _units(kept, classes, names, known, config.groups)
    test, vals = divide(units, scheme, classes, mixed=mixed, word="groups" if config.groups else "images")
    contents = index_contents(kept, test, vals)
    record = {
        **asdict(scheme),
        "ratio": list(config.ratio),
        "classes": classes,
        "images": {name: content.count(b"\n") for name, content in contents.items()},
        "left_out": sorted(bad),
        "fingerprint": list_fingerprint(kept),
    }
    for warning in contradictions(
        {name: name.split("/")[1] for name in kept}, {name: known[names[name]].image_hash for name in kept}
    ):
        log.warning("%s", warning)
    paths = [names[name] for name in kept]
    notes += straddling(kept, paths, [known[path].image_hash for path in paths], [test, *vals])
    what = replace_indexes(layout.splits, contents, record)
    return [what, *_table(units, scheme, classes, test, vals), *notes, _next(layout)]


def _layout(config: ClassifyDataConfig) -> Layout:
    if config.raw is None and config.path == DEMO:
        raise InputError(
            Problem("data.raw", "", "which images? The built-in set is divided already", "data.raw=FOLDER, which holds "
                    "one folder for each class")
        )  # fmt: skip
    layout = find_layout(config)
    if layout.raw is None:
        raise InputError(
            Problem("data.path", str(layout.path), "holds train/ and val/, so it is divided already",
                    f"train on it as it is, or divide its training images: data.raw={layout.path / 'train'}")
        )  # fmt: skip
    return layout


def _units(
    kept: Sequence[str], classes: Sequence[str], names: Mapping[str, str], known: Mapping[str, Known], spec: str | None
) -> tuple[Units, bool, list[str]]:
    """Form what stays together: exact copies, and groups; a chain of both is one unit."""
    notes: list[str] = []
    groups: list[str | None] = [None] * len(kept)
    if spec is not None:
        files = [name.split("/", 1)[1] for name in kept]
        groups, notes = find_groups(spec, files, [file.split("/")[1:-1] for file in files], _NAMING)
    of, copies = join_copies([known[names[name]].image_hash for name in kept], groups)
    notes += copies
    ids = {name: i for i, name in enumerate(classes)}
    units = Units(of, np.array([ids[name.split("/")[1]] for name in kept], np.int64), len(classes))
    return units, spec is not None, notes


def _table(units: Units, scheme: Scheme, classes: Sequence[str], test: Flags, vals: Sequence[Flags]) -> list[str]:
    """Return the sizes of the splits, and how far their shares are off what was asked."""
    total, num_classes = len(test), units.num_classes
    of_rest = 1 / scheme.folds if scheme.scheme == "kfold" else scheme.val
    lines = size_lines(scheme, f"{total:,} images, {num_classes} classes", units.num_units, test, vals)
    counts_of_all = np.bincount(units.classes, minlength=num_classes)
    counts = np.array([np.bincount(units.classes[split], minlength=num_classes) for split in (test, *vals)])
    where = ["test", *(f"val of fold {fold}" for fold in range(len(vals)))]
    wanted = np.array([scheme.test] + [of_rest * (1 - scheme.test)] * len(vals))
    start = 0 if scheme.test else 1
    if scheme.groups:
        off = np.abs(counts / counts_of_all - wanted[:, None])[start:]
        row, label = (int(i) for i in np.unravel_index(off.argmax(), off.shape))
        share = 100 * counts[row + start, label] / counts_of_all[label]
        lines.append(
            f"  farthest off, since groups stay whole: {share:.2f} % of {classes[label]} in {where[row + start]} "
            f"(asked: {100 * wanted[row + start]:.2f} %)"
        )
    rows = list(zip(where, counts, strict=True))[start:]
    empty = [f"{name} ({(row == 0).sum()})" for name, row in rows if (row == 0).any()]
    if empty:
        lines.append(f"Splits without an image of some classes (how many): {some(empty, 10)}")
    return lines


def _next(layout: Layout) -> str:
    key = "data.raw" if layout.path == layout.raw else "data.path"
    return f"Train on it: task=classify {key}={os.fsdecode(layout.path)} data.fold=0"
