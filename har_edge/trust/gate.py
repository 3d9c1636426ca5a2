"""The gate between the broker and those who follow plans: only a plan whose signature holds goes through.

Plan and signature are two messages, which may come in either order. A plan waits until its signature is there.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable

import msgspec

from har_edge.mqtt.bus import Delivery
from har_edge.protocol.deployment import MAX_BYTES
from har_edge.protocol.events import SignatureEvent, Unreadable, decode
from har_edge.protocol.signatures import Statement
from har_edge.protocol.status import PlanRefusal
from har_edge.protocol.topics import Topics
from har_edge.trust.keys import short
from har_edge.trust.pins import Pins
from har_edge.trust.verdict import Flaw, judge

_log = logging.getLogger(__name__)
# How long a plan may be there before its signature: they are published one after the other.
SIGNATURE_S = 0.5
# Plans that were accepted, by hash: a session lease may look at one again.
_REMEMBERED = 32
_LONGEST = 400


class PlanGate:
    """Lets signed plans through, and remembers why it refused the last one that it did not.

    `refused` counts refusals; `refusal` is the last one, None when a plan was accepted since. One thread calls it, but
    for `knows`.
    """

    def __init__(
        self,
        topics: Topics,
        pins: Pins,
        say: Callable[[str], None],
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.refused = 0
        self.refusal: PlanRefusal | None = None
        self._topics, self._pins, self._say, self._wall, self._clock = topics, pins, say, wall, clock
        self._statement: Statement | None = None  # the newest that holds, whether its plan has come or not
        self._held: tuple[str, Delivery, float] | None = None  # hash, plan, and until when its signature may come
        self._known: tuple[str, ...] = ()

    @property
    def topic(self) -> str:
        """The topic to subscribe to, beside the plan."""
        return self._topics.signature()

    @property
    def key(self) -> str:
        """The key by which plans are verified; empty before the first use."""
        return self._pins.pin.key

    @property
    def serial(self) -> int:
        """The newest number of a signature that holds."""
        return max(self._pins.pin.serial, self._statement.serial if self._statement else 0)

    def knows(self, payload: bytes) -> bool:
        """Return whether this very plan was accepted."""
        return hashlib.sha256(payload).hexdigest() in self._known

    def admit(self, delivery: Delivery) -> list[Delivery]:
        """Take a message; return what may be followed now: itself, where it is neither plan nor signature."""
        if delivery.topic == self._topics.plan():
            return self._take_plan(delivery)
        if delivery.topic == self._topics.signature():
            return self._take_signature(delivery)
        return [delivery]

    def tick(self) -> None:
        """Refuse a plan whose signature did not come."""
        if self._held is None or self._clock() < self._held[2]:
            return
        plan, delivery, _ = self._held
        self._held = (plan, delivery, float("inf"))  # its signature may yet come
        if self.refusal is not None and self.refusal.plan == plan:
            return  # its signature came, and does not hold
        what = "no plan was signed" if self._statement is None else "another plan is signed"
        if not delivery.payload:
            what = "it was removed, and nobody signed that"
        self._refuse(Flaw.UNSIGNED, f"{what} at {self.topic}", plan)

    def _take_plan(self, delivery: Delivery) -> list[Delivery]:
        if len(delivery.payload) > MAX_BYTES:
            self._refuse(Flaw.MALFORMED, f"it has {len(delivery.payload)} bytes; expected at most {MAX_BYTES}", "")
            return []
        digest = hashlib.sha256(delivery.payload).hexdigest()
        self._held = (digest, delivery, self._clock() + SIGNATURE_S)
        return self._match()

    def _take_signature(self, delivery: Delivery) -> list[Delivery]:
        event = decode(delivery, self._topics)
        if isinstance(event, Unreadable):
            self._refuse(Flaw.MALFORMED, event.reason, "")
            return []
        if not isinstance(event, SignatureEvent) or event.signed is None:
            return []  # what was accepted stays so
        before = self._pins.pin
        pin = before
        if self._statement is not None:
            pin = msgspec.structs.replace(before, serial=self._statement.serial, plan=self._statement.plan)
        pipeline = f"{self._topics.base}/{self._topics.pipeline}"
        verdict = judge(event.signed, pin, pipeline, self._wall())
        if verdict.statement is None:
            self._refuse(verdict.flaw or Flaw.MALFORMED, verdict.reason, verdict.plan)
            return []
        self._statement = verdict.statement
        if verdict.pin.key != before.key:
            self._pins.keep(
                msgspec.structs.replace(before, enrolled=verdict.pin.enrolled, key=verdict.pin.key, serial=0)
            )
            told = "is pinned, on first use: compare it with `har-edge keys show` at the coordinator"
            if before.key:
                told = f"is pinned in place of {short(before.key)}, which signed it as its successor"
            self._say(f"the key {verdict.pin.key} {told}")
        return self._match()

    def _match(self) -> list[Delivery]:
        """Let the plan through whose signature holds."""
        statement = self._statement
        if statement is None:
            return []
        if self._held is not None and self._held[0] == statement.plan:
            _, delivery, _ = self._held
            self._held, self.refusal = None, None
            self._known = (*self._known, statement.plan)[-_REMEMBERED:]
            self._accept(statement)
            return [delivery]
        if statement.plan in self._known[-1:]:  # the signature was renewed
            self._accept(statement)
        return []

    def _accept(self, statement: Statement) -> None:
        pin = self._pins.pin
        self._pins.keep(
            msgspec.structs.replace(pin, serial=statement.serial, issued=statement.issued, plan=statement.plan)
        )

    def _refuse(self, flaw: Flaw, reason: str, plan: str) -> None:
        said = self.refusal
        self.refused += 1
        self.refusal = PlanRefusal(flaw.value, reason[:_LONGEST], plan, self.serial)
        if said is None or said.code != flaw.value:  # a flood of one kind is said once
            _log.warning("refused a plan: %s", reason)
