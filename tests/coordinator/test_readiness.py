"""Probes go out now and then, sooner while none comes back, and tell whether an epoch answers."""

from __future__ import annotations

import pytest

from har_edge.coordinator.readiness import AGAIN_S, EVERY_S, PATIENCE_S, ProbeSeries
from har_edge.errors import MessageError
from har_edge.protocol.results import Result
from har_edge.protocol.topics import is_probe

STREAM = "_probe-me"


def answer(number: int, epoch: int, stream: str = STREAM) -> list[Result]:
    return [Result(stream, number, "still", 1, 1.0, 0.0, 0.0, epoch)]


def test_an_epoch_is_ready_when_its_probe_came_back_and_only_then() -> None:
    series = ProbeSeries("me")
    number = series.next_number(7, 0.0)
    assert number is not None and series.stream == STREAM and is_probe(STREAM) and not series.is_ready(7)
    assert series.next_number(7, AGAIN_S / 2) is None
    again = series.next_number(7, AGAIN_S)
    assert again == number + 1
    assert series.answer("_probe-other", answer(number, 7, "_probe-other"), 1.1) == 0 and not series.is_ready(7)
    assert series.answer(STREAM, answer(number, 7), 1.2) == 7  # late, but it came through
    assert series.is_ready(7) and not series.is_ready(8) and series.took_s == pytest.approx(1.2)
    assert series.next_number(7, 1.3) is None and series.next_number(7, AGAIN_S + EVERY_S) is not None


def test_what_is_no_answer_is_refused() -> None:
    series = ProbeSeries("me")
    number = series.next_number(7, 0.0)
    assert number is not None
    with pytest.raises(MessageError, match="came from another epoch or stream; expected epoch 7"):
        series.answer(STREAM, answer(number, 6), 0.1)
    assert not series.is_ready(7)


def test_silence_and_doubt_end_readiness() -> None:
    series = ProbeSeries("me")
    number = series.next_number(7, 0.0)
    assert number is not None
    series.answer(STREAM, answer(number, 7), 0.1)
    now = EVERY_S
    while now < EVERY_S + PATIENCE_S:
        series.next_number(7, now)
        assert series.is_ready(7)
        now += 0.5
    series.next_number(7, now + 0.5)
    assert not series.is_ready(7)
    number = series.next_number(7, now + 2)
    assert number is not None
    series.invalidate(now + 2)
    assert series.answer(STREAM, answer(number, 7), now + 2.1) == 0  # asked before what made us doubt
