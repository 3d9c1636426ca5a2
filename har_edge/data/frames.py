"""Cut bytes, as they come, into frames: JPEG files one after the other (MJPEG), or raw frames of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

# A frame of a camera; what claims to be larger is none.
MAX_FRAME_BYTES = 16 * 1024 * 1024
_START, _END, _SCAN = b"\xff\xd8", 0xD9, 0xDA
# Markers without a segment behind them (ITU-T T.81, table B.1), and what may stand in the data of a scan.
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_IN_SCAN = frozenset({0x00, *range(0xD0, 0xD8)})


@dataclass(frozen=True, slots=True)
class Frame:
    """The bytes of one frame; `fault` says why it is none, an empty text where it is one."""

    content: bytes
    fault: str = ""
    ends_early: bool = False


class FrameSplitter(Protocol):
    """Cuts bytes into frames; holds at most one."""

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete."""

    def finish(self) -> Iterator[Frame]:
        """Yield what is left at the end, which is no whole frame."""


class RawSplitter:
    """Cuts bytes into frames of `size` bytes."""

    def __init__(self, size: int) -> None:
        self._size, self._rest = size, bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete."""
        self._rest += data
        while len(self._rest) >= self._size:
            frame = bytes(self._rest[: self._size])
            del self._rest[: self._size]
            yield Frame(frame)

    def finish(self) -> Iterator[Frame]:
        """Yield the bytes that are left, which are no whole frame."""
        if self._rest:
            yield Frame(bytes(self._rest))
            self._rest.clear()


class JpegSplitter:
    """Cuts bytes into JPEG files by their markers (ITU-T T.81, annex B), so that a thumbnail in one ends none.

    Bytes between two files, as the heads of multipart streams, are passed over. A file that is damaged or larger than
    `limit` is given as a fault, and the next one is looked for behind its first bytes.
    """

    def __init__(self, limit: int = MAX_FRAME_BYTES) -> None:
        self._limit = limit
        self._rest = bytearray()
        self._at = 0  # the next marker of the frame that begins the bytes; 0 outside of one
        self._in_scan = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield the frames that are complete, and those that are refused."""
        self._rest += data
        while True:
            if not self._at and not self._begin():
                return
            fault = self._walk()
            if fault is None:
                if len(self._rest) <= self._limit:
                    return
                fault = f"it has more than {self._limit} bytes"
            yield self._refuse(fault) if fault else self._take()

    def finish(self) -> Iterator[Frame]:
        """Yield the last file where it did not end."""
        if self._at:
            yield Frame(b"", "it ends too early", ends_early=True)
        self._rest.clear()
        self._at, self._in_scan = 0, False

    def _begin(self) -> bool:
        """Find the begin of a file, and drop what stands before it."""
        found = self._rest.find(_START)
        if found < 0:
            del self._rest[: max(0, len(self._rest) - 1)]
            return False
        del self._rest[:found]
        self._at, self._in_scan = 2, False
        return True

    def _take(self) -> Frame:
        """Remove the frame that begins the bytes."""
        frame = Frame(bytes(self._rest[: self._at]))
        del self._rest[: self._at]
        self._at = 0
        return frame

    def _refuse(self, fault: str) -> Frame:
        """Remove the frame up to the next one where that is what ended it, else its first bytes alone."""
        ends_early = self._rest[self._at : self._at + 2] == _START
        del self._rest[: self._at if ends_early else 2]
        self._at = 0
        return Frame(b"", "it ends too early: another begins within it" if ends_early else fault, ends_early)

    def _walk(self) -> str | None:
        """Go from marker to marker; return an empty text at the end of the file, a fault, or None for more bytes."""
        rest = self._rest
        while True:
            if self._in_scan:
                self._at = self._next_marker()
            if self._at + 1 >= len(rest):
                return None
            if rest[self._at] != 0xFF:
                return f"byte {self._at} is no marker"
            marker = rest[self._at + 1]
            if self._in_scan and marker in _IN_SCAN:
                self._at += 2
                continue
            if marker == 0xFF:  # a fill byte
                self._at += 1
                continue
            if marker == _END:
                self._at += 2
                return ""
            if marker in _ALONE:
                self._at += 2
                continue
            if marker in (0x00, 0xD8):
                return f"byte {self._at} is no marker that may stand there"
            if self._at + 3 >= len(rest):
                return None
            size = int.from_bytes(rest[self._at + 2 : self._at + 4], "big")
            if size < 2:
                return f"a segment at byte {self._at} has {size} bytes"
            if self._at + 2 + size > len(rest):
                return None
            self._at += 2 + size
            self._in_scan = marker == _SCAN

    def _next_marker(self) -> int:
        found = self._rest.find(b"\xff", self._at)
        return len(self._rest) if found < 0 else found
