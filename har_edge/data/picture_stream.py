"""Pictures as they come to windows of one stream. No clock and no file: content, names and times are given."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from har_edge.data.frames import Frame, FrameSplitter
from har_edge.data.pictures import AspectRule, BadPicture, PictureFault, PictureShape, Pixels, decode_picture
from har_edge.data.recording import Window
from har_edge.units import plural

_log = logging.getLogger(__name__)
REPEAT_S = 60.0
PICTURES, DROPPED = "pictures", "dropped_windows"
# Makes a picture of the content of a file or frame with a name.
Decode = Callable[[bytes, str], Pixels]


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture file that was read: its name and its content, or why it could not be read and how that counts."""

    name: str
    content: bytes
    problem: str = ""
    fault: PictureFault = PictureFault.UNREADABLE


@dataclass(slots=True)
class PictureLog:
    """Counts refused pictures by kind, and logs each kind when it first occurs, then at most once in `repeat_s`."""

    repeat_s: float = REPEAT_S
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((PICTURES, *(fault.value for fault in PictureFault), DROPPED), 0)
    )
    last: str = ""
    _said: dict[str, float] = field(default_factory=dict)
    _unsaid: dict[str, int] = field(default_factory=dict)

    def record(self, kind: str, now: float, text: str) -> None:
        """Count one of a kind; log the text unless the kind was logged a moment ago."""
        self.counts[kind] += 1
        if kind in self._said and 0 <= now - self._said[kind] < self.repeat_s:
            self._unsaid[kind] = self._unsaid.get(kind, 0) + 1
            return
        since = self._unsaid.pop(kind, 0)
        self._said[kind] = now
        _log.warning("%s%s", text, f" ({since} more of the kind since the last such line)" if since else "")


class PictureWindows:
    """Numbers the pictures of a stream as its windows, refuses bad ones, and counts both.

    `say` is told which window a picture is, by its number and its name.
    """

    def __init__(self, stream: str, source: str, decode: Decode, say: Callable[[int, str], None] | None = None) -> None:
        self._stream, self._source, self._decode, self._say = stream, source, decode, say
        self._log, self._seq = PictureLog(), 0

    @property
    def counts(self) -> Mapping[str, int]:
        """Pictures that came, those that were refused by kind, and windows that were dropped, since the start."""
        return self._log.counts

    def drop(self, waiting: int, now: float) -> None:
        """Note that a window was dropped because so many wait to be sent."""
        self._log.record(DROPPED, now, f"dropped the oldest of {waiting} pictures that wait to be sent")

    def explain(self) -> str:
        """Say why no window was made."""
        count = self._log.counts[PICTURES]
        return f"{plural(count, 'picture')} came" + (f", and all were refused: {self._log.last}" if count else "")

    def refuse(self, fault: PictureFault, text: str, now: float) -> None:
        """Count a picture that came and is none."""
        self._log.counts[PICTURES] += 1
        self._log.last = text
        self._log.record(fault.value, now, text)

    def take(self, content: bytes, name: str, now: float) -> list[tuple[float, Window]]:
        """Return the window of a picture that came at `now`; nothing for one that is refused."""
        try:
            pixels = self._decode(content, name)
        except BadPicture as error:
            self.refuse(error.fault, str(error), now)
            return []
        self._log.counts[PICTURES] += 1
        samples = pixels.reshape(-1, pixels.shape[2]).astype(np.float32)
        window = Window(self._stream, self._seq, self._seq * len(samples), {self._source: samples}, None)
        if self._say is not None:
            self._say(self._seq, name)
        self._seq += 1
        return [(now, window)]


class FileStream:
    """Windows of picture files."""

    def __init__(self, windows: PictureWindows) -> None:
        self._windows = windows

    @property
    def counts(self) -> Mapping[str, int]:
        """See PictureWindows."""
        return self._windows.counts

    def feed(self, data: tuple[PictureFile, ...], now: float) -> list[tuple[float, Window]]:
        """Take files that were read at `now` (seconds since 1970); return their windows."""
        return [made for file in data for made in self._take(file, now)]

    def finish(self, now: float) -> list[tuple[float, Window]]:
        """Take the end: nothing is left."""
        return []

    def tick(self, now: float) -> None:
        """Do nothing: no file is late."""

    def drop(self, waiting: int, now: float) -> None:
        """See PictureWindows."""
        self._windows.drop(waiting, now)

    def explain(self) -> str:
        """Say why no window was made."""
        return self._windows.explain()

    def _take(self, file: PictureFile, now: float) -> list[tuple[float, Window]]:
        if file.problem:
            self._windows.refuse(file.fault, f"{file.name} is refused: {file.problem}", now)
            return []
        return self._windows.take(file.content, file.name, now)


class FrameStream:
    """Windows of the frames in bytes that come one after the other; `name` is that of what they come from."""

    def __init__(self, windows: PictureWindows, splitter: FrameSplitter, name: str) -> None:
        self._windows, self._splitter, self._name, self._number = windows, splitter, name, 0

    @property
    def counts(self) -> Mapping[str, int]:
        """See PictureWindows."""
        return self._windows.counts

    def feed(self, data: bytes, now: float) -> list[tuple[float, Window]]:
        """Take bytes that came at `now` (seconds since 1970); return the windows of the frames that are complete."""
        return self._take(self._splitter.feed(data), now)

    def finish(self, now: float) -> list[tuple[float, Window]]:
        """Refuse what is left, which is no whole frame."""
        return self._take(self._splitter.finish(), now)

    def tick(self, now: float) -> None:
        """Do nothing: nobody says how often frames come."""

    def drop(self, waiting: int, now: float) -> None:
        """See PictureWindows."""
        self._windows.drop(waiting, now)

    def explain(self) -> str:
        """Say why no window was made."""
        return self._windows.explain()

    def _take(self, frames: Iterable[Frame], now: float) -> list[tuple[float, Window]]:
        made = list[tuple[float, Window]]()
        for frame in frames:
            name = f"frame {self._number} of {self._name}"
            self._number += 1
            if frame.fault:
                fault = PictureFault.TRUNCATED if frame.ends_early else PictureFault.UNREADABLE
                self._windows.refuse(fault, f"{name} is refused: {frame.fault}; expected a whole JPEG file", now)
            else:
                made += self._windows.take(frame.content, name, now)
        return made


def file_decoder(shape: PictureShape, rule: AspectRule) -> Decode:
    """Return what makes pictures of this shape of files."""
    return lambda content, name: decode_picture(content, name, shape, rule)
