"""What pruning saves: epochs of training until a search has found a result within 1 % of the best there is.

    nice python benchmarks/sweep_pruning.py            # 50 seeds, a processor, minutes; trains nothing

The runs are modelled. Three searched values decide the score that a training tends to, by parabolas around the best
point: the learning rate (log-uniform, 1e-5 to 1e-1), the batch (4 to 64) and the synthetic ratio (0 to 3). From there

    score(epoch) = s - (s - 0.05) * epoch ^ -power + noise

where the power falls with the distance of the learning rate from its best (a small rate is slow, a large one unsteady),
and the noise of an epoch is normal with a deviation of 0.01. A run has 50 epochs, and its result is that of its best
epoch, as best.pt has it. A result is within 1 % if its model without noise is; the best is that of the best point.

Ours is Optuna's sampler and pruner made by `hsr_train/sweep` from the defaults of `sweep.*`, asked as a worker asks them.
hydra-optuna-sweeper is its own TPE configuration, instantiated as the plugin does it, on whole runs: it cannot prune.
Exit status 1 if ours needs more than 0.4 of its epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import optuna
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper.config import TPESamplerConfig
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState

from hsr_train.sweep.pruners import pruner_for
from hsr_train.sweep.pruning import warmup_of
from hsr_train.sweep.samplers import sampler_for
from hsr_train.sweep.study_types import Pruning

GOAL = 0.4
EPOCHS, NOISE, START = 50, 0.01, 0.05
WITHIN = 0.99
MOST_TRIALS = 400
BATCHES = (4, 8, 16, 32, 64)


def curve(lr: float, batch: int, ratio: float) -> np.ndarray:
    """Return the scores of a run's epochs, without noise."""
    rate, size = math.log10(lr) + 2.7, math.log2(batch / 16)
    tends_to = 0.75 - 0.08 * rate**2 - 0.02 * size**2 - 0.03 * (ratio - 1.2) ** 2
    power = 0.9 / (1 + 0.5 * abs(rate)) - 0.05 * size
    epochs = np.arange(1, EPOCHS + 1)
    return np.maximum(tends_to - (tends_to - START) * epochs**-power, 0.0)


BEST = max(curve(10**-2.7, batch, 1.2)[-1] for batch in BATCHES)


def epochs_needed(make_sampler: Callable[[int], BaseSampler], pruner: BasePruner, seed: int) -> tuple[int, int, int]:
    """Search until a result is good enough; return the epochs, the trials, and how many of them were pruned."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    spent = pruned = 0
    for number in range(MOST_TRIALS):
        study.sampler = make_sampler(number)
        trial = study.ask()
        lr = trial.suggest_float("lr", 1e-5, 1e-1, log=True)
        batch = trial.suggest_categorical("batch", BATCHES)
        true = curve(lr, batch, trial.suggest_float("ratio", 0.0, 3.0))
        seen = true + np.random.default_rng((seed, number)).normal(0.0, NOISE, EPOCHS)
        for epoch, value in enumerate(seen.tolist(), 1):
            spent += 1
            if epoch < EPOCHS:
                trial.report(value, epoch)
                if trial.should_prune():
                    study.tell(trial, state=TrialState.PRUNED)
                    pruned += 1
                    break
        else:
            study.tell(trial, float(seen.max()))
            if true.max() >= WITHIN * BEST:
                return spent, number + 1, pruned
    return spent, MOST_TRIALS, pruned


def searches(names: Sequence[str]) -> dict[str, Callable[[int], tuple[int, int, int]]]:
    """Return what is compared, by name; each is called with a seed."""

    def ours(name: str, warmup: int, startup: int) -> Callable[[int], tuple[int, int, int]]:
        asked = Pruning(name, warmup, startup, EPOCHS)
        return lambda seed: epochs_needed(lambda n: sampler_for("tpe", seed, n), pruner_for(asked), seed)

    def plugin(seed: int) -> tuple[int, int, int]:
        sampler = instantiate(TPESamplerConfig(seed=seed))
        return epochs_needed(lambda n: sampler, NopPruner(), seed)

    def random(seed: int) -> tuple[int, int, int]:
        sampler = RandomSampler(seed=seed)
        return epochs_needed(lambda n: sampler, NopPruner(), seed)

    found = {"hydra-optuna-sweeper, tpe": plugin, "random": random}
    for name in names:
        pruner, *numbers = name.split(":")
        warmup, startup = (int(n) for n in numbers) if numbers else (warmup_of(EPOCHS), 5)
        found[f"ours, tpe + {name}"] = ours(pruner, warmup, startup)
    return found
