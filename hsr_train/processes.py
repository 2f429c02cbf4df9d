"""Whether this process is one of several that train one network together, as their launcher said in the environment.

`accelerate launch`, `torchrun` and `launcher` start the same command several times. Only the first process has a run's
directory, its records and a voice (`execution`, `cli`); the others do their share of each batch (`Engine.assist`). No
torch here: how they exchange numbers is an engine's matter.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from hsr_train.errors import InputError, Problem

_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE")  # torchrun's, and those of mpirun's kinds
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK")
_LOCAL_RANK = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK")


OWN_LAUNCHER = "HSR_TRAIN_LAUNCHER"
"""Set in the environment of processes that `launcher` started."""


def num_processes() -> int:
    """Return how many processes were started for this command."""
    return max(_number(_COUNT, 1), 1)


def rank() -> int:
    """Return this process's number among them, from 0."""
    return _number(_RANK, 0) if num_processes() > 1 else 0


def local_rank() -> int:
    """Return its number among those on this machine, from 0: the number of its GPU."""
    return _number(_LOCAL_RANK, rank()) if num_processes() > 1 else 0


def is_first() -> bool:
    """Whether this process makes the run's directory and speaks; true of a process that is alone."""
    return rank() == 0


def command(count: int | None = None) -> str:
    """Return what starts hsr_train in as many processes as there are here, or in another number of them."""
    here = num_processes()
    count = here if count is None else count
    if count == 1 or OWN_LAUNCHER in os.environ:  # which is asked for by train.device
        return "python -m hsr_train"
    if here > 1 and "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return f"torchrun --nproc_per_node {count} -m hsr_train"
    return f"accelerate launch --multi_gpu --num_processes {count} -m hsr_train"


def require_fit(experiment: Any, *, multirun: bool = False, gpus: Sequence[int] = ()) -> None:
    """Refuse what several processes were started for, or would be, and cannot share.

    Args:
        experiment: What is asked for.
        multirun: It is one job of a grid.
        gpus: Those that `train.device` names, where a process would be started for each.

    Raises:
        InputError: The experiment runs in one process.
    """
    _require_all_started()
    if num_processes() == 1 and not gpus:
        return
    allowed, alone = f"{num_processes()} processes were started, and ", f"start it with {command(1)}"
    if gpus:
        allowed, alone = f"train.device={list(gpus)} stands for {len(gpus)} processes, and ", f"train.device={gpus[0]}"
    if multirun:
        raise InputError(Problem("--multirun", "", f"{allowed}a grid runs in one", alone))
    if experiment.mode != "train" and not gpus:  # else it is mode=check, which says what would be
        value, what = experiment.mode, "only training is shared"
        raise InputError(Problem("mode", value, allowed + what, alone))
    if experiment.is_cross_validation:
        what = "data.fold=all trains its folds in one"
        raise InputError(Problem("data.fold", "all", allowed + what, f"data.fold=0, or {alone}"))
    if experiment.origin.reproduce_from is not None:
        value, what = experiment.origin.reproduce_from, "a reproduction runs in one"
        raise InputError(Problem("reproduce", value, allowed + what, alone))
    if experiment.not_shared is not None:
        key, value, remedy = experiment.not_shared
        raise InputError(Problem(key, value, f"{allowed}it is trained in one", remedy))
    for key in ("time_budget", "finish_by"):
        value = getattr(experiment.train, key)
        if value is not None:
            what, remedy = "a time is kept by one", f"train.{key}=null train.epochs=N, or {alone}"
            raise InputError(Problem(f"train.{key}", value, allowed + what, remedy))


def _require_all_started() -> None:
    """Refuse to train alone where the launcher was told to start several, and did not."""
    launched = "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and not any(name in os.environ for name in _COUNT):
        allowed = "on a CPU accelerate starts one process, whatever its --num_processes says"
        raise InputError(Problem("accelerate launch", "--cpu", allowed, f"{command(2)} ... train.device=cpu"))


def _number(names: tuple[str, ...], default: int) -> int:
    found = next((os.environ[name] for name in names if os.environ.get(name)), "")
    return int(found) if found.isdigit() else default
