"""The contract between the command and an engine; engines share this Protocol, not a parent class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hsr_train.config.schema import AnyExperiment
from hsr_train.decisions import Decisions
from hsr_train.errors import HsrTrainError, RunError
from hsr_train.hardware import Machine
from hsr_train.hardware.usage import UsageSampler
from hsr_train.pace import Pace
from hsr_train.recovery import Recovery
from hsr_train.run.data_files import DataFile
from hsr_train.run.directory import RunDirectory
from hsr_train.run.events import EventWriter
from hsr_train.run.log import TrainLogHandler
from hsr_train.run.status import StatusWriter

Watch = Callable[[int, int, Mapping[str, float]], None]
"""Is told an epoch that is recorded, counted from 1, how many there are to be, and its validation metrics; raises
PrunedError to end the run.

A run that goes on shows the last epoch of its state again: it may have been killed before anybody saw it."""


def _unwatched(epoch: int, epochs: int, metrics: Mapping[str, float]) -> None:
    """Let every epoch pass."""


@dataclass
class Plan:
    """Everything that can be known before training; made by `Engine.prepare`, shown by mode=check.

    Attributes:
        experiment: The experiment with every `auto` replaced by what was decided.
        decisions: All automatic choices, including those made while composing.
        fingerprints: Content hashes of data and weights for the manifest.
        seeds: Every seed by name.
        summary: Lines that describe the plan to a person.
        inputs: The engine's own prepared input (datasets, resolved weights); opaque to everybody else.
        data_files: Yields every file of the data with its hashes, for the run's data_files.csv.
        run_name: Of the run's directory; None: the preset (or the mode) with the time of the start.
        device: Where this process trains, such as cpu or cuda:0.
        fitting_cache: Says where decoded images would fit on a machine: ram, disk or none.
    """

    experiment: AnyExperiment
    decisions: Decisions
    fingerprints: dict[str, Any]
    seeds: dict[str, int]
    summary: list[str]
    inputs: Any
    data_files: Callable[[], Iterable[DataFile]] = tuple
    run_name: str | None = None
    device: str = "cpu"
    fitting_cache: Callable[[Machine], str] = lambda machine: "none"


@dataclass
class RunContext:
    """Where an engine leaves what it does.

    Attributes:
        run: The run's directory, locked by this process.
        status: Its heartbeat.
        events: TensorBoard events, or None if switched off.
        recovery: What to give up when memory runs out, and where the run is; its experiment is the plan's.
        resuming: The run goes on from its saved state.
        log: What writes train.log.
        pace: How much time there is.
        usage: Measures what the machine does; None leaves those columns of timings.csv empty.
        watch: Is told each epoch but the last, when it is recorded.
    """

    run: RunDirectory
    status: StatusWriter
    events: EventWriter | None
    recovery: Recovery
    resuming: bool = False
    log: TrainLogHandler | None = None
    pace: Pace = field(default_factory=Pace)
    usage: UsageSampler | None = None
    watch: Watch = _unwatched

    def require_directory(self) -> None:
        """Check that the run's directory is there.

        Raises:
            RunError: It is gone.
        """
        if not self.run.config_yaml.is_file():
            raise RunError(f"The run's directory is gone: {self.run.path}")

    def require_records(self) -> None:
        """Check that the run's records can still be written; meant for once an epoch.

        Raises:
            RunError: The directory is gone, or the disk refused a line of the log or of TensorBoard's events.
        """
        self.require_directory()
        for writer in (self.log, self.events):
            if writer is not None and writer.failure is not None:
                raise RunError(writer.failure)


@dataclass
class Result:
    """What a finished run reports; becomes training_result.json.

    Attributes:
        run_dir: The run's directory; None where the mode leaves none (check).
        status: completed; a run that fails or is interrupted raises instead.
        metrics: Of best.pt on real validation images (detection: mAP50, mAP50-95, precision, recall), in [0, 1].
        epochs_completed: Epochs that really ran.
        best_epoch: The epoch of best.pt, counted from 1.
        best_model_path: Relative to run_dir.
        last_model_path: Relative to run_dir.
        exports: One entry per exported file: format, path, parity.
        latency_ms: Milliseconds that best.pt takes for one image; None: not measured.
        extra: The engine's additions.
        failure: What went wrong after the work itself (an export); raised when everything is recorded.
    """

    run_dir: Path | None
    status: str = "completed"
    metrics: dict[str, float] = field(default_factory=dict)
    epochs_completed: int = 0
    best_epoch: int | None = None
    best_model_path: str | None = None
    last_model_path: str | None = None
    exports: list[dict[str, Any]] = field(default_factory=list)
    latency_ms: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    failure: HsrTrainError | None = None


class Engine(Protocol):
    """One training library behind one door."""

    def prepare(self, experiment: Any, machine: Machine, decisions: Decisions) -> Plan:
        """Check data, weights and device, and decide every `auto`. Writes nothing outside the cache folder.

        Raises:
            InputError: With every problem found.
        """
        ...

    def split(self, experiment: Any, decisions: Decisions) -> list[str]:
        """Divide the data and write the index files; returns lines that say what was made.

        Raises:
            InputError: The data cannot be divided in this way, or the engine has no use for index files.
        """
        ...

    def train(self, plan: Plan, context: RunContext) -> Result:
        """Train, evaluate best.pt and export; goes on from the run's `state/` if `context.resuming`."""
        ...

    def validate(self, plan: Plan, context: RunContext) -> Result:
        """Evaluate given weights on a split."""
        ...

    def predict(self, plan: Plan, context: RunContext) -> Result:
        """Run given weights over images or videos."""
        ...

    def export(self, plan: Plan, context: RunContext) -> Result:
        """Write given weights in other formats, each verified against the original."""
        ...

    def weights_digest(self, run: RunDirectory) -> tuple[int, str] | None:
        """Return what tells whether two runs came to the same weights.

        Returns:
            The epoch of the newest sound state in `state/`, and a SHA-256 over its weights in full precision; None if
            there is no state.

        Raises:
            InputError: Every state is damaged.
        """
        ...


class ComposingEngine(Engine, Protocol):
    """An engine that composes images to train on."""

    def preview(self, plan: Plan, context: RunContext) -> Result:
        """Write pictures of them into the run's directory."""
        ...

    def synthesize(self, plan: Plan) -> list[str]:
        """Write a set of them to output_dir; returns lines that say what was made."""
        ...


class SharedEngine(Engine, Protocol):
    """An engine whose training several processes may share (`hsr_train.processes`)."""

    def assist(self, experiment: Any, machine: Machine) -> None:
        """Do this process's share of a training whose directory and records the first process has."""
        ...
