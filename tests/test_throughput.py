"""Where a training's time goes: what is measured of each epoch, and the advice at the end."""

from __future__ import annotations

import csv
import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import classify_runs
import detection_runs
import psutil
import pynvml
import pytest

from hsr_train.engines.classification.loop import Loop as ClassifyLoop
from hsr_train.engines.classification.samples import ImageSamples
from hsr_train.engines.detection.dataset import RunDataset
from hsr_train.engines.detection.loop import Loop as DetectLoop
from hsr_train.errors import InputError
from hsr_train.hardware import usage as usage_module
from hsr_train.hardware.limits import Memory
from hsr_train.hardware.usage import UsageSampler
from hsr_train.run.directory import RunDirectory
from hsr_train.run.results import ResultsTable
from hsr_train.run.throughput import (
    NEWER_COLUMNS,
    TIMING_COLUMNS,
    USAGE_COLUMNS,
    Figures,
    Setup,
    Timings,
    bottleneck,
    summarise,
)

GIB = 2**30
SLOW_S = 0.06
FAST_S = 0.3
CPU = Setup("cpu", 8, 2, 8, "none", "ram", 16, 32, 640)
GPU = replace(CPU, device="cuda:0")
FAST = Figures(4, True, 100.0, 1000, 40.0, 0.02, 0.1, cpu_util=0.5)
STARVED = replace(FAST, wait_share=0.42)
IDLE = replace(FAST, gpu_util=0.4, gpu_used_share=0.3)

# ---- the advice


@pytest.mark.parametrize(
    ("figures", "setup", "advice"),
    [
        (FAST, CPU, None),
        (STARVED, CPU, "The training waited for data 42 % of the time: train.workers=5 (now 2)"),
        (STARVED, GPU, "The GPU waited for data 42 % of the time: train.workers=5 (now 2)"),
        (replace(STARVED, wait_share=0.9), GPU, "The GPU waited for data 90 % of the time: train.workers=8 (now 2)"),
        (STARVED, replace(CPU, workers=0), "The training waited for data 42 % of the time: train.workers=2 (now 0)"),
        (
            STARVED,
            replace(CPU, workers=0, most_workers=1),
            "The training waited for data 42 % of the time: train.workers=1 (now 0)",
        ),
        (
            STARVED,
            replace(GPU, workers=8),
            "The GPU waited for data 42 % of the time: train.cache=ram (now none), since more train.workers would not "
            "fit this machine",
        ),
        (
            replace(STARVED, cpu_util=0.95),
            replace(CPU, fitting_cache="disk"),
            "The training waited for data 42 % of the time: train.cache=disk (now none), since all 8 cores are busy",
        ),
        (
            replace(STARVED, cpu_util=0.95),
            replace(CPU, cache="ram"),
            "The training waited for data 42 % of the time: all 8 cores are busy; a smaller train.imgsz (now 640) "
            "loads faster",
        ),
        (
            STARVED,
            replace(CPU, given_up=frozenset({"train.workers", "train.cache"})),
            "The training waited for data 42 % of the time: more train.workers would not fit this machine; a smaller "
            "train.imgsz (now 640) loads faster",
        ),
        (replace(STARVED, cpu_util=None), GPU, "The GPU waited for data 42 % of the time: train.workers=5 (now 2)"),
        (replace(STARVED, wait_share=0.14), GPU, None),
        (replace(STARVED, is_steady=False), GPU, None),
        (replace(STARVED, train_s=0.9), GPU, None),
        (replace(STARVED, gpu_util=0.97), GPU, None),  # the host waited, the GPU did not
        (
            replace(STARVED, gpu_util=0.6, gpu_used_share=0.2),
            GPU,
            "The GPU waited for data 42 % of the time: train.workers=5 (now 2)",
        ),
        (IDLE, GPU, "The GPU was busy 40 % of the time, and 70 % of its memory stayed free: train.batch=32 (now 16)"),
        (IDLE, replace(GPU, given_up=frozenset({"train.batch"})), None),
        (IDLE, replace(GPU, batch=501), None),  # twice that is more than there are images
        (replace(IDLE, gpu_used_share=0.6), GPU, None),
        (replace(IDLE, gpu_used_share=None), GPU, None),
        (replace(IDLE, gpu_util=None), GPU, None),  # a MIG slice
        (replace(IDLE, wait_share=0.1), GPU, None),
        (replace(IDLE, gpu_util=0.8), GPU, None),
        (IDLE, CPU, None),
        (
            replace(IDLE, gpu_util=0.8, val_share=0.5),
            GPU,
            "Validation took 50 % of the time, and 70 % of the GPU's memory stayed free: train.val_batch=64 (now 32)",
        ),
        (replace(IDLE, gpu_util=0.8, val_share=0.5), replace(GPU, given_up=frozenset({"train.val_batch"})), None),
        (replace(FAST, val_share=0.5), CPU, None),
    ],
)
def test_advice_is_given_only_where_the_figures_support_it(figures: Figures, setup: Setup, advice: str | None) -> None:
    assert bottleneck(figures, setup) == advice


def row(epoch: int, **more: Any) -> dict[str, Any]:
    plain = {"epoch_s": 10.0, "train_s": 8.0, "wait_s": 2.0, "val_s": 1.0, "save_s": 0.1, "images_per_s": 12.5}
    return {**dict.fromkeys(TIMING_COLUMNS), **plain, "epoch": epoch, "wait_share": 0.25, **more}


def test_figures_are_of_the_epochs_after_the_first() -> None:
    rows = [row(1, wait_s=8.0, images_per_s=1.0), row(2, gpu_util=0.5, gpu_used_share=0.2), row(3, images_per_s=10.0)]
    figures = summarise(rows)
    assert figures == Figures(2, True, 16.0, 80, 11.25, 0.25, 0.1, gpu_util=0.5, gpu_used_share=0.2, epoch_s=10.0)


def test_figures_of_one_epoch_are_not_steady() -> None:
    figures = summarise([row(1)])
    assert figures is not None and (figures.epochs, figures.is_steady) == (1, False)
    assert summarise([]) is None


def test_figures_leave_out_what_ran_in_another_process_or_otherwise() -> None:
    rows = [row(1), row(2), row(3, wait_s=8.0), row(4, wait_s=4.0)]
    figures = summarise(rows, after=2)
    assert figures is not None and (figures.epochs, figures.wait_share) == (1, 0.5)
    none_since = summarise(rows, after=4)
    assert none_since is not None and (none_since.epochs, none_since.is_steady) == (4, False)


def test_line_for_people_says_nothing_of_a_gpu_where_there_is_none() -> None:
    assert STARVED.describe() == (
        "40.0 images/s (the median of 4 epochs), waiting for data 42 % of training, validation 10 % of the time, "
        "50 % of the cores used"
    )
    assert "GPU busy 40 %" in IDLE.describe()


# ---- the sampler


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeNvml:
    """Stands in for `pynvml` with one card, whose uuid is GPU-1.

    It guarantees: the exceptions are pynvml's own, and nothing is answered before `nvmlInit` or after `nvmlShutdown`.
    A question named in `refuses` is answered with "not supported", as a MIG slice does for its utilisation.
    """

    NVMLError = pynvml.NVMLError
    gpu: int = 50
    used: int = 2 * GIB
    processes: dict[int, int | None] = field(default_factory=dict)
    refuses: tuple[str, ...] = ()
    init_error: int | None = None
    open: int = 0

    def _check(self, question: str) -> None:
        assert self.open == 1, "NVML asked while it was not running"
        if question in self.refuses:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def nvmlInit(self) -> None:  # noqa: N802 - pynvml's names
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:  # noqa: N802
        self._check("utilisation")
        return SimpleNamespace(gpu=self.gpu, memory=0)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:  # noqa: N802
        self._check("memory")
        return SimpleNamespace(total=8 * GIB, used=self.used, free=8 * GIB - self.used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:  # noqa: N802
        self._check("processes")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes.items()]


OWN = psutil.Process().pid


def sampler(nvml: FakeNvml | None, clock: Clock) -> UsageSampler:
    """One that takes samples only when it is told to."""
    return UsageSampler("GPU-1" if nvml else None, 2, nvml=nvml, clock=clock, interval_s=1e6)


def test_sampler_averages_the_gpu_over_the_training_part_and_keeps_the_peaks_of_the_whole_epoch() -> None:
    clock, nvml = Clock(), FakeNvml(gpu=10, processes={OWN: GIB, 1: 9 * GIB})
    with sampler(nvml, clock) as usage:  # a sample at 100, before the epoch
        for at, gpu, used in ((102, 60, 2), (103, 80, 3), (106, 5, 6)):
            clock.now, nvml.gpu, nvml.used, nvml.processes[OWN] = at, gpu, used * GIB, (used - 1) * GIB
            usage.sample()
        clock.now = 107
        found = usage.take(101, 105)
        assert found["gpu_util"] == pytest.approx(0.7)
        assert found["gpu_used_share"] == pytest.approx(6 / 8)
        assert found["gpu_process_gib"] == pytest.approx(5)
        clock.now = 109  # nothing was sampled in the training part of the next epoch
        assert usage.take(107.5, 108)["gpu_util"] is None
    assert nvml.open == 0


def test_sampler_counts_processor_time_of_the_training_part_as_a_share_of_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, used_s = Clock(), iter([0.0, 2.0, 4.0, 0.0])
    monkeypatch.setattr(usage_module._ProcessTree, "measure", lambda self: (next(used_s), 3 * GIB))
    available = iter([9, 7, 5, 8])
    monkeypatch.setattr(usage_module, "read_memory", lambda: Memory(16 * GIB, next(available) * GIB))
    with sampler(None, clock) as usage:
        for _ in range(2):  # 1 of 2 cores for two seconds, then both
            clock.now += 2
            usage.sample()
        clock.now += 2
        found = usage.take(101, 104)  # one second of the first, two of the second
    assert found["cpu_util"] == pytest.approx((0.5 * 1 + 1.0 * 2) / 3)
    assert (found["host_memory_gib"], found["host_available_gib"]) == (3, 5)


@pytest.mark.parametrize(
    ("nvml", "there"),
    [
        (FakeNvml(processes={OWN: GIB}, refuses=("utilisation",)), {"gpu_process_gib", "gpu_used_share"}),  # MIG
        (FakeNvml(processes={1: GIB}), {"gpu_util", "gpu_used_share"}),  # a container with numbers of its own
        (FakeNvml(processes={OWN: None}), {"gpu_util", "gpu_used_share"}),  # Windows
        (FakeNvml(refuses=("utilisation", "memory", "processes")), set()),
        (FakeNvml(init_error=pynvml.NVML_ERROR_DRIVER_NOT_LOADED), set()),
    ],
)
def test_sampler_leaves_empty_what_nvml_does_not_answer(nvml: FakeNvml, there: set[str]) -> None:
    clock = Clock()
    with sampler(nvml, clock) as usage:
        clock.now += 1
        usage.sample()
        clock.now += 1
        found = usage.take(100, 101.5)
    assert {name for name, value in found.items() if name.startswith("gpu") and value is not None} == there
    assert nvml.open == 0


def test_sampler_of_an_unknown_gpu_has_no_figures_of_it() -> None:
    nvml = FakeNvml()
    with UsageSampler("MIG-gone", 2, nvml=nvml, clock=Clock()) as usage:
        assert usage.take(100, 100)["gpu_used_share"] is None
    assert nvml.open == 0


def test_sampler_survives_a_system_that_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Memory:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(usage_module, "read_memory", refuse)
    with UsageSampler(None, 2) as usage:
        assert set(usage.take(0, 1).values()) == {None}


def sampling_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "usage sampler"]


def test_sampler_samples_by_itself_and_ends_with_its_block() -> None:
    with pytest.raises(KeyboardInterrupt), UsageSampler(None, 2, interval_s=0.01) as usage:
        assert len(sampling_threads()) == 1
        deadline = time.monotonic() + 30
        while len(usage._samples) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(usage._samples) >= 3
        raise KeyboardInterrupt
    assert sampling_threads() == []


def test_sampler_counts_the_processes_that_this_one_started() -> None:
    with sampler(None, Clock()) as usage, psutil.Popen(["sleep", "30"]) as child:
        usage.sample()
        try:
            assert child.pid in usage._processes.ids
        finally:
            child.kill()


# ---- the table


def test_timings_of_an_earlier_version_go_on_with_empty_cells(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    old = TIMING_COLUMNS[:8]
    table = ResultsTable(run.timings_csv, old)
    for epoch in (1, 2):
        table.append({name: epoch if name == "epoch" else 0.5 for name in old})
    timings = Timings(run, None, None, epochs_done=1)
    timings.epoch(2, SimpleNamespace(train_s=2.0, wait_s=1.0, val_s=1.0, save_s=0.1), 3.5, images=8, gpu_memory_gib=1.5)
    first, second = ResultsTable(run.timings_csv, TIMING_COLUMNS).rows()
    assert first == {**dict.fromkeys(TIMING_COLUMNS), **dict.fromkeys(old, 0.5), "epoch": 1}
    assert (second["images_per_s"], second["wait_share"], second["gpu_memory_gib"]) == (4.0, 0.5, 1.5)
    assert [second[name] for name in USAGE_COLUMNS] == [None] * len(USAGE_COLUMNS)


def test_a_column_that_is_not_newer_may_not_be_missing(tmp_path: Path) -> None:
    ResultsTable(tmp_path / "t.csv", ("epoch", "b"))
    with pytest.raises(InputError, match="its header is 'epoch,b'"):
        ResultsTable(tmp_path / "t.csv", ("epoch", "a", "b", "c"), newer=("c",))
    with pytest.raises(InputError, match="its header is 'epoch,b'"):
        ResultsTable(tmp_path / "t.csv", ("epoch", "a"), newer=("a",))


# ---- whole runs


def timings(run: Path) -> list[dict[str, str]]:
    with (run / "timings.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check_columns(run: Path) -> None:
    """On a CPU the columns of the GPU are empty, and the others plausible."""
    own = psutil.Process().memory_info().rss / GIB
    for epoch in timings(run):
        assert tuple(epoch) == TIMING_COLUMNS
        assert [epoch[name] for name in NEWER_COLUMNS if name.startswith("gpu")] == [""] * 4
        assert 0 < float(epoch["cpu_util"]) <= 1
        assert own / 3 < float(epoch["host_memory_gib"]) < 3 * own + 4
        assert 0 < float(epoch["host_available_gib"]) < psutil.virtual_memory().total / GIB
    assert sampling_threads() == []


def throughput_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "training_result.json").read_text())["throughput"]
    return found


@pytest.fixture
def pictures() -> Iterator[None]:
    with detection_runs.quick_pictures(), classify_runs.quick_pictures():
        yield


def slowed(patch: pytest.MonkeyPatch, owner: type, name: str, seconds: float) -> None:
    """Make each call of a method take longer."""
    original = getattr(owner, name)

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return original(*args, **kwargs)

    patch.setattr(owner, name, slow)


def detect(data: Path, folder: Path, cache: Path, **more: Any) -> Path:
    run = detection_runs.train(data, folder, cache, **more).run_dir
    assert run is not None
    return run


@pytest.fixture(scope="module")
def starved_run(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a detection whose loading is slow; not to be changed."""
    with pytest.MonkeyPatch.context() as patch, detection_runs.quick_pictures():
        slowed(patch, RunDataset, "__getitem__", SLOW_S)
        return detect(small_set, tmp_path_factory.mktemp("starved"), shared_cache, tensorboard__enabled="false")


def test_detection_that_waits_for_data_is_told_so(starved_run: Path) -> None:
    run = starved_run
    check_columns(run)
    found = throughput_of(run)
    assert found["wait_share"] > 0.15 and "waited for data" in found["bottleneck"]
    assert "(now " in found["bottleneck"]
    rates = [float(epoch["images_per_s"]) for epoch in timings(run)[1:]]
    assert found["images_per_s"] == pytest.approx(sum(rates) / 2)
    log = (run / "logs" / "train.log").read_text()
    assert f"Bottleneck: {found['bottleneck']}" in log and "Throughput: " in log
    assert found["bottleneck"] in (run / "summary.txt").read_text()


def test_detection_that_does_not_wait_gets_no_advice(
    small_set: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, pictures: None
) -> None:
    slowed(monkeypatch, DetectLoop, "backward", FAST_S)
    run = detect(small_set, tmp_path, shared_cache, tensorboard__enabled="false")
    found = throughput_of(run)
    assert found["wait_share"] < 0.15 and found["bottleneck"] is None
    log = (run / "logs" / "train.log").read_text()
    assert "Bottleneck: " not in log and "Throughput: " in log and "GPU busy" not in log
    assert "none found" in (run / "summary.txt").read_text()


def test_classification_that_waits_for_data_is_told_so(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, pictures: None
) -> None:
    data = classify_runs.make_set(tmp_path / "set")
    slowed(monkeypatch, ImageSamples, "__getitem__", SLOW_S)
    run = classify_runs.train(data, tmp_path / "out", shared_cache)
    check_columns(run)
    found = throughput_of(run)
    assert found["wait_share"] > 0.15 and "waited for data" in found["bottleneck"]


def test_classification_that_does_not_wait_gets_no_advice(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, pictures: None
) -> None:
    data = classify_runs.make_set(tmp_path / "set")
    slowed(monkeypatch, ClassifyLoop, "_backward", 2 * FAST_S)
    found = throughput_of(classify_runs.train(data, tmp_path / "out", shared_cache))
    assert found["wait_share"] < 0.15 and found["bottleneck"] is None


@pytest.mark.slow
def test_figures_of_the_machine_are_in_tensorboard(whole_run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole_run / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"time/images_per_s", "time/wait_share", "system/cpu_util", "system/host_memory_gib"} <= tags
    assert not {tag for tag in tags if "gpu" in tag}


def test_a_resumed_run_judges_only_its_own_epochs(starved_run: Path, tmp_path: Path, pictures: None) -> None:
    """The first process was slow at loading; the second trains one epoch, which supports no advice."""
    run = Path(shutil.copytree(starved_run, tmp_path / "run"))
    resumed = detection_runs.resume(run, "train.epochs=4").run_dir
    assert resumed == run
    assert throughput_of(run)["bottleneck"] is None
    assert [epoch["epoch"] for epoch in timings(run)] == ["1", "2", "3", "4"]
