"""The broker that a node carries itself, as long as it runs, and the ways to the brokers of other nodes."""

from __future__ import annotations

import select
from collections.abc import Callable

import msgspec

from har_edge.mqtt.address import Address, neighbour_address
from har_edge.mqtt.broker.own import OwnBroker, OwnBrokerSettings, is_loopback, start_own
from har_edge.mqtt.bus import PollableBus, Session
from har_edge.protocol.status import BrokerOffer
from har_edge.runtime.status_publisher import Identity
from har_edge.timing import OWN_BROKER_LINGER_S


class CarriedBroker:
    """Carries a broker where `settings` ask for one; `central` is the address of the central one, with credentials."""

    def __init__(
        self,
        settings: OwnBrokerSettings | None,
        central: Address,
        connect: Callable[[Address, Session], PollableBus],
    ) -> None:
        self._settings, self._central, self._connect = settings, central, connect
        self._own: OwnBroker | None = None

    def start(self, identity: Identity) -> list[str]:
        """Start the broker, and let the identity offer it to others; return the lines for a person to read."""
        if self._settings is None:
            return []
        self._own = own = start_own(self._settings, self._central)
        _offer(identity, BrokerOffer(own.url, own.server, own.max_packet_bytes))
        lines = [f"own broker: {own.server}, for other nodes at {own.url}"]
        if is_loopback(own.host):
            lines.append("no other machine reaches that address; give one with --advertise HOST")
        return lines

    def watch(self, identity: Identity) -> None:
        """Take the offer back when the broker has ended by itself."""
        if self._own is not None and not self._own.check():
            _offer(identity, None)

    def connect_to(self, url: str, session: Session) -> PollableBus:
        """Connect to the broker of a node, by the address that a plan gives."""
        own = self._own
        address = own.address if own is not None and url == own.url else neighbour_address(self._central, url)
        return self._connect(address, session)

    def stop(self) -> None:
        """Stop the broker, a moment after the last message was left there."""
        own, self._own = self._own, None
        if own is None:
            return
        if not own.ended:
            select.select([], [], [], OWN_BROKER_LINGER_S)
        own.stop()


def _offer(identity: Identity, offer: BrokerOffer | None) -> None:
    assert identity.device is not None
    if identity.device.broker != offer:
        identity.device = msgspec.structs.replace(identity.device, broker=offer)
