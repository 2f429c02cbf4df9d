"""Which pixels of a photo are an object: by its polygon, by GrabCut from its box, or by masks that the user has.

`cut_objects` gives `bank` the cut-outs of one photo, or says why there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from hsr_train.synthesis.backgrounds import Floats
from hsr_train.synthesis.cutting import MIN_MASK_PIXELS, MIN_SIDE_PX, TOO_FEW, TOO_NARROW, Cutout, cut_out
from hsr_train.synthesis.files import EmptyMaskError, decode, decode_mask
from hsr_train.synthesis.photos import NO_MASK, Photo
from hsr_train.synthesis.store import Image

CUT_OFF = "is cut off at its photo's border"
_BORDER = 0.015
"""Of a photo's width and height: within it an object is at the border. Polygons drawn by hand end before it."""
_CUT_OFF_SHARE = 0.2
"""Share of an object's height (width) at the photo's border from which it counts as cut off there. A whole round
object that touches the border may count too: a lost cut-out does less harm than a straight edge amid an image."""
_OWN_IOU = 0.5
"""Least overlap (IoU) of an object's own mask with its box."""
_SHARED = 0.1
"""Most of what a common mask shows within a box that may lie within other boxes too."""

GRABCUT_PX = 160
"""Longest side at which GrabCut is solved."""
_GRABCUT_ROUNDS = 4
_GRABCUT_MARGIN = 0.25
"""Of a box's width and height: how much of what lies around it GrabCut sees."""
_GRABCUT_FILL = (0.2, 0.95)
"""Least and largest share of its box that an object fills."""
_GRABCUT_RING = 0.1
"""Of a box's width and height: how far around it GrabCut may go on, to show that it found something else."""
_GRABCUT_LEAK = 0.1
"""Most of what was found that lies there."""
_GRABCUT_BORDER = 0.4
"""Largest share of the box's border that an object touches."""
_GRABCUT_EXTENT = 0.6
"""Least share of the box that the found object's own box has."""


class Piece(NamedTuple):
    """An object's mask, tight.

    Attributes:
        left: Its first column in the photo.
        top: Its first row.
        mask: (h, w), 255 or 0.
    """

    left: int
    top: int
    mask: Image


def cut_objects(
    photo: Photo, numbers: Sequence[int], masks: str, *, side: int, largest_scale: float
) -> list[tuple[int, Cutout | str]]:
    """Cut objects out of a photo.

    Args:
        photo: The photo.
        numbers: Which of its objects.
        masks: polygons, grabcut or masks_dir.
        side: Side of a composed image in pixels.
        largest_scale: Largest factor by which an object is enlarged.

    Returns:
        For each of them its number and the cut-out, or why there is none.

    Raises:
        BadImageError: The photo or one of its masks cannot be used.
    """
    image = decode(photo.image)
    results: list[tuple[int, Cutout | str]] = []
    for number, piece in zip(numbers, _MAKERS[masks](photo, image, numbers), strict=True):
        if not isinstance(piece, Piece):
            results.append((number, piece))
            continue
        height, width = piece.mask.shape
        if cv2.countNonZero(piece.mask) < MIN_MASK_PIXELS:
            results.append((number, TOO_FEW))
        elif min(height, width) < MIN_SIDE_PX:
            results.append((number, TOO_NARROW))
        elif _is_cut_off(piece, image.shape[0], image.shape[1]):
            results.append((number, CUT_OFF))
        else:
            part = image[piece.top : piece.top + height, piece.left : piece.left + width]
            results.append((number, cut_out(part, piece.mask, max(image.shape[:2]), side, largest_scale)))
    return results


def _tight(mask: Image, left: int, top: int) -> Piece:
    x, y, width, height = cv2.boundingRect(mask)
    return Piece(left + x, top + y, mask[y : y + height, x : x + width])


def _is_cut_off(piece: Piece, height: int, width: int) -> bool:
    mask = piece.mask > 0
    right, bottom = width - piece.left - mask.shape[1], height - piece.top - mask.shape[0]
    x, y = max(round(_BORDER * width), 1), max(round(_BORDER * height), 1)
    shares = [
        mask[:, : max(x - piece.left, 0)].any(axis=1).mean(),
        mask[: max(y - piece.top, 0)].any(axis=0).mean(),
        mask[:, ::-1][:, : max(x - right, 0)].any(axis=1).mean(),
        mask[::-1][: max(y - bottom, 0)].any(axis=0).mean(),
    ]
    return bool(max(shares) > _CUT_OFF_SHARE)


def _window(box: Floats) -> tuple[int, int, int, int]:
    x0, y0 = np.floor(box[:2]).astype(int).tolist()
    x1, y1 = np.ceil(box[2:]).astype(int).tolist()
    return x0, y0, x1, y1


# ---- polygons


def _by_polygon(photo: Photo, image: Image, numbers: Sequence[int]) -> list[Piece | str]:
    size = np.array([image.shape[1], image.shape[0]], np.float32)
    pieces: list[Piece | str] = []
    for number in numbers:
        points = photo.segments[number] * size - 0.5
        inwards = np.sign(points.mean(axis=0) - points) * 0.001  # halfway between two pixels: the inner one
        corners = np.clip(np.round(points + inwards), 0, size - 1).astype(np.int32)
        x, y, width, height = cv2.boundingRect(corners)
        mask = np.zeros((height, width), np.uint8)
        cv2.fillPoly(mask, [corners - np.array([x, y], np.int32)], 255)
        # The parts of an object that something divides are joined by lines, which are not the object.
        mask = np.asarray(cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
        pieces.append(_tight(mask, x, y))
    return pieces


# ---- GrabCut


def _by_grabcut(photo: Photo, image: Image, numbers: Sequence[int]) -> list[Piece | str]:
    return [_grabcut(image, photo.boxes, number) for number in numbers]


def _grabcut(image: Image, boxes: Floats, number: int) -> Piece | str:
    """Part a box into object and surroundings by their colours; a function of the pixels and the boxes alone."""
    x0, y0, x1, y1 = _window(boxes[number])
    margins = [max(round(_GRABCUT_MARGIN * length), 4) for length in (x1 - x0, y1 - y0)]
    left, top = max(x0 - margins[0], 0), max(y0 - margins[1], 0)
    around = image[top : y1 + margins[1], left : x1 + margins[0]]
    factor = min(1.0, GRABCUT_PX / max(around.shape[:2]))
    small = cv2.resize(around, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)

    def scaled(box: Floats) -> tuple[slice, slice]:
        a, b, c, d = np.round((box - (left, top, left, top)) * factor).astype(int).clip(0).tolist()
        return slice(b, d), slice(a, c)

    belief = np.full(small.shape[:2], cv2.GC_BGD, np.uint8)
    within = scaled(boxes[number])
    ring = _GRABCUT_RING * np.tile(boxes[number][2:] - boxes[number][:2], 2) * (-1, -1, 1, 1)
    belief[scaled(boxes[number] + ring)] = cv2.GC_PR_BGD
    belief[within] = cv2.GC_PR_FGD
    for other in np.delete(boxes, number, axis=0):
        part = belief[scaled(other)]
        part[part == cv2.GC_PR_FGD] = cv2.GC_PR_BGD
    if not (belief == cv2.GC_BGD).any():
        return "fills its photo: GrabCut has nothing to tell it from"
    if not (belief == cv2.GC_PR_FGD).any():
        return "GrabCut finds hardly anything of it"
    cv2.setRNGSeed(0)  # of this thread
    cv2.grabCut(small, belief, None, np.zeros((1, 65)), np.zeros((1, 65)), _GRABCUT_ROUNDS, cv2.GC_INIT_WITH_MASK)  # type: ignore[call-overload]
    found = np.isin(belief, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    found = np.asarray(cv2.morphologyEx(found, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)), np.uint8)
    count, areas, stats, _ = cv2.connectedComponentsWithStats(found, connectivity=4)
    if count > 1:
        found = (areas == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())).astype(np.uint8)
    inside = np.zeros_like(found)
    inside[within] = found[within]
    if cv2.countNonZero(inside) < (1 - _GRABCUT_LEAK) * cv2.countNonZero(found):
        return "GrabCut lets it run beyond its box"
    refusal = _grabcut_refusal(inside[within])
    if refusal is not None:
        return refusal
    size = (around.shape[1], around.shape[0])
    smooth = cv2.resize(inside.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    mask = np.where(smooth > 0.5, 255, 0).astype(np.uint8)
    return _tight(mask, left, top)


def _grabcut_refusal(inside: Image) -> str | None:
    """Return what speaks against a mask, (h, w) 1 or 0 within the box, if anything does."""
    fewest, most = _GRABCUT_FILL
    if not inside.size or inside.mean() < fewest:
        return "GrabCut finds hardly anything of it"
    if inside.mean() > most:
        return "GrabCut takes nearly all of its box"
    if np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]]).mean() > _GRABCUT_BORDER:
        return "GrabCut takes much of its box's border"
    width, height = cv2.boundingRect(inside)[2:]
    if width * height < _GRABCUT_EXTENT * inside.size:
        return "GrabCut finds only a part of its box"
    return None


# ---- masks that the user has


def _by_given(photo: Photo, image: Image, numbers: Sequence[int]) -> list[Piece | str]:
    own = _own_masks(photo, image)
    whole: Image | None = None
    for file in photo.whole_masks:
        mask = decode_mask(file.image, image)
        whole = mask if whole is None else np.maximum(whole, mask)
    boxes = photo.boxes
    return [own[n] if n in own else _within_box(whole, boxes, n) if whole is not None else NO_MASK for n in numbers]


def _own_masks(photo: Photo, image: Image) -> dict[int, Piece]:
    """Return the masks of single objects by the object whose box they fit best; their numbers have no meaning."""
    pieces = []
    for file in photo.object_masks:
        try:
            pieces.append(_tight(decode_mask(file.image, image), 0, 0))
        except EmptyMaskError:
            continue  # what a program writes that found nothing in a box
    overlaps = np.zeros((len(photo.labels), len(pieces)))
    for k, (x0, y0, x1, y1) in enumerate(photo.boxes.tolist()):
        for i, piece in enumerate(pieces):
            height, width = piece.mask.shape
            shared_x = min(x1, piece.left + width) - max(x0, piece.left)
            shared_y = min(y1, piece.top + height) - max(y0, piece.top)
            shared = max(shared_x, 0.0) * max(shared_y, 0.0)
            overlaps[k, i] = shared / ((x1 - x0) * (y1 - y0) + width * height - shared)
    found: dict[int, Piece] = {}
    while overlaps.size and overlaps.max() >= _OWN_IOU:
        k, i = (int(n) for n in np.unravel_index(overlaps.argmax(), overlaps.shape))
        found[k] = pieces[i]
        overlaps[k], overlaps[:, i] = 0, 0
    return found


def _within_box(whole: Image, boxes: Floats, number: int) -> Piece | str:
    x0, y0, x1, y1 = _window(boxes[number])
    mask = whole[y0:y1, x0:x1].copy()
    there = cv2.countNonZero(mask)
    if not there:
        return "its mask is empty within its box"
    foreign = np.zeros_like(mask)
    for other in np.delete(boxes, number, axis=0):
        a, b, c, d = (max(n, 0) for n in np.array(_window(other)) - (x0, y0, x0, y0))
        foreign[b:d, a:c] = mask[b:d, a:c]
    if cv2.countNonZero(foreign) > _SHARED * there:
        return "its mask shows a neighbour too: it needs one of its own, <stem>_<n>.png"
    return _tight(mask, x0, y0)


_MAKERS: dict[str, Callable[[Photo, Image, Sequence[int]], list[Piece | str]]] = {
    "polygons": _by_polygon,
    "grabcut": _by_grabcut,
    "masks_dir": _by_given,
}
