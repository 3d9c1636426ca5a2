"""Stages under one name: those of another model or task are refused, all else goes on."""

from __future__ import annotations

import msgspec
import pytest

from har_edge.config.task import SourceInput
from har_edge.errors import NodeError
from har_edge.mqtt.bus import Outgoing, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.status import NodeStatus, SliceInfo, State, encode_status
from har_edge.runtime.stage.neighbours import check_neighbours, describe_task, hash_task
from tests.protocol.reading import read_status
from tests.runtime.rig import TASK, TOPICS

CARD = SliceInfo(0, 2, "a.tflite", "a" * 64, describe_task(TASK), hash_task(TASK), 0, 3)


def retained(card: SliceInfo | None, state: State = State.READY, role: str = "stage") -> MemoryBroker:
    broker = MemoryBroker()
    bus = broker.connect(Session("stage"))
    status = NodeStatus("stage-1", role, state, "i", 1.0, slice=card)
    bus.publish(TOPICS.status("stage-1"), encode_status(status), retain=True)
    bus.publish(TOPICS.status("odd"), b"{", retain=True)
    bus.poll(0.0)
    return broker


def changed(**fields: object) -> SliceInfo:
    return msgspec.structs.replace(CARD, **fields)


def test_another_model_is_refused_with_both_names() -> None:
    broker = retained(changed(model="b.tflite", model_sha256="b" * 64))
    with pytest.raises(NodeError) as caught:
        check_neighbours(broker.connect, TOPICS, CARD)
    said = str(caught.value)
    assert "pipeline 'test' runs b.tflite (sha256 bbbbbbbbbbb…; mhealth: 4 samples at 50 Hz of chest, arm, 2 " in said
    assert "by stage-1, but this folder is for a.tflite (sha256 aaaaaaaaaaa…; " in said


def test_another_task_of_the_same_model_is_refused() -> None:
    other = msgspec.structs.replace(TASK, labels=["still", "running"])
    broker = retained(changed(task_sha256=hash_task(other)))
    with pytest.raises(NodeError, match=r"pipeline 'test' runs a.tflite"):
        check_neighbours(broker.connect, TOPICS, CARD)


@pytest.mark.parametrize("state", [State.STOPPED, State.LOST])
def test_those_that_are_gone_are_no_neighbours(state: State) -> None:
    check_neighbours(retained(changed(model_sha256="b" * 64), state).connect, TOPICS, CARD)


@pytest.mark.parametrize("card", [None, CARD, changed(index=1, count=5, start=7, stop=9)])
def test_an_older_har_edge_a_second_start_and_another_cut_go_on(card: SliceInfo | None) -> None:
    check_neighbours(retained(card).connect, TOPICS, CARD)


def test_a_reducer_makes_no_other_task() -> None:
    inputs = TASK.inputs | {"arm": SourceInput("a", "paa:2")}
    assert hash_task(msgspec.structs.replace(TASK, inputs=inputs)) == hash_task(TASK)
    for field, value in (("output", "x"), ("label_ids", [1, 5]), ("inputs", {"arm": SourceInput("a")})):
        assert hash_task(msgspec.structs.replace(TASK, **{field: value})) != hash_task(TASK)


def test_an_older_node_reads_a_status_with_a_card() -> None:
    class Older(msgspec.Struct):
        node: str

    payload = encode_status(NodeStatus("stage-1", "stage", State.READY, "i", 1.0, slice=CARD))
    assert msgspec.json.decode(payload, type=Older).node == "stage-1"
    assert read_status(Outgoing(TOPICS.status("stage-1"), payload)).slice == CARD


@pytest.mark.parametrize(
    ("node", "role", "state", "ends"),
    [
        ("stage-2", "stage", State.LOST, True),
        ("stage-12", "stage", State.STOPPED, True),
        ("stage-2", "stage", State.READY, False),  # it lives
        ("stage-1", "stage", State.LOST, False),  # this cut has it
        ("stage-02", "stage", State.LOST, False),
        ("stage-" + "9" * 100, "stage", State.LOST, False),
        ("stage-x", "stage", State.LOST, False),
        ("stage-2", "sensor", State.LOST, False),
    ],
)
def test_the_session_of_a_stage_that_this_cut_does_not_have_is_ended(
    node: str, role: str, state: State, ends: bool
) -> None:
    """The sender of what it was subscribed to must learn that nobody listens, and nothing piles up."""
    broker = MemoryBroker()
    session = Session(f"{TOPICS.base}.{TOPICS.pipeline}.{node}", expiry_s=600)
    old = broker.connect(session)
    old.subscribe([TOPICS.activation(0, 1, "+")])
    old.crash()
    teller = broker.connect(Session("teller"))
    teller.publish(TOPICS.status(node), encode_status(NodeStatus(node, role, state, "i", 1.0)), retain=True)
    teller.publish(TOPICS.activation(0, 1, "anna"), b"piles up")
    teller.poll(0.0)
    check_neighbours(broker.connect, TOPICS, CARD)
    assert broker.knows(session) is not ends


def test_a_stage_that_may_give_other_bits_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    ours = changed(index=0, runtime="ai-edge-litert 2.3.0", system="Linux aarch64, Python 3.11", delegate="xnnpack")
    theirs = changed(index=1, runtime="tflite-runtime 2.14.0", system="Linux armv7l, Python 3.11", delegate="none")
    check_neighbours(retained(theirs).connect, TOPICS, ours, {"float32"})
    assert "stage-1 (tflite-runtime 2.14.0, armv7l, delegate none)" in caplog.text
    caplog.clear()
    check_neighbours(retained(changed(index=1)).connect, TOPICS, ours, {"float32"})  # an older one does not say it
    check_neighbours(retained(theirs).connect, TOPICS, ours)
    assert "answers may differ" not in caplog.text


def test_stages_that_were_all_told_none_are_not_warned_of_what_none_prevents(caplog: pytest.LogCaptureFixture) -> None:
    ours, theirs = (
        changed(index=index, runtime="tflite-runtime 2.14.0", system="Linux aarch64, Python 3.11", delegate="none")
        for index in (0, 1)
    )
    check_neighbours(retained(theirs).connect, TOPICS, ours, {"float32"}, delegate="none")
    assert "answers may differ" not in caplog.text
    check_neighbours(retained(theirs).connect, TOPICS, ours, {"float32"})
    assert "--delegate none prevents it" in caplog.text
