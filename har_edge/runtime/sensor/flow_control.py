"""The interface between the loops of sensors and the windows in flight, and an implementation that tracks none."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Protocol

from har_edge.data.recording import Window
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.status import StreamCount
from har_edge.runtime.sensor.sensor import Sensor
from har_edge.runtime.sensor.sent_counter import SentCounter


class FlowController(Protocol):
    """The questions of a sensor's loop: which windows are open, what to send, and what to send again."""

    @property
    def hears(self) -> bool:
        """Whether results are listened to, so that it is known which windows were answered."""

    def expect(self, streams: Collection[str]) -> None:
        """Say which streams will be sent, before `filters` are asked for."""

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""

    @property
    def epoch(self) -> int:
        """The epoch of the deployment that is followed; 0 where none is."""

    @property
    def open(self) -> int:
        """How many windows are unanswered; 0 where nobody counts."""

    @property
    def room(self) -> int | None:
        """How many messages of a stream may be on their way; None for no bound."""

    def open_of(self, stream: str) -> int:
        """Return how many windows of a stream are unanswered."""

    def streams(self) -> Mapping[str, StreamCount]:
        """Return what was sent of each stream, and what became of it."""

    def send(self, windows: Sequence[Window], captured: Sequence[float], now: float) -> list[Outgoing]:
        """Return the messages for new windows."""

    def take(self, delivery: Delivery, now: float) -> None:
        """Take a message of the topics above."""

    def again(self, now: float, *, connected: bool, blocked: bool, forgotten: int = 0) -> list[Outgoing]:
        """Return what to send again. Call it now and then.

        `blocked`: some of what was sent has not left yet. `forgotten`: how often the broker has lost this session.
        """

    def is_done(self, pending: int) -> bool:
        """Return whether a sensor that has sent everything may end; `pending` messages are not safe at the broker."""

    def is_hopeless(self, now: float) -> bool:
        """Return whether no answer will come any more."""

    def abandon(self) -> None:
        """Count what was not answered and will not be awaited."""


class Untracked:
    """Sends windows and listens to no results: what they become, whoever watches must count."""

    epoch = 0
    open = 0
    room = None
    hears: ClassVar[bool] = False
    filters: ClassVar[list[str]] = []

    def __init__(self, sensor: Sensor, run: int = 0) -> None:
        self._sensor, self._sent = sensor, SentCounter(run, heard=False)

    def expect(self, streams: Collection[str]) -> None:
        pass

    def open_of(self, stream: str) -> int:
        return 0

    def streams(self) -> dict[str, StreamCount]:
        return self._sent.counts()

    def send(self, windows: Sequence[Window], captured: Sequence[float], now: float) -> list[Outgoing]:
        number = self._sent.send(windows[0].stream, len(windows), captured[0])
        return self._sensor.handle(windows, captured, sent=(self._sent.run, number))

    def take(self, delivery: Delivery, now: float) -> None:
        pass

    def again(self, now: float, *, connected: bool, blocked: bool, forgotten: int = 0) -> list[Outgoing]:
        return []

    def is_done(self, pending: int) -> bool:
        return not pending

    def is_hopeless(self, now: float) -> bool:
        return False

    def abandon(self) -> None:
        pass
