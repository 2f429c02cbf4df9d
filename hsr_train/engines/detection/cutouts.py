"""Reading what images are composed from: where cut-outs come from, how many are pasted, and how large they become.

`synthetic` calls it before training; reading itself is `hsr_train.synthesis`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hsr_train.config.schema import DetectExperiment, SyntheticConfig
from hsr_train.config.schema.synthetic import AUTO
from hsr_train.data.demo import ensure_demo_set
from hsr_train.data.detection_set import DetectionSet
from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem
from hsr_train.synthesis import FolderBackgrounds, ObjectBank, Photo
from hsr_train.synthesis.fitting import usual_counts, usual_scale

DEMO = "demo"
"""Stands for the built-in set's own cut-outs and backgrounds."""
SHOWING = ("preview", "synthesize")
"""Modes that compose images whatever the ratio."""


@dataclass(frozen=True)
class Cutouts:
    """Cut-outs, distractors and backgrounds of an experiment, before they are read.

    Attributes:
        experiment: Its `synthetic` says what is meant.
        dataset: The real set.
        source: Where cut-outs come from, as `ObjectBank.source` calls it.
        cache_dir: Where decoded images are kept.
        limit_bytes: Largest bank, and memory for backgrounds.
    """

    experiment: DetectExperiment
    dataset: DetectionSet
    source: str
    cache_dir: Path
    limit_bytes: int

    def fit(self, decisions: Decisions) -> None:
        """Decide `objects=auto` and `scale=auto`. How large cut-outs are by themselves, only reading them tells.

        Raises:
            InputError: They cannot be read.
        """
        config, train = self.experiment.synthetic, self.dataset.splits["train"]
        if config.objects == "auto":
            config.objects, reason = usual_counts(train.labels, are_backgrounds=config.backgrounds_dir is None)
            decisions.record("synthetic.objects", config.objects, reason)
        if config.scale == "auto":
            measured = self._of_folder(largest_scale=1.0) if self.source == "annotated_dir" else None
            config.scale, reason = usual_scale(measured, train.labels, train.shapes)
            decisions.record("synthetic.scale", config.scale, reason)

    def bank(self) -> ObjectBank:
        """Read the cut-outs.

        Raises:
            InputError: With every problem found.
        """
        if self.source == "annotated_dir":
            return self._of_folder(self._largest_scale)
        config, train = self.experiment.synthetic, self.dataset.splits["train"]
        parts = zip(train.images, train.hashes, train.shapes.tolist(), train.labels, train.segments, strict=True)
        return ObjectBank.from_photos(
            [
                Photo(self.dataset.relative(str(image)), image, own, *shape, *labels)
                for image, own, shape, *labels in parts
            ],
            self.dataset.names,
            self.source,
            masks_dir=None if config.masks_dir is None else Path(config.masks_dir).expanduser().absolute(),
            per_class=config.cutouts_per_class,
            cache_dir=self.cache_dir,
            side=self.experiment.train.imgsz,
            largest_scale=self._largest_scale,
            skip_bad=self._skip_bad,
            limit_bytes=self.limit_bytes,
        )

    def distractors(self) -> ObjectBank | None:
        """Read the objects that get no label; None where there are none.

        Raises:
            InputError: With every problem found.
        """
        folder = self.experiment.synthetic.distractors_dir
        if folder is None:
            return None
        return self._read(Path(folder).expanduser().absolute(), self._largest_scale, distractors=True)

    def backgrounds(self, decisions: Decisions) -> FolderBackgrounds | None:
        """Read the backgrounds; None: the training images serve.

        Raises:
            InputError: With every problem found.
        """
        folder = self.experiment.synthetic.backgrounds_dir
        if folder is None:
            decisions.record("synthetic.backgrounds_dir", None, "not given: the training images serve as backgrounds")
            return None
        return FolderBackgrounds.read(
            self._folder(folder, "backgrounds"),
            cache_dir=self.cache_dir,
            side=self.experiment.train.imgsz,
            skip_bad=self._skip_bad,
            limit_bytes=self.limit_bytes,
        )

    @property
    def _skip_bad(self) -> bool:
        return self.experiment.data.on_bad == "skip"

    @property
    def _largest_scale(self) -> float:
        scale = self.experiment.synthetic.scale
        return float((AUTO["scale"] if scale == "auto" else scale)[1])

    def _of_folder(self, largest_scale: float) -> ObjectBank:
        folder = self._folder(self.experiment.synthetic.annotated_dir or "", "annotated")
        return self._read(folder, largest_scale, distractors=False)

    def _read(self, folder: Path, largest_scale: float, *, distractors: bool) -> ObjectBank:
        return ObjectBank.read(
            folder,
            self.dataset.names,
            cache_dir=self.cache_dir,
            side=self.experiment.train.imgsz,
            # Of photos whose cut-outs do not say how large they were.
            photo_side=float(np.median(self.dataset.splits["train"].shapes.max(axis=1))),
            largest_scale=largest_scale,
            skip_bad=self._skip_bad,
            limit_bytes=self.limit_bytes,
            distractors=distractors,
        )

    def _folder(self, given: str, own: str) -> Path:
        """Return the folder that is meant; `own` is what it is called in the built-in set."""
        if given == DEMO:
            return ensure_demo_set(self.cache_dir, seed=self.experiment.data.seed).with_name(own)
        return Path(given).expanduser().absolute()


def leave_unfitted(config: SyntheticConfig) -> None:
    """Give what is still `auto` the numbers that it has without labels: nothing is composed, and none is looked at."""
    for name, pair in AUTO.items():
        if getattr(config, name) == "auto":
            setattr(config, name, list(pair))


def source_of(experiment: DetectExperiment, dataset: DetectionSet, decisions: Decisions) -> str | None:
    """Return where cut-outs come from, as `ObjectBank.source` calls it; None: nothing is composed.

    Raises:
        InputError: They are asked for, and there is nothing to cut out by.
    """
    config, is_showing = experiment.synthetic, experiment.mode in SHOWING
    if not is_showing and (config.enabled is False or config.ratio == 0):
        return None
    if config.annotated_dir is not None:
        return "annotated_dir"
    if config.masks_dir is not None:
        return "masks_dir"
    if config.masks != "none":
        return config.masks
    has_polygons = any(len(segments) for segments in dataset.splits["train"].segments)
    if config.enabled == "auto" and not is_showing:
        config.enabled = has_polygons
        reason = "there are backgrounds, and the labels are polygons to cut objects out by"
        if not has_polygons:
            reason = "there are backgrounds and no cut-outs: labels are boxes; synthetic.annotated_dir=FOLDER, "
            reason += "synthetic.masks_dir=FOLDER or synthetic.masks=grabcut would switch it on"
        decisions.record("synthetic.enabled", has_polygons, reason)
        return "polygons" if has_polygons else None
    if has_polygons:
        return "polygons"
    what = f"mode={experiment.mode}" if is_showing else "synthetic.enabled=true"
    allowed = f"{what} needs cut-outs to paste, and the labels are boxes"
    remedy = "synthetic.annotated_dir=FOLDER, synthetic.masks_dir=FOLDER or synthetic.masks=grabcut"
    raise InputError(Problem("synthetic.annotated_dir", "null", allowed, remedy))
