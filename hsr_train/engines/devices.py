"""Where a process trains: `train.device`, and of several processes that train together a GPU for each.

Shared by the engines; what the values mean on a machine is decided in `hardware`.
"""

from __future__ import annotations

from typing import Any

from hsr_train.decisions import Decisions
from hsr_train.errors import InputError, Problem
from hsr_train.hardware import Machine, device_problems, parse_device, resolve_device
from hsr_train.processes import local_rank, num_processes


def own_device(experiment: Any, machine: Machine, decisions: Decisions) -> str:
    """Return where this process trains, such as cuda:0.

    A process that is alone has its device put into the experiment; for several it stays what was typed, since each has
    another one. mode=check, which stands for all of them, is planned for the smallest GPU.

    Raises:
        InputError: `train.device` names a GPU that is not there, or there are too few, or several in one process.
    """
    typed = experiment.train.device
    named = parse_device(typed)
    several = named if isinstance(named, list) and len(named) > 1 else []
    problems = [problem for number in several for problem in device_problems(machine, number)]
    if problems:
        raise InputError(problems[0])
    if num_processes() > 1:
        return _of_several(experiment, machine, decisions, several)
    if several and experiment.mode == "check":
        decisions.record("processes", len(several), f"train.device={typed}: one for each GPU")
        return smallest(machine, several)
    device, decision = resolve_device(machine, typed, decisions)
    if typed != decision.value:
        decisions.record(decision.key, decision.value, decision.reason)
    experiment.train.device = decision.value
    return device


def num_sharing(experiment: Any) -> int:
    """Return how many processes share each batch; in mode=check, how many would."""
    named = parse_device(experiment.train.device)
    return max(num_processes(), len(named) if isinstance(named, list) else 1)


def least_device(experiment: Any, machine: Machine, device: str) -> str:
    """Return the GPU that a batch must fit on: this process's own, or the smallest of all that share."""
    named, count = parse_device(experiment.train.device), num_sharing(experiment)
    if device == "cpu" or count == 1:
        return device
    return smallest(machine, named if isinstance(named, list) and len(named) == count else [*range(count)])


def smallest(machine: Machine, numbers: list[int]) -> str:
    """Return the GPU with the least memory of those named, for what must fit on each of them."""
    gpu = min((gpu for gpu in machine.gpus if gpu.index in numbers), key=lambda gpu: (gpu.nominal_gb, gpu.free_bytes))
    return f"cuda:{gpu.index}"


def _of_several(experiment: Any, machine: Machine, decisions: Decisions, several: list[int]) -> str:
    typed = experiment.train.device
    if typed == "cpu" or not machine.gpus:
        resolve_device(machine, typed)  # refuses a GPU that is not there
        return "cpu"
    if several and len(several) == num_processes():
        decisions.record("processes", len(several), f"train.device={typed}: one for each GPU")
        return f"cuda:{several[local_rank()]}"
    if "train.device" in experiment.origin.typed and parse_device(typed) != "auto":
        allowed = "each of several processes takes the GPU that its launcher gave it"
        remedy = "leave it out, and name them for the launcher: accelerate launch --gpu_ids 0,1 ..."
        raise InputError(Problem("train.device", str(typed), allowed, remedy))
    if local_rank() >= len(machine.gpus):
        allowed = f"process {local_rank()} finds no GPU of its own; there are {len(machine.gpus)}"
        raise InputError(Problem("train.device", str(typed), allowed, f"--num_processes {len(machine.gpus)}"))
    decisions.record("train.device", f"cuda:{local_rank()}", "a GPU for each process, as its launcher numbers them")
    return f"cuda:{local_rank()}"
