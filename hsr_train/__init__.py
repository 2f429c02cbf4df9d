"""Train, resume and reproduce detectors and classifiers on a team's own data.

From Python, the same path as the command:

    import hsr_train
    experiment = hsr_train.compose(["preset=demo"])
    result = hsr_train.execute(experiment)

Both are imported when they are first used, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hsr_train.config.compose import compose
    from hsr_train.cross_validation import execute_any as execute

__all__ = ["compose", "execute"]


def __getattr__(name: str) -> Any:
    if name == "compose":
        from hsr_train.config.compose import compose

        return compose
    if name == "execute":
        from hsr_train.cross_validation import execute_any

        return execute_any
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
