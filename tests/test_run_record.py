"""manifest.json, training_result.json and summary.txt."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from hsr_train.decisions import Decisions
from hsr_train.errors import InputError
from hsr_train.run import manifest as module
from hsr_train.run.atomic import write_json
from hsr_train.run.directory import RunDirectory
from hsr_train.run.manifest import build_manifest, git_state, package_versions, read_manifest
from hsr_train.run.record import RunRecord, summary_text, training_result, write_summary, write_training_result

ROOT = Path(__file__).resolve().parents[1]
RECORD = RunRecord(
    status="completed",
    started=datetime(2026, 11, 20, 14, 30, tzinfo=UTC),
    ended=datetime(2026, 11, 20, 15, 45, 30, tzinfo=UTC),
    training_time_s=4500.0,
    epochs_completed=30,
    epochs=50,
    metrics={"mAP50": 0.95, "mAP50-95": 0.71, "precision": 0.9, "recall": 0.88},
    config={"task": "detect", "train": {"epochs": 50, "imgsz": 640}, "export": {"formats": []}},
    system={"GPU": "NVIDIA H100", "memory": {"ram_gb": 128}},
    best_model_path="weights/best.pt",
    last_model_path="weights/last.pt",
    recovery=[{"epoch": 3, "place": "forward", "rung": "halve batch", "from": 16, "to": 8}],
    exports=[{"format": "onnx", "path": "weights/best.onnx"}],
    best_epoch=25,
    throughput={"images_per_s": 40.0, "epoch_s": 130.0, "wait_share": 0.02, "bottleneck": None},
    latency_ms=12.345,
    peak_vram_gb=7.25,
    extra={"classes": ["cup"]},
)


def manifest(**changed: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "decisions": Decisions(),
        "fingerprints": {"data": "sha256:1"},
        "machine": {"ram_gb": 24},
        "seeds": {"train": 0, "data": 42},
        "command": ["hsr-train", "preset=demo"],
    }
    return build_manifest(**{**given, **changed})


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True, env=environment)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    (folder / "package").mkdir(parents=True)
    (folder / "package" / "module.py").write_text("one = 1\n")
    git(tmp_path, "init", "-q", "-b", "main", str(folder))
    git(folder, "add", "package")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_training_result_has_the_promised_keys_in_order_then_additions(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_training_result(run, RECORD)
    result = json.loads(run.training_result.read_text())
    assert list(result) == [
        *("best_model_path", "last_model_path", "metrics", "training_time_minutes", "epochs_completed"),
        *("tensorboard_url", "config", "status", "recovery", "exports", "best_epoch", "throughput"),
        *("latency_ms", "peak_vram_gb", "classes"),
    ]
    assert result["best_epoch"] == 25
    assert result["best_model_path"] == "weights/best.pt" and result["tensorboard_url"] is None
    assert (result["training_time_minutes"], result["epochs_completed"]) == (75.0, 30)
    assert result["recovery"][0]["from"] == 16 and result["config"]["train"]["imgsz"] == 640


def test_training_result_of_a_bare_run_is_complete_and_an_addition_cannot_hide_a_promise() -> None:
    bare = RunRecord(status="failed", started=RECORD.started, training_time_s=0, epochs_completed=0)
    assert training_result(bare)["recovery"] == [] and training_result(bare)["metrics"] == {}
    bare.extra = {"metrics": {}}
    with pytest.raises(ValueError, match="metrics"):
        training_result(bare)


def test_summary_answers_in_seven_sections(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    write_summary(run, RECORD)
    text = run.summary.read_text()
    titles = re.findall(r"^(\w+)\n-+$", text, re.MULTILINE)
    assert titles == ["Status", "Timing", "Progress", "Metrics", "Configuration", "System", "Error"]
    for line in (
        r"Status +completed",
        r"Started +2026-11-20 14:30:00 UTC",
        r"Training time +1:15:00 h",
        r"Per epoch +2:10 min \(median\)",
        r"Latency +12\.35 ms for one image",
        r"Most GPU memory +7\.25 GB",
        r"Epochs +30 of 50",
        r"Best epoch +25",
        r"Best weights +weights/best\.pt",
        r"Recovered at epoch 3 +place forward, rung halve batch, from 16, to 8",
        r"Export 1 +format onnx, path weights/best\.onnx",
        r"mAP50-95 +0\.7100",
        r"train\.imgsz +640",
        r"export\.formats +\[\]",
        r"memory\.ram_gb +128",
    ):
        assert re.search(rf"^  {line}$", text, re.MULTILINE), line
    assert text.endswith("Error\n-----\n  none\n")


def test_summary_of_a_failure_shows_every_line_of_its_message() -> None:
    failed = RunRecord(
        status="failed", started=RECORD.started, training_time_s=5.5, epochs_completed=0, error="one\ntwo"
    )
    text = summary_text(failed)
    assert "Error\n-----\n  Message  one\n           two\n" in text
    assert "Metrics\n-------\n  none\n" in text and "Training time  5.50 s" in text


def test_manifest_holds_what_made_the_run_and_survives_json(tmp_path: Path) -> None:
    decisions = Decisions()
    decisions.record("train.workers", 2, "two cores")
    write_json(tmp_path / "manifest.json", manifest(decisions=decisions))
    read = read_manifest(RunDirectory(tmp_path))
    assert read["command"] == ["hsr-train", "preset=demo"]
    assert read["python"]["version"] == platform.python_version()
    assert read["decisions"] == [{"key": "train.workers", "value": 2, "reason": "two cores"}]
    assert (read["seeds"], read["machine"], read["fingerprints"]) == (
        {"train": 0, "data": 42},
        {"ram_gb": 24},
        {"data": "sha256:1"},
    )
    assert {"numpy", "hydra-core", "omegaconf", "tensorboard"} <= set(read["packages"])
    assert datetime.fromisoformat(read["created"]).tzinfo is not None and read["host"] and read["platform"]


def test_manifest_holds_named_variables_only_and_masks_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MY_API_TOKEN", "s3cret-token")
    made = manifest(command=["hsr-train", "sweep.storage=postgresql://robot:hun/ter:hunter2@db.example.org/study"])
    assert made["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-1" and "OMP_NUM_THREADS" not in made["environment"]
    assert made["command"][1] == "sweep.storage=postgresql://robot:***@db.example.org/study"
    assert "s3cret-token" not in json.dumps(made) and "hunter2" not in json.dumps(made["command"])


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_read_manifest_of_a_lost_or_damaged_file_is_an_input_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(RunDirectory(tmp_path))


def test_package_versions_name_installed_distributions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISTRIBUTIONS", ("numpy", "no-such-distribution"))
    import numpy

    assert package_versions() == {"numpy": numpy.__version__}


def test_git_state_of_a_clean_checkout(checkout: Path) -> None:
    state = git_state(checkout / "package", tracking="module.py")
    assert state is not None and re.fullmatch(r"[0-9a-f]{40}", state["commit"])
    assert (state["root"], state["branch"], state["dirty"]) == (str(checkout), "main", False)
    assert (state["diff"], state["untracked"], state["diff_truncated"]) == ("", [], False)


def test_git_state_holds_the_diff_staged_or_not_and_new_files(checkout: Path) -> None:
    (checkout / "package" / "module.py").write_text("one = 2  # https://me:pass@example.org\n")
    git(checkout, "add", "package")
    (checkout / "new file.py").write_text("")
    state = git_state(checkout)
    assert state is not None and state["dirty"] and state["untracked"] == ["new file.py"]
    assert "-one = 1\n+one = 2  # https://me:***@example.org" in state["diff"]


def test_git_state_bounds_the_diff(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DIFF_CHARS", 50)
    (checkout / "package" / "module.py").write_text("x\n" * 1000)
    state = git_state(checkout)
    assert state is not None and len(state["diff"]) == 50 and state["diff_truncated"]


def test_git_state_before_the_first_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("a\n")
    git(tmp_path, "add", "a")
    state = git_state(tmp_path)
    assert state is not None and state["commit"] is None and "+a" in state["diff"] and state["dirty"]


def test_git_state_is_none_for_a_package_that_only_lies_inside_a_checkout(checkout: Path) -> None:
    installed = checkout / ".venv" / "lib"
    installed.mkdir(parents=True)
    (installed / "module.py").write_text("")
    assert git_state(installed, tracking="module.py") is None


def test_git_state_is_none_without_a_checkout_or_without_git(
    tmp_path: Path, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert git_state(tmp_path) is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(checkout) is None
    assert manifest()["git"] is None


def test_git_state_ignores_the_variables_of_a_hook(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    state = git_state(checkout)
    assert state is not None and state["commit"]


def test_git_state_says_where_git_refuses_to_look(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Git trusts a checkout by its owner, who is hard to change without being root: a stand-in says its line.
    refuses = 'case "$1" in rev-parse) echo "fatal: detected dubious ownership in repository" >&2; exit 128;; esac'
    tools = checkout.parent / "tools"
    tools.mkdir()
    (tools / "git").write_text(f"#!/bin/sh\n{refuses}\n")
    (tools / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    assert git_state(checkout) == {"root": None, "refused": "fatal: detected dubious ownership in repository"}


def test_git_of_the_working_directory_is_recorded_where_it_is_another(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkout / "package")
    made = manifest()
    assert made["git_of_working_directory"]["root"] == str(checkout)
    monkeypatch.setattr(module, "__file__", str(checkout / "package" / "module.py"))
    made = manifest()
    assert made["git"]["root"] == str(checkout) and made["git_of_working_directory"] is None


def test_the_run_room_imports_neither_torch_nor_tensorboard() -> None:
    modules = ["atomic", "directory", "log", "status", "results", "record", "manifest", "tensorboard", "events"]
    code = f"import sys, {', '.join(f'hsr_train.run.{m}' for m in modules)}\n"
    code += (
        "print([m for m in ('torch', 'numpy', 'cv2', 'tensorboard', 'tensorflow', 'ultralytics') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
