from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from fake_machines import machine

from hsr_train import hardware
from hsr_train.config.compose import compose
from hsr_train.config.saved import dump, load
from hsr_train.config.schema import DetectExperiment
from hsr_train.errors import InputError, Problem


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", machine)


def save(folder: Path, experiment: DetectExperiment, state: str = "interrupted") -> Path:
    """Write what of a run `resume=` reads."""
    (folder / "weights").mkdir(parents=True)
    (folder / "config.yaml").write_text(dump(experiment), encoding="utf-8")
    (folder / "manifest.json").write_text("{}")
    (folder / "weights" / "last.pt").touch()
    (folder / "status.json").write_text(json.dumps({"state": state, "mode": experiment.mode}))
    return folder


@cache
def demo() -> DetectExperiment:
    return compose(["preset=demo", "train.close_mosaic=14", "optimizer=sgd", "data.path=my set/ü.yaml"])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return save(tmp_path / "outputs" / "detect" / "demo_20261120_143000", demo())


def problems(*overrides: str) -> dict[str, Problem]:
    with pytest.raises(InputError) as caught:
        compose(list(overrides))
    return {p.key: p for p in caught.value.problems}


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["preset=fast", "gpu_tier=high"],
        ["optimizer=auto", "train.freeze=[0,1]", "export.formats=[onnx]"],
        ['data.path=a ${b} "c" ü: #.yaml', "model.weights_dirs=[/a,/b c]", "train.device=cpu"],
    ],
)
def test_dump_and_load_are_inverse(overrides: list[str], tmp_path: Path) -> None:
    experiment = compose(overrides)
    (tmp_path / "config.yaml").write_text(dump(experiment), encoding="utf-8")
    for read in (load(dump(experiment)), load(tmp_path / "config.yaml")):
        assert read.origin.overrides == []
        read.origin = experiment.origin
        assert read == experiment


def test_dump_holds_everything_but_the_origin() -> None:
    assert "origin" not in dump(compose([]))
    assert dump(compose([])).startswith("task: detect\nmode: train\npreset: competition\ngpu_tier: cpu\n")


def test_load_names_file_and_key_of_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    text = dump(compose([])).replace("epochs: 50", "epochs: many").replace("patience:", "patence:")
    path.write_text(text.replace("  mosaic: 1.0", "  mosaic: '1.0'") + "extra: 1\n")
    with pytest.raises(InputError) as caught:
        load(path)
    found = {p.key: p for p in caught.value.problems}
    assert set(found) == {f"{path}: {key}" for key in ("train.epochs", "train.patence", "augmentation.mosaic", "extra")}
    assert "train.patience" in found[f"{path}: train.patence"].remedy


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "task"),
        (b"- a\n", "task"),
        (b"task: [\n", "is not YAML"),
        (b"task: segment\n", "must be one of detect, classify"),
        (b"task: '\xff'\n", "is not YAML"),
        (b"task: detect\ntrain: 3\n", "train: 3: must be a section"),
        (b"!!python/object:os.system {}\n", "is not YAML"),
    ],
)
def test_load_refuses_what_is_no_saved_configuration(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_load_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "config.yaml")


def test_resume_takes_the_record_and_nothing_of_today(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "detect", lambda: pytest.fail("the hardware was asked"))
    e = compose([f"resume={run}"])
    assert (e.preset, e.gpu_tier, e.mode, e.optimizer.name, e.optimizer.lr0) == ("demo", "cpu", "train", "SGD", 0.003)
    assert e.train.close_mosaic == 14  # As typed then; no rule is applied anew.
    assert e.data.path == "my set/ü.yaml"
    assert e.origin.resume_from == str(run)
    assert e.origin.decisions == []
    assert e.origin.config_yaml == (run / "config.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("inside", ["", "weights/last.pt", "weights", "config.yaml"])
def test_resume_takes_a_directory_or_anything_in_it(run: Path, inside: str) -> None:
    assert compose([f"resume={run / inside}"]).origin.resume_from == str(run)


def test_resume_last_looks_below_the_typed_output_dir(run: Path) -> None:
    outputs = run.parents[1]
    e = compose(["resume=last", f"output_dir={outputs}"])
    assert (e.origin.resume_from, e.output_dir) == (str(run), "outputs")


def test_resume_lays_what_may_change_on_the_record(run: Path) -> None:
    e = compose(
        [
            f"resume={run}", "train.workers=0", "train.device=cpu", "train.cache=True", "train.val_batch=4",
            "train.save_period=1",
            "tensorboard.enabled=false", "export.formats=[onnx]", "data.path=/moved (here)/d.yaml",
            "data.cache_dir=/tmp/c",
        ]
    )  # fmt: skip
    t = e.train
    assert (t.workers, t.device, t.cache, t.val_batch, t.save_period) == (0, "cpu", "ram", 4, 1)
    assert (e.tensorboard.enabled, e.export.formats) == (False, ["onnx"])
    assert (e.data.path, e.data.cache_dir) == ("/moved (here)/d.yaml", "/tmp/c")


def test_resume_allows_to_repeat_what_the_run_has(run: Path) -> None:
    assert compose([f"resume={run}", "train.epochs=18", "preset=demo"]).train.epochs == 18


@pytest.mark.parametrize(
    ("typed", "key", "words", "remedy"),
    [
        ("train.epochs=9", "train.epochs", "the run has 18, and can only be extended", "leave it out"),
        ("train.imgsz=96", "train.imgsz", "the run has 160, and may change only data.cache_dir", "train.imgsz=96"),
        ("train.batch=4", "train.batch", "the run has 8", "without resume="),
        ("optimizer.lr0=0.1", "optimizer.lr0", "the run has 0.003", "without resume="),
        ("output_dir=other", "output_dir", "the run has outputs", "without resume="),
        ("preset=fast", "preset", "the run has demo", "without resume="),
        ("gpu_tier=high", "gpu_tier", "the run has cpu", "without resume="),
        ("mode=validate", "mode", "the run has train", "without resume="),
        ("model=yolov8s", "model", "groups and sections take no part in resume=", "model=yolov8s"),
        ("augmentation=strong", "augmentation", "groups and sections take no part", "without resume="),
        ("train={workers:0}", "train", "groups and sections take no part", "without resume="),
        ("train.worker=3", "train.worker", "unknown key", "train.workers=3"),
        ("epochs=3", "epochs", "unknown key", "train.epochs=3"),
        ("train.val_batch=x", "train.val_batch", "must be a whole number or null", ""),
        ("train.workers=-1", "train.workers", "must be at least 0", ""),
        ("train.workers=1,2", "train.workers", "only KEY=VALUE goes with resume=", ""),
        ("~train.workers", "train.workers", "only KEY=VALUE goes with resume=", ""),
    ],
)
def test_resume_refuses_what_would_make_another_experiment(
    run: Path, typed: str, key: str, words: str, remedy: str
) -> None:
    found = problems(f"resume={run}", typed)
    assert list(found) == [key]
    assert words in str(found[key])
    assert remedy in found[key].remedy


def test_resume_reports_all_refusals_at_once(run: Path) -> None:
    found = problems(f"resume={run}", "train.epochs=9", "model=yolov8s", "train.val_batch=x", "tensorboard.port=0")
    assert set(found) == {"train.epochs", "model", "train.val_batch", "tensorboard.port"}


def test_resume_of_a_damaged_record_names_it(run: Path) -> None:
    with (run / "config.yaml").open("a") as file:
        file.write("surprise: 1\n")
    assert f"{run / 'config.yaml'}: surprise" in problems(f"resume={run}")


def test_resume_of_nothing_says_so(tmp_path: Path) -> None:
    assert "resume" in problems(f"resume={tmp_path / 'nowhere'}")
    assert "resume" in problems("resume=last", f"output_dir={tmp_path}")
