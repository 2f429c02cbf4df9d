"""How a configuration field is declared; `checks.py` walks what is written here."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def knob(default: Any, meaning: str, **limits: Any) -> Any:
    """Declare a configuration field.

    Args:
        default: The value if no file and no override sets it.
        meaning: One sentence with the unit.
        **limits: `ge`, `gt`, `le`, `lt` (numbers) or `choices` (a tuple of strings); checked by `checks.py`.
    """
    metadata = {"meaning": meaning, **limits}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
