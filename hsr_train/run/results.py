"""Tables of one row per epoch: results.csv (what a repeated run must match) and timings.csv (what differs).

The file is rewritten whole with every row through `atomic`, so that no kill leaves half a line; a run has few
enough epochs for that to cost milliseconds. An engine appends an epoch's row before it saves the epoch's state:
after a kill between the two, `truncate_after` takes the row back on resume, and no epoch is missing or doubled.
"""

from __future__ import annotations

import csv
import io
import logging
import numbers
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from hsr_train.errors import InputError, Problem, RunError
from hsr_train.run.atomic import write_text

log = logging.getLogger(__name__)

Cell = float | int | None
_INTEGER = re.compile(r"-?\d+")


class ResultsTable:
    """A CSV file with a fixed header and growing epochs in its first column.

    Numbers are written so that reading gives back the same bits (the shortest such text: two identical runs give
    identical files); NaN as nan, a missing value as an empty cell.

    Args:
        path: The file; one that exists is continued, without its last line if that is torn.
        columns: The header; the first column is `epoch`.
        newer: Those of them that a file from an earlier version may lack; they become empty cells in its rows.

    Raises:
        InputError: An existing file has another header or holds something else than numbers.
        RunError: The file cannot be read or written.
    """

    def __init__(self, path: Path, columns: Sequence[str], newer: Collection[str] = ()) -> None:
        self.path = Path(path)
        self.columns = tuple(columns)
        self._newer = frozenset(newer)
        if not self.columns or self.columns[0] != "epoch" or len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns must be distinct and begin with epoch: {self.columns}")
        self._lines: list[str] = []
        if self.path.exists():
            self._read()
        else:
            self._write()

    def append(self, row: Mapping[str, Cell]) -> None:
        """Add one epoch's row; it is on the disk when this returns.

        Args:
            row: A value for every column and nothing else; None where there is none.

        Raises:
            ValueError: A column is missing, unknown, not a number, or the epoch does not follow the last one.
            RunError: The disk refused; the file is as before.
        """
        if set(row) != set(self.columns):
            missing, unknown = sorted(set(self.columns) - set(row)), sorted(set(row) - set(self.columns))
            raise ValueError(f"row of {self.path.name}: missing {missing}, unknown {unknown}")
        epoch, last = row["epoch"], self.last_epoch
        if not isinstance(epoch, numbers.Integral) or (last is not None and epoch <= last):
            raise ValueError(f"row of {self.path.name}: epoch {epoch!r} after epoch {last}")
        self._lines.append(_line([_text(row[column]) for column in self.columns]))
        try:
            self._write()
        except BaseException:
            self._lines.pop()
            raise

    def truncate_after(self, epoch: int) -> int:
        """Remove the rows of later epochs than `epoch` (from 1), the last one whose state was saved.

        Rows that are missing up to there (somebody edited the file) are named in a warning.

        Returns:
            How many rows were removed.
        """
        kept = [line for line in self._lines if _epoch(line) <= epoch]
        removed = len(self._lines) - len(kept)
        if removed:
            self._lines = kept
            self._write()
            log.info("%s: removed %d row(s) after epoch %d, which run again", self.path.name, removed, epoch)
        missing = sorted(set(range(1, epoch + 1)) - {_epoch(line) for line in kept})
        if missing:
            epochs = "epoch" if len(missing) == 1 else "epochs"
            log.warning("%s has no row for %s %s", self.path.name, epochs, ", ".join(map(str, missing)))
        return removed

    def rows(self) -> list[dict[str, Cell]]:
        """Return every row, values by column."""
        return [dict(zip(self.columns, map(_value, _cells(line)), strict=True)) for line in self._lines]

    @property
    def last_epoch(self) -> int | None:
        """The epoch of the last row, or None in an empty table."""
        return _epoch(self._lines[-1]) if self._lines else None

    def _write(self) -> None:
        write_text(self.path, _line(self.columns) + "".join(self._lines))

    def _read(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot read {self.path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise self._damaged("not a text file") from error
        expected = _line(self.columns)
        *lines, torn = text.split("\n")
        if not lines and expected.startswith(torn):
            lines = [expected.rstrip()]  # torn within the header: nothing was recorded yet
        header, *lines = [f"{line}\n" for line in lines] or [torn]
        had = tuple(_cells(header))
        is_older = had != self.columns and self._is_older(had)
        if is_older:
            lines, header = [_widened(line, had, self.columns) for line in lines], expected
        if header != expected:
            raise self._damaged(f"its header is {header.strip()!r}, this version writes {expected.strip()!r}")
        for number, line in enumerate(lines, start=2):
            try:
                values = [_value(cell) for cell in _cells(line)]
                sound = len(values) == len(self.columns) and isinstance(values[0], int)
            except ValueError:
                sound = False
            if not sound or (number > 2 and _epoch(line) <= _epoch(lines[number - 3])):
                raise self._damaged(f"line {number} holds {line.strip()!r}")
        self._lines = lines
        if torn:
            log.warning("%s: dropped the torn last line %r", self.path.name, torn)
        if torn or text == "" or is_older:
            self._write()

    def _is_older(self, columns: tuple[str, ...]) -> bool:
        """Whether a header is ours but for columns that came later."""
        kept = tuple(name for name in self.columns if name in columns)
        return columns == kept and self._newer >= set(self.columns) - set(kept)

    def _damaged(self, what: str) -> InputError:
        remedy = "restore the file from a copy, or move it away (its rows are then missing)"
        return InputError(Problem(str(self.path), "", what, remedy))


def last_epoch(path: Path) -> int | None:
    """Return the epoch of the last whole row of a table; None if there is none.

    Raises:
        RunError: The file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[1:]
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    whole = [line.partition(",")[0] for line in lines if line.endswith("\n")]
    return int(whole[-1]) if whole and whole[-1].isdigit() else None


def _line(cells: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _widened(line: str, had: Sequence[str], columns: Sequence[str]) -> str:
    """Return a line with an empty cell for each column that its table lacked; a line of another length as it is."""
    cells = _cells(line)
    if len(cells) != len(had):
        return line
    known = dict(zip(had, cells, strict=True))
    return _line([known.get(name, "") for name in columns])


def _cells(line: str) -> list[str]:
    return next(csv.reader([line]))


def _epoch(line: str) -> int:
    return int(_cells(line)[0])


def _text(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, numbers.Integral):
        return str(int(value))
    if isinstance(value, numbers.Real):
        return repr(float(value))
    raise ValueError(f"not a number: {value!r}")


def _value(cell: str) -> Cell:
    if cell == "":
        return None
    return int(cell) if _INTEGER.fullmatch(cell) else float(cell)
