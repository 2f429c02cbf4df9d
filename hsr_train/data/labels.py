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

_FORM = "a line is `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon"
_INSIDE = "must lie inside the image: 0 to 1, in fractions of its width and height"


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


@dataclass(slots=True)
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
        bad_line = raw[: err.start].count(b"\n") + 1
        labels.faults.append(Fault(bad_line, f"byte 0x{raw[err.start]:02x}", "must be UTF-8 text"))
        return labels
    rows: dict[tuple[float, ...], tuple[float, ...]] = {}
    polygons: list[Floats] = []
    for number, line in enumerate(lines, 1):
        tokens = line.split()
        if not tokens:
            continue
        if len(tokens) == rules.pose_columns:
            tokens = tokens[:5]
        values = _numbers(tokens)
        if not _is_good(values, rules.num_classes):
            labels.faults.append(Fault(number, *_explain(tokens, values, rules.num_classes)))
        elif values in rows:
            labels.num_duplicates += 1
        elif len(values) == 5:
            rows[values] = values
        else:
            points = np.array(values[1:], np.float32).reshape(-1, 2)
            low, high = points.min(0), points.max(0)
            rows[values] = (values[0], *((low + high) / 2).tolist(), *(high - low).tolist())
            polygons.append(points)
    if rows:
        labels.boxes = np.array(list(rows.values()), np.float32)
    labels.polygons = polygons if len(polygons) == len(rows) else None
    return labels


def _numbers(tokens: list[str]) -> tuple[float, ...]:
    """Return the numbers of a line; empty if one of them is none."""
    try:
        return tuple(map(float, tokens))
    except ValueError:
        return ()


def _is_good(values: tuple[float, ...], num_classes: int) -> bool:
    """Say whether a line can be used. NaN fails every comparison, and so does infinity somewhere."""
    if len(values) == 5:
        _, x, y, width, height = values
        left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
    elif len(values) > 6 and len(values) % 2:
        xs, ys = values[1::2], values[2::2]
        if not all(map(math.isfinite, values)):
            return False  # min and max pass over a NaN.
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    else:
        return False
    return (
        -TOLERANCE <= left < right <= 1 + TOLERANCE
        and -TOLERANCE <= top < bottom <= 1 + TOLERANCE
        and 0 <= values[0] < num_classes
        and values[0] == int(values[0])
    )


def _explain(tokens: list[str], values: tuple[float, ...], num_classes: int) -> tuple[str, str]:
    """Return the offending text of a line that is not good, and what is allowed."""
    count = len(tokens)
    if not values:
        return next(token for token in tokens if not _numbers([token])), f"is not a number: {_FORM}"
    if count < 5 or count == 6 or count % 2 == 0:
        return f"{count} number{'s' if count > 1 else ''}", _FORM
    for token, value in zip(tokens, values, strict=True):
        if not math.isfinite(value):
            return token, "must be a finite number"
    if not (0 <= values[0] < num_classes and values[0] == int(values[0])):
        return f"class {tokens[0]}", f"class ids are whole numbers from 0 to {num_classes - 1}"
    if count == 5 and min(values[3:]) <= 0:
        return f"width {tokens[3]}, height {tokens[4]}", "width and height must be above 0"
    for token, value in zip(tokens[1:], values[1:], strict=True):
        if not -TOLERANCE <= value <= 1 + TOLERANCE:
            return f"coordinate {token}", _INSIDE
    if count > 5:
        return "a polygon without area", "its points must span a width and a height above 0"
    _, x, y, width, height = values
    corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return "box from ({:.3f}, {:.3f}) to ({:.3f}, {:.3f})".format(*corners), _INSIDE
