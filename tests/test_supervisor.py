"""The supervisor, with real processes: `scripted_engine.py` is the command with an engine that follows a script."""

from __future__ import annotations

import json
import os
import pickle
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from scripted_engine import lay_out_kernel

import hsr_train
from hsr_train import cli, ending, supervisor
from hsr_train.config.schema import DetectExperiment
from hsr_train.errors import InputError, Problem, RunError
from hsr_train.hardware.limits import control_groups
from hsr_train.run.find import find_run
from hsr_train.supervised_child import OUTCOME, RUN_DIR, Letters

TESTS = Path(__file__).parent
WORDS = [
    "train.epochs=5", "train.batch=8", "train.val_batch=4", "train.workers=4", "train.cache=ram",
    "train.close_mosaic=1", "tensorboard.enabled=false",
]  # fmt: skip
ENOUGH_S = 300

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts what the kernel kills for memory")


class Command:
    """The command in a folder of its own, with a script of what its engine does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        lay_out_kernel(folder / "kernel")

    def script(self, *attempts: str, **by_seed: list[str]) -> Command:
        """Write down what the attempts of seed 1 do, or those of `seed1`, `seed2` and so on."""
        whole = {"1": list(attempts)} | {name.removeprefix("seed"): steps for name, steps in by_seed.items()}
        (self.folder / "script.json").write_text(json.dumps(whole))
        return self

    def start(self, *words: str, wrapper: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), os.environ["PYTHONPATH"]])}
        environment.pop("PYTHONUNBUFFERED", None)  # what is in a buffer at the fork is part of the test
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True, **options}
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, str(TESTS / "scripted_engine.py"), *words], cwd=self.folder, env=environment,
            text=True, **streams,
        )  # fmt: skip
        return self.process

    def ended(self) -> tuple[int, str]:
        """Wait for the end; return exit status and standard error."""
        assert self.process is not None
        _, errors = self.process.communicate(timeout=ENOUGH_S)
        assert living(self.process.pid) == []
        return self.process.returncode, errors

    def run(self, *words: str) -> tuple[int, str]:
        self.start(*(words or ("train.seed=1", *WORDS)))
        return self.ended()

    def waiting(self) -> tuple[int, int]:
        """Return the child's and the parent's process numbers as soon as the child waits."""
        assert self.process is not None
        until(lambda: (self.folder / "waiting").exists() or self.process is None or self.process.poll() is not None)
        child, parent = (self.folder / "waiting").read_text().split()
        return int(child), int(parent)

    def attempts(self, seed: int = 1) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / f"attempts_{seed}.txt").read_text().splitlines()]

    @property
    def run_dir(self) -> Path:
        (folder,) = (self.folder / "outputs" / "detect").iterdir()
        return folder

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.run_dir / "status.json").read_text())
        return content

    def log(self) -> str:
        return (self.run_dir / "logs" / "train.log").read_text()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + ENOUGH_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def living(group: int) -> list[str]:
    """Return the living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {' '.join(process.cmdline())}")
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def error_lines(errors: str) -> list[str]:
    return [line.partition(" | ERROR    | ")[2] for line in errors.splitlines() if " | ERROR " in line]


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Command]:
    made = Command(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        os.killpg(made.process.pid, signal.SIGKILL)
        made.process.communicate()


# ---- ends that the child chooses


def test_success_is_the_commands_and_only_the_child_did_the_work(command: Command) -> None:
    command.script("| begin finish_at_exit")
    process = command.start("train.seed=1", *WORDS)
    out, errors = process.communicate(timeout=ENOUGH_S)
    assert (process.returncode, error_lines(errors)) == (0, [])
    assert out == "counted counted ", "what was in the buffer at the fork was printed by both"
    (attempt,) = command.attempts()
    assert attempt["parent"] == process.pid
    assert attempt["oom_score_adj"] == min(int(Path("/proc/self/oom_score_adj").read_text()) + 100, 1000)
    assert not attempt["killed"] and attempt["resume_from"] is None
    assert (command.folder / "finished").exists(), "what was registered for the child's end did not run"
    modules = set((command.folder / f"modules_{process.pid}.txt").read_text().splitlines())
    assert not modules & {"torch", "ultralytics", "numpy", "cv2", "hsr_train.execution", "scripted_engine"}
    assert "hsr_train.execution" in (command.folder / f"modules_{attempt['pid']}.txt").read_text().splitlines()
    assert (command.status()["state"], command.status()["pid"]) == ("completed", attempt["pid"])


def test_refusal_is_the_commands_with_one_message(command: Command) -> None:
    status, errors = command.script("refuse_input |").run()
    assert (status, error_lines(errors)) == (
        2,
        ["data.path: x.yaml: is not there", "    -> data.path=FILE", "b: is odd"],
    )
    assert "Traceback" not in errors and not (command.folder / "outputs").exists()


def test_exit_of_a_library_is_the_commands(command: Command) -> None:
    status, errors = command.script("| begin leave").run()
    assert (status, error_lines(errors)) == (5, [])
    assert (command.status()["state"], command.status()["exit_status"]) == ("failed", 5)


def test_defect_shows_its_traceback_once_and_how_to_go_on(command: Command) -> None:
    status, errors = command.script("| begin have_a_defect").run()
    assert status == 1 and errors.count("Traceback") == 1
    (line,) = error_lines(errors)
    assert line.startswith("A defect ended the run: ZeroDivisionError: division by zero. Its traceback stands above")
    assert line.endswith(f"resume={command.run_dir}")
    assert "ZeroDivisionError" in command.log()


def test_death_after_the_work_changes_nothing(command: Command) -> None:
    status, errors = command.script("| begin die_at_exit").run()
    assert (status, error_lines(errors)) == (0, [])
    assert "WARNING  | The training process was killed by SIGSEGV after its work was done" in errors
    assert command.status()["state"] == "completed"


# ---- signals


@pytest.mark.parametrize("whom", ["parent", "group"])
@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")])
def test_signal_to_the_parent_or_to_both_ends_both_tidily(
    command: Command, number: signal.Signals, code: int, word: str, whom: str
) -> None:
    process = command.script("| begin wait").start("train.seed=1", *WORDS)
    child, parent = command.waiting()
    assert parent == process.pid
    assert child != parent
    os.killpg(parent, number) if whom == "group" else os.kill(parent, number)
    status, errors = command.ended()
    assert (status, error_lines(errors)) == (code, [f"Stopped by {word}"])
    assert "Traceback" not in errors
    assert (command.folder / "tidied").exists()
    assert (command.status()["state"], command.status()["exit_status"]) == ("interrupted", code)


SHELL = """
import fcntl, os, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    signal.signal(signal.SIGTTOU, signal.SIG_DFL)
    os.execv(sys.argv[1], sys.argv[1:])
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_keys_of_a_terminal_reach_both(command: Command) -> None:
    """Ctrl-Z stops both until they are to go on, and Ctrl-C ends both."""
    master, terminal = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    command.script("| begin wait")
    process = command.start("train.seed=1", *WORDS, wrapper=(sys.executable, "-c", SHELL), **streams)
    os.close(terminal)
    both = [psutil.Process(number) for number in command.waiting()]
    os.write(master, b"\x1a")
    until(lambda: [p.status() for p in both] == [psutil.STATUS_STOPPED] * 2)
    os.killpg(both[1].pid, signal.SIGCONT)
    until(lambda: psutil.STATUS_STOPPED not in [p.status() for p in both])
    os.write(master, b"\x03")
    shown = b""
    while True:
        try:
            shown += os.read(master, 10_000)
        except OSError:  # nobody holds the terminal any more
            break
    os.close(master)
    assert process.wait(ENOUGH_S) == 130
    assert shown.count(b"Stopped by Ctrl-C") == 1
    assert (command.folder / "tidied").exists()


def test_hang_up_is_passed_on_and_reported(command: Command) -> None:
    command.script("| begin wait").start("train.seed=1", *WORDS)
    os.kill(command.waiting()[1], signal.SIGHUP)
    status, errors = command.ended()
    assert status == 129
    (line,) = error_lines(errors)
    assert line == f"The training process was killed by SIGHUP. To go on: python -m hsr_train resume={command.run_dir}"


IGNORE = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_IGN)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_hang_up_that_the_user_ignores_stops_nothing(command: Command) -> None:
    """As under nohup; a parent that ignores SIGCHLD hands that on as well."""
    command.script("| begin hang_up killed_for_memory", "| begin hang_up")
    command.start("train.seed=1", *WORDS, wrapper=(sys.executable, "-c", IGNORE))
    status, errors = command.ended()
    assert (status, error_lines(errors)) == (0, [])


def test_kill_of_the_parent_alone_ends_the_child_tidily(command: Command) -> None:
    process = command.script("| begin wait").start("train.seed=1", *WORDS)
    child, parent = command.waiting()
    os.kill(parent, signal.SIGKILL)
    process.communicate(timeout=ENOUGH_S)  # the child holds the pipe until it ends
    until(lambda: living(parent) == [])
    assert (command.folder / "tidied").exists()
    assert (command.status()["state"], command.status()["exit_status"]) == ("interrupted", 143)


def test_kill_of_the_group_leaves_nobody(command: Command) -> None:
    process = command.script("| begin wait").start("train.seed=1", *WORDS)
    os.killpg(command.waiting()[1], signal.SIGKILL)
    process.communicate(timeout=ENOUGH_S)
    until(lambda: living(process.pid) == [])
    assert process.returncode == -signal.SIGKILL
    assert command.status()["state"] == "running"
    assert find_run("last", command.folder / "outputs") == command.run_dir


# ---- deaths


def test_kill_of_the_child_is_reported_and_not_repeated(command: Command) -> None:
    status, errors = command.script("| begin leave_a_child die").run()
    assert status == 137
    message = (
        "The training process was killed by SIGKILL, not by the kernel for lack of memory as far as its counts tell. "
        f"To go on: python -m hsr_train resume={command.run_dir}"
    )
    assert error_lines(errors) == [message]
    assert len(command.attempts()) == 1
    ended = command.status()
    assert (ended["state"], ended["exit_status"], ended["message"], ended["epoch"]) == ("failed", 137, message, 2)
    assert f"| ERROR    | {message}\n" in command.log()
    assert find_run("last", command.folder / "outputs") == command.run_dir


def test_crash_shows_where_it_was(command: Command) -> None:
    status, errors = command.script("| begin read_address_zero").run()
    assert status == 139
    assert "Fatal Python error: Segmentation fault" in errors and "read_address_zero" in errors
    assert [line.partition(". ")[0] for line in error_lines(errors)] == ["The training process was killed by SIGSEGV"]


def test_child_that_leaves_without_a_word_has_not_succeeded(command: Command) -> None:
    status, errors = command.script("| begin leave_without_a_word").run()
    assert status == 1
    assert "ended with status 0 without a word" in errors
    assert command.status()["state"] == "failed"


# ---- killed by the kernel


def test_run_killed_for_memory_goes_on_with_less(command: Command) -> None:
    status, errors = command.script("| begin leave_a_child killed_for_memory", "| begin").run()
    assert (status, error_lines(errors)) == (0, [])
    first, second = command.attempts()
    assert (first["killed"], second["killed"]) == (False, True)
    assert second["resume_from"] == str(command.run_dir) and second["parent"] == first["parent"]
    text = "WARNING  | The kernel killed the training process for lack of memory after epoch 2. Going on"
    assert errors.count(text) == 1 and command.log().count(text) == 1
    result = json.loads((command.run_dir / "training_result.json").read_text())
    (rung,) = result["recovery"]
    assert (rung["place"], rung["rung"], rung["from"], rung["to"]) == ("killed by the kernel", "cache", "ram", "none")
    assert "cache: none" in (command.run_dir / "config.yaml").read_text()
    assert command.status()["state"] == "completed"


def test_restarts_end_at_max_retries(command: Command) -> None:
    status, errors = command.script(*["| begin killed_for_memory"] * 6).run(
        "train.seed=1", *WORDS, "recovery.max_retries=2"
    )
    assert (status, len(command.attempts())) == (1, 3)
    (line,) = error_lines(errors)
    assert (
        "after epoch 2, and recovery.max_retries=2 allows no further restart by this command. Given up so far: " in line
    )
    assert ": train.cache ram -> none; train.workers 4 -> 2. What would help: more memory" in line
    assert line.endswith(f"resume={command.run_dir}")
    assert (command.status()["state"], command.status()["message"]) == ("failed", line)
    status, errors = command.run(f"resume={command.run_dir}")
    assert (status, len(command.attempts())) == (1, 6), "whoever types it again wants further rungs"
    assert "train.workers 1 -> 0" in error_lines(errors)[0]


def test_restarts_end_for_a_child_that_never_comes_to_its_rung(command: Command) -> None:
    """By the record it could go on for ever: each is killed between its directory and `Recovery.begin`."""
    status, errors = command.script(*["| killed_for_memory"] * 9).run("train.seed=1", *WORDS, "recovery.max_retries=1")
    assert (status, len(command.attempts())) == (1, 2)
    assert "recovery.max_retries=1 allows no further restart by this command. Given up so far: nothing." in errors


def test_kill_before_the_run_has_a_directory_is_one_line(command: Command) -> None:
    status, errors = command.script("killed_for_memory |").run()
    assert (status, len(command.attempts())) == (1, 1)
    (line,) = error_lines(errors)
    assert ", before training began. What would help: more memory" in line


def test_run_without_recovery_does_not_go_on(command: Command) -> None:
    status, errors = command.script("| begin killed_for_memory").run("train.seed=1", *WORDS, "recovery.enabled=false")
    assert (status, len(command.attempts())) == (1, 1)
    (line,) = error_lines(errors)
    assert line.startswith("The kernel killed the training process for lack of memory after epoch 2. Recovery is off")
    assert "recovery.enabled=true" in line and line.endswith(f"resume={command.run_dir}")
    assert (command.status()["state"], command.status()["exit_status"]) == ("failed", 1)


def test_run_that_was_being_stopped_does_not_go_on(command: Command) -> None:
    command.script("| begin wait_to_die_for_memory").start("train.seed=1", *WORDS)
    os.kill(command.waiting()[1], signal.SIGTERM)
    status, errors = command.ended()
    assert status == 1 and len(command.attempts()) == 1
    assert "for lack of memory after epoch 2, while it was being stopped" in errors


def test_what_was_typed_on_resume_holds_after_the_kill(command: Command) -> None:
    """The first child was killed before it could record it; the second after recovery had changed one of the keys."""
    command.script("| begin fail", "| killed_for_memory", "| begin killed_for_memory", "| begin")
    assert command.run()[0] == 1
    status, errors = command.run(f"resume={command.run_dir}", "train.epochs=9", "train.cache=disk")
    assert status == 0, errors
    attempts = command.attempts()
    assert [attempt["epochs"] for attempt in attempts] == [5, 9, 9, 9]
    assert [attempt["cache"] for attempt in attempts] == ["ram", "disk", "disk", "none"]
    assert [attempt["workers"] for attempt in attempts] == [4, 4, 4, 4]
    assert "workers: 2" in (command.run_dir / "config.yaml").read_text()


@pytest.mark.slow
def test_jobs_of_a_grid_die_alone(command: Command) -> None:
    command.script(seed1=["", "| begin die"], seed2=["| begin killed_for_memory", "| begin"], seed3=["| begin"])
    status, errors = command.run("-m", "train.seed=1,2,3", *WORDS)
    assert status == 1
    # The first is prepared ahead, and again when one has failed.
    assert [len(command.attempts(seed)) for seed in (1, 2, 3)] == [3, 2, 1]
    first, last = error_lines(errors)
    assert re.match(r"Trial 0 with train.seed=1 failed: The training process was killed by SIGKILL", first)
    assert last == "1 of 3 trials failed: 0"
    parents = {attempt["parent"] for seed in (1, 2, 3) for attempt in command.attempts(seed)}
    assert len(parents) == 1
    states = [json.loads(f.read_text())["state"] for f in command.folder.glob("outputs/sweeps/*/trials/*/status.json")]
    assert sorted(states) == ["completed", "completed", "failed"]


def test_ctrl_c_ends_the_whole_grid(command: Command) -> None:
    command.script(seed1=["", "| begin wait"], seed2=["| begin"]).start("-m", "train.seed=1,2", *WORDS)
    os.killpg(command.waiting()[1], signal.SIGINT)
    assert command.ended()[0] == 130
    assert not (command.folder / "attempts_2.txt").exists()


# ---- a real kernel


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], Path]]:
    """Make a control group of little memory; its file `cgroup.procs` takes processes in."""
    made: list[Path] = []

    def make(limit_bytes: int) -> Path:
        groups = list(control_groups(Path("/proc"), "memory"))
        if not groups:
            pytest.skip("no control groups here")
        own, version = groups[0]
        # In version 2 a group that holds processes can have no limited groups below it; beside it they may be.
        place = own if version == 1 or own == groups[-1][0] else own.parent
        group = place / f"hsr_train_test_{os.getpid()}"
        try:
            group.mkdir()
            made.append(group)
            (group / ("memory.limit_in_bytes" if version == 1 else "memory.max")).write_text(str(limit_bytes))
        except OSError as error:
            pytest.skip(f"no control group can be made here: {error}")
        for swap in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            if (group / swap).exists():
                (group / swap).write_text(str(limit_bytes) if version == 1 else "0")
        return group

    yield make
    for group in made:
        until(lambda group=group: not (group / "cgroup.procs").read_text())  # type: ignore[misc]
        group.rmdir()


JOIN = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"


def test_kernel_kills_the_child_and_the_parent_goes_on(command: Command, little_memory: Callable[[int], Path]) -> None:
    group = little_memory(200_000_000)
    (command.folder / "kernel").rename(command.folder / "unused")  # the real counts are read
    command.script("| begin allocate", "| begin")
    command.start("train.seed=1", *WORDS, wrapper=(sys.executable, "-c", JOIN, str(group / "cgroup.procs")))
    status, errors = command.ended()
    assert status == 0, errors
    assert [attempt["killed"] for attempt in command.attempts()] == [False, True]
    (rung,) = json.loads((command.run_dir / "training_result.json").read_text())["recovery"]
    assert (rung["place"], rung["rung"]) == ("killed by the kernel", "cache")


EAT = "data = bytearray(b'1' * int(__import__('sys').argv[1]))"


@pytest.mark.slow
def test_training_killed_by_the_kernel_ends_with_less_and_complete(
    small_set: Path, shared_cache: Path, tmp_path: Path, little_memory: Callable[[int], Path]
) -> None:
    """A real training run; in its third epoch or later another program takes the memory of their control group."""
    from detection_runs import overrides, read_json, rows, start

    group = little_memory(8 * 10**9)
    version_1 = (group / "memory.usage_in_bytes").exists()
    usage, limit = ("memory.usage_in_bytes", "memory.limit_in_bytes") if version_1 else ("memory.current", "memory.max")
    more = {"train__epochs": 30, "train__cache": "ram", "train__workers": 1, "train__save_period": 0}
    process = start(overrides(small_set, tmp_path / "out", shared_cache, **more), tmp_path)
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        tables = tmp_path / "out" / "detect"

        def epochs() -> int:
            return sum(len(rows(file.parent)) for file in tables.glob("*/results.csv"))

        until(lambda: process.poll() is not None or epochs() > 2)
        assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
        (group / limit).write_text(str(int((group / usage).read_text()) + 50_000_000))
        join = (sys.executable, "-c", JOIN, group / "cgroup.procs", sys.executable, "-c", EAT, "200000000")
        assert subprocess.run(join, check=False).returncode == 0, "the kernel chose the other program"
        (group / limit).write_text(str(8 * 10**9))
        _, errors = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 0, errors
    (run,) = tables.iterdir()
    assert errors.count("The kernel killed the training process for lack of memory after epoch") == 1
    (rung,) = read_json(run / "training_result.json")["recovery"]
    assert (rung["place"], rung["rung"], rung["from"], rung["to"]) == ("killed by the kernel", "cache", "ram", "none")
    assert rung["epoch"] > 1
    assert [int(row["epoch"]) for row in rows(run)] == list(range(1, 31))
    assert read_json(run / "status.json")["state"] == "completed"


# ---- parts


@pytest.mark.parametrize(
    "error", [InputError([Problem("a", "1", "must be 2", "a=2"), Problem("b", "", "x")]), RunError("x")]
)
def test_errors_survive_the_way_between_processes(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and str(copy) == str(error) and vars(copy) == vars(error)


def test_letter_torn_by_a_death_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("memory", "disk"):
        with monkeypatch.context() as patch, Letters() as letters:
            if place == "disk":
                patch.delattr(os, "memfd_create")
            letters.send(RUN_DIR, Path("/a"))
            whole = letters.read()
            letters.send(OUTCOME, "x" * 100)
            assert letters.read() == whole | {OUTCOME: "x" * 100}
            os.truncate(letters._file, os.fstat(letters._file).st_size - 1)
            assert letters.read() == whole == {RUN_DIR: Path("/a")}


@pytest.mark.parametrize(("same_s", "tidied"), [(60.0, True), (0.0, False)])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_that_comes_twice_is_one_and_a_later_one_is_heeded(
    monkeypatch: pytest.MonkeyPatch, number: signal.Signals, status: int, same_s: float, tidied: bool
) -> None:
    done = []

    def execute(*_: Any) -> None:
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)
            done.append("tidied")

    monkeypatch.setattr(ending, "SAME_STOP_S", {number: same_s})
    monkeypatch.setattr(hsr_train, "execute", execute, raising=False)
    assert cli.main(["preset=demo"]) == status
    assert bool(done) is tidied


@pytest.mark.parametrize("why", ["torch", "threads", "mode"])
def test_process_that_cannot_be_forked_runs_by_itself(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    experiment = DetectExperiment()
    monkeypatch.setattr(supervisor, "_run", lambda *_: pytest.fail("a child was started"))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if why == "torch":
        monkeypatch.setitem(sys.modules, "torch", os)
    elif why == "mode":
        experiment.mode = "check"
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    if why == "threads":
        thread.start()
    assert supervisor.supervised(lambda given: given, experiment, DetectExperiment) is experiment  # type: ignore[arg-type]
    ended.set()
