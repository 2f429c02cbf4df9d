"""Optuna's samplers by name, made anew for each trial from (seed, number): the study and these decide its values."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler

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
