"""Machines that exist only in tests: the facts that `hardware.detect` would find, without the hardware."""

from __future__ import annotations

from hsr_train.hardware import Gpu, Machine, nominal_gb

GIB = 2**30


def gpu(index: int, gib: float) -> Gpu:
    """A card that reports `gib` of memory, all of it free."""
    size = int(gib * GIB)
    return Gpu(index, f"GPU-{index}", f"Test card {index}", size, size, nominal_gb(size))


def machine(*gpus: Gpu) -> Machine:
    """Eight cores, 32 GiB, and the given cards."""
    note = "" if gpus else "no NVIDIA driver found"
    return Machine(gpus, 32 * GIB, 24 * GIB, 8, "Test CPU", gpu_note=note)
