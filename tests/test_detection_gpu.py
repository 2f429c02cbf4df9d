"""Detection on a CUDA device. Each test needs one and has its figures in docs/benchmarks.md once it was run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detection_runs import train
from yolo_sets import make_yolo_set

from hsr_train.hardware import detect

pytestmark = pytest.mark.gpu


@pytest.fixture
def data(tmp_path: Path) -> Path:
    if not detect().gpus:
        pytest.fail("no GPU: leave these out with -m 'not gpu'")
    return make_yolo_set(tmp_path / "set", n_train=16, n_val=8, size=(160, 160))


def test_trains_with_mixed_precision_on_the_largest_card(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    result = train(data, tmp_path / "out", shared_cache, train__device="auto", gpu_tier="auto", train__imgsz=160)
    assert result.run_dir is not None
    config = json.loads((result.run_dir / "training_result.json").read_text())["config"]
    assert str(config["train"]["device"]).startswith("cuda:")
    assert config["train"]["amp"] is True
    assert result.epochs_completed == 3


def test_two_runs_of_one_seed_agree(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    tables = []
    for workers in (0, 2):
        options = {"train__device": "auto", "train__workers": workers, "train__amp": "false", "train__imgsz": 160}
        result = train(data, tmp_path / f"out{workers}", shared_cache, **options)
        assert result.run_dir is not None
        tables.append((result.run_dir / "results.csv").read_text())
    assert tables[0] == tables[1]


def test_exported_onnx_passes_its_gate_when_trained_on_a_gpu(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    result = train(data, tmp_path / "out", shared_cache, train__device="auto", export__formats="[onnx]")
    assert [export["format"] for export in result.exports] == ["onnx"]
