"""How many objects composed images have and how large they are, read off the training labels.

The engine asks before it reads the bank for good; what comes out are numbers that a person could have typed, and why.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hsr_train.config.schema.synthetic import AUTO
from hsr_train.synthesis.backgrounds import Floats
from hsr_train.synthesis.bank import ObjectBank

FEWEST = 10
"""Labelled images, or labels of classes that have cut-outs, below which nothing is read off them."""
_PERCENTILES = (10, 90)
"""Between which the draws are uniform: the ends are crowds, labels at the image's border and mistakes."""
_MOST_OBJECTS, _LARGEST_FACTOR = 100, 10.0


def usual_counts(labels: Sequence[Floats], *, are_backgrounds: bool) -> tuple[list[int], str]:
    """Return fewest and most objects to paste into an image, and why.

    Args:
        labels: For each training image (k, 5); images without objects do not count.
        are_backgrounds: Objects are pasted into these images, which have their own.
    """
    if are_backgrounds:
        return list(AUTO["objects"]), "the training images are the backgrounds, and have objects of their own"
    counts = [len(one) for one in labels if len(one)]
    if len(counts) < FEWEST:
        return list(AUTO["objects"]), f"fewer than {FEWEST} training images have objects"
    low, high = np.percentile(counts, _PERCENTILES, method="nearest").astype(int).tolist()
    return [min(low, _MOST_OBJECTS), min(high, _MOST_OBJECTS)], "as many as training images usually have"


def usual_scale(
    bank: ObjectBank | None, labels: Sequence[Floats], shapes: npt.NDArray[np.int64]
) -> tuple[list[float], str]:
    """Return least and largest factor that make cut-outs as large as their classes usually are, and why.

    An object's size is the square root of its box's area, in longest sides of its image. That of a class's cut-outs is
    their median.

    Args:
        bank: The cut-outs; None: they are cut out of the training images.
        labels: For each training image (k, 5): class, centre x, centre y, width, height; fractions of the image.
        shapes: (n, 2) height and width of the images in pixels.
    """
    if bank is None:
        return list(AUTO["scale"]), "objects have their size in the training images, which they are cut out of"
    own = bank.sizes
    medians = {c: float(np.median(own[bank.classes == c])) for c in np.unique(bank.classes).tolist()}
    factors: list[float] = []
    for one, (height, width) in zip(labels, shapes.tolist(), strict=True):
        sizes = np.sqrt(one[:, 3] * width * one[:, 4] * height) / max(height, width)
        classes = one[:, 0].astype(int).tolist()
        factors += [size / medians[c] for size, c in zip(sizes.tolist(), classes, strict=True) if c in medians]
    if len(factors) < FEWEST:
        return list(AUTO["scale"]), f"fewer than {FEWEST} labels are of classes that have cut-outs"
    low, high = np.percentile(factors, _PERCENTILES).tolist()
    return [_rounded(low), _rounded(high)], "objects become as large as the training labels usually are"


def _rounded(factor: float) -> float:
    """Return a factor as a person would type it, within what `synthetic.scale` allows."""
    return float(f"{min(max(factor, 0.001), _LARGEST_FACTOR):.2g}")
