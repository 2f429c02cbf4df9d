"""Optuna's samplers by name, made anew for each trial from (seed, number): the study and these decide its values.

A choice of `hydra/sweeper/sampler` brings a sampler's class and options: those of hydra-optuna-sweeper, or of a team.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from hydra.errors import InstantiationException
from hydra.utils import instantiate
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
_ONE_SEQUENCE = "QMCSampler"
"""Its points are one sequence of one seed; how far it is stands in the storage."""
_TRUSTED = ("optuna.samplers.*", "hydra_plugins.hydra_optuna_sweeper.*")
"""What a file may name as a sampler, as in the plugin."""
_PACKAGES = {"cmaes": "cmaes", "gp": "torch scipy", "qmc": "scipy"}


def sampler_for(name: str, seed: int, number: int, options: Mapping[str, Any] | None = None) -> BaseSampler:
    """Return the sampler of a trial.

    Args:
        name: Of the sampler.
        seed: Of the search.
        number: Of the trial.
        options: Its class and options, if a choice of `hydra/sweeper/sampler` says them.

    Raises:
        InputError: It needs a package that is not installed, or Optuna refuses an option.
    """
    is_sequence = name == "qmc" or str((options or {}).get("_target_")).endswith(_ONE_SEQUENCE)
    own = seed if is_sequence else zlib.crc32(f"{seed} {number}".encode())
    key = "sweep.sampler" if options is None else "hydra/sweeper/sampler"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # it was asked for by name
            sampler = _MAKERS[name](own) if options is None else _of_group(options, own)
    except ImportError as error:
        allowed = "needs a package that is not installed"
        raise InputError(Problem(key, name, allowed, f"pip install {_PACKAGES.get(name, name)}")) from error
    except (ValueError, TypeError, InstantiationException) as error:
        allowed = f"cannot be made: {str(error).splitlines()[0]}"
        raise InputError(Problem(key, name, allowed, "other options, or sweep.sampler=tpe in its place")) from error
    if not isinstance(sampler, BaseSampler):
        allowed = f"is a {type(sampler).__name__} and no sampler of Optuna"
        raise InputError(Problem(key, name, allowed, "sweep.sampler=tpe in its place"))
    return sampler


def _of_group(options: Mapping[str, Any], seed: int) -> Any:
    """Return what a choice of `hydra/sweeper/sampler` stands for."""
    return instantiate({**options, "seed": seed, "_convert_": "all"}, _execution_whitelist_=_TRUSTED)


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
