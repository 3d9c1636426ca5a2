"""The memory that a stage has of each stream."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field

MOST_STREAMS = 4096  # of more, those that moved longest ago are forgotten

NEWCOMERS = ""  # the share of streams of which no window was run yet; no stream has this name


@dataclass(slots=True)
class StreamProgress:
    """How far a stream has come at a stage.

    `last_run` is the window run last, -1 for none; `lacked` when the newest one was captured, and the sources that it
    was run without. `heard` says of each part the window that came last and when (monotonic seconds), `shelved` the
    window in the replay buffer that was captured last and when (seconds since 1970). `batches` are the last two numbers
    of windows in a message that its sensors sent.
    """

    last_run: int = -1
    lacked: tuple[float, tuple[str, ...]] = (-math.inf, ())
    heard: dict[str, tuple[int, float]] = field(default_factory=dict)
    shelved: dict[str, tuple[int, float]] = field(default_factory=dict)
    batches: tuple[int, ...] = ()


_NOTHING = StreamProgress()


class Streams:
    """The progress of the streams that moved last."""

    def __init__(self) -> None:
        self._streams: OrderedDict[str, StreamProgress] = OrderedDict()

    def __len__(self) -> int:
        return len(self._streams)

    def find(self, stream: str) -> StreamProgress:
        """Return what is known of a stream, to read it."""
        return self._streams.get(stream, _NOTHING)

    def of(self, stream: str) -> StreamProgress:
        """Return what is known of a stream that moves now, to change it."""
        progress = self._streams.get(stream)
        if progress is None:
            progress = self._streams[stream] = StreamProgress()
            if len(self._streams) > MOST_STREAMS:
                self._streams.popitem(last=False)
        else:
            self._streams.move_to_end(stream)
        return progress

    def share(self, stream: str) -> str:
        """Return whose share of time and memory a stream takes: its own once a window of it was run.

        All others have one together, so that nobody gets a larger one by making up names of streams.
        """
        return stream if self.find(stream).last_run >= 0 else NEWCOMERS
