"""Reconnect after a lost connection: when to try, and whether this client still owns its session."""

from __future__ import annotations

import logging
import random
import select
from collections.abc import Callable

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Bus, Session, TakenOver
from har_edge.mqtt.clients.session_lease import lease_lost
from har_edge.mqtt.clients.transport import Backoff, FinalRefusal
from har_edge.timing import LEASE_GRACE_S

_log = logging.getLogger(__name__)


class Reconnector:
    """Times the attempts of one client to connect again.

    `connect_beside` opens a second, short connection to read which process owns the session.
    """

    def __init__(
        self,
        address: Address,
        session: Session,
        clock: Callable[[], float],
        rng: random.Random,
        connect_beside: Callable[[Session], Bus],
    ) -> None:
        self._address, self._session, self._clock = address, session, clock
        self._connect_beside = connect_beside
        self._backoff = Backoff(rng)
        self._opened_at = self._retry_at = 0.0
        self._untold = ""  # why the connection was lost, until it is known that nobody has taken the session over

    def opened(self) -> None:
        """Record that the broker has accepted the client."""
        self._opened_at = self._clock()

    def lost(self, reason: str) -> float:
        """Record that an accepted connection has ended, and return its duration in seconds.

        With a lease, the loss may be a handover, which the code that catches TakenOver reports. The loss is then logged
        after the check of the lease.
        """
        self._untold = reason
        if self._session.lease is None:
            self._tell()
        lasted_s = self._clock() - self._opened_at
        self._backoff.ended(lasted_s)
        self.failed()
        return lasted_s

    def failed(self) -> None:
        """Put the next attempt off, long enough for a successor to announce that it owns the session."""
        grace_s = LEASE_GRACE_S if self._session.lease is not None else 0.0
        self._retry_at = self._clock() + max(grace_s, self._backoff.next_s())

    def attempt(self, timeout_s: float, connect: Callable[[], None]) -> bool:
        """Connect if it is time, else wait up to `timeout_s` seconds; return whether there is a connection now.

        Raises TakenOver when another process owns the session, FinalRefusal when no later attempt can succeed.
        """
        wait_s = self._retry_at - self._clock()
        if wait_s > 0:
            select.select([], [], [], min(wait_s, timeout_s))
            return False
        lease = self._session.lease
        try:
            if lease is not None and lease_lost(lease, self._connect_beside):
                raise TakenOver(self._session.client_id)
            self._tell()
            connect()
        except BrokerError as error:
            self._tell()
            if isinstance(error, FinalRefusal):
                raise
            self._retry_at = self._clock() + self._backoff.next_s()
            _log.warning("%s; trying again", error)
            return False
        _log.warning("connected to %s again", self._address.url)
        return True

    def _tell(self) -> None:
        """Log the loss, once."""
        if self._untold:
            _log.warning("lost the broker at %s: %s", self._address.url, self._untold)
        self._untold = ""
