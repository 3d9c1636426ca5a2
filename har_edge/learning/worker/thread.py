"""A worker on a node: a thread with a bus of its own that fetches what a job names, and computes until it ends."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from har_edge import __version__
from har_edge.errors import BrokerError, HarEdgeError
from har_edge.extras import require
from har_edge.inference.load_check import LoadCheck
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.data.datasets import Dataset
from har_edge.learning.job_thread import JobThread
from har_edge.learning.privacy import protection_of
from har_edge.learning.quantization.tensor_ranges import RangeMeter
from har_edge.learning.worker.graph_learner import GraphLearner, most_block_bytes
from har_edge.learning.worker.worker import TrainingWorker, WorkerProfile, filters_of
from har_edge.mqtt.bus import PollableBus, Session, Will
from har_edge.protocol.topics import Topics, TrainingTopics
from har_edge.protocol.training import (
    MAX_ROUND_BYTES,
    TrainingFile,
    TrainingJob,
    WorkerReport,
    WorkerState,
    encode_training,
)
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import ArtifactUnavailable, fetch, fetch_session
from har_edge.runtime.sender import drain
from har_edge.tflite.gradient.spec import decode_spec
from har_edge.units import plural

_log = logging.getLogger(__name__)
_POLL_S = 0.1
FETCH_TIMEOUT_S = 30.0
# An update of several parts, and the rounds that come meanwhile.
_RECEIVE_MAX = 64


@dataclass(frozen=True, slots=True)
class LearningContext:
    """The objects that all trainings of a node share; `own` reads the node's own samples for a job, where it has any.

    `max_bytes` bounds a file that passes through memory; `check` runs a training graph in a process of its own first.
    `say` gets a line for people.
    """

    topics: Topics
    node: str
    connect: Callable[[Session], PollableBus]
    store: Store
    check: LoadCheck
    max_bytes: int
    threads: int = 1
    own: Callable[[TrainingJob], Dataset] | None = None
    say: Callable[[str], None] = _log.info


class TrainingThread(JobThread):
    """One training on this node; only its own thread touches its bus."""

    def __init__(self, context: LearningContext, job: TrainingJob) -> None:
        super().__init__(job.run, f"training-{job.run}")
        self.job = job
        self._context, self._instance = context, secrets.token_hex(8)
        self._meter: RangeMeter | None = None

    def _train(self) -> None:
        bus = self._context.connect(self._session())
        try:
            worker = self._prepare(bus)
            if worker is not None:
                self._work(bus, worker)
        except BrokerError:
            raise
        except (HarEdgeError, OSError) as error:
            lacks = error.sha256 if isinstance(error, ArtifactUnavailable) else ""
            self._say(bus, WorkerState.FAILED, str(error), lacks)
            raise
        finally:
            bus.close(forget=True)

    def _session(self) -> Session:
        context, job = self._context, self.job
        lost = self._report(WorkerState.LOST, "its connection broke")
        topic = context.topics.training(job.run, "worker", context.node)
        return Session(
            f"{context.topics.base}.{context.topics.pipeline}.train.{job.run}.{context.node}",
            clean_start=True,
            will=Will(topic, lost, retain=False),
            receive_max=_RECEIVE_MAX,
            max_packet_bytes=MAX_ROUND_BYTES + 4096,
        )

    def _report(self, state: WorkerState, detail: str = "", lacks: str = "") -> bytes:
        return encode_training(
            WorkerReport(
                run=self.job.run,
                author=self.job.author,
                worker=self._context.node,
                instance=self._instance,
                state=state,
                detail=detail[:400],
                software=__version__,
                lacks=lacks,
            )
        )

    def _say(self, bus: PollableBus, state: WorkerState, detail: str = "", lacks: str = "") -> None:
        bus.publish(
            self._context.topics.training(self.job.run, "worker", self._context.node),
            self._report(state, detail, lacks),
        )
        drain(bus)

    def _prepare(self, bus: PollableBus) -> TrainingWorker | None:
        """Fetch and load the training graph, and read the node's own samples; None when told to end before."""
        context, job = self._context, self.job
        topics = context.topics
        if job.mask:
            require("masked sums (--secure)", "cryptography")
        bus.subscribe(filters_of(job, topics, context.node))
        bus.subscribe([topics.training(job.run, "calibrate")])
        own = None
        if job.own:
            if context.own is None:
                raise HarEdgeError(
                    "the job trains on the nodes' own samples, and this node has none; start it with --data"
                )
            own = context.own(job)
        self._fetch([job.graph.sha256, job.spec.sha256])
        if self._stop.is_set():
            return None
        spec = decode_spec(context.store.path(job.spec.sha256).read_bytes())
        graph = context.store.path(job.graph.sha256).read_bytes()
        context.check(graph, f"training graph of {job.run}")
        learner = GraphLearner(TrainingStep(graph, spec, threads=context.threads), job, context.store, own)
        self._meter = RangeMeter(job, context.node, topics, learner, learner.layout, self._bring_file)
        profile = WorkerProfile(own.shape if own else job.shape, own.classes if own else job.classes, __version__)
        protect = protection_of(job, np.random.default_rng())  # not by the job's seed, which the server knows
        return TrainingWorker(job, context.node, self._instance, learner, topics, profile, protect)

    def _work(self, bus: PollableBus, worker: TrainingWorker) -> None:
        """Compute until told to stop."""
        reconnects, meter = bus.traffic.reconnects, self._meter
        assert meter is not None
        while not self._stop.is_set():
            answers = []
            for delivery in bus.poll(0.0 if worker.busy or meter.busy else _POLL_S):
                bus.acknowledge(delivery)
                for one in worker.handle(delivery):  # at once: others wait for it
                    bus.publish(one.topic, one.payload)
                answers += meter.handle(delivery)
            for reason in worker.reasons:
                _log.warning("training %s: dropped a message: %s", self.job.run, reason)
            worker.reasons.clear()
            outgoing = worker.tick(time.monotonic())
            if bus.connected and bus.traffic.reconnects != reconnects:
                reconnects = bus.traffic.reconnects
                outgoing = [worker.report(WorkerState.READY)]  # something may have been lost meanwhile
            if worker.wanted:
                self._bring(bus, worker)
            elif worker.busy:
                outgoing += worker.step(time.monotonic)
                self._failures = 0
            for one in (*outgoing, *answers, *meter.step()):
                bus.publish(one.topic, one.payload)
        self._say(bus, WorkerState.STOPPED)
        done = f"{plural(worker.samples, 'sample')} computed here in {plural(worker.tasks, 'round')}"
        self._context.say(f"training {self.job.run}: ended, {done}")

    def _bring(self, bus: PollableBus, worker: TrainingWorker) -> None:
        """Fetch the blocks that a task needs; name the one that does not come."""
        try:
            self._fetch([self.job.blocks[block].sha256 for block in worker.wanted])
        except ArtifactUnavailable as error:
            _log.warning("training %s: %s", self.job.run, error)
            one = worker.report(WorkerState.READY, str(error), error.sha256)
            bus.publish(one.topic, one.payload)

    def _bring_file(self, file: TrainingFile) -> bytes:
        """Fetch a file that is to be run, and run it in a process of its own first."""
        context = self._context
        self._fetch([file.sha256], file.size)
        content = context.store.path(file.sha256).read_bytes()
        context.check(content, f"model of {self.job.run}")
        return content

    def _fetch(self, wanted: list[str], size: int | None = None) -> None:
        context = self._context
        limit = min(context.max_bytes, most_block_bytes(self.job) if size is None else size)
        missing = [sha256 for sha256 in wanted if not context.store.has(sha256)]
        if not missing:
            return
        topics = TrainingTopics(context.topics.base, context.topics.pipeline)
        bus = context.connect(fetch_session())
        try:
            fetch(bus, topics, missing, context.store, self._stop.is_set, limit, FETCH_TIMEOUT_S)
        finally:
            bus.close(forget=True)
