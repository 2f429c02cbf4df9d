"""A run's directory: names, lock, and finding it again."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hsr_train.errors import InputError
from hsr_train.run import directory
from hsr_train.run.directory import RunDirectory
from hsr_train.run.find import find_original, find_run, obstacle
from hsr_train.run.status import process_identity

ROOT = Path(__file__).resolve().parents[1]
NOON = datetime(2026, 11, 20, 14, 30, 0)

HOLDER = """
import os, sys, time
from pathlib import Path
from hsr_train.run.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])).lock():
    if sys.argv[2:] and os.fork() == 0:   # as a loader worker: lives on when its parent is killed
        print(os.getpid(), flush=True)
        time.sleep(60)
    elif not sys.argv[2:]:
        print("locked", flush=True)
    time.sleep(60)
"""


def make_run(output_dir: Path, name: str, state: str | None, *, started: str = "2026-11-20", **fields: Any) -> Path:
    """Lay down what find_run looks at. The process of a running state is dead unless `fields` say otherwise."""
    run = output_dir / "detect" / name
    (run / ".hydra").mkdir(parents=True)
    (run / "weights").mkdir()
    for file in ("config.yaml", ".hydra/config.yaml", "manifest.json", "weights/last.pt", "weights/best.pt"):
        (run / file).write_text("{}")
    if state is not None:
        own = process_identity(os.getpid())
        assert own is not None
        dead = {"pid": os.getpid(), "process": {**own, "start": -1}, "host": socket.gethostname()}
        status = {"state": state, "started": started, "updated": started, **dead, **fields}
        (run / "status.json").write_text(json.dumps(status))
    return run


def refusal(reference: str | Path, output_dir: Path) -> str:
    with pytest.raises(InputError) as caught:
        find_run(str(reference), output_dir)
    (problem,) = caught.value.problems
    assert problem.key == "resume" and problem.remedy
    return str(caught.value)


def test_create_names_the_directory_after_task_label_and_start(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "out", "detect", RunDirectory.dated("competition", NOON))
    assert run.path == tmp_path / "out" / "detect" / "competition_20261120_143000"
    assert run.path.is_dir()
    now = RunDirectory.create(tmp_path / "out", "detect", RunDirectory.dated("my/label"))
    assert re.fullmatch(r"my_label_\d{8}_\d{6}", now.path.name)


def test_create_never_gives_one_directory_to_two_starts(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        runs = list(
            pool.map(lambda _: RunDirectory.create(tmp_path, "detect", RunDirectory.dated("demo", NOON)), range(16))
        )
    assert len({run.path for run in runs}) == 16
    assert {run.path.name for run in runs} == {
        "demo_20261120_143000" + (f"_{n}" if n > 1 else "") for n in range(1, 17)
    }


def test_create_makes_a_relative_output_dir_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert RunDirectory.create(Path("outputs"), "detect", "demo").path.parent == tmp_path / "outputs" / "detect"


def test_create_in_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("")
    with pytest.raises(InputError, match=r"^output_dir: .*cannot create .*: .+ \(.*free there\)") as caught:
        RunDirectory.create(tmp_path / "outputs", "detect", "demo")
    assert "\n    -> output_dir=FOLDER" in str(caught.value)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_create_on_a_refusing_disk_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match=rf"cannot create .*: {os.strerror(number)} \(.* MB free there\)"):
        RunDirectory.create(tmp_path, "detect", "demo")


def test_the_places_are_those_of_the_interface(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    places = [run.hydra_dir, run.config_yaml, run.manifest, run.results_csv, run.timings_csv, run.training_result]
    places += [run.summary, run.status, run.weights, run.state, run.train_log, run.tensorboard, run.plots]
    assert [place.relative_to(tmp_path).as_posix() for place in places] == [
        *(".hydra", "config.yaml", "manifest.json", "results.csv", "timings.csv", "training_result.json"),
        *("summary.txt", "status.json", "weights", "state", "logs/train.log", "tensorboard", "plots"),
    ]


def test_open_takes_runs_only(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", "completed")
    assert RunDirectory.open(run).path == run
    with pytest.raises(InputError, match="not a run's directory"):
        RunDirectory.open(run / "weights")
    with pytest.raises(InputError, match="no such directory"):
        RunDirectory.open(tmp_path / "missing")


def test_lock_keeps_a_second_process_out_and_names_the_holder(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "detect", "demo")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run.path], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == b"locked\n"
        with pytest.raises(InputError) as caught, run.lock():
            pytest.fail("two writers")
        expected = f"{run.path}: in use by process {holder.pid} on {socket.gethostname()}"
        assert expected in str(caught.value) and f"kill {holder.pid}" in str(caught.value)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with run.lock():
        pass  # freed by the kill


def test_lock_is_freed_by_a_kill_although_a_forked_worker_lives_on(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "detect", "demo")
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, run.path, "fork"], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    worker = int(holder.stdout.readline())
    try:
        with pytest.raises(InputError), run.lock():
            pytest.fail("two writers")
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(worker, 0)
        with run.lock():
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        holder.stdout.close()


def test_lock_holds_within_one_process_and_ends_with_its_block(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "detect", "demo")
    with run.lock(), pytest.raises(InputError, match=f"process {os.getpid()}"), run.lock():
        pytest.fail("two writers")
    with pytest.raises(ZeroDivisionError), run.lock():
        _ = 1 / 0
    with run.lock():
        pass


def test_lock_clears_what_a_killed_writer_left_but_not_before_it_is_held(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path, "detect", "demo")
    run.weights.mkdir()
    (run.weights / ".last.tmp-1-0.pt").write_text("half")
    with run.lock():
        assert list(run.weights.iterdir()) == []
        (run.weights / ".last.tmp-1-1.pt").write_text("being written")
        with pytest.raises(InputError), run.lock():
            pytest.fail("two writers")
        assert (run.weights / ".last.tmp-1-1.pt").exists()


def test_lock_without_support_by_the_file_system_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    run = RunDirectory.create(tmp_path, "detect", "demo")
    monkeypatch.setattr(directory.fcntl, "flock", refuse)
    with run.lock():
        pass
    assert "has no locks" in caplog.text


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "weights/last.pt",
        "last.pt",
        "weights",
        "config.yaml",
        ".hydra/config.yaml",
        ".hydra",
        "weights/../status.json",
    ],
)
def test_find_run_takes_the_directory_and_everything_inside(tmp_path: Path, inside: str) -> None:
    run = make_run(tmp_path, "a, b (c) ü", "interrupted")
    assert find_run(str(run / inside), tmp_path / "elsewhere") == run


def test_find_run_takes_relative_references(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, "a", "failed")
    monkeypatch.chdir(run / "weights")
    assert find_run("last.pt", tmp_path) == run
    monkeypatch.chdir(tmp_path)
    assert find_run("detect/a/", tmp_path) == run


def test_find_run_takes_a_run_whose_status_is_lost(tmp_path: Path) -> None:
    assert find_run(str(make_run(tmp_path, "a", None)), tmp_path).name == "a"


def test_find_run_last_is_the_unfinished_run_that_started_last(tmp_path: Path) -> None:
    make_run(tmp_path, "interrupted", "interrupted", started="2026-11-20T10:00:00.000+01:00")
    make_run(tmp_path, "failed", "failed", started="2026-11-20T12:00:00.000+01:00")
    make_run(tmp_path, "done", "completed", started="2026-11-20T13:00:00.000+01:00")
    make_run(tmp_path, "other", "interrupted", started="2026-11-20T14:00:00.000+01:00", mode="validate")
    make_run(
        tmp_path, "alive", "running", started="2026-11-20T15:00:00.000+01:00", process=process_identity(os.getpid())
    )
    assert find_run("last", tmp_path).name == "failed"
    make_run(tmp_path, "killed", "running", started="2026-11-20T12:30:00.000+01:00")
    assert find_run("last", tmp_path).name == "killed"
    # An earlier wall time in another zone may be later in truth.
    make_run(tmp_path, "abroad", "failed", started="2026-11-20T11:45:00.000+00:00")
    assert find_run("last", tmp_path).name == "abroad"


def test_find_run_last_without_an_unfinished_run_lists_what_there_is(tmp_path: Path) -> None:
    assert "holds no run" in refusal("last", tmp_path / "missing")
    make_run(tmp_path, "done", "completed")
    text = refusal("last", tmp_path)
    assert "no unfinished run" in text and f"{tmp_path / 'detect' / 'done'} (completed)" in text


def test_obstacle_says_why_a_run_cannot_be_continued(tmp_path: Path) -> None:
    done = make_run(tmp_path, "done", "completed")
    why, remedy = obstacle(done) or ("", "")
    assert "finished" in why and f"model.weights={done}/weights/last.pt" in remedy
    assert obstacle(done, extended=True) is None
    alive = make_run(tmp_path, "alive", "running", process=process_identity(os.getpid()))
    assert f"still running as process {os.getpid()}" in (obstacle(alive) or "")[0]
    other = make_run(tmp_path, "other", "interrupted", mode="predict")
    assert "mode=predict" in (obstacle(other) or "")[0]


def test_find_run_refuses_what_is_no_run(tmp_path: Path) -> None:
    make_run(tmp_path, "a", "interrupted")
    missing = refusal(tmp_path / "nowhere", tmp_path)
    assert "no such file or directory" in missing and f"{tmp_path / 'detect' / 'a'} (interrupted)" in missing
    assert "not a run's directory" in refusal(tmp_path, tmp_path)


def test_a_folder_of_runs_is_refused_with_these_and_no_others(tmp_path: Path) -> None:
    make_run(tmp_path, "elsewhere", "interrupted")
    stopped, done = (
        make_run(tmp_path / "trials" / "2", f"x_fold_{number}", state, started=f"2026-11-2{number}")
        for number, state in enumerate(("interrupted", "completed"))
    )
    text = refusal(tmp_path / "trials" / "2", tmp_path)
    assert "not a run's directory" in text and text.endswith(f"-> one of these: resume={stopped}")
    assert f"{stopped} (interrupted)" in text and f"{done} (completed)" in text and "elsewhere" not in text
    with pytest.raises(InputError, match=f"-> one of these: reproduce={done}"):
        find_original(str(tmp_path / "trials" / "2"), tmp_path)


def test_find_run_names_the_weights_that_a_run_has(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", "interrupted")
    text = refusal(run / "weights" / "epoch99.pt", tmp_path)
    assert "weights/best.pt, weights/last.pt" in text and f"-> resume={run}" in text


def test_find_run_last_lists_at_most_ten_runs_a_line_each_and_the_newest_first(tmp_path: Path) -> None:
    for day in range(1, 13):
        make_run(tmp_path, f"run{day:02}", "completed", started=f"2026-11-{day:02}")
    listed = re.findall(r"^ +(\S*run\d\d \(completed\)|and .*)$", refusal("last", tmp_path), re.MULTILINE)
    names = [Path(line.split()[0]).name for line in listed[:-1]]
    assert names == [f"run{day:02}" for day in range(12, 2, -1)]
    assert listed[-1] == "and 2 older"


def test_find_run_last_does_not_look_inside_runs(tmp_path: Path) -> None:
    run = make_run(tmp_path, "a", "interrupted", started="2026-11-20T10:00:00.000+01:00")
    make_run(run / "plots", "copy", "interrupted", started="2026-11-20T11:00:00.000+01:00")
    assert find_run("last", tmp_path) == run
