"""The forms of `sweep.storage`; read before optuna is there."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from hsr_train.errors import InputError, Problem
from hsr_train.passwords import without_password

JOURNAL = "journal:"
STUDY_FILE = "study.db"
REMEDY = "sweep.storage=postgresql://USER@HOST/NAME, or sweep.storage=journal:FILE, or sweep.storage=FILE.db"


def storage_url(typed: str | None, home: Path) -> str:
    """Return a storage's full form: `journal:PATH` or a URL.

    Args:
        typed: `sweep.storage`.
        home: The sweep's folder.

    Raises:
        InputError: It is neither.
    """
    if typed is None:
        return _of_file(home / STUDY_FILE)
    if typed.startswith(JOURNAL) or ("://" not in typed and typed.endswith((".log", ".journal"))):
        return JOURNAL + str(Path(typed.removeprefix(JOURNAL)).expanduser().absolute())
    if "://" not in typed and typed.endswith((".db", ".sqlite", ".sqlite3")):
        return _of_file(Path(typed).expanduser().absolute())
    if "://" not in typed:
        raise InputError(
            Problem("sweep.storage", without_password(typed), "is no database URL and no journal file", REMEDY)
        )
    return typed


def _of_file(path: Path) -> str:
    """Return the URL of an SQLite file, whose name may hold what means something in a URL: `?`, `#`, `%`."""
    return "sqlite:///" + quote(str(path), safe="/ +")
