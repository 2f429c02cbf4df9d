"""Files are written whole or not at all, also when the process is killed or the disk refuses."""

from __future__ import annotations

import errno
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from hsr_train.errors import RunError
from hsr_train.run import atomic

ROOT = Path(__file__).resolve().parents[1]

WRITER = """
import sys, time
from pathlib import Path
from hsr_train.run.atomic import atomic_path
number = 0
while True:
    with atomic_path(Path(sys.argv[1])) as temporary, temporary.open("wb") as file:
        for _ in range(40):  # slowly, so that most kills fall into a write
            file.write(bytes([number % 256]) * 50_000)
            file.flush()
            time.sleep(0.001 * (number > 0))
    if number == 0:
        print("ready", flush=True)
    number += 1
"""


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_write_bytes_replaces_the_whole_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file.bin"
    atomic.write_bytes(target, b"a long first content")
    atomic.write_bytes(target, b"short")
    assert target.read_bytes() == b"short"
    assert names(target.parent) == ["file.bin"]


def test_write_text_keeps_line_ends_and_escapes_undecodable_names(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "a.txt", "Küche\nzwei\n" + os.fsdecode(b"\xff"))
    assert (tmp_path / "a.txt").read_bytes() == "Küche\nzwei\n".encode() + b"\\udcff"


def test_write_json_keeps_insertion_order_and_writes_plain_values(tmp_path: Path) -> None:
    atomic.write_json(
        tmp_path / "a.json",
        {
            "z": math.nan,
            "y": [math.inf, -math.inf, 0.1],
            "x": PurePosixPath("weights/best.pt"),
            "w": (np.float32(0.5), np.int64(3), np.bool_(True), np.array(7)),
            "v": {"b", "a"},
            5: "Küche",
            "undecodable": os.fsdecode(b"\xff"),
        },
    )
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {
        "z": None,
        "y": [None, None, 0.1],
        "x": "weights/best.pt",
        "w": [0.5, 3, True, 7],
        "v": ["a", "b"],
        "5": "Küche",
        "undecodable": "\udcff",
    }
    assert list(json.loads(text)) == ["z", "y", "x", "w", "v", "5", "undecodable"]
    assert text.startswith('{\n  "z": null,\n') and text.endswith("}\n") and "Küche" in text


def test_write_json_refuses_what_has_no_json_form_and_keeps_the_old_file(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError, match="bytes has no JSON form"):
        atomic.write_json(tmp_path / "a.json", {"new": b"1"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"old": 1}


def test_atomic_path_keeps_the_suffix_and_removes_the_sibling_when_the_body_fails(tmp_path: Path) -> None:
    target = tmp_path / "best.pt"
    target.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".pt" and temporary != target
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert target.read_text() == "old"
    assert names(tmp_path) == ["best.pt"]


def test_atomic_path_passes_on_an_error_about_a_file_that_the_body_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.atomic_path(tmp_path / "a"):
        (tmp_path / "elsewhere" / "missing").read_text()
    with pytest.raises(PermissionError), atomic.atomic_path(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "/data/secret.jpg")


def test_a_file_in_place_of_the_folder_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "weights").write_text("not a folder")
    with pytest.raises(RunError, match=r"cannot write .*weights/best\.pt: .*MB free there"):
        atomic.write_bytes(tmp_path / "weights" / "best.pt", b"x")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_refusing_disk_is_a_run_error_with_path_reason_and_free_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    target = tmp_path / "results.csv"
    target.write_text("old")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(atomic.shutil, "disk_usage", lambda _: usage(10**9, 10**9 - 4_200_000, 4_200_000))
    monkeypatch.setattr(atomic.os if call == "fsync" else Path, call, refuse)
    with pytest.raises(RunError) as caught:
        atomic.write_text(target, "new")
    monkeypatch.undo()
    assert str(caught.value) == f"cannot write {target}: {os.strerror(number)} (4.2 MB free there)"
    assert target.read_text() == "old"
    assert names(tmp_path) == ["results.csv"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        atomic.write_bytes(disk / "last.pt", b"old" * 1000)
        with pytest.raises(RunError, match=r"last\.pt: No space left on device \(0\.\d MB free there\)"):
            atomic.write_bytes(disk / "last.pt", b"new" * 100_000)
        assert (disk / "last.pt").read_bytes() == b"old" * 1000
        assert names(disk) == ["last.pt"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path: Path) -> None:
    target = tmp_path / "run" / "last.pt"
    moments = random.Random(0)
    leftovers = 0
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", WRITER, target], cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        content = target.read_bytes()
        assert len(content) == 2_000_000 and len(set(content)) == 1
        leftovers += atomic.remove_leftovers(tmp_path)
    assert names(target.parent) == ["last.pt"]
    assert leftovers, "no kill hit a write: the test proves nothing"


def test_remove_leftovers_touches_nothing_but_temporary_files(tmp_path: Path) -> None:
    kept = [".hydra", ".lock", "a.tmp-1-2.pt", ".cache.tmp", "best.pt"]
    for name in [*kept, ".best.tmp-123-4.pt", ".lock.tmp-5-0"]:
        (tmp_path / name).write_text("")
    assert atomic.remove_leftovers(tmp_path) == 2
    assert names(tmp_path) == sorted(kept)
