"""The coordinator's side of a signed deployment: it signs what it publishes, and holds the topic against others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable

from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.signatures import (
    MAX_SERIAL,
    VERSION,
    SignedStatement,
    Statement,
    encode_signature,
    encode_statement,
    plan_text,
)
from har_edge.protocol.topics import Topics
from har_edge.trust.keys import SigningKey

# How long a signature counts, and after which part of that it is renewed. An attacker who holds new plans back from a
# node can do so for no longer; a node that is off for longer takes no plan while the coordinator is away.
LIFETIME_S = 7 * 86_400.0
RENEWALS = 8
# The most by which an unverified report of a node may raise the number of the next signature, and how often one may.
MAX_STEP = 2**20
STEP_S = 0.5


class PlanSigner:
    """Signs plans with growing numbers: milliseconds since 1970, or one more than the greatest that is known.

    A clock that is set back thus makes no number smaller, and one that ran ahead makes none enormous for ever.
    """

    def __init__(
        self,
        topics: Topics,
        key: SigningKey,
        lifetime_s: float = LIFETIME_S,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._topics, self._key, self._lifetime_s, self._wall = topics, key, lifetime_s, wall
        self.serial = 0
        self._stepped_at = float("-inf")

    @property
    def public(self) -> str:
        """The public key that nodes pin."""
        return self._key.public

    @property
    def renew_s(self) -> float:
        """After how long a signature is to be renewed."""
        return self._lifetime_s / RENEWALS

    def note(self, serial: int) -> None:
        """Count on from the number of a signature that holds."""
        self.serial = max(self.serial, serial)

    def outdo(self, serial: int, now: float) -> bool:
        """Count on from the number that a node reports, which may be forged; return whether the next one is greater."""
        if serial < self.serial or now < self._stepped_at + STEP_S:
            return False
        self._stepped_at = now
        self.serial = min(serial, max(self.serial, int(self._wall() * 1000)) + MAX_STEP)
        return True

    def sign(self, plan: bytes) -> Outgoing:
        """Return the message with the signature of a plan."""
        issued = self._wall()
        self.serial = min(max(self.serial + 1, int(issued * 1000)), MAX_SERIAL)
        pipeline = f"{self._topics.base}/{self._topics.pipeline}"
        digest = hashlib.sha256(plan).hexdigest()
        statement = Statement(VERSION, pipeline, digest, self.serial, issued, issued + self._lifetime_s)
        text = encode_statement(statement).decode()
        signed = SignedStatement(VERSION, text, self.public, self._key.sign(plan_text(text)), self._key.rotations)
        return Outgoing(self._topics.signature(), encode_signature(signed), retain=True)
