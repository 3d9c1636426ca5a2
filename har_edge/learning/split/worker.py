"""A worker of split training: a pure machine that loads the stages it is assigned, and computes what comes for them.

Messages and the time go in, messages come out. Files are fetched by its thread: `wanted` names them. Large messages
(states for a neighbour or a successor) wait in `bulk`, so that micro-batches do not wait behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import structs

from har_edge.errors import HarEdgeError, MessageError
from har_edge.learning.split.stage import StageMachine, StagePlace
from har_edge.learning.split.state import StageTensors, encode_state, hash_of
from har_edge.learning.split.step import StageCompute
from har_edge.learning.split.tensors import split_bytes
from har_edge.learning.updates.vector_parts import VectorAssembly
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import TrainingEvent, Unreadable, decode
from har_edge.protocol.split_training import (
    STATE,
    AssignedStage,
    GradientShare,
    HeldState,
    MicroBatch,
    SplitAssignment,
    SplitJob,
    SplitLevel,
    SplitReport,
    SplitState,
    StateMessage,
)
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import TrainingFile, encode_training

# A worker says how far it is so often; the command takes one that is silent for lost.
REPORT_S = 1.0
# States of other workers that are put together at a time.
_MOST_OPEN = 4


class StageMeans(Protocol):
    """The means of a worker beside messages: files by their hash, and how to make a stage of them."""

    def has(self, sha256: str) -> bool:
        """Return whether a file is here."""

    def read(self, sha256: str) -> bytes:
        """Return a file."""

    def put(self, sha256: str, content: bytes) -> None:
        """Keep a file."""

    def drop(self, sha256: str) -> None:
        """Keep a file no longer."""

    def load(self, stage: AssignedStage, micro_batch: int) -> tuple[StageCompute, StageTensors]:
        """Return the graphs of a stage, and the state that it goes on from. Raises HarEdgeError where they differ."""

    def peak_bytes(self) -> int:
        """Return the most memory that this process has used."""


@dataclass(frozen=True, slots=True)
class SplitProfile:
    """A worker beside its stages: its memory for training, the seconds of the probe, and its software."""

    memory_bytes: int = 0
    probe_s: float = 0.0
    software: str = ""


@dataclass(slots=True)
class _Incoming:
    """A state that comes from another worker."""

    held: HeldState
    assembly: VectorAssembly = field(repr=False)


class SplitWorker:
    """One worker of one split training. `reasons` says why messages were dropped; whoever logs it empties it."""

    def __init__(
        self,
        job: SplitJob,
        name: str,
        instance: str,
        means: StageMeans,
        topics: Topics,
        profile: SplitProfile = SplitProfile(),
    ) -> None:
        self.job, self.name, self.instance, self.reasons = job, name, instance, list[str]()
        self.bulk: deque[Iterator[Outgoing]] = deque()
        self.assignment: SplitAssignment | None = None
        self.stages: dict[int, StageMachine] = {}
        self.held: dict[tuple[int, int, int], HeldState] = {}
        self.reconnects = 0
        self._means, self._topics, self._profile = means, topics, profile
        self._loaded, self._failed, self._committed = False, "", 0
        self._incoming: dict[str, _Incoming] = {}
        self._said_at = -math.inf

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        named = (SplitLevel.FORWARD, SplitLevel.BACKWARD, SplitLevel.LABELS, SplitLevel.REDUCE, SplitLevel.STATE)
        topics, run = self._topics, self.job.run
        return [
            topics.training(run, SplitLevel.STAGES.value),
            *(topics.training(run, level.value, self.name) for level in named),
        ]

    @property
    def own(self) -> list[tuple[int, AssignedStage]]:
        """The stages that this worker is to hold, with their numbers."""
        stages = self.assignment.stages if self.assignment is not None else ()
        return [(number, one) for number, one in enumerate(stages) if self.name in one.stage.workers]

    @property
    def wanted(self) -> list[TrainingFile]:
        """The files to fetch before the stages can be loaded."""
        if self._loaded or self._failed:
            return []
        found: dict[str, TrainingFile] = {}
        for _, one in self.own:
            files = [one.files.spec, one.files.forward, one.files.backward]
            files.append(None if one.state.holder else one.state.file)
            found |= {file.sha256: file for file in files if file is not None and not self._means.has(file.sha256)}
        return list(found.values())

    @property
    def _loadable(self) -> bool:
        if self._loaded or self._failed or not self.own:
            return False
        return not self.wanted and all(self._means.has(one.state.file.sha256) for _, one in self.own)

    @property
    def busy(self) -> bool:
        """Whether there is something to do now."""
        return self._loadable or any(one.next_operation() is not None for one in self.stages.values())

    # --- what comes ---------------------------------------------------------------------------------------------------

    def handle(self, delivery: Delivery | Outgoing) -> None:
        """Take a message; what is not for this worker is passed over."""
        event = decode(delivery, self._topics)
        if isinstance(event, Unreadable):
            self.reasons.append(event.reason)
            return
        if not isinstance(event, TrainingEvent) or event.message is None:
            return
        message, level = event.message, event.topic.levels[1]
        if getattr(message, "author", "") != self.job.author:
            return
        try:
            if isinstance(message, SplitAssignment):
                self._assign(message)
            elif isinstance(message, StateMessage):
                self._take_state(message)
            elif isinstance(message, MicroBatch | GradientShare):
                self._take(level, message)
        except HarEdgeError as error:
            self.reasons.append(f"{level} of {getattr(message, 'sender', 'the command')}: {error}")

    def _take(self, level: str, message: MicroBatch | GradientShare) -> None:
        if self.assignment is None or message.generation != self.assignment.generation:
            return
        machine = self.stages.get(message.stage)
        if machine is None:
            raise MessageError(f"a message for stage {message.stage} came; this worker has {sorted(self.stages)}")
        if isinstance(message, MicroBatch):
            machine.receive(level, message)
        else:
            machine.share(message)

    def _assign(self, message: SplitAssignment) -> None:
        """Begin anew with other stages, or the same from another step; what was under way is dropped."""
        if self.assignment is not None and message.generation <= self.assignment.generation:
            return
        self.assignment, self._loaded, self._failed = message, False, ""
        self.stages.clear()
        self.bulk.clear()
        self._said_at = -math.inf
        named = {one.state.file.sha256 for one in message.stages}
        for key, held in list(self.held.items()):  # what was made after the step that all go on from
            if held.step > message.step and held.sha256 not in named:
                self._drop(key)
        for number, one in enumerate(message.stages):
            if one.state.holder == self.name:
                for worker in one.state.lacking:
                    held = HeldState(
                        one.stage.start, one.stage.stop, message.step, one.state.file.sha256, one.state.file.size
                    )
                    self.bulk.append(self._parts(SplitLevel.STATE, worker, number, held))

    def _take_state(self, message: StateMessage) -> None:
        """Take a part of a state; keep it when it is whole and has its hash."""
        held = message.held
        if self._means.has(held.sha256):
            self._hold(held)
            return
        if held.sha256 not in self._incoming:
            while len(self._incoming) >= _MOST_OPEN:  # the sender of the oldest has begun another since
                del self._incoming[next(iter(self._incoming))]
            self._incoming[held.sha256] = _Incoming(held, VectorAssembly(held.size))
        if message.part.kind != STATE:
            raise MessageError(f"{message.part.kind!r} came as a state; expected {STATE!r}")
        packed = self._incoming[held.sha256].assembly.add(message.part)
        if packed is None:
            return
        del self._incoming[held.sha256]
        if len(packed.data) != held.size or hash_of(packed.data) != held.sha256:
            raise MessageError(f"a state of {len(packed.data)} bytes came whose hash is not {held.sha256[:12]}")
        self._means.put(held.sha256, packed.data)
        self._hold(held)

    def _hold(self, held: HeldState) -> None:
        self.held[held.start, held.stop, held.step] = held
        self._said_at = -math.inf  # the command waits for it

    def _drop(self, key: tuple[int, int, int]) -> None:
        gone = self.held.pop(key)
        if all(one.sha256 != gone.sha256 for one in self.held.values()):
            self._means.drop(gone.sha256)

    # --- what it does -------------------------------------------------------------------------------------------------

    def step(self, clock: Callable[[], float]) -> list[Outgoing]:
        """Do one thing: load the stages, or compute one pass of a micro-batch."""
        if self._loadable:
            return self._load()
        ready = [one for one in self.stages.values() if one.next_operation() is not None]
        if not ready:
            return []
        # The stage behind goes first: what it frees is waited for by the one in front.
        machine = max(ready, key=lambda one: one.place.number)
        try:
            sent = machine.work(clock)
        except HarEdgeError as error:
            return [self._fail(f"stage {machine.place.number}: {error}")]
        if machine.snapshot is not None:
            self._copy(machine, machine.snapshot)
            machine.snapshot = None
        self._commit(machine.committed)
        return self._route(sent)

    def _route(self, sent: list[Outgoing]) -> list[Outgoing]:
        """Give this worker what is for itself; return the rest."""
        mine, others = set(self.filters), []
        for one in sent:
            if one.topic in mine:
                self.handle(one)
            else:
                others.append(one)
        return others

    def _load(self) -> list[Outgoing]:
        assert self.assignment is not None
        try:
            for number, one in self.own:
                compute, state = self._means.load(one, self.assignment.micro_batch)
                if state.step != self.assignment.step:
                    raise MessageError(f"a state after step {state.step} came; expected step {self.assignment.step}")
                place = StagePlace(self._topics, self.assignment, number, self.name)
                self.stages[number] = StageMachine(place, compute, state)
                stage, file = one.stage, one.state.file
                self._hold(HeldState(stage.start, stage.stop, state.step, file.sha256, file.size))
        except HarEdgeError as error:
            return [self._fail(str(error))]
        self._loaded = True
        return [self.report(SplitState.LOADED)]

    def _fail(self, problem: str) -> Outgoing:
        self.stages.clear()
        self._failed = problem
        return self.report(SplitState.FAILED, problem)

    def _copy(self, machine: StageMachine, state: StageTensors) -> None:
        """Keep a state, and send it to the neighbour; and to the command where it asked for it."""
        place, stage = machine.place, machine.place.stage
        content = encode_state(state, stage.start, stage.stop)
        held = HeldState(stage.start, stage.stop, state.step, hash_of(content), len(content))
        self._means.put(held.sha256, content)
        self._hold(held)
        if place.replica:
            return
        neighbour = place.assignment.stages[place.number].neighbour
        if machine.save:
            self.bulk.appendleft(self._parts(SplitLevel.SAVED, self.name, place.number, held))
        if neighbour and neighbour != self.name:
            self.bulk.append(self._parts(SplitLevel.STATE, neighbour, place.number, held))

    def _parts(self, level: SplitLevel, worker: str, number: int, held: HeldState) -> Iterator[Outgoing]:
        """Yield a state part by part; nothing where it is not here any more."""
        assert self.assignment is not None
        if not self._means.has(held.sha256):
            return
        head = StateMessage(
            run=self.job.run,
            author=self.job.author,
            sender=self.name,
            generation=self.assignment.generation,
            stage=number,
            step=held.step,
            part=split_bytes(STATE, b"")[0],
            held=held,
        )
        topic = self._topics.training(self.job.run, level.value, worker)
        for part in split_bytes(STATE, self._means.read(held.sha256)):
            yield Outgoing(topic, encode_training(structs.replace(head, part=part)))

    def _commit(self, step: int) -> None:
        """Drop states of before the step that all can go back to."""
        if step <= self._committed:
            return
        self._committed = step
        for key, one in list(self.held.items()):
            if one.step < step:
                self._drop(key)

    def tick(self, now: float) -> list[Outgoing]:
        """Say how far this worker is, once in a while."""
        if now - self._said_at < REPORT_S:
            return []
        self._said_at = now
        if self._failed:
            return [self.report(SplitState.FAILED, self._failed)]
        return [self.report_again()]

    def report_again(self) -> Outgoing:
        """Return the report of now, to be sent while an operation takes long."""
        return self.report(SplitState.LOADED if self._loaded else SplitState.READY)

    def report(self, state: SplitState, detail: str = "", lacks: str = "") -> Outgoing:
        """Return what the worker says of itself."""
        profile = self._profile
        message = SplitReport(
            run=self.job.run,
            author=self.job.author,
            worker=self.name,
            instance=self.instance,
            state=state,
            detail=detail[:400],
            software=profile.software,
            memory_bytes=profile.memory_bytes,
            probe_s=profile.probe_s,
            peak_bytes=self._means.peak_bytes(),
            generation=self.assignment.generation if self.assignment is not None else 0,
            step=min((one.step for one in self.stages.values()), default=0),
            held=tuple(self.held.values()),
            lacks=lacks,
            reconnects=self.reconnects,
        )
        return Outgoing(
            self._topics.training(self.job.run, SplitLevel.STAGE.value, self.name), encode_training(message)
        )
