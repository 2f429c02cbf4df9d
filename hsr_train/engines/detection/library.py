"""Bring ultralytics up without its global state: call `bring_up()` before any `import ultralytics`.

What it does by default, and what is done here (ultralytics 8.4):
- writes a settings file under the user's configuration folder: ours lies in a temporary folder of this process;
- sends usage events and talks to its hosted platform: no integration callback is ever attached, and it is offline;
- installs packages at run time: forbidden;
- downloads fonts, and weights to test mixed precision with: fonts come from matplotlib, the test is our own
  (`precision.py`); the one download that a user may allow is ours too (`weights.py`);
- changes the names of weights files (drops apostrophes) and downloads those that it then misses: files are taken as
  they are named, and it downloads nothing;
- runs exported files through onnxruntime, which reports its use to its makers: switched off;
- unpickles whatever a checkpoint names: restricted to its own allow-list of model classes;
- takes part in a training of several processes by itself: it is told that it is alone;
- logs to standard output in its own format: forwarded to our logger, its information as debug.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "YOLO_AUTOINSTALL": "false",
    "YOLO_OFFLINE": "true",
    "YOLO_VERBOSE": "false",
    "ULTRALYTICS_SAFE_LOAD": "true",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "ORT_DISABLE_TELEMETRY": "1",  # onnxruntime: read when it is imported
}
_PREFIX = "hsr_train_ultralytics_"
_ready = False


def bring_up() -> None:
    """Import ultralytics in isolation; does nothing when that has happened already."""
    global _ready
    if _ready:
        return
    if "ultralytics" in sys.modules:
        log.warning("ultralytics was imported before hsr_train: its settings folder and network checks are its own.")
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    os.environ.update(_ENVIRONMENT, YOLO_CONFIG_DIR=str(folder))
    os.environ.setdefault("MPLBACKEND", "Agg")
    if _PREFIX in os.environ.get("MPLCONFIGDIR", _PREFIX):  # unset, or of a parent process of ours
        os.environ["MPLCONFIGDIR"] = str(folder)  # else matplotlib writes its list of fonts into the home

    with _alone():
        import ultralytics.utils as utils
    from ultralytics.utils import callbacks, downloads

    _provide_fonts(Path(utils.USER_CONFIG_DIR))
    callbacks.add_integration_callbacks = lambda instance: None
    downloads.attempt_download_asset = lambda file, *args, **kwargs: str(file)
    downloads.safe_download = _refuse_download
    _forward_log(utils.LOGGER)
    _ready = True


@contextmanager
def _alone() -> Iterator[None]:
    """Hide from the library that this is one of several processes: what they share is our matter (`sharing.py`)."""
    hidden = {name: os.environ.pop(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _refuse_download(url: str, *args: Any, **kwargs: Any) -> None:
    raise ConnectionError(f"ultralytics asked for {url}; hsr_train lets it download nothing")


def _provide_fonts(folder: Path) -> None:
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return
    font = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        shutil.copyfile(font, folder / name)


class _Forward(logging.Handler):
    """Hands the library's records to our logger: warnings as warnings, its information as debug."""

    _DECORATION = re.compile(r"\x1b\[[0-9;]*m|WARNING|ERROR|[^\x00-\x7f\u00a0-\u024f\u0370-\u9fff]")

    def emit(self, record: logging.LogRecord) -> None:
        text = self._DECORATION.sub("", record.getMessage()).strip()
        if text:
            level = record.levelno if record.levelno >= logging.WARNING else logging.DEBUG
            log.log(level, "ultralytics: %s", text)


def _forward_log(logger: logging.Logger) -> None:
    logger.handlers.clear()
    logger.addHandler(_Forward())
    logger.setLevel(logging.INFO)
    logger.propagate = False
