"""The attacks of TUF's list (theupdateframework.github.io/specification, section 1.5.2) against a node that pins a key.

Rollback, freeze, mix and match, endless data, wrong key and key rotation: only a plan whose signature holds goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from har_edge.errors import ConfigError
from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.protocol.deployment import MAX_BYTES, encode_deployment
from har_edge.protocol.events import SignatureEvent, decode
from har_edge.protocol.signatures import (
    MAX_SERIAL,
    SignedStatement,
    Statement,
    decode_signature,
    decode_statement,
    encode_signature,
    encode_statement,
    plan_text,
    rotation_text,
)
from har_edge.protocol.topics import Topics
from har_edge.trust.gate import SIGNATURE_S, PlanGate
from har_edge.trust.gated_bus import AGAIN_S, GatedBus, SigningBus
from har_edge.trust.keys import SigningKey, make_key
from har_edge.trust.pins import FilePins, MemoryPins, open_own_pins, open_pins
from har_edge.trust.signer import LIFETIME_S, MAX_STEP, PlanSigner
from har_edge.trust.verdict import MAX_AHEAD_S, MENDS, Flaw, Pin, mend_of
from tests.runtime.deployed import TOPICS, deployment, generation

pytest.importorskip("cryptography")

NOW = 1_800_000_000.0
PLANS = [encode_deployment(deployment(generation("pi-1", "pi-2", "pi-3"), revision=n)) for n in (7, 8, 9)]
KEY, OTHER = make_key(), make_key()


@dataclass
class Clock:
    now: float = NOW

    def __call__(self) -> float:
        return self.now


@dataclass
class SigningScenario:
    """A node that pins KEY, and a coordinator that holds it; `sent` is all that an attacker could record."""

    pins: MemoryPins | FilePins = field(default_factory=lambda: MemoryPins(Pin(enrolled=KEY.public, key=KEY.public)))
    signing: SigningKey = KEY
    wall: Clock = field(default_factory=Clock)
    clock: Clock = field(default_factory=lambda: Clock(0.0))
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate = self.restarted()
        self.signer = PlanSigner(TOPICS, self.signing, wall=self.wall)

    def restarted(self) -> PlanGate:
        self.gate = PlanGate(TOPICS, self.pins, self.said.append, self.wall, self.clock)
        return self.gate

    def hear(self, *messages: tuple[str, bytes]) -> list[bytes]:
        """Return the plans that the gate lets through."""
        passed = [one for topic, payload in messages for one in self.gate.admit(Delivery(topic, payload, (1, 1)))]
        assert all(one.topic == TOPICS.plan() for one in passed)
        return [one.payload for one in passed]

    def publish(self, plan: bytes, **changes: object) -> list[bytes]:
        return self.hear(self.signature(plan, **changes), said(plan))

    def signature(self, plan: bytes, **changes: object) -> tuple[str, bytes]:
        """Return a signature by the coordinator; `changes` are what it says beside that, signed with its key."""
        outgoing = self.signer.sign(plan)
        if not changes:
            return outgoing.topic, outgoing.payload
        signed = decode_signature(outgoing.payload)
        statement = msgspec.structs.replace(decode_statement(signed.statement), **changes)
        return TOPICS.signature(), seal(statement, self.signing)

    def flaw(self) -> str | None:
        self.clock.now += SIGNATURE_S
        self.gate.tick()
        return self.gate.refusal.code if self.gate.refusal else None


def said(plan: bytes) -> tuple[str, bytes]:
    return TOPICS.plan(), plan


def seal(statement: Statement, key: SigningKey, rotations: Sequence[object] | None = None) -> bytes:
    text = encode_statement(statement).decode()
    chain = key.rotations if rotations is None else tuple(rotations)
    return encode_signature(SignedStatement(1, text, key.public, key.sign(plan_text(text)), chain))  # type: ignore[arg-type]


def forged(plan: bytes, key: SigningKey = OTHER, **changes: object) -> tuple[str, bytes]:
    statement = Statement(1, "har/har", digest(plan), int(NOW * 1000) + 5, NOW, NOW + LIFETIME_S)
    return TOPICS.signature(), seal(msgspec.structs.replace(statement, **changes), key)


def digest(plan: bytes) -> str:
    return hashlib.sha256(plan).hexdigest()


def tampered(scenario: SigningScenario, **changes: object) -> tuple[str, bytes]:
    """Return a true signature with another text."""
    signed = decode_signature(scenario.signature(PLANS[1])[1])
    text = encode_statement(msgspec.structs.replace(decode_statement(signed.statement), **changes)).decode()
    return TOPICS.signature(), encode_signature(msgspec.structs.replace(signed, statement=text))


def test_a_signed_plan_goes_through_whichever_of_the_two_comes_first() -> None:
    scenario = SigningScenario()
    assert scenario.publish(PLANS[0]) == [PLANS[0]] and scenario.gate.knows(PLANS[0])
    signature = scenario.signature(PLANS[1])
    assert scenario.hear(said(PLANS[1])) == [] and not scenario.gate.knows(PLANS[1])
    assert scenario.hear(signature) == [PLANS[1]] and scenario.flaw() is None
    assert scenario.hear(said(PLANS[1])) == [PLANS[1]], "as after a reconnection"
    other = Delivery(TOPICS.result("s"), b"{}", (1, 1))
    assert scenario.gate.admit(other) == [other]


Attack = Callable[[SigningScenario], list[bytes]]
# Each begins where PLANS[0] runs; none of them may bring another plan to the node. The names are TUF's.
ATTACKS: dict[str, tuple[Flaw, Attack]] = {
    "arbitrary plan": (Flaw.UNSIGNED, lambda s: s.hear(said(PLANS[1]))),
    "arbitrary plan, enormous revision": (
        Flaw.UNSIGNED,
        lambda s: s.hear(said(encode_deployment(deployment(revision=2**52, epoch=0)))),
    ),
    "removed plan": (Flaw.UNSIGNED, lambda s: s.hear(said(b""))),
    "removed plan and signature": (Flaw.UNSIGNED, lambda s: s.hear((TOPICS.signature(), b""), said(b""))),
    "wrong key": (Flaw.KEY, lambda s: s.hear(forged(PLANS[1]), said(PLANS[1]))),
    "wrong key, named as ours": (
        Flaw.SIGNATURE,
        lambda s: s.hear(tampered(s, plan=digest(PLANS[2])), said(PLANS[2])),
    ),
    "tampered number": (Flaw.SIGNATURE, lambda s: s.hear(tampered(s, serial=MAX_SERIAL), said(PLANS[1]))),
    "tampered expiry": (Flaw.SIGNATURE, lambda s: s.hear(tampered(s, expires=NOW * 2), said(PLANS[1]))),
    "rollback": (
        Flaw.ROLLBACK,
        lambda s: s.hear(s.signature(PLANS[1], serial=s.gate.serial - 1), said(PLANS[1])),
    ),
    "rollback, same number": (
        Flaw.ROLLBACK,
        lambda s: s.hear(s.signature(PLANS[1], serial=s.gate.serial), said(PLANS[1])),
    ),
    "freeze: expired": (Flaw.EXPIRED, lambda s: s.publish(PLANS[1], expires=NOW - 1)),
    "mix and match: another pipeline": (Flaw.PIPELINE, lambda s: s.publish(PLANS[1], pipeline="har/other")),
    "mix and match: two plans": (Flaw.UNSIGNED, lambda s: s.hear(s.signature(PLANS[1]), said(PLANS[2]))),
    "enormous number, true key": (Flaw.AHEAD, lambda s: s.publish(PLANS[1], serial=MAX_SERIAL)),
    "far future, true key": (Flaw.AHEAD, lambda s: s.publish(PLANS[1], issued=NOW + 2 * MAX_AHEAD_S)),
    "endless data: plan": (Flaw.MALFORMED, lambda s: s.hear(said(bytes(MAX_BYTES + 1)))),
    "endless data: signature": (Flaw.MALFORMED, lambda s: s.hear((TOPICS.signature(), b" " * 100_000))),
    "no signature": (Flaw.MALFORMED, lambda s: s.hear((TOPICS.signature(), b"{}"))),
    "upper-case key": (
        Flaw.MALFORMED,
        lambda s: s.hear((TOPICS.signature(), s.signature(PLANS[1])[1].replace(KEY.public.encode(), b"A" * 64))),
    ),
    "later version": (
        Flaw.MALFORMED,
        lambda s: s.hear((TOPICS.signature(), s.signature(PLANS[1])[1].replace(b'"version":1', b'"version":2', 1))),
    ),
    "rotation by another key": (
        Flaw.KEY,
        lambda s: s.hear((TOPICS.signature(), seal(statement_of(PLANS[1]), OTHER, [false_rotation()]))),
    ),
}


def statement_of(plan: bytes) -> Statement:
    return Statement(1, "har/har", digest(plan), int(NOW * 1000) + 5, NOW, NOW + LIFETIME_S)


def false_rotation() -> object:
    from har_edge.protocol.signatures import Rotation

    return Rotation(KEY.public, OTHER.public, OTHER.sign(rotation_text(KEY.public, OTHER.public)))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_brings_no_plan_to_a_node_and_is_not_final(name: str) -> None:
    expected, attack = ATTACKS[name]
    scenario = SigningScenario()
    assert scenario.publish(PLANS[0]) == [PLANS[0]]
    assert attack(scenario) == []
    assert scenario.flaw() == expected.value and scenario.gate.refusal is not None and scenario.gate.refusal.reason
    assert set(scenario.publish(PLANS[2])) == {PLANS[2]}, "the coordinator is heard after it"
    assert scenario.flaw() is None


def test_a_replayed_plan_is_refused_after_a_restart_too(tmp_path: Path) -> None:
    scenario = SigningScenario(pins=open_pins(tmp_path / "pins.json", KEY.public))
    first = scenario.signature(PLANS[0])
    assert scenario.hear(first, said(PLANS[0])) and scenario.publish(PLANS[1])
    scenario.pins = open_pins(tmp_path / "pins.json", KEY.public)
    scenario.restarted()
    assert scenario.hear(first, said(PLANS[0])) == [] and scenario.gate.refusal is not None
    assert scenario.gate.refusal.code == Flaw.ROLLBACK.value and scenario.gate.refusal.plan == digest(PLANS[0])


def test_a_node_that_restarts_goes_on_with_its_last_plan_though_that_has_expired() -> None:
    scenario = SigningScenario()
    signature = scenario.signature(PLANS[0])
    assert scenario.hear(signature, said(PLANS[0]))
    scenario.wall.now += 2 * LIFETIME_S
    scenario.restarted()
    assert scenario.hear(signature, said(PLANS[0])) == [PLANS[0]]
    assert scenario.publish(PLANS[1], issued=NOW, expires=NOW + 1) == [] and scenario.flaw() == Flaw.EXPIRED.value


def test_a_renewed_signature_is_remembered() -> None:
    scenario = SigningScenario()
    scenario.publish(PLANS[0])
    before = scenario.pins.pin
    scenario.wall.now += 3600
    assert scenario.hear(scenario.signature(PLANS[0])) == [] and scenario.gate.refusal is None
    assert scenario.pins.pin.serial > before.serial and scenario.pins.pin.issued == before.issued + 3600


def test_rotations_signed_by_the_old_key_are_followed_and_the_old_key_counts_no_more() -> None:
    third = KEY.rotate().rotate()
    scenario = SigningScenario(signing=third)
    assert scenario.publish(PLANS[0]) == [PLANS[0]] and scenario.gate.key == third.public
    told = f"is pinned in place of ed25519:{KEY.public[:16]}, which signed it as its successor"
    assert scenario.said == [f"the key {third.public} {told}"]
    assert scenario.pins.pin.enrolled == KEY.public
    scenario.signing = KEY
    assert scenario.hear(forged(PLANS[1], KEY, serial=scenario.gate.serial + 9), said(PLANS[1])) == []
    assert scenario.flaw() == Flaw.KEY.value


def test_the_first_key_is_pinned_on_first_use_and_said() -> None:
    scenario = SigningScenario(pins=MemoryPins(Pin()))
    assert scenario.gate.key == "" and scenario.publish(PLANS[0]) == [PLANS[0]]
    assert scenario.gate.key == KEY.public and KEY.public in scenario.said[0] and "first use" in scenario.said[0]
    assert scenario.hear(forged(PLANS[1]), said(PLANS[1])) == [] and scenario.flaw() == Flaw.KEY.value


def test_pins_keep_a_rotated_key_and_begin_anew_with_another_one(tmp_path: Path) -> None:
    path, new = tmp_path / "a" / "pins.json", KEY.rotate()
    pins = open_pins(path, KEY.public)
    pins.keep(Pin(enrolled=KEY.public, key=new.public, serial=5))
    assert path.stat().st_mode & 0o777 == 0o600
    assert open_pins(path, KEY.public).pin == open_pins(path, "").pin == pins.pin
    assert open_pins(path, OTHER.public).pin == Pin(enrolled=OTHER.public, key=OTHER.public)
    path.write_bytes(b"{")
    with pytest.raises(ConfigError, match=r"is damaged.*remove it"):
        open_pins(path, KEY.public)


def test_a_coordinator_goes_on_with_the_plan_that_its_key_signed_before_the_rotation(tmp_path: Path) -> None:
    path, new = tmp_path / "pins.json", KEY.rotate()
    open_own_pins(path, KEY).keep(Pin(enrolled=KEY.public, key=KEY.public, serial=5))
    scenario = SigningScenario(pins=open_own_pins(path, new))
    assert scenario.publish(PLANS[0]) == [PLANS[0]], "the older key's"
    scenario.signer = PlanSigner(TOPICS, new, wall=scenario.wall)
    assert scenario.publish(PLANS[1]) == [PLANS[1]] and scenario.gate.key == new.public
    assert open_own_pins(path, OTHER).pin.key == OTHER.public


def test_numbers_grow_over_a_clock_that_is_set_back_and_reports_raise_them_by_steps() -> None:
    wall = Clock()
    signer = PlanSigner(TOPICS, KEY, wall=wall)
    signer.sign(PLANS[0])
    first = signer.serial
    wall.now -= 3600
    signer.sign(PLANS[0])
    assert signer.serial == first + 1
    assert not signer.outdo(first - 5, 0.0) and signer.outdo(first + 10, 0.0) and signer.serial == first + 10
    assert not signer.outdo(first + 20, 0.1), "too soon"
    assert signer.outdo(MAX_SERIAL, 1.0) and signer.serial == first + 10 + MAX_STEP, "a forged report"


def test_a_signature_is_an_event_and_its_text_is_signed_as_it_stands() -> None:
    topic, payload = SigningScenario().signature(PLANS[0])
    event = decode(Delivery(topic, payload, (1, 1)), TOPICS)
    assert isinstance(event, SignatureEvent) and event.signed is not None
    spaced = event.signed.statement.replace(":", ": ")
    assert decode_statement(spaced) == decode_statement(event.signed.statement)
    scenario = SigningScenario()
    moved = encode_signature(msgspec.structs.replace(event.signed, statement=spaced))
    assert scenario.hear((topic, moved), said(PLANS[0])) == [] and scenario.flaw() == Flaw.SIGNATURE.value


def test_every_reason_has_a_mend() -> None:
    assert set(MENDS) == set(Flaw)
    assert mend_of("of a later version") == "see the log of that node"


@dataclass
class Deployed:
    """A coordinator and a node on the buses of a signed deployment, over one broker in memory."""

    clock: Clock = field(default_factory=lambda: Clock(0.0))
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.broker, topics = MemoryBroker(), Topics("har", "har")
        pin = Pin(enrolled=KEY.public, key=KEY.public)
        wall = Clock()
        self.gates = [PlanGate(topics, MemoryPins(pin), self.said.append, wall, self.clock) for _ in range(2)]
        self.signing = SigningBus(
            self.broker.connect(Session("c")),
            self.gates[0],
            topics,
            PlanSigner(topics, KEY, wall=wall),
            self.said.append,
            self.clock,
        )
        self.node = GatedBus(self.broker.connect(Session("n")), self.gates[1], topics)
        self.attacker = self.broker.connect(Session("a"))
        for bus in (self.signing, self.node):
            bus.subscribe([topics.plan(), topics.result("+")])

    def turn(self, passed_s: float = 0.0) -> list[bytes]:
        self.clock.now += passed_s
        self.attacker.poll(0.0)
        self.signing.poll(0.0)
        came = [*self.node.poll(0.0), *self.node.poll(0.0)]
        for one in came:
            self.node.acknowledge(one)
        return [one.payload for one in came]


def test_a_coordinator_puts_its_plan_back_within_a_second_and_says_so() -> None:
    scenario = Deployed()
    scenario.signing.publish(TOPICS.plan(), PLANS[0], retain=True)
    assert scenario.turn() == [PLANS[0]] and scenario.said == []
    scenario.attacker.publish(TOPICS.plan(), PLANS[2], retain=True)
    assert scenario.turn() == []
    came = [plan for _ in range(8) for plan in scenario.turn(0.1)]
    assert came == [] and scenario.clock.now < 1.0
    came = [plan for _ in range(6) for plan in scenario.turn(AGAIN_S / 2)]
    assert came == [PLANS[0]] and len(scenario.said) == 1 and "has not signed" in scenario.said[0]
    late = GatedBus(scenario.broker.connect(Session("late")), scenario.gates[1], TOPICS)
    late.subscribe([TOPICS.plan()])
    assert [one.payload for one in late.poll(0.0)] == [PLANS[0]]


def test_a_coordinator_renews_its_signature_and_outdoes_what_a_node_reports() -> None:
    scenario = Deployed()
    scenario.signing.publish(TOPICS.plan(), PLANS[0], retain=True)
    scenario.turn()
    first = scenario.gates[1].serial
    assert scenario.turn(LIFETIME_S / 8) == [] and scenario.turn() == [] and scenario.gates[1].serial == first + 1
    scenario.signing.outdo(first + 50)
    assert [plan for _ in range(2) for plan in scenario.turn(0.1)] == [PLANS[0]] and scenario.gates[
        1
    ].serial == first + 51
