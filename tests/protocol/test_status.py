"""What nodes say of themselves, and who of two processes goes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from har_edge.errors import MessageError
from har_edge.mqtt.bus import Session
from har_edge.mqtt.clients.session_lease import lease_lost
from har_edge.mqtt.memory import MemoryBroker, MemoryBus
from har_edge.protocol.leases import status_lease
from har_edge.protocol.results import decode_results, encode_results
from har_edge.protocol.status import (
    ALIVE,
    NEXT,
    NodeStatus,
    State,
    decode_heartbeat,
    decode_status,
    encode_heartbeat,
    encode_status,
)

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")
TOPIC, ANOTHER = "har/v1/test/node/n/status", "har/v1/another/node/n/status"
MINE = status_lease(TOPIC, "mine", 100.0)


def status(**changes: object) -> NodeStatus:
    fields = {"node": "n", "role": "stage", "state": State.READY, "instance": "other", "started": 101.0}
    return NodeStatus(**(fields | changes))  # type: ignore[arg-type]


def test_round_trip_and_what_is_left_out() -> None:
    full = status(version="1", client="paho", detail="d", counters={"windows": 3})
    assert decode_status(encode_status(full)) == full
    assert encode_status(status()) == (
        b'{"node":"n","role":"stage","state":"ready","instance":"other","started":101.0}'
    )


def test_the_examples_on_the_page_are_what_nodes_send() -> None:
    result, anomaly, stage, sensor, node, beat = re.findall(r"```json\n(.*)\n```", PAGE)
    for answer in (result, anomaly):
        assert encode_results(decode_results(answer.encode())) == answer.encode()
    for status in (stage, sensor, node):
        assert encode_status(decode_status(status)) == status.encode()
    assert encode_heartbeat(decode_heartbeat(beat)) == beat.encode()
    assert decode_status(node).device is not None and decode_heartbeat(beat).stages


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"node":1}', '{"node":"n","role":"r","state":"?","instance":"i","started":1}']
)
def test_other_json_is_no_status(text: str) -> None:
    with pytest.raises(MessageError):
        decode_status(text)


@pytest.mark.parametrize("figure", ["1" + 400 * "0", "-1", str(2**53 + 1), "1e999", "null"])
@pytest.mark.parametrize("field", ["cores", "memory_bytes", "protocol"])
def test_figures_of_a_device_that_nobody_can_reckon_with_are_refused(field: str, figure: str) -> None:
    card = '{"protocol":1,"machine":"m","system":"s","cores":4,"memory_bytes":5,"runtime":"r","speed":1.5}'
    text = f'{{"node":"n","role":"node","state":"ready","instance":"i","started":1,"device":{card}}}'
    assert decode_status(text).device is not None
    changed = re.sub(rf'"{field}":\d+', f'"{field}":{figure}', text)
    assert changed != text
    with pytest.raises(MessageError):
        decode_status(changed)


@pytest.mark.parametrize("field", ["epoch", "stage", "replica", "windows", "lost", "errors", "queued", "service_s"])
@pytest.mark.parametrize("figure", ["1" + 400 * "0", "-1"])
def test_figures_of_a_stage_that_nobody_can_reckon_with_are_refused(field: str, figure: str) -> None:
    figures = {"epoch": "1", "stage": "0", "replica": "0", "phase": '"running"', field: figure}
    stage = ",".join(f'"{name}":{value}' for name, value in figures.items())
    with pytest.raises(MessageError):
        decode_heartbeat(f'{{"node":"n","instance":"i","number":1,"time":1.0,"stages":[{{{stage}}}]}}')


@pytest.mark.parametrize(
    ("retained", "expected"),
    [
        (None, False),
        (encode_status(status()), True),
        (encode_status(status(started=99.0)), False),
        (encode_status(status(started=100.0)), False),
        (encode_status(status(instance="mine", started=100.0)), False),
        (encode_status(status(state=State.LOST)), False),
        (encode_status(status(state=State.STOPPED)), False),
        (b"no status at all", False),
        (b"\xff", False),
        (b'{"node":"\xff"}', False),
        (b'{"a":' * 20_000, False),
    ],
    ids=[
        "none",
        "younger",
        "older",
        "same age",
        "mine",
        "younger but lost",
        "younger but gone",
        "garbage",
        "not UTF-8",
        "not UTF-8 in a text",
        "deep",
    ],
)
def test_who_has_the_session(retained: bytes | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.mqtt.clients.session_lease.LEASE_LOOK_S", 0.2)
    broker = MemoryBroker()
    if retained is not None:
        bus = broker.connect(Session("writer"))
        bus.publish(TOPIC, retained, retain=True)
        bus.close()
    looked: list[Session] = []

    def connect(session: Session) -> MemoryBus:
        looked.append(session)
        return broker.connect(session)

    assert lease_lost(MINE, connect) is expected
    assert looked[0].client_id.startswith("look-") and looked[0].clean_start and looked[0].expiry_s == 0


def test_the_table_of_states_leads_everywhere_and_nowhere_else() -> None:
    assert set(NEXT) == set(State) and all(state not in after for state, after in NEXT.items())
    assert {state for state, after in NEXT.items() if State.LOST in after} == ALIVE
    assert NEXT[State.DRAINING].isdisjoint({State.READY, State.BUSY}), "who leaves takes no more stages"


def test_what_is_retained_at_other_topics_settles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("har_edge.mqtt.clients.session_lease.LEASE_LOOK_S", 0.2)
    broker = MemoryBroker()
    writer = broker.connect(Session("writer"))
    for topic in (ANOTHER, TOPIC):
        writer.publish(topic, encode_status(status(started=101.0 if topic == ANOTHER else 99.0)), retain=True)
    writer.close()

    def connect(session: Session) -> MemoryBus:
        bus = broker.connect(session)
        bus.subscribe([ANOTHER])
        return bus

    assert not lease_lost(MINE, connect)
    assert lease_lost(status_lease(ANOTHER, "mine", 100.0), connect)
