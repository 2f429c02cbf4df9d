"""Automatic choices: each carries its reason, is logged once and recorded in the run's manifest."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decision:
    """One automatic choice.

    Attributes:
        key: The configuration key that was decided (`train.workers`), or a topic (`data`).
        value: What it was set to; JSON-serialisable.
        reason: Why, in words a user understands.
    """

    key: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.key} = {self.value} ({self.reason})"


class Decisions(list[Decision]):
    """The choices of one run, in the order in which they were made."""

    def record(self, key: str, value: Any, reason: str) -> None:
        """Append a decision and log it."""
        decision = Decision(key, value, reason)
        self.append(decision)
        log.info("Decided: %s", decision)

    def as_json(self) -> list[dict[str, Any]]:
        """Return the decisions as plain dictionaries for the manifest."""
        return [asdict(d) for d in self]
