"""What a node says of itself, retained at the broker; its last will says that it is lost.

The status also settles who owns a session. MQTT 5 (section 3.1.4) tells a client that another took its session over,
but Mosquitto before 2.0.15 just closes the connection. So a client that was cut off looks at the retained status before
it comes back: if a younger process says that it is the node now, the older one ends.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from har_edge.messaging.bus import Bus, Claim, Session

LOOK_TIMEOUT_S = 1.0
# How long a client that was cut off lets a successor say so before it looks.
GRACE_S = 0.5


class State(str, enum.Enum):
    """What a node is doing."""

    READY = "ready"
    OFFLINE = "offline"
    LOST = "lost"


class NodeStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The retained self-description of a node.

    `instance` is new with each start of the process, `started` the time of that start (seconds since 1970); `counters`
    are those that the node keeps, by name.
    """

    node: str
    role: str
    state: State
    instance: str
    started: float
    version: str = ""
    client: str = ""
    detail: str = ""
    counters: dict[str, int] = {}


encode_status = msgspec.json.Encoder().encode
decode_status = msgspec.json.Decoder(NodeStatus).decode


def taken_by_younger(claim: Claim, connect: Callable[[Session], Bus]) -> bool:
    """Tell whether the retained status names a living process that started after the one with this claim."""
    from har_edge.messaging.bus import Session

    bus = connect(Session(f"{claim.instance}-look", clean_start=True))
    try:
        bus.subscribe([claim.topic])
        deadline = time.monotonic() + LOOK_TIMEOUT_S
        while time.monotonic() < deadline:
            for delivery in bus.poll(0.05):
                bus.acknowledge(delivery)
                try:
                    status = decode_status(delivery.payload)
                except msgspec.MsgspecError:
                    return False
                younger = status.instance != claim.instance and status.started > claim.started
                return younger and status.state is State.READY
            if bus.connected:
                deadline = min(deadline, time.monotonic() + LOOK_TIMEOUT_S / 4)
    finally:
        bus.close(forget=True)
    return False
