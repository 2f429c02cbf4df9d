"""What this machine is: GPUs, memory, cores. `detect` asks once per process; `choices.py` decides from the answer."""

from __future__ import annotations

import os
import shutil
from collections.abc import MutableMapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hsr_train.hardware.gpus import GIB, Gpu, list_gpus
from hsr_train.hardware.limits import PROC, read_cores, read_cpu_name, read_memory

SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class Machine:
    """The hardware that this process may use.

    Attributes:
        gpus: The CUDA devices that torch will see, in torch's order.
        ram_total_bytes: Main memory, bounded by the container's limit.
        ram_available_bytes: What of it was still to be had when it was asked.
        cores: Cores, bounded by affinity and the container's CPU time.
        cpu_name: The processor's name.
        gpu_note: Why there is no GPU, or what was left out; empty if all is plain.
        ram_note: What limits the memory; empty if the host's size does.
        shm_free_bytes: Free shared memory, through which loader processes hand over batches; None if there is no such
            limit. Docker gives a container 64 MiB unless told otherwise.
    """

    gpus: tuple[Gpu, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    cores: int
    cpu_name: str
    gpu_note: str = ""
    ram_note: str = ""
    shm_free_bytes: int | None = None

    def record(self) -> dict[str, Any]:
        """Return everything as JSON-serialisable values for the manifest."""
        record = asdict(self)
        record["gpus"] = [
            {**gpu, "compute_capability": ".".join(map(str, gpu["compute_capability"]))} for gpu in record["gpus"]
        ]
        return record

    def without_note(self, text: str) -> str:
        """Return a line that stands below those of `describe`, which say already why there is no GPU."""
        return text.replace(self.gpu_note, "no GPU, see Hardware") if self.gpu_note and not self.gpus else text

    def describe(self) -> list[str]:
        """Return lines for a person."""
        lines = [gpu.describe() for gpu in self.gpus]
        if not self.gpus:
            lines.append(f"GPU: none ({self.gpu_note})" if self.gpu_note else "GPU: none")
        elif self.gpu_note:
            lines.append(f"GPU note: {self.gpu_note}")
        lines.append(f"CPU: {self.cpu_name}, {self.cores} {'core' if self.cores == 1 else 'cores'} usable")
        limit = f" ({self.ram_note})" if self.ram_note else ""
        lines.append(
            f"RAM: {self.ram_available_bytes / GIB:.1f} of {self.ram_total_bytes / GIB:.1f} GiB available{limit}"
        )
        return lines


_detected: Machine | None = None


def detect(*, refresh: bool = False) -> Machine:
    """Return this machine; asked once per process.

    Args:
        refresh: Ask again, for what changes over time (free memory).
    """
    global _detected
    if _detected is None or refresh:
        import pynvml  # only here: `--help` needs no hardware

        _detected = read_machine(pynvml)
    return _detected


def read_machine(
    nvml: Any, *, environ: MutableMapping[str, str] = os.environ, proc: Path = PROC, shm: Path = SHARED_MEMORY
) -> Machine:
    """Ask NVML and the operating system now.

    Args:
        nvml: The `pynvml` module, or a stand-in.
        environ: The process's environment.
        proc: The proc file system.
        shm: Where shared memory is mounted.
    """
    memory = read_memory(proc)
    gpus, gpu_note = list_gpus(nvml, environ, (memory.total_bytes, memory.available_bytes))
    return Machine(
        gpus=gpus,
        ram_total_bytes=memory.total_bytes,
        ram_available_bytes=memory.available_bytes,
        cores=read_cores(proc),
        cpu_name=read_cpu_name(proc),
        gpu_note=gpu_note,
        ram_note=memory.note,
        shm_free_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
    )
