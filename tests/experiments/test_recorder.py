"""What a watcher of a trial makes of messages that no node of ours has sent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from har_edge.cluster.cluster import Cluster
from har_edge.config.pipeline import Pipeline
from har_edge.errors import MessageError
from har_edge.experiments.emulation import Emulated
from har_edge.experiments.recorder import Recorder
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.status import NodeStatus, State, encode_status
from har_edge.protocol.topics import Topics
from har_edge.runtime.build import topics_of

TOPICS = Topics("har", "test")
NONSENSE = [b"{", b'{"node":"\xff"}', b'{"a":' * 20_000]


@pytest.mark.parametrize("payload", NONSENSE)
@pytest.mark.parametrize("topic", [TOPICS.status("a"), TOPICS.heartbeat("a")])
def test_what_cannot_be_read_is_a_message_error(topic: str, payload: bytes) -> None:
    with pytest.raises(MessageError, match=f"{topic}: what came is no .*; expected the JSON of docs/reference/wire.md"):
        Recorder(TOPICS).handle(Delivery(topic, payload, (1, 1)))


def test_a_measurement_goes_on_when_something_else_sends_nonsense(cut: Callable[..., Pipeline]) -> None:
    broker, pipeline = MemoryBroker(), cut("int8", 9)
    topics = topics_of(pipeline)
    bus, other = broker.connect(Session("driver")), broker.connect(Session("other"))
    running = Emulated(Cluster(pipeline, Address("127.0.0.1", 1), bus=bus))
    for payload in NONSENSE:
        other.publish(topics.status("a"), payload)
    other.publish(topics.status("b"), encode_status(NodeStatus("b", "stage", State.READY, "one", 1.0)))
    other.poll(0)
    assert running._poll() == [] and running.cluster.view.state("b") is State.READY
