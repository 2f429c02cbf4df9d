"""From a decoded image to the network's square: what is drawn at random for training, and the fixed view for the rest.

torchvision's transforms draw from torch's global generator; `drawing` lends them one that is seeded for a sample, so
that a view is a function of (seed, epoch, index) and the global generator stays as it was. `samples.py` calls both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from hsr_train.config.schema.classify import ClassifyAugmentationConfig

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), BGR, as OpenCV decodes."""

MEAN_COLOUR = (124, 116, 104)
"""ImageNet's mean in RGB: fills what a rotation uncovers or erasing takes away; near zero once normalised."""
CENTRE = 224 / 256
"""Share of the short side that is shown where training sees random crops: objects then appear as large as there."""


@contextmanager
def drawing(*key: int) -> Iterator[None]:
    """Seed torch's CPU generator with some numbers; afterwards it is as it was. Costs some 20 microseconds."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))
    try:
        yield
    finally:
        generator.set_state(before)


class View:
    """The square that the network sees of an image; without augmentation, always the same.

    Args:
        config: The augmentation section; `crop` holds without augmentation too.
        imgsz: Side of the square in pixels.
        augment: Draw at random.
    """

    def __init__(self, config: ClassifyAugmentationConfig, imgsz: int, *, augment: bool) -> None:
        self.imgsz, self.augment, self._squeeze = imgsz, augment, config.crop == "resize"
        self._crop = v2.RandomResizedCrop(imgsz, scale=(config.min_area, 1.0))
        steps = _steps(config) if augment else []
        self._change: Any = v2.Compose(steps) if steps else None

    @property
    def least_side(self) -> int:
        """Pixels that an image's short side must have so that nothing is enlarged which need not be."""
        if self._squeeze:
            return self.imgsz
        share = math.sqrt(self._crop.scale[0]) if self.augment else CENTRE
        return math.ceil(self.imgsz / share)

    def __call__(self, picture: Picture) -> Tensor:
        """Return the square of an image as RGB, uint8, (3, imgsz, imgsz); draws from torch's global generator."""
        height, width = picture.shape[:2]
        if self.augment and not self._squeeze:
            box = self._crop.make_params([torch.empty((3, height, width), device="meta")])
            picture = picture[box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]]
        elif not self._squeeze:
            side = max(1, round(min(height, width) * CENTRE))
            top, left = (height - side) // 2, (width - side) // 2
            picture = picture[top : top + side, left : left + side]
        view = torch.from_numpy(np.ascontiguousarray(_resized(picture, self.imgsz)[..., ::-1].transpose(2, 0, 1)))
        return view if self._change is None else self._change(view)


def _resized(picture: Picture, side: int) -> Picture:
    """Return an image squeezed into a square; what shrinks is averaged over areas, which leaves no aliasing."""
    shrinks = min(picture.shape[:2]) >= side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (side, side), interpolation=method), np.uint8)


def _steps(config: ClassifyAugmentationConfig) -> list[Any]:
    """Return the transforms that follow the crop; those whose setting is 0 are left out."""
    fill: Any = list(MEAN_COLOUR)
    steps: list[Any] = []
    if config.fliplr:
        steps.append(v2.RandomHorizontalFlip(config.fliplr))
    if config.flipud:
        steps.append(v2.RandomVerticalFlip(config.flipud))
    if config.degrees:
        steps.append(v2.RandomRotation(config.degrees, interpolation=InterpolationMode.BILINEAR, fill=fill))
    if config.policy == "trivial":
        steps.append(v2.TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR, fill=fill))
    elif config.policy == "randaugment":
        steps.append(v2.RandAugment(interpolation=InterpolationMode.BILINEAR, fill=fill))
    if config.brightness or config.contrast or config.saturation or config.hue:
        steps.append(v2.ColorJitter(config.brightness, config.contrast, config.saturation, config.hue))
    if config.erasing:
        steps.append(v2.RandomErasing(config.erasing, value=fill))
    return steps
