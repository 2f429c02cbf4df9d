"""What ultralytics would refuse late or ignore silently is refused before training, all at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detection_runs import overrides
from yolo_sets import make_yolo_set

import hsr_train
from hsr_train.config.schema import DataConfig, DetectExperiment
from hsr_train.data.detection_set import DetectionSet
from hsr_train.data.yolo import load_detection_set
from hsr_train.decisions import Decisions
from hsr_train.engines.detection.options import passed_through, refused, training_arguments
from hsr_train.engines.detection.weights import Weights
from hsr_train.errors import Problem

YOLOV8N = Weights("scratch", "yolov8n", num_modules=23)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> DetectionSet:
    path = make_yolo_set(tmp_path_factory.mktemp("nine"), n_train=9, n_val=1)
    return load_detection_set(DataConfig(path=str(path), cache_dir=str(shared_cache)), Decisions())


def experiment(**more: Any) -> DetectExperiment:
    return hsr_train.compose(overrides(Path("data.yaml"), Path("out"), Path("cache"), **more))


def problems(nine: DetectionSet, start: Weights = YOLOV8N, **more: Any) -> dict[str, Problem]:
    return {p.key: p for p in refused(experiment(**more), start, nine)}


def test_usual_run_is_not_refused(nine: DetectionSet) -> None:
    assert problems(nine) == {}


@pytest.mark.parametrize("freeze", ["23", "100", "[0,23]", f"[{','.join(map(str, range(23)))}]"])
def test_freezing_everything_or_nothing_is_refused(nine: DetectionSet, freeze: str) -> None:
    assert "modules 0 to 22" in problems(nine, train__freeze=freeze)["train.freeze"].allowed


@pytest.mark.parametrize("freeze", ["null", "0", "10", "22", "[22]", "[]"])
def test_freezing_a_part_is_allowed(nine: DetectionSet, freeze: str) -> None:
    assert problems(nine, train__freeze=freeze) == {}


@pytest.mark.parametrize(
    ("batch", "imgsz", "multi_scale", "refusal"),
    [
        (4, 32, 0, True),
        (1, 32, 0, True),
        (3, 32, 0, False),
        (16, 32, 0, False),
        (4, 64, 0, False),
        (1, 64, 0, False),
        (4, 64, 0.25, True),
        (4, 96, 0.5, True),
        (4, 128, 0.5, False),
        (4, 64, 1, True),
    ],
)
def test_batch_that_batch_normalisation_cannot_use_is_refused(
    nine: DetectionSet, batch: int, imgsz: int, multi_scale: float, refusal: bool
) -> None:
    found = problems(nine, train__batch=batch, train__imgsz=imgsz, train__multi_scale=multi_scale)
    assert set(found) == ({"train.batch"} if refusal else set())
    if refusal:
        remedy = found["train.batch"].remedy.split(",")[0].removeprefix("train.").replace("imgsz", "train__imgsz")
        key, value = remedy.replace("multi_scale", "train__multi_scale").split("=")
        typed = {"train__imgsz": imgsz, "train__multi_scale": multi_scale, key: value}
        again = problems(nine, train__batch=batch, **typed)
        assert again == {} or key == "train__imgsz", "the remedy must help"


def test_size_that_the_stride_does_not_divide_is_refused(nine: DetectionSet) -> None:
    start = Weights("file", "yolov8n-p6", num_modules=30, stride=64)
    assert problems(nine, start, train__imgsz=160)["train.imgsz"].remedy == "train.imgsz=128"
    assert problems(nine, start, train__imgsz=32)["train.imgsz"].remedy == "train.imgsz=64"
    assert problems(nine, start, train__imgsz=128) == {}


def test_copy_paste_without_polygons_is_refused(nine: DetectionSet) -> None:
    assert "polygons" in problems(nine, augmentation__copy_paste=0.5)["augmentation.copy_paste"].allowed


def test_all_problems_come_at_once(nine: DetectionSet) -> None:
    found = problems(nine, train__freeze=99, train__imgsz=32, augmentation__copy_paste=1)
    assert set(found) == {"train.batch", "train.freeze", "augmentation.copy_paste"}
    assert all(p.remedy and p.allowed for p in found.values())


def test_every_setting_reaches_the_library_under_its_name() -> None:
    """The values of the interface's table, then whatever a user changes."""
    arguments = training_arguments(
        experiment(
            train__patience=7,
            train__cos_lr="true",
            train__multi_scale="true",
            train__freeze="[1,2]",
            train__seed=5,
            train__deterministic="false",
            train__cache="disk",
            train__workers=3,
            optimizer="sgd",
            optimizer__lr0=0.02,
            optimizer__lrf=0.1,
            optimizer__momentum=0.8,
            optimizer__weight_decay=0.001,
            optimizer__warmup_momentum=0.5,
            optimizer__warmup_bias_lr=0.05,
            augmentation__hsv_h=0.5,
            ultralytics__box=9,
        ),
        "cuda:1",
        Path("x"),
    )
    expected = {
        "epochs": 3, "batch": 4, "imgsz": 64, "nbs": 8, "close_mosaic": 1, "patience": 7, "cos_lr": True,
        "multi_scale": 0.5, "freeze": [1, 2], "seed": 5, "deterministic": False, "cache": "disk", "workers": 3,
        "optimizer": "SGD", "lr0": 0.02, "lrf": 0.1, "momentum": 0.8, "weight_decay": 0.001, "warmup_epochs": 1.0,
        "warmup_momentum": 0.5, "warmup_bias_lr": 0.05, "hsv_h": 0.5, "box": 9.0, "device": "1", "amp": True,
    }  # fmt: skip
    assert {key: arguments[key] for key in expected} == expected


def test_pass_through_holds_only_what_was_set() -> None:
    assert passed_through(experiment()) == {}
    assert passed_through(experiment(ultralytics__cls=1.5, ultralytics__nms="false")) == {"cls": 1.5, "nms": False}


def test_optimizer_auto_leaves_rate_and_momentum_to_the_library() -> None:
    arguments = training_arguments(experiment(optimizer="auto"), "cpu", Path("x"))
    assert arguments["optimizer"] == "auto"
    assert "lr0" not in arguments and "momentum" not in arguments
