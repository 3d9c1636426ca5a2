"""A step of split training by the clock: the textbook cases, messages, replicas, and limits of what is under way."""

from __future__ import annotations

from dataclasses import replace

import pytest

from har_edge.planner.devices import BrokerLink
from har_edge.planner.training_schedule import ScheduledStage, forecast_step


def pipeline(stages: int, **options: float) -> list[ScheduledStage]:
    """Return equal stages of 1 s forward and 2 s back, as 1F1B has them."""
    loads = [ScheduledStage(1, stages - number, 1.0, 2.0, joined=number == stages - 1) for number in range(stages)]
    return [replace(load, **options) for load in loads]  # type: ignore[arg-type]


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("count", [1, 2, 4, 8, 16])
def test_equal_stages_have_the_bubble_of_the_textbook(stages: int, count: int) -> None:
    """(S - 1) / (M + S - 1) of the time (Narayanan et al. 2021, section 2.2.1)."""
    found = forecast_step(pipeline(stages), count)
    assert found.step_s == pytest.approx(3.0 * (count + stages - 1))
    assert found.bubble == pytest.approx((stages - 1) / (count + stages - 1))


def test_one_micro_batch_under_way_makes_stages_wait_for_each_other() -> None:
    assert forecast_step(pipeline(3, in_flight=1), 4).step_s == pytest.approx(4 * 3 * 3.0)


def test_the_update_counts_where_a_stage_ends_last() -> None:
    last = pipeline(2)
    last[1] = replace(last[1], update_s=1.0)  # in the shadow of the way back
    assert forecast_step(last, 4).step_s == pytest.approx(15.0)
    first = pipeline(2)
    first[0] = replace(first[0], update_s=1.0)
    assert forecast_step(first, 4).step_s == pytest.approx(16.0)
    assert sum(forecast_step(first, 4).busy_s[0]) == pytest.approx(13.0)


def test_a_message_takes_the_senders_link_and_then_the_takers() -> None:
    """100 bytes at 100 bytes a second: 1 s up and 1 s down, there and back; the sample itself comes beforehand."""
    loads = pipeline(2, link_byte_s=0.01, gradient_bytes=100)
    loads[1] = replace(loads[1], entering_bytes=100)
    found = forecast_step(loads, 1)
    assert found.step_s == pytest.approx(1 + 2 + 3 + 2 + 2)
    assert found.broker_bytes == 200


def test_the_brokers_link_is_shared() -> None:
    loads = pipeline(2, gradient_bytes=100)
    loads[1] = replace(loads[1], entering_bytes=100)
    found = forecast_step(loads, 8, BrokerLink(link_bytes_per_s=20.0))
    assert found.broker_s == pytest.approx(8 * 200 / 20)
    assert found.step_s >= found.broker_s
    both = forecast_step(loads, 8, BrokerLink(link_bytes_per_s=20.0, duplex=False))
    assert both.broker_s == pytest.approx(2 * found.broker_s)


def test_latency_is_there_and_back() -> None:
    assert forecast_step(pipeline(2), 1, latency_s=0.5).step_s == pytest.approx(1 + 1 + 3 + 1 + 2)


def test_more_under_way_hides_the_network() -> None:
    """With a second of network each way, 1F1B alone lets the first stage wait; one more under way fills the gap."""
    slow = forecast_step(pipeline(2), 16, latency_s=0.75).step_s
    loads = pipeline(2)
    loads[0] = replace(loads[0], in_flight=3)
    assert forecast_step(loads, 16, latency_s=0.75).step_s < slow - 2


def test_replicas_take_turns_and_add_their_gradients_up() -> None:
    """A stage twice as slow with two workers keeps up; their vectors then go to the first one and back."""
    loads = [ScheduledStage(2, 2, 2.0, 4.0), ScheduledStage(1, 1, 1.0, 2.0, joined=True)]
    found = forecast_step(loads, 8)
    assert len(found.busy_s[0]) == 2
    assert found.busy_s[0] == (24.0, 24.0)
    assert found.step_s < 8 * 3 + 2 + 4 + 3
    with_weights = forecast_step([replace(loads[0], weight_bytes=100, link_byte_s=0.01), loads[1]], 8)
    assert with_weights.step_s == pytest.approx(found.step_s + 4.0)
    assert with_weights.broker_bytes == found.broker_bytes + 200
