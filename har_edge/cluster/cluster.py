"""The processes of one pipeline, and what they publish: started, observed, killed, restarted and ended together."""

from __future__ import annotations

import contextlib
import logging
import secrets
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from har_edge.cluster.processes import Processes, Running
from har_edge.cluster.view import ClusterView
from har_edge.config.pipeline import Pipeline
from har_edge.errors import BrokerError, ConfigError, HarEdgeError, MessageError, NodeError
from har_edge.monitor.window_account import WindowAccount
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol.results import Result
from har_edge.protocol.status import NodeStatus, State
from har_edge.protocol.topics import COORDINATOR, RETAINED, Kind, Topics
from har_edge.runtime.build import topics_of
from har_edge.runtime.stage.neighbours import stage_name

_log = logging.getLogger(__name__)
POLL_S = 0.05
READY_TIMEOUT_S = 30.0
UNTIL_TIMEOUT_S = 60.0
# After the sensors are done, how long no result may come before the rest counts as lost.
QUIET_S = 5.0
# How a sensor ends that gave windows up.
EXIT_UNANSWERED = 1
# How long the broker keeps results for an observer that lost the connection, or while the broker is away.
SESSION_S = 3600
CACHE = "XDG_CACHE_HOME"


@dataclass(frozen=True, slots=True)
class Arrival:
    """A result, and when it reached this process (seconds since 1970)."""

    result: Result
    arrived: float

    @property
    def latency_ms(self) -> float:
        """From the capture of the window's last sample to the result here; both clocks must agree."""
        return (self.arrived - self.result.captured) * 1000.0


class Cluster:
    """A pipeline on a broker that runs: starts its nodes as processes and observes what they publish.

    `described` is what to call the broker. `folder` takes logs and the caches of nodes; without one, processes write to
    the standard error of this one.
    `connection` are the options by which processes find the broker, `bus` the connection of this process to it. With
    `deployed`, a coordinator says which node runs which stage; without, each stage is a process of its own.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        address: Address,
        *,
        described: str = "",
        folder: Path | None = None,
        deployed: bool = False,
        client: ClientLibrary = ClientLibrary.AUTO,
        connection: Sequence[str] = (),
        bus: Bus | None = None,
        processes: Processes | None = None,
        view: ClusterView | None = None,
    ) -> None:
        self.pipeline, self.address, self.folder, self.deployed = pipeline, address, folder, deployed
        self.described = described or f"the one at {address.url}"
        self.topics: Topics = topics_of(pipeline)
        self.processes = processes or Processes()
        self.view = view or ClusterView(self.topics)
        self.account = WindowAccount(time.time())
        self.peak_bytes: dict[str, int] = {}
        self.resident_bytes: dict[str, int] = {}
        # Called at each step: keeps load coming, in experiments.
        self.steps: list[Callable[[], None]] = []
        self._connection = [*(connection or ("--broker", address.url, "--client", client.value))]
        name = f"{self.topics.base}-{self.topics.pipeline}-observe-{secrets.token_hex(4)}"
        self.bus = bus or open_bus(address, Session(name, expiry_s=SESSION_S, receive_max=8192), client)
        self._owns_bus = bus is None
        self.bus.subscribe(self.view.filters)

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def statuses(self) -> dict[str, NodeStatus]:
        """The last status of each node, by its name."""
        return self.view.statuses

    # Starting and ending processes.

    def start(self, command: str, *options: str, name: str = "", **variables: str) -> Running:
        """Start a command of `har-edge` on this pipeline, under a name that is by default made of the command.

        Options that say which pipeline or which broker stand in the place of those of this cluster.
        """
        name = name or f"{command}-{len(self.processes.running)}"
        words = [command, *options]
        named = self._connection if "--broker" not in words else []
        if {"--config", "--pipeline"} & {*words}:
            where = []
        elif self.deployed:
            where = ["--base", self.topics.base, "--pipeline", self.topics.pipeline]
        else:
            where = ["--config", str(self.pipeline.folder.resolve())]
        log = None if self.folder is None else self.folder / f"{name}.log"
        own = {"PYTHONUNBUFFERED": "1", **variables}
        if command == "node" and self.folder is not None:
            own[CACHE] = str(self.cache_folder(name))
        return self.processes.start(name, [*words, *where, *named], log=log, variables=own)

    def cache_folder(self, name: str) -> Path:
        """Return the folder that stands for ~/.cache of a node; ConfigError for a cluster without a folder."""
        if self.folder is None:
            raise ConfigError(f"node {name} has no cache of its own: expected a cluster with a folder")
        return self.folder / "caches" / name

    def start_stages(self, *options: str, turns: Sequence[int] = (), timeout_s: float = READY_TIMEOUT_S) -> None:
        """Start one process a slice, or as many as take `turns` at each, and wait until each says that it is ready."""
        names = []
        for index, count in enumerate(turns or (1,) * len(self.pipeline.manifest.slices)):
            for turn in range(count):
                own = ["--turn", str(turn)] if count > 1 else []
                names.append(stage_name(index, turn))
                self.start("stage", "--index", str(index), *own, "--forget", *options, name=names[-1])
        self.wait_ready(names, timeout_s)

    def start_coordinator(self, model: Path, stages: int, *options: str) -> Running:
        """Start the coordinator, which deploys a model in so many stages on the nodes."""
        return self.start("coordinator", "--model", str(model), "--stages", str(stages), *options, name=COORDINATOR)

    def start_node(self, name: str, *options: str) -> Running:
        """Start a device's node."""
        return self.start("node", "--name", name, *options, name=name)

    def start_sensors(self, sources: Sequence[str], options: Sequence[str]) -> None:
        """Start one sensor process a source (`all` for one with all of them)."""
        for source in sources:
            name = f"sensor-{source}"
            self.start("sensor", "--source", source, "--name", name, *options, name=name)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal that ends a process, SIGKILL by default, and wait until it has gone."""
        self.processes.kill(name, number)

    def restart(self, name: str) -> Running:
        """Start the command of a name again; its process is ended first, if it still runs."""
        self.view.forget(name)
        return self.processes.restart(name)

    def logs(self, name: str) -> str:
        """Return what a process has written so far."""
        return self.processes.find(name).log.read_text(errors="replace")

    def stop(self) -> None:
        """Measure memory, end every process, politely first, and clear what they retained at the broker."""
        self.measure_memory()
        self.processes.stop()
        with contextlib.suppress(HarEdgeError):  # the farewells, with their last counters
            for _ in range(4):
                self.poll()
        self.forget_statuses()

    def close(self) -> None:
        """End every process and disconnect; closing twice does nothing more."""
        self.stop()
        if self._owns_bus:
            with contextlib.suppress(HarEdgeError):
                self.bus.close(forget=True)

    def forget_statuses(self) -> None:
        """Clear the retained statuses of the nodes started here."""
        with contextlib.suppress(HarEdgeError):
            for name in self.processes.running:
                self.bus.publish(self.topics.status(name), b"", retain=Kind.STATUS in RETAINED)
            self.bus.poll(POLL_S)

    def measure_memory(self) -> None:
        """Note resident and peak memory of each running process, in bytes (Linux only)."""
        for name in self.processes.running:
            for into, key in ((self.resident_bytes, "VmRSS"), (self.peak_bytes, "VmHWM")):
                value = self.processes.memory_bytes(name, key)
                if value:
                    into[name] = value

    # Observing.

    def poll(self, timeout_s: float = POLL_S) -> list[Arrival]:
        """Take what has come and return the new results."""
        arrivals: list[Arrival] = []
        for delivery in self.bus.poll(timeout_s):
            self.bus.acknowledge(delivery)
            try:
                came = self.view.handle(delivery)
                topic = self.topics.read(delivery.topic)
            except MessageError as error:
                _log.warning("dropped a message: %s", error)
                continue
            arrivals += [Arrival(result, time.time()) for result in came]
            for result in came:
                self.account.take_result(result)
            if topic.kind is Kind.STATUS and (status := self._own_statuses().get(topic.levels[0])):
                self.account.take_status(status, time.time())
        return arrivals

    def step(self) -> list[Arrival]:
        """Take what has come, do what is done at each step, and return the new results."""
        arrivals = self.poll()
        for act in self.steps:
            act()
        return arrivals

    def run_for(self, seconds: float) -> None:
        """Go on for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.step()

    def until(self, done: Callable[[], object], what: str, timeout_s: float = UNTIL_TIMEOUT_S) -> None:
        """Go on until something holds; raises NodeError, with the end of every log, when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                raise NodeError(f"{what} after {timeout_s:.0f} s\n{self.processes.last_lines()}")
            self.step()

    def wait_ready(self, names: Sequence[str], timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait until each of these nodes says that it is ready.

        Raises NodeError for one whose process ends, BrokerError when it takes too long.
        """
        deadline = time.monotonic() + timeout_s
        while missing := [name for name in names if self.view.state(name) is not State.READY]:
            self.step()
            self.check_alive()
            if time.monotonic() > deadline:
                where = "see the output above" if self.folder is None else self.processes.last_lines()
                raise BrokerError(f"{', '.join(missing)} did not become ready within {timeout_s:.0f} s; {where}")

    def check_alive(self) -> None:
        """Raise NodeError where a stage has ended, or a sensor with an error of another kind than windows given up."""
        for name, one in self.processes.running.items():
            code = one.process.poll()
            if code == EXIT_UNANSWERED and name.startswith("sensor-"):
                continue  # it gave windows up, and its status says which
            if code is not None and (code != 0 or name.startswith("stage-")):
                said = "its own message stands above" if self.folder is None else f"its log ends:\n{one.last_lines()}"
                raise NodeError(f"{name} ended with exit code {code}; {said}")

    def arrivals(self) -> Iterator[Arrival | None]:
        """Yield results as they come, None in pauses; end when every window is answered, or nothing comes any more."""
        quiet_since = time.monotonic()
        while True:
            running = self._sensors_running()  # asked first: what a sensor said before it ended is then in this poll
            arrivals = self.step()
            yield from arrivals
            if arrivals or running:
                quiet_since = time.monotonic()
            if not arrivals:
                self.check_alive()
                if not running and self._is_over(time.monotonic() - quiet_since):
                    return
                yield None

    @property
    def windows_in(self) -> int:
        """How many windows the sensors say they sent; sources of one stream count once."""
        sensors = (status for status in self._own_statuses().values() if status.role == "sensor")
        return max((status.counters.get("windows", 0) for status in sensors), default=0)

    @property
    def answered(self) -> int:
        """How many windows have been answered, each once."""
        return self.view.sink.counters.windows

    def _own_statuses(self) -> dict[str, NodeStatus]:
        """Return the last statuses of the nodes that were started here."""
        statuses = self.statuses
        return {name: statuses[name] for name in self.processes.running if name in statuses}

    def _sensors_running(self) -> bool:
        return any(name.startswith("sensor-") for name in self.processes.alive())

    def _is_over(self, quiet_s: float) -> bool:
        """Return whether every window is answered, by the last word of every sensor, or nothing came for too long."""
        sensors = [self.view.state(name) for name in self.processes.running if name.startswith("sensor-")]
        final = all(state is State.STOPPED for state in sensors)
        return (final and self.answered >= self.windows_in) or quiet_s > QUIET_S
