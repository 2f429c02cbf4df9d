"""Being finished on time: the arithmetic with a clock of our own, the keys, and short runs that are real."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from classify_runs import make_set, overrides, quick_pictures, state_of
from detection_runs import differences, read_json, rows

import hsr_train
from hsr_train.config.schema import ClassifyExperiment
from hsr_train.errors import InputError
from hsr_train.pace import Ending, Pace, deadline_of, next_time, parse_duration, time_on_cores
from hsr_train.run.changes import PLANNED, read_changes

PRIVATE = ["task=classify", "trainer=dp", "trainer.target_epsilon=3"]


class Clock:
    """A clock that goes on only when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("45min", 2700), ("2h", 7200), ("1h30min", 5400), ("1.5h", 5400), ("1h 5min 3s", 3903)],
)
def test_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "45", "45m", "min", "1min1h", "-5min", "five minutes"])
def test_text_that_is_no_duration(text: str) -> None:
    assert parse_duration(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("14:30", datetime(2026, 3, 1, 14, 30)),
        ("9:05", datetime(2026, 3, 2, 9, 5)),
        ("12:00", datetime(2026, 3, 2, 12)),
    ],
)
def test_time_of_day_is_the_next_one(text: str, expected: datetime) -> None:
    assert next_time(text, datetime(2026, 3, 1, 12, 0)) == expected


@pytest.mark.parametrize("text", ["24:00", "14:60", "14", "noon", "870", "2:5"])
def test_text_that_is_no_time_of_day(text: str) -> None:
    assert next_time(text, datetime(2026, 3, 1)) is None


def test_deadline_counts_from_the_start_less_what_was_used() -> None:
    train = ClassifyExperiment().train
    assert deadline_of(train, 100.0) is None
    train.time_budget = "2min"
    assert deadline_of(train, 100.0, used_s=30.0) == 190.0


def simulate(
    budget_s: float,
    epoch_s: Callable[[int], float],
    *,
    val_s: float = 1.0,
    export_s: float = 0.0,
    steps: int = 20,
    epochs: int = 50,
    crowd: float = 1.0,
) -> tuple[float, int, int, bool]:
    """Train by a clock of our own; return the seconds used, the epochs, the epochs planned, and whether one was cut.

    Of every `crowd` seconds one is the process's own: pictures take longer by that, and so does its end.
    """
    clock = Clock()
    pace = Pace(clock.now + budget_s, clock.now, clock, lambda: (clock.now / crowd, clock.now - clock.now / crowd))

    def export() -> None:
        clock.now += export_s

    pace.expect(Ending(fixed_s=2.0, rest_s=20.0 if export_s else 0.0, rehearse=export if export_s else None))
    done, cut = 0, False
    while done < epochs and not cut:
        began = clock.now
        pace.begin()
        for step in range(1, steps + 1):
            clock.now += epoch_s(done) / steps
            cut = step < steps and pace.must_end(step / steps, 0.1)
            if cut:
                break
        clock.now += val_s
        done += 1
        epochs = done if cut else pace.plan(done, epochs, clock.now - began, val_s)
        if done < epochs:
            pace.rehearse()
    clock.now += val_s + (2.0 + 1.0) * crowd + export_s
    return clock.now - 1000.0, done, epochs, cut


@pytest.mark.parametrize("budget_s", [60.0, 120.0, 300.0, 600.0, 7200.0])
@pytest.mark.parametrize("export_s", [0.0, 6.0])
@pytest.mark.parametrize(
    "epoch_s",
    [
        lambda done: 8.0,
        lambda done: 12.0 if done == 0 else 7.0,  # the first fills caches
        lambda done: 8.0 + 2.0 * (done % 3),  # another program comes and goes
        lambda done: 5.0 if done < 6 else 11.0,  # it comes and stays
        lambda done: 11.0 if done < 6 else 5.0,
    ],
)
def test_run_is_never_late_and_uses_its_time(budget_s: float, export_s: float, epoch_s: Callable[[int], float]) -> None:
    used_s, done, planned, cut = simulate(budget_s, epoch_s, export_s=export_s)
    assert used_s <= budget_s
    assert done == planned
    unused_s = budget_s - used_s
    slowest_s = max(epoch_s(number) for number in range(12)) + 1.0
    kept_s = 4.0 + 0.06 * budget_s + 25.0 * bool(export_s and done == 1)  # for what can't be known
    assert used_s >= 0.9 * budget_s or unused_s <= slowest_s + kept_s


@pytest.mark.parametrize("budget_s", [60.0, 300.0])
@pytest.mark.parametrize("crowd", [1.0, 2.0, 4.0, 6.0])
def test_run_on_a_machine_that_is_busy_from_the_start_is_not_late(budget_s: float, crowd: float) -> None:
    """No epoch was short, so that none is longer than another; what nobody has tried takes longer all the same."""
    used_s, done, planned, _ = simulate(budget_s, lambda done: 5.0 * crowd, val_s=1.0 * crowd, crowd=crowd)
    assert used_s <= budget_s
    assert done == planned
    assert used_s >= 0.9 * budget_s or budget_s - used_s <= 6.0 * crowd + 4.0 * crowd


def test_time_on_cores_grows_with_work_and_is_known_without_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time_on_cores()
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    ran, waited = (now - then for now, then in zip(time_on_cores(), before, strict=True))
    assert ran > 0.01 and waited >= 0
    monkeypatch.setattr("hsr_train.pace.SCHEDULED", Path("/nowhere/schedstat"))
    ran_s, waited_s = time_on_cores()
    assert ran_s > 0 and waited_s == 0


def test_crowd_of_an_earlier_epoch_is_forgotten() -> None:
    clock, cores = Clock(), [(0.0, 0.0)]
    pace = Pace(clock.now + 600.0, clock.now, clock, lambda: cores[-1])
    pace.expect(Ending(fixed_s=10.0))
    kept_s = []
    for spent in ((2.0, 8.0), (12.0, 8.0), (22.0, 8.0), (32.0, 8.0)):
        pace.begin()
        cores.append(spent)
        pace.plan(1, 50, 10.0, 0.0)
        kept_s.append(pace._ending_s(0.0, pace._slowness))
    crowds = [5, 1 + 8 / 12, 1, 1]
    assert kept_s == pytest.approx([(10.0 + 1.0) * crowd + 2.0 + 12.0 for crowd in crowds])


def test_busy_machine_is_no_reason_to_refuse_a_run() -> None:
    clock = Clock()
    pace = Pace(clock.now + 20.0, clock.now, clock, lambda: (1.0, 9.0))
    pace.expect(Ending(fixed_s=4.0))
    pace.begin()
    assert pace.must_end(0.1, 0.1), "it ends at once instead"


def test_epoch_that_does_not_fit_is_cut() -> None:
    used_s, done, _, cut = simulate(60.0, lambda done: 90.0, val_s=9.0, steps=100)
    assert (done, cut) == (1, True)
    assert 45.0 < used_s <= 60.0


def test_first_batch_is_no_measure_of_the_others() -> None:
    """It waits for loaders to start, and sets up what is set up once."""
    clock = Clock()
    pace = Pace(clock.now + 40.0, clock.now, clock)
    pace.expect(Ending(evaluated=6.0, fixed_s=12.0))
    pace.begin()
    clock.now += 6.0
    assert not pace.must_end(0.15, 0.3)
    clock.now += 0.5
    assert not pace.must_end(0.30, 0.3)
    clock.now += 16.0
    assert pace.must_end(0.45, 0.3)


def test_run_that_goes_on_knows_its_earlier_times() -> None:
    clock = Clock()
    pace = Pace(clock.now + 60.0, clock.now, clock)
    pace.recall([10.0, 5.0], [1.0, 0.5])
    pace.begin()
    clock.now += 6.0
    assert not pace.must_end(0.15, 0.3)
    assert pace.plan(3, 50, 5.0, 0.5) == 3 + int((54.0 - 1.2 - (2.0 + 1.0 * 2) - 1.2) / 5.15)


def test_steady_times_change_the_plan_once() -> None:
    clock = Clock()
    pace, epochs, plans = Pace(clock.now + 600.0, clock.now, clock), 50, []
    for done in range(1, 40):
        clock.now += 10.0
        planned = pace.plan(done, epochs, 10.0, 1.0)
        plans += [planned] if planned != epochs else []
        epochs = planned
    assert len(plans) <= 2, plans


def test_epochs_with_different_numbers_of_images_are_planned_by_their_images() -> None:
    """The first epoch takes 9 s and 1 s of validation; one with half the images 4.5 s and 1 s."""

    def load(epoch: int, epochs: int) -> float:
        return 1 - 0.5 * epoch / epochs

    def seconds(epochs: int) -> float:
        return sum(1.0 + 9.3 * load(epoch, epochs) for epoch in range(1, epochs))

    plans = []

    for budget_s in (60.0, 150.0, 400.0):
        clock = Clock()
        pace = Pace(clock.now + budget_s, clock.now, clock)
        clock.now += 10.0
        planned = pace.plan(1, 99, 10.0, 1.0, load)
        free_s = budget_s - 10.0 - (1.2 + 3.0 + 0.02 * budget_s)
        assert seconds(planned) <= free_s < seconds(planned + 1)
        assert planned > 1 + int(free_s / 10.3)
    for times in ([10.0, 5.5], [10.0, 10.0]):  # half the images in the second epoch, or as many as before
        clock = Clock()
        pace = Pace(clock.now + 100.0, clock.now, clock)
        pace.recall(times, [1.0, 1.0], [20, 10] if times[1] < 10 else [20, 20])
        plans.append(pace.plan(3, 99, 1.0 + 9.0 * load(2, 99), 1.0, load))
    assert plans[0] == plans[1] < 99


def test_time_that_is_over_before_training_is_refused() -> None:
    clock = Clock()
    pace = Pace(clock.now + 5.0, clock.now - 10.0, clock)
    with pytest.raises(InputError, match=r"(?s)leaves no time to train: starting took 10 s.*train.time_budget=10min"):
        pace.expect(Ending(fixed_s=4.0))


def test_without_a_deadline_nothing_changes() -> None:
    pace = Pace()
    pace.expect(Ending(fixed_s=4.0))
    assert pace.plan(1, 50, 10.0, 1.0) == 50
    assert not pace.must_end(0.1, 0.1)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train.time_budget=0"], "train.time_budget: 0: must be a time with its unit.*train.time_budget=45min"),
        (["train.time_budget=45"], "train.time_budget: 45: must be a time with its unit.*train.time_budget=45min"),
        (["train.time_budget=soon"], "train.time_budget: soon: must be a time with its unit"),
        (["train.finish_by=870"], "train.finish_by: 870: must be a time of day, in quotes in a YAML.*14:30"),
        (["train.finish_by=25:00"], "train.finish_by: 25:00: must be a time of day"),
        (["train.time_budget=5min", "train.finish_by=14:30"], "does not go with train.time_budget"),
        (["train.time_budget=5min", "train.epochs=9"], "train.epochs: 9: has no effect with train.time_budget"),
        ([*PRIVATE, "train.time_budget=5min"], "planned by its epochs"),
        (["train.swa=true", "train.time_budget=5min"], "whose number a time budget changes"),
        (["task=classify", "trainer=accelerate", "train.time_budget=5min"], "is kept by one process"),
        (["task=classify", "data.raw=r/raw", "data.fold=all", "train.finish_by=14:30"], "first fold would take it all"),
    ],
)
def test_time_that_makes_no_sense_is_refused(words: list[str], line: str) -> None:
    with pytest.raises(InputError, match=f"(?s){line}"):
        hsr_train.compose(words)


def test_unquoted_time_in_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "team.yaml").write_text("defaults:\n  - config\n  - _self_\ntrain:\n  finish_by: 14:30\n")
    with pytest.raises(InputError, match=r"(?s)train.finish_by.*in quotes in a YAML file.*14:30"):
        hsr_train.compose([], config_dir=str(tmp_path), config_name="team")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_set(tmp_path_factory.mktemp("pace") / "squares", n_train=20, n_val=6)


@pytest.mark.slow
def test_classifier_is_done_in_time_and_can_be_repeated(
    data: Path, tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No epoch is cut here, however slow the machine: such a run cannot be repeated."""
    monkeypatch.setattr(Pace, "must_end", lambda *_: False)
    typed = overrides(data, tmp_path / "out", shared_cache, train__epochs=None, train__time_budget="25s")
    with quick_pictures():
        began = time.time()
        run = hsr_train.execute(hsr_train.compose(typed)).run_dir
        assert time.time() - began <= 50.0, "twice the budget, since no epoch is cut"
        assert run is not None
        plans = [change for change in read_changes(run / "state" / "changes.json") if change.cause == PLANNED]
        assert plans and plans[0].epoch >= 2, "after a measured epoch; a plan that stays is no change"
        assert len(rows(run)) == plans[-1].after
        rates = [float(row["lr"]) for row in rows(run)]
        # How far down depends on what else ran: work that begins beside it may cut the plan to what is done already.
        assert len(rates) < 3 or rates[-1] < max(rates), "the rate goes down"
        assert read_json(run / "training_result.json")["recovery"] == []
        again = hsr_train.execute(hsr_train.compose([f"reproduce={run}", f"output_dir={tmp_path / 'again'}"])).run_dir
    assert again is not None
    assert differences(state_of(again)["model"], state_of(run)["model"]) == []
    assert [row["lr"] for row in rows(again)] == [row["lr"] for row in rows(run)]
