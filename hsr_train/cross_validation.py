"""`data.fold=all`: every fold is trained as a run of its own; then one table, one picture, and maybe the ensemble.

Above `execution`, beside `cli`: each fold goes the way of a single experiment, so that it is supervised, recovers and
resumes like any other. What belongs together stands in `<name>_folds/folds.json`, written before a fold begins; the
same command goes on where an earlier one stopped. Engines, and with them torch, are only used in what is handed to
`Perform`: a process that has loaded torch cannot be forked.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Protocol, cast

from hsr_train.config.saved import plain
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Engine, Plan, Result, Watch
from hsr_train.engines.registry import load_engine
from hsr_train.errors import HsrTrainError, InputError, Problem, PrunedError
from hsr_train.execution import execute
from hsr_train.hardware import detect
from hsr_train.processes import require_fit
from hsr_train.run.atomic import write_json, write_text
from hsr_train.run.charts import folds_chart
from hsr_train.run.directory import RunDirectory, is_run
from hsr_train.run.log import success
from hsr_train.run.status import is_alive, read_status
from hsr_train.verification import check_fingerprints

log = logging.getLogger(__name__)

RECORD = "folds.json"
Perform = Callable[[Callable[[Any], Any], Any], Any]
Metrics = Mapping[str, float]


class FoldEngine(Engine, Protocol):
    """An engine whose data may be divided into folds."""

    def folds(self, experiment: Any) -> list[int]:
        """Return the folds that `data.fold=all` stands for.

        Raises:
            InputError: The data are not divided.
        """
        ...

    def ensemble(self, plan: Plan, runs: list[RunDirectory], folder: Path) -> dict[str, float]:
        """Evaluate the best networks of all folds together on the held-out test set, and report on it in a folder.

        Returns:
            Metrics; empty where there is no test set, or where an engine combines no networks.
        """
        ...


def rehearse(experiment: Any) -> None:
    """Prepare a run and do no more, without a word: what its start would refuse is refused now.

    Args:
        experiment: From `compose`; not changed.

    Raises:
        InputError: The input is at fault.
        RunError: It cannot be prepared.
    """
    experiment = deepcopy(experiment)
    if experiment.is_cross_validation:
        experiment.data.fold = 0
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        load_engine(experiment.task).prepare(experiment, detect(), Decisions(experiment.origin.decisions))
    finally:
        logging.disable(before)


def execute_any(experiment: Any, watch: Watch | None = None) -> Result:
    """Do what an experiment asks in this process: `hsr_train.execute`.

    Args:
        experiment: From `compose`.
        watch: Is told each epoch of a training, or each fold of a cross-validation, and may end it.
    """
    require_fit(experiment)
    if not experiment.is_cross_validation:
        return execute(experiment, watch)
    from hsr_train.config.compose import compose

    return cross_validate(experiment, lambda function, one: function(one), compose, watch)


@dataclass
class _Folds:
    """The record of one cross-validation.

    Attributes:
        home: Its folder.
        config: The experiment, as configured.
        runs: By fold, where its run is or will be.
        is_complete: All of it is done.
    """

    home: Path
    config: dict[str, Any]
    runs: dict[int, Path]
    is_complete: bool = False

    def save(self) -> None:
        """Write the record."""
        runs = {str(fold): str(path) for fold, path in self.runs.items()}
        write_json(self.home / RECORD, {"config": self.config, "runs": runs, "complete": self.is_complete})


@dataclass(frozen=True)
class _Division:
    """What an engine says about the folds of an experiment: the name of the whole, and their numbers."""

    name: str
    numbers: list[int]


def cross_validate(
    experiment: Any, perform: Perform, again: Callable[[list[str]], Any], watch: Watch | None = None
) -> Result:
    """Train every fold that is not trained yet, and sum them up.

    Args:
        experiment: With `data.fold=all`.
        perform: Calls a function with an experiment, maybe in a process of its own. A fold's error ends the whole.
        again: Composes the experiment of some overrides, for folds that go on.
        watch: Is told each fold but the last, from 1, of how many, and its validation metrics; may end the whole.

    Raises:
        PrunedError: The watch ended it.
        InputError: The data are not divided, or a fold is being trained by another process.
    """
    if experiment.mode == "check":
        return cast(Result, perform(_check, experiment))
    division = perform(_divide, experiment)
    folds = _find_or_begin(experiment, division)
    log.info("Cross-validation of %d folds: %s", len(division.numbers), folds.home)
    done = [fold for fold, path in folds.runs.items() if _is_complete(path)]
    if done:
        perform(partial(_require_same_data, folds=folds, done=done), experiment)
    try:
        for place, fold in enumerate(division.numbers, 1):
            _train_fold(experiment, folds, fold, perform, again)
            if watch is not None and place < len(division.numbers):
                watch(place, len(division.numbers), _splits_of(RunDirectory(folds.runs[fold]))["val"])
        result: Result = perform(partial(_sum_up, folds=folds), experiment)
    except PrunedError:
        raise
    except (HsrTrainError, KeyboardInterrupt) as error:
        error.add_note("To go on with all folds: type the same command again")
        raise
    folds.is_complete = True
    folds.save()
    success(log, "Done: %s", folds.home)
    return result


def _check(experiment: Any) -> Result:
    """Check every fold as its run would be, and print the plan of the first."""
    engine = _engine(experiment)
    for place, fold in enumerate(engine.folds(experiment)):
        plan = engine.prepare(_of_fold(experiment, fold), detect(), Decisions())
        print("\n".join([*(plan.summary if place == 0 else []), f"Fold {fold} is sound"]))
    return Result(run_dir=None, status="checked")


def _divide(experiment: Any) -> _Division:
    """Check the first fold as its run will be, and return how the data are divided."""
    engine = _engine(experiment)
    numbers = engine.folds(experiment)
    plan = engine.prepare(_of_fold(experiment, numbers[0]), detect(), Decisions())
    assert plan.run_name is not None
    return _Division(plan.run_name.removesuffix(f"_fold_{numbers[0]}"), numbers)


def _is_complete(path: Path) -> bool:
    return is_run(path) and (read_status(path / "status.json") or {}).get("state") == "completed"


def _require_same_data(experiment: Any, folds: _Folds, done: list[int]) -> None:
    """Refuse to put folds together that were trained on different data.

    Raises:
        InputError: An image changed since a fold was trained.
    """
    engine = _engine(experiment)
    for fold in done:
        one = _of_fold(experiment, fold)
        one.origin.resume_from = str(folds.runs[fold])  # everything is read again, whatever its dates say
        check_fingerprints(engine.prepare(one, detect(), Decisions()), RunDirectory(folds.runs[fold]))


def _sum_up(experiment: Any, folds: _Folds) -> Result:
    """Write table, picture and the ensemble's report."""
    engine = _engine(experiment)
    runs = {fold: RunDirectory(path) for fold, path in folds.runs.items()}
    results = {fold: _splits_of(run) for fold, run in runs.items()}
    plan = engine.prepare(_of_fold(experiment, next(iter(runs))), detect(), Decisions())
    together = engine.ensemble(plan, list(runs.values()), folds.home)
    table = _table(results, together)
    for line in table:
        log.info("%s", line)
    write_text(folds.home / "folds.txt", "\n".join(table) + "\n")
    write_text(folds.home / "folds.csv", _csv(results, together))
    folds_chart(folds.home / "folds.png", results, together)
    costs = _costs(list(runs.values()))
    means = {name: fmean(r["val"][name] for r in results.values()) for name in next(iter(results.values()))["val"]}
    summary = {
        "folds": {str(fold): splits for fold, splits in results.items()},
        "ensemble": together,
        "mean_val": means,
        "costs": costs,
    }
    write_json(folds.home / "result.json", summary)
    return Result(run_dir=folds.home, metrics=means, extra=summary)


def _engine(experiment: Any) -> FoldEngine:
    return cast(FoldEngine, load_engine(experiment.task))


def _of_fold(experiment: Any, fold: int, run_dir: Path | None = None) -> Any:
    one = deepcopy(experiment)
    one.data.fold = fold
    one.origin.run_dir = None if run_dir is None else str(run_dir)
    return one


def _find_or_begin(experiment: Any, division: _Division) -> _Folds:
    """Return the cross-validation of the same configuration, or a new one."""
    name, numbers = f"{division.name}_folds", division.numbers
    parent = Path(experiment.output_dir).expanduser().absolute() / experiment.task
    config = json.loads(json.dumps(plain(experiment)))
    for record in sorted(parent.glob(f"{name}*/{RECORD}")):
        found = _read(record)
        if found.config == config and list(found.runs) == numbers:
            how = "It was done before (to train it anew: output_dir=FOLDER)" if found.is_complete else "Going on with"
            log.info("%s: %s", how, record.parent)
            return found
    home = RunDirectory.create(Path(experiment.output_dir), experiment.task, name).path
    suffix = home.name.removeprefix(name)
    begun = _Folds(home, config, {fold: parent / f"{division.name}_fold_{fold}{suffix}" for fold in numbers})
    begun.save()
    return begun


def _read(record: Path) -> _Folds:
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        runs = {int(fold): Path(path) for fold, path in content["runs"].items()}
        return _Folds(record.parent, content["config"], runs, bool(content["complete"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        remedy = f"restore it from a copy, or move {record.parent} away"
        raise InputError(Problem(str(record), "", f"is damaged: {error}", remedy)) from error


def _free(path: Path) -> Path:
    """Return a path that does not exist yet: that one, or one with a number behind it."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return free


def _train_fold(experiment: Any, folds: _Folds, fold: int, perform: Perform, again: Callable[[list[str]], Any]) -> None:
    """Train a fold from its start or from where it stopped, unless it is done."""
    path = folds.runs[fold]
    status = read_status(path / "status.json") if is_run(path) else None
    if status is None:  # not begun, or killed before it had a record: then its place is taken
        folds.runs[fold] = _free(path)
        folds.save()
        perform(execute, _of_fold(experiment, fold, folds.runs[fold]))
    elif status.get("state") == "completed":
        log.info("Fold %d is done: %s", fold, path)
    elif is_alive(status):
        allowed = f"fold {fold} is being trained by process {status.get('pid')} on {status.get('host')}"
        raise InputError(Problem("data.fold", "all", allowed, "wait for it, or stop it first"))
    else:
        log.info("Fold %d goes on: %s", fold, path)
        perform(execute, again([f"resume={path}"]))


def _splits_of(run: RunDirectory) -> dict[str, dict[str, float]]:
    """Return a run's metrics by split."""
    result = json.loads(run.training_result.read_text(encoding="utf-8"))
    splits: dict[str, dict[str, float]] = result.get("splits") or {"val": result["metrics"]}
    return splits


def _costs(runs: list[RunDirectory]) -> dict[str, float]:
    """Return what all folds cost, as far as each of them has measured it: their time, mean latency, largest memory."""
    found = {}
    records = [json.loads(run.training_result.read_text(encoding="utf-8")) for run in runs]
    for name, together in (("training_time_minutes", math.fsum), ("latency_ms", fmean), ("peak_vram_gb", max)):
        values = [record.get(name) for record in records]
        if None not in values:
            found[name] = float(together(values))
    return found


def _table(results: Mapping[int, Mapping[str, Metrics]], together: Metrics) -> list[str]:
    """Return one line per fold, then mean and standard deviation (of the sample), then the ensemble."""
    columns = [(split, name) for split, metrics in next(iter(results.values())).items() for name in metrics]
    titles = [f"{split} {name}" for split, name in columns]
    lines = ["fold      " + "  ".join(f"{title:>15}" for title in titles)]
    for fold, splits in results.items():
        lines.append(f"{fold:<10}" + "  ".join(f"{splits[s][n]:15.4f}" for s, n in columns))
    values = [[splits[s][n] for splits in results.values()] for s, n in columns]
    spread = [f"{fmean(v):.4f} ± {_spread(v):.4f}" for v in values]
    lines.append("mean ± sd " + "  ".join(f"{text:>15}" for text in spread))
    if together:
        cells = [f"{together[n]:15.4f}" if s == "test" and n in together else " " * 15 for s, n in columns]
        lines.append("ensemble  " + "  ".join(cells))
    return [line.rstrip() for line in lines]


def _spread(values: list[float]) -> float:
    """Return the standard deviation of the sample."""
    return stdev(values) if len(values) > 1 else 0.0


def _csv(results: Mapping[int, Mapping[str, Metrics]], together: Metrics) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["fold", "split", "metric", "value"])
    for fold, splits in results.items():
        writer.writerows(
            [fold, split, name, value] for split, metrics in splits.items() for name, value in metrics.items()
        )
    for name, function in (("mean", fmean), ("sd", _spread)):
        writer.writerows(
            [name, split, metric, function([splits[split][metric] for splits in results.values()])]
            for split, metrics in next(iter(results.values())).items()
            for metric in metrics
        )
    writer.writerows(["ensemble", "test", name, value] for name, value in together.items())
    return text.getvalue()
