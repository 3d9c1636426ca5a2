"""Brokers of nodes as doctor and status see them: reached or not, by whom, and with which flows."""

from __future__ import annotations

import socket

import msgspec
import pytest

from har_edge.cli.reports.status import draw
from har_edge.monitor.broker_checks import Finding, Verdict
from har_edge.monitor.node_brokers import check_node_brokers
from har_edge.monitor.observer import Observer
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker.embedded import EmbeddedBroker
from har_edge.protocol.status import BrokerOffer, StageReport
from tests.runtime.deployed import CARD, TOPICS, Said, deployment, generation, report

CENTRAL = Address("127.0.0.1", 1883)
FREE = "mqtt://127.0.0.1:{port}"


@pytest.fixture
def dead() -> str:
    """The address of a broker that is not there."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return FREE.format(port=server.getsockname()[1])


def found(url: str, *reports: StageReport, central: Address = CENTRAL, flows: bool = True) -> Finding:
    plan = msgspec.structs.replace(generation("a", "b", "c"), brokers={"a": url}, flows={"0": "a"} if flows else {})
    offers = {"a": BrokerOffer(url, "Mosquitto 2.0.11")}
    (finding,) = check_node_brokers("own brokers", central, offers, plan, {"b": reports})
    return finding


def test_a_broker_that_answers(embedded: EmbeddedBroker) -> None:
    finding = found(embedded.address.url, report(1))
    said = f"a at {embedded.address.url}, Mosquitto 2.0.11: flows 0 go through it; reached from here"
    assert (finding.verdict, finding.said) == (Verdict.OK, said)
    assert "no flow goes through it" in found(embedded.address.url, flows=False).said


def test_a_broker_that_is_not_reached_from_here_is_a_note_since_nodes_may_reach_it(dead: str) -> None:
    finding = found(dead, report(1))
    assert finding.verdict is Verdict.NOTE and finding.said.endswith("Connection refused")
    assert "--advertise" in finding.remedy


def test_a_broker_that_a_stage_does_not_reach_is_wrong_even_if_it_is_reached_from_here(
    embedded: EmbeddedBroker,
) -> None:
    finding = found(embedded.address.url, report(1, unreachable=("a",)))
    assert finding.verdict is Verdict.FAIL and "the stages on b cannot reach it" in finding.said


def test_an_address_that_means_its_own_machine_is_not_tried_here(embedded: EmbeddedBroker) -> None:
    finding = found(embedded.address.url, central=Address("10.0.0.1", 1883))
    assert finding.verdict is Verdict.NOTE and "its address is for its own machine only" in finding.said


def test_an_unencrypted_broker_gets_no_credentials(embedded: EmbeddedBroker) -> None:
    finding = found(embedded.address.url, central=Address("127.0.0.1", 8883, tls=True, username="op", password="x"))
    assert finding.verdict is Verdict.NOTE and "which is not encrypted" in finding.said


def test_without_brokers_nothing_is_found() -> None:
    assert list(check_node_brokers("own brokers", CENTRAL, {}, generation("a", "b", "c"), {})) == []


def test_status_shows_brokers_and_flows() -> None:
    import io

    from rich.console import Console

    said, observer = Said(), Observer(TOPICS, 0.0)
    card = msgspec.structs.replace(CARD, routes=True, broker=BrokerOffer("mqtt://10.0.0.1:1884", "Mosquitto"))
    plan = msgspec.structs.replace(
        generation("a", "b", "c"),
        brokers={"a": "mqtt://10.0.0.1:1884", "b": "mqtt://10.0.0.2:1884"},
        flows={"0": "a"},
    )
    for one in (
        said.plan(deployment(plan)),
        said.status("a", device=card),
        said.status("b", device=msgspec.structs.replace(card, broker=BrokerOffer("mqtt://10.0.0.2:1884"))),
        said.status("c"),
        *(said.beat(node, 1.0, report(stage)) for stage, node in enumerate("abc")),
    ):
        observer.handle(one, 1.0, 1.0)
    seen = observer.snapshot(1.0, 1.0)
    assert [one.flows for one in seen.epochs] == [{"0": "a"}]
    assert {one.name: one.broker for one in seen.nodes if one.broker} == {
        "a": "mqtt://10.0.0.1:1884",
        "b": "mqtt://10.0.0.2:1884",
    }
    shown = io.StringIO()
    Console(file=shown, width=80).print(draw(seen, 80))
    assert "a at mqtt://10.0.0.1:1884: flow 0" in shown.getvalue()
    assert "b at mqtt://10.0.0.2:1884: no flow" in shown.getvalue()
