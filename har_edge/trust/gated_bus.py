"""Buses of a signed deployment: one that hides unsigned plans from whoever follows them, and one that signs them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from har_edge.mqtt.bus import Bus, BusTraffic, Delivery, OnOutcome
from har_edge.protocol.topics import Topics
from har_edge.trust.gate import PlanGate
from har_edge.trust.signer import PlanSigner

_log = logging.getLogger(__name__)
# The token of a delivery that the bus has acknowledged by itself.
_DONE = (-1, -1)
# How often the plan is published again where others publish theirs: at once, then ever less often.
AGAIN_S, MOST_AGAIN_S = 0.3, 30.0


class GatedBus:
    """A bus (mqtt/bus.py) that delivers a plan only when its signature holds; all else goes through as it comes."""

    def __init__(self, bus: Bus, gate: PlanGate, topics: Topics) -> None:
        self._bus, self._gate, self._plan = bus, gate, topics.plan()
        self._closely = frozenset({topics.plan(), topics.signature()})

    @property
    def traffic(self) -> BusTraffic:
        return self._bus.traffic

    @property
    def unsent(self) -> int:
        return self._bus.unsent

    @property
    def connected(self) -> bool:
        return self._bus.connected

    def subscribe(self, filters: Sequence[str]) -> None:
        """Subscribe; with the plan, to its signature too."""
        self._bus.subscribe([*([self._gate.topic] if self._plan in filters else []), *filters])

    def unsubscribe(self, filters: Sequence[str]) -> None:
        """End subscriptions."""
        self._bus.unsubscribe(filters)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        """Publish as it is."""
        self._bus.publish(topic, payload, retain=retain, on_outcome=on_outcome)

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge a delivery that the bus has not acknowledged by itself."""
        if delivery.token != _DONE:
            self._bus.acknowledge(delivery)

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        """Wait as the bus does; return what came, plans as soon as their signatures are there."""
        came = self._bus.poll(timeout_s, most_bytes)
        passed: list[Delivery] = []
        for delivery in came:
            if delivery.topic not in self._closely:
                passed.append(delivery)
                continue
            self._bus.acknowledge(delivery)
            passed += self._gate.admit(
                Delivery(delivery.topic, delivery.payload, _DONE, delivery.retained, delivery.duplicate)
            )
        self._gate.tick()
        return passed

    def close(self, *, forget: bool = False) -> None:
        """Disconnect."""
        self._bus.close(forget=forget)


class SigningBus(GatedBus):
    """The bus of a coordinator: it signs each plan that it publishes, renews signatures, and publishes the plan again
    where somebody without the key has put another one in its place.
    """

    def __init__(
        self,
        bus: Bus,
        gate: PlanGate,
        topics: Topics,
        signer: PlanSigner,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(bus, gate, topics)
        self._signer, self._say, self._clock = signer, say, clock
        self._last: bytes | None = None  # the plan as it was published last
        self._renew_at = self._again_at = float("inf")
        self._refused, self._wait_s = gate.refused, AGAIN_S

    def publish(self, topic: str, payload: bytes, *, retain: bool = False, on_outcome: OnOutcome | None = None) -> None:
        """Publish; before a plan, its signature."""
        if topic == self._plan:
            self._last = payload
            self._sign(payload)
        super().publish(topic, payload, retain=retain, on_outcome=on_outcome)

    def poll(self, timeout_s: float, most_bytes: int | None = None) -> Sequence[Delivery]:
        """Wait as the bus does, and do what is due for the plan."""
        passed = super().poll(timeout_s, most_bytes)
        self._signer.note(self._gate.serial)
        now = self._clock()
        if self._gate.refused > self._refused:
            self._refused = self._gate.refused
            if self._again_at == float("inf"):
                self._contest(now)
        if self._last is not None and self._bus.connected and now >= min(self._again_at, self._renew_at):
            again, self._again_at = now >= self._again_at, float("inf")
            self._sign(self._last)
            if again:
                super().publish(self._plan, self._last, retain=True)
        return passed

    def outdo(self, serial: int) -> None:
        """Sign the plan anew with a number after that which a node says to have accepted."""
        now = self._clock()
        if self._signer.outdo(serial, now):
            self._again_at = min(self._again_at, now)

    def _contest(self, now: float) -> None:
        refusal = self._gate.refusal
        reason = refusal.reason if refusal else "its signature does not hold"
        ours = "ours is published again" if self._last is not None else "it is left"
        self._say(f"a plan came that this coordinator's key has not signed: {reason}; {ours}; see who may publish it")
        calm = now > self._renew_at - self._signer.renew_s + 2 * self._wait_s  # the last signature is long ago
        self._wait_s = AGAIN_S if calm else min(MOST_AGAIN_S, 2 * self._wait_s)
        self._again_at = now + self._wait_s

    def _sign(self, plan: bytes) -> None:
        self._renew_at = self._clock() + self._signer.renew_s
        signature = self._signer.sign(plan)
        super().publish(signature.topic, signature.payload, retain=signature.retain)
