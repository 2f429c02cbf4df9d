"""The ladder and the record of changes, by themselves: no torch, no run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import hsr_train
from hsr_train.config.schema import DetectExperiment
from hsr_train.errors import InputError, RunError
from hsr_train.recovery import (
    EXPORT,
    FINAL_EVALUATION,
    KILLED,
    OPTIMIZER_STEP,
    START,
    TRAINING_STEP,
    VALIDATION,
    Recovery,
    ReplayDueError,
)
from hsr_train.run.changes import (
    DIVERGED,
    GPU_MEMORY,
    HOST_MEMORY,
    RESUMED,
    Change,
    apply,
    get_value,
    read_changes,
    undo,
    write_changes,
)


@pytest.fixture
def experiment() -> DetectExperiment:
    composed = hsr_train.compose(["gpu_tier=manual", "train.batch=16", "train.cache=ram", "train.workers=4"])
    composed.train.val_batch = 32
    return composed


def forget(changes: Sequence[Change]) -> None:
    """Save nothing."""


def taken(recovery: Recovery, cause: str) -> list[tuple[str, object]]:
    """Take rungs until nothing is left."""
    found = []
    while True:
        try:
            change = recovery.take(cause)
        except RunError:
            return found
        found.append((change.key, change.after))


@pytest.mark.parametrize("place", [START, TRAINING_STEP, OPTIMIZER_STEP])
def test_gpu_ladder_is_the_seeds_order(experiment: DetectExperiment, place: str) -> None:
    recovery = Recovery(experiment, forget)
    recovery.at(place, 1)
    sizes = [("train.imgsz", size) for size in range(608, 319, -32)]
    batches = [("train.batch", 8), ("train.batch", 4), ("train.batch", 2)]
    rest = [("train.cache", "none"), ("train.workers", 2), ("train.workers", 1), ("train.workers", 0)]
    assert taken(recovery, GPU_MEMORY) == [*batches, *sizes, *rest]


def test_main_memory_ladder_begins_with_the_cache(experiment: DetectExperiment) -> None:
    recovery = Recovery(experiment, forget)
    recovery.at(TRAINING_STEP, 1)
    workers = [("train.workers", 2), ("train.workers", 1), ("train.workers", 0)]
    batches = [("train.batch", 8), ("train.batch", 4), ("train.batch", 2)]
    assert taken(recovery, HOST_MEMORY) == [("train.cache", "none"), *workers, *batches]


@pytest.mark.parametrize("place", [VALIDATION, FINAL_EVALUATION])
def test_shortage_of_gpu_memory_without_gradients_touches_only_the_validation_batch(
    experiment: DetectExperiment, place: str
) -> None:
    recovery = Recovery(experiment, forget)
    recovery.at(place, 1)
    assert taken(recovery, GPU_MEMORY) == [("train.val_batch", size) for size in (16, 8, 4, 2, 1)]


def test_export_gives_up_the_gpu_then_nothing(experiment: DetectExperiment) -> None:
    recovery = Recovery(experiment, forget)
    recovery.at(EXPORT, 1)
    assert taken(recovery, GPU_MEMORY) == [("export.device", "cpu")]


@pytest.mark.parametrize(
    ("size", "stride", "least", "expected"), [(640, 64, 320, 576), (100, 32, 64, 96), (96, 32, 96, None)]
)
def test_image_sizes_are_multiples_of_the_stride(
    experiment: DetectExperiment, size: int, stride: int, least: int, expected: int | None
) -> None:
    experiment.train.batch, experiment.train.imgsz, experiment.recovery.min_imgsz = 2, size, least
    recovery = Recovery(experiment, forget, stride=stride)
    change = recovery.take(GPU_MEMORY)
    assert (change.after if change.key == "train.imgsz" else None) == expected


@pytest.mark.parametrize(
    ("batch", "least", "expected"), [(5, 2, [2]), (48, 2, [24, 12, 6, 3, 2]), (4, 3, [3]), (2, 2, []), (1, 2, [])]
)
def test_batches_are_halved_down_to_the_least(
    experiment: DetectExperiment, batch: int, least: int, expected: list[int]
) -> None:
    experiment.train.batch, experiment.recovery.min_batch = batch, least
    found = taken(Recovery(experiment, forget), GPU_MEMORY)
    assert [after for key, after in found if key == "train.batch"] == expected


def test_initial_values_are_those_before_every_change(experiment: DetectExperiment) -> None:
    recovery = Recovery(experiment, forget)
    for _ in range(3):
        recovery.take(GPU_MEMORY)
    assert (experiment.train.batch, recovery.initial("train.batch"), recovery.initial("train.imgsz")) == (2, 16, 640)


def test_killed_process_takes_its_rung_when_it_begins(experiment: DetectExperiment) -> None:
    recovery = Recovery(experiment, forget, killed=True)
    recovery.begin(3)
    (change,) = recovery.changes
    assert (change.epoch, change.place, change.key, change.cause) == (3, KILLED, "train.cache", HOST_MEMORY)
    recovery.begin(3)
    assert len(recovery.changes) == 1


def test_killed_process_lowers_the_batch_of_validation_too(experiment: DetectExperiment) -> None:
    """Nobody knows where it died; what validation takes must not stay what it was."""
    experiment.train.cache, experiment.train.workers = "none", 0
    experiment.train.batch, experiment.train.val_batch = 8, 16
    found = []
    while experiment.train.val_batch > 1:
        recovery = Recovery(experiment, forget, killed=True)
        recovery.begin(2)
        found += [(change.key, change.after) for change in recovery.changes]
    assert found == [
        ("train.batch", 4), ("train.val_batch", 8), ("train.batch", 2), ("train.val_batch", 4),
        ("train.val_batch", 2), ("train.val_batch", 1),
    ]  # fmt: skip
    with pytest.raises(RunError, match="Nothing is left to give up"):
        Recovery(experiment, forget, killed=True).begin(2)


def test_what_was_typed_on_resume_is_dated_and_saved(experiment: DetectExperiment) -> None:
    saves: list[list[Change]] = []
    typed = Change(0, "resume", "train.epochs", "train.epochs", 50, 80, RESUMED)
    recovery = Recovery(experiment, lambda changes: saves.append(list(changes)), [typed])
    recovery.begin(51)
    assert saves[-1][0].epoch == 51
    assert recovery.rungs == [], "it is no rung"


def test_replayed_changes_come_in_their_epoch_and_at_their_place(experiment: DetectExperiment) -> None:
    batch = Change(2, OPTIMIZER_STEP, "batch", "train.batch", 16, 8, GPU_MEMORY)
    validation = Change(3, VALIDATION, "validation batch", "train.val_batch", 32, 16, GPU_MEMORY)
    recovery = Recovery(experiment, forget, replay=[batch, validation])
    for place, epoch, due in [
        (TRAINING_STEP, 1, None),
        (VALIDATION, 1, None),
        (TRAINING_STEP, 2, batch),
        (TRAINING_STEP, 2, None),
        (VALIDATION, 2, None),
        (TRAINING_STEP, 3, None),
        (VALIDATION, 3, validation),
        (VALIDATION, 3, None),
    ]:
        recovery.at(place, epoch)
        if due is None:
            recovery.stop_if_due()
        else:
            with pytest.raises(ReplayDueError):
                recovery.stop_if_due()
            assert recovery.next_rung(None) == due.rung
            assert recovery.take(None) == due
    assert (experiment.train.batch, experiment.train.val_batch) == (8, 16)
    assert recovery.changes == [batch, validation]


def test_rates_are_halved_at_most_so_often(experiment: DetectExperiment) -> None:
    experiment.train.amp = False
    recovery = Recovery(experiment, forget)
    assert [recovery.take(DIVERGED, rate=0.9).after for _ in range(2)] == [0.0005, 0.00025]
    with pytest.raises(RunError, match="after 2 retries"):
        recovery.take(DIVERGED, rate=0.9)


def test_rate_that_the_optimizer_chose_is_halved_too(experiment: DetectExperiment) -> None:
    experiment.train.amp, experiment.optimizer.lr0 = False, None
    recovery = Recovery(experiment, forget)
    recovery.take(DIVERGED, rate=0.02)
    assert (experiment.optimizer.lr0, recovery.rate_factor(), recovery.initial("optimizer.lr0")) == (0.01, 0.5, 0.02)


# ---- the record


def test_changes_are_read_back_and_undone(tmp_path: Path, experiment: DetectExperiment) -> None:
    changes = [
        Change(1, START, "batch", "train.batch", 16, 8, GPU_MEMORY),
        Change(4, START, "batch", "train.batch", 8, 4, GPU_MEMORY),
        Change(5, "resume", "train.epochs", "train.epochs", 50, 80, RESUMED),
    ]
    write_changes(tmp_path / "changes.json", changes)
    assert read_changes(tmp_path / "changes.json") == changes
    apply(experiment, changes)
    assert (get_value(experiment, "train.batch"), experiment.train.epochs) == (4, 80)
    undo(experiment, changes)
    assert (experiment.train.batch, experiment.train.epochs) == (16, 50)


def test_no_file_means_no_changes(tmp_path: Path) -> None:
    assert read_changes(tmp_path / "changes.json") == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"epoch": 1}]', "null"])
def test_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "changes.json").write_text(text)
    with pytest.raises(InputError, match=r"changes\.json.*damaged"):
        read_changes(tmp_path / "changes.json")


def test_ladder_needs_no_torch() -> None:
    code = "import sys, hsr_train.recovery; sys.exit('torch' in sys.modules or 'ultralytics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
