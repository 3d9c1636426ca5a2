"""A deployment of the shipped int8 model on a broker in memory that several threads share, with all its files."""

from __future__ import annotations

import dataclasses
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from har_edge.config.pipeline import Pipeline
from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.deployment import VERSION, Deployment, Generation, Placement, encode_deployment
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import encode_chunks
from har_edge.runtime.build import topics_of
from har_edge.runtime.node.worker import DesiredState, ReplicaId, Worker, WorkerContext

EPOCH = 1000
TIMEOUT_S = 20.0


class SharedBus:
    """A bus in memory for a thread of its own: one thread at a time is at the broker, and polls wait a moment."""

    def __init__(self, bus, lock):
        self._bus, self._lock = bus, lock

    def __getattr__(self, name):
        return getattr(self._bus, name)

    def subscribe(self, filters):
        with self._lock:
            self._bus.subscribe(filters)

    def publish(self, topic, payload, *, retain=False, on_outcome=None):
        with self._lock:
            self._bus.publish(topic, payload, retain=retain, on_outcome=on_outcome)

    def acknowledge(self, delivery):
        with self._lock:
            self._bus.acknowledge(delivery)

    def poll(self, timeout_s, most_bytes=None):
        with self._lock:
            came = self._bus.poll(0.0, most_bytes)
        if not came and timeout_s:
            time.sleep(min(timeout_s, 0.002))
        return came

    def close(self, *, forget=False):
        with self._lock:
            self._bus.close(forget=forget)


@dataclass
class MemoryPipeline:
    """Publishes plans and files, and starts workers of nodes."""

    pipeline: Pipeline
    folder: Path
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    lock: threading.RLock = field(default_factory=threading.RLock)
    workers: list[Worker] = field(default_factory=list)
    connected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.topics: Topics = topics_of(self.pipeline)
        self.bus = self.connect(Session("test"))

    def connect(self, session):
        self.connected.append(session.client_id)
        with self.lock:
            return SharedBus(self.broker.connect(session), self.lock)

    def generation(self, *nodes, epoch=EPOCH, standby=()):
        placements = tuple(Placement(stage, node, standby=tuple(standby)) for stage, node in enumerate(nodes))
        return Generation(epoch, self.pipeline.manifest, placements)

    def deployment(self, *generations, epoch=EPOCH, revision=1, **more):
        said = {"author": "author-1", "started": 1.0} | more
        return Deployment(
            version=VERSION,
            revision=revision,
            config=self.pipeline.config,
            epoch=epoch,
            files=dict(self.pipeline.task.files),
            generations=generations,
            **said,
        )

    def publish(self, topic, payload, *, retain=True):
        self.bus.publish(topic, payload, retain=retain)
        self.bus.poll(0.0)

    def plan(self, deployment):
        self.publish(self.topics.plan(), encode_deployment(deployment))
        return deployment

    def files(self):
        folder = self.pipeline.folder / self.pipeline.config.slices
        for entry in self.pipeline.manifest.slices:
            for one in encode_chunks(self.topics, (folder / entry.file).read_bytes()):
                self.publish(one.topic, one.payload)

    def context(self, node):
        return WorkerContext(self.topics, node, self.connect, Store(self.folder / node))

    def start_worker(self, node, deployment, stage, desired=DesiredState.HOLD, *, epoch=EPOCH, context=None):
        worker = Worker(context or self.context(node), ReplicaId(epoch, stage, 0), deployment, desired)
        worker.start()
        self.workers.append(worker)
        return worker

    def end(self):
        for worker in self.workers:
            worker.direct(DesiredState.LEAVE)
        for worker in self.workers:
            worker.join(TIMEOUT_S)
            assert not worker.alive

    def session(self, stage, *, epoch=EPOCH):
        """Return what the broker keeps of a stage's session, None where it has ended."""
        name = f"{self.topics.base}.{self.topics.pipeline}.{epoch}.stage-{stage}.0"
        with self.lock:
            return self.broker._accounts.get(name)


def until(done, what):
    deadline = time.monotonic() + TIMEOUT_S
    while not done():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.002)


def renamed(pipeline, name):
    """Return a pipeline under another name."""
    return dataclasses.replace(pipeline, config=msgspec.structs.replace(pipeline.config, name=name))
