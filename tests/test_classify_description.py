"""What is said of a classification run before it starts: its name, and the plan of mode=check, without a network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from classify_runs import make_set, overrides

import hsr_train
from hsr_train.config.schema import ClassifyExperiment
from hsr_train.data.class_set import ClassificationSet
from hsr_train.engines.classification import published
from hsr_train.engines.classification.description import run_name
from hsr_train.engines.classification.models import build
from hsr_train.engines.detection import weights as detection_weights
from hsr_train.run.naming import MOST_CHARACTERS


def name_of(*words: str, fold: int | None = 0, name: str = "fruit") -> str:
    experiment = hsr_train.compose(["task=classify", "gpu_tier=cpu", "data.raw=fruit/raw", *words])
    assert isinstance(experiment, ClassifyExperiment)
    return run_name(experiment, ClassificationSet(Path("fruit"), Path("fruit"), name, ["a", "b"], {}, fold))


@pytest.mark.parametrize(
    ("words", "middle"),
    [
        ([], ""),
        (["train.batch=32"], "_batch_32"),
        (["train.epochs=5", "model=resnet18", "train.batch=16"], "_model_resnet18_batch_16_epochs_5"),
        (["model.weights=runs/old one/weights/best.pt"], "_weights_best"),
        (["train.freeze=backbone", "train.ema=0.99"], "_freeze_backbone_ema_0.99"),
        (["train.ema=null"], "_ema_none"),
        (["train.label_smoothing=0.1", "train.class_weights=balanced"], "_label_smoothing_0.1_class_weights_balanced"),
        (["trainer=mixed_precision", "trainer.amp_dtype=bfloat16"], "_trainer_mixed_precision_amp_dtype_bfloat16"),
        (["trainer=dp", "trainer.noise_multiplier=1.1"], "_trainer_dp_noise_1.1"),
        (["optimizer=classify_sgd", "optimizer.schedule=step"], "_optimizer_SGD_schedule_step"),
        (["augmentation=classify_strong", "augmentation.mixup=0.2"], "_mixup_0.2_augmentation_strong"),
        (["preset=classify_demo"], "_preset_demo"),
        (["train.compile=true", "trainer.gradient_accumulation_steps=2"], "_accumulation_2_compile_true"),
        (["train.workers=2", "train.device=cpu", "output_dir=x", "data.fold=1", "tensorboard.serve=false"], ""),
        (["data.on_bad=skip"], "_on_bad_skip"),
    ],
)
def test_name_holds_every_typed_key_that_changes_training(words: list[str], middle: str) -> None:
    assert name_of(*words) == f"fruit{middle}_fold_0"


def test_name_does_not_depend_on_the_order_of_typing() -> None:
    assert name_of("train.ema=0.9", "train.batch=8") == name_of("train.batch=8", "train.ema=0.9")


def test_long_name_is_cut_and_still_tells_runs_apart() -> None:
    many = ["train.label_smoothing=0.1", "train.class_weights=balanced", "optimizer.weight_decay=0.001",
            "optimizer.warmup_epochs=2", "augmentation.brightness=0.3", "augmentation.contrast=0.3"]  # fmt: skip
    names = [name_of(*many, f"augmentation.saturation={x}", fold=3) for x in (0.1, 0.2)]
    assert len(set(names)) == 2
    for name in names:
        assert (
            len(name) <= MOST_CHARACTERS and name.startswith("fruit_label_smoothing_0.1") and name.endswith("_fold_3")
        )
    assert len(name_of(name="f" * 300, fold=None)) == MOST_CHARACTERS


def no_network(*args: object, **kwargs: object) -> None:
    raise AssertionError("mode=check asked the network")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_set(tmp_path / "colours", n_train=2, n_val=1)


def plan(data: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], **more: object) -> str:
    hsr_train.execute(hsr_train.compose(overrides(data, tmp_path / "out", cache, mode="check", **more)))
    return capsys.readouterr().out


@pytest.mark.parametrize("weights", ["auto", "pretrained"])
def test_check_downloads_nothing_and_says_where_weights_would_come_from(
    weights: str, data: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(published, "_answer", no_network)
    said = plan(data, tmp_path, shared_cache, capsys, model__weights=weights)
    assert "training would download https://download.pytorch.org/models/squeezenet1_1-" in said
    assert "head: new -> 3 classes" in said and not (tmp_path / "torch").exists()


def test_check_of_a_detector_downloads_nothing(
    small_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection_weights, "_download", no_network)
    words = ["mode=check", "gpu_tier=cpu", f"data.path={small_set}", f"data.cache_dir={tmp_path}", "train.device=cpu"]
    hsr_train.execute(hsr_train.compose([*words, "model=yolov8n"]))
    assert "training would download https://github.com/ultralytics/assets/" in capsys.readouterr().out


def test_check_says_that_the_head_is_replaced_and_what_else_was_typed(
    data: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "published.pth"
    torch.save(build("squeezenet1_1", 7).state_dict(), file)
    typed = {"model__weights": file, "train__freeze": "backbone", "train__ema": 0.99, "augmentation": "classify_strong"}
    said = plan(data, tmp_path, shared_cache, capsys, **typed)
    assert "head: replaced: 7 outputs in the weights -> 3 classes" in said
    assert "trainer standard, freeze backbone, ema 0.99" in said
    assert "augmentation: " in said and "policy trivial" in said and "cutmix" in said and "flipud" not in said


def test_check_says_that_a_head_that_fits_is_taken(
    data: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "ours.pth"
    torch.save(build("squeezenet1_1", 3).state_dict(), file)
    assert "head: 3 classes, as in the weights" in plan(data, tmp_path, shared_cache, capsys, model__weights=file)
