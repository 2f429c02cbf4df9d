"""Every test runs with an empty home, caches of its own and no network; so does every process that it starts.

The environment is set before test modules are imported, since libraries look for their folders when they are imported.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

GUARD = Path(__file__).parent / "guard"
_FOLDERS = {
    "HOME": "home",
    "XDG_CACHE_HOME": "home/.cache",
    "XDG_CONFIG_HOME": "home/.config",
    "XDG_DATA_HOME": "home/.local/share",
    "XDG_STATE_HOME": "home/.local/state",
}
_UNSET = ("MPLCONFIGDIR", "YOLO_CONFIG_DIR", "TORCH_HOME", "HYDRA_FULL_ERROR", "COLUMNS")
_session_folder = pytest.StashKey[Path]()


def pytest_configure(config: pytest.Config) -> None:
    """Move this process into its own home and close the network."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background: children would ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="hsr_train_tests_"))
    config.stash[_session_folder] = folder
    for name, place in _FOLDERS.items():
        (folder / place).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(folder / place)
    for name in _UNSET:
        os.environ.pop(name, None)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(GUARD), os.environ.get("PYTHONPATH", "")]))
    spec = importlib.util.spec_from_file_location("network_guard", GUARD / "sitecustomize.py")
    assert spec is not None and spec.loader is not None
    guard = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guard)
    guard.install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the file that takes longest: at the end it would keep one of two processes busy alone."""
    items.sort(key=lambda item: item.path.name != "test_demo_training.py")


def pytest_collection_finish() -> None:
    """Leave what has been imported out of every later search for garbage, of which recovery does many."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the tests left in their home; bindings complain of what is still frozen at the end."""
    gc.unfreeze()
    shutil.rmtree(config.stash[_session_folder], ignore_errors=True)


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `data.cache_dir` that lives as long as the session: sets are checked and drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_working_directory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test depends on where pytest was started, and none leaves a file there."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data.yaml of nine training and three validation images of 64 pixels; the last batch of four holds one."""
    from yolo_sets import make_yolo_set

    return make_yolo_set(tmp_path_factory.mktemp("small") / "set", n_train=9, n_val=3)


@pytest.fixture(scope="session")
def whole_run(small_set: Path, shared_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run of three epochs on `small_set` with everything on; not to be changed."""
    from detection_runs import train

    run_dir = train(small_set, tmp_path_factory.mktemp("whole"), shared_cache).run_dir
    assert run_dir is not None
    return run_dir
