"""What mode=split divided by holds for every run on its splits: typed otherwise it is refused, else recorded."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from class_sets import make_divided
from classify_runs import COLOURS, make_set, overrides
from detection_runs import read_json

import hsr_train
from hsr_train.data.class_set import ClassificationSet
from hsr_train.data.demo_classes import ensure_demo_classes
from hsr_train.engines.base import Result
from hsr_train.errors import InputError


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, shared_cache: Path) -> Path:
    """Three classes of ten images, in three folds by seed 7; not to be changed."""
    options = {"folds": 3, "seed": 7, "ratio": [0.6, 0.2, 0.2]}
    return make_divided(tmp_path_factory.mktemp("divided") / "set", dict.fromkeys(COLOURS, 10), shared_cache, **options)


def check(data: dict[str, Any], tmp_path: Path, cache: Path, mode: str = "check", **more: Any) -> Result:
    words = overrides(tmp_path, tmp_path / "out", cache, **{"data__path": None, **data, "mode": mode, **more})
    return hsr_train.execute(hsr_train.compose(words))


def refusal(data: dict[str, Any], tmp_path: Path, cache: Path, **more: Any) -> str:
    with pytest.raises(InputError) as caught:
        check(data, tmp_path, cache, **more)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "made"),
    [
        ("folds", "4", "data.folds=3"),
        ("seed", "8", "data.seed=7"),
        ("ratio", "[0.7,0.2,0.1]", "data.ratio=[0.6,0.2,0.2]"),
        ("scheme", "holdout", "data.scheme=kfold"),
        ("groups", "level:1", "data.groups=null"),
    ],
)
def test_typed_value_that_contradicts_the_division_is_refused(
    key: str, value: str, made: str, raw: Path, tmp_path: Path, shared_cache: Path
) -> None:
    said = refusal({"data__raw": raw, f"data__{key}": value}, tmp_path, shared_cache)
    assert f"data.{key}: {value}: the set was divided with {made}" in said
    assert "divide again: mode=split task=classify" in said and value in said.rpartition("mode=split")[2]


def test_all_contradictions_come_in_one_message(raw: Path, tmp_path: Path, shared_cache: Path) -> None:
    said = refusal({"data__raw": raw, "data__folds": 4, "data__seed": 8}, tmp_path, shared_cache)
    assert "data.folds: 4" in said and "data.seed: 8" in said


def test_typed_value_that_agrees_is_taken(raw: Path, tmp_path: Path, shared_cache: Path) -> None:
    agreeing = {"data__folds": 3, "data__seed": 7, "data__ratio": "[0.7,0.1,0.2]"}  # kfold: the test share counts
    check({"data__raw": raw, **agreeing}, tmp_path, shared_cache)


def test_typed_value_without_a_division_has_no_effect_and_is_refused(tmp_path: Path, shared_cache: Path) -> None:
    data = make_set(tmp_path / "set", n_train=2, n_val=2)
    said = refusal({"data__path": data, "data__folds": 3}, tmp_path, shared_cache)
    assert "data.folds: 3: has no effect" in said and "-> leave it out" in said


def test_seed_of_the_built_in_set_is_its_own(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsr_train.data.class_set.ensure_demo_classes", partial(ensure_demo_classes, num_images=8))
    check({"data__path": "demo", "data__seed": 3}, tmp_path, shared_cache)
    said = refusal({"data__path": "demo", "data__seed": 3, "data__folds": 9}, tmp_path, shared_cache)
    assert "data.folds: 9" in said and "mode=split" not in said


def test_records_hold_what_the_set_was_divided_by(
    raw: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hsr_train.engines.classification.engine.ClassificationEngine.train", nothing)
    run = check({"data__raw": raw}, tmp_path, shared_cache, mode="train").run_dir
    assert run is not None
    config = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert (config["folds"], config["seed"], config["ratio"]) == (3, 7, [0.6, 0.2, 0.2])
    manifest = read_json(run / "manifest.json")
    assert manifest["seeds"]["data.seed"] == 7
    decided = {one["key"]: one["reason"] for one in manifest["decisions"]}
    assert {"data.folds", "data.seed", "data.ratio"} <= set(decided) and "split.json" in decided["data.folds"]


def nothing(self: Any, plan: Any, context: Any) -> Result:
    assert isinstance(plan.inputs.dataset, ClassificationSet)
    return Result(run_dir=context.run.path)
