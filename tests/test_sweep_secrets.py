"""The password of a database server: in no file that a sweep leaves, and in no refusal."""

from __future__ import annotations

from pathlib import Path

import pytest
import test_sweep
from test_sweep import Sweep

from hsr_train.config.overrides import Typed
from hsr_train.errors import InputError, Problem
from hsr_train.passwords import without_password, without_passwords
from hsr_train.sweep import plan
from hsr_train.sweep.urls import storage_url

sweep = test_sweep.sweep  # the fixture


@pytest.mark.slow
def test_no_file_of_a_sweep_holds_the_password(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "storage_url", lambda typed, home: f"sqlite:///{home / 'study.db'}")
    status, errors = sweep.run("train.seed=1,2", 'sweep.storage="postgresql://hsr:s3cret:P/W!@127.0.0.1:1/x"')
    assert status == 0, errors
    files = [file for file in sweep.home.rglob("*") if file.is_file()]
    assert any(file.name == "best.yaml" for file in files)
    assert [str(file.relative_to(sweep.home)) for file in files if b"P/W!" in file.read_bytes()] == []
    assert "P/W!" not in errors


ADDRESSES = [
    ("postgresql://hsr:s3cret!@127.0.0.1:5432/nodb", "postgresql://hsr:***@127.0.0.1:5432/nodb"),
    ("postgresql:/hsr:s3cret@h/x", "postgresql:/hsr:***@h/x"),
    ("postgresql:hsr:s3cret@h/x", "postgresql:***@h/x"),
    ("hsr:s3cret@h/x", "hsr:***@h/x"),
    ("postgresql://hsr:s3c@r:e/t@h/x", "postgresql://hsr:***@h/x"),
    ("postgresql://hsr:s3\"c r'et@h/x", "postgresql://hsr:***@h/x"),
    ("'postgresql://hsr:s3cret@h/x", "'postgresql://hsr:***@h/x"),
    ("postgresql://h/x?password=s3cret&user=hsr", "postgresql://h/x?password=***&user=hsr"),
    ("postgresql://hsr@h:5432/x", "postgresql://hsr@h:5432/x"),
    ("postgresql://h:5432/x", "postgresql://h:5432/x"),
    ("my/study.db", "my/study.db"),
]


@pytest.mark.parametrize(("address", "shown"), ADDRESSES, ids=range(len(ADDRESSES)))
def test_an_address_is_shown_without_its_password_however_it_is_mistyped(address: str, shown: str) -> None:
    assert without_password(address) == shown and without_password(shown) == shown


def test_a_text_is_shown_without_the_passwords_of_its_addresses() -> None:
    words = "sweep.storage=postgresql://hsr:s3c:r/e@t@h/x https://me:pass@h, in a/b: x@y and https://h/x@2"
    assert without_passwords(words) == (
        "sweep.storage=postgresql://hsr:***@h/x https://me:***@h, in a/b: x@y and https://h/x@2"
    )
    assert "s3cret" not in str(
        Problem("sweep.storge", "a://hsr:s3cret@h", "no such key", "sweep.storage=a://b:s3cret@h")
    )


def test_a_refused_storage_does_not_show_its_password() -> None:
    with pytest.raises(InputError) as unquoted:
        Typed.parse(["sweep.storage=postgresql://hsr:s3cret!@h:1/x"])
    assert str(unquoted.value) == (
        "sweep.storage: postgresql://hsr:***@h:1/x: has characters that mean something else here, and stands without "
        "quotes\n    -> 'sweep.storage=\"postgresql://hsr:PASSWORD@h:1/x\"'"
    )
    with pytest.raises(InputError) as slash:
        storage_url("postgresql:/hsr:s3cret@h:1/x", Path("x"))
    assert "sweep.storage: postgresql:/hsr:***@h:1/x: is no database URL" in str(slash.value)
