"""How a sensor makes sure of its windows: each is kept until its result came, and sent again when it seems lost."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Collection, Sequence

from har_edge.data.recording import Window
from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import Event, ResultsEvent, decode, reason_of
from har_edge.protocol.results import Result
from har_edge.protocol.status import StreamCount
from har_edge.protocol.topics import Topics
from har_edge.runtime.sensor.retransmit_buffer import Lost, RetransmitBuffer, SentState, UnackedBatch
from har_edge.runtime.sensor.sensor import Sensor
from har_edge.runtime.sensor.sent_counter import SentCounter
from har_edge.timing import GIVE_UP_S, RECENT_AFTER_S

_log = logging.getLogger(__name__)
# A recording goes on without windows that others have passed for this part of the time that ends it.
PASSED = 0.75
QUIET_S = 10.0
# Windows that were answered while the broker had forgotten a sensor are not sent again all at once (RECENT_AFTER_S):
# new windows would wait behind them at the stages.
RECENT_SPACING_S = 0.04
RECENT_A_STEP = 4
# A sensor with more streams than this subscribes to the results of all streams of the pipeline.
MOST_FILTERS = 64


class Retransmitter:
    """Keeps what is unanswered, and says what to send again. Pure: whoever calls says what time it is.

    A recording waits for answers. When windows are open and no answer comes for `give_up_s` while there is a broker,
    there is no hope; 0: there always is. It goes on without windows that are passed by: for most of that time, later
    ones or those of other streams are answered and they are not.

    With `expires`, for a device, which does not wait, no window is kept for longer than `give_up_s` without a sign of
    progress. With `partial`, too, other sensors make the rest of its windows, and may not have done so of each: they
    were not there yet, or have gaps. No stage can complete such a window, and none of it is lost on the way: it is
    counted as incomplete.
    """

    def __init__(
        self,
        sensor: Sensor,
        buffer: RetransmitBuffer,
        topics: Topics,
        give_up_s: float = GIVE_UP_S,
        *,
        expires: bool = False,
        partial: bool = False,
        run: int = 0,
    ) -> None:
        self._sensor, self._buffer, self._topics = sensor, buffer, topics
        self._give_up_s, self._expires, self._partial = give_up_s, expires, expires and partial
        self._sent = SentCounter(run, heard=True)
        self._room: int | None = sensor.setup.first_room
        self._streams: list[str] = []
        self._progress_at, self._warn_at = 0.0, math.inf
        self._was_here, self._was_away, self._recent_at = False, False, math.inf
        self._forgotten, self._owes, self._recent = 0, False, deque[UnackedBatch]()
        self._away_since, self._is_gone = 0.0, False

    @property
    def hears(self) -> bool:
        """Whether results are listened to: they are."""
        return True

    def expect(self, streams: Collection[str]) -> None:
        """Say which streams will be sent: results of these are enough. Without that, those of all streams come."""
        self._streams = sorted(set(streams))

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        few = 0 < len(self._streams) <= MOST_FILTERS
        return [self._topics.result(stream) for stream in (self._streams if few else ["+"])]

    @property
    def epoch(self) -> int:
        """The epoch of the deployment that is followed; 0 where none is."""
        return 0

    @property
    def room(self) -> int | None:
        """How many messages of a stream may be on their way, as the stages say; None where they set no bound."""
        return self._room

    @property
    def open(self) -> int:
        """How many windows are unanswered."""
        return len(self._buffer)

    def open_of(self, stream: str) -> int:
        """Return how many windows of a stream are unanswered."""
        return self._buffer.open(stream)

    def streams(self) -> dict[str, StreamCount]:
        """Return what was sent, answered and given up of each stream."""
        return self._sent.counts()

    def send(self, windows: Sequence[Window], captured: Sequence[float], now: float) -> list[Outgoing]:
        """Return the messages for new windows, and keep these."""
        stream, number = windows[0].stream, self._sent.send(windows[0].stream, len(windows), captured[0])
        outgoing = self._sensor.handle(windows, captured, sent=(self._sent.run, number))
        if not self.open:
            self._progress_at, self._warn_at = now, now + QUIET_S
        answered, lost = self._buffer.put(windows, captured, self._target, now, number)
        for _ in range(answered):
            self._sent.answer(stream)
        self._lose(stream, lost)
        return outgoing

    def take(self, delivery: Delivery, now: float) -> None:
        """Take results; drop, count and log what cannot be read."""
        self._take(decode(delivery, self._topics), delivery.topic, now)

    def _take(self, event: Event, topic: str, now: float) -> None:
        if not isinstance(event, ResultsEvent):
            self._reject(topic, MessageError(reason_of(event, "results")))
            return
        for result in event.results:
            if not self._is_ours(result):
                self._pass_over(result)
                continue
            if result.room is not None:  # it is the same for all streams
                self._room = result.room
            if self._buffer.ack(result, now):
                self._progress_at, self._warn_at, self._room = now, now + QUIET_S, result.room
                self._sent.answer(result.stream)
            else:
                self._take_late(result)
            if result.missing:
                for _ in range(self._buffer.pass_by(result.stream)):
                    self._progress_at = now
                    self._sent.answer(result.stream)

    def _is_ours(self, result: Result) -> bool:
        """Return whether a result may be of windows of this sensor; others are of slices that it sends nothing to."""
        return result.epoch == self._target

    def _pass_over(self, result: Result) -> None:
        self._sensor.counters.foreign += 1
        if self._sensor.counters.foreign == 1:
            text = "results of %s came of epoch %d, and windows go to %d: they are of other slices, and passed over"
            _log.warning(text, result.stream, result.epoch, self._target)

    def again(self, now: float, *, connected: bool, blocked: bool, forgotten: int = 0) -> list[Outgoing]:
        """Return what to send again. Call it now and then.

        `blocked`: some of what was sent has not left yet. `forgotten`: how often the broker has lost this session.
        """
        if not connected or blocked:
            self._warn_at = now + QUIET_S
        if not connected or (blocked and self._waits_for_stages):
            self._progress_at = now
        self._notice(now, connected, forgotten)
        self._expire(now)
        if self.open and now > self._warn_at:
            self._warn_at = math.inf
            _log.warning("no result for %.0f s with %d windows out; sending them again", QUIET_S, self.open)
        alive = self._alive
        if not alive:
            return []
        due = self._buffer.due(self._target, alive, now, out=connected and not blocked)
        if self._partial:
            self._leave_incomplete(now)
            due += self._buffer.ask(now)
        recent = self._due_recent(now)
        return [one for batch in due + recent for one in self._messages(batch)]

    def _messages(self, batch: UnackedBatch) -> list[Outgoing]:
        sent = self._sent.run, batch.number
        return self._sensor.handle(batch.windows, batch.captured, again=True, sent=sent)

    @property
    def _target(self) -> int:
        """The epoch that windows go to."""
        return self._sensor.setup.epoch

    @property
    def _waits_for_stages(self) -> bool:
        """Whether windows that nobody listens to are awaited for ever: a person has yet to start the stages."""
        return True

    @property
    def _alive(self) -> frozenset[int]:
        """The epochs whose stages may answer."""
        return frozenset({self._target})

    def _expire(self, now: float) -> None:
        """Go on without windows that nobody will answer."""
        if not self._give_up_s:
            return
        before = now - self._give_up_s if self._expires else min(now - PASSED * self._give_up_s, self._progress_at)
        lost = self._buffer.expire(before)
        if lost:
            names = self._give_up(lost)
            _log.warning(
                "no result of %d windows of %s for %.0f s: going on without them", len(lost), names, now - before
            )

    def _leave_incomplete(self, now: float) -> None:
        """Go on without windows that other sensors of their stream do not have."""
        if alone := self._buffer.incomplete(now):
            names = self._give_up(alone)
            text = (
                "%d windows of %s stay incomplete: other sensors of the stream have not sent them, though later ones "
                "are answered; going on without them"
            )
            _log.warning(text, len(alone), names)

    def _give_up(self, windows: list[Lost]) -> str:
        """Count windows that are no longer awaited; return the names of their streams."""
        for one in windows:
            self._lose(one.stream, 1, incomplete=one.state is SentState.INCOMPLETE)
        return ", ".join(sorted({one.stream for one in windows}))

    def _lose(self, stream: str, count: int, *, incomplete: bool = False) -> None:
        if incomplete:
            self._sensor.counters.incomplete += count
        else:
            self._sensor.counters.unanswered += count
        self._sent.lose(stream, count, incomplete=incomplete)

    def _take_late(self, result: Result) -> None:
        """Take an answer to a window that was no longer awaited."""
        state = self._buffer.ack_late(result)
        if state is not None:
            self._lose(result.stream, -1, incomplete=state is SentState.INCOMPLETE)
            self._sent.answer(result.stream)

    def _notice(self, now: float, connected: bool, forgotten: int) -> None:
        """Keep what is answered while the broker is away; forget it if, back again, it still knows this sensor.

        Such a broker has kept the results for whoever was away, so that all sensors have them.
        """
        if not connected and self._was_here:
            self._was_here, self._was_away, self._away_since = False, True, now
            self._buffer.keep_recent()
        elif connected:
            if forgotten != self._forgotten:
                self._buffer.keep_recent()
                self._forgotten, self._owes, self._recent_at = forgotten, True, now + RECENT_AFTER_S
            elif self._was_away and not self._owes:
                self._buffer.drop_recent()
            self._was_here, self._was_away = True, False
        self._is_gone = self._was_away and 0 < self._give_up_s < now - self._away_since

    def _due_recent(self, now: float) -> list[UnackedBatch]:
        """Return some of what was answered around the time the broker forgot all, when all sensors should be back."""
        if now < self._recent_at or self._was_away:
            return []
        if self._owes:
            self._owes = False
            self._recent.extend(self._buffer.take_recent())
        count = min(len(self._recent), RECENT_A_STEP, 1 + int((now - self._recent_at) / RECENT_SPACING_S))
        recent = [self._recent.popleft() for _ in range(count)]
        self._recent_at = now + RECENT_SPACING_S if self._recent else math.inf
        return recent

    def is_done(self, pending: int) -> bool:
        """Return whether every window is answered, and an echo that others may need has been sent, or never can be."""
        return not self.open and (self._is_gone or (not self._was_away and self._recent_at == math.inf))

    def is_hopeless(self, now: float) -> bool:
        """Return whether windows are open and no answer has come for too long."""
        return bool(self.open and self._give_up_s and now - self._progress_at > self._give_up_s)

    def abandon(self) -> None:
        """Count what was not answered and will not be awaited."""
        self._give_up(self._buffer.expire(math.inf))

    def _reject(self, topic: str, error: MessageError) -> None:
        self._sensor.counters.rejected += 1
        _log.warning("dropped %s: %s", topic, error)
