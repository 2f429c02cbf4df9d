"""The end of a run in words and numbers: training_result.json for programs, summary.txt for people.

Both are made from plain values, so that any engine and any test can write them. `cli` calls them when a run ends,
well or badly; an engine may rewrite the summary after each epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from hsr_train.run.atomic import write_json, write_text
from hsr_train.run.directory import RunDirectory


@dataclass
class RunRecord:
    """What is known about a run when its record is written.

    Attributes:
        status: running, completed, failed or interrupted.
        started: Start of the run.
        training_time_s: Seconds spent training, earlier parts of a resumed run included.
        epochs_completed: Epochs that really ran.
        epochs: Epochs that were asked for; None where the mode has none.
        metrics: Of best.pt.
        config: The configuration as run, as plain nested mappings.
        system: What the machine is, in names and values for people.
        best_model_path: Relative to the run's directory.
        last_model_path: Relative to the run's directory.
        tensorboard_url: Where events were served, or None.
        recovery: One entry for each rung that was taken: epoch, place, rung, from, to.
        exports: One entry for each exported file.
        best_epoch: The epoch of best.pt.
        ended: End of the run, or None while it goes on.
        error: The message of a run that did not complete.
        latency_ms: Milliseconds that best.pt takes for one image; None: not measured.
        peak_vram_gb: Most memory that torch held on a GPU in any epoch, in units of 1e9 bytes; None on a CPU.
        throughput: Images per second, share of waiting for data, and what held training up; None without an epoch.
        extra: An engine's additions to training_result.json.
    """

    status: str
    started: datetime
    training_time_s: float
    epochs_completed: int
    epochs: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    system: Mapping[str, Any] = field(default_factory=dict)
    best_model_path: str | None = None
    last_model_path: str | None = None
    tensorboard_url: str | None = None
    recovery: Sequence[Mapping[str, Any]] = ()
    exports: Sequence[Mapping[str, Any]] = ()
    best_epoch: int | None = None
    ended: datetime | None = None
    error: str | None = None
    latency_ms: float | None = None
    peak_vram_gb: float | None = None
    throughput: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


def training_result(record: RunRecord) -> dict[str, Any]:
    """Return the content of training_result.json, its keys in the promised order.

    Raises:
        ValueError: An addition of the engine takes a promised key.
    """
    promised = {
        "best_model_path": record.best_model_path,
        "last_model_path": record.last_model_path,
        "metrics": dict(record.metrics),
        "training_time_minutes": round(record.training_time_s / 60, 4),
        "epochs_completed": record.epochs_completed,
        "tensorboard_url": record.tensorboard_url,
        "config": dict(record.config),
        "status": record.status,
        "recovery": [dict(rung) for rung in record.recovery],
        "exports": [dict(export) for export in record.exports],
        "best_epoch": record.best_epoch,
        "throughput": dict(record.throughput) if record.throughput is not None else None,
        "latency_ms": record.latency_ms,
        "peak_vram_gb": record.peak_vram_gb,
    }
    taken = promised.keys() & record.extra.keys()
    if taken:
        raise ValueError(f"extra must not set {sorted(taken)}")
    return promised | dict(record.extra)


def write_training_result(run: RunDirectory, record: RunRecord) -> None:
    """Write training_result.json."""
    write_json(run.training_result, training_result(record))


def summary_text(record: RunRecord) -> str:
    """Return the content of summary.txt: one section for each question a person asks."""
    epochs = f"{record.epochs_completed}" + (f" of {record.epochs}" if record.epochs is not None else "")
    timing = {"Started": _moment(record.started)}
    if record.ended is not None:
        timing["Ended"] = _moment(record.ended)
    timing["Training time"] = _duration(record.training_time_s)
    if record.throughput is not None:
        if (epoch_s := record.throughput.get("epoch_s")) is not None:
            timing["Per epoch"] = f"{_duration(epoch_s)} (median)"
        speed, waiting = record.throughput["images_per_s"], record.throughput["wait_share"]
        timing["Throughput"] = f"{speed:.1f} images/s, waiting for data {100 * waiting:.0f} % of training"
        timing["Bottleneck"] = record.throughput["bottleneck"] or "none found"
    if record.latency_ms is not None:
        timing["Latency"] = f"{record.latency_ms:.2f} ms for one image"
    if record.peak_vram_gb is not None:
        timing["Most GPU memory"] = f"{record.peak_vram_gb:.2f} GB"
    progress: dict[str, Any] = {"Epochs": epochs}
    if record.best_epoch is not None:
        progress["Best epoch"] = record.best_epoch
    progress["Best weights"] = record.best_model_path or "none yet"
    progress["Last weights"] = record.last_model_path or "none yet"
    for rung in record.recovery:
        progress[f"Recovered at epoch {rung.get('epoch')}"] = ", ".join(
            f"{k} {v}" for k, v in rung.items() if k != "epoch"
        )
    for number, export in enumerate(record.exports, start=1):
        progress[f"Export {number}"] = ", ".join(f"{key} {value}" for key, value in export.items())
    sections = {
        "Status": {"Status": record.status},
        "Timing": timing,
        "Progress": progress,
        "Metrics": {name: f"{value:.4f}" for name, value in record.metrics.items()},
        "Configuration": flat(record.config),
        "System": flat(record.system),
        "Error": {"Message": record.error} if record.error else {},
    }
    return "\n".join(_section(title, values) for title, values in sections.items())


def write_summary(run: RunDirectory, record: RunRecord) -> None:
    """Write summary.txt."""
    write_text(run.summary, summary_text(record))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as dotted keys, the form in which they are typed."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _section(title: str, values: Mapping[str, Any]) -> str:
    width = max((len(key) for key in values), default=0)
    lines = []
    for key, value in values.items():
        first, *more = str(value).splitlines() or [""]
        lines.append(f"  {key:<{width}}  {first}".rstrip())
        lines += [f"  {'':<{width}}  {line}".rstrip() for line in more]
    return "\n".join([title, "-" * len(title), *(lines or ["  none"])]) + "\n"


def _moment(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z").rstrip()


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"
