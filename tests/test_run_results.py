"""results.csv and timings.csv: one row per epoch, whole or not at all."""

from __future__ import annotations

import math
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hsr_train.errors import InputError, RunError
from hsr_train.run import atomic
from hsr_train.run.results import ResultsTable

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("epoch", "box_loss", "cls_loss", "dfl_loss", "mAP50", "mAP50-95", "precision", "recall")

APPENDER = """
import sys
from pathlib import Path
from hsr_train.run.results import ResultsTable
table = ResultsTable(Path(sys.argv[1]), ("epoch", *(f"c{n}" for n in range(2000))))
print("ready", flush=True)
while True:
    epoch = (table.last_epoch or 0) + 1
    table.append({"epoch": epoch, **{f"c{n}": epoch / 7 for n in range(2000)}})
"""


def row(epoch: int, value: float | None = 0.5) -> dict[str, float | int | None]:
    return {"epoch": epoch, **dict.fromkeys(COLUMNS[1:], value)}


def test_a_new_table_has_the_header_at_once(tmp_path: Path) -> None:
    ResultsTable(tmp_path / "results.csv", COLUMNS)
    text = (tmp_path / "results.csv").read_text()
    assert text == "epoch,box_loss,cls_loss,dfl_loss,mAP50,mAP50-95,precision,recall\n"


def test_values_survive_to_the_last_bit_and_the_same_rows_give_the_same_text(tmp_path: Path) -> None:
    draws = random.Random(0)
    values = [draws.uniform(-1, 1) * 10.0 ** draws.randint(-300, 300) for _ in range(30)]
    values += [0.1 + 0.2, -0.0, 1e22, 5e-324, math.inf, float(np.float32(1.2345678))]
    texts = []
    for name in ("a.csv", "b.csv"):
        table = ResultsTable(tmp_path / name, ("epoch", "value"))
        for epoch, value in enumerate(values, start=1):
            table.append({"epoch": epoch, "value": value})
        texts.append((tmp_path / name).read_bytes())
        read = [r["value"] for r in ResultsTable(tmp_path / name, ("epoch", "value")).rows()]
        assert list(map(repr, read)) == list(map(repr, values))
    assert texts[0] == texts[1]


def test_cells_hold_integers_nothing_nan_and_numpy_scalars(tmp_path: Path) -> None:
    table = ResultsTable(tmp_path / "t.csv", ("epoch", "a", "b", "c", "d"))
    table.append({"epoch": 1, "a": 3, "b": None, "c": math.nan, "d": np.float32(0.5)})  # type: ignore[dict-item]
    assert (tmp_path / "t.csv").read_text().splitlines()[1] == "1,3,,nan,0.5"
    (read,) = ResultsTable(tmp_path / "t.csv", ("epoch", "a", "b", "c", "d")).rows()
    assert isinstance(read["a"], int) and read["b"] is None and read["d"] == 0.5
    assert isinstance(read["c"], float) and math.isnan(read["c"])


@pytest.mark.parametrize(
    "wrong",
    [
        dict.fromkeys(COLUMNS[:-1], 1),
        {**row(2), "extra": 1},
        {**row(2), "recall": "0.5"},
        row(1),
        row(0),
        {**row(2), "epoch": None},
        {**row(2), "epoch": 2.0},
    ],
)
def test_append_refuses_a_wrong_row_and_stays_as_it_was(tmp_path: Path, wrong: dict[str, float]) -> None:
    table = ResultsTable(tmp_path / "results.csv", COLUMNS)
    table.append(row(1))
    before = (tmp_path / "results.csv").read_bytes()
    with pytest.raises(ValueError, match="row of results.csv|not a number"):
        table.append(wrong)
    assert (tmp_path / "results.csv").read_bytes() == before
    table.append(row(2))
    assert [r["epoch"] for r in table.rows()] == [1, 2]


def test_append_on_a_full_disk_is_a_run_error_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(28, "No space left on device")

    table = ResultsTable(tmp_path / "results.csv", COLUMNS)
    with monkeypatch.context() as disk:
        disk.setattr(atomic.os, "fsync", refuse)
        with pytest.raises(RunError, match=r"results\.csv: No space left on device"):
            table.append(row(1))
    assert ResultsTable(tmp_path / "results.csv", COLUMNS).rows() == []
    table.append(row(1))
    assert ResultsTable(tmp_path / "results.csv", COLUMNS).rows() == [row(1)]


def test_a_torn_last_line_is_dropped_on_opening(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "results.csv"
    table = ResultsTable(path, COLUMNS)
    for epoch in (1, 2, 3):
        table.append(row(epoch))
    whole = path.read_bytes()
    ends = [n for n in range(len(whole) + 1) if whole[n - 1 : n] == b"\n"]
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        reopened = ResultsTable(path, COLUMNS)
        lines = sum(end <= cut for end in ends)
        assert len(reopened.rows()) == max(lines - 1, 0)
        assert path.read_bytes() == whole[: ends[max(lines, 1) - 1]]
    assert "dropped the torn last line" in caplog.text


def test_truncate_after_takes_back_later_epochs_and_the_table_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    table = ResultsTable(path, COLUMNS)
    for epoch in range(1, 6):
        table.append(row(epoch))
    resumed = ResultsTable(path, COLUMNS)
    assert resumed.truncate_after(3) == 2
    assert resumed.truncate_after(3) == 0
    resumed.append(row(4, 0.75))
    assert [r["epoch"] for r in ResultsTable(path, COLUMNS).rows()] == [1, 2, 3, 4]
    assert resumed.rows()[-1] == row(4, 0.75)
    assert resumed.truncate_after(0) == 4
    assert resumed.rows() == [] and resumed.last_epoch is None


def test_truncate_after_names_rows_that_are_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    table = ResultsTable(tmp_path / "results.csv", COLUMNS)
    table.append(row(1))
    table.append(row(3))
    table.truncate_after(4)
    assert "results.csv has no row for epochs 2, 4" in caplog.text


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("epoch,loss\n1,2\n", "its header is 'epoch,loss', this version writes 'epoch,box_loss,"),
        (",".join(COLUMNS) + "\n1,2\n", "line 2 holds '1,2'"),
        (",".join(COLUMNS) + "\n1,2,3,4,5,6,7,x\n", "line 2 holds '1,2,3,4,5,6,7,x'"),
        (",".join(COLUMNS) + "\n1,2,3,4,5,6,7,8\n1,2,3,4,5,6,7,8\n", "line 3 holds"),
        (",".join(COLUMNS) + "\n\n", "line 2 holds ''"),
        (b"\xff\xfe\n", "not a text file"),
    ],
)
def test_a_file_of_another_kind_is_refused_untouched(tmp_path: Path, content: str | bytes, what: str) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(InputError) as caught:
        ResultsTable(path, COLUMNS)
    assert str(path) in str(caught.value) and what in str(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("columns", [(), ("loss", "epoch"), ("epoch", "a", "a")])
def test_columns_must_be_distinct_and_begin_with_epoch(tmp_path: Path, columns: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="columns must be distinct"):
        ResultsTable(tmp_path / "results.csv", columns)


def test_a_kill_at_any_moment_leaves_whole_lines_and_no_epoch_missing_or_doubled(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    columns = ("epoch", *(f"c{n}" for n in range(2000)))
    moments = random.Random(1)
    seen = 0
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", APPENDER, path], cwd=ROOT, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(moments.uniform(0.02, 0.12))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        text = path.read_text()
        assert text.endswith("\n")
        epochs = [line.split(",")[0] for line in text.splitlines()[1:]]
        assert epochs == [str(n) for n in range(1, len(epochs) + 1)] and len(epochs) >= seen
        assert all(line.count(",") == 2000 for line in text.splitlines())
        seen = len(epochs)
    assert seen > 6
    table = ResultsTable(path, columns)
    table.truncate_after(seen // 2)
    table.append({"epoch": seen // 2 + 1, **dict.fromkeys(columns[1:], 0.0)})
    assert [r["epoch"] for r in table.rows()] == list(range(1, seen // 2 + 2))
