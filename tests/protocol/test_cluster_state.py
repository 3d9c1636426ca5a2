"""The state of a cluster: what its members say, in whatever order it comes, bounded whatever comes."""

from __future__ import annotations

import copy
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.artifacts import Header, encode_header
from har_edge.protocol.cluster_state import MAX_ARTIFACTS, MAX_NODES, ClusterState
from har_edge.protocol.deployment import Deployment, encode_deployment
from har_edge.protocol.events import Event, HeartbeatEvent, PlanEvent, StatusEvent, Unreadable, decode
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import (
    ALIVE,
    Heartbeat,
    NodeStatus,
    StagePhase,
    StageReport,
    State,
    StreamCount,
    encode_heartbeat,
    encode_status,
)
from har_edge.protocol.topics import PROBE, Kind
from har_edge.timing import SILENT_S
from tests.runtime.deployed import TOPICS, deployment, generation

PLAN = deployment(generation("a", "b", "c", epoch=7), epoch=7)
SHA256 = "a" * 64


def event_of(topic: str, payload: bytes, *, retained: bool = False) -> Event:
    return decode(Delivery(topic, payload, (0, 0), retained), TOPICS)


def status(
    state: State = State.READY, *, node: str = "a", instance: int = 1, retained: bool = False, **more: object
) -> Event:
    """What the start of this number of a node says, or what the broker says of it."""
    fields = {"role": "node", "started": float(instance)} | more
    said = NodeStatus(node=node, state=state, instance=f"{node}-{instance}", **fields)  # type: ignore[arg-type]
    return event_of(TOPICS.status(node), encode_status(said), retained=retained)


def heartbeat(*phases: StagePhase, node: str = "a", instance: int = 1, stage: int = 0, number: int = 1) -> Event:
    reports = tuple(StageReport(7, stage + k, 0, phase) for k, phase in enumerate(phases))
    said = Heartbeat(node, f"{node}-{instance}", number, 5.0, 3, reports)
    return event_of(TOPICS.heartbeat(node), encode_heartbeat(said))


def plan(said: Deployment | None = PLAN) -> Event:
    event = event_of(TOPICS.plan(), b"" if said is None else encode_deployment(said))
    assert isinstance(event, PlanEvent)
    return event


def results(*streams: str) -> Event:
    made = [Result(stream, 0, "still", 1, 1.0, 0.0, 0.0, 7) for stream in streams]
    return event_of(TOPICS.result(streams[0]), encode_results(made))


def header(sha256: str = SHA256) -> Event:
    return event_of(TOPICS.slice(sha256), encode_header(Header(1, sha256, 3, 100, 1)))


def folded(*events: Event, now: float = 0.0) -> ClusterState:
    state = ClusterState(now)
    for event in events:
        state.apply(event, now)
    return state


def test_what_was_said_last_stands() -> None:
    state = folded(
        status(State.INIT), status(State.BUSY), heartbeat(StagePhase.FETCHING), heartbeat(StagePhase.RUNNING)
    )
    assert state.state_of("a") is State.BUSY and state.statuses["a"].instance == "a-1"
    assert state.reports["a", 7, 0, 0].phase is StagePhase.RUNNING
    assert state.state_of("b") is None and "b" not in state.statuses


def test_a_node_whose_status_is_removed_is_forgotten() -> None:
    state = folded(status(), heartbeat(StagePhase.RUNNING), event_of(TOPICS.status("a"), b""))
    assert state.nodes == {} and state.reports == {} and not state.is_alive("a", 0.0)


def test_who_lives() -> None:
    state = folded(status(), status(node="sensor", role="sensor"), status(State.LOST, node="c"))
    assert state.is_alive("a", SILENT_S) and not state.is_alive("a", SILENT_S + 0.1)  # it has not been heard
    assert state.is_alive("sensor", 1e6)  # sensors send no heartbeats
    assert not state.is_alive("c", 0.0) and not state.is_alive("nobody", 0.0)
    state.apply(heartbeat(), 10.0)
    assert state.is_alive("a", 10.0 + SILENT_S) and not state.is_alive("a", 10.1 + SILENT_S)


def test_a_retained_heartbeat_says_nothing_of_now_and_a_retained_status_not_when_it_was_said() -> None:
    beat = heartbeat()
    assert isinstance(beat, HeartbeatEvent)
    state = folded(status(retained=True), msgspec.structs.replace(beat, retained=True), now=5.0)
    assert state.heartbeats == {} and state.nodes["a"].said_at == float("-inf")
    state.apply(status(), 6.0)
    assert state.nodes["a"].said_at == 6.0


def test_a_last_will_keeps_the_counts_of_its_process() -> None:
    streams = {"anna": StreamCount(1, 0.0, 12)}
    state = folded(status(role="sensor", streams=streams), status(State.LOST, role="sensor"))
    assert state.state_of("a") is State.LOST and state.statuses["a"].streams == streams
    state.apply(status(role="sensor", instance=2), 1.0)
    assert state.statuses["a"].streams == {}


def test_a_plan_that_cannot_be_read_is_a_problem_until_another_comes() -> None:
    state = folded(plan(), event_of(TOPICS.plan(), b"{"))
    assert state.deployment == PLAN and "what came is no plan" in state.plan_problem
    state.apply(plan(), 1.0)
    assert state.plan_problem == "" and state.deployment == PLAN
    state.apply(plan(None), 2.0)
    assert state.deployment is None


def test_results_count_without_those_of_probes() -> None:
    state = folded(results("anna", "anna"), results(f"{PROBE}1"), results("ben"))
    assert state.results == 3


def test_artifacts_come_and_go_and_one_that_was_spoilt_is_not_there() -> None:
    state = folded(header(), header("b" * 64))
    assert set(state.artifacts) == {SHA256, "b" * 64}
    state.apply(event_of(TOPICS.slice(SHA256), b""), 1.0)
    state.apply(event_of(TOPICS.slice("b" * 64), b"spoilt"), 1.0)
    assert state.artifacts == {} and state.unreadable[Kind.SLICE] == 1


def test_a_cluster_is_settled_when_every_stage_of_the_one_generation_runs() -> None:
    running = [heartbeat(StagePhase.RUNNING, node=node, stage=k) for k, node in enumerate("abc")]
    assert not folded(plan(), *running[:2]).is_settled() and folded(plan(), *running).is_settled()
    assert not folded(*running).is_settled()
    assert not folded(plan(), *running, heartbeat(StagePhase.FAILED, node="b", stage=1)).is_settled()
    both = deployment(generation("a", "b", "c", epoch=7), generation("a", "b", "c", epoch=8), epoch=7)
    assert not folded(plan(both), *running).is_settled()


def test_the_will_of_a_killed_process_that_comes_late_does_not_hide_its_successor() -> None:
    old, new = status(State.LOST, instance=1), status(State.READY, instance=2)
    assert folded(status(), old, new).statuses == folded(status(), new, old).statuses
    assert folded(new, old).state_of("a") is State.READY
    # The clock of the device was set back before the second start: what a living process says counts all the same.
    assert folded(status(instance=2), status(instance=1)).statuses["a"].instance == "a-1"
    assert folded(status(instance=2), status(State.LOST, instance=2)).state_of("a") is State.LOST


LIFE = (State.INIT, State.READY, State.BUSY)


@given(st.integers(1, 4), st.randoms(use_true_random=False))
def test_restarts_end_with_the_last_process_whenever_the_wills_come(starts: int, chance: random.Random) -> None:
    """Each start says its states in order; the broker says the will of a dead one at any time after its last word."""
    said: list[Event] = []
    wills: list[tuple[int, Event]] = []
    for number in range(1, starts + 1):
        said += [status(state, instance=number) for state in LIFE]
        if number < starts:
            wills.append((len(said), status(State.LOST, instance=number)))
    merged = list(said)
    for offset, (earliest, will) in enumerate(wills):
        first = merged.index(said[earliest - 1]) + 1
        merged.insert(chance.randint(first, len(merged)), will)
        assert offset < starts
    state = folded(*merged)
    assert state.statuses["a"].instance == f"a-{starts}" and state.state_of("a") is State.BUSY


anything = st.one_of(
    st.builds(
        lambda node, state, instance, retained: status(state, node=node, instance=instance, retained=retained),
        st.sampled_from("abcd"),
        st.sampled_from(State),
        st.integers(1, 3),
        st.booleans(),
    ),
    st.builds(
        lambda node, phases, instance: heartbeat(*phases, node=node, instance=instance),
        st.sampled_from("abcd"),
        st.lists(st.sampled_from(StagePhase), max_size=3),
        st.integers(1, 3),
    ),
    st.just(plan()),
    st.just(plan(None)),
    st.builds(results, st.sampled_from(["anna", "ben", f"{PROBE}1"])),
    st.builds(header, st.sampled_from([SHA256, "b" * 64])),
    st.builds(lambda payload: event_of(TOPICS.status("a"), payload), st.binary(max_size=8)),
    st.builds(lambda payload: event_of(TOPICS.plan(), payload), st.binary(min_size=1, max_size=8)),
    st.builds(lambda topic: decode(Outgoing(topic, b"")), st.text(max_size=20)),
)


@given(st.lists(anything, max_size=30), st.randoms(use_true_random=False))
def test_what_different_members_say_may_come_in_any_order(events: list[Event], chance: random.Random) -> None:
    """A broker keeps the order of one sender and topic, and of nothing else."""
    queues: dict[str, list[Event]] = {}
    for event in events:
        queues.setdefault("none" if event.topic is None else str(event.topic), []).append(event)
    expected, other = folded(*events), ClusterState(0.0)
    while queues:
        topic = chance.choice(sorted(queues))
        other.apply(queues[topic].pop(0), 0.0)
        if not queues[topic]:
            del queues[topic]
    # A status that was removed takes the heartbeats before it along: what then comes is not the same in every order.
    if any(isinstance(event, StatusEvent) and event.status is None for event in events):
        expected.nodes = {name: node for name, node in expected.nodes.items() if node.status is not None}
        other.nodes = {name: node for name, node in other.nodes.items() if node.status is not None}
        assert expected.statuses == other.statuses
        return
    assert expected == other


@given(st.lists(anything, max_size=30))
def test_the_state_says_what_came_last_of_each(events: list[Event]) -> None:
    state = ClusterState(0.0)
    for now, event in enumerate(events):
        before = copy.deepcopy(state)
        state.apply(event, float(now))
        if isinstance(event, Unreadable):
            assert state.unreadable.total() == before.unreadable.total() + 1
            assert (state.nodes, state.deployment, state.results) == (before.nodes, before.deployment, before.results)
        elif isinstance(event, HeartbeatEvent):
            assert state.heartbeats[event.node] == event.heartbeat and state.is_alive(event.node, now) == (
                state.state_of(event.node) is None or state.state_of(event.node) in ALIVE
            )
        elif isinstance(event, StatusEvent) and event.status is not None:
            known = before.statuses.get(event.node)
            late = known is not None and event.status.started < known.started and event.status.state not in ALIVE
            assert late or state.statuses[event.node] == event.status
    assert all(state.is_alive(name, 1e9) is False for name in state.heartbeats)


@pytest.mark.parametrize("kind", ["nodes", "artifacts"])
def test_floods_are_bounded(kind: str) -> None:
    state = ClusterState(0.0)
    state.apply(status(), 0.0)
    for number in range(MAX_NODES + 5 if kind == "nodes" else 0):
        state.apply(heartbeat(node=f"flood-{number}"), 0.0)
    for number in range(MAX_ARTIFACTS + 5 if kind == "artifacts" else 0):
        state.apply(header(f"{number:064x}"), 0.0)
    assert len(state.nodes) <= MAX_NODES and len(state.artifacts) <= MAX_ARTIFACTS
    if kind == "nodes":
        assert len(state.nodes) == MAX_NODES and state.unshown == 6
        state.apply(status(State.BUSY), 1.0)  # who was there before is heard still
        assert state.state_of("a") is State.BUSY and state.unshown == 6
    else:
        assert len(state.artifacts) == MAX_ARTIFACTS
        state.apply(event_of(TOPICS.slice(f"{0:064x}"), b""), 1.0)
        state.apply(header(), 1.0)
        assert SHA256 in state.artifacts
