"""Whose plan counts, and that its numbers go on: whatever came from others, nodes can read what we publish."""

import msgspec
import pytest

from har_edge.config.pipeline import PipelineConfig
from har_edge.coordinator.plan_store import Ledger
from har_edge.errors import MessageError
from har_edge.protocol.deployment import MAX_REVISION, VERSION, Deployment, decode_deployment, encode_deployment
from har_edge.protocol.status import Beat
from tests.runtime.rig import TASK, TOPICS

OURS = Deployment(VERSION, 0, "ours", 5.0, PipelineConfig(TASK, name=TOPICS.pipeline))


def theirs(revision: int, author: str = "theirs", started: float = 1.0) -> bytes:
    return encode_deployment(msgspec.structs.replace(OURS, author=author, started=started, revision=revision))


def begun(*found: bytes) -> Ledger:
    ledger = Ledger(TOPICS, "ours", 5.0, 0)
    for payload in found:
        ledger.take(payload)
    ledger.open(OURS)
    return ledger


def published(ledger: Ledger) -> list[int]:
    return [decode_deployment(one.payload).revision for one in ledger.flush()]


def test_a_plan_of_nothing_is_not_published_until_it_changes() -> None:
    ledger = begun()
    assert published(ledger) == []
    ledger.change(OURS)
    assert published(ledger) == [1] and published(ledger) == []


@pytest.mark.parametrize(("found", "revision"), [(70, 71), (MAX_REVISION - 1, 1)], ids=["usual", "forged"])
def test_a_found_plan_is_gone_on_with_in_numbers_that_nodes_read(found: int, revision: int) -> None:
    ledger = begun(theirs(found))
    assert published(ledger) == [revision]
    ledger.take(theirs(found, "older", 0.5))
    ledger.change(ledger.deployed)
    assert len(published(ledger)) == 1


def test_numbers_in_beats_count_unless_they_are_forged() -> None:
    ledger = begun(theirs(70))
    assert not ledger.count_on(Beat("pi", "i", 1, 0.0, MAX_REVISION - 1)) and ledger.deployed.revision == 71
    assert ledger.count_on(Beat("pi", "i", 1, 0.0, 90)) and ledger.deployed.revision == 91


def test_a_younger_author_takes_over_and_an_older_one_is_overruled() -> None:
    ledger = begun()
    ledger.change(OURS)
    assert published(ledger) == [1]
    assert "a plan of an older coordinator (older) came; ours counts" in ledger.take(theirs(9, "older"))
    assert published(ledger) == [10] and not ledger.successor
    ledger.take(theirs(1, "younger", 6.0))
    assert ledger.successor == "younger"


def test_a_plan_that_comes_late_is_gone_on_with_as_long_as_none_of_ours_went_out() -> None:
    ledger = begun()
    ledger.doubt()  # of nothing there is nothing to say
    assert published(ledger) == []
    assert not ledger.take(theirs(9, "older")) and ledger.deployment is None
    ledger.open(OURS)
    assert published(ledger) == [10]


def test_a_plan_of_ours_that_nobody_can_read_is_not_said_again_at_its_echo() -> None:
    ledger = begun(theirs(1))
    ledger.change(msgspec.structs.replace(OURS, config=msgspec.structs.replace(OURS.config, name="another")))
    (said,) = ledger.flush()
    with pytest.raises(MessageError):
        ledger.take(said.payload)
    assert published(ledger) == []


def test_what_nobody_can_read_or_has_gone_is_overwritten() -> None:
    ledger = begun(theirs(1))
    assert published(ledger) == [2]
    with pytest.raises(MessageError, match="what came is no plan"):
        ledger.take(b"{")
    assert published(ledger) == [2]
    ledger.take(b"")
    assert published(ledger) == [2]
