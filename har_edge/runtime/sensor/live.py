"""A sensor that reads a device: neither does the device wait for the broker, nor the broker for the device."""

from __future__ import annotations

import os
import select
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar

from har_edge.data.recording import Window
from har_edge.errors import ConfigError, NodeError
from har_edge.mqtt.bus import Bus, Delivery
from har_edge.runtime.sensor.flow_control import FlowController
from har_edge.runtime.sensor.publisher import SensorPublisher
from har_edge.runtime.sensor.sensor import Sensor
from har_edge.runtime.status_publisher import Identity
from har_edge.runtime.stop import Stop

STANDARD_INPUT = "-"
READ_BYTES = 1 << 16
# How long the broker is listened to before the device is looked at again.
TURN_S = 0.02
# Messages on their way to the broker can no longer be dropped, so their number is bounded, too.
AHEAD = 32


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
T_contra = TypeVar("T_contra", contravariant=True)


class WindowDevice(Protocol[T_co]):
    """A device, or files, that a sensor reads without ever waiting for it."""

    @property
    def keeps(self) -> bool:
        """Whether what is not read now can be read later."""

    def read(self) -> T_co | None:
        """Return what has come, something empty for nothing yet, None at the end; NodeError when the device is lost."""

    def reopen(self) -> bool:
        """Wait for more after the end; False where the end is the end."""


class WindowStream(Protocol[T_contra]):
    """Makes windows of what a device gives, each with the time at which its last sample was captured."""

    @property
    def counts(self) -> Mapping[str, int]:
        """The figures of what came and what was refused, by name."""

    def feed(self, data: T_contra, now: float) -> list[tuple[float, Window]]:
        """Take what came at `now` (seconds since 1970); return the windows that are complete."""

    def finish(self, now: float) -> list[tuple[float, Window]]:
        """Take the end; what comes next starts anew."""

    def tick(self, now: float) -> None:
        """Look at the time where nothing came."""

    def drop(self, waiting: int, now: float) -> None:
        """Note that a window was dropped because so many wait to be sent."""


class LiveDevice:
    """A serial device, FIFO or file that is read without ever waiting for it; `-` is standard input.

    A named FIFO outlives its writers: when one goes, the next is waited for. Raises ConfigError for what cannot be
    opened.
    """

    def __init__(self, name: str) -> None:
        self.name = "standard input" if name == STANDARD_INPUT else name
        self._path = None if name == STANDARD_INPUT else name
        self._file = self._open() if self._path else 0
        mode = os.fstat(self._file).st_mode
        if stat.S_ISDIR(mode):
            raise ConfigError(f"{self.name} is a folder; expected a serial device, a FIFO or a file")
        self._is_fifo = self._path is not None and stat.S_ISFIFO(mode)
        self.keeps = stat.S_ISREG(mode)  # what is not read now can be read later

    def _open(self) -> int:
        assert self._path is not None
        try:
            return os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            raise ConfigError(
                f"cannot read {self.name}: {error.strerror}; expected a serial device, a FIFO or a file"
            ) from None

    def read(self) -> bytes | None:
        """Return what has come, b"" for nothing yet, None at the end; NodeError when the device is lost."""
        try:
            if not select.select([self._file], [], [], 0)[0]:
                return b""
            data = os.read(self._file, READ_BYTES)
        except BlockingIOError:
            return b""
        except OSError as error:
            raise NodeError(f"{self.name} can no longer be read: {error.strerror}; is the device connected?") from None
        return data or None

    def reopen(self) -> bool:
        """Wait for the next writer of a FIFO; False where the end is the end."""
        if not self._is_fifo:
            return False
        older, self._file = self._file, self._open()  # in this order, so that no writer finds it without a reader
        os.close(older)
        return True

    def close(self) -> None:
        """Close what was opened here."""
        if self._path is not None:
            os.close(self._file)


class LiveLoop(Generic[T]):
    """Sends the windows of a device as they complete.

    Windows that cannot leave wait; of more than `queue` the oldest is dropped, counted and logged. A file is not read
    meanwhile. Ends when the device does, after `limit` windows, or on `stop`. Windows leave while fewer than
    `in_flight` are unanswered (0: always), and the end waits until every one is answered or that is hopeless. With
    `waits`, no more are sent than the stages have room for. `heard` gets each message that came.
    """

    def __init__(
        self,
        bus: Bus,
        sensor: Sensor,
        identity: Identity,
        device: WindowDevice[T],
        stream: WindowStream[T],
        *,
        queue: int,
        flow: FlowController,
        limit: int | None = None,
        in_flight: int = 0,
        waits: bool = False,
        heard: Callable[[Delivery], None] | None = None,
    ) -> None:
        self._sensor, self._device, self._stream = sensor, device, stream
        self._flow, self._in_flight, self._waits = flow, in_flight, waits
        self._publisher = SensorPublisher(bus, sensor, identity, self._flow, self._counters, heard=heard)
        self._waiting: deque[tuple[float, Window]] = deque()
        self._queue, self._left, self._ended = queue, limit, False

    def run(self, stop: Stop, *, forget: bool = True) -> None:
        """Run until the end; raise NodeError, after what came has left, when the device is lost.

        ConfigError for windows that cannot be sent, after a farewell: a will does not tell which windows will not come.
        """
        try:
            lost = self._run(stop)
        except ConfigError:
            self._publisher.end(forget=True)
            raise
        self._publisher.end(forget=forget)
        if lost is not None:
            raise lost

    def _run(self, stop: Stop) -> NodeError | None:
        lost: NodeError | None = None
        self._publisher.begin()
        while not stop.asked and not (self._ended and self._is_done()):
            try:
                busy = self._read()
            except NodeError as error:
                lost, busy, self._ended = error, False, True
            self._send()
            self._publisher.step(0.0 if busy else TURN_S)
        return lost

    def _is_done(self) -> bool:
        if self._flow.is_hopeless(time.monotonic()):
            return True
        return not self._waiting and self._flow.is_done(self._publisher.pending)

    def _read(self) -> bool:
        """Take what the device has sent; tell whether there may be more at once."""
        if self._ended or (self._device.keeps and len(self._waiting) >= self._queue):
            return False
        data, now = self._device.read(), time.time()
        if data is None:
            self._keep(self._stream.finish(now), now)
            self._ended = self._ended or not self._device.reopen()
            return False
        if data:
            self._keep(self._stream.feed(data, now), now)
        else:
            self._stream.tick(now)
        return bool(data)

    def _keep(self, made: list[tuple[float, Window]], now: float) -> None:
        for one in made[: self._left]:
            if len(self._waiting) >= self._queue and not self._device.keeps:
                self._waiting.popleft()
                self._stream.drop(self._queue, now)
                self._sensor.counters.dropped += 1
            self._waiting.append(one)
        if self._left is not None:
            self._left = max(0, self._left - len(made))
            self._ended = self._ended or not self._left

    def _may_send(self) -> bool:
        if not self._waiting or not self._publisher.connected or self._publisher.pending >= AHEAD:
            return False
        if not self._in_flight:
            return True
        room = self._flow.room if self._waits else None
        return self._flow.open < (self._in_flight if room is None else min(room, self._in_flight))

    def _send(self) -> None:
        while self._may_send():
            captured, window = self._waiting.popleft()
            self._publisher.send([window], [captured])

    def _counters(self) -> dict[str, int]:
        raw_bytes = self._sensor.raw_bytes
        return self._sensor.counters.as_dict() | dict(self._stream.counts) | {"raw_bytes": raw_bytes}
