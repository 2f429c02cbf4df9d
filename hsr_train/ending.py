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
from typing import Any, NoReturn

from hsr_train.errors import HsrTrainError, Terminated

SAME_STOP_S = {signal.SIGINT: 1.0, signal.SIGTERM: 10.0}
"""A signal that arrives again within so many seconds is the same wish."""
_LOOK_AGAIN_S = 0.02
_IMPORTING = "<frozen importlib._bootstrap>"
_raised: list[type[KeyboardInterrupt]] = []
"""The wish to stop that was raised last, while the command still runs."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM into an exception while a command runs, and take a signal that arrives twice for one.

    Schedulers send theirs to every process, and the supervisor passes it on: the second must not break off the tidying
    up after the first. A later one is heeded, for an impatient user, and since an exception can get lost in a library.

    A signal waits for the end of an import, unless it comes again: an exception leaves half a module there, and in
    torch's own it ends the process. Where a library that is broken off fails while it tidies up, the command was
    stopped all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows signal handlers in the main thread only; the host program has its own.
        return
    heeded_s: dict[int, float] = {}
    waiting_s: dict[int, float] = {}
    before: dict[int, Any] = {}
    outermost = sys._getframe(2)  # that of the with statement

    def stop(signum: int, frame: FrameType | None) -> None:
        now_s, same_s = time.monotonic(), SAME_STOP_S[signal.Signals(signum)]
        if now_s - heeded_s.get(signum, -math.inf) < same_s:
            return
        first_s = waiting_s.setdefault(signum, now_s)
        if now_s - first_s < same_s and signal.SIGALRM in before and _is_importing(frame, outermost):
            signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)
        else:
            heed(signum)

    def look_again(_: int, frame: FrameType | None) -> None:
        if waiting_s and _is_importing(frame, outermost):
            signal.setitimer(signal.ITIMER_REAL, _LOOK_AGAIN_S)
        elif waiting_s:
            heed(next(iter(waiting_s)))

    def heed(signum: int) -> NoReturn:
        waiting_s.clear()
        heeded_s[signum] = time.monotonic()
        _raised[:] = [Terminated if signum == signal.SIGTERM else KeyboardInterrupt]
        raise _raised[0]

    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGALRM) == signal.SIG_DFL:  # else the host program has an alarm of its own
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, look_again)
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # else it is ignored, or the host program's
        before[signal.SIGINT] = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception as error:
        stop_behind = _stop_behind(error)
        if stop_behind is None or isinstance(error, HsrTrainError):
            raise
        raise stop_behind from None
    finally:
        if signal.SIGALRM in before:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
        _raised.clear()


def require_unstopped() -> None:
    """Raise a wish to stop again that a library has swallowed: ultralytics does so around plots, Python in finalizers.

    Called where the work goes on, such as before each batch, and never while something is tidied up.

    Raises:
        KeyboardInterrupt: The command was to stop; a Terminated after SIGTERM.
    """
    if _raised:
        raise _raised[0]


def _stop_behind(error: BaseException) -> BaseException | None:
    """Return the wish to stop that was being heeded when an error came, if there was one."""
    before: BaseException | None = error
    while before is not None and not isinstance(before, (Terminated, KeyboardInterrupt)):
        before = before.__context__
    return before


def _is_importing(frame: FrameType | None, outermost: FrameType) -> bool:
    """Tell whether a module is being imported in a frame, or in one that called it, up to the outermost."""
    while frame is not None and frame is not outermost:
        if frame.f_code.co_filename == _IMPORTING:
            return True
        frame = frame.f_back
    return False


def leave(status: int) -> NoReturn:
    """End the process as Python does, but for the search through all that torch brought along: seconds, of a budget."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # its reader has gone
            stream.flush()
    os._exit(status)
