"""A study in a process of its own: optuna, its threads and its connections stay out of the process that forks runs.

`RemoteStudy` has the methods of `study.Study`; each call is a letter to the child and one back. The child ends when
its standard input does, so that a killed worker leaves none behind; signals are the worker's business.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

from hsr_train.errors import RunError

if TYPE_CHECKING:
    from hsr_train.sweep.study import Study
    from hsr_train.sweep.study_types import Claim, Ended, Spec, Standing
    from hsr_train.sweep.watch import Door, Report

log = logging.getLogger(__name__)


class StudyDoor(Protocol):
    """What a worker needs of a study; see `study.Study`."""

    def open(self, spec: Spec, worker: dict[str, Any]) -> Standing:
        """Find the study or make it."""
        ...

    def check(self, spec: Spec, home: Path) -> str | None:
        """Refuse what `open` would, without a server; return what was left unasked."""
        ...

    def claim(self) -> Claim | None:
        """Take the next trial."""
        ...

    def note(self, number: int, notes: Mapping[str, Any]) -> None:
        """Set attributes of a trial."""
        ...

    def tell(self, number: int, state: str, values: list[float] | None, notes: Mapping[str, Any]) -> bool:
        """Record a trial's end."""
        ...

    def release(self, number: int) -> None:
        """Give a trial back."""
        ...

    def reporter(self) -> Report:
        """Return the way by which a training reports its epochs, from a process that is forked for it, too."""
        ...

    def standing(self) -> Standing:
        """Return how the study stands."""
        ...

    def ended(self, home: Path) -> Ended:
        """Return which trials are over."""
        ...

    def show(self, home: Path, *, final: bool = False) -> None:
        """Write what shows how the study stands."""
        ...

    def closing(self, home: Path) -> list[str]:
        """Return what is to be said at the end."""
        ...

    def close(self) -> None:
        """Leave it."""
        ...


class RemoteStudy:
    """A study behind a pipe."""

    def __init__(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
        # One thread: numpy would start one for each core, and there is nothing to compute.
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self._child = subprocess.Popen(
            [sys.executable, "-m", "hsr_train.sweep.agent"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        self._owner = os.getpid()

    def open(self, spec: Spec, worker: dict[str, Any]) -> Standing:
        """See `study.Study.open`."""
        return cast("Standing", self._call("open", spec, worker))

    def check(self, spec: Spec, home: Path) -> str | None:
        """See `study.Study.check`."""
        return cast("str | None", self._call("check", spec, home))

    def claim(self) -> Claim | None:
        """See `study.Study.claim`."""
        return cast("Claim | None", self._call("claim"))

    def note(self, number: int, notes: Mapping[str, Any]) -> None:
        """See `study.Study.note`."""
        self._call("note", number, notes)

    def tell(self, number: int, state: str, values: list[float] | None, notes: Mapping[str, Any]) -> bool:
        """See `study.Study.tell`."""
        return bool(self._call("tell", number, state, values, notes))

    def release(self, number: int) -> None:
        """See `study.Study.release`."""
        self._call("release", number)

    def reporter(self) -> Report:
        """See `study.Study.reporter`."""
        return cast("Door", self._call("listen"))

    def standing(self) -> Standing:
        """See `study.Study.standing`."""
        return cast("Standing", self._call("standing"))

    def ended(self, home: Path) -> Ended:
        """See `study.Study.ended`."""
        return cast("Ended", self._call("ended", home))

    def show(self, home: Path, *, final: bool = False) -> None:
        """See `study.Study.show`."""
        self._call("show", home, final=final)

    def closing(self, home: Path) -> list[str]:
        """See `study.Study.closing`."""
        return cast("list[str]", self._call("closing", home))

    def close(self) -> None:
        """End the child; in a process that was forked since, only forget it."""
        pipes = cast("tuple[IO[bytes], IO[bytes]]", (self._child.stdin, self._child.stdout))
        for pipe in pipes:
            try:
                pipe.close()
            except OSError as error:  # it is gone, and with it what was still in the pipe
                log.debug("The study's process: %s", error)
        if os.getpid() == self._owner:
            self._child.wait()

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method in the child, to the end even if Ctrl-C arrives: half an answer would spoil the next."""
        assert self._child.stdin is not None and self._child.stdout is not None
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            pickle.dump((method, arguments, options), self._child.stdin)
            self._child.stdin.flush()
            is_sound, answer = pickle.load(self._child.stdout)
        except (OSError, EOFError) as error:
            raise RunError(f"The study's process died. To go on: the same command again ({error})") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if not is_sound:
            raise answer
        return answer


def serve(letters: IO[bytes], answers: IO[bytes]) -> None:
    """Answer calls until there are no more."""
    from hsr_train.sweep.study import Study

    study = Study()
    try:
        _answer(study, letters, answers)
    finally:
        study.close()


def _answer(study: Study, letters: IO[bytes], answers: IO[bytes]) -> None:
    from hsr_train.sweep.watch import listen

    door: Door | None = None
    while True:
        try:
            method, arguments, options = pickle.load(letters)
        except EOFError:
            return
        try:
            if method == "listen":
                door = door or listen(study.report)
                answer: tuple[bool, Any] = True, door
            else:
                answer = True, getattr(study, method)(*arguments, **options)
        except Exception as error:
            answer = False, error
        pickle.dump(answer, answers)
        answers.flush()


def main() -> None:
    """Serve on standard input and output; what a library prints goes to standard error."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    from hsr_train.run.log import configure_console

    configure_console(logging.INFO)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with answers, os.fdopen(os.dup(0), "rb") as letters:
        try:
            serve(letters, answers)
        except BrokenPipeError:  # the worker was killed while it waited for the answer
            os.dup2(os.open(os.devnull, os.O_WRONLY), answers.fileno())


if __name__ == "__main__":
    main()
