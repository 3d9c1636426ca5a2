"""Some hundred mutated messages for every decoder and state machine; `make fuzz` feeds them for longer."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import pytest

from tests.fuzz.run import fuzz, mutations, stored
from tests.fuzz.targets import TARGETS


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("target", TARGETS)
def test_no_mutated_message_raises(target: str) -> None:
    assert fuzz(target, seed=14, count=300) == (300, [])


@pytest.mark.parametrize("target", TARGETS)
def test_what_once_raised_raises_no_more(target: str) -> None:
    messages = [*TARGETS[target].seeds, *stored(target)]
    for number, (topic, payload) in enumerate(messages, 1):
        TARGETS[target].make()(topic, payload, number)


def test_a_seed_gives_the_same_messages_again_and_most_are_damaged() -> None:
    first, again = (list(itertools.islice(mutations("decoders", 5), 200)) for _ in range(2))
    assert first == again and len({payload for _, payload in first}) > 150
