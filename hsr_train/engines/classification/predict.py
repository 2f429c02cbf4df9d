"""mode=predict: a table of probabilities and a sheet of pictures for every image of a folder."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.data.class_files import bad_remedy, how_many, tell_left_out
from hsr_train.data.class_set import ClassSplit
from hsr_train.data.images import IMAGE_SUFFIXES, examine_image, quiet_decoder
from hsr_train.data.report import MOST_SHOWN
from hsr_train.engines.classification.evaluate import score
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.pictures import prediction_sheet
from hsr_train.engines.classification.reports import write_picture, write_predictions
from hsr_train.engines.classification.samples import make_loader
from hsr_train.engines.classification.training import samples
from hsr_train.errors import InputError, Problem
from hsr_train.run.directory import RunDirectory

log = logging.getLogger(__name__)

_REMEDY = "data.path=IMAGE or FOLDER"


def find_images(source: Path, *, skip: bool = False) -> tuple[list[Path], list[Problem]]:
    """List the images behind a path; a folder is searched with its sub-folders, hidden files are left out.

    Args:
        source: An image or a folder.
        skip: Leave out images that cannot be read, and say so.

    Returns:
        The sound images, and what is wrong with those left out.

    Raises:
        InputError: There is no image, or one of them cannot be read; every such image is named.
    """
    if not source.exists():
        raise InputError(Problem("data.path", str(source), "does not exist", _REMEDY))
    images = [source] if source.is_file() else sorted(_walk(source))
    wrong = [image for image in images if image.suffix.lower().lstrip(".") not in IMAGE_SUFFIXES]
    if wrong or not images:
        what = "is not an image" if wrong else "is a folder without images"
        raise InputError(Problem("data.path", str(source), what, _REMEDY))
    problems, sound = [], []
    with quiet_decoder():
        for image in images:
            try:
                _, fault = examine_image(image.read_bytes(), image.suffix.lower().lstrip("."))
            except OSError as error:
                fault = f"cannot be read: {error.strerror or error}"
            if fault:
                problems.append(Problem(str(image), "", fault))
            else:
                sound.append(image)
    if problems and not (skip and sound):
        shown = [*problems[:MOST_SHOWN]]
        if len(problems) > MOST_SHOWN:
            shown.append(Problem(f"and {how_many(len(problems) - MOST_SHOWN)} more", "", "likewise"))
        if skip:
            raise InputError([*shown, Problem("data.path", str(source), "no sound image is left", _REMEDY)])
        raise InputError([*shown, bad_remedy(len(problems), source)])
    if problems:
        tell_left_out(problems)
    return sound, problems


def _walk(folder: Path) -> list[Path]:
    found = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            Path(root) / name
            for name in names
            if not name.startswith(".") and name.rpartition(".")[2].lower() in IMAGE_SUFFIXES
        ]
    return found


def predict(experiment: ClassifyExperiment, inputs: ClassifyInputs, model: object, run: RunDirectory) -> list[str]:
    """Write predictions.csv and predictions.jpg into a run's directory; return lines that sum them up.

    Args:
        experiment: With image size, batch, workers and `predict.top`.
        inputs: The images, classes and normalisation.
        model: The network, on its device.
        run: The run's directory.
    """
    images = inputs.sources or []
    unknown = np.zeros(len(images), np.int64)
    split = ClassSplit("predict", images, unknown, [""] * len(images), np.zeros((len(images), 2), np.int64))
    train = experiment.train
    batch = int(train.val_batch or train.batch)
    loader = make_loader(
        samples(experiment, split, train.imgsz, augment=False),
        batch_size=batch,
        at_once=batch,
        workers=train.workers,
        seed=train.seed,
        shuffle=False,
        start_epoch=0,
        pin=inputs.device != "cpu",
    )
    try:
        found = score(model, loader, inputs)  # type: ignore[arg-type]
    finally:
        loader.close()
    write_predictions(run.path / "predictions.csv", images, found.probabilities, inputs.classes, experiment.predict.top)
    write_picture(run.path / "predictions.jpg", prediction_sheet(images, found.probabilities, inputs.classes))
    counts = np.bincount(found.probabilities.argmax(1), minlength=len(inputs.classes))
    width = max(len(name) for name in inputs.classes)
    lines = [f"{name:{width}} {count:6,}" for name, count in zip(inputs.classes, counts, strict=True) if count]
    if len(images) == 1:
        order = np.argsort(-found.probabilities[0], kind="stable")[: experiment.predict.top]
        lines = [f"{inputs.classes[i]:{width}} {found.probabilities[0][i]:.4f}" for i in order]
    left_out = f"; left out as broken: {how_many(len(inputs.left_out))}" if inputs.left_out else ""
    return [*lines, f"Probabilities of {how_many(len(images), 'image')}: {run.path / 'predictions.csv'}{left_out}"]
