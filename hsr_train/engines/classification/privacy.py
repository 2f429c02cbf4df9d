"""`trainer=dp`: differentially private training (DP-SGD), by opacus; only this file imports it.

Every step draws each image with the same probability (`samples.make_loader`, `poisson`), clips the gradient of each
image, adds noise to their sum, and is accounted for. What that bounds is how much the weights after a step tell about
one training image. It says nothing of validation and test images, by which best.pt is chosen and reports are made, of
the figures and reports on the training images, or of the number of images and the names of the classes: share the
weights, not the run's directory.

Noise and draws follow from `train.seed`, so that a run can be repeated: whoever knows the seed, which the run's files
hold, knows the noise, and the generators are not made to resist those who search for it.
"""

from __future__ import annotations

import bisect
import importlib
import logging
import secrets
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from hsr_train.config.schema import ClassifyExperiment
from hsr_train.config.schema.classify import TrainerConfig
from hsr_train.decisions import Decisions
from hsr_train.engines.classification.models import build, freeze
from hsr_train.engines.classification.policy import Policy
from hsr_train.errors import InputError, Problem

SUPPORTED = ("resnet18", "resnet50", "mobilenet_v2", "efficientnet_b0", "squeezenet1_1", "vgg11", "densenet121")
"""Networks that are named where another one does not work; many more do, and each is tried before a run."""

_NOISE = 3  # sets the draws of the noise apart from others
_TOLERANCE = 1e-3
_OUT_OF_PLACE: dict[Any, Any] = {
    Tensor.__iadd__: Tensor.__add__,
    Tensor.__imul__: Tensor.__mul__,
    Tensor.add_: Tensor.add,
    Tensor.mul_: Tensor.mul,
}


def load_opacus() -> Any:
    """Return the module opacus.

    Raises:
        InputError: It is not installed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # its dependencies announce what they will remove
            for part in ("accountants.utils", "grad_sample", "optimizers", "validators"):
                importlib.import_module(f"opacus.{part}")
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "opacus":
            raise
        remedy = 'type pip install "hsr_train[classify]"'
        raise InputError(Problem("trainer", "dp", "opacus is not installed", remedy)) from error
    logging.getLogger("opacus").setLevel(logging.WARNING)  # else a line for each part of the network
    return importlib.import_module("opacus")


def epsilon_of(noise_multiplier: float, rate: float, steps: int, delta: float) -> float:
    """Return the epsilon of a number of steps, by Renyi differential privacy: an upper bound."""
    if steps == 0:
        return 0.0
    accountant = load_opacus().accountants.RDPAccountant()
    accountant.history = [(noise_multiplier, rate, steps)]
    with warnings.catch_warnings(action="ignore"):  # that other orders could give a tighter bound
        return float(accountant.get_epsilon(delta))


def sample_rate(num_images: int, images_per_step: int) -> float:
    """Return the probability with which a step takes an image."""
    return min(1.0, images_per_step / num_images)


def steps_per_epoch(rate: float) -> int:
    """Return after how many steps each image was taken once on average."""
    return max(1, round(1 / rate))


def allowed_steps(trainer: TrainerConfig, rate: float, most: int) -> int:
    """Return how many steps, up to `most`, keep epsilon within `trainer.target_epsilon`."""
    noise, target, delta = trainer.noise_multiplier, trainer.target_epsilon, trainer.target_delta
    assert noise is not None
    if target is None or epsilon_of(noise, rate, most, delta) <= target:
        return most
    # Epsilon grows with the steps.
    return bisect.bisect_right(range(most), target, lo=1, key=lambda steps: epsilon_of(noise, rate, steps, delta)) - 1


def decide(experiment: ClassifyExperiment, num_images: int, decisions: Decisions) -> None:
    """Check that a training can be private, and decide its noise and its seed.

    Args:
        experiment: With `trainer.name` dp; changed in place.
        num_images: In train.
        decisions: Receives the noise, and a seed that was drawn.

    Raises:
        InputError: With every problem found.
    """
    load_opacus()
    train, trainer, problems = experiment.train, experiment.trainer, []
    if train.class_weights == "balanced":
        allowed = "counts the images of each class, which the privacy of trainer=dp does not cover"
        problems.append(Problem("train.class_weights", "balanced", allowed, "train.class_weights=none"))
    if train.compile:
        allowed = "trainer=dp needs the gradient of each image, which a compiled network does not give"
        problems.append(Problem("train.compile", "true", allowed, "train.compile=false"))
    problems += _try_out(experiment)
    if not problems:
        try:
            _decide_noise(experiment, num_images, decisions)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    if trainer.target_delta >= 1 / num_images:
        logging.getLogger(__name__).warning(
            "trainer.target_delta=%g is not below 1 / %d, one in the number of training images: the guarantee is weak",
            trainer.target_delta, num_images,
        )  # fmt: skip
    origin = experiment.origin
    if "train.seed" not in origin.typed and origin.resume_from is None and origin.reproduce_from is None:
        train.seed = secrets.randbits(32)
        decisions.record("train.seed", train.seed, "drawn, since the noise of trainer=dp follows from it")


def _decide_noise(experiment: ClassifyExperiment, num_images: int, decisions: Decisions) -> None:
    trainer, train = experiment.trainer, experiment.train
    rate = sample_rate(num_images, train.batch * trainer.gradient_accumulation_steps)
    planned = steps_per_epoch(rate) * train.epochs
    target = trainer.target_epsilon
    if trainer.noise_multiplier is None:
        assert target is not None
        try:
            with warnings.catch_warnings(action="ignore"):
                noise = load_opacus().accountants.utils.get_noise_multiplier(
                    target_epsilon=target,
                    target_delta=trainer.target_delta,
                    sample_rate=rate,
                    steps=planned,
                    accountant="rdp",
                    epsilon_tolerance=min(0.01, target / 100),
                )
        except ValueError as error:
            allowed = f"no noise is large enough for {planned} steps"
            raise InputError(Problem("trainer.target_epsilon", str(target), allowed, "a larger one")) from error
        trainer.noise_multiplier = float(noise)
        reason = f"epsilon {target:g} at delta {trainer.target_delta:g} after {train.epochs} epochs, {planned} steps"
        decisions.record("trainer.noise_multiplier", trainer.noise_multiplier, reason)
    elif experiment.origin.resume_from is None and allowed_steps(trainer, rate, 1) == 0:
        one = epsilon_of(trainer.noise_multiplier, rate, 1, trainer.target_delta)
        allowed = f"one step with trainer.noise_multiplier={trainer.noise_multiplier:g} has epsilon {one:.3f}"
        remedy = "type a larger trainer.noise_multiplier, or leave it out: it is derived from trainer.target_epsilon"
        raise InputError(Problem("trainer.target_epsilon", str(target), allowed, remedy))


def replace(model: nn.Module, names: Sequence[str]) -> None:
    """Replace parts of a network by what opacus has instead: batch by group norm, attention by its own.

    Weights are kept; a group norm takes over the scale and shift of its batch norm.

    Args:
        model: Changed in place.
        names: Of its parts; those of `replaceable`, or what a weights file says under "replaced".
    """
    for name in names:
        part = model.get_submodule(name)
        fixed = load_opacus().validators.ModuleValidator.fix(part)
        if isinstance(part, _NormBase) and part.affine:
            fixed.load_state_dict({"weight": part.weight, "bias": part.bias})
        model.set_submodule(name, fixed)


def replaceable(model: nn.Module) -> list[str]:
    """Return the names of trained parts that `replace` must replace in a private training."""
    fixers = load_opacus().validators.ModuleValidator.FIXERS
    return [
        name
        for name, part in model.named_modules()
        if type(part) in fixers and any(p.requires_grad for p in part.parameters())
    ]


def _try_out(experiment: ClassifyExperiment) -> list[Problem]:
    """Make the gradients of single images once, and compare: that of an image must not depend on the others."""
    name, side = experiment.model.name, experiment.train.imgsz
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build(name, 2).train()
            if experiment.train.freeze:
                freeze(model, experiment.train.freeze)
            replace(model, replaceable(model))
            load_opacus().grad_sample.GradSampleHooks(model, loss_reduction="sum")
            first, second, third = torch.randn(3, 1, 3, side, side)
            one, error = _gradients(model, torch.cat([first, second]))
            same, _ = _gradients(model, torch.cat([first, third]))
        apart = float((one - same).norm() / one.norm().clamp_min(1e-12))
        if max(error, apart) <= _TOLERANCE:
            return []
        reason = "the gradients of its images depend on each other, or are not exact"
    except (RuntimeError, NotImplementedError, ValueError, TypeError, AttributeError) as error:
        listed = error.args[0] if error.args and isinstance(error.args[0], list) else [error]  # opacus lists them
        reason = str(listed[0]).partition("\n")[0][:120]
    allowed = f"trainer=dp can't train it ({reason})"
    remedy = f"such as model.name={', '.join(SUPPORTED)}; or train.freeze=backbone, which trains the head alone"
    return [Problem("model.name", name, allowed, remedy)]


def _gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """Return the gradient of the first of two images, and the relative error of the sum of both."""
    torch.manual_seed(1)
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.grad, parameter.grad_sample = None, None  # type: ignore[attr-defined]
    with OutOfPlace(), _quiet():
        functional.cross_entropy(model(images), torch.tensor([0, 1]), reduction="sum").backward()  # type: ignore[no-untyped-call]
    each: list[Tensor] = [p.grad_sample for p in trained]  # type: ignore[attr-defined]
    total = torch.cat([p.grad.flatten() for p in trained if p.grad is not None])
    error = (torch.cat([g.sum(0).flatten() for g in each]) - total).norm() / total.norm().clamp_min(1e-12)
    return torch.cat([g[0].flatten() for g in each]), float(error)


class OutOfPlace(TorchFunctionMode):
    """Keeps networks from overwriting what the hooks of opacus look at, such as the sum in a residual block."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function that writes its result elsewhere."""
        kwargs = dict(kwargs or {})
        if kwargs.get("inplace"):
            kwargs["inplace"] = False
        return _OUT_OF_PLACE.get(func, func)(*args, **kwargs)


@contextmanager
def _quiet() -> Iterator[None]:
    """Be silent about hooks on the first layer, whose input needs no gradient."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        yield


class PrivatePolicy(Policy):
    """Private steps, in float32.

    Args:
        experiment: `trainer`, with its noise decided, `train.seed`, `train.epochs` and `train.clip_norm`.
        device: Where the network is.
        num_images: In train.
        images_per_step: That a step takes on average.
    """

    def __init__(
        self, experiment: ClassifyExperiment, device: torch.device, num_images: int, images_per_step: int
    ) -> None:
        super().__init__(experiment, device)
        assert experiment.trainer.noise_multiplier is not None
        self._trainer, self._seed = experiment.trainer, experiment.train.seed
        self._noise: float = experiment.trainer.noise_multiplier
        self.rate = sample_rate(num_images, images_per_step)
        self._expected = self.rate * num_images
        planned = steps_per_epoch(self.rate) * experiment.train.epochs
        self._allowed = allowed_steps(self._trainer, self.rate, planned + 1)
        self._steps = 0
        self._generator = torch.Generator(device)

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
        """Take charge of an optimizer and its network, whose parts are replaced already."""
        opacus = load_opacus()
        self._model = model
        self._hooks = opacus.grad_sample.GradSampleHooks(model, loss_reduction="sum")
        self._optimizer = opacus.optimizers.DPOptimizer(
            optimizer,
            noise_multiplier=self._noise,
            max_grad_norm=self._trainer.max_grad_norm,
            expected_batch_size=self._expected,
            generator=self._generator,
        )
        if self._clip_norm is not None:
            self._optimizer.attach_step_hook(
                lambda _: nn.utils.clip_grad_norm_(model.parameters(), self._clip_norm or 0.0)
            )
        return model

    def autocast(self) -> OutOfPlace:
        """Return the context in which scores and loss are computed."""
        return OutOfPlace()

    def begin(self, epoch: int) -> None:
        """Draw the noise of an epoch (from 0) from the seed and the epoch."""
        words = np.random.SeedSequence((self._seed, epoch, 0, _NOISE)).generate_state(1)
        self._generator.manual_seed(int(words[0]))

    def backward(self, losses: Tensor, step_images: int) -> None:
        """Clip the gradient of each image of a part of a step, and add them up."""
        with _quiet():
            losses.sum().backward()  # type: ignore[no-untyped-call]
        self._optimizer.signal_skip_step(True)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """Add the noise and make the step; also where no image was drawn."""
        for parameter in self._optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))  # the images were added up before
        self._optimizer.signal_skip_step(False)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._steps += 1

    @property
    def is_spent(self) -> bool:
        """Whether one more step would exceed `trainer.target_epsilon`."""
        return self._steps >= self._allowed

    def privacy(self) -> dict[str, Any]:
        """Return the guarantee for the weights as they are now."""
        return {
            "epsilon": epsilon_of(self._noise, self.rate, self._steps, self._trainer.target_delta),
            "delta": self._trainer.target_delta,
            "accountant": "rdp",
            "noise_multiplier": self._noise,
            "max_grad_norm": self._trainer.max_grad_norm,
            "sample_rate": self.rate,
            "steps": self._steps,
        }

    def state(self) -> dict[str, Any]:
        """Return what resuming needs: the guarantee, with its number of steps."""
        return {**super().state(), "privacy": self.privacy()}

    def restore(self, state: dict[str, Any]) -> None:
        """Put back what `state` returned."""
        self._steps = state["privacy"]["steps"]
