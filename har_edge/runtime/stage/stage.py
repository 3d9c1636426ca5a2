"""A stage: runs one slice for every window whose parts have come. Pure: messages in, messages out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping

import msgspec

from har_edge.config.message_sizes import window_size
from har_edge.errors import MessageError
from har_edge.inference.missing_input import missing_input
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.protocol.events import TensorsEvent, decode, reason_of
from har_edge.protocol.flow_routes import maker_of
from har_edge.protocol.topics import ALL_SOURCES, Kind, Topic
from har_edge.runtime.counters import Counters
from har_edge.runtime.stage.inputs import InputReader
from har_edge.runtime.stage.join import HELD_BYTES, Join, MissingSourceFallback
from har_edge.runtime.stage.no_score import NoScore, explain
from har_edge.runtime.stage.outputs import OutputWriter
from har_edge.runtime.stage.receive_limit import ReceiveLimit
from har_edge.runtime.stage.replay_buffer import Output, OutputCache, ReplayBuffer
from har_edge.runtime.stage.setup import Array, StageSetup
from har_edge.runtime.stage.stream_quota import StreamQuota
from har_edge.runtime.stage.window import PartialWindow, WindowEvent, WindowState
from har_edge.timing import REPLAY_BUFFER_AFTER_S, REPLAY_BUFFER_S

_log = logging.getLogger(__name__)
MOST_LOGGED = 1024  # how many other generations are logged
# Bytes of the replay buffer, and of remembered outputs. All sensors of a stream send again at about the same time: one
# answer is enough for all.
REPLAY_BYTES = 16 * 1024 * 1024
OUTPUT_BYTES = 1024 * 1024
RECENT_S = 2.0
# Beyond so many times the messages that all sensors of a stream may have out, they flood the stage.
FLOOD, FLOOD_LEAST = 4, 64
# A message of which at least so many bytes are none of a stage's parts does not wait with them.
REST_BYTES = 16 * 1024
# Windows for which there is always room, however large their parts are: in the join, and in the replay buffer.
KEPT_WINDOWS = 2


class Stage:
    """Joins parts, runs the slice, and says what to publish and which deliveries that settles.

    Windows that have waited too long, or are too many, are released and kept in a replay buffer until their parts come.
    If a part comes again of a window that was run, the stage answers again, since its answer may be lost. window.py has
    the states and events.

    `clock` gives seconds since 1970, `monotonic` seconds for waiting, where the caller does not say when a message
    came: with a backlog, what has come but is not handled yet must not count as missing. An unusable message is
    dropped, counted and logged; nothing that comes over the network raises from `handle`. Raises ModelError where it
    should run without a source whose input cannot be filled.
    """

    def __init__(self, setup: StageSetup, *, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._setup, self._monotonic = setup, monotonic
        self.counters = Counters()
        self._inputs, self._quota = InputReader(setup, self.counters), StreamQuota(setup.join_capacity)
        self._outputs = OutputWriter(setup, self._quota, self.counters, clock)
        wanted, sources, patience_s = self._inputs.wanted, setup.wiring.sources, setup.carry_on_after_s
        fallback = None if patience_s is None else MissingSourceFallback(frozenset(sources.values()), patience_s)
        for source in sources if fallback else ():
            missing_input(setup.ports[source], 1)
        timeout_s = min(REPLAY_BUFFER_AFTER_S, setup.join_timeout_s) if setup.deployed else setup.join_timeout_s
        self._joins = len(wanted) > 1
        # However large a window is, one must have room wherever it waits; the join has room for another one, too.
        window_bytes = window_size(setup.wiring.entry)
        held_bytes, replay_bytes = max(HELD_BYTES, 2 * window_bytes), max(REPLAY_BYTES, window_bytes)
        self._replay, self._cache = ReplayBuffer(replay_bytes), OutputCache(OUTPUT_BYTES)
        self._join = Join(
            wanted,
            timeout_s=timeout_s,
            capacity=setup.join_capacity,
            fallback=fallback,
            held_bytes=held_bytes,
            late=setup.wiring.peer_parts,
        )
        self._receive_limit = ReceiveLimit(self._join)
        self._foreign: set[int] = set()  # the other generations that were logged
        self.complaint = ""  # why the last message or window was dropped
        self.batch = 1  # how many windows the last run took at once
        self.refused: dict[int, int] = {}  # how many messages were dropped, by the stage that sent them

    @property
    def filters(self) -> list[str]:
        """The topics this stage needs, straight from where each part is made."""
        topics, wiring = self._setup.topics, self._setup.wiring
        sources = dict.fromkeys((*wiring.sources, ALL_SOURCES, *self._inputs.pieces)) if wiring.sources else ()
        filters = [topics.window("+", source) for source in sources]
        filters += [topics.activation(self._setup.epoch, level, "+") for level in wiring.levels]
        return [f"$share/{self._setup.share}/{one}" for one in filters] if self._setup.share else filters

    @property
    def waiting(self) -> int:
        """How many windows wait for parts."""
        return len(self._join)

    def handle(self, delivery: Delivery, came: float | None = None) -> list[Outgoing]:
        """Take one message, that came at this time; return what to publish, or to release without publishing."""
        came = self._monotonic() if came is None else came
        try:
            setup = self._setup
            event = decode(delivery, setup.topics, limit=setup.max_payload_bytes, names=setup.names)
            if not isinstance(event, TensorsEvent):
                raise MessageError(reason_of(event, "windows or activations"))
            topic, message = event.topic, event.message
            if topic.kind is Kind.WINDOW and setup.window_bytes:
                _check_size(len(delivery.payload), message.count, setup.window_bytes)
            if self._is_foreign(topic, message):
                self._join.pass_by()
                return [Outgoing("", b"", (delivery,)), *self.tick(came)]
            parts = self._inputs.read(topic, message)
            self.counters.messages += 1
            if self._joins:
                self._receive_limit.note(came)
                delivery, message, parts = _without_rest(delivery, message, parts)
            if self._setup.answers:
                self._quota.note(message.stream, came)
            settled = self._settle(message, parts, delivery, came)
            if settled:
                self._join.pass_by()
                return settled + self.tick(came)
            window = self._add(message, parts, delivery, came)
        except MessageError as error:
            self._note_refused(delivery.topic)
            return [self._reject((delivery,), delivery.topic, error)]
        outgoing = self.tick(came)
        if window is not None:
            outgoing += self._complete(window)
        return outgoing

    def share_of(self, topic: str) -> str:
        """Return whose share of this stage a message on this topic takes: that of its stream (streams.py)."""
        *_, kind, before, last = topic.split("/")[-3:]
        return self._join.streams.share(before if kind == Kind.WINDOW.value else last)

    def shed(self, delivery: Delivery, waiting: int) -> list[Outgoing]:
        """Release a window of a share of which so many messages wait, where that is far more than sensors may send.

        All sensors of a deployed stage send again what is not answered, and send less than this if they listen to the
        `room` in results. Otherwise one that does not would fill the queue at the broker, and delay all others.
        """
        setup = self._setup
        most = FLOOD * max(FLOOD_LEAST, setup.join_capacity) * max(1, len(setup.wiring.sources))
        if not setup.deployed or not setup.wiring.sources or waiting < most:
            return []
        self.counters.shed += 1
        _log.warning(
            "left out %s: %d of its stream wait; its sensor sends more than results allow", delivery.topic, waiting
        )
        return [Outgoing("", b"", (delivery,))]

    @property
    def ready(self) -> bool:
        """Whether a step of a shard can run now."""
        return False

    @property
    def full(self) -> bool:
        """Whether a shard has so much to run that it should take no more."""
        return False

    @property
    def reads_first(self) -> bool:
        """Whether all that came should be handled before a step, since it may make steps needless."""
        return False

    def step(self) -> list[Outgoing]:
        """Run one step of a shard, when `ready`; return what to publish before the next one."""
        return []

    def _add(
        self, message: wire.Message, parts: Mapping[str, Array], delivery: Delivery, came: float
    ) -> PartialWindow | None:
        """Add the parts of a message; return the window once it is complete."""
        return self._join.add(message, parts, delivery, came)

    def tick(self, until: float | None = None) -> list[Outgoing]:
        """Run without its missing sources, or release, what has waited too long; call it now and then.

        All that came before `until` must have been handled; by default, that is now.
        """
        outgoing = list[Outgoing]()
        if not (len(self._join) or self._replay):
            return outgoing
        until = self._monotonic() if until is None else until
        if self._join.is_quiet(until) and self._receive_limit.is_quiet(until) and not self._replay:
            return outgoing
        for window in self._join.expire_missing(until):
            outgoing += self._complete(window) if window.state is WindowState.PARTIAL else self._release(window)
        for window in self._join.evict(until):
            outgoing += self._release(window)
        if self._replay:
            for window in self._replay.expire(until - REPLAY_BUFFER_S):
                self._expire(window)
        for window in self._receive_limit.release(until):
            outgoing += self._release(window)
        return outgoing

    def _note_refused(self, text: str) -> None:
        """Count a message that was dropped for the stage whose topic it came on."""
        try:
            topic = self._setup.topics.read(text)
        except MessageError:
            return
        if topic.kind is Kind.ACTIVATION and topic.levels[1] in self._setup.wiring.levels:
            maker = maker_of(topic.levels[1])
            self.refused[maker] = self.refused.get(maker, 0) + 1

    def _is_foreign(self, topic: Topic, message: wire.Message) -> bool:
        """Return whether a window is for stages of another generation, deployed beside this one; count it."""
        setup = self._setup
        if not setup.deployed or message.epoch == setup.epoch:
            return False
        if topic.kind is not Kind.WINDOW:
            return False
        self.counters.foreign += message.count
        if message.epoch not in self._foreign and len(self._foreign) < MOST_LOGGED:
            self._foreign.add(message.epoch)
            _log.info("windows of epoch %d come too; this stage takes those of %d", message.epoch, setup.epoch)
        return True

    def _settle(
        self, message: wire.Message, parts: Mapping[str, Array], delivery: Delivery, came: float
    ) -> list[Outgoing]:
        """Release, and count, parts of a window that was run, with them or without them; else return nothing.

        Parts of the window in the replay buffer wait for the others again.
        """
        key = message.stream, message.seq
        output = self._cache.find(key)
        if output is not None and self._repeats(message, parts, delivery, output):
            # A part that came before, or soon after, the answer was made was sent without knowledge of it.
            recent = came < output[0] + RECENT_S
            if recent or self._joins:
                self._join.note(key, WindowEvent.REPEATED)
                self.counters.duplicates += message.count
                release = (delivery,)
                return [Outgoing("", b"", release)] if recent else self._cache.replay(key, self._monotonic(), release)
        if not self._joins:
            return []
        if self._join.is_late(message, parts):
            self._join.note(key, WindowEvent.LATE_PART)
            self.counters.late += message.count
            _log.info(
                "dropped %s of window %d of %s: it was run without", ", ".join(parts), message.seq, message.stream
            )
            return [Outgoing("", b"", (delivery,))]
        if self._replay:
            self._unshelve(key, message, parts, came)
        return []

    def _unshelve(self, key: tuple[str, int], message: wire.Message, parts: Mapping[str, Array], came: float) -> None:
        """Let what is kept of a window wait for its other parts again."""
        if self._begins_anew(message, parts):  # its windows must not be completed by parts of the last run
            for old in self._replay.take_before(message.stream, message.captured[0]):
                old.take(WindowEvent.STREAM_RESTARTED)
                self.counters.leftover += old.message.count
        shelved = self._replay.take((*key, message.count))
        if shelved is None:
            return
        if came < shelved.at + REPLAY_BUFFER_S:
            self._join.resume(shelved.window, came)
        else:
            self._expire(shelved.window)

    def _repeats(self, message: wire.Message, parts: Mapping[str, Array], delivery: Delivery, output: Output) -> bool:
        """Return whether these parts were sent again, of a window that was run with them.

        Not so for what the broker delivers again: that was not acknowledged, and the window's output may not be safe.
        """
        if not self._joins:
            return output[1] == message.captured and not delivery.duplicate
        return self._join.repeats(message, parts, delivery)

    def _begins_anew(self, message: wire.Message, parts: Iterable[str]) -> bool:
        """Return whether a sensor begins its stream anew: a window before one in the replay buffer, captured later."""
        shelved, anew = self._join.streams.find(message.stream).shelved, False
        for name in parts:
            seq, newest = shelved.get(name, (message.seq, math.inf))
            if message.captured[0] > newest and message.seq < seq:
                del shelved[name]
                anew = True
        return anew

    def _release(self, window: PartialWindow) -> list[Outgoing]:
        """Acknowledge what came of a window that no longer waits, and count it by its state."""
        message, released = window.message, [Outgoing("", b"", tuple(window.deliveries))]
        if window.state is WindowState.LEFTOVER:
            self._count_leftover(window)
        elif window.state is WindowState.STALE:
            self.counters.late += message.count
            text = (
                "released window %d of %s: it was answered before, and %s is at later ones; a sensor that comes back "
                "must go on with the numbers of its stream"
            )
            _log.warning(text, message.seq, message.stream, ", ".join(self._join.missing(window)))
        else:
            self._shelve(window)
        return released

    def _shelve(self, window: PartialWindow) -> None:
        message = window.message
        self.counters.shelved += message.count
        window.deliveries = []
        shelved = self._join.streams.of(message.stream).shelved
        for name, captured in window.captured.items():
            if captured[0] > shelved.get(name, (0, -math.inf))[1]:
                shelved[name] = message.seq, captured[0]
        for one in self._replay.keep(window, self._monotonic(), self._join.streams.share(message.stream)):
            one.take(WindowEvent.EXPIRED)
            self.counters.given_up += one.message.count
            _log.warning("gave up window %d of %s: too many lack a part", one.message.seq, one.message.stream)

    def _expire(self, window: PartialWindow) -> None:
        """Count a window whose parts did not come while it was in the replay buffer.

        All sensors of a deployed stage count themselves what is not answered: here it may have been.
        """
        answered = window.reopened or bool(self._join.run_with(window.key))
        settled = answered or (window.redelivered and bool(self._setup.wiring.peer_parts))
        window.take(WindowEvent.SETTLED_BEFORE if settled else WindowEvent.EXPIRED)
        if window.state is WindowState.LEFTOVER:
            self._count_leftover(window)
        elif not self._setup.deployed:
            message, missing = window.message, ", ".join(self._join.missing(window))
            self.counters.given_up += message.count
            later = self._join.streams.find(message.stream).last_run > message.seq
            hint = "; later ones came, so it may have been answered before a restart" if later else ""
            if len(batches := self._join.streams.find(message.stream).batches) > 1:
                hint += f"; batches of {batches[0]} and of {batches[1]} came: give all its sensors the same --batch"
            _log.warning("gave up window %d of %s: %s did not come%s", message.seq, message.stream, missing, hint)

    def _count_leftover(self, window: PartialWindow) -> None:
        message, missing = window.message, ", ".join(self._join.missing(window))
        self.counters.leftover += message.count
        _log.info("released window %d of %s: %s was settled before", message.seq, message.stream, missing)

    def _complete(self, window: PartialWindow) -> list[Outgoing]:
        """Run the slice; return what to publish of it."""
        setup, deliveries = self._setup, tuple(window.deliveries)
        passes = [spec.name for spec in setup.wiring.passes]
        lacks = {source: name for source, name in setup.wiring.sources.items() if name not in window.parts}
        message = window.message
        self.batch = message.count
        if lacks:
            message = msgspec.structs.replace(message, missing=tuple(sorted({*message.missing, *lacks})))
        try:
            filled = {name: missing_input(setup.ports[source], message.count) for source, name in lacks.items()}
            outputs = setup.run({name: part for name, part in window.parts.items() if name not in passes} | filled)
            outgoing = self._outputs.write(message, {**window.parts, **outputs}, deliveries)
        except NoScore as error:
            explained = explain(error, window.parts | filled, setup.wiring)
            return [self._reject(deliveries, f"window {message.seq} of {message.stream}", explained)]
        except MessageError as error:
            return [self._reject(deliveries, f"window {message.seq} of {message.stream}", error)]
        self._count(message, tuple(sorted(lacks)))
        outgoing = outgoing or [Outgoing("", b"", deliveries)]
        if setup.remembers:  # where one message is enough, it brings all that is needed to make it again
            self._cache.keep(window.key, self._monotonic(), message.captured, outgoing if self._joins else ())
        return outgoing

    def _count(self, message: wire.Message, lacks: tuple[str, ...]) -> None:
        """Count windows that were run, and log when others are missing than before in their stream."""
        self.counters.windows += message.count
        self.counters.carried_on += message.count if lacks else 0
        progress = self._join.streams.of(message.stream)
        captured, before = progress.lacked
        if message.captured[0] < captured:
            return
        progress.lacked = (message.captured[0], lacks)
        if lacks != before:
            what = f"carrying on without {', '.join(lacks)}" if lacks else "all sources are there again"
            _log.warning("window %d of %s: %s", message.seq, message.stream, what)

    def _reject(self, deliveries: tuple[Delivery, ...], what: str, error: MessageError) -> Outgoing:
        self.counters.rejected += 1
        self.complaint = f"{what}: {error}"
        _log.warning("dropped %s: %s", what, error)
        return Outgoing("", b"", deliveries)


def _check_size(nbytes: int, count: int, window_bytes: int) -> None:
    if nbytes > count * window_bytes:
        raise MessageError(
            f"{nbytes} bytes came for {count} windows; expected at most {window_bytes} a window, which all its sources "
            "need: see what sent them"
        )


def _without_rest(
    delivery: Delivery, message: wire.Message, parts: dict[str, Array]
) -> tuple[Delivery, wire.Message, dict[str, Array]]:
    """Return a message and its parts, as they may wait, without the bytes that they came in where these hold much else.

    Parts are views of their message, which holds all of it in memory.
    """
    if len(delivery.payload) - sum([part.nbytes for part in parts.values()]) < REST_BYTES:
        return delivery, message, parts
    released, content = msgspec.structs.replace(delivery, payload=b""), msgspec.structs.replace(message, tensors={})
    return released, content, {name: part.copy() for name, part in parts.items()}
