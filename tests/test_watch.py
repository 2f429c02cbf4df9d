"""A run that somebody watches, as a search does: it is shown each epoch but the last, and may be given up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import classify_runs
import detection_runs
import pytest
import torch
from detection_runs import rows

import hsr_train
from hsr_train.errors import PrunedError
from hsr_train.execution import execute
from hsr_train.run.directory import RunDirectory
from hsr_train.run.status import read_status

Words = Callable[[Path], list[str]]


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with classify_runs.quick_pictures(), detection_runs.quick_pictures():
        yield


@pytest.fixture(params=["detect", "classify"])
def words(request: pytest.FixtureRequest, small_set: Path, tmp_path: Path, shared_cache: Path) -> Words:
    """Return what is typed for a small run of three epochs."""
    if request.param == "detect":
        return lambda out: detection_runs.overrides(small_set, out, shared_cache)
    data = classify_runs.make_set(tmp_path / "set")
    return lambda out: classify_runs.overrides(data, out, shared_cache, train__epochs=3)


def test_a_watched_run_shows_every_epoch_but_the_last_with_its_recorded_metrics(words: Words, tmp_path: Path) -> None:
    seen: dict[tuple[int, int], dict[str, float]] = {}
    result = execute(
        hsr_train.compose(words(tmp_path / "out")), lambda epoch, of, metrics: seen.update({(epoch, of): dict(metrics)})
    )
    assert list(seen) == [(1, 3), (2, 3)] and result.epochs_completed == 3
    assert result.run_dir is not None
    for epoch, row in zip(seen, rows(result.run_dir), strict=False):
        recorded = {float(value) for value in row.values() if value}
        assert {round(value, 6) for value in seen[epoch].values()} <= {round(value, 6) for value in recorded}


def test_a_run_given_up_ends_within_its_epoch_and_keeps_its_record(words: Words, tmp_path: Path) -> None:
    seen: list[tuple[int, dict[str, float]]] = []

    def give_up(epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
        seen.append((epoch, dict(metrics)))
        if epoch == 2:
            raise PrunedError("worse than the others")

    with pytest.raises(PrunedError):
        execute(hsr_train.compose(words(tmp_path / "out")), give_up)
    (status,) = (tmp_path / "out").glob("*/*/status.json")
    run = RunDirectory(status.parent)
    assert (read_status(run.status) or {})["state"] == "pruned"
    assert re.search(r"Status +pruned\n", run.summary.read_text())
    assert len(rows(run.path)) == 2
    assert torch.load(run.weights / "best.pt", weights_only=False)
    with pytest.raises(PrunedError):  # it is shown its last epoch again
        execute(hsr_train.compose([f"resume={run.path}"]), give_up)
    assert [epoch for epoch, _ in seen] == [1, 2, 2] and seen[1] == seen[2]
    assert (read_status(run.status) or {})["state"] == "pruned" and len(rows(run.path)) == 2
    resumed = hsr_train.execute(hsr_train.compose([f"resume={run.path}"]))
    assert resumed.epochs_completed == 3
