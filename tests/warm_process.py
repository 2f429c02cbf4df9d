"""Commands in processes of their own that begin with what is heavy already imported: that takes longer than a run.

`start` asks one server process, which is started when it is first needed and ends with the tests. It imports, trains
nothing and has no threads; for each command it forks a process, which leads a process group of its own and then does
what a fresh one does. Not for tests of what a command imports, or of what importing leaves behind.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

HEAVY = (
    "torch", "torch._dynamo", "torch._inductor", "torchvision", "polars", "matplotlib.pyplot", "cv2", "omegaconf",
    "hydra.compose", "tensorboard.summary.writer.event_file_writer", "detection_runs", "hsr_train.config.compose",
    "hsr_train.execution",
)  # fmt: skip


class Process:
    """As much of subprocess.Popen as tests of killed commands need; both outputs are one.

    Attributes:
        pid: The number of the process and of its group.
        returncode: How it ended: an exit status, or the negative number of the signal that killed it; None before.
    """

    def __init__(self, status: int, output: int) -> None:
        self._status, self._output = status, output
        self.returncode: int | None = None
        self.pid = int(self._line(300))

    def _line(self, timeout_s: float) -> str:
        """Return the next line that the server or the process writes about it; nothing when that takes too long."""
        if not select.select([self._status], [], [], timeout_s)[0]:
            return ""
        line = b""
        while not line.endswith(b"\n"):
            line += os.read(self._status, 1) or b"\n"
        return line.decode()

    def poll(self) -> int | None:
        """Return how it ended, or None while it lives."""
        if self.returncode is None and (line := self._line(0)):
            self.returncode = int(line)
        return self.returncode

    def kill(self) -> None:
        """Kill this process alone."""
        os.kill(self.pid, signal.SIGKILL)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Return what was written, until the last process that could write there has ended; the first is empty."""
        end, text = time.monotonic() + timeout, b""
        while self._output >= 0:
            left_s = end - time.monotonic()
            if left_s <= 0 or not select.select([self._output], [], [], left_s)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout, text)
            block = os.read(self._output, 2**16)
            text += block
            if not block:
                os.close(self._output)
                self._output = -1
        if self.returncode is None:
            self.returncode = int(self._line(max(end - time.monotonic(), 0)))
            os.close(self._status)
        return "", text.decode()


def start(script: Path, words: list[str], cwd: Path, environment: dict[str, str]) -> Process:
    """Start the function `main` of a script.

    Args:
        script: A module beside this one; its `main` finds the words in sys.argv and returns the exit status.
        words: What is typed after it.
        cwd: Where.
        environment: The whole environment.
    """
    request = json.dumps([script.stem, [str(script), *words], str(cwd), environment]).encode()
    (status, its_status), (output, its_output) = os.pipe(), os.pipe()
    server = _server()
    server.sendall(len(request).to_bytes(4, "big"))
    socket.send_fds(server, [request[:1]], [its_status, its_output])
    server.sendall(request[1:])
    os.close(its_status)
    os.close(its_output)
    return Process(status, output)


@cache
def _server() -> socket.socket:
    from detection_runs import fresh_environment, short_folder

    folder = str(short_folder())
    ours, theirs = socket.socketpair()
    environment = fresh_environment(OMP_NUM_THREADS="1", MPLBACKEND="Agg", MPLCONFIGDIR=folder, TMPDIR=folder)
    process = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env=environment,
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


def _serve(requests: socket.socket) -> None:
    """Fork a process for each request, and say how it ended, until nobody can ask any more."""
    for name in HEAVY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    wake, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([requests, wake], [], [])
        if wake in ready:
            os.read(wake, 2**10)
            with suppress(ChildProcessError):
                while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                    status = statuses.pop(ended[0])
                    with suppress(BrokenPipeError):
                        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(ended[1]))
                    os.close(status)
        if requests in ready:
            size = requests.recv(4, socket.MSG_WAITALL)
            if not size:
                return
            request, (status, output), _, _ = socket.recv_fds(requests, 1, 2)
            request += requests.recv(int.from_bytes(size, "big") - 1, socket.MSG_WAITALL)
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for unneeded in (requests.detach(), wake, waker, *statuses.values()):
                    os.close(unneeded)
                _become(*json.loads(request), status, output)
            statuses[pid] = status
            os.close(output)


def _become(module: str, argv: list[str], cwd: str, environment: dict[str, str], status: int, output: int) -> NoReturn:
    """Turn a process that was just forked into the one that was asked for."""
    import tempfile

    import torch

    from hsr_train import supervisor

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number in (1, 2):
        os.dup2(output, number)
    os.close(output)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it was found out in another environment
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    supervisor._obstacle = lambda: None  # torch is loaded, but has done nothing that a fork could not take over
    sys.argv = argv
    main: Callable[[], int] = importlib.import_module(module).main
    os.write(status, b"%d\n" % os.getpid())
    os.close(status)
    sys.exit(main())


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as asked:
        _serve(asked)
