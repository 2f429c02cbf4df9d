"""Dividing numbered images into a test set and folds: pure functions of classes, units and a seed.

A unit is what never straddles a split: an image with its exact copies, or a group. `folds` forms the units and has the
result written; `demo_classes` divides the built-in set with it. Folds are made by scikit-learn, which is imported
when it is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hsr_train.config.schema import DividedDataConfig
from hsr_train.errors import InputError, Problem

Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_MOST_CLASSES = 10
TEST_STREAM, FOLDS_STREAM, HOLDOUT_STREAM = 0, 1, 2  # of random numbers

TOLERANCE = 1e-6
"""Of the sum of `data.ratio`."""


@dataclass(frozen=True)
class Scheme:
    """How a set is divided.

    Attributes:
        scheme: kfold or holdout.
        folds: How many.
        test: Share that is held out for the test set.
        val: holdout: share of the rest that validates.
        seed: Of every draw.
        groups: data.groups, for the record.
    """

    scheme: str
    folds: int
    test: float
    val: float
    seed: int
    groups: str | None = None


@dataclass
class Units:
    """Which images stay together.

    Attributes:
        of: (n,) number of each image's unit, 0 to u-1.
        classes: (n,) class of each image.
        num_classes: Number of classes.
        num_units: u.
    """

    of: Ints
    classes: Ints
    num_classes: int

    def __post_init__(self) -> None:
        """Count images by unit and class: row k of `parts` is unit, class, number of images; sorted by unit.

        Not a matrix, which a million images of a thousand classes would fill memory with.
        """
        pairs, numbers = np.unique(self.of * self.num_classes + self.classes, return_counts=True)
        self.parts: Ints = np.stack([pairs // self.num_classes, pairs % self.num_classes, numbers], 1).astype(np.int64)
        self.num_units = int(self.of.max(initial=-1)) + 1

    def per_class(self, which: Flags) -> Ints:
        """Return (classes,) how many of the flagged units hold images of each class."""
        return np.bincount(self.parts[which[self.parts[:, 0]], 1], minlength=self.num_classes)


def scheme_of(config: DividedDataConfig) -> Scheme:
    """Return how `data.*` says to divide.

    Raises:
        InputError: The settings are not possible; all problems at once.
    """
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


def size_lines(scheme: Scheme, what: str, num_units: int, test: Flags, vals: Sequence[Flags]) -> list[str]:
    """Return the sizes of the splits beside what was asked, for a person.

    Args:
        scheme: What was asked.
        what: How many of what there are.
        num_units: How many units.
        test: (n,) which images are held out.
        vals: For each fold (n,) which validate.
    """
    total = len(test)
    of_rest = 1 / scheme.folds if scheme.scheme == "kfold" else scheme.val
    groups = f", {num_units:,} groups ({scheme.groups})" if scheme.groups else ""
    lines = [f"  {what}, {scheme.scheme}, seed {scheme.seed}{groups}"]
    lines.append(f"  test    {test.sum():8,} images {_share(test.sum(), total, scheme.test)}")
    for fold, val in enumerate(vals):
        train = total - int(test.sum()) - int(val.sum())
        share_text = _share(val.sum(), total, of_rest * (1 - scheme.test))
        lines.append(f"  fold {fold:<3}{train:8,} train {val.sum():8,} val {share_text}")
    return lines


def _share(count: int, total: int, wanted: float) -> str:
    return f"{100 * count / total:6.2f} % (asked: {100 * wanted:.2f} %)"


def divide(
    units: Units, scheme: Scheme, classes: Sequence[str], *, mixed: bool, word: str = "images"
) -> tuple[Flags, list[Flags]]:
    """Return (n,) which images are held out, and for each fold (n,) which validate; the others train.

    Args:
        units: What stays together.
        scheme: How.
        classes: Names, for messages.
        mixed: Whether units are groups that may hold several classes.
        word: What the units are called.

    Raises:
        InputError: A class has too few units, or scikit-learn is missing.
    """
    test = draw_test(units, scheme.test, scheme.seed)
    need = scheme.folds if scheme.scheme == "kfold" else 2
    left = units.per_class(~test)
    if (left < need).any():
        _refuse(scheme, classes, units.per_class(np.ones_like(test)), left, need, word)
    if scheme.scheme == "kfold":
        vals = draw_folds(units, ~test, scheme.folds, scheme.seed, mixed=mixed)
    else:
        vals = draw_holdouts(units, ~test, scheme.val, scheme.folds, scheme.seed)
    empty = [
        f"class {classes[label]} in fold {fold}"
        for fold, val in enumerate(vals)
        for label in np.flatnonzero(units.per_class(~(test | val)) == 0).tolist()
    ]
    if empty:
        listed = ", ".join(empty[:_MOST_CLASSES]) + (" ..." if len(empty) > _MOST_CLASSES else "")
        raise InputError(Problem("data.groups", "", f"leaves no training image for {listed}", "more groups of these"))
    return test[units.of], [val[units.of] for val in vals]


def draw_test(units: Units, share: float, seed: int) -> Flags:
    """Return (u,) which units are held out for the test set."""
    every = np.ones(units.num_units, np.bool_)
    return _draw(units, every, share, np.random.default_rng([seed, TEST_STREAM]))


def draw_holdouts(units: Units, rest: Flags, share: float, folds: int, seed: int) -> list[Flags]:
    """Return, for each of `folds` repetitions, (u,) which units of the rest validate: drawn anew each time."""
    return [_draw(units, rest, share, np.random.default_rng([seed, HOLDOUT_STREAM, fold])) for fold in range(folds)]


def draw_folds(units: Units, rest: Flags, folds: int, seed: int, *, mixed: bool) -> list[Flags]:
    """Partition the units of the rest into disjoint validation sets.

    Args:
        units: Their images.
        rest: (u,) which are not held out; every class must have at least `folds` units there.
        folds: How many.
        seed: 0 or more, of any size.
        mixed: Whether units are groups of several images; else one image stands for its copies.

    Returns:
        For each fold (u,) which units validate.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.model_selection import (  # type: ignore[import-untyped, unused-ignore]
            StratifiedGroupKFold,
            StratifiedKFold,
        )
    except ImportError as err:
        raise InputError(
            Problem("task", "classify", "dividing into folds needs scikit-learn", "pip install 'hsr_train[classify]'")
        ) from err
    state = int(np.random.default_rng([seed, FOLDS_STREAM]).integers(2**31))
    if mixed:
        images = np.flatnonzero(rest[units.of])
        maker = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    else:
        images = np.unique(units.of, return_index=True)[1][rest]
        maker = StratifiedKFold(folds, shuffle=True, random_state=state)
    found = []
    for _, chosen in maker.split(images, units.classes[images], units.of[images] if mixed else None):
        val = np.zeros(len(rest), np.bool_)
        val[units.of[images[chosen]]] = True
        found.append(val)
    return found


def _draw(units: Units, among: Flags, share: float, rng: np.random.Generator) -> Flags:
    """Draw units until each class has about its share: large units first, each where it brings the counts nearer.

    Every class gets something if it has at least two units.

    Args:
        units: All of them.
        among: (u,) those to draw from.
        share: Of the images of these, in [0, 1).
        rng: Source of randomness.
    """
    taken = np.zeros(units.num_units, np.bool_)
    if not share:
        return taken
    parts = units.parts[among[units.parts[:, 0]]]
    sizes = np.bincount(units.of, minlength=units.num_units)
    missing: list[int] = _targets(_images(parts, units.num_classes), share, rng).tolist()
    content: dict[int, list[tuple[int, int]]] = {}
    for unit, label, number in parts.tolist():
        content.setdefault(unit, []).append((label, number))
    order = rng.permutation(np.flatnonzero(among))
    order = order[np.argsort(-sizes[order], kind="stable")]
    for unit in order.tolist():
        # Nearer in squared distance: the sum of (missing - n)^2 is less than that of missing^2.
        if sum(number * (number - 2 * missing[label]) for label, number in content[unit]) < 0:
            taken[unit] = True
            for label, number in content[unit]:
                missing[label] -= number
    for label in np.flatnonzero((units.per_class(taken) == 0) & (units.per_class(among) > 1)).tolist():
        # Each was too large to bring the counts nearer: the smallest does least harm.
        holders = set(parts[parts[:, 1] == label, 0].tolist())
        taken[next(unit for unit in reversed(order.tolist()) if unit in holders)] = True
    return taken


def _images(parts: Ints, num_classes: int) -> Ints:
    """Return (classes,) the number of images."""
    return np.bincount(parts[:, 1], weights=parts[:, 2], minlength=num_classes).astype(np.int64)


def _targets(totals: Ints, share: float, rng: np.random.Generator) -> Ints:
    """Return how many images of each class are wanted: the largest remainders are rounded up, ties by lot."""
    exact = totals * share
    target = np.floor(exact + 1e-9).astype(np.int64)
    lot = rng.permutation(len(totals))
    order = lot[np.argsort(-(exact - target)[lot], kind="stable")]
    target[order[: max(0, round(exact.sum()) - int(target.sum()))]] += 1
    most: Ints = np.maximum(totals - 1, 0)
    wanted: Ints = np.minimum(np.maximum(target, 1), most)
    return wanted


def _refuse(scheme: Scheme, classes: Sequence[str], total: Ints, left: Ints, need: int, word: str) -> None:
    """Say which classes have too few units: one message, since all have one cause."""
    purpose = f"{need} folds" if scheme.scheme == "kfold" else "train and val"
    most = int(left.min())
    easier = f", or data.folds={most}" if scheme.scheme == "kfold" and most >= 2 else ""
    key = "data.folds" if scheme.scheme == "kfold" else "data.scheme"
    few = np.flatnonzero(left < need).tolist()

    def has(label: int) -> str:
        held_out = int(total[label] - left[label])
        number = f"{total[label]} {word.removesuffix('s') if total[label] == 1 else word}"
        return f"{number}, {held_out} of them for the test set" if held_out else number

    if len(few) == 1:
        name = classes[few[0]]
        allowed = f"{has(few[0])}; {purpose} need {need} besides"
        raise InputError(Problem(key, f"class {name}", allowed, f"more {word} of {name}, or remove its folder{easier}"))
    listed = "; ".join(f"{classes[label]} has {has(label)}" for label in few[:_MOST_CLASSES])
    more = f"; and {len(few) - _MOST_CLASSES} more" if len(few) > _MOST_CLASSES else ""
    allowed = (
        f"{len(few)} classes have too few {word}, since {purpose} need {need} besides the test set: {listed}{more}"
    )
    raise InputError(Problem(key, "", allowed, f"more {word} of them, or remove their folders{easier}"))
