"""Whether a network's probabilities mean what they say: expected calibration error and its reliability table.

Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, ICML 2017. `reports.py` writes the figures,
`pictures.py` draws them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """Images by the probability of their answer, in bins of equal width; bin i is (i / n, (i + 1) / n].

    Attributes:
        counts: (n,) images.
        confidence: (n,) mean probability of the answer; 0 in empty bins.
        accuracy: (n,) share of right answers; 0 in empty bins.
    """

    counts: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @property
    def error(self) -> float:
        """Expected calibration error: mean over the images of their bin's |accuracy - confidence|, in [0, 1]."""
        return float(self.counts @ np.abs(self.accuracy - self.confidence) / self.counts.sum())

    def rows(self) -> list[dict[str, Any]]:
        """Return the bins that hold images; JSON-serialisable."""
        num_bins = len(self.counts)
        return [
            {
                "from": i / num_bins,
                "to": (i + 1) / num_bins,
                "images": int(self.counts[i]),
                "confidence": float(self.confidence[i]),
                "accuracy": float(self.accuracy[i]),
            }
            for i in np.flatnonzero(self.counts).tolist()
        ]


def calibrate(
    targets: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], num_bins: int = NUM_BINS
) -> Calibration:
    """Sort images into bins by the probability of their answer.

    Args:
        targets: (n,) class numbers, at least one.
        probabilities: (n, k), rows add up to 1.
        num_bins: Of equal width, over [0, 1].
    """
    sure = probabilities.max(1)
    right = probabilities.argmax(1) == targets
    # Edges as quotients, not as multiples of a rounded width: 0.2 belongs to the bin that ends with 0.2.
    edges = np.arange(1, num_bins) / num_bins
    bins = np.searchsorted(edges, sure, side="left")
    counts = np.bincount(bins, minlength=num_bins)
    most = np.maximum(counts, 1)
    return Calibration(
        counts,
        np.bincount(bins, weights=sure, minlength=num_bins) / most,
        np.bincount(bins, weights=right.astype(np.float64), minlength=num_bins) / most,
    )
