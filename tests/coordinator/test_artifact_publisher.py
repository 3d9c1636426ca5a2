"""What the broker holds: a few chunks at a time, again where somebody spoilt them, nothing that nobody names."""

from __future__ import annotations

import hashlib
import random
import tracemalloc

import pytest

from har_edge.coordinator.artifact_publisher import AGAIN_S, MOST_AGAIN_S, UNDER_WAY, ArtifactPublisher
from har_edge.mqtt.bus import Outgoing, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.artifacts import CHUNK_BYTES, count_chunks
from har_edge.protocol.events import HeaderEvent, Unreadable, decode
from har_edge.protocol.topics import Kind, Topics
from har_edge.runtime.artifacts import encode_chunks

TOPICS = Topics("har", "test")
CONTENT = random.Random(1).randbytes(20 * CHUNK_BYTES + 5)
NAME = hashlib.sha256(CONTENT).hexdigest()
OTHER = b"other"
OTHER_NAME = hashlib.sha256(OTHER).hexdigest()
BOTH = sorted([NAME, OTHER_NAME])


def publisher() -> ArtifactPublisher:
    return ArtifactPublisher(TOPICS, {NAME: CONTENT, OTHER_NAME: OTHER})


def everything(one: ArtifactPublisher, wanted: list[str]) -> list[Outgoing]:
    """Return all that is sent while the broker takes each message at once, and says which headers it has."""
    sent: list[Outgoing] = []
    while came := one.fill(wanted):
        one.note_unsent(0)
        hear(one, came)
        sent += came
    return sent


def take(one: ArtifactPublisher, message: Outgoing) -> None:
    event = decode(message, TOPICS)
    assert isinstance(event, HeaderEvent | Unreadable)
    one.handle(event)


def hear(one: ArtifactPublisher, messages: list[Outgoing]) -> None:
    for message in messages:
        if TOPICS.read(message.topic).kind is Kind.SLICE:
            take(one, Outgoing(message.topic, message.payload))


def test_a_few_chunks_at_a_time_and_no_more_before_the_broker_has_taken_them() -> None:
    one = publisher()
    first = one.fill([NAME])
    assert len(first) == UNDER_WAY and one.fill([NAME]) == []
    one.note_unsent(UNDER_WAY - 3)
    second = one.fill([NAME])
    one.note_unsent(UNDER_WAY + 100)
    assert len(second) == 3 and one.fill([NAME]) == []
    one.note_unsent(0)
    assert [*first, *second, *everything(one, [NAME])] == encode_chunks(TOPICS, CONTENT)
    assert one.missing([NAME]) == [] and one.fill([NAME]) == []


def test_several_contents_come_one_after_the_other() -> None:
    sent = everything(one := publisher(), BOTH)
    contents = {NAME: CONTENT, OTHER_NAME: OTHER}
    assert sent == [message for sha256 in BOTH for message in encode_chunks(TOPICS, contents[sha256])]
    assert one.missing(BOTH) == []


def test_a_large_content_is_in_memory_once() -> None:
    content = bytes(40 * CHUNK_BYTES)
    name = hashlib.sha256(content).hexdigest()
    one = ArtifactPublisher(TOPICS, {name: content})
    tracemalloc.start()
    try:
        for _ in range(5):
            assert len(one.fill([name])) == UNDER_WAY
            one.note_unsent(0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2.5 * UNDER_WAY * CHUNK_BYTES < len(content)


def test_what_is_not_wanted_any_more_leaves_no_chunks_behind() -> None:
    broker, one = MemoryBroker(), publisher()
    bus, late = broker.connect(Session("coordinator")), broker.connect(Session("late"))
    for message in [*one.fill([NAME]), *one.remove_unreferenced([OTHER_NAME])]:
        bus.publish(message.topic, message.payload, retain=True)
    bus.poll(0)
    late.subscribe([TOPICS.chunk(NAME, "+"), TOPICS.slice("+")])
    assert late.poll(0) == []
    one.note_unsent(0)
    assert one.fill([NAME]) == [] and everything(one, [OTHER_NAME]) == encode_chunks(TOPICS, OTHER)


def test_an_upload_begins_anew_when_the_broker_was_away() -> None:
    one = publisher()
    one.fill([NAME])
    one.forget_broker()
    one.note_unsent(0)
    assert everything(one, [NAME]) == encode_chunks(TOPICS, CONTENT)


def test_what_somebody_could_not_get_is_sent_again_less_and_less_often() -> None:
    one, now, waits = publisher(), 0.0, []
    everything(one, [NAME])
    assert one.republish(NAME, now) and one.missing([NAME]) == [NAME]
    for _ in range(8):
        assert everything(one, [NAME]) == encode_chunks(TOPICS, CONTENT) and one.missing([NAME]) == []
        since = now
        while not one.republish(NAME, now):  # somebody asks every second
            now += 1
        waits.append(now - since)
    assert waits == [min(AGAIN_S * 2**k, MOST_AGAIN_S) for k in range(8)]
    now += 10 * MOST_AGAIN_S
    everything(one, [NAME])
    assert one.republish(NAME, now) and not one.republish(NAME, now + AGAIN_S - 1)
    everything(one, [NAME])
    assert one.republish(NAME, now + AGAIN_S)


def test_what_is_on_its_way_is_not_begun_anew() -> None:
    one = publisher()
    first = one.fill([NAME])
    assert not one.republish(NAME, 0.0)
    one.note_unsent(0)
    assert [*first, *everything(one, [NAME])] == encode_chunks(TOPICS, CONTENT)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1])
def test_chunks_are_counted_as_they_are_sent(size: int) -> None:
    assert count_chunks(size) == len(encode_chunks(TOPICS, bytes(size))) - 1
