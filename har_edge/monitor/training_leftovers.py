"""Find what trainings that have ended or died left at the broker: jobs, files, checkpoints, progress, models.

A training that lives says how far it is once a second; what it names is never counted, nor cleared.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from har_edge.errors import BrokerError
from har_edge.monitor.broker_checks import Finding, Verdict, passed
from har_edge.monitor.leftovers import PATIENCE_S, QUIET_S, Connect, Retained, is_alive, send_all
from har_edge.mqtt.bus import Outgoing, Session
from har_edge.protocol.artifacts import Header
from har_edge.protocol.events import Event, HeaderEvent, TrainingEvent, decode
from har_edge.protocol.split_training import SplitLevel
from har_edge.protocol.text import listed, printable
from har_edge.protocol.topics import COORDINATOR, RETAINED_OF_TRAINING, Kind, Topics, TrainingTopics
from har_edge.protocol.training import BlockFile, RunState, TrainingFile, TrainingLevel, TrainingProgress
from har_edge.protocol.training_results import ModelNote
from har_edge.runtime.artifacts import clear
from har_edge.timing import TRAINING_LISTEN_S
from har_edge.units import plural, size

_GOING = (RunState.WAITING, RunState.RUNNING)
_LEVELS = sorted(RETAINED_OF_TRAINING)
# Names come from the network: so many trainings and files are looked at.
MAX_RUNS, MAX_FILES = 256, 65_536


@dataclass(slots=True)
class RunTraces:
    """The retained messages of one training by level, and whether it said something while this listened."""

    run: str
    kept: dict[str, object] = field(default_factory=dict)
    alive: bool = False

    @property
    def state(self) -> RunState | None:
        """The state in its last progress."""
        progress = self.kept.get(TrainingLevel.PROGRESS.value)
        return progress.state if isinstance(progress, TrainingProgress) else None

    @property
    def killed(self) -> bool:
        """Whether it has gone without taking its job away: nodes still wait for it."""
        waits = {TrainingLevel.JOB.value, SplitLevel.SPLIT.value} & self.kept.keys()
        return not self.alive and (bool(waits) or self.state in _GOING)

    @property
    def model(self) -> ModelNote | None:
        """The model that takes the place of another."""
        note = self.kept.get(TrainingLevel.MODEL.value)
        return note if isinstance(note, ModelNote) else None

    @property
    def files(self) -> set[str]:
        """The files that its messages name."""
        named = {one.sha256 for message in self.kept.values() for one in _files_in(message)}
        return named | ({self.model.sha256} if self.model is not None else set())

    def without(self, level: TrainingLevel) -> RunTraces:
        """Return the traces without one level."""
        kept = {name: message for name, message in self.kept.items() if name != level.value}
        return RunTraces(self.run, kept, self.alive)


@dataclass(frozen=True, slots=True)
class TrainingLeftovers:
    """The trainings that have gone, with what they left, and the files that no training which lives names."""

    runs: tuple[RunTraces, ...] = ()
    files: tuple[Header, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there is anything to clear."""
        return bool(self.runs or self.files)

    def __str__(self) -> str:
        killed = [one.run for one in self.runs if one.killed]
        ended = [f"{one.run} ({_state(one)})" for one in self.runs if not one.killed]
        said = [f"trainings that were killed: {listed(killed)}"] if killed else []
        if ended:
            said.append(f"trainings that have ended: {listed(ended)}")
        if self.files:
            total = size(sum(one.size for one in self.files))
            said.append(f"{plural(len(self.files), 'file')} of trainings that have gone ({total})")
        return "; ".join(said)


@dataclass(slots=True)
class _Traces:
    runs: dict[str, RunTraces] = field(default_factory=dict)
    headers: dict[str, Header] = field(default_factory=dict)

    def take(self, event: Event) -> None:
        if isinstance(event, HeaderEvent) and event.topic is not None and event.topic.kind is Kind.TRAINING_FILE:
            self.headers.pop(event.sha256, None)
            if event.header is not None and len(self.headers) < MAX_FILES:
                self.headers[event.sha256] = event.header
        if not isinstance(event, TrainingEvent) or (event.run not in self.runs and len(self.runs) >= MAX_RUNS):
            return
        traces, level, message = (
            self.runs.setdefault(event.run, RunTraces(event.run)),
            event.topic.levels[1],
            event.message,
        )
        if message is None:
            traces.kept.pop(level, None)
            return
        traces.kept[level] = message
        if isinstance(message, TrainingProgress) and not event.retained:
            traces.alive = message.state in _GOING

    @property
    def doubtful(self) -> bool:
        """Whether a training may be alive that has said nothing yet."""
        return any(one.killed for one in self.runs.values())


def read_trainings(connect: Connect, topics: Topics, kept: Retained) -> TrainingLeftovers:
    """Return what trainings have left; `kept` has the plan, whose model is no leftover, and who lives."""
    seen, files = _Traces(), TrainingTopics(topics.base, topics.pipeline)
    bus = connect(Session(f"look-{secrets.token_hex(8)}", clean_start=True))
    try:
        bus.subscribe([*(topics.training("+", level) for level in _LEVELS), files.slice("+")])
        began = time.monotonic()
        quiet = began + PATIENCE_S
        while (now := time.monotonic()) < quiet or (seen.doubtful and now < began + TRAINING_LISTEN_S):
            came = bus.poll(0.05)
            for delivery in came:
                bus.acknowledge(delivery)
                seen.take(decode(delivery, topics))
            if came or (bus.connected and quiet == began + PATIENCE_S):
                quiet = min(began + PATIENCE_S, time.monotonic() + QUIET_S)
    finally:
        bus.close(forget=True)
    return leftovers_of_trainings(seen.runs.values(), seen.headers.values(), kept)


def leftovers_of_trainings(runs: Iterable[RunTraces], headers: Iterable[Header], kept: Retained) -> TrainingLeftovers:
    """Return what nobody needs of these trainings and files.

    The model that a plan runs stays, and every one while a coordinator lives, which may be about to deploy it. While
    a training lives, files that nobody names stay: it may be about to name them.
    """
    wanted: set[str] = set()
    gone: list[RunTraces] = []
    known: set[str] = set()
    living = False
    for one in runs:
        if one.model is not None and (is_alive(kept, COORDINATOR) or _runs_model(kept, one.model.sha256)):
            wanted.add(one.model.sha256)
            one = one.without(TrainingLevel.MODEL)
        if one.alive:
            living = True
            wanted |= one.files
        elif one.kept:
            gone.append(one)
            known |= one.files
    surplus = [one for one in headers if one.sha256 not in wanted and (not living or one.sha256 in known)]
    return TrainingLeftovers(tuple(gone), tuple(surplus))


def report_trainings(name: str, found: TrainingLeftovers, clear_command: str) -> Iterator[Finding]:
    """Yield what is to be said of trainings; nothing where they left nothing."""
    if any(one.killed or one.model is not None for one in found.runs) or (found.files and not found.runs):
        remedy = f"go on with the same `har-edge train --on-devices`, or clear them with `{clear_command}`"
        yield Finding(name, Verdict.NOTE, str(found), remedy)
    elif found.found:
        yield passed(name, f"{found} (`doctor --clear` removes them)")


def check_trainings(
    name: str, connect: Connect, topics: Topics, kept: Retained, clear_command: str
) -> Iterator[Finding]:
    """See what trainings have left; a user who may not read them is told so."""
    try:
        found = read_trainings(connect, topics, kept)
    except BrokerError as error:
        yield passed(name, f"trainings were not looked at: {printable(str(error), 300)}")
        return
    yield from report_trainings(name, found, clear_command)


def clear_trainings(connect: Connect, topics: Topics, found: TrainingLeftovers) -> Iterator[str]:
    """Clear what trainings left, and say each thing; BrokerError where the broker does not permit it."""
    if not found.found:
        return
    files = TrainingTopics(topics.base, topics.pipeline)
    gone = [
        Outgoing(topics.training(one.run, level), b"", retain=True) for one in found.runs for level in sorted(one.kept)
    ]
    for header in found.files:
        gone += clear(files, header.sha256, header.chunks)
    bus = connect(Session(f"clear-{secrets.token_hex(8)}", clean_start=True))
    try:
        send_all(bus, gone)
    finally:
        bus.close(forget=True)
    for one in found.runs:
        yield f"training {one.run} ({_state(one)}): {', '.join(sorted(one.kept))} removed"
    if found.files:
        total = size(sum(one.size for one in found.files))
        yield f"files of trainings: {len(found.files)} removed ({total})"


def _files_in(message: object) -> Iterator[TrainingFile | BlockFile]:
    """Yield the files that a message names, however deep."""
    if isinstance(message, TrainingFile | BlockFile):
        yield message
    elif isinstance(message, msgspec.Struct):
        for name in message.__struct_fields__:
            yield from _files_in(getattr(message, name))
    elif isinstance(message, tuple | list):
        for one in message:
            yield from _files_in(one)
    elif isinstance(message, dict):
        yield from _files_in(list(message.values()))


def _state(one: RunTraces) -> str:
    if one.killed:
        return "killed"
    return one.state.value if one.state is not None else "gone"


def _runs_model(kept: Retained, sha256: str) -> bool:
    generations = kept.plan.generations if kept.plan is not None else ()
    return any(one.manifest.model_sha256 == sha256 for one in generations)
