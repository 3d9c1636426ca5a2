"""Brokers beside Mosquitto and the embedded one: what each lacks of the contract, test by test.

The tests that a lack touches must fail there (xfail, strict): a broker that learns it is noticed.
"""

from __future__ import annotations

import enum

from bench.launchers import Kind

OTHERS = (Kind.DEBIAN, Kind.RABBITMQ, Kind.AEDES, Kind.BRIDGE, Kind.CLUSTER)


class Lack(enum.Enum):
    """What a broker does not do, in words."""

    NO_WORD = "the broker does not say that nobody listens"
    SHARES = "a shared subscription is granted, and nothing comes"
    RECEIVE_MAX = "nothing bounds what is under way"
    MAX_PACKET = "a client cannot bound the size of a message"
    NO_DUP = "what comes again does not say so"
    TEN = "no more than 10 messages are under way"
    WILDCARDS = "what is retained does not greet a filter with a wildcard"
    UNSUBSCRIBE = "a subscription of an earlier connection is not ended"
    REMOTE_MEMBERS = "members of a group at two nodes each get everything"

    @property
    def tests(self) -> frozenset[str]:
        """The tests that fail for it."""
        return _TESTS[self]


_GROUPS = frozenset(
    {
        "test_members_of_a_group_take_turns",
        "test_what_fell_to_a_member_that_vanished_waits_in_its_session",
        "test_a_group_is_heard_while_all_its_members_are_away",
        "test_a_member_whose_session_ends_leaves_the_group",
        "test_a_member_of_a_group_is_sent_nothing_retained",
    }
)
_TESTS = {
    Lack.NO_WORD: frozenset({"test_says_that_nobody_listens"}),
    Lack.SHARES: _GROUPS,
    Lack.RECEIVE_MAX: frozenset({"test_receive_max_bounds_what_is_under_way"}),
    Lack.MAX_PACKET: frozenset({"test_a_payload_above_the_limit_is_withheld_and_nothing_else_is_lost"}),
    Lack.NO_DUP: frozenset({"test_unacknowledged_deliveries_come_again_to_the_next_owner_of_the_session"}),
    Lack.TEN: frozenset({"test_delivers_in_order_and_reports_safety", "test_many_topics_arrive_under_their_names"})
    | {"test_reads_no_more_than_it_is_asked_for_and_nothing_is_lost"},
    Lack.UNSUBSCRIBE: frozenset({"test_what_only_an_earlier_process_asked_for_is_put_away_and_its_subscription_ended"}),
    Lack.WILDCARDS: frozenset({"test_a_filter_with_a_wildcard_is_greeted_by_what_is_retained"}),
    Lack.REMOTE_MEMBERS: _GROUPS - {"test_a_member_of_a_group_is_sent_nothing_retained"},
}
_V311 = {Lack.NO_WORD, Lack.SHARES, Lack.RECEIVE_MAX, Lack.MAX_PACKET}
LACKS: dict[Kind, set[Lack]] = {
    Kind.DEBIAN: set(),
    Kind.RABBITMQ: _V311 | {Lack.TEN, Lack.WILDCARDS, Lack.UNSUBSCRIBE},
    Kind.AEDES: _V311 | {Lack.NO_DUP},
    Kind.BRIDGE: {Lack.NO_WORD, Lack.REMOTE_MEMBERS},
    Kind.CLUSTER: _V311 | {Lack.NO_DUP},
}
