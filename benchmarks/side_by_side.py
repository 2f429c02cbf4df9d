"""What the benchmarks share that run our command beside plain ultralytics: same settings, same isolation, same faults.

The settings that `--cfg job` prints are handed to ultralytics, so that they cannot drift apart. Both run as commands
with a settings folder of their own and without a network. Used by `train_vs_yolo.py`, `resume.py`, `oom.py` and
`probe_vs_autobatch.py`; what names the machine and the command, and our own command, also by others.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import yaml
from faults import VARIABLE, Fault

ROOT = Path(__file__).resolve().parent.parent
# Where the words differ: yolo's value, or None to leave it out. Those left out are not switched on in any benchmark.
ONLY_OURS = {"save_period": -1, "val_batch": None, "swa": None, "llrd": None}
TIMEOUT_S = 900
TRAIN = """
import json, sys
from ultralytics import YOLO

request = json.loads(sys.argv[1])
model, workers = YOLO(request["model"]), request["workers"]
if workers:  # the library sets them to 0 on a CPU just before this callback
    model.add_callback("on_pretrain_routine_start", lambda trainer: setattr(trainer.args, "workers", workers))
model.train(**request["settings"])
trainer = model.trainer
if request["export"]:
    model.export(format=request["export"], imgsz=trainer.args.imgsz, device="cpu")
print("RESULT", json.dumps({"batch": trainer.batch_size, "accumulate": trainer.accumulate}))
"""


def machine(*packages: str) -> str:
    """Return one line about this machine and the versions of some packages, by default those of detection."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].strip() if names else model
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in packages or ("torch", "ultralytics"))
    return (
        f"{usable} cores of {model}, {psutil.virtual_memory().total / 2**30:.0f} GiB, Python "
        f"{platform.python_version()}, {versions}; load average {os.getloadavg()[0]:.1f} at this moment"
    )


def command_line() -> str:
    """Return the command that runs."""
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return this process's environment, with ultralytics' settings in a folder and no network."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "YOLO_CONFIG_DIR": str(folder / "ultralytics"),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
    } | more  # fmt: skip


def copy_set(data: Path, copy: Path) -> Path:
    """Copy a set whose files all lie beside its data.yaml; return the copy's data.yaml, which anybody can read."""
    shutil.copytree(data.resolve().parent, copy, ignore=shutil.ignore_patterns("*.cache"))
    target = copy / data.name
    description = yaml.safe_load(target.read_text(encoding="utf-8"))
    target.write_text(yaml.safe_dump(description | {"path": str(copy)}, allow_unicode=True), encoding="utf-8")
    return target


def small_demo_set(folder: Path, num_train: int, num_val: int) -> Path:
    """Draw a small built-in demo set; return its data.yaml."""
    from hsr_train.data.demo import ensure_demo_set

    drawn = ensure_demo_set(folder / "drawn", num_train=num_train, num_val=num_val, num_cutouts=0, num_backgrounds=0)
    return copy_set(drawn, folder / "set")


def ours(*words: str) -> list[str]:
    """Return our command."""
    return [sys.executable, "-m", "hsr_train", *words]


def yolo_settings(overrides: Sequence[str], env: dict[str, str]) -> dict[str, Any]:
    """Return what ultralytics must be told so that it trains with the settings of our overrides."""
    printed = subprocess.run(ours("--cfg", "job", *overrides), env=env, capture_output=True, text=True, check=True)
    config = yaml.safe_load(printed.stdout)
    settings = config["train"] | config["optimizer"] | config["augmentation"] | ONLY_OURS
    settings |= {"optimizer": settings.pop("name"), "cache": settings["cache"] != "none" and settings["cache"]}
    return {key: value for key, value in settings.items() if value is not None}


def theirs(model: str | Path, settings: dict[str, Any], *, workers: int = 0, export: str = "") -> list[str]:
    """Return a command that trains, and then exports, with ultralytics' own Python interface.

    Args:
        model: An architecture's name ending in .yaml, or a weights file.
        settings: Arguments of `YOLO.train`.
        workers: Loader processes; ultralytics itself allows none on a CPU.
        export: A format, or nothing.
    """
    request = {"model": str(model), "settings": settings, "workers": workers, "export": export}
    return [sys.executable, "-c", TRAIN, json.dumps(request)]


def newest_state(run: Path) -> Path:
    """Return the state file of the latest epoch."""
    return max((run / "state").glob("epoch*.pt"), key=lambda path: int(path.stem.removeprefix("epoch")))


def load_state(run: Path) -> Any:
    """Return the content of the newest state file."""
    import torch

    return torch.load(newest_state(run), map_location="cpu", weights_only=True)


class Commands:
    """Runs commands in a folder, each in a process group of its own, with a fault if one is given."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = environment(folder)
        self._numbers = count(1)
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text("import faults\n\nfaults.install()\n", encoding="utf-8")
        self._with_faults = os.pathsep.join([str(site), str(ROOT / "benchmarks"), self.environment["PYTHONPATH"]])

    def run(self, command: Sequence[str], fault: Fault | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; what it prints is captured, standard error included.

        Raises:
            RuntimeError: The command ended before its fault happened.
        """
        env = dict(self.environment)
        marker = self.folder / f"fault{next(self._numbers)}"
        if fault is not None:
            env |= {"PYTHONPATH": self._with_faults, VARIABLE: replace(fault, marker=str(marker)).to_json()}
        process = subprocess.Popen(
            command, cwd=self.folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        if fault is not None and not marker.exists():
            raise RuntimeError(f"{fault} did not happen in {shlex.join(command)}\n{output[-4000:]}")
        return subprocess.CompletedProcess(list(command), process.returncode, output, "")

    def succeed(self, command: Sequence[str]) -> str:
        """Run a command that must end well, and return what it printed.

        Raises:
            RuntimeError: It did not.
        """
        done = self.run(command)
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode}: {shlex.join(command)}\n{done.stdout[-4000:]}")
        return done.stdout
