"""How a node comes to the broker: it waits for it, sees that its name is free, says hello, and measures the device."""

from __future__ import annotations

import logging
import secrets
import select
import time
from collections.abc import Callable

from har_edge.errors import BrokerError, NodeError
from har_edge.mqtt.bus import Bus, Delivery, Session, SessionLease
from har_edge.mqtt.clients.session_lease import lease_lost
from har_edge.mqtt.clients.transport import FinalRefusal
from har_edge.mqtt.measure.link_benchmark import LinkEstimate, estimate_link
from har_edge.protocol.events import HeartbeatEvent, StatusEvent, Unreadable, decode
from har_edge.protocol.status import ALIVE, NodeStatus, State
from har_edge.protocol.topics import Topics
from har_edge.runtime.node.capabilities import make_card, measure_speed, open_reference, read_machine, read_runtime
from har_edge.runtime.sender import drain
from har_edge.runtime.status_publisher import Identity
from har_edge.runtime.stop import Stop
from har_edge.timing import NAME_LISTEN_S

_log = logging.getLogger(__name__)
Connect = Callable[[Session], Bus]
ROLE = "node"
# How long to wait between two attempts to reach a broker that is not there yet.
RETRY_S = 2.0
_QUIET_S = 0.3


def arrive(
    connect: Connect, session: Session, identity: Identity, stop: Stop, delegate: str | None = None
) -> Bus | None:
    """Return the bus of a node once all know that it is there, and its identity says what the device can do.

    `delegate` is what this device was told of who computes; None leaves that to the plan, and here to the runtime.

    None when `stop` was asked before the broker was there. Raises NodeError when the name is another machine's, or when
    there is no runtime that could run a slice.
    """
    machine, _ = read_machine(), read_runtime()
    while not stop.asked:
        try:
            check_name(connect, identity.topics, identity.node, machine)
            bus = connect(session)
        except FinalRefusal:
            raise
        except BrokerError as error:
            _log.warning("%s; trying again", error)
            select.select([], [], [], RETRY_S)
            continue
        bus.publish(identity.topic, identity.status(State.INIT), retain=True)
        drain(bus)
        # Before any stage runs here, so that stages do not slow the measurement down, nor it them.
        identity.device = make_card(
            measure_speed(delegate=delegate), look_at_link(connect, identity), open_reference(delegate).delegate.value
        )
        return bus
    return None


def look_at_link(connect: Connect, identity: Identity) -> LinkEstimate | None:
    """Estimate the link to the broker; None where it cannot be measured."""
    try:
        bus = connect(Session(f"link-{identity.instance}", clean_start=True))
        try:
            return estimate_link(bus, identity.topics.activation(0, "link", identity.node))
        finally:
            bus.close(forget=True)
    except BrokerError as error:
        _log.warning("the link was not measured: %s", error)
        return None


def check_name(connect: Callable[[Session], Bus], topics: Topics, node: str, machine: str) -> None:
    """Raise NodeError when a node of this name is alive on another machine: both would take each other's stages.

    On the same machine the younger one takes over, and the older one ends. Nor may it be the name of a sensor or stage.
    """
    bus = connect(Session(f"look-{secrets.token_hex(8)}", clean_start=True))
    status: NodeStatus | None = None
    try:
        bus.subscribe([topics.status(node), topics.heartbeat(node)])
        deadline = time.monotonic() + NAME_LISTEN_S
        quiet_at = deadline
        while time.monotonic() < (deadline if status is not None else quiet_at):
            for delivery in bus.poll(0.05):
                bus.acknowledge(delivery)
                match decode(delivery, topics):
                    case StatusEvent(status=NodeStatus() as status):
                        _refuse_other(status, ROLE)
                    case HeartbeatEvent(heartbeat=heartbeat) if status and heartbeat.instance == status.instance:
                        _refuse(status, machine)
                    case Unreadable(reason=reason):
                        _log.warning("dropped %s: %s", delivery.topic, reason)
            if bus.connected:
                quiet_at = min(quiet_at, time.monotonic() + _QUIET_S)
            if status is not None and (status.state not in ALIVE or _machine(status) == machine):
                return
    finally:
        bus.close(forget=True)


def check_role(connect: Connect, topics: Topics, node: str, role: str) -> None:
    """Raise NodeError when what has this name is alive and of another role: it would lose its session."""

    def look(delivery: Delivery) -> bool:
        match decode(delivery, topics):
            case StatusEvent(status=NodeStatus() as status):
                _refuse_other(status, role)
            case Unreadable(reason=reason):
                _log.warning("dropped %s: %s", delivery.topic, reason)
        return False

    lease_lost(SessionLease(topics.status(node), look), connect)


def _refuse_other(status: NodeStatus, role: str) -> None:
    """Refuse a name that something else lives by, here as on another machine."""
    if status.state in ALIVE and status.role != role:
        raise NodeError(
            f"{status.node!r} is the name of a {status.role} that is alive; expected a name of its own for each: "
            "choose another one with --name"
        )


def _refuse(status: NodeStatus | None, machine: str) -> None:
    if status is not None and status.state in ALIVE and _machine(status) not in ("", machine):
        raise NodeError(
            f"a node {status.node!r} is alive on another machine, on {status.device.system if status.device else '?'}; "
            "expected a name of its own for each: choose another one with --name, or stop that node"
        )


def _machine(status: NodeStatus) -> str:
    return status.device.machine if status.device else ""
