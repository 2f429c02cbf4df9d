"""Goals and limits of a search beside the one metric: costs, constraints, and what is shown of both."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import yaml
from fake_machines import gpu, machine

from hsr_train.bookkeeping import peak_vram_gb
from hsr_train.cli import main
from hsr_train.engines import latency
from hsr_train.engines.registry import ENGINES
from hsr_train.errors import InputError
from hsr_train.run.directory import RunDirectory
from hsr_train.run.throughput import TIMING_COLUMNS
from hsr_train.sweep import figures
from hsr_train.sweep.objectives import broken, excess, limits, not_measurable
from hsr_train.sweep.progress import line
from hsr_train.sweep.report import write_report
from hsr_train.sweep.results import write_best, write_leaderboard
from hsr_train.sweep.samplers import sampler_for
from hsr_train.sweep.space import Dimension, Space
from hsr_train.sweep.storage import open_storage
from hsr_train.sweep.study import Study
from hsr_train.sweep.study_types import Pruning, Spec, Standing
from hsr_train.sweep.summary import Summary, TrialSummary
from hsr_train.sweep.sweeper import _conclude
from hsr_train.sweep.varied import without_effect
from hsr_train.sweep.worker import this_process

WORDS = ["train.device=cpu", "train.epochs=2", "train.close_mosaic=1", "tensorboard.enabled=false"]


def asked(constraints: Any, task: str = "detect", objective: Any = None, **train: Any) -> Any:
    """Return as much of an experiment as says what is searched for."""
    settings = {"device": "auto", "measure_latency": False, **train}
    return SimpleNamespace(
        task=task,
        sweep=SimpleNamespace(constraints=constraints, objective=objective),
        train=SimpleNamespace(**settings),
        origin=SimpleNamespace(typed=[f"train.{key}" for key in train]),
    )


# ---- what may be typed


def test_limits_are_numbers_by_name() -> None:
    found, problems = limits(asked({"peak_vram_gb": 8, "latency_ms": 20.5, "recall": 0.6}))
    assert (found, problems) == ({"peak_vram_gb": 8.0, "latency_ms": 20.5, "recall": 0.6}, [])
    assert limits(asked(None)) == ({}, [])


@pytest.mark.parametrize(
    ("constraints", "value", "allowed"),
    [
        ({"latency": 20}, "latency", "there are mAP50-95, mAP50, precision, recall, training_time_minutes, latency_ms"),
        ({"accuracy": 0.5}, "accuracy", "task=detect reports no such value"),
        ({"latency_ms": "fast"}, "latency_ms: fast", "must be a number"),
        ({"latency_ms": True}, "latency_ms: true", "must be a number"),
        ({"latency_ms": float("nan")}, "latency_ms: nan", "must be a number"),
        ({"latency_ms": 0}, "latency_ms: 0", "holds for no run"),
        ({"recall": 1.2}, "recall: 1.2", "holds for no run"),
        ({"recall": 0}, "recall: 0", "holds for every run"),
        (8, "8", "must be a mapping"),
        (["latency_ms"], "[latency_ms]", "must be a mapping"),
    ],
)
def test_a_limit_that_cannot_be_is_named(constraints: Any, value: str, allowed: str) -> None:
    (problem,) = limits(asked(constraints))[1]
    assert (problem.key, problem.value) == ("sweep.constraints", value)
    assert allowed in problem.allowed and "sweep.constraints={" in problem.remedy


def test_every_wrong_limit_is_named_at_once() -> None:
    assert len(limits(asked({"latency_ms": -1, "speed": 1, "recall": 0.5}))[1]) == 2


def test_memory_of_a_gpu_is_refused_where_there_is_none() -> None:
    goals = ["mAP50-95", "peak_vram_gb"]
    limited = asked({"peak_vram_gb": 8})
    (problem,) = not_measurable(limited, goals, machine())
    assert (problem.key, problem.value, problem.remedy) == ("sweep.constraints", "peak_vram_gb", "leave it out")
    (problem,) = not_measurable(asked(None, objective=goals), goals, machine())
    assert problem.key == "sweep.objective"
    assert len(not_measurable(asked(None, device="cpu"), goals, machine(gpu(0, 24)))) == 1
    assert not_measurable(limited, goals, machine(gpu(0, 24))) == []
    assert not_measurable(limited, ["mAP50-95"], machine()) == []


def test_a_latency_that_is_not_to_be_measured_is_no_goal() -> None:
    (problem,) = not_measurable(asked(None, measure_latency=False), ["latency_ms"], machine())
    assert (problem.key, problem.value) == ("train.measure_latency", "false")
    assert not_measurable(asked(None), ["latency_ms"], machine()) == [], "it is turned on where nobody typed it"


@pytest.mark.parametrize(
    ("key", "goals", "has_effect"),
    [
        ("train.workers", ["mAP50-95", "latency_ms"], False),
        ("train.cache", ["latency_ms", "peak_vram_gb"], False),
        ("train.val_batch", ["mAP50-95", "latency_ms"], False),
        ("train.measure_latency", ["latency_ms", "training_time_minutes"], False),
        ("train.workers", ["mAP50-95", "training_time_minutes"], True),
        ("train.val_batch", ["mAP50-95", "peak_vram_gb"], True),
    ],
)
def test_keys_that_change_no_metric_need_a_cost_that_they_change(key: str, goals: list[str], has_effect: bool) -> None:
    space = Space((Dimension(key, "1,2", ("1", "2"), True),), ())
    if has_effect:  # it is compared, by what composing makes of it
        with pytest.raises(KeyError):
            without_effect(space, {}, goals)
        return
    (problem,) = without_effect(space, {}, goals)
    assert (problem.key, problem.allowed) == (key, f"has no effect on {', '.join(goals)}")


# ---- what a limit is to the study


def test_excess_is_a_share_of_the_limit_and_said_in_its_unit() -> None:
    limited = {"latency_ms": 20.0, "recall": 0.6, "peak_vram_gb": 8.0}
    measured = {"latency_ms": 31.2, "recall": 0.45, "peak_vram_gb": 8.0}
    assert excess(limited, measured) == pytest.approx({"latency_ms": 0.56, "recall": 0.25, "peak_vram_gb": 0.0})
    assert broken(limited, measured) == "latency_ms 31.2 > 20, recall 0.45 < 0.6", "at the limit it holds"
    assert broken(limited, {"latency_ms": 3.0, "recall": 0.9, "peak_vram_gb": 1.0}) == ""


LIMITED = {"latency_ms": 20.0}


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Any]:
    """Open a study in a file of its own, as one worker."""
    opened: list[Study] = []

    def make(n_trials: int, constraints: dict[str, float], sampler: str = "tpe", **more: Any) -> Study:
        spec = Spec(
            f"journal:{tmp_path / 'study.log'}", "goals", "detect",
            **{
                "objectives": ["mAP50-95"], "directions": ["maximize"], "n_trials": n_trials, "sampler": sampler,
                "lines": ["x=interval(0,1)"], "fixed": [], "seed": 7, "constraints": constraints, **more,
            },
        )  # fmt: skip
        study = Study()
        opened.append(study)
        study.open(spec, this_process())
        return study

    yield make
    for study in opened:
        study.close()


def finish(study: Study, value: float | list[float], latency_ms: float) -> None:
    claim = study.claim()
    assert claim is not None and claim.number is not None
    values = value if isinstance(value, list) else [value]
    assert study.tell(claim.number, "complete", values, {"measured": {"latency_ms": latency_ms}})


def seen(tmp_path: Path) -> optuna.Study:
    """Return the study as anybody finds it."""
    return optuna.load_study(study_name="goals", storage=open_storage(f"journal:{tmp_path / 'study.log'}"))


def test_the_best_is_the_best_that_holds_the_limits(made: Any, tmp_path: Path) -> None:
    study = made(3, LIMITED)
    for value, latency_ms in ((0.9, 31.2), (0.5, 20.0), (0.4, 5.0)):
        finish(study, value, latency_ms)
    standing: Standing = study.standing()
    assert [number for number, _, _ in standing.best] == [1] and standing.nearest is None
    theirs = seen(tmp_path)
    assert theirs.best_trial.number == 1, "whatever else opens the study sees it, too"
    assert [t.constraints for t in theirs.trials] == [
        {"latency_ms": pytest.approx(0.56)}, {"latency_ms": 0.0}, {"latency_ms": pytest.approx(-0.75)},
    ]  # fmt: skip


def test_where_no_trial_holds_the_limits_the_nearest_is_named(
    made: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    study = made(2, LIMITED)
    finish(study, 0.9, 40.0)
    finish(study, 0.1, 21.0)
    standing = study.standing()
    with caplog.at_level(logging.WARNING):
        _conclude([study.spec], [standing], [], tmp_path, says=True)
    assert "there is no best.yaml. The nearest is trial 1, which breaks latency_ms 21 > 20" in caplog.text
    assert standing.best == [] and standing.nearest == (1, "latency_ms 21 > 20")
    study.show(tmp_path)
    assert not (tmp_path / "best.yaml").exists()
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["state"], row["breaks"]) for row in rows] == [
        ("", "complete", "latency_ms 40 > 20"), ("", "complete", "latency_ms 21 > 20"),
    ]  # fmt: skip


def test_of_several_goals_only_what_holds_the_limits_is_on_the_front(made: Any, tmp_path: Path) -> None:
    several = {"objectives": ["mAP50-95", "latency_ms"], "directions": ["maximize", "minimize"]}
    study = made(4, {"latency_ms": 20.0}, **several)
    for value, latency_ms in ((0.9, 31.2), (0.5, 20.0), (0.4, 5.0), (0.3, 6.0)):
        finish(study, [value, latency_ms], latency_ms)
    assert sorted(number for number, _, _ in study.standing().best) == [1, 2]
    _, summary = study._summary(tmp_path)
    assert [t.number for t in summary.front] == [1, 2] and summary.ranks == {1: 1, 2: 1, 3: 2}


def test_a_worker_killed_between_constraint_and_result_loses_nothing(made: Any, tmp_path: Path) -> None:
    study = made(1, LIMITED)
    claim = study.claim()
    trial_id = study.storage.get_trial_id_from_study_id_trial_number(study.study_id, claim.number)
    study.storage.set_trial_system_attr(trial_id, "constraints:latency_ms", 0.5)
    _, summary = study._summary(tmp_path)
    assert [t.broken for t in summary.trials] == [""]
    assert study.tell(claim.number, "complete", [0.5], {"measured": {"latency_ms": 10.0}})
    assert seen(tmp_path).trials[0].constraints == {"latency_ms": -0.5}


def test_another_limit_is_another_study(made: Any) -> None:
    made(1, LIMITED)
    with pytest.raises(InputError, match="its constraints: {'latency_ms': 20.0}"):
        made(1, {"latency_ms": 25.0})


@pytest.mark.parametrize("is_limited", [True, False], ids=["limited", "without limits"])
def test_trials_that_break_a_limit_end_no_other_one(made: Any, is_limited: bool) -> None:
    """Three slow ones are the best at each epoch; one that is fast has a value below theirs, and goes on."""
    pruning = Pruning("median", warmup=0, startup=2, steps=3)
    study = made(4, LIMITED if is_limited else {}, pruning=pruning)
    for _ in range(3):
        claim = study.claim()
        assert not study.report(claim.number, 1, 3, 0.9)
        study.tell(claim.number, "complete", [0.9], {"measured": {"latency_ms": 30.0}})
    assert study.report(study.claim().number, 1, 3, 0.5) is not is_limited


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_samplers_seek_what_holds_the_limits(sampler: str) -> None:
    """The value rises with x, and so does the time: without the limit the next would be tried at the end of x."""
    space, tried = {"x": optuna.distributions.FloatDistribution(0, 1)}, {}
    for limited in (LIMITED, {}):
        study = optuna.create_study(direction="maximize", sampler=sampler_for(sampler, 7, 13))
        for x in np.linspace(0.02, 0.98, 13):
            share = excess(limited, {"latency_ms": 60 * x})
            study.add_trial(optuna.trial.create_trial(params={"x": x}, distributions=space, value=x, constraints=share))
        tried[bool(limited)] = study.ask(space).params["x"]
    assert tried[True] < 0.5 < tried[False]


# ---- what is shown


def summary(objectives: list[str], trials: list[TrialSummary]) -> Summary:
    directions = ["minimize" if name == "latency_ms" else "maximize" for name in objectives]
    return Summary("s", "detect", objectives, directions, 9, [], trials, constraints={"latency_ms": 20.0})


def several() -> list[TrialSummary]:
    return [
        TrialSummary(0, "complete", [0.9], measured={"latency_ms": 31.2}, broken="latency_ms 31.2 > 20"),
        TrialSummary(1, "complete", [0.5], measured={"latency_ms": 19.0}),
        TrialSummary(2, "pruned", [0.2]),
    ]


def test_report_and_leaderboard_say_which_limit_is_broken_by_how_much(tmp_path: Path) -> None:
    found = summary(["mAP50-95"], several())
    write_report(found, ["too few"], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "breaks latency_ms 31.2 &gt; 20" in page and "Constraints: latency_ms at most 20" in page
    assert "Best: trial 1" in page and "<th>latency_ms</th>" in page
    write_leaderboard(found, tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rank"], row["trial"], row["latency_ms"], row["breaks"]) for row in rows] == [
        ("1", "1", "19.0", ""), ("", "0", "31.2", "latency_ms 31.2 > 20"), ("", "2", "", ""),
    ]  # fmt: skip
    assert "1 broke a constraint; best: trial 1" in line(found)


def test_without_a_trial_that_holds_there_is_no_best(tmp_path: Path) -> None:
    found = summary(["mAP50-95"], several()[:1])
    assert write_best(found, tmp_path) is None and list(tmp_path.iterdir()) == []
    write_report(found, ["too few"], tmp_path)
    assert "No complete trial holds the constraints." in (tmp_path / "report.html").read_text()


def test_pareto_figure_tells_beaten_from_broken() -> None:
    trials = [
        TrialSummary(0, "complete", [0.9, 31.2], broken="latency_ms 31.2 > 20"),
        TrialSummary(1, "complete", [0.5, 19.0]),
        TrialSummary(2, "complete", [0.4, 5.0]),
        TrialSummary(3, "complete", [0.3, 6.0]),
    ]
    figure = figures.pareto(summary(["mAP50-95", "latency_ms"], trials))
    assert figure is not None
    shown = {str(drawn.get_label()): list(drawn.get_xdata()) for drawn in figure.axes[0].get_lines()}
    assert shown == {"beaten by another": [0.3], "breaks a constraint": [0.9], "Pareto front": [0.4, 0.5]}
    assert figure.axes[0].get_ylabel() == "latency_ms (less is better)"


# ---- the command


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search for accuracy and speed, of which the last batch is too slow; `said` is its log; not to be changed."""
    folder = tmp_path_factory.mktemp("goals")
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()) as said:
        patch.chdir(folder)
        patch.setitem(ENGINES, "detect", "sweep_engine:SweepEngine")
        goals = ["sweep.objective=[mAP50-95,latency_ms]", "sweep.constraints={latency_ms: 8, recall: 0.5}"]
        assert main(["-m", *WORDS, "train.batch=2,8,16", *goals, "sweep.dir=sweep"]) == 0
    (folder / "said").write_text(said.getvalue())
    return folder / "sweep"


def test_a_latency_as_a_goal_is_measured_in_each_trial(swept: Path) -> None:
    for number in range(3):
        record = json.loads((swept / "trials" / str(number) / "training_result.json").read_text())
        assert record["latency_ms"] == record["config"]["train"]["batch"]
        assert record["config"]["train"]["measure_latency"] is True


def test_the_front_of_a_search_is_what_holds_its_limits(swept: Path) -> None:
    with (swept / "leaderboard.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:7] == ["rank", "trial", "state", "mAP50-95", "latency_ms", "recall", "breaks"]
    assert [(row["rank"], row["trial"], row["breaks"]) for row in rows] == [
        ("1", "0", ""), ("1", "1", ""), ("", "2", "latency_ms 16 > 8"),
    ]  # fmt: skip
    best = yaml.safe_load((swept / "best.yaml").read_text())
    assert best["train"]["batch"] == 8, "the best in the first goal"
    assert best["train"]["measure_latency"] is True
    said = (swept.parent / "said").read_text()
    assert "sweep.sampler=grid does not look at sweep.constraints" in said
    assert "latency_ms 16; it breaks latency_ms 16 > 8" in said
    page = (swept / "report.html").read_text()
    assert "Pareto front" in page and "Constraints: latency_ms at most 8, recall at least 0.5" in page


def test_bad_goals_are_refused_before_the_first_trial(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep.constraints={peak_vram_gb: 8, speed: 2}", "sweep.pruner=hyperband", "sweep.dir=sweep"]
    assert main(["-m", *WORDS, "optimizer.lr0=interval(1e-4,1e-2)", *words]) == 2
    errors = capsys.readouterr().err
    for text in ("is memory of a GPU", "reports no such value", "compares with trials that break sweep.constraints"):
        assert text in errors
    assert not Path("sweep").exists()


# ---- what is measured


def test_latency_is_the_median_of_fifty_passes_and_disturbs_nothing() -> None:
    counted: list[int] = []

    def prepare() -> list[latency.Pass]:
        assert torch.get_deterministic_debug_mode() == 0, "as in prediction"
        return [lambda place=place: (counted.append(place), torch.rand(3), np.random.rand()) for place in range(3)]

    torch.set_deterministic_debug_mode("warn")
    try:
        torch.manual_seed(1)
        np.random.seed(1)
        expected = torch.rand(2).tolist(), np.random.rand()
        torch.manual_seed(1)
        np.random.seed(1)
        assert latency.median_latency_ms(prepare, "cpu") > 0
        assert (torch.rand(2).tolist(), np.random.rand()) == expected
        assert torch.get_deterministic_debug_mode() == 1
    finally:
        torch.set_deterministic_debug_mode("default")
    assert len(counted) == latency.WARM_UP + 50 and counted[:4] == [0, 1, 2, 0]


def test_latency_of_a_slow_network_rests_on_five_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "LIMIT_S", 0.0)
    counted: list[int] = []
    latency.median_latency_ms(lambda: [lambda: counted.append(1)], "cpu")
    assert len(counted) == latency.WARM_UP + 5


def test_peak_memory_is_that_of_all_epochs_in_units_of_1e9_bytes(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert peak_vram_gb(run) is None
    values = dict.fromkeys(TIMING_COLUMNS, "1.0")
    lines = [",".join(TIMING_COLUMNS)]
    for epoch, gib in enumerate(("", "7.5", "6.0"), start=1):  # the first is of an earlier version
        lines.append(",".join((values | {"epoch": str(epoch), "gpu_memory_gib": gib}).values()))
    run.timings_csv.write_text("\n".join(lines) + "\n")
    assert peak_vram_gb(run) == pytest.approx(7.5 * 2**30 / 1e9, abs=1e-4)
    run.timings_csv.write_text("\n".join(lines[:2]) + "\n")
    assert peak_vram_gb(run) is None, "on a CPU"
