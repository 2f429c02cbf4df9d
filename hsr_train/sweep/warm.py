"""Where a search begins: at the values that the configuration has without it.

`points.py` sees what of them lies in the space, `previous.py` adds the best points of another sweep.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import yaml

from hsr_train.errors import InputError, Problem
from hsr_train.run.changes import get_value
from hsr_train.sweep.space import Space
from hsr_train.sweep.urls import STUDY_FILE

log = logging.getLogger(__name__)


def own_values(space: Space, job: Any) -> dict[str, Any]:
    """Return what each searched key is where nothing is searched: by preset, tier, file and what is typed."""
    try:
        experiment = job.compose(list(space.fixed))
    except InputError as error:
        log.info("Trial 0 is not the configuration's own: without the search it is refused: %s", error)
        return {}
    hydra = yaml.safe_load(experiment.origin.hydra_yaml)["hydra"]
    choices = hydra["runtime"]["choices"]
    return {d.key: choices[d.key] if d.key in choices else get_value(experiment, d.key) for d in space.dimensions}


def warm_start_problems(settings: Any, sampler: str) -> list[Problem]:
    """Return what is wrong with `sweep.warm_start`."""
    if settings.warm_start is None:
        return []
    if sampler == "grid":
        allowed = "has no effect on a grid, which tries every point anyway"
        return [Problem("sweep.warm_start", settings.warm_start, allowed, "leave it out, or sweep.sampler=tpe")]
    folder = Path(settings.warm_start).expanduser()
    if not (folder / STUDY_FILE).is_file():
        allowed = f"holds no {STUDY_FILE}: it is not the folder of a sweep"
        return [Problem("sweep.warm_start", settings.warm_start, allowed, "sweep.warm_start=outputs/sweeps/NAME")]
    return []
