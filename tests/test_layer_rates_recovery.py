"""Layer-wise learning rates in runs that run out of memory, are stopped, reproduced or extended."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_runs import differences, last_state, quick_pictures, read_json, resume, rows, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import hsr_train
from hsr_train.config import saved
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.schedule import Schedule
from hsr_train.run.changes import read_changes

LLRD = {"optimizer__llrd__enabled": "true", "optimizer__llrd__decay_rate": 0.8, "recovery__min_imgsz": 64}
GPU_OOM = torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
SECOND_OF_EPOCH_2 = 5
"""The backward pass, counted from 1: an epoch has three batches, of 4, 4 and 1 images."""
RUNG = (2, "train.batch", 4, 2)


@contextmanager
def failing(faults: dict[int, BaseException]) -> Iterator[None]:
    """Let backward passes fail, counted from 1."""
    original, count = torch.Tensor.backward, [0]

    def backward(self: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        count[0] += 1
        if count[0] in faults:
            raise faults[count[0]]
        original(self, *args, **kwargs)

    with quick_pictures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", backward)
        yield


@contextmanager
def rates_of_steps(found: dict[int, list[dict[int, float]]]) -> Iterator[None]:
    """Add, for each epoch (from 1), the rate of each module's filters after each time that rates are set."""
    original = Loop._set_rates

    def noting(self: Loop, epoch: int, progress: float) -> None:
        original(self, epoch, progress)
        groups = self.trainer.optimizer.param_groups
        found.setdefault(epoch + 1, []).append({g["module"]: g["lr"] for g in groups if g["param_group"] == "weight"})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_set_rates", noting)
        yield


def rungs_of(run: Path) -> list[tuple[Any, ...]]:
    return [(e["epoch"], e["key"], e["from"], e["to"]) for e in read_json(run / "training_result.json")["recovery"]]


def groups_of(run: Path) -> list[tuple[Any, ...]]:
    """Return module, kind, factor, rate, rate at the start and weight decay of each group of a run's newest state."""
    keys = ("module", "kind", "rate_factor", "lr", "initial_lr", "weight_decay")
    return [tuple(group[key] for key in keys) for group in last_state(run)["optimizer"]["param_groups"]]


@pytest.fixture(scope="module")
def whole(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three epochs in which nothing happens; not to be changed."""
    with quick_pictures():
        run = train(small_set, tmp_path_factory.mktemp("llrd"), shared_cache, **LLRD).run_dir
    assert run is not None
    return run


@pytest.fixture(scope="module")
def short(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that is out of memory in its second epoch; not to be changed."""
    with failing({SECOND_OF_EPOCH_2: GPU_OOM}):
        run = train(small_set, tmp_path_factory.mktemp("llrd short"), shared_cache, **LLRD).run_dir
    assert run is not None
    return run


@pytest.mark.slow
def test_shortage_of_memory_keeps_every_modules_rate(whole: Path, short: Path) -> None:
    assert rungs_of(short) == [RUNG] and rungs_of(whole) == []
    assert saved.load(short / "config.yaml").train.batch == 2
    assert groups_of(short) == groups_of(whole)
    assert {(module, factor) for module, _, factor, *_ in groups_of(short)} >= {(0, 0.8**22), (21, 0.8), (22, 1.0)}
    assert rows(short)[0] == rows(whole)[0], "the epoch before the rung is not touched"
    for one, other in zip(rows(short), rows(whole), strict=True):
        assert [one[f"lr_{i}"] for i in range(3)] == [other[f"lr_{i}"] for i in range(3)]


@pytest.mark.slow
def test_smaller_batches_of_the_same_step_have_the_same_rates(
    whole: Path, small_set: Path, shared_cache: Path, tmp_path: Path
) -> None:
    """Also in the warm-up, in which every group's rate is another one in each batch."""
    found: dict[int, list[dict[int, float]]] = {}
    with rates_of_steps(found), failing({2: GPU_OOM}):
        run = train(small_set, tmp_path / "out", shared_cache, **LLRD).run_dir
    assert run is not None
    assert rungs_of(run) == [(1, *RUNG[1:])]
    first = found[1][2:]  # without the attempt that failed in its second batch
    assert len(first) == 5, "batches of 4, 4 and 1, in halves"
    assert first[0] == first[1] != first[2] == first[3] != first[4]
    for rates in first[1:]:
        assert rates[0] == pytest.approx(0.8**22 * rates[22])
    assert groups_of(run) == groups_of(whole)


@pytest.mark.slow
def test_run_stopped_after_a_shortage_continues_to_the_same_end(
    short: Path, small_set: Path, shared_cache: Path, tmp_path: Path
) -> None:
    """To the bit: weights, moving average, both moments of every divided group, and every figure."""
    later = SECOND_OF_EPOCH_2 + 5 + 3  # the second epoch again in halves, then into the third
    with failing({SECOND_OF_EPOCH_2: GPU_OOM, later: KeyboardInterrupt()}), pytest.raises(KeyboardInterrupt):
        train(small_set, tmp_path / "out", shared_cache, **LLRD)
    (run,) = (tmp_path / "out" / "detect").iterdir()
    assert len(rows(run)) == 2
    with quick_pictures():
        resume(run)
    assert rungs_of(run) == [RUNG]
    assert (run / "results.csv").read_text() == (short / "results.csv").read_text()
    assert differences(last_state(run), last_state(short)) == []


@pytest.mark.slow
def test_run_with_a_shortage_is_reproduced_to_the_bit(short: Path, tmp_path: Path) -> None:
    with quick_pictures():
        words = [f"reproduce={short}", f"output_dir={tmp_path}", "on_drift=warn"]
        run = hsr_train.execute(hsr_train.compose(words)).run_dir
    assert run is not None
    found = read_json(run / "reproduction.json")
    assert (found["verdict"], found["weights"], found["variation"]) == ("same", "same", [])
    assert read_changes(run / "state" / "changes.json") == read_changes(short / "state" / "changes.json")
    assert (run / "results.csv").read_text() == (short / "results.csv").read_text()
    assert differences(last_state(run), last_state(short)) == []


@pytest.mark.parametrize("name", ["whole", pytest.param("short", marks=pytest.mark.slow)])
def test_finished_run_is_extended_with_every_modules_rate(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    finished = request.getfixturevalue(name)
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    found: dict[int, list[dict[int, float]]] = {}
    with quick_pictures(), rates_of_steps(found):
        assert resume(run, "train.epochs=5").epochs_completed == 5
    assert rows(run)[:3] == rows(finished)
    assert list(found) == [4, 5], "nothing is trained again"
    schedule = Schedule(5, 9, 4, 8, 0.01, False, 1, 0.0, 0.8, 0.9)
    for epoch, steps in found.items():
        for rates in steps:
            assert rates[22] == pytest.approx(0.001 * schedule.decay(epoch - 1))
            assert {m: rate / rates[22] for m, rate in rates.items()} == pytest.approx(
                {m: 0.8 ** (22 - m) for m in rates}
            )
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    for module in (0, 22):
        points = events.Scalars(f"lr_by_module/{module:02d}_weight_0")
        assert [point.step for point in points] == [1, 2, 3, 4, 5]
        assert points[-1].value == pytest.approx(found[5][-1][module], rel=1e-5)
