"""trainer=dp: what a step of it does, what it costs in privacy, and that a run can be resumed, repeated and used."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classify_runs import failing, folder_of, make_set, overrides, quick_pictures, state_of, train, weights_of
from detection_runs import differences, read_json, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional
from torchvision import models

import hsr_train
from hsr_train.config.schema import ClassifyExperiment
from hsr_train.engines.classification.batches import Poisson
from hsr_train.engines.classification.loop import Loop
from hsr_train.engines.classification.models import build
from hsr_train.engines.classification.policy import Policy
from hsr_train.engines.classification.privacy import SUPPORTED, OutOfPlace, PrivatePolicy, replace, replaceable
from hsr_train.errors import InputError

DP = {"trainer": "dp", "trainer__target_epsilon": "null", "trainer__noise_multiplier": "1.0", "train__seed": "3"}
FEW = 18  # images in train

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("dp") / "squares")


@pytest.fixture
def quick(data: Path, tmp_path: Path, shared_cache: Path) -> Iterator[Train]:
    """Train privately on the small set."""
    with quick_pictures():
        yield lambda folder="run", **more: train(data, tmp_path / folder, shared_cache, **{**DP, **more})


def epsilon(noise: float, rate: float, steps: int) -> float:
    from opacus.accountants import RDPAccountant  # two seconds, which every test process would pay to collect tests

    accountant = RDPAccountant()
    for _ in range(steps):
        accountant.step(noise_multiplier=noise, sample_rate=rate)
    return float(accountant.get_epsilon(1e-5))


def epsilons(run: Path) -> list[float]:
    return [float(row["epsilon"]) for row in rows(run)]


def policy_of(model: nn.Module, *, noise: float, norm: float, rate: float = 1.0, images: int = 4) -> PrivatePolicy:
    experiment = ClassifyExperiment()
    experiment.trainer.name, experiment.trainer.noise_multiplier = "dp", noise
    experiment.trainer.max_grad_norm, experiment.train.epochs = norm, 1
    policy = PrivatePolicy(experiment, torch.device("cpu"), images, images)
    policy.prepare(model, torch.optim.SGD(model.parameters(), lr=rate))
    policy.begin(0)
    return policy


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 3)).train()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def one_step(images: torch.Tensor, targets: torch.Tensor, *, parts: int = 1, noise: float, norm: float) -> torch.Tensor:
    """Return how the weights of a small network change in one private step of rate 1."""
    model = network()
    before = weights(model)
    policy = policy_of(model, noise=noise, norm=norm)
    for part, wanted in zip(images.chunk(parts), targets.chunk(parts), strict=True):
        with policy.autocast():
            losses = functional.cross_entropy(model(part), wanted, reduction="none")
        policy.backward(losses, len(images))
    policy.step()
    return weights(model) - before


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((4, 3, 8, 8), generator=generator), torch.tensor([0, 1, 2, 0])


def test_one_image_changes_a_step_by_no_more_than_its_clipped_gradient(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    images, targets = batch
    huge = torch.cat([images[:3], 1e4 * images[3:]])
    plain = one_step(images[:3], targets[:3], noise=1e-12, norm=0.5)
    moved = (one_step(huge, targets, noise=1e-12, norm=0.5) - plain).norm()
    assert float(moved) == pytest.approx(0.5 / 4, rel=1e-3)  # max_grad_norm / expected images, and no less
    unclipped = one_step(huge, targets, noise=1e-12, norm=1e9) - one_step(
        images[:3], targets[:3], noise=1e-12, norm=1e9
    )
    assert float(unclipped.norm()) > 100


def test_step_without_noise_and_clipping_is_a_plain_one(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    images, targets = batch
    model = network()
    before = weights(model)
    experiment = ClassifyExperiment()
    plain = Policy(experiment, torch.device("cpu"))
    plain.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    plain.backward(functional.cross_entropy(model(images), targets, reduction="none"), 4)
    plain.step()
    expected = weights(model) - before
    assert torch.allclose(one_step(images, targets, noise=1e-15, norm=1e9), expected, atol=1e-5)


def test_parts_of_a_step_make_the_step_of_the_whole(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    whole = one_step(*batch, noise=1.0, norm=0.5)
    assert torch.allclose(one_step(*batch, parts=2, noise=1.0, norm=0.5), whole, atol=1e-6)
    assert torch.allclose(one_step(*batch, parts=4, noise=1.0, norm=0.5), whole, atol=1e-6)


def test_noise_has_the_size_that_is_accounted_for_even_where_no_image_was_drawn() -> None:
    model = nn.Linear(400, 500).train()
    before = weights(model)
    policy = policy_of(model, noise=2.0, norm=0.5)
    policy.step()
    first = weights(model) - before
    assert float(first.std()) == pytest.approx(2.0 * 0.5 / 4, rel=0.02)
    policy.step()
    second = weights(model) - before - first
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.02
    assert policy.privacy()["steps"] == 2


def test_batches_are_drawn_image_by_image() -> None:
    poisson = Poisson(rate=0.2, steps=2000)
    sizes = poisson.sizes(seed=1, epoch=0, num_samples=20)
    assert 0 in sizes and np.mean(sizes) == pytest.approx(4, abs=0.15)
    assert np.var(sizes) == pytest.approx(20 * 0.2 * 0.8, rel=0.15)
    taken = np.zeros(20)
    for step, size in enumerate(sizes):
        indices = poisson.batch(1, 0, step, 20, size)
        assert len(set(indices)) == size
        taken[indices] += 1
    assert taken / 2000 == pytest.approx(np.full(20, 0.2), abs=0.05)
    assert poisson.sizes(1, 1, 20) != sizes and poisson.sizes(2, 0, 20) != sizes and poisson.sizes(1, 0, 20) == sizes


def test_epsilon_is_that_of_opacus_wherever_it_is_told(quick: Train) -> None:
    run = quick(tensorboard__enabled="true")
    table = epsilons(run)
    assert table == pytest.approx([epsilon(1.0, 8 / FEW, 2), epsilon(1.0, 8 / FEW, 4)])
    last = table[1]
    told = read_json(run / "training_result.json")
    assert json.dumps(told).count('"privacy"') == 1 and repr(last) in json.dumps(told)
    private = weights_of(run, "last")["private"]
    assert private == state_of(run)["policy"]["privacy"]
    assert private["epsilon"] == pytest.approx(last) and private["steps"] == 4 and private["delta"] == 1e-5
    events = EventAccumulator(str(next(run.rglob("events.out*")).parent)).Reload()
    assert [entry.value for entry in events.Scalars("Privacy/epsilon")] == pytest.approx(table)
    assert [entry.value for entry in events.Scalars("Privacy/delta")] == pytest.approx([1e-5, 1e-5])
    assert "share the weights, not the run's directory" in (run / "logs/train.log").read_text()


def test_training_stops_in_mid_epoch_before_epsilon_is_exceeded(quick: Train) -> None:
    target = (epsilon(1.0, 8 / FEW, 3) + epsilon(1.0, 8 / FEW, 4)) / 2
    run = quick(train__epochs=5, trainer__target_epsilon=target)
    assert epsilons(run) == pytest.approx([epsilon(1.0, 8 / FEW, 2), epsilon(1.0, 8 / FEW, 3)])
    assert read_json(run / "training_result.json")["status"] == "completed"
    assert state_of(run)["stopped"] and state_of(run)["policy"]["privacy"]["steps"] == 3
    assert "a further step would exceed trainer.target_epsilon" in (run / "logs/train.log").read_text()


@pytest.mark.slow
def test_spent_budget_is_spent_in_a_longer_run_too(quick: Train) -> None:
    run = quick(trainer__target_epsilon=(epsilon(1.0, 8 / FEW, 5) + epsilon(1.0, 8 / FEW, 6)) / 2)
    before = state_of(run)
    hsr_train.execute(hsr_train.compose([f"resume={run}", "train.epochs=4"]))
    assert len(epsilons(run)) == 3  # one step was left
    assert state_of(run)["policy"]["privacy"]["steps"] == 5 and before["policy"]["privacy"]["steps"] == 4


@pytest.mark.slow
def test_derived_noise_reaches_the_target_at_the_last_epoch(quick: Train) -> None:
    run = quick(trainer__target_epsilon=3.0, trainer__noise_multiplier="null")
    table = epsilons(run)
    assert len(table) == 2 and 2.95 < table[-1] <= 3.0
    assert not state_of(run)["stopped"]


def test_too_small_an_epsilon_for_one_step_is_refused(quick: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"one step with trainer\.noise_multiplier=1 has epsilon"):
        quick(trainer__target_epsilon=0.1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"train__class_weights": "balanced"}, "train.class_weights"),
        ({"train__compile": "true"}, "train.compile"),
        ({"model__name": "swin_t"}, "model.name"),
        ({"model__name": "timm/convnext_atto"}, "model.name"),
    ],
)
def test_what_cannot_be_private_is_refused(quick: Train, more: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        quick(**more)
    assert [problem.key for problem in caught.value.problems] == [key]


def test_missing_opacus_is_named(quick: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "opacus"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [_NoOpacus(), *sys.meta_path])
    with pytest.raises(InputError, match="opacus is not installed") as caught:
        quick()
    assert 'pip install "hsr_train[classify]"' in str(caught.value)


class _NoOpacus:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "opacus":
            raise ModuleNotFoundError(name=name)


@pytest.mark.slow
def test_seed_is_drawn_unless_it_is_typed(quick: Train) -> None:
    seeds = {read_json(quick(name, train__seed=None) / "manifest.json")["seeds"]["train.seed"] for name in "ab"}
    assert len(seeds) == 2 and 0 not in seeds


def test_resumed_run_is_the_same_to_the_bit(quick: Train) -> None:
    whole = quick("whole", train__epochs=3, train__ema="0.9")
    with pytest.raises(KeyboardInterrupt), failing(Loop, "_train_epoch", 2, error=KeyboardInterrupt()):
        quick("cut", train__epochs=3, train__ema="0.9")
    cut = next((whole.parents[2] / "cut/classify").iterdir())
    hsr_train.execute(hsr_train.compose([f"resume={cut}"]))
    assert (cut / "results.csv").read_text() == (whole / "results.csv").read_text()
    assert differences(state_of(cut), state_of(whole)) == []


def test_loading_and_parts_change_no_draw(quick: Train) -> None:
    one = quick("one")
    assert (quick("workers", train__workers=2) / "results.csv").read_text() == (one / "results.csv").read_text()


@pytest.mark.slow
def test_batch_norm_is_replaced_and_said_and_the_weights_are_usable(
    quick: Train, data: Path, tmp_path: Path, shared_cache: Path
) -> None:
    run = quick(model__name="resnet18", train__epochs=1)
    assert "bn1 is a GroupNorm now" in (run / "logs/train.log").read_text()
    content = weights_of(run)
    model = models.resnet18(num_classes=3)
    replace(model, content["replaced"])
    model.load_state_dict(content["state_dict"])
    assert not any(isinstance(part, nn.BatchNorm2d) for part in model.modules())
    file = {"model__name": None, "model__weights": run / "weights/best.pt"}
    again = hsr_train.execute(hsr_train.compose(overrides(data, tmp_path, shared_cache, mode="validate", **file)))
    assert again.metrics == pytest.approx(read_json(run / "training_result.json")["metrics"])
    typed = overrides(data / "val", tmp_path, shared_cache, mode="predict", **file)
    found = folder_of(hsr_train.execute(hsr_train.compose(typed)))
    assert len((found / "predictions.csv").read_text().splitlines()) == 13


def test_frozen_batch_norm_keeps_its_statistics(quick: Train) -> None:
    run = quick(model__name="resnet18", train__epochs=1, train__freeze="backbone")
    assert "replaced" not in weights_of(run) and "bn1.running_mean" in weights_of(run)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SUPPORTED)
def test_named_networks_make_private_steps_with_the_gradients_of_their_images(name: str) -> None:
    model = build(name, 3).train()
    replace(model, replaceable(model))
    before = weights(model)
    policy = policy_of(model, noise=1.0, norm=1.0, rate=0.1, images=2)
    with policy.autocast():
        losses = functional.cross_entropy(model(torch.rand(2, 3, 64, 64)), torch.tensor([0, 1]), reduction="none")
    assert isinstance(policy.autocast(), OutOfPlace)
    policy.backward(losses, 2)
    policy.step()
    moved = weights(model) - before
    assert bool(torch.isfinite(moved).all()) and float((moved != 0).double().mean()) > 0.99


@pytest.mark.slow
def test_smaller_parts_after_a_shortage_of_memory_are_the_same_steps(
    quick: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float tolerance, without dropout: the images and the noise of every step are the same."""
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, given: given)
    plain = {"optimizer": "classify_sgd", "optimizer__lr": 0.01, "train__imgsz": 64}
    whole = quick("whole", **plain)
    with failing(Loop, "_backward", 4):
        short = quick("short", **plain)
    assert [change["key"] for change in json.loads((short / "state/changes.json").read_text())] == ["train.batch"]
    assert epsilons(short) == epsilons(whole)
    for name, value in state_of(whole)["model"].items():
        torch.testing.assert_close(value, state_of(short)["model"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_derived_noise_and_drawn_seed_are_kept_where_a_run_is_resumed_or_repeated(
    quick: Train, data: Path, shared_cache: Path, tmp_path: Path
) -> None:
    more = {"train__seed": None, "trainer__noise_multiplier": "null", "trainer__target_epsilon": 4.0}
    with pytest.raises(KeyboardInterrupt), failing(Loop, "_train_epoch", 2, error=KeyboardInterrupt()):
        quick("cut", **more)
    cut = next((tmp_path / "cut/classify").iterdir())
    hsr_train.execute(hsr_train.compose([f"resume={cut}"]))
    again = folder_of(hsr_train.execute(hsr_train.compose([f"reproduce={cut}"])))
    assert (again / "results.csv").read_text() == (cut / "results.csv").read_text()
    assert state_of(cut)["policy"]["privacy"]["steps"] == 4
