"""`train.device=[0,1]`: a process for each GPU, ended together; on machines that exist only here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_machines import gpu, machine

import hsr_train
from hsr_train import cli, hardware, launcher
from hsr_train.decisions import Decisions
from hsr_train.engines.devices import least_device, own_device
from hsr_train.errors import InputError

TWO_GPUS = machine(gpu(0, 24), gpu(1, 12))
Launches = list[tuple[list[str], int]]


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Launches:
    """Two GPUs, and what would be started on them."""
    found: Launches = []
    monkeypatch.setattr(hardware, "detect", lambda *_, **__: TWO_GPUS)
    monkeypatch.setattr("hsr_train.execution.detect", lambda *_, **__: TWO_GPUS)
    monkeypatch.setattr(launcher, "launch", lambda command, count: found.append((list(command), count)) or 0)
    return found


def python(code: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time, signal\nrank = int(os.environ['RANK'])\n{code}"]


def test_each_process_is_told_who_it_is(tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    code = f"open(r'{tmp_path}/' + str(rank), 'w').write(' '.join(os.environ[name] for name in {names}))"
    assert launcher.launch(python(code), 3) == 0
    told = [(tmp_path / str(rank)).read_text().split() for rank in range(3)]
    assert [words[:4] for words in told] == [[str(rank), str(rank), "3", "127.0.0.1"] for rank in range(3)]
    assert len({words[4] for words in told}) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("sys.exit(2) if rank == 0 else time.sleep(600)", 2),
        ("sys.exit(7) if rank == 1 else time.sleep(600)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(600)", 137),
    ],
    ids=["the first fails", "another one fails", "another one is killed"],
)
def test_end_of_one_ends_all_with_its_status(code: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    assert launcher.launch(python(code), 2) == status
    assert ("Process 1 of 2" in caplog.text) == (status != 2)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stop_signal_reaches_every_process(number: signal.Signals, status: int, tmp_path: Path) -> None:
    """Each writes which signal it got; the status is that of the first."""
    code = (
        f"def stop(n, _):\n    open(r'{tmp_path}/' + str(rank), 'w').write(str(n))\n    sys.exit(128 + n)\n"
        "signal.signal(signal.SIGTERM, stop)\nsignal.signal(signal.SIGINT, stop)\n"
        f"open(r'{tmp_path}/up' + str(rank), 'w').close()\ntime.sleep(600)"
    )
    main = (
        "import sys; from hsr_train.ending import stoppable; from hsr_train.launcher import launch\n"
        f"with stoppable(): status = launch({python(code)!r}, 2)\nsys.exit(status)"
    )
    process = subprocess.Popen([sys.executable, "-c", main], start_new_session=True)
    wait_for(tmp_path / "up0", tmp_path / "up1")
    process.send_signal(number)
    assert process.wait(300) == status
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == [str(int(number))] * 2


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent died")
def test_processes_do_not_outlive_a_killed_launcher(tmp_path: Path) -> None:
    code = f"open(r'{tmp_path}/up' + str(rank), 'w').write(str(os.getpid()))\ntime.sleep(600)"
    process = subprocess.Popen(
        [sys.executable, "-c", f"from hsr_train.launcher import launch; launch({python(code)!r}, 2)"]
    )
    wait_for(tmp_path / "up0", tmp_path / "up1")
    numbers = [int((tmp_path / f"up{rank}").read_text()) for rank in range(2)]
    process.kill()
    process.wait()
    until = time.monotonic() + 300
    while any(is_running(number) for number in numbers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(is_running(number) for number in numbers)


def wait_for(*files: Path) -> None:
    until = time.monotonic() + 300
    while not all(file.exists() and (file.stat().st_size or "up" in file.name) for file in files):
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.1)


def is_running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- the command


def test_command_starts_itself_once_for_each_gpu(launches: Launches, tmp_path: Path) -> None:
    words = ["train.device=[0,1]", f"output_dir={tmp_path}", "train.batch=4"]
    assert cli.main(words, supervise=True) == 0
    assert launches == [([sys.executable, "-m", "hsr_train", *words], 2)]
    assert list(tmp_path.iterdir()) == []


def test_status_of_the_processes_is_the_commands(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "launch", lambda command, count: 3)
    assert cli.main(["train.device=[1,0]"], supervise=True) == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.device=[0,2]", "gpu_tier=low"], "train.device: 2: GPU 2 is not there"),
        (["train.device=[0,1]", "data.path=my/data.yaml", "data.fold=all"], "data.fold: all: train.device=[0, 1] "),
        (["train.device=[0,1]", "train.time_budget=5min"], "train.time_budget: 5min: train.device=[0, 1] stands for 2"),
        (["train.device=[0,1]", "task=classify"], "trainer: standard: train.device=[0, 1] stands for 2 processes"),
        (["train.device=[0,1]", "train.epochs=1,2", "--multirun"], "--multirun: train.device=[0, 1] stands for 2"),
    ],
)
def test_what_several_gpus_cannot_do_is_refused(
    words: list[str], line: str, launches: Launches, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main([*words, f"output_dir={tmp_path}"], supervise=True) == 2
    assert line in capsys.readouterr().err
    assert launches == []


def test_classifier_with_the_trainer_for_it_is_started_for_each_gpu(launches: Launches) -> None:
    assert cli.main(["task=classify", "trainer=accelerate", "train.device=[0,1]"], supervise=True) == 0
    assert len(launches) == 1


def test_call_from_python_is_told_that_the_command_does_it(launches: Launches, small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the command python -m hsr_train trains with one for each"):
        words = ["train.device=[0,1]", f"data.path={small_set}", f"output_dir={tmp_path}"]
        hsr_train.execute(hsr_train.compose([*words, f"data.cache_dir={tmp_path}"]))


@pytest.mark.parametrize(("typed", "expected"), [("[0,1]", ["cuda:0", "cuda:1"]), ("[1,0]", ["cuda:1", "cuda:0"])])
def test_each_process_takes_the_gpu_at_its_place(
    typed: str, expected: list[str], launches: Launches, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the batch is decided for is the smaller one."""
    experiment = hsr_train.compose([f"train.device={typed}"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        found.append(own_device(experiment, TWO_GPUS, Decisions()))
        assert least_device(experiment, TWO_GPUS, found[-1]) == "cuda:1"
    assert found == expected
    assert os.environ["LOCAL_RANK"] == "1"


def test_evaluation_on_several_gpus_is_refused_with_the_best_of_them(launches: Launches) -> None:
    experiment = hsr_train.compose(["train.device=[0,1]", "mode=validate", "model.weights=best.pt"])
    with pytest.raises(InputError, match=r"one process uses one GPU.*\n?.*train.device=0 "):
        own_device(experiment, TWO_GPUS, Decisions())


def test_check_plans_for_the_smallest_gpu(launches: Launches) -> None:
    experiment = hsr_train.compose(["train.device=[0,1]", "mode=check"])
    decisions = Decisions()
    assert own_device(experiment, TWO_GPUS, decisions) == "cuda:1"
    assert "processes = 2" in "\n".join(map(str, decisions))
