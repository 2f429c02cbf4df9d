"""What an evaluation leaves behind: figures per class as text and JSON, the confusion matrix, the worst mistakes.

The layout of the text and the figures are scikit-learn's; `pictures.py` draws. Every file is whole or not there.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from hsr_train.engines.classification.calibration import NUM_BINS, Calibration, calibrate
from hsr_train.engines.classification.pictures import Mistake, matrix_picture, mistakes_sheet, reliability_picture
from hsr_train.errors import InputError, Problem
from hsr_train.run.atomic import write_bytes, write_json, write_text

MOST_MISTAKES = 24


def load_metrics() -> Any:
    """Return the module sklearn.metrics.

    Raises:
        InputError: If scikit-learn is not installed.
    """
    try:
        from sklearn import metrics
    except ModuleNotFoundError as error:
        if error.name != "sklearn":
            raise
        raise InputError(
            Problem("task", "classify", "scikit-learn is not installed", 'type pip install "hsr_train[classify]"')
        ) from error
    return metrics


@dataclass
class Evaluation:
    """A network's answers on a split.

    Classes that neither an image has nor any answer names take no part in means and reports, as in scikit-learn.

    Attributes:
        split: train, val or test.
        classes: Names, in the order of the outputs.
        targets: (n,) class numbers, at least one.
        probabilities: (n, k), rows add up to 1.
        images: The files, in the same order.
        loss: Mean cross-entropy, where it is known.
    """

    split: str
    classes: list[str]
    targets: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    images: list[Path]
    loss: float | None = None

    def __post_init__(self) -> None:
        if not len(self.targets) == len(self.probabilities) == len(self.images) > 0:
            raise ValueError("as many targets, probabilities and images are needed, and at least one")
        if self.probabilities.shape[1] != len(self.classes):
            raise ValueError(f"{self.probabilities.shape[1]} probabilities for {len(self.classes)} classes")

    @cached_property
    def predicted(self) -> npt.NDArray[np.int64]:
        """The most probable class of each image, of shape (n,)."""
        return np.asarray(self.probabilities.argmax(1), np.int64)

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable class is the right one."""
        return float((self.predicted == self.targets).mean())

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that take part."""
        return float(np.mean([row["f1"] for row in self.per_class]))

    @cached_property
    def confusion(self) -> npt.NDArray[np.int64]:
        """Images by true class (rows) and answer (columns), of shape (k, k)."""
        counts = np.zeros((len(self.classes), len(self.classes)), np.int64)
        np.add.at(counts, (self.targets, self.predicted), 1)
        return counts

    @cached_property
    def per_class(self) -> list[dict[str, Any]]:
        """Class, precision, recall, f1 and support (its images) of each class that takes part."""
        columns = load_metrics().precision_recall_fscore_support(
            self.targets, self.predicted, labels=self._taking_part, zero_division=0
        )
        return [
            {
                "class": self.classes[i],
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "support": int(support),
            }
            for i, precision, recall, f1, support in zip(self._taking_part, *columns, strict=True)
        ]

    @cached_property
    def calibration(self) -> Calibration:
        """Whether the probabilities of the answers are those of being right."""
        return calibrate(self.targets, self.probabilities)

    @property
    def _taking_part(self) -> list[int]:
        return sorted({*self.targets.tolist(), *self.predicted.tolist()})

    @property
    def _absent(self) -> list[str]:
        return [name for i, name in enumerate(self.classes) if i not in self._taking_part]

    def report_text(self) -> str:
        """Return scikit-learn's table with four digits, and the calibration error below it."""
        table: str = load_metrics().classification_report(
            self.targets,
            self.predicted,
            labels=self._taking_part,
            target_names=[self.classes[i] for i in self._taking_part],
            digits=4,
            zero_division=0,
        )
        table += f"\nExpected calibration error ({NUM_BINS} bins): {self.calibration.error:.4f}\n"
        if self._absent:
            table += f"\nNeither here nor predicted: {', '.join(self._absent)}\n"
        return table

    def report_json(self) -> dict[str, Any]:
        """Return the figures, and the confusion matrix with the true classes as rows."""
        support = np.array([row["support"] for row in self.per_class])
        figures = {key: np.array([row[key] for row in self.per_class]) for key in ("precision", "recall", "f1")}
        return {
            "split": self.split,
            "images": len(self.images),
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "loss": self.loss,
            "expected_calibration_error": self.calibration.error,
            "calibration": self.calibration.rows(),
            "per_class": self.per_class,
            "macro_average": {key: float(values.mean()) for key, values in figures.items()},
            "weighted_average": {key: float(values @ support / support.sum()) for key, values in figures.items()},
            "absent": self._absent,
            "classes": self.classes,
            "confusion": self.confusion.tolist(),
        }

    def mistakes(self, most: int = MOST_MISTAKES) -> list[Mistake]:
        """Return the wrong answers, those first that leave the true class the least probability."""
        rows = np.flatnonzero(self.predicted != self.targets)
        of_truth = self.probabilities[rows, self.targets[rows]]
        worst = rows[np.argsort(of_truth, kind="stable")][:most]
        return [
            Mistake(
                image=self.images[i],
                truth=self.classes[self.targets[i]],
                answer=self.classes[self.predicted[i]],
                probability=float(self.probabilities[i, self.predicted[i]]),
                of_truth=float(self.probabilities[i, self.targets[i]]),
            )
            for i in worst
        ]


def write_reports(evaluation: Evaluation, logs: Path, plots: Path) -> None:
    """Write classification_report_<split>.txt and .json, and pictures.

    The pictures: confusion_<split>.png, reliability_<split>.png and, if there are mistakes, worst_<split>.jpg.

    Args:
        evaluation: What is reported.
        logs: Folder of the reports.
        plots: Folder of the pictures.

    Raises:
        RunError: The disk refused.
    """
    split = evaluation.split
    write_text(logs / f"classification_report_{split}.txt", evaluation.report_text())
    write_json(logs / f"classification_report_{split}.json", evaluation.report_json())
    write_picture(plots / f"confusion_{split}.png", confusion_picture(evaluation))
    write_picture(plots / f"reliability_{split}.png", calibration_picture(evaluation))
    if mistakes := evaluation.mistakes():
        write_picture(plots / f"worst_{split}.jpg", mistakes_sheet(mistakes))


def confusion_picture(evaluation: Evaluation) -> npt.NDArray[np.uint8]:
    """Draw the confusion matrix of an evaluation, as RGB (height, width, 3)."""
    title = f"{evaluation.split}: accuracy {evaluation.accuracy:.4f} of {len(evaluation.images)} images"
    return matrix_picture(evaluation.confusion, evaluation.classes, title)


def calibration_picture(evaluation: Evaluation) -> npt.NDArray[np.uint8]:
    """Draw how often answers are right against how sure they are, as RGB (height, width, 3)."""
    error, count = evaluation.calibration.error, len(evaluation.images)
    return reliability_picture(evaluation.calibration, f"{evaluation.split}: ECE {error:.4f} of {count} images")


def write_picture(path: Path, picture: npt.NDArray[np.uint8]) -> None:
    """Write an RGB picture (height, width, 3) in the format that the file's name ends with."""
    good, data = cv2.imencode(path.suffix, np.ascontiguousarray(picture[..., ::-1]))
    if not good:
        raise ValueError(f"OpenCV cannot encode {path.name}")
    write_bytes(path, data.tobytes())


def write_predictions(
    path: Path, images: Sequence[Path | str], probabilities: npt.NDArray[np.float64], classes: Sequence[str], top: int
) -> None:
    """Write a CSV with a row for each image.

    Columns: file; predicted; top, the most probable classes from the first on, separated by semicolons; and p_<class>,
    the probability of each class.

    Args:
        path: Of the CSV.
        images: Names, as they shall appear.
        probabilities: (n, k).
        classes: k names.
        top: How many classes the column of that name has at most.

    Raises:
        RunError: The disk refused.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "predicted", "top", *(f"p_{name}" for name in classes)])
    for image, row in zip(images, probabilities, strict=True):
        order = np.argsort(-row, kind="stable")
        named = "; ".join(classes[i] for i in order[:top])
        table.writerow([str(image), classes[order[0]], named, *(f"{value:.6f}" for value in row)])
    write_text(path, text.getvalue())
