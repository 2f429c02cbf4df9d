"""How long a classifier takes for one image: the normalisation of a picture and the network, as for mode=predict."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hsr_train.config.schema import ClassifyAugmentationConfig
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.network import load_network
from hsr_train.engines.classification.samples import ImageSamples, normalise
from hsr_train.engines.latency import IMAGES, Pass, median_latency_ms


def latency_ms(file: Path, inputs: ClassifyInputs, augmentation: ClassifyAugmentationConfig, imgsz: int) -> float:
    """Return the median time for one image in milliseconds.

    Args:
        file: Weights of ours.
        inputs: With the images, of which the first few of val are looked at.
        augmentation: Says how an image becomes a square.
        imgsz: Its side in pixels.
    """
    assert inputs.dataset is not None
    val = inputs.dataset.splits["val"]

    def prepare() -> list[Pass]:
        model = load_network(file, inputs.device)
        images, targets = val.images[:IMAGES], val.targets[:IMAGES]
        seen = ImageSamples(images, targets, imgsz=imgsz, augmentation=augmentation, augment=False, seed=0)
        return [_of(model, seen[0, index][0].to(inputs.device)[None], inputs) for index in range(len(seen))]

    return median_latency_ms(prepare, inputs.device)


def _of(model: nn.Module, picture: Tensor, inputs: ClassifyInputs) -> Pass:
    """Return the pass of a picture: (1, 3, imgsz, imgsz) of uint8, on the device."""
    return lambda: model(normalise(picture, inputs.mean, inputs.std)).softmax(1)
