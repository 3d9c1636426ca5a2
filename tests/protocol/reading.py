"""Reading what a node publishes, in the one way that there is (protocol/events.py)."""

from __future__ import annotations

from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import HeartbeatEvent, PlanEvent, ResultsEvent, StatusEvent, decode
from har_edge.protocol.results import Result
from har_edge.protocol.status import Heartbeat, NodeStatus


def read_status(message: Delivery | Outgoing) -> NodeStatus:
    """Return the status in a message; AssertionError for anything else."""
    event = decode(message)
    assert isinstance(event, StatusEvent) and event.status is not None, event
    return event.status


def read_heartbeat(message: Delivery | Outgoing) -> Heartbeat:
    """Return the heartbeat in a message; AssertionError for anything else."""
    event = decode(message)
    assert isinstance(event, HeartbeatEvent), event
    return event.heartbeat


def read_plan(message: Delivery | Outgoing) -> Deployment:
    """Return the plan in a message; AssertionError for anything else."""
    event = decode(message)
    assert isinstance(event, PlanEvent) and event.deployment is not None, event
    return event.deployment


def read_results(message: Delivery | Outgoing) -> list[Result]:
    """Return the results in a message; AssertionError for anything else."""
    event = decode(message)
    assert isinstance(event, ResultsEvent), event
    return event.results
