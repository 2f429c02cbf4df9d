"""A contact sheet of composed images beside real ones, with their boxes and outlines, for a person to judge."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from hsr_train.synthesis.backgrounds import Scene
from hsr_train.synthesis.composer import Composed, Composer
from hsr_train.synthesis.store import Image

_TILE_PX, _GAP_PX, _TITLE_PX = 320, 6, 26
_PAPER = 245
_FILL = 0.12
"""How strongly an outline is filled with its class's colour."""


def contact_sheet(
    composer: Composer, real: Sequence[Scene], names: Sequence[str], columns: int = 4, epoch: int = 0
) -> Image:
    """Return a picture: rows of composed images, then the real ones.

    Args:
        composer: Its images 0, 1, ... of the epoch are shown, two rows of them for each row of real ones.
        real: Images with their labels.
        names: Class names by id.
        columns: Images beside each other.
        epoch: Counted from 0.
    """
    composed = [composer.compose(epoch, index) for index in range(max(2 * len(real), 2 * columns))]
    parts = [_title("composed", columns)]
    parts += _rows([_tile(one, names) for one in composed], columns)
    if real:
        parts += [_title("real", columns)]
        parts += _rows([_tile(one, names) for one in real], columns)
    return np.concatenate(parts)


def _tile(one: Composed | Scene, names: Sequence[str]) -> Image:
    factor = _TILE_PX / max(one.image.shape[:2])
    size = (round(one.image.shape[1] * factor), round(one.image.shape[0] * factor))
    small = np.asarray(cv2.resize(one.image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR))
    classes = one.classes.tolist()
    colours = [
        cv2.applyColorMap(np.array([[i * 67 % 256]], np.uint8), cv2.COLORMAP_HSV)[0, 0].tolist() for i in classes
    ]
    filled = small.copy()
    outlines = [np.round(points * factor).astype(np.int32) for points in one.outlines]
    for points, colour in zip(outlines, colours, strict=False):  # none at all where only boxes are known
        if len(points):
            cv2.fillPoly(filled, [points], colour)
    small = np.asarray(cv2.addWeighted(small, 1 - _FILL, filled, _FILL, 0))
    for points, colour in zip(outlines, colours, strict=False):
        if len(points):
            cv2.polylines(small, [points], True, colour, 1, cv2.LINE_AA)
    boxes = (one.boxes * factor).round().astype(int).tolist()
    for box, class_id, colour in zip(boxes, classes, colours, strict=True):
        cv2.rectangle(small, box[:2], box[2:], colour, 1)
        at = (max(box[0], 1), max(box[1] - 3, 9))
        shadow = (at[0] + 1, at[1] + 1)
        cv2.putText(small, names[class_id], shadow, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
        cv2.putText(small, names[class_id], at, cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1, cv2.LINE_AA)
    tile = np.full((_TILE_PX + _GAP_PX, _TILE_PX + _GAP_PX, 3), _PAPER, np.uint8)
    tile[: small.shape[0], : small.shape[1]] = small
    return tile


def _rows(tiles: list[Image], columns: int) -> list[Image]:
    empty = np.full_like(tiles[0], _PAPER)
    tiles = tiles + [empty] * (-len(tiles) % columns)
    return [np.concatenate(tiles[i : i + columns], axis=1) for i in range(0, len(tiles), columns)]


def _title(text: str, columns: int) -> Image:
    strip = np.full((_TITLE_PX, columns * (_TILE_PX + _GAP_PX), 3), _PAPER, np.uint8)
    cv2.putText(strip, text, (4, _TITLE_PX - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return strip
