"""Bringing together the parts of a window: several sources, skip connections, shards."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from har_edge.mqtt.bus import Delivery
from har_edge.protocol.wire import Message
from har_edge.runtime.stage.streams import Streams
from har_edge.runtime.stage.window import (
    INITIAL,
    TRANSITIONS,
    Array,
    Key,
    PartialWindow,
    Slot,
    WindowEvent,
    WindowState,
    merge,
)
from har_edge.runtime.transitions import advance
from har_edge.timing import OVERTAKEN_S

REDELIVERED_S = 1.0  # how long a window waits when all its parts came again after a connection or a process was lost
LOOK_S = 0.5  # how often waiting windows are compared with what was run
REMEMBERED = 4096  # how many windows that were run are still known
HELD_BYTES = 32 * 1024 * 1024  # how much the messages of windows that wait may take, by default


@dataclass(frozen=True, slots=True)
class MissingSourceFallback:
    """Which parts a window may be run without, and how many seconds after its first part came."""

    without: frozenset[str]
    after_s: float


class Join:
    """Collects parts by (stream, seq) until all wanted ones are there, or until the window may be run without the rest.

    Parts in messages of different numbers of windows never go together, and hinder each other in nothing: a sensor that
    begins anew with another --batch, or a forged part, leaves the windows of the others alone. When too much waits, the
    oldest window of the stream that has most waiting goes first (Streams.share).

    Waiting is bounded: at most `capacity` windows wait, and `held_bytes` of messages, each at most `timeout_s`; what no
    longer waits is returned, in the state that follows (window.py), so that the caller counts it. A part that comes
    again replaces the earlier one. With `hold`, the oldest window is evicted, too, when so many messages came since its
    first part: a broker that gives no more before they are acknowledged would keep the parts that it lacks.

    Two kinds of parts wait for companions that will not come, and would hold up later windows: the acknowledgements,
    which go out in the order of arrival (MQTT 5, section 4.6), and the capacity.

    - An earlier stage was killed and makes some windows again, which were run here: `repeats` tells.
    - A connection was lost when some parts of an answered window were acknowledged and others, behind parts of windows
      that still waited, were not; these come again, alone. Since a broker keeps the order of a topic, a later window of
      the stream that is run tells: such windows are overtaken, wait a moment longer, and are the first to go.

    Parts that are `late` may come after later windows were run: they say nothing about what was acknowledged.

    With `fallback`, `is_late` tells which parts come after their window was run without them. If parts come of a
    window that was run with them, its stream begins anew, or one sensor alone does and is out of step. So they wait
    somewhat longer for their companions, and are stale when one of these comes for a later window meanwhile.
    """

    def __init__(
        self,
        wanted: frozenset[str],
        *,
        timeout_s: float,
        capacity: int,
        fallback: MissingSourceFallback | None = None,
        held_bytes: int = HELD_BYTES,
        late: frozenset[str] = frozenset(),
    ) -> None:
        self._held_bytes = held_bytes
        self._wanted, self._timeout_s, self._capacity, self._fallback = wanted, timeout_s, capacity, fallback
        self._held_bytes, self._late = held_bytes, late
        self._waiting: OrderedDict[Slot, PartialWindow] = OrderedDict()
        # The capture time of each part of the windows run last; the one run last is at the end.
        self._run: OrderedDict[Key, dict[str, tuple[float, ...]]] = OrderedDict()
        self.streams = Streams()
        self._look_at = 0.0
        self._fallback_at = math.inf  # when the next window may be run without what it lacks
        self._came = 0
        self._nbytes = 0
        self.hold: int | None = None

    @property
    def span(self) -> int:
        """How many messages have come since the first part of the oldest window that waits; 0 where none does.

        None of them can be acknowledged (MQTT 5, section 4.6).
        """
        return self._came - min(one.position for one in self._waiting.values()) if self._waiting else 0

    def __len__(self) -> int:
        return len(self._waiting)

    def find(self, slot: Slot) -> PartialWindow | None:
        """Return the window of this stream, number and batch, if it waits."""
        return self._waiting.get(slot)

    @property
    def windows(self) -> Collection[PartialWindow]:
        """The windows that wait."""
        return self._waiting.values()

    def remove(self, slot: Slot) -> None:
        """Forget a window that waits."""
        self._remove(slot)

    def expel(self, slot: Slot) -> None:
        """Let a window that waits be evicted next."""
        self._waiting[slot].deadline = -math.inf
        self._waiting.move_to_end(slot, last=False)

    def pass_by(self) -> None:
        """Count a message that is no part of a window: it cannot be acknowledged before those of waiting windows."""
        self._came += 1

    def note(self, key: Key, event: WindowEvent) -> None:
        """Take what comes of a window that was run and changes nothing: a repetition, or a source that is late."""
        known = self._run.get(key)
        if known is not None:  # else many windows failed since: these are remembered here, and not by the output cache
            advance(TRANSITIONS, self._state_of_run(known), event)

    def repeats(self, message: Message, parts: Collection[str], delivery: Delivery) -> bool:
        """Return whether these parts were sent again, would wait for others, and their window was run with them.

        Not so for what the broker delivers again: that was not acknowledged, and the window's output may not be safe.
        """
        known = self._run.get((message.stream, message.seq))
        if known is None or delivery.duplicate or len(parts) == len(self._wanted):
            return False
        return all(known.get(name) == message.captured for name in parts)

    def is_late(self, message: Message, parts: Collection[str]) -> bool:
        """Return whether the window of these parts was run without them, and neither it nor its stream begins anew."""
        key = (message.stream, message.seq)
        known = self._run.get(key)
        if self._fallback is None or known is None or (*key, message.count) in self._waiting:
            return False
        return known.keys().isdisjoint(parts) and self.streams.find(message.stream).last_run >= message.seq

    def add(self, message: Message, parts: Mapping[str, Array], delivery: Delivery, now: float) -> PartialWindow | None:
        """Add the parts of one message; return the window once it is complete."""
        key, count = (message.stream, message.seq), message.count
        slot = (*key, count)
        window = self._waiting.get(slot)
        if window is None:
            window = self._open(message, key, now)
            if len(parts) < len(self._wanted):
                self._waiting[slot] = window
            if count not in (batches := self.streams.find(message.stream).batches):
                self.streams.of(message.stream).batches = (*batches[-1:], count)
        else:
            window.message = merge(window.message, message)
        self._came += 1
        if self._fallback:
            self._hear(message, parts, now)
        window.parts.update(parts)
        window.captured.update(dict.fromkeys(parts, message.captured))
        window.deliveries.append(delivery)
        window.redelivered = window.redelivered and delivery.duplicate
        nbytes = len(delivery.payload)
        if len(parts) < len(self._wanted):  # it waits, and parts that came compressed take more than their message
            nbytes = max(nbytes, sum([part.nbytes for part in parts.values()]))
        if len(window.parts) < len(self._wanted):
            window.take(WindowEvent.PART)
            if self._lacks_only_sources(window):
                self._fallback_at = min(self._fallback_at, self._due(window))
                window.deadline = max(window.deadline, self._due(window))
            self._nbytes += nbytes
            window.nbytes += nbytes
            return None
        if self._waiting.pop(slot, None):
            self._nbytes -= window.nbytes
        window.nbytes += nbytes
        window.take(WindowEvent.LAST_PART)
        self._remember(key, window)
        return window

    def run_with(self, key: Key) -> Mapping[str, tuple[float, ...]]:
        """Return the capture time of each part that a window was run with; nothing where it is not known."""
        return self._run.get(key, {})

    def decode(self, slot: Slot) -> PartialWindow:
        """Return a window that waits, and forget it: its steps are run without the parts that it lacks."""
        window = self._remove(slot)
        window.take(WindowEvent.DECODED)
        self._remember(window.key, window)
        return window

    def resume(self, window: PartialWindow, now: float) -> None:
        """Let a window from the replay buffer wait again: what it lacks may come."""
        window.take(WindowEvent.PART)
        window.came, window.deadline, window.position = now, now + self._timeout_s, self._came
        self._nbytes += window.nbytes
        self._waiting[window.slot] = window

    def is_quiet(self, now: float) -> bool:
        """Return whether `expire_missing` and `evict` have nothing to do: all is young, and there is room."""
        if not self._waiting:
            return True
        if self._fallback is not None or self.hold is not None or now >= self._look_at:
            return False
        if len(self._waiting) > self._capacity or self._nbytes > self._held_bytes:
            return False
        return now < next(iter(self._waiting.values())).deadline

    def expire_missing(self, now: float) -> list[PartialWindow]:
        """Return, and forget, the windows to run without the sources they lack, and those that are stale, oldest first.

        Without `fallback` there are none. When too much waits, some go early.
        """
        if self._fallback is None or not (now >= self._fallback_at or self._is_crowded):
            return []
        surplus = frozenset(self._find_surplus())
        due, self._fallback_at = [], math.inf
        for slot, window in self._waiting.items():
            if not self._lacks_only_sources(window):
                continue
            if slot in surplus or now >= self._due(window):
                due.append(slot)
            else:
                self._fallback_at = min(self._fallback_at, self._due(window))
        return [self._run_partially(slot) for slot in due]

    def evict(self, now: float) -> list[PartialWindow]:
        """Return, and forget, the windows that waited too long, are too many or are stale, oldest first."""
        if not self._waiting:
            return []
        if now >= self._look_at or len(self._waiting) > self._capacity:
            self._mark_overtaken(now)
        evicted = [self._evict(slot) for slot in self._find_surplus()]
        while self._waiting:
            oldest = next(iter(self._waiting.values()))
            if now < oldest.deadline and not self._holds_up(oldest):
                break
            evicted.append(self._evict(oldest.slot))
        return evicted

    def evict_all(self) -> list[PartialWindow]:
        """Return, and forget, all windows but those that will be run without what they lack, oldest first."""
        return [self._evict(slot) for slot, one in list(self._waiting.items()) if not self._lacks_only_sources(one)]

    def missing(self, window: PartialWindow) -> list[str]:
        """Return the names of the parts that have not come."""
        return sorted(self._wanted - window.parts.keys())

    def _open(self, message: Message, key: Key, now: float) -> PartialWindow:
        """Begin a window; one that was run before, or is older than memory, counts as run before."""
        known = self._run.get(key)
        old = len(self._run) > REMEMBERED and self.streams.find(key[0]).last_run >= key[1]
        deadline, state = now + self._timeout_s, self._state_of_run(known)
        return PartialWindow(message, now, deadline, self._came, reopened=known is not None or old, state=state)

    def _state_of_run(self, captured: Mapping[str, tuple[float, ...]] | None) -> WindowState:
        if captured is None:
            return INITIAL
        return WindowState.COMPLETE if len(captured) == len(self._wanted) else WindowState.PARTIAL

    def _holds_up(self, window: PartialWindow) -> bool:
        """Return whether parts that it lacks may wait at the broker until its own are acknowledged."""
        if self.hold is None or self._came - window.position < self.hold:
            return False
        return not self._lacks_only_sources(window)

    @property
    def _is_crowded(self) -> bool:
        return len(self._waiting) > self._capacity or self._nbytes > self._held_bytes

    def _find_surplus(self) -> list[Slot]:
        """Return the windows that must go, since too many or too large ones wait: of each share what it has too much.

        Overtaken windows go first, then the oldest one of the share that has most waiting.
        """
        if not self._is_crowded:
            return []
        shares: dict[str, deque[PartialWindow]] = {}
        overtaken = deque[PartialWindow]()
        for window in self._waiting.values():
            if window.state is WindowState.OVERTAKEN:
                overtaken.append(window)
            else:
                shares.setdefault(self.streams.share(window.message.stream), deque()).append(window)
        number, nbytes, surplus = len(self._waiting), self._nbytes, list[Slot]()
        held = {share: sum([one.nbytes for one in windows]) for share, windows in shares.items()}
        while number > self._capacity or nbytes > self._held_bytes:
            if overtaken:
                window = overtaken.popleft()
            else:
                by_size = nbytes > self._held_bytes
                share = max(held, key=lambda one: (held[one] if by_size else len(shares[one])) if shares[one] else -1)
                window = shares[share].popleft()
                held[share] -= window.nbytes
            surplus.append(window.slot)
            number, nbytes = number - 1, nbytes - window.nbytes
        return surplus

    def _remove(self, slot: Slot) -> PartialWindow:
        window = self._waiting.pop(slot)
        self._nbytes -= window.nbytes
        return window

    def _run_partially(self, slot: Slot) -> PartialWindow:
        window = self._remove(slot)
        if self._is_stale(window):
            window.take(WindowEvent.SETTLED_BEFORE if window.settled_before else WindowEvent.SOURCES_WENT_ON)
        else:
            window.take(WindowEvent.SOURCES_MISSING)
            self._remember(window.key, window)
        return window

    def _evict(self, slot: Slot) -> PartialWindow:
        window = self._remove(slot)
        if window.settled_before and self._late.isdisjoint(self._wanted - window.parts.keys()):
            window.take(WindowEvent.SETTLED_BEFORE)
        elif self._is_stale(window):
            window.take(WindowEvent.SOURCES_WENT_ON)
        else:
            window.take(WindowEvent.EVICTED)
        return window

    def _lacks_only_sources(self, window: PartialWindow) -> bool:
        return self._fallback is not None and self._wanted - window.parts.keys() <= self._fallback.without

    def _due(self, window: PartialWindow) -> float:
        """Return when a window that lacks only sources is run without them."""
        assert self._fallback is not None
        after_s = self._fallback.after_s
        if self._is_out_of_step(window):
            after_s = min(max(after_s, OVERTAKEN_S), self._timeout_s)
        return window.came + after_s

    def _is_out_of_step(self, window: PartialWindow) -> bool:
        """Return whether a window was run before it came, and its stream has not begun anew since."""
        return window.reopened and self.streams.find(window.message.stream).last_run >= window.message.seq

    def _hear(self, message: Message, parts: Collection[str], now: float) -> None:
        self.streams.of(message.stream).heard.update(dict.fromkeys(parts, (message.seq, now)))

    def _is_stale(self, window: PartialWindow) -> bool:
        if not self._is_out_of_step(window):
            return False
        heard, seq = self.streams.find(window.message.stream).heard, window.message.seq
        last = [heard.get(name, (-1, 0.0)) for name in self.missing(window)]
        return any(later > seq and since > window.came for later, since in last)

    def _remember(self, key: Key, window: PartialWindow) -> None:
        known, progress = self._run.pop(key, None), self.streams.of(key[0])
        again = known is not None and all(known.get(name, came) == came for name, came in window.captured.items())
        begins_anew = window.reopened and not again
        if len(self._run) > REMEMBERED:
            self._run.popitem(last=False)
        self._run[key] = window.captured
        if begins_anew or key[1] > progress.last_run:
            progress.last_run = key[1]
        if begins_anew:  # what else came of this stream may be due now
            self._fallback_at = -math.inf

    def _mark_overtaken(self, now: float) -> None:
        """Let windows before the last one run of their stream wait no longer than needed, and go first."""
        self._look_at = now + LOOK_S
        overtaken = [
            key
            for key, one in self._waiting.items()
            if one.state is WindowState.WAITING
            and self.streams.find(key[0]).last_run > key[1]
            and (one.reopened or not self._lacks_only_sources(one))
        ]
        for key in sorted(overtaken, reverse=True):
            window = self._waiting[key]
            window.take(WindowEvent.LATER_RUN)
            window.deadline = min(window.deadline, now + (REDELIVERED_S if window.redelivered else OVERTAKEN_S))
            self._waiting.move_to_end(key, last=False)
