"""Small classification runs for tests, through `hsr_train.execute`, on pictures that a net can learn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import hsr_train
from hsr_train.engines.base import Result

SMALL = {
    "task": "classify",
    "gpu_tier": "cpu",
    "model.name": "squeezenet1_1",
    "model.weights": "scratch",
    "train.device": "cpu",
    "train.epochs": "2",
    "train.batch": "8",
    "train.imgsz": "32",
    "train.workers": "0",
    "train.cache": "none",
    "optimizer.lr": "0.001",
    "tensorboard.serve": "false",
    "tensorboard.enabled": "false",
}
"""Overrides of a run that takes about a second; SqueezeNet has dropout and no batch normalisation."""

COLOURS = {"blue": (200, 60, 40), "green": (50, 180, 60), "red": (40, 50, 210)}
GPU_OOM = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def draw(folder: Path, counts: dict[str, int], *, seed: int = 0) -> Path:
    """Write noisy pictures of 40 pixels with a solid square, whose colour is the class, into a folder for each class.

    Args:
        folder: Of the class folders.
        counts: Pictures of each class of `COLOURS`.
        seed: Every seed gives other pictures.
    """
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            rng = np.random.default_rng((seed, list(COLOURS).index(name), index))
            image = rng.integers(90, 160, (40, 40, 3), dtype=np.uint8)
            top, left = rng.integers(2, 12, 2)
            image[top : top + 26, left : left + 26] = COLOURS[name]
            (folder / name / f"{index:03}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


def make_set(
    root: Path, *, n_train: int = 6, n_val: int = 4, n_test: int = 0, classes: tuple[str, ...] = tuple(COLOURS)
) -> Path:
    """Write a set with train/, val/ and perhaps test/, and return its folder."""
    for seed, (split, count) in enumerate({"train": n_train, "val": n_val, "test": n_test}.items()):
        if count:
            draw(root / split, dict.fromkeys(classes, count), seed=seed)
    return root


def overrides(data: Path, output_dir: Path, cache_dir: Path, **more: Any) -> list[str]:
    """Return what is typed for a small run.

    Args:
        data: The set's folder.
        output_dir: Where runs are created.
        cache_dir: Where caches lie.
        **more: Further overrides, `__` for a dot; None leaves a default out.
    """
    typed: dict[str, Any] = {
        **SMALL,
        "data.path": data,
        "output_dir": output_dir,
        "data.cache_dir": cache_dir,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return [f"{key}={value}" for key, value in typed.items() if value is not None]


def train(data: Path, output_dir: Path, cache_dir: Path, **more: Any) -> Path:
    """Train in this process and return the run's directory."""
    return folder_of(hsr_train.execute(hsr_train.compose(overrides(data, output_dir, cache_dir, **more))))


def folder_of(result: Result) -> Path:
    """Return the directory of a run that has one."""
    assert result.run_dir is not None
    return result.run_dir


def runs_in(output_dir: Path) -> list[Path]:
    """Return the directories of the runs under an output folder."""
    return sorted(path for path in (output_dir / "classify").iterdir() if path.is_dir())


def state_of(run: Path) -> dict[str, Any]:
    """Return the newest state of a run."""
    file = max((run / "state").glob("epoch*.pt"), key=lambda path: int(path.stem.removeprefix("epoch")))
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def weights_of(run: Path, name: str = "best") -> dict[str, Any]:
    """Return the content of a weights file."""
    content: dict[str, Any] = torch.load(run / "weights" / f"{name}.pt", weights_only=True)
    return content


@contextmanager
def failing(owner: Any, name: str, *calls: int, error: BaseException = GPU_OOM) -> Iterator[list[int]]:
    """Let a function raise at its given calls, counted from 1; yields the number of calls so far."""
    original, count = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] in calls:
            raise error
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield count


@contextmanager
def watching(owner: Any, name: str, see: Callable[..., None]) -> Iterator[None]:
    """Call a function with the arguments of another one before each of its calls."""
    original = getattr(owner, name)

    def seen(*args: Any, **kwargs: Any) -> Any:
        see(*args, **kwargs)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, seen)
        yield


@contextmanager
def quick_pictures() -> Iterator[None]:
    """Draw no charts and contact sheets: they take longer than an epoch of a small run."""
    dot = np.zeros((4, 4, 3), np.uint8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsr_train.engines.classification.reports.matrix_picture", lambda *args, **kwargs: dot)
        patch.setattr("hsr_train.engines.classification.reports.reliability_picture", lambda *args, **kwargs: dot)
        patch.setattr("hsr_train.engines.classification.reports.mistakes_sheet", lambda *args, **kwargs: dot)
        yield
