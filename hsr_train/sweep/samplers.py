"""Optuna's samplers by name, made anew for each trial from (seed, number): the study and these decide its values."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from hsr_train.errors import InputError, Problem

_MAKERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "grid": lambda seed: optuna.samplers.RandomSampler(seed=seed),  # every point is given
    "cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "qmc": lambda seed: optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_asynchronous_seeding=False),
    "nsgaii": lambda seed: optuna.samplers.NSGAIISampler(seed=seed),
}
_ONE_SEQUENCE = ("qmc",)
"""Their points are one sequence of one seed; how far it is stands in the storage."""
_PACKAGES = {"cmaes": "cmaes", "gp": "torch scipy", "qmc": "scipy"}


def sampler_for(name: str, seed: int, number: int) -> BaseSampler:
    """Return the sampler of a trial.

    Raises:
        InputError: It needs a package that is not installed.
    """
    own = seed if name in _ONE_SEQUENCE else zlib.crc32(f"{seed} {number}".encode())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # it was asked for by name
            return _MAKERS[name](own)
    except ImportError as error:
        allowed = "needs a package that is not installed"
        raise InputError(Problem("sweep.sampler", name, allowed, f"pip install {_PACKAGES.get(name, name)}")) from error


def drawn(
    study: optuna.Study, trial: FrozenTrial, space: Mapping[str, BaseDistribution], fixed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a value for each key of the space, drawn by the study's sampler before any is stored.

    Args:
        study: With the sampler of this trial.
        trial: As it stands in the study.
        space: What is searched.
        fixed: Values that were given.
    """
    sampler = study.sampler
    sampler.before_trial(study, trial)
    relative = sampler.sample_relative(study, trial, sampler.infer_relative_search_space(study, trial))
    known = {**relative, **fixed}
    return {
        name: known[name] if name in known else sampler.sample_independent(study, trial, name, distribution)
        for name, distribution in space.items()
    }
