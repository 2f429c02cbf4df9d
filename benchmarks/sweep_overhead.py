"""What a sweep costs beside training: seconds per trial, and of asking a study that has many trials already.

    nice python benchmarks/sweep_overhead.py           # 20 trials without work, 1,000 finished ones, trains nothing

`in process` is `main(["-m", …])` called from Python, where nothing is supervised; `command` is the command, whose
trials have a process of their own and whose study has one, too. The engine does nothing: what lies between one trial's
training and the next one's is ours. It is composed and checked, recorded, told to the study, and shown in
leaderboard.csv, best.yaml and TensorBoard's hparams. The learning rate is searched by TPE, by one worker.

`claim`, `tell`: `Study.claim` and `Study.tell` with so many finished trials in the study, by its storage; `show` is
what is written after each trial. Exit status 1 if a median is above its goal: 0.5 s between trials in process, 0.2 s
for claiming.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import create_trial
from side_by_side import command_line, environment, machine

from hsr_train import cli
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.registry import ENGINES
from hsr_train.hardware import Machine
from hsr_train.sweep.storage import close_storage, open_storage
from hsr_train.sweep.study import Study
from hsr_train.sweep.study_types import Spec
from hsr_train.sweep.worker import this_process

WORDS = (
    "train.device=cpu", "train.epochs=1", "tensorboard.enabled=false", "sweep.dir=sweep",
    "optimizer.lr0=tag(log,interval(1e-4,1e-2))", "sweep.pruner=none",
)  # fmt: skip
LINES = ["optimizer.lr0=tag(log,interval(1e-4,1e-2))", "train.batch=int(interval(4,64))"]
SPACE = {"optimizer.lr0": FloatDistribution(1e-4, 1e-2, log=True), "train.batch": IntDistribution(4, 64)}
BETWEEN_GOAL_S, ASKING_GOAL_S = 0.5, 0.2
NOTES = {"metrics": {"mAP50-95": 0.5, "mAP50": 0.6}, "seconds": 60.0, "epochs": 10}


class Idle:
    """An engine that does nothing, and writes when."""

    def prepare(self, experiment: Any, machine: Machine, decisions: Decisions) -> Plan:
        """Check nothing."""
        return Plan(experiment, decisions, {}, {}, [], None)

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Have a result."""
        with Path("times.txt").open("a") as file:
            file.write(f"{time.time()} {time.process_time()}\n")
        value = 0.9 - plan.experiment.optimizer.lr0
        return Result(context.run.path, metrics={"mAP50": value, "mAP50-95": value}, epochs_completed=1)

    validate = predict = export = train


def command() -> int:
    """Be the command, with an engine that does nothing; `supervised` as the last word makes it the real command."""
    ENGINES["detect"] = "sweep_overhead:Idle"
    words, supervised = json.loads(sys.argv[1]), sys.argv[2] == "command"
    sys.argv[1:] = words
    return cli.console() if supervised else cli.main(words)


def trials(how: str, num: int) -> tuple[list[float], list[float], float]:
    """Run a sweep; return seconds between its trials, processor seconds if it has one process, and those of it all."""
    with tempfile.TemporaryDirectory() as name:
        script = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import sweep_overhead as s; s.command()"
        )
        words = ["-m", *WORDS, f"sweep.n_trials={num}"]
        began = time.monotonic()
        call = [sys.executable, "-c", script, json.dumps(words), how]
        done = subprocess.run(call, cwd=name, env=environment(Path(name)), capture_output=True, text=True, check=False)
        whole = time.monotonic() - began
        times, used = zip(*(map(float, line.split()) for line in (Path(name) / "times.txt").open()), strict=True)
        if done.returncode or len(times) != num:
            raise SystemExit(f"{len(times)} trials, exit status {done.returncode}:\n{done.stderr[-3000:]}")
    processor = [b - a for a, b in pairwise(used)] if how == "in process" else []
    return [b - a for a, b in pairwise(times)], processor, whole


def finished(url: str, num: int) -> None:
    """Make a study of so many complete trials, as ours leaves it."""
    storage = open_storage(url)
    study = optuna.create_study(storage=storage, study_name="sweep", direction="maximize")
    of_ours = {"task": "detect", "objectives": ["mAP50-95"], "fixed": [], "format": 1, "command": []}
    of_ours["space"] = {n: json.loads(optuna.distributions.distribution_to_json(d)) for n, d in SPACE.items()}
    for key, value in of_ours.items():
        study.set_user_attr(key, value)
    values = optuna.samplers.RandomSampler(seed=0)
    study.add_trials(
        create_trial(
            params={n: values.sample_independent(study, None, n, d) for n, d in SPACE.items()},  # type: ignore[arg-type]
            distributions=SPACE, value=number / num, user_attrs=NOTES | {"directory": f"/nowhere/{number}"},
            intermediate_values={epoch: number / num * epoch / 10 for epoch in range(1, 10)},
        )
        for number in range(num)
    )  # fmt: skip
    close_storage(storage)


def asking(url: str, num: int, repeats: int, home: Path) -> Iterator[tuple[str, tuple[float, float]]]:
    """Ask a study of `num` finished trials for more, and tell of them; yield what took how many seconds."""
    finished(url, num)
    spec = Spec(
        url, "sweep", "detect", ["mAP50-95"], ["maximize"], num + repeats, LINES, [], "tpe", 42, own={}
    )  # fmt: skip
    study = Study()
    yield "open", _timed(lambda: study.open(spec, this_process()))
    for number in range(num, num + repeats):
        yield "claim", _timed(study.claim)
        yield "tell", _timed(lambda number=number: study.tell(number, "complete", [0.5], NOTES))  # type: ignore[misc]
    for _ in range(3):
        yield "show", _timed(lambda: study.show(home))
    study.close()


def _timed(call: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds and processor seconds of a call."""
    began, used = time.monotonic(), time.process_time()
    call()
    return time.monotonic() - began, time.process_time() - used


def main() -> int:
    """Measure; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20, help="of each sweep")
    parser.add_argument("--repeats", type=int, default=3, help="of each sweep; 0: only ask")
    parser.add_argument("--finished", type=int, nargs="+", default=[10, 1000], help="trials that a study has already")
    args = parser.parse_args()
    print(f"{command_line()}\n{machine('optuna', 'hydra-core', 'sqlalchemy')}", flush=True)
    between: dict[str, list[float]] = {"in process": [], "command": []}
    for _ in range(args.repeats):
        for how, seconds in between.items():
            found, processor, whole = trials(how, args.trials)
            seconds.append(median(found))
            print(
                f"  {how:10}  between trials: median {median(found):.3f} s ({min(found):.3f} to {max(found):.3f})"
                f"{f', {median(processor):.3f} s of the processor' if processor else ''}"
                f"  whole {whole:.1f} s  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    for how, seconds in between.items() if args.repeats else ():
        print(f"{how}: {median(seconds):.3f} s between trials, median of {args.repeats}")
    claims = []
    for num in args.finished:
        for kind in ("sqlite", "journal"):
            with tempfile.TemporaryDirectory() as name, chdir(name):
                url = f"sqlite:///{name}/study.db" if kind == "sqlite" else f"journal:{name}/study.journal"
                took = list(asking(url, num, 20, Path(name)))
            middle = {what: _of(took, what) for what in ("open", "claim", "tell", "show")}
            claims.append(middle["claim"][0])
            texts = [f"{what} {s:.3f} s ({p:.3f} of the processor)" for what, (s, p) in middle.items()]
            print(f"{num} finished, {kind}: {', '.join(texts)}; load {os.getloadavg()[0]:.1f}", flush=True)
    is_slow = args.repeats > 0 and median(between["in process"]) > BETWEEN_GOAL_S
    return int(is_slow or max(claims) > ASKING_GOAL_S)


def _of(took: Sequence[tuple[str, tuple[float, float]]], what: str) -> tuple[float, float]:
    """Return the medians of something's seconds and processor seconds."""
    seconds, processor = zip(*(times for name, times in took if name == what), strict=True)
    return median(seconds), median(processor)


if __name__ == "__main__":
    sys.exit(main())
