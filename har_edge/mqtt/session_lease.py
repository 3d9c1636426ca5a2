"""Whether the session of a client that was cut off is still its own, or a younger process has it now."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from har_edge.mqtt.bus import Session, SessionLease

if TYPE_CHECKING:
    from har_edge.mqtt.bus import Bus

LOOK_TIMEOUT_S = 1.0
# How long a client that was cut off lets a successor say so before it looks.
GRACE_S = 0.5


def lease_lost(lease: SessionLease, connect: Callable[[Session], Bus]) -> bool:
    """Return whether what is retained at the topic of a lease says that another process has the session."""
    bus = connect(Session(f"look-{secrets.token_hex(8)}", clean_start=True))
    try:
        bus.subscribe([lease.topic])
        deadline = time.monotonic() + LOOK_TIMEOUT_S
        while time.monotonic() < deadline:
            for delivery in bus.poll(0.05):
                bus.acknowledge(delivery)
                if delivery.topic == lease.topic:  # amqtt sends what is retained elsewhere, too
                    return lease.taken(delivery.payload)
            if bus.connected:
                deadline = min(deadline, time.monotonic() + LOOK_TIMEOUT_S / 4)
    finally:
        bus.close(forget=True)
    return False
