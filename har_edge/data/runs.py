"""Which rows of a file follow each other: rows of several streams may stand in turn, and time stamps show gaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.errors import DataError

# Time between two rows, in sample periods, from which on it is a gap: as data/faults.py says for devices.
GAP_PERIODS = 1.5
# How many rows of each other stream may stand between two rows that follow each other in a file without times.
BETWEEN = 2
# From how many runs a stream on they are taken for turns, where they are short.
TURNS = 4

_Rows = npt.NDArray[np.intp]
_Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Runs:
    """Rows in a new order, None for that of the file, and the runs in it: where each starts, and of which stream."""

    order: _Rows | None
    starts: tuple[int, ...]
    streams: tuple[str, ...]


def find_runs(names: Sequence[str], times: npt.NDArray[np.float64] | None, rate_hz: float, where: str) -> Runs:
    """Gather the rows of each stream, and cut them where the stream has a gap.

    `names` says the stream of each row. With `times` (seconds, [n]) a gap is where they are further apart than
    1.5 sample periods. Without, it is where a stream comes back after more than two rows of another: fewer are rows of
    several streams in turn, as files that are sorted by time have them. Raises DataError for times that do not rise,
    and for a file without times in which streams take turns of a few rows: that may be gaps or not.
    """
    codes = {name: code for code, name in enumerate(dict.fromkeys(names))}
    if len(codes) <= 1 and times is None:
        return Runs(None, (0,), tuple(codes))
    code = np.array([codes[name] for name in names], np.intp)
    order = np.argsort(code, kind="stable")
    fresh = np.ones(len(order), np.bool_)
    fresh[1:] = code[order][1:] != code[order][:-1]
    gaps = _gaps_of_order(code, order, len(codes)) if times is None else _gaps_of_time(times[order], fresh, rate_hz)
    if times is not None:
        _check_times(times, order, fresh, names, where)
    starts = np.flatnonzero(fresh | gaps)
    if times is None and len(starts) > TURNS * len(codes) and len(order) / len(starts) < rate_hz:
        raise DataError(
            f"{where}: {len(codes)} streams take turns every few rows ({len(order)} rows in {len(starts)} runs), so "
            "nobody knows which rows follow each other; name the column that holds the time with files.time, or sort "
            "the rows by stream"
        )
    kept = bool((order == np.arange(len(order))).all())
    return Runs(None if kept else order, tuple(starts.tolist()), tuple(names[row] for row in order[starts]))


def _gaps_of_order(code: _Rows, order: _Rows, count: int) -> _Flags:
    """Return, for each row in the new order, whether too many rows of one other stream stand before it in the file."""
    gaps = np.zeros(len(order), np.bool_)
    apart = np.zeros(len(order), np.intp)
    apart[1:] = order[1:] - order[:-1] - 1
    most = BETWEEN * (count - 1)
    gaps[apart > most] = True
    for place in np.flatnonzero((apart > BETWEEN) & (apart <= most)):
        between = code[order[place - 1] + 1 : order[place]]
        gaps[place] = int(np.bincount(between).max()) > BETWEEN
    return gaps


def _gaps_of_time(times: npt.NDArray[np.float64], fresh: _Flags, rate_hz: float) -> _Flags:
    gaps = np.zeros(len(times), np.bool_)
    gaps[1:] = (times[1:] - times[:-1]) * rate_hz > GAP_PERIODS
    return gaps & ~fresh


def _check_times(times: npt.NDArray[np.float64], order: _Rows, fresh: _Flags, names: Sequence[str], where: str) -> None:
    """Refuse times that do not rise within a stream."""
    back = np.flatnonzero(~fresh[1:] & (times[order][1:] <= times[order][:-1]))
    if len(back):
        row, before = int(order[back[0] + 1]), float(times[order[back[0]]])
        raise DataError(
            f"{where}, row {row + 1}: the time of stream {names[row]} is {times[row]:g}, expected one after {before:g} "
            "of the row before; sort the rows by time, or mend that one"
        )
