"""`data.fold=all`: each fold a run of its own, going on where it was stopped, then table, picture and ensemble."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import classify_runs
import detection_runs
import pytest
from classify_runs import COLOURS, draw
from detection_runs import read_json
from yolo_sets import make_yolo_set

from hsr_train.cli import main
from hsr_train.engines.classification.loop import Loop as ClassificationLoop
from hsr_train.engines.detection.loop import Loop as DetectionLoop
from hsr_train.run.data_files import read_data_files

FOLDS = 3


@dataclass
class Case:
    """One engine's cross-validation.

    Attributes:
        task: The engine.
        words: What is typed.
        loop: What trains an epoch.
        metrics: Names of the figures.
        images: Two images of fold 0, different ones.
        ensemble: Whether the folds are evaluated together.
    """

    task: str
    words: list[str]
    loop: type[Any]
    metrics: list[str]
    images: tuple[Path, Path]
    ensemble: bool


def classification(tmp_path: Path, cache: Path) -> Case:
    raw = draw(tmp_path / "colours" / "raw", dict.fromkeys(COLOURS, 8))
    said = ["task=classify", f"data.raw={raw}", f"data.cache_dir={cache}"]
    assert main(["mode=split", *said, f"data.folds={FOLDS}", "data.ratio=[0.6,0.2,0.2]"]) == 0
    small = {"data__path": None, "data__raw": raw, "data__fold": "all", "train__epochs": 2}
    words = classify_runs.overrides(raw, tmp_path / "out", cache, **small)
    folders = [raw / name for name in sorted(COLOURS)[:2]]
    images = (folders[0] / "000.png", next(file for file in sorted(folders[1].iterdir())))
    return Case("classify", words, ClassificationLoop, ["accuracy", "macro_f1"], images, True)


def detection(tmp_path: Path, cache: Path) -> Case:
    data = make_yolo_set(tmp_path / "boxes", n_train=12, n_val=3)
    said = [f"data.path={data}", f"data.cache_dir={cache}", "gpu_tier=cpu"]
    assert main(["mode=split", *said, f"data.folds={FOLDS}", "data.ratio=[0.6,0.2,0.2]"]) == 0
    small = {"data__fold": "all", "train__epochs": 2, "train__close_mosaic": 0}
    words = detection_runs.overrides(data, tmp_path / "out", cache, **small)
    images = (data.parent / "images" / "train" / "0000.jpg", data.parent / "images" / "train" / "0001.jpg")
    return Case("detect", words, DetectionLoop, ["mAP50", "mAP50-95", "precision", "recall"], images, False)


@pytest.fixture(params=[classification, pytest.param(detection, marks=pytest.mark.slow)])
def case(request: pytest.FixtureRequest, tmp_path: Path, shared_cache: Path) -> Iterator[Case]:
    with detection_runs.quick_pictures(), classify_runs.quick_pictures():
        yield request.param(tmp_path, shared_cache)


def folder_of_folds(tmp_path: Path, case: Case) -> Path:
    (home,) = (tmp_path / "out" / case.task).glob("*_folds")
    return home


def interrupt_in_second_fold(monkeypatch: pytest.MonkeyPatch, loop: type[Any]) -> None:
    original, calls = loop._train_epoch, [0]

    def stop(self: Any, *args: object) -> object:
        calls[0] += 1
        if calls[0] == 4:  # of two epochs each
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(loop, "_train_epoch", stop)


def test_every_fold_is_a_run_and_the_sum_is_right(
    case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*case.words, "mode=check"]) == 0
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith("is sound")] == [
        f"Fold {fold} is sound" for fold in range(FOLDS)
    ]
    assert main(case.words) == 0
    home = folder_of_folds(tmp_path, case)
    record = read_json(home / "folds.json")
    assert record["complete"] and list(record["runs"]) == ["0", "1", "2"]
    results = [read_json(Path(run) / "training_result.json") for run in record["runs"].values()]
    assert [result["fold"] for result in results] == [0, 1, 2]
    seen = [
        {row[1] for row in read_data_files(Path(run) / "data_files.csv") or () if row[0] == "val"}
        for run in record["runs"].values()
    ]
    assert all(seen)
    assert not seen[0] & seen[1] and not seen[0] & seen[2] and not seen[1] & seen[2]
    summary = read_json(home / "result.json")
    for name in case.metrics:
        assert summary["mean_val"][name] == pytest.approx(fmean(r["metrics"][name] for r in results))
    minutes = sum(r["training_time_minutes"] for r in results)
    assert summary["costs"] == {"training_time_minutes": pytest.approx(minutes)}, "no latency was asked for, nor a GPU"
    rows = csv.DictReader((home / "folds.csv").read_text().splitlines())
    said = {(row["fold"], row["split"], row["metric"]): float(row["value"]) for row in rows}
    for name in case.metrics:
        assert said["1", "test", name] == results[1]["splits"]["test"][name]
        values = [r["metrics"][name] for r in results]
        assert said["mean", "val", name] == pytest.approx(fmean(values))
        assert said["sd", "val", name] == pytest.approx(stdev(values))
    assert bool(summary["ensemble"]) == case.ensemble
    if case.ensemble:
        assert said["ensemble", "test", "accuracy"] == summary["ensemble"]["accuracy"]
        report = read_json(home / "logs" / "classification_report_test.json")
        assert report["accuracy"] == summary["ensemble"]["accuracy"]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("weights/*.pt")}
    assert main(case.words) == 0
    assert "It was done before" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("weights/*.pt")} == before
    assert "mean ± sd" in (home / "folds.txt").read_text()
    assert (home / "folds.png").read_bytes().startswith(b"\x89PNG")


def test_same_command_goes_on_where_it_was_stopped_on_the_same_data(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_second_fold(patch, case.loop)
        assert main(case.words) == 130
    assert capsys.readouterr().err.rstrip().endswith("To go on with all folds: type the same command again")
    made = list((tmp_path / "out" / case.task).iterdir())
    assert len(made) == 3, "two folds and what holds them together"
    image, other = case.images
    content = image.read_bytes()
    shutil.copyfile(other, image)
    assert main(case.words) == 2, "folds of other data are not put together with the rest"
    said = capsys.readouterr().err
    assert image.name in said and "Traceback" not in said
    image.write_bytes(content)
    assert main(case.words) == 0
    said = capsys.readouterr().err
    assert "Fold 0 is done" in said and "Fold 1 goes on" in said and "Going on after epoch 1 of 2" in said
    home = folder_of_folds(tmp_path, case)
    assert read_json(home / "folds.json")["complete"]
    assert len(list(home.parent.iterdir())) == 4


def test_data_without_folds_say_what_to_type(
    tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = draw(tmp_path / "colours" / "raw", dict.fromkeys(COLOURS, 2))
    words = classify_runs.overrides(
        raw, tmp_path / "out", shared_cache, data__path=None, data__raw=raw, data__fold="all"
    )
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "mode=split" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_class_that_came_after_the_division_is_refused(
    tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = classification(tmp_path, shared_cache)
    shutil.copytree(case.images[0].parent, case.images[0].parent.with_name("violet"))
    assert main([*case.words, "mode=check"]) == 2
    said = capsys.readouterr().err
    assert "violet: in no split, since the set was divided before" in said
    assert f"data.folds={FOLDS}" in said


def test_yolo_set_without_folds_says_what_to_type(
    tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_yolo_set(tmp_path / "boxes")
    assert main(detection_runs.overrides(data, tmp_path / "out", shared_cache, data__fold="all")) == 2
    said = capsys.readouterr().err
    assert f"mode=split data.path={data}" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_fold_of_a_yolo_set_is_reproduced(tmp_path: Path, shared_cache: Path) -> None:
    case = detection(tmp_path, shared_cache)
    fold = [*(word for word in case.words if not word.startswith("data.fold=")), "data.fold=2"]
    with detection_runs.quick_pictures():
        assert main(fold) == 0
        (run,) = (tmp_path / "out" / "detect").iterdir()
        assert run.name.endswith("_fold_2")
        assert main([f"reproduce={run}", f"output_dir={tmp_path / 'again'}"]) == 0
    (again,) = (tmp_path / "again" / "detect").iterdir()
    assert (again / "results.csv").read_bytes() == (run / "results.csv").read_bytes()
    assert (again / "data_files.csv").read_bytes() == (run / "data_files.csv").read_bytes()
