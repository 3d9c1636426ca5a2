"""The brokers that a plan names: which a stage sends to and listens at, and plans that nobody can follow."""

from __future__ import annotations

import msgspec
import pytest

from har_edge.config.flows import broker_of, check_flows
from har_edge.config.wiring import find_wiring
from har_edge.errors import ConfigError, MessageError
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import Generation, check_deployment, encode_deployment
from har_edge.protocol.events import PlanEvent, decode
from har_edge.protocol.flow_routes import FlowRoutes, fixed_routes, flow_routes
from tests.runtime.deployed import CHAIN, EPOCH, TASK, TOPICS, deployment, generation

A, B, C = "mqtt://10.0.0.1:1884", "mqtt://10.0.0.2:1884", "mqtts://[fe80::3]:8883"


def with_brokers(flows: dict[str, str], **brokers: str) -> Generation:
    return msgspec.structs.replace(generation("a", "b", "c"), brokers=brokers, flows=flows)


def routes(found: Generation, stage: int) -> FlowRoutes:
    return flow_routes(TOPICS, found, find_wiring(CHAIN, TASK, stage))


def test_without_brokers_everything_goes_through_the_central_one() -> None:
    found = routes(generation("a", "b", "c"), 1)
    assert (found.needed, found.known, found.target(TOPICS.activation(EPOCH, 1, "s"))) == (set(), set(), "")


def test_a_stage_sends_its_own_flows_and_takes_those_of_others_where_the_plan_says() -> None:
    found = with_brokers({"0": "a", "1": "b"}, a=A, b=B)
    middle = routes(found, 1)
    assert middle.target(TOPICS.activation(EPOCH, 1, "s")) == B
    assert middle.listens(TOPICS.activation(EPOCH, 0, "+")) == {A}
    assert middle.listens("$share/5-1/" + TOPICS.activation(EPOCH, 0, "+")) == {A}
    assert (middle.needed, middle.known) == ({A, B}, {A, B})
    last = routes(found, 2)
    assert (last.needed, last.known) == ({B}, {A, B})
    others = [TOPICS.result("s"), TOPICS.window("s", "chest"), TOPICS.plan(), TOPICS.activation(EPOCH + 1, 1, "s")]
    assert {middle.target(topic) for topic in others} == {""}
    assert middle.listens(TOPICS.window("+", "chest")) == set()


def test_a_stage_listens_where_a_flow_may_come_to_before_it_does() -> None:
    """The broker of the node that makes it, even while the flow still goes elsewhere."""
    found = with_brokers({"0": "x"}, a=A, x=C)
    assert routes(found, 1).listens(TOPICS.activation(EPOCH, 0, "+")) == {A, C}
    assert routes(with_brokers({}, a=A), 1).listens(TOPICS.activation(EPOCH, 0, "+")) == {A}
    assert routes(with_brokers({}, a=A), 0).target(TOPICS.activation(EPOCH, 0, "s")) == ""


def test_a_plan_without_brokers_has_none_of_the_new_keys() -> None:
    assert b"brokers" not in encode_deployment(deployment(generation("a", "b", "c")))


def test_a_plan_with_brokers_comes_back_as_it_was() -> None:
    plan = deployment(with_brokers({"0": "a", "1": "b"}, a=A, b=C))
    event = decode(Delivery(TOPICS.plan(), encode_deployment(plan), (1, 1)), TOPICS)
    assert isinstance(event, PlanEvent) and event.deployment == plan


@pytest.mark.parametrize(
    ("flows", "brokers", "text"),
    [
        ({}, {"a": "http://10.0.0.1:80"}, "expected mqtt://HOST:PORT"),
        ({}, {"a": "mqtt://10.0.0.1"}, "expected mqtt://HOST:PORT"),
        ({}, {"a": "mqtt://10.0.0.1:65536"}, "expected mqtt://HOST:PORT"),
        ({}, {"a": "mqtt://user:secret@10.0.0.1:1883"}, "expected mqtt://HOST:PORT"),
        ({}, {"a": "mqtt://10.0.0.1:1883/x"}, "expected mqtt://HOST:PORT"),
        ({}, {"a/b": A}, "expected mqtt://HOST:PORT"),
        ({"0": "b"}, {"a": A}, "goes through the broker of 'b', which has none"),
        ({"3": "a"}, {"a": A}, "expected STAGE or STAGE-FLOW of 3 stages"),
        ({"x": "a"}, {"a": A}, "expected STAGE or STAGE-FLOW of 3 stages"),
        ({"0-0": "a"}, {"a": A}, "expected STAGE or STAGE-FLOW of 3 stages"),
    ],
)
def test_a_plan_with_brokers_that_cannot_be_is_refused(
    flows: dict[str, str], brokers: dict[str, str], text: str
) -> None:
    with pytest.raises(MessageError, match=text):
        check_deployment(deployment(with_brokers(flows, **brokers)))


def test_a_fixed_folder_names_brokers_by_flow_or_by_stage() -> None:
    flows = {"0": A, "1": B}
    middle = fixed_routes(TOPICS, EPOCH, flows, find_wiring(CHAIN, TASK, 1))
    assert middle.target(TOPICS.activation(EPOCH, 1, "s")) == B
    assert middle.listens(TOPICS.activation(EPOCH, 0, "+")) == {A}
    assert (middle.needed, middle.known) == ({A, B}, {A, B})
    first = fixed_routes(TOPICS, EPOCH, {"0-2": C, "0": A}, find_wiring(CHAIN, TASK, 0))
    assert first.target(TOPICS.activation(EPOCH, 0, "s")) == A  # it has no flow 2
    assert broker_of({"0-2": C, "0": A}, "0-2") == C and broker_of({"0": A}, "0-2") == A and broker_of({}, "0") == ""


@pytest.mark.parametrize(
    ("flows", "text"),
    [
        ({"2": A}, r"\[flows\] names '2'; expected STAGE or STAGE-FLOW of a stage that sends to others: 0, 1"),
        ({"0-1": A}, "names '0-1'"),
        ({"0": "10.0.0.1"}, "flow 0 has the broker '10.0.0.1'; expected mqtt://HOST:PORT"),
    ],
)
def test_flows_that_a_folder_cannot_have_are_refused(flows: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_flows(flows, [find_wiring(CHAIN, TASK, stage) for stage in range(3)], "pipeline.toml")
