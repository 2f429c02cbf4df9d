"""Whole runs: what they leave, that they repeat to the last digit, and that they survive being stopped."""

from __future__ import annotations

import csv
import itertools
import os
import pickletools
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import yaml
from checkpoints import write_checkpoint
from detection_runs import (
    differences,
    last_state,
    overrides,
    quick_pictures,
    read_json,
    resume,
    rows,
    same_weights,
    start,
    thin_weights,
    train,
)
from fault_runs import work_for
from ultralytics.utils import TryExcept
from yolo_sets import make_yolo_set

import hsr_train
from hsr_train.cli import main
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Result
from hsr_train.engines.detection import checkpoint, engine, loop
from hsr_train.engines.detection.loop import Loop
from hsr_train.engines.detection.monitor import Monitor
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.engines.states import write_state
from hsr_train.errors import InputError, RunError
from hsr_train.hardware import detect
from hsr_train.recovery import Recovery
from hsr_train.run.directory import RunDirectory

SEED_COLUMNS = ["epoch", "box_loss", "cls_loss", "dfl_loss", "mAP50", "mAP50-95", "precision", "recall"]
Train = Callable[..., Result]


@pytest.fixture
def data(small_set: Path) -> Path:
    return small_set


@pytest.fixture
def whole(whole_run: Path) -> Path:
    return whole_run


@pytest.fixture
def quick(data: Path, tmp_path: Path, shared_cache: Path) -> Iterator[Train]:
    """Train with further overrides; without drawing plots."""
    with quick_pictures():
        yield lambda **more: train(data, tmp_path, shared_cache, **more)


def folder_of(result: Result) -> Path:
    assert result.run_dir is not None
    return result.run_dir


# ---- what a run leaves

FILES = """
.hydra/config.yaml .hydra/hydra.yaml .hydra/overrides.yaml .lock config.yaml data_files.csv logs/train.log
manifest.json plots/BoxF1_curve.png plots/BoxPR_curve.png plots/BoxP_curve.png plots/BoxR_curve.png
plots/confusion_matrix.png plots/confusion_matrix_normalized.png plots/labels.jpg plots/results.png
plots/train_batch0.jpg plots/train_batch1.jpg plots/train_batch2.jpg plots/train_batch6.jpg plots/train_batch7.jpg
plots/train_batch8.jpg plots/val_batch0_labels.jpg plots/val_batch0_pred.jpg results.csv state/epoch2.pt
state/epoch3.pt status.json summary.txt tensorboard/events timings.csv training_result.json weights/best.pt
weights/epoch2.pt weights/last.pt
"""


def test_run_leaves_the_directory_of_the_interface(whole: Path) -> None:
    """Sample batches are those of the first epoch and of the first without mosaic; epoch2.pt is for save_period=2."""
    found = sorted(str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file())
    assert [re.sub(r"events\.out\.tfevents\..*", "events", name) for name in found] == FILES.split()
    assert all(file.stat().st_size for file in whole.rglob("*") if file.is_file())


def test_run_is_named_after_preset_and_start(whole: Path) -> None:
    assert whole.parent.name == "detect"
    assert re.fullmatch(r"competition_\d{8}_\d{6}", whole.name)


def test_results_begin_with_the_promised_columns(whole: Path) -> None:
    with (whole / "results.csv").open() as file:
        header = next(csv.reader(file))
    assert header[:8] == SEED_COLUMNS
    assert header[8:] == ["val_box_loss", "val_cls_loss", "val_dfl_loss", "lr_0", "lr_1", "lr_2"]
    table = rows(whole)
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    assert all(float(cell) >= 0 for row in table for cell in row.values())
    assert all(float(row["box_loss"]) > 0 for row in table)


def test_learning_rates_are_those_of_the_plan(whole: Path) -> None:
    """lr0 0.001, one warm-up epoch of three batches, linear decay to 0.01 of it over three epochs."""
    rates = [[float(row[f"lr_{group}"]) for group in range(3)] for row in rows(whole)]
    decay = [1 - epoch / 3 * 0.99 for epoch in range(3)]
    assert rates[0] == pytest.approx([0.001 * 2 / 3] * 3), "in the last batch of the first epoch"
    assert rates[1] == pytest.approx([0.001 * decay[1]] * 3)
    assert rates[2] == pytest.approx([0.001 * decay[2]] * 3)


def test_result_has_the_promised_keys_in_order(whole: Path) -> None:
    result = read_json(whole / "training_result.json")
    assert list(result)[:10] == [
        "best_model_path", "last_model_path", "metrics", "training_time_minutes", "epochs_completed",
        "tensorboard_url", "config", "status", "recovery", "exports",
    ]  # fmt: skip
    assert (result["best_model_path"], result["last_model_path"]) == ("weights/best.pt", "weights/last.pt")
    assert list(result["metrics"]) == ["mAP50", "mAP50-95", "precision", "recall"]
    assert (result["status"], result["epochs_completed"], result["recovery"]) == ("completed", 3, [])
    assert result["exports"] == [] and result["tensorboard_url"] is None
    assert 0 < result["training_time_minutes"] < 10
    assert (result["latency_ms"], result["peak_vram_gb"]) == (None, None), "not asked for; on a CPU"
    assert result["config"] == yaml.safe_load((whole / "config.yaml").read_text())


def test_status_says_completed(whole: Path) -> None:
    status = read_json(whole / "status.json")
    assert (status["state"], status["exit_status"], status["epoch"], status["epochs"]) == ("completed", 0, 3, 3)


def test_saved_configuration_holds_no_undecided_value(whole: Path, data: Path, shared_cache: Path) -> None:
    config = yaml.safe_load((whole / "config.yaml").read_text())
    assert config["train"]["device"] == "cpu" and config["train"]["amp"] is False
    assert config["train"]["val_batch"] == 8
    assert config["model"]["weights"] == str(thin_weights())
    assert config["data"]["path"] == str(data) and config["data"]["cache_dir"] == str(shared_cache)
    undecided = [key for section in ("train", "model") for key, value in config[section].items() if value == "auto"]
    assert undecided == []


def test_manifest_says_what_the_run_was_made_of(whole: Path, data: Path) -> None:
    manifest = read_json(whole / "manifest.json")
    assert manifest["fingerprints"]["data"]["path"] == str(data)
    assert manifest["fingerprints"]["data"]["splits"]["train"]["images"] == 9
    assert len(manifest["fingerprints"]["data"]["fingerprint"]) == 64
    assert manifest["seeds"]["train.seed"] == 0
    assert "train.amp" in {d["key"] for d in manifest["decisions"]}
    assert all(d["reason"] for d in manifest["decisions"])


def test_log_holds_everything_from_the_first_decision_on(whole: Path) -> None:
    lines = (whole / "logs" / "train.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| [A-Z]+ +\| ", line) for line in lines)
    text = "\n".join(lines)
    expected = ["Checked 12 images", "Decided: train.amp", "Run directory", "Training yolov8n on 9 images",
                "Epoch 1/3", "Epoch 3/3", "Evaluating best.pt", "Done"]  # fmt: skip
    places = [text.find(words) for words in expected]
    assert -1 not in places and places == sorted(places)
    assert not [line for line in lines if "WARNING" in line or "ERROR" in line]


def test_timings_hold_what_differs_from_run_to_run(whole: Path) -> None:
    with (whole / "timings.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    for row in table:
        parts = [float(row[key]) for key in ("train_s", "val_s", "save_s")]
        assert sum(parts) <= float(row["epoch_s"]) < 60
        assert float(row["images_per_s"]) == pytest.approx(9 / float(row["train_s"]))
        assert 0 <= float(row["wait_share"]) < 1


# ---- the weights


def names_in_pickle(file: Path) -> set[str]:
    """Return every module and class that unpickling would import."""
    with zipfile.ZipFile(file) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("data.pkl")]
        operations = pickletools.genops(archive.read(name))
        found = [(op.name, str(arg)) for op, arg, _ in operations]
    assert not any(name == "STACK_GLOBAL" for name, _ in found), "torch writes protocol 2"
    return {arg for name, arg in found if name == "GLOBAL"}


@pytest.mark.parametrize("name", ["best", "last", "epoch2"])
def test_weights_hold_no_class_of_ours(whole: Path, name: str) -> None:
    names = names_in_pickle(whole / "weights" / f"{name}.pt")
    assert len(names) > 10
    assert {n.split(".")[0].split(" ")[0] for n in names} <= {"torch", "ultralytics", "collections", "__builtin__"}


def test_weights_are_a_float16_model_with_what_it_was_trained_with(whole: Path, data: Path) -> None:
    content = torch.load(whole / "weights" / "best.pt", weights_only=False)
    assert {p.dtype for p in content["model"].parameters()} == {torch.float16}
    assert content["model"].names == {0: "a", 1: "b"}
    assert content["train_args"]["imgsz"] == 64
    assert content["optimizer"] is None and content["epoch"] == -1
    assert list(content["train_metrics"]) == ["mAP50", "mAP50-95", "precision", "recall"]


PLAIN_PREDICTION = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hsr_train":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
from ultralytics import YOLO
model = YOLO(sys.argv[1])
(result,) = model.predict(sys.argv[2], device="cpu", conf=0.0, save=False, verbose=False)
assert "hsr_train" not in sys.modules
print(model.task, model.names, model.overrides["imgsz"], len(result.boxes), flush=True)
"""


def test_weights_load_and_predict_in_plain_ultralytics(whole: Path, data: Path, tmp_path: Path) -> None:
    image = data.parent / "images" / "val" / "0000.jpg"
    words = [sys.executable, "-c", PLAIN_PREDICTION, str(whole / "weights" / "best.pt"), str(image)]
    quiet = {"YOLO_CONFIG_DIR": str(tmp_path), "YOLO_AUTOINSTALL": "false", "PYTHONWARNINGS": "default"}
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | quiet, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^detect \{0: 'a', 1: 'b'\} 64 \d+$", done.stdout, re.MULTILINE), done.stdout


# ---- the same again


def test_another_way_to_load_gives_the_same_numbers(whole: Path, quick: Train) -> None:
    """The isolation tests compare a run with files in the cache on disk."""
    again = folder_of(quick(train__workers=2, train__cache="ram"))
    assert (again / "results.csv").read_text() == (whole / "results.csv").read_text()
    for name in ("best", "last", "epoch2"):
        assert same_weights(whole / "weights" / f"{name}.pt", again / "weights" / f"{name}.pt")


WAYS = {"strong": ((0, "none"), (1, "ram"), (2, "none")), "none": ((0, "ram"), (2, "disk"))}
"""Loader workers and caches, by augmentation; the default one is that of the test above and of the isolation tests."""


@pytest.mark.slow
@pytest.mark.parametrize("augmentation", WAYS)
def test_every_way_to_load_gives_the_same_numbers(quick: Train, augmentation: str) -> None:
    found = set()
    for workers, cache in WAYS[augmentation]:
        run = folder_of(quick(train__workers=workers, train__cache=cache, augmentation=augmentation))
        found.add((run / "results.csv").read_text())
    assert len(found) == 1


def test_another_seed_gives_other_numbers(whole: Path, quick: Train) -> None:
    other = rows(folder_of(quick(train__seed=1, train__epochs=1, train__close_mosaic=0)))
    assert all(a["box_loss"] != b["box_loss"] for a, b in zip(other, rows(whole), strict=False))


def test_last_epochs_differ_only_by_mosaic(whole: Path, quick: Train) -> None:
    """close_mosaic=1 of the whole run changes its third epoch and nothing before."""
    open_to_the_end = rows(folder_of(quick(train__close_mosaic=0)))
    assert open_to_the_end[:2] == rows(whole)[:2]
    assert open_to_the_end[2]["box_loss"] != rows(whole)[2]["box_loss"]


def test_varied_image_sizes_repeat_too(quick: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn once for a batch, in the main process."""
    sizes: list[int] = []
    original = RunTrainer.preprocess_batch

    def noting(trainer: RunTrainer, batch: dict[str, Any]) -> dict[str, Any]:
        done: dict[str, Any] = original(trainer, batch)
        sizes.append(done["img"].shape[-1])
        return done

    monkeypatch.setattr(RunTrainer, "preprocess_batch", noting)
    varied = {"train__multi_scale": 0.5, "train__batch": 3, "train__imgsz": 96, "train__epochs": 2}
    first, second = (
        folder_of(quick(**varied, train__close_mosaic=0, **how))
        for how in ({}, {"train__workers": 2, "train__cache": "ram"})
    )
    assert (first / "results.csv").read_text() == (second / "results.csv").read_text()
    assert sizes[:6] == sizes[6:]
    assert set(sizes) <= {32, 64, 96, 128, 160} and len(set(sizes)) >= 3
    assert sizes[:3] != sizes[3:6], "each epoch draws its own"


# ---- against the library's own loop


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            {"train__batch": 3, "train__nbs": 3, "optimizer__warmup_epochs": 1.5}, id="warm-up", marks=pytest.mark.slow
        ),
        pytest.param({"train__batch": 3, "train__nbs": 9, "optimizer__warmup_epochs": 0}, id="accumulation"),
        pytest.param(
            {"train__batch": 4, "train__nbs": 4, "optimizer": "sgd", "train__cos_lr": "true", "train__freeze": 3},
            id="sgd, cosine, frozen",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_weights_are_those_of_ultralytics_own_loop(
    quick: Train, data: Path, tmp_path: Path, shared_cache: Path, more: dict[str, Any]
) -> None:
    """To the bit, where no gradients cross an epoch's end: the library would keep them, we step."""
    start_file = write_checkpoint(tmp_path / "start.pt", thin=True)
    more = {"model": None, "model__weights": start_file, "train__close_mosaic": 0, **more}
    run = folder_of(quick(**more))
    ours = last_state(run)

    experiment = hsr_train.compose(overrides(data, tmp_path / "library", shared_cache, **more))
    plan = engine.DetectionEngine().prepare(experiment, detect(), Decisions())
    other = RunDirectory.create(tmp_path / "library", "detect", "library")
    for folder in (other.weights, other.plots):
        folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        trainer = RunTrainer(plan.experiment, plan.inputs, other, Recovery(plan.experiment, lambda changes: None))
        for name in ("_setup_train", "save_model", "save_metrics", "final_eval", "plot_metrics"):
            patch.setattr(trainer, name, lambda *args, **kwargs: None)
        trainer._do_train()
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, ours["model"][key]), key
    assert trainer.ema.updates == ours["ema_updates"]
    for key, value in trainer.ema.ema.state_dict().items():
        assert torch.equal(value, ours["ema"][key]), key


def test_optimizer_steps_where_the_schedule_says(quick: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine images in batches of 4, 4 and 1, stepping after 8 and at the end once the first epoch's warm-up is over."""
    steps: list[tuple[int, int]] = []
    seen = {"images": 0}
    backward, step = Loop.backward, RunTrainer.optimizer_step

    def counting(self: Loop, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        seen["images"] += int(batch["img"].shape[0])
        return backward(self, batch)

    def noting(trainer: RunTrainer) -> None:
        steps.append((trainer.epoch, seen["images"] - 9 * trainer.epoch))
        step(trainer)

    monkeypatch.setattr(Loop, "backward", counting)
    monkeypatch.setattr(RunTrainer, "optimizer_step", noting)
    quick(train__epochs=2, train__close_mosaic=0)
    assert steps == [(0, 4), (0, 8), (0, 9), (1, 8), (1, 9)]


# ---- what is configured takes effect


def test_freezing_keeps_weights_and_batch_statistics(quick: Train, tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "mine.pt", thin=True)
    before = torch.load(file, weights_only=False)["model"].float().state_dict()
    run = folder_of(quick(model=None, model__weights=file, train__freeze=10, train__epochs=1, train__close_mosaic=0))
    after = last_state(run)["model"]
    changed = {key.split(".")[1] for key, value in after.items() if not torch.equal(value, before[key])}
    assert not changed & {str(module) for module in range(10)}
    assert {"12", "15", "22"} <= changed


def test_fine_tuning_begins_with_the_weights_of_the_file(
    quick: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head for other classes is replaced, the rest is taken over."""
    file = write_checkpoint(tmp_path / "mine.pt", names=["cup", "plate", "fork"], thin=True)
    before = torch.load(file, weights_only=False)["model"].float().state_dict()
    taken: dict[str, torch.Tensor] = {}

    def look(self: Loop) -> int:
        taken.update({k: v.clone() for k, v in self.trainer.model.state_dict().items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "train", look)
    with pytest.raises(KeyboardInterrupt):
        quick(model=None, model__weights=file)
    same = {key for key, value in taken.items() if value.shape == before[key].shape and torch.equal(value, before[key])}
    backbone = {key for key in taken if not key.startswith("model.22.cv3")}
    assert backbone <= same
    assert taken["model.22.cv3.0.2.weight"].shape[0] == 2


def test_gains_passed_through_reach_the_loss(quick: Train) -> None:
    """One batch: before the first step nothing but the gains differs."""
    once = {"train__epochs": 1, "train__close_mosaic": 0, "train__batch": 9}
    (plain,) = rows(folder_of(quick(**once)))
    (twice,) = rows(folder_of(quick(**once, ultralytics__box=15, ultralytics__cls=1.0, ultralytics__dfl=3.0)))
    for name in ("box_loss", "cls_loss", "dfl_loss"):
        assert float(twice[name]) == pytest.approx(2 * float(plain[name]), rel=1e-5)


@pytest.mark.parametrize(
    ("optimizer", "rate", "memory"),
    [
        pytest.param("sgd", 0.01, {"momentum_buffer"}, marks=pytest.mark.slow),
        ("auto", round(0.002 * 5 / 6, 6), {"step", "exp_avg", "exp_avg_sq"}),
    ],
)
def test_optimizer_is_the_chosen_one(quick: Train, optimizer: str, rate: float, memory: set[str]) -> None:
    """auto: AdamW with a rate by the number of classes, since there are few steps."""
    run = folder_of(quick(optimizer=optimizer, train__epochs=1, train__close_mosaic=0))
    state = last_state(run)["optimizer"]
    assert {group["initial_lr"] for group in state["param_groups"]} == {rate}
    assert set(state["state"][0]) == memory
    assert [group["param_group"] for group in state["param_groups"]] == ["weight", "bn", "bias"]


def test_one_class_stands_for_all(quick: Train) -> None:
    run = folder_of(quick(ultralytics__single_cls="true", train__epochs=1, train__close_mosaic=0))
    assert torch.load(run / "weights" / "best.pt", weights_only=False)["model"].names == {0: "item"}
    assert [row["class"] for row in read_json(run / "training_result.json")["per_class"]] == ["item"]


@contextmanager
def fitness(values: list[float]) -> Iterator[None]:
    """Let validation find the given values, epoch by epoch."""
    now = {"epoch": 0}
    original = Loop._finish_epoch

    def noting(self: Loop, epoch: int, *args: Any) -> bool:
        now["epoch"] = epoch
        return original(self, epoch, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_finish_epoch", noting)
        patch.setattr("ultralytics.utils.metrics.DetMetrics.fitness", property(lambda self: values[now["epoch"]]))
        patch.setattr(engine, "evaluate", _no_evaluation)
        yield


def _no_evaluation(*args: Any, **kwargs: Any) -> Any:
    raise KeyboardInterrupt  # best.pt is the last thing that these tests need


def fates(values: list[float], quick: Train, output: Path, **more: Any) -> tuple[Path, list[str]]:
    with fitness(values), pytest.raises(KeyboardInterrupt):
        quick(train__epochs=len(values), train__close_mosaic=0, **more)
    run = only_run(output)
    return run, [row["epoch"] for row in rows(run)]


def test_training_stops_early_and_keeps_the_best(quick: Train, tmp_path: Path) -> None:
    """Also when it was stopped by hand in between, and when it was stopped again before its end was recorded."""
    values = [0.1, 0.5, 0.4, 0.5, 0.45, 0.9, 0.9]
    how = {"train__epochs": 7, "train__close_mosaic": 0, "train__patience": 3, "train__save_period": 1}
    with fitness(values), interrupting(RunTrainer, "optimizer_step", 9):
        quick(**how)
    run = only_run(tmp_path)
    assert len(rows(run)) == 3
    with fitness(values), pytest.raises(KeyboardInterrupt):
        resume(run)
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3", "4", "5"]
    assert same_weights(run / "weights" / "best.pt", run / "weights" / "epoch2.pt")
    assert same_weights(run / "weights" / "last.pt", run / "weights" / "epoch5.pt")
    state = last_state(run)
    assert (state["stopped"], state["best_epoch"], state["epochs_done"]) == (True, 2, 5)
    with quick_pictures():
        result = resume(run)
    assert (result.epochs_completed, result.best_epoch) == (5, 2), "a run that stopped early trains no further"
    assert len(rows(run)) == 5


@pytest.mark.slow
def test_patience_zero_never_stops(quick: Train, tmp_path: Path) -> None:
    _, epochs = fates([0.5, 0.4, 0.3, 0.2], quick, tmp_path, train__patience=0, train__save_period=0)
    assert len(epochs) == 4


@pytest.mark.slow
def test_fitness_of_zero_keeps_the_newest_weights(quick: Train, tmp_path: Path) -> None:
    """As long as nothing is found, a later epoch is the better guess."""
    run, _ = fates([0.0, 0.0, 0.0], quick, tmp_path)
    assert last_state(run)["best_epoch"] == 3
    assert same_weights(run / "weights" / "best.pt", run / "weights" / "last.pt")


@pytest.mark.slow
@pytest.mark.parametrize(("model", "columns"), [("yolo11n", 3), ("yolo26n", 3)])
def test_newer_families_train_too(quick: Train, model: str, columns: int) -> None:
    run = folder_of(quick(model=model, train__epochs=1, train__close_mosaic=0))
    table = rows(run)
    with_values = [name for name in ("box_loss", "cls_loss", "dfl_loss", "l1_loss") if table[0].get(name)]
    assert len(with_values) == columns
    assert list(table[0])[:8] == SEED_COLUMNS
    assert (table[0]["dfl_loss"] == "") == (model == "yolo26n")


# ---- when it goes wrong


def status_of(run: Path) -> tuple[str, int]:
    status = read_json(run / "status.json")
    return status["state"], status["exit_status"]


def only_run(output: Path) -> Path:
    (run,) = (output / "detect").iterdir()
    return run


def test_loss_that_is_no_number_ends_the_run_with_advice(
    quick: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Loop.backward

    def poisoned(self: Loop, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        items = original(self, batch)
        return {k: v * float("nan") for k, v in items.items()} if self.trainer.epoch == 1 else items

    monkeypatch.setattr(Loop, "backward", poisoned)
    with pytest.raises(RunError, match=r"epoch 2.*optimizer\.lr0"):
        quick()
    run = only_run(tmp_path)
    assert status_of(run) == ("failed", 1)
    assert [row["epoch"] for row in rows(run)] == ["1"]
    assert "optimizer.lr0" in (run / "summary.txt").read_text()
    assert "optimizer.lr0" in (run / "logs" / "train.log").read_text()
    assert not (run / "training_result.json").exists()


def test_weights_that_are_no_numbers_are_not_saved(
    quick: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an epoch spoils them: its loss was still sound."""
    original = RunTrainer.optimizer_step

    def spoil(trainer: RunTrainer) -> None:
        next(trainer.model.parameters()).data.fill_(float("inf"))
        original(trainer)

    monkeypatch.setattr(RunTrainer, "optimizer_step", spoil)
    with pytest.raises(RunError, match="diverged in epoch 1"):
        quick()
    assert not list((only_run(tmp_path) / "weights").iterdir())


def test_value_beyond_float16_stays_finite_in_the_weights_file(tmp_path: Path) -> None:
    model = torch.load(write_checkpoint(tmp_path / "a.pt"), weights_only=False)["model"].float()
    model.model[0].bn.running_var.fill_(1e6)
    ema = SimpleNamespace(ema=model, update_attr=lambda *args, **kwargs: None)
    form = checkpoint.WeightsFile(SimpleNamespace(ema=ema, model=model, args=SimpleNamespace()), imgsz=64)
    (tmp_path / "b.pt").write_bytes(form.serialize(model.state_dict(), {}))
    saved = torch.load(tmp_path / "b.pt", weights_only=False)["model"].model[0].bn.running_var
    assert saved.dtype == torch.float16 and saved.isfinite().all() and saved.min() > 60_000
    assert model.model[0].bn.running_var.min() == 1e6, "the running average itself is not changed"


@pytest.mark.parametrize(("split", "workers"), [("train", 2), ("val", 0)])
def test_image_that_vanishes_ends_the_run_with_one_line(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, split: str, workers: int
) -> None:
    """A cable was pulled after the data had been checked."""
    data = make_yolo_set(tmp_path / "set", n_train=8, n_val=2)
    original = Loop._train_epoch

    def without_images(self: Loop, *args: Any) -> dict[str, float]:
        for image in (data.parent / "images" / split).iterdir():
            image.unlink()
        return original(self, *args)

    monkeypatch.setattr(Loop, "_train_epoch", without_images)
    with quick_pictures(), pytest.raises(RunError) as caught:
        train(data, tmp_path, shared_cache, train__workers=workers)
    assert re.fullmatch(r"The data cannot be read any more in epoch 1: .*\.jpg.*", str(caught.value))
    assert status_of(only_run(tmp_path)) == ("failed", 1)


def test_defect_of_ours_is_recorded_with_its_traceback(
    quick: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Loop, "_set_rates", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        quick()
    run = only_run(tmp_path)
    assert status_of(run) == ("failed", 1)
    log = (run / "logs" / "train.log").read_text()
    assert "ERROR    | ZeroDivisionError" in log and "Traceback" in log


def test_full_disk_ends_the_run_with_one_line_and_half_writes_nothing(quick: Train, tmp_path: Path) -> None:
    """No file may grow beyond 2 MB: logs and tables go on, the weights of 6 MB do not."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, before[1]))
    try:
        with pytest.raises(RunError, match=r"cannot write .*\.pt.*free"):
            quick()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    run = only_run(tmp_path)
    assert status_of(run) == ("failed", 1)
    assert list((run / "weights").iterdir()) == []
    assert not list(run.rglob("*.tmp-*"))


# ---- stopped and continued


@contextmanager
def interrupting(owner: Any, name: str, call: int) -> Iterator[None]:
    """Stop what runs inside as Ctrl-C does, when a function is called for the given time."""
    original, calls = getattr(owner, name), itertools.count(1)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, interrupted)
        yield


def assert_same_end(run: Path, whole: Path) -> None:
    assert (run / "results.csv").read_text() == (whole / "results.csv").read_text()
    state, expected = ({k: v for k, v in last_state(d).items() if k != "random"} for d in (run, whole))
    assert differences(state, expected) == [], "the generators differ with the number of workers"
    for name in ("best", "last", "epoch2"):
        assert same_weights(run / "weights" / f"{name}.pt", whole / "weights" / f"{name}.pt"), name
    assert status_of(run) == ("completed", 0)
    result, expected = (read_json(d / "training_result.json") for d in (run, whole))
    for key in ("metrics", "epochs_completed", "status", "per_class", "best_model_path"):
        assert result[key] == expected[key], key
    with (run / "timings.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2", "3"]
    assert not list(run.rglob("*.tmp-*"))


def lengthen_first_epoch(run: Path) -> float:
    """Pretend in timings.csv that the first epoch took longer than any test; return how long, in seconds."""
    with (run / "timings.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    table[0]["epoch_s"] = "6000"
    with (run / "timings.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return 6000


POINTS = {
    "before the first batch": (Loop, "_train_epoch", 1),
    "in the middle of the second epoch": (RunTrainer, "optimizer_step", 4),
    "between validation and results": (Monitor, "epoch", 2),
    "between results and state": (loop, "write_state", 2),
    "between state and weights": (loop, "write_weights", 2),
    "after the last epoch": (engine, "evaluate", 1),
}
FAST = ("in the middle of the second epoch", "between state and weights")


@pytest.mark.parametrize("point", [pytest.param(p, id=p, marks=() if p in FAST else pytest.mark.slow) for p in POINTS])
def test_stopped_run_continues_to_the_same_end(whole: Path, quick: Train, tmp_path: Path, point: str) -> None:
    with interrupting(*POINTS[point]):
        quick()
    run = only_run(tmp_path)
    assert status_of(run) == ("interrupted", 130)
    assert not (run / "training_result.json").exists()
    summary = (run / "summary.txt").read_text()
    assert "interrupted" in summary and "stopped by Ctrl-C" in summary
    finished = len(rows(run)) if (run / "results.csv").exists() else 0
    said = re.search(r"Epochs +(\d) of 3", summary)
    assert said and finished - 1 <= int(said[1]) <= finished
    earlier_s = lengthen_first_epoch(run) if finished else 0
    with quick_pictures():
        resume(run, "train.workers=2", "train.cache=ram")
    assert_same_end(run, whole)
    assert earlier_s <= 60 * read_json(run / "training_result.json")["training_time_minutes"] < earlier_s + 300
    assert len(read_json(run / "manifest.json")["resumes"]) == 1


def test_finished_run_is_not_continued(whole: Path) -> None:
    with pytest.raises(InputError, match="finished"):
        hsr_train.compose([f"resume={whole}"])


@pytest.fixture(scope="module")
def stopped_in_second_epoch(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("stopped")
    with quick_pictures(), interrupting(RunTrainer, "optimizer_step", 4):
        train(small_set, output, shared_cache)
    return only_run(output)


@pytest.fixture
def interrupted(stopped_in_second_epoch: Path, tmp_path: Path) -> Path:
    """A run that was stopped in its second epoch and then moved to another folder."""
    return Path(shutil.copytree(stopped_in_second_epoch, tmp_path / "moved" / "run"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}


def test_refused_continuation_changes_nothing(interrupted: Path, data: Path, tmp_path: Path) -> None:
    """Changed labels, another writer, a damaged state, a state of another version: each by itself."""
    before = snapshot(interrupted)
    logs = {"logs/train.log"}

    def refusal() -> str:
        with pytest.raises(InputError) as caught:
            resume(interrupted)
        after = snapshot(interrupted)
        assert {k: v for k, v in after.items() if k not in logs} == {k: v for k, v in before.items() if k not in logs}
        return str(caught.value)

    label = data.parent / "labels" / "train" / "0000.txt"
    original = label.read_bytes()
    try:
        label.write_bytes(original + b"0 0.5 0.5 0.1 0.1\n")
        assert "no longer what this run began with" in refusal()
    finally:
        label.write_bytes(original)
    with RunDirectory.open(interrupted).lock():
        assert "in use by process" in refusal()


def test_weights_that_changed_are_refused_before_the_first_state_only(
    quick: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_checkpoint(tmp_path / "start.pt", thin=True)
    original = file.read_bytes()
    with interrupting(RunTrainer, "optimizer_step", 1):
        quick(model=None, model__weights=file, train__epochs=2)
    run = only_run(tmp_path)
    write_checkpoint(file, imgsz=64, thin=True)  # another file also where the generator stands as it did
    with pytest.raises(InputError, match=r"model\.weights.*no longer what this run began with"):
        resume(run)
    file.write_bytes(original)
    with interrupting(RunTrainer, "optimizer_step", 4):
        resume(run)
    assert len(rows(run)) == 1
    file.unlink()
    with quick_pictures():
        resume(run)
    assert f"are gone: {file}" in caplog.text
    assert len(rows(run)) == 2


@pytest.mark.parametrize("architecture", ["yolov8n", pytest.param("yolo26n", marks=pytest.mark.slow)])
def test_network_whose_head_is_wider_than_its_yaml_says_goes_on(
    quick: Train, tmp_path: Path, architecture: str
) -> None:
    """Fine-tuning for two classes keeps the width that a head for eighty has."""
    file = write_checkpoint(tmp_path / "start.pt", architecture, names=[str(i) for i in range(80)], thin=True)
    more = {"model": None, "model__weights": file, "train__epochs": 2, "train__close_mosaic": 0}
    whole = folder_of(quick(**more))
    with interrupting(RunTrainer, "optimizer_step", 4):
        quick(**more)
    run = next(d for d in whole.parent.iterdir() if d != whole)
    resume(run)
    assert differences(last_state(run), last_state(whole)) == []
    widths = {len(v) for k, v in last_state(run)["model"].items() if re.search(r"\.cv3\.\d\..*conv\.weight$", k)}
    assert 80 in widths


def test_state_of_another_version_is_refused(interrupted: Path) -> None:
    write_state(interrupted / "state", last_state(interrupted) | {"version": 99})
    with pytest.raises(InputError, match="version 99"):
        resume(interrupted)


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {"cut": content[: 2 * middle // 3], "empty": b"", "one bit": flipped, "no end": content[:-1]}[how]


@pytest.mark.parametrize("how", ["cut", "empty", "one bit", "no end"])
def test_only_state_that_is_damaged_is_refused_by_name(interrupted: Path, how: str) -> None:
    file = interrupted / "state" / "epoch1.pt"
    file.write_bytes(damaged(file.read_bytes(), how))
    with pytest.raises(InputError, match=rf"{re.escape(str(file))}.*damaged"):
        resume(interrupted)


@pytest.mark.parametrize("how", ["cut", pytest.param("one bit", marks=pytest.mark.slow)])
def test_state_before_a_damaged_one_is_used(
    whole: Path, quick: Train, tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    with interrupting(RunTrainer, "optimizer_step", 6):
        quick()
    run = only_run(tmp_path)
    file = run / "state" / "epoch2.pt"
    file.write_bytes(damaged(file.read_bytes(), how))
    with quick_pictures():
        resume(run)
    assert f"The state of epoch 2 is not used: {file}: is damaged" in caplog.text
    assert_same_end(run, whole)


def test_newest_two_states_are_kept_and_load_without_hsr_train(whole: Path) -> None:
    assert sorted(file.name for file in (whole / "state").iterdir()) == ["epoch2.pt", "epoch3.pt"]
    assert all(value.dtype != torch.float16 for value in last_state(whole)["model"].values())


def test_continuation_takes_the_saved_configuration_not_todays(interrupted: Path) -> None:
    with pytest.raises(InputError, match="may change only"):
        hsr_train.compose([f"resume={interrupted}", "train.imgsz=96"])
    experiment = hsr_train.compose([f"resume={interrupted}/weights/last.pt"])
    saved = yaml.safe_load((interrupted / "config.yaml").read_text())
    assert experiment.train.epochs == saved["train"]["epochs"] == 3


# ---- signals, on the real command


def wait_for(process: subprocess.Popen[str], output: Path, epochs: int, timeout_s: float = 300) -> Path:
    """Wait until the run has recorded some epochs; return its directory."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        for table in output.glob("detect/*/results.csv"):
            if len(table.read_text().splitlines()) > epochs:
                return table.parent
        time.sleep(0.02)
    process.kill()
    raise AssertionError(process.communicate()[1])


def left_behind(group: int) -> list[str]:
    """Return the processes of a process group that still live, after a moment to end."""
    end = time.monotonic() + 60
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline()))
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


@pytest.fixture
def long_run(data: Path, tmp_path: Path, shared_cache: Path) -> list[str]:
    words = {"train__epochs": 40, "train__close_mosaic": 10, "train__workers": 2, "train__save_period": 0}
    return overrides(data, tmp_path / "out", shared_cache, **words)


def stop_in_mid_run(words: list[str], tmp_path: Path, signum: int, *, group: bool, epochs: int = 1) -> tuple[Path, int]:
    process = start(words, tmp_path)
    run = wait_for(process, tmp_path / "out", epochs)
    os.killpg(process.pid, signum) if group else process.send_signal(signum)
    _, errors = process.communicate(timeout=300)
    assert left_behind(process.pid) == []
    if signum != signal.SIGKILL:
        assert "Traceback" not in errors
        stopped, way_on = errors.rstrip().splitlines()[-2:]
        assert stopped.endswith("Stopped by Ctrl-C" if signum == signal.SIGINT else "SIGTERM")
        assert "To go on: python -m hsr_train resume=" in way_on
    return run, process.returncode


def test_ctrl_c_of_the_command_is_tidy_and_resumable(long_run: list[str], tmp_path: Path) -> None:
    """In a terminal Ctrl-C reaches the loader's workers too."""
    run, code = stop_in_mid_run(long_run, tmp_path, signal.SIGINT, group=True)
    assert code == 130
    assert status_of(run) == ("interrupted", 130)
    epochs = len(rows(run))
    assert 1 <= epochs < 40
    assert hsr_train.compose(["resume=last", f"output_dir={tmp_path / 'out'}"]).origin.resume_from == str(run)
    assert main([f"resume={run}", "train.nbs=50"]) == 2


def test_stop_that_the_library_swallows_ends_the_run_before_its_next_batch(
    data: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ultralytics catches whatever comes while it draws how the boxes lie."""

    def drawn(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
        pytest.fail("it was not broken off")

    monkeypatch.setattr("ultralytics.models.yolo.detect.train.plot_labels", TryExcept()(drawn))
    with quick_pictures():
        assert main(overrides(data, tmp_path, shared_cache)) == 143
    assert "Stopped by SIGTERM" in capsys.readouterr().err
    assert status_of(only_run(tmp_path)) == ("interrupted", 143) and rows(only_run(tmp_path)) == []


STOPPED = {"train__epochs": 8, "train__close_mosaic": 2, "train__workers": 2, "train__save_period": 0}


@pytest.fixture(scope="module")
def unstopped(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the run that `STOPPED` makes when nobody stops it."""
    with quick_pictures():
        return folder_of(train(small_set, tmp_path_factory.mktemp("unstopped"), shared_cache, **STOPPED))


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "group"), [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGKILL, True)])
def test_stopped_command_continues_to_the_end_of_an_uninterrupted_one(
    unstopped: Path, data: Path, tmp_path: Path, shared_cache: Path, signum: int, group: bool
) -> None:
    words = overrides(data, tmp_path / "out", shared_cache, **STOPPED)
    run, code = stop_in_mid_run(words, tmp_path, signum, group=group, epochs=2)
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[signal.Signals(signum)]
    if signum == signal.SIGKILL:  # of all its processes at once
        assert read_json(run / "status.json")["state"] == "running"
    else:
        assert status_of(run) == ("interrupted", code)
    with quick_pictures():
        assert main(["resume=last", f"output_dir={tmp_path / 'out'}"] if group else [f"resume={run}"]) == 0
    assert (run / "results.csv").read_text() == (unstopped / "results.csv").read_text()
    assert same_weights(run / "weights" / "last.pt", unstopped / "weights" / "last.pt")
    assert status_of(run) == ("completed", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [("yolov8n", "sgd"), ("yolov8n", "auto"), ("yolov8n", "rmsprop"), ("yolo26n", "adamw"), ("yolo11n", "nadam")],
)
def test_any_family_and_optimizer_continues_to_the_same_end(
    data: Path, tmp_path: Path, shared_cache: Path, model: str, optimizer: str
) -> None:
    """YOLO26's loss changes from epoch to epoch; each optimizer remembers something else."""
    runs = []
    how = {"model": model, "model__weights": "scratch"}  # what each family has for blocks of its own
    if model == "yolov8n":
        how = {"model__weights": write_checkpoint(tmp_path / "start.pt", thin=True)}
    how["optimizer"] = optimizer
    for name in ("whole", "stopped"):
        with quick_pictures(), interrupting(RunTrainer, "optimizer_step", 4) if name == "stopped" else nullcontext():
            train(data, tmp_path / name, shared_cache, **how)
        runs.append(only_run(tmp_path / name))
    with quick_pictures():
        resume(runs[1])
    assert_same_end(runs[1], runs[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signum", "work_s"), [(signal.SIGINT, 0.5), (signal.SIGTERM, 2.0), (signal.SIGINT, 4.0), (signal.SIGTERM, 8.0)]
)
def test_signal_at_any_moment_ends_the_command_tidily(
    data: Path, tmp_path: Path, shared_cache: Path, signum: int, work_s: float
) -> None:
    """Before its first import of something heavy, amid these, as it begins to train, and later."""
    process = start(overrides(data, tmp_path / "out", shared_cache, train__workers=2), tmp_path)
    work_for(process, work_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signum)
    _, errors = process.communicate(timeout=300)
    assert process.returncode in ((130 if signum == signal.SIGINT else 143), 0), errors
    assert left_behind(process.pid) == []
    for run in (tmp_path / "out").glob("detect/*"):
        if (run / "status.json").is_file():
            assert read_json(run / "status.json")["state"] in ("interrupted", "completed")
        else:
            assert not (run / "config.yaml").exists(), "it was stopped before there was a run"
        assert not list(run.rglob("*.tmp-*"))


@pytest.mark.slow
def test_second_command_on_a_living_run_is_refused(
    long_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(long_run, tmp_path)
    try:
        run = wait_for(process, tmp_path / "out", 1)
        assert main([f"resume={run}"]) == 2
        assert "still running as process" in capsys.readouterr().err
        assert process.poll() is None
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=300)


# ---- the other entry


def test_check_makes_no_directory_and_says_the_plan(
    data: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(overrides(data, tmp_path / "out", shared_cache, mode="check")) == 0
    printed = capsys.readouterr().out
    assert "yolov8n" in printed and "9 images" in printed and "batch 4" in printed
    assert "done by" not in printed
    assert not (tmp_path / "out").exists()


def test_check_says_until_when_a_run_would_be_done(
    data: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = overrides(data, tmp_path, shared_cache, mode="check", train__epochs=None, train__time_budget="45min")
    assert main(words) == 0
    assert re.search(r"Begun now: done by \w+ \d\d:\d\d:\d\d, in 45", capsys.readouterr().out)
