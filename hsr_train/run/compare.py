"""`mode=compare`: how two runs differ in configuration, environment and results, as text for a person.

Reads only the two directories: no data, no GPU, no engine. Finished and unfinished runs go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hsr_train.errors import InputError, Problem
from hsr_train.run.changes import read_changes, undo
from hsr_train.run.data_files import DataFile, changed_files, read_data_files
from hsr_train.run.directory import RunDirectory
from hsr_train.run.drift import DATA, MOST_FILES, compare_manifests, moved
from hsr_train.run.manifest import SECTIONS, read_manifest
from hsr_train.run.record import flat
from hsr_train.run.reproduction import Outcome, compare_outcomes, read_outcome

NO_DIFFERENCE = "  no difference"


def compare_runs(one: RunDirectory, other: RunDirectory) -> str:
    """Return the three sections.

    Raises:
        InputError: A file of a run is missing or damaged.
    """
    runs = (one, other)
    sections = {
        "Configuration": _configuration(runs),
        "Environment": _environment(runs),
        "Metrics": _metrics(runs),
    }
    lines = [f"A: {one.path}", f"B: {other.path}"]
    for title, content in sections.items():
        lines += ["", title, "-" * len(title), *(content or [NO_DIFFERENCE])]
    return "\n".join(lines)


def _configuration(runs: Sequence[RunDirectory]) -> list[str]:
    """Return the keys that differ, as the runs began: what changed in their middle is told with the metrics."""
    one, other = (flat(_initial(run)) for run in runs)
    keys = [*one, *(key for key in other if key not in one)]
    rows = [(key, _shown(one, key), _shown(other, key)) for key in keys if _shown(one, key) != _shown(other, key)]
    return _table(("key", "A", "B"), rows) if rows else []


def _initial(run: RunDirectory) -> dict[str, Any]:
    """Return a run's configuration with its changes undone; older versions' keys are shown as they are."""
    try:
        config = yaml.safe_load(run.config_yaml.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _damaged(run.config_yaml, f"cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise _damaged(run.config_yaml, "holds no sections")
    try:
        undo(config, read_changes(run.changes))
    except (KeyError, TypeError) as error:
        raise _damaged(run.changes, f"is damaged: {error} is no key of this run") from error
    return config


def _damaged(path: Path, what: str) -> InputError:
    return InputError(Problem(str(path), "", what, "restore it from a copy"))


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "-"
    text = yaml.safe_dump(values[key], default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def _environment(runs: Sequence[RunDirectory]) -> list[str]:
    one, other = (read_manifest(run, SECTIONS) for run in runs)
    files = [read_data_files(run.data_files) for run in runs]
    folds = [manifest["fingerprints"].get("data", {}).get("fold") for manifest in (one, other)]
    if folds[0] != folds[1]:
        lines = _of_different_folds(folds, files)
        same = {**other, "fingerprints": {**other["fingerprints"], "data": one["fingerprints"].get("data")}}
        return [f"  {line}" for line in (*lines, *compare_manifests(one, same))]
    return [f"  {line}" for line in (*compare_manifests(one, other, *files), *moved(one, other))]


def _of_different_folds(folds: Sequence[Any], files: Sequence[Sequence[DataFile] | None]) -> list[str]:
    """Return how the data of two folds differ beyond what is meant to: by images that only one has, or that changed."""
    words = ["no fold" if fold is None else f"fold {fold}" for fold in folds]
    lines = [f"The runs are of different folds: A is {words[0]}, B is {words[1]}; their train and val differ, as meant"]
    if files[0] is None or files[1] is None:
        return lines
    whole = [[("the set", *row[1:]) for row in rows] for rows in (files[0], files[1])]
    changes = [f"{DATA}: {name}: {text}" for name, text in changed_files(*whole)]
    more = [f"{DATA}: and {len(changes) - MOST_FILES:,} further changes"] if len(changes) > MOST_FILES else []
    return [*lines, *changes[:MOST_FILES], *more] if changes else [*lines, "Their images are the same"]


def _metrics(runs: Sequence[RunDirectory]) -> list[str]:
    one, other = (read_outcome(run) for run in runs)
    comparison = compare_outcomes(one, other)
    lines = [f"  epochs compared: {comparison.epochs_compared} (A has {_epochs(one)}, B has {_epochs(other)})"]
    if comparison.first is None or comparison.largest is None:
        lines.append(NO_DIFFERENCE)
    else:
        lines.append(f"  first difference: {comparison.first}")
        lines.append(f"  largest difference: {comparison.largest} ({comparison.largest.relative:.3g} of the larger)")
    if comparison.not_compared:
        lines.append(f"  columns that only one of them has: {', '.join(comparison.not_compared)}")
    names = [*one.metrics, *(name for name in other.metrics if name not in one.metrics)]
    rows = [(name, _number(one, name), _number(other, name)) for name in names]
    lines += _table(("final", "A", "B"), rows) if rows else ["  final metrics: neither run is finished"]
    for letter, run in zip("AB", runs, strict=True):
        changes = read_changes(run.changes)
        lines += [f"  {letter} changed {change}" for change in changes] or [f"  {letter} changed nothing on its way"]
    return lines


def _epochs(outcome: Outcome) -> str:
    return f"{len(outcome.epochs)}" if outcome.finished else f"{len(outcome.epochs)}, unfinished"


def _number(outcome: Outcome, name: str) -> str:
    value = outcome.metrics.get(name)
    return "-" if value is None else f"{value:.6g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *rows)
    ]
