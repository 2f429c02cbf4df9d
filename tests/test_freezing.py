"""`train.freeze`: which modules it means, and that they stay as they are, batch norms included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from detection_runs import last_state, quick_pictures, train

from hsr_train.engines.detection.freezing import described, frozen_modules, layers_of
from hsr_train.engines.detection.weights import Weights
from hsr_train.errors import InputError

NETWORKS = {name: layers_of(Weights("scratch", name)) for name in ("yolov8n", "yolo11n")}


@pytest.mark.parametrize(
    ("freeze", "network", "meant"),
    [
        (None, "yolov8n", ""),
        (0, "yolov8n", ""),
        ([], "yolov8n", ""),
        (3, "yolov8n", "model.0 to model.2"),
        ([5, 0, 1], "yolov8n", "model.0 to model.1, model.5"),
        ("backbone", "yolov8n", "model.0 to model.9"),
        ("backbone", "yolo11n", "model.0 to model.10"),
        (["backbone", 12, "model.22.cv2"], "yolov8n", "model.0 to model.9, model.12, model.22.cv2"),
        ("model.1", "yolov8n", "model.1"),
        ("model.[0-9].", "yolov8n", "model.0 to model.9"),
        ("model.1*", "yolov8n", "model.1, model.12, model.15 to model.16, model.18 to model.19"),
        (["model.2", "model.2.cv1"], "yolov8n", "model.2"),
        ("model.[01].bn", "yolov8n", "model.0.bn, model.1.bn"),
    ],
)
def test_numbers_names_and_patterns_mean_modules(freeze: Any, network: str, meant: str) -> None:
    assert described(frozen_modules(freeze, *NETWORKS[network])) == meant


def test_long_lists_are_cut() -> None:
    assert described(frozen_modules("*.bn", *NETWORKS["yolov8n"])).endswith("model.4.m.0.cv1.bn and 49 more")


@pytest.mark.parametrize("freeze", ["head", "model.10", "model.23", "model.0.conv.weight", ["backbone", "back"]])
def test_unknown_name_is_refused_with_what_there_is(freeze: Any) -> None:
    with pytest.raises(InputError, match=r"no module with weights is called") as refusal:
        frozen_modules(freeze, *NETWORKS["yolov8n"])
    for word in ("backbone (model.0 to model.9)", "model.9 (SPPF), model.12 (C2f)", "model.22.cv2", "model.1*"):
        assert word in str(refusal.value)


@pytest.mark.parametrize("freeze", ["model.*", "*", ["backbone", "model.1?", "model.2?"], 23, [23], list(range(23))])
def test_freezing_everything_is_refused(freeze: Any) -> None:
    with pytest.raises(InputError, match="modules 0 to 22, and at least one must be trained"):
        frozen_modules(freeze, *NETWORKS["yolov8n"])


def test_frozen_modules_keep_weights_and_statistics_and_are_said(
    small_set: Path, tmp_path: Path, shared_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_checkpoint(tmp_path / "mine.pt")
    before = torch.load(file, weights_only=False)["model"].float().state_dict()
    once = {"model": None, "model__weights": file, "train__epochs": 1, "train__close_mosaic": 0}
    with quick_pictures():
        run = train(
            small_set, tmp_path / "out", shared_cache, **once, train__freeze="[model.2,model.12.cv1.bn]"
        ).run_dir
    assert run is not None
    state = last_state(run)
    for network in (state["model"], state["ema"]):
        same = {key for key, value in network.items() if torch.equal(value, before[key])}
        whole = {key for key in network if key.startswith(("model.2.", "model.12.cv1.bn."))}
        assert whole <= same and any(key.endswith("running_mean") for key in whole)
        learning = (
            "model.3.bn.running_mean",
            "model.12.cv1.conv.weight",
            "model.12.cv2.bn.running_mean",
            "model.0.conv.weight",
        )
        assert same.isdisjoint(learning)
    expected = "Frozen: model.2, model.12.cv1.bn, 7,616 of 3,011,238 parameters; their 5 batch norms keep"
    assert expected in caplog.text
    stored = torch.load(run / "weights" / "best.pt", weights_only=False)["train_args"]["freeze"]
    assert stored == ["2", "12.cv1.bn"], "as ultralytics takes it"


def test_unknown_name_is_refused_before_a_run(small_set: Path, tmp_path: Path, shared_cache: Path) -> None:
    with pytest.raises(InputError, match=r"train.freeze: neck: no module"):
        train(small_set, tmp_path / "out", shared_cache, train__freeze="neck")
    assert not (tmp_path / "out").exists()
