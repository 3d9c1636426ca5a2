"""Delimiter-separated text to arrays: fast where every line is well-formed, exact about the first line that is not."""

from __future__ import annotations

import codecs
import io
import math
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from har_edge.data.description import NAME, Column, FileLayout, StreamDescription
from har_edge.data.recording import Samples
from har_edge.data.runs import find_runs
from har_edge.errors import DataError
from har_edge.units import plural

UNKNOWN_LABEL = -1
_SHOWN = 60
_HEAD = 4096  # bytes by which UTF-16 is told


@dataclass(frozen=True, slots=True)
class Table:
    """One file: float32 [n, channels of all sources], labels int16 [n], and the runs of rows of one stream.

    Run i starts at row `starts[i]` and belongs to stream `streams[i]`; the rows of a run follow each other in time.
    Without a label column, labels are -1.
    """

    values: Samples
    labels: npt.NDArray[np.int16]
    starts: tuple[int, ...]
    streams: tuple[str, ...]


def parse_table(data: bytes, description: StreamDescription, stream: str, where: str) -> Table:
    """Parse a whole file; `stream` names its rows where no column does, `where` names it in errors.

    Raises DataError with the line number for a line of another width, text or NaN where a number belongs, or a label
    that the description does not know.
    """
    lines = _Lines(data, description, where)
    lines.check_widths()
    count = len(lines.values)
    needed = [*lines.values, *([] if lines.label is None or lines.has_text_labels else [lines.label])]
    needed += [] if lines.time is None else [lines.time]
    numbers = lines.load_numbers(needed)
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(numbers[:, :count], dtype=np.float32)
    if not np.isfinite(values).all() or not (lines.time is None or np.isfinite(numbers[:, -1]).all()):
        lines.refuse()
    if lines.label is None:
        labels = np.full(len(values), UNKNOWN_LABEL, np.int16)
    elif lines.has_text_labels:
        labels = _labels_of_text(lines, lines.label)
    else:
        labels = _labels_of_numbers(lines, numbers[:, count])
    names = [stream] * len(values) if lines.stream is None else lines.load_streams(lines.stream)
    runs = find_runs(names, None if lines.time is None else numbers[:, -1], description.rate_hz, where)
    if runs.order is not None:
        values, labels = np.ascontiguousarray(values[runs.order]), labels[runs.order]
    return Table(values, labels, runs.starts, runs.streams)


def decode_text(data: bytes, where: str) -> bytes:
    """Return the text of a file in UTF-8 with line feeds only.

    UTF-16 is known by its mark, and what ends its lines with carriage returns alone by having no line feed. Raises
    DataError for text in neither.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            data = data.decode("utf-16").encode()
        except UnicodeError as error:
            raise DataError(f"{where}: begins as UTF-16 text but is none: {error}; save it as UTF-8") from None
    data = data.removeprefix(codecs.BOM_UTF8)
    head = data[:_HEAD]
    if head.count(b"\0") * 4 >= len(head) > 0:
        raise DataError(
            f"{where}: every second byte or so is NUL, as in UTF-16 without a byte order mark or a binary file; "
            "expected UTF-8 text: save it as that"
        )
    if b"\r" not in data:
        return data
    data = data.replace(b"\r\n", b"\n")
    return data if b"\n" in data else data.replace(b"\r", b"\n")


class _Lines:
    """The lines of one file, with the columns of the description resolved to indices."""

    def __init__(self, data: bytes, description: StreamDescription, where: str) -> None:
        layout = description.files
        data = decode_text(data, where).rstrip(b"\n")
        self.where = where
        self.description = description
        self.first = 1
        header: list[str] | None = None
        if layout.header:
            head, _, data = data.partition(b"\n")
            self.first = 2
            header = [name.strip() for name in head.decode("utf-8", "replace").split(layout.delimiter)]
        if not data:
            raise DataError(f"{where}: no rows, expected lines of numbers; is the file complete?")
        self.data = data
        self.delimiter = layout.delimiter
        self.width = self._find_width(layout, header)
        self.values = [self._find(column, header) for columns in layout.columns for column in columns]
        self.label = None if layout.label is None else self._find(layout.label, header)
        self.stream = None if layout.stream is None else self._find(layout.stream, header)
        self.time = None if layout.time is None else self._find(layout.time, header)
        self.has_text_labels = layout.label_values is not None

    def _find_width(self, layout: FileLayout, header: list[str] | None) -> int:
        if header is None:
            return layout.width or 0
        if layout.width not in (None, len(header)):
            raise DataError(f"{self.where}, line 1: {len(header)} columns, expected {layout.width}")
        twice = [name for index, name in enumerate(header) if name in header[:index]]
        if twice:
            raise DataError(f"{self.where}, line 1: column {twice[0]!r} appears twice, expected each once")
        return len(header)

    def _find(self, column: Column, header: list[str] | None) -> int:
        if isinstance(column, int):
            if column >= self.width:
                raise DataError(f"{self.where}: {self.width} columns, expected at least {column + 1}")
            return column
        if header is None or column not in header:
            raise DataError(
                f"{self.where}, line 1: no column {column!r} in the header, which has {', '.join(header or ())}"
            )
        return header.index(column)

    def check_widths(self) -> None:
        """Refuse the first line that has not exactly `width` columns."""
        characters = np.frombuffer(self.data, np.uint8)
        ends = np.append(np.flatnonzero(characters == ord("\n")), len(characters))
        delimiters = np.flatnonzero(characters == ord(self.delimiter))
        self.count = len(ends)
        widths = np.diff(np.searchsorted(delimiters, ends), prepend=0) + 1
        wrong = np.flatnonzero(widths != self.width)
        if len(wrong):
            row = int(wrong[0])
            start = int(ends[row - 1]) + 1 if row else 0
            text = self.data[start : int(ends[row])].decode("utf-8", "replace")
            found = f"{widths[row]} columns ({_shown(text)})" if text.strip() else "an empty line"
            raise self.error(row, f"{found}, expected {self.width} columns")

    def load_numbers(self, columns: list[int]) -> npt.NDArray[np.float64]:
        """Return these columns, float64 [n, columns]."""
        return np.asarray(self._load(columns, np.float64), np.float64)

    def load_texts(self, column: int) -> list[str]:
        """Return the fields of one column, without white space around them."""
        return [str(text).strip() for text in self._load([column], np.str_)[:, 0]]

    def load_streams(self, column: int) -> list[str]:
        """Return the stream of each row; DataError for a name that cannot be one."""
        names = self.load_texts(column)
        for name in set(names):
            if not NAME.fullmatch(name):
                rows = f"in {plural(names.count(name), 'row')} of {len(names)}, first in this one"
                text = f"stream is {_shown(name)} {rows}; expected letters, digits, _ and -: rename it in the file"
                raise self.error(names.index(name), text)
        return names

    def _load(self, columns: list[int], dtype: type[np.float64] | type[np.str_]) -> npt.NDArray[Any]:
        usecols = None if columns == list(range(self.width)) else columns
        try:
            array = np.loadtxt(
                io.BytesIO(self.data),
                dtype=dtype,
                comments=None,
                delimiter=self.delimiter,
                usecols=usecols,
                ndmin=2,
                encoding="utf-8",
            )
        except ValueError as error:
            self.refuse(str(error))
        if array.shape != (self.count, len(columns)):
            self.refuse(f"{len(array)} rows read of {self.count}")
        return array

    def refuse(self, reason: str = "unreadable") -> NoReturn:
        """Find the first malformed value, the slow and exact way, and raise DataError for it."""
        for row, line in enumerate(self.data.split(b"\n")):
            try:
                fields = line.decode("utf-8").split(self.delimiter)
            except UnicodeDecodeError as error:
                raise self.error(row, f"{_shown(repr(line))} is not UTF-8 text") from error
            for column in [*self.values, *([] if self.time is None else [self.time])]:
                if not _is_number(fields[column]):
                    raise self.error(row, f"column {column} is {_shown(fields[column])}, expected a finite number")
            if self.label is not None and not self.has_text_labels:
                self.check_label(row, fields[self.label])
        raise DataError(f"{self.where}: {reason}, expected lines of {self.width} columns")

    def check_label(self, row: int, text: str) -> None:
        """Refuse a label that is not the index of a label."""
        last = len(self.description.labels) - 1
        if not (_is_number(text) and float(text).is_integer() and 0 <= float(text) <= last):
            raise self.error(row, f"label is {_shown(text)}, expected a whole number from 0 to {last}")

    def field(self, row: int, column: int) -> str:
        """Return one field as it stands in the file."""
        return self.data.split(b"\n")[row].decode("utf-8", "replace").split(self.delimiter)[column]

    def error(self, row: int, message: str) -> DataError:
        """Return a DataError that names file and line."""
        return DataError(f"{self.where}, line {self.first + row}: {message}; mend or remove that line")


def _labels_of_numbers(lines: _Lines, column: npt.NDArray[np.float64]) -> npt.NDArray[np.int16]:
    known = (column >= 0) & (column < len(lines.description.labels)) & (column == np.floor(column))
    if not known.all():
        row = int(np.argmin(known))
        assert lines.label is not None
        lines.check_label(row, lines.field(row, lines.label))
    return column.astype(np.int16)


def _labels_of_text(lines: _Lines, column: int) -> npt.NDArray[np.int16]:
    values = lines.description.files.label_values or ()
    index = {value: label for label, value in enumerate(values)}
    texts = lines.load_texts(column)
    labels = np.array([index.get(text, UNKNOWN_LABEL) for text in texts], np.int16)
    if (labels == UNKNOWN_LABEL).any():
        row = int(np.argmax(labels == UNKNOWN_LABEL))
        raise lines.error(row, f"label is {_shown(texts[row])}, expected one of {', '.join(values)}")
    return labels


def _is_number(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and abs(value) <= float(np.finfo(np.float32).max) and "_" not in text


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "...")
