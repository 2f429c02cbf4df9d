"""Detection on a CUDA device. Each test needs one and has its figures in docs/benchmarks.md once it was run."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_runs import differences, last_state, quick_pictures, read_json, resume, rows, train
from yolo_sets import make_yolo_set

from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.engines.memory import free_memory
from hsr_train.hardware import detect

pytestmark = pytest.mark.gpu


@pytest.fixture
def data(tmp_path: Path) -> Path:
    if not detect().gpus:
        pytest.fail("no GPU: leave these out with -m 'not gpu'")
    return make_yolo_set(tmp_path / "set", n_train=16, n_val=8, size=(160, 160))


def test_trains_with_mixed_precision_on_the_largest_card(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    options = {"train__device": "auto", "gpu_tier": "auto", "train__imgsz": 160, "train__measure_latency": "true"}
    result = train(data, tmp_path / "out", shared_cache, **options)
    assert result.run_dir is not None
    record = json.loads((result.run_dir / "training_result.json").read_text())
    with (result.run_dir / "timings.csv").open(newline="") as file:
        peaks = [float(row["gpu_memory_gib"]) for row in csv.DictReader(file)]
    assert record["peak_vram_gb"] == pytest.approx(max(peaks) * 2**30 / 1e9, abs=1e-3) and min(peaks) > 0
    assert 0 < record["latency_ms"] < 1000
    config = record["config"]
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


# ---- memory that really runs out: of what a GPU has, a run may use only a part

Train = Callable[..., Path]
ONE_EPOCH = {"train__epochs": 1, "train__close_mosaic": 0}


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    if not detect().gpus:
        pytest.fail("no GPU: leave these out with -m 'not gpu'")
    return make_yolo_set(tmp_path / "set", n_train=32, n_val=64, size=(320, 320))


@pytest.fixture
def on_gpu(crowded: Path, tmp_path: Path, shared_cache: Path) -> Iterator[Train]:
    """Train on the first GPU in batches of 16, two to a step, and validate one image at a time, unless told otherwise.

    Whatever the test has capped is free again afterwards.
    """

    def run(**more: Any) -> Path:
        options = {
            "train__device": 0,
            "train__amp": "false",
            "train__imgsz": 320,
            "train__batch": 16,
            "train__nbs": 32,
            "train__val_batch": 1,
            "optimizer__warmup_epochs": 0,
            **more,
        }
        run_dir = train(crowded, tmp_path / "out", shared_cache, **options).run_dir
        assert run_dir is not None
        return run_dir

    with quick_pictures():
        yield run
    torch.cuda.set_per_process_memory_fraction(1.0, 0)


def peak_bytes(run: Callable[[], Any]) -> int:
    """Return how many bytes of the first GPU's memory something needs."""
    free_memory()
    torch.cuda.reset_peak_memory_stats(0)
    run()
    free_memory()
    return torch.cuda.max_memory_allocated(0)


def cap(num_bytes: float) -> None:
    """Let this process use only so much of the first GPU's memory."""
    free_memory()
    torch.cuda.set_per_process_memory_fraction(num_bytes / torch.cuda.get_device_properties(0).total_memory, 0)


def between(less: int, more: int) -> float:
    """Return a cap that the one fits in and the other does not; the one with room for fragments."""
    assert more > 1.5 * less, "the two are too close to tell them apart"
    return (less + more) / 2


@contextmanager
def images_per_step() -> Iterator[list[int]]:
    """Yield the images that each optimizer step was made of; those of an attempt that failed do not count."""
    found: list[int] = []
    pending = [0]
    epoch, backward, step = Loop._train_epoch, Loop.backward, RunTrainer.optimizer_step

    def begin(self: Loop, *args: Any) -> Any:
        pending[0] = 0
        return epoch(self, *args)

    def count(self: Loop, batch: dict[str, Any]) -> Any:
        pending[0] += len(batch["img"])
        return backward(self, batch)

    def note(self: RunTrainer) -> None:
        found.append(pending[0])
        pending[0] = 0
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_train_epoch", begin)
        patch.setattr(Loop, "backward", count)
        patch.setattr(RunTrainer, "optimizer_step", note)
        yield found


def rungs_of(run: Path) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = read_json(run / "training_result.json")["recovery"]
    assert entries, "nothing ran out"
    assert {entry["cause"] for entry in entries} == {"out of GPU memory"}
    return entries


def halved(entries: list[dict[str, Any]], key: str, first: int) -> None:
    """Check that a key was halved once or more, and nothing else was given up."""
    assert [entry["key"] for entry in entries] == [key] * len(entries)
    assert [entry["from"] for entry in entries] == [first // 2**i for i in range(len(entries))]
    assert all(entry["to"] == entry["from"] // 2 for entry in entries)


@pytest.fixture
def training_cap(on_gpu: Train) -> float:
    """A cap in bytes that batches of 4 fit in and batches of 16 do not."""
    four, sixteen = (peak_bytes(lambda batch=batch: on_gpu(train__batch=batch, **ONE_EPOCH)) for batch in (4, 16))
    return between(four, sixteen)


def test_memory_that_is_short_from_the_start_halves_the_batch(on_gpu: Train, training_cap: float) -> None:
    """In the first epoch; each step keeps its 32 images."""
    cap(training_cap)
    with images_per_step() as steps:
        run = on_gpu()
    entries = rungs_of(run)
    halved(entries, "train.batch", 16)
    assert {entry["epoch"] for entry in entries} == {1}
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert set(steps) == {32}


def test_memory_that_runs_short_in_mid_run_halves_the_batch(
    on_gpu: Train, training_cap: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the second epoch needed more; the first stays as it was, and each step keeps its 32 images."""
    original = Loop._train_epoch
    capped: list[int] = []

    def lower(self: Loop, epoch: int, times: Any) -> Any:
        if epoch == 1 and not capped:
            capped.append(epoch)
            cap(training_cap)
        return original(self, epoch, times)

    monkeypatch.setattr(Loop, "_train_epoch", lower)
    with images_per_step() as steps:
        run = on_gpu()
    entries = rungs_of(run)
    halved(entries, "train.batch", 16)
    assert capped and {entry["epoch"] for entry in entries} == {2}
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert set(steps) == {32}


def test_memory_that_is_short_for_validation_halves_only_its_batch(on_gpu: Train) -> None:
    """Training in batches of 2 needs less than validating 64 images at once; no step is repeated."""
    few, many = (
        peak_bytes(lambda val_batch=val_batch: on_gpu(train__batch=2, train__val_batch=val_batch, **ONE_EPOCH))
        for val_batch in (1, 64)
    )
    cap(between(few, many))
    with images_per_step() as steps:
        run = on_gpu(train__batch=2, train__val_batch=64)
    entries = rungs_of(run)
    halved(entries, "train.val_batch", 64)
    assert (entries[0]["epoch"], entries[0]["place"]) == (1, "validation")
    assert steps == [32, 32, 32]
    assert len(rows(run)) == 3


# ---- exact resume


@pytest.mark.parametrize("amp", ["false", "true"])
def test_run_stopped_on_a_gpu_continues_to_the_same_end(
    data: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, amp: str
) -> None:
    """To the bit, with deterministic kernels. This is the aim: the bound on CUDA is not measured yet."""
    options = {"train__device": 0, "train__deterministic": "true", "train__amp": amp, "train__imgsz": 160}
    with quick_pictures():
        whole = train(data, tmp_path / "whole", shared_cache, **options).run_dir
        original, calls = Loop.backward, [0]

        def stop_in_the_second_epoch(self: Loop, batch: dict[str, Any]) -> Any:
            calls[0] += 1
            if calls[0] == 6:  # of four batches in each epoch
                raise KeyboardInterrupt
            return original(self, batch)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Loop, "backward", stop_in_the_second_epoch)
            train(data, tmp_path / "stopped", shared_cache, **options)
        (run,) = (tmp_path / "stopped" / "detect").iterdir()
        assert len(rows(run)) == 1
        resume(run)
    assert whole is not None
    assert (run / "results.csv").read_text() == (whole / "results.csv").read_text()
    assert differences(last_state(run), last_state(whole)) == []
