"""What is left at the broker of what has gone: which of it may be cleared, and that it is."""

from __future__ import annotations

import hashlib

import pytest

from har_edge.errors import BrokerError
from har_edge.monitor.broker_checks import Verdict
from har_edge.monitor.leftovers import (
    Leftovers,
    Retained,
    clear_all,
    leftovers_of_folder,
    leftovers_of_plan,
    read_retained,
    report_leftovers,
    report_sessions,
)
from har_edge.mqtt.bus import Outgoing, PublishOutcome, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.artifacts import Header
from har_edge.protocol.status import NodeStatus, State
from har_edge.runtime.artifacts import encode_chunks
from tests.runtime.deployed import CHAIN, TOPICS, Said, deployment, generation

COMMAND = "har-edge doctor --clear --config slices"


def status(node: str, state: State = State.STOPPED, role: str = "stage", epoch: int = 0) -> NodeStatus:
    return NodeStatus(node, role, state, f"{node}-1", 1.0, epoch=epoch)


def kept(*statuses: NodeStatus, plan: bool = False, headers: tuple[Header, ...] = ()) -> Retained:
    return Retained(
        {one.node: one for one in statuses}, deployment(generation("a", "b", "c")) if plan else None, headers
    )


def header(sha256: str) -> Header:
    return Header(1, sha256, 1000, 1000, 1)


FOREIGN, WANTED = header("f" * 64), header(CHAIN.slices[0].sha256)
SENSOR = status("sensor-all", State.LOST, "sensor")


def test_a_folder_keeps_its_own_stages_however_long_they_have_gone() -> None:
    found = leftovers_of_folder(kept(status("stage-0"), status("stage-1", State.LOST), status("stage-2"), SENSOR), 2)
    assert found == Leftovers(stages=("stage-2",), others=("sensor-all",))
    assert found.found and found.matters
    assert not leftovers_of_folder(kept(status("stage-0"), status("stage-1")), 2).found


def test_stages_that_take_turns_belong_to_the_folder_and_windows_wait_for_them() -> None:
    turns = (status("stage-1-1", State.READY), status("stage-1-2", State.LOST))
    assert leftovers_of_folder(kept(status("stage-0"), status("stage-1"), *turns), 2) == Leftovers()
    gone = kept(*(status(name, State.LOST) for name in ("stage-2-1", "stage-1-01", "stage-1-0", "stage-1-x")))
    assert leftovers_of_folder(gone, 2) == Leftovers(stages=("stage-2-1", "stage-1-01", "stage-1-0", "stage-1-x"))


def test_a_stage_beyond_the_folder_that_lives_is_not_cleared_but_named() -> None:
    found = leftovers_of_folder(kept(status("stage-2", State.READY)), 2)
    assert found == Leftovers(intruders=("stage-2",))
    (finding,) = report_leftovers("leftovers", found, COMMAND)
    assert finding.verdict is Verdict.FAIL and "stage-2 live under this name" in finding.said


@pytest.mark.parametrize(("state", "cleared"), [(State.READY, False), (State.STOPPED, True), (State.LOST, True)])
def test_plan_and_files_are_left_over_of_a_folder_only_without_their_coordinator(state: State, cleared: bool) -> None:
    found = leftovers_of_folder(kept(status("coordinator", state, "coordinator"), plan=True, headers=(FOREIGN,)), 2)
    assert (found.plan, found.headers) == (cleared, (FOREIGN,) if cleared else ())


def test_a_plan_keeps_what_it_names_and_its_coordinator() -> None:
    gone = status("coordinator", State.LOST, "coordinator")
    found = leftovers_of_plan(kept(gone, status("stage-0"), SENSOR, plan=True, headers=(FOREIGN, WANTED)))
    assert found == Leftovers(stages=("stage-0",), others=("sensor-all",), headers=(FOREIGN,))
    living = status("coordinator", State.READY, "coordinator")
    assert not leftovers_of_plan(kept(living, plan=True, headers=(FOREIGN,))).found  # it removes them itself


def test_stages_at_work_for_the_plan_are_no_intruders_and_those_of_another_cut_are() -> None:
    epoch = generation("a").epoch
    mine, other = status("stage-0", State.READY, epoch=epoch), status("stage-1", State.READY, epoch=epoch + 1)
    assert leftovers_of_plan(kept(mine, other, plan=True)).intruders == ("stage-1",)


def test_without_a_plan_stages_and_files_stay() -> None:
    assert leftovers_of_plan(kept(status("stage-0"), SENSOR, headers=(FOREIGN,))) == Leftovers(others=("sensor-all",))


def test_what_does_no_harm_yet_is_a_note_with_the_command_and_sensors_are_none() -> None:
    (finding,) = report_leftovers("leftovers", Leftovers(stages=("stage-2",), headers=(FOREIGN,), plan=True), COMMAND)
    assert finding.verdict is Verdict.NOTE and finding.remedy == f"clear them with `{COMMAND}`"
    for said in ("have gone: stage-2", "the plan of a coordinator", "1 files (1.0 kB) that no plan names"):
        assert said in finding.said
    (finding,) = report_leftovers("leftovers", Leftovers(others=("sensor-all",)), COMMAND)
    assert finding.verdict is Verdict.OK and "sensor-all" in finding.said
    (finding,) = report_leftovers("leftovers", Leftovers(), COMMAND)
    assert (finding.verdict, finding.said) == (Verdict.OK, "nothing")


@pytest.mark.parametrize(
    ("away", "stages", "verdict", "said"),
    [
        (None, (), Verdict.OK, "does not tell how many wait"),
        (0, (), Verdict.OK, "none waits"),
        (1, ("stage-0",), Verdict.OK, "1 session waits for stages of this pipeline that are away: stage-0"),
        (
            3,
            ("stage-0",),
            Verdict.NOTE,
            "3 sessions wait at the broker for clients that are away, 1 of them",
        ),
        (2, (), Verdict.NOTE, "none of them for a stage of this pipeline"),
    ],
)
def test_sessions_that_outlive_their_clients(
    away: int | None, stages: tuple[str, ...], verdict: Verdict, said: str
) -> None:
    finding = report_sessions("sessions", away, stages)
    assert finding.verdict is verdict and said in finding.said
    assert ("persistent_client_expiration" in finding.remedy) == (verdict is Verdict.NOTE)


def test_clearing_removes_what_was_found_and_nothing_else() -> None:
    broker, said = MemoryBroker(), Said()
    bus = broker.connect(Session("says"))
    content = b"x" * 3000
    messages = [
        *encode_chunks(TOPICS, content, 1000),
        Outgoing(TOPICS.status("pi-1"), said.status("pi-1", state=State.BUSY).payload, retain=True),
        Outgoing(TOPICS.status("pi-2"), said.status("pi-2", state=State.LOST).payload, retain=True),
        Outgoing(TOPICS.status("stage-0"), said.status("stage-0", "stage", State.LOST).payload, retain=True),
        Outgoing(TOPICS.plan(), said.plan(deployment(generation("pi-1", "pi-1", "pi-1"))).payload, retain=True),
    ]
    for one in messages:
        bus.publish(one.topic, one.payload, retain=one.retain)
    bus.poll(0.0)
    session = Session(f"{TOPICS.base}.{TOPICS.pipeline}.stage-0", expiry_s=60)
    queue = broker.connect(session)
    queue.subscribe([TOPICS.window("+", "+")])
    queue.close()
    assert broker.knows(session)

    found = leftovers_of_plan(read_retained(broker.connect, TOPICS))
    assert (found.stages, found.others) == (("stage-0",), ("pi-2",))
    assert [one.sha256 for one in found.headers] == [hashlib.sha256(content).hexdigest()]
    assert list(clear_all(broker.connect, TOPICS, found)) == [
        "pi-2: session ended, status removed",
        "stage-0: session ended, status removed",
        "files: 1 removed",
    ]
    assert not broker.knows(session)
    left = broker.connect(Session("left"))
    left.subscribe([f"{TOPICS.prefix}#"])
    assert sorted(one.topic for one in left.poll(0.0)) == [TOPICS.status("pi-1"), TOPICS.plan()]


def test_a_broker_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()

    def connect(session: Session) -> object:
        bus = broker.connect(session)
        refuse = lambda topic, payload, *, retain, on_outcome: on_outcome(PublishOutcome.REFUSED)  # noqa: E731
        monkeypatch.setattr(bus, "publish", refuse)
        return bus

    with pytest.raises(BrokerError, match="refuses this user 1 topics, such as har/v1/har/node/stage-0/"):
        list(clear_all(connect, TOPICS, Leftovers(stages=("stage-0",))))  # type: ignore[arg-type]
