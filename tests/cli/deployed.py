"""A deployment as a broker sees it: plan, files, statuses and beats that a test publishes itself.

Its stages are those of `har-edge stage` on the same slices, so that windows really flow.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import msgspec

from har_edge.cluster.processes import Running
from har_edge.mqtt.bus import Outgoing, Session
from har_edge.protocol.deployment import VERSION, Deployment, Generation, Placement
from har_edge.protocol.status import StageReport, State
from har_edge.runtime.artifacts import encode_chunks
from tests.cli.fleet import Fleet
from tests.runtime.deployed import Said, report

NODES = ("pi-1", "pi-2", "pi-3")


@dataclass
class Stand:
    """Says on a fleet's broker what a coordinator and three nodes would say, with the slices of the fleet."""

    fleet: Fleet
    reports: dict[str, list[StageReport]] = field(default_factory=dict)
    nodes: tuple[str, ...] = NODES
    ahead_s: float = 0.0
    counting: int = 0
    beats: int = 0
    beat_at: float = 0.0

    def __post_init__(self) -> None:
        pipeline, self.said = self.fleet.pipeline, Said(self.fleet.topics)
        self.epoch = pipeline.config.epoch
        placements = tuple(Placement(stage, node) for stage, node in enumerate(NODES))
        self.generation = Generation(self.epoch, pipeline.manifest, placements)
        self.deployment = Deployment(
            VERSION, 3, "coordinator-1", 1.0, pipeline.config, self.epoch, dict(pipeline.task.files), (self.generation,)
        )
        self.reports = {node: [report(stage, epoch=self.epoch)] for stage, node in enumerate(NODES)}

    def publish(self, *messages: Outgoing) -> None:
        for one in messages:
            self.fleet.bus.publish(one.topic, one.payload, retain=one.retain)
        self.fleet.until(lambda: not self.fleet.bus.unsent, "what the test says is not safe at the broker")

    def say(self, topic: str, payload: bytes, *, retain: bool = True) -> None:
        self.publish(Outgoing(topic, payload, retain=retain))

    def plan(self, **changes: object) -> None:
        """Retain the plan."""
        one = self.said.plan(msgspec.structs.replace(self.deployment, **changes))
        self.say(one.topic, one.payload)

    def files(self) -> list[Outgoing]:
        """Return the messages that bring every slice to the broker."""
        folder = self.fleet.pipeline.folder
        entries = self.generation.manifest.slices
        return [
            one for entry in entries for one in encode_chunks(self.fleet.topics, (folder / entry.file).read_bytes())
        ]

    def status(self, node: str, role: str = "node", state: State = State.BUSY, **more: object) -> None:
        one = self.said.status(node, role, state, **more)
        self.say(one.topic, one.payload)

    def statuses(self) -> None:
        """Retain what coordinator and nodes say of themselves."""
        self.status("coordinator", "coordinator", State.READY, instance="coordinator-1")
        for node in NODES:
            self.status(node)

    def everything(self) -> None:
        self.plan()
        self.publish(*self.files())
        self.statuses()

    def beat(self) -> None:
        """Let the nodes beat, if it is time; the first stages, as many as `counting`, have handled a window more."""
        if time.monotonic() < self.beat_at:
            return
        self.beat_at = time.monotonic() + 0.1
        self.beats += 1
        for node in self.nodes:
            told = self.reports.get(node, [])
            told = [
                msgspec.structs.replace(one, windows=self.beats) if one.stage < self.counting else one for one in told
            ]
            one = self.said.beat(node, time.time() + self.ahead_s, *told)
            self.fleet.bus.publish(one.topic, one.payload)

    def start(self, command: str, *options: str, **changes: str) -> Running:
        """Start a command on this pipeline, by its name and not by its folder."""
        where = ["--pipeline", self.fleet.name, "--cache", str(self.fleet.cwd / "cache")]
        return self.fleet.start(command, *where, *options, **changes)

    def run(self, command: str, *options: str, **changes: str) -> Running:
        """Run a command on this pipeline to its end, while the nodes beat."""
        running = self.start(command, *options, **changes)
        self.fleet.until(lambda: self.beat() or running.process.poll() is not None, f"{command} does not end")
        return running

    def retained(self) -> dict[str, bytes]:
        """Return what the broker retains of this pipeline."""
        kept: dict[str, bytes] = {}
        bus = self.fleet.open(Session(f"{self.fleet.name}-kept", clean_start=True))
        bus.subscribe([f"{self.fleet.topics.prefix}#"])
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            came = {one.topic: one.payload for one in bus.poll(0.05) if one.retained}
            kept |= came
            deadline = time.monotonic() + 1.0 if came else deadline  # until nothing more comes
        bus.close(forget=True)
        return kept
