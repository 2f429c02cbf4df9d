"""Starting loader workers: no signal finds one unprepared. Shared by the engines that use torch.

Ctrl-C in a terminal reaches every process. A worker that met it in the moment between its fork and its first line would
end with an error, which torch reports in the main process instead of the Ctrl-C.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stops_held() -> Iterator[None]:
    """Hold stop signals back while workers are forked; they arrive afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def heed_stops() -> None:
    """Let stop signals through again; for a worker that has its handlers."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
