"""How long a detector takes for one image: the network, fused as for mode=predict, and what makes boxes of its output.

That is the suppression of overlaps by the thresholds of `predict` and the way back to pixels of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hsr_train.config.schema import PredictConfig
from hsr_train.engines.detection.predict import Picture, make_predictor, read_picture
from hsr_train.engines.latency import IMAGES, Pass, median_latency_ms


def latency_ms(
    model: Path,
    images: Sequence[Path],
    *,
    config: PredictConfig,
    imgsz: int,
    device: str,
    output_dir: Path,
    options: dict[str, Any] | None = None,
) -> float:
    """Return the median time for one image in milliseconds.

    Args:
        model: A plain .pt checkpoint.
        images: Some files that training has checked; the first few are looked at.
        config: Thresholds.
        imgsz: Side of the square in pixels that each is fitted into, as in training.
        device: A torch device, such as cpu or cuda:0.
        output_dir: The run's; nothing is written.
        options: Further ultralytics options, as for `predict`.
    """

    def prepare() -> list[Pass]:
        predictor = make_predictor(
            model, config=config, imgsz=imgsz, device=device, output_dir=output_dir, options=options, rect=False
        )
        pictures = [picture for file in images[:IMAGES] if not isinstance(picture := read_picture(file), str)]
        return [partial(_pass, predictor, predictor.preprocess([picture]), picture) for picture in pictures]

    return median_latency_ms(prepare, device)


def _pass(predictor: Any, image: torch.Tensor, picture: Picture) -> None:
    """Find the boxes of a picture.

    Args:
        predictor: Which has predicted before.
        image: (1, 3, imgsz, imgsz), on the device.
        picture: The same as it was read.
    """
    predictor.postprocess(predictor.inference(image), image, [picture])
