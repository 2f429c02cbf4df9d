"""The door of the data room for classification: from a folder to a checked `ClassificationSet`.

`class_folders` finds the layout, `index_files` reads the splits of a divided set, `class_files` reads the images.
Called by an engine's `prepare`; never writes into the user's folders (`folds` does, when mode=split asks for it).
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data.cache import Known, cache_root
from hsr_train.data.class_files import (
    bad_images,
    bad_remedy,
    contradictions,
    examine_images,
    how_many,
    leak_problems,
    problems_file,
    tell_left_out,
)
from hsr_train.data.class_folders import DEMO, SPLITS, find_layout, some
from hsr_train.data.class_splits import find_splits
from hsr_train.data.demo_classes import ensure_demo_classes
from hsr_train.data.report import input_error
from hsr_train.decisions import Decisions
from hsr_train.errors import Problem

log = logging.getLogger(__name__)

_MOST_CLASS_LINES = 50


@dataclass
class ClassSplit:
    """The images of one split, in a fixed order: by class, then by name.

    Attributes:
        name: train, val or test.
        images: Absolute paths.
        targets: (n,) class ids.
        hashes: SHA-256 of each file, hexadecimal.
        shapes: (n, 2) height and width in pixels, after EXIF rotation.
    """

    name: str
    images: list[Path]
    targets: npt.NDArray[np.int64]
    hashes: list[str]
    shapes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass
class ClassificationSet:
    """A checked set.

    Attributes:
        path: What `data.path` or `data.raw` named, absolute.
        root: The folder that image names are relative to.
        name: For run names.
        classes: Class names; the index is the class id, the same in every split and fold.
        splits: train, val and test, those that were loaded.
        fold: Which fold train and val are; None where the set has none.
        skipped: What `data.on_bad=skip` left out.
        num_skipped: How many files that are.
        warnings: What is odd and allowed; each was logged once.
        division: What mode=split recorded about its splits; empty if it did not make them.
    """

    path: Path
    root: Path
    name: str
    classes: list[str]
    splits: dict[str, ClassSplit]
    fold: int | None
    skipped: list[Problem] = field(default_factory=list)
    num_skipped: int = 0
    warnings: list[str] = field(default_factory=list)
    division: dict[str, Any] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, list[int]]:
        """Images per class, by split."""
        return {
            name: np.bincount(split.targets, minlength=len(self.classes)).tolist()
            for name, split in self.splits.items()
        }

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the class names and, per split, each image's relative name and hash.

        The same for a set that was moved as a whole; another one if any byte of a file or any name changes.
        """
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for name in sorted(self.splits):
            digest.update(f"\n{name}\n{self.split_fingerprint(name)}".encode())
        return digest.hexdigest()

    def split_fingerprint(self, name: str) -> str:
        """SHA-256 over the files of one split; their class is part of their name."""
        rows = sorted((image, content) for split, image, content, _ in self.files() if split == name)
        return hashlib.sha256("\n".join("\0".join(row) for row in rows).encode("utf-8", "surrogateescape")).hexdigest()

    def files(self) -> Iterator[tuple[str, str, str, str]]:
        """Yield each image: its split, its name relative to the root, its hash, and nothing (no label file)."""
        cut = len(os.path.join(self.root, ""))  # noqa: PTH118
        for name, split in self.splits.items():
            for image, content in zip(split.images, split.hashes, strict=True):
                yield name, str(image)[cut:].replace(os.sep, "/"), content, ""

    def summary(self) -> list[str]:
        """Return lines that describe the set to a person: images by split and class."""
        which = "" if self.fold is None else f", fold {self.fold}"
        counts = self.counts
        lines = [f"Data: {self.path}, {len(self.classes)} classes{which}"]
        lines += [f"  {name:5} {len(split):8,} images" for name, split in self.splits.items()]
        if self.num_skipped:
            lines.append(f"  left out as broken (data.on_bad=skip): {how_many(self.num_skipped)}")
        total = [sum(numbers) for numbers in zip(*counts.values(), strict=True)]
        shown = list(range(len(self.classes)))
        if len(shown) > _MOST_CLASS_LINES:
            shown = sorted(sorted(shown, key=lambda i: -total[i])[:_MOST_CLASS_LINES])
        width = max([16, *(len(self.classes[i]) for i in shown)])
        lines.append(f"  {'images per class':{width + 5}} {' '.join(f'{split:>9}' for split in counts)}")
        for i in shown:
            lines.append(f"  {i:4} {self.classes[i]:{width}} {' '.join(f'{counts[split][i]:9,}' for split in counts)}")
        if hidden := len(self.classes) - len(shown):
            least = min(total[i] for i in shown)
            lines.append(f"  and {hidden} more classes, each with at most {least:,} images")
        return lines

    def record(self) -> dict[str, Any]:
        """Return what the manifest keeps; JSON-serialisable."""
        counts = self.counts
        return {
            "path": str(self.path),
            "root": str(self.root),
            "fingerprint": self.fingerprint,
            "names": self.classes,
            "fold": self.fold,
            "splits": {
                name: {
                    "images": len(split),
                    "images_per_class": counts[name],
                    "fingerprint": self.split_fingerprint(name),
                }
                for name, split in self.splits.items()
            },
            "division": self.division,
            "num_skipped": self.num_skipped,
            "skipped": [{"file": p.key, "value": p.value, "allowed": p.allowed} for p in self.skipped],
            "warnings": self.warnings,
        }


def load_classification_set(
    config: ClassifyDataConfig,
    decisions: Decisions,
    *,
    fold: int | None = None,
    need: Sequence[str] = ("train", "val"),
    rehash: bool = False,
    progress: bool = True,
) -> ClassificationSet:
    """Check a classification set and return it.

    Args:
        config: Which set; `fold`, `on_bad`, `on_leak`, `seed` and `cache_dir` are honoured.
        decisions: Receives every automatic choice.
        fold: Overrides `data.fold`; needed where that is all, unless only the test set is needed.
        need: Splits that must be there. Where train is among them, val and test are loaded too if the set has them;
            otherwise only these are.
        rehash: Read every file again instead of trusting what is known by path, size and modification time.
        progress: Show a bar on a terminal if the check takes longer than a second.

    Raises:
        InputError: With every problem found (the first 50 in the message, all of them in a file that it names).
    """
    if config.raw is None and config.path == DEMO:
        home = ensure_demo_classes(cache_root(config), seed=config.seed)
        decisions.record("data.path", DEMO, "the built-in set; your own: data.raw=FOLDER, after mode=split")
        config = replace(config, path=str(home), name=config.name or DEMO)
    layout = find_layout(config)
    home = layout.raw or layout.root
    report = problems_file(config, home)
    found = find_splits(layout, config.fold if fold is None else fold, need)
    if found.problems:
        raise input_error(layout.path, found.problems, [], report)
    paths = {split: {name: str(layout.root / name) for name in names} for split, names in found.images.items()}
    listed = list(dict.fromkeys(path for files in paths.values() for path in files.values()))
    known = examine_images(config, home, listed, prune="train" in need, rehash=rehash, progress=progress)

    every = {name: path for files in paths.values() for name, path in files.items()}
    bad = bad_images(every, known)
    broken = [*found.strangers, *bad.values()]
    skip = config.on_bad == "skip"
    problems: list[Problem] = [] if skip else list(broken)
    remedies = [bad_remedy(len(broken), home)] if problems else []
    if broken and skip:
        tell_left_out(broken)
        decisions.record("data.on_bad", "skip", f"{how_many(len(broken))} left out: no sound images")
        paths = {
            split: {name: path for name, path in files.items() if name not in bad} for split, files in paths.items()
        }
    warnings = list(found.warnings)
    leaks = leak_problems(
        {split: {n: known[p].image_hash for n, p in files.items() if n not in bad} for split, files in paths.items()}
    )
    if leaks and config.on_leak == "error":
        problems += leaks[:-1]
        remedies.append(leaks[-1])
    elif leaks:
        warnings.append(f"{leaks[-1].allowed}; scores will look better than they are (data.on_leak=warn)")
    problems += [
        Problem(f"data ({split})", "", "no image is left", "every image of this split is broken")
        for split in need
        if split in paths and not paths[split]
    ]
    if problems:
        raise input_error(layout.path, problems, remedies, report)

    splits = {split: _split(split, files, known, found.classes) for split, files in paths.items() if files}
    checked = ClassificationSet(
        layout.path, layout.root, layout.name, found.classes, splits, found.fold, division=found.division
    )
    if skip:
        checked.skipped, checked.num_skipped = broken, len(broken)
    warnings += contradictions(
        {name: name.split("/")[1] for files in paths.values() for name in files},
        {name: known[path].image_hash for files in paths.values() for name, path in files.items()},
    )
    checked.warnings = warnings + _absent_classes(checked)
    for warning in checked.warnings:
        log.warning("%s", warning)
    return checked


def _split(name: str, files: Mapping[str, str], known: Mapping[str, Known], classes: Sequence[str]) -> ClassSplit:
    ids = {text: i for i, text in enumerate(classes)}
    entries = [known[path] for path in files.values()]
    return ClassSplit(
        name=name,
        images=[Path(path) for path in files.values()],
        targets=np.array([ids[file.split("/")[1]] for file in files], np.int64),
        hashes=[entry.image_hash for entry in entries],
        shapes=np.array([entry.shape for entry in entries], np.int64).reshape(-1, 2),
    )


def _absent_classes(checked: ClassificationSet) -> list[str]:
    """Return a warning for each split that lacks classes: what is said about them there means nothing."""
    warnings = []
    for split in SPLITS:
        numbers = checked.counts.get(split, [])
        if absent := [name for name, n in zip(checked.classes, numbers, strict=False) if not n]:
            warnings.append(f"{len(absent)} of {len(checked.classes)} classes have no image in {split}: {some(absent)}")
    return warnings
