"""How many objects are pasted and how large they become is read off the labels, or said not to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cutouts import make_cutouts

from hsr_train.synthesis import ObjectBank
from hsr_train.synthesis.fitting import FEWEST, usual_counts, usual_scale

SIDE = 100


def labels(*objects: tuple[int, float, float]) -> np.ndarray:
    """One image's: class, width and height of each."""
    return np.array([(c, 0.5, 0.5, w, h) for c, w, h in objects], np.float32).reshape(-1, 5)


@pytest.fixture
def bank(tmp_path: Path) -> ObjectBank:
    return ObjectBank.read(make_cutouts(tmp_path / "cutouts"), ["a", "b", "c"], cache_dir=tmp_path, side=SIDE)


def test_counts_are_those_between_the_tenths_at_both_ends() -> None:
    images = [labels(*[(0, 0.1, 0.1)] * n) for n in (1, *range(3, 12), 50)]
    found, reason = usual_counts([*images, labels()], are_backgrounds=False)
    assert found == [3, 11] and "usually have" in reason


def test_crowds_are_no_more_than_may_be_typed() -> None:
    assert usual_counts([labels(*[(0, 0.1, 0.1)] * 300)] * FEWEST, are_backgrounds=False)[0] == [100, 100]


def test_too_few_images_with_objects_say_nothing() -> None:
    images = [labels(*[(0, 0.1, 0.1)] * 9)] * (FEWEST - 1) + [labels()] * 5
    assert usual_counts(images, are_backgrounds=False)[0] == [1, 3]


def test_images_that_are_pasted_into_have_their_own_objects() -> None:
    assert usual_counts([labels(*[(0, 0.1, 0.1)] * 9)] * FEWEST, are_backgrounds=True)[0] == [1, 3]


def test_size_of_a_cutout_is_that_in_its_photo(bank: ObjectBank, tmp_path: Path) -> None:
    """Whatever the size that it is kept in."""
    square = bank.sizes[bank.classes == 1]
    assert square == pytest.approx([60 / 120])
    small = ObjectBank.read(tmp_path / "cutouts", ["a", "b"], cache_dir=tmp_path, side=SIDE, largest_scale=0.5)
    assert small.sizes == pytest.approx(bank.sizes, rel=0.05)


def test_factors_lead_from_the_cutouts_to_the_labels(bank: ObjectBank) -> None:
    """In images of 200 x 100 pixels a box of 0.1 x 0.2 is a square of a tenth of the longest side."""
    images = [labels((1, 0.1, 0.2))] * 5 + [labels((1, 0.3, 0.6))] * 5
    shapes = np.array([[100, 200]] * 10)
    assert usual_scale(bank, images, shapes) == (
        [0.2, 0.6],
        "objects become as large as the training labels usually are",
    )


def test_each_class_is_compared_with_its_own_cutouts(bank: ObjectBank) -> None:
    own = {c: float(np.median(bank.sizes[bank.classes == c])) for c in (0, 1)}
    images = [labels(*((c, size / 2, size / 2) for c, size in own.items()))] * FEWEST
    assert usual_scale(bank, images, np.full((FEWEST, 2), 100))[0] == [0.5, 0.5]


def test_labels_of_classes_without_cutouts_say_nothing(bank: ObjectBank) -> None:
    found, reason = usual_scale(bank, [labels((2, 0.1, 0.1))] * FEWEST, np.full((FEWEST, 2), 100))
    assert found == [0.5, 1.5] and "fewer than" in reason


@pytest.mark.parametrize(("side", "factor"), [(1e-5, 0.001), (1.0, 2.0)])
def test_factor_can_be_typed(bank: ObjectBank, side: float, factor: float) -> None:
    images = [labels((1, side, side))] * FEWEST
    assert usual_scale(bank, images, np.full((FEWEST, 2), 100))[0] == [factor, factor]
