"""Composed images in a detection run: what of `hsr_train.synthesis` is read before training, and recorded.

`preparation` calls `prepare_synthesis`; `trainer` gives the composer to `dataset.RunDataset`; `preview` shows images.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from hsr_train.config.schema import DetectExperiment, SyntheticConfig
from hsr_train.data.demo import ensure_demo_set
from hsr_train.data.detection_set import DetectionSet
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.composition import Composition
from hsr_train.errors import InputError, Problem
from hsr_train.hardware import Machine
from hsr_train.run.atomic import write_bytes
from hsr_train.run.data_files import DataFile
from hsr_train.synthesis import Composer, FolderBackgrounds, ObjectBank, TrainingBackgrounds
from hsr_train.synthesis.files import SourceFile, fingerprint
from hsr_train.synthesis.preview import contact_sheet
from hsr_train.synthesis.writer import write_set

log = logging.getLogger(__name__)

CUTOUTS, BACKGROUNDS = "cut-outs", "backgrounds"
"""Names of their own beside train, val and test in data_files.csv."""
DEMO = "demo"
"""Stands for the built-in set's own cut-outs and backgrounds."""
SHOWING = ("preview", "synthesize")
"""Modes that compose images whatever the ratio."""
MEMORY_SHARE = 0.25
"""Of the available memory, for cut-outs and for backgrounds each."""
_OF_TRAINING = ("enabled", "ratio", "schedule", "close_epochs", "count")
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
    """

    config: SyntheticConfig
    bank: ObjectBank
    backgrounds: FolderBackgrounds | None
    dataset: DetectionSet

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
        backgrounds = self.backgrounds
        return {
            "annotated_dir": self.config.annotated_dir,
            "backgrounds_dir": self.config.backgrounds_dir,
            "cutouts": len(self.bank),
            "cutouts_per_class": self.bank.counts,
            "backgrounds": len(backgrounds) if backgrounds else None,
            "rejected": self.bank.rejected | (backgrounds.rejected if backgrounds else {}),
            "composed_in_first_epoch": self.num_composed,
            "fingerprint": fingerprint([file for _, file in self._sources()]),
        }

    def files(self) -> Iterator[DataFile]:
        """Yield every cut-out and background with its hashes, as `DetectionSet.files` does for the real images."""
        for kind, file in self._sources():
            yield kind, file.name, file.image_hash, file.mask_hash

    def _sources(self) -> Iterator[tuple[str, SourceFile]]:
        yield from ((CUTOUTS, file) for file in self.bank.files)
        yield from ((BACKGROUNDS, file) for file in (self.backgrounds.files if self.backgrounds else ()))

    def summary(self) -> list[str]:
        """Return lines for a person."""
        counts, real = self.bank.counts, len(self.dataset.splits["train"])
        on = f"{len(self.backgrounds)} backgrounds" if self.backgrounds else "the training images"
        lines = [
            f"Composed images: {self.num_composed:,} beside {real:,} real ones in {self._when}, "
            f"{len(self.bank):,} cut-outs of {len(counts)} classes on {on}",
            "  validation, early stopping and best.pt look at real images only",
        ]
        reasons = Counter(self.bank.rejected.values()).most_common(_MOST_REASONS)
        if reasons:
            told = "; ".join(f"{count} x {why}" for why, count in reasons)
            lines.append(f"  cut-outs left out: {len(self.bank.rejected)} ({told}); the manifest names them")
        without = [name for name in self.dataset.names if name not in counts]
        if without:
            more = ", ..." if len(without) > _MOST_REASONS else ""
            lines.append(f"  classes without a cut-out: {', '.join(without[:_MOST_REASONS])}{more}")
        return lines


def prepare_synthesis(
    experiment: DetectExperiment, dataset: DetectionSet, machine: Machine, cache_dir: Path, decisions: Decisions
) -> Synthesis | None:
    """Read cut-outs and backgrounds; None where nothing is composed.

    Raises:
        InputError: With every problem found.
    """
    config = experiment.synthetic
    wanted = experiment.mode in SHOWING or (experiment.mode in ("train", "check") and config.enabled)
    if not wanted or config.annotated_dir is None or (config.ratio == 0 and experiment.mode not in SHOWING):
        return None
    skip_bad = experiment.data.on_bad == "skip"
    limit = int(machine.ram_available_bytes * MEMORY_SHARE)
    photo_side = float(np.median(dataset.splits["train"].shapes.max(axis=1)))
    problems: list[Problem] = []
    bank, backgrounds = None, None
    try:
        bank = ObjectBank.read(
            _folder(config.annotated_dir, "annotated", experiment, cache_dir),
            dataset.names,
            cache_dir=cache_dir,
            side=experiment.train.imgsz,
            photo_side=photo_side,
            largest_scale=config.scale[1],
            skip_bad=skip_bad,
            limit_bytes=limit,
        )
    except InputError as error:
        problems += error.problems
    try:
        if config.backgrounds_dir is not None:
            backgrounds = FolderBackgrounds.read(
                _folder(config.backgrounds_dir, "backgrounds", experiment, cache_dir),
                cache_dir=cache_dir,
                side=experiment.train.imgsz,
                skip_bad=skip_bad,
                limit_bytes=limit,
            )
        else:
            decisions.record("synthetic.backgrounds_dir", None, "not given: the training images serve as backgrounds")
    except InputError as error:
        problems += error.problems
    if problems or bank is None:
        raise InputError(problems)
    return Synthesis(config, bank, backgrounds, dataset)


def _folder(given: str, own: str, experiment: DetectExperiment, cache_dir: Path) -> Path:
    """Return the folder that is meant; `own` is what it is called in the built-in set."""
    if given == DEMO:
        return ensure_demo_set(cache_dir, seed=experiment.data.seed).with_name(own)
    return Path(given).expanduser().absolute()


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
    """Write a picture of composed images beside real ones.

    Args:
        synthesis: What they are composed from.
        path: The picture.
        side: Side of a composed image in pixels.
        seed: Of the draws.
    """
    train = synthesis.dataset.splits["train"]
    chosen = np.linspace(0, len(train) - 1, min(_REAL_SHOWN, len(train))).round().astype(int).tolist()
    scenes = TrainingBackgrounds(train.images, train.labels, train.segments)
    real = [(scene.image, scene.boxes, scene.classes.tolist()) for scene in (scenes.scene(i, side) for i in chosen)]
    sheet = contact_sheet(synthesis.composer(side, seed), real, synthesis.dataset.names)
    write_bytes(path, cv2.imencode(".png", sheet)[1].tobytes())
