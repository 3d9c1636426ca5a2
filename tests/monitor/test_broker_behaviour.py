"""What a measured broker means: which traits are wrong, and what to do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from har_edge.monitor.broker_behaviour import HEADER, Trait, promises, replicas, row, traits
from har_edge.mqtt.measure.conformance import BrokerMeasurement
from har_edge.protocol.deployment import Deployment, Placement
from tests.mqtt.test_conformance import GOOD
from tests.runtime.deployed import deployment, generation


def wrong(broker: BrokerMeasurement) -> dict[str, str]:
    return {trait.name: trait.remedy for trait in traits(broker) if trait.remedy}


def test_a_good_broker_has_nothing_wrong() -> None:
    assert wrong(GOOD) == {}
    assert promises(GOOD) == ["fixed slices: killed and replaced stages lose nothing", "coordinator: yes"]


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        ({"session_kept": False}, "sessions", "har-edge broker"),
        ({"redelivered": False}, "sessions", "har-edge broker"),
        ({"retained_wildcards": False}, "retained", "har-edge stage"),
        ({"retained_wildcards": False, "retained": False}, "retained", "another broker"),
        ({"taken_over": False}, "take-over", "stop a stage before"),
        ({"in_flight": 10}, "in flight", "mqtt.prefetch"),
        ({"queued": 1000}, "queue", "max_queued_messages 100000"),
        ({"largest_bytes": 32 * 1024}, "size", "message_size_limit"),
        ({"dropped": 3}, "drops", "max_queued_messages 100000"),
    ],
)
def test_each_loss_is_wrong_and_says_what_to_do(change: dict[str, object], name: str, remedy: str) -> None:
    found = wrong(msgspec.structs.replace(GOOD, **change))  # type: ignore[arg-type]
    assert list(found) == [name] and remedy in found[name]


@pytest.mark.parametrize(
    ("change", "name", "said"),
    [
        ({"says_unheard": False}, "listeners", "send again"),
        ({"shared": False}, "groups", "no plan may put a stage on several nodes"),
        ({"max_held": 29}, "in flight", "asked for 8 came to hold 29"),
        ({"marked_again": False}, "sessions", "does not say so"),
        ({"largest_bytes": 260 * 1024}, "size", "of 1024 KiB not"),
    ],
)
def test_what_har_edge_makes_up_for_is_told_and_not_wrong(change: dict[str, object], name: str, said: str) -> None:
    broker = msgspec.structs.replace(GOOD, **change)  # type: ignore[arg-type]
    assert wrong(broker) == {}
    assert said in {trait.name: trait.said for trait in traits(broker)}[name]


def test_promises_follow_what_was_measured() -> None:
    rabbit = msgspec.structs.replace(GOOD, in_flight=10, retained_wildcards=False, shared=False, max_held=None)
    assert promises(rabbit) == [
        "fixed slices: killed and replaced stages lose nothing; what a killed join had put aside must be sent again",
        "coordinator: no",
    ]
    debian = msgspec.structs.replace(GOOD, queued=1000)
    assert "a backlog above 1000 is dropped" in promises(debian)[0]
    (only,) = promises(msgspec.structs.replace(GOOD, redelivered=False))
    assert "loses what it held" in only


def test_the_page_on_brokers_holds_the_table_that_the_command_makes() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "brokers.md"
    text = page.read_text(encoding="utf-8")
    assert "| " + " | ".join(HEADER) + " |" in text
    for name in ("brokers", "settings"):
        table = text.partition(f"<!-- {name}: bench/broker_table.py -->")[2].partition(f"<!-- end of {name} -->")[0]
        assert table.count("\n|") >= 6, f"the table of {name} is empty: python bench/broker_table.py --write"


def test_a_row_has_a_cell_for_each_column() -> None:
    cells = row("x", msgspec.structs.replace(GOOD, in_flight=10, max_held=None))
    assert len(cells) == len(HEADER) and cells[0] == "x" and "**10**" in cells and "-" in cells


def shared_plan(*nodes: str) -> Deployment:
    """A plan whose second stage is shared by these nodes."""
    one = generation("a", "b", "c")
    others = tuple(Placement(1, node, number) for number, node in enumerate(nodes, 1))
    return deployment(msgspec.structs.replace(one, placements=(*one.placements, *others)))


def test_replicas_need_shared_subscriptions_that_deliver() -> None:
    none = msgspec.structs.replace(GOOD, shared=False)
    assert replicas(shared_plan(), none).remedy == ""
    assert replicas(shared_plan("d"), GOOD) == Trait("replicas", "take turns: stage 1 on b and d")
    assert "not known" in replicas(shared_plan("d"), None).said
    found = replicas(shared_plan("d"), none)
    assert found.said.startswith("stage 1 on b and d: these take turns by shared subscriptions, which deliver nothing")
    assert "--replicas 1" in found.remedy
