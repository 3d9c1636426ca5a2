"""The messages of masked sums: what workers tell each other through the server, which learns sums alone.

learning/masking/sums.py says what each of them is for.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from har_edge.errors import MessageError
from har_edge.protocol.training_fields import VERSION, Name, Number, Size, Text

# A job whose updates are masked: a node that knows none refuses its version, rather than sending an update as it is.
MASKED_VERSION = 2
# The fewest workers of a masked sum: each of two would know the other's update. The most: a message names them all.
LEAST_MASKED, MOST_MASKED = 3, 512
KEY_BYTES = 32
# Shares of secrets are numbers below 2**521 - 1 (learning/masking/shamir.py).
SHARE_BYTES = 66
# Two shares, and the tag that authenticates them (RFC 8439).
SEALED_BYTES = 2 * SHARE_BYTES + 16

PublicKey = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Share = Annotated[bytes, msgspec.Meta(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
SealedShares = Annotated[bytes, msgspec.Meta(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]


class MaskTerms(msgspec.Struct, frozen=True):
    """The terms of a masked sum, the same for all workers of a round.

    `number` is unique in a run of the server. `threshold` of `devices` must stay to the end. `limit` is the largest
    value of an update, and `most` are the samples of the largest task.
    """

    number: Number
    devices: Annotated[int, msgspec.Meta(ge=LEAST_MASKED, le=MOST_MASKED)]
    threshold: Annotated[int, msgspec.Meta(ge=2, le=MOST_MASKED)]
    limit: Annotated[float, msgspec.Meta(gt=0, le=1e24)]
    most: Size


class MaskPart(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A message of a worker for a masked sum: two public keys, shares that it sealed for others, or shares it tells.

    One of the three is there. `number` is that of the sum.
    """

    version: int = VERSION
    run: Name
    author: Text
    worker: Name
    number: Number
    keys: tuple[PublicKey, PublicKey] | None = None
    shares: Annotated[dict[Name, SealedShares], msgspec.Meta(max_length=MOST_MASKED)] = {}
    told: Annotated[dict[Name, Share], msgspec.Meta(max_length=MOST_MASKED)] = {}
    sealed: Text = ""


class MaskRelay(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A message of the server for a masked sum: the keys of all, shares sealed for a worker, or who is counted.

    One of the three is there.
    """

    version: int = VERSION
    run: Name
    author: Text
    number: Number
    keys: Annotated[dict[Name, tuple[PublicKey, PublicKey]], msgspec.Meta(max_length=MOST_MASKED)] = {}
    shares: Annotated[dict[Name, SealedShares], msgspec.Meta(max_length=MOST_MASKED)] = {}
    counted: Annotated[tuple[Name, ...], msgspec.Meta(max_length=MOST_MASKED)] = ()
    sealed: Text = ""


def check_contents(message: MaskPart | MaskRelay) -> None:
    """Raise MessageError where not exactly one of the three contents is there."""
    last = message.told if isinstance(message, MaskPart) else message.counted
    count = bool(message.keys) + bool(message.shares) + bool(last)
    if count != 1:
        raise MessageError(f"a message of a masked sum with {count} of its three contents came; expected one")
