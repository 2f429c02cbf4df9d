"""The best points of another sweep, with which a new one begins (`sweep.warm_start`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState

from hsr_train.errors import InputError, Problem
from hsr_train.sweep.stages import searches
from hsr_train.sweep.storage import close_storage, open_storage
from hsr_train.sweep.study_types import Spec
from hsr_train.sweep.urls import storage_url


def best_points(spec: Spec) -> list[tuple[int, dict[str, Any]]]:
    """Return trial numbers and values of the best trials of `spec.warm_start`, the best one first.

    Of several objectives they are of the Pareto front, in the order of their numbers.

    Raises:
        InputError: The folder's study cannot be read, is of another task or goal, or has no complete trial.
    """
    folder = Path(str(spec.warm_start)).expanduser().absolute()
    try:
        storage = open_storage(storage_url(None, folder))
    except InputError as error:
        raise _refused(spec, f"its study {error.problems[0].allowed}") from error
    try:
        names = searches(optuna.get_all_study_names(storage))
        name = folder.name if folder.name in names else names[0] if len(names) == 1 else None
        if name is None:
            raise _refused(spec, f"has {len(names)} studies, and none of its own name")
        study = optuna.load_study(study_name=name, storage=storage)
        theirs = study.user_attrs
        if (theirs.get("task"), theirs.get("objectives")) != (spec.task, spec.objectives):
            goal = f"task={theirs.get('task')} for {', '.join(theirs.get('objectives') or ())}"
            raise _refused(spec, f"searches {goal}; this is task={spec.task} for {', '.join(spec.objectives)}")
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        trials = [t for t in trials if all(share <= 0 for share in t.constraints.values())]
        if not trials:
            raise _refused(spec, "has no complete trial that holds its constraints")
        if len(spec.objectives) > 1:
            trials = study.best_trials
        else:
            trials = sorted(trials, key=lambda t: t.value or 0.0, reverse=study.direction == StudyDirection.MAXIMIZE)
        return [(trial.number, dict(trial.params)) for trial in trials[: spec.warm_start_best]]
    finally:
        close_storage(storage)


def _refused(spec: Spec, allowed: str) -> InputError:
    return InputError(Problem("sweep.warm_start", str(spec.warm_start), allowed, "name another one, or leave it out"))
