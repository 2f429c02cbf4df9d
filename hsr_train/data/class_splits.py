"""Which images each split of a set has, by name, before any is opened.

`class_set` asks; the answer comes from the folders train/, val/ and test/, or from the index files of one fold.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data.class_folders import (
    DEMO,
    RAW,
    SPLITS,
    SPLITS_FOLDER,
    Layout,
    class_problems,
    find_layout,
    list_classes,
    some,
    stranger_problems,
)
from hsr_train.data.demo_classes import NUM_FOLDS
from hsr_train.data.index_files import (
    RECORD,
    arguments,
    fold_numbers,
    index_name,
    index_names,
    read_class_index,
    read_record,
)
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem

DIVISION_KEYS = ("scheme", "folds", "ratio", "seed", "groups")
"""Of `data`: what mode=split divides by, and records."""

_WORDS = {"val": ("valid", "validation"), "train": ("training",), "test": ("testing",)}


@dataclass
class FoundSplits:
    """The splits of a set.

    Attributes:
        classes: Names; the index is the class id.
        fold: Which fold it is; None where there are none.
        images: By split: names relative to the root, `<folder>/<class>/<file>`, by class and name.
        strangers: Files of class folders that are no images.
        problems: What forbids to go on.
        warnings: What is odd.
        division: What mode=split recorded.
    """

    classes: list[str]
    fold: int | None
    images: dict[str, list[str]] = field(default_factory=dict)
    strangers: list[Problem] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    division: dict[str, Any] = field(default_factory=dict)


def list_folds(config: ClassifyDataConfig) -> list[int]:
    """Return the folds of a divided set, for `data.fold=all`.

    Raises:
        InputError: There are none.
    """
    if config.raw is None and config.path == DEMO:
        return list(range(NUM_FOLDS))
    layout = find_layout(config)
    if folds := fold_numbers(layout.splits) if layout.raw else []:
        return folds
    if layout.raw is None:
        raise InputError(_no_folds(layout, "all"))
    raise InputError(_not_divided(layout, ["train"], 0))


def take_division(
    config: ClassifyDataConfig, typed: Set[str], division: Mapping[str, Any], decisions: Decisions
) -> list[Problem]:
    """Make the keys of `mode=split` say how a set was divided, in place: they cannot divide it anew.

    Args:
        config: Whose values become those of the division.
        typed: Keys that were typed; they are never changed, only refused.
        division: What mode=split recorded; empty for splits that it did not make.
        decisions: Receives what changed.

    Returns:
        Typed values that say something else, or that have no effect.
    """
    wrong = {key: _plain(getattr(config, key)) for key in DIVISION_KEYS if f"data.{key}" in typed}
    if not division:
        allowed = "has no effect: the splits of this set were not made by mode=split"
        return [Problem(f"data.{key}", value, allowed, "leave it out") for key, value in wrong.items()]
    problems = []
    for key in DIVISION_KEYS:
        made, asked = division.get(key), getattr(config, key)
        if key not in division or _same(key, made, asked, str(division.get("scheme"))):
            continue
        if key in wrong:
            again = _again_of(config, {**division, key: asked})
            remedy = f"leave it out, or divide again: {again}" if again else "leave it out"
            made_text = f"the set was divided with data.{key}={_plain(made)}, see {SPLITS_FOLDER}/{RECORD}"
            problems.append(Problem(f"data.{key}", wrong[key], made_text, remedy))
        else:
            setattr(config, key, made)
            decisions.record(f"data.{key}", made, f"how the set was divided: {SPLITS_FOLDER}/{RECORD}")
    return problems


def _same(key: str, made: Any, asked: Any, scheme: str) -> bool:
    """Say whether a value asks for the division that was made; kfold looks at the test share alone."""
    if key != "ratio" or made == asked or not isinstance(made, list):
        return bool(made == asked)
    return scheme == "kfold" and bool(asked) and bool(made) and made[-1] == asked[-1]


def _plain(value: Any) -> str:
    return json.dumps(value, separators=(",", ":")) if not isinstance(value, str) else value


def _again_of(config: ClassifyDataConfig, division: dict[str, Any]) -> str:
    """Return the command that divides a set of the user's anew; empty for the built-in set."""
    return "" if config.raw is None and config.path == DEMO else _again(find_layout(config), division)


def find_splits(layout: Layout, fold: int | str, need: Sequence[str]) -> FoundSplits:
    """Find the images of the splits to load.

    Args:
        layout: Where the set lies.
        fold: What was typed, or the fold of a cross-validation.
        need: Splits that must be there; where train is among them, the others are wanted too.
    """
    wanted = [split for split in SPLITS if split in need or "train" in need]
    return (
        _from_folders(layout, fold, need, wanted) if layout.raw is None else _from_indexes(layout, fold, need, wanted)
    )


def _from_folders(layout: Layout, fold: int | str, need: Sequence[str], wanted: Sequence[str]) -> FoundSplits:
    folders = {split: list_classes(layout.root / split) for split in SPLITS if (layout.root / split).is_dir()}
    leading = "train" if "train" in folders else next(iter(folders))
    classes = sorted(folders[leading].images)
    found = FoundSplits(classes, None)
    if fold not in (0, "0"):
        found.problems.append(_no_folds(layout, fold))
    for split in need:
        if split not in folders:
            found.problems.append(_no_split(layout, split))
    for split, folder in folders.items():
        if split == leading:
            found.problems += class_problems(folder, f"data.path ({split})")
        elif split in wanted:
            found.problems += class_problems(folder, f"data.path ({split})", complete=False)
            for name in sorted(set(folder.images) - set(classes)):
                found.problems.append(
                    Problem(f"{split}/{name}", "", f"is no class of {leading}, so nothing can learn it",
                            f"correct the folder's name, or remove it; {leading} has {some(classes, 10)}")
                )  # fmt: skip
        if split in wanted:
            files = [f"{split}/{file}" for name in classes for file in folder.images.get(name, [])]
            if files or split in need:
                found.images[split] = files
            found.strangers += stranger_problems(folder, layout.root)
            if split in need and not files and split != leading:
                found.problems.append(Problem(f"data.path ({split})", str(folder.folder), "has no image of any class"))
    return found


def _from_indexes(layout: Layout, fold: int | str, need: Sequence[str], wanted: Sequence[str]) -> FoundSplits:
    assert layout.raw is not None
    folder = list_classes(layout.raw)
    classes = list(folder.images)
    found = FoundSplits(
        classes, None, problems=class_problems(folder, "data.raw" if layout.path == layout.raw else RAW)
    )
    if layout.path != layout.raw and (layout.root / "train").is_dir():
        found.warnings.append(f"{layout.root} holds train/ besides raw/: raw/ and splits/ are used")
    folds = fold_numbers(layout.splits)
    number = int(fold) if str(fold).isdecimal() else -1
    of_fold = [split for split in wanted if split != "test"]
    if of_fold and (number < 0 or (folds and number not in folds)):
        allowed = f"one of {', '.join(map(str, folds))}" if folds else "a number from 0"
        found.problems.append(Problem("data.fold", str(fold), allowed, f"data.fold={folds[0] if folds else 0}"))
        return found
    if of_fold:
        found.fold = number
    try:
        found.division = read_record(layout.splits)
    except InputError as err:
        found.problems += err.problems
    present = {f"{layout.raw.name}/{file}" for files in folder.images.values() for file in files}
    missing = [s for s in need if s in wanted and not (layout.splits / index_name(s, number)).exists()]
    if missing:
        found.problems.append(_not_divided(layout, missing, number, found.division))
    for split in wanted:
        path = layout.splits / index_name(split, number)
        if not path.exists():
            continue
        lines, problems = read_class_index(path, layout.raw.name, present, again=_again(layout, found.division))
        found.images[split] = sorted(lines, key=lambda line: (line.split("/")[1:2], line))
        found.problems += problems
    if "train" in need and not found.problems:
        named = {line for lines in found.images.values() for line in lines}
        divided = {line.split("/")[1] for line in named}
        if unknown := [name for name, files in folder.images.items() if files and name not in divided]:
            allowed = f"{some(unknown)}: in no split, since the set was divided before"
            found.problems.append(Problem("new classes", "", allowed, _again(layout, found.division)))
            return found
        if added := sorted(present - named - set(found.division.get("left_out", ()))):
            found.warnings.append(
                f"{len(added):,} images of {layout.raw} are in no split, so they are not used: {some(added)}; "
                f"to divide again: {_again(layout, found.division)}"
            )
    return found


def _again(layout: Layout, division: dict[str, Any] | None = None) -> str:
    """Return the command that divides the set, with the arguments of last time where they are known."""
    words = arguments(division or {}, ClassifyDataConfig())
    return " ".join([f"mode=split task=classify data.raw={layout.raw}", *words])


def _not_divided(layout: Layout, splits: Sequence[str], fold: int, division: dict[str, Any] | None = None) -> Problem:
    others = index_names(layout.splits)
    there = f" ({layout.splits} holds {some(others)})" if others else ""
    first, *more = [index_name(split, fold) for split in splits]
    text = f"{layout.splits / first}{''.join(f', nor {name}' for name in more)}{there}"
    return Problem("Index file not found", "", text, _again(layout, division))


def _no_folds(layout: Layout, fold: int | str) -> Problem:
    return Problem(
        "data.fold", str(fold), f"{layout.path} has train/ and val/, and no folds",
        f"data.fold=0, or make folds of its training images: mode=split task=classify data.raw={layout.path / 'train'}",
    )  # fmt: skip


def _no_split(layout: Layout, split: str) -> Problem:
    for name in _WORDS[split]:
        if (layout.root / name).is_dir():
            return Problem("data.path", str(layout.path), f"has no {split}/", f"rename {name}/ to {split}/")
    remedy = f"mode=split task=classify data.raw={layout.root / 'train'} divides the training images"
    return Problem("data.path", str(layout.path), f"has no {split}/", remedy if split == "val" else f"add {split}/")
