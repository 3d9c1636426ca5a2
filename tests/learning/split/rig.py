"""A split training on a broker in memory and a clock that a test moves: the command, and workers that fail as told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.optimizers.optimizers import make_optimizer
from har_edge.learning.preparation import prepare_model
from har_edge.learning.published_files import PublishedFiles
from har_edge.learning.split.batches import BatchOrder
from har_edge.learning.split.files import ModelStages, StageFolder
from har_edge.learning.split.server import SplitServer
from har_edge.learning.split.server_settings import SplitPlanner, SplitSettings
from har_edge.learning.split.state import WholeState
from har_edge.learning.split.worker import SplitProfile, SplitWorker
from har_edge.learning.updates.vectors import flatten, unflatten
from har_edge.mqtt.bus import Outgoing, Session, Will
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.planner.training_devices import SplitDevice
from har_edge.protocol.split_training import SplitJob, SplitStage, SplitState, SplitTrainingPlan
from har_edge.protocol.topics import Topics, TrainingTopics
from har_edge.protocol.training import TrainingFile
from har_edge.runtime.artifact_store import Store
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.weights import read_weights
from har_edge.tflite.model import Model

TOPICS = Topics("har", "har")
TICK_S, OPERATION_S = 0.05, 0.01
JOB = SplitJob(
    run="r", author="command", started=1.7e9, probe=TrainingFile("a" * 64, 1), probe_spec=TrainingFile("b" * 64, 1)
)


def even(
    model: Model, cuts: tuple[int, ...], micro_batch: int, micro_batches: int, *, keep: bool = False
) -> SplitPlanner:
    """Return a planner that gives each stage between these cuts to a device, the last ones by what is left."""

    def plan(devices: tuple[SplitDevice, ...]) -> SplitTrainingPlan:
        bounds = [0, *cuts, len(model.main.operators)]
        stages = [
            SplitStage(start, stop, (devices[min(number, len(devices) - 1)].name,), keep, len(bounds) - 1 - number)
            for number, (start, stop) in enumerate(pairwise(bounds))
        ]
        return SplitTrainingPlan(tuple(stages), micro_batch, micro_batches)

    return plan


@dataclass
class SplitNode:
    """A worker with a bus; `hung` neither computes nor sends, but stays connected; `each` changes what it sends."""

    worker: SplitWorker
    bus: MemoryBus
    hung: bool = False
    operations: int = 4
    each: Callable[[Outgoing], Outgoing | None] = lambda one: one


@dataclass
class SplitRig:
    """The command and its workers."""

    model: Model
    data: Dataset
    settings: SplitSettings
    folder: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    now: float = 0.0
    nodes: dict[str, SplitNode] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    checkpoints: list[WholeState] = field(default_factory=list)
    started: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.start_server(WholeState(0, read_weights(self.model)))

    def start_server(self, whole: WholeState) -> None:
        self.store = Store(self.folder / "command")
        files = PublishedFiles(TrainingTopics("har", "har"), lambda sha256: b"")
        writer = ModelStages(self.model, Loss.CROSS_ENTROPY, self.store, files)
        self.server = SplitServer(self.settings, writer, whole, self.data, self.now)
        self.bus = self.broker.connect(Session("command", clean_start=True))
        self.bus.subscribe(self.server.filters)
        self.publish(self.bus, [self.server.job_message()])

    def add(self, name: str, memory_bytes: int = 0) -> SplitNode:
        self.started[name] += 1
        folder = StageFolder(Store(self.folder / name), lambda content, what: None, lambda: 0)
        profile = SplitProfile(memory_bytes, 0.1, "1")
        worker = SplitWorker(JOB, name, str(self.started[name]), folder, TOPICS, profile)
        lost = worker.report(SplitState.LOST)
        will = Will(lost.topic, lost.payload, retain=False)
        bus = self.broker.connect(Session(f"worker-{name}", clean_start=True, will=will))
        bus.subscribe(worker.filters)
        self.nodes[name] = SplitNode(worker, bus)
        return self.nodes[name]

    def kill(self, name: str) -> None:
        self.nodes.pop(name).bus.crash()

    def leave(self, name: str) -> None:
        node = self.nodes.pop(name)
        self.publish(node.bus, [node.worker.report(SplitState.STOPPED)])
        node.bus.poll(0)
        node.bus.close()

    @staticmethod
    def publish(bus: MemoryBus, messages: list[Outgoing]) -> None:
        for one in messages:
            bus.publish(one.topic, one.payload, retain=one.retain)

    def turn(self) -> None:
        """Let TICK_S pass."""
        self.now += TICK_S
        for node in list(self.nodes.values()):
            self._turn(node)
        for delivery in self.bus.poll(0):
            self.bus.acknowledge(delivery)
            self.publish(self.bus, self.server.handle(delivery, self.now))
        self.publish(self.bus, self.server.tick(self.now))
        self.bus.poll(0, 0)
        self.lines += self.server.lines
        self.server.lines.clear()
        self.checkpoints += self.server.checkpoints
        self.server.checkpoints.clear()

    def _turn(self, node: SplitNode) -> None:
        if node.hung:
            return
        for delivery in node.bus.poll(0):
            node.bus.acknowledge(delivery)
            node.worker.handle(delivery)
        sent = node.worker.tick(self.now)
        for file in node.worker.wanted:
            if self.store.has(file.sha256):
                node.worker._means.put(file.sha256, self.store.path(file.sha256).read_bytes())
        for _ in range(node.operations):
            times = iter((self.now, self.now + OPERATION_S))
            sent += node.worker.step(lambda times=times: next(times))  # type: ignore[misc]
        while node.worker.bulk:
            sent += list(node.worker.bulk.popleft())
        assert node.worker.reasons == [], node.worker.reasons
        self.publish(node.bus, [one for one in map(node.each, sent) if one is not None])
        node.bus.poll(0, 0)

    def run(self, seconds: float = 600.0) -> None:
        """Go on until the run has ended, at most so long."""
        until = self.now + seconds
        while not self.server.ended and self.now < until:
            self.turn()

    def until(self, reached: Callable[[], bool], seconds: float = 120.0) -> None:
        until = self.now + seconds
        while not reached():
            assert self.now < until and not self.server.ended, (self.lines, self.server.phase)
            self.turn()


def make_rig(
    folder: Path,
    model: Model,
    data: Dataset,
    *,
    names: str = "abc",
    cuts: tuple[int, ...] = (1, 3),
    micro_batch: int = 4,
    micro_batches: int = 4,
    keep: bool = False,
    planner: SplitPlanner | None = None,
    batch: int | None = None,
    epochs: int = 1,
    optimizer: str = "momentum:lr=0.1,beta=0.9",
    **more: object,
) -> SplitRig:
    order = BatchOrder(len(data), batch or micro_batch * micro_batches, 5)
    planner = planner or even(model, cuts, micro_batch, micro_batches, keep=keep)
    settings = SplitSettings(
        TOPICS,
        JOB,
        order,
        epochs,
        optimizer,
        planner,
        **{"workers": len(names), **more},  # type: ignore[arg-type]
    )
    rig = SplitRig(model, data, settings, folder)
    for name in names:
        rig.add(name)
    return rig


def train_alone(
    model: Model, data: Dataset, order: BatchOrder, steps: int, optimizer: str
) -> tuple[dict[str, np.ndarray], list[float]]:
    """Return the weights after some steps on one device, and the mean loss of each step."""
    trainable = prepare_model(model, order.batch)
    step, weights = TrainingStep(trainable.graph, trainable.spec), trainable.weights.copy()
    change, losses = make_optimizer(optimizer, weights.size), []
    for number in range(steps):
        chosen = order.indices(number)
        result = step.run(unflatten(weights, trainable.spec.weights), data.values(chosen), data.one_hot(chosen))
        losses.append(result.loss_sum / len(chosen))
        change.step(weights, flatten(result.gradients, trainable.spec.weights) / np.float32(len(chosen)))
    return unflatten(weights, trainable.spec.weights), losses
