"""What a sensor has sent and nobody has answered yet: it is kept until it is, and sent again when it seems lost."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from har_edge.data.recording import Window
from har_edge.protocol.results import Result

Key = tuple[str, int]
# How long windows wait without a sign of progress before they are sent again: at first, at most, where they went to
# stages that are about to go or later ones were answered, and how much longer for each window of a message, since these
# are answered together.
PATIENCE_S = 5.0
LONGEST_S = 30.0
SWITCH_S = 2.0
WINDOW_S = 0.05
# Nor are windows sent again before so many times the time that answers take, averaged over about so many (as TCP does,
# RFC 6298): a slow pipeline would get slower by what it does twice. An answer to what was sent again is taken for one
# to the last time, or windows that were lost and healed would make all others wait longer.
SLACK = 3.0
MEAN_OVER = 8.0
LOOK_S = 0.5
# Times that went through a message and back are the same to the microsecond.
SAME_S = 0.001
REMEMBERED = 4096
# How many messages that were answered are still known: the last ones; and of an echo, the first ones.
LAST = 64
MOST_RECENT = 2048
# How long after a window was sent the answer to a later one counts as made after that, and when one is asked for. How
# often it is sent again, and such an answer comes, and for how long, until it is clear that others do not have it.
PROOF_S = 1.0
ASK_S = 3.0
VAIN = 2
ALONE_S = 15.0


@dataclass(slots=True, eq=False)
class UnackedBatch:
    """The windows of one message, when each was captured, and which of them are open still.

    They were sent last at `sent` (monotonic seconds), to `epoch`, `tries` times in vain. `since` is when that
    was, or when there was a sign of progress later; `hoped` is when there last was one. `number` counts the windows of
    stream that were sent before the first of them. They are `passed` when a later window was answered after they were
    sent last, `asked` when such an answer was asked for; `vain` counts how often they were sent again and then passed.
    """

    windows: Sequence[Window]
    captured: tuple[float, ...]
    epoch: int
    since: float
    hoped: float
    sent: float = 0.0
    tries: int = 0
    number: int = 0
    again: bool = False
    passed: bool = False
    asked: bool = False
    vain: int = 0
    open: set[int] = field(default_factory=set)

    @property
    def key(self) -> Key:
        return self.windows[0].stream, self.windows[0].seq


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

    def __init__(self, sources: Collection[str], begun: float, longest_s: float = LONGEST_S) -> None:
        self._sources, self._begun, self._longest_s = frozenset(sources), begun, longest_s
        self._batches: OrderedDict[Key, UnackedBatch] = OrderedDict()
        self._batch_of: dict[Key, UnackedBatch] = {}  # by window
        self._out: dict[str, int] = {}
        # Of each stream, the first window answered, and the last one of which a result came, since the last look.
        self._lowest: dict[str, int] = {}
        self._highest: dict[str, int] = {}
        self._without: OrderedDict[Key, None] = OrderedDict()  # windows that were answered before they were put in
        self._passed: OrderedDict[str, int] = OrderedDict()  # of each stream, the last window answered without us
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
        return self._out.get(stream, 0)

    def put(
        self, windows: Sequence[Window], captured: Sequence[float], epoch: int, now: float, number: int = 0
    ) -> tuple[int, int]:
        """Keep the windows of a message that goes to an epoch now.

        Return how many of them have been answered already, and how many open ones of the same numbers they replace: of
        an earlier run of the stream, where its clock was set back. No result can be told to be theirs.
        """
        stream, open_ = windows[0].stream, set[int]()
        lost = 0
        for window in windows:
            if known := self._batch_of.get((stream, window.seq)):
                lost += self._drop(known)
            if (stream, window.seq) in self._without:
                del self._without[stream, window.seq]
            elif window.seq >= self._passed.get(stream, 0):
                open_.add(window.seq)
        if open_:
            batch = UnackedBatch(windows, tuple(captured), epoch, now, now, now, number=number, open=open_)
            self._batches[batch.key] = batch
            self._batch_of |= dict.fromkeys(((stream, seq) for seq in open_), batch)
            self._out[stream] = self.open(stream) + len(open_)
        return len(windows) - len(open_), lost

    def ack(self, result: Result, now: float | None = None) -> bool:
        """Take a result that comes now; return whether it answers an open window."""
        key = (result.stream, result.seq)
        batch, without = self._batch_of.get(key), self._lacks_us(result)
        if self._out.get(result.stream):
            self._highest[result.stream] = max(result.seq, self._highest.get(result.stream, 0))
        if without:
            self._passed[result.stream] = result.seq
            if len(self._passed) > REMEMBERED:
                self._passed.popitem(last=False)
        elif result.seq < self._passed.get(result.stream, 0):  # the stream begins anew
            self._passed.pop(result.stream, None)
        if batch is None:
            if without:
                self._without[key] = None
                if len(self._without) > REMEMBERED:
                    self._without.popitem(last=False)
            return False
        captured = batch.captured[result.seq - batch.windows[0].seq]
        if result.captured < captured - SAME_S and not without:
            return False
        self._lowest[result.stream] = min(result.seq, self._lowest.get(result.stream, result.seq))
        if now is not None:
            self._took_s += (now - batch.sent - self._took_s) / MEAN_OVER
        batch.open.discard(result.seq)
        del self._batch_of[key]
        self._out[result.stream] -= 1
        if not batch.open:
            del self._batches[batch.key]
            if len(self._answered) < MOST_RECENT:
                self._answered.append(batch)
            if not self._keeps_recent and len(self._answered) > LAST:
                self._answered.popleft()
        return True

    def pass_by(self, stream: str) -> int:
        """Forget the windows of a stream before one that was answered without these sources; return how many."""
        last = self._passed.get(stream, 0)
        passed = [batch for (name, _), batch in self._batches.items() if name == stream and max(batch.open) < last]
        return sum(map(self._drop, passed))

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
        """Return what to send again, oldest first; it counts as sent now, to the epoch that is current.

        What went to an epoch that is not `alive` is due at once. Without `out`, what was sent has not left yet, so that
        nobody can have answered: then nothing else is due.
        """
        if now < self._look_at and alive == self._alive:
            return []
        gone = [batch for batch in self._batches.values() if batch.epoch not in alive]
        late = self._look(current, now, out) if now >= self._look_at else []
        again = gone + [batch for batch in late if batch.epoch in alive]
        self._alive = alive
        for batch in again:
            batch.tries = batch.tries + 1 if batch.epoch == current else 0
            batch.epoch, batch.since, batch.sent = current, now, now
            batch.again, batch.passed, batch.asked = True, False, False
        return sorted(again, key=lambda batch: batch.captured[0])

    def expire(self, before: float) -> list[tuple[str, int, float]]:
        """Forget what has had no sign of progress since then; return stream, number and time of capture of each."""
        return self._forget([one for one in self._batches.values() if one.hoped < before])

    def _forget(self, messages: list[UnackedBatch]) -> list[tuple[str, int, float]]:
        gone: list[tuple[str, int, float]] = []
        for batch in messages:
            captured = {one.seq: at for one, at in zip(batch.windows, batch.captured, strict=True)}
            gone += [(batch.windows[0].stream, seq, captured[seq]) for seq in sorted(batch.open)]
            self._drop(batch)
        return gone

    def ask(self, now: float) -> list[UnackedBatch]:
        """Return answered windows to send once more: what the stages answer again shows that they have the open ones.

        The broker keeps the order of a topic, and stages answer again what comes again (runtime/stage/stage.py). So if
        a later window is answered and one before it is not, they have all that this sensor makes of it, and no more.
        """
        waiting = [one for one in self._batches.values() if one.again and not (one.passed or one.asked)]
        waiting = [one for one in waiting if now - one.sent >= ASK_S]
        newest = {one.windows[0].stream: one for one in self._answered} if waiting else {}
        asked: dict[str, UnackedBatch] = {}
        for batch in waiting:
            stream, seq = batch.key
            if (later := newest.get(stream)) and later.windows[0].seq > seq:
                asked[stream], batch.asked = later, True
        return list(asked.values())

    def incomplete(self, now: float) -> list[tuple[str, int, float]]:
        """Forget what the other sensors of its stream do not have; return stream, number and time of capture of each.

        It was sent again, a later window of the stream was answered after that, and all this more than once: so long
        after it was sent first, the other sensors would have sent theirs again, too.
        """
        batch = self._batches.values()
        return self._forget([one for one in batch if one.vain >= VAIN and now - one.hoped >= ALONE_S])

    def _look(self, current: int, now: float, out: bool) -> list[UnackedBatch]:
        """Note progress since the last look; return what has made none for too long."""
        lowest, self._lowest, late = self._lowest, {}, []
        highest, self._highest = self._highest, {}
        self._look_at = now + LOOK_S
        for (stream, seq), batch in self._batches.items():
            if not batch.passed and highest.get(stream, 0) > seq and now - batch.sent >= PROOF_S + LOOK_S:
                batch.passed, batch.vain = True, batch.vain + batch.again
            if not out or (lowest.get(stream, seq) < seq and not batch.passed):
                batch.since, batch.hoped, batch.tries = now, now, 0
            elif now - batch.since >= self._patience_s(batch, current):
                late.append(batch)
        return late

    def _patience_s(self, batch: UnackedBatch, current: int) -> float:
        soon = batch.passed or batch.epoch != current
        first_s = (SWITCH_S if soon else PATIENCE_S) + WINDOW_S * len(batch.windows)
        first_s = max(first_s, SLACK * self._took_s)
        return min(first_s * 2.0 ** min(batch.tries, 16), max(self._longest_s, first_s))

    def _lacks_us(self, result: Result) -> bool:
        return result.emitted >= self._begun and self._sources <= set(result.missing)

    def _drop(self, batch: UnackedBatch) -> int:
        """Forget a message; return how many of its windows were open."""
        stream, count = batch.windows[0].stream, len(batch.open)
        for seq in batch.open:
            self._batch_of.pop((stream, seq), None)
        self._batches.pop(batch.key, None)
        self._out[stream] -= count
        batch.open = set()
        return count
