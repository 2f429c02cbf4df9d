"""Detection runs that run out of memory, or whose numbers go wrong: at every place, in every epoch, on every rung.

The faults are raised by the library's or torch's own functions, at a chosen call, as they would be by the allocator.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_runs import differences, last_state, quick_pictures, read_json, resume, rows, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from ultralytics.engine.exporter import Exporter
from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
from ultralytics.nn.tasks import DetectionModel

import hsr_train
from hsr_train.config import saved
from hsr_train.engines.base import Result
from hsr_train.engines.detection import attempts
from hsr_train.engines.detection.dataset import RunDataset
from hsr_train.engines.detection.evaluate import _Collecting
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.schedule import Schedule
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.errors import InputError, RunError
from hsr_train.recovery import Recovery
from hsr_train.run.changes import DIVERGED

Train = Callable[..., Result]
GPU_OOM = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
SMALL_LADDER = {"recovery__min_imgsz": 64}


@pytest.fixture
def data(small_set: Path) -> Path:
    return small_set


@pytest.fixture
def quick(data: Path, tmp_path: Path, shared_cache: Path) -> Iterator[Train]:
    with quick_pictures():
        yield lambda **more: train(data, tmp_path / "out", shared_cache, **{**SMALL_LADDER, **more})


@pytest.fixture
def epoch_now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epoch (from 1) that the loop is in; 0 before it."""
    now = [0]
    original = Loop._train_epoch

    def noting(self: Loop, epoch: int, times: Any) -> Any:
        now[0] = epoch + 1
        return original(self, epoch, times)

    monkeypatch.setattr(Loop, "_train_epoch", noting)
    return now


Fail = Callable[..., list[int]]


@pytest.fixture
def fail(epoch_now: list[int], monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let a function raise at its given calls, counted from 1 in one epoch (any, if none is given)."""

    def install(
        owner: Any, name: str, *calls: int, epoch: int | None = None, error: BaseException = GPU_OOM
    ) -> list[int]:
        original, count = getattr(owner, name), [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            if epoch is None or epoch_now[0] == epoch:
                count[0] += 1
                if count[0] in calls:
                    raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
        return count

    return install


def folder_of(result: Result) -> Path:
    assert result.run_dir is not None
    return result.run_dir


def recorded(run: Path) -> list[tuple[Any, ...]]:
    """Return the rungs of a finished run: epoch, place, key, from, to."""
    entries = read_json(run / "training_result.json")["recovery"]
    return [(e["epoch"], e["place"], e["key"], e["from"], e["to"]) for e in entries]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that each optimizer step was made of, over all attempts."""
    found: list[int] = []
    pending = [0]
    backward, step = Loop.backward, RunTrainer.optimizer_step

    def counting(self: Loop, batch: dict[str, Any]) -> Any:
        pending[0] += len(batch["img"])
        return backward(self, batch)

    def noting(self: RunTrainer) -> None:
        found.append(pending[0])
        pending[0] = 0
        step(self)

    begin = attempts.Attempts.next

    def anew(self: Any) -> Any:
        pending[0] = 0
        return begin(self)

    monkeypatch.setattr(Loop, "backward", counting)
    monkeypatch.setattr(RunTrainer, "optimizer_step", noting)
    monkeypatch.setattr(attempts.Attempts, "next", anew)
    return found


# ---- every place, in epochs 1, 2 and 3 of 3: three batches of 4, 4 and 1 images, after warm-up steps of 8 and 1

TRAINING = {
    "forward": (DetectionModel, "loss", 2, "training step"),
    "backward": (torch.Tensor, "backward", 2, "training step"),
    "optimizer step": (torch.optim.AdamW, "step", 2, "optimizer step"),
}
EPOCHS = [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]


@pytest.mark.parametrize("epoch", EPOCHS)
@pytest.mark.parametrize("where", TRAINING)
def test_shortage_in_training_halves_the_batch_and_keeps_the_effective_batch(
    quick: Train, fail: Fail, steps: list[int], where: str, epoch: int
) -> None:
    owner, name, call, place = TRAINING[where]
    fail(owner, name, call, epoch=epoch)
    run = folder_of(quick())
    assert recorded(run) == [(epoch, place, "train.batch", 4, 2)]
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert saved.load(run / "config.yaml").train.batch == 2
    assert read_json(run / "training_result.json")["config"]["train"]["batch"] == 2
    warm_up = [4, 4, 1] if epoch > 1 else []
    assert steps[: len(warm_up)] == warm_up
    again = [4, 4, 1, 8, 1, 8, 1][-(2 * (3 - epoch) + (3 if epoch == 1 else 2)) :]
    assert steps[-len(again) :] == again
    decay = {g["param_group"]: g["weight_decay"] for g in last_state(run)["optimizer"]["param_groups"]}
    assert decay["weight"] == pytest.approx(0.0005)


def test_rates_stay_after_a_rung(quick: Train, whole_run: Path, fail: Fail) -> None:
    fail(torch.Tensor, "backward", 2, epoch=2)
    run = folder_of(quick())
    assert recorded(run)
    for one, other in zip(rows(whole_run), rows(run), strict=True):
        assert [one[f"lr_{i}"] for i in range(3)] == [other[f"lr_{i}"] for i in range(3)]
    assert rows(whole_run)[0] == rows(run)[0], "the epoch before the rung is not touched"


@pytest.mark.parametrize("epoch", EPOCHS)
def test_shortage_in_validation_redoes_only_the_validation(
    quick: Train, whole_run: Path, fail: Fail, steps: list[int], epoch: int
) -> None:
    """With half the validation batch, and to the same metrics: the images keep the shapes of their first batch."""
    fail(DetectionValidator, "postprocess", 1, epoch=epoch)
    run = folder_of(quick())
    assert recorded(run) == [(epoch, "validation", "train.val_batch", 8, 4)]
    assert steps == [4, 4, 1, 8, 1, 8, 1], "no training is repeated"
    for one, other in zip(rows(whole_run), rows(run), strict=True):
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-4)
    assert saved.load(run / "config.yaml").train.val_batch == 4


def test_shortage_in_the_final_evaluation_repeats_it(quick: Train, fail: Fail, steps: list[int]) -> None:
    fail(_Collecting, "init_metrics", 1, 2)
    run = folder_of(quick(train__epochs=2))
    place = "final evaluation"
    assert recorded(run) == [(2, place, "train.val_batch", 8, 4), (2, place, "train.val_batch", 4, 2)]
    assert steps == [4, 4, 1, 8, 1]


def test_shortage_in_the_export_moves_it_to_the_cpu(quick: Train, fail: Fail) -> None:
    fail(Exporter, "__call__", 1)
    run = folder_of(quick(train__epochs=1, train__close_mosaic=0, export__formats="[torchscript]"))
    assert recorded(run) == [(1, "export", "export.device", "run", "cpu")]
    assert (run / "weights" / "best.torchscript").is_file()
    assert read_json(run / "training_result.json")["exports"][0]["device"] == "cpu"


def test_shortage_at_the_start_goes_down_the_ladder(quick: Train, fail: Fail) -> None:
    fail(DetectionTrainer, "get_validator", 1)
    run = folder_of(quick(train__epochs=1, train__close_mosaic=0))
    assert recorded(run) == [(1, "start", "train.batch", 4, 2)]
    assert len(rows(run)) == 1


# ---- every rung


@pytest.mark.slow
def test_gpu_ladder_gives_up_batch_image_size_cache_and_workers_in_this_order(
    quick: Train, fail: Fail, shared_cache: Path
) -> None:
    fail(torch.Tensor, "backward", *range(1, 7), epoch=2)
    run = folder_of(quick(train__imgsz=128, train__cache="ram", train__workers=2))
    assert recorded(run) == [
        (2, "training step", "train.batch", 4, 2),
        (2, "training step", "train.imgsz", 128, 96),
        (2, "training step", "train.imgsz", 96, 64),
        (2, "training step", "train.cache", "ram", "none"),
        (2, "training step", "train.workers", 2, 1),
        (2, "training step", "train.workers", 1, 0),
    ]
    now = saved.load(run / "config.yaml").train
    assert (now.batch, now.imgsz, now.cache, now.workers) == (2, 64, "none", 0)
    assert len(rows(run)) == 3


@pytest.mark.slow
def test_fitness_is_measured_at_the_initial_image_size(
    quick: Train, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int]] = []
    original = RunDataset.__init__

    def noting(self: RunDataset, split: Any, hyp: Any, **options: Any) -> None:
        seen.append((split.name, hyp.imgsz))
        original(self, split, hyp, **options)

    monkeypatch.setattr(RunDataset, "__init__", noting)
    fail(torch.Tensor, "backward", 1, 2, epoch=2)
    run = folder_of(quick(train__imgsz=96))
    assert [rung[2:] for rung in recorded(run)] == [("train.batch", 4, 2), ("train.imgsz", 96, 64)]
    assert {size for name, size in seen if name == "val"} == {96}, "in training and in the final evaluation"
    assert [size for name, size in seen if name == "train"] == [96, 96, 64]
    assert torch.load(run / "weights" / "best.pt", weights_only=False)["train_args"]["imgsz"] == 96


def test_end_of_the_ladder_is_one_clear_line_and_the_run_can_go_on(
    quick: Train, fail: Fail, tmp_path: Path, whole_run: Path
) -> None:
    fail(torch.Tensor, "backward", *range(1, 99), epoch=2)
    with pytest.raises(RunError, match=r"(?s)Out of GPU memory in epoch 2.*batch 2.*Nothing is left.*model="):
        quick(recovery__min_imgsz=64)
    (run,) = (tmp_path / "out" / "detect").iterdir()
    assert (read_json(run / "status.json")["state"], len(rows(run))) == ("failed", 1)
    assert rows(run)[0] == rows(whole_run)[0]
    assert last_state(run)["epochs_done"] == 1


def test_recovery_that_is_switched_off_ends_the_run(quick: Train, fail: Fail) -> None:
    fail(torch.Tensor, "backward", 2)
    with pytest.raises(RunError, match=r"Out of GPU memory in epoch 1.*recovery.enabled=true"):
        quick(recovery__enabled="false", recovery__min_imgsz=None)


def test_least_batch_is_kept(quick: Train, fail: Fail) -> None:
    fail(torch.Tensor, "backward", 2)
    run = folder_of(quick(recovery__min_batch=3, train__epochs=1, train__close_mosaic=0))
    assert recorded(run) == [(1, "training step", "train.batch", 4, 3)]


# ---- main memory

HOST_ERRORS = {
    "numpy": MemoryError("Unable to allocate 1.2 GiB for an array"),
    "torch": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    "killed worker": RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. "),
    "shared memory": RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that "),
    "fork": OSError(errno.ENOMEM, "Cannot allocate memory"),
}


def test_main_memory_ladder_gives_up_cache_workers_and_batch_in_this_order(quick: Train, fail: Fail) -> None:
    fail(Loop, "backward", *range(1, 5), epoch=2, error=HOST_ERRORS["numpy"])
    run = folder_of(quick(train__cache="ram", train__workers=2))
    assert [rung[2:] for rung in recorded(run)] == [
        ("train.cache", "ram", "none"),
        ("train.workers", 2, 1),
        ("train.workers", 1, 0),
        ("train.batch", 4, 2),
    ]
    assert {e["cause"] for e in read_json(run / "training_result.json")["recovery"]} == {"out of host memory"}


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted({*HOST_ERRORS} - {"numpy"}))
def test_every_shortage_of_main_memory_is_taken_for_one(quick: Train, fail: Fail, kind: str) -> None:
    fail(Loop, "backward", 2, error=HOST_ERRORS[kind])
    run = folder_of(quick(train__cache="ram", train__epochs=1, train__close_mosaic=0))
    assert recorded(run) == [(1, "training step", "train.cache", "ram", "none")]
    assert {e["cause"] for e in read_json(run / "training_result.json")["recovery"]} == {"out of host memory"}


@pytest.mark.slow
def test_killed_loader_worker_is_a_shortage_of_main_memory(quick: Train, epoch_now: list[int]) -> None:
    """A real SIGKILL, as the kernel sends it."""
    original = Loop.backward
    killed: list[int] = []

    def kill_once(self: Loop, batch: dict[str, Any]) -> Any:
        if epoch_now[0] == 2 and not killed:
            killed.append(self.trainer.train_loader.iterator._workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "backward", kill_once)
        run = folder_of(quick(train__workers=2))
    assert killed and [rung[2:] for rung in recorded(run)] == [("train.workers", 2, 1)]
    assert len(rows(run)) == 3


@pytest.mark.slow
def test_shortage_of_main_memory_in_validation_lowers_its_batch_first(quick: Train, fail: Fail) -> None:
    fail(DetectionValidator, "postprocess", *range(1, 6), epoch=2, error=MemoryError())
    run = folder_of(quick(train__workers=1))
    assert [rung[2:] for rung in recorded(run)] == [
        ("train.val_batch", 8, 4),
        ("train.val_batch", 4, 2),
        ("train.val_batch", 2, 1),
        ("train.workers", 1, 0),
        ("train.batch", 4, 2),
    ]


def test_other_errors_are_not_retried(quick: Train, fail: Fail) -> None:
    count = fail(torch.Tensor, "backward", 2, error=RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        quick()
    assert count[0] == 2


# ---- nothing of a failed attempt stays


@pytest.mark.slow
def test_memory_of_a_failed_attempt_is_free_before_the_next(
    quick: Train, fail: Fail, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []
    original = RunTrainer._setup_train

    def noting(self: RunTrainer) -> None:
        alive.append(sum(model() is not None for model in models))
        original(self)
        models.append(weakref.ref(self.model))

    monkeypatch.setattr(RunTrainer, "_setup_train", noting)
    fail(DetectionModel, "loss", 2, 3, epoch=2)
    quick(train__imgsz=96)
    assert alive == [0, 0, 0]


@pytest.mark.slow
def test_run_after_a_rung_and_a_kill_ends_as_the_one_without_the_kill(quick: Train, fail: Fail, tmp_path: Path) -> None:
    fail(torch.Tensor, "backward", 2, epoch=2)
    whole = folder_of(quick())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempts.Attempts, "next", stopping_after_rungs(attempts.Attempts.next, 1))
        fail(torch.Tensor, "backward", 2, epoch=2)
        with pytest.raises(KeyboardInterrupt):
            train_elsewhere(quick, tmp_path)
    (run,) = (tmp_path / "elsewhere" / "detect").iterdir()
    assert saved.load(run / "config.yaml").train.batch == 2
    resume(run)
    assert recorded(run) == recorded(whole)
    assert shown_in_tensorboard(run) == shown_in_tensorboard(whole) == [(2, RUNG)]
    assert (run / "results.csv").read_text() == (whole / "results.csv").read_text()
    assert differences(last_state(run), last_state(whole)) == []


def stopping_after_rungs(original: Any, count: int) -> Any:
    def next_attempt(self: Any) -> Any:
        if len(self.context.recovery.rungs) == count:
            raise KeyboardInterrupt
        return original(self)

    return next_attempt


def train_elsewhere(quick: Train, tmp_path: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        compose = hsr_train.compose
        patch.setattr(hsr_train, "compose", lambda words: compose([*words, f"output_dir={tmp_path / 'elsewhere'}"]))
        return quick()


def shown_in_tensorboard(run: Path) -> list[tuple[int, str]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [point.step for point in events.Scalars("metrics/mAP50")] == [1, 2, 3]
    return [(point.step, point.tensor_proto.string_val[0].decode()) for point in events.Tensors("recovery")]


RUNG = "train.batch 4 -> 2 in epoch 2 (out of GPU memory, training step)"


def test_rung_is_shown_in_tensorboard_log_and_summary(quick: Train, fail: Fail) -> None:
    fail(torch.Tensor, "backward", 2, epoch=2)
    run = folder_of(quick())
    assert shown_in_tensorboard(run) == [(2, RUNG)]
    assert "Recovered at epoch 2" in (run / "summary.txt").read_text()
    assert f"Recovery: {RUNG}" in (run / "logs" / "train.log").read_text()


# ---- numbers gone wrong


def spoiling(batches: range, epoch_now: list[int], epoch: int) -> Any:
    """Return a backward step whose batch is no numbers, at some calls in an epoch."""
    original, count = Loop.backward, [0]

    def spoil(self: Loop, batch: dict[str, Any]) -> Any:
        if epoch_now[0] == epoch:
            count[0] += 1
            if count[0] in batches:
                original_preprocess = self.trainer.preprocess_batch

                def preprocess(b: dict[str, Any]) -> dict[str, Any]:
                    b = original_preprocess(b)
                    b["img"][0] = float("nan")
                    return b

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(self.trainer, "preprocess_batch", preprocess)
                    return original(self, batch)
        return original(self, batch)

    return spoil


def test_batch_without_numbers_goes_back_and_lowers_the_rate(
    quick: Train, epoch_now: list[int], monkeypatch: pytest.MonkeyPatch, whole_run: Path
) -> None:
    monkeypatch.setattr(Loop, "backward", spoiling(range(2, 3), epoch_now, 2))
    run = folder_of(quick())
    assert recorded(run) == [(2, "training step", "optimizer.lr0", 0.001, 0.0005)]
    assert read_json(run / "training_result.json")["recovery"][0]["cause"] == "numbers gone wrong"
    table, sound = rows(run), rows(whole_run)
    assert table[0] == sound[0]
    for i in (1, 2):
        assert float(table[i]["lr_0"]) == pytest.approx(float(sound[i]["lr_0"]) / 2)
    assert saved.load(run / "config.yaml").optimizer.lr0 == 0.0005


def test_data_without_numbers_end_the_run_after_the_retries(
    quick: Train, epoch_now: list[int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Loop, "backward", spoiling(range(1, 999), epoch_now, 2))
    with pytest.raises(RunError, match=r"diverged in epoch 2.*after 2 retries.*optimizer.lr0=0.00025"):
        quick()
    (run,) = (tmp_path / "out" / "detect").iterdir()
    assert last_state(run)["epochs_done"] == 1 and len(rows(run)) == 1


def test_mixed_precision_goes_before_the_rate() -> None:
    experiment = hsr_train.compose(["gpu_tier=low"])
    assert experiment.train.amp
    recovery = Recovery(experiment, lambda changes: None)
    recovery.at("training step", 3)
    taken = [recovery.take(DIVERGED, rate=0.1) for _ in range(2)]
    assert [(c.key, c.after) for c in taken] == [("train.amp", False), ("optimizer.lr0", 0.0005)]
    assert recovery.rate_factor() == 0.5


# ---- more epochs


def test_finished_run_is_extended(
    quick: Train, whole_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    result = resume(run, "train.epochs=5")
    assert result.epochs_completed == 5
    table, before = rows(run), rows(whole_run)
    assert table[:3] == before
    schedule = Schedule(5, 9, 4, 8, 0.01, False, 1, 0.0, 0.8, 0.9)
    assert [float(row["lr_0"]) for row in table[3:]] == pytest.approx([0.001 * schedule.decay(e) for e in (3, 4)])
    assert "Extended from 3 to 5 epochs" in caplog.text
    assert recorded(run) == [], "typed, not recovered"
    assert read_json(run / "state" / "changes.json")[0]["to"] == 5
    assert read_json(run / "training_result.json")["config"]["train"]["epochs"] == 5


def test_extended_run_keeps_the_optimizer_that_auto_chose(quick: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library chooses by the number of steps, of which there are more now."""
    seen: list[float] = []
    original = DetectionTrainer.build_optimizer

    def noting(self: Any, *args: Any, iterations: float, **kwargs: Any) -> Any:
        seen.append(iterations)
        return original(self, *args, iterations=iterations, **kwargs)

    monkeypatch.setattr(DetectionTrainer, "build_optimizer", noting)
    run = folder_of(quick(optimizer="auto", train__epochs=1, train__close_mosaic=0))
    resume(run, "train.epochs=2")
    assert seen == [2, 2]


def test_run_is_not_shortened(whole_run: Path) -> None:
    with pytest.raises(InputError, match="the run has 3, and can only be extended"):
        hsr_train.compose([f"resume={whole_run}", "train.epochs=2"])
