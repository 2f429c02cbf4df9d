"""What a sweep leaves for people while it runs: the leaderboard, best.yaml, TensorBoard's hparams and report.html.

Written in the study's process. Nothing here ends a sweep: what cannot be written is one warning, and what was there
before stays.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import optuna

from hsr_train.errors import HsrTrainError
from hsr_train.run.hparams import Session, write_sessions
from hsr_train.sweep.progress import ENDED, line, table
from hsr_train.sweep.repeated import SEED
from hsr_train.sweep.report import write_report
from hsr_train.sweep.results import BEST, best_comments, write_best, write_leaderboard
from hsr_train.sweep.study_types import WORKER
from hsr_train.sweep.summary import Summary, importances

log = logging.getLogger(__name__)

SHARE = 0.05
"""Of a sweep's time that goes into its page, which is drawn anew each time."""
STUDY = "view of the study"
FIRST_S = 2.0
"""What the page may cost before one has been drawn."""
KIND, KINDS = "run", ("search", "repeat", "full length")
"""Column of TensorBoard's hparams that tells what came after a search from its trials."""
T = TypeVar("T")
Snapshot = Callable[[], tuple[optuna.Study, Summary]]


class Reporter:
    """Writes a sweep's reports.

    Args:
        home: The sweep's folder.
        snapshot: Returns the study as it stands.
    """

    def __init__(self, home: Path, snapshot: Snapshot) -> None:
        self._home = home
        self._snapshot = snapshot
        self._cost_s = FIRST_S
        self._drawn = time.monotonic()
        self._said: set[str] = set()
        self._shown: str | None = None
        self._best: list[str] | None = None

    def write(self, *, final: bool = False) -> None:
        """Write everything that shows how the study stands.

        Another worker may have read the study earlier and write later: each looks again when it has written, so that
        the last one to write has seen all.

        Args:
            final: Whether to draw the page in any case.
        """
        found, ended = self._tried(STUDY, self._snapshot), -1
        while found is not None and _num_ended(found[1]) != ended:
            study, summary = found
            ended = _num_ended(summary)
            self._tried("an up-to-date leaderboard.csv", partial(write_leaderboard, summary, self._home))
            self._tried("an up-to-date best.yaml", partial(self._write_best, summary))
            self._tried("TensorBoard's hparams", partial(_write_hparams, summary, self._home))
            if final or time.monotonic() - self._drawn > self._cost_s / SHARE:
                self._tried("an up-to-date report.html", partial(self._draw, study, summary))
            found = self._tried(STUDY, self._snapshot)
        if found is not None:
            self._show(found[1])

    def show(self) -> None:
        """Say how the sweep stands while trials run; only a terminal is told so often."""
        if _is_terminal() and (found := self._tried(STUDY, self._snapshot)) is not None:
            self._show(found[1])

    def _show(self, summary: Summary) -> None:
        """Show a table on a terminal, elsewhere a line for each trial that is over."""
        if os.environ.get(WORKER, "0") != "0":  # of several in one terminal, the first speaks
            return
        text = self._tried("its table", partial(table if _is_terminal() else line, summary))
        rows = (text or "").partition("\n")[2] or text  # the time that is left is no news by itself
        if text is not None and rows != self._shown and (_is_terminal() or _num_ended(summary) > 0):
            log.info("%s", text)
        self._shown = rows

    def _write_best(self, summary: Summary) -> None:
        now = best_comments(summary, self._home) if summary.front else None
        if now != self._best or not (self._home / BEST).is_file():
            write_best(summary, self._home)
            self._best = now

    def _draw(self, study: optuna.Study, summary: Summary) -> None:
        began = time.monotonic()
        write_report(summary, importances(study, summary), self._home)
        self._drawn = time.monotonic()
        self._cost_s = self._drawn - began

    def _tried(self, what: str, write: Callable[[], T]) -> T | None:
        """Call a function; say in one line that it failed, once until it does not."""
        try:
            made = write()
            self._said.discard(what)
            return made
        except Exception as error:  # whatever it is, a night's training is worth more than its table
            text = str(error) if isinstance(error, HsrTrainError) else f"{type(error).__name__}: {error}"
            # A storage that fails is the worker's own business, which asks it next.
            level = logging.DEBUG if what in self._said or what == STUDY else logging.WARNING
            self._said.add(what)
            log.log(level, "The sweep goes on without %s: %s", what, text, exc_info=level == logging.DEBUG)
            return None


def _is_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _num_ended(summary: Summary) -> int:
    return sum(t.state in ENDED for t in (*summary.trials, *summary.repeats, *summary.retrained))


def _write_hparams(summary: Summary, home: Path) -> None:
    texts = {p.name: p.choices if any(not _is_number(c) for c in p.choices) else () for p in summary.parameters}
    write_sessions(home, {**texts, KIND: KINDS}, summary.objectives, list(_sessions(summary)))


def _sessions(summary: Summary) -> Iterator[Session]:
    """Yield what has ended of the search and of what came after it, each with the values that the search gave it."""
    search, repeat, full = KINDS
    found = [(str(t.number), search, t) for t in summary.trials]
    found += [(f"{t.of}_seed_{t.params.get(SEED)}", repeat, t) for t in summary.repeats]
    found += [(f"{t.of}_full_{t.number}", full, t) for t in summary.retrained]
    searched = {t.number: t.params for t in summary.trials}
    for name, kind, trial in found:
        if trial.state in ENDED:
            values = trial.params if trial.of is None else searched.get(trial.of, trial.params)
            yield Session(
                name=name,
                hparams={**values, KIND: kind},
                metrics=dict(zip(summary.objectives, trial.values or [], strict=False)),
                epoch=trial.epochs or max(trial.steps, default=0),
                has_failed=trial.state == "fail",
                directory=str(trial.directory or ""),
                started=trial.started or 0.0,
                ended=trial.ended or 0.0,
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
