"""What watching the machine costs a training: processor time of the samples beside that of the run, epoch by epoch.

    python benchmarks/sampling_cost.py            # 2 minutes on two cores

One run of `preset=demo` in this process, so that nothing is compared across two noisy runs. Every sample
(`hardware/usage.py`) is timed by the clock of the thread that takes it; the run's time is that of this process with its
loader workers. An epoch's last sample is taken by the training itself: for how long it stands still for it is shown
too, by the clock on the wall. Exit status 1 if samples take 1 % or more of an epoch's processor time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from side_by_side import command_line, machine

import hsr_train
from hsr_train.hardware.usage import UsageSampler

GOAL = 0.01


@dataclass
class Epoch:
    """One epoch, in seconds: processor time of its samples and of everything, and the wait for its last sample."""

    samples: int
    sampling_s: float
    run_s: float
    wall_s: float
    stands_still_s: float


class Meter:
    """Times the samples of every sampler in this process."""

    def __init__(self) -> None:
        self.epochs: list[Epoch] = []
        self._samples, self._sampling_s = 0, 0.0
        self._process = psutil.Process()
        self._spent_s, self._since = self._spent(), time.perf_counter()

    def install(self) -> None:
        """Time what is sampled from now on."""
        sample, take = UsageSampler.sample, UsageSampler.take

        def timed_sample(this: UsageSampler) -> None:
            began = time.thread_time()
            sample(this)
            self._sampling_s += time.thread_time() - began
            self._samples += 1

        def timed_take(this: UsageSampler, *args: Any) -> Any:
            began = time.perf_counter()
            taken = take(this, *args)
            now, spent_s = time.perf_counter(), self._spent()
            self.epochs.append(
                Epoch(self._samples, self._sampling_s, spent_s - self._spent_s, now - self._since, now - began)
            )
            self._samples, self._sampling_s, self._spent_s, self._since = 0, 0.0, spent_s, now
            return taken

        UsageSampler.sample, UsageSampler.take = timed_sample, timed_take

    def _spent(self) -> float:
        times = [process.cpu_times() for process in (self._process, *self._process.children(recursive=True))]
        return sum(each.user + each.system for each in times)


def report(epochs: Sequence[Epoch]) -> float:
    """Print the table; return the largest share of an epoch after the first, which holds what happens once."""
    print("| epoch | samples | their CPU, ms | CPU of the run, s | share | last sample / epoch, by the wall |")
    print("|---|---|---|---|---|---|")
    for number, epoch in enumerate(epochs, start=1):
        print(
            f"| {number} | {epoch.samples} | {1000 * epoch.sampling_s:.1f} | {epoch.run_s:.2f} "
            f"| {epoch.sampling_s / epoch.run_s:.3%} | {epoch.stands_still_s / epoch.wall_s:.3%} |"
        )
    return max(epoch.sampling_s / epoch.run_s for epoch in epochs[1:] or epochs)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("overrides", nargs="*", help="further settings of the run")
    options = parser.parse_args()
    print(f"`{command_line()}`: {machine()}\n")
    meter = Meter()
    meter.install()
    with tempfile.TemporaryDirectory() as folder:
        words = ["preset=demo", f"train.epochs={options.epochs}", f"output_dir={folder}", "tensorboard.serve=false"]
        hsr_train.execute(hsr_train.compose([*words, *options.overrides]))
    share = report(meter.epochs)
    print(f"\nGoal: less than {GOAL:.0%} of an epoch: {'met' if share < GOAL else 'MISSED'} ({share:.3%} at most)")
    return 0 if share < GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
