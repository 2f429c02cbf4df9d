"""Small classification sets, drawn and written for a test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from yolo_sets import write_picture

from hsr_train.config.schema import ClassifyDataConfig
from hsr_train.data.class_set import ClassificationSet, load_classification_set
from hsr_train.data.folds import write_splits
from hsr_train.decisions import Decisions


def make_folders(folder: Path, counts: Mapping[str, int], *, seed: int = 0) -> Path:
    """Write pictures of 24 pixels into one folder for each class; every picture has other content."""
    for number, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            content = seed * 1_000_003 + number * 1009 + index
            write_picture(folder / name / f"{index:03}.png", size=(24, 24), seed=content)
    return folder


def make_divided(root: Path, counts: Mapping[str, int], cache: Path, **options: object) -> Path:
    """Write a set with raw/ and splits/, and return the raw folder."""
    raw = make_folders(root / "raw", counts)
    split(raw, cache, **options)
    return raw


def split(raw: Path, cache: Path, **options: object) -> str:
    """Divide a set and return what is told about it."""
    config = ClassifyDataConfig(raw=str(raw), cache_dir=str(cache), **options)  # type: ignore[arg-type]
    return "\n".join(write_splits(config, Decisions()))


def load(cache: Path, *, fold=None, need=("train", "val"), rehash=False, **options) -> ClassificationSet:
    """Load a set; the options are keys of `data`."""
    config = ClassifyDataConfig(cache_dir=str(cache), **{k: str(v) if k in ("raw", "path") else v
                                                         for k, v in options.items()})  # fmt: skip
    return load_classification_set(config, Decisions(), fold=fold, need=need, rehash=rehash, progress=False)


def lines(raw: Path, name: str) -> list[str]:
    """Return the lines of an index file."""
    return (raw.parent / "splits" / name).read_text(encoding="utf-8").splitlines()
