"""What one attempt at training consists of: network, average, optimizer, loaders; set up anew, or from a state."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hsr_train.config.schema import ClassifyExperiment, ClassifyOptimizerConfig
from hsr_train.data.class_set import ClassificationSet, ClassSplit
from hsr_train.engines.classification.batches import Poisson
from hsr_train.engines.classification.inputs import ClassifyInputs
from hsr_train.engines.classification.models import build, freeze, needs_two
from hsr_train.engines.classification.policy import Policy, SharedPolicy
from hsr_train.engines.classification.privacy import (
    PrivatePolicy,
    replace,
    replaceable,
    sample_rate,
    steps_per_epoch,
)
from hsr_train.engines.classification.samples import EpochLoader, ImageSamples, Mixing, make_loader
from hsr_train.engines.classification.weights import FORMAT, load_into, read
from hsr_train.engines.states import STATE_VERSION, copied, random_state, restore_random_state
from hsr_train.engines.together import Together
from hsr_train.recovery import Recovery


@dataclass(frozen=True)
class Step:
    """An optimizer step.

    Attributes:
        images: That its gradient is the mean over.
        share: Places of this process for them.
    """

    images: int
    share: int


class Training:
    """One attempt at a run.

    Whatever recovery has changed, a batch is made of the same images; a smaller `train.batch` only splits it.

    Args:
        experiment: With every `auto` decided.
        inputs: Checked data and weights.
        recovery: What was changed so far.
        state: Where the run goes on, or None at its start.
        together: The processes that share it.
    """

    def __init__(
        self,
        experiment: ClassifyExperiment,
        inputs: ClassifyInputs,
        recovery: Recovery,
        state: dict[str, Any] | None,
        together: Together,
    ) -> None:
        assert inputs.dataset is not None
        train = experiment.train
        self.experiment, self.inputs, self.dataset = experiment, inputs, inputs.dataset
        self.device = torch.device(inputs.device)
        self.together = together
        self.share = together.share
        self.batch: int = recovery.initial("train.batch") * together.count
        self.measured_imgsz: int = recovery.initial("train.imgsz")
        self.lr: float = experiment.optimizer.lr
        self.start_epoch = state["epochs_done"] if state else 0
        self.best_score: float | None = None
        self.best_epoch = 0
        self.patient_since = 0  # the last epoch that does not count against `train.patience`
        self.extended_from: int | None = None  # the epochs that the state was made for, if there are more now
        self.has_stopped = False
        self._samples: dict[tuple[str, int, bool], ImageSamples] = {}
        seed_everything(train.seed, deterministic=train.deterministic)
        self.model = build(experiment.model.name, len(inputs.classes))
        self.notes = self._fill(state)
        self.model.to(self.device)
        self.optimizer = make_optimizer(self.model, experiment.optimizer)
        self.ema: AveragedModel | None = None
        if train.ema is not None:
            average = get_ema_multi_avg_fn(train.ema)  # type: ignore[no-untyped-call]
            self.ema = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        self.policy = self._policy()
        trained = self.policy.prepare(self.model, self.optimizer)
        self.class_weights = class_weights(self.dataset) if train.class_weights == "balanced" else None
        if state:
            self._restore(state)
        # A batch or a part of one image would end the training of such a network.
        self.least = 2 if not self._is_private and needs_two(experiment.model.name, train.imgsz) else 1
        self.forward: Any = torch.compile(trained) if train.compile else trained
        self.train_loader = self.loader("train", train.batch, start_epoch=self.start_epoch)

    def _fill(self, state: dict[str, Any] | None) -> list[str]:
        """Make the network what it starts as; return lines that say so. Weights come last where a state has them."""
        experiment, file = self.experiment, self.inputs.start.file
        self.replaced: list[str] = state["replaced"] if state else read(file).more.get("replaced", []) if file else []
        replace(self.model, self.replaced)
        notes = [] if state else load_into(self.model, self.inputs.start, experiment.model.name)
        if experiment.train.freeze:
            freeze(self.model, experiment.train.freeze)
        if self._is_private and not state:
            unfit = replaceable(self.model)
            replace(self.model, unfit)
            self.replaced = [*self.replaced, *unfit]
            if unfit:
                notes.append(
                    f"{len(unfit)} parts whose images depend on each other, such as {unfit[0]}, replaced by opacus: "
                    f"{unfit[0]} is a {type(self.model.get_submodule(unfit[0])).__name__} now"
                )
            notes.append("Privacy: the noise follows from train.seed; share the weights, not the run's directory")
        return notes

    @property
    def _is_private(self) -> bool:
        return self.experiment.trainer.name == "dp"

    def _policy(self) -> Policy:
        if self._is_private:
            return PrivatePolicy(self.experiment, self.device, self._num_images, self._images_per_step)
        if self.together.count > 1:
            return SharedPolicy(self.experiment, self.device, self.together.count)
        return Policy(self.experiment, self.device)

    @property
    def _images_per_step(self) -> int:
        return self.batch * self.experiment.trainer.gradient_accumulation_steps

    @property
    def _num_images(self) -> int:
        return len(self.dataset.splits["train"].images)

    def steps(self) -> list[Step]:
        """Return the optimizer steps of the next epoch."""
        sizes, shares = self.train_loader.sizes, self.train_loader.share_sizes
        every = 1 if self._is_private else self.experiment.trainer.gradient_accumulation_steps
        starts = range(0, len(sizes), every)
        return [Step(sum(sizes[i : i + every]), sum(shares[i : i + every])) for i in starts]

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and kept: the average, where there is one."""
        return self.model if self.ema is None else self.ema.module

    def loader(
        self, split: str, at_once: int | None, *, start_epoch: int = 0, augment: bool | None = None
    ) -> EpochLoader:
        """Return the loader of a split; all but training read every image once, in order, at the initial size."""
        train = self.experiment.train
        trains = split == "train" if augment is None else augment
        size = train.imgsz if trains else self.measured_imgsz
        batch = self.batch if trains else int(at_once or self.batch) * self.share.count
        key = (split, size, trains)
        if key not in self._samples:  # what is cached in memory lives as long as the attempt
            self._samples[key] = samples(self.experiment, self.dataset.splits[split], size, augment=trains)
        return make_loader(
            self._samples[key],
            batch_size=batch,
            at_once=int(at_once or self.batch),
            workers=train.workers,
            seed=train.seed,
            shuffle=trains,
            start_epoch=start_epoch,
            least=self.least if trains else 1,
            pin=self.device.type == "cuda",
            mixing=self._mixing() if trains else None,
            poisson=self._poisson() if trains else None,
            share=self.share,
        )

    def _poisson(self) -> Poisson | None:
        if not self._is_private:
            return None
        rate = sample_rate(self._num_images, self._images_per_step)
        return Poisson(rate, steps_per_epoch(rate))

    def _mixing(self) -> Mixing | None:
        augmentation = self.experiment.augmentation
        if not (augmentation.mixup or augmentation.cutmix):
            return None
        return Mixing(len(self.inputs.classes), augmentation.mixup, augmentation.cutmix)

    def snapshot(self, *, epochs_done: int, stopped: bool, metrics: dict[str, float]) -> dict[str, Any]:
        """Copy the training state to main memory; keys as in `states`."""
        state = {
            "version": STATE_VERSION,
            "epochs_done": epochs_done,
            "epochs": self.experiment.train.epochs,
            "best_epoch": self.best_epoch,
            "best_score": self.best_score,
            "patient_since": self.patient_since,
            "stopped": stopped,
            "metrics": dict(metrics),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema is not None else None,
            "ema_updates": int(self.ema.n_averaged) if self.ema is not None else 0,
            "optimizer": self.optimizer.state_dict(),
            "policy": self.policy.state(),
            "replaced": self.replaced,
            "processes": self.together.count,
            "random": random_state(),
        }
        kept: dict[str, Any] = copied(state)
        return kept

    def _restore(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.policy.restore(state["policy"])
        if self.ema is not None and state["ema"] is not None:
            self.ema.module.load_state_dict(state["ema"])
            self.ema.n_averaged.fill_(state["ema_updates"])
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
        self.extended_from = state["epochs"] if self.experiment.train.epochs > state["epochs"] else None
        self.patient_since = state["patient_since"] if self.extended_from is None else state["epochs_done"]
        self.has_stopped = state["stopped"] and self.extended_from is None
        restore_random_state(state["random"])

    def seed_step(self, epoch: int, first_image: int) -> None:
        """Seed what the network itself draws (dropout), so that it needs no history.

        Args:
            epoch: Counted from 0.
            first_image: Images of this epoch that this process has seen.
        """
        seeds = (self.experiment.train.seed, epoch, first_image, 1, self.together.rank)
        words = np.random.SeedSequence(seeds).generate_state(1)
        torch.manual_seed(int(words[0]))

    def close(self) -> None:
        """Stop the loader workers."""
        self.train_loader.close()


def samples(experiment: ClassifyExperiment, split: ClassSplit, imgsz: int, *, augment: bool) -> ImageSamples:
    """Return the samples of a split."""
    return ImageSamples(
        split.images,
        split.targets,
        imgsz=imgsz,
        augmentation=experiment.augmentation,
        augment=augment,
        seed=experiment.train.seed,
        cache=str(experiment.train.cache),
    )


def seed_everything(seed: int, *, deterministic: bool) -> None:
    """Seed every generator, and choose kernels that give the same bits each time."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if deterministic:  # cuBLAS reads it when it is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    torch.backends.cudnn.benchmark = not deterministic


def make_optimizer(model: nn.Module, config: ClassifyOptimizerConfig) -> torch.optim.Optimizer:
    """Return the optimizer of all weights that are trained, in two groups: with decay, and (biases, norms) without."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    momentum: dict[str, Any] = {"betas": (config.momentum, 0.999)}
    if config.name in ("SGD", "RMSprop"):
        momentum = {"momentum": config.momentum}
    kind = getattr(torch.optim, config.name)
    optimizer: torch.optim.Optimizer = kind([group for group in groups if group["params"]], lr=config.lr, **momentum)
    return optimizer


def class_weights(dataset: ClassificationSet) -> Tensor:
    """Return a weight for each class, inverse to its images in train; their mean over the images is 1."""
    targets = dataset.splits["train"].targets
    counts = np.bincount(targets, minlength=len(dataset.classes))
    weights = len(targets) / (np.maximum(counts, 1) * np.count_nonzero(counts))
    return torch.tensor(weights, dtype=torch.float32)


def weights_content(experiment: ClassifyExperiment, inputs: ClassifyInputs, imgsz: int) -> dict[str, Any]:
    """Return what a weights file says beside its tensors: all that using the network needs."""
    return {
        "format": FORMAT,
        "model_name": experiment.model.name,
        "classes": list(inputs.classes),
        "imgsz": imgsz,
        "crop": experiment.augmentation.crop,
        "mean": list(inputs.mean),
        "std": list(inputs.std),
    }
