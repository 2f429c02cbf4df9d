"""Optuna's pruners by name, with what was asked of them; steps are those of `pruning.reports`, from 1."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    PercentilePruner,
    WilcoxonPruner,
)
from optuna.trial import FrozenTrial, TrialState

from hsr_train.sweep.study_types import Pruning

PERCENTILE = 25.0
PATIENCE = 3
P_WORSE = 0.15
"""Of a signed-rank test: three folds of three that are all worse come to 0.125. Optuna's 0.1 asks for four."""


def _of_percentiles(p: Pruning) -> dict[str, int]:
    """Return their options. Their steps begin at 0: step W is the first that may end a trial."""
    least = max(p.startup, 1)  # of them with a value at the step, which those that ended early may lack
    return {"n_startup_trials": p.startup, "n_warmup_steps": p.warmup + 1, "n_min_trials": least}


_MAKERS: dict[str, Callable[[Pruning], BasePruner]] = {
    "none": lambda p: NopPruner(),
    "median": lambda p: MedianPruner(**_of_percentiles(p)),
    "percentile": lambda p: PercentilePruner(PERCENTILE, **_of_percentiles(p)),
    "patient": lambda p: PatientPruner(MedianPruner(**_of_percentiles(p)), patience=PATIENCE),
    "hyperband": lambda p: HyperbandPruner(
        min_resource=min(p.warmup + 1, p.steps), max_resource=p.steps, reduction_factor=3
    ),
    "wilcoxon": lambda p: WilcoxonPruner(p_threshold=P_WORSE),
}


def pruner_for(pruning: Pruning | None) -> BasePruner:
    """Return the pruner; what several trials did so far is in the study, and none of it here."""
    if pruning is None:
        return NopPruner()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)  # of the patient one and of wilcoxon, each time
        return _MAKERS[pruning.name](pruning)


class FeasibleStudy(optuna.Study):
    """A study as pruners see it where there are constraints: without the complete trials that break one.

    Otherwise a better but larger network that is out of the question would end all that could be chosen.
    """

    def get_trials(self, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        """See `optuna.Study.get_trials`."""
        return [t for t in super().get_trials(deepcopy, states) if all(c <= 0 for c in t.constraints.values())]
