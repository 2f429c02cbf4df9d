"""The text of `python -m hsr_train --help`: examples, verbs, the choices and keys of one task.

Hydra's own help would list the groups of every task, and what only Hydra itself uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hsr_train.config.compose import choices_of, compose_quietly
from hsr_train.config.overrides import Typed
from hsr_train.config.registration import SCHEMAS
from hsr_train.config.saved import dump

VERBS = {
    "train": "train, evaluate the best weights, export them if asked (the default)",
    "check": "check everything and print the plan; trains and downloads nothing",
    "validate": "evaluate weights: model.weights=FILE, data.split=val",
    "predict": "use weights on images: model.weights=FILE data.path=FOLDER",
    "export": "write weights in other formats: model.weights=FILE 'export.formats=[onnx]'",
    "split": "divide images into folds and a held-out test set",
    "preview": "a picture of composed images: synthetic.annotated_dir=FOLDER",
    "synthesize": "write a set of composed images: synthetic.count=5000 output_dir=FOLDER",
    "compare": "how two runs differ: 'runs=[RUN,RUN]'",
    "tensorboard": "show all runs under output_dir",
}
"""What each `mode` does."""

_HEADER = "hsr_train trains, validates and exports detectors and classifiers on a team's own data."
_OF_TASK = {
    "detect": """
  python -m hsr_train preset=demo                            a first run on drawn images, two minutes on two cores
  python -m hsr_train data.path=my/data.yaml                 train on a set of your own
  python -m hsr_train mode=check data.path=my/data.yaml      check everything, train nothing
  python -m hsr_train task=classify --help                   the same for image classifiers
""",
    "classify": """
  python -m hsr_train task=classify preset=classify_demo     a first run on drawn images, a minute on two cores
  python -m hsr_train task=classify data.path=FOLDER         train: FOLDER/train/CLASS, FOLDER/val/CLASS
  python -m hsr_train task=classify mode=split data.raw=RAW  RAW/CLASS/*: make folds and a test set
  python -m hsr_train task=classify data.raw=RAW data.fold=0 train on a fold; data.fold=all trains every one
  python -m hsr_train --help                                 the same for object detectors
""",
}
_OF_ALL = {
    "resume=RUN": "go on with an interrupted run: its directory, or last",
    "reproduce=RUN": "repeat a run from its own record, and say if it is the same",
    "{task}--cfg job": "print the configuration of a run",
    "{task}-m train.batch=8,16": "one run for each value",
}
_FOOTER = "Every key with its meaning, unit and range: hsr_train/config/schema/. Hydra's own options: --hydra-help"


def help_text(overrides: Sequence[str], config_dir: Path | str | None, config_name: str | None) -> str:
    """Return the help for the task that is typed.

    Args:
        overrides: As typed; `task` and choices of groups count, values do not.
        config_dir: A folder with further YAML files.
        config_name: The primary configuration, where it is not the task's own.

    Raises:
        InputError: A choice is unknown.
    """
    typed = Typed.parse(overrides)
    kept = [line for line, o in zip(typed.lines, typed.parsed, strict=True) if "." not in o.key_or_group]
    choosing = [line for line in kept if line.partition("=")[0] not in ("mode", "resume", "reproduce", "runs")]
    experiment = compose_quietly(choosing, config_dir, config_name)
    choices = choices_of(SCHEMAS[experiment.task], config_dir)
    task = f"task={experiment.task} " if experiment.task != "detect" else ""
    rest = [f"  {f'python -m hsr_train {words.format(task=task)}':57}  {what}" for words, what in _OF_ALL.items()]
    verbs = "\n".join(f"  mode={verb:12}{meaning}" for verb, meaning in VERBS.items())
    groups = "\n".join(f"  {group}: {', '.join(options)}" for group, options in choices.items())
    sections = [
        f"{_HEADER}\n{_OF_TASK[experiment.task]}" + "\n".join(rest) + "\n",
        f"== Verbs: mode=VERB ==\n{verbs}\n",
        f"== Choices of task={experiment.task}: GROUP=CHOICE ==\n{groups}\n",
        f"== Keys: KEY=VALUE ==\n{dump(experiment)}",
    ]
    return "\n".join(sections) + f"\n{_FOOTER}\n"
