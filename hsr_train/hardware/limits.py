"""How much memory and how many cores this process may use: the container's limits, not only the host's.

`machine.py` calls `read_memory`, `read_cores` and `read_cpu_name`; `oom_kills` finds its counters here. Linux limits a
container through control groups, version 1 or 2; a limit of any ancestor counts. Everything is read below one `proc`
folder, so that tests can lay out their own tree.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Main memory in bytes.

    Attributes:
        total_bytes: What this process may use at most.
        available_bytes: What can still be taken without swapping or being killed.
        note: What limits it; empty if the host's size does.
    """

    total_bytes: int
    available_bytes: int
    note: str = ""


def read_memory(proc: Path = PROC, host: tuple[int, int] | None = None) -> Memory:
    """Return the memory that this process may use.

    Args:
        proc: The proc file system.
        host: The host's total and available memory in bytes; asked from the system if None.
    """
    if host is None:
        answer = psutil.virtual_memory()
        host = answer.total, answer.available
    total, available, note = *host, ""
    for folder, version in control_groups(proc, "memory"):
        limit, used = _memory_v2(folder) if version == 2 else _memory_v1(folder)
        if limit is None:
            continue
        if limit < total:
            total, note = limit, f"limited by the control group {folder}"
        available = min(available, max(limit - used, 0))
    return Memory(total, available, note)


def read_cores(proc: Path = PROC, usable: int | None = None) -> int:
    """Return how many cores this process may use: its affinity, bounded by the control groups' CPU time, at least 1.

    Args:
        proc: The proc file system.
        usable: Cores that the scheduler may place this process on; asked from the system if None.
    """
    if usable is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = float(usable)
    for folder, version in control_groups(proc, "cpu"):
        cores = min(cores, _cpu_v2(folder) if version == 2 else _cpu_v1(folder))
    return max(math.ceil(cores), 1)  # half a core of quota still lets one more process make progress


def read_cpu_name(proc: Path = PROC) -> str:
    """Return the processor's product name, or its architecture where the system does not tell."""
    text = _read(proc / "cpuinfo") or ""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(\S.*)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def control_groups(proc: Path, controller: str) -> Iterator[tuple[Path, int]]:
    """Yield this process's control group and its ancestors, innermost first, with the version (1 or 2)."""
    mounts = _mounts(proc)
    for line in (_read(proc / "self" / "cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        version = 1 if controllers else 2
        if version == 1 and controller not in controllers.split(","):
            continue
        for root, mount_point, kind, options in mounts:
            if kind != ("cgroup" if version == 1 else "cgroup2") or (version == 1 and controller not in options):
                continue
            # In a container the path may be the host's, of which the mount shows only the part below its root.
            inside = path.removeprefix(root.rstrip("/")) if path.startswith(root) else "/"
            folder = mount_point / inside.strip("/")
            while not folder.is_dir() and folder != mount_point:
                folder = folder.parent
            yield folder, version
            while folder != mount_point:
                folder = folder.parent
                yield folder, version
            break


def statistic(path: Path, key: str) -> int | None:
    """Return one line's number in a file of lines `key number`; None if there is no such file or line."""
    found = re.search(rf"^{key} (\d+)$", _read(path) or "", re.MULTILINE)
    return int(found.group(1)) if found else None


def _mounts(proc: Path) -> list[tuple[str, Path, str, list[str]]]:
    """Return the mounted control groups: root inside the hierarchy, mount point, file system type, controllers."""
    mounts = []
    for line in (_read(proc / "self" / "mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if len(fields) < 6 or len(kinds) < 3 or kinds[0] not in ("cgroup", "cgroup2"):
            continue
        root, mount_point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), text) for text in fields[3:5])
        mounts.append((root, Path(mount_point), kinds[0], kinds[2].split(",")))
    return mounts


def _memory_v2(folder: Path) -> tuple[int | None, int]:
    """Return limit (None: none) and use in bytes, without the page cache that the kernel gives back on demand.

    memory.high counts, since beyond it the kernel stalls the process.
    """
    limits = [limit for name in ("memory.max", "memory.high") if (limit := _number(folder / name)) is not None]
    used = (_number(folder / "memory.current") or 0) - (statistic(folder / "memory.stat", "inactive_file") or 0)
    return min(limits, default=None), max(used, 0)


def _memory_v1(folder: Path) -> tuple[int | None, int]:
    """Return limit and use in bytes; no limit reads as a number near 2**63."""
    limit = _number(folder / "memory.limit_in_bytes")
    cache = statistic(folder / "memory.stat", "total_inactive_file") or 0
    return limit, max((_number(folder / "memory.usage_in_bytes") or 0) - cache, 0)


def _cpu_v2(folder: Path) -> float:
    quota, _, period = (_read(folder / "cpu.max") or "max 100000").strip().partition(" ")
    return math.inf if quota == "max" else int(quota) / int(period)


def _cpu_v1(folder: Path) -> float:
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return math.inf if quota is None or quota < 0 or not period else quota / period


def _number(path: Path) -> int | None:
    """Return the number in a control file; None if there is no file or no limit."""
    text = (_read(path) or "max").strip()
    return None if text == "max" else int(text)


def _read(path: Path) -> str | None:
    """Return a file's text; None where the system does not have it (another kernel, another platform)."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
