"""`sweep.jobs=N`: several workers on this machine, each with a GPU of its own or with a share of the cores.

They are forked from the command while it is still small, and each goes on as if it were alone: the study is what they
have in common. The parent waits for all.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hsr_train.errors import InputError, Problem, RunError, Terminated
from hsr_train.hardware import Machine, detect
from hsr_train.sweep.study_types import WORKER

log = logging.getLogger(__name__)


def leases(machine: Machine, jobs: int) -> list[dict[str, str]]:
    """Return what each worker's environment says about its share of the machine.

    Args:
        machine: What there is.
        jobs: Number of workers.
    """
    if machine.gpus:
        if jobs > len(machine.gpus):
            log.warning("sweep.jobs=%d workers share %d GPUs", jobs, len(machine.gpus))
        return [{"CUDA_VISIBLE_DEVICES": machine.gpus[n % len(machine.gpus)].uuid} for n in range(jobs)]
    threads = str(max(machine.cores // jobs, 1))
    return [{"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} for _ in range(jobs)]


def in_parallel(work: Callable[[], None], jobs: int, job: Any) -> None:
    """Call a function in several forked workers and wait for all.

    Raises:
        InputError: This process cannot be forked.
        RunError: A worker ended badly; what happened it said itself.
    """
    if not job.supervise:
        allowed = "needs a process that can be forked, which a Python program that calls hsr_train may not be"
        raise InputError(Problem("sweep.jobs", str(jobs), allowed, "python -m hsr_train --multirun ..."))
    children = []
    for number, lease in enumerate(leases(detect(), jobs)):
        pid = os.fork()
        if pid == 0:
            os.environ.update(lease | {WORKER: str(number)})
            detect(refresh=True)
            work()
            raise SystemExit(0)
        children.append(pid)
    statuses, stop = [], None
    while children:
        try:
            ended, status = os.waitpid(children[0], 0)
            children.remove(ended)
            statuses.append(os.waitstatus_to_exitcode(status))
        except KeyboardInterrupt as error:
            stop = error
            for pid in children:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
    if stop is not None:
        raise stop
    bad = [status for status in statuses if status]
    killed = [signal.Signals(-status).name for status in bad if status < 0]
    if killed:  # who is killed says nothing
        text = (
            f"{len(killed)} of {jobs} workers were killed ({', '.join(killed)}); the others went on with their trials"
        )
        raise RunError(f"{text}\nIf trials are missing: type the same command again")
    if bad and all(status == InputError.exit_status for status in bad):
        raise InputError(Problem("sweep.jobs", str(jobs), f"{len(bad)} workers stopped, as they said above"))
    if bad:
        raise RunError(f"{len(bad)} of {jobs} workers ended badly, as they said above")
