"""The reasons to refuse a plan, and the verification of one signature against what a device has pinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

from har_edge.errors import MessageError
from har_edge.protocol.signatures import (
    Rotation,
    SignedStatement,
    Statement,
    decode_statement,
    plan_text,
    rotation_text,
)
from har_edge.trust.keys import short, verify

# How far ahead of our clock, and of the last signature that we accepted, a signature may be: a device without a clock
# that keeps time is weeks behind after a rest, and a coordinator whose clock once stood in another century is not
# believed for ever.
MAX_AHEAD_S = 30 * 86_400.0


class Flaw(str, Enum):
    """The kind of reason for which a plan is not followed."""

    UNSIGNED = "unsigned"
    MALFORMED = "malformed"
    SIGNATURE = "signature"
    KEY = "key"
    PIPELINE = "pipeline"
    ROLLBACK = "rollback"
    EXPIRED = "expired"
    AHEAD = "ahead"
    OLDER = "older"  # by its revision, at a node that follows unsigned plans


class Pin(msgspec.Struct, frozen=True, omit_defaults=True):
    """The memory of a device for a pipeline, over its own restarts.

    `enrolled` is the key that was named first, `key` the one that it has become by rotations; both are empty before the
    first use. `serial`, `issued` and `plan` are those of the last statement whose plan was followed.
    """

    version: int = 1
    enrolled: str = ""
    key: str = ""
    serial: int = 0
    issued: float = 0.0
    plan: str = ""


@dataclass(frozen=True, slots=True)
class SignatureCheck:
    """The result for one signature: the statement and what is pinned from now on, or why it is refused."""

    pin: Pin
    statement: Statement | None = None
    flaw: Flaw | None = None
    reason: str = ""
    plan: str = ""  # the SHA-256 that it claims to sign


def judge(signed: SignedStatement, pin: Pin, pipeline: str, now: float) -> SignatureCheck:
    """Verify a signature; `now` is the time in seconds since 1970.

    A statement that has expired still counts for the very plan that was followed last: a device that starts again while
    the coordinator is away goes on as it was.
    """
    try:
        statement = decode_statement(signed.statement)
    except MessageError as error:
        return SignatureCheck(pin, flaw=Flaw.MALFORMED, reason=str(error))

    def refuse(flaw: Flaw, reason: str) -> SignatureCheck:
        return SignatureCheck(pin, flaw=flaw, reason=reason, plan=statement.plan)

    known = pin if pin.key else Pin(enrolled=signed.key, key=signed.key)
    if signed.key != known.key:
        if not _leads(signed.rotations, known.key, signed.key):
            return refuse(Flaw.KEY, f"it is signed by {short(signed.key)}; expected {short(known.key)}")
        known = msgspec.structs.replace(known, key=signed.key, serial=0)
    if not verify(signed.key, signed.signature, plan_text(signed.statement)):
        return refuse(Flaw.SIGNATURE, f"its signature is not one of {short(signed.key)}")
    if statement.pipeline != pipeline:
        return refuse(Flaw.PIPELINE, f"it is signed for pipeline {statement.pipeline}; expected {pipeline}")
    if statement.serial < known.serial or (statement.serial == known.serial and statement.plan != known.plan):
        return refuse(
            Flaw.ROLLBACK, f"its signature has number {statement.serial}; expected one after {known.serial}: it is old"
        )
    latest = max(now, known.issued) + MAX_AHEAD_S
    if statement.issued > latest or statement.serial > latest * 1000:
        return refuse(
            Flaw.AHEAD, f"its signature is of a time {_days(statement, now)} days ahead of this device's clock"
        )
    if now > statement.expires and statement.plan != known.plan:
        hours = (now - statement.expires) / 3600
        return refuse(Flaw.EXPIRED, f"its signature expired {hours:.1f} h ago by this device's clock")
    return SignatureCheck(known, statement)


def _days(statement: Statement, now: float) -> str:
    return f"{(max(statement.issued, statement.serial / 1000) - now) / 86_400:.0f}"


def _leads(rotations: Sequence[Rotation], old: str, new: str) -> bool:
    """Return whether signed rotations lead from one key to another; each is followed once."""
    for rotation in rotations:
        if rotation.old != old:
            continue
        if not verify(old, rotation.signature, rotation_text(rotation.old, rotation.new)):
            return False
        old = rotation.new
    return old == new


MENDS = {
    Flaw.UNSIGNED: "sign it: `har-edge coordinator --sign-key FILE`; see who else may publish the plan, and that the "
    "access list lets that node read `signature`",
    Flaw.MALFORMED: "update the older of the two; see who else may publish the signature",
    Flaw.SIGNATURE: "see who else may publish the signature; start the coordinator again",
    Flaw.KEY: "start the coordinator with the key that nodes pin (`har-edge keys restore`), rotate it with "
    "`har-edge keys rotate`, or enrol the node anew: `har-edge node --trust KEY`",
    Flaw.PIPELINE: "see who else may publish here; a plan belongs to one pipeline",
    Flaw.ROLLBACK: "start the coordinator again; see who publishes old plans",
    Flaw.EXPIRED: "set the clocks (`timedatectl set-ntp true`), and see that the coordinator runs: it renews it",
    Flaw.AHEAD: "set the clocks of both devices: `timedatectl set-ntp true`",
    Flaw.OLDER: "see who else publishes plans; start the coordinator again, and that node where it still refuses",
}


def mend_of(code: str) -> str:
    """Return how the reason of a refusal is removed; a general advice for a code of a newer version."""
    try:
        return MENDS[Flaw(code)]
    except ValueError:
        return "see the log of that node"
