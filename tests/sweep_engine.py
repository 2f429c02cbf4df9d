"""The command with an engine that trains nothing: `python sweep_engine.py WORDS…` like hsr-train, a trial in 50 ms.

What it guarantees: everything but the engine is real. An epoch ends with its state, a file that is written whole; a run
that goes on begins after it. `born` is made once, by the run's first start. The metric depends on the learning rate and
the batch alone, and is best at 0.001 and 16; an epoch is worth less the earlier it is; the latency in ms is the batch.
The environment's `SWEEP_LUCK` says what an experiment `e` has beside that, such as by its seed, `SWEEP_FAILS` whether
it fails; `SWEEP_EPOCH_S` is how long an epoch takes, and `SWEEP_TIDY_S` what a run does after Ctrl-C.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

from hsr_train import cli
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.registry import ENGINES
from hsr_train.errors import RunError
from hsr_train.hardware import Machine
from hsr_train.run.atomic import write_json


class SweepEngine:
    """Trains nothing."""

    def prepare(self, experiment: Any, machine: Machine, decisions: Decisions) -> Plan:
        """Check nothing."""
        return Plan(experiment, decisions, {}, {}, [], None)

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Count epochs."""
        e, run = plan.experiment, context.run
        (run.path / "born").touch(exist_ok=context.resuming)
        (run.path / "environment.json").write_text(json.dumps(dict(os.environ)))
        state = run.state / "epochs.json"
        run.state.mkdir(exist_ok=True)
        done: list[int] = json.loads(state.read_text()) if state.is_file() else []
        score = 0.9 - 0.1 * abs(math.log10(e.optimizer.lr0) + 3) - 0.01 * abs(math.log2(e.train.batch / 16))
        score += float(eval(os.environ.get("SWEEP_LUCK", "0"), {"e": e}))
        if done and len(done) < e.train.epochs:
            context.watch(len(done), e.train.epochs, of_epoch(score, len(done)))
        for epoch in range(len(done) + 1, e.train.epochs + 1):
            with Path("begun.txt").open("a") as file:
                file.write(f"{run.path.name} {epoch} {os.getpid()}\n")
            try:
                time.sleep(float(os.environ.get("SWEEP_EPOCH_S", "0.01")))
            except KeyboardInterrupt:
                Path("tidying").touch()
                time.sleep(float(os.environ.get("SWEEP_TIDY_S", "0")))
                Path("tidied").touch()
                raise
            if eval(os.environ.get("SWEEP_FAILS", "False"), {"e": e, "epoch": epoch}):
                raise RunError(f"the fan of card {e.train.seed} stands still in {run.path}")
            if eval(os.environ.get("SWEEP_DEFECTS", "False"), {"e": e, "epoch": epoch}):
                raise ZeroDivisionError("a defect")
            done.append(epoch)
            write_json(state, done)
            context.status.progress(epoch=epoch)
            if epoch < e.train.epochs:
                context.watch(epoch, e.train.epochs, of_epoch(score, epoch))
        latency_ms = float(e.train.batch) if e.train.measure_latency else None
        return Result(run.path, metrics=of_epoch(score), epochs_completed=len(done), latency_ms=latency_ms)

    validate = predict = export = train


def of_epoch(score: float, epoch: float = math.inf) -> dict[str, float]:
    """Return the metrics that an epoch of a run comes to which tends to a score."""
    return dict.fromkeys(("mAP50", "mAP50-95", "precision", "recall"), score - 0.3 / epoch)


if __name__ == "__main__":
    ENGINES["detect"] = "sweep_engine:SweepEngine"
    sys.exit(cli.console())
