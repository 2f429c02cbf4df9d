"""Small detection runs for tests: in this process through `hsr_train.execute`, or as the command that users type."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import hsr_train
from hsr_train.engines.base import Result

SESSION = Path(os.environ["HOME"]).parent
"""Gone with the session."""
THIN = "thin"
SMALL = {
    "model.weights": THIN,
    "gpu_tier": "cpu",
    "train.device": "cpu",
    "train.epochs": "3",
    "train.batch": "4",
    "train.nbs": "8",
    "train.imgsz": "64",
    "train.workers": "0",
    "train.cache": "none",
    "train.close_mosaic": "1",
    "train.save_period": "2",
    "optimizer.warmup_epochs": "1",
    "tensorboard.serve": "false",
}
"""Overrides of a run that takes seconds; tests put their own on top."""


@cache
def thin_weights() -> Path:
    """Return weights of a YOLOv8n with few channels and tensors, made once: states and steps of it cost little."""
    from checkpoints import write_checkpoint

    return write_checkpoint(SESSION / "thin.pt", thin=True)


def overrides(data: Path, output_dir: Path, cache_dir: Path, **more: Any) -> list[str]:
    """Return what is typed for a small run.

    Args:
        data: The set's data.yaml.
        output_dir: Where runs are created.
        cache_dir: Where caches lie.
        **more: Further overrides, `__` for a dot; None leaves a default of `SMALL` out.
    """
    typed: dict[str, Any] = {
        **SMALL,
        "data.path": data,
        "output_dir": output_dir,
        "data.cache_dir": cache_dir,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    if typed["model.weights"] == THIN:
        typed["model.weights"] = "scratch" if {"model", "model.name"} & typed.keys() else thin_weights()
    return [f"{key}={value}" for key, value in typed.items() if value is not None]


def train(data: Path, output_dir: Path, cache_dir: Path, **more: Any) -> Result:
    """Train in this process."""
    return hsr_train.execute(hsr_train.compose(overrides(data, output_dir, cache_dir, **more)))


def resume(run_dir: Path, *more: str) -> Result:
    """Continue a run in this process."""
    return hsr_train.execute(hsr_train.compose([f"resume={run_dir}", *more]))


def short_folder() -> Path:
    """Make a folder for a process's temporary files, gone with the session: pytest's own are too long for sockets."""
    return Path(tempfile.mkdtemp(prefix="t", dir=SESSION))


def fresh_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what bringing up ultralytics has put into it."""
    ours = ("YOLO_", "ULTRALYTICS_", "MPLCONFIGDIR", "MPLBACKEND", "NO_ALBUMENTATIONS_UPDATE")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)} | more


def start(words: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own; its output is captured."""
    return subprocess.Popen(
        [sys.executable, "-m", "hsr_train", *words],
        cwd=cwd,
        env=fresh_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def command(words: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    process = start(words, cwd, **environment)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Return the epochs of results.csv."""
    with (run_dir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


class _Nothing:
    """Axes on which nothing is drawn: whatever is asked of it is itself, and there are so many of it."""

    def __init__(self, count: int = 1) -> None:
        self._count = count

    def __iter__(self) -> Iterator[_Nothing]:
        return iter([self] * self._count)

    def __getattr__(self, name: str) -> _Nothing:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> _Nothing:
        return self

    def __getitem__(self, key: Any) -> _Nothing:
        return self


@contextmanager
def quick_pictures() -> Iterator[None]:
    """Draw no plots: each takes longer than an epoch of a small run. Files of the same names are written."""

    def save(figure: Any, target: Any, **options: Any) -> None:
        content = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
        target.write(content) if hasattr(target, "write") else Path(target).write_bytes(content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", save)
        for name in ("add_subplot", "colorbar"):
            patch.setattr(f"matplotlib.figure.FigureBase.{name}", lambda *args, **kwargs: _Nothing())
        axes = "matplotlib.figure.FigureBase.subplots"
        patch.setattr(axes, lambda figure, nrows=1, ncols=1, **kwargs: _Nothing(nrows * ncols))
        patch.setattr("matplotlib.figure.Figure.tight_layout", lambda *args, **kwargs: None)
        # pyplot asks for another drawing after it has saved one.
        patch.setattr("matplotlib.backend_bases.FigureCanvasBase.draw_idle", lambda canvas: None)
        yield


def last_state(run_dir: Path) -> dict[str, Any]:
    """Return the newest training state of a run."""
    file = max((run_dir / "state").glob("epoch*.pt"), key=lambda path: int(path.stem.removeprefix("epoch")))
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Return the places at which two nested states differ, to the bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [found for key in one for found in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        return [
            found
            for i, (a, b) in enumerate(zip(one, other, strict=True))
            for found in differences(a, b, f"{where}.{i}")
        ]
    return [] if type(one) is type(other) and one == other else [where]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two weights files hold the same numbers, to the bit."""
    tensors = [torch.load(file, weights_only=False)["model"].state_dict() for file in (one, other)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(v, tensors[1][k]) for k, v in tensors[0].items())
