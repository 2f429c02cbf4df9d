"""A checked YOLO detection set: what `yolo.load_detection_set` hands to an engine and to the manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hsr_train.data.labels import Floats
from hsr_train.errors import Problem

_MOST_CLASS_LINES = 40


@dataclass
class DetectionSplit:
    """The images of one split, in a fixed order.

    Attributes:
        name: train, val or test.
        images: Absolute paths, sorted.
        shapes: (n, 2) height and width in pixels, after EXIF rotation, as training will decode them.
        labels: For each image a (k, 5) array: class, centre x, centre y, width, height; fractions of the image.
        segments: For each image k polygons, each a (p, 2) array of x, y in fractions; empty lists unless every label
            of the whole set is a polygon.
        hashes: SHA-256 of each image file, hexadecimal.
        label_hashes: SHA-256 of each label file, hexadecimal; empty for an image without one.
    """

    name: str
    images: list[Path]
    shapes: npt.NDArray[np.int64]
    labels: list[Floats]
    segments: list[list[Floats]]
    hashes: list[str]
    label_hashes: list[str]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_boxes(self) -> int:
        """Number of labelled objects."""
        return sum(len(boxes) for boxes in self.labels)

    @property
    def num_backgrounds(self) -> int:
        """Number of images without any object."""
        return sum(not len(boxes) for boxes in self.labels)


@dataclass
class DetectionSet:
    """A checked set.

    Attributes:
        yaml_path: Its data.yaml, absolute.
        root: The folder that its splits are relative to.
        names: Class names; the index is the class id.
        splits: train, val and test, those that were loaded.
        skipped: What `data.on_bad=skip` left out.
        num_skipped: How many images that are.
        warnings: What is odd and allowed; each was logged once.
        fold: Which fold train and val are; None: they are the set's own.
        division: What mode=split recorded about its splits.
        left_out: Images of the set that are in none of its splits, by their path from the root.
    """

    yaml_path: Path
    root: Path
    names: list[str]
    splits: dict[str, DetectionSplit]
    skipped: list[Problem] = field(default_factory=list)
    num_skipped: int = 0
    warnings: list[str] = field(default_factory=list)
    fold: int | None = None
    division: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, list[int]]:
        """Boxes per class, by split."""
        return {name: _per_class(split, len(self.names)) for name, split in self.splits.items()}

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the class names and, per split, each image's relative name and the hashes of image and label.

        The same for a set that was moved as a whole; another one if any byte of a file or any name changes.
        """
        digest = hashlib.sha256("\0".join(self.names).encode())
        for name in sorted(self.splits):
            digest.update(f"\n{name}\n{self.split_fingerprint(name)}".encode())
        return digest.hexdigest()

    def split_fingerprint(self, name: str) -> str:
        """SHA-256 over the files of one split."""
        split = self.splits[name]
        rows = sorted(
            (self.relative(str(image)), image_hash, label_hash)
            for image, image_hash, label_hash in zip(split.images, split.hashes, split.label_hashes, strict=True)
        )
        return hashlib.sha256("\n".join("\0".join(row) for row in rows).encode("utf-8", "surrogateescape")).hexdigest()

    def files(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each image: its split, its path from the root, the hashes of image and label file (empty: none)."""
        for name, split in self.splits.items():
            for image, image_hash, label_hash in zip(split.images, split.hashes, split.label_hashes, strict=True):
                yield name, self.relative(str(image)), image_hash, label_hash

    def relative(self, file: str) -> str:
        """See `relative_name`."""
        return relative_name(self.root, file)

    def summary(self) -> list[str]:
        """Return lines that describe the set to a person: images, boxes and backgrounds, then boxes per class."""
        which = "" if self.fold is None else f", fold {self.fold}"
        lines = [f"Data: {self.yaml_path}, {len(self.names)} classes{which}"]
        for name, split in self.splits.items():
            lines.append(
                f"  {name:5} {len(split):8,} images {split.num_boxes:9,} boxes {split.num_backgrounds:8,} backgrounds"
            )
        if self.num_skipped:
            lines.append(f"  left out as broken (data.on_bad=skip): {self.num_skipped:,} images")
        counts = self.counts
        total = [sum(numbers) for numbers in zip(*counts.values(), strict=True)]
        shown = list(range(len(self.names)))
        if len(shown) > _MOST_CLASS_LINES:
            most = sorted(shown, key=lambda i: -total[i])[:_MOST_CLASS_LINES]
            shown = sorted(i for i in most if total[i])
        width = max([16, *(len(self.names[i]) for i in shown)])
        lines.append(f"  {'boxes per class':{width + 5}} {' '.join(f'{split:>9}' for split in counts)}")
        for i in shown:
            lines.append(f"  {i:4} {self.names[i]:{width}} {' '.join(f'{counts[split][i]:9,}' for split in counts)}")
        if hidden := len(self.names) - len(shown):
            lines.append(f"  and {hidden} more classes, {sum(not n for n in total)} of them without a box")
        return lines

    def record(self) -> dict[str, Any]:
        """Return what the manifest keeps; JSON-serialisable."""
        counts = self.counts
        return {
            "path": str(self.yaml_path),
            "root": str(self.root),
            "fingerprint": self.fingerprint,
            "names": self.names,
            "fold": self.fold,
            "splits": {
                name: {
                    "images": len(split),
                    "boxes": split.num_boxes,
                    "backgrounds": split.num_backgrounds,
                    "boxes_per_class": counts[name],
                    "fingerprint": self.split_fingerprint(name),
                }
                for name, split in self.splits.items()
            },
            "division": self.division,
            "num_skipped": self.num_skipped,
            "skipped": [{"file": p.key, "value": p.value, "allowed": p.allowed} for p in self.skipped],
            "warnings": self.warnings,
        }


def relative_name(root: Path, file: str) -> str:
    """Return the path from the root, with slashes; may begin with ../ where a list leads out of the root."""
    prefix = f"{root}{os.sep}"
    inside = file.startswith(prefix)
    return (file[len(prefix) :] if inside else os.path.relpath(file, root)).replace(os.sep, "/")


def _per_class(split: DetectionSplit, num_classes: int) -> list[int]:
    classes = np.concatenate([np.zeros(0, np.float32), *(boxes[:, 0] for boxes in split.labels)]).astype(np.int64)
    counts: list[int] = np.bincount(classes, minlength=num_classes).tolist()
    return counts
