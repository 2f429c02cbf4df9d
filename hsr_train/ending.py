"""How the command's process is stopped by signals, and how it ends; `cli` uses both."""

from __future__ import annotations

import atexit
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from hsr_train.errors import Terminated

SAME_STOP_S = {signal.SIGINT: 1.0, signal.SIGTERM: 10.0}
"""A signal that arrives again within so many seconds is the same wish."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM into an exception while a command runs, and take a signal that arrives twice for one.

    Schedulers send theirs to every process, and the supervisor passes it on: the second must not break off the tidying
    up after the first. A later one is heeded, for an impatient user, and since an exception can get lost in a library.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers in the main thread only; the host program has its own.
        return
    heeded_s: dict[int, float] = {}

    def stop(signum: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if now_s - heeded_s.get(signum, -math.inf) >= SAME_STOP_S[signal.Signals(signum)]:
            heeded_s[signum] = now_s
            raise Terminated if signum == signal.SIGTERM else KeyboardInterrupt

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else it is ignored, or the host program's
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(status: int) -> NoReturn:
    """End the process as Python does, but for the search through all that torch brought along: seconds, of a budget."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader has gone
            stream.flush()
    os._exit(status)
