"""How a sweep stands, in a line for a log and a table for a terminal, with the time that is left."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from hsr_train.run.log import duration
from hsr_train.run.status import read_status
from hsr_train.sweep.results import ordered
from hsr_train.sweep.study_types import BEST, WINNER, counted
from hsr_train.sweep.summary import Summary, TrialSummary

RECENT_S = 300.0
"""A worker that had a trial so short a time ago is thought to go on."""
BEST_SHOWN = 5
ENDED = ("complete", "pruned", "fail")
_WIDEST = 18


def line(summary: Summary, now: float | None = None) -> str:
    """Return what is done (of a stage after the search: of that), the best so far, and the time left."""
    is_winner = _is_winner(summary)
    parts = [_winner(_under_way(summary)[0])] if is_winner else _counts(summary)
    infeasible = [t for t in summary.complete if not t.is_feasible]
    if infeasible and summary.phase is None:
        parts.append(f"{len(infeasible)} broke a constraint")
    if summary.front:
        best = summary.front[0]
        values = zip(summary.objectives, best.values or [], strict=True)
        more = f" (and {len(summary.front) - 1} on the Pareto front)" if len(summary.front) > 1 else ""
        text = ", ".join(f"{n} {v:.4g}" for n, v in values)
        repeated = summary.repeated.get(best.number)
        if repeated is not None and repeated.mean is not None:
            text = f"{repeated.text(summary.objectives)} over {repeated.over}"
        parts.append(f"best: trial {best.number}, {text}{more}")
    left_s, workers = left(summary, now)
    if left_s is not None:
        parts.append(f"about {duration(left_s)} left" + ("" if is_winner else f" with {counted(workers, 'worker')}"))
    return "; ".join(parts)


def _counts(summary: Summary) -> list[str]:
    """Return how many trials, or repeats, are over, and how many of these without a result."""
    trials, n_trials = _under_way(summary)
    ended = Counter(t.state for t in trials if t.state in ENDED)
    parts = [f"{ended.total()} of {counted(n_trials, 'trial' if summary.phase is None else 'repeat')} done"]
    words = (("pruned", "pruned"), ("failed", "fail"))
    return parts + [f"{ended[state]} {word}" for word, state in words if ended[state]]


def _is_winner(summary: Summary) -> bool:
    return summary.phase is not None and summary.phase.kind == BEST


def _winner(trials: Sequence[TrialSummary]) -> str:
    """Return how far the winner at full length is."""
    if not trials:
        return f"{WINNER}: not begun"
    epoch = _epoch(trials[-1]) if trials[-1].state == "running" else ""
    states = {"complete": "done", "fail": "failed", "running": "begun"}
    return f"{WINNER}: {f'epoch {epoch}' if epoch else states.get(trials[-1].state, trials[-1].state)}"


def left(summary: Summary, now: float | None = None) -> tuple[float | None, int]:
    """Return the seconds until the sweep is done, from the mean of its trials so far, and the workers they rest on.

    Of a stage after the search: until that is. Where all that is left runs already, such as the winner at full length,
    from the epochs of these. None: nothing is left, or nothing is known yet.
    """
    now = time.time() if now is None else now
    trials, n_trials = _under_way(summary)
    took = [t.ended - t.started for t in trials if t.state in ("complete", "pruned") and t.ended and t.started]
    running = [t for t in trials if t.state == "running"]
    rest = n_trials - sum(t.state in ENDED for t in trials)
    seen = {t.worker for t in trials if t.worker and (t.state == "running" or now - (t.ended or 0) < RECENT_S)}
    workers = min(max(len(seen), 1), max(rest, 1))
    own = [seconds for t in running if (seconds := _left_s(t, now)) is not None]
    if own and len(own) == rest:
        return max(own), workers
    if not took or rest <= 0:
        return None, workers
    mean_s = fmean(took)
    begun_s = sum(min(now - (t.started or now), mean_s) for t in running)
    return max(mean_s * rest - begun_s, 0.0) / workers, workers


def table(summary: Summary, now: float | None = None) -> str:
    """Return the running trials and the best ones, as lines of a table under the line of `line`."""
    best = [trial for rank, trial in ordered(summary) if rank is not None][:BEST_SHOWN]
    keys = [p.name for p in summary.parameters]
    again = "full" if _is_winner(summary) else "again"
    rows = [["trial", "state", "epoch", *summary.objectives, *(summary.short[key] for key in keys)]]
    for trial in [*best, *(t for t in _under_way(summary)[0] if t.state == "running")]:
        values = _values(trial, summary.objectives)
        searched = [_text(trial.params.get(key)) for key in keys]
        number = str(trial.number) if trial.of is None else f"{again} {trial.of}"
        rows.append([number, trial.state, _epoch(trial), *values, *searched])
    return "\n".join([line(summary, now), *_aligned(rows)])


def closing(summary: Summary) -> list[str]:
    """Return what came after a search, for the last lines of its command: the best over seeds, and the full length."""
    lines, winner = [], summary.front[0] if summary.front else None
    for number, repeated in summary.repeated.items():
        if repeated.mean is None and repeated.failed and not repeated.open:
            lines.append(f"Trial {number} has no mean over seeds: its {counted(repeated.failed, 'repeat')} failed")
    if winner is None:
        return lines
    best = summary.repeated.get(winner.number)
    if best is not None and best.mean is not None:
        searched = ", ".join(f"{value:.4g}" for value in winner.values or [])
        text = f"{best.text(summary.objectives)} (its search value: {searched})"
        lines.append(f"Best over {best.over}: trial {winner.number}, {text}, with {' '.join(winner.overrides)}")
    full = summary.at_full_length
    if full is not None:
        values = ", ".join(f"{n} {v:.4g}" for n, v in zip(summary.objectives, full.values or [], strict=True))
        took = counted(full.epochs or 0, "epoch")
        lines.append(f"Retrained at full length: trial {full.of}, {values} after {took}: {full.directory}")
    return lines


def _under_way(summary: Summary) -> tuple[list[TrialSummary], int]:
    """Return the trials that were begun of what runs now, and its total."""
    phase = summary.phase
    return (summary.trials, summary.n_trials) if phase is None else (phase.trials, phase.n_trials)


def _values(trial: TrialSummary, objectives: Sequence[str]) -> list[str]:
    """Return a trial's results; of a running one, its last epoch's value in the first objective."""
    if trial.values is not None:
        return [_text(value) for value in trial.values]
    curve = trial.curve(objectives[0])
    return [_text(curve[-1][1]) if curve else "", *("" for _ in objectives[1:])]


def _epoch(trial: TrialSummary) -> str:
    status = read_status(trial.directory / "status.json") if trial.directory else None
    if trial.state == "running" and status is not None and status.get("epoch") is not None:
        return f"{status['epoch']}/{status['epochs']}" if status.get("epochs") else str(status["epoch"])
    return str(trial.epochs or "")


def _left_s(trial: TrialSummary, now: float) -> float | None:
    """Return the seconds that a running trial's further epochs take, by their mean; None: none left, or unknown."""
    status = read_status(trial.directory / "status.json") if trial.directory else None
    took = [seconds for _, seconds in trial.column("timings.csv", "epoch_s")]
    epochs = int((status or {}).get("epochs") or 0)
    if trial.directory is None or not 0 < len(took) < epochs:
        return None
    mean_s = fmean(took)
    since_s = now - (trial.directory / "timings.csv").stat().st_mtime  # it is written when an epoch ends
    return (epochs - len(took)) * mean_s - min(max(since_s, 0.0), mean_s)


def _text(value: object) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
