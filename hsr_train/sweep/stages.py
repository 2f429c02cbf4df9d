"""What comes after a search, as studies of their own beside it: which runs they have, and what these came to.

`NAME.seeds` repeats the best trials of the study NAME with other seeds, `NAME.best` trains the winner at full length.
Their trials are given with all that they change (`overrides`) and the trial that they are of (`of`). Two workers may
add the same one at once: of equal ones the first counts, and no other one is ever claimed. `after` decides whether
they are.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial

from hsr_train.sweep.repeated import SEED
from hsr_train.sweep.space import overridden
from hsr_train.sweep.study_types import BEST, FOLDERS, SEEDS, Stage, is_first_worker, stage_name
from hsr_train.sweep.summary import Phase, Summary, TrialSummary, is_begun, trial_summary

log = logging.getLogger(__name__)

SIGNED = "stage"
"""User attribute of a study: which stage it is."""


@dataclass(frozen=True)
class Planned:
    """A run of a stage.

    Attributes:
        overrides: All that it changes.
        of: Number of the search's trial.
    """

    overrides: tuple[str, ...]
    of: int


def planned(stage: Stage, summary: Summary) -> list[Planned]:
    """Return the runs that a stage is to have, in their order: every trial with the first seed, then with the next.

    Args:
        stage: What it is.
        summary: The search, which is over.
    """
    if stage.seeds:
        best = _best(summary, stage.top_k)
        return [Planned((*overridden(t.overrides, [f"{SEED}={s}"]),), t.number) for s in stage.seeds for t in best]
    winner = summary.front[:1]
    for trial in winner:
        if 0 < stage.epochs <= (trial.epochs or 0) and is_first_worker():  # its steps decided how many
            log.warning(
                "Full length is no longer than the search: train.epochs=%d, and trial %d had %d epochs. "
                "For a longer run: sweep.retrain_epochs=%d",
                stage.epochs, trial.number, trial.epochs, 3 * (trial.epochs or 0),
            )  # fmt: skip
    return [Planned((*overridden(t.overrides, stage.words),), t.number) for t in winner]


def distinct(trials: Sequence[FrozenTrial], runs: Sequence[Planned] | None = None) -> list[FrozenTrial]:
    """Return the trials of a stage's study that count, by number: of each run the first.

    Args:
        trials: All trials of the study.
        runs: Those that are asked for; default: every one.
    """
    asked = None if runs is None else {run.overrides for run in runs}
    found: dict[tuple[str, ...], FrozenTrial] = {}
    for trial in sorted(trials, key=lambda t: t.number):
        overrides = tuple(trial.user_attrs.get("overrides", ()))
        if asked is None or overrides in asked:
            found.setdefault(overrides, trial)
    return list(found.values())


def with_stages(
    summary: Summary, storage: BaseStorage, home: Path, stage: Stage | None = None, runs: Sequence[Planned] = ()
) -> Summary:
    """Return a search with what came after it, asked for now or before.

    Args:
        summary: The search.
        storage: Where it is.
        home: The sweep's folder.
        stage: What is under way; None: the search.
        runs: Those of the stage.
    """
    found = {kind: _runs(storage, summary.name, kind, home) for kind in FOLDERS}
    phase = None
    if stage is not None:
        asked = {run.overrides for run in runs}
        phase = Phase(stage.kind, len(runs), [t for t in found[stage.kind] if tuple(t.overrides) in asked])
    return replace(summary, repeats=found[SEEDS], retrained=found[BEST], phase=phase)


def searches(names: Sequence[str]) -> list[str]:
    """Return the names of studies that are not what came after another one."""
    stages = {stage_name(name, kind) for name in names for kind in FOLDERS}
    return [name for name in names if name not in stages]


def _best(summary: Summary, count: int) -> list[TrialSummary]:
    """Return the best trials of a search by its own values, of several objectives those of the front.

    What was tried twice is there once: its repeats would be the same.
    """
    alone = replace(summary, repeats=[])
    ranks = alone.ranks
    ranked = sorted((t for t in alone.complete if t.number in ranks), key=lambda t: ranks[t.number])
    found: dict[tuple[str, ...], TrialSummary] = {}
    for trial in alone.front if len(summary.objectives) > 1 else ranked:
        found.setdefault(tuple(trial.overrides), trial)
    return list(found.values())[:count]


def _runs(storage: BaseStorage, name: str, kind: str, home: Path) -> list[TrialSummary]:
    try:
        study_id = storage.get_study_id_from_name(stage_name(name, kind))
    except KeyError:  # nobody asked for it
        return []
    if storage.get_study_user_attrs(study_id).get(SIGNED) != kind:
        return []
    trials = distinct(storage.get_all_trials(study_id, deepcopy=False))
    begun = [t for t in trials if is_begun(t)]
    return [trial_summary(t, home / FOLDERS[kind], {}) for t in begun]
