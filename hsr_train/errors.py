"""What can be wrong, said so that the reader knows what to type next.

A few classes, caught at one boundary (`cli.main`), which turns them into an exit status. Everything else that is
raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hsr_train.passwords import without_passwords


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input: four facts.

    Attributes:
        key: What is at fault: a configuration key (`train.epochs`) or a file with its line (`labels/a.txt:3`).
        value: The offending value, as the user would recognise it.
        allowed: What would have been accepted.
        remedy: What to type or do next.
    """

    key: str
    value: str
    allowed: str
    remedy: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {self.value}: {self.allowed}" if self.value else f"{self.key}: {self.allowed}"
        return without_passwords(f"{text}\n    -> {self.remedy}" if self.remedy else text)


class HsrTrainError(Exception):
    """An error whose message is meant for the user; no traceback is shown. Exit status 1."""

    exit_status = 1


class InputError(HsrTrainError):
    """What the user gave is at fault (configuration, data, weights). Exit status 2.

    Attributes:
        problems: Every problem found, not only the first.
    """

    exit_status = 2

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = [problems] if isinstance(problems, Problem) else list(problems)
        super().__init__("\n".join(str(p) for p in self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[Problem]]]:
        """Pickle the problems, which the message alone does not hold; errors travel between processes."""
        return type(self), (self.problems,)


class RunError(HsrTrainError):
    """The input was right and the run still could not go on (disk full, numbers gone wrong). Exit status 1."""


class NotReproducedError(RunError):
    """A reproduction is complete, and differs from its original."""


class PrunedError(RunError):
    """A search gave up a trial after one of its epochs; its record is complete up to there."""


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived. Handled like Ctrl-C, but the exit status is 143 instead of 130."""
