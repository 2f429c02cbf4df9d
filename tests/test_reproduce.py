"""reproduce=: a run once more from its own record, its drift told before, its verdict after."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml
from detection_runs import command, quick_pictures, read_json, resume, rows, train
from ultralytics.models.yolo.detect import DetectionValidator
from yolo_sets import make_yolo_set, write_picture

import hsr_train
from hsr_train.cli import main
from hsr_train.config import paths
from hsr_train.engines.base import Result
from hsr_train.engines.detection.loop import Loop
from hsr_train.errors import InputError, NotReproducedError
from hsr_train.recovery import DivergedError
from hsr_train.run.changes import GPU_MEMORY, RESUMED, Change, read_changes, write_changes
from hsr_train.run.directory import RunDirectory
from hsr_train.run.reproduction import CUDA_BOUND
from hsr_train.run.status import StatusWriter

QUICK = {"train__epochs": 2, "train__close_mosaic": 0, "tensorboard__enabled": "false", "train__save_period": 0}
IMAGE = "images/train/0003.png"


@pytest.fixture(scope="module", autouse=True)
def _no_checkout() -> Iterator[None]:
    """Whoever edits the code while tests run makes no drift; what git says is the matter of test_drift.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsr_train.run.manifest.git_state", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set of lossless pictures, so that one pixel is one pixel; not to be changed."""
    yaml_path = make_yolo_set(tmp_path_factory.mktemp("original set") / "set", n_train=6, n_val=2)
    for picture in yaml_path.parent.rglob("*.jpg"):
        cv2.imwrite(str(picture.with_suffix(".png")), cv2.imread(str(picture)))
        picture.unlink()
    return yaml_path


@pytest.fixture(scope="module")
def original(data: Path, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The directory of a finished run of two epochs; not to be changed."""
    with quick_pictures():
        return folder_of(train(data, tmp_path_factory.mktemp("originals"), shared_cache, **QUICK))


@pytest.fixture
def copied(data: Path, tmp_path: Path) -> Path:
    """The data.yaml of a copy of the set, to be changed."""
    return Path(shutil.copytree(data.parent, tmp_path / "moved (set)")) / "data.yaml"


@pytest.fixture
def record(original: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(original, tmp_path / "record"))


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[int], list[str]]:
    """Return what was logged so far at a level or above."""
    caplog.set_level(logging.INFO, "hsr_train")
    return lambda level: [r.getMessage() for r in caplog.records if r.levelno >= level]


def folder_of(result: Result) -> Path:
    assert result.run_dir is not None
    return result.run_dir


def reproduce(run: Path, out: Path, *more: str) -> Path:
    """Reproduce a run in this process and return the new directory."""
    with quick_pictures():
        return folder_of(hsr_train.execute(hsr_train.compose([f"reproduce={run}", f"output_dir={out}", *more])))


def problems(*typed: str) -> dict[str, str]:
    """Return the key of every problem with its text."""
    with pytest.raises(InputError) as caught:
        hsr_train.execute(hsr_train.compose(list(typed)))
    assert all(p.remedy or p.allowed for p in caught.value.problems)
    return {p.key: str(p) for p in caught.value.problems}


def verdict(run: Path) -> dict[str, Any]:
    return read_json(run / "reproduction.json")


def only_run(out: Path) -> Path:
    (run,) = (out / "detect").iterdir()
    return run


def change_pixel(picture: Path) -> None:
    image = cv2.imread(str(picture))
    image[30, 30] = 255 - image[30, 30]
    cv2.imwrite(str(picture), image)


def change_label(picture: Path) -> None:
    label = Path(str(picture).replace("images", "labels")).with_suffix(".txt")
    label.write_text("1 0.5 0.5 0.25 0.25\n")


def add_picture(picture: Path) -> None:
    write_picture(picture.with_name("added.png"), seed=99)


def remove_picture(picture: Path) -> None:
    picture.unlink()


# ---- the same again


def test_reproduction_of_an_unchanged_set_that_moved_is_the_same(
    original: Path, copied: Path, tmp_path: Path, messages: Callable[[int], list[str]]
) -> None:
    run = reproduce(original, tmp_path / "out", f"data.path={copied}", "tensorboard.enabled=true", "on_drift=warn")
    assert run.parent == tmp_path / "out" / "detect" and run.name.startswith("competition_")
    assert (run / "results.csv").read_bytes() == (original / "results.csv").read_bytes()
    found = verdict(run)
    assert (found["verdict"], found["weights"], found["bound"]) == ("same", "same", 0.0)
    assert (found["original"], found["variation"]) == (str(original), [])
    assert (found["epochs_compared"], found["epochs_of_original"], found["original_finished"]) == (2, 2, True)
    assert found["first_difference"] is found["largest_difference"] is found["explanation"] is None
    assert found["metrics"]["original"] == found["metrics"]["reproduction"] != {}
    said = messages(logging.INFO)
    assert said[-1] == (f"Reproduction: same as {original} (2 epochs, every column of results.csv, weights to the bit)")
    assert any(line.startswith("The data moved") and str(copied) in line for line in said)
    assert not any("Drift of data" in line for line in said)
    assert read_json(run / "status.json")["state"] == "completed"
    assert yaml.safe_load((run / "config.yaml").read_text())["reproduce"] == str(original)
    log_lines = (run / "logs" / "train.log").read_text().splitlines()
    assert log_lines[-1].endswith(said[-1]) and any("Reproducing" in line for line in log_lines)


def test_configuration_of_today_takes_no_part(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hsr_train.compose([f"reproduce={original}"])
    conf = Path(shutil.copytree(paths.CONF_DIR, tmp_path / "conf"))
    for file in conf.rglob("*.yaml"):
        file.write_text(file.read_text().replace("0.001", "0.5").replace("lr0", "momentum"))
    monkeypatch.setattr("hsr_train.config.compose.CONF_DIR", conf)
    after = hsr_train.compose([f"reproduce={original}"], config_dir=conf)
    assert after == before
    assert after.optimizer.lr0 == 0.001
    assert after.origin.config_yaml == (original / "config.yaml").read_text()


def test_check_tells_the_drift_and_trains_nothing(
    record: Path, tmp_path: Path, messages: Callable[[int], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_json(record / "manifest.json")
    manifest["packages"]["torch"] = "1.0"
    manifest["environment"]["OMP_NUM_THREADS"] = "77"
    (record / "manifest.json").write_text(json.dumps(manifest))
    words = [f"reproduce={record}", f"output_dir={tmp_path / 'out'}", "mode=check"]
    assert hsr_train.execute(hsr_train.compose(words)).status == "checked"
    drift = [line for line in messages(logging.WARNING) if line.startswith("Drift of")]
    assert f"Drift of packages: torch: 1.0 -> {torch.__version__.split('+')[0]}" in [d.split("+")[0] for d in drift]
    assert any("OMP_NUM_THREADS: 77 ->" in line for line in drift)
    assert "Plan" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# ---- data that are no longer the same


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_pixel, f"{IMAGE}: the image changed"),
        (change_label, f"{IMAGE}: its label file changed"),
        (add_picture, "images/train/added.png: is new in train"),
        (remove_picture, f"{IMAGE}: is gone from train"),
    ],
)
def test_changed_data_are_refused_by_name_before_a_directory_is_made(
    original: Path, copied: Path, tmp_path: Path, change: Callable[[Path], None], named: str
) -> None:
    change(copied.parent / IMAGE)
    found = problems(f"reproduce={original}", f"data.path={copied}", f"output_dir={tmp_path / 'out'}")
    assert list(found) == ["data.path"]
    assert named in found["data.path"] and "on_drift=warn" in found["data.path"]
    assert not (tmp_path / "out").exists()


def test_change_that_keeps_size_and_time_is_noticed(original: Path, copied: Path, tmp_path: Path) -> None:
    """The data are read again: neither size nor modification time is trusted."""
    label = copied.parent / "labels/train/0003.txt"
    words = [f"reproduce={original}", f"data.path={copied}", f"output_dir={tmp_path / 'out'}"]
    hsr_train.execute(hsr_train.compose([*words, "mode=check"]))  # now the index knows the files
    text, stamp = label.read_text(), label.stat()
    label.write_text(("1" if text[0] == "0" else "0") + text[1:])
    os.utime(label, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert f"{IMAGE}: its label file changed" in problems(*words)["data.path"]


def test_warned_drift_of_data_trains_and_explains_the_difference(
    original: Path, copied: Path, tmp_path: Path, messages: Callable[[int], list[str]]
) -> None:
    change_pixel(copied.parent / IMAGE)
    with pytest.raises(NotReproducedError, match=f"different from .*first in epoch 1.*{IMAGE}: the image changed"):
        reproduce(original, tmp_path / "out", f"data.path={copied}", "on_drift=warn")
    run = only_run(tmp_path / "out")
    found = verdict(run)
    assert (found["verdict"], found["weights"]) == ("different", "different")
    assert found["drift"] == [{"kind": "data", "name": IMAGE, "text": "the image changed"}]
    assert found["explanation"] == f"data: {IMAGE}: the image changed"
    first = found["first_difference"]
    assert first["epoch"] == 1 and first["original"] == float(rows(original)[0][first["column"]])
    assert first["reproduction"] == float(rows(run)[0][first["column"]]) != first["original"]
    assert found["largest_difference"]["relative"] >= first["relative"] > 0
    status = read_json(run / "status.json")
    assert (status["state"], status["exit_status"]) == ("completed", 1), "the run itself is whole"
    assert (run / "training_result.json").is_file() and "Reproduction: different" in status["message"]
    assert any(line == f"Drift of data: {IMAGE}: the image changed" for line in messages(logging.WARNING))
    assert "Reproduction: different" in (run / "logs" / "train.log").read_text().splitlines()[-1]


def test_other_weights_are_refused(record: Path, tmp_path: Path) -> None:
    manifest = read_json(record / "manifest.json")
    manifest["fingerprints"]["weights"] = {"file": "/gone/yolov8n.pt", "sha256": "abc"}
    (record / "manifest.json").write_text(json.dumps(manifest))
    found = problems(f"reproduce={record}", f"output_dir={tmp_path / 'out'}")
    assert list(found) == ["model.weights"]
    assert re.search(r"sha256 abc -> sha256 [0-9a-f]{64}", found["model.weights"])


@pytest.mark.slow
def test_difference_without_drift_is_said_to_be_unexplained(record: Path, tmp_path: Path) -> None:
    text = (record / "results.csv").read_text()
    value = rows(record)[1]["box_loss"]
    (record / "results.csv").write_text(text.replace(value, repr(float(value) * 1.5)))
    with pytest.raises(NotReproducedError, match="epoch 2, box_loss.*none of the recorded explains it"):
        reproduce(record, tmp_path / "out")
    found = verdict(only_run(tmp_path / "out"))
    assert (found["drift"], found["explanation"], found["weights"]) == ([], "none of the recorded", "same")
    assert (found["first_difference"]["epoch"], found["first_difference"]["column"]) == (2, "box_loss")
    assert found["first_difference"] == found["largest_difference"]


# ---- variations


@pytest.mark.slow
def test_variation_says_so_and_is_no_failure(
    original: Path, tmp_path: Path, messages: Callable[[int], list[str]]
) -> None:
    run = reproduce(original, tmp_path / "out", "optimizer.lr0=0.01")
    found = verdict(run)
    assert found["verdict"] == "variation"
    assert found["variation"] == ["optimizer.lr0=0.01 (original: 0.001)"]
    assert found["first_difference"]["column"].startswith("lr_") or found["first_difference"]["epoch"] == 1
    assert "variation: optimizer.lr0=0.01" in found["explanation"]
    said = messages(logging.INFO)
    assert any(line.startswith("A variation, not a repetition: optimizer.lr0=0.01") for line in said)
    assert said[-1].startswith(f"Reproduction: a variation of {original}, with optimizer.lr0=0.01")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["train.epochs=3"], ["train.epochs=3 (original: 2)"]),
        (["train.cache=False"], []),
        (["train.epochs=2", "preset=competition"], []),
        (["tensorboard.port=7000", "data.cache_dir=c", "model.weights_dirs=[w]", "on_drift=warn"], []),
        (["train.workers=1", "train.seed=5"], ["train.workers=1 (original: 0)", "train.seed=5 (original: 0)"]),
    ],
)
def test_only_what_changes_the_experiment_makes_a_variation(
    original: Path, typed: list[str], expected: list[str]
) -> None:
    experiment = hsr_train.compose([f"reproduce={original}", *typed])
    assert experiment.origin.variation == expected
    assert experiment.origin.reproduce_from == str(original)


@pytest.mark.parametrize(
    ("typed", "key", "words"),
    [
        ("preset=fast", "preset", "groups and labels take no part"),
        ("gpu_tier=high", "gpu_tier", "groups and labels take no part"),
        ("model=yolov8s", "model", "groups and sections take no part in reproduce="),
        ("optimizer=sgd", "optimizer", "groups and sections take no part in reproduce="),
        ("adjust.model_steps=1", "adjust.model_steps", "take no part"),
        ("runs=[a,b]", "runs", "take no part"),
        ("train.epoch=3", "train.epoch", "unknown key"),
        ("train.epochs=x", "train.epochs", "must be a whole number"),
        ("train.epochs=0", "train.epochs", "must be at least 1"),
        ("train.epochs=1,2", "train.epochs", "only KEY=VALUE goes with reproduce="),
        ("~train.epochs", "train.epochs", "only KEY=VALUE goes with reproduce="),
        ("train.close_mosaic=2", "train.close_mosaic", "must be below train.epochs=2"),
        ("optimizer.name=auto", "optimizer.lr0", "has no effect with optimizer=auto"),
        ("mode=validate", "mode", "there are train and check"),
        ("on_drift=maybe", "on_drift", "must be one of refuse, warn"),
        ("resume=last", "resume", "does not go with reproduce="),
    ],
)
def test_what_means_nothing_here_is_refused(original: Path, typed: str, key: str, words: str) -> None:
    assert words in problems(f"reproduce={original}", typed)[key]


def test_on_drift_without_reproduce_is_refused() -> None:
    for value in ("warn", "refuse"):
        assert "has no effect without reproduce=" in problems(f"on_drift={value}")["on_drift"]


@pytest.mark.parametrize("key", ["reproduce", "resume"])
def test_run_that_a_file_names_is_refused(tmp_path: Path, key: str) -> None:
    (tmp_path / "mine.yaml").write_text(f"defaults:\n  - config\n  - _self_\n{key}: some/run\n")
    with pytest.raises(InputError, match=f"on the command line: {key}=some/run"):
        hsr_train.compose([], config_dir=tmp_path, config_name="mine")


# ---- records that are not whole


@pytest.mark.parametrize("inside", ["", "weights/last.pt", "manifest.json", "logs"])
def test_original_is_named_by_anything_in_it(original: Path, inside: str) -> None:
    assert hsr_train.compose([f"reproduce={original / inside}"]).origin.reproduce_from == str(original)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.yaml", "task: [", "is not YAML"),
        ("config.yaml", "task: detect\nsurprise: 1\n", "unknown key"),
        ("manifest.json", None, "cannot be read"),
        ("manifest.json", "{}", "is damaged: it has no"),
        ("results.csv", "epoch,box_loss\n1\n", "is damaged"),
        ("data_files.csv", "x\n", "is damaged"),
        ("state/changes.json", "{", "is damaged"),
        ("state/changes.json", "[1]", "is damaged"),
        ("state/changes.json", None, "train.bath"),
        ("training_result.json", "{", "cannot be read"),
    ],
)
def test_damaged_record_is_refused_by_name(
    record: Path, tmp_path: Path, name: str, content: str | None, words: str
) -> None:
    path = record / name
    if words == "train.bath":
        write_changes(path, [Change(2, "training step", "batch", "train.bath", 4, 2, GPU_MEMORY)])
    elif content is None:
        path.unlink()
    else:
        path.write_text(content)
    found = problems(f"reproduce={record}", f"output_dir={tmp_path / 'out'}")
    text = "\n".join(found.values())
    assert str(path) in text and words in text
    assert not (tmp_path / "out").exists()


def test_original_without_an_epoch_has_nothing_to_compare_with(record: Path, tmp_path: Path) -> None:
    (record / "results.csv").unlink()
    assert "no epoch" in problems(f"reproduce={record}", f"output_dir={tmp_path / 'out'}")["reproduce"]


def test_run_of_another_mode_is_refused(record: Path) -> None:
    config = record / "config.yaml"
    config.write_text(config.read_text().replace("mode: train", "mode: validate"))
    assert "is a run of mode=validate" in problems(f"reproduce={record}")["reproduce"]


def test_running_original_is_refused(record: Path) -> None:
    with StatusWriter(RunDirectory(record)):
        assert "still running" in problems(f"reproduce={record}")["reproduce"]


def test_reproducing_nothing_says_so(tmp_path: Path) -> None:
    assert "no such file" in problems(f"reproduce={tmp_path / 'nowhere'}", f"output_dir={tmp_path}")["reproduce"]
    assert "not a run's directory" in problems(f"reproduce={tmp_path}", f"output_dir={tmp_path}")["reproduce"]


def test_original_of_an_earlier_version_without_a_list_of_files_is_reproduced(
    record: Path, copied: Path, tmp_path: Path
) -> None:
    (record / "data_files.csv").unlink()
    change_pixel(copied.parent / IMAGE)
    found = problems(f"reproduce={record}", f"data.path={copied}", f"output_dir={tmp_path / 'out'}")
    assert "other files; 6 train + 2 val images then, 6 train + 2 val images now" in found["data.path"]


# ---- what the original changed on its way


def test_changes_of_the_original_are_undone_and_repeated(record: Path) -> None:
    rung = Change(2, "training step", "batch", "train.batch", 8, 4, GPU_MEMORY)
    patience = Change(2, "resume", "train.patience", "train.patience", 3, 10, RESUMED)
    workers = Change(2, "resume", "train.workers", "train.workers", 2, 0, RESUMED)
    write_changes(record / "state" / "changes.json", [rung, patience, workers])
    experiment = hsr_train.compose([f"reproduce={record}"])
    assert (experiment.train.batch, experiment.train.patience, experiment.train.workers) == (8, 3, 2)
    assert experiment.origin.replay == [rung, patience], "workers leave the results as they are"
    experiment = hsr_train.compose([f"reproduce={record}", "train.batch=6"])
    assert (experiment.train.batch, experiment.origin.replay) == (6, [patience]), "what is typed stays"
    assert experiment.origin.variation == ["train.batch=6 (original: 8)"]


GPU_OOM = torch.cuda.OutOfMemoryError("CUDA out of memory")


@contextmanager
def failing(call: int, error: BaseException, owner: Any = torch.Tensor, name: str = "backward") -> Iterator[None]:
    """Let a function fail at a call, counted from 1; a run of two epochs has four backward passes."""
    function, count = getattr(owner, name), [0]

    def counted(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] == call:
            raise error
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, counted)
        yield


@pytest.mark.slow
def test_rung_of_the_original_is_repeated_at_its_epoch(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    """Also when the reproduction is interrupted after it and resumed."""
    with quick_pictures(), failing(3, GPU_OOM):
        original = folder_of(train(data, tmp_path / "first", shared_cache, **QUICK))
    changes = read_changes(original / "state" / "changes.json")
    assert [(c.epoch, c.key, c.before, c.after) for c in changes] == [(2, "train.batch", 4, 2)]
    with failing(4, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        reproduce(original, tmp_path / "second")
    run = only_run(tmp_path / "second")
    assert read_changes(run / "state" / "changes.json") == changes
    assert verdict(run)["verdict"] == "running"
    with quick_pictures():
        resume(run)
    assert_repeated(run, changes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ((2, GPU_OOM, DetectionValidator, "postprocess"), (2, "validation", "train.val_batch")),
        ((3, GPU_OOM, DetectionValidator, "init_metrics"), (2, "final evaluation", "train.val_batch")),
        ((2, DivergedError(0.001), Loop, "_train_epoch"), (2, "training step", "optimizer.lr0")),
        ((1, MemoryError(), Loop, "_train_epoch"), (1, "training step", "train.batch")),
    ],
)
def test_change_at_any_place_is_repeated_there(
    data: Path, tmp_path: Path, shared_cache: Path, fault: Any, expected: tuple[int, str, str]
) -> None:
    with quick_pictures(), failing(*fault):
        original = folder_of(train(data, tmp_path / "first", shared_cache, **QUICK))
    changes = read_changes(original / "state" / "changes.json")
    assert [(c.epoch, c.place, c.key) for c in changes] == [expected]
    assert_repeated(reproduce(original, tmp_path / "second"), changes)


def assert_repeated(run: Path, changes: list[Change]) -> None:
    found = verdict(run)
    assert (found["verdict"], found["weights"], found["variation"]) == ("same", "same", [])
    expected = [change.record() for change in changes]
    assert found["replay"] == found["recovery"]["original"] == found["recovery"]["reproduction"] == expected


@pytest.mark.slow
def test_rung_of_the_reproduction_alone_explains_a_difference(original: Path, tmp_path: Path) -> None:
    with (
        failing(3, GPU_OOM),
        pytest.raises(NotReproducedError, match="only this run changed train.batch 4 -> 2 in epoch 2"),
    ):
        reproduce(original, tmp_path)
    assert verdict(only_run(tmp_path))["first_difference"]["epoch"] == 2


# ---- interrupted, extended, repeated once more


def test_interrupted_reproduction_is_compared_when_it_was_resumed(
    original: Path, copied: Path, tmp_path: Path, messages: Callable[[int], list[str]]
) -> None:
    with failing(3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        reproduce(original, tmp_path / "out", f"data.path={copied}")
    run = only_run(tmp_path / "out")
    assert verdict(run)["verdict"] == "running" and len(rows(run)) == 1
    with quick_pictures():
        resume(run, "train.save_period=1")
    assert (verdict(run)["verdict"], verdict(run)["weights"]) == ("same", "same")
    assert messages(logging.INFO)[-1].startswith(f"Reproduction: same as {original}")


@pytest.mark.parametrize(
    "content", ["{}", "[", json.dumps({"original": "o", "variation": [], "drift": [], "replay": [1]})]
)
def test_reproduction_resumed_without_its_record_is_refused(record: Path, content: str) -> None:
    config, status = record / "config.yaml", record / "status.json"
    config.write_text(config.read_text().replace("reproduce: null", "reproduce: /some/run"))
    manifest = record / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"reproduce": null', '"reproduce": "/some/run"'))
    status.write_text(json.dumps({**read_json(status), "state": "interrupted"}))
    (record / "reproduction.json").write_text(content)
    assert list(problems(f"resume={record}")) == [str(record / "reproduction.json")]


def test_reproduction_whose_original_is_gone_is_not_resumed(record: Path, tmp_path: Path) -> None:
    config, status = record / "config.yaml", record / "status.json"
    config.write_text(config.read_text().replace("reproduce: null", "reproduce: /some/run"))
    manifest = record / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"reproduce": null', '"reproduce": "/some/run"'))
    status.write_text(json.dumps({**read_json(status), "state": "interrupted"}))
    kept = {"original": str(tmp_path / "gone"), "variation": [], "drift": [], "replay": []}
    (record / "reproduction.json").write_text(json.dumps(kept))
    assert f"repeats {tmp_path / 'gone'}, which is no run any more" in problems(f"resume={record}")["resume"]


def test_resume_names_the_data_that_changed(data: Path, copied: Path, tmp_path: Path, shared_cache: Path) -> None:
    with quick_pictures(), failing(3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        train(copied, tmp_path / "out", shared_cache, **QUICK)
    run = only_run(tmp_path / "out")
    change_pixel(copied.parent / IMAGE)
    found = problems(f"resume={run}")["data.path"]
    assert f"no longer what this run began with: {IMAGE}: the image changed" in found


@pytest.mark.slow
def test_unfinished_original_is_repeated_as_far_as_it_came(
    data: Path, tmp_path: Path, shared_cache: Path, messages: Callable[[int], list[str]]
) -> None:
    with quick_pictures(), failing(3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "first", shared_cache, **QUICK)
    unfinished = only_run(tmp_path / "first")
    run = reproduce(unfinished, tmp_path / "second")
    found = verdict(run)
    assert (found["verdict"], found["epochs_compared"], found["epochs_of_original"]) == ("same", 1, 1)
    assert found["weights"] == "not compared: the original's last state is of epoch 1, this run's of epoch 2"
    assert not found["original_finished"] and len(rows(run)) == 2
    assert "as far as that unfinished run came (1 epoch," in messages(logging.INFO)[-1]


@pytest.mark.slow
def test_extended_original_is_extended_again(original: Path, record: Path, tmp_path: Path) -> None:
    with quick_pictures():
        resume(record, "train.epochs=3")
    run = reproduce(record, tmp_path / "out")
    assert (verdict(run)["verdict"], verdict(run)["epochs_compared"]) == ("same", 3)
    assert [c.key for c in read_changes(run / "state" / "changes.json")] == ["train.epochs"]
    assert rows(run)[:2] == rows(original)


@pytest.mark.slow
def test_reproduction_extended_on_resume_is_a_variation(original: Path, tmp_path: Path) -> None:
    with failing(3, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        reproduce(original, tmp_path)
    run = only_run(tmp_path)
    with quick_pictures():
        resume(run, "train.epochs=3")
    assert verdict(run)["verdict"] == "variation"
    assert "train.epochs 2 -> 3" in verdict(run)["variation"][0]


@pytest.mark.slow
def test_reproduction_of_a_reproduction(original: Path, tmp_path: Path) -> None:
    first = reproduce(original, tmp_path, "on_drift=warn")
    second = reproduce(first, tmp_path)
    assert (verdict(second)["verdict"], verdict(second)["original"]) == ("same", str(first))
    config = yaml.safe_load((second / "config.yaml").read_text())
    assert (config["reproduce"], config["on_drift"]) == (str(first), "refuse"), "a permission is not inherited"


@pytest.mark.slow
def test_original_that_vanished_meanwhile_is_compared_all_the_same(
    record: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = Loop._train_epoch

    def vanishing(self: Loop, epoch: int, times: Any) -> Any:
        shutil.rmtree(record, ignore_errors=True)
        return train_epoch(self, epoch, times)

    monkeypatch.setattr(Loop, "_train_epoch", vanishing)
    run = reproduce(record, tmp_path / "out")
    assert (verdict(run)["verdict"], verdict(run)["weights"]) == ("same", "not compared: the original has no state")


def test_bound_on_a_gpu_is_stated() -> None:
    assert 0 < CUDA_BOUND < 0.01


# ---- the command


@pytest.mark.slow
def test_command_says_by_its_exit_status_how_it_came_out(
    data: Path, tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 the same, 1 different, which its training process tells it; from a checkout whose set moved meanwhile."""
    monkeypatch.chdir(tmp_path)
    copied = Path(shutil.copytree(data.parent, tmp_path / "set")) / "data.yaml"
    with quick_pictures():
        original = folder_of(train(copied, tmp_path / "first", shared_cache, **QUICK))
        shutil.move(copied.parent, tmp_path / "elsewhere")
        words = [f"reproduce={original}", f"data.path={tmp_path / 'elsewhere' / 'data.yaml'}"]
        assert main([*words, "output_dir=second"]) == 0
    assert "Reproduction: same as" in capsys.readouterr().err.splitlines()[-1]
    change_pixel(tmp_path / "elsewhere" / IMAGE)
    done = command([*words, "output_dir=third", "on_drift=warn"], tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "Reproduction: different from" in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_refused_drift_is_exit_status_2(
    original: Path, copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_pixel(copied.parent / IMAGE)
    assert main([f"reproduce={original}", f"data.path={copied}", f"output_dir={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert f"{IMAGE}: the image changed" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
