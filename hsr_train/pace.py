"""Being finished on time: how many epochs fit before a deadline, by measured times. A clock and arithmetic, no torch.

`train.time_budget` and `train.finish_by` set the deadline of a command. An engine's loop says what an epoch took;
`Pace` answers with the number of epochs that fit, validation, final evaluation and exports included. The engine bends
its schedule to that number, and `recovery` records it as a change of `train.epochs`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

from hsr_train.errors import InputError, Problem

_UNITS_S = {"s": 1, "min": 60, "h": 3600}
_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)min)?(?:(\d+(?:\.\d+)?)s)?")
_TIME_OF_DAY = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)")
DURATION_FORMS = "a time with its unit: 90s, 45min, 2h, 1h30min"
CALM = 0.1
"""A plan is lengthened only if that share more epochs fit, so that the rate does not waver with every measurement."""
LAST_PART = 0.3
"""Where no whole epoch fits any more, that much of one is still worth ending the schedule with."""
END_S = 1.0
"""What the last records and the end of the process take on an idle machine."""
MARGIN_S = 2.0
Load = Callable[[int, int], float]
"""Images of an epoch (from 0), relative to those of the first one, in a run of so many epochs."""
MARGIN_SHARE = 0.02
SCHEDULED = Path("/proc/self/schedstat")


def parse_duration(text: str) -> float | None:
    """Return the seconds that a text such as 90s, 45min, 2h or 1h30min means; None if it is malformed."""
    found = _DURATION.fullmatch(text.replace(" ", ""))
    if found is None or not any(found.groups()):
        return None
    return sum(float(number or 0) * unit for number, unit in zip(found.groups(), (3600, 60, 1), strict=True))


def next_time(text: str, now: datetime) -> datetime | None:
    """Return when a time of day such as 14:30 comes next; None if the text is malformed."""
    found = _TIME_OF_DAY.fullmatch(text.strip())
    if found is None:
        return None
    then = now.replace(hour=int(found[1]), minute=int(found[2]), second=0, microsecond=0)
    return then if then > now else then + timedelta(days=1)


def time_problems(train: Any, typed: set[str]) -> list[Problem]:
    """Return what is wrong with `train.time_budget` and `train.finish_by`."""
    problems = []
    budget, finish_by = train.time_budget, train.finish_by
    if budget is not None and not parse_duration(budget):
        remedy = f"train.time_budget={budget if budget.isdigit() and int(budget) else 45}min"
        problems.append(Problem("train.time_budget", budget, f"must be {DURATION_FORMS}", remedy))
    if finish_by is not None and next_time(finish_by, datetime.now()) is None:
        allowed, form = "must be a time of day", "14:30"
        if finish_by.isdigit() and int(finish_by) < 24 * 60:  # YAML 1.1 takes 14:30 for 870, to the base of 60
            form = f"{int(finish_by) // 60}:{int(finish_by) % 60:02}"
            allowed += ", in quotes in a YAML file"
        problems.append(Problem("train.finish_by", finish_by, allowed, f'train.finish_by={form}  (YAML: "{form}")'))
    if budget is not None and finish_by is not None:
        problems.append(Problem("train.finish_by", finish_by, "does not go with train.time_budget", "type one of them"))
    chosen = "train.time_budget" if budget is not None else "train.finish_by" if finish_by is not None else None
    if chosen and "train.epochs" in typed:
        allowed = f"has no effect with {chosen}, which decides how many there are"
        problems.append(Problem("train.epochs", str(train.epochs), allowed, "leave one of them out"))
    return problems


def deadline_of(train: Any, started: float, used_s: float = 0.0) -> float | None:
    """Return the Unix time at which a command must be done, or None.

    Args:
        train: `time_budget` and `finish_by`, both checked.
        started: Unix time of the command's start.
        used_s: Seconds of a budget that earlier commands of the same run have used.
    """
    if train.time_budget is not None:
        seconds = parse_duration(train.time_budget)
        assert seconds is not None
        return started + seconds - used_s
    if train.finish_by is not None:
        then = next_time(train.finish_by, datetime.fromtimestamp(started))
        assert then is not None
        return then.timestamp()
    return None


def time_on_cores() -> tuple[float, float]:
    """Return for how many seconds the main thread has run, and has waited for a core while it could have run.

    Linux counts them. Elsewhere the second is 0: then only epochs that became slower tell that the machine is busy.
    """
    try:
        ran_ns, waited_ns, _ = SCHEDULED.read_text().split()
    except OSError:
        return time.process_time(), 0.0
    return int(ran_ns) / 1e9, int(waited_ns) / 1e9


def _always_runs() -> tuple[float, float]:
    return 1.0, 0.0


@dataclass
class Ending:
    """What comes after the last epoch.

    Attributes:
        evaluated: Images that are evaluated, relative to those of a validation.
        fixed_s: Seconds that do not depend on images, on a machine that does nothing else: pictures and reports.
        rest_s: A guess of the seconds of the rest (exports), until it was rehearsed.
        rehearse: Does the rest once, as it will be done; None if there is nothing else.
    """

    evaluated: float = 1.0
    fixed_s: float = 0.0
    rest_s: float = 0.0
    rehearse: Callable[[], None] | None = None


@dataclass
class Pace:
    """The times of one command; without a deadline it asks for nothing.

    Attributes:
        deadline: Unix time, or None.
        started: Unix time of the command's start.
        clock: Returns the Unix time.
        cores: Returns what `time_on_cores` does.
    """

    deadline: float | None = None
    started: float = 0.0
    clock: Callable[[], float] = time.time
    cores: Callable[[], tuple[float, float]] = _always_runs
    ending: Ending = field(default_factory=Ending)
    _epochs_s: list[float] = field(default_factory=list)
    _vals_s: list[float] = field(default_factory=list)
    _rehearsed_s: float | None = None
    _first_step: tuple[float, float] | None = None
    _begun: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])

    @property
    def is_limited(self) -> bool:
        """Whether there is a deadline."""
        return self.deadline is not None

    @property
    def left_s(self) -> float:
        """Seconds until the deadline."""
        return math.inf if self.deadline is None else self.deadline - self.clock()

    def recall(self, epochs_s: list[float], vals_s: list[float], images: list[int] | None = None) -> None:
        """Take over what earlier epochs of a run took, their validations, and their images where they differ."""
        most = max([*(images or []), 1])
        loads = [count / most or 1.0 for count in images] if images else [1.0] * len(epochs_s)
        self._epochs_s = list(map(_whole_s, epochs_s, vals_s, loads))
        self._vals_s = list(vals_s)

    def expect(self, ending: Ending) -> None:
        """Say what comes after the last epoch.

        Raises:
            InputError: There is no time left to train.
        """
        self.ending = ending
        self.require(self._ending_s(self._val_s, 1.0) if self.is_limited else 0.0)

    def require(self, seconds: float) -> None:
        """Refuse to begin with less time than this.

        Raises:
            InputError: There is less.
        """
        if self.left_s <= seconds:
            allowed = (
                f"leaves no time to train: starting took {self.clock() - self.started:.0f} s, and what comes after "
                f"training takes about {max(seconds, MARGIN_S + END_S):.0f} s"
            )
            told = self.deadline - self.started if self.deadline is not None else 0.0
            raise InputError(Problem("train.time_budget", f"{told:.0f}s", allowed, "train.time_budget=10min"))

    def late_s(self) -> float:
        """Return by how many seconds the deadline has been missed so far; 0 if it has not."""
        return max(-self.left_s, 0.0) if self.is_limited else 0.0

    def begin(self) -> None:
        """Note that an epoch begins."""
        self._first_step = None
        self._begun = [self._begun[-1], self.cores()]

    def must_end(self, share_done: float, val_share: float) -> bool:
        """Whether training must stop in mid-epoch for the rest to be done in time.

        Args:
            share_done: Of the epoch's images, above 0.
            val_share: Images of a validation relative to those of an epoch; used until one was measured.
        """
        if self.deadline is None:
            return False
        val_s, now = self._val_s, self.clock()
        if not val_s and self._first_step is None:
            self._first_step = now, share_done  # what is only done once, it did
        elif not val_s and self._first_step is not None:
            began, share = self._first_step
            val_s = (now - began) / (share_done - share) * val_share
        return self.left_s <= 1.2 * val_s + self._ending_s(val_s, self._slowness)

    def plan(self, done: int, epochs: int, epoch_s: float, val_s: float, load: Load | None = None) -> int:
        """Return how many epochs there shall be.

        Args:
            done: Completed epochs, the one just measured included.
            epochs: Planned so far.
            epoch_s: Seconds of the last epoch with its validation.
            val_s: Seconds of its validation.
            load: Where epochs have different numbers of images.
        """
        if self.deadline is None:
            return epochs
        self._epochs_s.append(_whole_s(epoch_s, val_s, load(done - 1, epochs) if load else 1.0))
        self._vals_s.append(val_s)
        recent = self._epochs_s[-5:]
        expected_s = max(median(recent), recent[-1] if len(recent) < 3 else 0.0) * 1.03
        free_s = self.left_s - self._ending_s(self._val_s, self._slowness)
        next_s = expected_s
        if load is None:
            fitting = max(int(free_s / expected_s), 0)
        else:
            fitting = self._fitting(done, free_s, expected_s, load)
            next_s = self._together_s(done, done + 1, expected_s, load)
        remaining = epochs - done
        if fitting == 0 and remaining > 0 and free_s > LAST_PART * next_s:
            return done + 1
        if fitting < remaining:
            return done + fitting
        if fitting >= remaining + max(1, math.ceil(CALM * remaining)):
            return done + fitting
        return epochs

    def _fitting(self, done: int, free_s: float, expected_s: float, load: Load) -> int:
        """Return how many further epochs fit; each one more moves the images of all."""
        least, most = 0, 1
        while self._together_s(done, done + most, expected_s, load) <= free_s:
            least, most = most, 2 * most
        while most - least > 1:
            middle = (least + most) // 2
            fits = self._together_s(done, done + middle, expected_s, load) <= free_s
            least, most = (middle, most) if fits else (least, middle)
        return least

    def _together_s(self, done: int, epochs: int, expected_s: float, load: Load) -> float:
        """Return the seconds of the epochs from `done` on; validation takes the same in each."""
        val_s = min(self._val_s, expected_s)
        loads = math.fsum(load(epoch, epochs) for epoch in range(done, epochs))
        return (expected_s - val_s) * loads + val_s * (epochs - done)

    @property
    def _val_s(self) -> float:
        return max(self._vals_s[-3:], default=0.0)

    def rehearse(self) -> None:
        """Do the rest of the ending once, to know how long it takes; meant for when an epoch's weights are written."""
        if self.deadline is None or self.ending.rehearse is None or self._rehearsed_s is not None:
            return
        began = self.clock()
        self.ending.rehearse()
        self._rehearsed_s = self.clock() - began

    def _ending_s(self, val_s: float, slowness: float) -> float:
        """Return the seconds to keep for what comes after the last epoch, by a validation's and by the slowness."""
        assert self.deadline is not None
        margin_s = MARGIN_S + MARGIN_SHARE * (self.deadline - self.started)
        rest_s = self.ending.rest_s * slowness if self._rehearsed_s is None else 1.2 * self._rehearsed_s
        return 1.2 * val_s * self.ending.evaluated + (self.ending.fixed_s + END_S) * slowness + rest_s + margin_s

    @property
    def _slowness(self) -> float:
        """How much longer what is still to come may take than on an idle machine: other programs delay it, too.

        By how much the last epochs took longer than the shortest, or by how long this process waited for a core of
        late: where the machine was busy all the time, no epoch was short.
        """
        by_epochs = max(self._epochs_s[-3:], default=1.0) / min(self._epochs_s, default=1.0)
        ran_s, waited_s = (now - then for now, then in zip(self.cores(), self._begun[0], strict=True))
        return max(by_epochs, 1.0 + waited_s / ran_s if ran_s > 0 else 1.0)


def _whole_s(epoch_s: float, val_s: float, load: float) -> float:
    """Return what an epoch and its validation would have taken with as many images as the first one."""
    return epoch_s if load == 1 else val_s + (epoch_s - val_s) / load
