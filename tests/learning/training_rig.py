"""A training on a broker in memory and a clock that a test moves: a server, and workers that fail as they are told.

The network is softmax regression in NumPy, so that sums of gradients can be checked by hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from har_edge.learning.data.blocks import epoch_order
from har_edge.learning.privacy import protection_of
from har_edge.learning.server.checkpoints import Checkpoint
from har_edge.learning.server.modes import TrainingMode
from har_edge.learning.server.server import TrainingServer
from har_edge.learning.server.settings import ServerSettings
from har_edge.learning.updates.vectors import Vector
from har_edge.learning.worker.worker import BatchOutcome, TrainingWorker, WorkerProfile
from har_edge.mqtt.bus import Outgoing, Session, Will
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.masks import MASKED_VERSION
from har_edge.protocol.status import Heartbeat, encode_heartbeat
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import BlockFile, TrainingFile, TrainingJob, Update, WorkerState

TOPICS = Topics("har", "har")
SIDE, CLASSES = 6, 4
SIZE = SIDE * SIDE * CLASSES
SHAPE, NAMES = (SIDE, SIDE), tuple(map(str, range(CLASSES)))
TICK_S = 0.05
Floats = NDArray[np.float32]


def made_samples(count: int, seed: int = 0) -> tuple[Floats, NDArray[np.int64]]:
    """Return samples whose class shows, float32 [count, 36], and their classes."""
    generator = np.random.default_rng(seed)
    y = generator.integers(0, CLASSES, count)
    x = generator.random((count, SIDE, SIDE)).astype(np.float32) * 0.3
    x[np.arange(count), y] += 0.7
    return x.reshape(count, -1), y


def gradient_of(weights: Vector, x: Floats, y: NDArray[np.int64]) -> BatchOutcome:
    """Return sums over samples of softmax regression."""
    logits = x @ weights.reshape(-1, CLASSES)
    logits = logits - logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    loss = float(-np.log(probabilities[np.arange(len(y)), y] + 1e-9).sum())
    correct = int((probabilities.argmax(axis=1) == y).sum())
    error = probabilities.copy()
    error[np.arange(len(y)), y] -= 1
    return BatchOutcome((x.T @ error).astype(np.float32).reshape(-1), loss, correct)


def blocks_of(sizes: tuple[int, ...]) -> list[tuple[Floats, NDArray[np.int64]]]:
    return [made_samples(size, seed) for seed, size in enumerate(sizes)]


@dataclass
class SoftmaxLearner:
    """Computes with samples in memory; counts each (block, index) that it was asked for."""

    blocks: list[tuple[Floats, NDArray[np.int64]]]
    step_s: float = 0.1
    own_samples: int = 0
    broken: bool = False
    asked: Counter[tuple[int, int]] = field(default_factory=Counter)

    def missing(self, block: int) -> bool:
        return False

    def samples(self, block: int) -> int:
        return self.own_samples or len(self.blocks[block][1])

    def compute(self, weights: Vector, chosen: list[tuple[int, NDArray[np.int64]]]) -> BatchOutcome:
        xs, ys = [], []
        for block, indices in chosen:
            x, y = self.blocks[0 if self.own_samples else block]
            xs.append(x[indices])
            ys.append(y[indices])
            self.asked.update((block, int(index)) for index in indices)
        outcome = gradient_of(weights, np.concatenate(xs), np.concatenate(ys))
        if self.broken:
            outcome.gradient[0] = np.nan
        return outcome


@dataclass
class FakeNode:
    """A worker with a bus, on a device of its own speed; `hung` neither computes nor sends, but stays connected."""

    worker: TrainingWorker
    bus: MemoryBus
    learner: SoftmaxLearner
    hung: bool = False
    beats: bool = False
    free_at: float = 0.0
    steps: int = 0
    silent: bool = False


@dataclass
class Fleet:
    """The server and its workers; `counted` is what the server counted, by epoch, block and index."""

    settings: ServerSettings
    blocks: list[tuple[Floats, NDArray[np.int64]]]
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    now: float = 0.0
    nodes: dict[str, FakeNode] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    updates: list[Update] = field(default_factory=list)
    counted: Counter[tuple[int, int, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.spy = self.broker.connect(Session("spy"))
        self.spy.subscribe([TOPICS.training("+", "update", "+")])
        self.start_server()

    def start_server(self, checkpoint: Checkpoint | None = None) -> None:
        self.server = TrainingServer(self.settings, np.zeros(SIZE, np.float32), self.now)
        if checkpoint is not None:
            self.server.restore(checkpoint)
        self.server_bus = self.broker.connect(Session("server", clean_start=True))
        self.server_bus.subscribe(self.server.filters)
        job = self.server.job_message()
        self.server_bus.publish(job.topic, job.payload, retain=job.retain)
        self.reconnects = 0
        self._watch_account()

    def _watch_account(self) -> None:
        """Note every sample that the server counts."""
        server = self.server
        credit = server.credit

        def crediting(member, task, samples, seconds):  # type: ignore[no-untyped-def]
            left = samples
            for one in task.ranges:
                size = server.pool.account.sizes[one.block]
                order = epoch_order(server.settings.job.seed, server.epoch, one.block, size)
                for index in order[one.start : min(one.stop, one.start + left)]:
                    self.counted[server.epoch, one.block, int(index)] += 1
                left -= min(left, one.samples)
            return credit(member, task, samples, seconds)

        server.credit = crediting  # type: ignore[method-assign]

    def add(
        self, name: str, step_s: float = 0.1, *, own: int = 0, beats: bool = False, instance: str = "1"
    ) -> FakeNode:
        blocks = [made_samples(own, hash_of(name))] if own else self.blocks
        learner = SoftmaxLearner(blocks, step_s, own)
        profile = WorkerProfile(SHAPE, NAMES)
        protect = protection_of(self.settings.job, np.random.default_rng(hash_of(name)))
        worker = TrainingWorker(self.settings.job, name, instance, learner, TOPICS, profile, protect)
        lost = worker.report(WorkerState.LOST)
        will = Will(lost.topic, lost.payload, retain=False)
        bus = self.broker.connect(Session(f"worker-{name}", clean_start=True, will=will))
        bus.subscribe(worker.filters)
        node = self.nodes[name] = FakeNode(worker, bus, learner, beats=beats)
        return node

    def kill(self, name: str) -> None:
        self.nodes.pop(name).bus.crash()

    def turn(self) -> None:
        """Let TICK_S pass."""
        self.now += TICK_S
        for name, node in self.nodes.items():
            self._turn_node(name, node)
        server, bus = self.server, self.server_bus
        for delivery in bus.poll(0):
            bus.acknowledge(delivery)
            for one in server.handle(delivery, self.now):
                bus.publish(one.topic, one.payload, retain=one.retain)
        outgoing = server.tick(self.now)
        if bus.connected and bus.traffic.reconnects != self.reconnects:
            self.reconnects = bus.traffic.reconnects
            outgoing = [server.job_message(), *server.again(), *outgoing]
        for one in outgoing:
            bus.publish(one.topic, one.payload, retain=one.retain)
        bus.poll(0)
        self.lines += server.lines
        server.lines.clear()
        self.checkpoints += server.checkpoints
        server.checkpoints.clear()
        for delivery in self.spy.poll(0):
            self.spy.acknowledge(delivery)
            event = decode(delivery, TOPICS)
            if isinstance(event, TrainingEvent) and isinstance(event.message, Update):
                self.updates.append(event.message)

    def _turn_node(self, name: str, node: FakeNode) -> None:
        if node.hung:
            return
        reconnects = node.bus.traffic.reconnects
        outgoing: list[Outgoing] = []
        for delivery in node.bus.poll(0):
            node.bus.acknowledge(delivery)
            outgoing += node.worker.handle(delivery)
        outgoing += node.worker.tick(self.now)
        if node.bus.traffic.reconnects != reconnects and node.bus.connected:
            outgoing = [node.worker.report(WorkerState.READY), *outgoing]
        if node.beats:
            beat = Heartbeat(name, "1", int(self.now * 20), self.now)
            node.bus.publish(TOPICS.heartbeat(name), encode_heartbeat(beat))
        if node.worker.busy and self.now >= node.free_at:
            node.free_at = max(node.free_at, self.now - TICK_S) + node.learner.step_s
            node.steps += 1
            times = iter((self.now, self.now + node.learner.step_s))
            outgoing += node.worker.step(lambda: next(times))
        for one in outgoing:
            if not node.silent:
                node.bus.publish(one.topic, one.payload, retain=one.retain)
        node.bus.poll(0, 0)

    def run(self, seconds: float = 600.0) -> None:
        """Go on until the run has ended, at most so long."""
        until = self.now + seconds
        while not self.server.ended and self.now < until:
            self.turn()

    def until_round(self, number: int) -> None:
        until = self.now + 600
        while self.server.round < number and not self.server.ended and self.now < until:
            self.turn()


def hash_of(name: str) -> int:
    return sum(map(ord, name))


def make_job(sizes: tuple[int, ...], *, compress: str = "none", own: bool = False, author: str = "one") -> TrainingJob:
    blocks = () if own else tuple(BlockFile(f"{index:064x}", 100, size) for index, size in enumerate(sizes))
    return TrainingJob(
        run="r",
        author=author,
        started=1.7e9,
        graph=TrainingFile("a" * 64, 1),
        spec=TrainingFile("b" * 64, 1),
        batch=8,
        parameters=SIZE,
        shape=SHAPE,
        classes=NAMES,
        blocks=blocks,
        own=own,
        compress=compress,
        seed=5,
    )


def make_fleet(
    names: str = "abc",
    sizes: tuple[int, ...] = (100, 90, 80, 70),
    *,
    mode: TrainingMode = TrainingMode.SYNC,
    epochs: int = 2,
    compress: str = "none",
    own: dict[str, int] | None = None,
    clip: float = 0.0,
    noise: float = 0.0,
    mask: bool = False,
    **more: object,
) -> Fleet:
    job = structs.replace(make_job(sizes, compress=compress, own=own is not None), clip=clip, noise=noise, mask=mask)
    job = structs.replace(job, version=MASKED_VERSION if mask else job.version)
    optimizer = more.pop("optimizer", "momentum:lr=0.2,beta=0.5")
    settings = ServerSettings(TOPICS, job, epochs, str(optimizer), mode, workers=len(names), **more)  # type: ignore[arg-type]
    fleet = Fleet(settings, blocks_of(sizes))
    for name in names:
        fleet.add(name, own=(own or {}).get(name, 0))
    return fleet
