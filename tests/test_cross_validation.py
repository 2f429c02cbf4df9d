"""`data.fold=all`: each fold a run of its own, going on where it was stopped, then table, picture and ensemble."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

import pytest
from classify_runs import COLOURS, draw, overrides, quick_pictures, runs_in
from detection_runs import read_json

from hsr_train.cli import main
from hsr_train.engines.classification.loop import Loop
from hsr_train.run.data_files import read_data_files


@pytest.fixture
def raw(tmp_path: Path, shared_cache: Path) -> Path:
    folder = draw(tmp_path / "colours" / "raw", dict.fromkeys(COLOURS, 8))
    said = ["task=classify", f"data.raw={folder}", f"data.cache_dir={shared_cache}"]
    assert main(["mode=split", *said, "data.folds=3", "data.ratio=[0.6,0.2,0.2]"]) == 0
    return folder


@pytest.fixture
def words(raw: Path, tmp_path: Path, shared_cache: Path) -> Iterator[list[str]]:
    small = {"data__path": None, "data__raw": raw, "data__fold": "all", "train__epochs": 2}
    with quick_pictures():
        yield overrides(raw, tmp_path / "out", shared_cache, **small)


def folder_of_folds(tmp_path: Path) -> Path:
    (home,) = (tmp_path / "out" / "classify").glob("*_folds")
    return home


def interrupt_in_second_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = Loop._train_epoch, [0]

    def stop(self: Loop, *args: object) -> object:
        calls[0] += 1
        if calls[0] == 4:  # of two epochs each
            raise KeyboardInterrupt
        return original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Loop, "_train_epoch", stop)


def test_every_fold_is_a_run_and_the_sum_is_right(words: list[str], tmp_path: Path) -> None:
    assert main(words) == 0
    home = folder_of_folds(tmp_path)
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
    assert summary["mean_val"]["accuracy"] == pytest.approx(fmean(r["metrics"]["accuracy"] for r in results))
    rows = csv.DictReader((home / "folds.csv").read_text().splitlines())
    said = {(row["fold"], row["split"], row["metric"]): float(row["value"]) for row in rows}
    assert said["1", "test", "macro_f1"] == results[1]["splits"]["test"]["macro_f1"]
    assert said["ensemble", "test", "accuracy"] == summary["ensemble"]["accuracy"]
    report = read_json(home / "logs" / "classification_report_test.json")
    assert report["accuracy"] == summary["ensemble"]["accuracy"]
    assert "mean ± sd" in (home / "folds.txt").read_text()
    assert (home / "folds.png").read_bytes().startswith(b"\x89PNG")


def test_same_command_goes_on_where_it_was_stopped(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_second_fold(patch)
        assert main(words) == 130
    assert capsys.readouterr().err.rstrip().endswith("To go on with all folds: type the same command again")
    assert len(runs_in(tmp_path / "out")) == 3, "two folds and what holds them together"
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "Fold 0 is done" in said and "Fold 1 goes on" in said and "Going on after epoch 1 of 2" in said
    home = folder_of_folds(tmp_path)
    assert read_json(home / "folds.json")["complete"]
    assert len(list(home.parent.iterdir())) == 4


def test_fold_of_other_data_is_not_put_together_with_the_rest(
    words: list[str], raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_second_fold(patch)
        assert main(words) == 130
    image = raw / sorted(COLOURS)[0] / "000.png"
    other = next(file for file in sorted((raw / sorted(COLOURS)[1]).iterdir()) if file != image)
    shutil.copyfile(other, image)
    capsys.readouterr()
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "000.png" in said and "Traceback" not in said


def test_data_without_folds_say_what_to_type(
    tmp_path: Path, shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = draw(tmp_path / "colours" / "raw", dict.fromkeys(COLOURS, 2))
    words = overrides(raw, tmp_path / "out", shared_cache, data__path=None, data__raw=raw, data__fold="all")
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "mode=split" in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()
