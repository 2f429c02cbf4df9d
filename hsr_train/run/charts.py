"""The picture that a cross-validation ends with."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

from hsr_train.run.atomic import write_bytes


def folds_chart(
    path: Path, results: Mapping[int, Mapping[str, Mapping[str, float]]], together: Mapping[str, float]
) -> None:
    """Draw each fold's metrics as points, their mean as a line, and the ensemble as a star.

    Args:
        path: Of the PNG.
        results: By fold, split and name, in [0, 1].
        together: The ensemble's metrics on test; may be empty.

    Raises:
        RunError: The disk refused.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = [(split, name) for split, metrics in next(iter(results.values())).items() for name in metrics]
    figure = Figure(figsize=(1.5 + 1.2 * len(columns), 4), layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.subplots()
    for place, (split, name) in enumerate(columns):
        values = [splits[split][name] for splits in results.values()]
        axes.plot([place] * len(values), values, "o", color="tab:blue", alpha=0.6, label="" if place else "fold")
        mean = fmean(values)
        axes.hlines(mean, place - 0.25, place + 0.25, color="black", label="" if place else "mean")
        axes.annotate(f"{mean:.3f}", (place + 0.28, mean), va="center", fontsize=8)
        if split == "test" and name in together:
            first = not any(s == "test" for s, _ in columns[:place])
            axes.plot(place, together[name], "*", color="tab:orange", markersize=12, label="ensemble" if first else "")
    axes.set_xticks(range(len(columns)), [f"{split}\n{name}" for split, name in columns])
    axes.set_xlim(-0.6, len(columns) - 0.3)
    axes.set_title(f"{len(results)} folds")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    canvas.print_png(buffer)  # type: ignore[no-untyped-call]
    write_bytes(path, buffer.getvalue())
