"""Nodes that carry Mosquittos of their own: activations go through these, and a node killed with its broker costs no
window.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.cluster.processes import Running
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline
from har_edge.mqtt.broker.embedded import EmbeddedBroker
from har_edge.mqtt.broker.launcher import Mosquitto
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.runtime.slicing import prepare
from tests.cli.fleet import Fleet
from tests.cli.test_coordinator import PipelineProcesses

# No speed that is measured on a busy machine speaks for a change of cuts.
OPTIONS = ("--cuts", "4,9", "--margin", "0.9", "--local-brokers")


class OwnBrokers(PipelineProcesses):
    """Nodes with brokers, whose files lie below `shared`, and the activations that the central broker carries."""

    shared: Path
    onlooker: Bus

    def carrier(self, name: str, kind: str = "mosquitto") -> Running:
        folder = self.shared / name
        return self.start("node", "--name", name, "--own-broker", kind, "--own-broker-directory", str(folder))

    def listen(self) -> None:
        """Begin to hear the activations at the central broker, on a connection of its own."""
        session = Session(f"{self.topics.pipeline}-onlooker", expiry_s=600)
        self.onlooker = open_bus(self.address, session, ClientLibrary.PAHO)
        self.onlooker.subscribe([self.topics.activation("+", "+", "+")])
        self.until(lambda: self.onlooker.poll(0) is not None and self.onlooker.connected, "no onlooker")

    def hear(self) -> list[str]:
        """Return the topics of the activations that the central broker has carried since the last call."""
        came = list(self.onlooker.poll(0.2))
        for one in came:
            self.onlooker.acknowledge(one)
        # Nodes measure their links with messages of epoch 0.
        return [one.topic for one in came if self.topics.read(one.topic).levels[0] != "0"]

    @property
    def flows(self) -> dict[str, str]:
        current = self.plan.current if self.plan else None
        return current.flows if current is not None and len(self.plan.generations) == 1 else {}  # type: ignore[union-attr]

    def until_flows(self, flows: dict[str, str]) -> None:
        self.until(lambda: self.flows == flows and self.ready, f"flows never were {flows}, but {self.flows}")

    def broker_of(self, name: str) -> int:
        """Return the process of a node's Mosquitto."""
        config = str(self.shared / name / "mosquitto.conf").encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    words = (entry / "cmdline").read_bytes().split(b"\0")
                except OSError:
                    continue
                if config in words:
                    return int(entry.name)
        raise AssertionError(f"no broker of {name} runs")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model that was measured once need not be measured again."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def system(
    tmp_path: Path, request: pytest.FixtureRequest, cache: Path, cut: Callable[..., Pipeline]
) -> Iterator[OwnBrokers]:
    pipeline, mosquitto = cut("int8", 4, 9), request.getfixturevalue("mosquitto")
    config = msgspec.structs.replace(pipeline.config, name=f"o{abs(hash(request.node.name)) % 10**6}")
    system = OwnBrokers(dataclasses.replace(pipeline, config=config), tmp_path, mosquitto.address, cache)
    with tempfile.TemporaryDirectory(prefix="har-edge-own-") as folder:
        system.shared = Path(folder)
        system.shared.chmod(0o755)  # Mosquitto, started by root, becomes a user of its own
        yield system
        system.processes.stop()
        system.bus.close(forget=True)


@pytest.mark.slow
def test_a_node_that_is_killed_with_its_broker_costs_no_window(system: OwnBrokers) -> None:
    system.listen()
    coordinator = system.coordinator(*OPTIONS)
    nodes = {name: system.carrier(name) for name in "abcd"}
    system.until(lambda: len(system.homes) == 3 and len(system.flows) == 2 and system.ready, "no flows of their own")
    assert "own broker: Mosquitto" in nodes["a"].output
    assert system.flows == {"0": system.homes[0], "1": system.homes[1]}
    sensor = system.sensor()
    system.until(lambda: len(system.results) > 15, "nothing flows")
    assert system.hear() == []
    victim = system.homes[1]
    broker = system.broker_of(victim)
    os.kill(broker, signal.SIGKILL)
    nodes[victim].end(signal.SIGKILL)
    system.until(lambda: victim not in system.homes and system.ready, "nobody took the stage")
    system.until(lambda: len(system.flows) == 2 and victim not in system.flows.values(), "no flows of their own again")
    system.until_done(sensor)
    assert "go through nodes' own brokers" in coordinator.output


@pytest.mark.slow
def test_a_broker_that_is_killed_alone_is_gone_around(system: OwnBrokers) -> None:
    system.listen()
    system.coordinator(*OPTIONS)
    nodes = {name: system.carrier(name) for name in "abc"}
    system.until(lambda: len(system.flows) == 2 and system.ready, "no flows of their own")
    sensor = system.sensor()
    system.until(lambda: len(system.results) > 15, "nothing flows")
    victim, homes = system.homes[0], system.homes
    os.kill(system.broker_of(victim), signal.SIGKILL)
    system.until(lambda: victim not in system.flows.values(), "its flow still goes there")
    system.until_done(sensor)
    assert system.homes == homes and "this node's own broker is gone" in nodes[victim].output
    assert system.hear()  # that flow goes through the central broker now
    for name, node in nodes.items():
        assert node.end() == 0
        with pytest.raises(AssertionError):
            system.broker_of(name)


@pytest.mark.slow
def test_nodes_leave_with_their_brokers_and_embedded_ones_do_as_well(system: OwnBrokers) -> None:
    system.coordinator(*OPTIONS)
    nodes = {name: system.carrier(name, "embedded") for name in "abc"}
    system.until(lambda: len(system.flows) == 2 and system.ready, "no flows of their own")
    sensor = system.sensor()
    system.until(lambda: len(system.results) > 15, "nothing flows")
    victim = system.homes[0]
    assert nodes[victim].end() == 0
    system.until(lambda: system.homes and victim not in system.homes and system.ready, "nobody took the stage over")
    system.until_done(sensor)


@pytest.mark.slow
def test_a_generation_that_is_over_leaves_no_session_at_any_broker(system: OwnBrokers) -> None:
    first = system.coordinator(*OPTIONS)
    for name in "abc":
        system.carrier(name)
    system.until(lambda: len(system.flows) == 2 and system.ready, "no flows of their own")
    assert system.plan is not None and system.plan.current is not None
    epoch, brokers = system.plan.epoch, system.plan.current.brokers
    first.end()
    system.coordinator("--cuts", "4", "--margin", "0.9", "--local-brokers")
    system.until(lambda: system.plan and system.plan.epoch > epoch and len(system.homes) == 2, "no new epoch")
    system.run_for(2.0)  # the stages end after the plan that no longer has them
    name = f"{system.topics.base}.{system.topics.pipeline}.{epoch}.stage-1.0"
    for url in brokers.values():
        address = dataclasses.replace(system.address, port=int(url.rpartition(":")[2]))
        bus = open_bus(address, Session(name, expiry_s=5), ClientLibrary.NATIVE)
        assert not bus._session_present  # type: ignore[attr-defined]
        bus.close(forget=True)


@pytest.mark.slow
def test_shards_of_a_fixed_folder_send_rows_through_the_broker_that_it_names(
    tmp_path: Path, mosquitto: Mosquitto, embedded: EmbeddedBroker
) -> None:
    found = find_model("int8")
    split = "rows:0-3@2 whole:3-9@2 rows:9-11@2 whole:11-17@2"
    prepare(found.path, found.entry.task, tmp_path / "slices", stages=2, split=split)
    with closing(Fleet(tmp_path / "slices", tmp_path, mosquitto.address)) as fleet:
        file = fleet.slices / "pipeline.toml"
        url = embedded.address.url
        file.write_text(file.read_text() + f'\n[flows]\n"0" = "{url}"\n"1" = "{url}"\n')
        central, own = (open_bus(one, Session("hears", expiry_s=60)) for one in (mosquitto.address, embedded.address))
        for bus in (central, own):
            bus.subscribe([fleet.topics.activation("+", "+", "+")])
        fleet.until(lambda: [bus.poll(0) for bus in (central, own)] and central.connected and own.connected, "no ears")
        stages = [fleet.stage(index) for index in range(2)]
        fleet.until_ready("stage-0", "stage-1")
        sensor = fleet.start("sensor", "--subjects", "1,2", "--windows", "10", "--speed", "50")
        fleet.until_results(20)
        assert sensor.wait() == 0 and fleet.all_once(2, 10)
        assert not [one.topic for one in central.poll(0.2) if one.topic.startswith(fleet.topics.prefix)]
        heard = {fleet.topics.read(one.topic).levels[1] for one in own.poll(0.2)}
        assert heard == {"0", "0-1", "1"}
        for bus in (central, own):
            bus.close(forget=True)
        assert [stage.end() for stage in stages] == [0, 0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--advertise", "pi"], "--advertise came without --own-broker"),
        (["--own-broker", "rabbit"], "invalid choice: 'rabbit'"),
        (["--own-broker-port", "1884", "--own-broker-config", "x"], "--own-broker-port, --own-broker-config came"),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["node", *options])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2 and text in capsys.readouterr().err
