"""Send-on-delta: a value is sent only when it has moved far enough from the last one sent."""

from __future__ import annotations

import numpy as np

from har_edge.codecs.checks import check_window, to_float32
from har_edge.codecs.events import EventTrack, count_steps, most_bytes, read_events, read_steps, write_events
from har_edge.codecs.reducer import Code
from har_edge.data.recording import Samples


class SendOnDelta:
    """Sends the first sample of each channel, then whole steps of DELTA whenever a sample is DELTA or more away.

    An event carries the nearest whole number of steps, not the sample, so most events take two bytes. Between events
    the last value holds: a decoded value is less than DELTA from the original, but for rounding to float32. Each window
    is coded by itself, so none needs the one before it. Code: see `events.write_events`, with steps of DELTA.

    Source: Miskowicz, "Send-on-delta concept: an event-based data reporting strategy", Sensors 6(1), 2006, section 2.
    """

    code_shape: tuple[None] = (None,)
    code_dtype = "uint8"
    code_scale, code_zero = 0.0, 0
    restores, is_coding = True, False

    def __init__(self, delta: str, length: int, channels: int) -> None:
        """Build for windows float32 [length, channels]; delta is one number, or one for each channel with commas."""
        self._deltas = read_steps("sod", "DELTA", delta, channels)
        self.spec = f"sod:{','.join(map(repr, self._deltas.tolist()))}"
        self.feature_shape = (length, channels)
        self.most_bytes = most_bytes(length, channels)
        self.operations = 5 * length * channels  # scale (2), subtract, compare twice

    def encode(self, window: Samples) -> Code:
        """Return the code, uint8 [bytes]; DataError for another shape or dtype, not finite, or over 2^31 steps."""
        check_window(self.spec, window, self.feature_shape)
        levels = count_steps(self.spec, window, self._deltas)
        return write_events(window, [_sample_levels(row) for row in levels.tolist()])

    def features(self, code: Code) -> Samples:
        """Return the restored window, as `decode` does."""
        return self.decode(code)

    def decode(self, code: Code) -> Samples:
        """Restore a window; MessageError for a code that is none."""
        length, channels = self.feature_shape
        first, tracks = read_events(self.spec, code, length, channels)
        rises = np.zeros(self.feature_shape)
        for channel, track in enumerate(tracks):
            rises[track.places, channel] = track.rises
        return to_float32(first + self._deltas * rises.cumsum(axis=0))


def _sample_levels(levels: list[float]) -> EventTrack:
    """Return the events of one channel, whose samples are in units of delta above the first."""
    places, rises, sent = [], [], 0
    for place, level in enumerate(levels):
        if not -1 < level - sent < 1:
            rise = round(level - sent)
            sent += rise
            places.append(place)
            rises.append(rise)
    return EventTrack(places, rises)
