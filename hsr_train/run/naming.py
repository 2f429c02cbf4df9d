"""Names of runs that say what they are of: the data, and every typed key that changes what comes out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from hsr_train.run.changes import get_value

MOST_CHARACTERS = 120
"""Of a name; a longer one is cut and ends with a hash of the whole."""

# These of a section's keys change how a run goes, and not what comes out.
_LEFT_OUT = {
    f"train.{name}"
    for name in ("workers", "cache", "val_batch", "save_period", "device", "deterministic", "measure_latency")
}
_GROUPS = {"model": "model.name", "trainer": "trainer.name", "optimizer": "optimizer.name"}
_CHOICES = ("preset", "augmentation")


def described(
    experiment: Any, dataset: str, fold: int | None, words: Mapping[str, str], sections: Sequence[str]
) -> str:
    """Return `<dataset>[_<word>_<value>...][_fold_<i>]`, in a fixed order: the same at each start.

    Args:
        experiment: As typed, before anything was decided; with its `origin`.
        dataset: The set's name.
        fold: Which fold of it, or None.
        words: What stands there for a key; these come first.
        sections: Whole sections of which every other typed key stands there by its own name.
    """
    typed = {_GROUPS.get(key, key) for key in experiment.origin.typed}
    keys = [*words, *(key for part in sections for key in _keys(getattr(experiment, part), part))]
    parts = [dataset]
    for key in dict.fromkeys(keys):
        if key in typed and key not in _LEFT_OUT:
            name = key.partition(".")[2].replace(".", "_")
            value = get_value(experiment, key)
            parts.append(
                f"{words.get(key, name)}_{_short(value, is_path=key == 'model.weights' or key.endswith('_dir'))}"
            )
    for group in _CHOICES:
        if group in typed:
            chosen = [line.partition("=")[2] for line in experiment.origin.overrides if line.startswith(f"{group}=")]
            parts.append(f"{group}_{chosen[-1].removeprefix('classify_')}" if chosen else group)
    end = "" if fold is None else f"_fold_{fold}"
    return _bounded(re.sub(r"[^\w.+-]+", "_", "_".join(parts)), MOST_CHARACTERS - len(end)) + end


def _keys(section: Any, prefix: str) -> Iterator[str]:
    for f in fields(section):
        value, key = getattr(section, f.name), f"{prefix}.{f.name}"
        if is_dataclass(value):
            yield from _keys(value, key)
        else:
            yield key


def _short(value: Any, *, is_path: bool) -> str:
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return Path(value).stem if is_path else str(value)


def _bounded(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: most - len(digest) - 1].rstrip('_')}_{digest}"
