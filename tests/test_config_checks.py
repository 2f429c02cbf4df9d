from __future__ import annotations

from pathlib import Path

import pytest
from fake_machines import gpu, machine

from hsr_train import hardware
from hsr_train.config.compose import compose
from hsr_train.errors import InputError, Problem


@pytest.fixture(autouse=True)
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine(gpu(0, 12)))


def problems(*overrides: str, config_dir: Path | None = None) -> dict[str, Problem]:
    with pytest.raises(InputError) as caught:
        compose(list(overrides), config_dir)
    return {p.key: p for p in caught.value.problems}


# What is typed, the key that is blamed, words of the message, and what to type instead.
REFUSALS = [
    # Misspelt keys and choices.
    ("train.epoch=3", "train.epoch", "unknown key", "train.epochs=3"),
    ("optimiser.lr0=1", "optimiser.lr0", "unknown key", "optimizer.lr0=1"),
    ("optimiser=sgd", "optimiser", "unknown key", "optimizer=sgd"),
    ("epochs=3", "epochs", "unknown key", "train.epochs=3"),
    ("lr=0.1", "lr", "unknown key", "optimizer.lr0=0.1"),
    ("batch_size=8", "batch_size", "unknown key", "train.batch=8"),
    ("+train.foo=1", "train.foo", "unknown key", ""),
    ("++train.epoch=1", "train.epoch", "unknown key", "train.epochs"),
    ("train={epoch:3}", "train.epoch", "unknown key", "train.epochs"),
    ("sweep=x", "sweep", "must be one of detect_augmentation,", "sweep="),
    ("hydra.runn=x", "hydra.runn", "unknown key", "--cfg hydra"),
    ("gpu_tier=hihg", "gpu_tier", "must be one of auto, cpu, high", "gpu_tier=high"),
    ("preset=competitoin", "preset", "must be one of", "preset=competition"),
    ("preset=null", "preset", "must be one of", "preset="),
    ("task=detekt", "task", "must be one of classify, detect", "task=detect"),
    ("task=segment", "task", "must be one of classify, detect", "task=classify"),
    ("model=resnet18", "model.name", "is no detector; there are yolov5", "task=classify"),
    ("model=vgg16", "model", "no detector of this program; there are yolov8{n,s,m,l,x}, yolo11", "model=yolov8n"),
    ("model=yolo8n", "model", "must be one of", "model=yolov8n"),
    ("model=yolov8n.pt", "model", "must be one of", "model=yolov8n"),
    ("model=runs/best.pt", "model", "is a file, and not an architecture", "model.weights=runs/best.pt"),
    ("model.name=resnet18", "model.name", "is no detector; there are yolov5", "model=yolov8n"),
    ("model.name=yolov8q", "model.name", "is no known detector", "model.name=yolov8"),
    ("hydra/launcher=x", "hydra/launcher", "must be one of basic", "hydra/launcher=basic"),
    # Grammar.
    ("foo", "foo", "neither KEY=VALUE nor an option", "foo=VALUE"),
    (
        "train.epochs=tag(log,intervall(1,9))",
        "train.epochs",
        "there is no function intervall; there are interval, choice",
        "'train.epochs=tag(log,interval(1,9))'",
    ),
    ("model.name=resnet(1)", "model.name", "there is no function resnet", "'model.name=\"resnet(1)\"'"),
    ("train.epochs=interval(1)", "train.epochs", "is no proper call: missing", "interval(A,B)"),
    ("train.epochs=3(", "train.epochs", "without quotes", "'train.epochs=\"3(\"'"),
    ("train.device=0,1", "train.device", "several values need --multirun", "train.device=[0,1]"),
    ("~train.epochs", "train.epochs", "nothing can be removed", "train.epochs=VALUE"),
    ("~preset", "preset", "nothing can be removed", "preset=VALUE"),
    ("+train.epochs=3", "train.epochs", "needs no plus sign", "train.epochs=3"),
    ("foo@bar=3", "configuration", "config group 'foo' does not exist", ""),
    # Types.
    ("train.epochs=many", "train.epochs", "must be a whole number", ""),
    ("train.epochs=1.5", "train.epochs", "must be a whole number", ""),
    ("train.epochs=true", "train.epochs", "must be a whole number", ""),
    ("train.epochs=null", "train.epochs", "must be a whole number", ""),
    ("train.epochs=???", "train.epochs", "has no value", "train.epochs="),
    ("train.val_batch=x", "train.val_batch", "must be a whole number or null", ""),
    ("train.amp=perhaps", "train.amp", "must be true or false", ""),
    ("train=3", "train", "is a section of keys", "train.KEY=VALUE"),
    ("export.formats=onnx", "export.formats", "must be a list", "export.formats=[onnx]"),
    # Ranges and choices.
    ("train.epochs=0", "train.epochs", "must be at least 1", "train.epochs=50"),
    ("optimizer.lr0=-1", "optimizer.lr0", "must be above 0 and at most 1", "optimizer.lr0=0.001"),
    ("optimizer.lr0=nan", "optimizer.lr0", "must be above 0", ""),
    ("optimizer.warmup_epochs=inf", "optimizer.warmup_epochs", "finite", ""),
    ("augmentation.mosaic=1.5", "augmentation.mosaic", "must be at least 0 and at most 1", ""),
    ("mode=trian", "mode", "must be one of train, check", "mode=train"),
    ("optimizer.name=adamq", "optimizer.name", "must be one of AdamW", "optimizer.name=Adam"),
    ("optimizer.lr0=null", "optimizer.lr0", "is needed with optimizer.name=AdamW", "optimizer.lr0="),
    ("data.split=dev", "data.split", "must be one of train, val, test", "data.split=val"),
    ("data.path=", "data.path", "has no value", "data.path=my/data.yaml"),
    ("mode=split", "data.path", "the built-in set has its own train and val", "data.path=my/data.yaml"),
    ("data.fold=0", "data.fold", "the built-in set has no folds", "after mode=split"),
    ("data.fold=every", "data.fold", "must be a fold from 0, all, or null", "data.fold=0"),
    ("data.fold=-1", "data.fold", "must be a fold from 0, all, or null", "data.fold=0"),
    ("data.folds=5", "data.folds", "has no effect without mode=split", "then data.fold=all"),
    ("data.groups=level:1", "data.groups", "has no effect without mode=split", "first mode=split"),
    ("data.scheme=hold", "data.scheme", "must be one of kfold, holdout", "data.scheme=holdout"),
    ("data.ratio=[0.8,0.1]", "data.ratio", "three shares", "data.ratio=[0.7,0.15,0.15]"),
    ("data=yolo", "data.path", "has no value", "data.path=my/data.yaml"),
    ("train.batch=0", "train.batch", "must be auto, probe or at least 1", "train.batch=auto"),
    ("train.batch=many", "train.batch", "must be auto, probe or at least 1", "train.batch=auto"),
    ("train.cache=tape", "train.cache", "must be one of auto, ram, disk, none", "train.cache=auto"),
    ("train.multi_scale=1.5", "train.multi_scale", "between 0 and 1", "train.multi_scale=0.5"),
    ("train.imgsz=650", "train.imgsz", "multiple of 32", "train.imgsz=640  (640 or 672)"),
    ("train.imgsz=16", "train.imgsz", "at least 32", ""),
    ("train.freeze=[1,-2]", "train.freeze", "number of modules", "train.freeze=10"),
    ("train.freeze=-1", "train.freeze", "number of modules", "train.freeze=10"),
    ("train.freeze=true", "train.freeze", "number of modules", "train.freeze=10"),
    ("tensorboard.serve=maybe", "tensorboard.serve", "must be auto, true or false", "tensorboard.serve=auto"),
    ("tensorboard.port=0", "tensorboard.port", "at least 1 and at most 65535", "tensorboard.port=6006"),
    ("export.formats=[onxx]", "export.formats", "known formats are onnx, torchscript", "export.formats=[onnx]"),
    ("adjust.at_most={train.imgsz:3}", "adjust.at_most", "no such entry yet", "+adjust.at_most={train.imgsz:3}"),
    ("+adjust.at_most={train.imgzs:3}", "adjust.at_most: train.imgzs", "unknown key", "train.imgsz"),
    ("adjust.model_steps=9", "adjust.model_steps", "at most 4", ""),
    # The device.
    ("train.device=cuda:7", "train.device", "GPU 7 is not there", "train.device=0"),
    ("train.device=gpu", "train.device", "must be auto, cpu, a GPU number", "train.device="),
]


@pytest.mark.parametrize(("typed", "key", "words", "remedy"), REFUSALS, ids=[r[0] for r in REFUSALS])
def test_refusal_names_key_fault_and_remedy(typed: str, key: str, words: str, remedy: str) -> None:
    found = problems(typed)
    assert list(found) == [key]
    assert words in str(found[key]), str(found[key])
    assert remedy in found[key].remedy


def test_refusal_of_close_mosaic_typed_not_below_the_epochs() -> None:
    found = problems("train.close_mosaic=20", "train.epochs=20")
    assert "must be below train.epochs=20" in str(found["train.close_mosaic"])
    assert found["train.close_mosaic"].remedy == "train.close_mosaic=4"


@pytest.mark.parametrize("key", ["lr0", "momentum"])
def test_refusal_of_a_rate_typed_for_the_automatic_optimizer(key: str) -> None:
    found = problems("optimizer=auto", f"optimizer.{key}=0.5")
    assert "has no effect with optimizer=auto" in str(found[f"optimizer.{key}"])
    assert f"optimizer.{key}=0.5" in found[f"optimizer.{key}"].remedy


@pytest.mark.parametrize("mode", ["validate", "predict", "export"])
@pytest.mark.parametrize("weights", ["auto", "pretrained", "scratch"])
def test_refusal_of_verbs_without_a_weights_file(mode: str, weights: str) -> None:
    extra = {"predict": ["data.path=photos"], "export": ["export.formats=[onnx]"]}.get(mode, [])
    found = problems(f"mode={mode}", f"model.weights={weights}", *extra)
    assert list(found) == ["model.weights"]
    assert "best.pt" in found["model.weights"].remedy
    compose([f"mode={mode}", "model.weights=best.pt", *extra])


def test_refusal_of_what_does_not_go_with_folds() -> None:
    divide = ["mode=split", "data.path=my/data.yaml"]
    assert list(problems(*divide, "data.fold=1", "data.val_fraction=0.2")) == ["data.val_fraction", "data.fold"]
    assert list(problems("data.path=my/data.yaml", "data.fold=1", "data.val_fraction=0.2")) == ["data.val_fraction"]
    compose([*divide, "data.folds=3", "data.groups=level:1", "data.scheme=holdout"])


def test_fold_all_is_a_cross_validation_and_a_number_is_not() -> None:
    words = ["data.path=my/data.yaml"]
    assert compose([*words, "data.fold=all"]).is_cross_validation
    assert not compose([*words, "data.fold='2'"]).is_cross_validation
    assert compose([*words, "data.fold='2'"]).data.fold == 2
    assert compose(words).data.fold is None and not compose(words).is_cross_validation


def test_refusal_of_predict_without_pictures_and_export_without_formats() -> None:
    assert list(problems("mode=predict", "model.weights=best.pt")) == ["data.path"]
    assert list(problems("mode=export", "model.weights=best.pt")) == ["export.formats"]


def test_all_problems_come_in_one_message_whatever_their_kind() -> None:
    found = problems(
        "train.epoch=3", "gpu_tier=hihg", "train.batch=many", "optimizer.lr0=-1", "model.name=resnet18",
        "export.formats=x",
    )  # fmt: skip
    assert set(found) == {
        "train.epoch", "gpu_tier", "train.batch", "optimizer.lr0", "model.name", "export.formats",
    }  # fmt: skip


def test_fault_in_a_file_leaves_the_choices_of_other_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "broken.yaml").write_text("train: [\n")
    (tmp_path / "preset" / "odd.yaml").write_text("# @package _global_\ntrain: {epoch: 3}\n")
    found = problems("preset=competitoin", "train.epoch=3", config_dir=tmp_path)
    assert set(found) == {"preset", "train.epoch"}
    assert found["preset"].remedy == "preset=competition"
    assert "train.epochs" in str(problems("preset=odd", config_dir=tmp_path)["preset/odd.yaml: train.epoch"])


def test_all_unreadable_overrides_come_in_one_message() -> None:
    assert set(problems("a(b", "c=d)", "train.epochs=3")) == {"a(b", "c"}


def test_device_that_is_not_there_is_reported_with_the_rest() -> None:
    assert set(problems("train.device=cuda:7", "train.epochs=0")) == {"train.device", "train.epochs"}


# Forms that YOLO users type, and what they become.
FORMS = [
    ("train.cache=True", "train.cache", "ram"),
    ("train.cache=False", "train.cache", "none"),
    ("train.cache=RAM", "train.cache", "ram"),
    ("train.cache=disk", "train.cache", "disk"),
    ("train.batch=-1", "train.batch", "auto"),
    ("train.batch='12'", "train.batch", 12),
    ("train.multi_scale=true", "train.multi_scale", 0.5),
    ("train.multi_scale=False", "train.multi_scale", 0.0),
    ("train.multi_scale=0.25", "train.multi_scale", 0.25),
    ("train.multi_scale=1", "train.multi_scale", 1.0),
    ("train.device=0", "train.device", 0),
    ("train.device='0'", "train.device", 0),
    ("train.device=[0]", "train.device", 0),
    ("train.device=[0,1]", "train.device", [0, 1]),
    ("train.device='0,1'", "train.device", [0, 1]),
    ("train.device=cuda:1", "train.device", 1),
    ("train.device=CPU", "train.device", "cpu"),
    ("train.device=auto", "train.device", "auto"),
    ("train.freeze=10", "train.freeze", 10),
    ("train.freeze=[0,1,5]", "train.freeze", [0, 1, 5]),
    ("train.freeze=null", "train.freeze", None),
    ("train.freeze=backbone", "train.freeze", "backbone"),
    ("train.freeze=[backbone,12]", "train.freeze", ["backbone", 12]),
    ("train.freeze='7'", "train.freeze", 7),
    ("optimizer.name=adamw", "optimizer.name", "AdamW"),
    ("optimizer.name=RMSprop", "optimizer.name", "RMSProp"),
    ("optimizer.lr0=1", "optimizer.lr0", 1.0),
    ("tensorboard.serve=True", "tensorboard.serve", True),
    ("tensorboard.serve=auto", "tensorboard.serve", "auto"),
    ("export.formats=[onnx,torchscript]", "export.formats", ["onnx", "torchscript"]),
]


def test_forms_that_yolo_users_type_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: machine(gpu(0, 12), gpu(1, 12)))
    waiting = list(FORMS)
    while waiting:  # One of each key at a time.
        row = {key: (typed, value) for typed, key, value in reversed(waiting)}
        waiting = [form for form in waiting if form[0] not in {typed for typed, _ in row.values()}]
        experiment = compose([typed for typed, _ in row.values()])
        for key, (typed, value) in row.items():
            section, name = key.split(".")
            found = getattr(getattr(experiment, section), name)
            assert (found, type(found)) == (value, type(value)), typed


def test_close_mosaic_that_nobody_typed_is_shortened_to_a_fifth() -> None:
    e = compose(["train.epochs=12"])
    assert e.train.close_mosaic == 2
    assert ("train.close_mosaic", 2) in [(d.key, d.value) for d in e.origin.decisions]
    assert compose(["train.epochs=50"]).train.close_mosaic == 10
    assert compose(["train.epochs=12", "train.close_mosaic=11"]).train.close_mosaic == 11
    assert compose(["train.epochs=1", "train.close_mosaic=0"]).train.close_mosaic == 0


def test_automatic_optimizer_drops_the_rate_of_a_preset_and_says_so() -> None:
    e = compose(["preset=demo", "optimizer=auto"])
    assert (e.optimizer.name, e.optimizer.lr0, e.optimizer.momentum) == ("auto", None, None)
    assert "0.003" in next(d.reason for d in e.origin.decisions if d.key == "optimizer.lr0")


# A file of the user's that is at fault: its text, and what the message says.
FILES = [
    ("# @package _global_\ntrain: {epoch: 3}\n", "preset/ours.yaml: train.epoch: unknown key", "train.epochs"),
    (
        "# @package _global_\ntrain: {epochs: many}\n",
        "preset/ours.yaml: train.epochs: many: must be a whole number",
        "",
    ),
    ("# @package _global_\ntrain: {epochs: 0}\n", "train.epochs: 0: must be at least 1", ""),
    ("# @package _global_\ntrain: [\n", "ours.yaml:3: is not YAML", ""),
    ("# @package _global_\n- a\n", "preset/ours.yaml: must hold keys with values", ""),
    ("train: {epochs: 3}\n", "preset/ours.yaml: preset", "# @package _global_"),
    ("", "preset/ours.yaml: preset", "# @package _global_"),
    (
        "# @package _global_\ndefaults:\n  - override /model: yolov99n\n",
        "model: yolov99n: must be one of",
        "model=yolov",
    ),
    ("# @package _global_\ndefaults:\n  - override /modell: yolov8n\n", "modell", ""),
    ("# @package _global_\ndata: {path: '${nowhere}'}\n", "nowhere", ""),
]


@pytest.mark.parametrize(("text", "words", "remedy"), FILES, ids=[f[1] for f in FILES])
def test_fault_in_a_file_names_the_file_or_the_key(tmp_path: Path, text: str, words: str, remedy: str) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "ours.yaml").write_text(text)
    (problem,) = problems("preset=ours", config_dir=tmp_path).values()
    assert words in str(problem)
    assert remedy in problem.remedy


def test_fault_in_a_file_that_is_not_utf8_names_it(tmp_path: Path) -> None:
    (tmp_path / "preset").mkdir()
    (tmp_path / "preset" / "ours.yaml").write_bytes(b"# @package _global_\ndata: {path: '\xff'}\n")
    (problem,) = problems("preset=ours", config_dir=tmp_path).values()
    assert problem.key == str(tmp_path / "preset" / "ours.yaml")
    assert "not UTF-8" in problem.allowed


def test_config_dir_and_config_name_that_do_not_exist(tmp_path: Path) -> None:
    assert "is not a folder" in str(problems(config_dir=tmp_path / "nowhere")["--config-dir"])
    with pytest.raises(InputError, match="--config-name: nothing: there is no such file"):
        compose([], None, "nothing")
