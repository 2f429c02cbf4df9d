"""What `preparation` has found and checked, for the rest of the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hsr_train.data.class_set import ClassificationSet
from hsr_train.engines.classification.models import Numbers
from hsr_train.engines.classification.weights import Start
from hsr_train.errors import Problem


@dataclass
class ClassifyInputs:
    """The prepared input of one run.

    Attributes:
        dataset: The checked images; None where a mode needs none.
        start: What the network starts from.
        classes: Names, in the order of the outputs.
        device: Such as cpu or cuda:0.
        mean: Per RGB channel, of values in [0, 1], that images are normalised with.
        std: Likewise.
        cache_dir: Our caches.
        sources: The images of mode=predict.
        left_out: Those that data.on_bad=skip left out, and why.
    """

    dataset: ClassificationSet | None
    start: Start
    classes: list[str]
    device: str
    mean: Numbers
    std: Numbers
    cache_dir: Path
    sources: list[Path] | None = None
    left_out: list[Problem] = field(default_factory=list)
