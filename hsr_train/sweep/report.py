"""report.html: a sweep in one file that needs no network and no script, with its charts inside."""

from __future__ import annotations

import base64
import html
import io
import shlex
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hsr_train.run.atomic import write_text
from hsr_train.run.log import duration
from hsr_train.sweep import figures
from hsr_train.sweep.objectives import described
from hsr_train.sweep.progress import closing
from hsr_train.sweep.results import BEST, command_of, ordered, relative
from hsr_train.sweep.summary import Summary, TrialSummary

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"
SEEDS_TITLE = "Repeated with other seeds"
_STATES = {"fail": "failed"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a202c; background: #fff; margin: 2rem auto; max-width: 1080px;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0.2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 0.3rem; }
p { margin: 0.3rem 0; } .quiet { color: #4a5568; } img { max-width: 100%; height: auto; }
code, pre { font: 13px/1.45 ui-monospace, monospace; background: #f7fafc; border-radius: 4px; padding: 0.1rem 0.3rem; }
pre { padding: 0.6rem; overflow-x: auto; white-space: pre-wrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; }
th, td { text-align: right; padding: 0.25rem 0.7rem; border-bottom: 1px solid #e2e8f0; white-space: nowrap; }
th { background: #edf2f7; } td.text { text-align: left; } td.error { text-align: left; white-space: normal; }
tr.best { background: #ebf4ff; font-weight: 600; } tr.best td.error { font-weight: 400; }
.complete { color: #2b6cb0; } .pruned { color: #c05621; } .failed { color: #c53030; } .running { color: #2f855a; }
"""


def write_report(summary: Summary, importances: Sequence[dict[str, float] | str], home: Path) -> None:
    """Draw everything that is known of a study into report.html.

    Args:
        summary: The study.
        importances: From `summary.importances`, for each objective.
        home: The sweep's folder.

    Raises:
        RunError: The disk refused.
    """
    parts = [_head(summary, home)]
    parts += _section("History", [figures.history(summary)], "No trial is complete yet.")
    if len(summary.objectives) > 1:
        text = "Trials of the Pareto front: no other one is better in one goal without being worse in another."
        parts += _section("Pareto front", [figures.pareto(summary)], "No trial is complete yet.", text)
    parts += _over_seeds(summary)
    for name, shares in zip(summary.objectives, importances, strict=True):
        title = "What matters" + (f" for {name}" if len(summary.objectives) > 1 else "")
        if isinstance(shares, str):
            parts += [f"<h2>{_text(title)}</h2><p class=quiet>Not said: {_text(shares)}.</p>"]
        else:
            text = (
                "Share of each key in what sets the best tenth of the trials apart (PED-ANOVA). It rests on "
                f"{len(summary.complete)} complete trials; below about 50 it is a hint."
            )
            parts += _section(title, [figures.importance(summary, shares)], "", text)
    text = f"Each line is a complete trial; the darker, the better its {summary.objectives[0]}."
    parts += _section("Parallel coordinates", [figures.parallel(summary)], "Two complete trials are needed.", text)
    pictures = [figures.slices(summary, place) for place in range(len(summary.objectives))]
    text = "The result against each searched key, all others as they came; later trials are darker."
    parts += _section("Slices", pictures, "No trial is complete yet.", text)
    best = summary.front[0].number if summary.front else None
    curves = {t.number: t.curve(summary.objectives[0]) for t in summary.trials}
    missing = "No trial has a results.csv within reach that holds the objective."
    parts += _section("Learning curves", [figures.learning(summary, curves, best)], missing)
    parts += ["<h2>Trials</h2>", _table(summary, home)]
    title = f"Sweep {summary.name}"
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
    page = "\n".join([f"{head}<style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>", *parts, "</body></html>"])
    write_text(home / REPORT, page + "\n")


def _head(summary: Summary, home: Path) -> str:
    done = {state: len(summary.of_state(state)) for state in ("complete", "pruned", "fail", "running")}
    counts = ", ".join(f"{n} {_STATES.get(state, state)}" for state, n in done.items() if n)
    goals = ", ".join(f"{d} {n}" for n, d in zip(summary.objectives, summary.directions, strict=True))
    spent = sum(t.seconds or 0.0 for t in summary.trials)
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    lines = [
        f"<p class=quiet>task {summary.task} · {_text(goals)} · of {summary.n_trials} trials {counts or 'none begun'}"
        f" · {duration(spent)} of training · as of {now}</p>",
    ]
    if summary.constraints:
        lines.append(f"<p class=quiet>Constraints: {_text(described(summary.constraints))}</p>")
        if summary.complete and not summary.front:
            lines.append("<p><b>No complete trial holds the constraints.</b></p>")
    if summary.command:
        words = " ".join(map(_quoted, summary.command[1:]))
        lines.append(f"<p class=quiet>Begun with <code>python -m hsr_train {_text(words)}</code></p>")
    front = summary.front
    if front:
        chosen = replace(summary, repeats=[]).front[0]  # by the search's own values, as the command says it
        named = ", ".join(f"{n} {v:.4g}" for n, v in zip(summary.objectives, chosen.values or [], strict=True))
        after = closing(summary)
        first = "Best of the search" if after else "Best"
        first += "" if len(summary.objectives) == 1 else f" in {summary.objectives[0]}"
        lines.append(
            f"<p><b>{_text(first)}: trial {chosen.number}</b>, {_text(named)}, with "
            f"<code>{_text(' '.join(chosen.overrides))}</code></p>"
        )
        lines += [f"<p><b>{_text(line)}</b></p>" for line in after]
        if (home / BEST).is_file():
            lines.append(f"<p>To run trial {front[0].number} again: <code>{_text(command_of(home))}</code></p>")
    return "\n".join(lines)


def _quoted(word: str) -> str:
    """Return a word as it can be pasted into a shell; one with quotes of its own in double ones, to stay readable."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def _over_seeds(summary: Summary) -> list[str]:
    """Return what repeats with other seeds came to; nothing if there are none."""
    repeated, ranks = summary.repeated, summary.ranks
    if not repeated:
        return []
    text = (
        "The best trials again, each with seeds that the search did not use. Mean and standard deviation are of these "
        "alone: the search's own value is the one that got a trial chosen, and so is partly luck."
    )
    names = [words for name in summary.objectives for words in (f"{name}, search", f"{name}, mean ± sd")]
    head = "".join(f"<th>{_text(name)}</th>" for name in ("trial", *names, "seeds", ""))
    rows = []
    chosen = {t.number: t.values for t in summary.complete}
    for number in sorted(repeated, key=lambda n: (ranks.get(n, len(ranks) + 1), n)):
        r = repeated[number]
        cells = [_cell(number)]
        for place in range(len(summary.objectives)):
            values = chosen.get(number)
            cells += [_cell(values[place] if values else None, 5), _cell(r.shown(place))]
        seeds = "; ".join(f"{seed}: {', '.join(f'{v:.4g}' for v in values)}" for seed, values in r.results)
        more = [f"{count} {word}" for count, word in ((r.failed, "failed"), (r.open, "under way")) if count]
        cells += [
            _cell(len(r.results)),
            f"<td class=text>{_text('; '.join([*([seeds] if seeds else []), *more]))}</td>",
        ]
        rows.append(
            f"<tr{' class=best' if summary.front and number == summary.front[0].number else ''}>{''.join(cells)}</tr>"
        )
    table = f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    return [*_section(SEEDS_TITLE, [figures.over_seeds(summary)], text, text), table]


def _section(title: str, pictures: Sequence[Figure | None], missing: str, text: str = "") -> list[str]:
    shown = [_picture(figure, title) for figure in pictures if figure is not None]
    said = f"<p class=quiet>{_text(text if shown else missing)}</p>"
    return [f"<h2>{_text(title)}</h2>", said, *shown]


def _picture(figure: Figure, title: str) -> str:
    """Return a figure as a picture in the page: an SVG of its own, whose names no other one can meet."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    width = round(figure.get_figwidth() * 96)
    return f'<img alt="{_text(title)}" width="{width}" src="data:image/svg+xml;base64,{data}">'


def _table(summary: Summary, home: Path) -> str:
    keys = [p.name for p in summary.parameters]
    goals = [*summary.objectives, *summary.limited]
    names = ["rank", "trial", "state", *goals, *(summary.short[k] for k in keys), "epochs", "time"]
    head = "".join(f"<th>{_text(name)}</th>" for name in [*names, ""])
    rows = []
    for rank, trial in ordered(summary):
        state = _STATES.get(trial.state, trial.state)
        values: Sequence[float | None] = trial.values or [None] * len(summary.objectives)
        cells = [_cell(rank), _cell(trial.number), f'<td class="text {state}">{state}</td>']
        cells += [_cell(value, 5) for value in [*values, *(trial.measured.get(name) for name in summary.limited)]]
        cells += [_cell(trial.params.get(key), 4) for key in keys]
        cells += [_cell(trial.epochs), _cell(None if trial.seconds is None else duration(trial.seconds))]
        cells.append(f"<td class=error>{_remark(trial, home)}</td>")
        rows.append(f"<tr{' class=best' if rank == 1 else ''}>{''.join(cells)}</tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"


def _remark(trial: TrialSummary, home: Path) -> str:
    if trial.error:
        return f"<details><summary>{_text(trial.cause)}</summary><pre>{_text(trial.error)}</pre></details>"
    if trial.broken:
        return f"breaks {_text(trial.broken)}"
    text = "" if trial.fold is None else f"{_text(trial.remark)}: "
    return f"{text}<code>{_text(relative(trial, home))}</code>"


def _cell(value: object, digits: int = 6) -> str:
    text = "" if value is None else f"{value:.{digits}g}" if isinstance(value, float) else str(value)
    return f"<td>{_text(text)}</td>"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
