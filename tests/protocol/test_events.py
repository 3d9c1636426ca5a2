"""Every message goes through one decode: what is well formed has a meaning, the rest is unreadable for a reason."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.config.pipeline_config import PipelineConfig
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol import deployment, wire
from har_edge.protocol.artifacts import MAX_CHUNK_BYTES, MAX_HEADER_BYTES, Header, encode_header
from har_edge.protocol.deployment import VERSION, Deployment, encode_deployment
from har_edge.protocol.events import (
    ChunkEvent,
    Event,
    HeaderEvent,
    HeartbeatEvent,
    PlanEvent,
    ResultsEvent,
    StatusEvent,
    TensorsEvent,
    Unreadable,
    decode,
    reason_of,
)
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.signatures import SignedStatement, encode_signature
from har_edge.protocol.status import (
    MAX_BYTES,
    MAX_COUNTERS,
    MAX_STAGES,
    Heartbeat,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
    StreamCount,
    encode_heartbeat,
    encode_status,
)
from har_edge.protocol.topics import PROBE, Kind, Topics, TrainingTopics
from har_edge.protocol.training import Update, VectorPart, encode_training
from tests.runtime.rig import TASK

TOPICS, TRAINING = Topics("har", "test"), TrainingTopics("har", "test")
SHA256 = "a" * 64
STATUS = NodeStatus("pi", "node", State.READY, "i", 1.0)
HEARTBEAT = Heartbeat("pi", "i", 1, 5.0, stages=(StageReport(1, 0, 0, StagePhase.RUNNING),))
PLAN = Deployment(VERSION, 1, "author", 1.0, PipelineConfig(TASK, name="test"))
RESULT = Result("anna", 3, "still", 1, 0.9, 1.0, 2.0, 7)
SIGNED = SignedStatement(1, "{}", "0" * 64, "0" * 128)
HEADER = Header(1, SHA256, 300_000, 262_144, 2)
UPDATE = Update(
    run="night", author="a", worker="pi", round=1, task=2, samples=3, vector=VectorPart("f4", 1, b"\0\0\0\0")
)
WINDOW = wire.Message("anna", 3, 7, (1.0,), {"chest": np.zeros((1, 4), np.float32)})


def read(topic: str, payload: bytes, **more: object) -> Event:
    return decode(Delivery(topic, payload, (0, 0)), TOPICS, **more)  # type: ignore[arg-type]


def test_each_kind_of_message_has_its_event() -> None:
    window, activation = read(TOPICS.window("anna", "chest"), wire.encode(WINDOW)), wire.encode(WINDOW)
    assert isinstance(window, TensorsEvent) and window.topic.levels == ("anna", "chest")
    assert (window.message.seq, list(window.message.tensors)) == (3, ["chest"])
    other = read(TOPICS.activation(7, 0, "anna"), activation)
    assert isinstance(other, TensorsEvent) and other.topic.kind is Kind.ACTIVATION
    results = read(TOPICS.result("anna"), encode_results([RESULT, RESULT]))
    assert isinstance(results, ResultsEvent) and results.results == [RESULT, RESULT]
    assert results.stream == "anna" and not results.is_probe
    probe = read(TOPICS.result(f"{PROBE}1"), encode_results([RESULT]))
    assert isinstance(probe, ResultsEvent) and probe.is_probe
    status = read(TOPICS.status("pi"), encode_status(STATUS))
    assert isinstance(status, StatusEvent) and (status.node, status.status) == ("pi", STATUS)
    heartbeat = read(TOPICS.heartbeat("pi"), encode_heartbeat(HEARTBEAT))
    assert isinstance(heartbeat, HeartbeatEvent) and (heartbeat.node, heartbeat.heartbeat) == ("pi", HEARTBEAT)
    plan = read(TOPICS.plan(), encode_deployment(PLAN))
    assert isinstance(plan, PlanEvent) and plan.deployment == PLAN
    header = read(TOPICS.slice(SHA256), encode_header(HEADER))
    assert isinstance(header, HeaderEvent) and (header.sha256, header.header) == (SHA256, HEADER)
    chunk = read(TOPICS.chunk(SHA256, 1), b"bytes")
    assert isinstance(chunk, ChunkEvent) and (chunk.sha256, chunk.number, chunk.content) == (SHA256, 1, b"bytes")


def test_an_empty_message_takes_away_what_was_retained() -> None:
    assert read(TOPICS.status("pi"), b"") == StatusEvent(TOPICS.read(TOPICS.status("pi")), None)
    assert read(TOPICS.plan(), b"") == PlanEvent(TOPICS.read(TOPICS.plan()), None)
    assert read(TOPICS.slice(SHA256), b"") == HeaderEvent(TOPICS.read(TOPICS.slice(SHA256)), None)
    gone = read(TOPICS.chunk(SHA256, 0), b"")
    assert isinstance(gone, ChunkEvent) and gone.content == b""


def test_what_is_retained_is_known_as_such() -> None:
    for topic, payload in (
        (TOPICS.status("pi"), encode_status(STATUS)),
        (TOPICS.heartbeat("pi"), encode_heartbeat(HEARTBEAT)),
    ):
        for retained in (False, True):
            event = decode(Delivery(topic, payload, (0, 0), retained))
            assert isinstance(event, StatusEvent | HeartbeatEvent) and event.retained is retained
        said = decode(Outgoing(topic, payload, retain=True))  # what is about to be published is not old
        assert isinstance(said, StatusEvent | HeartbeatEvent) and not said.retained


def test_messages_of_other_pipelines_are_read_only_where_all_are_wanted() -> None:
    foreign = Delivery("home/v1/garden/node/pi/status", encode_status(STATUS), (0, 0))
    event = decode(foreign)
    assert isinstance(event, StatusEvent) and (event.topic.base, event.topic.pipeline) == ("home", "garden")
    assert str(event.topic) == foreign.topic
    refused = decode(foreign, TOPICS)
    assert isinstance(refused, Unreadable) and refused.topic is None and refused.kind is None
    assert "expected one below 'har/v1/test/'" in refused.reason


LONG = b'{"node":"pi","role":"node","state":"ready","instance":"i","started":1,"detail":"%s"}' % (b"x" * MAX_BYTES)
COUNTERS = encode_status(msgspec.structs.replace(STATUS, counters={str(k): k for k in range(MAX_COUNTERS + 1)}))
STAGES = encode_heartbeat(msgspec.structs.replace(HEARTBEAT, stages=HEARTBEAT.stages * (MAX_STAGES + 1)))
MALFORMED = [
    (TOPICS.status("pi"), b"\xff", "what came is no status"),
    (TOPICS.status("pi"), b'{"node":"\xff"}', "what came is no status"),
    (TOPICS.status("pi"), b"[" * 9000, "what came is no status"),
    (TOPICS.status("pi"), b'{"a":' * 20_000, "what came is no status"),
    (TOPICS.status("pi"), LONG, f"a status of {len(LONG)} bytes came; expected at most {MAX_BYTES}"),
    (TOPICS.status("pi"), COUNTERS, "what came is no status"),
    (TOPICS.status("other"), encode_status(STATUS), "a status of 'pi' came on the topic of 'other'; expected its own"),
    ("har/v1/test/node/pi/state", encode_status(STATUS), "expected node/pi/status"),
    (TOPICS.heartbeat("pi"), b"", "what came is no heartbeat"),
    (TOPICS.heartbeat("pi"), b"\xff", "what came is no heartbeat"),
    (TOPICS.heartbeat("pi"), STAGES, "what came is no heartbeat"),
    (TOPICS.heartbeat("pi"), bytes(MAX_BYTES + 1), f"a heartbeat of {MAX_BYTES + 1} bytes came; expected at most"),
    (TOPICS.heartbeat("other"), encode_heartbeat(HEARTBEAT), "a heartbeat of 'pi' came on the topic of 'other'"),
    (TOPICS.plan(), b"{", "what came is no plan"),
    (TOPICS.plan(), bytes(deployment.MAX_BYTES + 1), f"a plan of {deployment.MAX_BYTES + 1} bytes came"),
    (
        TOPICS.plan(),
        encode_deployment(msgspec.structs.replace(PLAN, config=PipelineConfig(TASK, name="another"))),
        "a plan of pipeline har/another came; expected one of har/test",
    ),
    (TOPICS.result("anna"), b"", "a result came that is no result"),
    (TOPICS.result("anna"), b"[[[", "a result came that is no result"),
    (TOPICS.result("anna"), bytes(5_000_000), "a result of 5000000 bytes came; expected at most 4194304"),
    (TOPICS.slice(SHA256), b"forged", "is no header"),
    (TOPICS.slice(SHA256), bytes(MAX_HEADER_BYTES + 1), f"a header of {MAX_HEADER_BYTES + 1} bytes came"),
    (TOPICS.slice("b" * 64), encode_header(HEADER), "expected that of its topic"),
    (TOPICS.chunk(SHA256, "x"), b"bytes", "chunk x of"),
    (TOPICS.chunk(SHA256, "9" * 20), b"bytes", "expected a number below"),
    (TOPICS.chunk(SHA256, 0), bytes(MAX_CHUNK_BYTES + 1), f"at most {MAX_CHUNK_BYTES} bytes"),
    (TOPICS.window("anna", "chest"), b"", "that start no MessagePack array"),
    (TOPICS.window("anna", "chest"), b"\x98\x09", "wire version 9"),
    (TOPICS.activation(7, 0, "anna"), b"\x97\x01\xa0", "that are no message of wire version 1"),
    ("har/v1/test/window/anna", wire.encode(WINDOW), "expected 2 ids after 'window'"),
    ("har/v1/test/weather/anna", b"", "has the kind 'weather'"),
    ("somewhere/else", b"", "expected one below 'har/v1/test/'"),
]


@pytest.mark.parametrize(("topic", "payload", "reason"), MALFORMED, ids=range(len(MALFORMED)))
def test_what_is_malformed_is_unreadable_for_a_reason(topic: str, payload: bytes, reason: str) -> None:
    event = read(topic, payload)
    assert isinstance(event, Unreadable) and reason in event.reason
    assert event.payload == payload and reason_of(event, "anything") == event.reason
    assert len(event.reason) < 1000


def test_the_limit_of_windows_is_the_readers() -> None:
    payload = wire.encode(WINDOW)
    assert isinstance(read(TOPICS.window("anna", "chest"), payload, limit=len(payload)), TensorsEvent)
    refused = read(TOPICS.window("anna", "chest"), payload, limit=len(payload) - 1)
    assert isinstance(refused, Unreadable) and refused.kind is Kind.WINDOW and "expected at most" in refused.reason


def test_a_reader_says_what_it_expected() -> None:
    event = read(TOPICS.plan(), b"")
    assert reason_of(event, "results") == "a message of kind 'plan' came; expected results"


@pytest.mark.parametrize("kind", list(Kind), ids=lambda kind: kind.value)
@given(payload=st.binary(max_size=64), cut=st.integers(0, 400))
def test_no_bytes_raise(kind: Kind, payload: bytes, cut: int) -> None:
    topic, good = {
        Kind.WINDOW: (TOPICS.window("anna", "chest"), wire.encode(WINDOW)),
        Kind.ACTIVATION: (TOPICS.activation(7, 0, "anna"), wire.encode(WINDOW)),
        Kind.RESULT: (TOPICS.result("anna"), encode_results([RESULT])),
        Kind.STATUS: (TOPICS.status("pi"), encode_status(STATUS)),
        Kind.HEARTBEAT: (TOPICS.heartbeat("pi"), encode_heartbeat(HEARTBEAT)),
        Kind.PLAN: (TOPICS.plan(), encode_deployment(PLAN)),
        Kind.SIGNATURE: (TOPICS.signature(), encode_signature(SIGNED)),
        Kind.SLICE: (TOPICS.slice(SHA256), encode_header(HEADER)),
        Kind.CHUNK: (TOPICS.chunk(SHA256, 0), b"bytes"),
        Kind.TRAINING: (TOPICS.training("night", "update", "pi"), encode_training(UPDATE)),
        Kind.TRAINING_FILE: (TRAINING.slice(SHA256), encode_header(HEADER)),
        Kind.TRAINING_CHUNK: (TRAINING.chunk(SHA256, 0), b"bytes"),
    }[kind]
    assert not isinstance(read(topic, good), Unreadable)
    for damaged in (payload, good[:cut], good[:cut] + payload + good[cut + len(payload) :], good + payload):
        assert read(topic, damaged).topic == TOPICS.read(topic)


@given(st.text(max_size=80))
def test_no_topic_raises(topic: str) -> None:
    assert isinstance(decode(Delivery(topic, b"", (0, 0))), Event)


def test_counts_of_a_stream_are_bounded() -> None:
    count = StreamCount(2**53 + 1, 1.0)
    event = read(TOPICS.status("pi"), encode_status(msgspec.structs.replace(STATUS, streams={"anna": count})))
    assert isinstance(event, Unreadable)
