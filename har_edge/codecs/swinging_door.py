"""Swinging door trending: straight lines in place of samples, as long as every sample stays near its line."""

from __future__ import annotations

from math import ceil, floor, inf

import numpy as np

from har_edge.codecs.checks import check_window, to_float32
from har_edge.codecs.events import EventTrack, count_steps, most_bytes, read_events, read_steps, write_events
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples


class SwingingDoor:
    """Draws each channel as connected lines, none of which is further than DEVIATION from a sample it replaces.

    Two doors hinge DEVIATION above and below the start of a line, and each new sample may only open them wider. Once no
    line fits between them, the line ends at the sample before, near the middle between the doors, whole steps of
    DEVIATION above or below its start. An end need not be a sample. Ends stand on steps, so most of them take two
    bytes; they lie between the doors, so the bound holds, but for rounding to float32. Code: see `events.write_events`,
    with steps of DEVIATION; the last event of a channel is its last sample.

    Source: Bristol, "Swinging door trending: adaptive trend recording?", ISA National Conference Proceedings, 1990;
    ends that are no samples: Elmeleegy et al., "Online piece-wise linear approximation of numerical streams with
    precision guarantees", VLDB 2009, section 3.
    """

    code_shape: tuple[None] = (None,)
    code_dtype = "uint8"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = True, False

    def __init__(self, deviation: str, length: int, channels: int) -> None:
        """Build for windows float32 [length, channels]; one deviation, or one for each channel with commas."""
        self._steps = read_steps("door", "DEVIATION", deviation, channels)
        self.spec = f"door:{','.join(map(repr, self._steps.tolist()))}"
        self.feature_shape = (length, channels)
        self.most_bytes = most_bytes(length, channels)
        self.operations = 13 * length * channels  # scale 2, doors 6, compare 2, fit 3

    def encode(self, window: Samples) -> Code:
        """Return the code, uint8 [bytes]; DataError for another shape or dtype, not finite, or over 2^31 steps."""
        check_window(self.spec, window, self.feature_shape)
        levels = count_steps(self.spec, window, self._steps)
        return write_events(window, [_compress_channel(row) for row in levels.tolist()])

    def features(self, code: Code) -> Samples:
        """Return the restored window, as `decode` does."""
        return self.decode(code)

    def decode(self, code: Code) -> Samples:
        """Restore a window; MessageError for a code that is none."""
        length, channels = self.feature_shape
        first, tracks = read_events(self.spec, code, length, channels)
        levels = np.empty(self.feature_shape)
        for channel, track in enumerate(tracks):
            ends = np.concatenate([[0], np.cumsum(track.rises)])
            levels[:, channel] = np.interp(np.arange(length), np.concatenate([[0], track.places]), ends)
        return to_float32(first + self._steps * levels)


def _compress_channel(levels: list[float]) -> EventTrack:
    """Return the ends of the lines of one channel, whose samples are in steps above the first."""
    places: list[int] = []
    rises: list[int] = []
    start, hinge, least, most = 0, 0, -inf, inf  # the doors, as slopes of the lines that still fit
    for place, level in enumerate(levels[1:], 1):
        run, rise = place - start, level - hinge
        lowest, highest = (rise - 1) / run, (rise + 1) / run
        if lowest < least:
            lowest = least
        if highest > most:
            highest = most
        if highest * run // 1 < lowest * run:  # nowhere to end here, so the line ends one sample before
            end = _between(least * (run - 1), most * (run - 1))
            places.append(place - 1)
            rises.append(end)
            start, hinge = place - 1, hinge + end
            lowest, highest = level - hinge - 1, level - hinge + 1
        least, most = lowest, highest
    if len(levels) > 1:
        run = len(levels) - 1 - start
        places.append(len(levels) - 1)
        rises.append(_between(least * run, most * run))
    return EventTrack(places, rises)


def _between(least: float, most: float) -> int:
    """Return the whole number nearest the middle that is not outside."""
    return min(max(round((least + most) / 2), ceil(least)), floor(most))
