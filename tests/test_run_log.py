"""Log lines on the console and in logs/train.log."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from hsr_train.errors import RunError
from hsr_train.run.log import attach_file, colourise, configure_console, detach_file, success

LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| .{8} \| ")
log = logging.getLogger("hsr_train.test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("NO_COLOR", raising=False)
    root, package = logging.getLogger(), logging.getLogger("hsr_train")
    handlers, level = list(root.handlers), package.level
    yield
    root.handlers[:] = handlers
    package.setLevel(level)


def test_console_lines_have_the_promised_form_and_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    configure_console()
    log.info("Epoch %d/50", 3)
    success(log, "New best model saved! mAP50: %.4f", 0.9)
    log.debug("not shown")
    out, err = capsys.readouterr()
    assert out == ""
    assert [LINE.sub("", line) for line in err.splitlines()] == ["Epoch 3/50", "New best model saved! mAP50: 0.9000"]
    assert [line[22:30] for line in err.splitlines()] == ["INFO    ", "SUCCESS "]


def test_every_line_of_a_message_and_of_a_traceback_carries_the_prefix(tmp_path: Path) -> None:
    handler = attach_file(tmp_path / "logs" / "train.log")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        log.exception("went\nwrong")
    detach_file(handler)
    lines = (tmp_path / "logs" / "train.log").read_text().splitlines()
    assert [LINE.sub("", line) for line in lines[:2]] == ["went", "wrong"]
    assert lines[-1].endswith(" | ERROR    | second") and len(lines) > 5
    assert all(LINE.match(line) for line in lines)


def test_a_second_configuration_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_console()
    configure_console(logging.WARNING)
    log.info("hidden")
    log.warning("once")
    assert capsys.readouterr().err.count("\n") == 1


def test_other_libraries_are_heard_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_console()
    logging.getLogger("somebody.else").info("chatter")
    logging.getLogger("somebody.else").warning("important")
    assert LINE.sub("", capsys.readouterr().err) == "important\n"


def test_terminal_lines_are_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    configure_console()
    log.info("Epoch 3/50")
    success(log, "best 0.9")
    log.error("bad")
    first, second, third = terminal.getvalue().splitlines()
    assert re.match(r"\x1b\[36m\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\x1b\[0m \| INFO     \| ", first)
    assert first.endswith("Epoch \x1b[33m3\x1b[0m/\x1b[33m50\x1b[0m")
    assert "\x1b[32mSUCCESS \x1b[0m" in second and second.endswith("\x1b[32mbest 0.9\x1b[0m")
    assert "\x1b[31mERROR   \x1b[0m" in third
    plain = re.sub(r"\x1b\[\d+m", "", terminal.getvalue())
    assert all(LINE.match(line) for line in plain.splitlines())


@pytest.mark.parametrize(
    ("line", "coloured"),
    [
        ("train Loss: 0.1234", "\x1b[34mtrain\x1b[0m Loss: \x1b[33m0.1234\x1b[0m"),
        ("val Acc: 98.5%", "\x1b[35mval\x1b[0m Acc: \x1b[33m98.5%\x1b[0m"),
        ("lr0=1e-3, batch=-1", "lr0=\x1b[33m1e-3\x1b[0m, batch=\x1b[33m-1\x1b[0m"),
        ("Epoch 3/50:", "Epoch \x1b[33m3\x1b[0m/\x1b[33m50\x1b[0m:"),
        ("yolov8n, mAP50-95, training, images/train, train.batch, runs/5", None),
        ("detect/demo_20261120_143000, cuda:0, 8.4.190, 2026-11-20, 14:30:00", None),
    ],
)
def test_colourise_marks_words_and_numbers_that_stand_alone(line: str, coloured: str | None) -> None:
    assert colourise(line) == (line if coloured is None else coloured)


def test_no_colour_with_no_color_or_away_from_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_console()
    success(log, "plain 1")
    assert "\x1b" not in capsys.readouterr().err
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    configure_console()
    success(log, "plain 2")
    assert "plain 2" in terminal.getvalue() and "\x1b" not in terminal.getvalue()


def test_a_line_stands_above_an_active_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    configure_console()
    with tqdm(total=4, desc="Epoch 1", file=sys.stderr, ascii=True, ncols=60) as bar:
        bar.update(2)
        log.info("in between")
        assert "\r\x1b" not in terminal.getvalue()
        before, after = terminal.getvalue().split("in between\n")
        assert re.search(r"\r +\r\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \| INFO     \| $", before), "the bar was not cleared"
        assert "Epoch 1:" in after, "the bar was not drawn again"
    log.info("afterwards")
    assert terminal.getvalue().splitlines()[-1].endswith("| INFO     | afterwards")


def test_the_file_has_no_colour_holds_debug_and_is_appended_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    configure_console()
    path = tmp_path / "train.log"
    for text in ("first 1", "second 2"):
        handler = attach_file(path)
        log.debug(text)
        detach_file(handler)
        log.info("no longer attached")
    assert [LINE.sub("", line) for line in path.read_text().splitlines()] == ["first 1", "second 2"]


def test_a_torn_last_line_is_ended_before_appending(tmp_path: Path) -> None:
    path = tmp_path / "train.log"
    path.write_text("2026-11-20 14:30:00 | INFO     | torn he")
    handler = attach_file(path)
    log.info("new")
    detach_file(handler)
    lines = path.read_text().splitlines()
    assert len(lines) == 2 and lines[1].endswith("| new")


def test_a_file_that_cannot_be_opened_is_a_run_error(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("not a folder")
    with pytest.raises(RunError, match=r"cannot write .*logs/train\.log"):
        attach_file(tmp_path / "logs" / "train.log")


def test_a_full_disk_is_reported_once_and_logging_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    configure_console()
    handler = attach_file(full)
    for number in range(3):
        log.info("line %d", number)
    detach_file(handler)
    err = capsys.readouterr().err
    assert err.count("No space left on device") == 1 and "Traceback" not in err
    assert [f"line {n}" in err for n in range(3)] == [True] * 3


def test_importing_the_log_does_not_import_tqdm_or_torch() -> None:
    code = "import sys, hsr_train.run.log; print([m for m in ('tqdm', 'torch', 'numpy') if m in sys.modules])"
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
