"""The charts of a sweep's report, drawn with matplotlib: how it went, what matters, and how the trials learned.

Each function returns a figure, or None where there is nothing to draw yet; `report` puts them into its page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hsr_train.sweep.objectives import MAXIMIZE
from hsr_train.sweep.summary import Parameter, Summary, TrialSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, RED, GREY = "#2b6cb0", "#dd6b20", "#c53030", "#a0aec0"
MANY = 150
"""So many lines or points are drawn as one picture inside the chart: as shapes they would make a large file."""
COLUMNS = 3


def history(summary: Summary) -> Figure | None:
    """Draw each objective by trial, and the best so far."""
    if not summary.complete:
        return None
    figure = _figure(10, 3.2 * len(summary.objectives))
    panels = figure.subplots(len(summary.objectives), sharex=True, squeeze=False)[:, 0]
    for place, (axes, name) in enumerate(zip(panels, summary.objectives, strict=True)):
        good = [t for t in summary.complete if t.is_feasible]
        _dots(axes, good, place, "o", BLUE, "complete")
        _dots(axes, [t for t in summary.complete if not t.is_feasible], place, "D", GREY, "breaks a constraint")
        _dots(axes, summary.of_state("pruned"), place, "v", ORANGE, "pruned, last value")
        failed = [t.number for t in summary.of_state("fail")]
        if failed:
            axes.plot(
                failed, [0.03] * len(failed), "x", color=RED, label="failed", transform=axes.get_xaxis_transform()
            )
        if good:
            better = np.maximum if summary.directions[place] == MAXIMIZE else np.minimum
            best = better.accumulate([(t.values or [])[place] for t in good])
            label = f"best so far: {best[-1]:.4g}"
            numbers = [t.number for t in good]
            end = max(t.number for t in summary.trials)
            axes.step([*numbers, end], [*best, best[-1]], where="post", color=BLUE, lw=1.5, alpha=0.7, label=label)
        axes.set_ylabel(name)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    panels[-1].set_xlabel("trial")
    _whole_numbers(panels[-1])
    return figure


def over_seeds(summary: Summary) -> Figure | None:
    """Draw each objective of the repeats, by the trial that they repeat: each seed, and mean and standard deviation."""
    repeated = {n: r for n, r in summary.repeated.items() if r.mean is not None}
    if not repeated:
        return None
    ranks, chosen = summary.ranks, {t.number: t.values for t in summary.complete}
    numbers = sorted(repeated, key=lambda n: ranks.get(n, len(ranks) + 1), reverse=True)
    figure = _figure(8, (0.7 + 0.45 * len(numbers)) * len(summary.objectives))
    panels = figure.subplots(len(summary.objectives), squeeze=False)[:, 0]
    for place, (axes, name) in enumerate(zip(panels, summary.objectives, strict=True)):
        for y, number in enumerate(numbers):
            r = repeated[number]
            assert r.mean is not None
            seeds = [values[place] for _, values in r.results]
            labels = ("another seed", "mean ± sd", "in the search") if y == 0 else ("", "", "")
            axes.plot(seeds, [y] * len(seeds), "o", color=GREY, ms=5, zorder=3, label=labels[0])
            spread = r.sd[place] if r.sd else None
            axes.errorbar(
                r.mean[place], y, xerr=spread, fmt="|", color=BLUE, ms=16, mew=2, lw=1.5, capsize=4, label=labels[1]
            )
            if value := chosen.get(number):
                axes.plot(value[place], y, "D", color=ORANGE, ms=6, fillstyle="none", label=labels[2])
        axes.set_yticks(range(len(numbers)), [f"trial {number}" for number in numbers])
        axes.set_ylim(-0.6, len(numbers) - 0.4)
        axes.set_xlabel(name)
        axes.grid(axis="x", alpha=0.25)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def importance(summary: Summary, shares: Mapping[str, float]) -> Figure:
    """Draw how much each key decides whether a trial is among the best."""
    figure = _figure(8, 0.8 + 0.4 * len(shares))
    axes = figure.subplots()
    names = sorted(shares, key=lambda key: shares[key])
    bars = axes.barh([_words(summary.short[name], 30) for name in names], [shares[n] for n in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=9)
    axes.set_xlim(0, max(1e-9, *shares.values()) * 1.12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def parallel(summary: Summary) -> Figure | None:
    """Draw each complete trial as a line over the searched keys, coloured by the first objective."""
    trials = sorted(summary.complete, key=lambda t: (t.values or [])[0])
    if len(trials) < 2:
        return None
    if summary.directions[0] != MAXIMIZE:
        trials.reverse()  # the best on top
    values = [(t.values or [])[0] for t in trials]
    scales = [_Scale.of_parameter(p, [t.params.get(p.name) for t in trials]) for p in summary.parameters]
    scales.append(_Scale.of_numbers(summary.objectives[0], values))
    figure = _figure(max(6.0, min(2.2 * len(scales), 16)), 4.5)
    axes = figure.subplots()
    colours = _colours(summary, values)
    for trial, value, colour in zip(trials, values, colours, strict=True):
        points = [trial.params.get(p.name) for p in summary.parameters] + [value]
        line = [scale.place(point) for scale, point in zip(scales, points, strict=True)]
        axes.plot(range(len(scales)), line, color=colour, lw=1.3, alpha=0.75, rasterized=len(trials) > MANY)
    for x, scale in enumerate(scales):
        axes.axvline(x, color="black", lw=0.8)
        for y, text in scale.ticks:
            axes.annotate(text, (x, y), (4, 0), textcoords="offset points", fontsize=8, va="center",
                          bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    names = [_words(summary.short[p.name], 20) for p in summary.parameters]
    axes.set_xticks(range(len(scales)), [*names, summary.objectives[0]])
    axes.set_xlim(-0.1, len(scales) - 1 + 0.35)
    axes.set_ylim(-0.05, 1.05)
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def slices(summary: Summary, place: int) -> Figure | None:
    """Draw an objective against each searched key; later trials are darker."""
    trials = summary.complete
    if not trials or not summary.parameters:
        return None
    num_rows = math.ceil(len(summary.parameters) / COLUMNS)
    columns = min(COLUMNS, len(summary.parameters))
    figure = _figure(3.6 * columns + 0.8, 3 * num_rows)
    panels = figure.subplots(num_rows, columns, sharey=True, squeeze=False)
    for number, axes in enumerate(panels.flat):
        if number >= len(summary.parameters):
            axes.set_visible(False)
            continue
        parameter = summary.parameters[number]
        known = [t for t in trials if parameter.name in t.params]
        raw = [t.params[parameter.name] for t in known]
        is_text = bool(parameter.choices) and not _are_numbers(parameter.choices)
        if parameter.choices:
            order = list(parameter.choices)
            x: list[float] = [order.index(str(v)) if str(v) in order else math.nan for v in raw]
            axes.set_xticks(range(len(order)), [_words(c, 14) for c in order], rotation=20 if is_text else 0)
            axes.set_xlim(-0.5, len(order) - 0.5)
        else:
            x = [float(v) for v in raw]
            if parameter.is_log:
                axes.set_xscale("log")
                _label_few(axes, x)
        y = [(t.values or [])[place] for t in known]
        axes.scatter(
            x, y, c=[t.number for t in known], cmap="Blues", vmin=-0.4 * len(summary.trials),
            vmax=max(t.number for t in summary.trials) or 1, edgecolors="#1a365d", linewidths=0.5, s=26,
            rasterized=len(known) > MANY,
        )  # fmt: skip
        axes.set_xlabel(_words(summary.short[parameter.name], 34) + (" (log)" if parameter.is_log else ""))
        axes.grid(alpha=0.25)
        if number % columns == 0:
            axes.set_ylabel(summary.objectives[place])
    return figure


def learning(summary: Summary, curves: Mapping[int, Sequence[tuple[int, float]]], best: int | None) -> Figure | None:
    """Draw the first objective by epoch.

    Args:
        summary: The study.
        curves: (epoch, value) by trial.
        best: The best trial, drawn bold.
    """
    shown = {number: points for number, points in curves.items() if points}
    if not shown:
        return None
    figure = _figure(10, 4)
    axes = figure.subplots()
    styles = {"complete": (GREY, "-"), "pruned": (ORANGE, "--"), "fail": (RED, ":"), "running": ("#38a169", "-")}
    named = set()
    for trial in summary.trials:
        if trial.number not in shown or trial.number == best:
            continue
        colour, style = styles.get(trial.state, (GREY, ":"))
        epochs, values = zip(*shown[trial.number], strict=True)
        state = "failed" if trial.state == "fail" else trial.state
        label = "" if state in named else state
        named.add(state)
        axes.plot(epochs, values, style, color=colour, lw=1, alpha=0.8, label=label, rasterized=len(shown) > MANY)
        axes.plot(epochs[-1:], values[-1:], ".", color=colour, ms=4, rasterized=len(shown) > MANY)
    if best in shown:
        epochs, values = zip(*shown[best], strict=True)
        axes.plot(epochs, values, color=BLUE, lw=2.4, marker=".", label=f"the best, trial {best}")
    axes.set_xlabel("epoch")
    axes.set_ylabel(summary.objectives[0])
    _whole_numbers(axes)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def pareto(summary: Summary) -> Figure | None:
    """Draw the first two objectives against each other; the trials that no other one beats in all are joined."""
    if len(summary.objectives) < 2 or not summary.complete:
        return None
    figure = _figure(7, 5)
    axes = figure.subplots()
    front = sorted(summary.front, key=lambda t: (t.values or [])[0])
    numbers = {t.number for t in front}
    rest = [t for t in summary.complete if t.number not in numbers]
    joined = "o-" if len(summary.objectives) == 2 else "o"
    for trials, mark, colour, label in (
        ([t for t in rest if t.is_feasible], "o", GREY, "beaten by another"),
        ([t for t in rest if not t.is_feasible], "D", ORANGE, "breaks a constraint"),
        (front, joined, BLUE, "Pareto front"),
    ):
        x, y = ([t.values[place] for t in trials if t.values] for place in (0, 1))
        if trials:
            axes.plot(x, y, mark, color=colour, lw=1, label=label)
    for trial in front[:30]:
        assert trial.values is not None
        axes.annotate(str(trial.number), (trial.values[0], trial.values[1]), (5, 5), textcoords="offset points",
                      fontsize=8)  # fmt: skip
    arrows = ["more is better" if d == MAXIMIZE else "less is better" for d in summary.directions]
    axes.set_xlabel(f"{summary.objectives[0]} ({arrows[0]})")
    axes.set_ylabel(f"{summary.objectives[1]} ({arrows[1]})")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    return figure


class _Scale:
    """Where a value lies on an upright axis from 0 to 1."""

    def __init__(self, positions: dict[str, float] | None, low: float, high: float, is_log: bool) -> None:
        self._positions = positions
        self._low, self._high, self._is_log = low, high, is_log

    @classmethod
    def of_numbers(cls, _: str, values: Sequence[Any], is_log: bool = False) -> _Scale:
        numbers = [math.log10(float(v)) if is_log else float(v) for v in values if v is not None]
        return cls(None, min(numbers, default=0.0), max(numbers, default=1.0), is_log)

    @classmethod
    def of_parameter(cls, parameter: Parameter, values: Sequence[Any]) -> _Scale:
        if not parameter.choices:
            return cls.of_numbers(parameter.name, values, parameter.is_log)
        last = max(len(parameter.choices) - 1, 1)
        return cls({c: place / last for place, c in enumerate(parameter.choices)}, 0, 1, False)

    def place(self, value: Any) -> float:
        if value is None:
            return math.nan
        if self._positions is not None:
            return self._positions.get(str(value), math.nan)
        number = math.log10(float(value)) if self._is_log else float(value)
        return 0.5 if self._high == self._low else (number - self._low) / (self._high - self._low)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        if self._positions is not None:
            return [(y, _words(text, 14)) for text, y in self._positions.items()]
        if self._high == self._low:
            return [(0.5, f"{self._value(self._low):.3g}")]
        marks = np.linspace(0, 1, 5)
        return [(float(y), f"{self._value(self._low + y * (self._high - self._low)):.3g}") for y in marks]

    def _value(self, number: float) -> float:
        return float(10**number) if self._is_log else float(number)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _dots(axes: Axes, trials: Sequence[TrialSummary], place: int, mark: str, colour: str, label: str) -> None:
    found = [(t.number, t.values[place]) for t in trials if t.values is not None]
    if found:
        x, y = zip(*found, strict=True)
        axes.plot(x, y, mark, color=colour, ms=5, alpha=0.8, label=label, rasterized=len(found) > MANY)


def _colours(summary: Summary, values: Sequence[float]) -> list[Any]:
    from matplotlib import colormaps

    ranks = np.argsort(np.argsort(values)) / max(len(values) - 1, 1)
    if summary.directions[0] != MAXIMIZE:
        ranks = 1 - ranks
    return [colormaps["YlGnBu"](0.2 + 0.8 * float(r)) for r in ranks]


def _whole_numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _are_numbers(texts: Sequence[str]) -> bool:
    return all(text.replace(".", "", 1).replace("e-", "", 1).isdigit() for text in texts)


def _label_few(axes: Axes, values: Sequence[float]) -> None:
    """Label a logarithmic axis at powers of ten, and between them where there are few: all labels would overlap."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    span = max(values) / min(values)
    if span >= 4:  # below that there is room for matplotlib's own
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if span >= 1000 else (1.0, 3.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0e}"))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _words(text: str, most: int) -> str:
    """Return a text that fits, with its dollar signs as they are: to matplotlib they begin a formula."""
    text = text.replace("$", r"\$")
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-(most // 2 - 1) :]}"
