"""The windows of a sensor that have no result yet: kept until they have one, and sent again when they seem lost."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from har_edge.data.recording import Window
from har_edge.protocol.results import Result
from har_edge.runtime.transitions import advance
from har_edge.timing import RESEND_CAP_S, RESEND_S

Key = tuple[str, int]
# How long windows wait without a sign of progress before they are sent again, if they went to stages that are about to
# go or later ones were answered (else RESEND_S), and how much longer for each window of a message, since these are
# answered together.
SWITCH_S = 2.0
WINDOW_S = 0.05
# Nor are windows sent again before so many times the time that answers take, averaged over about so many (as TCP does,
# RFC 6298): a slow pipeline would get slower by what it does twice. An answer to what was sent again is taken for one
# to the last time, or windows that were lost and healed would make all others wait longer.
SLACK = 3.0
MEAN_OVER = 8.0
LOOK_S = 0.5  # how often progress is looked at
SAME_S = 0.001  # times that went through a message and back are the same to the microsecond
MOST_CLOSED = 4096  # how many windows are known that are not awaited any more, or were answered before they were sent
MOST_STREAMS = 4096  # of how many streams it is known how far they are
# How many messages that were answered are still known: the last ones; and from a loss of the connection on, the first.
LAST = 64
MOST_RECENT = 2048
# How long after a window was sent the answer to a later one counts as made after that, and when one is asked for. How
# often it is sent again, and such an answer comes, and for how long, until it is clear that others do not have it.
PROOF_S = 1.0
ASK_S = 3.0
VAIN = 2
ALONE_S = 15.0


class SentState(str, Enum):
    """The state of the windows that a sensor sent in one message."""

    UNSENT = "not sent yet, or forgotten"
    SENT = "sent once; no later window of the stream was answered since"
    OVERTAKEN = "sent once; a later window was answered since"
    RESENT = "sent again; no later window was answered since"
    PROBED = "sent again; a later window was sent once more since, to see whether that is answered"
    RESENT_OVERTAKEN = "sent again; a later window was answered since"
    ANSWERED = "answered"
    ANSWERED_EARLY = "answered before it was sent: the stages ran it without this sensor"
    LOST = "no longer awaited, and counted as unanswered"
    INCOMPLETE = "no longer awaited, and counted as incomplete: other sensors of the stream do not have it"


class SentEvent(str, Enum):
    """An event of a window at its sensor."""

    SEND = "it is sent for the first time"
    RETRANSMIT = "it is sent again: its stages have gone, or it made no progress for too long"
    LATER_ANSWERED = "a later window of the stream is answered"
    PROBE = "a later window that was answered is sent once more"
    RESULT = "its result comes"
    RUN_WITHOUT = "it, or a later window, was run without this sensor: the stages do not wait for it"
    EXPIRED = "it made no progress for too long"
    ALONE = "later windows are answered each time that it is sent again, and it is not"
    REPLACED = "another window with its number is sent: the stream begins anew"


_S, _E = SentState, SentEvent
OPEN = (_S.SENT, _S.OVERTAKEN, _S.RESENT, _S.PROBED, _S.RESENT_OVERTAKEN)
TRANSITIONS: Mapping[tuple[SentState, SentEvent], SentState] = MappingProxyType(
    {
        (_S.UNSENT, _E.SEND): _S.SENT,
        (_S.UNSENT, _E.RUN_WITHOUT): _S.ANSWERED_EARLY,
        (_S.ANSWERED_EARLY, _E.SEND): _S.ANSWERED,
        (_S.ANSWERED_EARLY, _E.RUN_WITHOUT): _S.ANSWERED_EARLY,
        (_S.SENT, _E.LATER_ANSWERED): _S.OVERTAKEN,
        (_S.RESENT, _E.PROBE): _S.PROBED,
        (_S.RESENT, _E.LATER_ANSWERED): _S.RESENT_OVERTAKEN,
        (_S.PROBED, _E.LATER_ANSWERED): _S.RESENT_OVERTAKEN,
        **{(state, _E.RETRANSMIT): _S.RESENT for state in OPEN},
        **{(state, _E.RESULT): _S.ANSWERED for state in OPEN},
        **{(state, _E.RUN_WITHOUT): _S.ANSWERED for state in OPEN},
        **{(state, _E.EXPIRED): _S.LOST for state in OPEN},
        **{(state, _E.REPLACED): _S.LOST for state in OPEN},
        **{(state, _E.ALONE): _S.INCOMPLETE for state in (_S.RESENT, _S.PROBED, _S.RESENT_OVERTAKEN)},
        (_S.LOST, _E.RESULT): _S.ANSWERED,
        (_S.INCOMPLETE, _E.RESULT): _S.ANSWERED,
    }
)
INITIAL = SentState.UNSENT
_AGAIN = frozenset({_S.RESENT, _S.PROBED})
_PASSED = frozenset({_S.OVERTAKEN, _S.RESENT_OVERTAKEN})


@dataclass(slots=True, eq=False)
class UnackedBatch:
    """The windows of one message, when each was captured, and which of them are open still.

    They were sent last at `sent` (monotonic seconds), to `epoch`, `tries` times in vain. `since` is when that was, or
    when there was a sign of progress later; `hoped` is when there last was one. `number` counts the windows of the
    stream that were sent before the first of them. `vain` counts how often they were sent again and then overtaken.
    """

    windows: Sequence[Window]
    captured: tuple[float, ...]
    epoch: int
    since: float
    hoped: float
    sent: float = 0.0
    tries: int = 0
    number: int = 0
    vain: int = 0
    state: SentState = INITIAL
    open: set[int] = field(default_factory=set)

    @property
    def stream(self) -> str:
        return self.windows[0].stream

    def take(self, event: SentEvent) -> None:
        """Go to the state that follows."""
        self.state = advance(TRANSITIONS, self.state, event)

    def captured_at(self, seq: int) -> float:
        """Return when a window of this message was captured (seconds since 1970)."""
        return self.captured[seq - self.windows[0].seq]


@dataclass(slots=True)
class _Stream:
    """How far a stream is.

    `open` windows are unanswered; `lowest` is the first one answered since the last look, `highest` the last one of
    which a result came since then; those before `passed` are answered, if only without this sensor.
    """

    open: int = 0
    lowest: int | None = None
    highest: int = 0
    passed: int = 0


@dataclass(frozen=True, slots=True)
class Lost:
    """A window that is no longer awaited."""

    stream: str
    seq: int
    state: SentState


class RetransmitBuffer:
    """Keeps windows until they are answered. Pure: whoever calls says what time it is.

    Results of one stream come in the order of its windows. So a window makes progress as long as those before it are
    answered, however long its turn takes; it is overdue when later ones are answered instead, or none. One that later
    ones have passed makes no progress by those before it: what was lost together comes again together. All sensors of a
    stream see the same results, and so find the same windows overdue at about the same time: what they send again meets
    at the stage that joins it. With `longest_s` below the time such a stage waits, it meets even if they do not agree.

    A window is answered by a result that was captured no earlier than itself: one captured earlier is of an earlier run
    of the stream. A result that lacks all of the `sources` says nothing of when these were captured; it counts when it
    was made after `begun` (seconds since 1970), even before the window is put in.

    Such a result also tells of the windows before it: the stages carry on without these sources, and have done so or
    will with whatever the other sensors send. So none of them is waited for; where the stages wait for all sources, no
    result lacks any.

    A broker that forgets everything may have told one sensor of a result and not the others, whose windows then lack
    the parts of that one. So after such an event, what was answered around it is sent once more: see `keep_recent`.
    """

    def __init__(self, sources: Collection[str], begun: float, longest_s: float = RESEND_CAP_S) -> None:
        self._sources, self._begun, self._longest_s = frozenset(sources), begun, longest_s
        self._batches: dict[UnackedBatch, None] = {}  # in the order in which they were sent first
        self._batch_of: dict[Key, UnackedBatch] = {}  # by open window
        self._streams: OrderedDict[str, _Stream] = OrderedDict()
        # Windows that are not open and not forgotten: LOST or INCOMPLETE, with when they were captured, since an answer
        # may come after all; or ANSWERED_EARLY.
        self._closed: OrderedDict[Key, tuple[SentState, float]] = OrderedDict()
        self._answered: deque[UnackedBatch] = deque()
        self._keeps_recent = False
        self._look_at = -math.inf
        self._took_s = 0.0  # how long answers take, about
        self._alive = frozenset[int]()

    def __len__(self) -> int:
        """How many windows are open."""
        return len(self._batch_of)

    @property
    def messages(self) -> int:
        """How many messages are kept."""
        return len(self._batches)

    def open(self, stream: str) -> int:
        """Return how many windows of a stream are open."""
        known = self._streams.get(stream)
        return known.open if known else 0

    def put(
        self, windows: Sequence[Window], captured: Sequence[float], epoch: int, now: float, number: int = 0
    ) -> tuple[int, int]:
        """Keep the windows of a message that goes to an epoch now.

        Return how many of them have been answered already, and how many open ones of the same numbers they replace: of
        an earlier run of the stream, where its clock was set back. No result can be told to be theirs.
        """
        name = windows[0].stream
        stream = self._stream(name)
        batch = UnackedBatch(windows, tuple(captured), epoch, now, now, now, number=number)
        batch.take(SentEvent.SEND)
        lost = 0
        for window in windows:
            if known := self._batch_of.get((name, window.seq)):
                lost += self._drop(known, SentEvent.REPLACED)
            if self._was_answered_early((name, window.seq)):
                self._close((name, window.seq), SentEvent.SEND)
            elif window.seq >= stream.passed:
                batch.open.add(window.seq)
        if batch.open:
            self._batches[batch] = None
            self._batch_of.update(dict.fromkeys(((name, seq) for seq in batch.open), batch))
            stream.open += len(batch.open)
        return len(windows) - len(batch.open), lost

    def ack(self, result: Result, now: float | None = None) -> bool:
        """Take a result that comes now; return whether it answers an open window."""
        key = (result.stream, result.seq)
        batch, without = self._batch_of.get(key), self._lacks_us(result)
        if without:
            self._stream(result.stream).passed = result.seq
        stream = self._streams.get(result.stream)
        if stream is not None:
            if stream.open:
                stream.highest = max(result.seq, stream.highest)
            if not without and result.seq < stream.passed:  # the stream begins anew
                stream.passed = 0
        if batch is None or stream is None:
            if without and (key not in self._closed or self._was_answered_early(key)):
                self._close(key, SentEvent.RUN_WITHOUT)
            return False
        if result.captured < batch.captured_at(result.seq) - SAME_S and not without:
            return False
        stream.lowest = result.seq if stream.lowest is None else min(result.seq, stream.lowest)
        if now is not None:
            self._took_s += (now - batch.sent - self._took_s) / MEAN_OVER
        batch.open.discard(result.seq)
        del self._batch_of[key]
        stream.open -= 1
        if not batch.open:
            batch.take(SentEvent.RESULT)
            del self._batches[batch]
            self._keep_answered(batch)
        return True

    def ack_late(self, result: Result) -> SentState | None:
        """Take a result; return the state of its window where that was no longer awaited, and is answered now."""
        key = (result.stream, result.seq)
        state, captured = self._closed.get(key, (INITIAL, math.inf))
        if state in (INITIAL, SentState.ANSWERED_EARLY):
            return None
        if result.captured < captured - SAME_S and not self._lacks_us(result):
            return None
        self._close(key, SentEvent.RESULT)
        return state

    def pass_by(self, name: str) -> int:
        """Forget the windows of a stream before one that was answered without these sources; return how many."""
        stream = self._streams.get(name)
        if stream is None or not stream.open:
            return 0
        passed = [batch for batch in self._batches if batch.stream == name and max(batch.open) < stream.passed]
        return sum(self._drop(batch, SentEvent.RUN_WITHOUT) for batch in passed)

    def keep_recent(self) -> None:
        """Keep what was answered last, and what will be, for `take_recent`."""
        self._keeps_recent = True

    def drop_recent(self) -> None:
        """Keep no more than what was answered last: nobody has to send it again."""
        self._keeps_recent = False
        while len(self._answered) > LAST:
            self._answered.popleft()

    def take_recent(self) -> list[UnackedBatch]:
        """Return what was answered since a moment before `keep_recent`, oldest first, and keep no more of it."""
        self._keeps_recent, answered = False, list(self._answered)
        self._answered.clear()
        return answered

    def due(self, current: int, alive: frozenset[int], now: float, *, out: bool = True) -> list[UnackedBatch]:
        """Return the messages to send again, oldest first; they count as sent now, to the current generation.

        A message to a generation that is not `alive` is due at once. Without `out`, the last messages have not left
        yet, so nobody can have answered them, and nothing else is due.
        """
        if now < self._look_at and alive == self._alive:
            return []
        gone = [batch for batch in self._batches if batch.epoch not in alive]
        late = self._look(current, now, out) if now >= self._look_at else []
        again = gone + [batch for batch in late if batch.epoch in alive]
        self._alive = alive
        for batch in again:
            batch.take(SentEvent.RETRANSMIT)
            batch.tries = batch.tries + 1 if batch.epoch == current else 0
            batch.epoch, batch.since, batch.sent = current, now, now
        return sorted(again, key=lambda batch: batch.captured[0])

    def expire(self, before: float) -> list[Lost]:
        """Await no longer what has had no sign of progress since then; return these windows."""
        return self._forget([one for one in self._batches if one.hoped < before], SentEvent.EXPIRED)

    def ask(self, now: float) -> list[UnackedBatch]:
        """Return answered windows to send once more: what the stages answer again shows that they have the open ones.

        The broker keeps the order of a topic, and stages answer again what comes again (runtime/stage/stage.py). So if
        a later window is answered and one before it is not, they have all that this sensor makes of it, and no more.
        """
        waiting = [one for one in self._batches if one.state is SentState.RESENT and now - one.sent >= ASK_S]
        newest = {one.stream: one for one in self._answered} if waiting else {}
        asked: dict[str, UnackedBatch] = {}
        for batch in waiting:
            if (later := newest.get(batch.stream)) and later.windows[0].seq > batch.windows[0].seq:
                batch.take(SentEvent.PROBE)
                asked[batch.stream] = later
        return list(asked.values())

    def incomplete(self, now: float) -> list[Lost]:
        """Await no longer what the other sensors of its stream do not have; return these windows.

        It was sent again, a later window of the stream was answered after that, and all this more than once: so long
        after it was sent first, the other sensors would have sent theirs again, too.
        """
        alone = [one for one in self._batches if one.vain >= VAIN and now - one.hoped >= ALONE_S]
        return self._forget(alone, SentEvent.ALONE)

    def _look(self, current: int, now: float, out: bool) -> list[UnackedBatch]:
        """Note progress since the last look; return what has made none for too long."""
        late: list[UnackedBatch] = []
        self._look_at = now + LOOK_S
        for batch in self._batches:
            stream, seq = self._streams[batch.stream], batch.windows[0].seq
            passed = batch.state in _PASSED
            if not passed and stream.highest > seq and now - batch.sent >= PROOF_S + LOOK_S:
                passed, batch.vain = True, batch.vain + (batch.state in _AGAIN)
                batch.take(SentEvent.LATER_ANSWERED)
            if not out or (stream.lowest is not None and stream.lowest < seq and not passed):
                batch.since, batch.hoped, batch.tries = now, now, 0
            elif now - batch.since >= self._patience_s(batch, current):
                late.append(batch)
        for stream in self._streams.values():
            stream.lowest, stream.highest = None, 0
        return late

    def _patience_s(self, batch: UnackedBatch, current: int) -> float:
        soon = batch.state in _PASSED or batch.epoch != current
        first_s = (SWITCH_S if soon else RESEND_S) + WINDOW_S * len(batch.windows)
        first_s = max(first_s, SLACK * self._took_s)
        return min(first_s * 2.0 ** min(batch.tries, 16), max(self._longest_s, first_s))

    def _lacks_us(self, result: Result) -> bool:
        return result.emitted >= self._begun and self._sources <= set(result.missing)

    def _stream(self, name: str) -> _Stream:
        """Return what is known of a stream, one that moves now; forget another one, of which nothing is open."""
        stream = self._streams.get(name)
        if stream is None:
            if len(self._streams) >= MOST_STREAMS:
                idle = next((one for one, known in self._streams.items() if not known.open), None)
                self._streams.pop(idle or name, None)
            stream = self._streams[name] = _Stream()
        return stream

    def _keep_answered(self, batch: UnackedBatch) -> None:
        if len(self._answered) < MOST_RECENT:
            self._answered.append(batch)
        if not self._keeps_recent and len(self._answered) > LAST:
            self._answered.popleft()

    def _was_answered_early(self, key: Key) -> bool:
        return self._closed.get(key, (INITIAL, 0.0))[0] is SentState.ANSWERED_EARLY

    def _close(self, key: Key, event: SentEvent, state: SentState = INITIAL, captured: float = math.inf) -> None:
        """Note what became of a window that is not open; one that is answered is forgotten."""
        state, captured = self._closed.pop(key, (state, captured))
        state = advance(TRANSITIONS, state, event)
        if state is SentState.ANSWERED:
            return
        self._closed[key] = state, captured
        if len(self._closed) > MOST_CLOSED:
            self._closed.popitem(last=False)

    def _forget(self, batches: Iterable[UnackedBatch], event: SentEvent) -> list[Lost]:
        lost: list[Lost] = []
        for batch in batches:
            for seq in sorted(batch.open):
                self._closed.pop((batch.stream, seq), None)
                self._close((batch.stream, seq), event, batch.state, batch.captured_at(seq))
            open_ = sorted(batch.open)
            self._drop(batch, event)
            lost += [Lost(batch.stream, seq, batch.state) for seq in open_]
        return lost

    def _drop(self, batch: UnackedBatch, event: SentEvent) -> int:
        """Forget a message; return how many of its windows were open."""
        batch.take(event)
        count = len(batch.open)
        for seq in batch.open:
            del self._batch_of[batch.stream, seq]
        del self._batches[batch]
        self._streams[batch.stream].open -= count
        batch.open = set()
        return count
