"""What is found out with data and weights before the first trial; `plan` has refused before what needs neither.

`mode=check` of a search checks each of its points like a run, instead of workers. A search itself prepares one point,
or two, so that what is wrong with all trials is not found out by each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hsr_train.errors import InputError
from hsr_train.sweep.after import first_words
from hsr_train.sweep.plan import Search
from hsr_train.sweep.study_types import Spec, counted
from hsr_train.sweep.worker import Job


def check_points(search: Search, specs: Sequence[Spec], home: Path, job: Job, unasked: str | None) -> None:
    """Print the report of each point, and what the whole search would be.

    Args:
        search: What is searched.
        specs: Its study, and those of what comes after it.
        home: The sweep's folder.
        job: Checks experiments.
        unasked: What a study would need beside that, and was not asked.
    """
    lines = {d.key for d in search.space.dimensions}
    for number, (overrides, experiment) in enumerate(search.checked.items(), start=1):
        point = " ".join(word for word in overrides if word.partition("=")[0] in lines)
        print(f"Point {number} of {len(search.checked)}: {point}", flush=True)
        job.run(experiment)
    words = first_words(search.first.sweep, list(search.checked.values()))
    for after, experiment in zip(words, search.later, strict=True):
        print(f"After the search, such as: {' '.join(after) or 'its best trial'}", flush=True)
        job.run(experiment)
    if unasked is not None:
        print(unasked, flush=True)
    print(checked_line(specs[0], len(search.checked), home), flush=True)


def rehearse(search: Search, job: Job) -> None:
    """Refuse what no trial could be prepared with, before the first one and when one has failed.

    What the first point is refused for is every trial's only if the point with the last value of each key is refused
    for the same; else each trial finds out by itself.

    Raises:
        InputError: With what is wrong.
    """
    first = tuple(search.space.first())
    try:
        job.rehearse(search.checked.get(first) or job.compose(first))
    except InputError as refused:
        try:
            job.rehearse(job.compose(search.space.last()))
        except InputError as again:
            if again.problems == refused.problems:
                raise refused from None


def checked_line(spec: Spec, n_points: int, home: Path) -> str:
    """Return what a search would be, in a line.

    Args:
        spec: Its study.
        n_points: How many points of it are checked.
        home: The sweep's folder.
    """
    pruner = "none" if spec.pruning is None else spec.pruning.name
    total = counted(int(spec.n_trials or n_points), "trial")
    points = counted(n_points, "point")
    return f"Checked: {points} of a search of {total}, sampler {spec.sampler}, pruner {pruner}, in {home}"
