"""One bus over several brokers: each topic goes through the broker that a table of routes names for it.

The home broker has the lease, the will, and every subscription. The other brokers, the links, carry what the routes
send there. Each link has a session of its own under the same client id, so that a successor takes them all over.
"""

from __future__ import annotations

import itertools
import logging
import random
import select
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Generic, Protocol, TypeVar

from har_edge.errors import HarEdgeError
from har_edge.mqtt.bus import (
    BusTraffic,
    Delivery,
    OnOutcome,
    PollableBus,
    TakenOver,
    Waits,
)
from har_edge.mqtt.clients.transport import Backoff
from har_edge.mqtt.link import Link, LinkPublication, OpenLink, Start, start_thread
from har_edge.timing import LEASE_GRACE_S

_log = logging.getLogger(__name__)
ALIVE_S = 1.0  # how long a connection may go without a poll
OPENING_S = 0.02  # how long a wait may take while a link is being opened
HOME = ""  # the name of the home broker in routes
# A token's first number holds the connection of a link above these bits, and the link's own number in them.
_BITS = 32
_MASK = (1 << _BITS) - 1


class Routes(Protocol):
    """A table of routes; brokers are named by their addresses, the home broker by HOME.

    `needed` are the links to keep connected. `known` ones stay open where they are open, so that what waits there is
    fetched.
    """

    @property
    def needed(self) -> Collection[str]:
        """The brokers that this client publishes to or listens at."""

    @property
    def known(self) -> Collection[str]:
        """All brokers that may still hold messages for this client."""

    def target(self, topic: str) -> str:
        """Return the broker to publish a topic at: HOME, or one of `needed`."""

    def listens(self, text: str) -> Collection[str]:
        """Return the brokers beside the home one at which to subscribe to a filter."""


_Table = TypeVar("_Table", bound=Routes)


class RoutedBus(Generic[_Table]):
    """A Bus over a home broker and links to others; mqtt/bus.py states the contract.

    The bus owns `home`, which is connected. `open_link` connects to a broker by its address, with the same client id.
    It may take long, so `start` runs it in a thread. It raises TakenOver where another process owns the session. A link
    that cannot be opened, or is lost, is tried again for ever; what was published there waits, or goes elsewhere when
    the routes change. A reconnection of the home broker makes all links anew, since a loop then drops what it holds.
    """

    def __init__(
        self,
        home: PollableBus,
        open_link: OpenLink,
        routes: _Table,
        *,
        start: Start = start_thread,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._home, self._open_link, self._start, self._clock = home, open_link, start, clock
        self._rng = rng or random.Random()
        self._filters: list[str] = []
        self._links: dict[str, Link] = {}
        self._by_number: dict[int, Link] = {}
        self._numbers, self._serials, self._turns = itertools.count(1), itertools.count(), 0
        self._past = BusTraffic()  # of connections of links that have ended
        self._home_reconnects = home.traffic.reconnects
        self._polled_at = -ALIVE_S
        self._routes = routes
        self.reroute(routes)

    @property
    def routes(self) -> _Table:
        return self._routes

    @property
    def traffic(self) -> BusTraffic:
        """Counters of all connections; `reconnects` and `forgotten` are the home broker's."""
        if not self._links and not self._past.received_bytes:
            return self._home.traffic
        return _sum(self._home.traffic, self._past, *(link.bus.traffic for link in self._links.values() if link.bus))

    @property
    def unsent(self) -> int:
        return self._home.unsent + sum(len(link.outstanding) for link in self._links.values())

    @property
    def connected(self) -> bool:
        return self._home.connected and all(self._links[one].connected for one in self._routes.needed)

    @property
    def open(self) -> bool:
        return self._home.open

    @property
    def unreachable(self) -> list[str]:
        """The addresses of the brokers that are needed, and could not be reached at the last attempt."""
        return sorted(one for one in self._routes.needed if self._links[one].failed)

    def waits(self) -> Waits | None:
        found = [self._home.waits(), *(link.bus.waits() for link in self._links.values() if link.bus is not None)]
        kept = [one for one in found if one is not None]
        if len(kept) < len(found):
            return None
        return Waits(
            tuple(one for waits in kept for one in waits.readers), tuple(one for waits in kept for one in waits.writers)
        )

    def subscribe(self, filters: Sequence[str]) -> None:
        self._filters += filters
        self._home.subscribe(filters)
        for link in self._links.values():
            self._listen(link)

    def unsubscribe(self, filters: Sequence[str]) -> None:
        self._filters = [text for text in self._filters if text not in filters]
        self._home.unsubscribe(filters)
        for link in self._links.values():
            left = [text for text in link.filters if text in filters]
            link.filters = [text for text in link.filters if text not in filters]
            if left and link.bus is not None:
                link.bus.unsubscribe(left)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        address = self._routes.target(topic)
        if address == HOME:
            self._home.publish(topic, payload, retain=retain, on_outcome=on_outcome)
        else:
            self._hold(self._links[address], LinkPublication(topic, payload, retain, on_outcome))

    def acknowledge(self, delivery: Delivery) -> None:
        first, packet_id = delivery.token
        number = first >> _BITS
        if not number:
            self._home.acknowledge(delivery)
            return
        link = self._by_number.get(number)
        if link is not None and link.bus is not None:
            link.bus.acknowledge(Delivery(delivery.topic, b"", (first & _MASK, packet_id)))

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        if not self._links:
            return self._home.poll(timeout_s, most_bytes)
        before = self.unsent
        woken = self._wait(timeout_s, most_bytes)
        came = self._turn(woken, most_bytes)
        if came or not woken or self.unsent != before:
            return came
        # As a rule, room to write has ended the wait, and messages may still come in its time.
        return self._turn(self._wait(timeout_s, most_bytes), most_bytes)

    def close(self, *, forget: bool = False) -> None:
        for link in self._links.values():
            link.closed = True
            link.drop_opened()
            if link.bus is not None:
                link.bus.close(forget=forget)
        self._home.close(forget=forget)

    def reroute(self, routes: _Table) -> None:
        """Follow other routes from now on.

        Links that they do not know any more are closed, and their sessions end. A message that a broker has not
        acknowledged, and that now belongs elsewhere, is published there, unless the broker may still acknowledge it.
        """
        self._routes = routes
        for address in routes.needed:
            if address not in self._links:
                self._links[address] = Link(address, Backoff(self._rng))
        for link in self._links.values():
            self._listen(link)
        for address in [one for one in self._links if one not in routes.known and one not in routes.needed]:
            self._retire(self._links.pop(address))
        for link in self._links.values():
            if not link.connected:
                self._move(link)

    # --- links --------------------------------------------------------------------------------------------------------

    def _hold(self, link: Link, publication: LinkPublication) -> None:
        serial = next(self._serials)
        link.outstanding[serial] = publication
        if link.bus is not None:
            link.hand(serial)

    def _move(self, link: Link) -> None:
        """Publish what waits at a link at the broker that the routes name for it now, in the same order."""
        waiting, link.outstanding = link.outstanding, {}
        for serial, one in waiting.items():
            if self._routes.target(one.topic) == link.address:
                link.outstanding[serial] = one
            else:
                self.publish(one.topic, one.payload, retain=one.retain, on_outcome=one.on_outcome)

    def _retire(self, link: Link) -> None:
        link.closed = True
        link.drop_opened()
        bus = self._end(link)
        self._move(link)
        if bus is not None:
            self._start(lambda: bus.close(forget=True))  # its host may be gone: nobody shall wait for it

    def _listen(self, link: Link) -> None:
        """Subscribe to what the routes listen to at a link, once each."""
        fresh = [one for one in self._filters if one not in link.filters and link.address in self._routes.listens(one)]
        link.filters += fresh
        if fresh and link.bus is not None:
            link.bus.subscribe(fresh)

    def _end(self, link: Link) -> PollableBus | None:
        """Take a link's connection away, and return it; its numbers are kept."""
        bus, link.bus = link.bus, None
        if bus is not None:
            del self._by_number[link.number]
            self._past = _sum(self._past, bus.traffic)
        return bus

    def _lose(self, link: Link, reason: str) -> None:
        """Give a connection up. Another process may have taken its session: it gets time to say so."""
        bus = self._end(link)
        if bus is not None:
            _log.warning("lost the broker at %s: %s", link.address, reason)
            self._start(bus.close)
            link.backoff.ended(self._clock() - link.opened_at)
            link.retry_at = self._clock() + max(LEASE_GRACE_S, link.backoff.next_s())

    def _keep(self, link: Link) -> None:
        """Connect a link that has no connection, when it is time. Raises TakenOver."""
        if link.opened:
            found, link.opening = link.opened.popleft(), False
            if isinstance(found, TakenOver):
                raise found
            if isinstance(found, HarEdgeError):
                if not link.failed:
                    _log.warning("%s; trying again", found)
                link.failed, link.retry_at = True, self._clock() + link.backoff.next_s()
                return
            link.bus, link.number, link.failed = found, next(self._numbers), False
            link.opened_at = self._clock()
            self._by_number[link.number] = link
            if link.filters:
                found.subscribe(link.filters)
            for serial in list(link.outstanding):
                link.hand(serial)
        elif link.bus is None and not link.opening and self._clock() >= link.retry_at:
            link.opening = True
            self._start(lambda: link.open(self._open_link))

    # --- moving bytes -------------------------------------------------------------------------------------------------

    def _wait(self, timeout_s: float, most_bytes: int | None) -> set[PollableBus]:
        """Wait for all connections at once; return those that have something to read or to write."""
        found, readers, writers = set[PollableBus](), dict[socket.socket, PollableBus](), list[socket.socket]()
        for bus in self._buses():
            waits = bus.waits()
            if waits is None:
                found.add(bus)
                continue
            readers |= dict.fromkeys((*waits.readers, *waits.writers), bus)
            writers += waits.writers
        # A thread that has opened a link wakes nobody: while one is at it, look now and then.
        opening = any(link.opening for link in self._links.values())
        wait_s = 0.0 if found else min(timeout_s, OPENING_S) if opening else timeout_s
        readable, writable, _ = select.select(() if most_bytes == 0 else readers, writers, (), wait_s)
        return found.union(readers[one] for one in (*readable, *writable))

    def _buses(self) -> list[PollableBus]:
        return [self._home, *(link.bus for link in self._links.values() if link.bus is not None)]

    def _turn(self, woken: Collection[PollableBus], most_bytes: int | None) -> list[Delivery]:
        """Poll connections without waiting, each time beginning with another one.

        Those that are not `woken` are polled now and then, so that they stay alive: a poll costs a small device much.
        """
        came = list[Delivery]()
        self._turns += 1
        now = self._clock()
        every = now >= self._polled_at + ALIVE_S
        if every:
            self._polled_at = now
        links = list(self._links.values())
        begin = self._turns % (len(links) + 1)
        for link in [*links[begin:], None, *links[:begin]]:
            room = None if most_bytes is None else max(0, most_bytes - sum([len(one.payload) for one in came]))
            if link is not None:
                self._keep(link)
            bus = self._home if link is None else link.bus
            if bus is None or (bus.open and not every and bus not in woken):
                continue
            came += self._poll_home(room) if link is None else self._poll_link(link, room)
        return came

    def _poll_home(self, most_bytes: int | None) -> Sequence[Delivery]:
        came = self._home.poll(0.0, most_bytes)
        if self._home.traffic.reconnects != self._home_reconnects:
            self._home_reconnects = self._home.traffic.reconnects
            for link in self._links.values():
                self._lose(link, "the central broker was lost: all are connected anew")
        return came

    def _poll_link(self, link: Link, most_bytes: int | None) -> Iterator[Delivery]:
        bus, number = link.bus, link.number
        assert bus is not None
        try:
            came = bus.poll(0.0, most_bytes) if bus.open else ()
        except TakenOver:
            raise
        except HarEdgeError as error:
            self._lose(link, str(error))
            return
        if not bus.open:  # it would connect again by itself, and not look at the lease at home
            self._lose(link, "it closed the connection")
        for one in came:
            token = (number << _BITS | one.token[0], one.token[1])
            yield Delivery(one.topic, one.payload, token, one.retained, one.duplicate)


def _sum(first: BusTraffic, *others: BusTraffic) -> BusTraffic:
    """Return the counters of several connections; reconnections are those of the first."""
    every = (first, *others)
    return BusTraffic(
        sent_bytes=sum(one.sent_bytes for one in every),
        received_bytes=sum(one.received_bytes for one in every),
        published=sum(one.published for one in every),
        received=sum(one.received for one in every),
        reconnects=first.reconnects,
        forgotten=first.forgotten,
        stale=sum(one.stale for one in every),
    )
