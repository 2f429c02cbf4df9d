from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_machines import machine

from hsr_train import hardware
from hsr_train.cli import main
from hsr_train.config.schema import MODES, DetectExperiment
from hsr_train.engines.base import Result, Watch
from hsr_train.errors import InputError, Problem, RunError, Terminated

ROOT = Path(__file__).resolve().parents[1]
Ran = list[DetectExperiment]


@pytest.fixture(autouse=True)
def somewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty working directory, and no GPU."""
    monkeypatch.setattr(hardware, "detect", machine)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert sys.argv[0]  # Hydra was given another sys.argv for a while.


@pytest.fixture
def execute_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Put a stand-in in the place of training: it remembers experiments and raises what it is told to."""

    def install(raises: Callable[[DetectExperiment], BaseException | None] = lambda e: None) -> Ran:
        ran: Ran = []

        def execute(experiment: DetectExperiment, watch: Watch | None = None) -> Result:
            ran.append(experiment)
            error = raises(experiment)
            if error is not None:
                raise error
            return Result(run_dir=None, metrics={"mAP50-95": 0.5})

        monkeypatch.setattr("hsr_train.cross_validation.execute", execute)
        monkeypatch.setattr("hsr_train.cross_validation.rehearse", lambda experiment: None)
        return ran

    return install


def job(capsys: pytest.CaptureFixture[str], *argv: str) -> Any:
    assert main(["--cfg", "job", *argv]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_run_hands_the_checked_experiment_to_execute(execute_with: Callable[..., Ran], somewhere: Path) -> None:
    ran = execute_with()
    assert main(["preset=demo", "train.cache=True", "data.path=my sets/a, b (ü).yaml"]) == 0
    (experiment,) = ran
    assert (experiment.train.cache, experiment.data.path) == ("ram", "my sets/a, b (ü).yaml")
    assert experiment.origin.typed == ["data.path", "preset", "train.cache"]
    assert list(somewhere.iterdir()) == []


def test_run_logs_each_decision_once(execute_with: Callable[..., Ran], capsys: pytest.CaptureFixture[str]) -> None:
    execute_with()
    assert main(["preset=accuracy"]) == 0
    captured = capsys.readouterr()
    assert captured.err.count("gpu_tier = cpu") == 1
    assert captured.err.count("model.name = yolov8s") == 1
    assert captured.out == ""


def test_multirun_runs_one_checked_job_for_each_combination(execute_with: Callable[..., Ran], somewhere: Path) -> None:
    ran = execute_with()
    assert main(["--multirun", "optimizer.lr0=1e-3,1e-2"]) == 0
    assert [e.optimizer.lr0 for e in ran] == [0.001, 0.01]
    assert [Path(e.origin.run_dir or "").name for e in ran] == ["0", "1"]
    assert [path.name for path in somewhere.iterdir()] == ["outputs"]


def test_multirun_resolves_tier_and_preset_for_each_job(execute_with: Callable[..., Ran]) -> None:
    ran = execute_with()
    assert main(["-m", "preset=fast,accuracy", "gpu_tier=high,low", "data.path='a,b.yaml'"]) == 0
    assert [(e.preset, e.gpu_tier, e.model.name, e.train.imgsz) for e in ran] == [
        ("fast", "high", "yolov8m", 480),
        ("fast", "low", "yolov8n", 480),
        ("accuracy", "high", "yolov8x", 640),
        ("accuracy", "low", "yolov8m", 480),
    ]
    assert {e.data.path for e in ran} == {"a,b.yaml"}


def test_multirun_by_hydra_mode_and_a_sweep_over_paths(execute_with: Callable[..., Ran]) -> None:
    ran = execute_with()
    assert main(["hydra.mode=MULTIRUN", "data.path=a.yaml,b.yaml", "output_dir=my out"]) == 0
    assert [(e.data.path, e.output_dir) for e in ran] == [("a.yaml", "my out"), ("b.yaml", "my out")]


def test_multirun_refuses_every_bad_job_before_the_first_starts(
    execute_with: Callable[..., Ran], capsys: pytest.CaptureFixture[str]
) -> None:
    ran = execute_with()
    assert main(["-m", "optimizer.lr0=1e-3,5,7", "train.epochs=3"]) == 2
    assert ran == []
    message = capsys.readouterr().err
    assert "optimizer.lr0: 5.0: must be" in message
    assert "optimizer.lr0: 7.0: must be" in message


@pytest.mark.parametrize(
    ("error", "status"), [(RunError("disk full"), 1), (InputError(Problem("data", "", "two broken images")), 2)]
)
def test_multirun_goes_on_after_a_failed_job_and_ends_with_its_status(
    execute_with: Callable[..., Ran], capsys: pytest.CaptureFixture[str], error: Exception, status: int
) -> None:
    ran = execute_with(lambda e: error if e.train.seed == 1 else None)
    assert main(["-m", "train.seed=1,2"]) == status
    assert len(ran) == 2
    message = capsys.readouterr().err
    assert f"Trial 0 with train.seed=1 failed: {error}" in message
    assert "1 of 2 trials failed: 0" in message


def test_multirun_stops_at_ctrl_c(execute_with: Callable[..., Ran]) -> None:
    ran = execute_with(lambda e: KeyboardInterrupt())
    assert main(["-m", "train.seed=1,2"]) == 130
    assert len(ran) == 1


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (RunError("No space left on the output disk"), 1, "No space left on the output disk"),
        (InputError(Problem("data.path", "x.yaml", "is not there", "data.path=FILE")), 2, "-> data.path=FILE"),
        (KeyboardInterrupt(), 130, "Stopped by Ctrl-C"),
        (Terminated(), 143, "Stopped by SIGTERM"),
    ],
)
def test_exit_status_and_message_without_a_traceback(
    execute_with: Callable[..., Ran], capsys: pytest.CaptureFixture[str], error: BaseException, status: int, text: str
) -> None:
    execute_with(lambda e: error)
    assert main(["preset=demo"]) == status
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.err.count(text) == 1
    assert "Traceback" not in captured.err
    assert "Error executing job" not in captured.err
    assert captured.out == ""


def test_defect_of_ours_keeps_its_traceback(execute_with: Callable[..., Ran]) -> None:
    execute_with(lambda e: ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        main(["preset=demo"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train.epoch=3"], "-> train.epochs=3"),
        (["gpu_tier=hihg"], "-> gpu_tier=high"),
        (["--cfg", "job", "train.epochs=0"], "train.epochs: 0: must be at least 1"),
        (["--cfg", "all", "train.epochs=0"], "train.epochs: 0: must be at least 1"),
        (["--cfg", "job", "--package", "trian"], "has no trian"),
        (["--cfg", "job", "-m"], "only one of"),
        (["-m", "preset=fats,demo"], "-> preset=fast"),
        (["-m", "a(b=1"], "without quotes"),
        (["hydra.foo=1"], "--cfg hydra"),
        (["--config-dir", "nowhere"], "is not a folder"),
        (["--config-name", "nothing"], "there is no such file"),
        (["--config-path", "conf"], "-> --config-dir conf"),
        (["--experimental-rerun", "outputs/x"], "-> resume=outputs/x"),
        (["--hepl"], "--hepl: unknown option"),
    ],
)
def test_refusal_has_status_2_and_one_message(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], somewhere: Path
) -> None:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert list(somewhere.iterdir()) == []


def test_options_of_other_programs_are_translated(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--dataset a.yaml --fast --model yolov8s --epochs 5 --lr=3 --export onnx --num-workers 2 --no-tensorboard"
    assert main(words.split()) == 2
    message = capsys.readouterr().err
    for remedy in (
        "data.path=a.yaml",
        "preset=fast", "model=yolov8s", "train.epochs=5", "optimizer.lr0=3", "export.formats=[onnx]",
        "train.workers=2", "tensorboard.enabled=false",
    ):  # fmt: skip
        assert f"-> {remedy}\n" in message


def test_cfg_job_prints_concrete_values(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(*argv: str) -> tuple[str, int, int]:
        config = job(capsys, *argv)
        return config["model"]["name"], config["train"]["batch"], config["train"]["imgsz"]

    assert shown("model=yolov8l", "gpu_tier=high") == ("yolov8l", 32, 640)
    assert shown("gpu_tier=low") == ("yolov8s", 8, 480)
    assert shown("gpu_tier=high") == ("yolov8l", 32, 640)
    assert shown("gpu_tier=high", "preset=fast") == ("yolov8m", 32, 480)
    assert job(capsys)["gpu_tier"] == "cpu"


def test_cfg_job_package_prints_a_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert job(capsys, "--package", "train", "gpu_tier=low")["batch"] == 8
    assert job(capsys, "-p", "train.batch", "gpu_tier=low") == 8


def test_cfg_all_shows_the_same_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cfg", "all", "preset=fast", "gpu_tier=high"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["model"]["name"], config["train"]["imgsz"]) == ("yolov8m", 480)
    assert config["hydra"]["runtime"]["choices"]["model"] == "yolov8m"


def test_help_lists_groups_and_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "preset: accuracy, competition, demo, fast, few_shot" in text and "classify_demo" not in text
    assert "task: classify, detect" in text and "task=classify --help" in text
    assert "close_mosaic: 10" in text and "preset: competition" in text
    assert "trainer:" not in text and "hydra/" not in text and "schema" not in text.partition("== Keys")[0]
    assert main(["task=classify", "--help"]) == 0
    text = capsys.readouterr().out
    choices = text.partition("== Choices")[2].partition("== Keys")[0]
    assert "preset: classify_default, classify_demo\n" in choices and "yolo" not in choices.replace(
        "data: demo, yolo", ""
    )
    assert "trainer: accelerate, dp, mixed_precision, standard" in choices
    assert "schedule: cosine" in text and "close_mosaic" not in text and "preset: classify_default" in text


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help", "mode=validate"]) == 0  # without the weights that the verb itself would need
    text = capsys.readouterr().out
    assert all(f"  mode={mode} " in text for mode in MODES)


def test_help_of_a_choice_shows_its_values(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["task=classify", "preset=classify_demo", "--help"]) == 0
    text = capsys.readouterr().out
    assert "preset: classify_demo" in text and "epochs: 10" in text
    assert main(["task=classify", "preset=fast", "--help"]) == 2
    assert "belongs to task=detect" in capsys.readouterr().err


def test_config_dir_reaches_the_job(execute_with: Callable[..., Ran], somewhere: Path) -> None:
    ran = execute_with()
    (somewhere / "ours" / "preset").mkdir(parents=True)
    (somewhere / "ours" / "preset" / "team.yaml").write_text("# @package _global_\ntrain: {epochs: 9}\n")
    assert main(["--config-dir", "ours", "-m", "preset=team,fast"]) == 0
    assert [(e.preset, e.train.epochs) for e in ran] == [("team", 9), ("fast", 30)]


def test_sys_argv_environment_and_signal_handler_are_put_back(execute_with: Callable[..., Ran]) -> None:
    execute_with()
    before = (list(sys.argv), dict(os.environ), signal.getsignal(signal.SIGTERM))
    assert main(["preset=demo"]) == 0
    assert main(["gpu_tier=hihg"]) == 2
    assert (list(sys.argv), dict(os.environ), signal.getsignal(signal.SIGTERM)) == before


# In processes of their own, from another working directory.


def python(code: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code, *argv],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("argv", [["--cfg", "job"], ["--help"]])
def test_printing_imports_no_training_library(argv: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from hsr_train.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'torchvision', 'ultralytics', 'cv2', 'numpy', 'tensorboard'} & set(sys.modules); "
        "print(sorted(heavy), file=sys.stderr); sys.exit(status)"
    )
    done = python(code, *argv, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("[]\n")
    assert "close_mosaic" in done.stdout


def test_import_of_the_package_is_cheap(tmp_path: Path) -> None:
    done = python("import sys, hsr_train; print({'hydra', 'yaml', 'torch'} & set(sys.modules))", cwd=tmp_path)
    assert done.stdout == "set()\n", done.stderr


def test_module_prints_only_yaml_on_standard_output_and_creates_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hsr_train", "--cfg", "job", "train.device=cpu"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert yaml.safe_load(done.stdout)["model"]["name"] == "yolov8n"
    assert "gpu_tier = cpu (train.device=cpu)" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_may_be_cut_off_by_its_reader(tmp_path: Path) -> None:
    for argv in ("--help", "--cfg job"):
        done = subprocess.run(
            f"{sys.executable} -m hsr_train {argv} | true; exit ${{PIPESTATUS[0]}}",
            shell=True, executable="/bin/bash", cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert (done.returncode, "BrokenPipe" in done.stderr) == (0, False), done.stderr


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_ends_a_run_with_its_status(tmp_path: Path, number: int, status: int) -> None:
    code = (
        "import pathlib, sys, time, types\n"
        "module = types.ModuleType('hsr_train.execution')\n"
        "def execute(experiment, watch=None):\n"
        "    try:\n"
        "        pathlib.Path('started').touch()\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        pathlib.Path('tidied').touch()\n"
        "module.execute = execute\n"
        "sys.modules['hsr_train.execution'] = module\n"
        "from hsr_train.cli import main\n"
        "sys.exit(main(['preset=demo']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 50
    while not (tmp_path / "started").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, message = process.communicate(timeout=300)
    assert process.returncode == status
    assert (tmp_path / "tidied").exists()
    assert "Traceback" not in message
