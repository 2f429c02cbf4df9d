"""leaderboard.csv, every trial in one table, and best.yaml, the best one as a command's primary configuration."""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hsr_train.config.paths import CONF_DIR
from hsr_train.config.registration import PRIMARIES
from hsr_train.config.schema import Experiment
from hsr_train.errors import RunError
from hsr_train.run.atomic import write_text
from hsr_train.sweep.repeated import Repeated
from hsr_train.sweep.summary import Summary, TrialSummary

LEADERBOARD, BEST = "leaderboard.csv", "best.yaml"
_NOT_ITS_OWN = ("resume", "reproduce")
"""Keys that say where a run comes from, and are read before files are."""


def write_leaderboard(summary: Summary, home: Path) -> None:
    """Write every trial that was begun, the best first, those without a rank behind.

    Raises:
        RunError: The disk refused.
    """
    keys = [p.name for p in summary.parameters]
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    again = summary.repeated
    more = [f"{name} {what}" for name in summary.objectives for what in ("mean", "sd")] + ["seeds"] if again else []
    limited = [*summary.limited, *(["breaks"] if summary.constraints else [])]
    names = ["rank", "trial", "state", *summary.objectives, *more, *limited, *keys]
    table.writerow([*names, "epochs", "seconds", "directory", "error"])
    for rank, trial in ordered(summary):
        values: Sequence[float | None] = trial.values or [None] * len(summary.objectives)
        if again:
            values = [*values, *_over_seeds(again.get(trial.number), len(summary.objectives))]
        searched = [trial.params.get(key) for key in keys]
        measured = [*(trial.measured.get(n) for n in summary.limited), *([trial.broken] if summary.constraints else [])]
        known = [rank, trial.number, trial.state, *values, *measured, *searched]
        table.writerow([*known, trial.epochs, trial.seconds, relative(trial, home), trial.remark])
    write_text(home / LEADERBOARD, buffer.getvalue())


def _over_seeds(repeated: Repeated | None, num_objectives: int) -> list[float | None]:
    """Return mean and standard deviation of each objective, and the number of seeds; None for what is not known."""
    nothing = [None] * num_objectives
    means, sds = (repeated.mean or nothing, repeated.sd or nothing) if repeated else (nothing, nothing)
    pairs = [value for pair in zip(means, sds, strict=True) for value in pair]
    return [*pairs, len(repeated.results) if repeated else None]


def ordered(summary: Summary) -> list[tuple[int | None, TrialSummary]]:
    """Return (rank, trial): by rank, then what has none: infeasible, pruned, running, stopped, failed."""
    states, ranks = ("complete", "pruned", "running", "stopped", "fail"), summary.ranks
    last = len(summary.trials) + 1
    found = [(ranks.get(t.number), t) for t in summary.trials]
    return sorted(found, key=lambda pair: (pair[0] or last, states.index(pair[1].state), pair[1].number))


def relative(trial: TrialSummary, home: Path) -> str:
    """Return where a trial's run is, from the sweep's folder if it lies in it."""
    if trial.directory is None:
        return ""
    return str(trial.directory.relative_to(home) if trial.directory.is_relative_to(home) else trial.directory)


def command_of(home: Path) -> str:
    """Return what to type, in any folder, to run the best trial again."""
    return f"python -m hsr_train --config-dir {shlex.quote(os.fspath(home.absolute()))} --config-name {Path(BEST).stem}"


def write_best(summary: Summary, home: Path) -> TrialSummary | None:
    """Write the best trial (of several objectives: the best in the first one) as a primary configuration.

    It holds the whole configuration as it ran: what the machine, a preset or a file of a team decided is then the same
    elsewhere, too.

    Returns:
        The trial; None: there is none yet, or none that holds the constraints.

    Raises:
        RunError: Its configuration cannot be read, or the disk refused; a file of an earlier best is then removed.
    """
    if not summary.front:
        return None
    best = summary.front[0]
    try:
        config = _configuration(best)
    except RunError:
        (home / BEST).unlink(missing_ok=True)
        raise
    defaults: list[Any] = [PRIMARIES[summary.task]]
    for group in ("gpu_tier", "preset"):  # each names itself in the configuration; a team's own is in its values
        name = config.get(group)
        if name and (CONF_DIR / group / f"{name}.yaml").is_file():
            defaults.append({f"override {group}": name})
    content = {"defaults": [*defaults, "_self_"], **config}
    text = yaml.safe_dump(_literal(content), sort_keys=False, allow_unicode=True, width=1000)
    write_text(home / BEST, "\n".join(f"# {line}" for line in best_comments(summary, home)) + "\n" + text)
    return best


def best_comments(summary: Summary, home: Path) -> list[str]:
    """Return what best.yaml says of the best trial, there being one; its command first."""
    best, repeated, full = summary.front[0], summary.repeated.get(summary.front[0].number), summary.at_full_length
    lines = [command_of(home), f"Trial {best.number} of {summary.n_trials}: {_named(summary, best)}"]
    if repeated is not None and repeated.mean is not None:
        lines.append(f"Over {repeated.over}, other than its own: {repeated.text(summary.objectives)}")
    if full is not None:
        lines.append(f"At full length, {full.epochs} epochs: {_named(summary, full)}, in {relative(full, home)}")
    return [
        *lines,
        f"Searched: {' '.join(best.overrides)}",
        "The whole configuration as it ran; what is typed behind the command replaces it, such as train.epochs=200.",
    ]


def _named(summary: Summary, trial: TrialSummary) -> str:
    return ", ".join(f"{n} {v:.6g}" for n, v in zip(summary.objectives, trial.values or [], strict=True))


def _configuration(trial: TrialSummary) -> dict[str, Any]:
    """Return the configuration of a trial's run; of a cross-validation, that of the whole.

    Raises:
        RunError: It cannot be read.
    """
    place = trial.directory
    if place is None:
        raise RunError(f"trial {trial.number} has no directory")
    try:
        folds = sorted(place.glob("*/*_folds*/folds.json"))
        if folds:
            config = json.loads(folds[0].read_text(encoding="utf-8"))["config"]
            config["output_dir"] = Experiment.output_dir  # it was the trial's place
        else:
            config = yaml.safe_load((place / "config.yaml").read_text(encoding="utf-8"))
        return {key: value for key, value in config.items() if key not in _NOT_ITS_OWN}
    except (OSError, ValueError, KeyError, AttributeError, yaml.YAMLError) as error:
        raise RunError(f"the configuration of trial {trial.number} cannot be read: {error}") from error


def _literal(value: Any) -> Any:
    """Return values with `${` as the text that it is: what it stood for is already in its place."""
    if isinstance(value, Mapping):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value
