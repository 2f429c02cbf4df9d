"""preset=high_performance: what it says at its start, to the letter, and only what is true on the machine."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from detection_runs import overrides, quick_pictures, train
from fake_machines import GIB, gpu, machine

import hsr_train
from hsr_train.config.schema import DetectExperiment
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.preparation import prepare
from hsr_train.errors import InputError
from hsr_train.hardware import Machine

CARD = replace(gpu(0, 11.9), name="NVIDIA GeForce RTX 5070")
BY_THE_PRESET = {"preset": "high_performance", **dict.fromkeys(("train__batch", "train__workers", "train__cache"))}
ON_A_CARD = """\
GPU: NVIDIA GeForce RTX 5070
GPU Memory: 12.0 GB
Auto batch size: 24 (based on 12.0GB VRAM)
Training settings (high-performance mode):
  - Batch size: 24
  - Workers: 8
  - AMP (Mixed Precision): True
  - Cache: disk (disk-based, memory-safe)
  - Cosine LR: True"""
ON_A_CPU = """\
GPU: none, training on the CPU
Auto batch size: 4 (based on gpu_tier=cpu)
Training settings (high-performance mode):
  - Batch size: 4
  - Workers: 8
  - AMP (Mixed Precision): False
  - Cache: disk (disk-based, memory-safe)
  - Cosine LR: True"""


@pytest.fixture
def said(small_set: Path, tmp_path: Path, shared_cache: Path, caplog: pytest.LogCaptureFixture) -> Any:
    """Prepare a run on a machine and return the block of the log, or None."""

    def prepare_on(where: Machine, device: Any, **typed: Any) -> str | None:
        options = {**BY_THE_PRESET, "train__imgsz": 640, **typed}
        experiment = hsr_train.compose(overrides(small_set, tmp_path / "out", shared_cache, **options))
        assert isinstance(experiment, DetectExperiment)
        experiment.train.device = device
        caplog.clear()
        with caplog.at_level(logging.INFO, "hsr_train"):
            prepare(experiment, where, Decisions())
        return next((text for text in caplog.messages if "high-performance mode" in text), None)

    return prepare_on


def test_block_on_a_card_is_the_agreed_text_with_nominal_memory(said: Any) -> None:
    assert said(machine(CARD), 0) == ON_A_CARD


def test_block_on_a_cpu_says_what_is_true_there(said: Any) -> None:
    assert said(machine(), "cpu") == ON_A_CPU


def test_block_holds_what_was_typed_and_calls_no_typed_batch_automatic(said: Any) -> None:
    text = said(machine(CARD), 0, train__batch=16, train__workers=12, train__cache="ram", train__cos_lr="false")
    assert "Auto batch size" not in text
    for line in ("Batch size: 16", "Workers: 8", "Cache: ram (memory-based)", "Cosine LR: False"):
        assert f"  - {line}" in text


def test_block_is_for_training_with_this_preset_alone(said: Any) -> None:
    assert said(machine(CARD), 0, mode="check") is None
    assert said(machine(CARD), 0, preset="competition") is None


def test_disk_without_room_is_refused_with_figures_and_what_to_type(
    said: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=GIB, used=GIB, free=GIB // 2))
    with pytest.raises(InputError, match=r"train.cache: disk.*0 MiB to write|512 MiB free") as refused:
        said(machine(CARD), 0, data__cache_dir=tmp_path / "empty")
    assert "data.cache_dir=FOLDER on a larger disk" in refused.value.problems[0].remedy


def test_block_is_in_the_log_of_the_run(small_set: Path, tmp_path: Path, shared_cache: Path) -> None:
    options = {**BY_THE_PRESET, "train__epochs": 1, "train__close_mosaic": 0, "train__workers": 0}
    with quick_pictures():
        result = train(small_set, tmp_path / "out", shared_cache, **options)
    assert result.run_dir is not None
    lines = [line.split(" | ", 2)[2] for line in (result.run_dir / "logs" / "train.log").read_text().splitlines()]
    start = lines.index("Training settings (high-performance mode):")
    assert lines[start + 1 : start + 3] == ["  - Batch size: 4", "  - Workers: 0"]
    assert lines[start + 5] == "  - Cosine LR: True"
