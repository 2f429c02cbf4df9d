"""Whose the runs in a sweep's folder are: a trial goes on with its own, and takes no other search's for its result.

A study may be new where its folder is not: `study.db` was removed, or another storage was typed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from hsr_train.config.overrides import quote_paths
from hsr_train.errors import InputError, Problem
from hsr_train.run.directory import RunDirectory
from hsr_train.sweep.space import overridden
from hsr_train.sweep.study_types import NO_MATTER, Spec


def require_own_runs(spec: Spec, home: Path) -> None:
    """Refuse a folder whose trials have other words in common than this search's.

    Raises:
        InputError: With the first such run.
    """
    searched, mine = {_key(line) for line in spec.lines}, set(_kept(spec.fixed))
    for place in sorted((home / spec.folder).glob("*/")):
        words = _words(place)
        if words is None:
            continue
        theirs = {word for word in words if _key(word) not in searched}
        missing = {f"{key}=..." for key in searched - {_key(word) for word in words}}
        if theirs != mine or missing:
            raise _of_another(place, theirs - mine, (mine - theirs) | missing)


def require_own(spec: Spec, overrides: Sequence[str], place: Path) -> None:
    """Refuse a run that is not the trial's.

    Args:
        spec: The study.
        overrides: What the trial searches.
        place: Where its run is to be.

    Raises:
        InputError: Another one lies there.
    """
    theirs, mine = _words(place), set(_kept(overridden(spec.fixed, overrides)))
    if theirs is not None and theirs != mine:
        raise _of_another(place, theirs - mine, mine - theirs)


def _words(place: Path) -> set[str] | None:
    """Return what was typed for a run, as far as it matters; None: there is no record of it."""
    try:
        words = yaml.safe_load((RunDirectory(place).hydra_dir / "overrides.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return set(_kept(list(map(str, words)))) if isinstance(words, list) else None


def _kept(words: Sequence[str]) -> list[str]:
    return [word for word in quote_paths(words) if not word.lstrip("+").startswith(NO_MATTER)]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _of_another(place: Path, theirs: set[str], mine: set[str]) -> InputError:
    said = [f"{what} {' '.join(sorted(words))}" for what, words in (("with", theirs), ("without", mine)) if words]
    allowed = f"holds the run of another search, {' and '.join(said)}"
    return InputError(Problem("sweep.dir", str(place), allowed, "sweep.dir=ANOTHER, or move that folder away"))
