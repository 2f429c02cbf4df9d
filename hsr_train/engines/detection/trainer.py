"""Ultralytics' detection trainer with our data, weights, places and checkpoints; `loop.py` drives it.

Model, loss, validator, EMA, optimizer groups and plots stay the library's. `_do_train` is never called.
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hsr_train.config.schema import DetectExperiment
from hsr_train.data.detection_set import DetectionSet
from hsr_train.engines.detection import options
from hsr_train.engines.detection.batches import Part
from hsr_train.engines.detection.checkpoint import WeightsFile
from hsr_train.engines.detection.composition import Composition, Sources
from hsr_train.engines.detection.dataset import RunDataset, make_loader
from hsr_train.engines.detection.freezing import described, frozen_modules
from hsr_train.engines.detection.layer_rates import divide_by_module, rates_by_kind, table
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.precision import mixed_precision_works
from hsr_train.engines.detection.sharing import SharedLoss
from hsr_train.engines.detection.state import restore_state
from hsr_train.engines.detection.synthetic import Synthesis
from hsr_train.engines.detection.weights import Weights, architecture_yaml, load_model
from hsr_train.engines.together import WHOLE, Together
from hsr_train.pace import Load
from hsr_train.recovery import Recovery
from hsr_train.run.changes import set_value
from hsr_train.run.directory import RunDirectory

bring_up()
import ultralytics.engine.trainer as trainer_module  # noqa: E402
import ultralytics.models.yolo.detect.train as train_module  # noqa: E402
import ultralytics.models.yolo.detect.val as val_module  # noqa: E402
from ultralytics.models.yolo.detect import DetectionTrainer  # noqa: E402
from ultralytics.utils.plotting import plot_images  # noqa: E402
from ultralytics.utils.torch_utils import unwrap_model  # noqa: E402

log = logging.getLogger(__name__)

for _module in (train_module, val_module):  # pictures are there when the call returns, not some time later
    _module.plot_images = partial(plot_images, threaded=False)


@dataclass(frozen=True)
class DetectionInputs:
    """What `DetectionEngine.prepare` found: everything a run reads.

    Attributes:
        dataset: The checked set, or None where none is needed (predict).
        weights: What training starts from, or what is used.
        device: A torch device, such as cpu or cuda:0.
        cache_dir: Our cache folder.
        sources: mode=predict: the images, folder or video.
        synthesis: What images are composed from, if any are.
    """

    dataset: DetectionSet | None
    weights: Weights
    device: str
    cache_dir: Path
    sources: Path | None = None
    synthesis: Synthesis | None = None


@contextmanager
def _own_precision_check(together: Together) -> Iterator[None]:
    """Replace the library's check of mixed precision, which downloads weights; it must work in every process."""
    original = trainer_module.check_amp
    trainer_module.check_amp = lambda model: all(together.of_all(mixed_precision_works(model)))
    try:
        yield
    finally:
        trainer_module.check_amp = original


def dataset_description(dataset: DetectionSet) -> dict[str, Any]:
    """Return a set as the dictionary that ultralytics passes around instead of data.yaml."""
    return {
        "path": dataset.yaml_path.parent,
        "names": dict(enumerate(dataset.names)),
        "nc": len(dataset.names),
        "channels": 3,
        **{name: name for name in ("train", "val", "test")},
    }


class RunTrainer(DetectionTrainer):  # type: ignore[misc]
    """One attempt at a training run.

    Whatever recovery has changed, `batch_size` is the run's initial batch, by which the library scales the weight
    decay, and validation keeps the initial image size; a smaller batch only reaches the loader, in parts.

    Args:
        experiment: With every `auto` decided.
        inputs: Checked data and weights.
        run: The run's directory.
        recovery: What was changed so far.
        state: Where the run goes on, or None at its start.
        together: The processes that share it. The first one validates and has the EMA; `batch_size` is that of all.
    """

    def __init__(
        self,
        experiment: DetectExperiment,
        inputs: DetectionInputs,
        run: RunDirectory,
        recovery: Recovery,
        state: dict[str, Any] | None = None,
        together: Together | None = None,
    ) -> None:
        assert inputs.dataset is not None
        self.together = together or Together()
        self._experiment, self._inputs, self._dataset = experiment, inputs, inputs.dataset
        self._recovery, self._state = recovery, state
        self._frozen: list[str] = []
        begun = deepcopy(experiment)
        for key in ("train.batch", "optimizer.lr0"):
            set_value(begun, key, recovery.initial(key))
        begun.train.batch = int(begun.train.batch) * self.together.count
        with tempfile.TemporaryDirectory(prefix="hsr_train_") as scratch:
            super().__init__(overrides=options.training_arguments(begun, inputs.device, Path(scratch)))
        self.args.workers = experiment.train.workers
        self.args.save_dir = str(run.path)
        self.args.name = run.path.name
        self.save_dir, self.wdir = run.plots, run.weights
        self.last, self.best, self.csv = run.weights / "last.pt", run.weights / "best.pt", run.results_csv
        self.epoch = self.start_epoch = state["epochs_done"] if state else 0
        with _own_precision_check(self.together):
            self._setup_train()
        self.validator.args.plots = False
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group.get("initial_lr", group["lr"]) * recovery.rate_factor()
        self._say_what_learns()
        self.measured_imgsz: int = recovery.initial("train.imgsz")
        self.weights_file = WeightsFile(self, self.measured_imgsz)
        composer = self.train_loader.dataset.composer
        self.sources = Sources(composer, list(self.data["names"].values())) if composer is not None else None
        self.structure = state["network"] if state else self.weights_file.structure()
        if state:
            restore_state(self, state)
            self._state = None
        self.shared_loss: SharedLoss | None = None
        if self.together.count > 1:
            self.shared_loss = SharedLoss(unwrap_model(self.model), self.together)
        if self.together.rank > 0:
            self.ema = None

    @property
    def images_per_epoch(self) -> int:
        """Number of training images in the epoch that is trained, composed ones included."""
        return self.images_in(self.epoch)

    def images_in(self, epoch: int) -> int:
        """Return the number of training images in an epoch, counted from 0."""
        return int(self.train_loader.dataset.num_samples(epoch))

    @property
    def composition(self) -> Composition | None:
        """How many images each epoch has, where that is not the same in all."""
        found: Composition | None = self.train_loader.dataset.num_composed
        return None if found is None or found.is_constant else found

    @property
    def load(self) -> Load | None:
        """What an epoch's share of work is in a run of so many, where it is not the same in all."""
        found = self.composition
        return None if found is None else found.load

    def plan_images(self, epoch: int, epochs: int) -> bool:
        """Let the images from an epoch on, counted from 0, be those of a run of so many; return whether they change."""
        if self.composition is None:
            return False
        self.train_loader.dataset.num_composed = replace(self.composition, epochs=epochs)
        self.train_loader.renew(epoch)
        return True

    @property
    def num_rates(self) -> int:
        """Columns of learning rates in results.csv: one for each kind of parameter that the library tells apart."""
        return len(rates_by_kind(self.optimizer))

    @property
    def base_rate(self) -> float:
        """The initial learning rate, also where the optimizer chose it by itself."""
        return float(self.args.lr0) * self._recovery.rate_factor()

    @property
    def has_dfl(self) -> bool:
        """Whether the head predicts distances as distributions; YOLO26 does not."""
        return int(unwrap_model(self.model).model[-1].reg_max) > 1

    def get_dataset(self) -> dict[str, Any]:
        """Return the checked set; one class called item stands for all of them if they count as one."""
        description = dataset_description(self._dataset)
        return description | {"names": {0: "item"}, "nc": 1} if self.args.single_cls else description

    def setup_model(self) -> None:
        """Build the network for the set's classes and load what the weights have in common with it."""
        weights = self._inputs.weights
        if self._state is not None:
            loaded = self._network_of(self._state)
        else:
            loaded = load_model(weights.file) if weights.file else None
        cfg = loaded.yaml if loaded is not None else architecture_yaml(weights.architecture)
        self.model = self.get_model(cfg=cfg, weights=loaded, verbose=False)
        self._frozen = frozen_modules(self._experiment.train.freeze, self.model.model, len(self.model.yaml["backbone"]))
        self.args.freeze = [name.removeprefix("model.") for name in self._frozen] or None

    def plot_training_labels(self) -> None:
        """Draw how boxes lie and which classes there are, once a run: it is done when the first state is written."""
        if self._state is None or not (self.save_dir / "labels.jpg").exists():
            super().plot_training_labels()

    @staticmethod
    def _network_of(state: dict[str, Any]) -> Any:
        """Return the network of a state, still without its numbers, through the library's safe loading."""
        with tempfile.TemporaryDirectory(prefix="hsr_train_") as scratch:
            file = Path(scratch) / "network.pt"
            file.write_bytes(state["network"].numpy().tobytes())
            return load_model(file)

    def build_optimizer(self, *args: Any, iterations: float = 1e5, **kwargs: Any) -> Any:
        """Let optimizer=auto choose by the epochs that the run began with: an extended run keeps its optimizer."""
        first = int(self._recovery.initial("train.epochs"))
        begun = iterations * first / self.epochs
        if self.load is not None:  # not as many images in each as in the first one
            begun *= sum(self.load(epoch, first) for epoch in range(first)) / first
        optimizer, llrd = super().build_optimizer(*args, iterations=begun, **kwargs), self._experiment.optimizer.llrd
        if llrd.enabled:
            divide_by_module(optimizer, unwrap_model(self.model).model, llrd.decay_rate)
        return optimizer

    def _model_train(self) -> None:
        """Begin to train; batch norms of frozen modules keep their statistics, also where one is frozen by its name."""
        super()._model_train()
        for norm in self._frozen_norms():
            norm.eval()

    def _frozen_norms(self) -> list[Any]:
        model = unwrap_model(self.model)
        inside = (module for name in self._frozen for module in model.get_submodule(name).modules())
        return [module for module in inside if isinstance(module, torch.nn.BatchNorm2d)]

    def _say_what_learns(self) -> None:
        model, llrd = unwrap_model(self.model), self._experiment.optimizer.llrd
        if self._frozen:
            fixed = sum(p.numel() for name in self._frozen for p in model.get_submodule(name).parameters())
            log.info(
                "Frozen: %s, %s of %s parameters; their %d batch norms keep their statistics",
                described(self._frozen), f"{fixed:,}", f"{sum(p.numel() for p in model.parameters()):,}",
                len(self._frozen_norms()),
            )  # fmt: skip
        if not llrd.enabled:
            return
        log.info(
            "Layer-wise learning rates: %.3g x %g^(%d - module); module %d is the head",
            self.base_rate, llrd.decay_rate, len(model.model) - 1, len(model.model) - 1,
        )  # fmt: skip
        for line in table(self.optimizer, model.model):
            log.info("%s", line)
        if self._frozen:
            typed = any(key.startswith(("train.freeze", "optimizer.llrd.")) for key in self._experiment.origin.typed)
            log.log(  # a preset that sets both means it
                logging.WARNING if typed else logging.INFO,
                "train.freeze and optimizer.llrd.enabled both hold early layers back: %s do not learn at all, and the "
                "rates of the others fall with their distance from the head all the same",
                described(self._frozen),
            )

    def optimizer_step(self) -> None:
        """Make the step that the gradients of all processes add up to."""
        self.together.add_up_gradients(self.model.parameters())
        super().optimizer_step()

    def parts(self) -> list[Part]:
        """Return what goes through the network at once, in the order of an epoch."""
        found: list[Part] = self.train_loader.batch_sampler.sampler.parts()
        return found

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> RunDataset:
        """Return the checked split `img_path` (train, val or test); validation is measured at the initial size."""
        train = self._experiment.train
        arguments = copy(self.args)
        if mode != "train":
            arguments.imgsz = self._recovery.initial("train.imgsz")
            arguments.cache = arguments.cache if self.together.rank == 0 else False  # the others do not validate
        synthesis = self._inputs.synthesis if mode == "train" else None
        return RunDataset(
            self._dataset.splits[img_path],
            arguments,
            augment=mode == "train",
            open_epochs=train.epochs - train.close_mosaic,
            cache_dir=self._inputs.cache_dir,
            batch_size=batch or self.batch_size,
            stride=self.stride,
            names=self._dataset.names,
            composer=synthesis.composer(arguments.imgsz, arguments.seed) if synthesis else None,
            num_composed=synthesis.composition(train.epochs) if synthesis else None,
        )

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Return the loader of a split; validation has its own batch size."""
        is_train = mode == "train"
        train = self._experiment.train
        batch = batch_size if is_train else int(self._recovery.initial("train.val_batch"))
        at_once = train.batch if is_train else train.val_batch
        return make_loader(
            self.build_dataset(dataset_path, mode, batch),
            batch_size=batch,
            at_once=int(at_once or batch),
            workers=self.args.workers if is_train or self.together.rank == 0 else 0,
            seed=self.args.seed,
            shuffle=is_train,
            start_epoch=self.start_epoch if is_train else 0,
            pin=self.device.type == "cuda",
            share=self.together.share if is_train else WHOLE,
        )

    @property
    def test_at_once(self) -> int:
        """Images per forward pass in validation."""
        return int(self.test_loader.batch_sampler.sampler.at_once)

    def renew_validation(self) -> None:
        """Make the loader of validation anew, after its batch was made smaller."""
        self.test_loader.close()
        self.test_loader: Any = self.get_dataloader("val", mode="val")
        self.validator.dataloader = self.test_loader

    def seed_step(self, epoch: int, first_image: int) -> None:
        """Seed what is drawn once for a whole batch (multi-scale).

        Args:
            epoch: Counted from 0.
            first_image: Images of this epoch already processed; independent of the batch size.
        """
        words = np.random.SeedSequence((self.args.seed, epoch, first_image, 1)).generate_state(1)
        random.seed(int(words[0]))

    def close(self) -> None:
        """Stop the loader workers."""
        for loader in (getattr(self, "train_loader", None), getattr(self, "test_loader", None)):
            if loader is not None:
                loader.close()
