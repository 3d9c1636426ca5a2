"""docs/reference/wire.md on deployments: its examples are read and written, its tables have every field."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from har_edge.mqtt.bus import Outgoing
from har_edge.protocol import artifacts, deployment, status
from har_edge.protocol.artifacts import Header
from har_edge.protocol.deployment import Deployment, Generation, Phase, Placement, encode_deployment
from har_edge.protocol.events import HeaderEvent, decode
from har_edge.protocol.results import AnomalyScore, HeatMap, Result
from har_edge.protocol.signatures import SignedStatement, Statement
from har_edge.protocol.status import (
    NEXT,
    Heartbeat,
    NodeCapabilities,
    NodeStatus,
    SliceInfo,
    StagePhase,
    StageReport,
    StreamCount,
)
from har_edge.protocol.topics import Topics
from har_edge.runtime.artifacts import encode_chunks
from har_edge.runtime.sensor.sent_counter import MOST_STREAMS, OTHERS, RUN_BITS
from tests.protocol.reading import read_plan, read_results, read_status

TOPICS = Topics("har", "har")
PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "wire.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    """Return what stands below a heading."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def fields(title: str, head: str) -> list[str]:
    """Return the fields in the table of a section whose first column has this head, in order."""
    (table,) = re.findall(rf"^\| {head} +\|.*\n\|[-|]+\n((?:\|.*\n)+)", section(title), re.MULTILINE)
    return [name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])]


TABLES = [
    (NodeStatus, "Status", "field"),
    (StreamCount, "Status", "field of a stream"),
    (NodeCapabilities, "Status", "field of `device`"),
    (SliceInfo, "Status", "field of `slice`"),
    (Heartbeat, "Heartbeats", "field of a heartbeat"),
    (StageReport, "Heartbeats", "field of a stage"),
    (Deployment, "The plan", "field"),
    (Generation, "The plan", "field of a generation"),
    (Placement, "The plan", "field of a placement"),
    (SignedStatement, "The plan", "field of a signature"),
    (Statement, "The plan", "field of a statement"),
    (AnomalyScore, "Results", "field of `anomaly`"),
]


@pytest.mark.parametrize(("struct", "title", "head"), TABLES, ids=[case[0].__name__ for case in TABLES])
def test_every_field_is_on_the_page(struct: type[msgspec.Struct], title: str, head: str) -> None:
    assert sorted(fields(title, head)) == sorted(struct.__struct_fields__)


def test_the_keys_of_a_result_and_its_examples_are_on_the_page() -> None:
    keys = {
        name
        for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) +\| .*\|$", section("Results"), re.MULTILINE)
        for name in re.findall(r"\w+", row)
    }
    assert set(Result.__struct_fields__) <= keys
    shown = re.findall(r"^(\{\"stream\".*\})$", section("Results"), re.MULTILINE)
    read = [one for text in shown for one in read_results(Outgoing(TOPICS.result("s"), text.encode()))]
    assert [one.label for one in read] == ["Walking", "anomaly"] and read[1].anomaly is not None
    assert read[1].anomaly.heat_map == HeatMap((2, 3), [0.91, 1.2, 0.75, 1.03, 14.02, None])


def test_every_state_with_what_follows_it_is_on_the_page() -> None:
    rows = re.findall(r"^\| `(\w+)` .*\| ((?:`\w+`(?:, )?)+) +\|$", section("Status"), re.MULTILINE)
    shown = {state: set(re.findall(r"\w+", after)) for state, after in rows}
    assert shown == {state.value: {one.value for one in after} for state, after in NEXT.items()}


def test_every_phase_of_a_stage_is_on_the_page() -> None:
    (row,) = re.findall(r"^\| `phase` +\| (.*) \|$", section("Heartbeats"), re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) == {phase.value for phase in StagePhase}


def plan() -> str:
    return re.search(r"<!-- example: plan -->\n```json\n(.*?)```", PAGE, re.DOTALL)[1]


def test_the_status_of_a_sensor_on_the_page_is_one() -> None:
    (text,) = re.findall(r"^(\{.*\"streams\".*)$", PAGE, re.MULTILINE)
    node = json.loads(text)["node"]
    (figures,) = read_status(Outgoing(TOPICS.status(node), text.encode())).streams.values()
    assert (figures.sent, figures.answered, figures.lost, figures.open) == (120, 117, 1, 2)
    assert f"more than {MOST_STREAMS} streams" in PAGE and f"under `{OTHERS}`" in PAGE and f"2^{RUN_BITS}" in PAGE


def test_the_plan_on_the_page_is_one() -> None:
    config = json.loads(plan())["config"]
    read = read_plan(Outgoing(Topics(config["base"], config["name"]).plan(), plan().encode()))
    assert (read.revision, read.epoch, read.phase(1700000001)) == (12, 1700000001, Phase.CURRENT)
    assert read.current is not None
    assert read.current.replicas(0) == 2 and read.holder(1700000001, 1, 0) == "pi-hall"
    written, shown = json.loads(encode_deployment(read)), json.loads(plan())
    del written["config"]["broker"]  # nobody takes it from there
    assert written == shown


def test_limits_on_the_page() -> None:
    assert deployment.MAX_BYTES == 4 * 1024**2 and "A plan of more than 4 MiB is refused" in PAGE
    assert f"now, at most {deployment.MAX_GENERATIONS} " in PAGE
    assert status.MAX_BYTES == 256 * 1024 and "So is one of more than 256 KiB" in PAGE
    assert f"a heartbeat with more than {status.MAX_STAGES} stages" in PAGE
    assert {status.MAX_COUNTERS, status.MAX_STREAMS, status.MAX_SOURCES} == {1024} and "more than 1024 counters" in PAGE
    assert artifacts.MAX_BYTES == 1024**3 and "at most 1 GiB" in PAGE
    assert f"1 to {artifacts.MAX_CHUNK_BYTES:,} ".replace(",", " ") in PAGE
    assert f"at most {artifacts.MAX_CHUNKS:,} ".replace(",", " ") in PAGE


def test_the_header_on_the_page_is_what_is_retained() -> None:
    block = re.search(r"<!-- golden: header -->\n```\n(.*?)```", PAGE, re.DOTALL)
    shown = bytes.fromhex("".join(line.partition("  ")[0] for line in block[1].splitlines()))
    *chunks, header = encode_chunks(TOPICS, bytes(300_000))
    assert shown == header.payload and len(chunks) == 2
    event = decode(Outgoing(header.topic, shown))
    assert isinstance(event, HeaderEvent) and event.header == Header(1, event.sha256, 300_000, 262_144, 2)
    rows = re.findall(r"^\| (\d) \| `(\w+)` ", section("Slices and other files"), re.MULTILINE)
    assert rows == [(str(index), name) for index, name in enumerate(Header.__struct_fields__)]


def test_the_session_names_on_the_page() -> None:
    name = "<base>.<pipeline>.<epoch>.stage-<stage>.<replica>"
    assert f"`{name}`" in PAGE
    for part, value in (("base", "b"), ("pipeline", "p"), ("epoch", 7), ("stage", 1), ("replica", 2)):
        name = name.replace(f"<{part}>", str(value))
    assert name == deployment.session_name("b", "p", 7, 1, 2)
