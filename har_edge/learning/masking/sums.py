"""Sums of updates that hide each update: pairwise masks that cancel, and shares of their seeds for those who drop out.

The protocol is that of Bonawitz et al. 2017, figure 4, against an honest but curious server: keys are not signed, so a
server that lies about them, or a broker that changes messages, is not kept out; protect the topics (docs/how-to/
security.md). Messages of one round, each through the server, which waits for at least `threshold` devices a time:

    1. device -> server  its two public keys                             `MaskedDevice.keys`
       server -> devices the keys of all
    2. device -> server  for each other device, sealed: a share of the   `MaskedDevice.share`
                         device's mask key, a share of its own seed
       server -> device  what the others sealed for it
    3. device -> server  values + own mask + masks of the pairs          `MaskedDevice.mask`
       server -> devices who sent them
    4. device -> server  of each that sent: the share of its own seed;   `MaskedDevice.unmask`
                         of each that did not: that of its mask key

Then the server removes the masks from the sum (`MaskedSum.total`). A device tells never both of the same other one.
Keys and seeds serve one round. Needs the extra `secure`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from har_edge.errors import ConfigError, MessageError, NodeError
from har_edge.extras import require
from har_edge.learning.masking.fixed_point import Words
from har_edge.learning.masking.keys import SEED_BYTES, KeyPair, check_public, expand, open_sealed, public_of, seal
from har_edge.learning.masking.shamir import join_shares, split_secret
from har_edge.protocol.masks import KEY_BYTES, LEAST_MASKED, SHARE_BYTES
from har_edge.units import plural


class MaskError(NodeError):
    """The sum cannot be unmasked; `culprit` is the device whose secret does not come back, "" where nobody knows."""

    def __init__(self, culprit: str, text: str) -> None:
        super().__init__(text)
        self.culprit = culprit


@dataclass(frozen=True, slots=True)
class MaskKeys:
    """The public X25519 keys of a device for one round: one to seal shares, one to agree on masks."""

    sealing: bytes
    masking: bytes

    def __post_init__(self) -> None:
        if len(self.sealing) != KEY_BYTES or len(self.masking) != KEY_BYTES:
            raise MessageError(
                f"public keys of {len(self.sealing)} and {len(self.masking)} bytes, expected {KEY_BYTES}"
            )


def default_threshold(devices: int) -> int:
    """Return how many devices of a round must stay: two thirds, at least two, and one less than all.

    Raises ConfigError for fewer than three devices: of a sum of two, each knows the other's part.
    """
    if devices < LEAST_MASKED:
        raise ConfigError(
            f"masked sums need at least {LEAST_MASKED} devices, {devices} came; each of two would know the other's part"
        )
    return min(devices - 1, 2 * devices // 3 + 1)


class MaskedDevice:
    """One device in one round."""

    def __init__(self, name: str, threshold: int, context: bytes, random_bytes: Callable[[int], bytes]) -> None:
        """Draw keys and the seed of the own mask.

        Args:
            name: Unique among the devices of the round.
            threshold: How many shares open a secret; the server and all devices have the same.
            context: Says which run and round it is; keys of one are of no use in another.
            random_bytes: For cryptography, such as `secrets.token_bytes`.
        """
        require("masked sums (--secure)", "cryptography")
        if threshold < 2:
            raise ConfigError(f"threshold {threshold} of masked sums, expected at least 2")
        self.name, self._threshold, self._context, self._random_bytes = name, threshold, context, random_bytes
        self._sealing, self._masking = KeyPair(random_bytes(KEY_BYTES)), KeyPair(random_bytes(KEY_BYTES))
        self._seed = random_bytes(SEED_BYTES)
        self._others: dict[str, MaskKeys] = {}  # the keys of all devices of the round, without the own
        self._held: dict[str, bytes] = {}  # what devices sealed for this one, opened; the own shares, too
        self._round: set[str] = set()  # those whose masks are in the values
        self.unopened: dict[str, str] = {}  # those whose shares cannot be opened, and why
        self._masked = self._unmasked = False

    def keys(self) -> MaskKeys:
        """Return message 1."""
        return MaskKeys(self._sealing.public, self._masking.public)

    def share(self, keys: Mapping[str, MaskKeys]) -> dict[str, bytes]:
        """Return message 2, sealed for each other device.

        Raises MessageError for too few keys, or the own one changed, or when it was asked before.
        """
        if self._others:
            raise MessageError(f"{self.name} has shared the seeds of this round already; it does so once")
        if keys.get(self.name) != self.keys() or len(keys) < self._threshold:
            raise MessageError(
                f"the keys of {len(keys)} devices for {self.name}, expected its own and at least {self._threshold}"
            )
        names = sorted(keys)
        secrets = (self._masking.private, self._seed)
        split = [split_secret(one, self._threshold, len(names), self._random_bytes) for one in secrets]
        shares = {name: key + seed for name, key, seed in zip(names, *split, strict=True)}
        self._held[self.name] = shares.pop(self.name)
        self._others = {name: keys[name] for name in names if name != self.name}
        return {name: seal(self._seal_key(name, self.name, name), text) for name, text in shares.items()}

    def mask(self, sealed: Mapping[str, bytes], values: Words) -> Words:
        """Return message 3: values + masks modulo 2**32.

        Args:
            sealed: By device, what it sealed for this one; who is missing has dropped out. One whose bytes cannot be
                opened stays in the round, and in `unopened`: the others can tell its shares.
            values: Fixed-point values; the same number on each device.

        Raises MessageError for shares of too few devices, or when it was asked before: the difference of two masked
        vectors would show what changed.
        """
        if self._masked or not self._others:
            raise MessageError(f"{self.name} masks its values once, after it has shared its seeds")
        if not set(sealed) <= set(self._others):
            raise MessageError(f"shares of {len(sealed)} devices for {self.name} came, some of none of the round")
        opened = {name: text for name in sorted(sealed) if (text := self._open(name, sealed[name]))}
        if len(opened) + 1 < self._threshold:
            raise MessageError(
                f"shares of {len(opened)} devices for {self.name} can be opened, expected at least "
                f"{self._threshold - 1} of the round"
            )
        self._held |= opened
        self._round, self._masked = {self.name, *sealed}, True
        total = values + expand(self._seed, values.size)
        for name in sorted(sealed):
            total += pair_mask(self._masking, self.name, name, self._others[name].masking, self._context, values.size)
        return total

    def _open(self, name: str, sealed: bytes) -> bytes:
        """Return the shares that a device sealed for this one; empty, and noted, where they cannot be opened."""
        try:
            text = open_sealed(self._seal_key(name, name, self.name), sealed)
            if len(text) != 2 * SHARE_BYTES:
                raise MessageError(f"sealed shares of {len(text)} bytes, expected {2 * SHARE_BYTES}")
        except MessageError as error:
            self.unopened[name] = str(error)
            return b""
        return text

    def unmask(self, counted: Collection[str]) -> dict[str, bytes]:
        """Return message 4: by device of the round, the share of its seed if it is counted, else of its key.

        Raises MessageError for too few or unknown devices, or when it was asked before: a second list could get both
        shares of one device.
        """
        if self._unmasked or not self._masked:
            raise MessageError(f"{self.name} tells its shares once, after it has sent its values")
        if not set(counted) <= self._round or len(set(counted)) < self._threshold:
            raise MessageError(
                f"{len(set(counted))} devices are counted for {self.name}, expected at least {self._threshold} of "
                f"{', '.join(sorted(self._round))}"
            )
        self._unmasked = True
        return {
            name: text[SHARE_BYTES:] if name in counted else text[:SHARE_BYTES]
            for name, text in sorted(self._held.items())
        }

    def _seal_key(self, other: str, sender: str, receiver: str) -> bytes:
        label = _label(b"seal", self._context, sender, receiver)
        return self._sealing.agree(self._others[other].sealing, label)


class MaskedSum:
    """The server of one round: passes messages on, and learns the sum of those that sent their values, no more."""

    def __init__(self, size: int, threshold: int, context: bytes) -> None:
        """Build for vectors of `size` values."""
        require("masked sums (--secure)", "cryptography")
        self._size, self._threshold, self._context = size, threshold, context
        self.keys: dict[str, MaskKeys] = {}
        self._sealed: dict[str, Mapping[str, bytes]] = {}
        self._values: dict[str, Words] = {}
        self.liars: set[str] = set()  # those that told shares that they were not given
        self._told: dict[str, Mapping[str, bytes]] = {}
        self._phase = 1

    def add_keys(self, name: str, keys: MaskKeys) -> None:
        """Take message 1. Raises MessageError for keys that no other device could agree on anything with."""
        self._expect(1, name, self.keys, None)
        check_public(keys.sealing)
        check_public(keys.masking)
        self.keys[name] = keys

    def add_shares(self, name: str, sealed: Mapping[str, bytes]) -> None:
        """Take message 2."""
        self._expect(2, name, self._sealed, self.keys)
        if set(sealed) != set(self.keys) - {name}:
            raise MessageError(
                f"{name} sealed shares for {len(sealed)} devices, expected the {len(self.keys) - 1} others"
            )
        self._sealed[name] = sealed

    def add_values(self, name: str, values: Words) -> None:
        """Take message 3."""
        self._expect(3, name, self._values, self._sealed)
        if values.shape != (self._size,) or values.dtype != np.uint32:
            raise MessageError(f"{name} sent {values.dtype} {list(values.shape)}, expected uint32 [{self._size}]")
        self._values[name] = values

    def add_told(self, name: str, shares: Mapping[str, bytes]) -> None:
        """Take message 4; shares that the device could not open are missing in it."""
        self._expect(4, name, self._told, self._values)
        if not set(shares) <= set(self._sealed) or any(len(share) != SHARE_BYTES for share in shares.values()):
            raise MessageError(
                f"{name} told {plural(len(shares), 'share')}, expected those of {len(self._sealed)} devices, of "
                f"{SHARE_BYTES} bytes"
            )
        self._told[name] = shares

    @property
    def phase(self) -> int:
        """The message that is taken now, 1 to 4; 5 after the last."""
        return self._phase

    @property
    def came(self) -> Collection[str]:
        """The devices whose message of this phase has come."""
        return (self.keys, self._sealed, self._values, self._told, ())[self._phase - 1]

    @property
    def left(self) -> Collection[str]:
        """The devices that may send the message of this phase, after message 1: those that sent the one before."""
        return ((), self.keys, self._sealed, self._values, ())[self._phase - 1]

    def close(self) -> None:
        """End the phase of a message: who has not sent it by now has dropped out.

        Raises NodeError when too few devices are left; the round is then lost, and no update can be learnt.
        """
        if len(self.came) < self._threshold:
            raise NodeError(
                f"{len(self.came)} of {len(self.keys)} devices are left at message {self._phase} of the masked sum; "
                f"expected at least {self._threshold}; this round is lost, start another one with those that answer"
            )
        self._phase += 1

    def sealed_for(self, name: str) -> dict[str, bytes]:
        """Return what the others sealed for a device, after message 2."""
        return {sender: sealed[name] for sender, sealed in sorted(self._sealed.items()) if sender != name}

    @property
    def counted(self) -> tuple[str, ...]:
        """The devices that are in the sum, after message 3."""
        return tuple(sorted(self._values))

    def total(self) -> Words:
        """Return the sum of the values of `counted` modulo 2**32, after message 4.

        One device that told other shares than it was given is found, and in `liars`. Raises MaskError where the shares
        of a device's secret do not belong together all the same.
        """
        if self._phase <= 4:
            raise NodeError(f"the masked sum is at message {self._phase} of 4; close it first")
        total = np.zeros(self._size, np.uint32)
        for values in self._values.values():
            total += values
        for name in sorted(self._sealed):
            secret = self._join(name)
            if name in self._values:
                total -= expand(secret, self._size)
            else:
                total += self._left_by(name, secret)
        return total

    def _join(self, name: str) -> bytes:
        """Return the secret of a device from what the others told, leaving out one that lies."""
        points = {other: number for number, other in enumerate(sorted(self.keys), 1)}
        told = {teller: shares[name] for teller, shares in sorted(self._told.items()) if name in shares}
        problem = f"{len(told)} devices have shares of it, expected at least {self._threshold}"
        for left_out in ("", *told):
            some = {points[teller]: share for teller, share in told.items() if teller != left_out}
            if len(some) < self._threshold:
                break
            try:
                secret = join_shares(some)
                if name not in self._values and public_of(secret) != self.keys[name].masking:
                    raise ValueError("the shares are of another key")
            except ValueError as error:
                problem = problem if left_out else str(error)
                continue
            self.liars |= {left_out} - {""}
            return secret
        raise MaskError(name, f"the masks of {name} cannot be removed: {problem}; the round is lost")

    def _left_by(self, name: str, private: bytes) -> Words:
        """Return the masks of a device that dropped out: others hold their counterparts, which did not cancel."""
        pair, total = KeyPair(private), np.zeros(self._size, np.uint32)
        for other in self.counted:
            total += pair_mask(pair, name, other, self.keys[other].masking, self._context, self._size)
        return total

    def _expect(self, phase: int, name: str, had: Collection[str], allowed: Collection[str] | None) -> None:
        if self._phase != phase or name in had or (allowed is not None and name not in allowed):
            raise MessageError(f"message {phase} of {name} is late, sent twice, or of a device that dropped out")


def pair_mask(own: KeyPair, name: str, other: str, public: bytes, context: bytes, size: int) -> Words:
    """Return the mask that a device adds for another one; the two masks of a pair cancel."""
    first, second = sorted((name, other))
    mask = expand(own.agree(public, _label(b"mask", context, first, second)), size)
    return mask if name == first else -mask


def _label(purpose: bytes, context: bytes, *names: str) -> bytes:
    """Return one text for each purpose, round and pair: each part with its length in front."""
    parts = (purpose, context, *(name.encode() for name in names))
    return b"har_edge" + b"".join(len(part).to_bytes(4, "little") + part for part in parts)
