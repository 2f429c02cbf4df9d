"""The files of sweeps/, what a search may vary, and where it begins; trials run with `sweep_engine.py`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from composing import compose_equal_words_once

from hsr_train.cli import main
from hsr_train.config.paths import SWEEPS_DIR
from hsr_train.engines.registry import ENGINES
from hsr_train.sweep import reporting
from hsr_train.sweep.objectives import MAXIMIZE, MINIMIZE, available

FILES = sorted(SWEEPS_DIR.rglob("*.yaml"))
LR = "optimizer.lr0=tag(log,interval(1e-4,1e-2))"
BATCH = "train.batch=choice(4,8,16,32)"
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    for task in ("detect", "classify"):
        monkeypatch.setitem(ENGINES, task, "sweep_engine:SweepEngine")
    compose_equal_words_once(monkeypatch)
    monkeypatch.setattr(reporting, "write_report", lambda *_: None)  # it takes longer than all the rest

    def call(*words: str) -> tuple[int, str]:
        status = main(["-m", "train.device=cpu", "tensorboard.enabled=false", *words])
        return status, capsys.readouterr().err

    return call


def params(home: Path) -> list[dict[str, Any]]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{home / 'study.db'}")
    found = [t.params for t in optuna.load_study(study_name=home.name, storage=storage).get_trials()]
    storage.remove_session()
    storage.engine.dispose()
    return found


def best_first(home: Path) -> list[dict[str, Any]]:
    storage = optuna.storages.RDBStorage(f"sqlite:///{home / 'study.db'}")
    trials = optuna.load_study(study_name=home.name, storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()
    return [t.params for t in sorted(trials, key=lambda t: -(t.value or 0))]


def test_files_are_found() -> None:
    assert len(FILES) >= 7


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_file_says_what_it_does_and_passes_the_check_of_its_own_command(file: Path, run: Run) -> None:
    first, second, *_ = file.read_text().splitlines()
    content = yaml.safe_load(file.read_text())
    settings, searched = content["sweep"], content["hydra"]["sweeper"]["params"]
    task = content["task"]
    command = first.removeprefix("# python -m hsr_train --multirun ")
    assert second == "# @package _global_"
    assert f"sweep={file.stem}" in command.split()
    assert file.stem.startswith(task)
    assert settings["objective"] in available(task) and settings["direction"] in (MAXIMIZE, MINIMIZE)
    assert {"n_trials", "sampler", "seed", "pruner", "max_failures", "storage"} <= settings.keys()
    assert (settings["n_trials"] is None) == (settings["sampler"] == "grid")
    assert content["train"]["max_steps"] >= 100 and searched
    status, errors = run(*shlex.split(command), "mode=check")
    assert status == 0, errors


def test_search_of_a_file_runs_and_what_is_typed_wins(run: Run, tmp_path: Path) -> None:
    words = ("sweep=detect_lr_batch", "preset=demo", "train.epochs=2", "train.batch=8", "sweep.n_trials=2")
    status, errors = run(*words)
    assert status == 0, errors
    assert "train.batch is typed, and so not what sweep= would search" in errors
    home = next(tmp_path.glob("outputs/sweeps/detect_lr_batch*"))
    first, second = params(home)
    assert first == {"optimizer.lr0": 0.003} and 1e-4 <= second["optimizer.lr0"] <= 1e-2  # first: of preset=demo
    config = yaml.safe_load((home / "trials" / "1" / "config.yaml").read_text())
    assert config["train"]["batch"] == config["train"]["nbs"] == 8
    assert config["train"]["epochs"] == 2 and config["train"]["max_steps"] is None
    assert config["optimizer"]["lr0"] == second["optimizer.lr0"]


def test_typed_search_replaces_that_of_the_file(run: Run, tmp_path: Path) -> None:
    typed = "synthetic.ratio=choice(0,4)"
    status, errors = run("sweep=detect_synthetic_ratio", "train.epochs=2", typed)
    assert status == 0, errors
    home = next(tmp_path.glob("outputs/sweeps/detect_synthetic_ratio_*"))
    assert [p["synthetic.ratio"] for p in params(home)] == [0, 4]


def test_file_of_a_team_is_a_choice_like_ours(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "conf" / "sweep" / "ours.yaml"
    file.parent.mkdir(parents=True)
    text = "# @package _global_\ntrain:\n  epochs: 1\nsweep:\n  dir: team\n  enqueue: [{train.batch: 16}]\n"
    file.write_text(text + "hydra:\n  sweeper:\n    params:\n      train.batch: choice(8,16)\n      train.seed: 1,2\n")
    words = ("--config-dir", str(tmp_path / "conf"), "sweep=ours", "preset=demo")
    status, errors = run(*words, "sweep.n_trials=2")
    assert status == 0, errors
    assert [p["train.batch"] for p in params(tmp_path / "team")] == [8, 16]
    status, errors = run(*words, "train.seed=2", "train.batch=8")
    assert status == 2 and "nothing is searched" in errors


def test_help_lists_the_searches_of_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("detect", "classify"):
        assert main([f"task={task}", "--help"]) == 0
        line = next(re.finditer(r"^  sweep: (.*)$", capsys.readouterr().out, re.MULTILINE))[1]
        assert line.split(", ") == [f.stem for f in FILES if f.stem.startswith(task)]


TEAM = "data.path=my/data.yaml"
REFUSED = [
    (["sweep=classify_models"], "sweep: classify_models: belongs to task=classify, and this is task=detect"),
    (["sweep=classify_models"], "-> task=classify sweep=classify_models"),
    (["task=classify", "sweep=detect_models"], "sweep: detect_models: belongs to task=detect"),
    (["sweep=detect_lr_batc"], "-> sweep=detect_lr_batch"),
    (["sweep=detect_lr_batch_ratio", TEAM], "synthetic.annotated_dir: demo: is the built-in set's"),
    (["sweep=detect_lr_batch_ratio", TEAM], "or search without composed images: sweep=detect_lr_batch"),
    (["sweep=detect_lr_batch", "optimizer=auto"], "optimizer.lr0: 0.0001: has no effect with optimizer=auto"),
    ([LR, "optimizer.name=AdamW,auto"], "has no effect with optimizer=auto"),
    (["optimizer.llrd.decay_rate=0.8,0.9"], "has no effect while optimizer.llrd.enabled is false"),
    (["synthetic.ratio=1,2"], "synthetic.ratio: 1.0: has no effect without cut-outs"),
    (["tensorboard.port=1,2"], "tensorboard.port: 1,2: has no effect on mAP50-95"),
    (["train.workers=1,2"], "train.workers: 1,2: has no effect on mAP50-95"),
    (["optimizer.name=adamw,AdamW"], "adamw and AdamW come to the same run"),
    (["model=yolov8n,yolov8s", "model.name=yolov8m"], "yolov8n and yolov8s come to the same run"),
    (["model=yolov8n,yolov8s", "model.weights=scratch,pretrained"], "is searched, and so is model, of which it is a"),
    (["preset=demo,fast", "train.epochs=3,4"], "is searched, and so is preset, which sets it, too: preset=demo"),
    (["preset=demo,fast", "optimizer=sgd,adam"], "optimizer: sgd,adam: is searched, and so is preset"),
    (["gpu_tier=low,high", "train.batch=4,8"], "is searched, and so is gpu_tier, which sets it, too"),
    (["train.epochs=3,4", "train.max_steps=60,70"], "train.max_steps: 60: has no effect with train.epochs"),
    ([LR, "sweep.enqueue=[{optimizer.lr: 0.01}]"], "optimizer.lr: 0.01: is not searched: optimizer.lr0"),
    ([LR, "sweep.enqueue=[{optimizer.lr0: 0.5}]"], "optimizer.lr0: 0.5: is outside the search of optimizer.lr0"),
    ([LR, "sweep.warm_start=nowhere"], "sweep.warm_start: nowhere: holds no study.db"),
    (["train.seed=1,2", "sweep.warm_start=nowhere"], "has no effect on a grid, which tries every point anyway"),
]  # fmt: skip


def test_a_search_of_another_task_is_the_only_fault_and_what_is_refused_decides_nothing(run: Run) -> None:
    status, errors = run("sweep=classify_lr_batch")
    assert status == 2 and "belongs to task=classify" in errors and "unknown key" not in errors
    status, errors = run("train.seed=1,2", "sweep.objective=map")
    assert status == 2 and "reports no such value" in errors and "Decided" not in errors


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_refused_before_any_trial(words: list[str], message: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "my").mkdir()
    (tmp_path / "my" / "data.yaml").write_text("{train: a, val: b, names: [x]}\n")
    status, errors = run(*words)
    assert status == 2
    assert message in errors and "Traceback" not in errors
    assert not list(tmp_path.rglob("status.json"))


def test_time_may_be_searched_by_what_changes_nothing_else(run: Run) -> None:
    status, errors = run("train.workers=1,2", "sweep.objective=[mAP50-95,training_time_minutes]", "mode=check")
    assert status == 0, errors


def test_a_file_without_multirun_is_told_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep=detect_models", "train.device=cpu"]) == 2
    assert "-> python -m hsr_train --multirun sweep=detect_models" in capsys.readouterr().err


def test_values_outside_are_left_to_the_sampler_and_said(run: Run, tmp_path: Path) -> None:
    words = ("train.epochs=1", "train.batch=choice(2,16)", "sweep.n_trials=1", "sweep.dir=s")
    status, errors = run("optimizer.lr0=interval(1e-4,1e-2)", *words)
    assert status == 0, errors
    assert "Trial 0 has not the configuration's own train.batch=4, which is outside of this search" in errors
    assert params(tmp_path / "s")[0]["optimizer.lr0"] == 0.001


def test_own_choice_of_a_group_is_tried_first(run: Run, tmp_path: Path) -> None:
    status, errors = run("optimizer=sgd,adamw,adam", "train.epochs=1", "sweep.n_trials=1", "sweep.dir=s")
    assert status == 0, errors
    assert params(tmp_path / "s") == [{"optimizer": "adamw"}]


@pytest.mark.slow
def test_another_sweep_seeds_a_new_one_with_its_best(run: Run, tmp_path: Path) -> None:
    assert run(LR, BATCH, "train.epochs=1", "sweep.n_trials=5", "sweep.dir=old")[0] == 0
    best = [p for p in best_first(tmp_path / "old")[:3] if p["train.batch"] != 32]
    wider = ("optimizer.lr0=tag(log,interval(1e-5,1e-1))", "train.batch=choice(2,4,8,16)")
    words = ("train.epochs=2", "sweep.dir=new", "sweep.n_trials=5", "sweep.warm_start=old")
    status, errors = run(*wider, *words)
    assert status == 0, errors
    own, *rest = params(tmp_path / "new")
    assert own == {"optimizer.lr0": 0.001, "train.batch": 4}
    expected = [p for p in best if p != own]
    assert expected and [p for p in rest if p in best] == expected
    assert errors.count(" of old: optimizer.lr0=") == 3
    status, errors = run(*wider, *words[:1], "sweep.dir=third", "sweep.objective=recall", "sweep.warm_start=old")
    assert status == 2
    assert "sweep.warm_start: old: searches task=detect for mAP50-95; this is task=detect for recall" in errors
