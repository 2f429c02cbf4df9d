"""The kernel's count of processes killed for memory, read from proc file systems and control groups laid out here."""

from __future__ import annotations

from pathlib import Path

import pytest

from hsr_train.hardware.oom_kills import read_oom_kills


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    folder = tmp_path / "proc"
    (folder / "self").mkdir(parents=True)
    return folder


def belongs(proc: Path, cgroup: str, *mounts: tuple[str, Path, str, str]) -> None:
    """Write /proc/self of a process: its groups, and mounts as (root, mount point, type, options)."""
    lines = [f"30 1 0:30 {root} {point} rw - {kind} {kind} {options}" for root, point, kind, options in mounts]
    (proc / "self" / "cgroup").write_text(cgroup)
    (proc / "self" / "mountinfo").write_text("\n".join(lines) + "\n")


def counting(file: Path, count: int) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    before = "oom_kill_disable 0\nunder_oom 0\n" if file.name == "memory.oom_control" else "low 0\noom 90\n"
    file.write_text(f"{before}oom_kill {count}\noom_group_kill 70\n")
    return file


def test_version_2_counts_in_the_processes_own_group(proc: Path, tmp_path: Path) -> None:
    belongs(proc, "0::/team/box\n", ("/", tmp_path / "cg", "cgroup2", "rw"))
    counting(tmp_path / "cg" / "team" / "memory.events", 5)  # its neighbours' kills too
    own = counting(tmp_path / "cg" / "team" / "box" / "memory.events", 2)
    counting(proc / "vmstat", 7)
    reading = read_oom_kills(proc)
    assert reading is not None and (reading.source, reading.count) == (own, 2)


def test_group_without_the_memory_controller_is_counted_by_its_ancestor(proc: Path, tmp_path: Path) -> None:
    belongs(proc, "0::/user/app\n", ("/", tmp_path / "cg", "cgroup2", "rw"))
    (tmp_path / "cg" / "user" / "app").mkdir(parents=True)
    ancestor = counting(tmp_path / "cg" / "user" / "memory.events", 3)
    reading = read_oom_kills(proc)
    assert reading is not None and (reading.source, reading.count) == (ancestor, 3)


def test_version_1_counts_in_oom_control_below_a_containers_root(proc: Path, tmp_path: Path) -> None:
    mounts = ("/docker/abc", tmp_path / "memory", "cgroup", "rw,memory"), ("/", tmp_path / "un", "cgroup2", "rw")
    belongs(proc, "4:memory:/docker/abc\n1:cpu:/docker/abc\n0::/\n", *mounts)
    (tmp_path / "un").mkdir()
    own = counting(tmp_path / "memory" / "memory.oom_control", 4)
    reading = read_oom_kills(proc)
    assert reading is not None and (reading.source, reading.count) == (own, 4)


def test_machine_counts_where_no_group_does(proc: Path, tmp_path: Path) -> None:
    """The root of version 2 has no memory.events, and an old kernel's oom_control has no such line."""
    mounts = ("/", tmp_path / "memory", "cgroup", "rw,memory"), ("/", tmp_path / "un", "cgroup2", "rw")
    belongs(proc, "4:memory:/\n0::/\n", *mounts)
    (tmp_path / "un").mkdir()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\n")
    (proc / "vmstat").write_text("nr_free_pages 1\noom_kill 6\nthp_x 2\n")
    reading = read_oom_kills(proc)
    assert reading is not None and (reading.source, reading.count) == (proc / "vmstat", 6)


def test_system_without_any_count_is_unknown(proc: Path) -> None:
    (proc / "vmstat").write_text("nr_free_pages 1\n")
    assert read_oom_kills(proc) is None
    assert read_oom_kills(proc / "nowhere") is None


def test_this_machine_can_be_asked() -> None:
    reading = read_oom_kills()
    assert reading is None or reading.count >= 0
