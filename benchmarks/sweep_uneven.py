"""Uneven trials on two workers: how near a sweep comes to the ideal, beside a sweeper that waits for each batch.

    nice python benchmarks/sweep_uneven.py             # 6, 1, 6, 1 s, three of each in turn: minutes, no training

Four trials that sleep, in the order in which they start: 6, 1, 6 and 1 s. Whoever is free takes the next one, so that
the ideal is 7 s: one worker has 6 and 1, the other 1 and 6. (In the order 1, 6, 1, 6 it would be 8 s.) A sweeper that
waits for both of a pair needs 12 s.

Ours is the command with `sweep.jobs=2`. The plugin is `hydra/sweeper=optuna` with n_jobs=2 in the same command, with
the same random search over the learning rate. Its usual launcher, hydra-joblib-launcher, is no dependency of ours:
`TwoAtOnce` below stands for it, by Hydra's Launcher interface. It forks a process for each job of a batch and waits for
all, as joblib does, without joblib's own cost.

Two times: `trials` is from the first trial's training to the end of the last one's; `command` is all of the process,
imports and reports included. What the engine does not sleep is real: composing, supervising, recording.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from side_by_side import command_line, environment, machine

from hsr_train import cli
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Plan, Result, RunContext
from hsr_train.engines.registry import ENGINES
from hsr_train.hardware import Machine

SECONDS = "SWEEP_UNEVEN_S"
"""Environment variable: how long the trials sleep, in the order in which they start."""
WORDS = ("train.device=cpu", "train.epochs=1", "tensorboard.enabled=false", "optimizer.lr0=interval(1e-4,1e-2)")
OURS = ("sweep.jobs=2", "sweep.sampler=random", "sweep.pruner=none", "sweep.dir=sweep")
PLUGIN = (
    "hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra/launcher=two_at_once", "hydra.sweeper.n_jobs=2",
    "hydra.sweeper.direction=maximize",
)  # fmt: skip
GOAL = 1.1


class Sleeper:
    """An engine that sleeps, and writes when."""

    def prepare(self, experiment: Any, machine: Machine, decisions: Decisions) -> Plan:
        """Check nothing."""
        return Plan(experiment, decisions, {}, {}, [], None)

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Sleep as long as the next trial does."""
        began, seconds = time.time(), json.loads(os.environ[SECONDS])
        for number in count():
            with suppress(FileExistsError), Path(f"trial{number}.json").open("x") as file:
                break
        time.sleep(seconds[number])
        Path(file.name).write_text(json.dumps([began, time.time()]))
        return Result(context.run.path, metrics={"mAP50": 0.5, "mAP50-95": 0.5}, epochs_completed=1)

    validate = predict = export = train


class TwoAtOnce(Launcher):
    """A process for each job of a batch; the batch ends with its last one."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Keep what jobs need."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch."""
        setup_globals()
        begun = [self._start(list(words), number) for number, words in enumerate(job_overrides, initial_job_idx)]
        returns = []
        for pid, pipe in begun:
            with os.fdopen(pipe, "rb") as file:
                returns.append(pickle.load(file))
            os.waitpid(pid, 0)
        return returns

    def _start(self, overrides: list[str], number: int) -> tuple[int, int]:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid:
            os.close(writer)
            return pid, reader
        config = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        config.hydra.job.id, config.hydra.job.num = str(number), number
        done = run_job(
            hydra_context=self.hydra_context, task_function=self.task_function, config=config,
            job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir",
        )  # fmt: skip
        with os.fdopen(writer, "wb") as file:
            pickle.dump(JobReturn(overrides=overrides, _return_value=done.return_value, status=done.status), file)
        os._exit(0)


def command() -> int:
    """Be the command, with this file's engine and launcher."""
    ENGINES["detect"] = "sweep_uneven:Sleeper"
    Plugins.instance().register(TwoAtOnce)
    node = {"_target_": "sweep_uneven.TwoAtOnce"}
    ConfigStore.instance().store(group="hydra/launcher", name="two_at_once", node=node, provider="sweep_uneven")
    return cli.console()


def measure(words: Sequence[str], seconds: Sequence[float]) -> tuple[float, float]:
    """Return the seconds of the trials and of the command."""
    with tempfile.TemporaryDirectory() as name:
        env = environment(Path(name), **{SECONDS: json.dumps(seconds)})
        script = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import sweep_uneven as s; s.command()"
        )
        began = time.time()
        done = subprocess.run(
            [sys.executable, "-c", script, "-m", *words],
            cwd=name,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        ended = time.time()
        times = [json.loads(path.read_text()) for path in Path(name).glob("trial*.json")]
        if done.returncode or len(times) != len(seconds):
            raise SystemExit(f"{len(times)} trials, exit status {done.returncode}:\n{done.stderr[-3000:]}")
    return max(end for _, end in times) - min(begin for begin, _ in times), ended - began


def ideal(seconds: Sequence[float], workers: int = 2) -> float:
    """Return how long workers need that are never idle while a trial waits."""
    free = [0.0] * workers
    for of_trial in seconds:
        free.sort()
        free[0] += of_trial
    return max(free)


def main() -> int:
    """Measure; return 1 if our trials need more than 1.1 of the ideal."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, nargs="+", default=[6.0, 1.0, 6.0, 1.0], help="of trials, as they start"
    )
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    best = ideal(args.seconds)
    sides = {
        "ours": (*WORDS, *OURS, f"sweep.n_trials={len(args.seconds)}"),
        "plugin": (*WORDS, *PLUGIN, f"hydra.sweeper.n_trials={len(args.seconds)}"),
    }
    print(
        f"{command_line()}\n{machine('optuna', 'hydra-core', 'hydra-optuna-sweeper')}\nideal: {best:.1f} s", flush=True
    )
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
    for _ in range(args.repeats):
        for side, words in sides.items():
            found[side].append(measure(words, args.seconds))
            trials, whole = found[side][-1]
            print(
                f"  {side:6}  trials {trials:5.2f} s  command {whole:5.2f} s  load {os.getloadavg()[0]:.1f}", flush=True
            )
    middle = {side: (median(t for t, _ in times), median(w for _, w in times)) for side, times in found.items()}
    for side, (trials, whole) in middle.items():
        print(f"{side:6}  trials {trials:.2f} s, {trials / best:.3f} of the ideal; command {whole:.2f} s")
    return int(middle["ours"][0] > GOAL * best)


if __name__ == "__main__":
    sys.exit(main())
