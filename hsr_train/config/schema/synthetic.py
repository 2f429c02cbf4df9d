"""The section `synthetic` of `task=detect`: images composed while training, from cut-outs and backgrounds.

`hsr_train.synthesis` takes it as it is; `checks.py` refuses what has no effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hsr_train.config.schema.common import knob

BLENDS = ("hard", "feathered", "gaussian", "poisson")
"""Ways to let a cut-out's edge go over into its background."""
AUTO: dict[str, list[Any]] = {"objects": [1, 3], "scale": [0.5, 1.5]}
"""Pairs that are read off the training labels, and what they are where these don't say it."""


@dataclass
class SyntheticConfig:
    """Copy-paste synthesis: what is composed, and how many images of it each epoch has beside the real ones."""

    enabled: bool | str = knob(
        "auto", "Compose images; auto: if cut-outs are given, or backgrounds and polygon labels."
    )
    annotated_dir: str | None = knob(
        None,
        "Cut-outs by class: CLASS/images/* with CLASS/masks/<stem>_mask.png or <stem>.png, or CLASS/*.png (RGBA); "
        "demo: the built-in set's.",
    )
    backgrounds_dir: str | None = knob(
        None, "Folder of images without objects; null: the training images serve; demo: the built-in set's."
    )
    masks: str = knob(
        "none", "Cut objects out of training images that have boxes only; grabcut: by their colours.",
        choices=("none", "grabcut"),
    )  # fmt: skip
    masks_dir: str | None = knob(
        None, "Masks of training images: <stem>.png or <stem>_mask.png for all objects, or <stem>_<n>.png for each."
    )
    cutouts_per_class: int = knob(
        500, "Most objects of a class that are cut out of the training images; which ones is drawn.", ge=1
    )
    ratio: float = knob(
        2.0, "Composed images for each real one, in every epoch; fractions allowed, 0 is off.", ge=0, le=100
    )
    schedule: str = knob(
        "constant", "The ratio over the epochs: constant, or linear, from ratio in the first one down towards zero.",
        choices=("constant", "linear"),
    )  # fmt: skip
    close_epochs: int = knob(0, "Last epochs without composed images; linear then ends where they begin.", ge=0)
    objects: Any = knob(
        "auto", "Fewest and most objects pasted into an image; auto: as many as training images usually have, and 1 to "
        "3 more where these are the backgrounds.", ge=1, le=100,
    )  # fmt: skip
    scale: Any = knob(
        "auto", "Least and largest factor on the size that an object had in its own photo; auto: what makes objects as "
        "large as the training labels usually are, and 0.5 to 1.5 where they are cut out of these.", gt=0, le=10,
    )  # fmt: skip
    rotation: float = knob(15.0, "Rotation of an object, up to plus or minus this many degrees.", ge=0, le=180)
    fliplr: float = knob(0.5, "Probability of mirroring an object.", ge=0, le=1)
    truncation: float = knob(0.25, "Most of an object's width or height beyond the image's border.", ge=0, le=0.9)
    max_overlap: float = knob(0.1, "Most overlap (IoU) of a pasted object's box with any other.", ge=0, le=1)
    max_occlusion: float = knob(0.7, "An object of which a larger share is hidden has no label.", ge=0, lt=1)
    hidden: str = knob(
        "remove", "A pasted object that is hidden too much: remove its pixels too, or keep them.",
        choices=("remove", "keep"),
    )  # fmt: skip
    color_match: float = knob(0.7, "Share of the way from an object's mean colour to that of its place.", ge=0, le=1)
    blend: list[str] = knob(list(BLENDS), f"Edges, drawn for each object; any of {', '.join(BLENDS)}.")
    light: float = knob(
        0.0, "Light on pasted objects, the same for all of an image: strength of its gradient and gain.", ge=0, le=1
    )
    shadow: float = knob(0.0, "Probability of a soft shadow under a pasted object.", ge=0, le=1)
    distractors_dir: str | None = knob(
        None, "Cut-outs of objects that are pasted but never labelled: laid out as annotated_dir, any folder names."
    )
    distractors: list[int] = knob([0, 2], "Fewest and most distractors pasted into an image.", ge=0, le=100)
    balance: str = knob(
        "none", "Classes of pasted objects: as the cut-outs are, each as often, or the really rare more often.",
        choices=("none", "uniform", "inverse"),
    )  # fmt: skip
    count: int | None = knob(None, "mode=synthesize: images to write.", ge=1)
