"""Check the brokers that nodes carry: whether they are reached from here, and by the stages that need them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from har_edge.errors import BrokerError, HarEdgeError
from har_edge.monitor.broker_checks import RECEIVE_MAX, Finding, Verdict, passed
from har_edge.mqtt.address import Address, neighbour_address
from har_edge.mqtt.broker.own import is_loopback
from har_edge.mqtt.measure.broker_probe import BrokerCapabilities, probe_broker
from har_edge.protocol.deployment import Generation
from har_edge.protocol.status import BrokerOffer, StageReport
from har_edge.protocol.text import printable


def check_node_brokers(
    name: str,
    central: Address,
    offers: Mapping[str, BrokerOffer],
    current: Generation | None,
    reports: Mapping[str, tuple[StageReport, ...]],
) -> Iterator[Finding]:
    """Yield a finding for each broker that a living node offers, and for brokers that stages cannot reach.

    `reports` are what nodes say of their stages. Nothing is found where no node carries a broker.
    """
    flows = dict(current.flows) if current else {}
    lost = {
        node: sorted(maker for maker, told in reports.items() if any(node in one.unreachable for one in told))
        for node in offers
    }
    for node, offer in sorted(offers.items()):
        own = ", ".join(level for level, at in sorted(flows.items()) if at == node)
        use = f"flows {own} go through it" if own else "no flow goes through it"
        said = f"{printable(node, 60)} at {printable(offer.url, 120)}, {printable(offer.server, 80)}: {use}"
        yield _judge(name, said, lost[node], _problem(central, offer))


def _judge(name: str, said: str, lost: list[str], problem: str) -> Finding:
    if lost:
        who = ", ".join(printable(one, 60) for one in lost)
        remedy = "see the firewall of that device; or give an address that others reach, with --advertise HOST there"
        return Finding(name, Verdict.FAIL, f"{said}; the stages on {who} cannot reach it", remedy)
    if problem:
        remedy = "nodes may reach it all the same; else see the firewall of that device, and --advertise there"
        return Finding(name, Verdict.NOTE, f"{said}; from here: {problem}", remedy)
    return passed(name, f"{said}; reached from here")


def _problem(central: Address, offer: BrokerOffer) -> str:
    """Return why this process cannot use a broker, or what its limits keep out; empty where nothing is wrong."""
    try:
        address = neighbour_address(central, offer.url)
    except HarEdgeError as error:
        return printable(str(error), 200)
    if is_loopback(address.host) and not is_loopback(central.host):
        return "its address is for its own machine only"
    try:
        found = probe_broker(address)
    except BrokerError as error:
        return printable(str(error).partition(";")[0], 200)
    return printable(found.said, 200) if found.code else _limits(found)


def _limits(found: BrokerCapabilities) -> str:
    if found.receive_max is not None and found.receive_max < RECEIVE_MAX:
        return f"it takes {found.receive_max} messages at once; {RECEIVE_MAX} or more do"
    return "" if found.shared else "it has no shared subscriptions, so stages cannot take turns"
