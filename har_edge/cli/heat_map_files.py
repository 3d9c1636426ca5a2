"""Pictures with their heat maps over them, which a sensor writes as PNG files when their results come."""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from har_edge.data.heat_maps import draw_overlay
from har_edge.files import write_atomic
from har_edge.protocol.events import ResultsEvent, decode

if TYPE_CHECKING:
    from har_edge.data.picture_stream import Decode
    from har_edge.data.pictures import Pixels
    from har_edge.mqtt.bus import Delivery
    from har_edge.protocol.results import AnomalyScore, Result
    from har_edge.protocol.topics import Topics

_log = logging.getLogger(__name__)
# Files of one run: a camera that sees an anomaly in every frame must not fill the disk.
MAX_FILES = 1000


class HeatMapFiles:
    """Keeps the pictures of a stream until their results come, at most `most`, and draws those with a heat map.

    Without `everything`, only anomalies are drawn. Results of pictures that were captured before `since` (seconds since
    1970) are those of another run.
    """

    def __init__(
        self,
        folder: Path,
        stream: str,
        topics: Topics,
        *,
        most: int,
        everything: bool,
        since: float | None = None,
        limit: int = MAX_FILES,
    ) -> None:
        self._folder, self._stream, self._topics = folder, stream, topics
        self._most, self._everything, self._limit = most, everything, limit
        self._since = time.time() if since is None else since
        self._open: OrderedDict[int, tuple[str, Pixels]] = OrderedDict()
        self._last: Pixels | None = None
        self._problem = ""
        self.written = 0

    def decoder(self, decode_one: Decode) -> Decode:
        """Return what makes pictures as `decode_one` does, and keeps the last."""

        def keep(content: bytes, name: str) -> Pixels:
            self._last = decode_one(content, name)
            return self._last

        return keep

    def named(self, say: Callable[[int, str], None] | None) -> Callable[[int, str], None]:
        """Return what notes which window the last picture is, and tells `say`."""

        def note(seq: int, name: str) -> None:
            if self._last is not None:
                self._open[seq] = name, self._last
            while len(self._open) > self._most:
                self._open.popitem(last=False)
            if say is not None:
                say(seq, name)

        return note

    def hear(self, delivery: Delivery) -> None:
        """Draw the pictures whose results a message brings; other messages are passed over."""
        event = decode(delivery, self._topics)
        for result in event.results if isinstance(event, ResultsEvent) else ():
            if result.stream == self._stream and result.captured >= self._since and result.anomaly is not None:
                self._draw(result, result.anomaly)

    def _draw(self, result: Result, anomaly: AnomalyScore) -> None:
        kept = self._open.pop(result.seq, None)
        if kept is None or anomaly.heat_map is None or not (anomaly.anomaly or self._everything):
            return
        if self.written >= self._limit:
            self._complain(f"{self._limit} heat maps are written; this run writes no more")
            return
        name, pixels = kept
        values = np.array(anomaly.heat_map.values, np.float32).reshape(anomaly.heat_map.shape)
        path = self._folder / _file_name(result, name)
        try:
            write_atomic(path, draw_overlay(pixels, values, anomaly.threshold))
        except OSError as error:
            self._complain(f"{path} cannot be written: {error.strerror}; the sensor goes on without")
        else:
            self.written += 1

    def _complain(self, text: str) -> None:
        if text != self._problem:
            self._problem = text
            _log.warning("%s", text)


def _file_name(result: Result, name: str) -> str:
    """Return the name of a file: the stream, the number of the window, and the picture, in plain letters."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(name).stem).strip("-")[:60] or "picture"
    return f"{result.stream}-{result.seq:06d}-{plain}.png"
