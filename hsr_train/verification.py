"""Whether data are still what a run began with, and whether a reproduction comes out like its original.

Drives the comparisons of `run.drift` (before training) and `run.reproduction` (after it) for `execution`; both are
recorded in reproduction.json. `mode=compare` shows the same comparisons for any two runs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hsr_train.config.schema import Experiment
from hsr_train.engines.base import Engine, Plan
from hsr_train.errors import InputError, NotReproducedError, Problem
from hsr_train.recovery import Recovery
from hsr_train.run import compare, drift
from hsr_train.run.changes import RESUMED, Change, read_changes
from hsr_train.run.data_files import read_data_files
from hsr_train.run.directory import RunDirectory, is_run
from hsr_train.run.find import locate_run
from hsr_train.run.log import success
from hsr_train.run.manifest import SECTIONS, read_manifest
from hsr_train.run.reproduction import (
    CUDA_BOUND,
    DIFFERENT,
    RUNNING,
    SAME,
    VARIATION,
    Comparison,
    Difference,
    compare_outcomes,
    read_outcome,
    read_reproduction,
    write_reproduction,
)
from hsr_train.run.results import last_epoch

log = logging.getLogger(__name__)

# What may be typed on resume of a reproduction and leaves it one.
_FREE_ON_RESUME = ("train.workers", "train.cache", "train.save_period", "train.measure_latency")


def comparison(experiment: Experiment) -> str:
    """Return what mode=compare prints.

    Raises:
        InputError: `runs` names something else than runs, or their records are damaged.
    """
    one, other = (locate_run(run, Path(experiment.output_dir), "runs") for run in experiment.runs)
    return compare.compare_runs(RunDirectory(one), RunDirectory(other))


def require_states(run: RunDirectory) -> None:
    """Refuse to go on with a run whose states are lost: it would begin again and overwrite what it came to.

    Raises:
        InputError: There is no state, and more than one epoch in results.csv.
    """
    done = last_epoch(run.results_csv) or 0
    if done > 1 and not any(run.state.glob("*.pt")):  # the first row is written before the first state
        allowed = f"{run.state} holds no state, though results.csv has {done} epochs"
        remedy = f"put the files back, or start a new run from its weights: model.weights={run.weights / 'last.pt'}"
        raise InputError(Problem("resume", str(run.path), allowed, remedy))


def check_fingerprints(plan: Plan, run: RunDirectory) -> None:
    """Refuse to go on with other data than the run began with, or, before its first state, from other weights.

    Raises:
        InputError: A fingerprint differs from the manifest's.
    """
    fingerprints = read_manifest(run).get("fingerprints", {})
    _check_weights(fingerprints.get("weights") or {}, plan.fingerprints.get("weights") or {}, run)
    before, now = fingerprints.get("data") or {}, plan.fingerprints.get("data") or {}
    found = drift.compare_data(before, now, read_data_files(run.data_files), plan.data_files())
    if found:
        allowed = f"the data are no longer what this run began with: {'; '.join(f'{d.name}: {d.text}' for d in found)}"
        remedy = "put the original data back, or start a new run"
        folders = {k: v for k, v in (now.get("synthetic") or {}).items() if k.endswith("_dir") and v}
        where = ", ".join([str(now.get("path")), *(f"synthetic.{key}={folder}" for key, folder in folders.items())])
        raise InputError(Problem("data.path", where, allowed, remedy))


def _check_weights(before: Mapping[str, Any], now: Mapping[str, Any], run: RunDirectory) -> None:
    """Once there is a state, the weights that training started from are not needed any more."""
    if before.get("sha256") == now.get("sha256"):
        return
    has_state = any(run.state.glob("*.pt"))
    if not has_state:
        allowed = "the weights are no longer what this run began with"
        remedy = "put the original file back, or start a new run"
        raise InputError(Problem("model.weights", str(before.get("file")), allowed, remedy))
    how = "have changed since" if now.get("sha256") else "are gone"
    log.warning("The weights that this run started from %s: %s. Its state does not need them", how, before.get("file"))


class Reproduction:
    """One repetition of a run, from before its start to its verdict.

    Args:
        experiment: Of the repetition, with `origin.reproduce_from`.

    Raises:
        InputError: The original's record is missing or damaged, or there is nothing in it to compare with.
    """

    def __init__(self, experiment: Experiment) -> None:
        origin = experiment.origin
        self.original = RunDirectory(Path(str(origin.reproduce_from)))
        if not is_run(self.original.path):  # it was one when the repetition began
            allowed = f"repeats {self.original.path}, which is no run any more"
            raise InputError(Problem("resume", str(origin.resume_from), allowed, "put that directory back"))
        self.manifest = read_manifest(self.original, SECTIONS)
        self.files = read_data_files(self.original.data_files)
        self.changes = read_changes(self.original.changes)
        self.outcome = read_outcome(self.original)  # now, so that it is of no account what becomes of the original
        self._deterministic, self._line = True, ""
        self.record: dict[str, Any] = {
            "original": str(self.original.path),
            "verdict": RUNNING,
            "variation": list(origin.variation),
            "drift": [],
            "replay": [change.record() for change in origin.replay],
        }
        self._resuming = origin.resume_from is not None
        if origin.resume_from is not None:
            self.record |= {**read_reproduction(RunDirectory(Path(origin.resume_from))), "verdict": RUNNING}
        if not self.outcome.epochs and not origin.variation:
            reason = "has no epoch in results.csv to compare with"
            remedy = f"finish it first: resume={self.original.path}"
            raise InputError(Problem("reproduce", str(self.original.path), reason, remedy))

    def check_drift(self, plan: Plan, manifest: Mapping[str, Any]) -> None:
        """Show what is not as it was, one line each, before anything is trained.

        Args:
            plan: Of the repetition.
            manifest: As the repetition will record it.

        Raises:
            InputError: Data or weights are others, and `on_drift` does not allow it.
        """
        log.info("Reproducing %s", self.original.path)
        for line in self.record["variation"]:
            log.warning("A variation, not a repetition: %s", line)
        for record in self.record["replay"]:
            log.info("The original changed %(key)s to %(to)s in epoch %(epoch)d; so will this run", record)
        found = drift.compare_manifests(self.manifest, manifest, self.files, plan.data_files())
        if self._resuming:  # whether its data are still the same, its own manifest tells
            found = [d for d in found if d.kind not in drift.REFUSED]
        else:
            for line in drift.moved(self.manifest, manifest):
                log.info("%s", line)
        for one in found:
            log.warning("Drift of %s", one)
        if not found:
            log.info("No drift: data, weights, code, packages, hardware and environment are the original's")
        _refuse([d for d in found if d.kind in drift.REFUSED], plan)
        known = self.record["drift"]
        known += [asdict(one) for one in found if asdict(one) not in known]
        train = _train(plan)
        self.record["bound"] = 0.0 if str(train.device) == "cpu" else CUDA_BOUND
        self._deterministic = bool(train.deterministic)

    def start(self, run: RunDirectory) -> None:
        """Record in the run's directory what it repeats, so that it may be interrupted and resumed."""
        write_reproduction(run, self.record)

    def finish(self, engine: Engine, run: RunDirectory, recovery: Recovery) -> None:
        """Compare the finished run with its original and write the verdict; `conclude` tells it."""
        own = [change for change in recovery.changes if change.record() not in self.record["replay"]]
        typed = [str(change) for change in own if change.cause == RESUMED and change.key not in _FREE_ON_RESUME]
        self.record["variation"] += typed
        outcome = replace(read_outcome(run), finished=True)
        compared = compare_outcomes(self.outcome, outcome, self.record["bound"])
        weights, difference = self._weights(engine, run)
        if compared.first is None and not self.record["bound"]:
            compared.first = difference
        reasons = self._reasons(own, recovery.replay) if compared.first else []
        self.record |= {
            "verdict": VARIATION if self.record["variation"] else DIFFERENT if compared.first else SAME,
            "epochs_compared": compared.epochs_compared,
            "epochs_of_original": len(self.outcome.epochs),
            "original_finished": self.outcome.finished,
            "columns_not_compared": compared.not_compared,
            "first_difference": compared.first.record() if compared.first else None,
            "largest_difference": compared.largest.record() if compared.largest else None,
            "metrics": {"original": self.outcome.metrics, "reproduction": outcome.metrics},
            "weights": weights,
            "recovery": {
                "original": [change.record() for change in self.changes],
                "reproduction": [change.record() for change in recovery.changes],
            },
            "explanation": "; ".join(reasons) or ("none of the recorded" if compared.first else None),
        }
        write_reproduction(run, self.record)
        self._line = self._told(compared, weights, reasons)

    def conclude(self) -> None:
        """Say how it came out, as the run's last line.

        Raises:
            NotReproducedError: It differs.
        """
        if self.record["verdict"] == DIFFERENT:
            raise NotReproducedError(self._line)
        success(log, "%s", self._line)

    def _weights(self, engine: Engine, run: RunDirectory) -> tuple[str, Difference | None]:
        """Compare the weights of the last state that both runs have kept."""
        digests = []
        for name, one in (("original", self.original), ("reproduction", run)):
            try:
                digest = engine.weights_digest(one)
            except InputError as error:
                return f"not compared: the state of the {name} {error.problems[0].allowed}", None
            if digest is None:
                return f"not compared: the {name} has no state", None
            digests.append(digest)
        (epoch, original), (last, reproduction) = digests
        if epoch != last:
            return f"not compared: the original's last state is of epoch {epoch}, this run's of epoch {last}", None
        if original == reproduction:
            return SAME, None
        return DIFFERENT, Difference(epoch, "weights", original, reproduction)

    def _reasons(self, own: Sequence[Change], unrepeated: Sequence[Change]) -> list[str]:
        """Return what may explain a difference, the likeliest first."""
        reasons = [f"variation: {line}" for line in self.record["variation"]]
        reasons += [f"only this run changed {change}" for change in own if change.cause != RESUMED]
        reasons += [f"only the original changed {change}" for change in self._only_original(unrepeated)]
        found = [drift.Drift(**entry) for entry in self.record["drift"]]
        reasons += [str(one) for one in sorted(found, key=lambda one: drift.KINDS.index(one.kind))]
        if self.record["bound"] and not self._deterministic:
            reasons.append("train.deterministic=false: the GPU may add up in another order each time")
        return reasons

    def _only_original(self, unrepeated: Sequence[Change]) -> list[Change]:
        left_out = [change for change in self.changes if change.record() not in self.record["replay"]]
        return [change for change in left_out if change.key not in _FREE_ON_RESUME] + list(unrepeated)

    def _told(self, compared: Comparison, weights: str, reasons: list[str]) -> str:
        verdict, bound = self.record["verdict"], self.record["bound"]
        of = f"{self.original.path}" + ("" if self.outcome.finished else ", as far as that unfinished run came")
        if verdict == SAME:
            within = f" within {bound:g} (at most {compared.largest})" if compared.largest else ""
            weights = {SAME: "weights to the bit", DIFFERENT: "weights not to the bit"}.get(
                weights, f"weights {weights}"
            )
            only = f"; only in one of them: {', '.join(compared.not_compared)}" if compared.not_compared else ""
            epochs = f"{compared.epochs_compared} epoch" + "s" * (compared.epochs_compared != 1)
            return f"Reproduction: same as {of} ({epochs}, every column of results.csv{within}, {weights}{only})"
        where = f"first in {compared.first}" if compared.first else "no difference"
        if compared.largest and compared.largest != compared.first:
            where += f"; most in {compared.largest}"
        if verdict == VARIATION:
            return f"Reproduction: a variation of {of}, with {'; '.join(self.record['variation'])} ({where})"
        causes = f"may be explained by {_named(reasons)}" if reasons else "none of the recorded explains it"
        return f"Reproduction: different from {of}: {where}; {causes}"


def _refuse(found: Sequence[drift.Drift], plan: Plan) -> None:
    """Refuse to train on other data or from other weights, unless that is wanted."""
    if plan.experiment.on_drift == "warn":
        return
    config: Any = plan.experiment
    values = {drift.DATA: ("data.path", config.data.path), drift.WEIGHTS: ("model.weights", config.model.weights)}
    problems = []
    for kind, (key, value) in values.items():
        lines = [f"{one.name}: {one.text}" for one in found if one.kind == kind]
        if lines:
            allowed = f"the {kind} are not the original's: {'; '.join(lines)}"
            problems.append(Problem(key, value, allowed, "put them back, or train all the same: on_drift=warn"))
    if problems:
        raise InputError(problems)


def _train(plan: Plan) -> Any:
    """Return the section that every task has, each in its own form."""
    experiment: Any = plan.experiment
    return experiment.train


def _named(reasons: Sequence[str], most: int = 5) -> str:
    return "; ".join(reasons[:most]) + (f"; and {len(reasons) - most} more" if len(reasons) > most else "")
