"""What is found out of a search before its first trial, and what is said of it; no sweep is run here."""

from __future__ import annotations

import shlex

import pytest
from omegaconf import OmegaConf

from hsr_train.config.overrides import Typed, quote_paths, written
from hsr_train.sweep.points import distributions
from hsr_train.sweep.space import pasted, read_space

NAMES = ["t v", "a,b", "it's", 'say "hi"', "back\\slash", "a[1]", "a(1)", "{a}", "k=v", "a:b", "${x}", "ünï", "plain"]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '\\"') + '"'


@pytest.mark.parametrize("key", ["data.path", "tensorboard.host"])
@pytest.mark.parametrize("form", ["choice({})", "{}"])
def test_what_is_checked_is_what_trials_type_and_both_mean_what_was_typed(key: str, form: str) -> None:
    is_literal = key == "data.path" and "choice" in form  # elsewhere ${} is a reference, as in any other command
    names = [name for name in NAMES if is_literal or "$" not in name]
    (dimension,) = read_space([f"{key}={form.format(','.join(map(quoted, names)))}"], None, None).dimensions
    trials = [written(key, value) for value in distributions([dimension.line])[key].choices]  # type: ignore[attr-defined]
    assert list(dimension.values) == trials
    lines = quote_paths([f"{key}={value}" for value in trials])
    assert [OmegaConf.create({"v": Typed.parse([line]).value(key)}).v for line in lines] == names


@pytest.mark.parametrize("values", ["1,2", "1e-3,0.01", "null,x", "true,false", "[0.9,0.99],[0.8,0.9]", "{x:1},{x:2}"])
def test_what_is_no_text_is_typed_as_it_is(values: str) -> None:
    (dimension,) = read_space([f"a.b=choice({values})" if "[" in values else f"a.b={values}"], None, None).dimensions
    choices = distributions([dimension.line])["a.b"].choices  # type: ignore[attr-defined]
    assert dimension.values == tuple(f"{value}" for value in choices)
    meant = [override.value() for override in Typed.parse([f"a.b={value}" for value in dimension.values]).parsed]
    assert len(meant) == 2 and not any(isinstance(value, str) and value != "x" for value in meant)


@pytest.mark.parametrize(
    "line", ["train.batch=8", "a=choice(1,2)", "data.path=t v", "data.path=choice('a b','c')", 'a="x$y"', "a='$x'"]
)
def test_a_remedy_comes_through_a_shell(line: str) -> None:
    assert shlex.split(pasted(line)) == [line]
    assert pasted("train.batch=8,16") == "train.batch=8,16" and pasted("a=int(b)") == "'a=int(b)'"
