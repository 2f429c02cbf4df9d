"""Which trials of a study are over, and which of these are the best: what `disk` asks before it removes anything."""

from __future__ import annotations

from dataclasses import replace

from hsr_train.sweep.objectives import excess
from hsr_train.sweep.study_types import SEEDS, Ended
from hsr_train.sweep.summary import Summary


def ended(summary: Summary, kind: str | None = None) -> Ended:
    """Return which trials of a search are over, or of what came after it; the best are so by their own values.

    A trial that is not among the best never will be, since results stay and of equal ones the earlier counts. So
    whoever asks sooner, of several workers, removes nothing that another one wants to keep.

    Args:
        summary: The search, and what came after it.
        kind: Of the stage that is meant, as `study_types.Stage` has it; None: the search.
    """
    alone = replace(summary, repeats=[])
    if kind is not None:  # nothing has a limit there
        runs = summary.repeats if kind == SEEDS else summary.retrained
        alone = replace(alone, trials=runs, constraints={})
    best = alone.front
    if not best and alone.complete:
        limits = summary.constraints
        best = [min(alone.complete, key=lambda t: sum(max(x, 0.0) for x in excess(limits, t.measured).values()))]
    return Ended(
        complete=[t.number for t in alone.complete],
        pruned=[t.number for t in alone.of_state("pruned")],
        best=[t.number for t in best],
    )
