"""Where a study is kept: its file, its path, and what is refused; studies in process, without a command."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from test_sweep_after import search_spec

from hsr_train.errors import InputError, Problem
from hsr_train.sweep import agent, storage
from hsr_train.sweep.previous import best_points
from hsr_train.sweep.storage import close_storage, open_storage
from hsr_train.sweep.urls import storage_url
from hsr_train.sweep.worker import this_process


def states(file: Path) -> list[str]:
    """Return the states of the study `s` in a file, as somebody else's optuna reads it."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    found = [t.state.name for t in optuna.load_study(study_name="s", storage=storage).get_trials()]
    storage.remove_session()
    storage.engine.dispose()
    return found


def served(folder: Path) -> None:
    """Let the process of a study answer a worker that has one trial and leaves, here."""
    calls = [("open", (search_spec(folder), this_process())), ("claim", ()), ("tell", (0, "complete", [0.5], {}))]
    letters = b"".join(pickle.dumps((method, arguments, {})) for method, arguments in calls)
    answers = io.BytesIO()
    agent.serve(io.BytesIO(letters), answers)
    answers.seek(0)
    assert [pickle.load(answers)[0] for _ in calls] == [True] * 3


def test_a_copy_of_the_file_alone_is_the_study_once_its_worker_has_left(tmp_path: Path) -> None:
    served(tmp_path)
    assert [p.name for p in tmp_path.glob("study.db*")] == ["study.db"]
    copy = shutil.copy(tmp_path / "study.db", tmp_path / "copy.db")
    assert states(copy) == ["COMPLETE", "WAITING"]


def test_two_who_make_a_study_at_once_both_get_it(tmp_path: Path) -> None:
    for round_ in range(10):
        url = f"sqlite:///{tmp_path / f'{round_}.db'}"
        together = threading.Barrier(2)

        def opens(url: str = url, together: threading.Barrier = together) -> None:
            together.wait()
            close_storage(open_storage(url))

        with ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(opens) for _ in range(2)]:
                future.result()


def test_a_file_that_something_else_keeps_locked_is_refused_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LOCKED_S", 0.2)
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(InputError, match="database is locked\n.*end what else writes to it"):
            open_storage(f"sqlite:///{path}")


@pytest.mark.parametrize("is_writing", [False, True])
def test_a_worker_that_leaves_another_one_behind_does_no_harm(tmp_path: Path, is_writing: bool) -> None:
    url = search_spec(tmp_path).url
    other = open_storage(url)
    served(tmp_path)
    if not is_writing:  # but is connected
        assert states(shutil.copy(tmp_path / "study.db", tmp_path / "copy.db")) == ["COMPLETE", "WAITING"]
    else:
        with other._backend.engine.connect() as writer, writer.begin():  # type: ignore[attr-defined]
            writer.exec_driver_sql("UPDATE trials SET state = 'FAIL' WHERE number = 1")
            close_storage(optuna.storages.RDBStorage(url))
    assert other.get_all_trials(1)[1].state.name == ("FAIL" if is_writing else "WAITING")
    close_storage(other)


@pytest.mark.parametrize("typed", [None, "other.db"])
def test_any_name_of_a_folder_is_kept(typed: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "q?x#y%20 z%+ä:@"
    home.mkdir()
    monkeypatch.chdir(home)
    url = storage_url(typed, home)
    close_storage(open_storage(url))
    assert [p.name for p in home.glob("*.db")] == [typed or "study.db"] and [*tmp_path.iterdir()] == [home]
    assert storage_url(None, Path("/a b/c+d")) == "sqlite:////a b/c+d/study.db"  # nothing more than is needed


def refusal(url: str) -> Problem:
    with pytest.raises(InputError) as found:
        open_storage(url)
    (problem,) = found.value.problems
    assert problem.key == "sweep.storage" and problem.value == url
    return problem


@pytest.mark.parametrize("form", ["sqlite:///{}/x.db", "journal:{}/x.log"])
def test_a_folder_that_does_not_exist_is_refused_and_not_made(form: str, tmp_path: Path) -> None:
    problem = refusal(form.format(tmp_path / "mistyped"))
    assert problem.allowed == f"cannot be used: {tmp_path / 'mistyped'} does not exist"
    assert problem.remedy is not None and problem.remedy.startswith(f"mkdir -p {tmp_path / 'mistyped'}, or ")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("closed", [("",), ("study.db", "")])
def test_a_folder_that_cannot_be_written_is_what_is_named(
    closed: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, access = storage_url(None, tmp_path), os.access
    (tmp_path / "study.db").touch()
    not_ours = [tmp_path / name for name in closed]  # the superuser, who may run this, may write everywhere
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in not_ours and access(path, mode))
    (problem,) = storage.refused(url, OSError("attempt to write a readonly database")).problems
    it = "it and its folder" if "study.db" in closed else "its folder"
    assert problem.remedy == (
        f"make {it} writable ({tmp_path}: a second file is written beside it), or sweep.storage=FOLDER/NAME.db"
    )


@pytest.mark.parametrize(("name", "other"), [("study.db", "sweep.dir"), ("ours.db", "sweep.storage")])
def test_a_file_that_is_no_database_is_to_be_moved_away(name: str, other: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("junk " * 1000)
    problem = refusal(storage_url(str(tmp_path / name), tmp_path))
    assert problem.allowed == "cannot be used: file is not a database"
    assert problem.remedy == f"move it away (mv {tmp_path / name} ELSEWHERE), or {other}=ANOTHER"


def test_a_sweep_to_begin_from_whose_study_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("junk " * 1000)
    with pytest.raises(InputError, match=r"sweep\.warm_start: .*: its study cannot be used: file is not a database"):
        best_points(replace(search_spec(tmp_path), warm_start=str(tmp_path)))
