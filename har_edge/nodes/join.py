"""Bringing together the parts of a window: several sources, skip connections, shards."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from har_edge.errors import MessageError
from har_edge.messaging.bus import Delivery
from har_edge.messaging.wire import Message

Array = npt.NDArray[Any]
Key = tuple[str, int]
# How long a leftover still waits; longer than a sender waits before it tries again what nobody heard.
LEFTOVER_S = 1.0


@dataclass(slots=True)
class Gathered:
    """The parts of one (stream, seq) so far; `deliveries` are acknowledged together.

    `deadline` is when to stop waiting. A `leftover` has parts that all came again, while later windows of its stream
    are complete already: the parts it lacks were settled before.
    """

    message: Message
    deadline: float
    leftover: bool = False
    parts: dict[str, Array] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)


class Join:
    """Collects parts by (stream, seq) until all wanted ones are there.

    Waiting is bounded: at most `capacity` windows wait, each at most `timeout_s`; what is given up is returned, so that
    the caller can count and log it. A part that comes again replaces the earlier one.

    Acknowledgements go out in the order of arrival (MQTT 5, section 4.6), so when a connection is lost, some parts of
    an answered window may be settled and others not. Those others come again, alone. Each holds up every later
    acknowledgement, so it must not wait `timeout_s` for companions that will not come: since a broker keeps the order
    of a topic, a later window of the stream that is complete tells.
    """

    def __init__(self, wanted: frozenset[str], *, timeout_s: float, capacity: int) -> None:
        self._wanted, self._timeout_s, self._capacity = wanted, timeout_s, capacity
        self._waiting: OrderedDict[Key, Gathered] = OrderedDict()
        self._repeated: set[Key] = set()  # those waiting of which every part came again

    def __len__(self) -> int:
        return len(self._waiting)

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
                if delivery.duplicate:
                    self._repeated.add(key)
        elif gathered.message.count != message.count:
            raise MessageError(
                f"window {message.seq} of {message.stream!r} came in a batch of {message.count} and in one of "
                f"{gathered.message.count}; give all sensors of a stream the same --batch"
            )
        else:
            gathered.message = _merge(gathered.message, message)
        gathered.parts.update(parts)
        gathered.deliveries.append(delivery)
        if not delivery.duplicate:
            self._repeated.discard(key)
        if len(gathered.parts) < len(self._wanted):
            return None
        self._waiting.pop(key, None)
        self._repeated.discard(key)
        self._mark_leftovers(key, now)
        return gathered

    def give_up(self, now: float) -> list[Gathered]:
        """Return, and forget, the windows that waited too long or are too many, oldest first."""
        given_up: list[Gathered] = []
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if len(self._waiting) <= self._capacity and now < oldest.deadline:
                break
            key, gathered = self._waiting.popitem(last=False)
            self._repeated.discard(key)
            given_up.append(gathered)
        return given_up

    def missing(self, gathered: Gathered) -> list[str]:
        """Return the names of the parts that have not come."""
        return sorted(self._wanted - gathered.parts.keys())

    def _mark_leftovers(self, complete: Key, now: float) -> None:
        """Let what came again before a complete window of its stream, and still lacks parts, wait no longer."""
        left = [key for key in self._repeated if key[0] == complete[0] and key[1] < complete[1]]
        for key in sorted(left, reverse=True):
            self._repeated.discard(key)
            gathered = self._waiting[key]
            gathered.leftover, gathered.deadline = True, min(gathered.deadline, now + LEFTOVER_S)
            self._waiting.move_to_end(key, last=False)


def _merge(first: Message, second: Message) -> Message:
    """Keep the later capture time of each window (a window is complete with its last part), and any known label."""
    captured = tuple(map(max, first.captured, second.captured))
    truth = first.truth if first.truth is not None else second.truth
    return Message(first.stream, first.seq, first.epoch, captured, {}, truth)
