"""A run's directory: its name, its files and its lock; `find` looks for runs.

`RunDirectory` only knows where things lie; `status`, `results`, `manifest`, `record` and `tensorboard` write them,
all through `atomic`. A directory counts as a run once it holds config.yaml and a status.json or manifest.json.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import free_space, remove_leftovers

log = logging.getLogger(__name__)

NOT_A_RUN = "not a run's directory (no config.yaml with a status.json)"
_locks: set[int] = set()


@dataclass(frozen=True)
class RunDirectory:
    """One run's directory and the places of its files, by the names that users rely on.

    Attributes:
        path: The directory, absolute.
    """

    path: Path

    @property
    def config_yaml(self) -> Path:
        """The configuration as run, with every automatic decision."""
        return self.path / "config.yaml"

    @property
    def hydra_dir(self) -> Path:
        """Folder of config.yaml, overrides.yaml and hydra.yaml as composed."""
        return self.path / ".hydra"

    @property
    def manifest(self) -> Path:
        """Versions, git state, machine, fingerprints, seeds, decisions."""
        return self.path / "manifest.json"

    @property
    def data_files(self) -> Path:
        """The hashes of every image and label that the run was trained with."""
        return self.path / "data_files.csv"

    @property
    def reproduction(self) -> Path:
        """Of a reproduction: which run it repeats, and whether it came out the same."""
        return self.path / "reproduction.json"

    @property
    def results_csv(self) -> Path:
        """One row per epoch, deterministic columns only."""
        return self.path / "results.csv"

    @property
    def timings_csv(self) -> Path:
        """One row per epoch of what differs from run to run."""
        return self.path / "timings.csv"

    @property
    def training_result(self) -> Path:
        """The result for programs."""
        return self.path / "training_result.json"

    @property
    def summary(self) -> Path:
        """The result for people."""
        return self.path / "summary.txt"

    @property
    def status(self) -> Path:
        """What the run is doing, with a heartbeat."""
        return self.path / "status.json"

    @property
    def weights(self) -> Path:
        """Folder of best.pt, last.pt and epoch*.pt."""
        return self.path / "weights"

    @property
    def state(self) -> Path:
        """Folder of what an exact resume needs."""
        return self.path / "state"

    @property
    def changes(self) -> Path:
        """What was changed in the middle of the run."""
        return self.state / "changes.json"

    @property
    def removed_states(self) -> Path:
        """Why there are no states any more."""
        return self.state / "removed.json"

    @property
    def logs(self) -> Path:
        """Folder of train.log."""
        return self.path / "logs"

    @property
    def train_log(self) -> Path:
        """The log without colour, appended to on resume."""
        return self.logs / "train.log"

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files."""
        return self.path / "tensorboard"

    @property
    def plots(self) -> Path:
        """Folder of the plots."""
        return self.path / "plots"

    @property
    def lock_file(self) -> Path:
        """Held by the writer; its presence alone means nothing."""
        return self.path / ".lock"

    @classmethod
    def make(cls, path: Path) -> RunDirectory:
        """Make a run's directory at a place that nobody has taken.

        Raises:
            InputError: It exists, or cannot be made.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
        except OSError as error:
            reason = f"cannot create {path}: {error.strerror or error} ({free_space(path.parent)})"
            raise InputError(
                Problem("output_dir", str(path.parent), reason, "output_dir=FOLDER that can be written")
            ) from error
        return cls(path)

    @staticmethod
    def dated(label: str, now: datetime | None = None) -> str:
        """Return the usual name of a run: a label, such as its preset, and the local time of its start."""
        return f"{label}_{now or datetime.now():%Y%m%d_%H%M%S}"

    @classmethod
    def create(cls, output_dir: Path, task: str, name: str) -> RunDirectory:
        """Make `<output_dir>/<task>/<name>`, with `_2`, `_3` and so on where that name is taken.

        Args:
            output_dir: Folder of all runs; created if missing.
            task: Folder of this kind of run.
            name: Separators become underscores; see `dated`.

        Raises:
            InputError: `output_dir` cannot be written.
        """
        name = re.sub(r"[/\\]", "_", name)
        parent = Path(output_dir).expanduser().absolute() / task
        try:
            parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                path = parent / (name if number == 1 else f"{name}_{number}")
                try:
                    path.mkdir()  # fails if it exists, so that of two processes only one gets it
                    return cls(path)
                except FileExistsError:
                    number += 1
        except OSError as error:
            reason = f"cannot create {parent / name}: {error.strerror or error} ({free_space(parent)})"
            remedy = "output_dir=FOLDER that you can write to"
            raise InputError(Problem("output_dir", str(output_dir), reason, remedy)) from error

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Return the existing run at `path`.

        Raises:
            InputError: There is no run.
        """
        path = Path(path).expanduser().absolute()
        if not is_run(path):
            what = NOT_A_RUN if path.exists() else "no such directory"
            raise InputError(Problem("run directory", str(path), what, "name a run's directory"))
        return cls(path)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory against a second writer until the block ends or the process dies.

        Temporary files that a killed writer left are removed first.

        Raises:
            InputError: Another process holds it, or the directory cannot be written.
        """
        try:
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            reason = f"cannot be written: {error.strerror or error}"
            raise InputError(Problem("run directory", str(self.path), reason, "make it writable")) from error
        _locks.add(descriptor)
        try:
            self._flock(descriptor)
            with suppress(OSError):  # who holds the lock is for messages only; a full disk does not weaken it
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
            remove_leftovers(self.path)
            yield
        finally:
            _locks.discard(descriptor)
            os.close(descriptor)  # frees the lock; the file stays, since deleting it would let two writers in

    def _flock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                log.warning("The file system of %s has no locks: nothing keeps a second writer out", self.path)
                return
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").split()
            who = f"process {holder[0]} on {holder[1]}" if len(holder) == 2 else "another process"
            remedy = "wait for it, or stop it" + (f": kill {holder[0]}" if len(holder) == 2 else "")
            raise InputError(Problem("run directory", str(self.path), f"in use by {who}", remedy)) from None


def _close_locks_in_child() -> None:
    """A forked loader worker must not keep the lock of a parent that was killed."""
    for descriptor in _locks:
        os.close(descriptor)
    _locks.clear()


os.register_at_fork(after_in_child=_close_locks_in_child)


def is_run(path: Path) -> bool:
    """Whether `path` is a run's directory."""
    return (path / "config.yaml").is_file() and any(
        (path / name).is_file() for name in ("status.json", "manifest.json")
    )
