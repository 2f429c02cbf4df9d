"""trainer=accelerate: processes that share each batch come to what one process comes to, and one of them speaks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from classify_runs import make_set, overrides, runs_in, state_of
from detection_runs import differences, rows

import hsr_train
from hsr_train import processes
from hsr_train.engines.classification.batches import EndlessBatches
from hsr_train.engines.classification.evaluate import _in_order
from hsr_train.engines.together import Share
from hsr_train.errors import InputError

TWO = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
# Neither batch norm nor dropout, which see the images of one process only.
ALIKE = {"model__name": "timm/test_convnext", "trainer": "accelerate", "train__imgsz": "64", "train__epochs": "3"}

Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 images for training: in batches of eight, the last one has shares of three and two."""
    return make_set(tmp_path_factory.mktemp("together") / "squares", n_train=7, n_val=5)


@pytest.fixture(scope="module")
def launch(data: Path, shared_cache: Path) -> Iterator[Launch]:
    """Start the command in two processes."""
    started: list[subprocess.Popen[str]] = []

    def start(output_dir: Path, *words: str, module: str = "hsr_train", **more: str) -> subprocess.Popen[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = str(Path(__file__).parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], here])}
        launcher = ["-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes", "2"]
        typed = words or overrides(data, output_dir, shared_cache, **{**ALIKE, "train__batch": "4", **more})
        process = subprocess.Popen(
            [sys.executable, *launcher, "--main_process_port", str(port), "-m", module, *typed],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


@pytest.fixture(scope="module")
def together(launch: Launch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of two processes, with a loader worker in each, and what they said; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    process = launch(folder, train__workers="1")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    (run,) = runs_in(folder)
    return run, output


def figures(run: Path) -> np.ndarray:
    return np.array([[float(value) for value in row.values()] for row in rows(run)])


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(
    together: tuple[Path, str], data: Path, tmp_path: Path, shared_cache: Path
) -> None:
    run, output = together
    typed = overrides(data, tmp_path / "one", shared_cache, **{**ALIKE, "train__batch": "8"})
    alone = hsr_train.execute(hsr_train.compose(typed)).run_dir
    assert alone is not None
    assert figures(run).shape == (3, 7)
    np.testing.assert_allclose(figures(run), figures(alone), rtol=2e-3, atol=1e-5)
    assert output.count("Starting Training") == output.count("| SUCCESS  | Done: ") == 1
    assert "2 processes share each batch of 2 x 4 images" in output
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in alone.iterdir())


@pytest.mark.slow
def test_interrupted_run_of_two_processes_goes_on_to_the_bit(
    launch: Launch, together: tuple[Path, str], tmp_path: Path
) -> None:
    cut = launch(tmp_path / "cut", train__workers="1")
    assert cut.stdout is not None
    for line in cut.stdout:
        if "Epoch 1/2" in line:
            cut.terminate()
            break
    cut.communicate(timeout=600)
    assert cut.returncode != 0
    (run,) = runs_in(tmp_path / "cut")
    assert len(rows(run)) < 3
    process = launch(tmp_path, f"resume={run}")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    expected, _ = together
    assert differences(state_of(run), state_of(expected)) == []
    assert (run / "results.csv").read_bytes() == (expected / "results.csv").read_bytes()


@pytest.mark.slow
def test_shortage_in_one_of_two_processes_ends_both_with_what_to_type(launch: Launch, tmp_path: Path) -> None:
    process = launch(tmp_path, module="fault_process")
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "Out of GPU memory in process 1 of 2, in epoch 1 (training step)" in output, output
    assert "start again with train.batch=2 trainer.gradient_accumulation_steps=2" in output
    deadline = time.monotonic() + 300
    while any(str(tmp_path) in line for line in _command_lines()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [line for line in _command_lines() if str(tmp_path) in line]


def _command_lines() -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            found.append((folder / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.parametrize(("count", "num_samples", "least"), [(2, 21, 1), (3, 20, 2), (4, 9, 2), (2, 1, 1)])
def test_shares_are_alike_and_together_the_whole(count: int, num_samples: int, least: int) -> None:
    seen: list[int] = []
    sizes = []
    for rank in range(count):
        share = Share(rank, count)
        batches = EndlessBatches(num_samples, 8, 0, 0, True, least, None, share)
        whole = batches.sizes(0)
        epoch = [keys for keys, _ in zip(iter(batches), whole, strict=False)]
        sizes.append([len(keys) for keys in epoch])
        for keys, size in zip(epoch, whole, strict=True):
            assert len(keys) == share.size(size, least)
            seen += [index for _, index in keys[: share.real(size)]]
    assert all(own == sizes[0] for own in sizes)
    left_out = 1 if num_samples % 8 < least else 0
    assert len(seen) == len(set(seen)) == num_samples - left_out * (num_samples % 8)


def test_outcomes_of_two_processes_are_put_in_order_without_fillers() -> None:
    first = [np.array([[0.0], [2.0]]), np.array([0, 2]), np.array([0, 2])]
    second = [np.array([[1.0], [9.0]]), np.array([1, 9]), np.array([1, -1])]
    scores, targets, indices = _in_order([first, second])
    assert (scores[:, 0].tolist(), targets.tolist(), indices.tolist()) == ([0.0, 1.0, 2.0], [0, 1, 2], [0, 1, 2])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["mode=check"], "mode: check: 2 processes were started, and only training is shared"),
        (["data.path=my/data.yaml", "data.fold=all"], "data.fold: all: 2 processes were started"),
        (["train.time_budget=10min"], "train.time_budget: 10min: 2 processes were started, and a time is kept by one"),
        (["task=classify"], "trainer: standard: 2 processes were started, and it is trained in one"),
        (["task=classify", "trainer=accelerate", "mode=check"], "mode: check: 2 processes were started"),
        (["task=classify", "trainer=accelerate", "data.fold=all"], "data.fold: all: 2 processes were started"),
    ],
)
def test_what_processes_cannot_share_is_refused(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    experiment = hsr_train.compose([*words, "train.device=cpu", f"output_dir={tmp_path}"])
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=line):
        hsr_train.execute(experiment)
    assert list(tmp_path.iterdir()) == []


def test_grid_of_jobs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = hsr_train.compose(["task=classify", "trainer=accelerate", "train.device=cpu"])
    for name, value in TWO.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="--multirun"):
        processes.require_fit(experiment, multirun=True)


def test_launcher_that_starts_one_process_of_two_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `accelerate launch --cpu --num_processes 2` leaves in the environment of its one process."""
    experiment = hsr_train.compose(["task=classify", "trainer=accelerate", "train.device=cpu"])
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(InputError, match=r"(?s)accelerate starts one process.*--multi_gpu --num_processes 2"):
        hsr_train.execute(experiment)


def test_process_that_is_alone_trains_as_the_standard_does(data: Path, tmp_path: Path, shared_cache: Path) -> None:
    runs = [
        hsr_train.execute(
            hsr_train.compose(overrides(data, tmp_path / trainer, shared_cache, trainer=trainer, train__epochs="1"))
        ).run_dir
        for trainer in ("standard", "accelerate")
    ]
    assert runs[0] is not None and runs[1] is not None
    assert differences(state_of(runs[0])["model"], state_of(runs[1])["model"]) == []
