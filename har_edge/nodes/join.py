"""Bringing together the parts of a window: several sources, skip connections, shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from har_edge.errors import MessageError
from har_edge.messaging.bus import Delivery
from har_edge.messaging.wire import Message

Array = npt.NDArray[Any]
Key = tuple[str, int]
# How long a window still waits when later ones of its stream are complete: longer than a sender waits before it tries
# again what nobody heard; and when all its parts came again after a connection or a process was lost.
PASSED_S = 5.0
LEFTOVER_S = 1.0
LOOK_S = 0.5
REMEMBERED = 4096


@dataclass(slots=True)
class Gathered:
    """The parts of one (stream, seq) so far; `deliveries` are acknowledged together, `deadline` ends the waiting.

    `again` says that every part was delivered before, `passed` that later windows of the stream are complete.
    """

    message: Message
    deadline: float
    again: bool = True
    passed: bool = False
    parts: dict[str, Array] = field(default_factory=dict)
    captured: dict[str, tuple[float, ...]] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)

    @property
    def leftover(self) -> bool:
        """Whether the parts it lacks were settled before, so that nothing is lost with it."""
        return self.again and self.passed


class Join:
    """Collects parts by (stream, seq) until all wanted ones are there.

    Waiting is bounded: at most `capacity` windows wait, each at most `timeout_s`; what is given up is returned, so that
    the caller can count and log it. A part that comes again replaces the earlier one.

    Two kinds of parts wait for companions that will not come, and would hold up later windows: the acknowledgements,
    which go out in the order of arrival (MQTT 5, section 4.6), and the capacity.

    - An earlier stage was killed and does some windows again, which are complete here: `repeats` tells.
    - A connection was lost when some parts of an answered window were acknowledged and others, behind parts of windows
      that still waited, were not; these come again, alone. Since a broker keeps the order of a topic, a later window of
      the stream that is complete tells: such parts wait a moment longer, and are the first to go.
    """

    def __init__(self, wanted: frozenset[str], *, timeout_s: float, capacity: int) -> None:
        self._wanted, self._timeout_s, self._capacity = wanted, timeout_s, capacity
        self._waiting: OrderedDict[Key, Gathered] = OrderedDict()
        self._complete: OrderedDict[Key, dict[str, tuple[float, ...]]] = OrderedDict()
        self._last: OrderedDict[str, int] = OrderedDict()  # the window completed last, of each stream
        self._look_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def repeats(self, message: Message, parts: Collection[str], delivery: Delivery) -> bool:
        """Tell whether these parts were sent again, would wait for others, and their window has been complete.

        Not so for what the broker delivers again: that was not acknowledged, and the window's output may not be safe.
        """
        known = self._complete.get((message.stream, message.seq))
        if known is None or delivery.duplicate or len(parts) == len(self._wanted):
            return False
        return all(known.get(name) == message.captured for name in parts)

    def add(self, message: Message, parts: Mapping[str, Array], delivery: Delivery, now: float) -> Gathered | None:
        """Add the parts of one message; return all of them once they are complete.

        Raises MessageError when the sources disagree on how many windows a message carries.
        """
        key = (message.stream, message.seq)
        gathered = self._waiting.get(key)
        if gathered is None:
            gathered = Gathered(message, now + self._timeout_s)
            if len(parts) < len(self._wanted):
                self._waiting[key] = gathered
        elif gathered.message.count != message.count:
            raise MessageError(
                f"window {message.seq} of {message.stream!r} came in a batch of {message.count} and in one of "
                f"{gathered.message.count}; give all sensors of a stream the same --batch"
            )
        else:
            gathered.message = _merge(gathered.message, message)
        gathered.parts.update(parts)
        gathered.captured.update(dict.fromkeys(parts, message.captured))
        gathered.deliveries.append(delivery)
        gathered.again = gathered.again and delivery.duplicate
        if len(gathered.parts) < len(self._wanted):
            return None
        self._waiting.pop(key, None)
        self._remember(key, gathered)
        return gathered

    def give_up(self, now: float) -> list[Gathered]:
        """Return, and forget, the windows that waited too long or are too many, oldest first."""
        given_up: list[Gathered] = []
        if self._waiting and (now >= self._look_at or len(self._waiting) > self._capacity):
            self._mark_passed(now)
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if len(self._waiting) <= self._capacity and now < oldest.deadline:
                break
            given_up.append(self._waiting.popitem(last=False)[1])
        return given_up

    def missing(self, gathered: Gathered) -> list[str]:
        """Return the names of the parts that have not come."""
        return sorted(self._wanted - gathered.parts.keys())

    def _remember(self, key: Key, gathered: Gathered) -> None:
        for memory in (self._complete, self._last):
            if len(memory) > REMEMBERED:
                memory.popitem(last=False)
        self._complete[key] = gathered.captured
        self._last[key[0]] = key[1]

    def _mark_passed(self, now: float) -> None:
        """Let windows before the last complete one of their stream wait no longer than needed, and go first."""
        self._look_at = now + LOOK_S
        passed = [key for key, one in self._waiting.items() if not one.passed and self._last.get(key[0], -1) > key[1]]
        for key in sorted(passed, reverse=True):
            gathered = self._waiting[key]
            gathered.passed = True
            gathered.deadline = min(gathered.deadline, now + (LEFTOVER_S if gathered.again else PASSED_S))
            self._waiting.move_to_end(key, last=False)


def _merge(first: Message, second: Message) -> Message:
    """Keep the later capture time of each window (a window is complete with its last part), and any known label."""
    captured = tuple(map(max, first.captured, second.captured))
    truth = first.truth if first.truth is not None else second.truth
    return Message(first.stream, first.seq, first.epoch, captured, {}, truth)
