"""Real processes of one pipeline, and a watcher that sees every result and status."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol.results import Result
from har_edge.protocol.status import NodeStatus, State
from har_edge.protocol.topics import Kind
from har_edge.runtime.build import topics_of
from har_edge.runtime.sink import Sink
from tests.protocol.reading import read_status

TIMEOUT_S = 60.0
_numbers = itertools.count()


def environment(**changes: str) -> dict[str, str]:
    """Return the environment of a process on a machine without recordings."""
    kept = {name: value for name, value in os.environ.items() if name != "HAR_EDGE_DATA"}
    return kept | {"PYTHONUNBUFFERED": "1"} | changes


@dataclass
class Running:
    """A process, and the file with what it says."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_S)


@dataclass
class Fleet:
    """Starts nodes as `har-edge` does, and collects what they publish in a session that outlives a broker restart."""

    slices: Path
    cwd: Path
    address: Address
    running: list[Running] = field(default_factory=list)
    results: dict[tuple[str, int], Result] = field(default_factory=dict)
    doubled: int = 0
    statuses: dict[str, NodeStatus] = field(default_factory=dict)

    def __enter__(self) -> Fleet:
        self.folder = self.cwd / "pipeline"
        shutil.copytree(self.slices, self.folder)
        file = self.folder / "pipeline.toml"
        self.name = f"t{os.getpid()}-{next(_numbers)}"
        file.write_text(file.read_text().replace('name = "har"', f'name = "{self.name}"'))
        self.pipeline: Pipeline = load_pipeline(self.folder)
        self.topics, self.sink = topics_of(self.pipeline), Sink()
        self.bus = self.open(Session(f"{self.name}-test", expiry_s=600))
        self.bus.subscribe([self.topics.result("+"), self.topics.status("+")])
        self.until(lambda: self.bus.connected, "no connection")
        return self

    def __exit__(self, *_: object) -> None:
        for running in self.running:
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait()
        self.bus.close(forget=True)

    def open(self, session: Session) -> Bus:
        return open_bus(self.address, session, ClientLibrary.PAHO)

    def start(self, command: str, *options: str, **changes: str) -> Running:
        """Start a command of `har-edge` on this pipeline."""
        log = self.cwd / f"{command}-{len(self.running)}.log"
        arguments = [sys.executable, "-m", "har_edge.cli.main", command, "--config", str(self.folder), *options]
        if "--broker" not in options:
            arguments += ["--broker", self.address.url]
        with log.open("wb") as file:
            process = subprocess.Popen(
                arguments, cwd=self.cwd, env=environment(**changes), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self.running.append(Running(process, log))
        return self.running[-1]

    def stage(self, index: int, *options: str) -> Running:
        return self.start("stage", "--index", str(index), *options)

    def stages(self, *options: str) -> list[Running]:
        """Start all stages and wait until each is ready."""
        started = [self.stage(index, *options) for index in range(3)]
        self.until_ready(*(f"stage-{index}" for index in range(3)))
        return started

    def sensors(self, *options: str) -> list[Running]:
        return [self.start("sensor", "--source", source, *options) for source in self.pipeline.task.inputs]

    def poll(self) -> None:
        for delivery in self.bus.poll(0.05):
            self.bus.acknowledge(delivery)
            if self.topics.read(delivery.topic).kind is Kind.STATUS:
                if not delivery.payload:  # taken away, for a stage that is no more
                    continue
                status = read_status(delivery)
                self.statuses[status.node] = status
                continue
            for result in self.sink.handle(delivery):
                self.doubled += (result.stream, result.seq) in self.results
                self.results[result.stream, result.seq] = result

    def until(self, done: Callable[[], object], what: str) -> None:
        """Poll until something holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not done():
            said = "\n".join(f"--- {one.log.name}\n{one.said}" for one in self.running)
            assert time.monotonic() < deadline, f"{what}; {len(self.results)} results, {self.statuses}\n{said}"
            self.poll()

    def until_ready(self, *nodes: str) -> None:
        self.until(lambda: all(self.state(node) is State.READY for node in nodes), f"{nodes} never became ready")

    def until_results(self, count: int) -> None:
        self.until(lambda: len(self.results) >= count, f"fewer than {count} results")

    def state(self, node: str) -> State | None:
        return self.statuses[node].state if node in self.statuses else None

    def counter(self, node: str, name: str) -> int:
        return self.statuses[node].counters.get(name, 0) if node in self.statuses else 0

    def all_once(self, streams: int, windows: int) -> bool:
        """Tell whether each stream has each of its windows, once; truth and class must belong together."""
        seqs = {(f"subject{number}", seq) for number in range(1, streams + 1) for seq in range(windows)}
        return set(self.results) == seqs and not self.doubled
