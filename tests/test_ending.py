"""A signal ends a command where it can be ended: never in the middle of an import, unless it is sent again."""

from __future__ import annotations

import importlib
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hsr_train import ending
from hsr_train.ending import require_unstopped, stoppable
from hsr_train.errors import RunError, Terminated

STOPS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: Terminated}
MODULE = """
import signal
{signals}
half = False
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that modules are imported from."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("inner", "outer"):
        sys.modules.pop(name, None)


def busy(seconds: float = 10.0) -> None:
    """Do something, in short steps, that a signal may end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)


@pytest.mark.parametrize("signum", STOPS)
def test_signal_amid_an_import_waits_for_the_end_of_the_outermost_one(modules: Path, signum: int) -> None:
    (modules / "inner.py").write_text(MODULE.format(signals=f"signal.raise_signal({signum})"))
    (modules / "outer.py").write_text("import time\nimport inner\ntime.sleep(0.1)\nhalf = False\n")
    with pytest.raises(STOPS[signal.Signals(signum)]), stoppable():
        importlib.import_module("outer")
        assert sys.modules["outer"].half is False and sys.modules["inner"].half is False
        busy()
        pytest.fail("the signal got lost")


@pytest.mark.parametrize("signum", STOPS)
def test_signal_elsewhere_is_heeded_at_once(signum: int) -> None:
    with pytest.raises(STOPS[signal.Signals(signum)]), stoppable():
        signal.raise_signal(signum)
        pytest.fail("the signal waits")


@pytest.mark.parametrize("signum", STOPS)
def test_second_signal_does_not_wait(modules: Path, monkeypatch: pytest.MonkeyPatch, signum: int) -> None:
    """A second wish, after the time in which it counts as the same one."""
    monkeypatch.setitem(ending.SAME_STOP_S, signal.Signals(signum), 0.05)
    once = f"signal.raise_signal({signum})"
    (modules / "outer.py").write_text(MODULE.format(signals=f"import time\n{once}\ntime.sleep(0.1)\n{once}"))
    with pytest.raises(STOPS[signal.Signals(signum)]), stoppable():
        importlib.import_module("outer")
    assert "outer" not in sys.modules


def test_same_signal_twice_amid_an_import_is_one_wish(modules: Path) -> None:
    twice = "signal.raise_signal(signal.SIGTERM)\n" * 2
    (modules / "outer.py").write_text(MODULE.format(signals=twice))
    with pytest.raises(Terminated), stoppable():
        try:
            importlib.import_module("outer")
            busy()
        except Terminated:
            signal.raise_signal(signal.SIGTERM)  # while it tidies up
            time.sleep(0.1)
            raise
    assert "outer" in sys.modules


@pytest.mark.parametrize("signum", STOPS)
def test_library_that_fails_when_it_is_broken_off_was_stopped(signum: int) -> None:
    with pytest.raises(STOPS[signal.Signals(signum)]), stoppable():
        try:
            try:
                signal.raise_signal(signum)
            finally:
                int("its own tidying up")
        except ValueError as error:
            raise AttributeError("as told by the library") from error


def test_what_is_said_of_a_stopped_run_stays_an_error() -> None:
    with pytest.raises(RunError, match="disk is full"), stoppable():
        try:
            signal.raise_signal(signal.SIGTERM)
        except Terminated:
            raise RunError("the disk is full") from None


def test_wish_that_a_library_swallowed_is_raised_where_the_work_goes_on() -> None:
    with pytest.raises(Terminated), stoppable():
        require_unstopped()
        with suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        require_unstopped()
        pytest.fail("the signal got lost")
    require_unstopped()  # the next command is another one


def test_error_of_a_command_that_nobody_stopped_is_its_own() -> None:
    with pytest.raises(ValueError, match="invalid literal"), stoppable():
        int("not a number")


def test_command_that_is_itself_being_imported_can_be_stopped(modules: Path) -> None:
    """Only imports within the command count."""
    (modules / "outer.py").write_text(
        "import signal\nfrom hsr_train.ending import stoppable\n"
        "with stoppable():\n    signal.raise_signal(signal.SIGTERM)\n    passed = True\n"
    )
    with pytest.raises(Terminated):
        importlib.import_module("outer")


def test_handlers_of_the_program_are_there_again() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    with stoppable():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in numbers] == before


def test_alarm_of_the_program_is_left_alone(modules: Path) -> None:
    rung: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        (modules / "outer.py").write_text(MODULE.format(signals="signal.raise_signal(signal.SIGTERM)"))
        with pytest.raises(Terminated), stoppable():
            signal.raise_signal(signal.SIGALRM)
            importlib.import_module("outer")
        assert rung == [1] and "outer" not in sys.modules
    finally:
        signal.signal(signal.SIGALRM, before)
