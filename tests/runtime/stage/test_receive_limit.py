"""What a stage learns of a broker that gives no more messages before others are acknowledged."""

from dataclasses import dataclass, field

import pytest

from har_edge.runtime.stage.receive_limit import STARVED_LEAST, STARVED_S, TRUSTED_MOST_S, TRUSTED_S, ReceiveLimit


@dataclass
class FakeJoin:
    span: int = STARVED_LEAST
    hold: int | None = None
    evicted: list[str] = field(default_factory=list)

    def evict_all(self) -> list[str]:
        self.evicted.append("all")
        return []


def starve(limit: ReceiveLimit, now: float, after: float = 0.1) -> float:
    """Let nothing come for long, release, and let a message come so soon after that; return when."""
    limit.note(now)
    now += STARVED_S + 0.1
    assert not limit.is_quiet(now)
    limit.release(now)
    limit.note(now + after)
    return now + after


def test_a_message_at_once_after_a_release_says_that_the_broker_waited() -> None:
    join = FakeJoin()
    limit = ReceiveLimit(join)  # type: ignore[arg-type]
    starve(limit, 0.0, after=0.5)
    assert join.evicted == ["all"] and join.hold is None
    starve(limit, 10.0)
    assert join.hold == STARVED_LEAST // 2


def test_what_may_have_been_a_slow_device_is_forgotten_and_trusted_for_longer_each_time() -> None:
    join = FakeJoin()
    limit = ReceiveLimit(join)  # type: ignore[arg-type]
    now, trusted = 0.0, TRUSTED_S
    for _ in range(12):
        learnt = starve(limit, now)
        assert join.hold == STARVED_LEAST // 2
        limit.note(learnt + trusted - 0.01)
        assert join.hold == STARVED_LEAST // 2
        now = learnt + trusted
        limit.note(now)
        assert join.hold is None
        now += 5.0
        trusted = min(2 * trusted, TRUSTED_MOST_S)
    assert trusted == pytest.approx(TRUSTED_MOST_S)
