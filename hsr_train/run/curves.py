"""plots/results.png: every column of results.csv over the epochs, training and validation losses side by side."""

from __future__ import annotations

import math
from io import BytesIO
from pathlib import Path

from hsr_train.run.atomic import write_bytes
from hsr_train.run.results import ResultsTable

_COLUMNS_PER_ROW = 4


def plot_curves(table: ResultsTable, path: Path) -> None:
    """Draw the table; `val_x` shares the axes of `x`, columns without any value are left out.

    Args:
        table: Results by epoch.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = table.rows()
    if not rows:
        return
    series = {
        name: [math.nan if row[name] is None else float(row[name] or 0) for row in rows]
        for name in table.columns[1:]
        if any(row[name] is not None for row in rows)
    }
    titles = [name for name in series if not (name.startswith("val_") and name.removeprefix("val_") in series)]
    num_rows = math.ceil(len(titles) / _COLUMNS_PER_ROW)
    figure = Figure(figsize=(4 * _COLUMNS_PER_ROW, 3 * num_rows), layout="constrained")
    epochs = [float(row["epoch"] or 0) for row in rows]
    for place, title in enumerate(titles, start=1):
        axes = figure.add_subplot(num_rows, _COLUMNS_PER_ROW, place, title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        paired = f"val_{title}" in series
        axes.plot(epochs, series[title], marker=".", label="train" if paired else title)
        if paired:
            axes.plot(epochs, series[f"val_{title}"], marker=".", label="val")
            axes.legend()
        axes.grid(alpha=0.3)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_bytes(path, buffer.getvalue())
