"""The GPUs that torch will see, in torch's numbering, found through NVML and without importing torch.

`machine.py` calls `list_gpus`; `visible.py` decides which cards `CUDA_VISIBLE_DEVICES` leaves and in which order.
NVML knows cards by UUID and PCI address. CUDA's default order (`FASTEST_FIRST`) cannot be known without starting CUDA,
so the ordinals given here are those of `CUDA_DEVICE_ORDER=PCI_BUS_ID`, which `pin_cuda_order` sets.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from typing import Any

from hsr_train.hardware.visible import Card, select_visible

log = logging.getLogger(__name__)

GIB = 2**30
# Card sizes as sold, in GB. Drivers report a little less: ECC and the firmware take their part.
SOLD_SIZES_GB = (2, 3, 4, 5, 6, 8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 141, 192)


@dataclass(frozen=True)
class Gpu:
    """One CUDA device: a card, or a MIG slice of one.

    Attributes:
        index: CUDA ordinal as torch numbers it (`cuda:<index>`), given `pin_cuda_order`.
        uuid: NVML's identity, `GPU-…` or `MIG-…`.
        name: The product's name.
        total_bytes: Memory as reported.
        free_bytes: Memory that no process held when it was asked.
        nominal_gb: Size as sold in GB; of a MIG slice, the memory in its profile's name.
        compute_capability: (major, minor).
        driver: Version of the NVIDIA driver.
        shares_ram: The GPU has no memory of its own; total and free are the machine's RAM.
    """

    index: int
    uuid: str
    name: str
    total_bytes: int
    free_bytes: int
    nominal_gb: int
    compute_capability: tuple[int, int] = (0, 0)
    driver: str = ""
    shares_ram: bool = False

    def __str__(self) -> str:
        return f"{self.name}, {self.nominal_gb} GB nominal"

    def describe(self) -> str:
        """Return one line for a person."""
        major, minor = self.compute_capability
        memory = f"{self.free_bytes / GIB:.1f} of {self.total_bytes / GIB:.1f} GiB free"
        shared = " (shared with the CPU)" if self.shares_ram else ""
        return f"GPU {self.index}: {self}, {memory}{shared}, compute capability {major}.{minor}, driver {self.driver}"


def nominal_gb(total_bytes: int) -> int:
    """Return a card's size as sold, in GB: the smallest usual size that is not below the reported GiB."""
    reported = total_bytes / GIB
    return next((size for size in SOLD_SIZES_GB if size >= reported), round(reported))


def list_gpus(nvml: Any, environ: MutableMapping[str, str], ram: tuple[int, int]) -> tuple[tuple[Gpu, ...], str]:
    """Ask NVML for the GPUs that torch will see.

    Args:
        nvml: The `pynvml` module, or a stand-in.
        environ: The process's environment (`CUDA_VISIBLE_DEVICES`).
        ram: The machine's total and available memory in bytes, which a GPU without own memory shares.

    Returns:
        The GPUs in CUDA's order, and a note: why there are none, or what was left out; empty if all is plain.
    """
    try:
        nvml.nvmlInit()
        try:
            driver = str(nvml.nvmlSystemGetDriverVersion())
            cards, notes = _read_cards(nvml, driver, ram)
        finally:
            nvml.nvmlShutdown()
    except nvml.NVMLError as error:
        return (), _why_no_gpu(nvml, error)
    if not cards:
        return (), "; ".join(["the NVIDIA driver runs but shows no GPU", *notes])
    visible, note = select_visible(cards, environ.get("CUDA_VISIBLE_DEVICES"))
    gpus = tuple(replace(gpu, index=index) for index, gpu in enumerate(visible))
    return gpus, "; ".join([*notes, note] if note else notes)


def pin_cuda_order(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make CUDA number the cards in PCI order, as `Gpu.index` and nvidia-smi do; to be called before CUDA starts.

    CUDA reads the variable once, when it starts in a process. Where it has started already under another order, unlike
    cards may be numbered differently, and a warning says so.
    """
    before = environ.get("CUDA_DEVICE_ORDER")
    if before == "PCI_BUS_ID":
        return
    environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    if before is not None:
        log.warning("CUDA_DEVICE_ORDER=%s is replaced by PCI_BUS_ID, so that GPU numbers are nvidia-smi's", before)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized() and torch.cuda.device_count() > 1:
        log.warning("CUDA was started in this process before hsr_train: GPU numbers may differ from nvidia-smi's")


def _why_no_gpu(nvml: Any, error: Exception) -> str:
    """Say in words why NVML could not tell."""
    if isinstance(error, nvml.NVMLError_LibraryNotFound):
        return f"no NVIDIA driver found (NVML: {error})"
    if isinstance(error, nvml.NVMLError_DriverNotLoaded):
        return f"the NVIDIA driver is installed but not loaded (NVML: {error})"
    if isinstance(error, nvml.NVMLError_LibRmVersionMismatch):
        return f"the NVIDIA driver was updated while it ran: restart the machine (NVML: {error})"
    return f"the NVIDIA driver does not answer (NVML: {error})"


def _read_cards(nvml: Any, driver: str, ram: tuple[int, int]) -> tuple[list[Card[Gpu]], list[str]]:
    """Read every card in PCI order; a card that cannot be read is left out with a note."""
    found: list[tuple[tuple[int, int, int], Card[Gpu]]] = []
    notes: list[str] = []
    for position in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(position)
            pci = nvml.nvmlDeviceGetPciInfo(handle)
            uuid = str(nvml.nvmlDeviceGetUUID(handle))
            capability = tuple(nvml.nvmlDeviceGetCudaComputeCapability(handle))
            slices = _mig_slices(nvml, handle)
            card: Card[Gpu] = Card(uuid=uuid, whole=None, slices=[])
            if slices is None:
                card.whole = _read_gpu(nvml, handle, uuid, capability, driver, ram)
            else:
                for part in slices:
                    slice_uuid = str(nvml.nvmlDeviceGetUUID(part))
                    gpu = _read_gpu(nvml, part, slice_uuid, capability, driver, ram)
                    ids = nvml.nvmlDeviceGetGpuInstanceId(part), nvml.nvmlDeviceGetComputeInstanceId(part)
                    card.slices.append(((slice_uuid, f"MIG-{uuid}/{ids[0]}/{ids[1]}"), gpu))
                if not card.slices:
                    notes.append(f"GPU {position} is in MIG mode and has no slice")
        except nvml.NVMLError as error:
            notes.append(f"GPU {position} cannot be read (NVML: {error})")
            continue
        found.append(((pci.domain, pci.bus, pci.device), card))
    return [card for _, card in sorted(found, key=lambda item: item[0])], notes


def _mig_slices(nvml: Any, handle: Any) -> list[Any] | None:
    """Return the handles of a card's MIG slices, or None if the card is not in MIG mode."""
    try:
        current, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:  # cards without MIG answer "not supported", old drivers "function not found"
        return None
    if current != nvml.NVML_DEVICE_MIG_ENABLE:
        return None
    slices = []
    for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            slices.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))
        except nvml.NVMLError_NotFound:  # the places of slices may have gaps
            continue
    return slices


def _read_gpu(nvml: Any, handle: Any, uuid: str, capability: Any, driver: str, ram: tuple[int, int]) -> Gpu:
    """Read one CUDA device; its index is set later."""
    name = str(nvml.nvmlDeviceGetName(handle))
    profile = re.search(r"\bMIG\b.*?(\d+)gb", name)
    shares_ram = False
    try:
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except nvml.NVMLError_NotSupported:  # the driver's answer for GPUs on the CPU's memory (Jetson, GB10)
        if profile:
            raise
        shares_ram = True
        total, free = ram
    nominal = int(profile.group(1)) if profile else nominal_gb(total)
    return Gpu(-1, uuid, name, total, free, nominal, (capability[0], capability[1]), driver, shares_ram)
