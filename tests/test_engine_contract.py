"""What every engine must do, whatever its library: the suite runs over the registry by itself.

An engine that is added here needs one entry in `CASES`: a good experiment that trains in seconds, and a bad one.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from class_sets import make_folders
from detection_runs import overrides, quick_pictures
from yolo_sets import make_yolo_set

import hsr_train
from hsr_train.config.registration import SCHEMAS
from hsr_train.config.schema import Experiment
from hsr_train.decisions import Decisions
from hsr_train.engines.base import Engine, Plan, Result
from hsr_train.engines.registry import ENGINES, load_engine
from hsr_train.errors import InputError
from hsr_train.hardware import detect
from hsr_train.run.data_files import read_data_files
from hsr_train.run.directory import RunDirectory


@dataclass
class Case:
    """What the suite needs to know about one engine.

    Attributes:
        good: Makes overrides of an experiment that trains in seconds, from a folder for its data and one for runs.
        bad: Makes overrides of an experiment with several independent faults that only `prepare` can see.
        faults: The keys that must be named for it.
        metrics: Names of the metrics.
    """

    good: Callable[[Path, Path], list[str]]
    bad: Callable[[Path, Path], list[str]]
    faults: set[str]
    metrics: list[str]


def _good_detection(data: Path, output: Path) -> list[str]:
    path = data / "set" / "data.yaml"
    if not path.exists():
        make_yolo_set(path.parent, n_train=6, n_val=2)
    return overrides(path, output, data / "cache", train__epochs=2, train__close_mosaic=0)


def _bad_detection(data: Path, output: Path) -> list[str]:
    return overrides(
        data / "nowhere.yaml", output, data / "cache", train__device=7, model__weights=data / "nothing.pt", model=None
    )


def _good_classification(data: Path, output: Path) -> list[str]:
    path = data / "classes"
    if not path.exists():
        make_folders(path / "train", {"cup": 6, "fork": 5})
        make_folders(path / "val", {"cup": 2, "fork": 2}, seed=1)
    return _classification(path, output, data, model__weights="scratch")


def _bad_classification(data: Path, output: Path) -> list[str]:
    return _classification(data / "nowhere", output, data, train__device=7, model__weights=data / "nothing.pt")


def _classification(path: Path, output: Path, data: Path, **more: Any) -> list[str]:
    typed = {
        "task": "classify",
        "gpu_tier": "cpu",
        "model.name": "squeezenet1_1",
        "train.device": "cpu",
        "train.epochs": 2,
        "train.batch": 4,
        "train.imgsz": 32,
        "train.workers": 0,
        "tensorboard.serve": "false",
        "data.path": path,
        "data.cache_dir": data / "cache",
        "output_dir": output,
        **{key.replace("__", "."): value for key, value in more.items()},
    }
    return [f"{key}={value}" for key, value in typed.items()]


CASES = {
    "detect": Case(
        _good_detection,
        _bad_detection,
        {"data.path", "model.weights", "train.device"},
        ["mAP50", "mAP50-95", "precision", "recall"],
    ),
    "classify": Case(
        _good_classification,
        _bad_classification,
        {"data.path", "model.weights", "train.device"},
        ["accuracy", "macro_f1"],
    ),
}


@pytest.fixture(params=ENGINES)
def task(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def case(task: str) -> Case:
    return CASES[task]


@pytest.fixture
def engine(task: str) -> Engine:
    return load_engine(task)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """Train each engine's good experiment once."""
    results: dict[str, Result] = {}

    def get(task: str) -> Result:
        if task not in results:
            with quick_pictures():
                words = [*CASES[task].good(data, tmp_path_factory.mktemp("runs")), "train.measure_latency=true"]
                results[task] = hsr_train.execute(hsr_train.compose(words))
        return results[task]

    return get


def prepare(engine: Engine, experiment: Experiment) -> Plan:
    return engine.prepare(experiment, detect(), Decisions(experiment.origin.decisions))


def undecided(values: Any, path: str = "") -> Iterator[str]:
    if isinstance(values, dict):
        for key, value in values.items():
            if (path, key) != ("", "sweep"):  # a search's own, which no run decides
                yield from undecided(value, f"{path}.{key}" if path else key)
    elif values == "auto":
        yield path


def test_every_engine_has_a_case_and_a_schema() -> None:
    assert set(CASES) == set(ENGINES) == set(SCHEMAS)


def test_engine_has_every_verb(engine: Engine) -> None:
    for verb in ("prepare", "split", "train", "validate", "predict", "export", "weights_digest"):
        assert callable(getattr(engine, verb))
        assert getattr(engine, verb).__doc__


def test_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="one of detect"):
        load_engine("nothing")


def test_prepare_decides_everything_and_changes_nothing(engine: Engine, case: Case, data: Path, tmp_path: Path) -> None:
    experiment = hsr_train.compose(case.good(data, tmp_path / "out"))
    before = copy.deepcopy(experiment)
    plan = prepare(engine, experiment)
    assert asdict(experiment) == asdict(before), "the experiment given is not changed"
    values = {key: value for key, value in asdict(plan.experiment).items() if key not in ("origin", "tensorboard")}
    assert list(undecided(values)) == []
    assert not (tmp_path / "out").exists()
    assert all(decision.reason for decision in plan.decisions)
    assert plan.summary and all(isinstance(line, str) for line in plan.summary)
    assert plan.seeds and all(isinstance(seed, int) for seed in plan.seeds.values())
    json.dumps([plan.fingerprints, plan.decisions.as_json()], allow_nan=False)


def test_prepare_of_what_it_decided_decides_the_same(engine: Engine, case: Case, data: Path, tmp_path: Path) -> None:
    """A resumed run is prepared again from its own record."""
    first = prepare(engine, hsr_train.compose(case.good(data, tmp_path)))
    second = prepare(engine, first.experiment)
    assert asdict(second.experiment) == asdict(first.experiment)
    assert second.fingerprints == first.fingerprints


def test_paths_in_the_plan_are_absolute(
    engine: Engine, case: Case, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.good(data, tmp_path)
    monkeypatch.chdir(data.parent)
    words = [word.replace(str(data.parent), ".") for word in case.good(data, Path("runs"))]
    plan = prepare(engine, hsr_train.compose(words))
    assert plan.experiment.output_dir == str(data.parent / "runs")
    assert plan.experiment.data.path.startswith(str(data))


def test_prepare_names_every_fault_at_once(engine: Engine, case: Case, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        prepare(engine, hsr_train.compose(case.bad(data, tmp_path / "out")))
    assert {problem.key for problem in caught.value.problems} >= case.faults
    for problem in caught.value.problems:
        assert problem.allowed and problem.remedy, problem
    assert not (tmp_path / "out").exists()


def test_check_makes_no_directory(case: Case, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = hsr_train.execute(hsr_train.compose([*case.good(data, tmp_path / "out"), "mode=check"]))
    assert (result.run_dir, result.status) == (None, "checked")
    assert "Decisions" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_refused_run_makes_no_directory(case: Case, data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError):
        hsr_train.execute(hsr_train.compose(case.bad(data, tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_training_returns_what_it_promises(task: str, case: Case, trained: Callable[[str], Result]) -> None:
    result = trained(task)
    assert result.run_dir is not None and result.run_dir.is_dir()
    assert (result.status, result.epochs_completed) == ("completed", 2)
    assert list(result.metrics) == case.metrics
    assert all(isinstance(v, float) and math.isfinite(v) for v in result.metrics.values())
    assert result.best_epoch in (1, 2)
    for path in (result.best_model_path, result.last_model_path):
        assert path is not None and (result.run_dir / path).is_file() and not Path(path).is_absolute()


def test_record_is_valid_json_in_the_promised_order(task: str, trained: Callable[[str], Result]) -> None:
    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no JSON")

    run_dir = trained(task).run_dir
    assert run_dir is not None
    text = (run_dir / "training_result.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=refuse)
    assert list(content)[:7] == [
        "best_model_path", "last_model_path", "metrics", "training_time_minutes", "epochs_completed",
        "tensorboard_url", "config",
    ]  # fmt: skip
    assert content["metrics"] == trained(task).metrics
    assert content["config"]["task"] == task
    assert content["latency_ms"] > 0 and content["latency_ms"] == trained(task).latency_ms
    assert content["peak_vram_gb"] is None, "on a CPU"
    assert " ms for one image" in (run_dir / "summary.txt").read_text(encoding="utf-8")
    for name in ("status.json", "manifest.json"):
        json.loads((run_dir / name).read_text(encoding="utf-8"), parse_constant=refuse)


def test_files_of_the_data_are_listed_in_the_run(
    engine: Engine, case: Case, data: Path, tmp_path: Path, trained: Callable[[str], Result], task: str
) -> None:
    run_dir = trained(task).run_dir
    assert run_dir is not None
    plan = prepare(engine, hsr_train.compose(case.good(data, tmp_path)))
    assert read_data_files(run_dir / "data_files.csv") == list(plan.data_files()) != []


def test_weights_have_a_digest_with_their_epoch(
    engine: Engine, task: str, trained: Callable[[str], Result], tmp_path: Path
) -> None:
    run_dir = trained(task).run_dir
    assert run_dir is not None
    digest = engine.weights_digest(RunDirectory(run_dir))
    assert digest is not None and digest[0] == 2 and len(digest[1]) == 64
    assert engine.weights_digest(RunDirectory(tmp_path)) is None


def test_tables_begin_with_the_epoch_and_have_one_row_for_each(task: str, trained: Callable[[str], Result]) -> None:
    run_dir = trained(task).run_dir
    assert run_dir is not None
    for name in ("results.csv", "timings.csv"):
        header, *lines = (run_dir / name).read_text().splitlines()
        assert header.startswith("epoch,")
        assert [line.split(",")[0] for line in lines] == ["1", "2"]


@pytest.mark.slow
def test_same_experiment_gives_the_same_results(
    task: str, case: Case, data: Path, tmp_path: Path, trained: Callable[[str], Result]
) -> None:
    first = trained(task).run_dir
    with quick_pictures():
        again = hsr_train.execute(hsr_train.compose(case.good(data, tmp_path))).run_dir
    assert first is not None and again is not None
    assert (again / "results.csv").read_text() == (first / "results.csv").read_text()
    assert trained(task).metrics == json.loads((again / "training_result.json").read_text())["metrics"]
