"""What a sweep shows while it runs and leaves behind: small studies made by hand, and one through the command."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.trial import TrialState, create_trial

from hsr_train.cli import main
from hsr_train.config.compose import compose
from hsr_train.config.saved import plain
from hsr_train.engines.registry import ENGINES
from hsr_train.errors import PrunedError
from hsr_train.run.hparams import Session, write_sessions
from hsr_train.sweep import figures
from hsr_train.sweep.ends import pruned
from hsr_train.sweep.progress import left, line, table
from hsr_train.sweep.report import write_report
from hsr_train.sweep.reporting import Reporter
from hsr_train.sweep.results import command_of, write_best, write_leaderboard
from hsr_train.sweep.summary import Parameter, Summary, TrialSummary, importances, summarize

SPACE: dict[str, BaseDistribution] = {
    "optimizer.lr0": FloatDistribution(1e-4, 1e-1, log=True),
    "model": CategoricalDistribution(["yolov8n", "yolov8s"]),
}
ERROR = """Traceback (most recent call last):
  File "a.py", line 3
    x
hsr_train.errors.RunError: out of <b>memory</b>
To go on: resume

In /sweep/trials/1/logs/train.log:
Traceback (most recent call last):
KeyError: 'other'
"""
Trials = Sequence[Mapping[str, Any]]


def study_of(trials: Trials, objectives: Sequence[str] = ("mAP50-95",), space: Any = None) -> optuna.Study:
    """Return a study with the signature of ours; a trial is state, values, params and what else is known of it."""
    space = SPACE if space is None else space
    directions = ["minimize" if name == "training_time_minutes" else "maximize" for name in objectives]
    study = optuna.create_study(study_name="by_hand", directions=directions)
    forms = {name: json.loads(distribution_to_json(d)) for name, d in space.items()}
    signature = {"task": "detect", "objectives": list(objectives), "space": forms, "command": ["x", "-m", "a=1,2"]}
    for key, value in signature.items():
        study.set_user_attr(key, value)
    for trial in trials:
        given = dict(trial)
        state, values, params = given.pop("state", "COMPLETE"), given.pop("values", None), given.pop("params", {})
        steps = given.pop("steps", None)
        study.add_trial(
            create_trial(
                state=TrialState[state], values=values, params=params, user_attrs=given, intermediate_values=steps,
                distributions={name: space[name] for name in params},
            )
        )  # fmt: skip
    return study


def summary_of(home: Path, trials: Trials, objectives: Sequence[str] = ("mAP50-95",), n_trials: int = 9) -> Summary:
    study = study_of(trials, objectives)
    return summarize(study, study.get_trials(), n_trials, home)


def point(lr0: float, model: str = "yolov8n") -> dict[str, Any]:
    params = {"optimizer.lr0": lr0, "model": model}
    return {"params": params, "overrides": [f"{key}={value}" for key, value in params.items()]}


def several() -> list[dict[str, Any]]:
    return [
        {"values": [0.5], **point(1e-3), "epochs": 4, "seconds": 61.0},
        {"state": "FAIL", **point(9e-2), "error": ERROR},
        {"values": [0.7], **point(1e-2, "yolov8s"), "epochs": 4, "seconds": 80.0},
        {"state": "PRUNED", "values": [0.2], **point(1e-4), "steps": {1: 0.1, 2: 0.2}, "epochs": 2},
        {"state": "WAITING"},
    ]


def rows_of(home: Path) -> list[dict[str, str]]:
    with (home / "leaderboard.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_leaderboard_has_the_best_first_and_every_begun_trial(tmp_path: Path) -> None:
    (tmp_path / "trials" / "2").mkdir(parents=True)
    write_leaderboard(summary_of(tmp_path, several()), tmp_path)
    rows = rows_of(tmp_path)
    assert list(rows[0]) == [
        "rank", "trial", "state", "mAP50-95", "optimizer.lr0", "model", "epochs", "seconds", "directory", "error",
    ]  # fmt: skip
    assert [(row["rank"], row["trial"], row["state"]) for row in rows] == [
        ("1", "2", "complete"), ("2", "0", "complete"), ("", "3", "pruned"), ("", "1", "fail"),
    ]  # fmt: skip
    assert rows[0]["error"] == "" and rows[0]["directory"] == "trials/2"
    assert (rows[0]["optimizer.lr0"], rows[0]["model"], rows[0]["epochs"]) == ("0.01", "yolov8s", "4")
    assert rows[3]["error"] == "out of <b>memory</b>"


def test_a_pruned_cross_validation_has_no_value_but_the_fold_after_which_it_ended(tmp_path: Path) -> None:
    assert pruned(PrunedError("Pruned after fold 2"), tmp_path / "trials" / "1", 9.0).notes["by_fold"]
    cut = {
        "state": "PRUNED",
        "values": [0.2],
        **point(1e-4),
        "steps": {1: 0.1, 2: 0.2},
        "pruned_at": 2,
        "by_fold": True,
    }
    summary = summary_of(tmp_path, [{"values": [0.5], **point(1e-3)}, cut])
    write_leaderboard(summary, tmp_path)
    write_report(summary, ["not said"], tmp_path)
    row = rows_of(tmp_path)[1]
    assert (row["state"], row["mAP50-95"], row["error"]) == ("pruned", "", "pruned after fold 2")
    page = (tmp_path / "report.html").read_text()
    assert "<td class=error>pruned after fold 2: <code></code></td>" in page and "0.2</td>" not in page


def test_infeasible_trials_have_no_rank(tmp_path: Path) -> None:
    summary = Summary(
        "s", "detect", ["mAP50-95"], ["maximize"], 2, [],
        [TrialSummary(0, "complete", [0.9], broken="latency_ms 31.2 > 20"), TrialSummary(1, "complete", [0.1])],
    )  # fmt: skip
    assert summary.ranks == {1: 1} and [t.number for t in summary.front] == [1]


def test_equal_results_are_ranked_by_number_and_less_can_be_better() -> None:
    trials = [TrialSummary(n, "complete", [value]) for n, value in enumerate([3.0, 1.0, 1.0])]
    assert Summary("s", "detect", ["a"], ["minimize"], 3, [], trials).ranks == {1: 1, 2: 2, 0: 3}


def test_several_objectives_rank_the_whole_front_first(tmp_path: Path) -> None:
    values = [[0.5, 2.0], [0.6, 3.0], [0.4, 2.5], [0.6, 3.5]]
    trials = [{"values": pair, **point(1e-3)} for pair in values]
    summary = summary_of(tmp_path, trials, ["mAP50-95", "training_time_minutes"])
    assert summary.ranks == {0: 1, 1: 1, 2: 2, 3: 2}
    assert [t.number for t in summary.front] == [1, 0]  # the best in the first objective leads
    figure = figures.pareto(summary)
    assert figure is not None
    joined = figure.axes[0].lines[-1]
    assert [(float(x), float(y)) for x, y in joined.get_xydata()] == [(0.5, 2.0), (0.6, 3.0)]


@pytest.mark.parametrize(
    "words",
    [
        ["preset=fast", "model=yolov8s", "optimizer.lr0=0.003", "train.epochs=3", "train.close_mosaic=2"],
        ["preset=accuracy", "train.device=cpu", "optimizer=sgd", "data.path='my sets/a,b.yaml'"],
        ["task=classify", "model=resnet18", "optimizer.lr=0.002", "train.batch=8", "trainer=standard"],
        ["data.path='my \\${sets}/a.yaml'"],
    ],
)
def test_best_composes_to_the_experiment_of_its_trial(tmp_path: Path, words: list[str]) -> None:
    trained = compose(words)
    run = tmp_path / "trials" / "0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(plain(trained), allow_unicode=True))
    summary = summary_of(tmp_path, [{"values": [0.5], **point(1e-3)}])
    object.__setattr__(summary, "task", trained.task)
    best = write_best(summary, tmp_path)
    assert best is not None and best.number == 0
    again = compose([], tmp_path, "best")
    assert plain(again) == plain(trained) and type(again) is type(trained)
    assert compose(["train.epochs=77"], tmp_path, "best").train.epochs == 77
    first = (tmp_path / "best.yaml").read_text().splitlines()[0]
    assert first == f"# python -m hsr_train --config-dir {tmp_path} --config-name best"


def test_best_of_a_trial_out_of_reach_leaves_no_older_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "best.yaml").write_text("old")
    study = study_of([{"values": [0.5], **point(1e-3), "directory": str(tmp_path / "nowhere")}])
    Reporter(tmp_path, lambda: (study, summarize(study, study.get_trials(), 1, tmp_path))).write()
    assert not (tmp_path / "best.yaml").exists() and len(rows_of(tmp_path)) == 1
    assert [r.levelname for r in caplog.records if "best.yaml" in r.message] == ["WARNING"]


def test_importance_is_said_where_it_can_be(tmp_path: Path) -> None:
    trials = [{"values": [float(n % 5)], **point(10 ** (-1 - n % 5 / 2), "yolov8n" if n % 3 else "yolov8s")}
              for n in range(30)]  # fmt: skip
    study = study_of(trials)
    (found,) = importances(study, summarize(study, study.get_trials(), 30, tmp_path))
    assert isinstance(found, dict) and found["optimizer.lr0"] > found["model"]
    assert sum(found.values()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("values", "said"), [([0.1] * 9, "9 complete trials are too few"), ([0.1] * 12, "is the same in all 12")]
)
def test_importance_is_not_said_where_it_cannot_be(tmp_path: Path, values: list[float], said: str) -> None:
    study = study_of([{"values": [value], **point(1e-3)} for value in values])
    summary = summarize(study, study.get_trials(), 20, tmp_path)
    (found,) = importances(study, summary)
    assert isinstance(found, str) and said in found
    write_report(summary, [found], tmp_path)
    assert f"Not said: {found}" in (tmp_path / "report.html").read_text()


def test_importance_of_a_single_key_is_not_said(tmp_path: Path) -> None:
    study = study_of([{"values": [0.5], "params": {}}] * 12)
    found = replace(summarize(study, study.get_trials(), 12, tmp_path), parameters=[Parameter("optimizer.lr0")])
    assert importances(study, found)[0].startswith("only one key is searched, so ")  # type: ignore[union-attr]


def test_best_is_run_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for home in (Path("my sweep"), tmp_path / "my sweep"):
        assert command_of(home) == f"python -m hsr_train --config-dir '{tmp_path}/my sweep' --config-name best"


def test_importance_of_less_is_better_looks_at_the_low_end(tmp_path: Path) -> None:
    trials = [{"values": [float(n % 7), 10.0 * (n % 3 > 0) + n / 100],
               **point(10 ** (-1 - n % 7 / 3), "yolov8s" if n % 3 else "yolov8n")} for n in range(42)]  # fmt: skip
    study = study_of(trials, ["mAP50-95", "training_time_minutes"])
    first, second = importances(study, summarize(study, study.get_trials(), 42, tmp_path))
    assert isinstance(first, dict) and isinstance(second, dict)
    assert second["model"] > 0.5 > first["model"]


def test_report_is_one_file_without_a_network_that_escapes_what_it_shows(tmp_path: Path) -> None:
    study = study_of(several())
    summary = summarize(study, study.get_trials(), 9, tmp_path)
    write_report(summary, importances(study, summary), tmp_path)
    page = (tmp_path / "report.html").read_text()
    for word in ("http://", "https://", "<script", "<link", "@import"):
        assert word not in page
    assert page.count("data:image/svg+xml;base64,") == 4  # history, parallel, slices, curves; too few for importance
    assert "out of &lt;b&gt;memory&lt;/b&gt;" in page and "out of <b>" not in page
    assert "Best: trial 2" in page and "2 complete, 1 pruned, 1 failed" in page
    assert page.count("<tr") == 1 + 4


def test_report_of_a_study_without_any_trial_is_written(tmp_path: Path) -> None:
    study = study_of([{"state": "WAITING"}])
    summary = summarize(study, study.get_trials(), 1, tmp_path)
    write_report(summary, importances(study, summary), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "none begun" in page and "data:image" not in page


def test_slices_are_logarithmic_where_the_search_is(tmp_path: Path) -> None:
    figure = figures.slices(summary_of(tmp_path, several()), 0)
    assert figure is not None
    lr0, model = figure.axes
    assert lr0.get_xscale() == "log" and model.get_xscale() == "linear"
    assert [text.get_text() for text in model.get_xticklabels()] == ["yolov8n", "yolov8s"]


def test_history_joins_the_best_so_far(tmp_path: Path) -> None:
    figure = figures.history(summary_of(tmp_path, several()))
    assert figure is not None
    step = figure.axes[0].lines[-1]
    assert list(step.get_xdata()) == [0, 2, 3] and list(step.get_ydata()) == [0.5, 0.7, 0.7]


def test_curves_come_from_results_csv_and_else_from_the_study(tmp_path: Path) -> None:
    run = tmp_path / "trials" / "2"
    run.mkdir(parents=True)
    (run / "results.csv").write_text("epoch,mAP50-95\n1,0.3\n2,nan\n3,\n4,0.7\n")
    trials = {t.number: t for t in summary_of(tmp_path, several()).trials}
    assert trials[2].curve("mAP50-95") == [(1, 0.3), (4, 0.7)]
    assert trials[3].curve("mAP50-95") == [(1, 0.1), (2, 0.2)]
    (run / "results.csv").write_bytes(b"\xff\xfe broken \x00")
    assert trials[2].curve("mAP50-95") == []


def test_a_report_that_fails_is_one_warning_and_the_others_are_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report.html").mkdir()  # nothing can be written over it
    study = study_of(several())
    reporter = Reporter(tmp_path, lambda: (study, summarize(study, study.get_trials(), 9, tmp_path)))
    with caplog.at_level(logging.WARNING):
        reporter.write(final=True)
        reporter.write(final=True)
    assert len([r for r in caplog.records if "report.html" in r.message]) == 1
    assert len(rows_of(tmp_path)) == 4


def test_a_trial_that_ends_while_others_write_is_in_the_last_file(tmp_path: Path) -> None:
    first, second = study_of(several()[:1]), study_of(several())
    seen = iter([first, second, second, second])

    def snapshot() -> tuple[optuna.Study, Summary]:
        study = next(seen)
        return study, summarize(study, study.get_trials(), 9, tmp_path)

    Reporter(tmp_path, snapshot).write()
    assert len(rows_of(tmp_path)) == 4


def test_time_left_is_the_mean_of_trials_shared_by_living_workers() -> None:
    now = 10_000.0
    trials = [
        TrialSummary(0, "complete", [0.5], started=now - 400, ended=now - 300, worker="a 1"),
        TrialSummary(1, "pruned", started=now - 300, ended=now - 240, worker="b 2"),
        TrialSummary(2, "running", started=now - 30, worker="a 1"),
        TrialSummary(3, "fail", started=now - 9000, ended=now - 8990, worker="c 3"),
    ]
    summary = Summary("s", "detect", ["mAP50-95"], ["maximize"], 8, [], trials)
    assert left(summary, now) == ((80 * 5 - 30) / 2, 2)
    text = line(summary, now)
    assert text == (
        "3 of 8 trials done; 1 pruned; 1 failed; best: trial 0, mAP50-95 0.5; about 3 min 5 s left with 2 workers"
    )


def test_table_shows_the_epoch_and_last_value_of_a_running_trial(tmp_path: Path) -> None:
    run = tmp_path / "trials" / "1"
    run.mkdir(parents=True)
    (run / "status.json").write_text(json.dumps({"state": "running", "epoch": 3, "epochs": 9}))
    (run / "results.csv").write_text("epoch,mAP50-95\n1,0.1\n3,0.25\n")
    study = study_of([{"values": [0.5], **point(1e-3), "epochs": 9}, {"state": "RUNNING", **point(1e-2)}])
    text = table(summarize(study, study.get_trials(), 4, tmp_path))
    head, *rows = (row.split() for row in text.splitlines()[1:])
    assert head == ["trial", "state", "epoch", "mAP50-95", "lr0", "model"]
    assert rows == [
        ["0", "complete", "9", "0.5", "0.001", "yolov8n"],
        ["1", "running", "3/9", "0.25", "0.01", "yolov8n"],
    ]


def test_hparams_sessions_are_written_once_and_can_be_read(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata

    session = Session("0", {"optimizer.lr0": 0.01, "model": "yolov8s"}, {"mAP50-95": 0.5}, epoch=4)
    for _ in range(2):
        write_sessions(tmp_path, {"optimizer.lr0": [], "model": ["yolov8n", "yolov8s"]}, ["mAP50-95"], [session])
    assert len(list(tmp_path.rglob("events.*"))) == 2 and not list(tmp_path.rglob(".*"))
    run = EventAccumulator(str(tmp_path / "hparams" / "0"))
    run.Reload()
    assert [(p.step, p.value) for p in run.Scalars("mAP50-95")] == [(4, 0.5)]
    content = run.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    assert values["optimizer.lr0"].number_value == 0.01 and values["model"].string_value == "yolov8s"
    root = EventAccumulator(str(tmp_path / "hparams"))
    root.Reload()
    content = root.SummaryMetadata(metadata.EXPERIMENT_TAG).plugin_data.content
    experiment = metadata.parse_experiment_plugin_data(content)
    assert [info.name for info in experiment.hparam_infos] == ["optimizer.lr0", "model"]
    assert [info.name.tag for info in experiment.metric_infos] == ["mAP50-95"]


@pytest.mark.slow
def test_the_command_leaves_reports_and_makes_lost_ones_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENGINES, "detect", "sweep_engine:SweepEngine")
    monkeypatch.setenv("SWEEP_FAILS", "e.train.batch == 8")
    words = ["train.device=cpu", "train.epochs=2", "train.close_mosaic=1", "tensorboard.enabled=false"]
    command = ["-m", *words, "sweep.dir=sweep", "optimizer.lr0=1e-3,1e-2", "train.batch=8,16"]
    assert main(command) == 1  # trials failed
    home = tmp_path / "sweep"
    assert "4 of 4 trials done; 2 failed; best: trial 1, mAP50-95 0.9" in capsys.readouterr().err
    rows = rows_of(home)
    assert [(row["trial"], row["state"]) for row in rows] == [
        ("1", "complete"), ("3", "complete"), ("0", "fail"), ("2", "fail"),
    ]  # fmt: skip
    assert rows[2]["error"].startswith("the fan of card")
    assert {p.name for p in (home / "hparams").iterdir() if p.is_dir()} == {"0", "1", "2", "3"}
    assert "Best: trial 1" in (home / "report.html").read_text()
    trained = yaml.safe_load((home / "trials" / "1" / "config.yaml").read_text())
    assert json.loads(json.dumps(plain(compose([], home, "best")))) == trained
    kept = {name: (home / name).read_bytes() for name in ("leaderboard.csv", "best.yaml")}
    for name in (*kept, "report.html"):
        (home / name).unlink()
    assert main(command) == 1
    assert {name: (home / name).read_bytes() for name in kept} == kept and (home / "report.html").is_file()
    monkeypatch.setenv("SWEEP_FAILS", "False")
    assert main(["--config-dir", "sweep", "--config-name", "best", "output_dir=again"]) == 0, capsys.readouterr().err
    (result,) = (tmp_path / "again").rglob("training_result.json")
    assert json.loads(result.read_text())["metrics"]["mAP50-95"] == float(rows[0]["mAP50-95"])
