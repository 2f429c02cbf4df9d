"""Each epoch of a trial, told to its study from the process that trains, which may be told to give the trial up.

That process is a child of the worker, and the study lives in another one (`agent`). The pipe between worker and study
stays the worker's own: a training killed in the middle of a call would spoil it. So the study listens on a socket,
each report is a connection of its own, and one that fails costs nothing but that epoch's say.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from hsr_train.errors import HsrTrainError, PrunedError

log = logging.getLogger(__name__)

Report = Callable[[int, int, int, float], bool]
"""Tells a study a trial's number, an epoch, how many there are to be, and its value; returns whether to give it up."""

PATIENCE_S = 30.0
"""So long a training waits for what the study says."""
WAITING = 16
"""Connections that may wait to be accepted."""


@dataclass(frozen=True)
class Door:
    """A study's socket; the key keeps other users of the machine out.

    Attributes:
        address: Of the socket.
        key: Known to the study and its worker.
    """

    address: Any
    key: bytes = field(repr=False)

    def __call__(self, number: int, epoch: int, epochs: int, value: float) -> bool:
        """Report an epoch; see `Report`.

        Raises:
            OSError: The study is not there, or says nothing.
            EOFError: It went away.
            HsrTrainError: It refuses.
        """
        with Client(self.address, authkey=self.key) as connection:
            connection.send((number, epoch, epochs, value))
            if not connection.poll(PATIENCE_S):
                raise TimeoutError(f"no answer in {PATIENCE_S:.0f} s")
            is_sound, answer = connection.recv()
        if not is_sound:
            raise answer
        return bool(answer)


class Watch:
    """Shows a study the epochs of one trial.

    Args:
        report: The way to the study.
        number: Of the trial.
        objective: Which metric it is about.
        of: What a number counts, epochs or folds, for messages.
    """

    def __init__(self, report: Report, number: int, objective: str, of: str = "epoch") -> None:
        self._report, self._number, self._objective, self._of = report, number, objective, of
        self._complained = False

    def __call__(self, epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        """Report an epoch that is recorded, counted from 1, of so many.

        Raises:
            PrunedError: The trial is to end here.
        """
        value = float(metrics[self._objective])
        try:
            is_hopeless = self._report(self._number, epoch, epochs, value)
        except (HsrTrainError, OSError, EOFError, AuthenticationError) as error:
            if not self._complained:
                log.warning("The study is not told of %s %d, and prunes nothing: %r", self._of, epoch, error)
            self._complained = True
            return
        if is_hopeless:
            raise PrunedError(f"Pruned after {self._of} {epoch}: {self._objective} {value:.4g}")


def listen(report: Report) -> Door:
    """Answer reports in threads of this process, until it ends."""
    key = os.urandom(32)
    # Of no file: a path, such as one below a long TMPDIR, may have 107 characters.
    address = f"\0hsr_train_{uuid.uuid4().hex}" if sys.platform == "linux" else None
    listener = Listener(address, backlog=WAITING, authkey=key)
    threading.Thread(target=_accept, args=(listener, report), name="sweep reports", daemon=True).start()
    return Door(listener.address, key)


def _accept(listener: Listener, report: Report) -> None:
    while True:
        try:
            connection = listener.accept()
        except (OSError, EOFError, AuthenticationError) as error:  # it was killed, or is somebody else
            log.debug("A report that did not come: %r", error)
            time.sleep(0.01)
            continue
        # A thread for each: while a storage keeps one waiting, others still learn that somebody is here.
        threading.Thread(target=_answer, args=(connection, report), name="sweep report", daemon=True).start()


def _answer(connection: Connection, report: Report) -> None:
    with connection:
        try:
            number, epoch, epochs, value = connection.recv()
            try:
                answer: tuple[bool, Any] = True, report(number, epoch, epochs, value)
            except Exception as error:
                answer = False, error
            connection.send(answer)
        except (OSError, EOFError) as error:  # the training was killed meanwhile, or waits no longer
            log.debug("A report without its end: %r", error)
