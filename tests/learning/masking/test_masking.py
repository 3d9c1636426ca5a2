"""Masked sums: exact, through dropouts, and nothing else than sums; what is refused."""

from __future__ import annotations

import secrets
from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_edge.errors import ConfigError, MessageError, ModelError, NodeError
from har_edge.learning.masking.fixed_point import FixedPoint
from har_edge.learning.masking.shamir import PRIME, join_shares, split_secret
from har_edge.learning.masking.sums import MaskedDevice, MaskedSum, MaskError, MaskKeys, default_threshold
from tests.learning.extras import needs

NAMES = ("ann", "bob", "cid", "dan", "eva")
SIZE = 40
CONTEXT = b"run 1, round 1"


def values_of(name: str) -> np.ndarray:
    return np.random.default_rng(NAMES.index(name)).integers(0, 2**32, SIZE).astype(np.uint32)


class Round:
    """A round of devices, some of which drop out before they send message 2, 3 or 4."""

    def __init__(self, lost: dict[str, int] | None = None, threshold: int = 3) -> None:
        self.lost = lost or {}
        self.devices = {name: MaskedDevice(name, threshold, CONTEXT, secrets.token_bytes) for name in NAMES}
        self.server = MaskedSum(SIZE, threshold, CONTEXT)

    def there(self, message: int, names: Collection[str] = NAMES) -> list[str]:
        return [name for name in names if self.lost.get(name, 9) > message]

    def share(self) -> None:
        for name, device in self.devices.items():
            self.server.add_keys(name, device.keys())
        self.server.close()
        for name in self.there(2):
            self.server.add_shares(name, self.devices[name].share(self.server.keys))
        self.server.close()

    def mask(self, names: Collection[str] = NAMES) -> None:
        for name in self.there(3, names):
            self.server.add_values(name, self.devices[name].mask(self.server.sealed_for(name), values_of(name)))
        self.server.close()

    def tell(self) -> None:
        for name in self.there(4):
            self.server.add_told(name, self.devices[name].unmask(self.server.counted))
        self.server.close()

    def run(self) -> np.ndarray:
        self.share()
        self.mask()
        self.tell()
        return self.server.total()


@needs("cryptography")
@pytest.mark.parametrize(
    "lost",
    [
        {},
        {"ann": 2},
        {"cid": 3},
        {"eva": 4},
        {"ann": 3, "eva": 3},
        {"bob": 2, "dan": 3},
        {"bob": 3, "dan": 4},
        {"cid": 4, "dan": 4},
    ],
)
def test_the_sum_is_exact_whoever_drops_out(lost: dict[str, int]) -> None:
    total = Round(lost).run()
    counted = [name for name in NAMES if lost.get(name, 9) > 3]
    np.testing.assert_array_equal(total, np.sum([values_of(name) for name in counted], axis=0, dtype=np.uint32))


@needs("cryptography")
@pytest.mark.parametrize("message", [2, 3, 4])
def test_too_many_dropouts_end_the_round_and_tell_nothing(message: int) -> None:
    with pytest.raises(NodeError, match=f"2 of 5 devices are left at message {message} of the masked sum; expected at"):
        Round({"ann": message, "cid": message, "dan": message}).run()


@needs("cryptography")
def test_the_server_sees_no_update_and_no_difference_of_two() -> None:
    """Each vector that it gets is as good as random: it has a mask of its own, beside those of the pairs."""
    one = Round()
    one.share()
    one.mask()
    pairs = [(name, one.server._values[name]) for name in NAMES]
    for name, sent in pairs:
        left = sent - values_of(name)
        assert np.count_nonzero(left) > SIZE - 3 and len(np.unique(left)) > SIZE - 3
    total = np.sum([sent for _, sent in pairs], axis=0, dtype=np.uint32)
    assert np.count_nonzero(total - np.sum([values_of(name) for name in NAMES], axis=0, dtype=np.uint32)) > SIZE - 3


@needs("cryptography")
def test_no_device_tells_both_shares_of_another() -> None:
    one = Round({"cid": 3})
    one.share()
    one.mask()
    told = one.devices["ann"].unmask(one.server.counted)
    held = one.devices["ann"]._held
    assert told["cid"] == held["cid"][:66] and told["bob"] == held["bob"][66:]
    with pytest.raises(MessageError, match="ann tells its shares once, after it has sent its values"):
        one.devices["ann"].unmask(("ann", "bob", "cid"))


@needs("cryptography")
def test_a_device_answers_each_message_once_and_in_order() -> None:
    one = Round()
    ann = one.devices["ann"]
    with pytest.raises(MessageError, match="ann masks its values once, after it has shared its seeds"):
        ann.mask({}, values_of("ann"))
    with pytest.raises(MessageError, match="ann tells its shares once, after it has sent its values"):
        ann.unmask(NAMES)
    one.share()
    with pytest.raises(MessageError, match="ann has shared the seeds of this round already"):
        ann.share(one.server.keys)
    ann.mask(one.server.sealed_for("ann"), values_of("ann"))
    with pytest.raises(MessageError, match="ann masks its values once"):
        ann.mask(one.server.sealed_for("ann"), values_of("ann"))


@needs("cryptography")
def test_a_device_refuses_a_round_in_which_it_could_be_told_apart() -> None:
    one = Round()
    keys = {name: device.keys() for name, device in one.devices.items()}
    with pytest.raises(MessageError, match="the keys of 2 devices for ann, expected its own and at least 3"):
        one.devices["ann"].share({name: keys[name] for name in ("ann", "bob")})
    with pytest.raises(MessageError, match="the keys of 5 devices for bob, expected its own"):
        one.devices["bob"].share({**keys, "bob": keys["cid"]})
    one.share()
    sealed = one.server.sealed_for("ann")
    with pytest.raises(MessageError, match="shares of 1 devices for ann can be opened, expected at least 2"):
        one.devices["ann"].mask({"bob": sealed["bob"]}, values_of("ann"))
    one.mask()
    for counted in (("ann", "bob"), ("ann", "bob", "bob"), ("ann", "bob", "zoe")):
        with pytest.raises(MessageError, match="devices are counted for ann, expected at least 3 of ann, bob, cid"):
            one.devices["ann"].unmask(counted)


@needs("cryptography")
@pytest.mark.parametrize("change", ["flipped", "of another pair", "of another round", "short"])
def test_sealed_shares_that_were_changed_are_noted_and_the_others_do_without(change: str) -> None:
    one, other = Round(), Round()
    one.share()
    other.share()
    sealed = one.server.sealed_for("ann")
    bob = sealed["bob"]
    sealed["bob"] = {
        "flipped": bob[:-1] + bytes([bob[-1] ^ 1]),
        "of another pair": one.server.sealed_for("cid")["bob"],
        "of another round": other.server.sealed_for("ann")["bob"],
        "short": b"",
    }[change]
    one.server.add_values("ann", one.devices["ann"].mask(sealed, values_of("ann")))
    assert "sealed bytes were changed, or sealed for another device or round" in one.devices["ann"].unopened["bob"]
    one.mask(NAMES[1:])
    one.tell()
    assert "bob" not in one.server._told["ann"]
    total = np.sum([values_of(name) for name in NAMES], axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(one.server.total(), total)


@needs("cryptography")
def test_messages_that_are_late_or_wrong_are_dropped_and_the_round_goes_on() -> None:
    one = Round({"eva": 3})
    one.share()
    late = one.devices["eva"].mask(one.server.sealed_for("eva"), values_of("eva"))
    for name, values, says in (
        ("zoe", values_of("ann"), "message 3 of zoe is late, sent twice, or of a device that dropped out"),
        ("ann", values_of("ann")[1:], r"ann sent uint32 \[39\], expected uint32 \[40\]"),
        ("ann", values_of("ann").astype(np.int64), r"ann sent int64 \[40\]"),
    ):
        with pytest.raises(MessageError, match=says):
            one.server.add_values(name, values)
    one.mask()
    with pytest.raises(MessageError, match="message 3 of eva is late"):
        one.server.add_values("eva", late)
    with pytest.raises(MessageError, match="ann told 1 share, expected those of 5 devices, of 66 bytes"):
        one.server.add_told("ann", {"ann": b""})
    one.tell()
    counted = [values_of(name) for name in NAMES if name != "eva"]
    np.testing.assert_array_equal(one.server.total(), np.sum(counted, axis=0, dtype=np.uint32))


@needs("cryptography")
def test_one_that_tells_wrong_shares_is_found_and_two_end_the_round() -> None:
    for lost, liars in (({}, ["dan"]), ({"bob": 3}, ["dan"]), ({}, ["dan", "eva"]), ({"bob": 3}, ["dan", "eva"])):
        one = Round(lost)
        one.share()
        one.mask()
        for name in one.there(4, one.server.counted):
            told = one.devices[name].unmask(one.server.counted)
            one.server.add_told(name, {**told, "bob": told["cid"]} if name in liars else told)
        one.server.close()
        if len(liars) == 1:
            counted = [values_of(name) for name in one.server.counted]
            np.testing.assert_array_equal(one.server.total(), np.sum(counted, axis=0, dtype=np.uint32))
            assert one.server.liars == {"dan"}
            continue
        with pytest.raises(MaskError, match="the masks of bob cannot be removed: the shares do not belong") as error:
            one.server.total()
        assert error.value.culprit == "bob"


@needs("cryptography")
@pytest.mark.parametrize("length", [0, 31, 33])
def test_keys_of_another_length_are_refused(length: int) -> None:
    with pytest.raises(MessageError, match=f"public keys of {length} and 32 bytes, expected 32"):
        MaskKeys(bytes(length), bytes(32))


@needs("cryptography")
def test_a_key_that_agrees_on_zeros_with_anybody_is_refused() -> None:
    one = Round()
    keys = {name: device.keys() for name, device in one.devices.items()}
    with pytest.raises(MessageError, match="a public key of 32 bytes cannot be used"):
        one.devices["ann"].share({**keys, "bob": MaskKeys(bytes(32), bytes(32))})


@pytest.mark.parametrize(("devices", "threshold"), [(3, 2), (4, 3), (5, 4), (6, 5), (9, 7), (11, 8), (100, 67)])
def test_the_default_threshold_survives_a_dropout(devices: int, threshold: int) -> None:
    assert default_threshold(devices) == threshold < devices


@pytest.mark.parametrize("devices", [0, 1, 2])
def test_two_devices_hide_nothing_from_each_other(devices: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 3 devices, {devices} came"):
        default_threshold(devices)


@given(st.binary(min_size=32, max_size=32), st.integers(1, 6), st.integers(0, 4), st.randoms(use_true_random=False))
def test_any_shares_of_the_threshold_join(secret: bytes, threshold: int, more: int, random) -> None:
    shares = dict(enumerate(split_secret(secret, threshold, threshold + more, random.randbytes), 1))
    chosen = random.sample(sorted(shares), threshold)
    assert join_shares({point: shares[point] for point in chosen}) == secret
    assert join_shares(shares) == secret
    if threshold > 1:
        with pytest.raises(ValueError, match="do not belong together"):
            join_shares({point: shares[point] for point in chosen[1:]})


def test_a_hand_worked_secret_and_the_prime() -> None:
    """The line 5 + 3x: shares 8 and 11."""
    shares = split_secret((5).to_bytes(32, "little"), 2, 2, lambda count: (3).to_bytes(count, "little"))
    assert [int.from_bytes(share, "little") for share in shares] == [8, 11]
    assert all(pow(base, PRIME - 1, PRIME) == 1 for base in (2, 3, 5, 7, 11))


@pytest.mark.parametrize("share", [b"", bytes(67), PRIME.to_bytes(66, "little")])
def test_shares_that_are_none(share: bytes) -> None:
    with pytest.raises(ValueError, match="the share of point 1 is no number below"):
        join_shares({1: share})


@given(st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=9), st.integers(1, 50))
def test_fixed_point_sums(values: list[float], devices: int) -> None:
    point, vector = FixedPoint(3.0, devices), np.array(values, np.float32)
    words = point.encode(vector)
    total = np.zeros(len(values), np.uint32)
    for _ in range(devices):
        total += words
    error = np.abs(point.decode(total) - devices * vector.astype(np.float64))
    assert np.all(error <= devices * (0.51 / point.steps) + np.abs(devices * vector) * 2**-23)


@pytest.mark.parametrize("value", [3.0000002, np.inf, np.nan])
def test_a_value_beyond_the_limit_is_refused(value: float) -> None:
    with pytest.raises(ModelError, match="is beyond the limit of masked sums, 3; clip the updates"):
        FixedPoint(3.0, 2).encode(np.array([0, value], np.float32))


@pytest.mark.parametrize(("limit", "devices"), [(0, 3), (np.nan, 3), (1, 0), (1, 65536)])
def test_fixed_point_bounds(limit: float, devices: int) -> None:
    with pytest.raises(ConfigError, match="expected a limit above 0, 1 to 65535"):
        FixedPoint(limit, devices)
