"""The command with an engine that does what a test wrote down: `python scripted_engine.py WORDS…` like hsr-train.

`script.json` in the working directory maps a run's `train.seed` to its attempts, each a line of steps, which are
methods of `Steps`. Those before the bar happen in `prepare`, where a run has no directory yet.

What it guarantees: everything but the engine is real, from the entry point to `execution`, the run's records and the
recovery; `begin` calls `Recovery.begin` as engines do before they train. `killed_for_memory` counts the kill in the
laid-out control group `kernel/` and kills its own process; only `allocate` really runs out of memory.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from hsr_train import cli, supervisor
from hsr_train.config.saved import dump
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.registry import ENGINES
from hsr_train.errors import InputError, Problem, RunError
from hsr_train.hardware import Machine
from hsr_train.hardware.oom_kills import OomKills, read_oom_kills


def lay_out_kernel(folder: Path) -> None:
    """Make `folder` a proc file system and one control group of version 2 in which nothing was killed so far."""
    (folder / "self").mkdir(parents=True)
    (folder / "self" / "cgroup").write_text("0::/\n")
    (folder / "self" / "mountinfo").write_text(f"30 1 0:30 / {folder / 'group'} rw - cgroup2 cgroup2 rw\n")
    (folder / "group").mkdir()
    (folder / "group" / "memory.events").write_text("low 0\noom 0\noom_kill 0\n")


class Steps:
    """What a script can say; each is called with the run's context; in `prepare` there is none."""

    def begin(self, context: RunContext) -> None:
        """Begin with epoch 3."""
        context.status.progress(epoch=2)
        context.recovery.begin(3)

    def wait(self, context: Any) -> None:
        """Say where this process is, wait to be stopped, and take a while to tidy up."""
        try:
            Path("waiting.tmp").write_text(f"{os.getpid()} {os.getppid()}")
            Path("waiting.tmp").rename("waiting")
            time.sleep(60)
        finally:
            time.sleep(0.3)
            Path("tidied").touch()

    def wait_to_die_for_memory(self, context: Any) -> None:
        """Wait, and be killed for memory instead of tidying up."""
        try:
            self.wait(context)
        finally:
            self.killed_for_memory(context)

    def finish_at_exit(self, context: Any) -> None:
        """Leave something to do for the process's end."""
        atexit.register(Path("finished").touch)

    def die_at_exit(self, context: Any) -> None:
        """Die after everything is done."""
        atexit.register(os.kill, os.getpid(), signal.SIGSEGV)

    def hang_up(self, context: Any) -> None:
        """Send the parent the signal of a terminal that is closed."""
        os.kill(os.getppid(), signal.SIGHUP)

    def leave_a_child(self, context: Any) -> None:
        """Start a process that would outlive this one by far, as a loader worker does for seconds."""
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)

    def refuse_input(self, context: Any) -> None:
        """Find two faults in the input."""
        raise InputError([Problem("data.path", "x.yaml", "is not there", "data.path=FILE"), Problem("b", "", "is odd")])

    def fail(self, context: Any) -> None:
        """Not be able to go on."""
        raise RunError("the disk is full")

    def have_a_defect(self, context: Any) -> None:
        """Divide by zero."""
        _ = 1 / 0

    def leave(self, context: Any) -> None:
        """Leave with a status."""
        sys.exit(5)

    def leave_without_a_word(self, context: Any) -> None:
        """Leave as some libraries do."""
        os._exit(0)

    def die(self, context: Any) -> None:
        """Be killed by somebody."""
        os.kill(os.getpid(), signal.SIGKILL)

    def killed_for_memory(self, context: Any) -> None:
        """Be killed as the kernel does it: counted, then dead."""
        events = Path("kernel/group/memory.events")
        count = read_oom_kills(Path("kernel"))
        assert count is not None
        events.write_text(f"low 0\noom 9\noom_kill {count.count + 1}\n")
        self.die(context)

    def allocate(self, context: Any) -> None:
        """Take memory until somebody objects."""
        blocks = []
        while True:
            blocks.append(bytearray(b"1" * 10_000_000))

    def read_address_zero(self, context: Any) -> None:
        """Crash."""
        ctypes.string_at(0)


class ScriptedEngine:
    """Follows `script.json`."""

    def prepare(self, experiment: Any, machine: Machine, decisions: Decisions) -> Plan:
        """Take the steps before the bar."""
        seed = str(experiment.train.seed)
        attempts = Path(f"attempts_{seed}.txt")
        number = len(attempts.read_text().splitlines()) if attempts.exists() else 0
        with attempts.open("a") as file:
            file.write(f"{json.dumps(seen(experiment))}\n")
        script: str = json.loads(Path("script.json").read_text())[seed][number]
        early, _, late = script.partition("|")
        for step in early.split():
            getattr(Steps(), step)(None)
        return Plan(experiment, decisions, {}, {}, [], late.split())

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Take the other steps."""
        for step in plan.inputs:
            getattr(Steps(), step)(context)
        return Result(context.run.path, metrics={"mAP50": 0.5, "mAP50-95": 0.4}, epochs_completed=3)

    validate = predict = export = train


def seen(experiment: Any) -> dict[str, Any]:
    """Return what a test wants to know of an attempt's experiment and process."""
    origin = experiment.origin
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "oom_score_adj": int(Path("/proc/self/oom_score_adj").read_text()),
        "killed": origin.killed,
        "resume_from": origin.resume_from,
        "epochs": experiment.train.epochs,
        "workers": experiment.train.workers,
        "cache": experiment.train.cache,
        "config": dump(experiment),
    }


def count_and_print() -> OomKills | None:
    """Count, right before a fork and after a child's end, and print something that stays in the buffer."""
    print("counted ", end="")
    return read_oom_kills(Path("kernel"))


if __name__ == "__main__":
    ENGINES["detect"] = "scripted_engine:ScriptedEngine"
    if Path("kernel").is_dir():
        supervisor.read_oom_kills = count_and_print  # type: ignore[attr-defined]
    status = cli.console()
    Path(f"modules_{os.getpid()}.txt").write_text("\n".join(sys.modules))
    sys.exit(status)
