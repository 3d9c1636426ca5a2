"""What an observer of a cluster knows: the state now, and of the past what a run needs."""

from __future__ import annotations

import pytest

from har_edge.cluster.view import ClusterView
from har_edge.errors import MessageError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import Deployment, encode_deployment
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.status import Heartbeat, NodeStatus, State, encode_heartbeat, encode_status
from har_edge.protocol.topics import PROBE
from tests.runtime.deployed import TOPICS, deployment, generation


def status(state: State, instance: str = "i", **counters: int) -> Delivery:
    said = NodeStatus("a", "sensor", state, instance, 1.0, counters=counters)
    return Delivery(TOPICS.status("a"), encode_status(said), (1, 1))


def plan(revision: int) -> Delivery:
    said: Deployment = deployment(generation("a", "b", "c"), revision=revision)
    return Delivery(TOPICS.plan(), encode_deployment(said), (1, 1))


def test_a_node_that_is_about_to_start_again_is_not_ready_by_its_last_word() -> None:
    view = ClusterView(TOPICS)
    view.handle(status(State.READY, sent=5))
    view.handle(Delivery(TOPICS.heartbeat("a"), encode_heartbeat(Heartbeat("a", "i", 1, 1.0)), (1, 1)))
    assert view.state("a") is State.READY and "a" in view.heartbeats and view.heard["a"] > 0.0
    view.forget("a")
    assert view.state("a") is None and view.statuses == {} and "a" in view.heartbeats
    view.handle(status(State.READY, "second", sent=2))
    assert view.state("a") is State.READY and view.sum_of("sent", "sensor") == 7


def test_the_last_word_counts_on_when_it_was_cleared() -> None:
    view = ClusterView(TOPICS)
    view.handle(status(State.STOPPED, windows=3))
    view.handle(Delivery(TOPICS.status("a"), b"", (1, 1)))
    assert view.statuses["a"].counters == {"windows": 3}


def test_each_plan_is_kept_once_and_results_come_once() -> None:
    view = ClusterView(TOPICS)
    for revision in (1, 1, 2):
        assert view.handle(plan(revision)) == []
    assert [seen.deployment.revision for seen in view.plans] == [1, 2]
    assert view.deployment is not None and view.deployment.revision == 2
    made = Result("anna", 0, "still", 1, 1.0, 1.0, 2.0, 7)
    answer = Delivery(TOPICS.result("anna"), encode_results([made]), (1, 1))
    assert view.handle(answer) == [made] and view.handle(answer) == []
    probe = Result(f"{PROBE}1", 0, "still", 1, 1.0, 1.0, 2.0, 7)
    assert view.handle(Delivery(TOPICS.result(probe.stream), encode_results([probe]), (1, 1))) == []


@pytest.mark.parametrize("topic", [TOPICS.status("a"), TOPICS.plan(), TOPICS.result("anna"), "elsewhere"])
def test_what_cannot_be_read_raises_with_its_topic(topic: str) -> None:
    with pytest.raises(MessageError, match=topic):
        ClusterView(TOPICS).handle(Delivery(topic, b"{", (1, 1)))
