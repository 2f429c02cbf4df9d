"""Several processes that train one detector come to what one process comes to; one of them has the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cutouts import make_backgrounds, make_cutouts
from detection_runs import (
    differences,
    fresh_environment,
    last_state,
    overrides,
    quick_pictures,
    read_json,
    rows,
    train,
)
from lively_weights import write_lively_checkpoint

from hsr_train.engines.detection.batches import EpochSampler, Part, SplitBatches
from hsr_train.engines.together import Share
from hsr_train.hardware import detect

# Norms that are frozen do not see the batch, and SGD does not blow up the rounding of gradients near zero.
ALIKE = {"train__freeze": "[model.*.bn]", "optimizer": "sgd", "optimizer__lr0": "0.0001",
         "optimizer__warmup_bias_lr": "0.0001"}  # fmt: skip
FIGURES = ("box_loss", "cls_loss", "dfl_loss", "val_box_loss", "val_cls_loss", "val_dfl_loss", "lr_0", "lr_1", "lr_2")
OURS = """
import sys
from hsr_train.ending import stoppable
from hsr_train.launcher import launch

with stoppable():
    status = launch([sys.executable, *sys.argv[1:]], 2)
sys.exit(status)
"""


Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lively_checkpoint(tmp_path_factory.mktemp("weights") / "lively.pt", imgsz=64)


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Start a module in two processes, through our launcher or torchrun."""
    started: list[subprocess.Popen[str]] = []

    def start(words: list[str], *, module: str = "hsr_train", torchrun: bool = False) -> subprocess.Popen[str]:
        path = os.pathsep.join([os.environ["PYTHONPATH"], str(Path(__file__).parent)])
        standalone = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        launcher = standalone if torchrun else ["-c", OURS]
        process = subprocess.Popen(
            [sys.executable, *launcher, "-m", module, *words],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=fresh_environment(PYTHONPATH=path, OMP_NUM_THREADS="1"),
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def finished(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def only_run(folder: Path) -> Path:
    (run,) = (folder / "detect").iterdir()
    return run


def figures(run: Path) -> np.ndarray:
    return np.array([[float(row[name]) for name in FIGURES] for row in rows(run)])


@pytest.mark.slow
def test_two_processes_come_to_what_one_comes_to(
    launch: Launch, small_set: Path, weights: Path, tmp_path: Path, shared_cache: Path
) -> None:
    """Of nine images in batches of four, the last batch holds none of the second process."""
    options = {**ALIKE, "model__weights": weights}
    words = overrides(small_set, tmp_path / "two", shared_cache, train__batch=2, **options)
    output = finished(launch(words, torchrun=True))
    together = only_run(tmp_path / "two")
    alone = train(small_set, tmp_path / "one", shared_cache, train__batch=4, **options).run_dir
    assert alone is not None
    assert figures(together).shape == (3, len(FIGURES))
    np.testing.assert_allclose(figures(together), figures(alone), rtol=2e-3, atol=1e-4)
    assert "2 processes share each batch of 2 x 2 images" in output
    assert output.count(" Training yolov8n on 9 images") == output.count("| SUCCESS  | Done: ") == 1
    assert sorted(path.name for path in together.iterdir()) == sorted(path.name for path in alone.iterdir())
    counts = [read_json(run / "manifest.json")["processes"] for run in (together, alone)]
    assert counts == [2, 1]


@pytest.mark.slow
def test_interrupted_run_of_two_processes_goes_on_to_the_bit(
    launch: Launch, tmp_path: Path, small_set: Path, shared_cache: Path
) -> None:
    """With composed images and all norms learning, each process with statistics of its own."""
    make_cutouts(tmp_path / "cutouts")
    make_backgrounds(tmp_path / "backgrounds", colour=(40, 90, 60))
    options = {
        "augmentation": "default",
        "synthetic__enabled": "true",
        "synthetic__annotated_dir": tmp_path / "cutouts",
        "synthetic__backgrounds_dir": tmp_path / "backgrounds",
        "train__workers": 1,
        "train__batch": 2,
    }
    whole = launch(overrides(small_set, tmp_path / "whole", shared_cache, **options))
    finished(whole)
    cut = launch(overrides(small_set, tmp_path / "cut", shared_cache, **options))
    assert cut.stdout is not None
    for line in cut.stdout:
        if "Epoch 1/3" in line:
            cut.send_signal(signal.SIGTERM)
            break
    output, _ = cut.communicate(timeout=300)
    assert cut.returncode == 143, output
    assert output.count("Stopped by SIGTERM") == 1
    run, expected = only_run(tmp_path / "cut"), only_run(tmp_path / "whole")
    assert len(rows(run)) < 3
    assert f"To go on: python -m hsr_train resume={run}" in output
    finished(launch([f"resume={run}"]))
    assert last_state(expected)["processes"] == 2
    assert differences(last_state(run), last_state(expected)) == []
    assert (run / "results.csv").read_bytes() == (expected / "results.csv").read_bytes()


@pytest.mark.slow
def test_shortage_in_one_of_two_processes_ends_both_with_what_to_type(
    launch: Launch, tmp_path: Path, small_set: Path, shared_cache: Path
) -> None:
    """They go on with a run of one process, and are told that their batches are others.

    The third part of the second process is in the fourth epoch: it has no image in an epoch's last batch.
    """
    with quick_pictures():
        run = train(small_set, tmp_path, shared_cache, train__epochs=1, train__close_mosaic=0).run_dir
    assert run is not None
    process = launch([f"resume={run}", "train.epochs=4"], module="detection_fault_process")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1, output
    assert "1 processes trained this run before, 2 do now: its batches are others" in output
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert "Process 1: Out of GPU memory in process 1 of 2, in epoch 4 (training step)" in output, output
    assert "start again with train.batch=2" in output
    # Whichever reaches the first process sooner: the loss of the other one, or the signal that ends all.
    assert read_json(run / "status.json")["state"] in ("failed", "interrupted")
    assert "Traceback" not in output


@pytest.mark.parametrize(("count", "num_samples", "at_once"), [(2, 9, 8), (3, 20, 2), (4, 9, 1), (2, 1, 4), (1, 9, 3)])
def test_parts_are_as_many_in_each_process_and_together_the_whole(count: int, num_samples: int, at_once: int) -> None:
    seen: list[int] = []
    plans: list[list[Part]] = []
    for rank in range(count):
        batches = SplitBatches(EpochSampler(num_samples, seed=0), 8, at_once, Share(rank, count))
        loaded = [[index for _, index in keys] for keys in batches]
        plans.append(batches.parts())
        assert [len(keys) for keys in loaded] == [part.own for part in plans[-1] if part.own]
        assert len(loaded) == len(batches) and max(map(len, loaded), default=0) <= at_once
        seen += [index for keys in loaded for index in keys]
    assert sorted(seen) == list(range(num_samples))
    for parts in zip(*plans, strict=True):
        assert {part.images for part in parts} == {sum(part.own for part in parts)}


# ---- two GPUs


@pytest.mark.gpu
def test_two_gpus_come_to_what_one_comes_to(
    launch: Launch, small_set: Path, weights: Path, tmp_path: Path, shared_cache: Path
) -> None:
    if len(detect().gpus) < 2:
        pytest.fail("needs two GPUs: leave it out with -m 'not gpu'")
    options = {**ALIKE, "model__weights": weights, "train__amp": "false", "gpu_tier": "auto"}
    words = overrides(small_set, tmp_path / "two", shared_cache, train__batch=2, train__device="[0,1]", **options)
    process = subprocess.run([sys.executable, "-m", "hsr_train", *words], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    alone = train(small_set, tmp_path / "one", shared_cache, train__batch=4, train__device=0, **options).run_dir
    assert alone is not None
    np.testing.assert_allclose(figures(only_run(tmp_path / "two")), figures(alone), rtol=2e-2, atol=1e-3)
    assert read_json(only_run(tmp_path / "two") / "training_result.json")["config"]["train"]["device"] == [0, 1]


@pytest.mark.gpu
def test_run_on_two_gpus_goes_on_with_both(small_set: Path, tmp_path: Path, shared_cache: Path) -> None:
    if len(detect().gpus) < 2:
        pytest.fail("needs two GPUs: leave it out with -m 'not gpu'")
    options = {"train__device": "[0,1]", "gpu_tier": "auto", "train__epochs": 1, "train__close_mosaic": 0}
    words = overrides(small_set, tmp_path, shared_cache, **options)
    for more in (words, [f"resume={tmp_path / 'detect'}", "train.epochs=2"]):
        typed = [word.replace(str(tmp_path / "detect"), str(only_run(tmp_path))) if "resume=" in word else word
                 for word in more]  # fmt: skip
        done = subprocess.run([sys.executable, "-m", "hsr_train", *typed], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert len(rows(only_run(tmp_path))) == 2
    assert last_state(only_run(tmp_path))["processes"] == 2
