"""Commands that are typed in an empty folder and refused, for tests of what is said of them.

What it guarantees: everything is real but the engine, which trains nothing and refuses nothing (`sweep_engine.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hsr_train.cli import main
from hsr_train.engines.registry import ENGINES

Refused = Callable[[list[str], list[str]], str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Type words in `tmp_path`; they must be refused with all of some messages. Returns what was said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENGINES, "detect", "sweep_engine:SweepEngine")

    def type_words(words: list[str], messages: list[str]) -> str:
        assert main(words) == 2
        errors = capsys.readouterr().err
        assert [message for message in messages if message not in errors] == []
        assert "Traceback" not in errors
        return errors

    return type_words
