"""A worker of split training on a node: a thread with a bus of its own that fetches, loads and computes."""

from __future__ import annotations

import logging
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from har_edge import __version__
from har_edge.errors import BrokerError, HarEdgeError
from har_edge.inference.training_step import TrainingStep
from har_edge.learning.job_thread import JobThread
from har_edge.learning.split.files import StageFolder
from har_edge.learning.split.step import median_time
from har_edge.learning.split.worker import REPORT_S, SplitProfile, SplitWorker
from har_edge.learning.worker.thread import FETCH_TIMEOUT_S, LearningContext
from har_edge.mqtt.bus import Delivery, Outgoing, PollableBus, Session, Will
from har_edge.protocol.split_training import SplitJob, SplitLevel, SplitReport, SplitState
from har_edge.protocol.topics import TrainingTopics
from har_edge.protocol.training import MAX_ROUND_BYTES, TrainingFile, encode_training
from har_edge.runtime.artifacts import ArtifactUnavailable, fetch, fetch_session
from har_edge.runtime.node.capabilities import read_memory
from har_edge.runtime.sender import drain
from har_edge.tflite.gradient.spec import TrainingSpec, decode_spec

_log = logging.getLogger(__name__)
_POLL_S = 0.05
_RECEIVE_MAX = 256
# The broker keeps what came for a worker so long while it has no connection.
_SESSION_S = 60
# Large states go out one part at a time between micro-batches.
_BULK_UNDER_WAY = 2
_PROBE_S = 0.5
# An operation that takes less is done in the thread of the bus: another one would cost as much.
_SHORT_S = 0.02


class SplitThread(JobThread):
    """One split training on this node; only its own thread touches its bus."""

    def __init__(self, context: LearningContext, job: SplitJob) -> None:
        super().__init__(job.run, f"split-{job.run}")
        self.job = job
        self._context, self._instance = context, secrets.token_hex(8)
        self._probe_s = 0.0
        # Loading is the first thing to be done, and takes long.
        self._computing, self._usual_s = ThreadPoolExecutor(1, f"compute-{job.run}"), 1.0

    def _run(self) -> None:
        super()._run()
        self._computing.shutdown(wait=False)

    def _train(self) -> None:
        self._instance = secrets.token_hex(8)  # after a failure another one: what it held is gone
        bus = self._context.connect(self._session())
        try:
            if not self._probe_s:
                self._probe_s = self._probe()
            profile = SplitProfile(read_memory(), self._probe_s, __version__)
            context = self._context
            folder = StageFolder(context.store, context.check, peak_memory, context.threads)
            worker = SplitWorker(self.job, context.node, self._instance, folder, context.topics, profile)
            bus.subscribe(worker.filters)
            self._work(bus, worker)
        except BrokerError:
            raise
        except (HarEdgeError, OSError) as error:
            lacks = error.sha256 if isinstance(error, ArtifactUnavailable) else ""
            bus.publish(self._topic, self._report(SplitState.LOST, str(error), lacks))
            drain(bus)
            raise
        finally:
            bus.close(forget=True)

    @property
    def _topic(self) -> str:
        return self._context.topics.training(self.job.run, SplitLevel.STAGE.value, self._context.node)

    def _session(self) -> Session:
        context, job = self._context, self.job
        return Session(
            f"{context.topics.base}.{context.topics.pipeline}.split.{job.run}.{context.node}",
            expiry_s=_SESSION_S,
            clean_start=True,
            transient=True,
            will=Will(self._topic, self._report(SplitState.LOST, "its connection broke"), retain=False),
            receive_max=_RECEIVE_MAX,
            max_packet_bytes=MAX_ROUND_BYTES + 4096,
        )

    def _report(self, state: SplitState, detail: str = "", lacks: str = "") -> bytes:
        return encode_training(
            SplitReport(
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

    def _probe(self) -> float:
        """Return the seconds of one run of the job's probe on this device."""
        self._fetch([self.job.probe, self.job.probe_spec])
        store = self._context.store
        graph = store.path(self.job.probe.sha256).read_bytes()
        self._context.check(graph, f"probe of training {self.job.run}")
        return time_probe(
            graph, decode_spec(store.path(self.job.probe_spec.sha256).read_bytes()), self._context.threads
        )

    def _work(self, bus: PollableBus, worker: SplitWorker) -> None:
        """Compute until told to stop."""
        reconnects = bus.traffic.reconnects
        while not self._stop.is_set():
            waits = _POLL_S if not worker.busy and not worker.bulk else 0.0
            for delivery in bus.poll(waits):
                bus.acknowledge(delivery)
                worker.handle(delivery)
            for reason in worker.reasons:
                _log.warning("training %s: dropped a message: %s", self.job.run, reason)
            worker.reasons.clear()
            if bus.traffic.reconnects != reconnects:
                worker.reconnects += bus.traffic.reconnects - reconnects
                reconnects = bus.traffic.reconnects
            outgoing = worker.tick(time.monotonic())
            if worker.wanted:
                outgoing += self._bring(worker)
            elif worker.busy:
                outgoing += self._compute(bus, worker)
                self._failures = 0
            while worker.bulk and bus.connected and bus.unsent < _BULK_UNDER_WAY:
                one = next(worker.bulk[0], None)
                if one is None:
                    worker.bulk.popleft()
                else:
                    outgoing.append(one)
                    break
            for one in outgoing:
                bus.publish(one.topic, one.payload)
        bus.publish(self._topic, self._report(SplitState.STOPPED))
        drain(bus)

    def _compute(self, bus: PollableBus, worker: SplitWorker) -> list[Outgoing]:
        """Do one thing, and move bytes meanwhile where it takes long; what comes is handled after it."""
        began = time.monotonic()
        if self._usual_s < _SHORT_S:
            sent = worker.step(time.monotonic)
        else:
            came, said = list[Delivery](), began
            beat = worker.report_again()
            running = self._computing.submit(worker.step, time.monotonic)
            while not running.done():
                for delivery in bus.poll(min(_POLL_S, self._usual_s / 10)):
                    bus.acknowledge(delivery)
                    came.append(delivery)
                if time.monotonic() - said >= REPORT_S:  # a long operation is no silence
                    said = time.monotonic()
                    bus.publish(beat.topic, beat.payload)
            sent = running.result()
            for delivery in came:
                worker.handle(delivery)
        self._usual_s = max(0.5 * self._usual_s, time.monotonic() - began)
        return sent

    def _bring(self, worker: SplitWorker) -> list[Outgoing]:
        """Fetch what the stages need; name the file that does not come."""
        try:
            self._fetch(worker.wanted)
        except ArtifactUnavailable as error:
            _log.warning("training %s: %s", self.job.run, error)
            return [worker.report(SplitState.READY, str(error), error.sha256)]
        return []

    def _fetch(self, wanted: list[TrainingFile]) -> None:
        context = self._context
        too_large = [one for one in wanted if one.size > context.max_bytes]
        if too_large:
            raise HarEdgeError(
                f"a file of {too_large[0].size} bytes was to be fetched; this node takes at most {context.max_bytes}"
            )
        missing = [one.sha256 for one in wanted if not context.store.has(one.sha256)]
        if not missing:
            return
        limit = max(one.size for one in wanted)
        context.store.keep_also(missing)
        bus = context.connect(fetch_session())
        try:
            topics = TrainingTopics(context.topics.base, context.topics.pipeline)
            fetch(bus, topics, missing, context.store, self._stop.is_set, limit, FETCH_TIMEOUT_S)
        finally:
            bus.close(forget=True)


def time_probe(graph: bytes, spec: TrainingSpec, threads: int = 1) -> float:
    """Return the median seconds of one run of a training graph with zeros."""
    step = TrainingStep(graph, spec, threads=threads)
    weights = {one.name: np.zeros(one.shape, np.float32) for one in spec.weights}
    x = {port.name: np.zeros(port.shape, port.dtype) for port in spec.x}
    assert spec.y is not None
    y = np.zeros(spec.y.shape, np.float32)
    return median_time(lambda: step.run(weights, x, y), time.monotonic, _PROBE_S)


def peak_memory() -> int:
    """Return the most memory that this process has used, in bytes; 0 where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
