"""Composed images in a detection run: what of `hsr_train.synthesis` is read before training, and recorded.

`preparation` calls `prepare_synthesis`; `trainer` gives the composer to `dataset.RunDataset`; `preview` shows images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hsr_train.config.schema import DetectExperiment, SyntheticConfig
from hsr_train.data.class_files import how_many
from hsr_train.data.detection_set import DetectionSet
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.composition import Composition
from hsr_train.engines.detection.cutouts import SHOWING, Cutouts, leave_unfitted, source_of
from hsr_train.errors import InputError, Problem
from hsr_train.hardware import Machine
from hsr_train.run.atomic import write_bytes
from hsr_train.run.data_files import DataFile
from hsr_train.synthesis import Composer, FolderBackgrounds, ObjectBank, TrainingBackgrounds
from hsr_train.synthesis.cutout_sheet import cutout_sheet
from hsr_train.synthesis.files import SourceFile, fingerprint
from hsr_train.synthesis.preview import contact_sheet
from hsr_train.synthesis.writer import write_set

log = logging.getLogger(__name__)

CUTOUTS, MASKS, BACKGROUNDS, DISTRACTORS = "cut-outs", "masks", "backgrounds", "distractors"
"""Names of their own beside train, val and test in data_files.csv."""
MEMORY_SHARE = 0.25
"""Of the available memory, for cut-outs and for backgrounds each."""
_BY = {
    "polygons": "their polygons",
    "grabcut": "GrabCut from their boxes: mode=preview shows how well",
    "masks_dir": "synthetic.masks_dir",
}
_OF_TRAINING = ("enabled", "ratio", "schedule", "close_epochs", "count")
FEW_BACKGROUNDS = 5
_MOST_REASONS = 5
_REAL_SHOWN = 8


@dataclass(frozen=True)
class Synthesis:
    """What images are composed from.

    Attributes:
        config: How.
        bank: The objects.
        backgrounds: Images without objects; None: the training images serve.
        dataset: The real set.
        distractors: Objects that get no label.
    """

    config: SyntheticConfig
    bank: ObjectBank
    backgrounds: FolderBackgrounds | None
    dataset: DetectionSet
    distractors: ObjectBank | None = None

    def composition(self, epochs: int) -> Composition:
        """Return how many images each epoch has in a run of so many."""
        config = self.config
        return Composition(
            len(self.dataset.splits["train"]), config.ratio, config.schedule, config.close_epochs, epochs
        )

    @property
    def num_composed(self) -> int:
        """Composed images in the first epoch, which has the most."""
        return self.composition(1)(0)

    def composer(self, side: int, seed: int) -> Composer:
        """Return what composes images of `side` pixels."""
        train = self.dataset.splits["train"]
        return Composer(
            self.bank,
            self.backgrounds or TrainingBackgrounds(train.images, train.labels, train.segments),
            self.config,
            side=side,
            seed=seed,
            real_counts=self.dataset.counts["train"],
            outlines=any(len(segments) for segments in train.segments),
            distractors=self.distractors,
        )

    @property
    def _when(self) -> str:
        linear, close = self.config.schedule == "linear", self.config.close_epochs
        end = f" the last {close}" if close > 1 else " the last one"
        if linear:
            return "the first epoch, fewer in each later one" + (f", none in{end}" if close else "")
        return f"every epoch but{end}" if close else "every epoch"

    def record(self) -> dict[str, Any]:
        """Return what the manifest keeps."""
        backgrounds, distractors = self.backgrounds, self.distractors
        return {
            "source": self.bank.source,
            "annotated_dir": self.config.annotated_dir,
            "masks_dir": self.config.masks_dir,
            "backgrounds_dir": self.config.backgrounds_dir,
            "distractors_dir": self.config.distractors_dir,
            "distractors": len(distractors) if distractors else None,
            "cutouts": len(self.bank),
            "cutouts_per_class": self.bank.counts,
            "backgrounds": len(backgrounds) if backgrounds else None,
            "left_out": self.bank.left_out,
            "rejected": self.bank.rejected
            | (backgrounds.rejected if backgrounds else {})
            | (distractors.rejected if distractors else {}),
            "composed_in_first_epoch": self.num_composed,
            "fingerprint": fingerprint([file for _, file in self._sources()]),
        }

    def files(self) -> Iterator[DataFile]:
        """Yield every file with its hashes, as `DetectionSet.files` does for the real images."""
        for kind, file in self._sources():
            yield kind, file.name, file.image_hash, file.mask_hash

    def _sources(self) -> Iterator[tuple[str, SourceFile]]:
        kind = CUTOUTS if self.bank.source == "annotated_dir" else MASKS
        yield from ((kind, file) for file in self.bank.files)
        yield from ((BACKGROUNDS, file) for file in (self.backgrounds.files if self.backgrounds else ()))
        yield from ((DISTRACTORS, file) for file in (self.distractors.files if self.distractors else ()))

    def summary(self) -> list[str]:
        """Return lines for a person."""
        counts, real = self.bank.counts, len(self.dataset.splits["train"])
        on = how_many(len(self.backgrounds), "background") if self.backgrounds else "the training images"
        lines = [
            f"Composed images: {self.num_composed:,} beside {real:,} real ones in {self._when}, "
            f"{how_many(len(self.bank), 'cut-out')} of {len(counts)} of {len(self.dataset.names)} classes on {on}",
            "  validation, early stopping and best.pt look at real images only",
        ]
        if self.bank.source != "annotated_dir":
            lines.append(f"  cut out of the training images by {_BY[self.bank.source]}")
        reasons = list(self.bank.left_out.items())
        if reasons:
            told = "; ".join(f"{count} x {why}" for why, count in reasons[:_MOST_REASONS])
            lines.append(f"  cut-outs left out: {sum(self.bank.left_out.values())} ({told}); the manifest names them")
        if self.distractors:
            lines.append(f"  {how_many(len(self.distractors), 'distractor')} besides, without a label")
        in_train = zip(self.dataset.names, self.dataset.counts["train"], strict=True)
        if self.backgrounds is not None and len(self.backgrounds) < FEW_BACKGROUNDS:
            lines.append("  so few backgrounds are learnt by heart; a dozen photos of the place are made in a minute")
        if not self.num_composed:
            lines.append("  synthetic.ratio is so small that no image is composed")
        without = [name for name, number in in_train if number and name not in counts]
        if without:
            more = ", ..." if len(without) > _MOST_REASONS else ""
            lines.append(f"  classes without a cut-out: {', '.join(without[:_MOST_REASONS])}{more}")
        return lines


def prepare_synthesis(
    experiment: DetectExperiment, dataset: DetectionSet, machine: Machine, cache_dir: Path, decisions: Decisions
) -> Synthesis | None:
    """Read cut-outs and backgrounds; None where nothing is composed. Decides what is still `auto`.

    Raises:
        InputError: With every problem found.
    """
    if experiment.mode not in ("train", "check", *SHOWING):
        return None
    source = source_of(experiment, dataset, decisions)
    if source is None:
        leave_unfitted(experiment.synthetic)
        return None
    cutouts = Cutouts(experiment, dataset, source, cache_dir, int(machine.ram_available_bytes * MEMORY_SHARE))
    problems: list[Problem] = []
    bank, backgrounds, distractors = None, None, None
    try:
        cutouts.fit(decisions)
        bank = cutouts.bank()
    except InputError as error:
        problems += error.problems
    try:
        distractors = cutouts.distractors()
    except InputError as error:
        problems += error.problems
    try:
        backgrounds = cutouts.backgrounds(decisions)
    except InputError as error:
        problems += error.problems
    if problems or bank is None:
        raise InputError(problems)
    return Synthesis(experiment.synthetic, bank, backgrounds, dataset, distractors)


def write_composed_set(synthesis: Synthesis, experiment: DetectExperiment) -> list[str]:
    """Write a set of composed images to output_dir; returns lines that say what was made.

    Raises:
        InputError: The folder holds something else.
    """
    config, train, folder = synthesis.config, experiment.train, Path(experiment.output_dir)
    count = config.count or 0
    composer = synthesis.composer(train.imgsz, train.seed)
    composer.outlines = composer.outlines or synthesis.backgrounds is not None
    settings = {key: value for key, value in asdict(config).items() if key not in _OF_TRAINING}
    sources = {key: value for key, value in synthesis.record().items() if key != "composed_in_first_epoch"}
    written = write_set(
        composer,
        folder,
        synthesis.dataset.names,
        count,
        record={"synthetic": settings, "imgsz": train.imgsz, "seed": train.seed, "sources": sources,
                "data": synthesis.dataset.fingerprint},
        validation=synthesis.dataset.splits["val"].images,
        workers=train.workers,
    )  # fmt: skip
    there = f", {count - written:,} were there" if written < count else ""
    return [f"{written:,} images written{there}: {folder / 'data.yaml'} (val: the real validation images)"]


def write_preview(synthesis: Synthesis, path: Path, *, side: int, seed: int) -> None:
    """Write a picture of composed images beside real ones, and cutouts.png beside it: the bank.

    Args:
        synthesis: What they are composed from.
        path: The first picture.
        side: Side of a composed image in pixels.
        seed: Of the draws.
    """
    train = synthesis.dataset.splits["train"]
    chosen = np.linspace(0, len(train) - 1, min(_REAL_SHOWN, len(train))).round().astype(int).tolist()
    scenes = TrainingBackgrounds(train.images, train.labels, train.segments)
    real = [scenes.scene(i, side) for i in chosen]
    composer = synthesis.composer(side, seed)
    composer.outlines = composer.partial_outlines = True
    sheet = contact_sheet(composer, real, synthesis.dataset.names)
    write_bytes(path, cv2.imencode(".png", sheet)[1].tobytes())
    write_bytes(path.with_name("cutouts.png"), cv2.imencode(".png", cutout_sheet(synthesis.bank))[1].tobytes())
