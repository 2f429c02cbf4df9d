"""A run touches nothing but its own directory and the cache: not the home, not the data, not the network."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from detection_runs import command, fresh_environment, overrides, quick_pictures, short_folder
from yolo_sets import make_yolo_set

from hsr_train.cli import main

FAKE_ALBUMENTATIONS = '''
"""As much of albumentations as ultralytics looks at; every transform turns the picture black."""
__version__ = "2.0.8"


class _Black:
    def __init__(self, *args, **kwargs):
        self.p = kwargs.get("p", 1.0)

    def __call__(self, image, **more):
        return {"image": image * 0, **more}


class Compose(_Black):
    transforms = []


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (_Black,), {})
'''
PROGRAMS_ALLOWED = ("git", "uname", "ldconfig", "fc-list")


@dataclass
class Traces:
    """What a run did to a machine that has nothing but a data set.

    Attributes:
        code: Its exit status.
        stderr: What it said.
        run: Its directory.
        events: (event, detail) for every network attempt, started program and changed file.
        root: The folder with home, data, cwd, out and cache.
        temporary: The folder for temporary files.
        before: Every file and folder of home, data and cwd with its time of change and size, before.
        after: The same afterwards.
    """

    code: int
    stderr: str
    run: Path
    events: list[tuple[str, str]]
    root: Path
    temporary: Path
    before: dict[str, tuple[int, int]]
    after: dict[str, tuple[int, int]]

    def of(self, *kinds: str) -> list[str]:
        return [detail for event, detail in self.events if event in kinds]


def listing(root: Path, *folders: str) -> dict[str, tuple[int, int]]:
    found = {}
    for folder in folders:
        for path in [root / folder, *(root / folder).rglob("*")]:
            stat = path.lstat()
            found[str(path.relative_to(root))] = (stat.st_mtime_ns, stat.st_size)
    return found


def traces(root: Path, **more: object) -> Traces:
    """Train in a process of its own that starts in an empty folder with an empty home."""
    temporary = short_folder()
    for folder in ("home", "cwd", "site/albumentations"):
        (root / folder).mkdir(parents=True)
    (root / "site" / "albumentations" / "__init__.py").write_text(FAKE_ALBUMENTATIONS)
    data = make_yolo_set(root / "data", n_train=9, n_val=3)
    before = listing(root, "home", "data", "cwd")
    environment = {
        "HOME": str(root / "home"),
        "TMPDIR": str(temporary),
        "TORCHINDUCTOR_CACHE_DIR": str(temporary / "torchinductor_cache"),  # torch sets it for good once asked
        "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(root / "site")]),
        "PYTHONDONTWRITEBYTECODE": "1",  # else Python itself writes beside the modules
        "HSR_TRAIN_TEST_EVENTS": str(root / "events"),
        **{f"XDG_{kind}_HOME": "" for kind in ("CACHE", "CONFIG", "DATA", "STATE")},
    }
    words = overrides(data, root / "out", root / "cache", **more)
    done = command(words, root / "cwd", **environment)
    lines = (root / "events").read_text().splitlines()
    return Traces(
        code=done.returncode,
        stderr=done.stderr,
        run=next((root / "out" / "detect").iterdir()),
        events=[(event, detail) for event, _, detail in (line.partition("\t") for line in lines)],
        root=root,
        temporary=temporary,
        before=before,
        after=listing(root, "home", "data", "cwd"),
    )


def check(found: Traces) -> None:
    assert found.code == 0, found.stderr
    assert found.after == found.before, "home, data or the current directory changed"
    assert found.of("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto") == []
    stays = [path.name for path in found.temporary.iterdir() if not path.name.startswith("torchinductor_")]
    assert stays == [], "temporary folders of ours; torch keeps one of its own"
    loud = [line for line in found.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    assert not [line for line in loud if "The weights find nothing" not in line], "an export says that, of such weights"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Traces:
    """With loader workers and files in the cache on disk: the most that a run does."""
    return traces(
        tmp_path_factory.mktemp("isolated"), train__workers=2, train__cache="disk", tensorboard__enabled="true"
    )


def test_run_leaves_home_data_and_current_directory_as_they_were(run: Traces) -> None:
    check(run)


def test_run_writes_only_to_its_directory_the_cache_and_temporary_folders(run: Traces) -> None:
    """Also what it removed again; /dev and /proc are no files."""
    allowed = [str(run.root / "out"), str(run.root / "cache"), str(run.temporary), "/dev/", "/proc/"]
    touched = set(run.of("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"))
    assert len(touched) > 20, "the events were recorded"
    relative = {p for p in touched if not p.startswith("/")}
    assert relative <= {"."}, "Hydra makes sure that the current directory exists"
    assert not {p for p in touched - relative if not p.startswith(tuple(allowed))}


def test_run_starts_no_program_that_installs_or_asks_the_network(run: Traces) -> None:
    programs = run.of("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec")
    assert not [p for p in programs if any(word in p for word in ("pip", "uv ", "conda", "curl", "wget", "install"))]
    names = {Path(p.strip("()").split(",")[0].strip("'\"")).name for p in programs}
    assert names <= {*PROGRAMS_ALLOWED, Path(sys.executable).name}, programs


def test_decoded_images_lie_in_the_cache_that_was_typed(run: Traces) -> None:
    assert len(list((run.root / "cache" / "images").glob("*.npy"))) == 12


def test_package_that_is_only_installed_changes_no_number(run: Traces, whole_run: Path) -> None:
    """The same run, where no such package is, with other workers and another cache: see `whole_run`."""
    assert (run.run / "results.csv").read_text() == (whole_run / "results.csv").read_text()


def test_fake_package_would_be_seen(run: Traces) -> None:
    """Else the test above proves nothing."""
    program = "import albumentations; print(albumentations.Compose([])(image=1)['image'])"

    environment = os.environ | {"PYTHONPATH": str(run.root / "site")}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"


@pytest.mark.slow
def test_run_that_exports_leaves_everything_as_it_was(tmp_path: Path) -> None:
    """Without workers and with pictures in memory, other than the run above."""
    check(traces(tmp_path / "root", train__cache="ram", train__workers=0, export__formats="[onnx,torchscript]"))


@pytest.mark.slow
def test_home_that_cannot_be_written_is_no_obstacle(tmp_path: Path) -> None:
    """As in containers that run as a user without a home."""
    root = tmp_path
    (root / "file").write_text("")
    data = make_yolo_set(root / "data", n_train=9, n_val=3)
    words = [w for w in overrides(data, root / "out", root / "cache") if not w.startswith("data.cache_dir")]
    nowhere = dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME"), "")
    done = command(words, root, HOME=str(root / "file" / "home"), **nowhere)
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr


@pytest.mark.slow
def test_any_path_can_be_trained_in(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data, output and current directory lie in a folder of that name; a validation of the run's weights follows."""
    folder = tmp_path / "Ann's, (b) [c] 日本語 ü" / "-dash a=b"
    data = make_yolo_set(folder / "set", n_train=9, n_val=3)
    done = command(overrides(data, folder / "out", shared_cache), folder)
    assert done.returncode == 0, done.stderr
    (run,) = (folder / "out" / "detect").iterdir()
    monkeypatch.chdir(folder)
    again = ["mode=validate", f"model.weights={run / 'weights' / 'best.pt'}", f"data.path={data}"]
    with quick_pictures():
        status = main([*again, f"output_dir={folder / 'out'}", f"data.cache_dir={shared_cache}"])
    assert status == 0, capsys.readouterr().err


def test_settings_folder_of_the_library_is_gone_after_any_end(tmp_path: Path) -> None:
    """The process ends by an exception, and a forked child ends before it: only the owner removes the folder."""

    program = (
        "import os, sys\n"
        "from hsr_train.engines.detection.library import bring_up\n"
        "bring_up()\n"
        "folder = os.environ['YOLO_CONFIG_DIR']\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    sys.exit(0)\n"
        "os.waitpid(child, 0)\n"
        "assert os.path.isdir(folder)\n"
        "raise KeyboardInterrupt\n"
    )
    environment = fresh_environment(TMPDIR=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "KeyboardInterrupt" in done.stderr and "AssertionError" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_guard_of_these_tests_sees_what_it_should(tmp_path: Path) -> None:
    """A process that connects, starts a program and writes a file leaves three lines."""

    program = (
        "import socket, subprocess, pathlib\n"
        "pathlib.Path('new').write_text('x')\n"
        "subprocess.run(['true'])\n"
        "try:\n"
        "    socket.create_connection(('example.org', 80))\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    environment = os.environ | {"HSR_TRAIN_TEST_EVENTS": str(tmp_path / "events")}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert "tests stay on this machine" in done.stdout
    events = dict(line.split("\t", 1) for line in (tmp_path / "events").read_text().splitlines())
    assert events["open"] == "new"
    assert "true" in events["subprocess.Popen"]
    assert events["socket.getaddrinfo"] == "example.org"
