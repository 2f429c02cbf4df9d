"""The networks of all folds together, on the test set that none of them has seen."""

from __future__ import annotations

import numpy as np

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.engines.classification.evaluate import score
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.network import load_network
from hsr_train.engines.classification.reports import Evaluation
from hsr_train.engines.classification.samples import make_loader
from hsr_train.engines.classification.training import samples
from hsr_train.run.directory import RunDirectory


def evaluate_together(
    experiment: ClassifyExperiment, inputs: ClassifyInputs, runs: list[RunDirectory]
) -> Evaluation | None:
    """Average the probabilities of every run's best.pt; None where the set has no test images."""
    assert inputs.dataset is not None
    test = inputs.dataset.splits.get("test")
    if test is None:
        return None
    train = experiment.train
    batch = int(train.val_batch or train.batch)
    probabilities, targets = [], test.targets
    for run in runs:
        loader = make_loader(
            samples(experiment, test, train.imgsz, augment=False),
            batch_size=batch,
            at_once=batch,
            workers=train.workers,
            seed=train.seed,
            shuffle=False,
        )
        try:
            found = score(load_network(run.weights / "best.pt", inputs.device), loader, inputs)
        finally:
            loader.close()
        probabilities.append(found.probabilities)
    mean = np.mean(probabilities, axis=0)
    loss = float(-np.log(np.clip(mean[np.arange(len(targets)), targets], 1e-12, 1)).mean())
    return Evaluation("test", inputs.classes, targets, mean, test.images, loss)
