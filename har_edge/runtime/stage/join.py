"""Bringing together the parts of a window: several sources, skip connections, shards."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.wire import Message

Array = npt.NDArray[Any]
Key = tuple[str, int]
# How long a window still waits when later ones of its stream are done: longer than a sender waits before it tries
# again what nobody heard; and when all its parts came again after a connection or a process was lost.
PASSED_S = 5.0
LEFTOVER_S = 1.0
LOOK_S = 0.5
REMEMBERED = 4096
# How much the messages of windows that wait may take.
HELD_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class MissingSourceFallback:
    """Which parts a window may go on without, and how many seconds after its first part came."""

    without: frozenset[str]
    after_s: float


@dataclass(slots=True)
class PartialWindow:
    """The parts of one (stream, seq) so far; `deliveries` are acknowledged together, `deadline` ends the waiting.

    `place` counts the messages that came before its first part, `nbytes` the bytes of its own. `again` says that every
    part was delivered before, `passed` that later windows of the stream are done, `behind` that this window was done
    before its first part came, and `stale` that the sensors it lacks have gone on to later ones.
    """

    message: Message
    came: float
    deadline: float
    place: int = 0
    nbytes: int = 0
    again: bool = True
    passed: bool = False
    behind: bool = False
    stale: bool = False
    parts: dict[str, Array] = field(default_factory=dict)
    captured: dict[str, tuple[float, ...]] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def key(self) -> Key:
        return self.message.stream, self.message.seq

    @property
    def leftover(self) -> bool:
        """Whether the parts it lacks were settled before, so that nothing is lost with it."""
        return self.again and self.passed


class Join:
    """Collects parts by (stream, seq) until all wanted ones are there, or until it may carry on without the others.

    Waiting is bounded: at most `capacity` windows wait, and HELD_BYTES of messages, each at most `timeout_s`; what is
    given up is returned, so that the caller can count and log it. A part that comes again replaces the earlier one.
    With `hold`, the oldest window is given up, too, when so many messages have come since its first part: a broker that
    gives no more before they are acknowledged would keep the parts that it lacks.

    Two kinds of parts wait for companions that will not come, and would hold up later windows: the acknowledgements,
    which go out in the order of arrival (MQTT 5, section 4.6), and the capacity.

    - An earlier stage was killed and does some windows again, which are complete here: `repeats` tells.
    - A connection was lost when some parts of an answered window were acknowledged and others, behind parts of windows
      that still waited, were not; these come again, alone. Since a broker keeps the order of a topic, a later window of
      the stream that is done tells: such parts wait a moment longer, and are the first to go.

    With `carry_on`, `is_late` tells which parts come after their window was done without them. Where parts come of a
    window that was done with them, its stream begins anew, or one sensor alone does and is out of step. So they wait
    somewhat longer for their companions, and are `stale` when one of these comes for a later window meanwhile.
    """

    def __init__(
        self, wanted: frozenset[str], *, timeout_s: float, capacity: int, carry_on: MissingSourceFallback | None = None
    ) -> None:
        self._wanted, self._timeout_s, self._capacity, self._carry_on = wanted, timeout_s, capacity, carry_on
        self._waiting: OrderedDict[Key, PartialWindow] = OrderedDict()
        self._done: OrderedDict[Key, dict[str, tuple[float, ...]]] = OrderedDict()
        self._last: OrderedDict[str, int] = OrderedDict()  # the last window done, of each stream
        self._heard: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()  # by stream and part: window, time
        self._look_at = 0.0
        self._carry_on_at = math.inf
        self._came = 0
        self._nbytes = 0
        self.hold: int | None = None

    @property
    def span(self) -> int:
        """How many messages have come since the first part of the oldest window that waits; 0 where none does.

        None of them can be acknowledged (MQTT 5, section 4.6).
        """
        return self._came - next(iter(self._waiting.values())).place if self._waiting else 0

    def __len__(self) -> int:
        return len(self._waiting)

    def repeats(self, message: Message, parts: Collection[str], delivery: Delivery) -> bool:
        """Tell whether these parts were sent again, would wait for others, and their window has been done with them.

        Not so for what the broker delivers again: that was not acknowledged, and the window's output may not be safe.
        """
        known = self._done.get((message.stream, message.seq))
        if known is None or delivery.duplicate or len(parts) == len(self._wanted):
            return False
        return all(known.get(name) == message.captured for name in parts)

    def is_late(self, message: Message, parts: Collection[str]) -> bool:
        """Tell whether the window of these parts was done without them, and neither it nor its stream begins anew."""
        key = (message.stream, message.seq)
        known = self._done.get(key)
        if self._carry_on is None or known is None or key in self._waiting:
            return False
        return known.keys().isdisjoint(parts) and self._last_of(message.stream) >= message.seq

    def add(self, message: Message, parts: Mapping[str, Array], delivery: Delivery, now: float) -> PartialWindow | None:
        """Add the parts of one message; return all of them once they are complete.

        Raises MessageError when the sources disagree on how many windows a message carries.
        """
        key = (message.stream, message.seq)
        gathered = self._waiting.get(key)
        if gathered is None:
            gathered = PartialWindow(message, now, now + self._timeout_s, self._came, behind=self._was_done(key))
            if len(parts) < len(self._wanted):
                self._waiting[key] = gathered
        elif gathered.message.count != message.count:
            raise MessageError(
                f"window {message.seq} of {message.stream!r} came in a batch of {message.count} and in one of "
                f"{gathered.message.count}; give all sensors of a stream the same --batch"
            )
        else:
            gathered.message = _merge(gathered.message, message)
        self._came += 1
        self._hear(message, parts, now)
        gathered.parts.update(parts)
        gathered.captured.update(dict.fromkeys(parts, message.captured))
        gathered.deliveries.append(delivery)
        gathered.again = gathered.again and delivery.duplicate
        if len(gathered.parts) < len(self._wanted):
            if self._may_carry_on(gathered):
                self._carry_on_at = min(self._carry_on_at, self._due(gathered))
                gathered.deadline = max(gathered.deadline, self._due(gathered))
            self._nbytes += len(delivery.payload)
            gathered.nbytes += len(delivery.payload)
            return None
        if self._waiting.pop(key, None):
            self._nbytes -= gathered.nbytes
        gathered.nbytes += len(delivery.payload)
        self._remember(key, gathered)
        return gathered

    def revive(self, gathered: PartialWindow, now: float) -> None:
        """Let a window that was given up wait again, unless it does: what it lacks may come."""
        if gathered.key not in self._waiting:
            gathered.came, gathered.deadline, gathered.passed = now, now + self._timeout_s, False
            gathered.place = self._came
            self._nbytes += gathered.nbytes
            self._waiting[gathered.key] = gathered

    def go_on(self, now: float) -> list[PartialWindow]:
        """Return, and forget, the windows to do without what they lack, and those that are stale, oldest first.

        Without `carry_on` there are none. When too many wait, the oldest goes on early.
        """
        if self._carry_on is None:
            return []
        crowd = max(len(self._waiting) - self._capacity, self._nbytes > HELD_BYTES)
        if now < self._carry_on_at and crowd <= 0:
            return []
        due, self._carry_on_at = [], math.inf
        for place, (key, gathered) in enumerate(self._waiting.items()):
            if not self._may_carry_on(gathered):
                continue
            if place < crowd or now >= self._due(gathered):
                due.append(key)
            else:
                self._carry_on_at = min(self._carry_on_at, self._due(gathered))
        return [self._release(key) for key in due]

    def give_up(self, now: float) -> list[PartialWindow]:
        """Return, and forget, the windows that waited too long, are too many or are stale, oldest first."""
        if not self._waiting:
            return []
        given_up: list[PartialWindow] = []
        if now >= self._look_at or len(self._waiting) > self._capacity:
            self._mark_passed(now)
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            many = len(self._waiting) > self._capacity or self._nbytes > HELD_BYTES
            if not many and now < oldest.deadline and not self._holds_up(oldest):
                break
            given_up.append(self._take(oldest.key))
        return given_up

    def release(self) -> list[PartialWindow]:
        """Return, and forget, all windows but those that will be done without what they lack, oldest first."""
        keys = [key for key, one in self._waiting.items() if not self._may_carry_on(one)]
        return [self._take(key) for key in keys]

    def missing(self, gathered: PartialWindow) -> list[str]:
        """Return the names of the parts that have not come."""
        return sorted(self._wanted - gathered.parts.keys())

    def _holds_up(self, gathered: PartialWindow) -> bool:
        """Return whether parts that it lacks may wait at the broker until its own are acknowledged."""
        if self.hold is None or self._came - gathered.place < self.hold:
            return False
        return not self._may_carry_on(gathered)

    def _take(self, key: Key) -> PartialWindow:
        gathered = self._waiting.pop(key)
        self._nbytes -= gathered.nbytes
        gathered.stale = self._is_stale(gathered)
        return gathered

    def _may_carry_on(self, gathered: PartialWindow) -> bool:
        return self._carry_on is not None and self._wanted - gathered.parts.keys() <= self._carry_on.without

    def _due(self, gathered: PartialWindow) -> float:
        """Return when a window that may carry on does so."""
        assert self._carry_on is not None
        after_s = self._carry_on.after_s
        if self._is_behind(gathered):
            after_s = min(max(after_s, PASSED_S), self._timeout_s)
        return gathered.came + after_s

    def _is_behind(self, gathered: PartialWindow) -> bool:
        """Tell whether a window was done before it came, and its stream has not begun anew since."""
        return gathered.behind and self._last_of(gathered.message.stream) >= gathered.message.seq

    def _hear(self, message: Message, parts: Collection[str], now: float) -> None:
        for name in parts if self._carry_on else ():
            self._heard[message.stream, name] = (message.seq, now)
            if len(self._heard) > REMEMBERED:
                self._heard.popitem(last=False)

    def _is_stale(self, gathered: PartialWindow) -> bool:
        stream, seq = gathered.message.stream, gathered.message.seq
        heard = [self._heard.get((stream, name), (-1, 0.0)) for name in self.missing(gathered)]
        return self._is_behind(gathered) and any(later > seq and since > gathered.came for later, since in heard)

    def _release(self, key: Key) -> PartialWindow:
        gathered = self._take(key)
        if not gathered.stale:
            self._remember(key, gathered)
        return gathered

    def _was_done(self, key: Key) -> bool:
        """Tell whether a window was done; what is older than memory counts as done."""
        return key in self._done or (len(self._done) > REMEMBERED and self._last_of(key[0]) >= key[1])

    def _last_of(self, stream: str) -> int:
        return self._last.get(stream, -1)

    def _remember(self, key: Key, gathered: PartialWindow) -> None:
        known = self._done.get(key)
        again = known is not None and all(known.get(name, came) == came for name, came in gathered.captured.items())
        begins_anew = gathered.behind and not again
        for memory in (self._done, self._last):
            if len(memory) > REMEMBERED:
                memory.popitem(last=False)
        self._done[key] = gathered.captured
        if begins_anew or key[1] > self._last_of(key[0]):
            self._last[key[0]] = key[1]
        if begins_anew:  # what else came of this stream may be due now
            self._carry_on_at = -math.inf

    def _mark_passed(self, now: float) -> None:
        """Let windows before the last one done of their stream wait no longer than needed, and go first."""
        self._look_at = now + LOOK_S
        passed = [
            key
            for key, one in self._waiting.items()
            if not one.passed and self._last_of(key[0]) > key[1] and (one.behind or not self._may_carry_on(one))
        ]
        for key in sorted(passed, reverse=True):
            gathered = self._waiting[key]
            gathered.passed = True
            gathered.deadline = min(gathered.deadline, now + (LEFTOVER_S if gathered.again else PASSED_S))
            self._waiting.move_to_end(key, last=False)


def _merge(first: Message, second: Message) -> Message:
    """Keep the later capture time of each window (a window is complete with its last part), and any known label."""
    captured = tuple(map(max, first.captured, second.captured))
    truth = first.truth if first.truth is not None else second.truth
    missing = tuple(sorted({*first.missing, *second.missing}))
    sent = _merge_sent(first.sent, second.sent)
    return Message(first.stream, first.seq, first.epoch, captured, {}, truth, missing, sent)


def _merge_sent(first: tuple[int, int] | None, second: tuple[int, int] | None) -> tuple[int, int] | None:
    """Keep the pair with the smaller number, of the sensor that began last: windows are complete from there on only."""
    if first is None or second is None:
        return first or second
    return second if (second[1], second[0]) < (first[1], first[0]) else first
