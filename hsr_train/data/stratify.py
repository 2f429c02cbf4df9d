"""Dividing images of several classes each, whole groups at a time: iterative stratification, in plain numpy.

After K. Sechidis, G. Tsoumakas and I. Vlahavas, "On the stratification of multi-label data" (2011): what can be divided
in the fewest ways is divided first, and each piece goes where most is missing. Here a piece is a unit, an image or a
group of them. Units come by the largest share that they hold of any class: single images by the rarity of their rarest
class, as in the paper, and large groups before small ones. Each goes where it brings the counts nearest to what is
wanted, by chi-square: those of every class in it, and of all images. Images without an object are a class of their own.
Then units move, one at a time, while that brings the counts nearer. `detection_folds` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hsr_train.data.division import FOLDS_STREAM, HOLDOUT_STREAM, TEST_STREAM, Flags, Ints

_MOST_ROUNDS = 5
"""The first places every unit; each further one moves those that have a better place by now."""


@dataclass
class LabelledUnits:
    """What stays together, and which classes are in it.

    Attributes:
        of: (n,) number of each image's unit, 0 to u-1.
        classes: For each image the ids of the classes in it, each once; empty for an image without an object.
        num_classes: Number of classes, c.
        num_units: u.
    """

    of: Ints
    classes: Sequence[Ints]
    num_classes: int

    def __post_init__(self) -> None:
        """Count images by unit and column: row k of `parts` is unit, column, number of images; sorted by unit.

        Column c stands for images without an object.
        """
        self.num_units = int(self.of.max(initial=-1)) + 1
        columns = [ids if len(ids) else np.array([self.num_classes]) for ids in self.classes]
        units = np.repeat(self.of, [len(ids) for ids in columns])
        wide = self.num_classes + 1
        pairs, numbers = np.unique(units * wide + np.concatenate([np.zeros(0, np.int64), *columns]), return_counts=True)
        self.parts: Ints = np.stack([pairs // wide, pairs % wide, numbers], 1).astype(np.int64)

    def count(self, chosen: Flags) -> Ints:
        """Return (c + 1,) how many of the flagged images hold each class, and how many hold none."""
        picked = [ids if len(ids) else np.array([self.num_classes]) for ids, c in zip(self.classes, chosen, strict=True)
                  if c]  # fmt: skip
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *picked]), minlength=self.num_classes + 1)


def draw_labelled_test(units: LabelledUnits, share: float, seed: int) -> Flags:
    """Return (u,) which units are held out for the test set."""
    every = np.ones(units.num_units, np.bool_)
    rng = np.random.default_rng([seed, TEST_STREAM])
    return stratify(units, every, (share, 1 - share), rng) == 0 if share else ~every


def draw_labelled_folds(units: LabelledUnits, rest: Flags, folds: int, seed: int) -> list[Flags]:
    """Return, for each fold, (u,) which units of the rest validate: a partition of it."""
    found = stratify(units, rest, (1 / folds,) * folds, np.random.default_rng([seed, FOLDS_STREAM]))
    return [found == fold for fold in range(folds)]


def draw_labelled_holdouts(units: LabelledUnits, rest: Flags, share: float, folds: int, seed: int) -> list[Flags]:
    """Return, for each of `folds` repetitions, (u,) which units of the rest validate: drawn anew each time."""
    rngs = [np.random.default_rng([seed, HOLDOUT_STREAM, fold]) for fold in range(folds)]
    return [stratify(units, rest, (share, 1 - share), rng) == 0 for rng in rngs]


def stratify(units: LabelledUnits, among: Flags, shares: Sequence[float], rng: np.random.Generator) -> Ints:
    """Divide units into subsets that have about their share of each class.

    Args:
        units: All of them.
        among: (u,) those to divide.
        shares: Of each subset, in images; they add up to 1.
        rng: Settles ties only; the same state gives the same subsets.

    Returns:
        (u,) the subset of each unit, -1 where it is not among those to divide.
    """
    parts = units.parts[among[units.parts[:, 0]]]
    sizes = np.bincount(units.of, minlength=units.num_units)
    size_column = units.num_classes + 1
    total = np.bincount(parts[:, 1], weights=parts[:, 2], minlength=size_column + 1)
    total[size_column] = sizes[among].sum()
    wanted: npt.NDArray[np.float64] = np.outer(shares, np.maximum(total, 1))
    missing = wanted.copy()
    lot = rng.permutation(units.num_units)
    ties = rng.permutation(len(shares))
    content = [
        (int(part[0, 0]), np.append(part[:, 1], size_column), np.append(part[:, 2], sizes[part[0, 0]]))
        for part in _by_unit(parts)
    ]
    content.sort(key=lambda unit: (-(unit[2] / total[unit[1]]).max().round(12), lot[unit[0]]))
    subset = np.full(units.num_units, -1, np.int64)
    for _ in range(_MOST_ROUNDS):
        before = subset.copy()
        for unit, columns, numbers in content:
            if subset[unit] >= 0:
                missing[subset[unit], columns] += numbers
            # What the sum of missing^2 / wanted falls by.
            nearer = (numbers * (2 * missing[:, columns] - numbers) / wanted[:, columns]).sum(1)
            best = int(ties[nearer[ties].round(9).argmax()])
            subset[unit] = best
            missing[best, columns] -= numbers
        if (subset == before).all():
            break
    return subset


def _by_unit(parts: Ints) -> list[Ints]:
    """Cut rows that are sorted by unit into one array for each unit."""
    return np.split(parts, np.flatnonzero(np.diff(parts[:, 0])) + 1) if len(parts) else []
