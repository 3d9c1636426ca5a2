"""Change messages at random: bytes, and values of JSON and MessagePack in their places. Every step follows the seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

# Figures at which formats, C integers and floats end, and texts that mean something to somebody.
ODD: tuple[Any, ...] = (
    0, -1, 1, 127, 128, 255, 256, 2**16, 2**31 - 1, 2**31, 2**53, 2**62, 2**63, 2**64 - 1, -(2**63), 0.5, -0.0, 1e308,
    None, True, False, "", "x" * 200, "../../etc/passwd", "\x00", "\U0001f4a5", "+", "#", "/", "all", "_probe-1",
    "a" * 64, [], {}, [[]], [0] * 9, {"a": 1}, b"", b"\xff" * 9,
)  # fmt: skip
ODD_BYTES = (
    b"\x00",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\xc1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"[" * 50,
    b'"',
)


class Mutator:
    """Makes damaged messages out of good ones."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def __call__(self, payload: bytes, others: Sequence[bytes]) -> bytes:
        """Return a payload that differs in one to four ways; `others` lend their bytes."""
        steps = (self._of_bytes, self._of_values, self._of_values, self._of_values, self._of_values, self._splice)
        for _ in range(self.rng.choice((1, 1, 1, 1, 2, 3, 4))):
            payload = self.rng.choice(steps)(payload, others)
        return payload

    def _place(self, payload: bytes) -> int:
        return self.rng.randrange(len(payload) + 1)

    def _of_bytes(self, payload: bytes, _: Sequence[bytes]) -> bytes:
        rng, place = self.rng, self._place(payload)
        kind = rng.randrange(6)
        if kind == 0 and payload:
            place = rng.randrange(len(payload))
            return payload[:place] + bytes([payload[place] ^ 1 << rng.randrange(8)]) + payload[place + 1 :]
        if kind == 1:
            return payload[:place] + rng.choice(ODD_BYTES) + payload[place:]
        if kind == 2:
            return payload[:place] + rng.choice(ODD_BYTES) + payload[place + rng.randint(1, 8) :]
        if kind == 3:
            return payload[:place]
        if kind == 4:
            return payload[:place] + payload[place + rng.randint(1, 16) :]
        stop = place + rng.randint(1, 64)
        return payload[:stop] + payload[place:stop] * rng.randint(1, 3) + payload[stop:]

    def _splice(self, payload: bytes, others: Sequence[bytes]) -> bytes:
        other = self.rng.choice(others)
        return payload[: self._place(payload)] + other[self._place(other) :]

    def _of_values(self, payload: bytes, _: Sequence[bytes]) -> bytes:
        """Change a value, and leave a message that can be parsed."""
        for decode, encode in _FORMATS:
            try:
                return encode(self._change(decode(payload)))
            except (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, TypeError, ValueError):
                continue
        return payload

    def _change(self, value: Any) -> Any:
        rng = self.rng
        if isinstance(value, dict) and value and rng.random() < 0.9:
            key = rng.choice(list(value))
            kind = rng.randrange(8)
            if kind == 0:
                return {one: each for one, each in value.items() if one != key}
            if kind == 1:
                return value | {rng.choice(("odd", key * 2 if isinstance(key, str) else 99)): rng.choice(ODD)}
            return value | {key: self._change(value[key])}
        if isinstance(value, list) and value and rng.random() < 0.9:
            place, kind = rng.randrange(len(value)), rng.randrange(8)
            if kind == 0:
                return value[:place] + value[place + 1 :]
            if kind == 1:
                return value[:place] + [value[place]] * rng.randint(1, 5) + value[place:]
            return [*value[:place], self._change(value[place]), *value[place + 1 :]]
        if isinstance(value, bool | int | float) and rng.random() < 0.8:
            return -value if rng.random() < 0.1 else value + rng.choice((1, 1, 2, -1, 1000))
        return rng.choice(ODD)


_FORMATS: tuple[tuple[Callable[[bytes], Any], Callable[[Any], bytes]], ...] = (
    (msgspec.json.decode, msgspec.json.encode),
    (msgspec.msgpack.decode, msgspec.msgpack.encode),
)
