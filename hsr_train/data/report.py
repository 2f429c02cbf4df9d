"""One message for everything that is wrong with a set's files, and the full list in a file.

Used by `yolo`. A set can have thousands of broken lines: the message shows the first and says where the rest stands.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from hsr_train.errors import HsrTrainError, InputError, Problem
from hsr_train.run.atomic import write_text

log = logging.getLogger(__name__)

MOST_SHOWN = 50
"""Problems printed in the message; the file holds all."""


class Names:
    """How a file of the set is called in messages: relative to the set's root where it lies in it."""

    def __init__(self, root: Path) -> None:
        self._prefix = f"{root}{os.sep}"

    def of(self, path: str) -> str:
        """Return the name; bytes that are no UTF-8 are replaced, so that it can be printed anywhere."""
        return os.fsencode(path.removeprefix(self._prefix)).decode("utf-8", "replace")


def input_error(yaml_path: Path, problems: Sequence[Problem], remedies: Sequence[Problem], report: Path) -> InputError:
    """Return the error that reports the problems of a set.

    Args:
        yaml_path: The set's data.yaml.
        problems: All of them, in the order in which they are to be read.
        remedies: Lines that close the message: what to type.
        report: File that receives the full list where the message cannot hold it.
    """
    shown = list(problems[:MOST_SHOWN])
    hidden = len(problems) - len(shown)
    if hidden:
        where = "the full list could not be written"
        if _write(report, yaml_path, problems):
            where = f"the full list: {report}"
        shown.append(Problem(f"and {hidden:,} more problems", "", where))
    return InputError([*shown, *remedies])


def _write(report: Path, yaml_path: Path, problems: Sequence[Problem]) -> bool:
    head = f"{len(problems)} problems in {yaml_path}, {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}\n"
    try:
        write_text(report, head + "".join(f"{problem}\n" for problem in problems))
    except (OSError, HsrTrainError) as err:
        log.warning("The list of problems was not written to %s: %s", report, err)
        return False
    return True
