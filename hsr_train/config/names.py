"""The key that was probably meant: misspelt, of another section, or called as in other training programs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from hsr_train.config.schema import DetectExperiment, Experiment
from hsr_train.config.strict import leaves
from hsr_train.errors import Problem

# Options of other programs where a key alone would not do; VALUE stands for what follows.
OTHER_OPTIONS = {
    "export": "export.formats=[VALUE]",
    "fast": "preset=fast",
    "no_auto_scale": "gpu_tier=manual",
    "no_tensorboard": "tensorboard.enabled=false",
    "tensorboard_port": "tensorboard.port=VALUE",
    "validate_only": "mode=validate",
}
# What other programs call a key: the first that the task has.
OTHER_NAMES = {
    "architecture": ("model.name",),
    "batch_size": ("train.batch",),
    "data_dir": ("data.path",),
    "dataset": ("data.path",),
    "dataset_name": ("data.name",),
    "export": ("export.formats",),
    "fold": ("data.fold",),
    "img_size": ("train.imgsz",),
    "input_size": ("train.imgsz",),
    "learning_rate": ("optimizer.lr0", "optimizer.lr"),
    "lr": ("optimizer.lr0", "optimizer.lr"),
    "lr0": ("optimizer.lr",),
    "num_epochs": ("train.epochs",),
    "num_workers": ("train.workers",),
    "output": ("output_dir",),
    "project": ("output_dir",),
    "raw_data": ("data.raw",),
    "save_dir": ("output_dir",),
    "trainer_type": ("trainer.name",),
}


def nearest(word: str, words: Iterable[str], likeness: float = 0.6) -> str | None:
    """Return the word that was probably meant, or None."""
    found = difflib.get_close_matches(word, list(words), n=1, cutoff=likeness)
    return found[0] if found else None


def nearest_key(key: str, schema: type[Experiment] = DetectExperiment) -> str | None:
    """Return the dotted key of a schema that was probably meant, or None."""
    known = [name for name, _, _ in leaves(schema)]
    section, _, last = key.rpartition(".")
    sections = {name.rpartition(".")[0] for name in known}
    meant = section if section in sections else nearest(section, sections)
    for name in OTHER_NAMES.get(last, ()):
        if name in known:
            return name
    if meant is not None and section:
        within = nearest(last, [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == meant])
        if within:
            return f"{meant}.{within}"
    by_last: dict[str, str] = {}
    for name in sorted(known, key=lambda name: not name.startswith("train.")):
        by_last.setdefault(name.rpartition(".")[2], name)
    # Among all sections a chance likeness is likelier than a slip.
    alike = nearest(last, by_last, likeness=0.75)
    return by_last[alike] if alike else None


def unknown_key(
    key: str,
    schema: type[Experiment] = DetectExperiment,
    value: str | None = None,
    groups: Sequence[str] = (),
    where: str = "",
) -> Problem:
    """Return the problem of a key that does not exist.

    Args:
        key: As written.
        schema: The experiment's type.
        value: What was typed for it; goes into the remedy.
        groups: Groups that may have been meant instead.
        where: The file in which it stands, with a colon and a space.
    """
    group = nearest(key, groups) if "." not in key and key not in OTHER_NAMES else None
    meant = group or nearest_key(key, schema)
    if key.startswith("hydra."):
        remedy = "python -m hsr_train --cfg hydra prints Hydra's own keys"
    elif meant is None:
        remedy = "python -m hsr_train --cfg job prints every key"
    else:
        remedy = f"{meant}={value}" if value is not None else f"did you mean {meant}?"
    return Problem(where + key, "", "unknown key", remedy)
