"""What is different between two manifests: data, weights, code, packages, hardware, environment. Pure comparison.

`hsr_train.verification` shows it before a reproduction trains, `compare` shows it for two runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hsr_train.run.data_files import DataFile, changed_files

DATA, WEIGHTS, SEEDS, CODE, PACKAGES = "data", "weights", "seeds", "code", "packages"
HARDWARE, PYTHON, PLATFORM, ENVIRONMENT = "hardware", "python", "platform", "environment"
KINDS = (DATA, WEIGHTS, SEEDS, CODE, PACKAGES, HARDWARE, PYTHON, PLATFORM, ENVIRONMENT)
"""The likeliest cause of another result first."""

REFUSED = (DATA, WEIGHTS)
MOST_FILES = 10
# Recorded for other reasons: a number of the job, a folder that each process makes anew, and what the training library
# sets itself whatever it was.
_OF_NO_ACCOUNT = ("SLURM_JOB_ID", "YOLO_CONFIG_DIR", "CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")


@dataclass(frozen=True)
class Drift:
    """One thing that is not what it was.

    Attributes:
        kind: One of `KINDS`.
        name: What: a package, a file, a variable.
        text: In which way, in words.
    """

    kind: str
    name: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.text}"


def compare_manifests(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    files_before: Iterable[DataFile] | None = None,
    files_now: Iterable[DataFile] | None = None,
) -> list[Drift]:
    """Return every drift from one manifest to another, in the order of `KINDS`.

    Where the data or the weights lie does not count, only what is in them.

    Args:
        before: The original's manifest, with the sections that `manifest.SECTIONS` names.
        now: The manifest of the other run.
        files_before: From the original's data_files.csv, if it has one.
        files_now: The same of the other run; with both, a drift of data names the files.
    """
    return [
        *compare_data(_data_of(before), _data_of(now), files_before, files_now),
        *_weights(before, now),
        *_values(SEEDS, before["seeds"], now["seeds"]),
        *_code(before.get("git"), now.get("git")),
        *_values(PACKAGES, before["packages"], now["packages"]),
        *_hardware(before["machine"], now["machine"]),
        *_values(PYTHON, {"version": before["python"].get("version")}, {"version": now["python"].get("version")}),
        *_values(PLATFORM, {"system": before.get("platform")}, {"system": now.get("platform")}),
        *_values(ENVIRONMENT, _variables(before), _variables(now)),
    ]


def compare_data(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    files_before: Iterable[DataFile] | None,
    files_now: Iterable[DataFile] | None,
) -> list[Drift]:
    """Return how a set differs from what it was, by name where both lists of files are there.

    Args:
        before: The set's record in a manifest.
        now: The same as it is now.
        files_before: From data_files.csv.
        files_now: The set's files as they are now.
    """
    if before.get("fingerprint") == now.get("fingerprint"):
        return []
    found = (
        [] if before.get("names") == now.get("names") else [("names", _arrow(before.get("names"), now.get("names")))]
    )
    if files_before is not None and files_now is not None:
        found += changed_files(files_before, files_now)
    if not found:
        found = [(str(now.get("path")), f"other files; {_counts(before)} then, {_counts(now)} now")]
    drifts = [Drift(DATA, name, text) for name, text in found[:MOST_FILES]]
    if len(found) > MOST_FILES:
        drifts.append(Drift(DATA, str(now.get("path")), f"and {len(found) - MOST_FILES:,} further changes"))
    return drifts


def moved(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a line for the data and for the weights that lie elsewhere and are the same."""
    lines = []
    old, new = _data_of(before), _data_of(now)
    if old.get("fingerprint") == new.get("fingerprint") and old.get("path") != new.get("path"):
        lines.append(f"The data moved from {old.get('path')} to {new.get('path')}; their content is the same")
    old, new = before["fingerprints"].get("weights") or {}, now["fingerprints"].get("weights") or {}
    if old.get("sha256") == new.get("sha256") and old.get("file") != new.get("file"):
        lines.append(f"The weights moved from {old.get('file')} to {new.get('file')}; their content is the same")
    return lines


def _data_of(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    data: Mapping[str, Any] = manifest["fingerprints"].get("data") or {}
    return data


def _counts(data: Mapping[str, Any]) -> str:
    splits = data.get("splits") or {}
    return " + ".join(f"{split.get('images')} {name}" for name, split in splits.items()) + " images"


def _weights(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Drift]:
    old, new = before["fingerprints"].get("weights") or {}, now["fingerprints"].get("weights") or {}
    if old.get("sha256") == new.get("sha256"):
        return []
    name = str(new.get("file") or old.get("file") or "scratch")
    return [
        Drift(WEIGHTS, name, _arrow(*(f"sha256 {w['sha256']}" if w.get("sha256") else "scratch" for w in (old, new))))
    ]


def _code(before: Any, now: Any) -> list[Drift]:
    """Compare git states; without git on either side the packages' version of hsr_train has to do."""
    old, new = before or {}, now or {}
    if not old.get("root") or not new.get("root"):
        seen = [state.get("commit") or "no git checkout" for state in (old, new)]
        return [] if seen[0] == seen[1] else [Drift(CODE, "git commit", _arrow(*seen))]
    found = _values(CODE, {"git commit": old.get("commit")}, {"git commit": new.get("commit")})
    if old.get("diff") != new.get("diff"):
        seen = ["changed files" if state.get("diff") else "none" for state in (old, new)]
        text = "other ones" if seen[0] == seen[1] else _arrow(*seen)
        found.append(Drift(CODE, "uncommitted changes", text))
    elif old.get("dirty") != new.get("dirty"):
        seen = ["files that git does not know" if state.get("dirty") else "none" for state in (old, new)]
        found.append(Drift(CODE, "uncommitted changes", _arrow(*seen)))
    return found


def _hardware(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Drift]:
    old, new = ({"GPU": _gpus(m), "CPU": m.get("cpu_name"), "cores": m.get("cores")} for m in (before, now))
    return _values(HARDWARE, old, new)


def _gpus(machine: Mapping[str, Any]) -> str:
    gpus = [f"{gpu.get('name')} (driver {gpu.get('driver')})" for gpu in machine.get("gpus") or ()]
    return ", ".join(gpus) or "none"


def _variables(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in manifest["environment"].items() if name not in _OF_NO_ACCOUNT}


def _values(kind: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Drift]:
    names = [*before, *(name for name in now if name not in before)]
    return [
        Drift(kind, name, _arrow(before.get(name), now.get(name)))
        for name in names
        if before.get(name) != now.get(name)
    ]


def _arrow(before: Any, now: Any) -> str:
    return " -> ".join("none" if value is None else str(value) for value in (before, now))
