"""The parity gate: an exported file must find what the weights that it came from find.

`export.py` asks `check` before it keeps a file; both models run through `evaluate.py` on the same images.

Boxes are matched one to one within a class, those that agree best first (not by overlap: boxes cut by the image's
border may have no area). Suppression is where two right models may part: of two overlapping boxes with equal scores,
rounding decides which one stays. Before suppression there is no such doubt, so a box without a fitting partner is
looked up among everything that the other model proposed before suppression; if the same box is there, the models agree.
Measured on 75 photographs of 640 x 480 pixels with yolov8n at 640: among 20,738 boxes above 0.001 one such tie; all
others differed by at most 0.008 px and 0.000003 in score.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hsr_train.data.detection_set import DetectionSet
from hsr_train.engines.detection.evaluate import Evaluation, evaluate
from hsr_train.engines.detection.library import bring_up

bring_up()
from ultralytics.utils import LOGGER  # noqa: E402

Rows = npt.NDArray[np.float64]
"""(n, 6): x1, y1, x2, y2 in pixels of the original image, score, class."""

MOST_BOX_DIFFERENCE_PX = 1.0
MOST_SCORE_DIFFERENCE = 1e-3
MOST_METRIC_DIFFERENCE = 0.002
LEAST_SCORE = 0.01
"""Boxes below are compared only through the metrics: nobody uses them, and ties are frequent among thousands."""

METRICS = ("mAP50", "mAP50-95")
_NO_SUPPRESSION = {"iou": 1.0, "max_det": 30_000}
_FEW, _MOST_TIES = 4, 0.01
"""Up to so many disputed boxes, or this share, get a second look; ties are rarer, and more is disagreement."""

_PARTNER_PX = 16.0
"""Boxes further apart are two boxes, not one that moved."""

_WEAK_IMAGES, _WEAK_BOXES = 4, 100
_BEST_FOR_GRAPH = 300


@dataclass(frozen=True)
class Subject:
    """One of the two models, and how it is run.

    Attributes:
        model: The weights, or the file exported from them.
        device: A torch device.
        dataset: The images; labels may be empty.
        split: Their split.
        imgsz: Longer side of the network input in pixels.
        dynamic: Run several images at once in shapes of their own; otherwise single squares.
        workers: Loader processes.
        cache_dir: Our cache folder.
        output_dir: A folder for what the validator leaves.
        options: Ultralytics options that change what the network puts out.
    """

    model: Path
    device: str
    dataset: DetectionSet
    split: str
    imgsz: int
    dynamic: bool
    workers: int
    cache_dir: Path
    output_dir: Path
    options: dict[str, Any]

    def run(self, images: list[str] | None = None, **options: Any) -> Evaluation:
        """Evaluate, on the named images only if any are named."""
        dataset = self.dataset if images is None else _only(self.dataset, self.split, images)
        labelled = any(len(labels) for labels in dataset.splits[self.split].labels)
        with _full_float32(), nullcontext() if labelled else _quiet_library(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch.jit.load announces its retirement
            return evaluate(
                self.model,
                dataset,
                self.split,
                imgsz=self.imgsz,
                batch=4 if self.dynamic else 1,
                device=self.device,
                workers=self.workers if images is None else 0,
                cache_dir=self.cache_dir,
                output_dir=self.output_dir,
                plots=False,
                rect=self.dynamic,
                keep_boxes=True,
                options={**self.options, **options},
            )


@dataclass(frozen=True)
class _Dispute:
    """A box without a fitting partner: whose it is, and how far off its partner is (infinite if it has none)."""

    image: str
    is_original: bool
    row: Rows
    box: float = float("inf")
    score: float = float("inf")


@dataclass
class Parity:
    """What the gate found.

    Attributes:
        images: Images compared.
        boxes: Boxes that agree.
        score_threshold: Least score of a compared box.
        ties: Those among them that one model dropped in favour of an equal one.
        unmatched: Boxes of either model without an equal in the other.
        max_box_difference_px: Largest difference of a coordinate between partners, pixels of the original image.
        max_score_difference: Largest difference of a score between partners.
        metric_differences: By metric; empty where the images have no labels.
        failures: What is out of bounds, in words; empty if the export agrees.
    """

    images: int = 0
    boxes: int = 0
    score_threshold: float = LEAST_SCORE
    ties: int = 0
    unmatched: int = 0
    max_box_difference_px: float = 0.0
    max_score_difference: float = 0.0
    metric_differences: dict[str, float] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def take(self, box: float, score: float) -> None:
        """Count a box that agrees with its partner up to these differences."""
        self.boxes += 1
        self._widen(box, score)

    def refuse(self, box: float, score: float) -> None:
        """Count a box that differs too much from its partner, or has none (infinite differences)."""
        self.unmatched += 1
        if np.isfinite(box):
            self._widen(box, score)

    def _widen(self, box: float, score: float) -> None:
        self.max_box_difference_px = max(self.max_box_difference_px, box)
        self.max_score_difference = max(self.max_score_difference, score)

    def as_json(self) -> dict[str, Any]:
        """Return the figures for the run's record."""
        return {
            "passed": not self.failures,
            "images": self.images,
            "boxes": self.boxes,
            "score_threshold": self.score_threshold,
            "max_box_difference_px": self.max_box_difference_px,
            "max_score_difference": self.max_score_difference,
            "unmatched": self.unmatched,
            "ties": self.ties,
            **{f"{name}_difference": self.metric_differences.get(name) for name in METRICS},
            "failures": self.failures,
        }


def check(original: Subject, exported: Subject, reference: Evaluation) -> Parity:
    """Compare an exported file with its weights.

    Args:
        original: The weights.
        exported: The file; on the same images.
        reference: `original.run()`, which the formats of one export share.
    """
    found = exported.run()
    parity = Parity(images=len(reference.boxes))
    if any(len(labels) for labels in original.dataset.splits[original.split].labels):
        parity.metric_differences = {name: abs(reference.metrics[name] - found.metrics[name]) for name in METRICS}
    disputes = [
        dispute
        for name, rows in reference.boxes.items()
        for dispute in _compare(name, rows, found.boxes[name], parity, original)
    ]
    if parity.boxes or disputes:
        _settle(disputes, original, exported, parity)
    else:
        _compare_proposals(original, exported, list(reference.boxes)[:_WEAK_IMAGES], parity)
    parity.failures = _failures(parity)
    return parity


def _compare(image: str, ours: Rows, theirs: Rows, parity: Parity, subject: Subject) -> list[_Dispute]:
    """Match one image's boxes, count those that agree and return the others."""
    threshold = max(_threshold(rows, subject) for rows in (ours, theirs))
    in_question = [set(np.flatnonzero(rows[:, 4] >= threshold).tolist()) for rows in (ours, theirs)]
    disputes = []
    for i, j in _pairs(ours, theirs):
        mine, other = i in in_question[0], j in in_question[1]
        if not mine and not other:
            continue
        in_question[0].discard(i)
        in_question[1].discard(j)
        box, score = _differences(ours[i], theirs[j])
        if _agree(box, score):
            parity.take(box, score)
        else:
            disputes += [_Dispute(image, True, ours[i], box, score)] * mine
            disputes += [_Dispute(image, False, theirs[j], box, score)] * other
    disputes += [_Dispute(image, True, ours[i]) for i in sorted(in_question[0])]
    disputes += [_Dispute(image, False, theirs[j]) for j in sorted(in_question[1])]
    return disputes


def _threshold(rows: Rows, subject: Subject) -> float:
    """Return the least score to compare: in a list that was cut at its end, what lies there may differ by rounding."""
    if len(rows) < int(subject.options.get("max_det", _BEST_FOR_GRAPH)):
        return LEAST_SCORE
    return max(LEAST_SCORE, float(rows[:, 4].min()) + MOST_SCORE_DIFFERENCE)


def _pairs(ours: Rows, theirs: Rows) -> Iterator[tuple[int, int]]:
    """Yield pairs of boxes of one class, each box at most once, those that agree best first."""
    box = np.abs(ours[:, None, :4] - theirs[None, :, :4]).max(axis=-1)
    score = np.abs(ours[:, None, 4] - theirs[None, :, 4])
    first, second = np.nonzero((ours[:, None, 5] == theirs[None, :, 5]) & (box <= _PARTNER_PX))
    badness = np.maximum(box / MOST_BOX_DIFFERENCE_PX, score / MOST_SCORE_DIFFERENCE)[first, second]
    taken: tuple[set[int], set[int]] = (set(), set())
    for k in np.argsort(badness, kind="stable"):
        i, j = int(first[k]), int(second[k])
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            yield i, j


def _differences(one: Rows, other: Rows) -> tuple[float, float]:
    return float(np.abs(one[:4] - other[:4]).max()), float(abs(one[4] - other[4]))


def _agree(box: float, score: float) -> bool:
    return box <= MOST_BOX_DIFFERENCE_PX and score <= MOST_SCORE_DIFFERENCE


def _settle(disputes: list[_Dispute], original: Subject, exported: Subject, parity: Parity) -> None:
    """Tell ties of suppression from disagreement, by what the other model proposed before it."""
    images = sorted({dispute.image for dispute in disputes})
    settled = [(float("inf"), float("inf"))] * len(disputes)
    if disputes and len(disputes) <= max(_FEW, _MOST_TIES * parity.boxes):
        proposals = {
            subject is original: subject.run(images, conf=LEAST_SCORE / 2, **_NO_SUPPRESSION).boxes
            for subject in (original, exported)
        }
        settled = [_nearest(d.row, proposals[not d.is_original][d.image]) for d in disputes]
    for dispute, (box, score) in zip(disputes, settled, strict=True):
        if _agree(box, score):
            parity.ties += 1
            parity.take(box, score)
        else:
            parity.refuse(dispute.box, dispute.score)


def _nearest(row: Rows, proposals: Rows) -> tuple[float, float]:
    """Return the differences to the most similar proposal of the same class; infinite where there is none."""
    proposals = proposals[proposals[:, 5] == row[5]]
    if not len(proposals):
        return float("inf"), float("inf")
    box = np.abs(proposals[:, :4] - row[:4]).max(axis=1)
    score = np.abs(proposals[:, 4] - row[4])
    best = int(np.argmin(np.maximum(box / MOST_BOX_DIFFERENCE_PX, score / MOST_SCORE_DIFFERENCE)))
    return float(box[best]), float(score[best])


def _compare_proposals(original: Subject, exported: Subject, images: list[str], parity: Parity) -> None:
    """Compare weights that find nothing above the threshold by their best proposals, whatever the score."""
    proposals = [subject.run(images, conf=0.0, **_NO_SUPPRESSION).boxes for subject in (original, exported)]
    parity.images, parity.score_threshold = len(images), 0.0
    for name in images:
        for mine, others in (proposals, proposals[::-1]):
            for row in mine[name][np.argsort(-mine[name][:, 4])[:_WEAK_BOXES]]:
                box, score = _nearest(row, others[name])
                (parity.take if _agree(box, score) else parity.refuse)(box, score)


def _failures(parity: Parity) -> list[str]:
    failures = []
    if not parity.boxes and not parity.unmatched:
        failures.append("neither finds a single box, so nothing could be compared")
    if parity.unmatched:
        failures.append(
            f"{parity.unmatched} boxes have no equal beside {parity.boxes} that do (box difference up to "
            f"{parity.max_box_difference_px:.3f} px, allowed {MOST_BOX_DIFFERENCE_PX:g}; score difference up to "
            f"{parity.max_score_difference:.6f}, allowed {MOST_SCORE_DIFFERENCE:g})"
        )
    for name, difference in parity.metric_differences.items():
        if not difference <= MOST_METRIC_DIFFERENCE:
            failures.append(f"{name} differs by {difference:.4f}, allowed {MOST_METRIC_DIFFERENCE:g}")
    return failures


def sample(dataset: DetectionSet, split: str, num_images: int) -> DetectionSet:
    """Return a set with at most so many images of one split, spread evenly over it."""
    images = dataset.splits[split].images
    chosen = np.unique(np.linspace(0, len(images) - 1, min(num_images, len(images))).round().astype(int))
    return _at(dataset, split, chosen.tolist())


def _only(dataset: DetectionSet, split: str, images: list[str]) -> DetectionSet:
    wanted = set(images)
    return _at(dataset, split, [i for i, path in enumerate(dataset.splits[split].images) if str(path) in wanted])


def _at(dataset: DetectionSet, split: str, chosen: list[int]) -> DetectionSet:
    full = dataset.splits[split]
    lists = ("images", "labels", "segments", "hashes", "label_hashes")
    part = {name: [getattr(full, name)[i] for i in chosen] for name in lists}
    return replace(dataset, splits={split: replace(full, shapes=full.shapes[chosen], **part)})  # type: ignore[arg-type]


@contextmanager
def _full_float32() -> Iterator[None]:
    """Compute in float32 on GPUs too: TF32, the default there, keeps 10 bits and alone exceeds the tolerance."""
    cudnn: Any = torch.backends.cudnn
    parts = (cudnn.conv, torch.backends.cuda.matmul)
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    try:
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision


@contextmanager
def _quiet_library() -> Iterator[None]:
    """Keep ultralytics from complaining that it cannot compute metrics where nobody asked for them."""
    before = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(before)
