"""Real processes of one pipeline, and every result and status that they publish."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from har_edge.cluster.cluster import Arrival, Cluster
from har_edge.cluster.processes import Processes, Running
from har_edge.config.pipeline import load_pipeline
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol.results import Result
from har_edge.protocol.status import State
from har_edge.runtime.sink import Sink

TIMEOUT_S = 60.0
_numbers = itertools.count()
# A machine without recordings.
NO_DATA = {"HAR_EDGE_DATA": ""}


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process on a machine without recordings."""
    return {**os.environ, **NO_DATA, "PYTHONUNBUFFERED": "1", **changes}


class Fleet(Cluster):
    """A copy of slices under a name of its own, its processes in `cwd`, and the answers to every window."""

    def __init__(self, slices: Path, cwd: Path, address: Address) -> None:
        self.cwd, self.slices = cwd, cwd / "pipeline"
        shutil.copytree(slices, self.slices)
        file = self.slices / "pipeline.toml"
        self.name = f"t{os.getpid()}-{next(_numbers)}"
        file.write_text(file.read_text().replace('name = "har"', f'name = "{self.name}"'))
        self.results: dict[tuple[str, int], Result] = {}
        self.doubled = 0
        super().__init__(
            load_pipeline(self.slices),
            address,
            folder=cwd,
            connection=["--broker", address.url],
            bus=open_bus(address, Session(f"{self.name}-test", expiry_s=600), ClientLibrary.PAHO),
            processes=Processes(variables=NO_DATA, patience_s=0.0, folder=cwd),
        )
        self.until(lambda: self.bus.connected, "no connection")

    @property
    def running(self) -> list[Running]:
        """The processes in the order in which they were started."""
        return list(self.processes.running.values())

    @property
    def sink(self) -> Sink:
        return self.view.sink

    def close(self) -> None:
        self.processes.stop()
        self.bus.close(forget=True)

    def open(self, session: Session) -> Bus:
        return open_bus(self.address, session, ClientLibrary.PAHO)

    def stage(self, index: int, *options: str) -> Running:
        return self.start("stage", "--index", str(index), *options)

    def stages(self, *options: str) -> list[Running]:
        """Start all stages and wait until each is ready."""
        started = [self.stage(index, *options) for index in range(3)]
        self.until_ready(*(f"stage-{index}" for index in range(3)))
        return started

    def sensors(self, *options: str) -> list[Running]:
        return [self.start("sensor", "--source", source, *options) for source in self.pipeline.task.inputs]

    def poll(self, timeout_s: float = 0.05) -> list[Arrival]:
        arrivals = super().poll(timeout_s)
        for result in (arrival.result for arrival in arrivals):
            self.doubled += (result.stream, result.seq) in self.results
            self.results[result.stream, result.seq] = result
        return arrivals

    def until_ready(self, *nodes: str) -> None:
        self.until(lambda: all(self.state(node) is State.READY for node in nodes), f"{nodes} never became ready")

    def until_results(self, count: int) -> None:
        self.until(lambda: len(self.results) >= count, f"fewer than {count} results")

    def state(self, node: str) -> State | None:
        return self.view.state(node)

    def counter(self, node: str, name: str) -> int:
        return self.statuses[node].counters.get(name, 0) if node in self.statuses else 0

    def all_once(self, streams: int, windows: int) -> bool:
        """Return whether each stream has each of its windows, once; truth and class must belong together."""
        seqs = {(f"subject{number}", seq) for number in range(1, streams + 1) for seq in range(windows)}
        return set(self.results) == seqs and not self.doubled
