"""train.swa: which epochs are averaged, that the mean and its batch norms are right, and when swa.pt is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from detection_runs import differences, last_state, quick_pictures, read_json, resume, train
from torch import nn

import hsr_train
from hsr_train import length
from hsr_train.engines.base import Result
from hsr_train.engines.detection import averaging, engine
from hsr_train.engines.detection.averaging import WeightAverage, _measure_norms, averaged_epochs
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.weights import load_model
from hsr_train.errors import InputError

Train = Callable[..., Result]
SHORT = {
    "train__swa": "true", "train__epochs": 4, "train__close_mosaic": 0, "train__save_period": 0, "train__patience": 0,
    "train__batch": 9, "train__nbs": 9, "tensorboard__enabled": "false",
}  # fmt: skip


@pytest.mark.parametrize(("epochs", "number"), [(15, 5), (20, 5), (30, 6), (50, 10), (74, 14), (100, 15), (200, 15)])
def test_last_fifth_is_averaged_within_bounds(epochs: int, number: int) -> None:
    assert averaged_epochs(epochs) == number


def mean_after(epochs: range, planned: int, kept: Any = None) -> WeightAverage:
    """The weight of each epoch is its number."""
    average = WeightAverage(kept, torch.device("cpu"))
    for epoch in epochs:
        model = nn.BatchNorm2d(1)
        with torch.no_grad():
            model.weight.fill_(epoch)
            model.num_batches_tracked.fill_(epoch)
        average.add(model, epoch, planned)
    return average


def test_mean_is_that_of_the_last_epochs() -> None:
    assert mean_after(range(1, 16), 20).state() is None
    state = mean_after(range(1, 21), 20).state()
    assert state is not None and (state["since"], state["epochs"]) == (16, 5)
    assert state["mean"]["weight"].item() == pytest.approx(18)
    assert state["mean"]["num_batches_tracked"].item() == 20


def test_extension_forgets_epochs_that_are_not_the_last_any_more() -> None:
    before = mean_after(range(1, 21), 20).state()
    assert mean_after(range(21, 22), 40, before).state() is None
    extended = mean_after(range(21, 23), 22, before).state()
    assert extended is not None and (extended["since"], extended["epochs"]) == (21, 2)


def test_norms_are_measured_anew_but_for_frozen_ones() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.model = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3))
    model.forward = model.model.forward  # type: ignore[method-assign]
    images = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
    model.model[1].running_mean.fill_(7)
    _measure_norms(model, ["model.1"], [{"img": images[:4]}, {"img": images[4:]}])
    expected = (images.float() / 255).mean((0, 2, 3))
    torch.testing.assert_close(model.model[0].running_mean, expected)
    assert model.model[0].momentum == 0.1
    assert model.model[1].running_mean.tolist() == [7, 7, 7]


def test_too_few_epochs_are_refused() -> None:
    with pytest.raises(InputError, match=r"train.swa: true: averages the last epochs of at least 15"):
        hsr_train.compose(["train.swa=true", "train.epochs=14"])
    assert hsr_train.compose(["train.swa=true", "train.epochs=15"]).train.epochs == 15


@pytest.fixture
def quick(small_set: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    """Trains four epochs, of which the last two are averaged."""
    monkeypatch.setattr(length, "SWA_LEAST_EPOCHS", 3)
    monkeypatch.setattr(averaging, "FEWEST", 2)
    with quick_pictures():
        yield lambda **more: train(small_set, tmp_path / "out", shared_cache, **{**SHORT, **more})


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let the evaluation of swa.pt find a chosen mAP50-95."""
    original = engine.evaluate

    def choose(value: float) -> None:
        def evaluate(model: Path, *args: Any, **kwargs: Any) -> Any:
            found = original(model, *args, **kwargs)
            return replace(found, metrics=found.metrics | {"mAP50-95": value}) if model.name == "swa.pt" else found

        monkeypatch.setattr(engine, "evaluate", evaluate)

    return choose


@pytest.mark.slow
def test_stopped_run_averages_all_its_last_epochs_and_keeps_what_is_better(
    quick: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: Callable[[float], None]
) -> None:
    weights: list[dict[str, torch.Tensor]] = []
    save, finish, calls = Loop._save, Loop._finish_epoch, [0]

    def noting(self: Loop, state: dict[str, Any]) -> None:
        weights.append(state["model"])
        save(self, state)

    def stopping(self: Loop, *args: Any) -> bool:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return finish(self, *args)

    monkeypatch.setattr(Loop, "_save", noting)
    monkeypatch.setattr(Loop, "_finish_epoch", stopping)
    scored(0.99)
    with pytest.raises(KeyboardInterrupt):
        quick()
    (run,) = (tmp_path / "out" / "detect").iterdir()
    assert last_state(run)["swa"]["epochs"] == 1
    resume(run)

    state = last_state(run)["swa"]
    expected = {name: value.clone() for name, value in weights[2].items()}
    for number, later in enumerate(weights[3:], start=2):
        for name, value in later.items():
            expected[name] = expected[name].lerp(value, 1 / number) if value.is_floating_point() else value
    assert (len(weights), state["since"], state["epochs"]) == (4, 3, 2)
    assert differences(state["mean"], expected) == [], "to the bit, although it was stopped in between"
    filters, statistics = "model.9.conv.weight", "model.9.bn.running_mean"
    torch.testing.assert_close(state["mean"][filters], torch.stack([w[filters] for w in weights[-2:]]).mean(0))

    swa = read_json(run / "training_result.json")["swa"]
    assert (swa["epochs"], swa["kept"], swa["metrics"]["mAP50-95"]) == (2, True, 0.99)
    model, best = (load_model(run / "weights" / f"{name}.pt") for name in ("swa", "best"))
    assert torch.equal(model.state_dict()[filters], state["mean"][filters].half().float())
    assert not torch.equal(model.state_dict()[statistics], state["mean"][statistics].half().float())
    assert (model.names, model.stride.tolist(), model.args) == (best.names, best.stride.tolist(), best.args)
    stored = [torch.load(run / "weights" / f"{name}.pt", weights_only=False) for name in ("swa", "best")]
    assert stored[0].keys() == stored[1].keys()
    assert stored[0]["train_metrics"]["mAP50-95"] == 0.99

    scored(0.0)
    before = (run / "weights" / "best.pt").read_bytes()
    resume(run, "train.epochs=5")
    result = read_json(run / "training_result.json")
    assert (result["swa"]["epochs"], result["swa"]["kept"]) == (1, False), "epoch 3 is not one of the last any more"
    assert not (run / "weights" / "swa.pt").exists(), "that of before is not of this run's end"
    if result["best_epoch"] != 5:
        assert (run / "weights" / "best.pt").read_bytes() == before
