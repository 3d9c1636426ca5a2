"""Nodes of other pipelines, and files: checks look for them on a connection for that alone."""

from __future__ import annotations

import secrets
import time

from har_edge.errors import BrokerError, MessageError
from har_edge.monitor.permissions import Connect
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.events import StatusEvent, decode
from har_edge.protocol.status import ALIVE, NodeStatus
from har_edge.protocol.topics import EVERY_STATUS, Topics
from har_edge.runtime.artifacts import Fetch

OTHERS_S = 1.0  # how long the statuses of other pipelines are listened to
MAX_OTHERS = 16  # the most nodes of each other pipeline, and the most other pipelines, that are named
_POLL_S = 0.05


def nodes_elsewhere(connect: Connect, own: Topics) -> dict[tuple[str, str], list[str]]:
    """Return the nodes that say they live in other pipelines than our `own` of this broker, by base and pipeline."""
    found: dict[tuple[str, str], list[str]] = {}
    bus = connect(Session(f"doctor-{secrets.token_hex(8)}", clean_start=True))
    try:
        bus.subscribe([EVERY_STATUS])
        deadline = time.monotonic() + OTHERS_S
        while time.monotonic() < deadline:
            for delivery in bus.poll(_POLL_S):
                bus.acknowledge(delivery)
                event = decode(delivery)
                if isinstance(event, StatusEvent) and event.status is not None and _is_living_node(event.status):
                    names = found.setdefault((event.topic.base, event.topic.pipeline), [])
                    names += [event.node] if len(names) < MAX_OTHERS else []
    except BrokerError:  # not permitted: then nothing is known of others
        return {}
    finally:
        bus.close(forget=True)
    found.pop((own.base, own.pipeline), None)
    return dict(list(found.items())[:MAX_OTHERS])


def _is_living_node(status: NodeStatus) -> bool:
    return status.role == "node" and status.state in ALIVE


def try_fetch(bus: Bus, one: Fetch, timeout_s: float) -> tuple[int, str]:
    """Fetch a content and throw it away; return its size, and what is wrong with it."""
    subscribed: set[str] = set()
    last, since = one.progress, time.monotonic()
    while True:
        fresh = [text for text in one.filters if text not in subscribed]
        if fresh:
            bus.subscribe(fresh)
            subscribed.update(fresh)
        complete = False
        for delivery in bus.poll(_POLL_S):
            bus.acknowledge(delivery)
            complete = one.take(delivery) or complete
        if complete:
            try:
                one.check()
            except MessageError as error:
                return 0, str(error)
            return len(one.content), ""
        if one.progress != last:
            last, since = one.progress, time.monotonic()
        if time.monotonic() > since + timeout_s:
            return 0, last
