"""Where a study is kept: SQLite in the sweep's folder, a database server, or a journal file on a shared disk."""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend

from hsr_train.errors import InputError, Problem
from hsr_train.passwords import without_password
from hsr_train.run.atomic import is_full
from hsr_train.sweep.urls import JOURNAL, REMEDY, STUDY_FILE

log = logging.getLogger(__name__)

Made = TypeVar("Made")

LOCKED_S = 60.0
"""How long another worker's transaction, or its making of the same tables, is waited for."""
AGAIN_S = 0.1
WRITE_BACK_S = 2.0
CONNECT_S = 10
LOCKED = "locked"
AT_ONCE = ("already exists", "UNIQUE", "duplicate key", "Duplicate entry", LOCKED)
"""What the slower one of two processes that make a new database at once is told."""
DAMAGED = ("file is not a database", "disk image is malformed")


def open_storage(url: str) -> BaseStorage:
    """Open a storage, and make its tables where they are missing.

    Args:
        url: From `urls.storage_url`.

    Raises:
        InputError: It cannot be reached or written, or is a file in a folder that does not exist.
    """
    try:
        if url.startswith(JOURNAL):
            return _journal(url)
        storage = _database(url)
    except (OSError, ImportError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        raise refused(url, error) from error
    return get_storage(storage)


def is_of_server(url: str) -> bool:
    """Return whether a storage is on a database server; it is not asked.

    Args:
        url: From `urls.storage_url`.

    Raises:
        InputError: It is of no kind known here, or a package for it is missing.
    """
    if url.startswith(JOURNAL):
        return False
    try:
        engine = sqlalchemy.create_engine(_parsed(url))  # connects to nothing
    except (ImportError, ValueError, sqlalchemy.exc.SQLAlchemyError) as error:
        raise refused(url, error) from error
    engine.dispose()
    return engine.url.get_backend_name() != "sqlite"


def has_studies(url: str, home: Path) -> bool:
    """Return whether a file that is to hold a study holds studies already; nothing is made or changed.

    Args:
        url: From `urls.storage_url`, of a file.
        home: The sweep's folder, which is made with the study.

    Raises:
        InputError: It is no such file, or in a folder that does not exist.
    """
    is_journal = url.startswith(JOURNAL)
    name = url.removeprefix(JOURNAL) if is_journal else _parsed(url).database
    if not name or name == ":memory:":
        return False
    path = Path(name).absolute()
    if path.parent != home:
        _require_folder(url, path)
    if is_journal or not path.exists():
        return path.exists()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=LOCKED_S)) as connection:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'studies'").fetchall())
    except sqlite3.Error as error:
        raise refused(url, error) from error


def close_storage(storage: BaseStorage) -> None:
    """Close the connections of a storage, those of other threads included."""
    storage.remove_session()
    database = getattr(storage, "_backend", storage)
    if isinstance(database, RDBStorage):
        database.engine.dispose()
        url = database.engine.url
        if url.get_backend_name() == "sqlite" and url.database and Path(url.database).is_file():
            _write_back(Path(url.database).absolute())


def refused(url: str, error: BaseException) -> InputError:
    """Return the one line about a storage that cannot be used."""
    cause: BaseException = error
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    if isinstance(cause, ImportError) and cause.name:
        return InputError(Problem("sweep.storage", shown_url(url), *_without_driver(url, cause.name)))
    if isinstance(cause, sqlalchemy.exc.NoSuchModuleError):
        return InputError(Problem("sweep.storage", shown_url(url), "is of no kind of database known here", REMEDY))
    cause = getattr(cause, "orig", None) or cause
    text = " ".join((str(cause) or type(cause).__name__).split())
    where = shown_url(url)
    is_file = where.startswith(("sqlite", JOURNAL))
    remedy = _to_write(where) if is_file else "see that its server runs, and knows this user and this database"
    if any(words in text for words in DAMAGED):
        return InputError(Problem("sweep.storage", where, f"cannot be used: {text}", _without_it(where)))
    remedy = "end what else writes to it" if LOCKED in text else remedy
    remedy = "make space there" if is_full(text) else remedy
    kind = where.partition(":")[0]
    forms = {"sqlite": "FOLDER/NAME.db", "journal": "journal:FOLDER/NAME"}
    remedy += f", or sweep.storage={forms.get(kind, f'{kind}://USER:PASSWORD@HOST/NAME')}"
    return InputError(Problem("sweep.storage", where, f"cannot be used: {text}", remedy))


def shown_url(url: str) -> str:
    """Return a storage as it may be shown: without a password."""
    if url.startswith(JOURNAL):
        return url
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return without_password(url)


def _file(url: str) -> Path:
    """Return the file of a storage that is one, which exists or not."""
    return Path(url.removeprefix(JOURNAL) if url.startswith(JOURNAL) else str(sqlalchemy.make_url(url).database))


def _to_write(url: str) -> str:
    """Return what to make writable: the file, or its folder, where SQLite and a journal keep a second one."""
    file = _file(url).absolute()
    closed = {place: place.exists() and not os.access(place, os.W_OK) for place in (file, file.parent)}
    if not closed[file.parent]:
        return "make it writable"
    it = "it and its folder" if closed[file] else "its folder"
    return f"make {it} writable ({file.parent}: a second file is written beside it)"


def _without_driver(url: str, module: str) -> tuple[str, str]:
    backend, plus, _ = url.partition("://")[0].partition("+")
    remedies = {
        "postgresql": "pip install 'hsr_train[postgres]'",
        "mysql": "pip install pymysql, and sweep.storage=mysql+pymysql://USER@HOST/NAME",
    }
    remedy = f"pip install {module}" if plus else remedies.get(backend, f"pip install {module}")
    return f"needs a package that is not installed: {module}", remedy


def _without_it(url: str) -> str:
    """Return the remedy for a file that holds no study."""
    path = _file(url)
    other = "sweep.dir=ANOTHER" if path.name == STUDY_FILE else "sweep.storage=ANOTHER"
    return f"move it away (mv {shlex.quote(str(path))} ELSEWHERE), or {other}"


def _require_folder(url: str, path: Path) -> None:
    """Refuse a file in a folder that is not there: a mistyped path would become a new and empty study.

    Raises:
        InputError: It is not.
    """
    folder = path.absolute().parent
    if not folder.exists():
        remedy = f"mkdir -p {shlex.quote(str(folder))}, or sweep.storage=FILE.db in a folder that exists"
        raise InputError(Problem("sweep.storage", shown_url(url), f"cannot be used: {folder} does not exist", remedy))


def _journal(url: str) -> BaseStorage:
    path = Path(url.removeprefix(JOURNAL))
    _require_folder(url, path)
    with path.open("ab"):  # a file that cannot be written would be waited for
        pass
    return JournalStorage(JournalFileBackend(str(path)))


def _parsed(url: str) -> sqlalchemy.URL:
    """Read a database's address.

    Raises:
        InputError: It is none.
    """
    try:
        parsed = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:  # the latter of a port that is no number
        is_of_port = not isinstance(error, sqlalchemy.exc.ArgumentError)
        allowed = "is no database URL" + (": its port is no whole number" if is_of_port else "")
        # Not from `error`, which may quote it with its password.
        raise InputError(Problem("sweep.storage", without_password(url), allowed, REMEDY)) from None
    if "@" in (parsed.host or ""):  # what follows the first one would be shown as a host that is not found
        allowed = "has an @ in its user or password, which a URL writes as %40"
        raise InputError(Problem("sweep.storage", without_password(url), allowed, "type %40 for it"))
    return parsed


def _database(url: str) -> RDBStorage:
    parsed = _parsed(url)
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database:
        _require_folder(url, Path(parsed.database))
        path = Path(parsed.database)
        _at_last(lambda: _prepare_sqlite(path))
    options: dict[str, Any] = {"pool_pre_ping": True}
    if sqlite:
        # No transaction that the driver opens by itself: see below.
        options["connect_args"] = {"timeout": LOCKED_S, "isolation_level": None}
    elif parsed.get_backend_name() == "postgresql":
        options["connect_args"] = {"connect_timeout": CONNECT_S}
    storage = _at_last(lambda: RDBStorage(url, engine_kwargs=options))
    if sqlite:
        # SQLite has no SELECT ... FOR UPDATE: without the write lock from the start, two workers would both read that
        # a trial is waiting, and both take it.
        sqlalchemy.event.listen(storage.engine, "begin", _begin)
    return storage


def _at_last(make: Callable[[], Made]) -> Made:
    """Make what another process makes at the same time: SQLite does not wait by itself when both change its mode."""
    until = time.monotonic() + LOCKED_S
    while True:
        try:
            return make()
        except (OSError, sqlalchemy.exc.DBAPIError) as error:
            told = str(getattr(error, "orig", error))  # of a database's error without its statement
            if time.monotonic() > until or not any(words in told for words in AT_ONCE):
                raise
        time.sleep(AGAIN_S)


def _write_back(path: Path) -> None:
    """Bring what is in the write-ahead log into the database's file, so that a copy of that alone is the study."""
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=WRITE_BACK_S, isolation_level=None)
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            connection.close()
    except sqlite3.Error as error:  # another worker is at it, or the disk refuses: nothing is lost, the log stays
        log.debug("%s keeps its write-ahead log: %s", path, error)


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_sqlite(path: Path) -> None:
    """Let readers, such as optuna-dashboard, not wait for writers; refuse a file that cannot be written.

    Raises:
        OSError: It cannot.
    """
    try:
        connection = sqlite3.connect(path, timeout=LOCKED_S, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise OSError(f"{error}") from None
