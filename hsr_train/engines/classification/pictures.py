"""Pictures of an evaluation: confusion matrix, reliability diagram, contact sheets of mistakes and predictions.

All are RGB arrays of uint8, for files and for TensorBoard alike; `reports.py` writes them. matplotlib is used without
pyplot, whose figures are global.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from hsr_train.engines.classification.calibration import Calibration
from hsr_train.engines.classification.samples import read_picture
from hsr_train.errors import RunError

log = logging.getLogger(__name__)

Picture = npt.NDArray[np.uint8]
"""(height, width, 3), RGB."""

MOST_NAMED = 120
"""With more classes than this, a name and a count for each could not be read."""
_DPI = 100
_INK, _RED, _GREEN, _PAPER = (34, 34, 34), (190, 30, 30), (20, 120, 50), (255, 255, 255)
_TILE, _LINE, _GAP = 200, 17, 10
"""Pixels: side of a picture on a sheet, height of a line below it, space around both."""

Line = tuple[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Mistake:
    """A wrong answer.

    Attributes:
        image: The file.
        truth: The true class.
        answer: The most probable class.
        probability: Of the answer.
        of_truth: Probability that the true class was given.
    """

    image: Path
    truth: str
    answer: str
    probability: float
    of_truth: float


def matrix_picture(confusion: npt.NDArray[np.int64], classes: Sequence[str], title: str = "") -> Picture:
    """Draw a confusion matrix: counts in the cells, each row coloured by its shares.

    Args:
        confusion: (k, k), true classes as rows.
        classes: k names.
        title: Above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(classes)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    cell_in = 0.75 if count <= 8 else 0.3 if count <= 60 else 0.2 if count <= MOST_NAMED else 15 / count
    names = [_shortened(name) for name in classes]
    side_in = count * cell_in
    label_in = 0.085 * max(map(len, names)) + 0.7 if count <= MOST_NAMED else 0.8
    width, height = label_in + max(side_in, 2.2) + 0.3, label_in + max(side_in, 2.2) + 0.6
    figure = Figure(figsize=(width, height), dpi=_DPI)
    canvas: Any = FigureCanvasAgg(figure)
    side = max(side_in, 2.2)
    axes: Any = figure.add_axes((label_in / width, label_in / height, side / width, side / height))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    font = 11 if count <= 8 else 7.5 if count <= 60 else 5
    if count <= MOST_NAMED:
        axes.set_xticks(
            range(count), names, rotation=90 if count > 8 else 30, fontsize=max(font, 5.5), parse_math=False
        )
        if count <= 8:
            for label in axes.get_xticklabels():
                label.set_horizontalalignment("right")
        axes.set_yticks(range(count), names, fontsize=max(font, 5.5), parse_math=False)
        axes.set_xticks(np.arange(count + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(count + 1) - 0.5, minor=True)
        axes.grid(which="minor", color="0.88", linewidth=0.5)
        axes.tick_params(which="minor", length=0)
        for row, column in zip(*np.nonzero(confusion if count > 8 else np.ones_like(confusion)), strict=True):
            colour = "white" if shares[row, column] > 0.5 else "black" if row == column else "#a02020"
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=font)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    figure.text(0.1 / width, 1 - 0.15 / height, title, fontsize=10, va="top", parse_math=False)
    with warnings.catch_warnings(action="ignore"):  # a script that the font lacks appears as boxes
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def reliability_picture(calibration: Calibration, title: str = "") -> Picture:
    """Draw each bin's share of right answers as a bar, beside the diagonal on which probabilities are honest.

    Args:
        calibration: The bins.
        title: Above it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    num_bins = len(calibration.counts)
    filled = np.flatnonzero(calibration.counts)
    figure = Figure(figsize=(5, 5.6), dpi=_DPI, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)
    bars, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    middle, width = (filled + 0.5) / num_bins, 0.92 / num_bins
    bars.plot([0, 1], [0, 1], "--", color="0.5", label="accuracy = confidence")
    bars.bar(middle, calibration.accuracy[filled], width, color="tab:blue", alpha=0.75, label="accuracy")
    bars.plot(calibration.confidence[filled], calibration.accuracy[filled], "o", color="black", markersize=4)
    bars.set(ylabel="share of right answers", xlim=(0, 1), ylim=(0, 1.02))
    bars.legend(loc="upper left", fontsize=8)
    bars.set_title(title, fontsize=10, parse_math=False)
    counts.bar(middle, calibration.counts[filled], width, color="0.6")
    counts.set(xlabel="probability of the answer", ylabel="images")
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def mistakes_sheet(mistakes: Sequence[Mistake]) -> Picture:
    """Draw wrong answers as a contact sheet: each picture with its true class, the answer, and the probabilities."""
    tiles = [
        (m.image, [(f"true: {m.truth} {m.of_truth:.2f}", _GREEN), (f"said: {m.answer} {m.probability:.2f}", _RED)])
        for m in mistakes
    ]
    return _sheet(tiles)


def prediction_sheet(
    images: Sequence[Path], probabilities: npt.NDArray[np.float64], classes: Sequence[str], most: int = 48
) -> Picture:
    """Draw the first images as a contact sheet: each with its file's name, its class and the probability.

    Args:
        images: Files, at least one.
        probabilities: (n, k).
        classes: k names.
        most: Pictures on the sheet.
    """
    tiles: list[tuple[Path, list[Line]]] = []
    for image, row in zip(images[:most], probabilities[:most], strict=True):
        best = int(row.argmax())
        tiles.append((Path(image), [(Path(image).name, _INK), (f"{classes[best]} {row[best]:.2f}", _GREEN)]))
    return _sheet(tiles)


def _sheet(tiles: Sequence[tuple[Path, list[Line]]]) -> Picture:
    """Lay pictures out in rows, each with its lines below it."""
    columns = min(6, len(tiles))
    rows = -(-len(tiles) // columns)
    step_x, step_y = _TILE + _GAP, _TILE + _GAP + _LINE * max(len(lines) for _, lines in tiles)
    paper = Image.new("RGB", (columns * step_x + _GAP, rows * step_y + _GAP), _PAPER)
    pen, font = ImageDraw.Draw(paper), _font()
    for number, (file, lines) in enumerate(tiles):
        left, top = _GAP + number % columns * step_x, _GAP + number // columns * step_y
        picture = _thumbnail(file)
        paper.paste(picture, (left + (_TILE - picture.width) // 2, top + (_TILE - picture.height) // 2))
        for at, (text, colour) in enumerate(lines):
            pen.text((left, top + _TILE + 2 + at * _LINE), _fitting(text, font), fill=colour, font=font)
    return np.asarray(paper, np.uint8).copy()


def _thumbnail(file: Path) -> Image.Image:
    try:
        picture = read_picture(file, _TILE)
    except RunError as error:
        log.warning("Missing on the contact sheet: %s", error)
        return Image.new("RGB", (_TILE, _TILE), (225, 225, 225))
    height, width = picture.shape[:2]
    factor = _TILE / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    return Image.fromarray(np.ascontiguousarray(cv2.resize(picture, size, interpolation=method)[..., ::-1]))


def _font() -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 12)


def _fitting(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Return a text that is no wider than a picture; what is left out is in its middle, since both ends tell."""
    text = " ".join(text.split())
    kept = text
    length = len(text)
    while font.getlength(kept) > _TILE and length > 2:
        length -= 1
        kept = f"{text[: (length + 1) // 2]}…{text[len(text) - length // 2 :]}"
    return kept


def _shortened(name: str, most: int = 26) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
