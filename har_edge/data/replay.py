"""A recording as it would arrive: each window with the time at which its last sample exists."""

from __future__ import annotations

import math
from collections.abc import Iterator

from har_edge.data.recording import Recording, Window
from har_edge.data.windows import windows
from har_edge.errors import ConfigError


def replay(recording: Recording, length: int, hop: int, speed: float | None) -> Iterator[tuple[float, Window]]:
    """Yield (due_s, window) of a live stream, by stream position; nothing waits here, the caller has the clock.

    due_s is the time in seconds from the first sample of the recording to the last sample of the window, divided by
    `speed`; 0 for every window where speed is None, as fast as possible. Gaps take no time. Raises ConfigError for a
    speed that is not above 0.
    """
    if speed is not None and not (math.isfinite(speed) and speed > 0):
        raise ConfigError(f"speed is {speed}, expected a number above 0, or none for as fast as possible")
    seconds = 0.0 if speed is None else 1 / (recording.rate_hz * speed)
    for window in windows(recording, length, hop, within_activity=False):
        yield (window.start + length - 1) * seconds, window
