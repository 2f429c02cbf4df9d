"""What is typed for `task=classify`: a primary configuration and a schema of its own; tasks that are mixed are told."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_machines import gpu, machine

from hsr_train import hardware
from hsr_train.cli import main
from hsr_train.config.compose import compose
from hsr_train.config.saved import dump, load
from hsr_train.config.schema import ClassifyExperiment, DetectExperiment
from hsr_train.engines.base import Result, Watch
from hsr_train.errors import InputError, Problem


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", machine)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[ClassifyExperiment]:
    """Put a stand-in in the place of training; it remembers experiments."""
    experiments: list[ClassifyExperiment] = []

    def execute(experiment: ClassifyExperiment, watch: Watch | None = None) -> Result:
        experiments.append(experiment)
        return Result(run_dir=None, metrics={"accuracy": 0.5, "macro_f1": 0.5})

    monkeypatch.setattr("hsr_train.cross_validation.execute", execute)
    return experiments


def classify(*overrides: str, config_dir: Path | None = None, config_name: str | None = None) -> ClassifyExperiment:
    experiment = compose(["task=classify", *overrides], config_dir, config_name)
    assert isinstance(experiment, ClassifyExperiment)
    return experiment


def problems_of(call: Callable[[], Any]) -> dict[str, Problem]:
    with pytest.raises(InputError) as caught:
        call()
    return {p.key: p for p in caught.value.problems}


def problems(*overrides: str) -> dict[str, Problem]:
    return problems_of(partial(classify, *overrides))


def preset(folder: Path, text: str, name: str = "ours") -> Path:
    (folder / "preset").mkdir(exist_ok=True)
    (folder / "preset" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return folder


# Which values come from where.


def test_task_chooses_its_own_primary_configuration() -> None:
    e = classify()
    assert (e.task, e.preset, e.model.name, e.optimizer.name, e.trainer.name) == (
        "classify", "classify_default", "resnet50", "AdamW", "standard",
    )  # fmt: skip
    assert isinstance(compose([]), DetectExperiment)
    assert isinstance(compose(["task=detect"]), DetectExperiment)


def test_defaults_of_the_published_fine_tuning() -> None:
    e = classify()
    assert (e.train.epochs, e.train.batch, e.train.imgsz, e.optimizer.lr) == (15, 32, 224, 1e-4)
    o = classify("optimizer=classify_sgd").optimizer
    assert (o.name, o.lr, o.momentum, o.schedule, o.step_size, o.gamma) == ("SGD", 0.001, 0.9, "step", 7, 0.1)


@pytest.mark.parametrize("tier", ["cpu", "low", "medium", "high", "workstation", "manual"])
def test_tier_gives_workers_and_nothing_else(tier: str, tmp_path: Path) -> None:
    """A preset of the user's that sets one value gets no batch or cache made for detectors."""
    preset(tmp_path, "task: classify\ntrain: {epochs: 3}\n")
    e = classify("preset=ours", f"gpu_tier={tier}", config_dir=tmp_path)
    assert (e.model.name, e.train.batch, e.train.imgsz, e.train.cache) == ("resnet50", 32, 224, "none")
    assert e.train.workers == {"cpu": 2, "low": 4}.get(tier, 8)
    assert (e.train.epochs, e.gpu_tier, e.preset) == (3, tier, "ours")


def test_tier_auto_and_manual_say_nothing_of_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine(gpu(0, 23.7)))
    e = classify()
    assert (e.gpu_tier, e.model.name, e.train.batch, e.train.workers) == ("high", "resnet50", 32, 8)
    (decision,) = classify("gpu_tier=manual").origin.decisions
    assert decision.reason == "no detection: workers 8"


@pytest.mark.parametrize("choice", ["model=resnet50", "model.name=timm/convnext_tiny"])
def test_typed_model_wins_over_preset_and_tier(choice: str) -> None:
    e = classify("preset=classify_demo", "gpu_tier=high", choice)
    assert e.model.name == choice.partition("=")[2]
    assert (e.model.weights, e.train.imgsz) == ("scratch", 64)


def test_typed_optimizer_wins_over_the_presets_choice_and_its_values_stay() -> None:
    e = classify("preset=classify_demo", "optimizer=classify_sgd")
    assert (e.optimizer.name, e.optimizer.schedule, e.optimizer.lr) == ("SGD", "step", 0.002)
    assert classify("preset=classify_demo", "optimizer=classify_sgd", "optimizer.lr=0.5").optimizer.lr == 0.5


def test_preset_demo_is_small_and_from_scratch_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine(gpu(0, 80)))
    e = classify("preset=classify_demo")
    assert (e.model.name, e.model.weights, e.data.path, e.train.imgsz, e.train.batch) == (
        "resnet18", "scratch", "demo", 64, 16,
    )  # fmt: skip


def test_trainer_is_a_group() -> None:
    e = classify("trainer=mixed_precision", "trainer.amp_dtype=bfloat16")
    assert (e.trainer.name, e.trainer.amp_dtype) == ("mixed_precision", "bfloat16")


def test_preset_chooses_in_every_group(tmp_path: Path) -> None:
    preset(
        tmp_path,
        "defaults:\n  - override /model: resnet18\n  - override /optimizer: classify_sgd\n"
        "  - override /augmentation: classify_none\n  - override /trainer: mixed_precision\ntask: classify\n",
    )
    e = classify("preset=ours", "gpu_tier=high", config_dir=tmp_path)
    assert (e.model.name, e.optimizer.name, e.trainer.name) == ("resnet18", "SGD", "mixed_precision")
    assert (e.augmentation.crop, e.augmentation.fliplr) == ("resize", 0.0)


# Choices and keys of the other task.

MIXED = [
    ("classify", "preset=fast", "preset", "task=detect", "preset=classify_default"),
    ("classify", "preset=demo", "preset", "task=detect", "preset=classify_demo"),
    ("classify", "optimizer=sgd", "optimizer", "task=detect", "optimizer=classify_sgd"),
    ("classify", "augmentation=none", "augmentation", "task=detect", "augmentation=classify_none"),
    ("classify", "model=yolov8n", "model.name", "is a detector", "model=resnet18, or task=detect"),
    ("classify", "model.name=yolo11m", "model.name", "is a detector", "task=detect"),
    ("detect", "preset=classify_demo", "preset", "task=classify", "preset=demo"),
    ("detect", "optimizer=classify_adamw", "optimizer", "task=classify", "optimizer=adamw"),
    ("detect", "augmentation=classify_none", "augmentation", "task=classify", "augmentation=none"),
    ("detect", "trainer=mixed_precision", "trainer", "task=classify", "leave it out"),
    ("detect", "model=resnet18", "model.name", "is no detector", "task=classify"),
]


@pytest.mark.parametrize(("task", "typed", "key", "words", "remedy"), MIXED, ids=[f"{m[0]} {m[1]}" for m in MIXED])
def test_choice_of_the_other_task_is_refused(task: str, typed: str, key: str, words: str, remedy: str) -> None:
    found = problems_of(lambda: compose([f"task={task}", typed]))
    assert list(found) == [key]
    assert words in str(found[key])
    assert remedy in found[key].remedy


def test_all_choices_of_the_other_task_come_in_one_message() -> None:
    found = problems("preset=fast", "optimizer=adam", "augmentation=light", "model=yolov8n", "train.epoch=3")
    assert set(found) == {"preset", "optimizer", "augmentation", "model", "train.epoch"}
    assert "belongs to task=detect, and this is task=classify; there are" in found["model"].allowed


KEYS = [
    ("lr0=0.1", "lr0", "optimizer.lr=0.1", "optimizer.lr0"),
    ("lr=0.1", "lr", "optimizer.lr=0.1", "optimizer.lr0=0.1"),
    ("learning_rate=0.1", "learning_rate", "optimizer.lr=0.1", "optimizer.lr0=0.1"),
    ("optimizer.lr0=0.1", "optimizer.lr0", "optimizer.lr", None),
    ("batch_size=8", "batch_size", "train.batch=8", "train.batch=8"),
    ("img_size=96", "img_size", "train.imgsz=96", "train.imgsz=96"),
    ("num_epochs=3", "num_epochs", "train.epochs=3", "train.epochs=3"),
    ("raw_data=x", "raw_data", "data.raw=x", None),
    ("trainer_type=dp", "trainer_type", "trainer.name=dp", None),
    ("fold=2", "fold", "data.fold=2", None),
    ("train.epoch=3", "train.epoch", "train.epochs=3", "train.epochs=3"),
    ("train.nbs=8", "train.nbs", "--cfg job", None),
    ("trainer.noise_multipler=1", "trainer.noise_multipler", "trainer.noise_multiplier=1", None),
]


@pytest.mark.parametrize(("typed", "key", "remedy", "detect"), KEYS, ids=[k[0] for k in KEYS])
def test_key_of_another_name_leads_to_the_tasks_own(typed: str, key: str, remedy: str, detect: str | None) -> None:
    found = problems(typed)
    assert list(found) == [key] and "unknown key" in found[key].allowed
    assert remedy in found[key].remedy
    if detect is not None:
        with pytest.raises(InputError) as caught:
            compose([typed])
        assert detect in str(caught.value)


def test_misspelt_task_does_not_make_the_rest_wrong() -> None:
    found = problems_of(lambda: compose(["task=clasify", "preset=classify_demo", "optimizer.lr=0.1"]))
    assert list(found) == ["task"]
    assert found["task"].remedy == "task=classify"


def test_model_without_a_file_of_its_own_leads_to_the_libraries_names() -> None:
    assert "model.name=vgg16" in problems("model=vgg16")["model"].remedy
    misspelt = problems("model=resnet8")["model"].remedy
    assert misspelt == "did you mean model=resnet18? or model.name=resnet8 if torchvision has it"
    assert problems("model=timm/vit_tiny")["model"].remedy == "model.name=timm/vit_tiny"
    assert problems("model=runs/best.pt")["model"].remedy == "model.weights=runs/best.pt"
    assert classify("model.name=vgg16").model.name == "vgg16"


# Single values.


@pytest.mark.parametrize("ratio", [[0.7, 0.2, 0.1], [0.7, 0.15, 0.15], [1, 0, 0], [0.8, 0.2, 0.0], [0.1, 0.2, 0.7]])
def test_ratio_of_three_shares_is_taken(ratio: list[float]) -> None:
    typed = ",".join(map(str, ratio))
    assert classify(f"data.ratio=[{typed}]").data.ratio == ratio


@pytest.mark.parametrize(
    "ratio",
    ["[0.7,0.3]", "[0.7,0.2,0.2]", "[1.2,-0.1,-0.1]", "[]", "[0.25,0.25,0.25,0.25]", "[0,0,0]", "[nan,0.5,0.5]"],
)
def test_ratio_that_is_none_is_refused(ratio: str) -> None:
    found = problems(f"data.ratio={ratio}")
    assert "must be three shares" in found["data.ratio"].allowed
    assert found["data.ratio"].remedy == "data.ratio=[0.7,0.15,0.15]"


def test_ratio_that_is_no_list_is_refused() -> None:
    assert "must be a list" in problems("data.ratio=0.7")["data.ratio"].allowed
    assert "several values need --multirun" in problems("data.ratio=0.7,0.2,0.1")["data.ratio"].allowed


# What is typed, the key, and its value, or words of the refusal.
VALUES = [
    ("data.fold=3", "data.fold", 3),
    ("data.fold='3'", "data.fold", 3),
    ("data.fold=all", "data.fold", "all"),
    ("data.fold=-1", "data.fold", "must be a fold from 0, or all"),
    ("data.fold=every", "data.fold", "must be a fold from 0, or all"),
    ("data.folds=1", "data.folds", 1),
    ("data.folds=0", "data.folds", "must be at least 1"),
    ("data.scheme=holdout", "data.scheme", "holdout"),
    ("data.scheme=hold", "data.scheme", "must be one of kfold, holdout"),
    ("train.freeze=backbone", "train.freeze", "backbone"),
    ("train.freeze=6", "train.freeze", 6),
    ("train.freeze='6'", "train.freeze", 6),
    ("train.freeze=null", "train.freeze", None),
    ("train.freeze=-2", "train.freeze", "must be null, a number of parts, or backbone"),
    ("train.freeze=head", "train.freeze", "must be null, a number of parts, or backbone"),
    ("train.cache=True", "train.cache", "ram"),
    ("train.cache=false", "train.cache", "none"),
    ("train.cache=disk", "train.cache", "must be one of none, ram"),
    ("train.batch=auto", "train.batch", "must be a whole number"),
    ("train.imgsz=31", "train.imgsz", "must be at least 32"),
    ("train.imgsz=225", "train.imgsz", 225),
    ("train.device=[0]", "train.device", 0),
    ("train.device=gpu", "train.device", "must be auto, cpu, a GPU number"),
    ("train.ema=0.999", "train.ema", 0.999),
    ("train.ema=1", "train.ema", "must be above 0 and below 1"),
    ("train.best=f1", "train.best", "must be one of accuracy, macro_f1"),
    ("train.class_weights=balanced", "train.class_weights", "balanced"),
    ("optimizer.name=rmsprop", "optimizer.name", "RMSprop"),
    ("optimizer.name=auto", "optimizer.name", "must be one of AdamW, Adam, SGD, RMSprop, NAdam, RAdam"),
    ("optimizer.lr=0", "optimizer.lr", "must be above 0"),
    ("optimizer.schedule=one_cycle", "optimizer.schedule", "one_cycle"),
    ("optimizer.schedule=cos", "optimizer.schedule", "must be one of cosine, step, one_cycle, constant"),
    ("model.num_classes=1", "model.num_classes", "must be at least 2"),
    ("trainer.name=amp", "trainer.name", "must be one of standard, mixed_precision, accelerate, dp"),
    ("trainer.gradient_accumulation_steps=0", "trainer.gradient_accumulation_steps", "must be at least 1"),
    ("predict.top=0", "predict.top", "must be at least 1"),
]


@pytest.mark.parametrize(("typed", "key", "outcome"), VALUES, ids=[v[0] for v in VALUES])
def test_value_is_understood_or_refused(typed: str, key: str, outcome: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine(gpu(0, 12)))
    if isinstance(outcome, str) and outcome.startswith("must be"):
        found = problems(typed)
        assert list(found) == [key] and outcome in found[key].allowed
        return
    section, name = key.split(".")
    value = getattr(getattr(classify(typed), section), name)
    assert (value, type(value)) == (outcome, type(outcome))


# What values make together.


def test_private_training_needs_noise_or_epsilon() -> None:
    found = problems("trainer.name=dp")
    assert list(found) == ["trainer.noise_multiplier"]
    assert found["trainer.noise_multiplier"].remedy == "trainer.target_epsilon=3.0"
    assert classify("trainer.name=dp", "trainer.target_epsilon=3").trainer.target_epsilon == 3.0
    assert classify("trainer.name=dp", "trainer.noise_multiplier=1").trainer.noise_multiplier == 1.0


@pytest.mark.parametrize("key", ["mixup", "cutmix"])
def test_private_training_blends_no_images(key: str) -> None:
    private = ("trainer.name=dp", "trainer.noise_multiplier=1.1")
    found = problems(*private, f"augmentation.{key}=0.2")
    assert list(found) == [f"augmentation.{key}"]
    assert found[f"augmentation.{key}"].remedy == f"augmentation.{key}=0"
    assert getattr(classify(*private, f"augmentation.{key}=0").augmentation, key) == 0
    assert getattr(classify(f"augmentation.{key}=0.2").augmentation, key) == 0.2


def test_private_training_reports_all_it_cannot_have_at_once() -> None:
    found = problems("trainer.name=dp", "augmentation.mixup=0.1", "augmentation.cutmix=1", "train.epochs=0")
    assert set(found) == {
        "trainer.noise_multiplier", "augmentation.mixup", "augmentation.cutmix", "train.epochs",
    }  # fmt: skip


def test_precision_without_mixed_precision_is_refused() -> None:
    for key in ("trainer.target_epsilon=3", "trainer.noise_multiplier=1", "trainer.max_grad_norm=2"):
        assert "has no effect without trainer=dp" in problems(key)[key.partition("=")[0]].allowed
    assert "has no effect with trainer=standard" in problems("trainer.amp_dtype=bfloat16")["trainer.amp_dtype"].allowed


def test_raw_and_path_are_not_typed_together() -> None:
    found = problems("data.raw=my/raw", "data.path=my/set")
    assert list(found) == ["data.path"]
    assert classify("data.raw=my (new), raw").data.raw == "my (new), raw"
    assert classify("data.path=my/set").data.raw is None
    predicting = ("mode=predict", "model.weights=best.pt", "data.path=photos")
    assert classify(*predicting, "data.raw=my/raw").data.path == "photos"


def test_split_needs_the_raw_folder() -> None:
    found = problems("mode=split")
    assert (list(found), found["data.raw"].remedy) == (["data.raw"], "data.raw=my/raw")
    assert classify("mode=split", "data.raw=my/raw").mode == "split"


def test_data_without_a_path_needs_raw() -> None:
    assert "data.raw=" in problems("data=yolo")["data.path"].remedy
    assert classify("data=yolo", "data.raw=my/raw").data.raw == "my/raw"


@pytest.mark.parametrize("mode", ["validate", "predict", "export"])
def test_verbs_need_a_weights_file(mode: str) -> None:
    found = problems(f"mode={mode}", "data.path=photos", "export.formats=[onnx]")
    assert list(found) == ["model.weights"]


# A team's own files.


def test_config_name_of_a_file_that_begins_with_classify(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(
        "defaults:\n  - classify\n  - override model: resnet18\n  - override optimizer: classify_sgd\n  - _self_\n"
        "train: {epochs: 9}\n"
    )
    e = compose(["gpu_tier=high"], tmp_path, "shop")
    assert isinstance(e, ClassifyExperiment)
    assert (e.train.epochs, e.model.name, e.optimizer.name, e.train.batch) == (9, "resnet18", "SGD", 32)
    assert compose(["train.epochs=2", "model=resnet50"], tmp_path, "shop").model.name == "resnet50"


def test_refusals_know_the_task_of_a_file_given_by_config_name(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("defaults:\n  - classify\n  - _self_\n")
    (tmp_path / "mall.yaml").write_text("defaults:\n  - shop\n  - _self_\n")
    for name in ("shop", "mall"):
        found = problems_of(partial(compose, ["lr0=0.1", "optimizer=classify_sgd", "preset=fast"], tmp_path, name))
        assert set(found) == {"lr0", "preset"}
        assert found["lr0"].remedy == "optimizer.lr=0.1"
        assert "this is task=classify" in found["preset"].allowed


def test_task_typed_with_a_file_of_the_other_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text("defaults:\n  - classify\n  - _self_\n")
    (tmp_path / "scene.yaml").write_text("defaults:\n  - config\n  - _self_\n")
    for name, own, other in (("shop", "classify", "detect"), ("scene", "detect", "classify")):
        found = problems_of(partial(compose, [f"task={other}"], tmp_path, name))
        assert list(found) == ["task"]
        assert found["task"].allowed == f"--config-name {name} is of task={own}"
        assert compose([f"task={own}"], tmp_path, name).task == own


def test_fault_in_a_preset_of_this_task_names_file_and_key(tmp_path: Path) -> None:
    preset(tmp_path, "task: classify\ntrain: {epoch: 3}\n")
    (problem,) = problems_of(partial(classify, "preset=ours", config_dir=tmp_path)).values()
    assert problem.key == "preset/ours.yaml: train.epoch"
    assert "train.epochs" in problem.remedy


def test_preset_of_a_team_belongs_to_the_task_that_it_names(tmp_path: Path) -> None:
    preset(tmp_path, "task: classify\ntrain: {epochs: 3}\n")
    found = problems_of(lambda: compose(["preset=ours"], tmp_path))
    assert list(found) == ["preset"]
    assert "belongs to task=classify, and this is task=detect" in found["preset"].allowed


# Several runs.


def test_multirun_over_the_learning_rate(ran: list[ClassifyExperiment]) -> None:
    assert main(["--multirun", "task=classify", "optimizer.lr=1e-3,1e-4", "train.seed=1,2"]) == 0
    assert [(e.optimizer.lr, e.train.seed) for e in ran] == [(1e-3, 1), (1e-3, 2), (1e-4, 1), (1e-4, 2)]
    assert all(isinstance(e, ClassifyExperiment) for e in ran)


def test_multirun_over_choices_of_the_task(ran: list[ClassifyExperiment]) -> None:
    assert main(["-m", "task=classify", "model=resnet18,resnet50", "optimizer=classify_sgd,classify_adamw"]) == 0
    assert [(e.model.name, e.optimizer.name) for e in ran] == [
        ("resnet18", "SGD"), ("resnet18", "AdamW"), ("resnet50", "SGD"), ("resnet50", "AdamW"),
    ]  # fmt: skip


@pytest.mark.parametrize("tasks", ["detect,classify", "classify,detect"])
def test_multirun_over_tasks_is_refused_before_anything_starts(
    ran: list[ClassifyExperiment], capsys: pytest.CaptureFixture[str], tasks: str
) -> None:
    assert main(["--multirun", f"task={tasks}", "train.epochs=1"]) == 2
    assert ran == []
    message = capsys.readouterr().err
    assert f"task: {tasks}: a grid is of one task" in message
    assert "Traceback" not in message


def test_multirun_refuses_a_choice_of_the_other_task_before_anything_starts(
    ran: list[ClassifyExperiment], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-m", "task=classify", "preset=classify_demo,fast"]) == 2
    assert ran == []
    assert "preset: fast: belongs to task=detect" in capsys.readouterr().err


def test_command_hands_over_the_experiment_of_the_task(ran: list[ClassifyExperiment]) -> None:
    assert main(["preset=classify_demo", "task=classify", "train.epochs=2"]) == 0
    (experiment,) = ran
    assert isinstance(experiment, ClassifyExperiment)
    assert (experiment.preset, experiment.train.epochs) == ("classify_demo", 2)


def test_cfg_prints_what_composes_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=classify", "--cfg", "job"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["task"] == "classify"
    experiment = classify()
    read = load(printed)
    read.origin = experiment.origin
    assert read == experiment


# The record of a run.


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """What of a run `resume=` reads."""
    folder = tmp_path / "outputs" / "classify" / "demo_fold_0"
    (folder / "weights").mkdir(parents=True)
    experiment = classify("preset=classify_demo", "data.ratio=[0.7,0.2,0.1]", "optimizer=classify_sgd", "data.fold=0")
    (folder / "config.yaml").write_text(dump(experiment), encoding="utf-8")
    (folder / "manifest.json").write_text("{}")
    (folder / "weights" / "last.pt").touch()
    (folder / "status.json").write_text(json.dumps({"state": "interrupted", "mode": "train"}))
    return folder


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["preset=classify_demo", "data.fold=all", "train.freeze=backbone"],
        ["trainer.name=dp", "trainer.target_epsilon=3", "train.freeze=4", "data.fold=2"],
        ["data.raw=a ${b} \"c\" ü: #", "data.groups=pattern:(\\d+)_.*", "export.formats=[onnx]"],
    ],
)  # fmt: skip
def test_dump_and_load_are_inverse(overrides: list[str]) -> None:
    experiment = classify(*overrides)
    read = load(dump(experiment))
    read.origin = experiment.origin
    assert read == experiment
    assert dump(experiment).startswith("task: classify\nmode: train\n")


def test_resume_keeps_the_task_and_its_values(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: pytest.fail("the hardware was asked"))
    e = compose([f"resume={run}", "train.workers=0", "train.epochs=20"])
    assert isinstance(e, ClassifyExperiment)
    assert (e.task, e.preset, e.optimizer.name, e.data.ratio) == ("classify", "classify_demo", "SGD", [0.7, 0.2, 0.1])
    assert (e.train.workers, e.train.epochs, e.origin.resume_from) == (0, 20, str(run))


def test_resume_may_name_the_task_again_but_not_another(run: Path) -> None:
    assert compose([f"resume={run}", "task=classify"]).task == "classify"
    found = problems_of(lambda: compose([f"resume={run}", "task=detect"]))
    assert list(found) == ["task"]


@pytest.mark.parametrize(
    ("typed", "key", "words"),
    [
        ("optimizer.lr=0.1", "optimizer.lr", "the run has 0.002"),
        ("lr0=0.1", "lr0", "unknown key"),
        ("data.fold=1", "data.fold", "the run has 0"),
        ("trainer=mixed_precision", "trainer", "groups and sections take no part"),
        ("train.nbs=8", "train.nbs", "unknown key"),
    ],
)
def test_resume_refuses_by_the_tasks_own_schema(run: Path, typed: str, key: str, words: str) -> None:
    found = problems_of(lambda: compose([f"resume={run}", typed]))
    assert list(found) == [key]
    assert words in str(found[key])
    if key == "lr0":
        assert "optimizer.lr=0.1" in found[key].remedy


def test_resume_by_the_command_needs_no_task(run: Path, ran: list[ClassifyExperiment]) -> None:
    assert main([f"resume={run}"]) == 0
    assert [type(e) for e in ran] == [ClassifyExperiment]
