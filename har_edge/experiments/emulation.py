"""Run a pipeline on the devices of a test bed, feed it as fast as it answers, and measure its steady pace."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from har_edge.codecs.reducer import Code
from har_edge.config.pipeline import Pipeline
from har_edge.emulation.testbed import Testbed
from har_edge.errors import BrokerError, NodeError
from har_edge.mqtt.address import read_address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import open_bus
from har_edge.protocol import wire
from har_edge.protocol.events import ResultsEvent, StatusEvent, decode
from har_edge.protocol.status import NodeStatus, State
from har_edge.protocol.topics import ALL_SOURCES, RETAINED, Kind, Topics
from har_edge.runtime.build import source_ids, topics_of
from har_edge.runtime.sink import Sink

READY_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
_POLL_S = 0.05
STAGE = (sys.executable, "-m", "har_edge.cli.main", "stage")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Pace:
    """How to measure: messages under way at once, seconds to warm up and to measure, and the fewest windows of each."""

    in_flight: int
    warm_s: float
    seconds: float
    windows: int


@dataclass(frozen=True, slots=True)
class Measured:
    """A steady pace: windows answered after the first of them, in so many seconds.

    `busy_s` holds the processor seconds that each stage took in that time; `latency_s` is the median from sending a
    window to its answer.
    """

    windows: int
    seconds: float
    busy_s: tuple[float, ...]
    latency_s: float

    @property
    def period_s(self) -> float:
        """Seconds between two windows."""
        return self.seconds / self.windows


@contextlib.contextmanager
def run_stages(testbed: Testbed, pipeline: Pipeline, devices: Sequence[str]) -> Iterator[Emulated]:
    """Run stage i on the i-th of these devices until the end of the block; all are ready when it begins."""
    topics = topics_of(pipeline)
    with testbed.inside():
        address = read_address(testbed.emulation.broker_url)
        bus = open_bus(address, Session(f"{pipeline.config.name}-driver", clean_start=True, receive_max=8192))
    bus.subscribe([topics.result("+"), topics.status("+")])
    running = Emulated(testbed, pipeline, bus, topics)
    try:
        for index, device in enumerate(devices):
            words = [*STAGE, "--index", str(index), "--forget"]
            words += ["--config", str(pipeline.folder.resolve())]
            running.stages.append(testbed.run(device, words, stdout=subprocess.DEVNULL))
        running.await_ready()
        yield running
    finally:
        running.stop()
        with testbed.inside():  # a lost connection is made anew
            bus.close(forget=True)


@dataclass(slots=True)
class Emulated:
    """Stages that run on a bed, and the connection that feeds them from its host side."""

    testbed: Testbed
    pipeline: Pipeline
    bus: Bus
    topics: Topics
    stages: list[subprocess.Popen[bytes]] = field(default_factory=list)
    sink: Sink = field(default_factory=Sink)
    _ready: set[str] = field(default_factory=set)
    _runs: int = 0
    _under_way: int = 0

    def await_ready(self) -> None:
        """Wait until every stage listens; raises NodeError for one that ends, BrokerError for one that takes long."""
        names = {f"stage-{index}" for index in range(len(self.stages))}
        deadline = time.monotonic() + READY_TIMEOUT_S
        while names - self._ready:
            self._poll()
            self._check()
            if time.monotonic() > deadline:
                missing = ", ".join(sorted(names - self._ready))
                raise BrokerError(
                    f"{missing} did not become ready within {READY_TIMEOUT_S:.0f} s; see the output above"
                )

    def measure(self, codes: Sequence[Mapping[str, Code]], pace: Pace) -> Measured:
        """Send windows, again and again the same, as fast as answers come; return the pace of the steady part.

        Raises NodeError when a stage ends, BrokerError when no answer comes any more.
        """
        self._runs += 1
        stream, done = f"run{self._runs}", 0
        sent: list[float] = []
        times: list[float] = []
        latencies: list[float] = []
        before: tuple[float, ...] | None = None
        began = heard = time.monotonic()
        while True:
            while len(sent) - done < pace.in_flight:
                self._send(stream, len(sent), codes[len(sent) % len(codes)])
                self._under_way += 1
                sent.append(time.monotonic())
            came = self._poll()
            self._under_way -= len(came)
            now = time.monotonic()
            for seq in came:
                done, heard = done + 1, now
                if before is not None:
                    times.append(now)
                    latencies.append(now - sent[seq])
            if came and before is None and done >= pace.windows and now - began >= pace.warm_s:
                before, times = self._busy(), [now]
            if came and len(times) > pace.windows and now - times[0] >= pace.seconds:
                busy = tuple(after - first for first, after in zip(before or (), self._busy(), strict=True))
                return Measured(len(times) - 1, now - times[0], busy, median(latencies))
            self._check()
            if now - heard > ANSWER_TIMEOUT_S:
                raise BrokerError(f"no answer for {ANSWER_TIMEOUT_S:.0f} s, {len(sent) - done} windows under way")

    def stop(self) -> None:
        """Let what is under way end, then the stages, politely and then not; forget what they said of themselves."""
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while self._under_way and time.monotonic() < deadline and all(one.poll() is None for one in self.stages):
            self._under_way -= len(self._poll())
        for process in self.stages:
            if process.poll() is None:
                process.terminate()
        for process in self.stages:
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for index in range(len(self.stages)):
            self.bus.publish(self.topics.status(f"stage-{index}"), b"", retain=Kind.STATUS in RETAINED)
        self._poll()

    def _send(self, stream: str, seq: int, codes: Mapping[str, Code]) -> None:
        message = wire.Message(stream, seq, self.pipeline.config.epoch, (time.time(),), codes)
        payload = wire.encode(message, self.pipeline.manifest.wire, source_ids(self.pipeline))
        self.bus.publish(self.topics.window(stream, ALL_SOURCES), payload)

    def _poll(self) -> list[int]:
        """Take what came; return the numbers of answered windows of this run."""
        answered: list[int] = []
        for delivery in self.bus.poll(_POLL_S):
            self.bus.acknowledge(delivery)
            event = decode(delivery, self.topics)
            match event:
                case ResultsEvent():
                    answered += [one.seq for one in self.sink.take(event) if one.stream == f"run{self._runs}"]
                case StatusEvent(status=NodeStatus(state=State.READY)):
                    self._ready.add(event.node)
        return answered

    def _check(self) -> None:
        self.testbed.check()
        for index, process in enumerate(self.stages):
            if process.poll() is not None:
                raise NodeError(
                    f"stage {index} ended with exit code {process.returncode}; its own message stands above"
                )

    def _busy(self) -> tuple[float, ...]:
        return tuple(processor_s(process.pid) for process in self.stages)


def processor_s(pid: int) -> float:
    """Return the processor seconds that a process has taken: proc(5), all its threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
