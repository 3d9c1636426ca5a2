"""How a process knows that its session at the broker is another's now: from what is retained of nodes and plan.

MQTT 5 (section 3.1.4) tells a client that another took its session over, but Mosquitto before 2.0.15 just closes the
connection. So a client that was cut off looks at what is retained before it comes back.
"""

from __future__ import annotations

from collections.abc import Callable

from har_edge.mqtt.bus import Delivery, SessionLease
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import PlanEvent, StatusEvent, decode
from har_edge.protocol.status import ALIVE
from har_edge.protocol.topics import Topics


def status_lease(topic: str, instance: str, started: float) -> SessionLease:
    """Return the session lease of a process that retains its status at `topic`: a younger living process takes it."""

    def taken(delivery: Delivery) -> bool:
        event = decode(delivery)
        if not isinstance(event, StatusEvent) or event.status is None:
            return False
        status = event.status
        return status.instance != instance and status.started > started and status.state in ALIVE

    return SessionLease(topic, taken)


def placement_lease(
    topics: Topics,
    deployment: Deployment,
    replica_id: tuple[int, int, int],
    node: str,
    trusts: Callable[[bytes], bool] = lambda _: True,
) -> SessionLease:
    """Return the session lease of a replica (generation, stage, replica): a plan may give that to another node.

    A plan that is older than `deployment` does not count: a broker that lost its latest state may retain one. Nor
    does one that `trusts` does not know by its bytes: it was not verified.
    """

    def taken(delivery: Delivery) -> bool:
        event = decode(delivery, topics)
        if not isinstance(event, PlanEvent) or event.deployment is None or not trusts(delivery.payload):
            return False
        return not deployment.replaces(event.deployment) and event.deployment.holder(*replica_id) != node

    return SessionLease(topics.plan(), taken)
