"""Starts a command once for each GPU that `train.device` names, and ends all of it together.

`cli` hands it a training with `train.device=[0,1]`. Each process finds in its environment who it is (`processes`), as
under `torchrun`, which can be used instead, and must be for several machines; its exit status is 1 whatever happened,
ours is that of the process that decided the end. The supervisor (`supervisor`) is not between: a process that the
kernel killed for memory takes the others with it, and `resume=` goes on from the last state.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from hsr_train.errors import InputError, Terminated
from hsr_train.hardware import Machine, device_problems, parse_device
from hsr_train.processes import OWN_LAUNCHER, num_processes
from hsr_train.supervised_child import PR_SET_PDEATHSIG, prctl

log = logging.getLogger(__name__)

POLL_S = 0.1
FIRST_ENDS_S = 30.0
"""After it was asked to stop, the first process records its end; the others have nothing to record."""
OTHERS_END_S = 2.0


def gpus_to_share(experiment: Any) -> list[int]:
    """Return the GPUs that several processes are to be started for; none if it is one, or they were started already."""
    named = parse_device(experiment.train.device) if hasattr(experiment, "train") else None
    several = isinstance(named, list) and len(named) > 1 and num_processes() == 1
    return list(named) if several and isinstance(named, list) else []


def require_there(machine: Machine, gpus: Sequence[int]) -> None:
    """Refuse GPUs that the machine does not have, before anything is started.

    Raises:
        InputError: It lacks one of them.
    """
    problems = [problem for number in gpus for problem in device_problems(machine, number)]
    if problems:
        raise InputError(problems[0])


def launch(command: Sequence[str], count: int) -> int:
    """Run a command in several processes, until all have ended; a stop signal is passed on to each of them.

    Args:
        command: Program and arguments.
        count: How many processes.

    Returns:
        The exit status of the first process; where another one failed before it, the status of that one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, OWN_LAUNCHER: 1}
    children: list[subprocess.Popen[bytes]] = []
    status = 1
    try:
        for rank in range(count):
            own = {"RANK": rank, "LOCAL_RANK": rank}
            environment = os.environ | {name: str(value) for name, value in (shared | own).items()}
            children.append(subprocess.Popen(command, env=environment, preexec_fn=_die_with_parent))  # noqa: PLW1509
        status = _watch(children)
    except KeyboardInterrupt as stop:  # SIGTERM's too
        _tell(children, signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT)
        _wait(children[:1], FIRST_ENDS_S)
        status = _status(children[0]) if children and children[0].poll() is not None else 1
    finally:
        _end(children)
    return status


def _watch(children: list[subprocess.Popen[bytes]]) -> int:
    """Wait until all have ended well, or one has not; return the status that counts."""
    while True:
        for rank, child in enumerate(children):
            if child.poll() not in (None, 0):
                if rank > 0 and children[0].poll() is None:
                    log.error("Process %d of %d %s: the others are ended", rank, len(children), _ending(child))
                    _tell(children, signal.SIGTERM)
                elif child.returncode < 0:
                    log.error("Process %d of %d %s", rank, len(children), _ending(child))
                return _status(child)
        if all(child.poll() == 0 for child in children):
            return 0
        time.sleep(POLL_S)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """End whoever is left; the first process gets the time that it needs, unless somebody is impatient."""
    with suppress(KeyboardInterrupt):
        _tell(children, signal.SIGTERM)
        _wait(children[:1], FIRST_ENDS_S)
        _wait(children[1:], OTHERS_END_S)
    for child in children:
        if child.poll() is None:
            child.kill()
            child.wait()


def _tell(children: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _wait(children: list[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(POLL_S)


def _status(child: subprocess.Popen[bytes]) -> int:
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _ending(child: subprocess.Popen[bytes]) -> str:
    if child.returncode >= 0:
        return f"ended with status {child.returncode}"
    return f"was killed by {signal.Signals(-child.returncode).name}"


def _die_with_parent() -> None:
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
