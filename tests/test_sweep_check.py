"""What is found out of a search before its first trial, and what is said of it; no sweep is run here."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import refused_commands
from omegaconf import OmegaConf
from refused_commands import Refused
from test_sweep_after import search_spec, stage_spec

from hsr_train.config.compose import compose
from hsr_train.config.overrides import Typed, quote_paths, written
from hsr_train.errors import InputError
from hsr_train.sweep.plan import _fixed
from hsr_train.sweep.points import distributions
from hsr_train.sweep.pruning import never_prunes
from hsr_train.sweep.space import pasted, read_space
from hsr_train.sweep.study import Study
from hsr_train.sweep.study_types import Pruning, Standing
from hsr_train.sweep.sweeper import _said_first
from hsr_train.sweep.worker import this_process

refused = refused_commands.refused  # the fixture
LR = "optimizer.lr0=tag(log,interval(1e-4,1e-2))"
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


def test_settings_of_a_sweep_make_no_other_study_however_they_are_typed() -> None:
    space = read_space(["sweep={n_trials: 3}", "sweep.jobs=2", "train.epochs=3", LR], None, None)
    assert _fixed(space) == ["train.epochs=3"]


@pytest.fixture
def door() -> Iterator[Study]:
    made = Study()
    yield made
    made.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgres://me:secret@h/x", "is of no kind of database known here"),
        ("mysql+nonsense://h/x", "is of no kind of database known here"),
        ("sqlite:////mistyped/x.db", "cannot be used: /mistyped does not exist"),
        ("journal:/mistyped/x.log", "cannot be used: /mistyped does not exist"),
    ],
)
def test_a_check_refuses_a_storage_like_the_search_itself(url: str, message: str, door: Study, tmp_path: Path) -> None:
    said = []
    for call in (door.check, door.open):
        with pytest.raises(InputError) as refusal:
            call(replace(search_spec(tmp_path), url=url), tmp_path if call == door.check else this_process())  # type: ignore[operator]
        said.append(str(refusal.value))
    assert said[0] == said[1] and message in said[0] and "secret" not in said[0]


@pytest.mark.parametrize("enqueue", [[{"optimizer.lr": 0.01}], [{"optimizer.lr0": 5}], [{"optimizer.lr0": "abc"}]])
def test_a_check_refuses_points_outside_the_search(
    enqueue: list[dict[str, object]], door: Study, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="sweep.enqueue: optimizer"):
        door.check(replace(search_spec(tmp_path), lines=[LR], enqueue=enqueue), tmp_path)


def test_a_check_makes_nothing_and_reads_what_is_there(door: Study, tmp_path: Path) -> None:
    spec = search_spec(tmp_path)
    assert door.check(spec, tmp_path) is None and not [*tmp_path.iterdir()]
    worker = Study()
    worker.open(spec, this_process())
    worker.close()
    before = (tmp_path / "study.db").read_bytes()
    assert door.check(spec, tmp_path) is None and (tmp_path / "study.db").read_bytes() == before
    with pytest.raises(InputError, match="is another one: it lacks train.seed=7"):
        door.check(replace(spec, fixed=[*spec.fixed, "train.seed=7"]), tmp_path)
    (tmp_path / "study.db").write_text("junk " * 1000)
    with pytest.raises(InputError, match="cannot be used: file is not a database"):
        door.check(spec, tmp_path)


def test_a_check_asks_no_server_and_says_so(door: Study, tmp_path: Path) -> None:
    spec = replace(search_spec(tmp_path), url="mysql+pymysql://me:secret@127.0.0.1:1/x")
    try:
        said = door.check(spec, tmp_path)
    except InputError as refusal:  # its package is no part of hsr_train
        assert "needs a package that is not installed: pymysql" in str(refusal)
    else:
        assert said == "sweep.storage: its server was not asked: mysql+pymysql://me:***@127.0.0.1:1/x"


def test_mode_check_refuses_what_the_search_would(refused: Refused, tmp_path: Path) -> None:
    words = ["-m", "train.device=cpu", LR, "mode=check"]
    refused([*words, "sweep.enqueue=[{optimizer.lr0: 5}]"], ["optimizer.lr0: 5: is outside the search"])
    refused([*words, "sweep.dir=/proc/x"], ["sweep.dir: /proc/x: cannot be made"])
    assert not [*tmp_path.rglob("*sweep*")]


@pytest.mark.parametrize(
    ("typed", "remedy"),
    [
        ("optimizer.lr0=log(interval(1e-4,1e-2))", "'optimizer.lr0=tag(log,interval(1e-4,1e-2))'"),
        ("optimizer.lr0=log(1e-4,1e-2)", "'optimizer.lr0=tag(log,interval(1e-4,1e-2))'"),
        ("optimizer.lr0=loguniform(1e-4, 1e-2)", "'optimizer.lr0=tag(log,interval(1e-4, 1e-2))'"),
        ("optimizer.lr0=uniform(0,1)", "'optimizer.lr0=interval(0,1)'"),
        ("output_dir=runs(1)", "'output_dir=\"runs(1)\"'"),
    ],
)
def test_a_distribution_of_another_name_is_told_ours(typed: str, remedy: str) -> None:
    with pytest.raises(InputError) as refusal:
        Typed.parse([typed])
    (problem,) = refusal.value.problems
    assert problem.allowed.startswith("there is no function ") and problem.remedy == remedy
    (read,) = Typed.parse(shlex.split(str(problem.remedy))).parsed
    assert read.is_sweep_override() == ("interval" in remedy)


def test_a_single_point_is_told_to_be_a_list(refused: Refused) -> None:
    messages = ["sweep.enqueue: must be a list such as [A,B], each any value\n", "-> sweep.enqueue=[{...}]\n"]
    refused(["-m", LR, "train.device=cpu", "sweep.enqueue={optimizer.lr0: 0.001}"], messages)
    with pytest.raises(InputError) as refusal:
        compose(["sweep.enqueue={optimizer.lr0: 0.001}", "gpu_tier=low"])
    (problem,) = refusal.value.problems
    assert (problem.key, problem.value) == ("sweep.enqueue", "{'optimizer.lr0': 0.001}")
    assert problem.remedy == "'sweep.enqueue=[{optimizer.lr0: 0.001}]'"
    assert compose([*shlex.split(problem.remedy), "gpu_tier=low"]).sweep.enqueue == [{"optimizer.lr0": 0.001}]


@pytest.mark.parametrize(
    "text", ["task: detect\n", "train: {epochs: 2}\n", "sweep: {n_trials: 2}\n", "hydra: {a: 1}\n"]
)
def test_a_file_of_a_search_without_its_first_line_is_told_that_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep" / "ours.yaml"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(InputError) as refusal:
        compose(["sweep=ours", "gpu_tier=low"], tmp_path)
    (problem,) = refusal.value.problems
    assert problem.key == f"sweep/ours.yaml: sweep.{text.partition(':')[0]}"
    assert problem.remedy == "begin the file with the line: # @package _global_"
    file.write_text("n_trials: 2\nsede: 1\n")  # which is meant for the section
    with pytest.raises(InputError, match=r"sweep\.sede: unknown key\n.*sweep\.seed"):
        compose(["sweep=ours", "gpu_tier=low"], tmp_path)


@pytest.mark.parametrize(
    ("pruning", "lengths", "warns"),
    [
        (Pruning("median", 3, 3, 5), [5], False),  # epoch 4 is the first that may end a trial
        (Pruning("median", 4, 3, 5), [5], True),  # epoch 5 is the last one, which is not reported
        (Pruning("hyperband", 100, 3, 2), [2], True),
        (Pruning("none", 100, 3, 2), [2], False),
        (Pruning("wilcoxon", 100, 3, 5), [5], False),  # it compares folds, and has no warm-up
        (Pruning("median", 0, 3, 20, is_by_share=True, quiet=8), [5, 10], False),
        (Pruning("median", 0, 3, 20, is_by_share=True, quiet=9), [5, 10], True),
        (Pruning("median", 0, 3, 20, is_by_share=True, quiet=9), [], False),  # decided later
        (Pruning("median", 0, 3, 20, is_by_share=True), [1, 2], False),
        (None, [2], False),
    ],
)
def test_a_warm_up_that_nothing_outlives_is_a_warning(pruning: Pruning | None, lengths: list[int], warns: bool) -> None:
    said = never_prunes(pruning, lengths)
    assert (said is not None) == warns
    assert said is None or "sweep.pruner_warmup=" in said


@pytest.mark.parametrize(
    ("seeds", "total", "complete", "said"),
    [
        ((1,), 1, 3, "After the search, 1 repeat of its best trial with train.seed 1"),
        ((1, 2), 2, 3, "After the search, 2 repeats of its best trial with train.seed 1, 2"),
        ((1, 2), 6, 3, "After the search, 6 repeats of its 3 best trials with train.seed 1, 2"),
        ((1,), 0, 0, "After the search, no repeats: none of its trials is complete"),
        ((1,), 0, 1, "After the search, no repeats: of its 1 complete trial none holds sweep.constraints"),
        ((1,), 0, 4, "After the search, no repeats: of its 4 complete trials none holds sweep.constraints"),
    ],
)
def test_what_comes_after_a_search_is_said(
    seeds: tuple[int, ...], total: int, complete: int, said: str, tmp_path: Path
) -> None:
    search = Standing(4, {"complete": complete}, {}, [], 0, [])
    assert _said_first(stage_spec(tmp_path, seeds), total, search) == said
