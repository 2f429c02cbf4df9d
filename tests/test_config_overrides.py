from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hsr_train.config.compose import compose
from hsr_train.config.overrides import Typed, quote_paths

PATHS = [
    "data.yaml",
    "/abs/data.yaml",
    "../up/data.yaml",
    "my sets/data.yaml",
    "two  spaces /x.yaml",
    "a,b.yaml",
    "a(1).yaml",
    "a [old].yaml",
    "{a}.yaml",
    "ünïcödé/データ.yaml",
    "it's.yaml",
    'say "hi".yaml',
    "'",
    "a'b\"c.yaml",
    "price$5.yaml",
    "${HOME}/data.yaml",
    "$${x}.yaml",
    "a${oc.env:HOME}b",
    "\\${x}",
    "\\\\${x}",
    "k=v.yaml",
    "a&b;c|d.yaml",
    "C:\\data\\x.yaml",
    "trailing\\",
    "back\\'slash",
    "~/data.yaml",
    "null.yaml",
    "1e-3",
    "true",
    "0123",
    "#hash.yaml",
    "percent%20.yaml",
    "choice(a,b)",
    "tab\tname.yaml",
    "-dash.yaml",
    "@at.yaml",
    "*.yaml",
    "a:b.yaml",
    "?.yaml",
    "!bang.yaml",
]


@pytest.mark.parametrize("path", PATHS)
def test_quote_any_path_is_read_by_hydra_as_it_was_typed(path: str) -> None:
    (override,) = quote_paths([f"data.path={path}"])
    assert OmegaConf.create({"path": Typed.parse([override]).value("data.path")}).path == path


def test_quote_any_path_comes_through_a_composition() -> None:
    for path in PATHS[::5]:
        experiment = compose(["gpu_tier=low", f"data.path={path}", f"output_dir={path}", f"model.weights={path}"])
        assert (experiment.data.path, experiment.output_dir, experiment.model.weights) == (path, path, path)


@pytest.mark.parametrize("path", PATHS)
def test_quote_twice_is_quote_once(path: str) -> None:
    once = quote_paths([f"data.path={path}"])
    assert quote_paths(once) == once
    assert Typed.parse(once).value("data.path") is not None


@pytest.mark.parametrize(
    "override",
    [
        "data.path='a b.yaml'", 'data.path="a b.yaml"', r"data.path='it\'s'", "data.cache_dir=null", "data.path=",
        "train.epochs=3",
        "optimizer.lr0=1e-3,1e-2", "--config-dir", "model=yolov8n", "~data", "model.weights_dirs=['a b']",
    ],
)  # fmt: skip
def test_quote_leaves_alone_what_is_quoted_or_no_path(override: str) -> None:
    assert quote_paths([override]) == [override]


def test_quote_keeps_null_a_null_and_reads_added_keys() -> None:
    assert compose(["data.cache_dir=null", "gpu_tier=low"]).data.cache_dir is None
    assert compose(["data.cache_dir=my cache", "gpu_tier=low"]).data.cache_dir == "my cache"
    assert compose(["++data.path=a (1).yaml", "gpu_tier=low"]).data.path == "a (1).yaml"


def test_quote_elements_of_a_list_of_folders() -> None:
    experiment = compose(["model.weights_dirs=[/mnt/my weights,/opt/ä(1)]", "gpu_tier=low"])
    assert experiment.model.weights_dirs == ["/mnt/my weights", "/opt/ä(1)"]
    assert compose(["model.weights_dirs=[]", "gpu_tier=low"]).model.weights_dirs == []


def test_quote_under_multirun_leaves_commas_to_hydra_unless_the_path_exists(tmp_path: Path) -> None:
    assert quote_paths(["data.path=a.yaml,b.yaml"], sweep=True) == ["data.path=a.yaml,b.yaml"]
    assert quote_paths(["data.path=a b.yaml"], sweep=True) == ["data.path='a b.yaml'"]
    there = tmp_path / "a,b.yaml"
    there.touch()
    assert quote_paths([f"data.path={there}"], sweep=True) == [f"data.path='{there}'"]


def test_typed_knows_keys_below_a_section_and_leaves_hydra_out() -> None:
    typed = Typed.parse(["train={epochs:3,device:cpu}", "model=yolov8n", "hydra.verbose=true", "++data.seed=1"])
    assert typed.keys == {"train.epochs", "train.device", "model", "data.seed"}
    assert typed.value("model") == "yolov8n"
    assert typed.of_task == ("train={epochs:3,device:cpu}", "model=yolov8n", "++data.seed=1")
