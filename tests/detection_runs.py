"""Small detection runs for tests: in this process through `hsr_train.execute`, or as the command that users type."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import hsr_train
from hsr_train.engines.base import Result

SMALL = {
    "model": "yolov8n",
    "model.weights": "scratch",
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
    return [f"{key}={value}" for key, value in typed.items() if value is not None]


def train(data: Path, output_dir: Path, cache_dir: Path, **more: Any) -> Result:
    """Train in this process."""
    return hsr_train.execute(hsr_train.compose(overrides(data, output_dir, cache_dir, **more)))


def resume(run_dir: Path, *more: str) -> Result:
    """Continue a run in this process."""
    return hsr_train.execute(hsr_train.compose([f"resume={run_dir}", *more]))


def start(words: list[str], cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """Start the command in a process group of its own; its output is captured."""
    return subprocess.Popen(
        [sys.executable, "-m", "hsr_train", *words],
        cwd=cwd,
        env=os.environ | environment,
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
