"""Whose plan counts, and that its numbers go on: whatever came from others, nodes can read what we publish."""

import msgspec
import pytest

from har_edge.config.pipeline_config import PipelineConfig
from har_edge.coordinator.plan_store import PlanStore
from har_edge.errors import MessageError
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.deployment import MAX_REVISION, VERSION, Deployment, encode_deployment
from har_edge.protocol.events import PlanEvent, Unreadable, decode
from har_edge.protocol.status import Heartbeat
from tests.protocol.reading import read_plan
from tests.runtime.rig import TASK, TOPICS

OURS = Deployment(VERSION, 0, "ours", 5.0, PipelineConfig(TASK, name=TOPICS.pipeline))


def said(payload: bytes) -> PlanEvent | Unreadable:
    event = decode(Outgoing(TOPICS.plan(), payload), TOPICS)
    assert isinstance(event, PlanEvent | Unreadable)
    return event


def theirs(revision: int, author: str = "theirs", started: float = 1.0) -> PlanEvent | Unreadable:
    return said(encode_deployment(msgspec.structs.replace(OURS, author=author, started=started, revision=revision)))


def begun(*found: PlanEvent | Unreadable) -> PlanStore:
    store = PlanStore(TOPICS, "ours", 5.0, 0)
    for event in found:
        store.take(event)
    store.open(OURS)
    return store


def published(store: PlanStore) -> list[int]:
    return [read_plan(one).revision for one in store.flush()]


def test_a_plan_of_nothing_is_not_published_until_it_changes() -> None:
    store = begun()
    assert published(store) == []
    store.change(OURS)
    assert published(store) == [1] and published(store) == []


@pytest.mark.parametrize(("found", "revision"), [(70, 71), (MAX_REVISION - 1, 1)], ids=["usual", "forged"])
def test_a_found_plan_is_gone_on_with_in_numbers_that_nodes_read(found: int, revision: int) -> None:
    store = begun(theirs(found))
    assert published(store) == [revision]
    store.take(theirs(found, "older", 0.5))
    store.change(store.deployed)
    assert len(published(store)) == 1


def test_numbers_in_beats_count_unless_they_are_forged() -> None:
    store = begun(theirs(70))
    assert not store.continue_from(Heartbeat("pi", "i", 1, 0.0, MAX_REVISION - 1)) and store.deployed.revision == 71
    assert store.continue_from(Heartbeat("pi", "i", 1, 0.0, 90)) and store.deployed.revision == 91


def test_a_younger_author_takes_over_and_an_older_one_is_overruled() -> None:
    store = begun()
    store.change(OURS)
    assert published(store) == [1]
    assert "a plan of an older coordinator (older) came; ours counts" in store.take(theirs(9, "older"))
    assert published(store) == [10] and not store.successor
    store.take(theirs(1, "younger", 6.0))
    assert store.successor == "younger"


def test_a_plan_that_comes_late_is_gone_on_with_as_long_as_none_of_ours_went_out() -> None:
    store = begun()
    store.republish()  # of nothing there is nothing to say
    assert published(store) == []
    assert not store.take(theirs(9, "older")) and store.deployment is None
    store.open(OURS)
    assert published(store) == [10]


def test_a_plan_of_ours_that_nobody_can_read_is_not_said_again_at_its_echo() -> None:
    store = begun(theirs(1))
    store.change(msgspec.structs.replace(OURS, config=msgspec.structs.replace(OURS.config, name="another")))
    (sent,) = store.flush()
    with pytest.raises(MessageError):
        store.take(said(sent.payload))
    assert published(store) == []


def test_what_nobody_can_read_or_has_gone_is_overwritten() -> None:
    store = begun(theirs(1))
    assert published(store) == [2]
    with pytest.raises(MessageError, match="what came is no plan"):
        store.take(said(b"{"))
    assert published(store) == [2]
    store.take(said(b""))
    assert published(store) == [2]
