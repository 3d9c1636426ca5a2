"""A deployment to look at, and what its nodes say: plan, statuses, beats, results as they come from the broker."""

from __future__ import annotations

from dataclasses import dataclass

from har_edge.config.pipeline_config import PipelineConfig
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import PROTOCOL, VERSION, Deployment, Generation, Placement, encode_deployment
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import (
    Heartbeat,
    NodeCapabilities,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
    encode_heartbeat,
    encode_status,
)
from har_edge.protocol.topics import Topics
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec

TOPICS = Topics("har", "har")
EPOCH = 1000
CARD = NodeCapabilities(PROTOCOL, "m1", "Linux aarch64", 4, 4_000_000_000, "ai-edge-litert 2.1", 120.0)


def tensors(*names: str) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, (-1, 4), "float32") for name in names)


def manifest(*wires: tuple[tuple[str, ...], tuple[str, ...]]) -> SliceManifest:
    """A manifest whose slices take and give these tensors."""
    slices = tuple(
        SliceEntry(f"slice-{k}.tflite", f"{k:064x}", k, k + 1, tensors(*takes), tensors(*gives))
        for k, (takes, gives) in enumerate(wires)
    )
    return SliceManifest(1, "model.tflite", "a" * 64, slices)


CHAIN = manifest((("x",), ("a",)), (("a",), ("b",)), (("b",), ("y",)))
TASK = Task(StreamTask("mhealth", 50.0, 250, 125), {"chest": SourceInput("x")}, "y", ["still"], [1])


def generation(*nodes: str, epoch: int = EPOCH, cut: SliceManifest = CHAIN) -> Generation:
    return Generation(epoch, cut, tuple(Placement(stage, node) for stage, node in enumerate(nodes)))


def deployment(*generations: Generation, epoch: int = EPOCH, revision: int = 7) -> Deployment:
    return Deployment(VERSION, revision, "author-1", 1.0, PipelineConfig(TASK), epoch, {}, generations)


@dataclass
class Said:
    """Messages of a broker for one pipeline."""

    topics: Topics = TOPICS

    def plan(self, deployed: Deployment) -> Delivery:
        return Delivery(self.topics.plan(), encode_deployment(deployed), (1, 1), retained=True)

    def status(self, node: str, role: str = "node", state: State = State.READY, **more: object) -> Delivery:
        said: dict[str, object] = {"instance": f"{node}-1", "started": 1.0, "version": "1.0"}
        said |= {"device": CARD} if role == "node" else {}
        status = NodeStatus(node=node, role=role, state=state, **(said | more))  # type: ignore[arg-type]
        return Delivery(self.topics.status(node), encode_status(status), (1, 1), retained=True)

    def beat(self, node: str, time: float, *stages: StageReport, number: int = 1, instance: str = "") -> Delivery:
        beat = Heartbeat(node, instance or f"{node}-1", number, time, 7, stages)
        return Delivery(self.topics.heartbeat(node), encode_heartbeat(beat), (1, 1))

    def result(self, seq: int, captured: float, seconds: float, stream: str = "subject1") -> Delivery:
        result = Result(stream, seq, "still", 1, 0.9, captured, captured + seconds, EPOCH)
        return Delivery(self.topics.result(stream), encode_results([result]), (1, 1))


def report(stage: int, phase: StagePhase = StagePhase.RUNNING, epoch: int = EPOCH, **more: object) -> StageReport:
    return StageReport(epoch, stage, 0, phase, **more)  # type: ignore[arg-type]
