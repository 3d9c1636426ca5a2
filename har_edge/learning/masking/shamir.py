"""Secrets in shares: any `threshold` of them give the secret, fewer say nothing (Shamir 1979)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from har_edge.protocol.masks import SHARE_BYTES

# A Mersenne prime (Robinson 1952). A secret of 32 bytes is far below, and each share is a number below it.
PRIME = 2**521 - 1
SECRET_BYTES = 32


def split_secret(secret: bytes, threshold: int, count: int, random_bytes: Callable[[int], bytes]) -> list[bytes]:
    """Return `count` shares of a secret of SECRET_BYTES, the share of point 1 first.

    `random_bytes` is one for cryptography, such as `secrets.token_bytes`.
    """
    if len(secret) != SECRET_BYTES or not 1 <= threshold <= count:
        raise ValueError(f"a secret of {len(secret)} bytes, {threshold} of {count} shares")
    # 16 bytes more than the prime has: the remainder is then as good as even.
    polynomial = [int.from_bytes(random_bytes(SHARE_BYTES + 16), "little") % PRIME for _ in range(threshold - 1)]
    shares = []
    for point in range(1, count + 1):
        value = 0
        for coefficient in reversed(polynomial):
            value = (value + coefficient) * point % PRIME
        value = (value + int.from_bytes(secret, "little")) % PRIME
        shares.append(value.to_bytes(SHARE_BYTES, "little"))
    return shares


def join_shares(shares: Mapping[int, bytes]) -> bytes:
    """Return the secret of shares by point, at least as many as its threshold.

    Raises ValueError for shares that belong to no secret of SECRET_BYTES; nothing else tells a wrong share.
    """
    total = 0
    for point, share in shares.items():
        value = int.from_bytes(share, "little")
        if len(share) != SHARE_BYTES or value >= PRIME:
            raise ValueError(f"the share of point {point} is no number below 2**521 - 1 of {SHARE_BYTES} bytes")
        above = below = 1
        for other in shares:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        total = (total + value * above * pow(below, -1, PRIME)) % PRIME
    if total >= 2 ** (8 * SECRET_BYTES):
        raise ValueError("the shares do not belong together")
    return total.to_bytes(SECRET_BYTES, "little")
