"""What every task's experiment has; `detect.py` and `classify.py` add theirs.

One dataclass per node and one root per task. This is the only home of defaults that no YAML in `conf/` sets.
`checks.py` walks the metadata written here; engines receive instances of these classes and do not change them.
Imports nothing heavy: `--cfg job` must stay fast.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from hsr_train.config.schema.knob import knob as knob
from hsr_train.config.schema.sweep import SweepConfig
from hsr_train.decisions import Decision

MODES = ("train", "check", "validate", "predict", "export", "split", "preview", "synthesize", "compare", "tensorboard")


@dataclass
class DividedDataConfig:
    """What every set of images has that may be divided into folds; a task adds its own keys, and its own words."""

    path: str = knob("demo", "The set; demo is the built-in one.")
    folds: int = knob(5, "Folds that mode=split makes.", ge=1)
    fold: int | str | None = knob(
        None, "Which fold is trained, from 0; all trains every one; null: the set's own train and val."
    )
    scheme: str = knob(
        "kfold", "Folds: a partition into disjoint validation sets, or repeated random ones.",
        choices=("kfold", "holdout"),
    )  # fmt: skip
    ratio: list[float] = knob([0.7, 0.15, 0.15], "Shares of train, val and test; kfold uses only the last.")
    groups: str | None = knob(None, "What never straddles a split.")
    split: str = knob("val", "Which split mode=validate evaluates.", choices=("train", "val", "test"))
    on_bad: str = knob("error", "Broken images: stop with a report, or train without them.", choices=("error", "skip"))
    on_leak: str = knob("error", "The same image in two splits: stop or warn.", choices=("error", "warn"))
    seed: int = knob(42, "Seed of mode=split and of the built-in set.", ge=0)
    cache_dir: str | None = knob(None, "Our caches; default: hsr_train under the user's cache folder.")


@dataclass
class TensorboardConfig:
    """Event files and the server that shows them."""

    enabled: bool = knob(True, "Write event files.")
    serve: bool | str = knob("auto", "Start a server for this run; auto: only for a single run on a terminal.")
    host: str = knob("127.0.0.1", "Address that the server listens on.")
    port: int = knob(6006, "First port tried; the next free one is taken.", ge=1, le=65535)


@dataclass
class ExportConfig:
    """Deployment formats written from best.pt; each must agree with it on validation images."""

    formats: list[str] = knob([], "Any of: onnx, torchscript.")
    dynamic: bool = knob(False, "Let the exported file take other batch and image sizes.")
    simplify: bool = knob(True, "Simplify the ONNX graph.")
    device: str = knob(
        "run", "Where files are traced and compared: on the run's device, or on the CPU.", choices=("run", "cpu")
    )
    opset: int | None = knob(None, "ONNX operator set; default: the library's choice.", ge=11)


@dataclass
class RecoveryConfig:
    """What a run gives up, step by step, instead of ending when memory runs out or numbers go wrong."""

    enabled: bool = knob(True, "Recover from running out of memory and from diverging; false ends the run.")
    min_batch: int = knob(2, "Smallest batch in images; the effective batch stays what it was.", ge=1)
    min_imgsz: int = knob(320, "Smallest training image size in pixels; fitness is measured at the full size.", ge=64)
    max_retries: int = knob(3, "Restarts of a process that the kernel killed for memory.", ge=0)
    max_nan_retries: int = knob(2, "Returns to the last good state when losses are no numbers any more.", ge=0)


@dataclass
class AdjustConfig:
    """What a preset asks relative to the GPU tier; resolved before composition, see `config/compose.py`."""

    model_steps: int = knob(0, "Sizes larger (+) or smaller (-) than the tier's model; n and x stay.", ge=-4, le=4)
    at_most: dict[str, int] = knob({}, "Upper bounds on values of the tier, by key: {train.imgsz: 480}.")


@dataclass
class Origin:
    """Where an experiment came from: kept beside it for the record, never part of the configuration.

    Attributes:
        overrides: What was typed, as Hydra overrides.
        typed: The keys and groups that were typed; everything else is a default, a recommendation or a preset.
        config_yaml: The configuration as composed, before automatic decisions.
        hydra_yaml: Hydra's own section (choices of every group, sources).
        decisions: Choices made before or during composition (tier, model, bounds).
        tier_batch: Images per batch of the GPU tier, for train.batch=auto where its table does not apply.
        run_dir: Where the run's directory is to be made; None: under a new name.
        resume_from: The run directory that is continued, or None.
        changes: Of a continued run: what was changed in it so far, what is typed now included.
        killed: The kernel killed the process that ran this before, for memory.
        reproduce_from: The run directory that is repeated, or None.
        replay: Of a reproduction: the original's changes, to be repeated at their epochs.
        variation: Of a reproduction: what was typed that makes it another experiment.
        started: Unix time from which a time budget counts; None: from when it is executed.
    """

    overrides: list[str] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)
    config_yaml: str = ""
    hydra_yaml: str = ""
    decisions: list[Decision] = field(default_factory=list)
    tier_batch: int = 4
    run_dir: str | None = None
    resume_from: str | None = None
    changes: list[Any] = field(default_factory=list)
    killed: bool = False
    reproduce_from: str | None = None
    replay: list[Any] = field(default_factory=list)
    variation: list[str] = field(default_factory=list)
    started: float | None = None


@dataclass
class Experiment:
    """What every task's experiment has.

    Attributes:
        RATE_KEY: The key of the learning rate.
        PRECISION: The key of mixed precision, its value with it and its value without.
    """

    RATE_KEY: ClassVar[str]
    PRECISION: ClassVar[tuple[str, Any, Any]]

    task: str = knob("detect", "Which engine runs.")
    mode: str = knob("train", "What it does.", choices=MODES)
    preset: str = knob("competition", "Name of the preset; labels the run's directory.")
    gpu_tier: str = knob("auto", "Name of the hardware tier.")
    output_dir: str = knob("outputs", "Folder under which runs are created.")
    resume: str | None = knob(None, "Continue a run: its directory, a file in it, or last.")
    reproduce: str | None = knob(None, "Repeat a run from its own record and compare: its directory, or a file in it.")
    on_drift: str = knob(
        "refuse", "reproduce=: other data or weights than the original's: stop, or warn.", choices=("refuse", "warn")
    )
    runs: list[str] = knob([], "mode=compare: the two runs.")
    adjust: AdjustConfig = field(default_factory=AdjustConfig)
    tensorboard: TensorboardConfig = field(default_factory=TensorboardConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    origin: Origin = field(default_factory=Origin, metadata={"omegaconf_ignore": True})

    @property
    def not_shared(self) -> tuple[str, str, str] | None:
        """Why several processes cannot train it together: key, value, and what to do; None if they can."""
        return "task", self.task, "start it with python -m hsr_train"

    @property
    def is_cross_validation(self) -> bool:
        """Whether it stands for one run per fold (`data.fold=all`), or for the check of them."""
        return self.mode in ("train", "check") and getattr(getattr(self, "data", None), "fold", None) == "all"
