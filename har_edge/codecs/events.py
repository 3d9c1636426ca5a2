"""The code of methods that send only at events: the samples of the events of each channel, and the steps that each
rose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from har_edge.codecs.checks import check_code
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples
from har_edge.errors import ConfigError, DataError, MessageError

_Whole = npt.NDArray[np.int64]
_Reals = npt.NDArray[np.float64]
_LONGEST = 5  # bytes of a varint: 35 bits, for a difference of two levels of 32
_MOST_LEVEL = 2.0**31


@dataclass(frozen=True, slots=True)
class EventTrack:
    """The events of one channel: sample numbers, ascending from 1, and the rise at each in whole steps."""

    places: Sequence[int] | _Whole
    rises: Sequence[int] | _Whole


def read_steps(name: str, option: str, text: str, channels: int) -> _Reals:
    """Return the step of each channel, from one number for all channels, or from one for each with commas between.

    Raises ConfigError for another text.
    """
    try:
        steps = np.array([float(part) for part in text.split(",")])
    except ValueError:
        steps = np.array([np.nan])
    if len(steps) not in (1, channels) or not ((steps > 0) & (steps < np.inf)).all():
        raise ConfigError(
            f"reducer {name}: {option} is {text!r}, expected a number above 0 in the units of the samples, "
            f"or {channels} with commas between, one for each channel"
        )
    return steps


def count_steps(spec: str, window: Samples, steps: _Reals) -> _Reals:
    """Return how many steps each sample is above the first of its channel, float64 [C, L].

    Raises DataError beyond 2^31 steps.
    """
    rows = window.T.astype(np.float64)
    levels: _Reals = (rows - rows[:, :1]) / np.broadcast_to(steps, len(rows))[:, np.newaxis]
    if not (np.abs(levels) < _MOST_LEVEL).all():
        raise DataError(f"reducer {spec}: window spans more than 2^31 steps, expected a larger step or smaller values")
    return levels


def most_bytes(length: int, channels: int) -> int:
    """Return the largest size of a code in bytes: an event at every sample, with the longest numbers."""
    return channels * (4 + _LONGEST * (2 * length - 1))


def write_events(window: Samples, tracks: Sequence[EventTrack]) -> Code:
    """Return the code, uint8 [bytes]: the first sample of each channel (float32, little-endian), then whole numbers.

    The numbers of each channel follow one another: the number of events; for each event, the samples since the one
    before it (for the first, since sample 0); for each event, the rise in steps, zigzag: 0, -1, 1, -2 ... as 0, 1, 2, 3
    ... Each number is written 7 bits a byte, the lowest first, with bit 7 set in all bytes but its last. Source: LEB128
    and zigzag as in Protocol Buffers, developers.google.com/protocol-buffers/docs/encoding.
    """
    numbers: list[int] = []
    for track in tracks:
        numbers.append(len(track.places))
        numbers.extend(np.diff(track.places, prepend=0).tolist())
        numbers.extend(2 * rise if rise >= 0 else -2 * rise - 1 for rise in track.rises)
    head = np.ascontiguousarray(window[0], "<f4").view(np.uint8)
    return np.concatenate([head, _write_varints(np.array(numbers, np.int64))])


def read_events(spec: str, code: Code, length: int, channels: int) -> tuple[Samples, list[EventTrack]]:
    """Return the first sample and the events of each channel.

    The bytes of the code bound the memory, not the numbers in them. Raises MessageError for a code that `write_events`
    did not write.
    """
    check_code(spec, code, (None,), "uint8")
    code = np.ascontiguousarray(code)
    head = 4 * channels
    if len(code) < head + channels:
        raise MessageError(f"reducer {spec}: code is {len(code)} bytes, expected at least {head + channels}")
    first = code[:head].view("<f4").astype(np.float32)
    if not np.isfinite(first).all():
        raise MessageError(f"reducer {spec}: code starts with NaN or infinity, expected finite values")
    numbers = _read_varints(spec, code[head:])
    tracks, at = [], 0
    for channel in range(channels):
        count = int(numbers[at]) if at < len(numbers) else length
        stop = at + 1 + 2 * count
        if count >= length or stop > len(numbers):
            raise MessageError(
                f"reducer {spec}: code has {len(numbers)} numbers, too few for {count} events in channel {channel}, "
                f"expected at most {length - 1} events and all their numbers"
            )
        gaps, zigzag = numbers[at + 1 : at + 1 + count], numbers[at + 1 + count : stop]
        if (gaps < 1).any() or (gaps >= length).any() or gaps.sum() >= length:
            raise MessageError(f"reducer {spec}: code has events outside 1 to {length - 1} in channel {channel}")
        tracks.append(EventTrack(np.cumsum(gaps), (zigzag >> 1) ^ -(zigzag & 1)))
        at = stop
    if at != len(numbers):
        raise MessageError(f"reducer {spec}: code has {len(numbers)} numbers, expected {at} as its counts say")
    return first, tracks


def _write_varints(numbers: _Whole) -> Code:
    shifted = numbers[:, np.newaxis] >> (7 * np.arange(_LONGEST))
    more = np.zeros(shifted.shape, np.int64)
    more[:, :-1] = shifted[:, 1:] > 0
    used = np.ones(shifted.shape, np.bool_)
    used[:, 1:] = shifted[:, 1:] > 0
    return ((shifted & 127) | (more << 7))[used].astype(np.uint8)


def _read_varints(spec: str, code: Code) -> _Whole:
    ends = np.flatnonzero(code < 128) + 1
    starts = np.concatenate([[0], ends])
    sizes = np.diff(starts)
    if starts[-1] != len(code) or (sizes > _LONGEST).any():
        raise MessageError(
            f"reducer {spec}: code has a number without end, expected at most {_LONGEST} bytes a number, the last "
            "below 128"
        )
    place = np.arange(len(code)) - np.repeat(starts[:-1], sizes)
    return np.add.reduceat((code & 127).astype(np.int64) << (7 * place), starts[:-1])
