"""What the hardware means for a run: tier, device, workers, cache and batch, each with its reason.

Pure functions of a `Machine` and the configured value. The configuration asks for the tier before it composes; an
engine asks for the rest when it prepares a run, and records the answers.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hsr_train.decisions import Decision
from hsr_train.errors import InputError, Problem
from hsr_train.hardware.gpus import GIB, Gpu
from hsr_train.hardware.machine import Machine

# Upper bounds of the tiers in nominal GB; above the last one a card is a workstation's.
TIER_LIMITS_GB = ((5, "low"), (12, "medium"), (24, "high"))
# Images per batch by nominal GB (at least) and image side (at most).
BATCH_TABLE = ((20, (64, 32, 16)), (10, (48, 24, 12)), (0, (32, 16, 8)))
BATCH_SIDES_PX = (416, 640, 1024)
# An automatic RAM cache leaves half of the memory for loader processes, the model and the page cache; who types `ram`
# knows what else runs, and still needs a fifth for the training itself.
AUTO_RAM_SHARE = 0.5
TYPED_RAM_SHARE = 0.8
# The disk keeps room for checkpoints and for whatever else writes to it.
DISK_MARGIN = 1.1
DISK_RESERVE_BYTES = GIB
# Batches that a loader process keeps in shared memory: two prefetched, one being handed over.
BATCHES_PER_WORKER = 3
# A socket's path has at most 107 bytes, and Python adds 32; a loader whose path is longer loses its batches and hangs.
LONGEST_TEMPORARY_FOLDER = 75
CACHES = ("auto", "ram", "disk", "none")
DEVICE_FORMS = "auto, cpu, a GPU number, or a list of them"


def choose_tier(machine: Machine, device: Any) -> Decision:
    """Return the tier of the hardware that will train: cpu, low, medium, high or workstation.

    Args:
        machine: What there is.
        device: `train.device`; of several named GPUs the smallest counts, `auto` takes the largest.

    Raises:
        InputError: `device` is malformed or names a GPU that is not there.
    """
    gpus = _named_gpus(machine, device)
    if gpus is None:
        return Decision("gpu_tier", "cpu", "train.device=cpu")
    if not gpus:
        return Decision("gpu_tier", "cpu", machine.gpu_note or "no GPU found")
    gpu = min(gpus, key=lambda g: g.nominal_gb)
    tier = next((name for limit, name in TIER_LIMITS_GB if gpu.nominal_gb <= limit), "workstation")
    return Decision("gpu_tier", tier, f"{gpu}, the smallest of {len(gpus)}" if len(gpus) > 1 else str(gpu))


def resolve_device(machine: Machine, device: Any, told: Sequence[Decision] = ()) -> tuple[str, Decision]:
    """Return the device to train on as torch writes it (`cpu`, `cuda:0`), and why.

    Args:
        machine: What there is.
        device: `train.device`; `auto` takes the largest GPU (of equals the one with most free memory), or the CPU.
        told: Earlier decisions; a reason that one of them gives is not repeated.

    Raises:
        InputError: `device` is malformed, names a GPU that is not there, or several.
    """
    problems = device_problems(machine, device)
    if problems:
        raise InputError(problems)
    gpus = _named_gpus(machine, device)
    if gpus is None:
        return "cpu", Decision("train.device", "cpu", "as configured")
    if not gpus:
        reason = machine.gpu_note or "no GPU found"
        known = next((decision.key for decision in told if decision.reason == reason), None)
        return "cpu", Decision("train.device", "cpu", f"no GPU, see {known}" if known else reason)
    gpu = gpus[0]
    reason = str(gpu)
    if len(machine.gpus) > 1 and parse_device(device) == "auto":
        equals = sum(other.nominal_gb == gpu.nominal_gb for other in machine.gpus)
        reason += f", the largest of {len(machine.gpus)} GPUs" if equals == 1 else ", of the largest the most free"
    if gpu.free_bytes < 0.8 * gpu.total_bytes:
        reason += f"; only {gpu.free_bytes / GIB:.1f} of {gpu.total_bytes / GIB:.1f} GiB are free"
    name = f"cuda:{gpu.index}"
    return name, Decision("train.device", name, reason)


def device_problems(machine: Machine, device: Any) -> list[Problem]:
    """Return everything that is wrong with a value of `train.device` on this machine; an empty list if it will do."""
    numbers = parse_device(device)
    if numbers is None:
        remedy = _device_remedy(machine)
        return [Problem("train.device", repr(device), f"must be {DEVICE_FORMS}; {_what_there_is(machine)}", remedy)]
    if isinstance(numbers, str):
        return []
    there = {gpu.index for gpu in machine.gpus}
    missing = [number for number in numbers if number not in there]
    if missing:
        names = " and ".join(f"GPU {number}" for number in missing)
        allowed = f"{names} {'is' if len(missing) == 1 else 'are'} not there; {_what_there_is(machine)}"
        return [Problem("train.device", str(device), allowed, _device_remedy(machine))]
    if len(numbers) > 1:
        gpu = max((gpu for gpu in machine.gpus if gpu.index in numbers), key=_preference)
        allowed = "one process uses one GPU; the command python -m hsr_train trains with one for each"
        return [Problem("train.device", str(device), allowed, f"train.device={gpu.index}  ({gpu})")]
    return []


def parse_device(device: Any) -> str | list[int] | None:
    """Return `auto`, `cpu` or the GPU numbers that a value of `train.device` means; None if it is malformed."""
    if isinstance(device, str):
        text = device.strip().lower()
        if text in ("auto", "cpu"):
            return text
        return parse_device(text.split(",")) if "," in text else _gpu_numbers([text])
    return _gpu_numbers(list(device) if isinstance(device, (list, tuple)) else [device])


def choose_workers(requested: int, machine: Machine, *, batch_bytes: int = 0) -> Decision:
    """Return the number of loader processes: what is asked for, at most one per core.

    The training process itself mostly waits (for a GPU, or on a CPU in turn with the loaders), so no core is set aside.

    Args:
        requested: `train.workers`; 0 loads in the training process.
        machine: What there is.
        batch_bytes: Size of one batch as the loader hands it over; if given, free shared memory is a bound too, since
            a loader that fills it is killed with a bus error.
    """
    bounds = [(requested, "as configured")]
    if requested > machine.cores:
        bounds.append((machine.cores, f"{requested} asked for, {_cores(machine)} usable"))
    folder = tempfile.gettempdir()
    if requested and len(os.fsencode(folder)) > LONGEST_TEMPORARY_FOLDER:
        reason = f"the path of {folder} is too long for the sockets of loader processes; set TMPDIR=/tmp"
        bounds.append((0, reason))
    if batch_bytes and machine.shm_free_bytes is not None:
        fitting = machine.shm_free_bytes // (BATCHES_PER_WORKER * batch_bytes)
        if fitting < requested:
            free = f"{machine.shm_free_bytes / 2**20:.0f} MiB of shared memory"
            remedy = "more with docker run --ipc=host or --shm-size=8g"
            bounds.append((fitting, f"{requested} asked for, {free} hold the batches of {fitting}; {remedy}"))
    workers, reason = min(bounds, key=lambda bound: bound[0])
    return Decision("train.workers", workers, reason)


def choose_cache(requested: str, *, ram_bytes: int, disk_bytes: int, machine: Machine, cache_dir: Path) -> Decision:
    """Return where decoded images are kept: ram, disk or none.

    Args:
        requested: `train.cache`: auto, ram, disk or none.
        ram_bytes: What the cache would take in memory.
        disk_bytes: What would still have to be written below `cache_dir`.
        machine: What there is.
        cache_dir: Where a disk cache would lie; need not exist yet.

    Raises:
        InputError: `ram` or `disk` was asked for and does not fit, or the value is none of the four.
    """
    key = "train.cache"
    if requested not in CACHES:
        raise InputError(Problem(key, repr(requested), f"must be one of {', '.join(CACHES)}", "train.cache=auto"))
    if requested == "none":
        return Decision(key, "none", "as configured")
    available = machine.ram_available_bytes
    free = shutil.disk_usage(_existing(cache_dir)).free
    disk_needed = 0 if disk_bytes == 0 else int(disk_bytes * DISK_MARGIN) + DISK_RESERVE_BYTES
    ram_text = f"{_size(ram_bytes)} needed, {_size(available)} of memory available"
    disk_text = f"{_size(disk_bytes)} to write, {_size(free)} free in {cache_dir}"
    ram_share = TYPED_RAM_SHARE if requested == "ram" else AUTO_RAM_SHARE
    ram_fits, disk_fits = ram_bytes <= ram_share * available, disk_needed <= free
    if requested == "ram" and not ram_fits:
        allowed = f"at most {ram_share:.0%} of the available memory may be used: {ram_text}"
        raise InputError(Problem(key, "ram", allowed, f"train.cache={'disk' if disk_fits else 'none'}"))
    if requested == "disk" and not disk_fits:
        allowed = f"{_size(disk_needed)} must be free, reserve included: {disk_text}"
        remedy = "train.cache=none, or data.cache_dir=FOLDER on a larger disk"
        raise InputError(Problem(key, "disk", allowed, remedy))
    if requested != "auto":
        return Decision(key, requested, f"as configured: {ram_text if requested == 'ram' else disk_text}")
    if ram_fits:
        return Decision(key, "ram", ram_text)
    too_large = f"more than {ram_share:.0%} of memory: {ram_text}"
    if disk_fits:
        return Decision(key, "disk", f"{too_large}; {disk_text}")
    return Decision(key, "none", f"{too_large}; too little disk: {disk_text}")


def choose_batch(requested: int | str, *, machine: Machine, device: str, imgsz: int, tier_batch: int) -> Decision:
    """Return the images per forward pass.

    Args:
        requested: `train.batch`: a number, or `auto` (also -1).
        machine: What there is.
        device: What `resolve_device` returned.
        imgsz: Side of the network input in pixels.
        tier_batch: The tier's batch, for a machine without a GPU.

    Raises:
        InputError: `requested` is neither.
    """
    key = "train.batch"
    if requested not in ("auto", -1):
        if isinstance(requested, bool) or not isinstance(requested, int) or requested < 1:
            raise InputError(
                Problem(key, repr(requested), "must be a number of at least 1, or auto", "train.batch=auto")
            )
        return Decision(key, requested, "as configured")
    if device == "cpu":
        return Decision(key, tier_batch, "the tier's batch, since the table needs a GPU")
    gpu = next(gpu for gpu in machine.gpus if f"cuda:{gpu.index}" == device)
    row = next(batches for at_least, batches in BATCH_TABLE if gpu.nominal_gb >= at_least)
    where = f"table for {gpu.nominal_gb} GB and {imgsz} px"
    for side, batch in zip(BATCH_SIDES_PX, row, strict=True):
        if imgsz <= side:
            return Decision(key, batch, where)
    batch = max(1, int(row[-1] * (BATCH_SIDES_PX[-1] / imgsz) ** 2))
    return Decision(key, batch, f"{where}: {row[-1]} at {BATCH_SIDES_PX[-1]} px, scaled by area")


def _named_gpus(machine: Machine, device: Any) -> list[Gpu] | None:
    """Return the GPUs that a device value names (auto: the best one, if any); None for the CPU."""
    numbers = parse_device(device)
    if numbers == "cpu":
        return None
    if numbers == "auto":
        return sorted(machine.gpus, key=_preference, reverse=True)[:1]
    by_index = {gpu.index: gpu for gpu in machine.gpus}
    if not isinstance(numbers, list) or not by_index.keys() >= set(numbers):
        raise InputError(device_problems(machine, device))
    return [by_index[number] for number in numbers]


def _preference(gpu: Gpu) -> tuple[int, int, int]:
    return gpu.nominal_gb, gpu.free_bytes, -gpu.index


def _gpu_numbers(values: list[Any]) -> list[int] | None:
    """Return distinct GPU numbers from 0, `"0"` or `"cuda:0"`; None if anything else is among them, or nothing."""
    numbers: list[int] = []
    for value in values:
        if isinstance(value, str):
            found = re.fullmatch(r"(?:cuda:)?(\d+)", value.strip().lower())
            value = int(found.group(1)) if found else -1
        if isinstance(value, bool) or not isinstance(value, int) or value < 0 or value in numbers:
            return None
        numbers.append(value)
    return numbers or None


def _what_there_is(machine: Machine) -> str:
    if machine.gpus:
        return "this machine has " + "; ".join(f"GPU {gpu.index} ({gpu})" for gpu in machine.gpus)
    note = f" ({machine.gpu_note})" if machine.gpu_note else ""
    return f"CUDA not available: this machine has no GPU{note}"


def _device_remedy(machine: Machine) -> str:
    best = max(machine.gpus, key=_preference, default=None)
    return "train.device=cpu" if best is None else f"train.device={best.index}, or train.device=auto"


def _existing(path: Path) -> Path:
    """Return the nearest folder that exists: the disk on which `path` would lie."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _cores(machine: Machine) -> str:
    return "1 core" if machine.cores == 1 else f"{machine.cores} cores"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f} GiB" if num_bytes >= GIB else f"{num_bytes / 2**20:.0f} MiB"
