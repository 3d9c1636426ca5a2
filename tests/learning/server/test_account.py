"""The account of samples: whatever happens to tasks, a sample is free, out or counted, and counted once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from har_edge.errors import ModelError
from har_edge.learning.data.blocks import epoch_order
from har_edge.learning.server.account import SampleAccount
from har_edge.protocol.training import SampleRange

SIZES = {0: 50, 1: 7, 2: 33}


class Accounting(RuleBasedStateMachine):
    """Takes, counts and gives back in any order, beside a model that knows each single sample."""

    tasks = Bundle("tasks")

    def __init__(self) -> None:
        super().__init__()
        self.account = SampleAccount(dict(SIZES))
        self.seen: set[tuple[int, int]] = set()
        self.number = 0

    @rule(target=tasks, samples=st.integers(1, 40), held=st.sets(st.integers(0, 2)), others=st.sets(st.integers(0, 2)))
    def take(self, samples: int, held: set[int], others: set[int]) -> tuple[int, tuple[SampleRange, ...]]:
        self.number += 1
        open_ = self.account.open
        ranges = self.account.take(self.number, "pi", samples, held, others)
        assert sum(one.samples for one in ranges) == min(samples, open_)
        return self.number, ranges

    @rule(task=consumes(tasks), share=st.floats(0, 1))
    def count(self, task: tuple[int, tuple[SampleRange, ...]], share: float) -> None:
        number, ranges = task
        samples = [(one.block, place) for one in ranges for place in range(one.start, one.stop)]
        if not samples:
            return
        done = samples[: int(share * len(samples))]
        assert not self.seen & set(done)
        self.seen |= set(done)
        self.account.count(number, len(done))

    @rule(task=consumes(tasks))
    def give_back(self, task: tuple[int, tuple[SampleRange, ...]]) -> None:
        self.account.give_back(task[0])
        self.account.give_back(task[0])  # the deadline and the will of one worker

    @invariant()
    def nothing_is_lost_or_doubled(self) -> None:
        out = sum(one.samples for ranges in self.account.out.values() for one in ranges)
        assert self.account.open + out + self.account.counted == self.account.total == sum(SIZES.values())
        assert self.account.counted == len(self.seen)
        free = {
            (one.block, place)
            for ranges in self.account.free.values()
            for one in ranges
            for place in range(one.start, one.stop)
        }
        assert len(free) == self.account.open and not free & self.seen


Accounting.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAccounting = Accounting.TestCase


@given(st.integers(0, 2**53), st.integers(1, 1000), st.integers(0, 4095), st.integers(0, 200))
def test_the_order_of_an_epoch_is_a_permutation(seed: int, epoch: int, block: int, samples: int) -> None:
    assert sorted(epoch_order(seed, epoch, block, samples).tolist()) == list(range(samples))


def test_the_order_is_the_same_on_every_device() -> None:
    """These are the numbers of NumPy's RandomState, which never change: two versions must mean the same samples."""
    assert epoch_order(5, 1, 0, 8).tolist() == ORDER
    assert epoch_order(5, 2, 0, 8).tolist() != ORDER and epoch_order(5, 1, 1, 8).tolist() != ORDER


ORDER = [2, 4, 3, 6, 5, 0, 1, 7]


def test_a_worker_gets_blocks_that_it_has_then_new_ones_then_those_of_others() -> None:
    account = SampleAccount({0: 10, 1: 10, 2: 10})
    assert [one.block for one in account.take(1, "pi", 25, held={2}, others={0})] == [2, 1, 0]


def test_what_does_not_fit_is_refused() -> None:
    account = SampleAccount({0: 10})
    account.take(1, "pi", 4)
    with pytest.raises(ModelError, match="task 1 has samples already"):
        account.take(1, "pi", 4)
    with pytest.raises(ModelError, match="5 samples came for task 1; expected at most the 4"):
        account.count(1, 5)
    with pytest.raises(ModelError, match="came for task 2; expected at most the 0"):
        account.count(2, 1)
    with pytest.raises(ModelError, match="it has no such samples"):
        account.restore([SampleRange(0, 5, 11)], 0)
    with pytest.raises(ModelError, match="4 free, 1 counted and 0 skipped samples came for an epoch of 10"):
        account.restore([SampleRange(0, 0, 4)], 1)
    with pytest.raises(ModelError, match="were free already"):
        account.restore([SampleRange(0, 0, 4), SampleRange(0, 3, 9)], 0)


def test_own_samples_are_given_to_their_worker_alone() -> None:
    account = SampleAccount({0: 10, 1: 5}, {0: "a", 1: "b"})
    assert [one.block for one in account.take(1, "b", 20)] == [1]
    assert (account.available("a"), account.available("b"), account.available("c")) == (10, 0, 0)
    assert account.skip("a") == 10 and not account.ended
    account.count(1, 5)
    assert account.ended and (account.counted, account.skipped) == (5, 10)
