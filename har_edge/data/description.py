"""Describe a set of recordings (rate, sources, labels, file layout) by a small TOML file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import msgspec

from har_edge.data.fields import explain_unknown
from har_edge.data.pictures import PictureShape
from har_edge.data.recording import Source
from har_edge.errors import ConfigError
from har_edge.files import TOMLDecodeError, parse_toml, read_text

BUILT_IN = ("mhealth",)
NAME = re.compile(r"[a-zA-Z0-9_-]+")
MAX_LABELS = 1 << 15

Column = int | str


@dataclass(frozen=True, slots=True)
class FileLayout:
    """How the files of a data set are written.

    `pattern` is a regular expression that a file's whole name matches; its group `stream` names the stream, unless the
    column `stream` does. `columns` holds the columns of each source, in the order of the sources; a column is an index
    from 0 or, in files with a header, a name. `width` is the number of columns of a line where there is no header to
    say so. `label_values` holds what the label column says for each label; None means the label's own index. `time` is
    the column with the time of each row in seconds, which tells where a stream has gaps.
    """

    pattern: str
    delimiter: str
    header: bool
    columns: tuple[tuple[Column, ...], ...]
    width: int | None = None
    label: Column | None = None
    label_values: tuple[str, ...] | None = None
    stream: Column | None = None
    time: Column | None = None


@dataclass(frozen=True, slots=True)
class StreamDescription:
    """A data set: its rate in Hz, its sources with their channels, and its labels by index.

    `null_label` is the label of rows in which nothing of interest happens; None where the data set has none.
    `synthetic` says that its recordings were made up, so that nobody takes figures for those of people or machines.
    """

    name: str
    rate_hz: float
    sources: tuple[Source, ...]
    labels: tuple[str, ...]
    null_label: int | None
    files: FileLayout
    synthetic: bool = False

    def source(self, name: str) -> Source:
        """Return one source by name; ConfigError where there is none of that name."""
        for source in self.sources:
            if source.name == name:
                return source
        known = _listed(source.name for source in self.sources)
        raise ConfigError(f"{self.name} has no source {name!r}; expected one of {known}")


class _FilesTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pattern: str = r"(?P<stream>[a-zA-Z0-9_-]+)\.csv"
    delimiter: str = ","
    header: bool = True
    columns: int | None = None
    label: Column | None = None
    stream: Column | None = None
    time: Column | None = None


class _SourceTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    columns: tuple[Column, ...]
    channels: tuple[str, ...] | None = None


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    rate_hz: float
    sources: tuple[_SourceTable, ...]
    labels: tuple[str, ...] = ()
    label_values: tuple[int | str, ...] | None = None
    null_label: int | None = None
    synthetic: bool = False
    files: _FilesTable = _FilesTable()


def load_description(name_or_path: str | Path) -> StreamDescription:
    """Read the description built in under this name ("mhealth"), or from a TOML file.

    Raises ConfigError for an unknown name, an unreadable file, an unknown key or a value that makes no sense.
    """
    if name_or_path in BUILT_IN:
        return parse_description((resources.files("har_edge.data") / f"{name_or_path}.toml").read_text("utf-8"))
    path = Path(name_or_path)
    if not path.is_file():
        raise ConfigError(
            f"no stream description {str(name_or_path)!r}: expected {_listed(BUILT_IN)} or the path of a TOML file"
        )
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_description(text, str(path))


def describe_pictures(name: str, source: str, shape: PictureShape) -> StreamDescription:
    """Return the description of a stream of pictures, a pixel a sample; there are no recordings of it."""
    channels = ("red", "green", "blue") if shape.channels == 3 else ("grey",)
    columns = (tuple[Column, ...](channels),)
    files = FileLayout(r"(?P<stream>[a-zA-Z0-9_-]+)\.csv", ",", True, columns)
    return StreamDescription(name, 1.0, (Source(source, channels),), (), None, files)


def parse_description(text: str, where: str = "stream description") -> StreamDescription:
    """Make a description from TOML text; `where` names it in error messages."""
    try:
        document = msgspec.convert(parse_toml(text), _Document)
        return _build(document)
    except msgspec.ValidationError as error:
        tables: dict[str, type[msgspec.Struct]] = {"": _Document, "files": _FilesTable, "sources": _SourceTable}
        raise ConfigError(f"{where}: {explain_unknown(error, tables)}") from error
    except (TOMLDecodeError, ConfigError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _build(document: _Document) -> StreamDescription:
    _check(NAME.fullmatch(document.name), f"name is {document.name!r}, expected letters, digits, _ and -")
    rate = document.rate_hz
    _check(math.isfinite(rate) and rate > 0, f"rate_hz is {rate!r}, expected a number above 0")
    _check(document.sources, "there are no [[sources]], expected at least one")
    _unique("sources", [source.name for source in document.sources])
    count = len(document.labels)
    _check(count < MAX_LABELS, f"{count} labels, expected fewer than {MAX_LABELS}")
    _unique("labels", document.labels)
    null = document.null_label
    _check(null is None or 0 <= null < count, f"null_label is {null!r}, expected an index into the {count} labels")
    return StreamDescription(
        document.name,
        rate,
        tuple(_build_source(table) for table in document.sources),
        document.labels,
        null,
        _build_layout(document),
        document.synthetic,
    )


def _build_source(table: _SourceTable) -> Source:
    _check(NAME.fullmatch(table.name), f"source is named {table.name!r}, expected letters, digits, _ and -")
    _check(table.columns, f"source {table.name} has no columns, expected at least one")
    channels = table.channels or tuple(str(column) for column in table.columns)
    _check(
        len(channels) == len(table.columns),
        f"source {table.name} has {len(channels)} channels for {len(table.columns)} columns, expected one for each",
    )
    _unique(f"channels of source {table.name}", channels)
    return Source(table.name, channels)


def _build_layout(document: _Document) -> FileLayout:
    files = document.files
    _check(
        len(files.delimiter) == 1 and files.delimiter.isascii() and files.delimiter not in "\r\n\"'#",
        f"delimiter is {files.delimiter!r}, expected one character such as a comma, a tab or a space",
    )
    _check(files.header or files.columns, "files.columns is missing: without a header, say how many columns a line has")
    _check_pattern(files)
    columns = tuple(source.columns for source in document.sources)
    used: list[Column] = [column for source in columns for column in source]
    used += [column for column in (files.label, files.stream, files.time) if column is not None]
    _unique("columns", used)
    for column in used:
        _check_column(column, files)
    _check(files.label is None or document.labels, "files.label is given but labels is not, expected their names")
    values = None if document.label_values is None else tuple(str(value) for value in document.label_values)
    if values is not None:
        _check(
            len(values) == len(document.labels),
            f"{len(values)} label_values for {len(document.labels)} labels, expected one for each",
        )
        _unique("label_values", values)
    return FileLayout(
        files.pattern,
        files.delimiter,
        files.header,
        columns,
        files.columns,
        files.label,
        values,
        files.stream,
        files.time,
    )


def _check_pattern(files: _FilesTable) -> None:
    try:
        pattern = re.compile(files.pattern)
    except re.error as error:
        raise ConfigError(f"files.pattern is {files.pattern!r}, expected a regular expression: {error}") from error
    _check(
        "stream" in pattern.groupindex or files.stream is not None,
        f"files.pattern is {files.pattern!r}, expected a group (?P<stream>...), or the column files.stream",
    )


def _check_column(column: Column, files: _FilesTable) -> None:
    if isinstance(column, str):
        _check(files.header, f"column {column!r} is a name, expected an index from 0, as the files have no header")
    else:
        limit = math.inf if files.columns is None else files.columns
        _check(0 <= column < limit, f"column {column} is out of range, expected 0 to {limit} (exclusive)")


def _unique(what: str, values: Sequence[object]) -> None:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    _check(not twice, f"{what} holds {twice[0] if twice else None!r} twice, expected each once")


def _check(condition: object, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
