"""Run a pipeline on the devices of a test bed, feed it as fast as it answers, and measure its steady pace."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from har_edge.cluster.cluster import Cluster
from har_edge.cluster.processes import Processes
from har_edge.codecs.reducer import Code
from har_edge.config.pipeline import Pipeline
from har_edge.emulation.testbed import Testbed
from har_edge.errors import BrokerError
from har_edge.experiments.environment import spawn_on
from har_edge.mqtt.address import read_address
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import open_bus
from har_edge.runtime.build import build_sensor
from har_edge.runtime.sensor.sensor import Sensor
from har_edge.runtime.stage.neighbours import stage_name
from har_edge.timing import KEEPALIVE_S

READY_TIMEOUT_S = 300.0
ANSWER_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class MeasurementLimits:
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
def run_stages(
    testbed: Testbed,
    pipeline: Pipeline,
    devices: Sequence[str],
    beside: list[Emulated] | None = None,
    turns: Sequence[int] = (),
) -> Iterator[Emulated]:
    """Run stage i on the i-th of these devices until the end of the block; all are ready when it begins.

    With `turns`, so many devices take turns at each stage, in this order.

    `beside` are pipelines that take turns with this one, which is added: the connection of each is kept alive while
    another is measured. Raises NodeError for a stage that ends, BrokerError for one that is not ready in time.
    """
    counts = turns or (1,) * len(devices)
    names = [stage_name(index, turn) for index, count in enumerate(counts) for turn in range(count)]
    places = dict(zip(names, devices, strict=True))
    processes = Processes(spawn_on(testbed, places), patience_s=STOP_TIMEOUT_S)
    address = read_address(testbed.emulation.broker_url)
    with testbed.inside():
        session = Session(f"{pipeline.config.name}-driver", clean_start=True, receive_max=8192)
        bus = open_bus(address, session)
    cluster = Cluster(pipeline, address, bus=bus, processes=processes)
    cluster.steps.append(testbed.check)
    running = Emulated(cluster)
    if beside is not None:
        beside.append(running)
        cluster.steps.append(lambda: keep_alive([one for one in beside if one is not running]))
    try:
        cluster.start_stages(turns=turns, timeout_s=READY_TIMEOUT_S)
        yield running
    finally:
        running.stop()
        with testbed.inside():  # a lost connection is made anew
            bus.close(forget=True)


def keep_alive(idle: Sequence[Emulated]) -> None:
    """Poll connections of pipelines that wait for their turn, now and then: a broker drops a client that is silent."""
    now = time.monotonic()
    for one in idle:
        if now - one.polled_at > KEEPALIVE_S / 4:
            one.polled_at = now
            one.cluster.poll(0.0)


@dataclass(slots=True)
class Emulated:
    """Stages that run on a test bed, and the connection that feeds them from its host side."""

    cluster: Cluster
    polled_at: float = 0.0
    _sensor: Sensor = field(init=False)
    _runs: int = 0
    _under_way: int = 0

    def __post_init__(self) -> None:
        pipeline = self.cluster.pipeline
        self._sensor = build_sensor(pipeline, list(pipeline.task.inputs), combine=True)

    def measure(self, codes: Sequence[Mapping[str, Code]], pace: MeasurementLimits) -> Measured:
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
            self.cluster.check_alive()
            if now - heard > ANSWER_TIMEOUT_S:
                raise BrokerError(f"no answer for {ANSWER_TIMEOUT_S:.0f} s, {len(sent) - done} windows under way")

    def ask(self, codes: Mapping[str, Code]) -> float:
        """Send one window while nothing else is under way; return the seconds until its answer is here.

        Raises NodeError when a stage ends, BrokerError when no answer comes.
        """
        self.settle()
        self._runs += 1
        began = time.monotonic()
        self._send(f"run{self._runs}", 0, codes)
        while not self._poll():
            self.cluster.check_alive()
            if time.monotonic() - began > ANSWER_TIMEOUT_S:
                name = self.cluster.pipeline.config.name
                raise BrokerError(f"no answer to one window of {name} for {ANSWER_TIMEOUT_S:.0f} s")
        return time.monotonic() - began

    def settle(self, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        """Wait until nothing is under way, or until a stage has ended or the time is over."""
        deadline = time.monotonic() + timeout_s
        running = self.cluster.processes.running
        while self._under_way and time.monotonic() < deadline and len(self.cluster.processes.alive()) == len(running):
            self._under_way -= len(self._poll())

    def stop(self) -> None:
        """Let what is under way end, then the stages."""
        self.settle(STOP_TIMEOUT_S)
        self.cluster.stop()

    def _send(self, stream: str, seq: int, codes: Mapping[str, Code]) -> None:
        for outgoing in self._sensor.write(stream, seq, (time.time(),), codes):
            self.cluster.bus.publish(outgoing.topic, outgoing.payload)

    def _poll(self) -> list[int]:
        """Take what came; return the numbers of answered windows of this run."""
        arrivals = self.cluster.step()
        return [one.result.seq for one in arrivals if one.result.stream == f"run{self._runs}"]

    def _busy(self) -> tuple[float, ...]:
        return tuple(processor_s(one.process.pid) for one in self.cluster.processes.running.values())


def processor_s(pid: int) -> float:
    """Return the processor seconds that a process has taken: proc(5), all its threads, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS
