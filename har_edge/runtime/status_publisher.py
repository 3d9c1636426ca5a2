"""The retained status of a node: what its process says of itself, at birth, while it runs, and when it ends."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from har_edge import __version__
from har_edge.config.pipeline_config import LEAST_PAYLOAD_LIMIT, PACKET_BYTES
from har_edge.mqtt.bus import Bus, Session, Will
from har_edge.protocol.leases import status_lease
from har_edge.protocol.status import (
    DETAIL,
    NodeCapabilities,
    NodeStatus,
    PlanRefusal,
    SliceInfo,
    State,
    StreamCount,
    encode_status,
)
from har_edge.protocol.topics import RETAINED, Kind, Topics
from har_edge.timing import STATUS_S

LOSSES = ("given_up", "too_large", "dropped")  # the counters of windows that a node lost


@dataclass(slots=True)
class Identity:
    """The identity of a process, and the birth, will and lease that follow from it.

    `detail`, `device`, `epoch`, `signer` and `refused` may change while it runs: the next status says so.
    """

    topics: Topics
    node: str
    role: str
    client: str
    detail: str = ""
    instance: str = field(default_factory=lambda: f"{os.getpid()}-{secrets.token_hex(4)}")
    started: float = field(default_factory=time.time)
    device: NodeCapabilities | None = None
    epoch: int = 0
    slice: SliceInfo | None = None
    sources: tuple[str, ...] = ()
    signer: str = ""
    refused: PlanRefusal | None = None

    @property
    def topic(self) -> str:
        return self.topics.status(self.node)

    def status(
        self,
        state: State,
        counters: dict[str, int] | None = None,
        streams: Mapping[str, StreamCount] | None = None,
        *,
        said: float = 0.0,
        lost_at: float = 0.0,
    ) -> bytes:
        """Return the status message for a state."""
        return encode_status(
            NodeStatus(
                node=self.node,
                role=self.role,
                state=state,
                instance=self.instance,
                started=self.started,
                version=__version__,
                client=self.client,
                detail=self.detail[:DETAIL],
                counters=counters or {},
                device=self.device,
                epoch=self.epoch,
                slice=self.slice,
                streams=dict(streams or {}),
                sources=self.sources,
                said=said,
                lost_at=lost_at,
                signer=self.signer,
                refused=self.refused,
            )
        )

    def session(
        self,
        *,
        expiry_s: int,
        receive_max: int = 1024,
        max_payload_bytes: int = LEAST_PAYLOAD_LIMIT,
        sends_bytes: int = 0,
    ) -> Session:
        """Return the session of this node: named after pipeline and node, so that the next process takes it over.

        `max_payload_bytes` bounds what comes, `sends_bytes` is the largest payload that this node is to send.
        """
        return Session(
            client_id=f"{self.topics.base}.{self.topics.pipeline}.{self.node}",
            expiry_s=expiry_s,
            will=Will(self.topic, self.status(State.LOST)),
            lease=status_lease(self.topic, self.instance, self.started),
            receive_max=receive_max,
            max_packet_bytes=max_payload_bytes + PACKET_BYTES,
            sends_bytes=sends_bytes,
        )


class StatusPublisher:
    """Keeps the retained status of a node up to date: birth, now and then its counters, farewell.

    `streams` gives what a sensor sent.
    """

    def __init__(
        self,
        bus: Bus,
        identity: Identity,
        counters: Callable[[], dict[str, int]],
        streams: Callable[[], Mapping[str, StreamCount]] = dict,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._bus, self._identity, self._counters, self._streams = bus, identity, counters, streams
        self._due, self._said, self._wall = 0.0, (-1, 0), wall
        self._lost, self._lost_at = 0, 0.0

    def announce(self, now: float) -> None:
        """Publish the status if it is due: at birth, after a reconnection, in a new epoch, every few seconds."""
        what = (self._bus.traffic.reconnects, self._identity.epoch)
        if not self._bus.connected or (now < self._due and self._said == what):
            return
        self._due, self._said = now + STATUS_S, what
        self._publish(State.READY)

    def farewell(self) -> None:
        """Publish that the node has gone on purpose."""
        self._publish(State.STOPPED)

    def _publish(self, state: State) -> None:
        traffic = self._bus.traffic
        counters = self._counters() | {
            "sent_bytes": traffic.sent_bytes,
            "received_bytes": traffic.received_bytes,
            "reconnects": traffic.reconnects,
        }
        streams, now = self._streams(), self._wall()
        lost = sum(counters.get(name, 0) for name in LOSSES) + sum(count.lost for count in streams.values())
        if lost > self._lost:
            self._lost_at = now
        self._lost = lost
        status = self._identity.status(state, counters, streams, said=now, lost_at=self._lost_at)
        self._bus.publish(self._identity.topic, status, retain=Kind.STATUS in RETAINED)
