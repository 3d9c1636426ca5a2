"""Check whether a client that lost its connection still owns its session."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from har_edge.mqtt.bus import Session, SessionLease
from har_edge.timing import LEASE_LOOK_S

if TYPE_CHECKING:
    from har_edge.mqtt.bus import Bus


def lease_lost(lease: SessionLease, connect: Callable[[Session], Bus]) -> bool:
    """Return whether the retained message of a lease says that another process owns the session."""
    bus = connect(Session(f"look-{secrets.token_hex(8)}", clean_start=True))
    try:
        bus.subscribe([lease.topic])
        deadline = time.monotonic() + LEASE_LOOK_S
        while time.monotonic() < deadline:
            for delivery in bus.poll(0.05):
                bus.acknowledge(delivery)
                if delivery.topic == lease.topic:  # amqtt sends what is retained elsewhere, too
                    return lease.taken(delivery)
            if bus.connected:
                deadline = min(deadline, time.monotonic() + LEASE_LOOK_S / 4)
    finally:
        bus.close(forget=True)
    return False
