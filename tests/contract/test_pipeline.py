"""A whole pipeline of three stages on other brokers, unchanged: each process at a node of the broker in turn."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.launchers import Kind, Launched
from har_edge.config.catalog import find_model
from har_edge.mqtt.broker.embedded import EmbeddedBroker
from har_edge.runtime.slicing import prepare
from tests.cli.fleet import Fleet

WINDOWS = 40
LOAD = ("--subjects", "1,2", "--windows", str(WINDOWS), "--speed", "60", "--in-flight", "8")


@pytest.fixture(scope="session")
def slices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped int8 model in three slices; sources enter in the first two, the third takes what both made."""
    found = find_model("int8")
    assert found.entry is not None
    folder = tmp_path_factory.mktemp("slices")
    prepare(found.path, found.entry.task, folder, stages=3, cuts=[4, 9])
    return folder


@pytest.fixture
def spread(
    other_broker: Callable[[Kind], Launched], slices: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Fleet, list[str]]]:
    """A watcher at the last node of a broker, and the addresses of all its nodes."""
    broker = other_broker(request.param)
    with Fleet(slices, tmp_path, broker.addresses[-1]) as fleet:
        yield fleet, [address.url for address in broker.addresses]


def begin(fleet: Fleet, urls: list[str]) -> None:
    """Start stages and sensors, each at the next node; the sensors at the first one, the watcher is at the last."""
    for index in range(3):
        fleet.stage(index, "--broker", urls[index % len(urls)])
    fleet.until_ready("stage-0", "stage-1", "stage-2")
    fleet.start("sensor", "--combine", "--broker", urls[0], *LOAD)


@pytest.mark.brokers
@pytest.mark.parametrize(
    "spread", [Kind.RABBITMQ, Kind.AEDES, Kind.BRIDGE, Kind.CLUSTER], ids=lambda kind: kind.value, indirect=True
)
def test_a_killed_stage_on_another_broker_loses_nothing(spread: tuple[Fleet, list[str]]) -> None:
    fleet, urls = spread
    begin(fleet, urls)
    fleet.until_results(15)
    assert fleet.running[1].end(signal.SIGKILL) == -signal.SIGKILL
    fleet.stage(1, "--broker", urls[1 % len(urls)])
    fleet.until_results(2 * WINDOWS)
    assert fleet.all_once(2, WINDOWS) and fleet.running[3].wait() == 0


@pytest.mark.brokers
@pytest.mark.parametrize("spread", [Kind.CLUSTER], ids=lambda kind: kind.value, indirect=True)
def test_a_stage_comes_back_at_another_node_of_a_cluster(spread: tuple[Fleet, list[str]]) -> None:
    """The nodes of this cluster share their sessions: a stage that stops in order goes on at the other node.

    One that is killed and comes back at the other node may lose what the first node was about to hand it.
    """
    fleet, urls = spread
    begin(fleet, urls)
    fleet.until_results(15)
    assert fleet.running[1].end(signal.SIGTERM) == 0
    fleet.stage(1, "--broker", urls[0])
    fleet.until_results(2 * WINDOWS)
    assert fleet.all_once(2, WINDOWS) and fleet.running[3].wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_killed_stage_on_the_embedded_broker_loses_nothing(
    embedded: EmbeddedBroker, slices: Path, tmp_path: Path, protocol: str
) -> None:
    with Fleet(slices, tmp_path, embedded.address) as fleet:
        stages = fleet.stages("--protocol", protocol)
        sensor = fleet.start("sensor", "--combine", "--protocol", protocol, *LOAD)
        fleet.until_results(15)
        assert stages[1].end(signal.SIGKILL) == -signal.SIGKILL
        fleet.stage(1, "--protocol", protocol)
        fleet.until_results(2 * WINDOWS)
        assert fleet.all_once(2, WINDOWS) and sensor.wait() == 0
