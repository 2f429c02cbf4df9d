"""mode=split: a folder of classes becomes one held-out test set and folds of the rest, as index files beside it.

`division` draws, `groups` says what stays together, `index_files` writes, `near_duplicates` looks for what still
straddles. The result depends on the seed, the names and the exact copies among the images, not on the order in which
the disk lists them. Exact copies always stay together.
"""

from __future__ import annotations

import logging
import math
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
from hsr_train.data.division import Flags, Scheme, Units, divide
from hsr_train.data.groups import find_groups
from hsr_train.data.index_files import (
    RECORD,
    index_contents,
    index_names,
    list_fingerprint,
    read_record,
    write_indexes,
)
from hsr_train.data.near_duplicates import near_duplicates
from hsr_train.data.report import input_error
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

log = logging.getLogger(__name__)

TOLERANCE = 1e-6
"""Of the sum of `data.ratio`."""


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
    scheme = _scheme(config)
    layout = _layout(config)
    assert layout.raw is not None
    _refuse_foreign(layout)
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
    notes += _near(kept, names, known, units, test, vals)
    before = _contents(layout)
    earlier = read_record(layout.splits) if _is_complete(layout) else {}
    write_indexes(layout.splits, contents, record)
    what = _compared(before, _contents(layout), earlier)
    return [what.format(folder=layout.splits), *_table(units, scheme, classes, test, vals), *notes, _next(layout)]


def _scheme(config: ClassifyDataConfig) -> Scheme:
    """Check the settings, all problems at once."""
    ratio, problems = list(config.ratio), []
    if len(ratio) != 3:
        problems.append(
            Problem("data.ratio", str(ratio), "three numbers: train, val, test", "data.ratio=[0.7,0.15,0.15]")
        )
    elif not all(math.isfinite(share) and share >= 0 for share in ratio):
        problems.append(Problem("data.ratio", str(ratio), "no share is negative", "data.ratio=[0.7,0.15,0.15]"))
    elif abs(sum(ratio) - 1) > TOLERANCE:
        problems.append(
            Problem("data.ratio", str(ratio), f"adds up to {sum(ratio):g}, not 1", "data.ratio=[0.7,0.15,0.15]")
        )
    elif not ratio[0] or (config.scheme == "holdout" and not ratio[1]):
        which = "train and val" if config.scheme == "holdout" else "train"
        problems.append(Problem("data.ratio", str(ratio), f"leaves nothing for {which}", "data.ratio=[0.7,0.15,0.15]"))
    if config.scheme == "kfold" and config.folds < 2:
        problems.append(
            Problem("data.folds", str(config.folds), "a k-fold division has at least 2",
                    "data.folds=5, or one random division: data.scheme=holdout data.folds=1")
        )  # fmt: skip
    if problems:
        raise InputError(problems)
    return Scheme(config.scheme, config.folds, ratio[2], ratio[1] / (ratio[0] + ratio[1]), config.seed, config.groups)


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


def _refuse_foreign(layout: Layout) -> None:
    """Refuse to replace index files that were not made here: nobody could make them again."""
    foreign = index_names(layout.splits)
    if foreign and not (layout.splits / RECORD).exists():
        raise InputError(
            Problem(str(layout.splits), some(foreign), "these index files were not made by mode=split",
                    f"keep them and train, or move the folder away: mv {layout.splits} {layout.splits}-old")
        )  # fmt: skip


def _units(
    kept: Sequence[str], classes: Sequence[str], names: Mapping[str, str], known: Mapping[str, Known], spec: str | None
) -> tuple[Units, bool, list[str]]:
    """Form what stays together: exact copies, and groups; a chain of both is one unit."""
    notes: list[str] = []
    groups: list[str | None] = [None] * len(kept)
    if spec is not None:
        groups, notes = find_groups(spec, [name.split("/", 1)[1] for name in kept])
    contents = [known[names[name]].image_hash for name in kept]
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def top(node: tuple[str, str]) -> tuple[str, str]:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]
            node = parent[node]
        return node

    for content, group in zip(contents, groups, strict=True):
        if group is not None:
            parent[top(("content", content))] = top(("group", group))
    numbers: dict[tuple[str, str], int] = {}
    of = [numbers.setdefault(top(("content", content)), len(numbers)) for content in contents]
    if copies := len(contents) - len(set(contents)):
        notes.append(f"{copies:,} images are exact copies of others; copies stay in one split")
    ids = {name: i for i, name in enumerate(classes)}
    units = Units(np.array(of, np.int64), np.array([ids[name.split("/")[1]] for name in kept], np.int64), len(classes))
    return units, spec is not None, notes


def _near(
    kept: Sequence[str], names: Mapping[str, str], known: Mapping[str, Known], units: Units, test: Flags,
    vals: Sequence[Flags],
) -> list[str]:  # fmt: skip
    """Report pictures that look the same and lie in two splits of some fold."""
    pairs = near_duplicates([names[name] for name in kept], [known[names[name]].image_hash for name in kept])
    apart = np.zeros(len(pairs), np.bool_)
    for split in (test, *vals):
        apart |= split[pairs[:, 0]] != split[pairs[:, 1]]
    pairs = pairs[apart]
    if not len(pairs):
        return []
    examples = some(f"{kept[a]} = {kept[b]}" for a, b in pairs)
    num_images = len(np.unique(pairs))
    return [
        f"{len(pairs):,} pairs of images look the same and lie in different splits ({num_images:,} images): "
        f"{examples}; remove one of each, or keep them together: data.groups"
    ]


def _contents(layout: Layout) -> dict[str, bytes]:
    return {name: (layout.splits / name).read_bytes() for name in index_names(layout.splits)}


def _is_complete(layout: Layout) -> bool:
    try:
        return bool(read_record(layout.splits))
    except InputError:
        return False  # it is replaced


def _compared(before: Mapping[str, bytes], after: Mapping[str, bytes], earlier: Mapping[str, object]) -> str:
    if not before:
        return "Wrote {folder}"
    if before == after:
        return "Wrote {folder}; the same as before"
    gone = sorted(set(before) - set(after))
    what = f" of {earlier['folds']} folds (scheme {earlier['scheme']}, seed {earlier['seed']})" if earlier else ""
    return f"Wrote {{folder}}; replaced the earlier splits{what}" + (f", removed {some(gone)}" if gone else "")


def _table(units: Units, scheme: Scheme, classes: Sequence[str], test: Flags, vals: Sequence[Flags]) -> list[str]:
    """Return the sizes of the splits, and how far their shares are off what was asked."""
    total = len(test)
    of_rest = 1 / scheme.folds if scheme.scheme == "kfold" else scheme.val
    num_classes = units.num_classes
    lines = [f"  {total:,} images, {num_classes} classes, {scheme.scheme}, seed {scheme.seed}"]
    if scheme.groups:
        lines[0] += f", {units.num_units:,} groups ({scheme.groups})"
    lines.append(f"  test    {test.sum():8,} images {_share(test.sum(), total, scheme.test)}")
    for fold, val in enumerate(vals):
        train = total - int(test.sum()) - int(val.sum())
        share_text = _share(val.sum(), total, of_rest * (1 - scheme.test))
        lines.append(f"  fold {fold:<3}{train:8,} train {val.sum():8,} val {share_text}")
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


def _share(count: int, total: int, wanted: float) -> str:
    return f"{100 * count / total:6.2f} % (asked: {100 * wanted:.2f} %)"


def _next(layout: Layout) -> str:
    key = "data.raw" if layout.path == layout.raw else "data.path"
    return f"Train on it: task=classify {key}={os.fsdecode(layout.path)} data.fold=0"
