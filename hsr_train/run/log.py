"""Log lines: `2026-11-20 14:30:00 | INFO     | text` on standard error and in logs/train.log.

`cli` configures the console once; whoever opens a run attaches its file. Colour is for terminals only, and console
lines stand above an active tqdm bar instead of breaking it. Every line of a message of several lines carries the
prefix, so that a search for a level finds all of it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from pathlib import Path
from typing import Any

from hsr_train.errors import RunError
from hsr_train.run.atomic import describe_disk_error

SUCCESS = 25
logging.addLevelName(SUCCESS, "SUCCESS")
PACKAGE = "hsr_train"

_RESET = "\x1b[0m"
_CYAN, _YELLOW, _BLUE, _MAGENTA, _GREEN, _RED = (f"\x1b[{code}m" for code in (36, 33, 34, 35, 32, 31))
_LEVEL_COLOURS = {"SUCCESS": _GREEN, "WARNING": _YELLOW, "ERROR": _RED, "CRITICAL": _RED}
# Words and numbers that stand alone: not the key train.batch, the 50 of mAP50, a path, a date, a time, a version.
_WORDS = re.compile(
    r"(?<![\w/.-])(?:(?P<train>[Tt]rain)|(?P<val>[Vv]al))(?![\w.])"
    r"|(?<![\w.:-])(?<!\D/)(?P<number>-?\d+(?:\.\d+)?(?:e[-+]?\d+)?%?)(?!\w|:\d|\.\w|-\d)"
)


def duration(seconds: float) -> str:
    """Return a time span as people say it: 45 s, 3 min 20 s, 1 h 5 min."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60} s"
    return f"{total // 3600} h {total % 3600 // 60} min"


def success(logger: logging.Logger, message: str, *args: Any) -> None:
    """Log `message` at the level SUCCESS, between INFO and WARNING."""
    logger.log(SUCCESS, message, *args, stacklevel=2)


def configure_console(level: int = logging.INFO) -> logging.Handler:
    """Log to standard error from now on; a second call replaces the first one's handler.

    Our own records are shown from `level` on, those of other libraries from WARNING on.

    Returns:
        The handler.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if isinstance(h, ConsoleHandler)]:
        root.removeHandler(handler)
    console = ConsoleHandler(level)
    root.addHandler(console)
    _open_package_logger()
    return console


def attach_file(path: Path, level: int = logging.DEBUG) -> TrainLogHandler:
    """Append log lines to `path`, without colour; the folder is created, a torn last line is ended.

    Returns:
        The handler, for `detach_file`.

    Raises:
        RunError: The file cannot be opened.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _end_last_line(path)
        handler = TrainLogHandler(path)
    except OSError as error:
        raise RunError(describe_disk_error(path, error)) from error
    handler.setLevel(level)
    logging.getLogger().addHandler(handler)
    _open_package_logger()
    return handler


def detach_file(handler: logging.Handler) -> None:
    """Stop logging to the file of `attach_file` and close it."""
    logging.getLogger().removeHandler(handler)
    handler.close()


class LineFormatter(logging.Formatter):
    """Puts time and level before every line of the message and of a traceback.

    Args:
        colour: Whether to add terminal colours.
    """

    def __init__(self, colour: bool = False) -> None:
        super().__init__("%(message)s", "%Y-%m-%d %H:%M:%S")
        self.colour = colour

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one or more complete lines."""
        time = self.formatTime(record, self.datefmt)
        level = f"{record.levelname:<8}"
        lines = super().format(record).splitlines() or [""]
        if self.colour:
            time = f"{_CYAN}{time}{_RESET}"
            colour = _LEVEL_COLOURS.get(record.levelname)
            if colour:
                level = f"{colour}{level}{_RESET}"
            lines = [f"{_GREEN}{line}{_RESET}" if record.levelno == SUCCESS else colourise(line) for line in lines]
        return "\n".join(f"{time} | {level} | {line}" for line in lines)


def colourise(line: str) -> str:
    """Return `line` with train in blue, val in magenta and numbers in yellow."""
    colours = {"train": _BLUE, "val": _MAGENTA, "number": _YELLOW}
    return _WORDS.sub(lambda match: f"{colours[match.lastgroup or 'number']}{match.group()}{_RESET}", line)


class ConsoleHandler(logging.Handler):
    """Writes to the current sys.stderr, above an active tqdm bar."""

    def __init__(self, level: int = logging.INFO) -> None:
        super().__init__(level)
        terminal = sys.stderr is not None and sys.stderr.isatty()
        self.setFormatter(LineFormatter(colour=terminal and not os.environ.get("NO_COLOR")))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record's lines."""
        try:
            line = self.format(record)
            tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
            if tqdm is not None and getattr(tqdm, "_instances", None):
                tqdm.write(line, file=sys.stderr)
            else:
                sys.stderr.write(line + "\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)


class TrainLogHandler(logging.FileHandler):
    """The run's log file. A disk that refuses is reported once on the console and kept for whoever asks.

    Attributes:
        failure: Why a line could not be written, or None.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace")
        self.setFormatter(LineFormatter())
        self.failure: str | None = None

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (the library's name)
        """Report a failed write once."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._report(error)
        else:
            super().handleError(record)

    def close(self) -> None:
        """Close the file; lines that a full disk still refuses are lost."""
        try:
            super().close()
        except OSError as error:
            self._report(error)

    def _report(self, error: OSError) -> None:
        if self.failure is None:
            self.failure = describe_disk_error(Path(self.baseFilename), error)
            sys.stderr.write(f"{self.failure}; the log goes on here only\n")


def _open_package_logger() -> None:
    """Let our own records of every level through; the handlers choose."""
    logging.getLogger(PACKAGE).setLevel(logging.DEBUG)


def _end_last_line(path: Path) -> None:
    """Add a line end if a killed process left the last line without one."""
    if not path.is_file() or path.stat().st_size == 0:
        return
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
