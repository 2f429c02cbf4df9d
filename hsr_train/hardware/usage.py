"""How busy the machine is while a run trains: GPU, processor and memory, sampled in a background thread.

`execution` starts a sampler for a training; at the end of an epoch `run.throughput` asks it for that epoch. It writes
nothing and logs nothing from its thread, so neither a fork in the middle of a sample nor a removed directory harms it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

import psutil

from hsr_train.hardware.gpus import GIB
from hsr_train.hardware.limits import read_memory

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
PAUSE_PER_COST = 200
"""After a sample the thread rests this many times as long as the sample took: it costs at most half a per cent."""
PATIENCE_S = 10.0
"""A driver that does not answer holds up the end of a run no longer than this."""

Figure = float | None


@dataclass(frozen=True)
class Sample:
    """The machine at one moment; None: not to be had.

    Attributes:
        at: When, in seconds of the sampler's clock.
        since: When the sample before was taken: `cpu_util` is of the time between.
        cpu_util: Processor time of the process and all that it started, as a share of the usable cores.
        host_bytes: Resident memory of all of them; what they share counts for each.
        available_bytes: Main memory that can still be taken.
        gpu_util: Share of the driver's last sampling period in which something ran on the GPU.
        gpu_used_share: Of the GPU's memory, whoever uses it.
        gpu_process_bytes: The GPU's memory that these processes hold.
    """

    at: float
    since: float
    cpu_util: Figure
    host_bytes: int
    available_bytes: int
    gpu_util: Figure = None
    gpu_used_share: Figure = None
    gpu_process_bytes: int | None = None


class UsageSampler:
    """Samples while its block runs.

    Args:
        gpu_uuid: The GPU or MIG slice that trains, as NVML names it; None on a CPU.
        cores: Cores that this process may use.
        nvml: The `pynvml` module, or a stand-in; imported if needed.
        clock: Seconds; the one that epochs are timed with.
        interval_s: Seconds between samples, more where a sample is slow.
    """

    def __init__(
        self,
        gpu_uuid: str | None,
        cores: int,
        *,
        nvml: Any = None,
        clock: Callable[[], float] = time.perf_counter,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._processes, self._cores = _ProcessTree(), cores
        self._gpu = _GpuMeter(nvml, gpu_uuid) if gpu_uuid is not None else None
        self._clock, self._interval_s = clock, interval_s
        self._samples: list[Sample] = []
        self._guard = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="usage sampler", daemon=True)

    def __enter__(self) -> Self:
        if self._gpu is not None:
            self._gpu.open()
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(PATIENCE_S)
        if self._gpu is not None and not self._thread.is_alive():
            self._gpu.close()

    def sample(self) -> None:
        """Take a sample now; where the system refuses one (too many open files), there is none: no run ends for it."""
        with self._guard, suppress(OSError, psutil.Error):
            now = self._clock()
            since = self._samples[-1].at if self._samples else now
            cpu_s, host_bytes = self._processes.measure()
            cpu_util = min(cpu_s / (now - since) / self._cores, 1.0) if now > since else None
            gpu: tuple[Any, ...] = () if self._gpu is None else self._gpu.measure(self._processes.ids)
            self._samples.append(Sample(now, since, cpu_util, host_bytes, read_memory().available_bytes, *gpu))

    def take(self, started: float, trained: float) -> dict[str, Figure]:
        """Return what an epoch that ends now has used, and forget it.

        Args:
            started: When the epoch began, in the clock's seconds.
            trained: When its training part ended.

        Returns:
            `gpu_util` (mean of the training part), `gpu_process_gib` (peak), `gpu_used_share` (peak), `cpu_util` (mean
            of the training part), `host_memory_gib` (peak), `host_available_gib` (lowest). None where nothing could be
            measured; an epoch shorter than the interval may have no GPU figure.
        """
        self.sample()
        with self._guard:
            samples = self._samples
            self._samples = samples[-1:]
        whole = [s for s in samples if s.at >= started]
        busy = [s.gpu_util for s in whole if s.at <= trained and s.gpu_util is not None]
        used = [s.gpu_used_share for s in whole if s.gpu_used_share is not None]
        held = [s.gpu_process_bytes for s in whole if s.gpu_process_bytes is not None]
        return {
            "gpu_util": sum(busy) / len(busy) if busy else None,
            "gpu_process_gib": max(held) / GIB if held else None,
            "gpu_used_share": max(used, default=None),
            "cpu_util": _mean_over(samples, started, trained),
            "host_memory_gib": max(s.host_bytes for s in whole) / GIB if whole else None,
            "host_available_gib": min(s.available_bytes for s in whole) / GIB if whole else None,
        }

    def _watch(self) -> None:
        pause_s = self._interval_s
        while not self._ending.wait(pause_s):
            begun = time.perf_counter()
            self.sample()
            pause_s = max(self._interval_s, PAUSE_PER_COST * (time.perf_counter() - begun))


def _mean_over(samples: list[Sample], start: float, end: float) -> Figure:
    """Return the mean of `cpu_util` between two moments, each sample for the part of its time that lies between."""
    parts = [(min(s.at, end) - max(s.since, start), s.cpu_util) for s in samples if s.cpu_util is not None]
    parts = [(seconds, util) for seconds, util in parts if seconds > 0]
    return sum(s * util for s, util in parts) / sum(s for s, _ in parts) if parts else None


class _ProcessTree:
    """This process and all that it started: loader workers above all."""

    def __init__(self) -> None:
        self._root = psutil.Process(os.getpid())
        self._cpu_s: dict[psutil.Process, float] = {}

    @property
    def ids(self) -> set[int]:
        return {process.pid for process in self._cpu_s}

    def measure(self) -> tuple[float, int]:
        """Return the seconds of processor time since the last call, and the resident bytes now.

        What a process used between the last call and its end is not counted.
        """
        before, self._cpu_s = self._cpu_s, {}
        host_bytes = 0
        for process in (self._root, *self._root.children(recursive=True)):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    host_bytes += process.memory_info().rss
            except psutil.Error:  # it has ended since it was listed
                continue
            self._cpu_s[process] = times.user + times.system
        if not before:
            return 0.0, host_bytes
        return sum(now - before.get(process, 0.0) for process, now in self._cpu_s.items()), host_bytes


class _GpuMeter:
    """What NVML says of one GPU; a question that it does not answer (of a MIG slice, utilisation) has no figure."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        if nvml is None:
            import pynvml  # only here: training on a CPU needs none

            nvml = pynvml
        self._nvml, self._uuid = nvml, uuid
        self._handle: Any = None

    def open(self) -> None:
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError as error:
            log.debug("No figures of the GPU: NVML says %s", error)
            return
        try:
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        except self._nvml.NVMLError as error:
            log.debug("No figures of the GPU %s: NVML says %s", self._uuid, error)
            self._nvml.nvmlShutdown()

    def close(self) -> None:
        if self._handle is not None:
            self._handle = None
            self._nvml.nvmlShutdown()

    def measure(self, ids: set[int]) -> tuple[Figure, Figure, int | None]:
        """Return utilisation, share of the memory in use, and the bytes that the given processes hold."""
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        running = self._ask("nvmlDeviceGetComputeRunningProcesses") or []
        # A container may have process numbers of its own: then ours are not in the list, and nothing is known.
        held = [p.usedGpuMemory for p in running if p.pid in ids and p.usedGpuMemory is not None]
        return (
            None if rates is None else rates.gpu / 100,
            None if memory is None else memory.used / memory.total,
            sum(held) if held else None,
        )

    def _ask(self, question: str) -> Any:
        if self._handle is None:
            return None
        try:
            return getattr(self._nvml, question)(self._handle)
        except self._nvml.NVMLError:
            return None
