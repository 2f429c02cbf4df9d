"""Compositions that many tests share, for tests of what happens to an experiment and not of how it is composed.

What it guarantees: for equal words on an equal machine it returns what the real one returned the first time in this
process, as a copy. Refused words, words about files (a run, --config-dir) and new words are composed for real.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from hsr_train import hardware
from hsr_train.config import compose as composing

_real = composing.compose_quietly
_known: dict[tuple[Any, ...], Any] = {}


def _once(overrides: Sequence[str] = (), config_dir: Path | str | None = None, config_name: str | None = None) -> Any:
    if config_dir is not None or any(word.startswith(("resume=", "reproduce=")) for word in overrides):
        return _real(overrides, config_dir, config_name)
    key = (tuple(overrides), config_name, repr(hardware.detect()))
    if key not in _known:
        _known[key] = _real(overrides, config_dir, config_name)
    return deepcopy(_known[key])


def compose_equal_words_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command compose equal words once for all tests of this process."""
    monkeypatch.setattr(composing, "compose_quietly", _once)
