"""A disk that fills up, a directory that vanishes, state files that rot, and two commands that resume one run.

The disk is a tmpfs of 300 MB, filled by a ballast file: what refuses is the kernel. A single file refuses by becoming
/dev/full under its descriptor. Every run ends with exit status 1 and a line that names path and free space, and goes
on, once there is space, to the end of a run that nothing happened to.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from detection_runs import differences, overrides, quick_pictures, read_json, rows, train
from fault_runs import differences_at_the_end, start_quick, until
from warm_process import Process

from hsr_train.cli import main
from hsr_train.engines.detection import engine, loop
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.monitor import Monitor
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.engines.states import STATE_VERSION, newest_state, state_files, write_state
from hsr_train.errors import InputError, RunError
from hsr_train.run.directory import RunDirectory
from hsr_train.run.log import TrainLogHandler
from hsr_train.run.status import StatusWriter

DISK_BYTES = 300 * 2**20
REFUSED = r"cannot write {path}[^ ]*: No space left on device \([\d.,]+ MB free there\)"


class Disk:
    """A small file system of its own.

    Attributes:
        path: Where it is mounted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self, leave_bytes: int = 0) -> None:
        """Leave only so much space, also while somebody else is writing."""
        with self._ballast.open("wb") as file:
            taken = 0
            for block in (2**24, 2**20, 2**16, 2**12):
                with suppress(OSError):
                    while shutil.disk_usage(self.path).free >= leave_bytes + block:
                        os.posix_fallocate(file.fileno(), taken, block)
                        taken += block

    def make_space(self) -> None:
        """Take the ballast away."""
        self._ballast.unlink()


@contextmanager
def halted(process: Process) -> Iterator[None]:
    """Let a process and its children stand still: what is done meanwhile is done at one moment of theirs."""
    os.killpg(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGCONT)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount program: no file system can be made that fills up")
    if done.returncode != 0:
        pytest.skip(f"no file system can be made that fills up: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


WIDE = {"model": "yolov8n", "model.weights": "scratch"}
"""Its states are large beside everything else that a run writes."""


@pytest.fixture(scope="module")
def wide_run(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that nothing happened to."""
    with quick_pictures():
        run_dir = train(small_set, tmp_path_factory.mktemp("whole"), shared_cache, **WIDE).run_dir
    assert run_dir is not None
    return run_dir


@pytest.fixture
def words(small_set: Path, shared_cache: Path, disk: Disk) -> list[str]:
    """What is typed for the run of `wide_run` on the small disk."""
    return overrides(small_set, disk.path / "out", shared_cache, **WIDE)


@pytest.fixture
def thin_words(small_set: Path, shared_cache: Path, disk: Disk) -> list[str]:
    """What is typed for the run of `whole_run` on the small disk: where nothing depends on how large a state is."""
    return overrides(small_set, disk.path / "out", shared_cache)


@contextmanager
def before(owner: Any, name: str, call: int, act: Callable[..., None]) -> Iterator[None]:
    """Do something just before a function is called for the given time; it gets the function's arguments."""
    original, calls = getattr(owner, name), itertools.count(1)

    def acting(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            act(*args)
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, acting)
        yield


def vanish(folder: Path) -> None:
    """Remove a folder, also while its heartbeat is being written there."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def refuse_writing(file: IO[Any]) -> None:
    """Let the kernel answer every further write to an open file with: no space left on device."""
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, file.fileno())
    os.close(full)


def errors_of(text: str) -> list[str]:
    assert "Traceback" not in text
    return [line.split(" | ", 2)[2] for line in text.splitlines() if " | ERROR " in line]


def only_run(disk: Disk) -> Path:
    (run,) = (disk.path / "out" / "detect").iterdir()
    return run


# ---- at the start


def test_full_disk_is_refused_before_anything_is_made(
    disk: Disk, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    disk.fill(5_000_000)
    assert main(words) == 2
    (line, remedy) = errors_of(capsys.readouterr().err)
    assert re.fullmatch(rf"output_dir: {disk.path}/out: the disk is full: 5\.0 MB free there", line)
    assert "make space" in remedy
    assert [file.name for file in disk.path.iterdir()] == ["ballast"]


def test_disk_without_room_for_states_ends_the_run_before_its_first_epoch(
    disk: Disk, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    disk.fill(100_000_000)
    with quick_pictures():
        assert main(words) == 1
    (line,) = errors_of(capsys.readouterr().err)
    run = only_run(disk)
    assert re.fullmatch(rf"{run}: \d+\.\d MB free there, the states and weights of this model need \d+ MB", line)
    assert (read_json(run / "status.json")["state"], list((run / "state").iterdir())) == ("failed", [])


# ---- while something is written


def ends_with_one_line(
    disk: Disk, words: list[str], capsys: pytest.CaptureFixture[str], *, written: str, states: list[int]
) -> None:
    """Run until the disk refuses, and check how that ends.

    Args:
        disk: The disk.
        words: What is typed.
        capsys: Captures the lines.
        written: What could not be written, relative to the run.
        states: The epochs whose states must be left, sound.
    """
    assert main(words) == 1
    run = only_run(disk)
    (line,) = errors_of(capsys.readouterr().err)
    assert re.fullmatch(REFUSED.format(path=re.escape(str(run / written))), line)
    status = read_json(run / "status.json")
    assert (status["state"], status["exit_status"], status["message"]) == ("failed", 1, line)
    assert line in (run / "summary.txt").read_text()
    assert not list(run.rglob("*.tmp-*"))
    assert not (run / "training_result.json").exists()
    found = state_files(run / "state")
    assert sorted(number for number, _ in found) == states
    newest = newest_state(run / "state")
    assert (newest["epochs_done"] if newest else 0) == max(states, default=0), "its checksum is sound"


def goes_on(disk: Disk, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = only_run(disk)
    capsys.readouterr()
    with quick_pictures():
        assert main([f"resume={run}"]) == 0, capsys.readouterr().err
    assert differences_at_the_end(run, whole, random=False) == []


@pytest.mark.slow
def test_disk_that_fills_while_a_state_is_written(
    disk: Disk, words: list[str], wide_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The state before is intact; the disk is still full at the first try to go on."""
    with quick_pictures(), before(loop, "write_state", 2, lambda *_: disk.fill(20_000_000)):
        ends_with_one_line(disk, words, capsys, written="state/epoch2.pt", states=[1])
    run = only_run(disk)
    with quick_pictures():
        assert main([f"resume={run}"]) == 1
    (line,) = errors_of(capsys.readouterr().err)
    assert "the states and weights of this model need" in line
    disk.make_space()
    goes_on(disk, wide_run, capsys)


PLACES = {
    "last state": (loop, "write_state", 3, 20_000_000, "state/epoch3.pt", [1, 2]),
    # Written in a thread of their own: a picture that is drawn meanwhile may be refused first.
    "weights": (loop, "write_weights", 2, 3_000_000, "", [1, 2]),
    "weights of the best epoch": (loop, "write_weights", 1, 4_000_000, "", [1]),
    "plots after training": (engine, "evaluate", 1, 60_000, "", [2, 3]),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_disk_that_fills_in_mid_run(
    disk: Disk, words: list[str], wide_run: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    owner, name, call, leave_bytes, written, states = PLACES[place]
    with before(owner, name, call, lambda *_: disk.fill(leave_bytes)):
        ends_with_one_line(disk, words, capsys, written=written, states=states)
    disk.make_space()
    goes_on(disk, wide_run, capsys)


def refuse_log(*_: Any) -> None:
    (handler,) = (h for h in logging.getLogger().handlers if isinstance(h, TrainLogHandler))
    refuse_writing(handler.stream)


def refuse_events(monitor: Monitor, *_: Any) -> None:
    assert monitor.writer is not None and monitor.writer._file is not None
    refuse_writing(monitor.writer._file)


RECORDS = {
    "log": (Monitor, "report", 2, refuse_log, "logs/train.log", [1, 2]),
    "log of the last epoch": (Monitor, "report", 3, refuse_log, "logs/train.log", [2, 3]),
    "events": (Monitor, "epoch", 2, refuse_events, "tensorboard/", [1]),
    "events of the last epoch": (Monitor, "epoch", 3, refuse_events, "tensorboard/", [1, 2]),
}


@pytest.mark.parametrize("place", [pytest.param(p, marks=() if p == "events" else pytest.mark.slow) for p in RECORDS])
def test_record_that_is_refused_ends_the_run_and_is_complete_in_the_end(
    disk: Disk, thin_words: list[str], whole_run: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    """Also of the last epoch: a run without a part of its record is not completed."""
    owner, name, call, act, written, states = RECORDS[place]
    with quick_pictures(), before(owner, name, call, act):
        ends_with_one_line(disk, thin_words, capsys, written=written, states=states)
    goes_on(disk, whole_run, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["config.yaml", "plots/labels.jpg", "results.csv", "state/epoch1.pt", "state/epoch3.pt"]
)
def test_command_whose_disk_is_filled_to_the_last_byte(
    disk: Disk, thin_words: list[str], whole_run: Path, tmp_path: Path, file: str
) -> None:
    """By somebody else, as soon as a file is there: not even the end can be recorded."""
    threads = str(torch.get_num_threads())
    process = start_quick(thin_words, tmp_path, OMP_NUM_THREADS=threads)
    assert until(lambda: list(disk.path.glob(f"out/detect/*/{file}")), process)
    with halted(process):
        disk.fill()
    _, text = process.communicate(timeout=300)
    assert process.returncode == 1, text
    run = only_run(disk)
    too_small = rf"{run}: [\d.]+ MB free there, the states and weights of this model need \d+ MB"
    assert re.fullmatch(REFUSED.format(path=re.escape(str(run))) + f"|{too_small}", errors_of(text)[-1])
    newest = newest_state(run / "state")
    disk.make_space()
    process = start_quick(["resume=last", f"output_dir={disk.path / 'out'}"], tmp_path, OMP_NUM_THREADS=threads)
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text
    assert newest is None or f"Going on after epoch {newest['epochs_done']} of 3" in text
    assert differences_at_the_end(run, whole_run, random=False) == []


# ---- a directory that vanishes

VANISHING = {
    "with the first samples": (Loop, "_train_epoch", 1),
    "between two batches": (Loop, "backward", 5),
    "before the state": (Loop, "_validate", 2),
    "in the last epoch": (Loop, "backward", 9),
    "before the final evaluation": (engine, "evaluate", 1),
    "after the final evaluation": (engine, "plot_curves", 1),
}


@pytest.mark.parametrize(
    "when", [pytest.param(w, marks=() if w == "between two batches" else pytest.mark.slow) for w in VANISHING]
)
def test_directory_that_is_removed_in_mid_run_ends_it_with_one_line(
    small_set: Path, shared_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], when: str
) -> None:
    def remove(*_: Any) -> None:
        vanish(next((tmp_path / "detect").iterdir()))

    with quick_pictures(), before(*VANISHING[when], remove):
        assert main(overrides(small_set, tmp_path, shared_cache)) == 1
    (line,) = errors_of(capsys.readouterr().err)
    assert re.fullmatch(rf"The run's directory is gone: {tmp_path}/detect/\w+", line)
    for run in (tmp_path / "detect").iterdir():
        assert not (run / "config.yaml").exists() and not (run / "training_result.json").exists()


def test_heartbeat_does_not_bring_a_removed_directory_back(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "detect", "demo")
    with pytest.raises(RunError, match="the run's directory is gone"), StatusWriter(run, interval_s=0.001) as status:
        vanish(run.path)
        status.progress(epoch=1)
        time.sleep(0.05)
    assert not run.path.exists()


# ---- two commands at once


@pytest.mark.slow
def test_two_commands_that_resume_one_run_at_once_are_one_too_many(
    small_set: Path, shared_cache: Path, tmp_path: Path
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with quick_pictures(), before(RunTrainer, "optimizer_step", 4, stop):
        assert main(overrides(small_set, tmp_path / "out", shared_cache, train__epochs=12)) == 130
    (run,) = (tmp_path / "out" / "detect").iterdir()
    processes = [start_quick([f"resume={run}"], tmp_path) for _ in range(2)]
    texts = [process.communicate(timeout=300)[1] for process in processes]
    assert sorted(process.returncode for process in processes) == [0, 2], texts
    (refusal,) = (errors_of(text) for text, process in zip(texts, processes, strict=True) if process.returncode == 2)
    status = read_json(run / "status.json")
    assert re.search(rf"(in use by|still running as) process {status['pid']} on {status['host']}", refusal[0])
    assert [row["epoch"] for row in rows(run)] == [str(epoch) for epoch in range(1, 13)]
    assert len(read_json(run / "manifest.json")["resumes"]) == 1, "the other one left no trace"


# ---- states that rot


def small_state(epochs_done: int) -> dict[str, Any]:
    return {"version": STATE_VERSION, "epochs_done": epochs_done, "model": {"w": torch.randn(500) * epochs_done}}


def damages(content: bytes, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield damaged contents: a bit flipped, cut off, zeroed from somewhere on; in the head, the end and between."""
    size = len(content)
    regions = {"head": (0, 64), "middle": (64, size - 96), "end": (size - 96, size)}
    for name, (first, last) in regions.items():
        for place in [first, last - 1, *(rng.randrange(first, last) for _ in range(8))]:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            yield f"bit of byte {place} ({name})", bytes(flipped)
            yield f"cut at {place} ({name})", content[:place]
            if any(content[place:]):
                yield f"zeros from {place} ({name})", content[:place] + bytes(size - place)
    yield "longer", content + b"\n"
    yield "twice", content + content


def test_damage_anywhere_in_a_state_is_noticed_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before_it = small_state(1)
    write_state(tmp_path, before_it)
    file = write_state(tmp_path, small_state(2))
    cases = list(damages(file.read_bytes(), random.Random(20)))
    assert len(cases) > 80
    for how, content in cases:
        file.write_bytes(content)
        caplog.clear()
        found = newest_state(tmp_path)
        assert found is not None and differences(found, before_it) == [], how
        assert f"The state of epoch 2 is not used: {file}: is damaged" in caplog.text, how


def test_states_that_are_all_damaged_are_all_named(tmp_path: Path) -> None:
    files = [write_state(tmp_path, small_state(epoch)) for epoch in (1, 2)]
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError) as caught:
        newest_state(tmp_path)
    assert all(f"{file}: is damaged" in str(caught.value) for file in files)
