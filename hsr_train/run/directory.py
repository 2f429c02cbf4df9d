"""A run's directory: its name, its files, its lock, and how to find it again for `resume=` and others.

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
from typing import Any

from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import free_space, remove_leftovers
from hsr_train.run.status import is_alive, read_status

log = logging.getLogger(__name__)

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
    def create(cls, output_dir: Path, task: str, label: str, *, now: datetime | None = None) -> RunDirectory:
        """Make `<output_dir>/<task>/<label>_<start>`, with `_2`, `_3` and so on where that name is taken.

        Args:
            output_dir: Folder of all runs; created if missing.
            task: Folder of this kind of run.
            label: First part of the name, usually the preset; separators become underscores.
            now: The start; default: the local time.

        Raises:
            InputError: `output_dir` cannot be written.
        """
        name = re.sub(r"[/\\]", "_", label) + f"_{now or datetime.now():%Y%m%d_%H%M%S}"
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
            raise InputError(_not_a_run(str(path), path, path.parent))
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


def find_run(reference: str, output_dir: Path, *, extended: bool = False) -> Path:
    """Find the run that `resume=` means.

    Args:
        reference: A run's directory, anything inside one (`weights/last.pt`, also `last.pt` alone without
            `weights/`), or `last`: the unfinished training run under `output_dir` that started last.
        output_dir: Where `last` looks.
        extended: The run gets more epochs, so that it may be finished; `last` is then the newest of all.

    Returns:
        The run's directory, absolute.

    Raises:
        InputError: There is none, it is no run, it is finished, or it is still running.
    """
    output_dir = Path(output_dir).expanduser().absolute()
    if reference == "last":
        return _newest(output_dir, extended)
    run = locate_run(reference, output_dir, "resume")
    obstacle = _obstacle(run, extended)
    if obstacle is not None:
        allowed, remedy = obstacle
        raise InputError(Problem("resume", reference, allowed, remedy))
    return run


def find_original(reference: str, output_dir: Path) -> Path:
    """Find the run that `reproduce=` means, finished or not.

    Args:
        reference: As for `find_run`, without `last`.
        output_dir: Whose runs a message lists.

    Raises:
        InputError: There is none, it is no run, or it is still running and its record still grows.
    """
    run = locate_run(reference, output_dir, "reproduce")
    status = read_status(run / "status.json")
    if status is not None and is_alive(status):
        raise InputError(Problem("reproduce", reference, *_still_running(status)))
    return run


def locate_run(reference: str, output_dir: Path, key: str) -> Path:
    """Return the directory of the run that a path names: the directory, or anything in it.

    Args:
        reference: What was typed.
        output_dir: Whose runs a message lists.
        key: The key that it was typed for.

    Raises:
        InputError: There is none, or it is no run.
    """
    path = Path(reference).expanduser().resolve()
    run = next((folder for folder in (path, *path.parents) if is_run(folder)), None)
    if run is None:
        raise InputError(_not_a_run(reference, path, Path(output_dir).expanduser().absolute(), key))
    if not path.exists() and not (path.parent == run and (run / "weights" / path.name).is_file()):
        there = ", ".join(sorted(f"weights/{file.name}" for file in (run / "weights").glob("*.pt"))) or "no weights yet"
        raise InputError(Problem(key, reference, f"no such file; this run has {there}", f"{key}={run}"))
    return run


def _obstacle(run: Path, extended: bool = False) -> tuple[str, str] | None:
    """Return why `run` cannot be continued and what to type instead, or None if it can."""
    status = read_status(run / "status.json")
    if status is None:
        return None  # the record was lost, the state may still be there
    if status.get("mode", "train") != "train":
        return f"that was mode={status['mode']}, which has nothing to continue", "name a training run"
    if status.get("state") == "completed" and not extended:
        remedy = (
            f"more epochs: train.epochs=N; or a new run from its weights: model.weights={run / 'weights' / 'last.pt'}"
        )
        return "that run is finished", remedy
    return _still_running(status) if is_alive(status) else None


def _still_running(status: dict[str, Any]) -> tuple[str, str]:
    who = f"process {status.get('pid')} on {status.get('host')}"
    return f"that run is still running as {who}", "wait for it, or stop it first"


def _newest(output_dir: Path, extended: bool) -> Path:
    fitting = [path for path in _runs_under(output_dir) if _obstacle(path, extended) is None]
    if not fitting:
        raise InputError(
            Problem("resume", "last", f"no unfinished run: {_listing(output_dir)}", "start a new run, or resume=DIR")
        )
    return fitting[-1]


def _runs_under(output_dir: Path) -> list[Path]:
    """Return every run below `output_dir` in the order of their starts, without looking inside runs."""
    found = []
    for root, folders, files in os.walk(output_dir):
        if "config.yaml" in files and is_run(Path(root)):
            folders.clear()
            found.append(Path(root))
    return sorted(found, key=lambda run: (_started(run), run.name))


def _started(run: Path) -> float:
    """Return the run's start in seconds since the epoch; 0 if its status is lost."""
    try:
        return datetime.fromisoformat(str((read_status(run / "status.json") or {}).get("started"))).timestamp()
    except ValueError:
        return 0.0


def _listing(output_dir: Path) -> str:
    """Return the newest runs under `output_dir` with their states, for messages."""
    runs = _runs_under(output_dir)
    if not runs:
        return f"{output_dir} holds no run"
    states = [f"{run} ({(read_status(run / 'status.json') or {}).get('state', 'no status')})" for run in runs[-5:]]
    more = f" and {len(runs) - 5} older" if len(runs) > 5 else ""
    return f"{output_dir} holds " + ", ".join(reversed(states)) + more


def _not_a_run(reference: str, path: Path, output_dir: Path, key: str = "resume") -> Problem:
    what = "not a run's directory (no config.yaml with a status.json)" if path.exists() else "no such file or directory"
    remedy = {"resume": "resume=DIR, or resume=last", "runs": "mode=compare 'runs=[DIR,DIR]'"}.get(key, f"{key}=DIR")
    return Problem(key, reference, f"{what}; {_listing(output_dir)}", remedy)
