"""What `train_vs_yolo.py` measures of a run, and the tables it makes of many."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from run_records import Speed, middle, ratio

OURS, YOLO, CEILING = "ours", "yolo", "ceiling: ours, fed from the device"


@dataclass
class Run:
    """One training run: who, of which model, with which seed, and what was measured; all times in seconds."""

    who: str
    model: str
    seed: int
    startup_s: float = 0.0
    epochs_s: list[float] = field(default_factory=list)
    epochs_cpu_s: list[float] = field(default_factory=list)
    total_s: float = 0.0
    cpu_s: float = 0.0
    load_before: float = 0.0
    speed: Speed | None = None
    metrics: dict[str, float] = field(default_factory=dict)


def counted(run: Run, seconds: list[float]) -> dict[int, float]:
    """Return the seconds of the epochs that count, by number: neither the first nor the last, if there are more."""
    last = max(len(run.epochs_s), 3)
    return {number: s for number, s in enumerate(seconds, start=1) if 1 < number < last}


def epoch_ratios(ours: Sequence[Run], theirs: Sequence[Run], what: str) -> list[float]:
    """Return our epochs' seconds divided by theirs, for the same seed and number of the epoch."""
    reference = {(run.seed, number): s for run in theirs for number, s in counted(run, getattr(run, what)).items()}
    return [
        s / reference[run.seed, number]
        for run in ours for number, s in counted(run, getattr(run, what)).items() if (run.seed, number) in reference
    ]  # fmt: skip


def spread(values: Sequence[float], digits: int) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def report(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """Print the tables; return for each model the median ratio of our epoch times, and of our images/s, to yolo's."""
    found = {}
    for model in dict.fromkeys(run.model for run in runs):
        groups: dict[str, list[Run]] = {}
        for run in runs:
            if run.model == model:
                groups.setdefault(run.who, []).append(run)
        print(f"\n## {model}")
        epochs = _whole_epochs(groups)
        images = _training(groups)
        found[model] = epochs, images
        if any(run.metrics for group in groups.values() for run in group):
            _accuracy(groups)
    return found


def _whole_epochs(groups: dict[str, list[Run]]) -> float:
    print("\n| | s per epoch: median (range) | ratio to yolo | CPU s per epoch | ratio to yolo |")
    print("|---|---|---|---|---|")
    medians = {}
    for who, group in groups.items():
        cells = []
        for what in ("epochs_s", "epochs_cpu_s"):
            ratios = epoch_ratios(group, groups[YOLO], what)
            medians[who, what] = statistics.median(ratios)
            seconds = [s for run in group for s in counted(run, getattr(run, what)).values()]
            cells += [spread(seconds, 2), spread(ratios, 3)]
        print(f"| {who} | {' | '.join(cells)} |")
    return medians[OURS, "epochs_s"]


def _training(groups: dict[str, list[Run]]) -> float:
    """Print what timings.csv says of the training part of the epochs, whose ratios are taken seed by seed."""
    print(
        "\n| training part | images/s | ratio to yolo | share of the ceiling | waiting for data | CPU ms per image "
        "| ratio to yolo | GPU busy | GPU memory, GiB |\n|---|---|---|---|---|---|---|---|---|"
    )
    by_seed = {who: {run.seed: run.speed for run in group if run.speed} for who, group in groups.items()}
    images_to_yolo: list[float] = []
    for who, speeds in by_seed.items():
        beside = {
            (name, other): [
                ratio(getattr(speed, name), getattr(by_seed[other][seed], name))
                for seed, speed in speeds.items() if seed in by_seed.get(other, {})
            ]
            for name, other in (("images_per_s", YOLO), ("images_per_s", CEILING), ("cpu_ms", YOLO))
        }  # fmt: skip
        if who == OURS:
            images_to_yolo = [value for value in beside["images_per_s", YOLO] if value is not None]
        of = {name: [getattr(speed, name) for speed in speeds.values()] for name in Speed.__dataclass_fields__}
        cells = [
            middle(of["images_per_s"], ".1f"), middle(beside["images_per_s", YOLO], ".3f"),
            middle(beside["images_per_s", CEILING], ".3f"), middle(of["wait_share"], ".1%"),
            middle(of["cpu_ms"], ".0f"), middle(beside["cpu_ms", YOLO], ".3f"), middle(of["gpu_util"], ".0%"),
            middle(of["gpu_gib"], ".1f"),
        ]  # fmt: skip
        print(f"| {who} | {' | '.join(cells)} |")
    return statistics.median(images_to_yolo)


def _accuracy(groups: dict[str, list[Run]]) -> None:
    print(
        "\n| | epochs | mAP50 of best.pt: mean, by seed | mAP50-95: mean, by seed | whole command, s "
        "| first start-up, s | later, s |\n|---|---|---|---|---|---|---|"
    )
    for who, group in groups.items():
        if not group[0].metrics:
            continue
        cells = []
        for name in ("mAP50", "mAP50-95"):
            values = [run.metrics[name] for run in group]
            cells.append(f"{statistics.mean(values):.4f} ({', '.join(f'{v:.4f}' for v in values)})")
        later = spread([run.startup_s for run in group[1:]], 1) if group[1:] else ""
        cells += [f"{statistics.median(run.total_s for run in group):.0f}", f"{group[0].startup_s:.1f}", later]
        print(f"| {who} | {len(group[0].epochs_s)} | {' | '.join(cells)} |")
