"""Runs whose whole process group is killed with SIGKILL, at random moments and in the middle of writing a file.

Resumed until they complete, they must end as the run that nothing happened to: see `fault_runs`. The moments are drawn
evenly over what a process has to do for the run: from the appearance of the run's directory (of its entry in the lock,
where it is resumed) to the record of its completion. Before that a process only imports libraries; after it nothing is
left to lose. What there is to do is counted in processor time, as the undisturbed run took it, so that the moments
are the same however busy the machine is. A moment that comes after the end is no kill: the run is put back to where it
was before, and killed at another one.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from detection_runs import differences, overrides, read_json, rows
from fault_runs import differences_at_the_end, events, processor_s, start_quick, until, work_for
from warm_process import Process

from hsr_train.engines.states import newest_state, write_state
from hsr_train.run import atomic
from hsr_train.run.directory import RunDirectory
from hsr_train.run.events import EventWriter

EPOCHS = 3
CHAINS = [(101, 0, 6), (102, 2, 4)]
"""Seed of the moments, loader workers, kills of one run: 10 in all."""


@dataclass(frozen=True)
class Undisturbed:
    """A run that nothing happened to.

    Attributes:
        run: Its directory.
        left_s: By the number of completed epochs: the processor time in seconds that it needed from there to the
            record of its completion; the time before the first epoch is counted in all of them.
    """

    run: Path
    left_s: list[float]


@dataclass(frozen=True)
class Place:
    """Where the commands of one test run."""

    data: Path
    cache: Path
    folder: Path
    workers: int

    def words(self, name: str) -> list[str]:
        more = {"train__workers": self.workers, "train__save_period": 1, "train__epochs": EPOCHS}
        return overrides(self.data, self.folder / name, self.cache, **more)

    def runs(self, name: str) -> list[Path]:
        return sorted((self.folder / name / "detect").glob("*"))


def is_complete(run: Path) -> bool:
    return (run / "status.json").is_file() and read_json(run / "status.json")["state"] == "completed"


@pytest.fixture(scope="module")
def undisturbed(
    small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], tuple[Place, Undisturbed]]:
    """Run once for each number of workers."""
    made: dict[int, tuple[Place, Undisturbed]] = {}

    def make(workers: int) -> tuple[Place, Undisturbed]:
        if workers not in made:
            place = Place(small_set, shared_cache, tmp_path_factory.mktemp(f"workers{workers}"), workers)
            process = start_quick(place.words("reference"), place.folder)
            until(lambda: place.runs("reference"), process)
            (run,) = place.runs("reference")
            began_s = processor_s(process)
            epochs_s = []
            for epoch in range(EPOCHS + 1):
                until(lambda epoch=epoch: epochs_of(run) >= epoch, process)
                epochs_s.append(processor_s(process))
            until(lambda: is_complete(run), process)
            whole_s = processor_s(process) - began_s
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            made[workers] = place, Undisturbed(run, [whole_s - (end_s - epochs_s[0]) for end_s in epochs_s])
        return made[workers]

    return make


def epochs_of(run: Path) -> int:
    """Return how many epochs a run has recorded; -1 before its table is there."""
    return len(rows(run)) if (run / "results.csv").is_file() else -1


def kill_group(process: Process) -> None:
    """Kill a command with everything that it started, and wait until all of it is gone."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)  # ends when the last process that could write there has ended
    with pytest.raises(ProcessLookupError):
        for _ in range(1000):
            os.killpg(process.pid, 0)
            time.sleep(0.01)


def start_next(place: Place, name: str) -> tuple[Process, Callable[[], bool]]:
    """Go on with the run of a name, or begin it where there is nothing to go on with.

    Returns:
        The process, and what says whether it has come to the run's directory.
    """
    before = place.runs(name)
    unfinished = [run for run in before if (run / "config.yaml").is_file()]
    if not unfinished:
        return start_quick(place.words(name), place.folder), lambda: place.runs(name) != before
    (run,) = unfinished
    lock = RunDirectory(run).lock_file
    holder = lock.read_text()
    words = ["resume=last", f"output_dir={place.folder / name}"]
    return start_quick(words, place.folder), lambda: lock.read_text() not in (holder, "")


def only_run(place: Place, name: str) -> Path:
    (run,) = (run for run in place.runs(name) if (run / "config.yaml").is_file())
    return run


def finish(place: Place, name: str) -> Path:
    """Let the run of a name come to its end, if it is not there yet; return its directory."""
    if not any(map(is_complete, place.runs(name))):
        process, _ = start_next(place, name)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return only_run(place, name)


def survive(place: Place, reference: Undisturbed, name: str, rng: random.Random, kills: int) -> None:
    """Kill the run of a name at random moments, again and again, each before its end."""
    output, aside, share = place.folder / name, place.folder / f"{name}_aside", 1.0
    for _ in range(kills):
        if output.exists():
            shutil.copytree(output, aside)
        done = max([0, *map(epochs_of, place.runs(name))])
        for _ in range(10):
            process, is_there = start_next(place, name)
            assert until(is_there, process), process.communicate(300)[1]
            work_for(process, share * rng.random() * reference.left_s[done])
            complete = any(map(is_complete, place.runs(name)))
            kill_group(process)
            if not complete:
                break
            share *= 0.8  # the machine is less busy than it was: the same work takes less time
            shutil.rmtree(output)
            if aside.exists():
                shutil.copytree(aside, output)
        else:
            pytest.fail("no moment of ten came before the end")
        shutil.rmtree(aside, ignore_errors=True)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "workers", "kills"), CHAINS)
def test_run_killed_at_random_moments_ends_as_the_undisturbed_one(
    undisturbed: Callable[[int], tuple[Place, Undisturbed]], seed: int, workers: int, kills: int
) -> None:
    place, reference = undisturbed(workers)
    name = f"seed{seed}"
    survive(place, reference, name, random.Random(seed), kills)
    assert differences_at_the_end(finish(place, name), reference.run) == []


HALVES = [("config.yaml", 0), ("epoch1.pt", 0), ("epoch2.pt", 0), ("results.csv", 1), ("last.pt", 0), ("best.pt", 1)]


@pytest.mark.slow
def test_run_killed_in_the_middle_of_writing_ends_as_the_undisturbed_one(
    undisturbed: Callable[[int], tuple[Place, Undisturbed]], tmp_path: Path
) -> None:
    """One run, six times, each time with half of a file on the disk: the configuration (there is no run yet, and the
    same command begins another), states, a table, weights at the start of a resumed process and after its epoch."""
    place, reference = undisturbed(0)
    for number, (file, times) in enumerate(HALVES):
        flag = tmp_path / f"flag{number}"
        before = place.runs("halves")
        words = ["resume=last", f"output_dir={place.folder / 'halves'}"] if number > 1 else place.words("halves")
        process = start_quick(words, place.folder, halt=(file, times, flag))
        assert until(flag.exists, process), process.communicate(300)[1]
        kill_group(process)
        run = place.runs("halves")[-1]
        assert list(run.rglob(f".{Path(file).stem}.tmp-*")), "half a file lies there"
        assert (run in before) == (number > 1)
    run = finish(place, "halves")
    assert differences_at_the_end(run, reference.run) == []
    assert len(read_json(run / "manifest.json")["resumes"]) == len(HALVES) - 1


def small_state(epochs_done: int) -> dict[str, object]:
    return {"version": 2, "epochs_done": epochs_done, "model": {"w": torch.full((1000,), float(epochs_done))}}


def in_a_process_that_is_killed(act: Callable[[], object]) -> None:
    """Do something in a process of its own, which is killed at its end, or before by what it does."""
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def killed_while_writing(folder: Path, state: dict[str, object], halt: Callable[[Path], bool]) -> None:
    """Write a state in a process of its own that is killed where `halt` wants it."""

    def write() -> None:
        sync = atomic._sync

        def stop(path: Path) -> None:
            if halt(path):
                os.kill(os.getpid(), signal.SIGKILL)
            sync(path)

        atomic._sync = stop
        write_state(folder, state)
        os._exit(0)  # it was to be killed

    in_a_process_that_is_killed(write)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_kill_while_a_state_is_written_leaves_the_ones_before(tmp_path: Path) -> None:
    """Where half of it is written, where all of it is and it has no name yet, and where the old one is still there."""
    for epoch in (1, 2):
        write_state(tmp_path, small_state(epoch))

    def half(path: Path) -> bool:
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
        return path.is_file()

    for halt, newest, left in ((half, 2, 2), (Path.is_file, 2, 2), (Path.is_dir, 3, 3)):
        killed_while_writing(tmp_path, small_state(3), halt)
        found = newest_state(tmp_path)
        assert found is not None and differences(found, small_state(newest)) == []
        assert len(list(tmp_path.glob("epoch*.pt"))) == left
        atomic.remove_leftovers(tmp_path)
        assert not list(tmp_path.glob(".*"))
    write_state(tmp_path, small_state(3))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["epoch2.pt", "epoch3.pt"]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_configuration_in_tensorboard_survives_a_kill_before_the_first_epoch(tmp_path: Path) -> None:
    in_a_process_that_is_killed(lambda: EventWriter(tmp_path).text("config", "train: {}"))
    assert events(tmp_path) == {"config": [(0, None)]}
