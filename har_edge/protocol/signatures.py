"""The signature of the plan: a retained message beside it, so that nodes that know of none go on as before.

A signature covers the SHA-256 of the exact bytes of the plan, and the plan names every slice by its SHA-256. The signed
text travels as it was signed. An older node does not subscribe to it.
"""

from __future__ import annotations

import re
from typing import Annotated, TypeVar

import msgspec

from har_edge.errors import MessageError

VERSION = 1
MAX_BYTES = 16 * 1024
# A chain of so many keys: a node that was away for more rotations is enrolled anew.
MAX_ROTATIONS = 16
MAX_SERIAL = 2**53
# No clock of ours comes near (the year 6429), and every sum of two stays exact.
MAX_TIME_S = 2.0**37
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
# Each kind of text has a beginning of its own, so that one is never taken for another.
_PLAN_DOMAIN, _ROTATION_DOMAIN = b"har-edge plan signature 1\n", b"har-edge key rotation 1\n"

Key = Annotated[str, msgspec.Meta(min_length=64, max_length=64)]
_Signature = Annotated[str, msgspec.Meta(min_length=128, max_length=128)]
_Time = Annotated[float, msgspec.Meta(ge=0, le=MAX_TIME_S)]


class Statement(msgspec.Struct, frozen=True):
    """The signed text: which plan of which pipeline counts, and until when.

    `plan` is the SHA-256 of its bytes. `serial` grows with every signature; the greatest counts. `issued` and `expires`
    are seconds since 1970, by the coordinator's clock. Unknown keys are ignored.
    """

    version: int
    pipeline: Annotated[str, msgspec.Meta(max_length=300)]
    plan: Key
    serial: Annotated[int, msgspec.Meta(ge=1, le=MAX_SERIAL)]
    issued: _Time
    expires: _Time


class Rotation(msgspec.Struct, frozen=True):
    """The word of the key `old` that `new` takes its place."""

    old: Key
    new: Key
    signature: _Signature


class SignedStatement(msgspec.Struct, frozen=True, omit_defaults=True):
    """The message at the topic `signature`: a statement as its exact text, who signed it, and how the key came about.

    `key` is the Ed25519 public key (RFC 8032) as hex digits; `rotations` lead to it from older keys.
    """

    version: int
    statement: Annotated[str, msgspec.Meta(max_length=4096)]
    key: Key
    signature: _Signature
    rotations: Annotated[tuple[Rotation, ...], msgspec.Meta(max_length=MAX_ROTATIONS)] = ()


encode_statement = msgspec.json.Encoder().encode
encode_signature = msgspec.json.Encoder().encode
_statements = msgspec.json.Decoder(Statement)
_signatures = msgspec.json.Decoder(SignedStatement)
_Read = TypeVar("_Read", Statement, SignedStatement)


def plan_text(statement: str) -> bytes:
    """Return the bytes that a key signs for a statement."""
    return _PLAN_DOMAIN + statement.encode()


def rotation_text(old: str, new: str) -> bytes:
    """Return the bytes that the key `old` signs to name its successor."""
    return _ROTATION_DOMAIN + f"{old}\n{new}".encode()


def decode_signature(payload: bytes) -> SignedStatement:
    """Read a signature; nothing is verified yet. Raises MessageError for one that is malformed or too large."""
    if len(payload) > MAX_BYTES:
        raise MessageError(f"a signature of {len(payload)} bytes came; expected at most {MAX_BYTES}")
    signed = _read(_signatures, payload, "signature of the plan")
    digits = [signed.key, signed.signature]
    for one in signed.rotations:
        digits += [one.old, one.new, one.signature]
    if not all(map(_HEX.fullmatch, digits)):
        raise MessageError("a signature of the plan has keys that are no lower-case hex digits; see what wrote it")
    if signed.version != VERSION:
        raise MessageError(f"a signature of version {signed.version} came; expected {VERSION}: update this node")
    return signed


def decode_statement(text: str) -> Statement:
    """Read what was signed. Raises MessageError for a text that is malformed."""
    statement = _read(_statements, text.encode(), "signed statement")
    if statement.version != VERSION:
        raise MessageError(f"a statement of version {statement.version} came; expected {VERSION}: update this node")
    if not _HEX.fullmatch(statement.plan):
        raise MessageError("a signed statement came whose plan is no SHA-256; see what wrote it")
    return statement


def _read(decoder: msgspec.json.Decoder[_Read], payload: bytes, what: str) -> _Read:
    try:
        return decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageError(f"the message is no {what}: {error}; expected the JSON of docs/reference/wire.md") from None
