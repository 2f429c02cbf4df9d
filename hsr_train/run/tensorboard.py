"""TensorBoard for a run: the writer of its events (from `events`) and a server that ends with the run.

`TensorboardServer` starts `tensorboard_child.py` beside the run; `serve_forever` is mode=tensorboard. Nothing of
tensorboard is imported in this process until a writer is made.
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.events import EventWriter

__all__ = ["EventWriter", "TensorboardServer", "serve_forever"]

log = logging.getLogger(__name__)

PORTS_TRIED = 100


class TensorboardServer:
    """Runs TensorBoard on `logdir` in a child process while the block lasts, and never longer than this process.

    Args:
        logdir: Folder with event files at any depth.
        host: Address to listen on.
        port: First port to try; up to 100 further ones are tried.
        timeout_s: How long the server may take to answer.
    """

    def __init__(self, logdir: Path, host: str = "127.0.0.1", port: int = 6006, *, timeout_s: float = 60.0) -> None:
        self.logdir = Path(logdir).absolute()
        self.host = host
        self.port = port
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """Where to look from this machine; valid inside the block."""
        return f"http://{_bracketed(_reachable(self.host))}:{self.port}/"

    def __enter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            InputError: The address does not belong to this machine, or no port is free.
            RunError: The server ended or did not answer in time.
        """
        last = min(self.port + PORTS_TRIED, 65535)
        while True:
            self.port = _free_port(self.host, self.port, last)
            try:
                self._start()
                return self
            except RunError:
                self._stop()
                if self.port >= last or _is_free(self.host, self.port):
                    raise
                self.port += 1  # another program took the port between our look and the server's
            except BaseException:
                self._stop()
                raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def wait(self) -> None:
        """Block until the server ends by itself.

        Raises:
            RunError: It did.
        """
        if self._child is not None:
            self._child.wait()
            raise RunError(f"TensorBoard ended with status {self._child.returncode}{self._last_words()}")

    def _start(self) -> None:
        # -P keeps this folder, which holds a tensorboard.py, out of the child's search path.
        child = Path(__file__).with_name("tensorboard_child.py")
        options = [f"--logdir={self.logdir}", f"--host={self.host}", f"--port={self.port}"]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed in _stop)
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(child), str(os.getpid()), *options],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us, and we end the server and its own children as a group
        )
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if self._child.poll() is not None:
                raise RunError(f"TensorBoard did not start (status {self._child.returncode}){self._last_words()}")
            if self._answers():
                return
            time.sleep(0.1)
        raise RunError(f"TensorBoard did not answer at {self.url} within {self._timeout_s:g} s{self._last_words()}")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(_reachable(self.host), self.port, timeout=2)
        try:
            connection.request("GET", "/data/environment")
            answer = json.loads(connection.getresponse().read())
            return bool(answer.get("data_location") == str(self.logdir))
        except (OSError, http.client.HTTPException, ValueError):
            return False
        finally:
            connection.close()

    def _stop(self) -> None:
        if self._child is not None:
            for number, patience_s in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 10.0)):
                # The group outlives its leader as long as the leader's data server does.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._child.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    self._child.wait(patience_s)
            self._child = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def _last_words(self) -> str:
        if self._output is None:
            return ""
        self._output.seek(0)
        lines = [line for line in self._output.read().decode(errors="replace").splitlines() if line.strip()]
        return "".join(f"\n    {line}" for line in lines[-5:])


def serve_forever(logdir: Path, host: str = "127.0.0.1", port: int = 6006) -> None:
    """Serve every run under `logdir` until Ctrl-C, which is passed on to the caller.

    Raises:
        InputError: `logdir` is no folder, or the address or the ports cannot be had.
        RunError: The server did not start, or ended by itself.
    """
    if not Path(logdir).is_dir():
        raise InputError(Problem("output_dir", str(logdir), "no such folder", "output_dir=FOLDER that holds runs"))
    with TensorboardServer(logdir, host, port) as server:
        log.info("TensorBoard serves %s at %s until Ctrl-C", server.logdir, server.url)
        if _reachable(host) != host:
            log.info("From other machines: http://%s:%d/", socket.gethostname(), server.port)
        server.wait()


def _free_port(host: str, first: int, last: int) -> int:
    for port in range(first, last + 1):
        if _is_free(host, port):
            return port
    raise InputError(Problem("tensorboard.port", str(first), f"{first} to {last} are all in use", "tensorboard.port=N"))


def _is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except PermissionError:
                return False  # below 1024
            except OSError as error:
                if "in use" in str(error).lower():
                    return False
                raise
            return True
    except OSError as error:
        remedy = "tensorboard.host=127.0.0.1, or 0.0.0.0 for every address of this machine"
        reason = f"not an address of this machine ({error.strerror or error})"
        raise InputError(Problem("tensorboard.host", host, reason, remedy)) from error


def _reachable(host: str) -> str:
    """Return an address to connect to: the wildcards only listen."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
