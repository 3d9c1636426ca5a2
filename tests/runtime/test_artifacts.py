"""Contents through the broker: divided, fetched, checked; forged and broken ones never get out."""

from __future__ import annotations

import hashlib
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from har_edge.errors import MessageError, NodeError
from har_edge.mqtt.bus import Bus, Delivery, Outgoing, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.artifacts import MAX_BYTES, MAX_CHUNK_BYTES, Header, encode_header
from har_edge.protocol.events import HeaderEvent, Unreadable, decode
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import ArtifactIndex, Fetch, clear, encode_chunks, fetch, fetch_session

TOPICS = Topics("har", "test")
CONTENT = random.Random(1).randbytes(1050)
NAME = hashlib.sha256(CONTENT).hexdigest()
GOOD = Header(1, NAME, 1050, 100, 11)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def delivery(outgoing: Outgoing) -> Delivery:
    return Delivery(outgoing.topic, outgoing.payload, (1, 1), retained=True)


def header(changes: dict[str, object]) -> Delivery:
    return Delivery(TOPICS.slice(NAME), encode_header(msgspec.structs.replace(GOOD, **changes)), (1, 1))


def refused(payload: bytes) -> str:
    event = decode(Outgoing(TOPICS.slice(NAME), payload))
    assert isinstance(event, Unreadable)
    return event.reason


def publish(broker: MemoryBroker, messages: list[Outgoing]) -> None:
    bus = broker.connect(Session("coordinator"))
    for one in messages:
        bus.publish(one.topic, one.payload, retain=one.retain)
    bus.close()


def never() -> bool:
    return False


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 200, 1050])
def test_any_size_any_order_any_repetition(size: int) -> None:
    content = CONTENT[:size]
    *chunks, first = map(delivery, encode_chunks(TOPICS, content, 100))
    assert len(chunks) == -(-size // 100) and all(one.retained for one in (*chunks, first))
    one = Fetch(TOPICS, sha256_of(content))
    assert one.filters == (f"har/v1/test/slice/{sha256_of(content)}",)
    got = one.handle(first)
    random.Random(size).shuffle(chunks)
    again = [first] if chunks else []
    for chunk in [*chunks[:-1], *chunks[:-1], *again, *chunks[-1:]]:  # some come twice, the header too
        assert got is None
        got = one.handle(chunk)
    assert got == content and one.rejected == 0
    assert one.filters == (f"har/v1/test/chunk/{sha256_of(content)}/+",)


HEADERS = [
    ({"version": 2}, "says version 2; expected 1"),
    ({"sha256": "0" * 64}, "says sha256 '0+'; expected that of its topic"),
    ({"size": -1}, f"says -1 bytes; expected 0 to {MAX_BYTES}"),
    ({"size": 2**62}, f"says 4611686018427387904 bytes; expected 0 to {MAX_BYTES}"),
    ({"size": MAX_BYTES + 1}, f"says {MAX_BYTES + 1} bytes; expected 0 to {MAX_BYTES}"),
    ({"chunk_bytes": 0}, f"says chunks of 0 bytes; expected 1 to {MAX_CHUNK_BYTES}"),
    ({"chunk_bytes": -100}, "says chunks of -100 bytes"),
    ({"chunk_bytes": MAX_CHUNK_BYTES + 1}, f"says chunks of {MAX_CHUNK_BYTES + 1} bytes"),
    ({"chunks": 10}, "says 10 chunks; expected 11 for 1050 bytes in 100 each"),
    ({"chunks": 2**62}, "says 4611686018427387904 chunks; expected 11"),
]


@pytest.mark.parametrize(("changes", "text"), HEADERS)
def test_a_forged_header_is_refused(changes: dict[str, object], text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert re.search(f"the header of {NAME} {text}", refused(header(changes).payload))
    one = Fetch(TOPICS, NAME)
    assert one.handle(header(changes)) is None and one.rejected == 1 and len(one.content) == 0
    assert one.progress == "no header came" and "it is not used" in caplog.text


def test_what_a_forged_header_declares_is_never_allocated() -> None:
    most = 2**30
    tracemalloc.start()
    try:
        for changes in (
            {"size": 2**40, "chunks": 2**40 // 100 + 1},
            {"size": most, "chunk_bytes": 1, "chunks": most},  # a set of so many numbers would fill the memory
        ):
            one = Fetch(TOPICS, NAME, most)
            one.handle(header(changes))
            assert one.rejected == 1
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("payload", [b"\xc1", b"\x95\x01", b"{}", b"\x90", bytes(2000), b"\x91" * 900, b"\x85"])
def test_what_is_no_header_is_refused(payload: bytes) -> None:
    assert re.search(r"is no header: .*expected one of version 1|a header of 2000 bytes came", refused(payload))


def test_every_truncation_of_a_header_is_refused() -> None:
    whole = encode_header(GOOD)
    event = decode(Outgoing(TOPICS.slice(NAME), whole))
    assert isinstance(event, HeaderEvent) and event.header == GOOD
    for length in range(1, len(whole)):  # an empty message takes a header away
        assert "is no header" in refused(whole[:length])
    assert "is no header" in refused(whole + b"\0")


def test_chunks_that_do_not_fit_are_counted_and_dropped(caplog: pytest.LogCaptureFixture) -> None:
    *chunks, first = map(delivery, encode_chunks(TOPICS, CONTENT, 100))
    one = Fetch(TOPICS, NAME)
    one.handle(first)
    bad = [
        ("0", bytes(99)),
        ("0", bytes(101)),
        ("10", bytes(100)),  # the last one has 50
        ("11", bytes(100)),
        ("-1", bytes(100)),
        ("x", bytes(100)),
        ("9" * 100, bytes(100)),
    ]
    for number, payload in bad:
        assert one.handle(Delivery(TOPICS.chunk(NAME, number), payload, (1, 1))) is None
    assert one.rejected == len(bad) and "chunk 11 of" in caplog.text and "it does not fit" in caplog.text
    others = [TOPICS.chunk("0" * 64, 0), TOPICS.slice("0" * 64), TOPICS.plan(), "another/topic"]
    for topic in others:
        assert one.handle(Delivery(topic, bytes(100), (1, 1))) is None
    assert [one.handle(chunk) for chunk in chunks][-1] == CONTENT


def test_a_changed_chunk_never_gets_out() -> None:
    *chunks, first = map(delivery, encode_chunks(TOPICS, CONTENT, 100))
    chunks[3] = Delivery(chunks[3].topic, bytes(100), (1, 1))
    one = Fetch(TOPICS, NAME)
    for each in (first, *chunks[:-1]):
        assert one.handle(each) is None
    with pytest.raises(MessageError, match=f"1050 bytes with sha256 [0-9a-f]+ came for {NAME}: forged or corrupt"):
        one.handle(chunks[-1])
    assert len(one.content) == 0 and one.progress == "no header came"  # it begins anew


def test_a_content_divided_anew_replaces_what_came() -> None:
    one = Fetch(TOPICS, NAME)
    for each in [*encode_chunks(TOPICS, CONTENT, 100)[-1:], *encode_chunks(TOPICS, CONTENT, 100)[:5]]:
        assert one.handle(delivery(each)) is None
    *chunks, first = map(delivery, encode_chunks(TOPICS, CONTENT, 300))
    assert [one.handle(each) for each in (first, *chunks)][-1] == CONTENT


def test_fetch_brings_what_the_store_lacks_and_nothing_else(tmp_path: Path) -> None:
    broker, store = MemoryBroker(), Store(tmp_path)
    contents = [CONTENT, b"", b"x" * 100, b"known"]
    wanted = list(map(sha256_of, contents))
    store.put(wanted[3], b"known")
    for content in contents:
        publish(broker, encode_chunks(TOPICS, content, 100))
    bus = broker.connect(fetch_session())
    fetch(bus, TOPICS, wanted, store, never)
    assert [store.path(name).read_bytes() for name in wanted] == contents
    assert bus.traffic.received == 3 + 11 + 0 + 1
    fetch(bus, TOPICS, wanted, store, never)  # all there: nothing travels
    assert bus.traffic.received == 3 + 11 + 0 + 1


def test_fetch_waits_for_a_content_that_comes_later(tmp_path: Path) -> None:
    broker, store = MemoryBroker(), Store(tmp_path)
    publish(broker, encode_chunks(TOPICS, CONTENT, 100)[:4])
    turns = iter(range(1000))

    def later() -> bool:
        if next(turns) == 5:
            publish(broker, encode_chunks(TOPICS, CONTENT, 100))
        return False

    fetch(broker.connect(fetch_session()), TOPICS, [NAME], store, later)
    assert store.path(NAME).read_bytes() == CONTENT


def test_fetch_goes_on_after_a_reconnection(tmp_path: Path) -> None:
    broker, store = MemoryBroker(), Store(tmp_path)
    content = random.Random(2).randbytes(10_000)  # 100 chunks, 16 of them under way at once
    publish(broker, encode_chunks(TOPICS, content, 100))
    bus = broker.connect(fetch_session())
    turns = iter(range(1000))
    seen: list[int] = []

    def restart() -> bool:
        turn = next(turns)
        seen.append(bus.traffic.received)
        if turn == 4:
            broker.stop()
        if turn == 8:
            broker.start()
        return False

    fetch(bus, TOPICS, [sha256_of(content)], store, restart)
    assert 1 < seen[4] == seen[8] < 101 and bus.traffic.reconnects == 1
    assert store.path(sha256_of(content)).read_bytes() == content


def test_fetch_says_how_far_it_came_when_a_chunk_is_missing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    messages = encode_chunks(TOPICS, CONTENT, 100)
    publish(broker, [*messages[:4], *messages[5:]])
    bus = broker.connect(fetch_session())
    with pytest.raises(NodeError, match=f"{NAME} did not come: 10 of 11 chunks came in 0.05 s, 0 messages of no use"):
        fetch(bus, TOPICS, [NAME], Store(tmp_path), never, timeout_s=0.05)
    with pytest.raises(
        NodeError, match=r"0000 did not come: no header came in 0.05 s, .*; see that the coordinator ru"
    ):
        fetch(bus, TOPICS, ["0" * 64], Store(tmp_path), never, timeout_s=0.05)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("break_it", [lambda c: bytes(100), lambda c: c[:99] + b"\0"], ids=["zeros", "one byte"])
def test_fetch_keeps_nothing_that_is_forged(tmp_path: Path, break_it: Callable[[bytes], bytes]) -> None:
    broker = MemoryBroker()
    messages = encode_chunks(TOPICS, CONTENT, 100)
    messages[2] = Outgoing(messages[2].topic, break_it(messages[2].payload), retain=True)
    publish(broker, messages)
    with pytest.raises(NodeError, match=f"came for {NAME}: forged or corrupt; .*see who else may publish below"):
        fetch(broker.connect(fetch_session()), TOPICS, [NAME], Store(tmp_path), never)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_chunk_counts_as_missing(tmp_path: Path) -> None:
    broker = MemoryBroker()
    messages = encode_chunks(TOPICS, CONTENT, 100)
    messages[2] = Outgoing(messages[2].topic, messages[2].payload[:60], retain=True)
    publish(broker, messages)
    bus = broker.connect(fetch_session())
    with pytest.raises(NodeError, match=r"10 of 11 chunks came in 0\.05 s, 1 messages of no use"):
        fetch(bus, TOPICS, [NAME], Store(tmp_path), never, timeout_s=0.05)


def test_fetch_stops_when_it_is_told(tmp_path: Path) -> None:
    fetch(MemoryBroker().connect(fetch_session()), TOPICS, [NAME], Store(tmp_path), lambda: True)


def test_a_full_store_is_said(tmp_path: Path) -> None:
    broker = MemoryBroker()
    publish(broker, encode_chunks(TOPICS, CONTENT, 100))
    bus = broker.connect(fetch_session())
    with pytest.raises(NodeError, match="raise it with --cache-bytes to at least 1050"):
        fetch(bus, TOPICS, [NAME], Store(tmp_path, 1000), never)
    assert bus.traffic.received == 1  # the header; no chunk travels in vain


def read_index(bus: Bus, index: ArtifactIndex) -> None:
    while came := bus.poll(0):
        for one in came:
            assert index.handle(decode(one, TOPICS))
            bus.acknowledge(one)


def test_an_index_knows_what_the_broker_has() -> None:
    broker, index = MemoryBroker(), ArtifactIndex(TOPICS)
    bus = broker.connect(Session("index"))
    bus.subscribe([index.filter])
    publish(broker, encode_chunks(TOPICS, CONTENT, 100))
    publish(broker, encode_chunks(TOPICS, b"x", 100))
    publish(broker, [Outgoing(TOPICS.slice("0" * 64), b"forged", retain=True)])
    read_index(bus, index)
    assert index.headers == {NAME: GOOD, sha256_of(b"x"): Header(1, sha256_of(b"x"), 1, 100, 1)}
    assert index.missing([NAME, "f" * 64, "0" * 64]) == ["0" * 64, "f" * 64]
    (surplus,) = index.surplus([sha256_of(b"x")])
    assert surplus == GOOD
    publish(broker, clear(TOPICS, surplus.sha256, surplus.chunks))
    read_index(bus, index)
    assert index.surplus([sha256_of(b"x")]) == []
    late = broker.connect(Session("late"))
    late.subscribe([TOPICS.chunk(NAME, "+"), TOPICS.slice(NAME)])
    assert late.poll(0) == []  # nothing of it is retained any more
    for topic in (TOPICS.plan(), "x"):
        assert not index.handle(decode(Outgoing(topic, b"{}"), TOPICS))
