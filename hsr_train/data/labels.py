"""One YOLO label file: every line read and judged.

A line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` (a polygon, which becomes its box); coordinates are
fractions of the image's width and height. Called by `files` for each label file; the judgement needs only the number
of classes, so `cache` can keep it.

What counts as outside: a coordinate may leave [0, 1] by up to 0.01, as `yolo` allows for the rounding of labelling
tools, and so may a box's edge; such boxes are kept as written. Anything further out is a fault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TOLERANCE = 0.01
"""How far a coordinate may lie outside [0, 1]: one hundredth of the image's side."""

_BOX_FORM = "a line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon"


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file, or with one line of it.

    Attributes:
        line: Line number from 1; 0 for the file as a whole.
        value: The offending text.
        allowed: What would have been accepted.
    """

    line: int
    value: str
    allowed: str


@dataclass
class Labels:
    """What one label file holds.

    Attributes:
        boxes: (k, 5) class, centre x, centre y, width, height; fractions of the image.
        polygons: One (p, 2) array of x, y for each box, or None where at least one line is a plain box.
        faults: Lines that cannot be used; their boxes are left out.
        num_duplicates: Lines that repeat an earlier one; left out.
    """

    boxes: Floats
    polygons: list[Floats] | None
    faults: list[Fault] = field(default_factory=list)
    num_duplicates: int = 0


@dataclass(frozen=True)
class LabelRules:
    """What a label line is judged by.

    Attributes:
        num_classes: Class ids are 0 to this number minus 1.
        pose_columns: Length of a line that goes on with keypoints, which are left out; 0 where there are none.
    """

    num_classes: int
    pose_columns: int = 0


def no_labels() -> Labels:
    """Return the labels of a background image."""
    return Labels(np.zeros((0, 5), np.float32), [])


def parse_labels(raw: bytes, rules: LabelRules) -> Labels:
    """Read a label file.

    Args:
        raw: The file's content: UTF-8, with or without a byte-order mark.
        rules: What its lines are judged by.
    """
    labels = no_labels()
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as err:
        labels.faults.append(
            Fault(raw[: err.start].count(b"\n") + 1, f"byte 0x{raw[err.start]:02x}", "must be UTF-8 text")
        )
        return labels
    rows: list[list[float]] = []
    polygons: list[Floats] = []
    seen: set[tuple[float, ...]] = set()
    for number, line in enumerate(lines, 1):
        tokens = line.split()
        if not tokens:
            continue
        if len(tokens) == rules.pose_columns:
            tokens = tokens[:5]
        values, fault = _read_line(tokens, rules.num_classes)
        if fault:
            labels.faults.append(Fault(number, *fault))
            continue
        key = tuple(values)
        if key in seen:
            labels.num_duplicates += 1
            continue
        seen.add(key)
        if len(values) == 5:
            rows.append(values)
        else:
            points = np.array(values[1:], np.float32).reshape(-1, 2)
            polygons.append(points)
            low, high = points.min(0), points.max(0)
            rows.append([values[0], *((low + high) / 2).tolist(), *(high - low).tolist()])
    if rows:
        labels.boxes = np.array(rows, np.float32)
    labels.polygons = polygons if len(polygons) == len(rows) else None
    return labels


def _read_line(tokens: list[str], num_classes: int) -> tuple[list[float], tuple[str, str] | None]:
    """Return the numbers of one line, and the offending text with what is allowed if it cannot be used."""
    try:
        values = [float(token) for token in tokens]
    except ValueError:
        word = next(token for token in tokens if not _is_number(token))
        return [], (word, f"is not a number: {_BOX_FORM}")
    count = len(values)
    if count < 5 or count == 6 or count % 2 == 0:
        return [], (f"{count} number{'s' if count > 1 else ''}", _BOX_FORM)
    if not all(map(math.isfinite, values)):
        return [], (
            next(t for t, v in zip(tokens, values, strict=True) if not math.isfinite(v)),
            "must be a finite number",
        )
    if values[0] != int(values[0]) or not 0 <= values[0] < num_classes:
        return [], (f"class {tokens[0]}", f"class ids are whole numbers from 0 to {num_classes - 1}")
    if count == 5:
        _, x, y, width, height = values
        if width <= 0 or height <= 0:
            return [], (f"width {tokens[3]}, height {tokens[4]}", "width and height must be above 0")
        low = min(x - width / 2, y - height / 2, x, y)
        high = max(x + width / 2, y + height / 2, width, height, x, y)
    else:
        xs, ys = values[1::2], values[2::2]
        low, high = min(*xs, *ys), max(*xs, *ys)
        if max(xs) <= min(xs) or max(ys) <= min(ys):
            return [], ("a polygon without area", "its points must span a width and a height above 0")
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        return [], (_outside(values, tokens), "must lie inside the image: 0 to 1, in fractions of its width and height")
    return values, None


def _outside(values: list[float], tokens: list[str]) -> str:
    """Name what lies outside the image."""
    for token, value in zip(tokens[1:], values[1:], strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            return f"coordinate {token}"
    _, x, y, width, height = values
    return f"box from ({x - width / 2:.3f}, {y - height / 2:.3f}) to ({x + width / 2:.3f}, {y + height / 2:.3f})"


def _is_number(token: str) -> bool:
    try:
        float(token)
    except ValueError:
        return False
    return True
