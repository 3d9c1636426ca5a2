"""A stage: runs one slice for every window whose parts have come. Pure: messages in, messages out."""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from har_edge.config.classifier_output import read_classes
from har_edge.config.task import Task
from har_edge.config.wiring import Wiring
from har_edge.errors import MessageError
from har_edge.inference.missing_input import missing_input
from har_edge.inference.saturation import Saturation, totals
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.topics import ALL_SOURCES, Kind, Topics
from har_edge.runtime.counters import Counters
from har_edge.runtime.stage.join import Join, MissingSourceFallback, PartialWindow
from har_edge.runtime.stage.no_score import NoScore, check_scores, explain
from har_edge.runtime.stage.receive_limit import ReceiveLimit
from har_edge.runtime.stage.replay_buffer import Made, OutputCache, ReplayBuffer
from har_edge.runtime.stage.stream_quota import StreamQuota

if TYPE_CHECKING:
    from har_edge.inference.input_adapter import InputAdapter
    from har_edge.inference.interpreter import Port

Array = npt.NDArray[Any]
Run = Callable[[Mapping[str, Array]], Mapping[str, Array]]

_log = logging.getLogger(__name__)
MAX_TOLD = 1024
MAX_HEADS = 4096
# How long parts wait at a deployed stage before they go on the shelf, whose sensors send again; of all stages, how long
# they are good there (a sensor that has no answer sends again sooner), what this holds, and what is remembered of the
# windows that were run. All sensors of a stream send again at about the same time: one answer is enough for all.
SHELVE_S = 3.0
SHELF_S = 60.0
SHELF_BYTES = 16 * 1024 * 1024
MADE_BYTES = 1024 * 1024
RECENT_S = 2.0


@dataclass(frozen=True, slots=True)
class StageSetup:
    """What a stage is made of: topics, wiring, the slice's `run` and result port; for each source its feed and port.

    Activations are written in `wire_version`, with `ids` for the names of tensors; `names` says what the ids of tensors
    that come stand for, where windows say those of sources.

    Without `carry_on_after_s`, a window that lacks a source is given up. Stages of one `share` take turns: the broker
    gives each message to one of them.

    A stage that is `deployed` leaves windows of other epochs to the stages of these. All its sensors send again what is
    not answered, so it need not hold up the queue, and puts parts that wait on the shelf sooner.

    `delegate` is who computes the slice, for what its node says of itself. `saturations` count what the feeds quantise.
    """

    topics: Topics
    epoch: int
    task: Task
    wiring: Wiring
    run: Run
    result_port: Port | None
    feeds: Mapping[str, InputAdapter]
    max_payload_bytes: int
    join_timeout_s: float
    join_capacity: int
    ports: Mapping[str, Port] = field(default_factory=dict)
    wire_version: int = 1
    ids: Mapping[str, int] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    carry_on_after_s: float | None = None
    share: str = ""
    deployed: bool = False
    remembers: bool = True
    delegate: str = ""
    saturations: tuple[Saturation, ...] = ()


class Stage:
    """Joins parts, runs the slice, and says what to publish and which deliveries that settles.

    What has waited too long, or is too much, is released and put on a shelf of bounded size, until its parts come. A
    window that was run is run again where one of its parts comes again, since its answer may be lost.

    `clock` gives seconds since 1970, `monotonic` seconds for waiting, where the caller does not say when a message
    came: with a backlog, what has come but is not handled yet must not count as missing. An unusable message is
    dropped, counted and logged; nothing that comes over the network raises from `handle`. Raises ModelError where it
    should carry on without a source whose input cannot be filled.
    """

    def __init__(self, setup: StageSetup, *, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._setup, self._clock, self._monotonic = setup, clock, monotonic
        wiring = setup.wiring
        self._specs = {spec.name: (spec, np.dtype(spec.dtype)) for spec in wiring.entry.inputs}
        self._from_earlier = {stage: frozenset(names) for stage, names in wiring.earlier.items()}
        wanted = frozenset(wiring.sources.values()).union(*self._from_earlier.values())
        patience_s = setup.carry_on_after_s
        carry_on = None if patience_s is None else MissingSourceFallback(frozenset(wiring.sources.values()), patience_s)
        for source in wiring.sources if carry_on else ():
            missing_input(setup.ports[source], 1)
        timeout_s = min(SHELVE_S, setup.join_timeout_s) if setup.deployed else setup.join_timeout_s
        self._joins = len(wanted) > 1
        self._shelf, self._made = ReplayBuffer(SHELF_BYTES), OutputCache(MADE_BYTES)
        self._quota = StreamQuota(setup.join_capacity)
        self._join = Join(wanted, timeout_s=timeout_s, capacity=setup.join_capacity, carry_on=carry_on)
        self._held_back = ReceiveLimit(self._join)
        # Of each stream, what its newest window lacked, and when that was captured.
        self._lacked: OrderedDict[str, tuple[float, tuple[str, ...]]] = OrderedDict()
        # Of each part of each stream, the window on the shelf that was captured last, and when.
        self._heads: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()
        self._foreign: set[int] = set()  # the other epochs that were logged
        self.complaint = ""  # why the last message or window was dropped
        self.counters = Counters()

    @property
    def filters(self) -> list[str]:
        """The topics this stage needs, straight from where each part is made."""
        topics, wiring = self._setup.topics, self._setup.wiring
        sources = dict.fromkeys((*wiring.sources, ALL_SOURCES)) if wiring.sources else ()
        filters = [topics.window("+", source) for source in sources]
        filters += [topics.activation(self._setup.epoch, stage, "+") for stage in sorted(wiring.earlier)]
        return [f"$share/{self._setup.share}/{one}" for one in filters] if self._setup.share else filters

    @property
    def waiting(self) -> int:
        """How many windows wait for parts."""
        return len(self._join)

    def handle(self, delivery: Delivery, came: float | None = None) -> list[Outgoing]:
        """Take one message, that came at this time; return what to publish, or to release without publishing."""
        came = self._monotonic() if came is None else came
        try:
            message = wire.decode(delivery.payload, self._setup.max_payload_bytes, self._setup.names)
            if self._is_foreign(delivery, message):
                return [Outgoing("", b"", (delivery,)), *self.tick(came)]
            parts = self._parts(delivery, message)
            self.counters.messages += 1
            if self._joins:
                self._held_back.note(came)
            if self._setup.result_port is not None:
                self._quota.note(message.stream, came)
            settled = self._settle(message, parts, delivery, came)
            if settled:
                return settled + self.tick(came)
            gathered = self._join.add(message, parts, delivery, came)
        except MessageError as error:
            return [self._reject((delivery,), delivery.topic, error)]
        outgoing = self.tick(came)
        if gathered is not None:
            outgoing += self._complete(gathered)
        return outgoing

    def tick(self, until: float | None = None) -> list[Outgoing]:
        """Carry on, or give up, with what has waited too long; call it now and then.

        All that came before `until` must have been handled; by default, that is now.
        """
        outgoing = list[Outgoing]()
        if not (len(self._join) or self._shelf):
            return outgoing
        until = self._monotonic() if until is None else until
        for gathered in self._join.go_on(until):
            outgoing += [self._give_up(gathered)] if gathered.stale else self._complete(gathered)
        outgoing += [self._give_up(gathered) for gathered in self._join.give_up(until)]
        if self._shelf:
            for gathered in self._shelf.expire(until - SHELF_S):
                self._forget(gathered)
        outgoing += [self._give_up(gathered) for gathered in self._held_back.release(until)]
        return outgoing

    def _is_foreign(self, delivery: Delivery, message: wire.Message) -> bool:
        """Tell, and count, whether a window is for the stages of another epoch that is deployed beside this one."""
        setup = self._setup
        if not setup.deployed or message.epoch == setup.epoch:
            return False
        if setup.topics.read(delivery.topic).kind is not Kind.WINDOW:
            return False
        self.counters.foreign += message.count
        if message.epoch not in self._foreign and len(self._foreign) < MAX_TOLD:
            self._foreign.add(message.epoch)
            _log.info("windows of epoch %d come too; this stage takes those of %d", message.epoch, setup.epoch)
        return True

    def _settle(
        self, message: wire.Message, parts: Mapping[str, Array], delivery: Delivery, came: float
    ) -> list[Outgoing]:
        """Release, and count, parts of a window that was done, with them or without them; else return nothing."""
        key = message.stream, message.seq
        made = self._made.find(key)
        if made is not None and self._repeats(message, parts, delivery, made):
            # What came before, or soon after, the answer was made was sent when that was not known.
            if came < made[0] + RECENT_S:
                self.counters.duplicates += message.count
                return [Outgoing("", b"", (delivery,))]
            if self._joins:
                self.counters.duplicates += message.count
                return self._made.again(key, self._monotonic(), (delivery,))
        if not self._joins:
            return []
        if self._join.is_late(message, parts):
            self.counters.late += message.count
            _log.info(
                "dropped %s of window %d of %s: it was run without", ", ".join(parts), message.seq, message.stream
            )
            return [Outgoing("", b"", (delivery,))]
        if self._shelf and self._begins_anew(
            message, parts
        ):  # its windows must not be completed by parts of the last run
            for old in self._shelf.forget(message.stream, message.captured[0]):
                self.counters.leftover += old.message.count
        if self._shelf and (shelved := self._shelf.find(key)):
            self._shelf.drop(shelved.gathered)
            if came < shelved.at + SHELF_S:
                self._join.revive(shelved.gathered, came)
        return []

    def _repeats(self, message: wire.Message, parts: Mapping[str, Array], delivery: Delivery, made: Made) -> bool:
        """Return whether these parts were sent again, of a window that was run with them.

        Not so for what the broker delivers again: that was not acknowledged, and the window's output may not be safe.
        """
        if not self._joins:
            return made[1] == message.captured and not delivery.duplicate
        return self._join.repeats(message, parts, delivery)

    def _begins_anew(self, message: wire.Message, parts: Iterable[str]) -> bool:
        """Return whether a sensor begins its stream anew: a window before one on the shelf, captured later."""
        anew = False
        for name in parts:
            seq, newest = self._heads.get((message.stream, name), (message.seq, math.inf))
            if message.captured[0] > newest and message.seq < seq:
                del self._heads[message.stream, name]
                anew = True
        return anew

    def _give_up(self, gathered: PartialWindow) -> Outgoing:
        message, released = gathered.message, Outgoing("", b"", tuple(gathered.deliveries))
        if gathered.leftover:
            self._count_leftover(gathered)
        elif gathered.stale:
            self.counters.late += message.count
            text = (
                "released window %d of %s: it was answered before, and %s is at later ones; a sensor that comes back "
                "must go on with the numbers of its stream"
            )
            _log.warning(text, message.seq, message.stream, ", ".join(self._join.missing(gathered)))
        else:
            self._shelve(gathered)
        return released

    def _forget(self, gathered: PartialWindow) -> None:
        """Count a window whose parts did not come while it was on the shelf.

        All sensors of a deployed stage count themselves what is not answered: here it may have been.
        """
        if gathered.leftover or gathered.behind:
            self._count_leftover(gathered)
        elif not self._setup.deployed:
            message, missing = gathered.message, ", ".join(self._join.missing(gathered))
            self.counters.given_up += message.count
            hint = "; later ones came, so it may have been answered before a restart" if gathered.passed else ""
            _log.warning("gave up window %d of %s: %s did not come%s", message.seq, message.stream, missing, hint)

    def _count_leftover(self, gathered: PartialWindow) -> None:
        message, missing = gathered.message, ", ".join(self._join.missing(gathered))
        self.counters.leftover += message.count
        _log.info("released window %d of %s: %s was settled before", message.seq, message.stream, missing)

    def _shelve(self, gathered: PartialWindow) -> None:
        message = gathered.message
        self.counters.shelved += message.count
        gathered.deliveries = []
        for name, captured in gathered.captured.items():
            if captured[0] > self._heads.get((message.stream, name), (0, -math.inf))[1]:
                self._heads[message.stream, name] = message.seq, captured[0]
        while len(self._heads) > MAX_HEADS:
            self._heads.popitem(last=False)
        for one in self._shelf.keep(gathered, self._monotonic()):
            self.counters.given_up += one.message.count
            _log.warning("gave up window %d of %s: too many lack a part", one.message.seq, one.message.stream)

    def _parts(self, delivery: Delivery, message: wire.Message) -> dict[str, Array]:
        """Return the inputs of the slice that a message brings, by tensor name."""
        setup, topic = self._setup, self._setup.topics.read(delivery.topic)
        if message.epoch != setup.epoch:
            raise MessageError(
                f"epoch {message.epoch} came; expected {setup.epoch}; restart the node with the older plan"
            )
        if topic.kind is Kind.WINDOW:
            stream = topic.levels[0]
            parts = {
                tensor: setup.feeds[source](message.tensors[source], message.count)
                for source, tensor in setup.wiring.sources.items()
                if source in message.tensors and topic.levels[1] in (source, ALL_SOURCES)
            }
            self.counters.quantised, self.counters.saturated = totals(setup.saturations)
        elif topic.kind is Kind.ACTIVATION:
            maker, stream = topic.levels[1], topic.levels[2]
            names = self._from_earlier.get(int(maker) if maker.isdecimal() else -1, frozenset())
            parts = {name: message.tensors[name] for name in names if name in message.tensors}
            if len(parts) < len(names):
                missing = ", ".join(sorted(names - parts.keys()))
                raise MessageError(
                    f"stage {maker} sent no tensor {missing}; expected it: slices of one cut on all nodes"
                )
        else:
            raise MessageError(f"a {topic.kind.value} message came; expected windows or activations")
        if stream != message.stream:
            raise MessageError(f"stream {message.stream!r} came on the topic of {stream!r}; expected the same")
        if not parts:
            raise MessageError(
                f"no tensor this stage needs came, but {message.content}; expected {', '.join(setup.wiring.sources)}"
            )
        self._check_batch(message, parts)
        known = setup.task.inputs if topic.kind is Kind.ACTIVATION else ()
        if any(source not in known for source in message.missing):
            raise MessageError(
                f"a message of kind {topic.kind.value} came that misses {', '.join(message.missing)}; expected only "
                f"activations to miss something, and of {', '.join(setup.task.inputs)}"
            )
        return parts

    def _check_batch(self, message: wire.Message, parts: Mapping[str, Array]) -> None:
        for name, array in parts.items():
            spec, dtype = self._specs[name]
            dynamic = spec.batched and bool(spec.shape) and spec.shape[0] == -1
            shape = (message.count, *spec.shape[1:]) if dynamic else spec.shape
            if array.dtype == dtype and array.shape == shape and (dynamic or message.count == 1):
                continue  # the most frequent case, quickly
            if message.count > 1 and not dynamic:
                raise MessageError(
                    f"a batch of {message.count} windows came, but input {name!r} takes {list(spec.shape)}"
                    f"{'' if spec.batched else ', whose first dimension is no batch'}; "
                    "send one window a message, or convert the model with a dynamic batch"
                )
            fits = array.ndim == len(shape) and all(
                wanted in (-1, got) for wanted, got in zip(shape, array.shape, strict=True)
            )
            empty = 0 in array.shape and spec.batched  # of one that is no batch, values may say how many there are
            if not fits or array.dtype != dtype or empty:
                raise MessageError(
                    f"input {name!r} came as {array.dtype} {list(array.shape)} for {message.count} windows; "
                    f"expected {spec.dtype} {list(spec.shape)}"
                )

    def _complete(self, gathered: PartialWindow) -> list[Outgoing]:
        setup, deliveries = self._setup, tuple(gathered.deliveries)
        lacks = {source: name for source, name in setup.wiring.sources.items() if name not in gathered.parts}
        message = gathered.message
        if lacks:
            message = msgspec.structs.replace(message, missing=tuple(sorted({*message.missing, *lacks})))
        try:
            filled = {name: missing_input(setup.ports[source], message.count) for source, name in lacks.items()}
            outputs = setup.run(gathered.parts | filled)
            outgoing = self._publications(message, outputs, deliveries)
        except NoScore as error:
            explained = explain(error, gathered.parts | filled, setup.wiring)
            return [self._reject(deliveries, f"window {message.seq} of {message.stream}", explained)]
        except MessageError as error:
            return [self._reject(deliveries, f"window {message.seq} of {message.stream}", error)]
        self._count(message, tuple(sorted(lacks)))
        outgoing = outgoing or [Outgoing("", b"", deliveries)]
        if setup.remembers:  # where one message is enough, it brings all that is needed to make it again
            self._made.keep(gathered.key, self._monotonic(), message.captured, outgoing if self._joins else ())
        return outgoing

    def _count(self, message: wire.Message, lacks: tuple[str, ...]) -> None:
        """Count windows that were run, and log when others are missing than before in their stream."""
        self.counters.windows += message.count
        self.counters.carried_on += message.count if lacks else 0
        captured, before = self._lacked.get(message.stream, (-math.inf, ()))
        if message.captured[0] < captured:
            return
        self._lacked[message.stream] = (message.captured[0], lacks)
        if len(self._lacked) > MAX_TOLD:
            self._lacked.popitem(last=False)
        if lacks != before:
            what = f"carrying on without {', '.join(lacks)}" if lacks else "all sources are there again"
            _log.warning("window %d of %s: %s", message.seq, message.stream, what)

    def _publications(
        self, message: wire.Message, outputs: Mapping[str, Array], deliveries: tuple[Delivery, ...]
    ) -> list[Outgoing]:
        setup, outgoing = self._setup, []
        if setup.result_port is not None:
            scores = outputs[setup.result_port.name]
            results = self._results(message, scores)
            outgoing.append(Outgoing(setup.topics.result(message.stream), encode_results(results), deliveries))
        if setup.wiring.sends:
            tensors = {name: outputs[name] for name in setup.wiring.sends}
            made = msgspec.structs.replace(message, tensors=tensors)
            topic = setup.topics.activation(setup.epoch, setup.wiring.index, message.stream)
            payload = wire.encode(made, setup.wire_version, setup.ids)
            if len(payload) > setup.max_payload_bytes:
                raise MessageError(
                    f"its activations take {len(payload)} bytes; expected at most {setup.max_payload_bytes}; "
                    "send fewer windows a message, or raise max_payload_bytes in the pipeline file"
                )
            outgoing.append(Outgoing(topic, payload, deliveries, needs_subscriber=True))
        return outgoing

    def _results(self, message: wire.Message, scores: Array) -> list[Result]:
        port, task, now = self._setup.result_port, self._setup.task, self._clock()
        room = self._quota.grant()
        assert port is not None
        winners, best = read_classes(scores, message.count, len(task.labels))
        tops = [1.0] * message.count if best is None else port.real(best).tolist()
        check_scores(tops)
        truth = message.truth or (None,) * message.count
        return [
            Result(
                stream=message.stream,
                seq=message.seq + offset,
                label=task.labels[winner],
                label_id=task.label_ids[winner],
                confidence=top,
                captured=message.captured[offset],
                emitted=now,
                epoch=message.epoch,
                truth=truth[offset],
                missing=list(message.missing),
                room=room,
                sent=message.sent and (message.sent[0], message.sent[1] + offset),
            )
            for offset, (winner, top) in enumerate(zip(winners, tops, strict=True))
        ]

    def _reject(self, deliveries: tuple[Delivery, ...], what: str, error: MessageError) -> Outgoing:
        self.counters.rejected += 1
        self.complaint = f"{what}: {error}"
        _log.warning("dropped %s: %s", what, error)
        return Outgoing("", b"", deliveries)
