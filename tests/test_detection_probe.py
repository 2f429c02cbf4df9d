"""train.batch=probe: what is measured, kept and decided; the measuring itself on the CPU, with its host memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from detection_runs import overrides, read_json, train
from fake_machines import GIB, gpu, machine

import hsr_train
from hsr_train.config.schema import DetectExperiment
from hsr_train.data.detection_set import DetectionSet
from hsr_train.decisions import Decision, Decisions
from hsr_train.engines.detection import preparation, probe
from hsr_train.engines.detection.preparation import prepare
from hsr_train.engines.detection.probe import Memory, ProbeProcess, Request, identity, make_request, worst_case
from hsr_train.errors import InputError, RunError
from hsr_train.hardware import Machine, detect

CARD = gpu(0, 23.7)


@pytest.fixture
def experiment(small_set: Path, tmp_path: Path, shared_cache: Path) -> DetectExperiment:
    composed = hsr_train.compose(overrides(small_set, tmp_path / "out", shared_cache, train__batch="probe"))
    assert isinstance(composed, DetectExperiment)
    return composed


@pytest.fixture
def request_on_cpu(experiment: DetectExperiment) -> Request:
    inputs = prepare(experiment, machine(), Decisions()).inputs
    return make_request(experiment, inputs.dataset, inputs.weights, "cpu", inputs.cache_dir)


@pytest.fixture
def dataset(experiment: DetectExperiment) -> DetectionSet:
    found = prepare(experiment, machine(), Decisions()).inputs.dataset
    assert found is not None
    return found


class FakeProcess:
    """Stands in for `ProbeProcess`: 0.5 GiB and 2 GiB for each image; the card of 23.7 GiB is never full."""

    started: list[Request] = []
    batches: list[int] = []

    def __init__(self, request: Request) -> None:
        self.request, self.num_measured = request, 0

    def __enter__(self) -> FakeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def measure(self, batch: int) -> int | None:
        self.num_measured += 1
        FakeProcess.batches.append(batch)
        FakeProcess.started.append(self.request)
        peak = GIB // 2 + 2 * GIB * batch
        return peak if peak < 23 * GIB else None


@pytest.fixture
def probed(
    experiment: DetectExperiment, dataset: DetectionSet, request_on_cpu: Request, monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Callable[..., list[Decision]]:  # fmt: skip
    """Probe on a fake card with a fake process."""
    FakeProcess.started, FakeProcess.batches = [], []
    monkeypatch.setattr(probe, "ProbeProcess", FakeProcess)

    def run(card: Any = CARD, **train: Any) -> list[Decision]:
        def see(refresh: bool = False) -> Machine:
            assert refresh, "free memory is asked for anew"
            return machine(card)

        monkeypatch.setattr(probe, "detect", see)
        for key, value in train.items():
            setattr(experiment.train, key, value)
        stale = machine(replace(card, free_bytes=0))
        weights = request_on_cpu.inputs.weights
        return probe.probe_batch(experiment, stale, "cuda:0", dataset, weights, tmp_path / "cache")

    return run


# ---- what a user types


def test_probe_is_typed_like_auto_and_its_bound_has_no_effect_without_it() -> None:
    e = hsr_train.compose(["train.batch=probe", "hardware.max_vram_utilization=0.6"])
    assert isinstance(e, DetectExperiment)
    assert (e.train.batch, e.hardware.max_vram_utilization) == ("probe", 0.6)
    with pytest.raises(InputError, match=r"hardware.max_vram_utilization: 0.6: has no effect without train.batch=pr"):
        hsr_train.compose(["hardware.max_vram_utilization=0.6"])
    with pytest.raises(InputError, match="must be auto, probe or at least 1"):
        hsr_train.compose(["train.batch=prob"])
    for wrong in ("0", "1.01"):
        with pytest.raises(InputError, match="hardware.max_vram_utilization"):
            hsr_train.compose(["train.batch=probe", f"hardware.max_vram_utilization={wrong}"])


@pytest.mark.parametrize("mode", ["train", "check"])
def test_probe_without_a_gpu_is_the_tiers_batch_and_says_so(
    experiment: DetectExperiment, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ProbeProcess", None)
    experiment.mode = mode
    plan = prepare(experiment, machine(), Decisions())
    assert plan.experiment.train.batch == 4
    (decision,) = (d for d in plan.decisions if d.key == "train.batch")
    assert decision.reason == "the tier's batch, since probing needs a GPU"


def test_mode_check_measures_nothing_and_shows_the_tables_batch(
    experiment: DetectExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "ProbeProcess", None)
    experiment.mode, experiment.train.device = "check", 0
    plan = prepare(experiment, machine(CARD), Decisions())
    (decision,) = (d for d in plan.decisions if d.key == "train.batch")
    assert (decision.value, plan.experiment.train.batch) == (64, 64)
    assert decision.reason.startswith("mode=check measures nothing; table for 24 GB")


def test_what_a_run_would_refuse_is_refused_before_anything_is_measured(
    experiment: DetectExperiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparation, "probe_batch", None)
    experiment.train.device, experiment.train.freeze = 0, 99
    with pytest.raises(InputError, match=r"train\.freeze"):
        prepare(experiment, machine(CARD), Decisions())


def test_found_batch_curve_and_reason_are_decisions_of_the_run(
    experiment: DetectExperiment, probed: Callable[..., list[Decision]], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    found = probed()
    monkeypatch.setattr(preparation, "probe_batch", lambda *_: found)
    experiment.train.device = 0
    with caplog.at_level(logging.INFO, "hsr_train"):
        plan = prepare(experiment, machine(CARD), Decisions())
    assert (plan.experiment.train.batch, plan.experiment.train.val_batch) == (9, 18)
    recorded = {d["key"]: d for d in json.loads(json.dumps(plan.decisions.as_json()))}
    assert "18.5 GiB at the peak; 20.1 GiB may be used: 85% of 23.7 GiB" in recorded["train.batch"]["reason"]
    assert recorded["batch probe"]["value"] == {"8": 16896, "9": 18944}
    assert "Effective batch 9, learning rate 0.001" in caplog.text


# ---- what is decided


def test_budget_is_of_what_is_free_now(probed: Callable[..., list[Decision]]) -> None:
    half = replace(CARD, free_bytes=CARD.total_bytes // 2)
    assert probed(half)[0].value == 3
    assert FakeProcess.started[0].free_bytes == half.free_bytes


def test_second_start_takes_the_measurements_of_the_first(probed: Callable[..., list[Decision]]) -> None:
    first = probed()
    measured = list(FakeProcess.batches)
    again = probed()
    assert FakeProcess.batches == measured
    assert [d.value for d in again] == [d.value for d in first]
    assert "measured before, from the cache" in again[0].reason


@pytest.mark.parametrize("change", [{"imgsz": 96}, {"amp": False}, {"freeze": 3}, {"val_batch": 64}])
def test_what_changes_the_memory_is_measured_anew(
    probed: Callable[..., list[Decision]], change: dict[str, Any]
) -> None:
    probed()
    measured = len(FakeProcess.batches)
    probed(**change)
    assert len(FakeProcess.batches) > measured


def test_another_card_and_other_versions_are_measured_anew(
    request_on_cpu: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = identity(request_on_cpu, CARD)
    assert identity(request_on_cpu, CARD) == before
    assert identity(request_on_cpu, replace(CARD, uuid="GPU-other")) != before
    assert identity(replace(request_on_cpu, train_objects=80), CARD) != before
    monkeypatch.setattr(probe.metadata, "version", lambda name: "99")
    assert identity(request_on_cpu, CARD) != before


def test_memory_that_ran_out_is_tried_again_where_more_is_free(tmp_path: Path) -> None:
    Memory(tmp_path, {"model": "a"}, 4 * GIB).keep(8, None)
    assert 8 in Memory(tmp_path, {"model": "a"}, 3 * GIB)
    assert 8 not in Memory(tmp_path, {"model": "a"}, 5 * GIB)
    assert 8 not in Memory(tmp_path, {"model": "b"}, 3 * GIB)


def test_damaged_measurements_are_made_again_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Memory(tmp_path, {}, GIB).keep(8, GIB)
    (file,) = tmp_path.iterdir()
    file.write_text("{")
    assert 8 not in Memory(tmp_path, {}, GIB)
    assert "measuring again" in caplog.text


def test_worst_case_is_the_sum_of_the_fullest_images_that_augmentation_puts_together(
    experiment: DetectExperiment, dataset: DetectionSet
) -> None:
    split, augmentation = dataset.splits["train"], experiment.augmentation
    counts = sorted((len(boxes) for boxes in split.labels), reverse=True)
    augmentation.mosaic = augmentation.mixup = augmentation.copy_paste = 0.0
    assert worst_case(split, augmentation) == counts[0]
    augmentation.mosaic = 0.5
    assert worst_case(split, augmentation) == sum(counts[:4])
    augmentation.mixup = 0.1
    assert worst_case(split, augmentation) == sum(counts[:8])
    augmentation.copy_paste = 1.0
    assert worst_case(split, augmentation) == 2 * sum(counts[:8])


# ---- the measuring process


def test_process_trains_and_validates_and_tells_its_peak(request_on_cpu: Request) -> None:
    """Network, loss, optimizer, EMA and validation of a run on the CPU; a larger batch takes more memory."""
    with ProbeProcess(request_on_cpu) as process:
        small, large = process.measure(1), process.measure(64)
    assert small is not None and large is not None
    assert 64 * 2**20 < small < large


def test_process_that_the_kernel_kills_counts_as_not_fitting_and_is_started_again(
    request_on_cpu: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "CHILD", ("-c", "import os; os.kill(os.getpid(), 9)"))
    with ProbeProcess(request_on_cpu) as process:
        assert [process.measure(8), process.measure(4)] == [None, None]


def test_process_that_ends_otherwise_is_an_error_with_its_last_words(
    request_on_cpu: Request, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "CHILD", ("-c", "import sys; sys.exit('no such driver')"))
    with (
        ProbeProcess(request_on_cpu) as process,
        pytest.raises(RunError, match=r"it ended with status 1: no such driver\. .*train\.batch=auto"),
    ):
        process.measure(8)


@pytest.mark.slow
def test_process_that_fails_for_another_reason_ends_in_one_line(request_on_cpu: Request) -> None:
    request_on_cpu.experiment.optimizer.name = "NoOptimizer"
    with (
        ProbeProcess(request_on_cpu) as process,
        pytest.raises(RunError, match=r"could not measure: .*NoOptimizer.*auto"),
    ):
        process.measure(1)


def test_measuring_counts_a_shortage_as_not_fitting_and_goes_on_with_less(
    request_on_cpu: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, so that the shortage can be injected; what is done is counted."""
    import torch

    from hsr_train.engines.detection.probe_child import Probe
    from hsr_train.engines.detection.trainer import RunTrainer

    measuring = Probe(request_on_cpu, tmp_path)
    steps, validated = [0], []
    original, validate = RunTrainer.optimizer_step, type(measuring.trainer.validator).update_metrics

    def step(self: RunTrainer) -> None:
        steps[0] += 1
        if steps[0] == 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        original(self)

    def update(self: Any, preds: Any, batch: dict[str, Any]) -> None:
        validated.append(len(batch["img"]))
        validate(self, preds, batch)

    monkeypatch.setattr(RunTrainer, "optimizer_step", step)
    monkeypatch.setattr(type(measuring.trainer.validator), "update_metrics", update)
    assert measuring.measure(4) is None
    before = measuring.trainer.ema.updates
    assert Probe(request_on_cpu, tmp_path).measure(3) is not None
    assert (steps[0], validated, before) == (3, [6], 0)


@pytest.mark.gpu
def test_probe_on_a_card_finds_a_batch_that_trains_within_the_bound(
    small_set: Path, tmp_path: Path, shared_cache: Path
) -> None:
    """Not run yet: it needs a CUDA device."""
    if not detect().gpus:
        pytest.fail("no GPU: leave these out with -m 'not gpu'")
    import torch

    result = train(small_set, tmp_path / "out", shared_cache, train__batch="probe", train__device=0, train__epochs=1,
                   train__close_mosaic=0, train__imgsz=320)  # fmt: skip
    assert result.run_dir is not None
    decisions = {d["key"]: d for d in read_json(result.run_dir / "manifest.json")["decisions"]}
    assert decisions["train.batch"]["value"] == max(int(b) for b, p in decisions["batch probe"]["value"].items() if p)
    assert read_json(result.run_dir / "training_result.json")["recovery"] == []
    assert torch.cuda.max_memory_reserved(0) <= 0.85 * torch.cuda.get_device_properties(0).total_memory
