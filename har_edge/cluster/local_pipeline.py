"""A whole pipeline on this machine: every stage and sensor a process of its own, as on several devices."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from har_edge.config.pipeline import Pipeline
from har_edge.errors import BrokerError, HarEdgeError, MessageError, NodeError
from har_edge.monitor.window_account import WindowAccount
from har_edge.mqtt.broker.watchdog import Watchdog
from har_edge.mqtt.bus import Bus
from har_edge.protocol.results import Result
from har_edge.protocol.status import UNREADABLE, NodeStatus, State, decode_status
from har_edge.protocol.topics import RETAINED, Kind
from har_edge.runtime.build import topics_of
from har_edge.runtime.sink import Sink

_log = logging.getLogger(__name__)
READY_TIMEOUT_S = 30.0
# After the sensors are done, how long no result may come before the rest counts as lost.
QUIET_S = 5.0
STOP_TIMEOUT_S = 10.0
# How a sensor ends that gave windows up.
EXIT_UNANSWERED = 1


@dataclass(frozen=True, slots=True)
class Arrival:
    """A result, and when it reached this process (seconds since 1970)."""

    result: Result
    arrived: float

    @property
    def latency_ms(self) -> float:
        """From the capture of the window's last sample to the result here; both clocks must agree."""
        return (self.arrived - self.result.captured) * 1000.0


@dataclass(slots=True)
class LocalPipeline:
    """Starts stages and sensors as processes, watches their results on `bus`, and stops them all on exit.

    `bus` is a connection of this process to the broker at `broker_url`. Results come from `results`, each window once.
    """

    pipeline: Pipeline
    bus: Bus
    broker_options: Sequence[str]
    sink: Sink = field(default_factory=Sink)
    account: WindowAccount = field(default_factory=lambda: WindowAccount(time.time()))
    statuses: dict[str, NodeStatus] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)
    resident_bytes: dict[str, int] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _watchdog: Watchdog | None = None

    def __enter__(self) -> LocalPipeline:
        topics = topics_of(self.pipeline)
        self.bus.subscribe([topics.result("+"), topics.status("+")])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start_stages(self) -> None:
        """Start one process a slice and wait until each says that it is ready."""
        names = []
        for index in range(len(self.pipeline.manifest.slices)):
            names.append(f"stage-{index}")
            self._start(names[-1], ["stage", "--index", str(index), "--forget"])
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not all(self._is_ready(name) for name in names):
            self._poll(0.05)
            self._check_alive()
            if time.monotonic() > deadline:
                missing = ", ".join(name for name in names if not self._is_ready(name))
                raise BrokerError(
                    f"{missing} did not become ready within {READY_TIMEOUT_S:.0f} s; see the output above"
                )

    def start_sensors(self, sources: Sequence[str], options: Sequence[str]) -> None:
        """Start one sensor process a source (`all` for one with all of them)."""
        for source in sources:
            self._start(f"sensor-{source}", ["sensor", "--source", source, "--name", f"sensor-{source}", *options])

    def results(self) -> Iterator[Arrival | None]:
        """Yield results as they come, None in pauses; end when every window is answered, or nothing comes any more."""
        quiet_since = time.monotonic()
        while True:
            running = self._sensors_running()  # asked first: what a sensor said before it ended is then in this poll
            arrivals = self._poll(0.05)
            yield from arrivals
            if arrivals or running:
                quiet_since = time.monotonic()
            if not arrivals:
                self._check_alive()
                if not running and self._is_over(time.monotonic() - quiet_since):
                    return
                yield None

    @property
    def windows_in(self) -> int:
        """How many windows the sensors say they sent; sources of one stream count once."""
        return max(self._sensor_counts("windows"), default=0)

    @property
    def answered(self) -> int:
        return self.sink.counters.windows

    def sum_of(self, counter: str, role: str) -> int:
        """Return a counter summed over the nodes of a role."""
        return sum(status.counters.get(counter, 0) for status in self.statuses.values() if status.role == role)

    def stop(self) -> None:
        """Measure memory, then end every process: politely, then not."""
        self.measure_memory()
        running = [process for process in self._processes.values() if process.poll() is None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None
        with contextlib.suppress(HarEdgeError):  # the farewells, with their last counters
            for _ in range(4):
                self._poll(0.05)
        self.forget_statuses()

    def forget_statuses(self) -> None:
        """Clear the retained statuses of the nodes started here."""
        topics = topics_of(self.pipeline)
        with contextlib.suppress(HarEdgeError):
            for name in self._processes:
                self.bus.publish(topics.status(name), b"", retain=Kind.STATUS in RETAINED)
            self.bus.poll(0.05)

    def measure_memory(self) -> None:
        """Note resident and peak memory of each running process, in bytes (Linux only)."""
        for name, process in self._processes.items():
            for into, key in ((self.resident_bytes, "VmRSS"), (self.peak_bytes, "VmHWM")):
                value = _memory_bytes(process.pid, key)
                if value:
                    into[name] = value

    def _start(self, name: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, "-m", "har_edge.cli.main", *arguments]
        command += ["--config", str(self.pipeline.folder), *self.broker_options]
        self._watchdog = self._watchdog or Watchdog()
        # A session of its own: Ctrl-C in the terminal is for us, who then stop the others in order.
        self._processes[name] = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self._watchdog.watch(self._processes[name].pid)

    def _is_ready(self, name: str) -> bool:
        status = self.statuses.get(name)
        return status is not None and status.state is State.READY

    def _sensors_running(self) -> bool:
        return any(name.startswith("sensor-") and process.poll() is None for name, process in self._processes.items())

    def _is_over(self, quiet_s: float) -> bool:
        """Tell whether every window is answered, by the last word of every sensor, or nothing came for too long."""
        sensors = [self.statuses.get(name) for name in self._processes if name.startswith("sensor-")]
        final = all(status is not None and status.state is State.STOPPED for status in sensors)
        return (final and self.answered >= self.windows_in) or quiet_s > QUIET_S

    def _sensor_counts(self, counter: str) -> list[int]:
        return [status.counters.get(counter, 0) for status in self.statuses.values() if status.role == "sensor"]

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            code = process.poll()
            if code == EXIT_UNANSWERED and name.startswith("sensor-"):
                continue  # it gave windows up, and its status says which
            if code is not None and (code != 0 or name.startswith("stage-")):
                raise NodeError(f"{name} ended with exit code {code}; its own message stands above")

    def _poll(self, timeout_s: float) -> list[Arrival]:
        topics, arrivals = topics_of(self.pipeline), []
        for delivery in self.bus.poll(timeout_s):
            arrived = time.time()
            self.bus.acknowledge(delivery)
            try:
                kind = topics.read(delivery.topic).kind
            except MessageError as error:
                _log.warning("dropped a message: %s", error)
                continue
            if kind is Kind.STATUS:
                self._note_status(delivery.payload)
            else:
                arrivals += [Arrival(result, arrived) for result in self.sink.handle(delivery)]
        for arrival in arrivals:
            self.account.take_result(arrival.result)
        return arrivals

    def _note_status(self, payload: bytes) -> None:
        if not payload:
            return
        try:
            status = decode_status(payload)
        except UNREADABLE as error:
            _log.warning("dropped a status: %s", error)
            return
        if status.node in self._processes:
            self.statuses[status.node] = status
            self.account.take_status(status, time.time())


def _memory_bytes(pid: int, key: str) -> int | None:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run did, in figures; bytes count whole MQTT packets, times are in milliseconds.

    `losses` names the lost windows by stream. Of `quantised` values, which entered a fixed range, so many `saturated`.
    """

    windows_in: int
    windows_out: int
    lost: int
    duplicated: int
    duplicates_dropped: int
    scored: int
    accuracy: float | None
    raw_bytes: int
    sensor_wire_bytes: int
    stage_wire_bytes: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    seconds: float
    resident_bytes: Mapping[str, int]
    peak_bytes: Mapping[str, int]
    losses: str = ""
    quantised: int = 0
    saturated: int = 0


def summarize(run: LocalPipeline, arrivals: Sequence[Arrival], seconds: float) -> Summary:
    """Return the figures of a run that has ended."""
    import numpy as np

    scored = [arrival.result for arrival in arrivals if arrival.result.truth is not None]
    correct = sum(result.label_id == result.truth for result in scored)
    latencies = [arrival.latency_ms for arrival in arrivals]
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist() if latencies else (None, None, None)
    run.account.close()
    distinct = len({(arrival.result.stream, arrival.result.seq) for arrival in arrivals})
    return Summary(
        windows_in=run.windows_in,
        windows_out=len(arrivals),
        lost=run.windows_in - distinct,
        duplicated=len(arrivals) - distinct,
        duplicates_dropped=run.sink.counters.duplicates,
        scored=len(scored),
        accuracy=correct / len(scored) if scored else None,
        raw_bytes=run.sum_of("raw_bytes", "sensor"),
        sensor_wire_bytes=run.sum_of("sent_bytes", "sensor"),
        stage_wire_bytes=run.sum_of("sent_bytes", "stage"),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        latency_p99_ms=p99,
        seconds=seconds,
        resident_bytes=dict(run.resident_bytes),
        peak_bytes=dict(run.peak_bytes),
        losses=run.account.sentence(time.time()),
        quantised=run.sum_of("quantised", "sensor") + run.sum_of("quantised", "stage"),
        saturated=run.sum_of("saturated", "sensor") + run.sum_of("saturated", "stage"),
    )
