"""What a study would be refused for by its storage, found out without making anything: for `mode=check`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import optuna
from optuna.distributions import BaseDistribution

from hsr_train.sweep.signature import require_enough, require_same
from hsr_train.sweep.storage import close_storage, has_studies, is_of_server, open_storage, shown_url
from hsr_train.sweep.study_types import Spec


def foresee(spec: Spec, space: Mapping[str, BaseDistribution], n_trials: int, home: Path) -> str | None:
    """Refuse what the search would be refused for, as far as no server is asked.

    Args:
        spec: Its study.
        space: What is searched.
        n_trials: How many trials it is to have.
        home: The sweep's folder, which need not be there.

    Returns:
        What was left unasked; None: nothing.

    Raises:
        InputError: The storage cannot be used, or holds another study of this name.
    """
    if is_of_server(spec.url):
        return f"sweep.storage: its server was not asked: {shown_url(spec.url)}"
    if not has_studies(spec.url, home):
        return None
    storage = open_storage(spec.url)
    try:
        if spec.name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=spec.name, storage=storage)
            if "format" in study.user_attrs:  # else its maker was killed before it signed it
                require_same(study, spec, space)
                require_enough(study, n_trials)
    finally:
        close_storage(storage)
    return None
