"""How many processes the kernel has killed for lack of memory, where this process and its children live.

The supervisor compares two readings to tell such a kill from any other SIGKILL. The kernel counts a kill in the
control group that the victim's memory is charged to, before the victim dies.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hsr_train.hardware.limits import PROC, control_groups, statistic


@dataclass(frozen=True)
class OomKills:
    """One reading.

    Attributes:
        source: The file that counts; readings of different files cannot be compared.
        count: Kills since the control group was made, or since the machine was started.
    """

    source: Path
    count: int


def read_oom_kills(proc: Path = PROC) -> OomKills | None:
    """Return the narrowest count that includes this process and its children; None where the kernel does not count.

    That is its own control group's, or its nearest ancestor's that has a count (a group without the memory controller
    is charged to its ancestor). Wider ones would count the kills of strangers: the machine's is the last resort.

    Args:
        proc: The proc file system.
    """
    names = {1: "memory.oom_control", 2: "memory.events"}
    files = [folder / names[version] for folder, version in control_groups(proc, "memory")]
    for file in (*files, proc / "vmstat"):
        count = statistic(file, "oom_kill")
        if count is not None:
            return OomKills(file, count)
    return None
