"""Whole classification runs: what they leave, that they learn, repeat to the last digit, and obey every setting."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from classify_runs import (
    COLOURS,
    draw,
    make_set,
    overrides,
    quick_pictures,
    runs_in,
    state_of,
    train,
    watching,
    weights_of,
)
from detection_runs import differences, read_json, rows
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

import hsr_train
from hsr_train.config.schema.classify import CLASSIFY_OPTIMIZERS
from hsr_train.engines.classification import samples
from hsr_train.engines.classification.loop import Loop
from hsr_train.errors import InputError

Train = Callable[..., Path]
STEP_STARTS = (0, 8, 16)
"""The first image of each step of an epoch of `data`: 18 images in batches of 8."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes: 18 training, 12 validation, 6 test images; not to be changed."""
    return make_set(tmp_path_factory.mktemp("data") / "colours", n_test=2)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The directory of a finished run of three epochs; not to be changed."""
    more = {"train__epochs": 3, "train__save_period": 2, "tensorboard__enabled": "true"}
    return train(data, tmp_path_factory.mktemp("whole"), shared_cache, **more)


@pytest.fixture
def quick(data: Path, tmp_path: Path, shared_cache: Path) -> Iterator[Train]:
    """Train with further overrides; without drawing plots."""
    with quick_pictures():
        yield lambda **more: train(data, tmp_path, shared_cache, **more)


# ---- what a run leaves

FILES = """
.hydra/config.yaml .hydra/hydra.yaml .hydra/overrides.yaml .lock config.yaml data_files.csv
logs/classification_report_test.json logs/classification_report_test.txt logs/classification_report_train.json
logs/classification_report_train.txt logs/classification_report_val.json logs/classification_report_val.txt
logs/train.log manifest.json plots/confusion_test.png plots/confusion_train.png plots/confusion_val.png
plots/reliability_test.png plots/reliability_train.png plots/reliability_val.png
results.csv state/epoch2.pt state/epoch3.pt status.json summary.txt tensorboard/events timings.csv
training_result.json weights/best.pt weights/epoch2.pt weights/last.pt
"""


def test_run_leaves_the_directory_of_the_interface(whole: Path) -> None:
    """Contact sheets are there where something was wrong."""
    found = {str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file()}
    found = {re.sub(r"events\.out\.tfevents\..*", "events", name) for name in found if "worst" not in name}
    assert sorted(found) == FILES.split()
    assert not list(whole.rglob("*.tmp-*"))


def test_result_has_the_figures_of_every_split(whole: Path) -> None:
    result = read_json(whole / "training_result.json")
    assert (result["status"], result["epochs_completed"], result["recovery"]) == ("completed", 3, [])
    assert (result["best_model_path"], result["last_model_path"]) == ("weights/best.pt", "weights/last.pt")
    assert list(result["metrics"]) == ["accuracy", "macro_f1"]
    assert result["classes"] == sorted(COLOURS) and result["fold"] is None
    best = rows(whole)[weights_of(whole)["epoch"] - 1]
    assert result["metrics"]["accuracy"] == float(best["val_acc"]) == max(float(r["val_acc"]) for r in rows(whole))
    assert result["metrics"]["macro_f1"] == pytest.approx(float(best["val_macro_f1"]))
    for split, images in {"train": 18, "val": 12, "test": 6}.items():
        report = json.loads((whole / "logs" / f"classification_report_{split}.json").read_text())
        assert (report["images"], report["split"]) == (images, split)
        assert result["splits"][split] == {"accuracy": report["accuracy"], "macro_f1": report["macro_f1"]}
        assert result["per_class"][split] == report["per_class"]


def test_results_have_the_promised_columns(whole: Path) -> None:
    with (whole / "results.csv").open() as file:
        header = next(csv.reader(file))
    assert header == ["epoch", "train_loss", "train_acc", "val_loss", "val_acc", "val_macro_f1", "lr"]
    assert [row["epoch"] for row in rows(whole)] == ["1", "2", "3"]


def test_timings_hold_what_differs_from_run_to_run(whole: Path) -> None:
    with (whole / "timings.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    for row in table:
        assert sum(float(row[key]) for key in ("train_s", "val_s", "save_s")) <= float(row["epoch_s"])
        assert float(row["images_per_s"]) == pytest.approx(18 / float(row["train_s"]))
        assert 0 < float(row["wait_share"]) < 1


def test_log_has_the_promised_lines_in_order(whole: Path) -> None:
    lines = (whole / "logs" / "train.log").read_text().splitlines()
    parts = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| ([A-Z ]{8}) \| (.*)", line) for line in lines]
    found = [(part[1].strip(), part[2]) for part in parts if part]
    assert len(found) == len(lines), "one line for each record, in the promised form"
    expected = [
        ("INFO", r"Dataset sizes: \{'train': 18, 'val': 12, 'test': 6\}"),
        ("INFO", "Starting Training"),
        ("INFO", "Epoch 0/2"),
        ("INFO", "-{50}"),
        ("INFO", r"train Loss: \d+\.\d{4} Acc: [01]\.\d{4}"),
        ("INFO", r"val Loss: \d+\.\d{4} Acc: [01]\.\d{4} .*"),
        ("SUCCESS", r"New best model saved! Acc: [01]\.\d{4}"),
        ("INFO", "Epoch 1/2"),
        ("INFO", "Epoch 2/2"),
        ("INFO", r"Evaluating best\.pt .*"),
    ]
    at = 0
    for level, pattern in expected:
        at = next((i for i in range(at, len(found)) if found[i][0] == level and re.fullmatch(pattern, found[i][1])), -1)
        assert at >= 0, pattern
    assert not [text for level, text in found if level in ("WARNING", "ERROR")]


def test_tensorboard_shows_curves_reports_and_confusion_matrices(whole: Path) -> None:
    everything = dict.fromkeys(("scalars", "images", "tensors"), 0)
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance=everything).Reload()
    curves = {
        "Loss/train": "train_loss", "Loss/val": "val_loss", "Accuracy/train": "train_acc", "Accuracy/val": "val_acc",
        "Macro_F1/val": "val_macro_f1", "Learning_Rate": "lr",
    }  # fmt: skip
    for tag, column in curves.items():
        shown = [(point.step, point.value) for point in events.Scalars(tag)]
        assert shown == [(int(row["epoch"]), pytest.approx(float(row[column]))) for row in rows(whole)]
    splits = read_json(whole / "training_result.json")["splits"]
    for split in ("train", "val", "test"):
        assert len(events.Images(f"Confusion_Matrix/{split}")) == len(events.Images(f"Reliability/{split}")) == 1
        report_json = read_json(whole / "logs" / f"classification_report_{split}.json")
        (ece,) = events.Scalars(f"{split.capitalize()}/ECE")
        assert ece.value == pytest.approx(report_json["expected_calibration_error"])
        (report,) = events.Tensors(f"Classification_Report/{split}")
        assert "macro avg" in report.tensor_proto.string_val[0].decode()
        (accuracy,) = events.Scalars(f"{split.capitalize()}/Accuracy")
        assert accuracy.value == pytest.approx(splits[split]["accuracy"])


def test_status_and_configuration_are_final(whole: Path, data: Path) -> None:
    status = read_json(whole / "status.json")
    assert (status["state"], status["exit_status"], status["epoch"], status["epochs"]) == ("completed", 0, 3, 3)
    config = read_json(whole / "training_result.json")["config"]
    assert (config["model"]["num_classes"], config["train"]["val_batch"]) == (3, 16)
    assert (config["data"]["path"], config["train"]["device"]) == (str(data), "cpu")
    assert read_json(whole / "manifest.json")["fingerprints"]["data"]["path"] == str(data)


# ---- the weights

PLAIN = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hsr_train":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch, torchvision
content = torch.load(sys.argv[1], weights_only=True)
model = torchvision.models.get_model(content["model_name"], num_classes=len(content["classes"]))
model.load_state_dict(content["state_dict"])
scores = model.eval()(torch.zeros(1, 3, content["imgsz"], content["imgsz"]))
print(content["classes"], tuple(scores.shape), content["epoch"], sorted(content["metrics"]))
"""


def test_weights_load_in_plain_torchvision(whole: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", PLAIN, str(whole / "weights" / "last.pt")]
    done = subprocess.run(words, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['blue', 'green', 'red'] (1, 3) 3 ['accuracy', 'macro_f1']"


def test_weights_are_those_of_the_state(whole: Path) -> None:
    assert differences(weights_of(whole, "last")["state_dict"], state_of(whole)["model"]) == []
    state = torch.load(whole / "state" / "epoch2.pt", weights_only=True)
    assert differences(weights_of(whole, "epoch2")["state_dict"], state["model"]) == []
    assert weights_of(whole)["epoch"] == state_of(whole)["best_epoch"]


# ---- learning


def test_easy_set_is_learned(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    easy = make_set(tmp_path / "easy", n_train=10, n_val=6)
    with quick_pictures():
        run = train(easy, tmp_path, shared_cache, model__name="resnet18", train__epochs=2, augmentation="classify_none")
    table = rows(run)
    assert float(table[1]["train_loss"]) < float(table[0]["train_loss"])
    assert max(float(row["val_acc"]) for row in table) >= 0.6, "chance is a third"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm/test_resnet", "timm/test_vit", "timm/test_efficientnet"])
def test_networks_of_timm_train(quick: Train, name: str) -> None:
    pytest.importorskip("timm")
    run = quick(model__name=name, train__imgsz=160 if "vit" in name else 32, train__freeze=1)
    assert weights_of(run)["model_name"] == name
    assert len(rows(run)) == 2


def test_single_image_left_over_is_left_out_where_batch_normalisation_cannot_use_it(
    tmp_path: Path, shared_cache: Path
) -> None:
    """At 32 px the last map of a MobileNet has one value per channel, of which a single image has no variance."""
    nine = make_set(tmp_path / "nine", n_train=3, n_val=1)
    seen: list[int] = []
    with quick_pictures(), losses_of(lambda scores, *args, **kwargs: seen.append(len(scores))):
        run = train(nine, tmp_path, shared_cache, model__name="mobilenet_v3_small", train__epochs=1)
        assert (len(rows(run)), seen) == (1, [8])
        train(nine, tmp_path, shared_cache, train__epochs=1)
        assert seen[1:] == [8, 1], "SqueezeNet has no batch normalisation"


def test_batch_of_one_image_is_refused_where_batch_normalisation_cannot_use_it(
    data: Path, tmp_path: Path, shared_cache: Path
) -> None:
    with pytest.raises(InputError, match=r"mobilenet_v3_small at 32 px"):
        train(data, tmp_path, shared_cache, model__name="mobilenet_v3_small", train__batch=1)


def test_freezing_more_than_there_is_is_refused_before_a_directory_is_made(
    data: Path, tmp_path: Path, shared_cache: Path
) -> None:
    with pytest.raises(InputError, match=r"train.freeze: 99: a number from 0 to 13"):
        train(data, tmp_path / "out", shared_cache, train__freeze=99)
    assert not (tmp_path / "out").exists()


# ---- the same again


def test_another_way_to_load_gives_the_same_numbers(whole: Path, quick: Train) -> None:
    again = quick(train__epochs=3, train__save_period=2, train__workers=2, train__cache="ram")
    assert (again / "results.csv").read_text() == (whole / "results.csv").read_text()
    one, other = ({k: v for k, v in state_of(run).items() if k != "random"} for run in (again, whole))
    assert differences(one, other) == []


def test_cached_images_are_decoded_once(quick: Train) -> None:
    """18 and 12 for training and validation, however many epochs; the final evaluation reads every image again."""
    read: list[Path] = []
    with watching(samples, "read_picture", lambda path, *args: read.append(path)):
        quick(train__epochs=3, train__cache="ram")
    assert len(read) == 18 + 12 + (18 + 12 + 6)


def test_same_command_gives_the_same_state(whole: Path, quick: Train) -> None:
    again = quick(train__epochs=3)
    assert differences(state_of(again), state_of(whole)) == []


@pytest.mark.parametrize("wanted", [True, False])
def test_kernels_are_deterministic_where_that_is_wanted(
    quick: Train, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """cuBLAS too, which is told by the environment."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    found = []

    def see(*args: Any, **kwargs: Any) -> None:
        found.append((torch.are_deterministic_algorithms_enabled(), "CUBLAS_WORKSPACE_CONFIG" in os.environ))

    with losses_of(see):
        quick(train__epochs=1, train__deterministic=wanted)
    assert set(found) == {(wanted, wanted)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("augmentation", "ways"),
    [
        ("classify_strong", [(0, "none"), (0, "ram"), (1, "none"), (2, "ram")]),
        ("classify_default", [(0, "ram"), (2, "none")]),
        ("classify_none", [(0, "none"), (2, "ram")]),
    ],
    ids=["strong", "default", "none"],
)
def test_every_way_to_load_gives_the_same_numbers(quick: Train, augmentation: str, ways: list[tuple[int, str]]) -> None:
    """Every way with the strongest augmentation, and each of the others here and in workers."""
    found = set()
    for workers, cache in ways:
        run = quick(train__workers=workers, train__cache=cache, augmentation=augmentation)
        found.add((run / "results.csv").read_text())
    assert len(found) == 1


def test_another_seed_gives_other_numbers(whole: Path, quick: Train) -> None:
    other = rows(quick(train__seed=1, train__epochs=1))
    assert other[0]["train_loss"] != rows(whole)[0]["train_loss"]


# ---- steps


def losses_of(see: Callable[..., None], loss: Any = functional.cross_entropy) -> Any:
    """Return a context in which every loss of training is seen with its arguments."""
    return watching(functional, "cross_entropy", see)


def test_accumulated_batches_make_the_steps_of_a_large_one(quick: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """To float tolerance, in a net without batch normalisation and, here, without dropout."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, given: given)
    plain = {"optimizer": "classify_sgd", "optimizer__lr": 0.01}
    large = quick(train__batch=8, **plain)
    small = quick(train__batch=4, trainer__gradient_accumulation_steps=2, **plain)
    for one, other in zip(rows(large), rows(small), strict=True):
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-4)
    for name, value in state_of(large)["model"].items():
        torch.testing.assert_close(value, state_of(small)["model"][name], rtol=1e-4, atol=1e-5)
    assert (large / "results.csv").read_text() != (small / "results.csv").read_text(), "sums of other parts"


def gradient_norms(quick: Train, **more: Any) -> list[float]:
    found: list[float] = []

    def see(optimizer: Any, *args: Any) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        found.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))

    with watching(torch.optim.AdamW, "step", see):
        quick(train__epochs=1, **more)
    return found


def test_gradients_are_clipped_over_the_whole_step(quick: Train) -> None:
    free, clipped = gradient_norms(quick), gradient_norms(quick, train__clip_norm=0.01)
    assert len(free) == len(clipped) == 3
    assert min(free) > 0.02
    assert clipped == pytest.approx([0.01] * 3, rel=1e-3)


def mean_loss(data: Path, tmp_path: Path, cache: Path, weight: list[float], smoothing: float, **more: Any) -> None:
    """Train an epoch and compare its loss with one that is computed here by hand."""
    total, images = [0.0], [0]

    def see(scores: Any, targets: Any, *args: Any, **kwargs: Any) -> None:
        logs = scores.detach().double().log_softmax(1)
        wanted = targets if targets.ndim == 2 else functional.one_hot(targets, 3)
        wanted = wanted.double() * (1 - smoothing) + smoothing / 3
        total[0] -= float((logs * wanted * torch.tensor(weight)).sum())
        images[0] += len(scores)

    with quick_pictures(), losses_of(see):
        run = train(data, tmp_path, cache, train__epochs=1, **more)
    assert float(rows(run)[0]["train_loss"]) == pytest.approx(total[0] / images[0], rel=1e-5)


def test_label_smoothing_spreads_its_share_over_all_classes(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    mean_loss(data, tmp_path, shared_cache, [1.0] * 3, 0.2, train__label_smoothing=0.2)


def test_balanced_classes_count_the_same(tmp_path: Path, shared_cache: Path) -> None:
    """6, 3 and 3 images: an image of the frequent class counts half of another; all together as many as they are."""
    uneven = make_set(tmp_path / "uneven", n_train=3, n_val=1)
    draw(uneven / "train", {"blue": 6}, seed=9)
    mean_loss(uneven, tmp_path, shared_cache, [12 / 18, 12 / 9, 12 / 9], 0.0, train__class_weights="balanced")


def test_average_is_what_is_kept(quick: Train) -> None:
    expected: dict[str, Any] = {}

    def see(average: Any, model: Any) -> None:
        for name, value in model.state_dict().items():
            now = value.clone()
            expected[name] = now if not int(average.n_averaged) else expected[name] * 0.6 + now * 0.4

    with watching(AveragedModel, "update_parameters", see):
        run = quick(train__ema=0.6)
    state = state_of(run)
    assert state["ema_updates"] == 6
    assert differences(weights_of(run, "last")["state_dict"], state["ema"]) == []
    for name, value in state["ema"].items():
        torch.testing.assert_close(value, expected[name])
    assert differences(state["ema"], state["model"])


def states_of_two_epochs(run: Path) -> list[dict[str, Any]]:
    return [torch.load(run / "state" / f"epoch{number}.pt", weights_only=True)["model"] for number in (1, 2)]


@pytest.mark.parametrize(
    ("how", "kept"),
    [
        pytest.param("backbone", ("features.",), id="backbone", marks=pytest.mark.slow),
        pytest.param("2", ("features.0.", "features.1."), id="parts"),
    ],
)
def test_frozen_parts_keep_weights_and_statistics(quick: Train, how: str, kept: tuple[str, ...]) -> None:
    """Statistics of batch normalisation too: both states of the run hold the same."""
    before, after = states_of_two_epochs(quick(model__name="mobilenet_v3_small", train__freeze=how))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith(kept)} <= same
    running = {name for name in before if "running_mean" in name}
    assert same & running == {name for name in running if name.startswith(kept)}
    assert "classifier.3.weight" not in same and ("classifier.0.weight" in same) == (how == "backbone")


@pytest.mark.parametrize("how", ["mixup", "cutmix"])
def test_batches_are_blended(quick: Train, how: str) -> None:
    seen: list[Any] = []
    with losses_of(lambda scores, targets, *args, **kwargs: seen.append(targets)):
        run = quick(**{f"augmentation__{how}": 1.0})
    assert {tuple(targets.shape) for targets in seen} == {(8, 3), (2, 3)}
    assert all(torch.allclose(targets.sum(1), torch.ones(len(targets))) for targets in seen)
    assert any(((targets > 0.05) & (targets < 0.95)).any() for targets in seen)
    assert 0 <= float(rows(run)[-1]["train_acc"]) <= 1


# ---- rates


def cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


SCHEDULES = {
    "constant": ({}, lambda at: 1.0),
    "step": ({"optimizer__step_size": 2, "optimizer__gamma": 0.5}, lambda at: 0.5 ** (int(at) // 2)),
    "cosine": ({"optimizer__final": 0.1}, lambda at: cosine(1, 0.1, at / 3)),
    "one_cycle": (
        {"optimizer__final": 0.1},
        lambda at: cosine(1 / 25, 1, at / 0.9) if at < 0.9 else cosine(1, 0.1, (at - 0.9) / 2.1),
    ),
    "warm-up": ({"optimizer__schedule": "constant", "optimizer__warmup_epochs": 1.5}, lambda at: min(1, at / 1.5)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in ("constant", "step") else ()) for n in SCHEDULES]
)
def test_rate_follows_the_schedule(quick: Train, name: str) -> None:
    """At every step, not only where results.csv has it: in the last step of each epoch."""
    more, factor = SCHEDULES[name]
    used: list[float] = []
    with watching(torch.optim.AdamW, "step", lambda self, *args: used.append(self.param_groups[0]["lr"])):
        run = quick(train__epochs=3, **{"optimizer__schedule": name, **more})
    expected = [0.001 * factor(epoch + first / 18) for epoch in range(3) for first in STEP_STARTS]
    assert used == pytest.approx(expected)
    assert [float(row["lr"]) for row in rows(run)] == pytest.approx(expected[2::3])


# ---- optimizers


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("SGD", "RAdam") else pytest.mark.slow) for n in CLASSIFY_OPTIMIZERS]
)
def test_every_optimizer_makes_steps(quick: Train, name: str) -> None:
    """With its own momentum, and weight decay on weights alone."""
    made: list[Any] = []
    kind = getattr(torch.optim, name)
    typed = {"optimizer__name": name.lower(), "optimizer__momentum": 0.8, "optimizer__weight_decay": 0.03}
    with watching(kind, "step", lambda self, *args: made.append(self)):
        run = quick(train__epochs=1, **typed)
    assert len(made) == 3
    for group in made[0].param_groups:
        assert group["momentum"] == 0.8 if "momentum" in group else group["betas"][0] == 0.8
        assert group["weight_decay"] == (0.03 if group["params"][0].ndim > 1 else 0.0)
    assert {group["weight_decay"] for group in made[0].param_groups} == {0.0, 0.03}
    assert math.isfinite(float(rows(run)[0]["train_loss"]))


# ---- when it ends, and what is best


def validating(*found: tuple[float, float]) -> Any:
    """Let validation find these accuracies and macro F1, one pair for each epoch."""
    left = list(found)

    def validate(self: Loop) -> Any:
        accuracy, macro_f1 = left.pop(0)
        metrics = {"accuracy": accuracy, "macro_f1": macro_f1}
        return SimpleNamespace(loss=1.0, accuracy=accuracy, macro_f1=macro_f1, metrics=lambda: metrics)

    return validate


def test_training_stops_when_nothing_gets_better(quick: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Loop, "_validate", validating((0.5, 0), (0.6, 0), (0.6, 0), (0.55, 0), (0.9, 0)))
    run = quick(train__epochs=9, train__patience=2)
    result = read_json(run / "training_result.json")
    assert (result["epochs_completed"], len(rows(run))) == (4, 4)
    assert weights_of(run)["epoch"] == 2
    assert "Stopped early: no better val accuracy for 2 epochs" in (run / "logs" / "train.log").read_text()
    assert read_json(run / "status.json")["state"] == "completed"


@pytest.mark.parametrize(("by", "best"), [("accuracy", 1), ("macro_f1", 3)])
def test_best_is_chosen_by_what_was_typed(quick: Train, monkeypatch: pytest.MonkeyPatch, by: str, best: int) -> None:
    monkeypatch.setattr(Loop, "_validate", validating((0.9, 0.2), (0.8, 0.3), (0.7, 0.5)))
    run = quick(train__epochs=3, train__best=by)
    assert state_of(run)["best_epoch"] == weights_of(run)["epoch"] == best


# ---- precision, compiling


def test_mixed_precision_on_a_cpu_is_bfloat16(quick: Train, caplog: pytest.LogCaptureFixture) -> None:
    kinds = set()

    def see(scores: Any, *args: Any, **kwargs: Any) -> None:
        kinds.add(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))

    with losses_of(see):
        run = quick(trainer="mixed_precision")
    assert kinds == {torch.bfloat16}
    decided = {d["key"]: d for d in read_json(run / "manifest.json")["decisions"]}
    assert decided["trainer.amp_dtype"]["value"] == "bfloat16" and "CPU" in decided["trainer.amp_dtype"]["reason"]
    assert read_json(run / "training_result.json")["config"]["trainer"]["amp_dtype"] == "bfloat16"
    assert {value.dtype for value in weights_of(run)["state_dict"].values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile needs a compiler")
def test_compiled_network_trains_to_the_same_figures(quick: Train) -> None:
    # Few layers, and batches of one size: each is compiled by itself.
    small = {"model": None, "model__name": "timm/test_vit", "train__imgsz": 160, "train__batch": 6, "train__epochs": 1}
    plain, compiled = (quick(augmentation="classify_none", train__compile=c, **small) for c in ("false", "true"))
    assert state_of(compiled)["model"].keys() == state_of(plain)["model"].keys()
    assert len(rows(compiled)) == 1


# ---- names


def test_run_is_named_after_its_set_and_what_was_typed(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    untyped = dict.fromkeys(("model__name", "train__epochs", "train__imgsz", "optimizer__lr"))
    names = []
    for more in ({}, {}, {"train__batch": 4, "optimizer__lr": 0.01, "data__name": "my set"}):
        checked = overrides(data, tmp_path, shared_cache, **{**untyped, "train__epochs": 1, **more})
        with quick_pictures(), pytest.MonkeyPatch.context() as patch:
            patch.setattr("hsr_train.engines.classification.engine.ClassificationEngine.train", nothing)
            hsr_train.execute(hsr_train.compose(checked))
        names.append({path.name for path in runs_in(tmp_path)})
    assert names[0] == {"colours_batch_8_epochs_1_weights_scratch"}
    assert names[1] - names[0] == {"colours_batch_8_epochs_1_weights_scratch_2"}
    assert names[2] - names[1] == {"my_set_batch_4_epochs_1_lr_0.01_weights_scratch"}


def nothing(self: Any, plan: Any, context: Any) -> Any:
    return hsr_train.engines.base.Result(run_dir=context.run.path)


def test_check_makes_no_directory_and_says_the_plan(
    data: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = hsr_train.execute(hsr_train.compose(overrides(data, tmp_path / "out", shared_cache, mode="check")))
    assert result.run_dir is None and not (tmp_path / "out").exists()
    assert "squeezenet1_1" in capsys.readouterr().out
