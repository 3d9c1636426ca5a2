"""Decode every message of a pipeline: `decode` is the one way from the bytes of a delivery to their meaning.

All limits on sizes, counts and figures hold in here, so that a reader of events needs none of its own. A message that
cannot be read is an event, too (`Unreadable`): a reader counts it, logs it or passes over it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import msgspec

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import wire
from har_edge.protocol.artifacts import MAX_CHUNK_BYTES, MAX_CHUNKS, Header, decode_header
from har_edge.protocol.deployment import Deployment, decode_deployment
from har_edge.protocol.results import Result, decode_results
from har_edge.protocol.signatures import SignedStatement, decode_signature
from har_edge.protocol.split_training import SPLIT_LEVELS, SplitMessage, decode_split
from har_edge.protocol.status import Heartbeat, NodeStatus, decode_heartbeat, decode_status
from har_edge.protocol.topics import Kind, Topic, Topics, is_probe, read_topic
from har_edge.protocol.training import TrainingMessage, decode_training

# The level after a node's name, below which nothing but its status is published.
_STATUS = "status"
# Looking a member up in its enum takes as long as the rest of a comparison, for each message.
_WINDOW, _ACTIVATION = Kind.WINDOW, Kind.ACTIVATION
# Kinds of which a retained message is an old one: who starts must not take it for one of now.
_PASSING = frozenset({Kind.WINDOW, Kind.ACTIVATION, Kind.RESULT, Kind.TRAINING})


class TensorsEvent(msgspec.Struct, frozen=True, gc=False):
    """Windows of a sensor, or activations of a stage: `topic.kind` says which."""

    topic: Topic
    message: wire.Message


class ResultsEvent(msgspec.Struct, frozen=True, gc=False):
    """The classes of one window, or of a batch of windows."""

    topic: Topic
    results: list[Result]

    @property
    def stream(self) -> str:
        """The stream that the topic names."""
        return self.topic.levels[0]

    @property
    def is_probe(self) -> bool:
        """Whether these answer a probe, and so are for nobody but its sender."""
        return is_probe(self.stream)


class StatusEvent(msgspec.Struct, frozen=True, gc=False):
    """The status of a node, from itself or by its will; no `status` where the retained one was removed."""

    topic: Topic
    status: NodeStatus | None
    retained: bool = False

    @property
    def node(self) -> str:
        """The node that the topic names."""
        return self.topic.levels[0]


class HeartbeatEvent(msgspec.Struct, frozen=True, gc=False):
    """A sign of life of a node."""

    topic: Topic
    heartbeat: Heartbeat
    retained: bool = False

    @property
    def node(self) -> str:
        """The node that the topic names."""
        return self.topic.levels[0]


class PlanEvent(msgspec.Struct, frozen=True, gc=False):
    """The deployment; no `deployment` where the plan was removed."""

    topic: Topic
    deployment: Deployment | None


class SignatureEvent(msgspec.Struct, frozen=True, gc=False):
    """A signature of the plan, not verified yet; nothing `signed` where it was removed."""

    topic: Topic
    signed: SignedStatement | None


class HeaderEvent(msgspec.Struct, frozen=True, gc=False):
    """How an artifact is divided at the broker; no `header` where the artifact was removed."""

    topic: Topic
    header: Header | None

    @property
    def sha256(self) -> str:
        """The artifact that the topic names."""
        return self.topic.levels[0]


class ChunkEvent(msgspec.Struct, frozen=True, gc=False):
    """One chunk of an artifact; no `content` where it was removed."""

    topic: Topic
    number: int
    content: bytes

    @property
    def sha256(self) -> str:
        """The artifact that the topic names."""
        return self.topic.levels[0]


class TrainingEvent(msgspec.Struct, frozen=True, gc=False):
    """A message of a training on the devices; no `message` where a retained one was removed."""

    topic: Topic
    message: TrainingMessage | SplitMessage | None
    retained: bool = False

    @property
    def run(self) -> str:
        """The training that the topic names."""
        return self.topic.levels[0]


class Unreadable(msgspec.Struct, frozen=True, gc=False):
    """A message that cannot be used: why, and what came. No `topic` where even that could not be read."""

    topic: Topic | None
    reason: str
    payload: bytes = b""

    @property
    def kind(self) -> Kind | None:
        """The kind that it claims to be; None where its topic does not belong to this pipeline."""
        return None if self.topic is None else self.topic.kind


Event: TypeAlias = (
    TensorsEvent
    | ResultsEvent
    | StatusEvent
    | HeartbeatEvent
    | PlanEvent
    | SignatureEvent
    | HeaderEvent
    | ChunkEvent
    | TrainingEvent
    | Unreadable
)


def decode(
    message: Delivery | Outgoing,
    topics: Topics | None = None,
    *,
    limit: int = wire.MAX_PAYLOAD_BYTES,
    names: Mapping[int, str] = wire.NO_NAMES,
) -> Event:
    """Return what a message means; never raises for what came over the network.

    Args:
        message: as it came, or as it is about to be published.
        topics: those of the pipeline whose messages are wanted; what belongs to another is unreadable. None takes all.
        limit: the most bytes that windows and activations may have.
        names: what the short ids of tensors stand for (protocol/wire.py).
    """
    topic: Topic | None = None
    try:
        topic = read_topic(message.topic) if topics is None else topics.read(message.topic)
        kind = topic.kind
        if _is_retained(message) and kind in _PASSING and not topic.retained:
            raise MessageError(
                "it was retained at the broker, as this kind never is, and so may be old; who sent it must not retain "
                f"it: remove it with `mosquitto_pub -r -n -t {topic}`"
            )
        if kind is _WINDOW or kind is _ACTIVATION:
            return TensorsEvent(topic, wire.decode(message.payload, limit, names))
        return _READERS[kind](topic, message)
    except MessageError as error:
        return Unreadable(topic, str(error), message.payload)


def reason_of(event: Event, expected: str) -> str:
    """Return why an event is not what a reader takes, for its log: unreadable, or of another kind than `expected`."""
    if isinstance(event, Unreadable):
        return event.reason
    return f"a message of kind {event.topic.kind.value!r} came; expected {expected}"


def _results(topic: Topic, message: Delivery | Outgoing) -> Event:
    return ResultsEvent(topic, decode_results(message.payload))


def _status(topic: Topic, message: Delivery | Outgoing) -> Event:
    node, level = topic.levels
    if level != _STATUS:
        raise MessageError(f"a message came at node/{node}/{level}; expected node/{node}/{_STATUS}")
    status = decode_status(message.payload) if message.payload else None
    if status is not None:
        _check_sender(node, status.node, "status")
    return StatusEvent(topic, status, _is_retained(message))


def _heartbeat(topic: Topic, message: Delivery | Outgoing) -> Event:
    heartbeat = decode_heartbeat(message.payload)
    _check_sender(topic.levels[0], heartbeat.node, "heartbeat")
    return HeartbeatEvent(topic, heartbeat, _is_retained(message))


def _plan(topic: Topic, message: Delivery | Outgoing) -> Event:
    if not message.payload:
        return PlanEvent(topic, None)
    deployment = decode_deployment(message.payload)
    config = deployment.config
    if (config.base, config.name) != (topic.base, topic.pipeline):
        raise MessageError(
            f"a plan of pipeline {config.base}/{config.name} came; expected one of {topic.base}/{topic.pipeline}"
        )
    return PlanEvent(topic, deployment)


def _signature(topic: Topic, message: Delivery | Outgoing) -> Event:
    return SignatureEvent(topic, decode_signature(message.payload) if message.payload else None)


def _header(topic: Topic, message: Delivery | Outgoing) -> Event:
    return HeaderEvent(topic, decode_header(message.payload, topic.levels[0]) if message.payload else None)


def _chunk(topic: Topic, message: Delivery | Outgoing) -> Event:
    sha256, number = topic.levels
    if not number.isdecimal() or len(number) > len(str(MAX_CHUNKS)) or len(message.payload) > MAX_CHUNK_BYTES:
        raise MessageError(
            f"chunk {number} of {sha256} came with {len(message.payload)} bytes; expected a number below {MAX_CHUNKS} "
            f"and at most {MAX_CHUNK_BYTES} bytes"
        )
    return ChunkEvent(topic, int(number), message.payload)


def _training(topic: Topic, message: Delivery | Outgoing) -> Event:
    decode_levels = decode_split if topic.levels[1] in SPLIT_LEVELS else decode_training
    return TrainingEvent(topic, decode_levels(topic.levels, message.payload), _is_retained(message))


_READERS: Mapping[Kind, Callable[[Topic, Delivery | Outgoing], Event]] = {
    Kind.RESULT: _results,
    Kind.STATUS: _status,
    Kind.HEARTBEAT: _heartbeat,
    Kind.PLAN: _plan,
    Kind.SIGNATURE: _signature,
    Kind.SLICE: _header,
    Kind.CHUNK: _chunk,
    Kind.TRAINING: _training,
    Kind.TRAINING_FILE: _header,
    Kind.TRAINING_CHUNK: _chunk,
}


def _check_sender(node: str, sender: str, what: str) -> None:
    if sender != node:
        raise MessageError(f"a {what} of {sender!r} came on the topic of {node!r}; expected its own")


def _is_retained(message: Delivery | Outgoing) -> bool:
    return type(message) is Delivery and message.retained
