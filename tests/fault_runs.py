"""Runs that meet a fault, and what must be the same at their end: for tests that kill processes or fill disks.

Its `main` is the command `python -m hsr_train` that draws no plots (each takes longer than an epoch of a
small run) and may stop for good in the middle of writing a chosen file:

    [--halt=FILE NAME:HOW OFTEN BEFORE:FLAG] [what is typed after hsr_train]
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import warm_process
from warm_process import Process

HALT = "--halt="
Started = Process | subprocess.Popen[str]


def start_quick(
    words: list[str], cwd: Path, *, halt: tuple[str, int, Path] | None = None, **environment: str
) -> Process:
    """Start the command in a process group of its own, without plots; its output is captured.

    Args:
        words: What is typed.
        cwd: Where.
        halt: Name of a file that shall be written only by half, how often it may be written before, and a file that
            appears when it has come to that.
        **environment: Added to the environment.
    """
    from detection_runs import fresh_environment, short_folder

    option = [HALT + ":".join(map(str, halt))] if halt else []
    # No traces of killed processes outside the session's folder.
    folders = {"MPLCONFIGDIR": str(_fonts()), "TMPDIR": str(short_folder())}
    more = {"OMP_NUM_THREADS": "1", **folders, **environment}
    return warm_process.start(Path(__file__), [*option, *words], cwd, fresh_environment(**more))


@cache
def _fonts() -> Path:
    """Return the folder of a font list that is not made anew by every process."""
    from detection_runs import short_folder

    return short_folder()


def until(
    found: Callable[[], Any],
    process: Started,
    *,
    pause_s: float = 0.005,
    timeout_s: float = 300,
) -> Any:
    """Wait until something is found or the process has ended; return what was found, at last."""
    end = time.monotonic() + timeout_s
    while not (what := found()) and process.poll() is None:
        if time.monotonic() > end:
            process.kill()
            raise AssertionError(f"nothing found in {timeout_s} s: {process.communicate(timeout_s)[1]}")
        time.sleep(pause_s)
    return what or found()


def processor_s(process: Started) -> float:
    """Return the processor time of a command and of what it started, in seconds; 0 when it has ended."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        command = psutil.Process(process.pid)
        for one in (command, *command.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += sum(one.cpu_times()[:4])  # of the user and of the system, and those of children that ended
    return total


def work_for(process: Started, more_s: float) -> None:
    """Wait until a command has worked so much longer, in seconds of processor time, or has ended."""
    end_s = processor_s(process) + more_s
    until(lambda: processor_s(process) >= end_s, process, pause_s=0.02)


def differences_at_the_end(run: Path, reference: Path, *, random: bool = True) -> list[str]:
    """Return in what a finished run differs from one that nothing happened to; nothing where all is well.

    Compared are the files, every state (to the bit), results.csv (byte for byte), the epochs of timings.csv, weights,
    TensorBoard's curves and pictures, training_result.json and the status.

    Args:
        run: The run that met a fault.
        reference: A run of the same configuration.
        random: Whether the generators must agree: they do if both had the same loader workers.
    """
    from detection_runs import differences, read_json, same_weights

    one, other = files(run), files(reference)
    found = [f"file {name}" for name in sorted(one ^ other)]
    for file in (reference / "state").glob("*.pt"):
        states = [_loaded(folder / "state" / file.name) for folder in (run, reference)]
        if not random:
            states = [{k: v for k, v in state.items() if k != "random"} for state in states]
        found += [f"state {file.stem}{place}" for place in differences(*states)]
    if (run / "results.csv").read_bytes() != (reference / "results.csv").read_bytes():
        found.append("results.csv")
    epochs = [[row["epoch"] for row in _table(folder / "timings.csv")] for folder in (run, reference)]
    if epochs[0] != epochs[1]:
        found.append(f"timings.csv {epochs[0]}")
    for file in (reference / "weights").glob("*.pt"):
        mine = run / "weights" / file.name
        if not mine.is_file() or not same_weights(mine, file):
            found.append(f"weights {file.name}")
    curves = [events(folder / "tensorboard") for folder in (run, reference)]
    found += [
        f"TensorBoard {tag}" for tag in sorted({*curves[0], *curves[1]}) if curves[0].get(tag) != curves[1].get(tag)
    ]
    results = [_comparable(read_json(folder / "training_result.json")) for folder in (run, reference)]
    found += [f"training_result{place}" for place in differences(*results)]
    status = read_json(run / "status.json")
    if (status["state"], status["exit_status"]) != ("completed", 0):
        found.append(f"status {status}")
    return found


def files(run: Path) -> set[str]:
    """Return the names of a run's files; event files under one name."""
    names = (str(path.relative_to(run)) for path in run.rglob("*") if path.is_file())
    return {re.sub(r"events\.out\.tfevents\..*", "events", name) for name in names}


def events(folder: Path) -> dict[str, list[tuple[int, float | None]]]:
    """Return step and value of all curves but those of times and of the machine, and the steps of pictures and texts.

    A picture of the final evaluation may be there twice, from a process that was killed after it and from the next.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = dict.fromkeys(("scalars", "images", "tensors", "compressedHistograms", "histograms", "audio"), 0)
    accumulator = EventAccumulator(str(folder), size_guidance=everything).Reload()
    tags = accumulator.Tags()
    return {
        **{
            t: [(p.step, p.value) for p in accumulator.Scalars(t)]
            for t in tags["scalars"]
            if not t.startswith(("time/", "system/"))
        },
        **{t: sorted({(p.step, None) for p in accumulator.Images(t)}) for t in tags["images"]},
        **{t: [(p.step, None) for p in accumulator.Tensors(t)] for t in tags["tensors"]},
    }


def _loaded(file: Path) -> Any:
    import torch

    return torch.load(file, weights_only=True) if file.is_file() else None


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as text:
        return list(csv.DictReader(text))


def _comparable(result: dict[str, Any]) -> dict[str, Any]:
    """Return a training_result without times and without where the run lies."""
    measured = ("training_time_minutes", "speed_ms", "throughput")
    kept = {key: value for key, value in result.items() if key not in measured}
    return kept | {"config": {**result["config"], "output_dir": None}}


def _halt_at(name: str, times: int, flag: Path) -> None:
    """Stop for good in the middle of writing a file, when it was written some times before."""
    from hsr_train.run import atomic

    stem, _, suffix = name.rpartition(".")
    pattern = re.compile(rf"\.{re.escape(stem)}\.tmp-[\d-]+\.{suffix}")
    written, sync = [0], atomic._sync

    def stop(path: Path) -> None:
        if pattern.fullmatch(path.name):
            written[0] += 1
            if written[0] > times:
                os.truncate(path, path.stat().st_size // 2)
                flag.touch()
                time.sleep(3600)
        sync(path)

    atomic._sync = stop


def main() -> int:
    """Run the command; what is typed stands in sys.argv."""
    import hsr_train
    from hsr_train.cli import console

    if len(sys.argv) > 1 and sys.argv[1].startswith(HALT):
        name, times, flag = sys.argv.pop(1).removeprefix(HALT).split(":", 2)
        _halt_at(name, int(times), Path(flag))

    original = hsr_train.execute

    def execute(*given: Any) -> Any:
        from detection_runs import quick_pictures

        with quick_pictures():
            return original(*given)

    hsr_train.execute = execute
    return console()
