"""A study as plain values, for everything that shows it: `results`, `figures`, `report`, `reporting`."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from hsr_train.sweep.objectives import MAXIMIZE, broken
from hsr_train.sweep.pruning import SHARE
from hsr_train.sweep.repeated import Repeated, repeated

FEWEST = 10
"""Complete trials below which an importance says nothing."""
_TRACEBACK, _LOGGED = "Traceback (most recent call last):", "\nIn /"
"""In the text of an error: where it begins, and where what the run's own log has of it does."""
_COLUMNS = {"accuracy": "val_acc", "macro_f1": "val_macro_f1"}
"""Of results.csv, where they are not called like the objective."""


@dataclass(frozen=True)
class Parameter:
    """A searched key.

    Attributes:
        name: The key.
        choices: All its values as text, if it is a choice.
        is_log: Whether it is searched by its logarithm.
    """

    name: str
    choices: tuple[str, ...] = ()
    is_log: bool = False


@dataclass(frozen=True)
class TrialSummary:
    """One trial that was begun.

    Attributes:
        number: Its number.
        state: complete, pruned, fail or running.
        values: The objectives; of a pruned one its last, if it had any and is no cross-validation.
        params: The searched values by key.
        overrides: The same, as they would be typed.
        steps: The objective by epoch, as far as it was reported to the study by epoch.
        epochs: Epochs that were trained.
        seconds: How long it took.
        directory: Where its run is or was.
        error: Text of a failed trial, with its traceback.
        measured: What has a limit, by name.
        broken: Which constraints it breaks, such as `latency_ms 31.2 > 20`; empty: it holds all, or has no result.
        started: Unix time.
        ended: Unix time.
        worker: Who has or had it.
        of: Of a repeat or a retraining, number of the search's trial.
        fold: Of a pruned cross-validation, how many folds it had when it was given up.
    """

    number: int
    state: str
    values: list[float] | None = None
    params: dict[str, Any] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    steps: dict[int, float] = field(default_factory=dict)
    epochs: int | None = None
    seconds: float | None = None
    directory: Path | None = None
    error: str | None = None
    measured: dict[str, float] = field(default_factory=dict)
    broken: str = ""
    started: float | None = None
    ended: float | None = None
    worker: str = ""
    of: int | None = None
    fold: int | None = None

    @property
    def is_feasible(self) -> bool:
        """Whether it holds all constraints."""
        return not self.broken

    @property
    def cause(self) -> str:
        """The line that says why it failed, without the traceback around it."""
        last = (self.error or "").partition(_LOGGED)[0].rpartition(_TRACEBACK)[2]
        line = next((line for line in last.splitlines() if line and not line.startswith(" ")), "")
        return line.removeprefix("hsr_train.errors.").removeprefix("RunError: ")

    @property
    def remark(self) -> str:
        """What is said of its end, on one line: why it failed, or that it lacks folds."""
        return self.cause if self.fold is None else f"pruned after fold {self.fold}"

    def curve(self, objective: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of an objective, from its results.csv, else as the study knows it."""
        found = self.column("results.csv", _COLUMNS.get(objective, objective))
        return found or sorted(self.steps.items())

    def column(self, file: str, name: str) -> list[tuple[int, float]]:
        """Return (epoch, value) of a column of its results.csv or timings.csv, as far as there are values."""
        return _column(self.directory / file, name) if self.directory else []


@dataclass(frozen=True)
class Phase:
    """What runs after a search.

    Attributes:
        kind: As `study_types.Stage` has it.
        n_trials: Its total.
        trials: Those that were begun.
    """

    kind: str
    n_trials: int
    trials: list[TrialSummary]


@dataclass(frozen=True)
class Summary:
    """A study, and what came after it.

    Attributes:
        name: Its name.
        task: The task.
        objectives: Names of what is searched for.
        directions: maximize or minimize, for each.
        n_trials: Its total.
        parameters: What is searched.
        trials: The trials that were begun, by number.
        command: What was typed first.
        constraints: Limits by name: at most of a cost, at least of a metric.
        repeats: Runs of its best trials with other seeds.
        retrained: Runs of a winner at full length.
        phase: Which of these is under way; None: the search.
    """

    name: str
    task: str
    objectives: list[str]
    directions: list[str]
    n_trials: int
    parameters: list[Parameter]
    trials: list[TrialSummary]
    command: list[str] = field(default_factory=list)
    constraints: dict[str, float] = field(default_factory=dict)
    repeats: list[TrialSummary] = field(default_factory=list)
    retrained: list[TrialSummary] = field(default_factory=list)
    phase: Phase | None = None

    def of_state(self, *states: str) -> list[TrialSummary]:
        """Return the trials in some states."""
        return [t for t in self.trials if t.state in states]

    @property
    def complete(self) -> list[TrialSummary]:
        """The trials that have a result."""
        return [t for t in self.trials if t.state == "complete" and t.values is not None]

    @property
    def repeated(self) -> dict[int, Repeated]:
        """What the repeats of a trial came to, by its number."""
        return repeated(self.repeats)

    @property
    def ranks(self) -> dict[int, int]:
        """Rank by number of each complete trial that holds the constraints; of equal ones the earlier is first.

        Those with repeats come first, by the mean of these. With several objectives the rank is that of the search: 1
        and how many trials are better in every way; all of the Pareto front have 1.
        """
        found = [t for t in self.complete if t.is_feasible]
        signs = np.array([-1.0 if d == MAXIMIZE else 1.0 for d in self.directions])
        costs = np.array([t.values for t in found], dtype=float).reshape(len(found), len(signs)) * signs
        if len(signs) == 1:
            order = sorted(found, key=self._order())
            return {trial.number: rank for rank, trial in enumerate(order, start=1)}
        return {
            trial.number: 1 + int(np.sum(np.all(costs <= own, axis=1) & np.any(costs < own, axis=1)))
            for trial, own in zip(found, costs, strict=True)
        }

    @property
    def front(self) -> list[TrialSummary]:
        """The trials of rank 1, the one that is best in the first objective first: of repeated ones, by the mean."""
        ranks = self.ranks
        return sorted((t for t in self.complete if ranks.get(t.number) == 1), key=self._order())

    def _order(self) -> Callable[[TrialSummary], tuple[bool, float, int]]:
        """Return a key by which the best in the first objective is first, what has a mean before what has none."""
        sign, means = -1 if self.directions[0] == MAXIMIZE else 1, {n: r.mean for n, r in self.repeated.items()}

        def place(trial: TrialSummary) -> tuple[bool, float, int]:
            mean = means.get(trial.number)
            return mean is None, sign * (mean or trial.values or [math.nan])[0], trial.number

        return place

    @property
    def at_full_length(self) -> TrialSummary | None:
        """The last complete run of the best trial at full length."""
        of = [t for t in self.retrained if self.front and t.of == self.front[0].number and t.state == "complete"]
        return of[-1] if of else None

    @property
    def limited(self) -> list[str]:
        """What has a limit and is no objective."""
        return [name for name in self.constraints if name not in self.objectives]

    @property
    def short(self) -> dict[str, str]:
        """A short name for each searched key: its last word, where no other one ends with it."""
        counts = Counter(p.name.rpartition(".")[2] for p in self.parameters)
        last = {p.name: p.name.rpartition(".")[2] for p in self.parameters}
        return {name: word if counts[word] == 1 else name for name, word in last.items()}


def is_begun(trial: FrozenTrial) -> bool:
    """Whether a trial has been in some worker's hands."""
    return trial.state != TrialState.WAITING or "directory" in trial.user_attrs


def summarize(study: optuna.Study, trials: list[FrozenTrial], n_trials: int, home: Path) -> Summary:
    """Return a study as plain values.

    Args:
        study: Signed by `study.Study`.
        trials: Those of its trials that count.
        n_trials: Its total.
        home: The sweep's folder.
    """
    signed = study.user_attrs
    begun = [t for t in trials if is_begun(t)]
    space = signed.get("space") or {}
    distributions = {k: optuna.distributions.json_to_distribution(json.dumps(d)) for k, d in space.items()}
    return Summary(
        name=study.study_name,
        task=str(signed["task"]),
        objectives=list(signed["objectives"]),
        directions=[d.name.lower() for d in study.directions],
        n_trials=n_trials,
        parameters=[_parameter(name, d) for name, d in distributions.items()],
        trials=[
            trial_summary(t, home / "trials", signed.get("constraints") or {}, is_by_epoch=signed.get("step") != SHARE)
            for t in begun
        ],
        command=list(signed.get("command", [])),
        constraints=dict(signed.get("constraints") or {}),
    )


def importances(study: optuna.Study, summary: Summary) -> list[dict[str, float] | str]:
    """Return, for each objective, the share of each key in good results (PED-ANOVA, sum 1), or why it cannot be said.

    PED-ANOVA asks which keys set the best tenth of the trials apart; it needs no further package.
    """
    found: list[dict[str, float] | str] = []
    for place, name in enumerate(summary.objectives):
        values = [(t.values or [])[place] for t in summary.complete]
        if len(summary.parameters) < 2:
            found.append("only one key is searched, so there is none to compare it with; see its slice below")
        elif len(values) < FEWEST:
            found.append(f"{len(values)} complete trials are too few to say what {name} depends on; {FEWEST} may do")
        elif max(values) - min(values) <= 1e-12 * max(map(abs, values)):
            found.append(f"{name} is the same in all {len(values)} complete trials")
        else:
            # Here, since it loads scikit-learn: seconds, by which each worker would start later.
            from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns of few trials, which the report says itself
                target = None if len(summary.objectives) == 1 else _cost(place, summary.directions[place])
                found.append(get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), target=target))
    return found


def _cost(place: int, direction: str) -> Callable[[FrozenTrial], float]:
    """Return what an objective is when less is better, which PED-ANOVA takes for granted."""
    sign = -1.0 if direction == MAXIMIZE else 1.0
    return lambda trial: float(sign * trial.values[place])


def _parameter(name: str, distribution: Any) -> Parameter:
    if isinstance(distribution, CategoricalDistribution):
        return Parameter(name, tuple(str(c) for c in distribution.choices))
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return Parameter(name, is_log=distribution.log)


def trial_summary(
    trial: FrozenTrial, folder: Path, constraints: Mapping[str, float], *, is_by_epoch: bool = True
) -> TrialSummary:
    """Return a trial that was begun as plain values.

    Args:
        trial: As its study has it.
        folder: Where the runs of that study's trials lie.
        constraints: Limits by name.
        is_by_epoch: Whether its reports are counted in epochs.
    """
    notes, worker = trial.user_attrs, trial.user_attrs.get("worker")
    is_judged = bool(trial.constraints) and trial.state == TrialState.COMPLETE  # not: killed before it was told
    here = folder / str(trial.number)  # first: the folder may have been moved since
    known = Path(notes["directory"]) if "directory" in notes else None
    overrides = [str(word) for word in notes.get("overrides", [])]
    fold = notes.get("pruned_at") if notes.get("by_fold") and trial.state == TrialState.PRUNED else None
    typed = {key: value for key, _, value in (word.partition("=") for word in overrides)}
    return TrialSummary(
        number=trial.number,
        state=trial.state.name.lower() if trial.state != TrialState.WAITING else "stopped",
        values=list(trial.values) if trial.values is not None and fold is None else None,  # one fold's is no mean
        params=dict(trial.params) or typed,
        overrides=overrides,
        steps={s: v for s, v in trial.intermediate_values.items() if is_by_epoch and math.isfinite(v)},
        epochs=notes.get("epochs"),
        seconds=notes.get("seconds"),
        directory=here if here.exists() else known,
        error=notes.get("error"),
        measured=dict(notes.get("measured", {})),
        broken=broken(constraints, notes["measured"]) if is_judged else "",
        started=trial.datetime_start.timestamp() if trial.datetime_start else None,
        ended=trial.datetime_complete.timestamp() if trial.datetime_complete else None,
        worker=f"{worker.get('host')} {worker.get('pid')}" if worker else "",
        of=notes.get("of"),
        fold=fold,
    )


def _column(path: Path, name: str) -> list[tuple[int, float]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):  # it is elsewhere, or damaged: nothing to show of it
        return []
    points = []
    for row in rows:
        try:
            epoch, value = int(row.get("epoch") or ""), float(row.get(name) or "")
        except ValueError:
            continue
        if math.isfinite(value):
            points.append((epoch, value))
    return points
