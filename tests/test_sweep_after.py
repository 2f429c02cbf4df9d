"""What comes after a search: repeats with other seeds, and the winner at full length."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import json
import os
import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import stdev
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import test_sweep
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from test_sweep import LR, WORDS, Sweep, ended, until

from hsr_train.cli import main
from hsr_train.config.compose import compose
from hsr_train.config.schema.sweep import SweepConfig
from hsr_train.engines.registry import ENGINES
from hsr_train.sweep.after import after_problems, first_words
from hsr_train.sweep.previous import best_points
from hsr_train.sweep.progress import closing, line, table
from hsr_train.sweep.report import write_report
from hsr_train.sweep.results import best_comments, write_leaderboard
from hsr_train.sweep.space import Dimension, Space
from hsr_train.sweep.stages import distinct, planned, searches
from hsr_train.sweep.study import Study
from hsr_train.sweep.study_types import BEST, SEEDS, Spec, Stage
from hsr_train.sweep.summary import Phase, Summary, TrialSummary
from hsr_train.sweep.worker import this_process

sweep = test_sweep.sweep  # the fixture
LUCK = "0.1 * (e.optimizer.lr0 > 0.004) * (e.train.seed == 0) + 0.004 * e.train.seed"
"""The worst rate has the luck of the search's seed; another seed is a little better than the one before."""
GRID = "optimizer.lr0=0.001,0.002,0.005"
AFTER = ("sweep.top_k=2", "sweep.retrain_best=true", "sweep.retrain_epochs=4")


class Commands:
    """One sweep, typed again and again: what each command said, and the runs that were there after it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "sweep"
        self.said: list[str] = []
        self.runs: list[dict[str, int]] = []

    def type(self, *words: str) -> None:
        errors = io.StringIO()
        with contextlib.chdir(self.folder), contextlib.redirect_stderr(errors):
            assert main(["-m", *WORDS, f"sweep.dir={self.home}", GRID, *words]) == 0, errors.getvalue()
        self.said.append(errors.getvalue())
        self.runs.append(
            {str(p.parent.relative_to(self.home)): p.stat().st_mtime_ns for p in self.home.glob("*/*/born")}
        )

    def rows(self) -> list[dict[str, str]]:
        with (self.home / "leaderboard.csv").open(newline="") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """A grid, its best two with another seed each, and the winner retrained; then the same with two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ENGINES, "detect", "sweep_engine:SweepEngine")
        patch.setenv("SWEEP_LUCK", LUCK)
        commands = Commands(tmp_path_factory.mktemp("after"))
        commands.type("sweep.seeds=1", *AFTER)
        commands.type("sweep.seeds=2", *AFTER)
        yield commands


def config(run: Path) -> Any:
    return yaml.safe_load((run / "config.yaml").read_text())


def test_a_finished_sweep_gets_what_is_missing_and_no_run_again(done: Commands) -> None:
    first, more = done.runs
    assert set(first) == {*(f"trials/{n}" for n in range(3)), "repeats/0", "repeats/1", "retrained/0"}
    assert more.keys() - first.keys() == {"repeats/2", "repeats/3"}
    assert {name: more[name] for name in first} == first


def test_the_best_trials_are_repeated_with_seeds_that_the_search_had_not(done: Commands) -> None:
    runs = [config(done.home / "repeats" / str(n)) for n in range(4)]
    # By the search 0.005 is the best and 0.001 the second; each has a seed before any has the next one.
    assert [(r["optimizer"]["lr0"], r["train"]["seed"]) for r in runs] == [
        (0.005, 1), (0.001, 1), (0.005, 2), (0.001, 2),
    ]  # fmt: skip
    assert {r["train"]["epochs"] for r in runs} == {2}


def test_the_winner_is_the_one_with_the_best_mean_and_not_the_lucky_one(done: Commands) -> None:
    rows = done.rows()
    assert [(row["rank"], row["trial"], row["seeds"]) for row in rows] == [
        ("1", "0", "2"),
        ("2", "2", "2"),
        ("3", "1", ""),
    ]
    assert float(rows[0]["mAP50-95"]) < float(rows[1]["mAP50-95"])
    assert float(rows[0]["mAP50-95 mean"]) == pytest.approx(0.88 + 0.006)
    assert float(rows[0]["mAP50-95 sd"]) == pytest.approx(stdev([0.004, 0.008]))
    assert rows[2]["mAP50-95 mean"] == rows[2]["mAP50-95 sd"] == ""
    one, two = done.said
    assert "Best of the search: trial 2, mAP50-95 0.9101, with optimizer.lr0=0.005" in one
    assert "Best over 1 seed: trial 0, mAP50-95 0.884 (its search value: 0.88), with optimizer.lr0=0.001" in one
    assert "Best over 2 seeds: trial 0, mAP50-95 0.886 ± 0.0028 (its search value: 0.88)" in two


def test_the_winner_is_trained_at_full_length_with_the_seed_of_the_search(done: Commands) -> None:
    trained = config(done.home / "retrained" / "0")
    assert (trained["optimizer"]["lr0"], trained["train"]["seed"], trained["train"]["epochs"]) == (0.001, 0, 4)
    place = done.home / "retrained" / "0"
    for said in done.said:
        assert f"Retrained at full length: trial 0, mAP50-95 0.88 after 4 epochs: {place}" in said


def test_best_is_the_winners_configuration_and_says_what_it_came_to(done: Commands) -> None:
    head = [words for words in (done.home / "best.yaml").read_text().splitlines() if words.startswith("#")]
    assert head[1:4] == [
        "# Trial 0 of 3: mAP50-95 0.88",
        "# Over 2 seeds, other than its own: mAP50-95 0.886 ± 0.0028",
        "# At full length, 4 epochs: mAP50-95 0.88, in retrained/0",
    ]
    best = compose([], done.home, "best")
    assert (best.optimizer.lr0, best.train.seed, best.train.epochs) == (0.001, 0, 2)


def test_lines_name_the_stage(done: Commands) -> None:
    one, two = done.said
    assert "After the search, 2 repeats of its 2 best trials with train.seed 1" in one
    assert "Repeat 3 of 4: optimizer.lr0=0.001 train.seed=2" in two
    assert "4 of 4 repeats done; best: trial 0, mAP50-95 0.886 ± 0.0028 over 2 seeds" in two
    assert "Repeats: 4 complete" in two
    messages = [text.rpartition(" | ")[2] for text in one.splitlines()]
    assert [text for text in messages if "winner" in text] == [
        "After the search, its winner at full length: train.epochs=4",
        "the winner at full length: not begun; best: trial 0, mAP50-95 0.884 over 1 seed",
        "The winner at full length: optimizer.lr0=0.001 train.epochs=4",
        "The winner at full length: mAP50-95 0.88",
        "the winner at full length: done; best: trial 0, mAP50-95 0.884 over 1 seed",
        "The winner at full length: complete",
    ]


def test_the_stages_are_studies_beside_the_search(done: Commands) -> None:
    url = f"sqlite:///{done.home / 'study.db'}"
    storage = optuna.storages.RDBStorage(url)
    names = optuna.get_all_study_names(storage)
    storage.remove_session()
    storage.engine.dispose()
    assert sorted(names) == ["sweep", "sweep.best", "sweep.seeds"] and searches(names) == ["sweep"]
    spec = Spec(url, "other", "detect", ["mAP50-95"], ["maximize"], 3, [], [], "tpe", 1, warm_start=str(done.home))
    assert [number for number, _ in best_points(spec)] == [2, 0, 1]


def test_the_report_shows_every_seed(done: Commands) -> None:
    page = (done.home / "report.html").read_text()
    assert "Repeated with other seeds" in page and "Best over 2 seeds: trial 0" in page
    assert "0.886 ± 0.0028" in page and "retrained/0" in page


def test_tensorboard_tells_repeats_and_the_long_run_from_the_trials_whose_values_they_have(done: Commands) -> None:
    def session(name: str) -> tuple[dict[str, Any], list[float]]:
        events = EventAccumulator(str(done.home / "hparams" / name)).Reload()
        content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        values = metadata.parse_session_start_info_plugin_data(content).hparams
        found = {key: values[key].number_value or values[key].string_value for key in values}
        return found, [event.value for event in events.Scalars("mAP50-95")]

    names = {path.name for path in (done.home / "hparams").iterdir() if path.is_dir()}
    assert names == {"0", "1", "2", "2_seed_1", "0_seed_1", "2_seed_2", "0_seed_2", "0_full_0"}
    assert session("2") == ({"optimizer.lr0": 0.005, "run": "search"}, [pytest.approx(0.9101, abs=1e-4)])
    assert session("0_seed_2") == ({"optimizer.lr0": 0.001, "run": "repeat"}, [pytest.approx(0.888)])
    assert session("0_full_0") == ({"optimizer.lr0": 0.001, "run": "full length"}, [pytest.approx(0.88)])


# ---- by hand


def trial(number: int, *values: float, of: int | None = None, seed: int = 0, state: str = "complete") -> TrialSummary:
    params: dict[str, Any] = {"optimizer.lr0": number} if of is None else {"optimizer.lr0": of, "train.seed": seed}
    words = [f"{key}={value}" for key, value in params.items()]
    return TrialSummary(number, state, list(values) or None, params, words, of=of)


def summary(trials: list[TrialSummary], repeats: list[TrialSummary], *objectives: str) -> Summary:
    names = list(objectives) or ["mAP50-95"]
    directions = ["minimize" if name == "training_time_minutes" else "maximize" for name in names]
    return Summary("s", "detect", names, directions, len(trials), [], trials, repeats=repeats)


def stage(kind: str = SEEDS, **settings: Any) -> Stage:
    return Stage(kind, "s", 9, Path(), **settings)


def test_the_mean_does_not_know_the_value_that_was_chosen() -> None:
    found = summary([trial(0, 0.9)], [trial(0, 0.5, of=0, seed=1), trial(1, 0.6, of=0, seed=2)]).repeated[0]
    assert found.mean == [pytest.approx(0.55)] and found.sd == [pytest.approx(stdev([0.5, 0.6]))]
    one = summary([trial(0, 0.9)], [trial(0, 0.5, of=0, seed=1)]).repeated[0]
    assert one.mean == [0.5] and one.sd is None and one.text(["mAP50-95"]) == "mAP50-95 0.5"


def test_less_is_better_is_so_for_means_too() -> None:
    repeats = [trial(0, 3.0, of=0), trial(1, 2.0, of=1)]
    found = summary([trial(0, 1.0), trial(1, 1.5), trial(2, 0.5)], repeats, "training_time_minutes")
    assert found.ranks == {1: 1, 0: 2, 2: 3}


def test_what_failed_each_time_has_no_mean_and_is_said(tmp_path: Path) -> None:
    repeats = [trial(0, of=1, state="fail"), trial(1, of=1, seed=2, state="fail"), trial(2, 0.4, of=0)]
    found = summary([trial(0, 0.5), trial(1, 0.6)], repeats)
    assert found.ranks == {0: 1, 1: 2}
    assert closing(found) == [
        "Trial 1 has no mean over seeds: its 2 repeats failed",
        "Best over 1 seed: trial 0, mAP50-95 0.4 (its search value: 0.5), with optimizer.lr0=0",
    ]
    alone = replace(found, repeats=repeats[:2])
    assert alone.ranks == {1: 1, 0: 2} and len(closing(alone)) == 1
    assert not any("seeds, other" in words for words in best_comments(alone, tmp_path))
    write_leaderboard(found, tmp_path)
    assert (tmp_path / "leaderboard.csv").read_text().splitlines()[2].startswith("2,1,complete,0.6,,,0,")


def test_who_is_repeated_is_decided_by_the_search_alone() -> None:
    trials = [trial(0, 0.5), trial(1, 0.9), trial(2, 0.8), replace(trial(3, 0.9), overrides=["optimizer.lr0=1"])]
    trials += [trial(4, state="fail"), replace(trial(5, 1.0), broken="latency_ms 9 > 1")]
    found = summary(trials, [trial(0, 0.7, of=0, seed=1), trial(1, 0.1, of=1, seed=1)])
    runs = planned(stage(seeds=(1, 2), top_k=2), found)
    assert [(run.of, run.overrides[-1]) for run in runs] == [
        (1, "train.seed=1"), (2, "train.seed=1"), (1, "train.seed=2"), (2, "train.seed=2"),
    ]  # fmt: skip


def test_of_several_goals_the_front_is_repeated_and_stays() -> None:
    goals = ("mAP50-95", "training_time_minutes")
    trials = [trial(0, 0.9, 5.0), trial(1, 0.8, 3.0), trial(2, 0.7, 4.0), trial(3, 0.6, 1.0)]
    runs = planned(stage(seeds=(1,), top_k=3), summary(trials, [], *goals))
    assert [run.of for run in runs] == [0, 1, 3]
    repeats = [trial(0, 0.7, 5.0, of=0), trial(1, 0.75, 3.0, of=1)]
    found = summary(trials, repeats, *goals)
    assert [t.number for t in found.front] == [1, 0, 3] and found.ranks == {0: 1, 1: 1, 2: 2, 3: 1}
    assert (
        "Best over 1 seed: trial 1, mAP50-95 0.75, training_time_minutes 3 (its search value: 0.8, 3)"
        in closing(found)[0]
    )
    assert [run.of for run in planned(stage(BEST, words=("train.epochs=9",)), found)] == [1]


def test_full_length_replaces_what_the_search_had() -> None:
    searched = replace(trial(0, 0.5), overrides=["train.max_steps=60", "optimizer.lr0=1"])
    runs = planned(stage(BEST, words=("train.max_steps=null", "train.epochs=50")), summary([searched], []))
    assert [run.overrides for run in runs] == [("optimizer.lr0=1", "train.max_steps=null", "train.epochs=50")]
    assert planned(stage(BEST), summary([trial(0, state="fail")], [])) == []


def test_a_full_length_that_is_no_longer_than_its_trial_is_said(caplog: pytest.LogCaptureFixture) -> None:
    searched, long = replace(trial(0, 0.5), epochs=6), replace(stage(BEST), epochs=7)
    assert planned(long, summary([searched], [])) and not caplog.text
    assert planned(replace(long, epochs=2), summary([searched], []))
    assert "train.epochs=2, and trial 0 had 6 epochs. For a longer run: sweep.retrain_epochs=18" in caplog.text


def test_time_left_is_that_of_the_stage() -> None:
    repeats = [replace(trial(0, 0.5, of=0), started=100.0, ended=160.0), trial(1, of=0, seed=2, state="running")]
    found = replace(summary([trial(0, 0.9)], repeats), phase=Phase(SEEDS, 4, repeats))
    text = line(found, 200.0)
    assert text == ("1 of 4 repeats done; best: trial 0, mAP50-95 0.5 over 1 seed; about 3 min 0 s left with 1 worker")


def test_the_winner_at_full_length_says_its_epoch_and_the_time_that_these_leave(tmp_path: Path) -> None:
    run = tmp_path / "retrained" / "0"
    run.mkdir(parents=True)
    long = replace(trial(0, of=3, state="running"), directory=run, started=0.0)

    def text(*trials: TrialSummary) -> str:
        found = summary([trial(3, 0.9)], [])
        return table(replace(found, retrained=[*trials], phase=Phase(BEST, 1, [*trials])), 1000.0)

    assert text().startswith("the winner at full length: not begun; best: trial 3, mAP50-95 0.9\n")
    assert text(long).startswith("the winner at full length: begun; best: trial 3, mAP50-95 0.9\n")
    (run / "status.json").write_text(json.dumps({"state": "running", "epoch": 2, "epochs": 10}))
    (run / "timings.csv").write_text("epoch,epoch_s\n1,90\n2,30\n")
    os.utime(run / "timings.csv", (980, 980))
    said, *_, row = text(long).splitlines()
    left = "about 7 min 40 s left"  # 8 of 60 s, less 20
    assert said == f"the winner at full length: epoch 2/10; best: trial 3, mAP50-95 0.9; {left}"
    assert row.split()[:4] == ["full", "3", "running", "2/10"]
    (run / "timings.csv").write_text("epoch,epoch_s\n" + "".join(f"{n},9\n" for n in range(1, 11)))
    assert "left" not in text(long)  # it is evaluated now
    assert text(replace(long, state="fail")).startswith("the winner at full length: failed; best")


def test_a_report_with_many_goals_and_a_failed_repeat_is_drawn(tmp_path: Path) -> None:
    trials = [trial(0, 0.9, 5.0), trial(1, 0.8, 3.0)]
    repeats = [trial(0, 0.7, 5.0, of=0, seed=1), trial(1, 0.8, 5.5, of=0, seed=2), trial(2, of=1, state="fail")]
    found = summary(trials, repeats, "mAP50-95", "training_time_minutes")
    write_report(found, ["few", "few"], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "0.75 ± 0.071" in page and "5.25 ± 0.35" in page and "1 failed" in page


def test_the_page_names_the_best_of_the_search_and_the_winner_over_seeds_as_the_command_does(tmp_path: Path) -> None:
    (tmp_path / "best.yaml").touch()
    trials, repeats = [trial(0, 0.25), trial(1, 0.41667)], [trial(0, 0.5, of=0, seed=1), trial(1, 0.4, of=1, seed=1)]
    typed = ["x", "-m", "data.path='demo'", "optimizer.lr0=tag(log,interval(1,2))", "a='$b'"]
    write_report(replace(summary(trials, repeats), command=typed), ["few"], tmp_path)
    page = html.unescape((tmp_path / "report.html").read_text())
    assert "Best of the search: trial 1</b>, mAP50-95 0.4167, with <code>optimizer.lr0=1<" in page
    assert "Best over 1 seed: trial 0, mAP50-95 0.5 (its search value: 0.25)" in page and "Best: " not in page
    assert f"To run trial 0 again: <code>python -m hsr_train --config-dir {tmp_path} --config-name best<" in page
    (begun,) = re.findall("Begun with <code>python -m hsr_train (.*?)</code>", page)
    assert shlex.split(begun) == typed[1:] and begun.startswith("""-m "data.path='demo'" 'optimizer.lr0=""")
    write_report(summary(trials, []), ["few"], tmp_path)
    assert "<b>Best: trial 1</b>, mAP50-95 0.4167" in (tmp_path / "report.html").read_text()


# ---- a study of given runs


def search_spec(folder: Path) -> Spec:
    return Spec(f"sqlite:///{folder / 'study.db'}", "s", "detect", ["recall"], ["maximize"], 2, [LR], [], "random", 1)


def stage_spec(folder: Path, seeds: tuple[int, ...]) -> Spec:
    own = Stage(SEEDS, "s", 2, folder, seeds=seeds, top_k=1)
    return replace(search_spec(folder), name="s.seeds", n_trials=None, lines=[], folder="repeats", stage=own)


def opened(spec: Spec) -> Study:
    door = Study()
    door.open(spec, this_process())
    return door


def test_another_seed_than_the_one_a_search_was_begun_with_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for seed, typed in ((1, []), (7, ["sweep.seed=7"]), (7, ["sweep=of_a_file_with_7"]), (1, ["sweep.seed=1"])):
        opened(replace(search_spec(tmp_path), seed=seed, command=["-m", *typed])).close()
    said = [text for text in caplog.messages if "sweep.seed" in text]
    assert (
        said == ["sweep.seed=7 changes only trials that are not begun yet: this sweep was begun with sweep.seed=1"] * 2
    )


def test_two_who_add_the_same_repeats_at_once_run_each_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    door = opened(search_spec(tmp_path))
    while (claim := door.claim()) is not None and claim.number is not None:
        door.tell(claim.number, "complete", [float(claim.number)], {})
    door.close()
    with monkeypatch.context() as patch:  # the second one looks before the first has added any
        patch.setattr("hsr_train.sweep.study.distinct", lambda trials, runs: [])
        for _ in range(2):
            opened(stage_spec(tmp_path, (1, 2))).close()
    door = opened(stage_spec(tmp_path, (1, 2)))
    assert door.standing().n_trials == 2
    found = []
    while (claim := door.claim()) is not None and claim.number is not None:
        found.append((claim.number, claim.overrides[-1]))
        door.tell(claim.number, "complete", [0.5], {})
    assert found == [(0, "train.seed=1"), (1, "train.seed=2")]
    assert door.standing().states["waiting"] == 0
    assert len(distinct(door.storage.get_all_trials(door.study_id))) == 2
    door.close()


# ---- refused


UNTIMED = {"time_budget": None, "finish_by": None}


def problems(searched: str, typed: set[str], *lengths: tuple[int, int | None], **settings: Any) -> list[str]:
    """Return what is said of a search of one key whose points have these epochs and `train.max_steps`."""
    experiments = [
        SimpleNamespace(task="detect", train=SimpleNamespace(epochs=epochs, max_steps=steps, seed=0, **UNTIMED))
        for epochs, steps in lengths
    ]
    space = Space((Dimension(searched, "1,2", ("1", "2"), True),), ())
    return [str(p) for p in after_problems(SweepConfig(**settings), space, typed, experiments)]


REFUSED = [
    (problems("train.seed", set(), (9, None), seeds=3), "sweep.seeds: 3: does not go with a search of train.seed"),
    (problems("train.batch", {"sweep.top_k"}, (9, None), top_k=2), "-> sweep.seeds=3 sweep.top_k=2"),
    (problems("train.batch", set(), (9, None), retrain_epochs=4), "-> sweep.retrain_best=true sweep.retrain_epochs=4"),
    (
        problems("train.batch", set(), (9, None), retrain_best=True),
        "sweep.retrain_best: true: would be the trial's own",
    ),
    (
        problems("train.epochs", set(), (4, None), (9, None), retrain_best=True, retrain_epochs=9),
        "-> sweep.retrain_epochs=27, or leave sweep.retrain_best out",
    ),
    (
        problems("train.batch", set(), (9, None), (4, None), (50, 60), retrain_best=True, retrain_epochs=8),
        "sweep.retrain_epochs: 8: is no full length: a trial has train.epochs=9\n    -> sweep.retrain_epochs=27",
    ),
]


@pytest.mark.parametrize(("found", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else "")
def test_refused_with_what_to_type(found: list[str], message: str) -> None:
    assert len(found) == 1 and message in found[0]


def test_what_cuts_trials_short_or_is_typed_makes_a_full_length() -> None:
    words = ({"retrain_best": True}, (9, 60)), ({"retrain_best": True, "retrain_epochs": 10}, (9, None))
    for settings, length in words:
        assert problems("train.batch", set(), length, seeds=1, **settings) == []
    steps = [SimpleNamespace(train=SimpleNamespace(epochs=9, max_steps=60, seed=4))]
    settings = SweepConfig(seeds=2, retrain_best=True)
    assert first_words(settings, steps) == [("train.seed=5",), ("train.max_steps=null",)]


def test_noise_of_private_training_follows_from_no_known_seed() -> None:
    private = SimpleNamespace(task="classify", trainer=SimpleNamespace(name="dp"))
    (found,) = after_problems(SweepConfig(seeds=2), Space((), ()), set(), [private])
    assert "would make the noise of trainer=dp follow from seeds" in str(found)


def test_a_full_length_that_cannot_be_is_refused_before_the_night(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS[:1], "train.max_steps=60", "train.swa=true", "sweep.retrain_best=true", "sweep.retrain_epochs=1"]
    assert main(["-m", *words, "optimizer.lr0=1e-3,1e-2", "mode=check"]) == 2
    assert "train.swa" in capsys.readouterr().err and not Path("outputs").exists()


# ---- killed


@pytest.mark.slow
def test_killed_in_the_middle_of_a_repeat_it_goes_on_with_it(sweep: Sweep) -> None:
    words = (LR, "sweep.n_trials=1", "sweep.seeds=2", "sweep.retrain_best=true", "sweep.retrain_epochs=3")
    process = sweep.start(*words, SWEEP_EPOCH_S="1.5")
    until((sweep.home / "repeats" / "1" / "state" / "epochs.json").is_file)
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    status, errors = sweep.run(*words)
    assert status == 0, errors
    assert "Repeat 1 goes on" in errors
    assert sorted(p.name for p in (sweep.home / "repeats").iterdir()) == ["0", "1"]
    assert json.loads((sweep.home / "retrained" / "0" / "state" / "epochs.json").read_text()) == [1, 2, 3]
    begun = [words.rpartition(" ")[0] for words in sweep.epochs()]
    assert begun[:4] == ["0 1", "0 2", "0 1", "0 2"] and begun.count("1 1") == 1


@pytest.mark.slow
def test_a_second_worker_waits_for_the_last_trial_before_it_repeats_the_best(sweep: Sweep) -> None:
    words = ("optimizer.lr0=1e-3,2e-3", "sweep.seeds=2", "sweep.top_k=1")
    both = [sweep.start(*words, SWEEP_EPOCH_S=seconds) for seconds in ("0.2", "3")]
    said = [ended(process) for process in both]
    assert [status for status, _ in said] == [0, 0], said
    assert sorted(p.name for p in (sweep.home / "repeats").iterdir()) == ["0", "1"]
    assert any("waiting for what they come to" in errors for _, errors in said)
