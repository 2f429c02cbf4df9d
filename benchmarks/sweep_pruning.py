"""What pruning saves: epochs of training until a search has found a result within 1 % of the best there is.

    nice python benchmarks/sweep_pruning.py            # 50 seeds, 6 minutes of a processor; trains nothing
    nice python benchmarks/sweep_pruning.py --uneven   # trials of equal steps, and so of different epochs

The runs are modelled. Three searched values decide the score s that a training tends to, by parabolas around the best
point: the learning rate (log-uniform, 1e-5 to 1e-1), the batch (4 to 64) and the synthetic ratio (0 to 3). From there

    score(epoch) = s - (s - 0.05) * epoch ^ -power + noise

where the power falls with the distance of the learning rate from its best (a small rate is slow, a large one unsteady)
and with the batch, and the noise of an epoch is normal with a deviation of 0.01. A run has 50 epochs, and its result is
that of its best epoch, as best.pt has it. A result is within 1 % if its model without noise is; the best is that of the
best point.

With --uneven all runs have the same optimizer steps: 50 epochs with a batch of 64, and 25, 12, 6, 3 with the smaller
ones, at the same shares of the curve. Trials are then compared at marks, and an epoch counts as its share of 50.

Ours is Optuna's sampler and pruner made by `hsr_train/sweep` from the defaults of `sweep.*`, asked as a worker asks.
hydra-optuna-sweeper is TPE with the settings of its own configuration, on whole runs: it cannot prune.
`none` is ours without pruning: what the sampler's own settings make of it. Exit status 1 if the first pruner needs more
than 0.4 of the plugin's epochs.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median

import numpy as np
import numpy.typing as npt
import optuna
from hydra_plugins.hydra_optuna_sweeper.config import TPESamplerConfig
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from side_by_side import command_line, machine

from hsr_train.config.schema.sweep import SweepConfig
from hsr_train.sweep.pruners import pruner_for
from hsr_train.sweep.pruning import MARKS, reports, warmup_of
from hsr_train.sweep.samplers import sampler_for
from hsr_train.sweep.study_types import Pruning

GOAL = 0.4
EPOCHS, NOISE, START = 50, 0.01, 0.05
WITHIN = 0.99
MOST_TRIALS = 400
BATCHES = (4, 8, 16, 32, 64)
BEST_RATE, BEST_RATIO = -2.7, 1.2


def curve(lr: float, batch: int, ratio: float) -> npt.NDArray[np.float64]:
    """Return the scores of a run's epochs, without noise."""
    rate, size = math.log10(lr) - BEST_RATE, math.log2(batch / 16)
    tends_to = 0.75 - 0.08 * rate**2 - 0.02 * size**2 - 0.03 * (ratio - BEST_RATIO) ** 2
    power = 0.9 / (1 + 0.5 * abs(rate)) - 0.05 * size
    epochs = np.arange(1, EPOCHS + 1)
    return np.asarray(np.maximum(tends_to - (tends_to - START) * epochs**-power, 0.0))


BEST = max(curve(10**BEST_RATE, batch, BEST_RATIO)[-1] for batch in BATCHES)


@dataclass(frozen=True)
class Found:
    """What a search cost: epochs and trials until its result, and how many of these were pruned."""

    epochs: float
    trials: int
    pruned: int
    is_missed: bool = False


Search = Callable[[int, bool], Found]


def search(
    make_sampler: Callable[[int], BaseSampler], seed: int, is_uneven: bool, asked: Pruning | None = None
) -> Found:
    """Search until a whole run is good enough, or for `MOST_TRIALS`.

    Args:
        make_sampler: Returns that of a trial's number.
        seed: Of the noise.
        is_uneven: Whether a smaller batch has fewer epochs.
        asked: How trials are given up: what is asked after each epoch but the last.
    """
    study = optuna.create_study(direction="maximize", pruner=pruner_for(asked))
    spent, pruned = 0.0, 0
    for number in range(MOST_TRIALS):
        study.sampler = make_sampler(number)
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        batch = trial.suggest_categorical("batch", BATCHES)
        epochs = EPOCHS * batch // max(BATCHES) if is_uneven else EPOCHS
        ends = EPOCHS * np.arange(1, epochs + 1) // epochs
        true = curve(lr, batch, trial.suggest_float("ratio", 0.0, 3.0))[ends - 1]
        seen = true + np.random.default_rng((seed, number)).normal(0.0, NOISE, epochs)
        known: dict[int, float] = {}
        for epoch, value in enumerate(seen.tolist(), 1):
            spent += EPOCHS / epochs
            if asked is not None and epoch < epochs:
                news, is_due = reports(asked, epoch, epochs, value, known)
                known |= news
                for step, of_step in news.items():
                    trial.report(of_step, step)
                if is_due and trial.should_prune():
                    study.tell(trial, state=TrialState.PRUNED)
                    pruned += 1
                    break
        else:
            study.tell(trial, float(seen.max()))
            if true.max() >= WITHIN * BEST:
                return Found(spent, number + 1, pruned)
    return Found(spent, MOST_TRIALS, pruned, is_missed=True)


def theirs(seed: int, is_uneven: bool) -> Found:
    """Search as the plugin does."""
    settings = asdict(TPESamplerConfig(seed=seed))
    del settings["_target_"]
    sampler = TPESampler(**settings)
    return search(lambda number: sampler, seed, is_uneven)


def at_random(seed: int, is_uneven: bool) -> Found:
    """Search without looking at results."""
    sampler = RandomSampler(seed=seed)
    return search(lambda number: sampler, seed, is_uneven)


def ours(name: str) -> Search:
    """Return our search with a pruner: NAME, or NAME:STARTUP:WARMUP."""
    pruner, *numbers = name.split(":")
    startup, warmup = map(int, numbers) if numbers else (SweepConfig().pruner_startup, None)

    def run(seed: int, is_uneven: bool) -> Found:
        asked = Pruning(pruner, warmup_of(EPOCHS) if warmup is None else warmup, startup, EPOCHS)
        if is_uneven:
            asked = Pruning(pruner, 0, startup, MARKS, is_by_share=True, quiet=warmup)
        return search(lambda number: sampler_for("tpe", seed, number), seed, is_uneven, asked)

    return run


def interval(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return where the ratio of the means lies with 95 %, by drawing seeds anew."""
    rng, pairs = np.random.default_rng(0), np.array([ours, theirs])
    drawn = pairs[:, rng.integers(0, len(ours), (2000, len(ours)))].mean(axis=2)
    low, high = np.percentile(drawn[0] / drawn[1], (2.5, 97.5))
    return float(low), float(high)


def main() -> int:
    """Run the benchmark; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruners", nargs="*", default=["median", "none"], help="NAME, or NAME:STARTUP:WARMUP")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--uneven", action="store_true", help="trials of equal steps instead of equal epochs")
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    searches: dict[str, Search] = {"hydra-optuna-sweeper, tpe": theirs}
    searches |= {f"ours, tpe, {name}": ours(name) for name in args.pruners} | {"random": at_random}
    print(f"{command_line()}\n{machine()}\n")
    print("| | epochs, mean | median | of the plugin's | 95 % | trials | pruned | not found |\n" + "|---" * 8 + "|")
    means: list[float] = []
    first: list[float] = []
    for name, run in searches.items():
        found = [run(args.first_seed + seed, args.uneven) for seed in range(args.seeds)]
        epochs = [one.epochs for one in found]
        first = first or epochs
        means.append(fmean(epochs))
        low, high = interval(epochs, first)
        counts = f"{fmean(f.trials for f in found):.0f} | {fmean(f.pruned for f in found):.0f}"
        ratio = f"{means[-1] / means[0]:.2f} | {low:.2f} to {high:.2f}"
        missed = sum(one.is_missed for one in found)
        print(f"| {name} | {means[-1]:.0f} | {median(epochs):.0f} | {ratio} | {counts} | {missed} |", flush=True)
    return int(means[1] > GOAL * means[0])


if __name__ == "__main__":
    sys.exit(main())
