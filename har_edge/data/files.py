"""Recordings of a data set, read from a folder, a zip or one file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from har_edge.data.archive import DIGEST_BYTES, DataFile, list_files
from har_edge.data.cache import entry_path, load_table, store_table
from har_edge.data.description import NAME, StreamDescription
from har_edge.data.recording import Recording, Samples
from har_edge.data.tabular import Table, parse_table
from har_edge.errors import DataError


def read_recordings(
    description: StreamDescription,
    where: Path,
    streams: Collection[str] | None = None,
    keep_null: bool = False,
    sources: Collection[str] | None = None,
) -> list[Recording]:
    """Read the recordings of these streams (all by default), in natural order of their names.

    Only the samples of `sources` are kept (all by default), so that a sensor holds no more than it sends.

    Rows of the null label are dropped unless `keep_null`; a gap starts where some were. Several files of one stream
    follow each other by name, with a gap between. Parsed files are cached. Raises DataError where a file is malformed
    (with file, line, what came and what was expected), where nothing is found, or where a stream asked for is missing.
    """
    parts: dict[str, list[_Part]] = {}
    known: set[str] = set()
    for file in sorted(list_files(where, description), key=lambda file: natural(file.name)):
        stream = _stream_of(file, description)
        if stream:
            known.add(stream)
        if stream and streams is not None and stream not in streams:
            continue
        table = _read_table(file, description, stream)
        for name, start, stop in zip(table.streams, table.starts, (*table.starts[1:], len(table.labels)), strict=True):
            known.add(name)
            if streams is None or name in streams:
                values, labels = table.values[start:stop], table.labels[start:stop]
                parts.setdefault(name, []).append(_take(description, values, labels, sources, keep_null))
    missing = sorted(set(streams or ()) - known, key=natural)
    if missing:
        there = ", ".join(sorted(known, key=natural))
        raise DataError(f"{where}: no stream {', '.join(missing)}, expected some of {there}")
    return [_join(description, name, parts.pop(name)) for name in sorted(parts, key=natural)]


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """Return a sort key that puts subject2 before subject10."""
    return tuple((text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", name))


def _stream_of(file: DataFile, description: StreamDescription) -> str:
    """Return the stream that the file's name gives, or "" where a column does."""
    if description.files.stream is not None:
        return ""
    match = re.fullmatch(description.files.pattern, file.name)
    stream = match["stream"] if match else None
    if stream is None or not NAME.fullmatch(stream):
        raise DataError(f"{file}: the name gives the stream {stream!r}, expected letters, digits, _ and -; rename it")
    return stream


def _read_table(file: DataFile, description: StreamDescription, stream: str) -> Table:
    name, layout = str(file.path.absolute()) + "\0" + file.name, repr(description)
    channels = sum(len(source.channels) for source in description.sources)
    table = load_table(entry_path(name, layout, file.digest()), channels)
    if table is None:
        content = file.read()
        digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()
        table = parse_table(content, description, stream, str(file))
        store_table(entry_path(name, layout, digest), table)
    return table


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a stream that one file holds and that are kept, and the rows that start a segment."""

    samples: dict[str, Samples]
    labels: npt.NDArray[np.int16]
    starts: npt.NDArray[np.intp]


def _take(
    description: StreamDescription,
    values: Samples,
    labels: npt.NDArray[np.int16],
    sources: Collection[str] | None,
    keep_null: bool,
) -> _Part:
    kept = np.ones(len(labels), np.bool_)
    if description.null_label is not None and not keep_null:
        kept = labels != description.null_label
    fresh = np.zeros(len(labels) + 1, np.bool_)
    fresh[0] = True
    # A row is a start when a dropped row stands before it. A start that is itself dropped so passes on to the next row
    # that is kept.
    fresh[1:] = ~kept
    samples, column = {}, 0
    for source in description.sources:
        columns = slice(column, column + len(source.channels))
        column = columns.stop
        if sources is None or source.name in sources:
            samples[source.name] = np.ascontiguousarray(values[:, columns][kept])
    return _Part(samples, labels[kept], np.flatnonzero(fresh[:-1][kept]))


def _join(description: StreamDescription, stream: str, parts: list[_Part]) -> Recording:
    offsets = np.cumsum([0, *(len(part.labels) for part in parts[:-1])])
    starts = np.concatenate([part.starts + offset for part, offset in zip(parts, offsets, strict=True)])
    if len(parts) == 1:
        samples: dict[str, Samples] = parts[0].samples
    else:
        samples = {source: np.concatenate([part.samples[source] for part in parts]) for source in parts[0].samples}
    labels = np.concatenate([part.labels for part in parts])
    return Recording(
        stream, description.rate_hz, samples, labels, tuple(starts.tolist()) or (0,), not description.synthetic
    )
