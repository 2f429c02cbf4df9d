"""Layer-wise learning rates: which module learns how fast; every optimizer; runs that are stopped or diverge."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detection_runs import differences, last_state, quick_pictures, read_json, resume, rows, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import hsr_train
from hsr_train.config.schema import OPTIMIZERS
from hsr_train.engines.base import Result
from hsr_train.engines.detection.layer_rates import divide_by_module, rates_by_kind, rates_by_module, table
from hsr_train.engines.detection.library import bring_up
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.schedule import Schedule
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.errors import InputError
from hsr_train.run.naming import described

bring_up()
from ultralytics.engine.trainer import BaseTrainer  # noqa: E402
from ultralytics.nn.modules import Conv  # noqa: E402
from ultralytics.nn.tasks import DetectionModel  # noqa: E402

Train = Callable[..., Result]
LLRD = {"optimizer__llrd__enabled": "true"}


class Head(nn.Module):
    """A head with the part that MuSGD treats in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.cv2 = nn.Conv2d(8, 4, 1)
        self.cv3 = nn.ModuleList([nn.Sequential(Conv(8, 8, 1), nn.Conv2d(8, 2, 1))])


class Tiny(nn.Module):
    """Four modules; the third has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(3, 8, 3), Conv(8, 8, 3), nn.Upsample(scale_factor=2), Head())


def library_optimizer(model: Any, name: str, *, iterations: float = 100) -> Any:
    """Return the optimizer that ultralytics builds: rate 0.01 but for auto, momentum 0.9, weight decay 0.05."""
    trainer = SimpleNamespace(args=SimpleNamespace(lr0=0.01, warmup_bias_lr=0.1), data={"nc": 2})
    return BaseTrainer.build_optimizer(trainer, model, name, 0.01, 0.9, 0.05, iterations)


# ---- groups against tables made by hand

POWERS = [
    1, 0.9, 0.81, 0.729, 0.6561, 0.59049, 0.531441, 0.478297, 0.430467, 0.38742, 0.348678, 0.313811, 0.28243,
    0.254187, 0.228768, 0.205891, 0.185302, 0.166772, 0.150095, 0.135085, 0.121577, 0.109419, 0.0984771, 0.0886294,
]  # fmt: skip
"""0.9 to the power of 0, 1, 2, ..."""
# Module: factor, numbers in filters, in norms, in biases. A Conv(a, b, 3) has 9ab + b + b, and SPPF(256) two of 1x1,
# 256 -> 128 and 512 -> 256. The head is one for two classes.
YOLOV8N = {
    0: (0.0984771, 432, 16, 16),
    1: (0.109419, 4608, 32, 32),
    3: (0.135085, 18432, 64, 64),
    5: (0.166772, 73728, 128, 128),
    7: (0.205891, 294912, 256, 256),
    9: (0.254187, 163840, 384, 384),
    16: (0.531441, 36864, 64, 64),
    19: (0.729, 147456, 128, 128),
    # Six towers: 64, 128 and 256 -> 64 (3x3), 64 -> 64 (3x3), then 64 -> 64 for boxes and 64 -> 2 for classes (1x1).
    22: (1.0, 2 * (258048 + 110592) + 12288 + 384, 768, 768 + 192 + 6),
}
YOLO11N = {
    0: (0.0886294, 432, 16, 16),
    1: (0.0984771, 4608, 32, 32),
    3: (0.121577, 36864, 64, 64),
    5: (0.150095, 147456, 128, 128),
    7: (0.185302, 294912, 256, 256),
    9: (0.228768, 163840, 384, 384),
    17: (0.531441, 36864, 64, 64),
    20: (0.729, 147456, 128, 128),
    # As above; a class tower is twice 3x3 by channel, then 1x1 to 64 channels, and 64 -> 2 at its end.
    23: (
        1.0,
        258048 + 110592 + 12288 + 9 * (64 + 128 + 256) + 64 * (64 + 128 + 256) + 3 * (9 * 64 + 64 * 64) + 384,
        384 + (64 + 128 + 256) + 9 * 64,
        384 + (64 + 128 + 256) + 9 * 64 + 192 + 6,
    ),
}


@pytest.mark.parametrize(
    ("name", "expected", "without_weights"),
    [("yolov8n", YOLOV8N, {10, 11, 13, 14, 17, 20}), ("yolo11n", YOLO11N, {11, 12, 14, 15, 18, 21})],
)
def test_groups_are_those_of_a_table_made_by_hand(name: str, expected: Any, without_weights: set[int]) -> None:
    model = DetectionModel(f"{name}.yaml", nc=2, verbose=False)
    head = len(model.model) - 1
    model.model[head].dfl.requires_grad_(False)  # as the library's trainer does
    optimizer = library_optimizer(model, "SGD")
    divide_by_module(optimizer, model.model, 0.9)
    assert {g["module"] for g in optimizer.param_groups} == set(range(head + 1)) - without_weights
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.01 * POWERS[head - group["module"]], rel=1e-5)
        assert group["weight_decay"] == (0.05 if group["param_group"] == "weight" else 0)
    found: dict[int, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        row = found.setdefault(group["module"], {"factor": group["rate_factor"]})
        row[group["param_group"]] = sum(p.numel() for p in group["params"])
    for index, (factor, weights, norms, biases) in expected.items():
        assert found[index] == {
            "factor": pytest.approx(factor, rel=1e-5), "weight": weights, "bn": norms, "bias": biases,
        }  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sorted(map(id, trained)) == sorted(id(p) for g in optimizer.param_groups for p in g["params"])


def test_table_says_rate_parameters_and_decay_of_each_module() -> None:
    model = Tiny()
    optimizer = library_optimizer(model, "MuSGD")
    divide_by_module(optimizer, model.model, 0.5)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    assert [" ".join(line.split()) for line in table(optimizer, model.model)] == [
        "module rate weights decay norms, biases (no decay)",
        "0 Conv 0.00125 216 0.05 16",
        "1 Conv 0.0025 576 0.05 16",
        "3 Head 0.01 32 0.05 4",
        "3 Head 0.03 80 0.05 18",
    ]


def test_frozen_parameters_are_in_no_group() -> None:
    model = Tiny()
    model.model[0].requires_grad_(False)
    model.model[3].requires_grad_(False)
    optimizer = library_optimizer(model, "AdamW")
    divide_by_module(optimizer, model.model, 0.5)
    assert [(g["module"], g["lr"], g["param_group"]) for g in optimizer.param_groups] == [
        (1, 0.0025, "weight"), (1, 0.0025, "bn"), (1, 0.0025, "bias"),
    ]  # fmt: skip


def test_columns_of_the_rates_stay_those_of_the_library() -> None:
    """Also those of a kind of which nothing is trained."""
    model = Tiny()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.endswith("bias"))
    optimizer = library_optimizer(model, "SGD")
    divide_by_module(optimizer, model.model, 0.5)
    assert {kind: (g["lr"], g["param_group"]) for kind, g in rates_by_kind(optimizer).items()} == {
        0: (0.01, "weight"), 1: (0.01, "bn"), 2: (0.01, "bias"),
    }  # fmt: skip
    assert rates_by_module(optimizer) == {
        "00_weight_0": 0.00125, "01_weight_0": 0.0025, "03_weight_0": 0.01,
        "00_bn_1": 0.00125, "01_bn_1": 0.0025, "03_bn_1": 0.01,
    }  # fmt: skip


# ---- every optimizer


def step(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return by how much each parameter moves in a step, from the same gradients at each call."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
    optimizer.step()
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay_rate", [1.0, 0.5])
def test_step_of_every_optimizer_is_that_without_times_the_factor(name: str, decay_rate: float) -> None:
    """In double precision; MuSGD rounds to 8 bits on its way, whatever it is given."""
    torch.manual_seed(0)
    plain = Tiny().double()
    divided = deepcopy(plain)
    optimizers = [library_optimizer(model, name) for model in (plain, divided)]
    divide_by_module(optimizers[1], divided.model, decay_rate)
    expected, moved = (step(model, optimizer) for model, optimizer in zip((plain, divided), optimizers, strict=True))
    tolerance = 1e-2 if name == "MuSGD" else 1e-9
    for key, value in expected.items():
        factor = decay_rate ** (3 - int(key.split(".")[1]))
        assert value.abs().max() > 0
        torch.testing.assert_close(
            moved[key], value * factor, rtol=tolerance, atol=tolerance * float(value.abs().max())
        )


def test_auto_is_divided_whatever_it_chose() -> None:
    for iterations, chosen, rate in ((100, "AdamW", round(0.002 * 5 / 6, 6)), (20000, "MuSGD", 0.01)):
        model = Tiny()
        optimizer = library_optimizer(model, "auto", iterations=iterations)
        divide_by_module(optimizer, model.model, 0.5)
        assert type(optimizer).__name__ == chosen
        assert {g["lr"] for g in optimizer.param_groups if g["module"] == 0} == {rate / 8}


# ---- warm-up


@pytest.mark.parametrize("is_bias", [False, True])
@pytest.mark.parametrize("bias_start", [0.0, 0.1])
def test_warm_up_keeps_the_ratio_of_the_rates(is_bias: bool, bias_start: float) -> None:
    schedule = Schedule(10, 100, 10, 10, 0.01, False, 3.0, bias_start, 0.8, 0.9)
    for progress in (0.0, 0.25, 0.5, 1.0):
        head, early = (
            schedule.learning_rate(0.01 * factor, 1, progress, is_bias=is_bias, factor=factor) for factor in (1.0, 0.3)
        )
        assert early == pytest.approx(0.3 * head)
    assert schedule.learning_rate(0.003, 0, 0.0, is_bias=True, factor=0.3) == pytest.approx(0.3 * bias_start)


# ---- whole runs


@pytest.fixture
def quick(small_set: Path, tmp_path: Path, shared_cache: Path) -> Iterator[Train]:
    with quick_pictures():
        yield lambda **more: train(small_set, tmp_path / "out", shared_cache, **{**LLRD, **more})


@pytest.fixture(scope="module")
def whole(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quick_pictures():
        run = train(small_set, tmp_path_factory.mktemp("llrd"), shared_cache, **LLRD).run_dir
    assert run is not None
    return run


def test_run_writes_the_table_the_columns_and_a_curve_for_each_group(whole: Path) -> None:
    text = (whole / "logs" / "train.log").read_text()
    assert "Layer-wise learning rates: 0.001 x 0.9^(22 - module); module 22 is the head" in text
    assert any(line.split()[-6:] == ["0", "Conv", "9.85e-05", "216", "0.0005", "16"] for line in text.splitlines())
    assert [key for key in rows(whole)[0] if key.startswith("lr")] == ["lr_0", "lr_1", "lr_2"]
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("lr_by_module/")]
    assert len(tags) == 17 * 3, "of 23 modules, 17 have weights"
    heads, first = ([e.value for e in events.Scalars(f"lr_by_module/{m}_weight_0")] for m in ("22", "00"))
    assert [e.value for e in events.Scalars("lr/0_weight")] == heads
    assert first == pytest.approx([0.0984771 * rate for rate in heads], rel=1e-4)


def test_first_modules_move_less_than_without(whole: Path, whole_run: Path) -> None:
    rates = [g["initial_lr"] for g in last_state(whole)["optimizer"]["param_groups"]]
    assert (min(rates), max(rates)) == (pytest.approx(0.0000984771), 0.001)
    assert (whole / "results.csv").read_text() != (whole_run / "results.csv").read_text()


def test_stopped_run_continues_to_the_same_end(
    whole: Path, quick: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = RunTrainer.optimizer_step, [0]

    def interrupted(self: RunTrainer) -> None:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(RunTrainer, "optimizer_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick()
    (run,) = (tmp_path / "out" / "detect").iterdir()
    resume(run)
    assert (run / "results.csv").read_text() == (whole / "results.csv").read_text()
    assert differences(last_state(run), last_state(whole)) == []


def test_divergence_halves_every_rate(quick: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Loop._refuse_divergence, [0]

    def once(self: Loop, epoch: int, losses: dict[str, float]) -> None:
        calls[0] += 1
        original(self, epoch, {**losses, "box_loss": float("nan")} if calls[0] == 2 else losses)

    monkeypatch.setattr(Loop, "_refuse_divergence", once)
    run = quick(optimizer="auto", train__epochs=2, train__close_mosaic=0).run_dir
    assert run is not None
    (rung,) = read_json(run / "training_result.json")["recovery"]
    base = round(0.002 * 5 / 6, 6)
    assert (rung["key"], rung["from"], rung["to"]) == ("optimizer.lr0", base, base / 2), "the base rate, not a module's"
    for group in last_state(run)["optimizer"]["param_groups"]:
        assert group["initial_lr"] == pytest.approx(base / 2 * group["rate_factor"])


def test_freezing_beside_it_is_warned_of(
    quick: Train, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(self: Loop) -> int:
        assert {g["module"] for g in self.trainer.optimizer.param_groups} == {12, 15, 16, 18, 19, 21, 22}
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "train", look)
    with pytest.raises(KeyboardInterrupt):
        quick(train__freeze="backbone")
    (warning,) = [r.getMessage() for r in caplog.records if "hold early layers back" in r.getMessage()]
    assert "model.0 to model.9 do not learn at all" in warning


@pytest.mark.parametrize(
    ("typed", "key", "text"),
    [
        ("optimizer.llrd.decay_rate=0.8", "optimizer.llrd.decay_rate", "has no effect"),
        ("optimizer.llrd.decay_rate=0", "optimizer.llrd.decay_rate", "above 0"),
        ("optimizer.llrd.decay_rate=1.1", "optimizer.llrd.decay_rate", "at most 1"),
    ],
)
def test_decay_rate_without_effect_or_out_of_range_is_refused(typed: str, key: str, text: str) -> None:
    with pytest.raises(InputError) as refusal:
        hsr_train.compose([typed])
    assert key in {p.key for p in refusal.value.problems} and text in str(refusal.value)


def test_defaults_and_preset() -> None:
    default, few = (hsr_train.compose(words).optimizer.llrd for words in ([], ["preset=few_shot"]))
    assert (default.enabled, default.decay_rate, few.enabled, few.decay_rate) == (False, 0.9, True, 0.85)


def test_runs_of_folds_are_named_after_it() -> None:
    experiment = hsr_train.compose(["optimizer.llrd.enabled=true", "optimizer.llrd.decay_rate=0.8"])
    name = described(experiment, "set", 0, {"optimizer.llrd.enabled": "llrd"}, ("optimizer",))
    assert name == "set_llrd_true_llrd_decay_rate_0.8_fold_0"
