"""A contact sheet of the bank's cut-outs on a checkerboard, class by class: for a person to judge the masks."""

from __future__ import annotations

import cv2
import numpy as np

from hsr_train.synthesis.bank import ObjectBank
from hsr_train.synthesis.cutting import PAD_PX
from hsr_train.synthesis.store import Image

_TILE_PX, _GAP_PX, _CAPTION_PX, _TITLE_PX = 104, 6, 16, 28
_COLUMNS = 14
_MOST_TILES = 20 * _COLUMNS
_LONGEST_NAME = 15
_PAPER = 245
_SQUARE_PX, _SQUARES = 8, (150, 200)


def cutout_sheet(bank: ObjectBank) -> Image:
    """Return a picture, (h, w, 3): as many cut-outs of each class as fit, evenly drawn from it, each with its name."""
    of_class = {class_id: np.flatnonzero(bank.classes == class_id) for class_id in np.unique(bank.classes).tolist()}
    most = max(_MOST_TILES // len(of_class), 1)
    shown: list[int] = []
    for numbers in list(of_class.values())[:_MOST_TILES]:
        chosen = np.linspace(0, len(numbers) - 1, min(most, len(numbers))).round().astype(int)
        shown += numbers[chosen].tolist()
    tiles = [_tile(bank.pixels[number], bank.names[int(bank.classes[number])]) for number in shown]
    tiles += [np.full_like(tiles[0], _PAPER)] * (-len(tiles) % _COLUMNS)
    rows = [np.concatenate(tiles[i : i + _COLUMNS], axis=1) for i in range(0, len(tiles), _COLUMNS)]
    title = np.full((_TITLE_PX, rows[0].shape[1], 3), _PAPER, np.uint8)
    text = f"{len(bank):,} cut-outs of {len(of_class)} classes, from {bank.source}; {len(shown)} are shown"
    cv2.putText(title, text, (4, _TITLE_PX - 9), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
    return np.concatenate([title, *rows])


def _tile(pixels: Image, name: str) -> Image:
    own = pixels[PAD_PX:-PAD_PX, PAD_PX:-PAD_PX]
    factor = _TILE_PX / max(own.shape[:2])
    size = (max(round(own.shape[1] * factor), 1), max(round(own.shape[0] * factor), 1))
    small = np.asarray(cv2.resize(own, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR))
    board = (np.indices(small.shape[:2]) // _SQUARE_PX).sum(axis=0) % 2
    behind = np.asarray(_SQUARES, np.uint8)[board][..., None]
    tile = np.full((_TILE_PX + _CAPTION_PX + _GAP_PX, _TILE_PX + _GAP_PX, 3), _PAPER, np.uint8)
    tile[: small.shape[0], : small.shape[1]] = np.where(small[..., 3:] > 127, small[..., :3], behind)
    at = (1, _TILE_PX + _CAPTION_PX - 4)
    text = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 2]}.."
    cv2.putText(tile, text, at, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
    return tile
