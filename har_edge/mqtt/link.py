"""One broker beside the home one of a bus: its connection, which a thread opens, and what waits there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from har_edge.errors import BrokerError, HarEdgeError
from har_edge.mqtt.bus import Bus, OnOutcome, PollableBus, PublishOutcome, Session, TakenOver
from har_edge.mqtt.clients.session_lease import lease_lost
from har_edge.mqtt.clients.transport import Backoff

OpenLink = Callable[[str], PollableBus]
Start = Callable[[Callable[[], None]], None]


@dataclass(slots=True)
class LinkPublication:
    """A message that a broker has not acknowledged yet."""

    topic: str
    payload: bytes
    retain: bool
    on_outcome: OnOutcome | None


@dataclass(slots=True)
class Link:
    """One broker beside the home one: its connection, if there is one, and what it has not acknowledged yet.

    `number` names the connection, 0 while there is none. `failed` says that the last attempt to connect failed.
    """

    address: str
    backoff: Backoff
    filters: list[str] = field(default_factory=list)
    bus: PollableBus | None = None
    number: int = 0
    opening: bool = False
    failed: bool = False
    retry_at: float = 0.0
    opened_at: float = 0.0
    outstanding: dict[int, LinkPublication] = field(default_factory=dict)
    opened: deque[PollableBus | HarEdgeError] = field(default_factory=deque)
    closed: bool = False

    @property
    def connected(self) -> bool:
        return self.bus is not None and self.bus.connected

    def hand(self, serial: int) -> None:
        """Give a publication to the connection; its outcome counts while that connection lasts."""
        bus, publication = self.bus, self.outstanding[serial]
        assert bus is not None

        def settle(outcome: PublishOutcome) -> None:
            found = self.outstanding.pop(serial, None) if self.bus is bus else None
            if found is not None and found.on_outcome is not None:
                found.on_outcome(outcome)

        bus.publish(publication.topic, publication.payload, retain=publication.retain, on_outcome=settle)

    def open(self, open_link: OpenLink) -> None:
        """Connect and leave the bus, or the error, in `opened`; it may run in any thread."""
        try:
            self.opened.append(open_link(self.address))
        except HarEdgeError as error:
            self.opened.append(error)
        except OSError as error:
            self.opened.append(BrokerError(f"cannot reach the broker at {self.address}: {error}"))
        if self.closed:
            self.drop_opened()

    def drop_opened(self) -> None:
        """Close a connection that came too late."""
        while self.opened:
            try:
                found = self.opened.popleft()
            except IndexError:  # the other thread was quicker
                return
            if not isinstance(found, HarEdgeError):
                found.close()


def start_thread(job: Callable[[], None]) -> None:
    """Run a job in a thread of its own, which the end of the process does not wait for."""
    threading.Thread(target=job, name="link", daemon=True).start()


def link_opener(
    session: Session, connect_home: Callable[[Session], Bus], connect: Callable[[str, Session], PollableBus]
) -> OpenLink:
    """Return what opens the links of a session, unless the lease at the home broker says that another process has it.

    A broker that closes a connection without a word may have given the session to a successor, which must keep it.
    """
    beside = replace(session, will=None, lease=None)

    def open_link(address: str) -> PollableBus:
        if session.lease is not None and lease_lost(session.lease, connect_home):
            raise TakenOver(session.client_id)
        return connect(address, beside)

    return open_link
