"""`train.max_steps`: as many whole epochs as a budget of optimizer steps pays for, for both tasks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import classify_runs
import detection_runs
import pytest
import yaml
from cutouts import make_cutouts
from yolo_sets import make_yolo_set

import hsr_train
from hsr_train.decisions import Decisions
from hsr_train.engines.classification import policy
from hsr_train.engines.classification import preparation as classification
from hsr_train.engines.detection import preparation as detection
from hsr_train.engines.detection.trainer import RunTrainer
from hsr_train.errors import InputError
from hsr_train.hardware import detect
from hsr_train.length import decide_epochs

LINEAR = {"synthetic__ratio": 1, "synthetic__schedule": "linear", "synthetic__close_epochs": 1}
NONE = {"train__epochs": None, "train__close_mosaic": None, "tensorboard__enabled": "false"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("max_steps")
    make_cutouts(root / "cutouts")
    make_yolo_set(root / "boxes", n_train=9, n_val=3)
    classify_runs.make_set(root / "classes")
    return root


def words(folder: Path, **more: Any) -> list[str]:
    return detection_runs.overrides(folder / "boxes/data.yaml", folder / "out", folder / "cache", **{**NONE, **more})


def epochs_of(folder: Path, **more: Any) -> int:
    plan = detection.prepare(hsr_train.compose(words(folder, mode="check", **more)), detect(), Decisions())
    assert plan.experiment.train.max_steps is None
    return int(plan.experiment.train.epochs)


def classes(folder: Path, **more: Any) -> list[str]:
    given = {"train__epochs": None, **more}
    return classify_runs.overrides(folder / "classes", folder / "out", folder / "cache", **given)


def counted(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count the calls of a method."""
    calls: list[int] = []
    original = getattr(owner, name)

    def count(self: Any, *args: Any) -> Any:
        calls.append(1)
        return original(self, *args)

    monkeypatch.setattr(owner, name, count)
    return calls


@pytest.mark.parametrize(
    ("budget", "steps", "epochs", "reason"),
    [
        (600, lambda epochs: 50 * epochs, 12, "train.max_steps=600 at 50 steps an epoch"),
        (649, lambda epochs: 50 * epochs, 12, "train.max_steps=649 at 50 steps an epoch"),
        (1, lambda epochs: epochs, 1, "train.max_steps=1 at 1 steps an epoch"),
        (10, lambda epochs: 3 * epochs + (epochs > 1), 3, "train.max_steps=10; these have 10 steps, as epochs differ"),
    ],
)
def test_the_most_epochs_that_a_budget_pays_for(
    budget: int, steps: Callable[[int], int], epochs: int, reason: str
) -> None:
    train, decisions = hsr_train.compose(["train.device=cpu", f"train.max_steps={budget}"]).train, Decisions()
    decide_epochs(train, steps, decisions)
    assert (train.epochs, train.max_steps) == (epochs, None)
    assert str(decisions[0]) == f"train.epochs = {epochs} ({reason})"


def test_one_epoch_is_the_least_and_is_said(caplog: pytest.LogCaptureFixture) -> None:
    train = hsr_train.compose(["train.device=cpu", "train.max_steps=7"]).train
    with caplog.at_level("WARNING"):
        decide_epochs(train, lambda epochs: 50 * epochs, Decisions())
    assert train.epochs == 1 and "One epoch has 50 optimizer steps, more than train.max_steps=7" in caplog.text


@pytest.mark.parametrize("more", [{}, {"synthetic__annotated_dir": True, **LINEAR}], ids=["real", "composed"])
def test_detection_makes_as_many_steps_as_were_counted(
    more: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {key: folder / "cutouts" if value is True else value for key, value in more.items()}
    calls = counted(RunTrainer, "optimizer_step", monkeypatch)
    with detection_runs.quick_pictures():
        run = hsr_train.execute(hsr_train.compose(words(folder, train__max_steps=14, **more))).run_dir
    assert run is not None
    saved = yaml.safe_load((run / "config.yaml").read_text())["train"]
    reason = next(
        d["reason"] for d in detection_runs.read_json(run / "manifest.json")["decisions"] if d["key"] == "train.epochs"
    )
    told = re.search(r"these have (\d+) steps", reason)
    assert told is not None, reason
    assert len(calls) == int(told[1]) <= 14
    assert len(detection_runs.rows(run)) == saved["epochs"] > 2
    assert saved["max_steps"] is None and saved["close_mosaic"] == saved["epochs"] // 5
    # A run that goes on, or is repeated, has its epochs.
    for again in (["reproduce", run], ["resume", run]):
        more_epochs = ["train.epochs=9"] if again[0] == "resume" else []
        train = hsr_train.compose([f"{again[0]}={again[1]}", *more_epochs]).train
        assert (train.epochs, train.max_steps) == (9 if more_epochs else saved["epochs"], None)


def test_a_smaller_batch_or_more_composed_images_train_no_longer(folder: Path) -> None:
    cut = {"synthetic__annotated_dir": folder / "cutouts"}
    of_batch = [epochs_of(folder, train__max_steps=60, train__nbs=1, train__batch=batch) for batch in (2, 4, 9)]
    assert of_batch == [12, 20, 60]
    of_ratio = [
        epochs_of(folder, train__max_steps=60, train__nbs=1, synthetic__ratio=ratio, **cut) for ratio in (0, 1, 3)
    ]
    assert of_ratio == [20, 12, 6]


@pytest.mark.parametrize(
    ("more", "key"),
    [
        ({"train__swa": "true"}, "train.swa"),
        ({"train__close_mosaic": 9}, "train.close_mosaic"),
        ({"synthetic__annotated_dir": True, "synthetic__close_epochs": 9}, "synthetic.close_epochs"),
    ],
)
def test_what_does_not_fit_into_the_epochs_is_refused_when_they_are_known(
    more: dict[str, Any], key: str, folder: Path
) -> None:
    more = {name: folder / "cutouts" if value is True else value for name, value in more.items()}
    with pytest.raises(InputError, match="train.epochs") as caught:
        epochs_of(folder, train__max_steps=6, **more)
    assert [p.key for p in caught.value.problems] == [key]


@pytest.mark.parametrize(
    ("more", "steps", "epochs"),
    [({}, 9, 3), ({"trainer__gradient_accumulation_steps": 2}, 4, 2)],
    ids=["plain", "accumulated"],
)
def test_classification_makes_as_many_steps_as_were_counted(
    more: dict[str, Any], steps: int, epochs: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counted(policy.Policy, "step", monkeypatch)  # 18 images: 3 batches
    run = classify_runs.folder_of(
        hsr_train.execute(hsr_train.compose(classes(folder, train__max_steps=steps + 1, **more)))
    )
    saved = yaml.safe_load((run / "config.yaml").read_text())["train"]
    assert (len(calls), saved["epochs"], saved["max_steps"]) == (steps, epochs, None)
    assert "_steps_" in run.name


def test_classification_counts_no_batch_that_is_left_out_and_those_of_private_training(folder: Path) -> None:
    def epochs(**more: Any) -> int:
        given = classes(folder, mode="check", train__max_steps=12, **more)
        plan = classification.prepare(hsr_train.compose(given), detect(), Decisions())
        return int(plan.experiment.train.epochs)

    assert epochs(train__batch=17) == 6  # the network takes a single image
    assert epochs(train__batch=17, model__name="resnet18") == 12
    assert epochs(trainer="dp", trainer__noise_multiplier=1.0, train__batch=6) == 4


@pytest.mark.parametrize("task", ["detect", "classify"])
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["train.epochs=3"], "train.max_steps: 9: has no effect with train.epochs"),
        (["train.time_budget=3min"], "train.max_steps: 9: does not go with train.time_budget"),
        (["train.finish_by=12:00"], "train.max_steps: 9: does not go with train.finish_by"),
    ],
)
def test_beside_another_length_it_is_refused(task: str, typed: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        hsr_train.compose([f"task={task}", "train.device=cpu", "train.max_steps=9", *typed])
    assert message in str(caught.value)


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_typed_epochs_replace_the_budget_of_a_file(task: str, tmp_path: Path) -> None:
    file = tmp_path / "preset" / "short.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\ntrain:\n  max_steps: 5\n")
    base = [f"task={task}", "train.device=cpu", "preset=short"]
    assert hsr_train.compose(base, config_dir=tmp_path).train.max_steps == 5
    experiment = hsr_train.compose([*base, "train.epochs=30"], config_dir=tmp_path)
    assert (experiment.train.epochs, experiment.train.max_steps) == (30, None)
    assert "train.max_steps = None (train.epochs=30 is typed; without that 5)" in map(str, experiment.origin.decisions)
