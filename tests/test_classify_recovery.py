"""Classification runs that are stopped, damaged, extended or repeated, run out of memory, or whose numbers go wrong.

Faults are raised by torch's or the engine's own functions, at a chosen call, as the allocator or a user would.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import pytest
import torch
from classify_runs import (
    GPU_OOM,
    failing,
    folder_of,
    make_set,
    overrides,
    quick_pictures,
    runs_in,
    state_of,
    train,
    watching,
    weights_of,
)
from detection_runs import command, differences, read_json, rows, start
from torch.nn import functional

import hsr_train
from hsr_train.cli import main
from hsr_train.config import saved
from hsr_train.engines.classification import attempts, engine, keeping, loop
from hsr_train.engines.classification.loop import Loop
from hsr_train.engines.classification.samples import EpochLoader
from hsr_train.engines.classification.training import Training
from hsr_train.errors import InputError, NotReproducedError, RunError
from hsr_train.run.changes import read_changes

Train = Callable[..., Path]
STOPPED = KeyboardInterrupt()


@pytest.fixture(scope="module", autouse=True)
def _no_checkout() -> Iterator[None]:
    """Whoever edits the code while tests run makes no drift; what git says is the matter of test_drift.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hsr_train.run.manifest.git_state", lambda *args, **kwargs: None)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 18 training and 6 validation images; not to be changed."""
    return make_set(tmp_path_factory.mktemp("data") / "colours", n_val=2)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The directory of a finished run of three epochs, three steps each; not to be changed."""
    with quick_pictures():
        return train(data, tmp_path_factory.mktemp("whole"), shared_cache, train__epochs=3)


@pytest.fixture
def quick(data: Path, tmp_path: Path, shared_cache: Path) -> Iterator[Train]:
    """Train three epochs with further overrides; without drawing plots."""
    with quick_pictures():
        yield lambda **more: train(data, tmp_path / "out", shared_cache, **{"train__epochs": 3, **more})


def resume(run: Path, *more: str) -> Path:
    with quick_pictures():
        return folder_of(hsr_train.execute(hsr_train.compose([f"resume={run}", *more])))


def stopped(
    quick: Train, tmp_path: Path, call: int = 5, owner: Any = torch.Tensor, name: str = "backward", **more: Any
) -> Path:
    """Return the directory of a run that Ctrl-C ended at a call of a function."""
    with failing(owner, name, call, error=STOPPED), pytest.raises(KeyboardInterrupt):
        quick(**more)
    run = runs_in(tmp_path / "out")[-1]
    assert read_json(run / "status.json")["state"] == "interrupted"
    return run


def assert_same_end(run: Path, other: Path, *, random: bool = True) -> None:
    """Compare table, state and weights to the bit; the generators only where the loader workers were the same."""
    assert (run / "results.csv").read_text() == (other / "results.csv").read_text()
    states = [state_of(one) for one in (run, other)]
    assert differences(*({k: v for k, v in state.items() if random or k != "random"} for state in states)) == []
    for name in ("best", "last"):
        assert differences(weights_of(run, name), weights_of(other, name)) == []
    assert read_json(run / "status.json")["state"] == "completed"


# ---- exact resume


def test_stopped_run_goes_on_to_the_end_of_an_uninterrupted_one(quick: Train, whole: Path, tmp_path: Path) -> None:
    run = stopped(quick, tmp_path)
    assert len(rows(run)) == 1
    assert_same_end(resume(run), whole)
    assert (run / "logs" / "classification_report_val.json").read_text() == (
        whole / "logs" / "classification_report_val.json"
    ).read_text()


def test_run_stopped_before_its_first_state_begins_again(quick: Train, whole: Path, tmp_path: Path) -> None:
    run = stopped(quick, tmp_path, 2)
    assert not list((run / "state").iterdir())
    assert_same_end(resume(run), whole)


def test_run_stopped_between_state_and_weights_makes_the_weights_again(
    quick: Train, whole: Path, tmp_path: Path
) -> None:
    run = stopped(quick, tmp_path, 2, keeping, "write_weights")
    assert (state_of(run)["epochs_done"], weights_of(run, "last")["epoch"]) == (2, 1)
    with failing(Training, "seed_step", 1, error=STOPPED), pytest.raises(KeyboardInterrupt):
        resume(run)
    assert weights_of(run, "last")["epoch"] == 2, "before anything is trained"
    assert_same_end(resume(run), whole)


def test_run_stopped_in_its_final_evaluation_only_evaluates(quick: Train, whole: Path, tmp_path: Path) -> None:
    run = stopped(quick, tmp_path, 1, engine, "write_reports")
    with watching(torch.optim.AdamW, "step", lambda *args: pytest.fail("a step")):
        assert_same_end(resume(run), whole)


EVERYTHING = {
    "train__epochs": 2,
    "train__ema": 0.9,
    "train__batch": 4,
    "trainer__gradient_accumulation_steps": 2,
    "augmentation__mixup": 0.4,
    "augmentation__cutmix": 0.4,
    "trainer": "mixed_precision",
    "train__clip_norm": 1.0,
    "train__label_smoothing": 0.1,
    "augmentation": "classify_strong",
}
OTHERS: dict[str, tuple[int, dict[str, Any]]] = {
    "sgd, one cycle": (6, {"optimizer": "classify_sgd", "optimizer__schedule": "one_cycle"}),
    "frozen": (4, {"model__name": "mobilenet_v3_small", "train__freeze": 3}),
    "batch normalisation": (7, {"model__name": "mobilenet_v3_small", "train__ema": 0.9}),
    "workers": (5, {"train__workers": 2, "train__cache": "ram"}),
}


@pytest.mark.parametrize(
    ("call", "more"),
    [
        pytest.param(7, EVERYTHING, id="everything"),
        *(pytest.param(*given, id=name, marks=pytest.mark.slow) for name, given in OTHERS.items()),
    ],
)
def test_any_way_to_train_goes_on_exactly(quick: Train, tmp_path: Path, call: int, more: dict[str, Any]) -> None:
    """SqueezeNet draws dropout in every step. The others are what cannot be had together with everything."""
    run = stopped(quick, tmp_path, call, **more)
    reference = quick(**more)
    assert_same_end(resume(run), reference, random="train__workers" not in more)


@pytest.mark.slow
def test_run_goes_on_with_other_workers_and_cache(quick: Train, whole: Path, tmp_path: Path) -> None:
    run = stopped(quick, tmp_path)
    assert_same_end(resume(run, "train.workers=1", "train.cache=ram"), whole, random=False)


@pytest.mark.parametrize("damage", ["truncated", pytest.param("changed", marks=pytest.mark.slow)])
def test_damaged_newest_state_is_passed_over(
    quick: Train, whole: Path, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(quick, tmp_path, 8)
    state = run / "state" / "epoch2.pt"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content if damage == "changed" else content[: len(content) // 2])
    assert_same_end(resume(run), whole)
    assert "The state of epoch 2 is not used" in caplog.text


def test_finished_run_is_extended(whole: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With the rates that a run of that length has there: cosine to a hundredth, at image 16 of 18."""
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    resume(run, "train.epochs=5")
    assert rows(run)[:3] == rows(whole) and len(rows(run)) == 5
    expected = [0.001 * (0.01 + 0.99 * (1 + math.cos(math.pi * (e + 16 / 18) / 5)) / 2) for e in (3, 4)]
    assert [float(row["lr"]) for row in rows(run)[3:]] == pytest.approx(expected)
    assert "Extended from 3 to 5 epochs" in caplog.text
    assert read_json(run / "training_result.json")["config"]["train"]["epochs"] == 5


def test_extended_run_that_had_stopped_early_has_its_patience_anew(
    quick: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the extension is stopped and goes on: from epoch 3 on, two epochs without a better one."""
    found = SimpleNamespace(loss=1.0, accuracy=0.5, macro_f1=0.5, metrics=lambda: {})
    monkeypatch.setattr(Loop, "_validate", lambda self: found)
    run = quick(train__epochs=5, train__patience=2)
    assert len(rows(run)) == 3
    with failing(torch.Tensor, "backward", 4, error=STOPPED), pytest.raises(KeyboardInterrupt):
        resume(run, "train.epochs=9")
    assert len(rows(run)) == 4
    resume(run)
    assert len(rows(run)) == 5 and state_of(run)["stopped"]


def test_what_would_change_the_run_is_refused(whole: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole, tmp_path / "run"))
    for typed in ("optimizer.lr=0.5", "train.epochs=2"):
        with pytest.raises(InputError) as refused:
            hsr_train.compose([f"resume={run}", typed])
        assert refused.value.problems[-1].key == typed.partition("=")[0]


def test_changed_data_are_refused_by_name(quick: Train, data: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(data, tmp_path / "moved" / "colours"))
    run = stopped(quick, tmp_path, data__path=copied)
    change_pixel(copied / "train" / "red" / "003.png")
    with pytest.raises(InputError, match="train/red/003.png: the image changed"):
        resume(run)


def change_pixel(picture: Path) -> None:
    image = cv2.imread(str(picture))
    image[20, 20] = 255 - image[20, 20]
    cv2.imwrite(str(picture), image)


LONG = {"train__epochs": 12, "model__name": "mobilenet_v3_small"}


@pytest.fixture(scope="module")
def unhurt(data: Path, tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """The directory of a run of the command that nobody killed, without loader workers; not to be changed."""
    folder = tmp_path_factory.mktemp("unhurt")
    done = command(overrides(data, folder / "out", shared_cache, **LONG), folder)
    assert done.returncode == 0, done.stderr
    return runs_in(folder / "out")[0]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_command_goes_on_to_the_same_end(
    data: Path, unhurt: Path, tmp_path: Path, shared_cache: Path, workers: int
) -> None:
    """That of a run without workers, which draw nothing that it would not draw itself."""
    process = start(overrides(data, tmp_path / "out", shared_cache, **LONG, train__workers=workers), tmp_path)
    table = None
    while process.poll() is None and not (table and len(table.read_text().splitlines()) > 3):
        table = next(iter((tmp_path / "out").glob("classify/*/results.csv")), None)
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    (run,) = runs_in(tmp_path / "out")
    assert len(rows(run)) < 12
    done = command(["resume=last", f"output_dir={tmp_path / 'out'}"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_end(run, unhurt, random=workers == 0)


def test_stop_that_something_swallows_ends_the_run_before_its_next_batch(
    data: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_rate, batches = Loop._set_rate, []

    def swallow(self: Loop, *given: Any) -> None:
        batches.append(1)
        with suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)
            pytest.fail("it was not broken off")
        set_rate(self, *given)

    monkeypatch.setattr(Loop, "_set_rate", swallow)
    with quick_pictures():
        assert main(overrides(data, tmp_path, shared_cache)) == 143
    (run,) = tmp_path.glob("classify/*")
    assert read_json(run / "status.json")["state"] == "interrupted" and len(batches) == 1


def test_image_that_is_gone_in_mid_run_is_named_in_one_line(quick: Train, data: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(data, tmp_path / "copied" / "colours"))
    gone = copied / "train" / "red" / "003.png"

    def remove(*args: Any) -> None:
        gone.unlink(missing_ok=True)

    with watching(loop, "score", remove), pytest.raises(RunError, match=f"^Error loading image {gone}: ") as end:
        quick(data__path=copied)
    assert "\n" not in str(end.value)


# ---- running out of memory, at 64 px: at 32 a batch is not halved

Fail = Callable[..., list[int]]
LADDER = {"train__imgsz": 64, "recovery__min_imgsz": 64}


@pytest.fixture
def epoch_now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epoch (from 1) that the loop is in; 0 before it."""
    now, original = [0], Loop._train_epoch

    def noting(self: Loop, epoch: int, times: Any) -> Any:
        now[0] = epoch + 1
        return original(self, epoch, times)

    monkeypatch.setattr(Loop, "_train_epoch", noting)
    return now


@pytest.fixture
def fail(epoch_now: list[int], monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Let a function raise at its given calls, counted from 1 in one epoch (any, if none is given)."""

    def install(
        owner: Any, name: str, *calls: int, epoch: int | None = None, error: BaseException = GPU_OOM
    ) -> list[int]:
        original, count = getattr(owner, name), [0]

        def counted(*args: Any, **kwargs: Any) -> Any:
            if epoch is None or epoch_now[0] == epoch:
                count[0] += 1
                if count[0] in calls:
                    raise error
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)
        return count

    return install


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that each optimizer step was made of, over all attempts."""
    found, pending = [], [0]
    backward, step, begin = torch.Tensor.backward, torch.optim.AdamW.step, attempts.Attempts.next
    loss = functional.cross_entropy

    def counting(scores: Any, *args: Any, **kwargs: Any) -> Any:
        losses = loss(scores, *args, **kwargs)
        counting.images = len(scores)  # type: ignore[attr-defined]
        return losses

    def going_back(*args: Any, **kwargs: Any) -> Any:
        done = backward(*args, **kwargs)
        pending[0] += counting.images  # type: ignore[attr-defined]
        return done

    def noting(*args: Any, **kwargs: Any) -> Any:
        done = step(*args, **kwargs)
        found.append(pending[0])
        pending[0] = 0
        return done

    def anew(self: Any) -> Any:
        pending[0] = 0
        return begin(self)

    monkeypatch.setattr(functional, "cross_entropy", counting)
    monkeypatch.setattr(torch.Tensor, "backward", going_back)
    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    monkeypatch.setattr(attempts.Attempts, "next", anew)
    return found


def recorded(run: Path) -> list[tuple[Any, ...]]:
    """Return the rungs of a finished run: epoch, place, key, from, to."""
    entries = read_json(run / "training_result.json")["recovery"]
    return [(e["epoch"], e["place"], e["key"], e["from"], e["to"]) for e in entries]


TRAINING = {
    "forward": (functional, "cross_entropy", 2, "training step"),
    "backward": (torch.Tensor, "backward", 2, "training step"),
    "optimizer step": (torch.optim.AdamW, "step", 2, "optimizer step"),
}


@pytest.mark.parametrize(
    ("epoch", "where"),
    [
        (2, "backward"),
        pytest.param(1, "forward", marks=pytest.mark.slow),  # there is no state yet
        pytest.param(3, "forward", marks=pytest.mark.slow),
        pytest.param(1, "optimizer step", marks=pytest.mark.slow),
        pytest.param(3, "optimizer step", marks=pytest.mark.slow),
    ],
)
def test_shortage_in_training_halves_the_batch_and_keeps_the_effective_batch(
    quick: Train, steps: list[int], fail: Fail, where: str, epoch: int
) -> None:
    owner, name, call, place = TRAINING[where]
    fail(owner, name, call, epoch=epoch)
    run = quick(**LADDER)
    assert recorded(run) == [(epoch, place, "train.batch", 8, 4)]
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert saved.load(run / "config.yaml").train.batch == 4
    assert steps == [8, 8, 2] * (epoch - 1) + [8] + [8, 8, 2] * (4 - epoch)


def test_smaller_batch_makes_the_same_steps(quick: Train, fail: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    """To float tolerance, where nothing is drawn in the network; also of blended batches. Rates are the very same."""
    monkeypatch.setattr(torch.nn.Dropout, "forward", lambda self, given: given)
    more = {**LADDER, "train__epochs": 2, "optimizer": "classify_sgd", "augmentation__mixup": 0.5}
    reference = quick(**more)
    fail(torch.Tensor, "backward", 2, epoch=2)
    run = quick(**more)
    assert recorded(run)
    assert rows(run)[0] == rows(reference)[0], "the epoch before the rung is not touched"
    for one, other in zip(rows(run), rows(reference), strict=True):
        assert one["lr"] == other["lr"]
        assert float(one["train_loss"]) == pytest.approx(float(other["train_loss"]), rel=1e-4)
    for name, value in state_of(reference)["model"].items():
        torch.testing.assert_close(state_of(run)["model"][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("epoch", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shortage_in_validation_redoes_only_the_validation(
    quick: Train, whole: Path, steps: list[int], fail: Fail, epoch: int
) -> None:
    fail(loop, "score", 1, epoch=epoch)
    run = quick()
    assert recorded(run) == [(epoch, "validation", "train.val_batch", 16, 8)]
    assert steps == [8, 8, 2] * 3, "no training is repeated"
    for one, other in zip(rows(whole), rows(run), strict=True):
        assert {k: float(v) for k, v in one.items()} == pytest.approx({k: float(v) for k, v in other.items()}, rel=1e-4)


def test_shortage_in_the_final_evaluation_repeats_it(quick: Train, whole: Path, steps: list[int], fail: Fail) -> None:
    fail(engine, "score", 1, 2)
    run = quick()
    place = "final evaluation"
    assert recorded(run) == [(3, place, "train.val_batch", 16, 8), (3, place, "train.val_batch", 8, 4)]
    assert steps == [8, 8, 2] * 3
    result, expected = (read_json(one / "training_result.json")["splits"] for one in (run, whole))
    assert result == expected


@pytest.mark.parametrize(
    ("error", "rung"), [(GPU_OOM, ("train.batch", 8, 4)), (MemoryError(), ("train.cache", "ram", "none"))]
)
def test_shortage_at_the_start_goes_down_the_ladder(
    quick: Train, fail: Fail, error: BaseException, rung: tuple[Any, ...]
) -> None:
    fail(attempts, "require_space", 1, error=error)
    run = quick(**LADDER, train__epochs=1, train__cache="ram")
    assert recorded(run) == [(1, "start", *rung)]
    assert len(rows(run)) == 1


def test_shortage_in_the_export_moves_it_to_the_cpu(quick: Train, fail: Fail) -> None:
    fail(engine, "export_classifier", 1)
    run = quick(train__epochs=1, export__formats="[torchscript]")
    assert recorded(run) == [(1, "export", "export.device", "run", "cpu")]
    assert (run / "weights" / "best.torchscript").is_file()


@pytest.mark.slow
def test_gpu_ladder_gives_up_batch_image_size_cache_and_workers_in_this_order(quick: Train, fail: Fail) -> None:
    fail(torch.Tensor, "backward", *range(1, 5), epoch=2)
    run = quick(train__batch=4, train__imgsz=96, train__cache="ram", train__workers=1, recovery__min_imgsz=64)
    assert [rung[2:] for rung in recorded(run)] == [
        ("train.batch", 4, 2),
        ("train.imgsz", 96, 64),
        ("train.cache", "ram", "none"),
        ("train.workers", 1, 0),
    ]
    assert len(rows(run)) == 3


@pytest.mark.slow
def test_main_memory_ladder_gives_up_cache_workers_and_batch_in_this_order(quick: Train, fail: Fail) -> None:
    fail(functional, "cross_entropy", *range(1, 4), epoch=2, error=MemoryError("Unable to allocate 1.2 GiB"))
    run = quick(**LADDER, train__cache="ram", train__workers=1)
    assert [rung[2:] for rung in recorded(run)] == [
        ("train.cache", "ram", "none"),
        ("train.workers", 1, 0),
        ("train.batch", 8, 4),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("place", ["training", "validation"])
def test_killed_loader_worker_is_a_shortage_of_main_memory(quick: Train, place: str) -> None:
    """A real SIGKILL, as the kernel sends it; torch says so in two ways, depending on when it notices."""
    killed: list[int] = []

    def kill_once(loader: EpochLoader) -> None:
        trains = loader._batches.shuffle
        if loader._iterator is not None and not killed and trains == (place == "training"):
            killed.append(loader._iterator._workers[0].pid)
            os.kill(killed[0], signal.SIGKILL)

    with watching(EpochLoader, "_next", kill_once):
        run = quick(train__workers=2, train__val_batch=1)
    assert killed and [rung[2:] for rung in recorded(run)] == [("train.workers", 2, 1)]
    assert len(rows(run)) == 3


@pytest.mark.slow
def test_figures_are_measured_at_the_initial_image_size(quick: Train, fail: Fail) -> None:
    sizes: list[int] = []
    fail(torch.Tensor, "backward", 1, epoch=2)
    with watching(loop, "score", lambda model, loader, *args: sizes.append(next(iter(loader))[0].shape[-1])):
        run = quick(train__imgsz=96, recovery__min_imgsz=64, recovery__min_batch=8)
    assert recorded(run) == [(2, "training step", "train.imgsz", 96, 64)]
    assert sizes == [96, 96, 96] and weights_of(run)["imgsz"] == 96


def test_end_of_the_ladder_is_one_clear_line_and_the_state_is_kept(quick: Train, fail: Fail, tmp_path: Path) -> None:
    fail(torch.Tensor, "backward", *range(1, 99), epoch=2)
    with pytest.raises(RunError, match=r"^Out of GPU memory in epoch 2 .*batch 2, .*Nothing is left.*model=") as end:
        quick(**LADDER)
    assert "\n" not in str(end.value)
    (run,) = runs_in(tmp_path / "out")
    assert (read_json(run / "status.json")["state"], len(rows(run)), state_of(run)["epochs_done"]) == ("failed", 1, 1)


def test_recovery_that_is_switched_off_ends_the_run(quick: Train, fail: Fail) -> None:
    fail(torch.Tensor, "backward", 2)
    with pytest.raises(RunError, match=r"Out of GPU memory in epoch 1.*recovery.enabled=true"):
        quick(recovery__enabled="false")


def test_other_errors_are_not_retried(quick: Train, fail: Fail) -> None:
    count = fail(torch.Tensor, "backward", 2, error=RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        quick()
    assert count[0] == 2


@pytest.mark.slow
def test_memory_of_a_failed_attempt_is_free_before_the_next(quick: Train, fail: Fail) -> None:
    models: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def noting(experiment: Any, *args: Any) -> None:
        alive.append(sum(model() is not None for model in models))

    fail(torch.Tensor, "backward", 2, 4, epoch=2)
    with (
        watching(attempts, "Training", noting),
        watching(attempts, "require_space", lambda model, run: models.append(weakref.ref(model))),
    ):
        run = quick(**LADDER, train__ema=0.9)
    assert len(recorded(run)) == 2 and alive == [0, 0, 0]


@pytest.mark.slow
def test_run_stopped_after_a_rung_ends_as_the_one_that_was_not(quick: Train, fail: Fail, tmp_path: Path) -> None:
    def short_of_memory() -> None:
        fail(torch.Tensor, "backward", 2, epoch=2)

    short_of_memory()
    reference = quick(**LADDER)
    short_of_memory()
    run = stopped(quick, tmp_path, 2, attempts.Attempts, "next", **LADDER)
    assert saved.load(run / "config.yaml").train.batch == 4
    assert_same_end(resume(run), reference)
    assert recorded(run) == recorded(reference)


# ---- numbers gone wrong


@pytest.fixture
def spoil(epoch_now: list[int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the losses at some calls in epoch 2 be no numbers."""

    def install(*calls: int) -> None:
        original, count = functional.cross_entropy, [0]

        def spoiled(*args: Any, **kwargs: Any) -> Any:
            count[0] += epoch_now[0] == 2
            found = original(*args, **kwargs)
            return found * float("nan") if epoch_now[0] == 2 and count[0] in calls else found

        monkeypatch.setattr(functional, "cross_entropy", spoiled)

    return install


def test_loss_that_is_no_number_goes_back_and_lowers_the_rate(
    quick: Train, whole: Path, spoil: Callable[..., None]
) -> None:
    spoil(2)
    run = quick()
    assert recorded(run) == [(2, "training step", "optimizer.lr", 0.001, 0.0005)]
    table, sound = rows(run), rows(whole)
    assert table[0] == sound[0]
    assert [float(r["lr"]) for r in table[1:]] == pytest.approx([float(r["lr"]) / 2 for r in sound[1:]])
    assert saved.load(run / "config.yaml").optimizer.lr == 0.0005
    assert all(torch.isfinite(value).all() for value in state_of(run)["model"].values())


@pytest.mark.slow
def test_mixed_precision_is_left_before_the_rate_falls(quick: Train, spoil: Callable[..., None]) -> None:
    spoil(2)
    run = quick(trainer="mixed_precision")
    assert recorded(run) == [(2, "training step", "trainer.name", "mixed_precision", "standard")]
    assert len(rows(run)) == 3


@pytest.mark.slow
def test_losses_that_stay_no_numbers_end_the_run_after_the_retries(
    quick: Train, spoil: Callable[..., None], tmp_path: Path
) -> None:
    spoil(*range(1, 999))
    with pytest.raises(RunError, match=r"diverged in epoch 2.*after 2 retries.*optimizer.lr=0.00025") as end:
        quick()
    assert "\n" not in str(end.value)
    (run,) = runs_in(tmp_path / "out")
    assert (len(rows(run)), state_of(run)["epochs_done"]) == (1, 1)


# ---- once more from the record


def reproduce(run: Path, out: Path, *more: str) -> Path:
    with quick_pictures():
        return folder_of(hsr_train.execute(hsr_train.compose([f"reproduce={run}", f"output_dir={out}", *more])))


def test_reproduction_is_the_same_to_the_bit(whole: Path, data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere" / "colours"))
    run = reproduce(whole, tmp_path / "again", f"data.path={moved}")
    verdict = read_json(run / "reproduction.json")
    assert (verdict["verdict"], verdict["weights"], verdict["variation"]) == ("same", "same", [])
    assert (run / "results.csv").read_bytes() == (whole / "results.csv").read_bytes()


def test_reproduction_on_a_changed_image_is_refused_by_name(whole: Path, data: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(data, tmp_path / "elsewhere" / "colours"))
    change_pixel(moved / "train" / "green" / "001.png")
    with pytest.raises(InputError, match="train/green/001.png: the image changed"):
        reproduce(whole, tmp_path / "again", f"data.path={moved}")
    assert not (tmp_path / "again").exists()
    with pytest.raises(NotReproducedError, match=r"different from .*first in epoch 1"):
        reproduce(whole, tmp_path / "again", f"data.path={moved}", "on_drift=warn")


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        pytest.param((torch.Tensor, "backward", 5), "train.batch", marks=pytest.mark.slow),
        pytest.param((loop, "score", 2), "train.val_batch", marks=pytest.mark.slow),
        ((engine, "score", 1), "train.val_batch"),
    ],
)
def test_rung_of_the_original_is_repeated_at_its_place(quick: Train, tmp_path: Path, fault: Any, key: str) -> None:
    with failing(*fault):
        original = quick(train__epochs=2, **LADDER)
    changes = read_changes(original / "state" / "changes.json")
    assert [change.key for change in changes] == [key]
    run = reproduce(original, tmp_path / "again")
    assert read_json(run / "reproduction.json")["verdict"] == "same"
    assert read_changes(run / "state" / "changes.json") == changes
