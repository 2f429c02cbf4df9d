"""status.json: the heartbeat, the final state, and whether the process behind it lives."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hsr_train.errors import InputError, Problem, RunError, Terminated
from hsr_train.run import atomic
from hsr_train.run.directory import RunDirectory
from hsr_train.run.find import find_run, obstacle
from hsr_train.run.status import StatusWriter, is_alive, process_identity, read_status

ROOT = Path(__file__).resolve().parents[1]
START = 1_795_000_000.0

CHILD = """
import sys, time
from pathlib import Path
from hsr_train.run.directory import RunDirectory
from hsr_train.run.status import StatusWriter
writer = StatusWriter(RunDirectory(Path(sys.argv[1])), interval_s=0.01)
writer.__enter__()
print("running", flush=True)
if sys.argv[2] == "wait":
    time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path, "detect", "demo")


def status_of(run: RunDirectory) -> dict[str, Any]:
    status = read_status(run.status)
    assert status is not None
    return status


def wait_for(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def start_child(run: RunDirectory, what: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", CHILD, run.path, what], cwd=ROOT, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"running\n"
    return child


def test_the_file_says_running_with_process_and_time_then_completed(run: RunDirectory) -> None:
    with StatusWriter(run, clock=lambda: START) as status:
        first = status_of(run)
        status.progress(epoch=3, epochs=50, mAP50=0.5)
        assert status_of(run) == {**first, "epoch": 3, "epochs": 50, "mAP50": 0.5}
    assert first["state"] == "running" and first["exit_status"] is None and first["resumed"] is None
    assert first["mode"] == "train" and first["pid"] == os.getpid() and first["host"] == socket.gethostname()
    assert first["started"] == first["updated"]
    assert json.loads(run.status.read_text()) == status_of(run)
    last = status_of(run)
    assert (last["state"], last["exit_status"], last["epoch"]) == ("completed", 0, 3)


@pytest.mark.parametrize(
    ("error", "state", "exit_status", "message"),
    [
        (KeyboardInterrupt(), "interrupted", 130, "stopped by Ctrl-C"),
        (Terminated(), "interrupted", 143, "stopped by SIGTERM"),
        (RunError("disk full"), "failed", 1, "disk full"),
        (InputError(Problem("a", "b", "c", "d")), "failed", 2, "a: b: c\n    -> d"),
        (ZeroDivisionError("by zero"), "failed", 1, "ZeroDivisionError: by zero"),
        (SystemExit(3), "failed", 3, "exit status 3"),
        (SystemExit(), "completed", 0, "exit status 0"),
    ],
)
def test_the_error_that_leaves_the_block_decides_the_final_state(
    run: RunDirectory, error: BaseException, state: str, exit_status: int, message: str
) -> None:
    with pytest.raises(type(error)) as caught, StatusWriter(run):
        raise error
    assert caught.value is error
    status = status_of(run)
    assert (status["state"], status["exit_status"], status["message"]) == (state, exit_status, message)
    assert not is_alive(status)


def test_the_heartbeat_keeps_the_file_fresh(run: RunDirectory) -> None:
    seconds = iter(range(10_000))
    with StatusWriter(run, clock=lambda: START + next(seconds), interval_s=0.01):
        before = status_of(run)["updated"]
        wait_for(lambda: status_of(run)["updated"] > before)
    wait_for(lambda: "status heartbeat" not in [thread.name for thread in threading.enumerate()])


def test_a_resumed_run_keeps_its_start_and_its_epoch(run: RunDirectory) -> None:
    with pytest.raises(KeyboardInterrupt), StatusWriter(run, clock=lambda: START) as status:
        status.progress(epoch=7, epochs=50)
        raise KeyboardInterrupt
    first = status_of(run)
    with StatusWriter(run, clock=lambda: START + 3600):
        second = status_of(run)
    assert second["started"] == first["started"] < second["resumed"] == second["updated"]
    assert (second["state"], second["epoch"], second["message"], second["exit_status"]) == ("running", 7, "", None)


def test_a_full_disk_is_logged_once_and_the_heartbeat_recovers(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    refusals = 0

    def refuse(_: int) -> None:
        nonlocal refusals
        refusals += 1
        raise OSError(errno.ENOSPC, "No space left on device")

    with StatusWriter(run, interval_s=0.01) as status:
        with monkeypatch.context() as disk:
            disk.setattr(atomic.os, "fsync", refuse)
            status.progress(epoch=1)
            wait_for(lambda: refusals > 4)
        wait_for(lambda: status_of(run)["epoch"] == 1)
    assert caplog.text.count("No space left on device") == 1
    assert status_of(run)["state"] == "completed"


def test_a_completion_that_cannot_be_recorded_is_a_run_error(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError, match="status.json: No space left"), StatusWriter(run):
        monkeypatch.setattr(atomic.os, "fsync", refuse)
    monkeypatch.undo()
    assert status_of(run)["state"] == "running"


def test_a_failure_that_cannot_be_recorded_keeps_its_own_error(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ZeroDivisionError), StatusWriter(run):
        monkeypatch.setattr(atomic.os, "fsync", refuse)
        _ = 1 / 0
    assert "The run's end is not recorded" in caplog.text


def test_the_heartbeat_does_not_keep_the_process_alive(run: RunDirectory) -> None:
    child = start_child(run, "end")
    child.communicate(timeout=10)
    assert child.returncode == 0
    assert status_of(run)["state"] == "running" and not is_alive(status_of(run))


def test_a_killed_run_is_seen_as_dead_and_can_be_found(run: RunDirectory) -> None:
    child = start_child(run, "wait")
    run.config_yaml.write_text("{}")
    try:
        assert is_alive(status_of(run))
        assert f"still running as process {child.pid}" in (obstacle(run.path) or "")[0]
    finally:
        child.send_signal(signal.SIGKILL)
    wait_for(lambda: not is_alive(status_of(run)))  # also while it is a zombie that nobody has waited for
    child.communicate()
    assert status_of(run)["state"] == "running"
    assert find_run("last", run.path.parents[1]) == run.path


def test_a_second_ctrl_c_does_not_cut_the_last_write_short(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    written = atomic.os.fsync

    def slow(descriptor: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        written(descriptor)

    with pytest.raises(KeyboardInterrupt), StatusWriter(run, interval_s=60):
        monkeypatch.setattr(atomic.os, "fsync", slow)
        raise KeyboardInterrupt
    assert status_of(run)["state"] == "interrupted"


def test_is_alive_is_not_fooled_by_a_reused_process_number() -> None:
    own = process_identity(os.getpid())
    assert own is not None
    status = {"state": "running", "pid": os.getpid(), "host": socket.gethostname(), "process": own}
    assert is_alive(status)
    assert not is_alive({**status, "process": {**own, "start": own["start"] - 1}})
    assert not is_alive({**status, "state": "failed"})


@pytest.mark.parametrize(("age_s", "alive"), [(10, True), (59, True), (61, False)])
@pytest.mark.parametrize("elsewhere", [{"host": "another-machine"}, {"process": {"space": "another boot", "start": 1}}])
def test_is_alive_goes_by_the_heartbeat_of_another_machine(
    elsewhere: dict[str, Any], age_s: float, alive: bool
) -> None:
    own = process_identity(os.getpid())
    status = {"state": "running", "pid": 1, "host": socket.gethostname(), "process": own, **elsewhere}
    status["updated"] = "2026-11-20T12:00:00.000+00:00"
    beat = 1_795_176_000.0
    assert is_alive(status, now=beat + age_s) is alive


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_read_status_of_a_damaged_file_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "status.json").write_bytes(content)
    assert read_status(tmp_path / "status.json") is None
    assert read_status(tmp_path / "missing.json") is None


@pytest.mark.parametrize("fields", [{}, {"pid": "x"}, {"updated": 5}, {"process": "?", "updated": None}])
def test_is_alive_of_a_damaged_status_is_false(fields: dict[str, Any]) -> None:
    assert not is_alive({"state": "running", **fields})
