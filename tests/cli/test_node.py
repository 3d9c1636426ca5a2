"""`har-edge node` as processes on Mosquitto, under a plan that a test writes: slices run there, nothing is lost."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.commands.node import host_name
from har_edge.cli.main import main
from har_edge.cluster.processes import Running
from har_edge.config.catalog import find_model
from har_edge.coordinator.coordinator import NAME
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.mqtt.bus import Session
from har_edge.protocol.deployment import VERSION, Deployment, Generation, Placement, encode_deployment
from har_edge.protocol.status import (
    ALIVE,
    Heartbeat,
    NodeStatus,
    StagePhase,
    State,
    encode_heartbeat,
    encode_status,
)
from har_edge.protocol.topics import COORDINATOR
from har_edge.resources import find_folder
from har_edge.runtime.artifacts import encode_chunks
from har_edge.runtime.slicing import prepare
from har_edge.tflite.model import read_model
from tests.cli.fleet import Fleet
from tests.protocol.reading import read_heartbeat
from tests.runtime.deployed import CARD

WINDOWS = 80
LOAD = ("--subjects", "1,2", "--windows", str(WINDOWS), "--speed", "60", "--in-flight", "8")


class PipelineProcesses:
    """Nodes of one pipeline, and what they say; the epoch is that of the pipeline file, so that its sensors serve."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet, self.beats, self.revision = fleet, dict[str, Heartbeat](), 0
        self.epoch, self.topics = fleet.pipeline.config.epoch, fleet.topics
        self.bus = fleet.open(Session(f"{fleet.name}-beats"))
        self.bus.subscribe([self.topics.heartbeat("+")])

    def node(self, name: str, *options: str) -> Running:
        where = ["--name", name, "--pipeline", self.fleet.name, "--cache", str(self.fleet.cwd / f"cache-{name}")]
        return self.fleet.start("node", *where, *options)

    def nodes(self, *names: str) -> list[Running]:
        """Start nodes, and wait until each is ready for stages."""
        started = [self.node(name) for name in names]
        self.fleet.until_ready(*names)
        return started

    def until_more(self, count: int, *, streams: int = 2) -> None:
        """Wait for so many more results, or for all of LOAD: on a busy machine the nodes may be slower than it is."""
        self.fleet.until_results(min(len(self.fleet.results) + count, streams * WINDOWS))

    def files(self) -> None:
        """Bring every slice to the broker."""
        folder = self.fleet.pipeline.folder / self.fleet.pipeline.config.slices
        for entry in self.fleet.pipeline.manifest.slices:
            for one in encode_chunks(self.topics, (folder / entry.file).read_bytes()):
                self.fleet.bus.publish(one.topic, one.payload, retain=True)

    def deployment(self, *nodes: str, standby: tuple[str, ...] = (), epochs: tuple[int, ...] = ()) -> Deployment:
        self.revision += 1
        pipeline = self.fleet.pipeline
        placements = tuple(Placement(stage, node, standby=standby) for stage, node in enumerate(nodes))
        generations = tuple(Generation(epoch, pipeline.manifest, placements) for epoch in epochs or (self.epoch,))
        files = dict(pipeline.task.files)
        last = generations[-1].epoch
        return Deployment(VERSION, self.revision, "test", 1.0, pipeline.config, last, files, generations)

    def plan(self, *nodes: str, standby: tuple[str, ...] = (), epochs: tuple[int, ...] = ()) -> None:
        self.say(encode_deployment(self.deployment(*nodes, standby=standby, epochs=epochs)))

    def say(self, payload: bytes) -> None:
        self.fleet.bus.publish(self.topics.plan(), payload, retain=True)

    def phases(self, node: str, epoch: int | None = None) -> list[StagePhase]:
        """Return the phases of a node's stages, in order."""
        reports = self.beats[node].stages if node in self.beats else ()
        return [one.phase for one in reports if one.epoch == (epoch or self.epoch)]

    def until(self, done: object, what: str) -> None:
        def look() -> object:
            for delivery in self.bus.poll(0.0):
                self.bus.acknowledge(delivery)
                beat = read_heartbeat(delivery)
                self.beats[beat.node] = beat
            return done()  # type: ignore[operator]

        self.fleet.until(look, f"{what}: {self.beats}")

    def until_run(self, **stages: int) -> None:
        """Wait until so many stages run on each node, and no others are there."""
        wanted = {name: [StagePhase.RUNNING] * count for name, count in stages.items()}
        self.until(lambda: all(self.phases(name) == phases for name, phases in wanted.items()), "stages do not run")


@pytest.fixture
def system(fleet: Fleet) -> Iterator[PipelineProcesses]:
    system = PipelineProcesses(fleet)
    yield system
    system.bus.close(forget=True)


def all_well(system: PipelineProcesses, sensors: list[Running], streams: int = 2, windows: int = WINDOWS) -> None:
    fleet = system.fleet
    system.until(lambda: len(fleet.results) >= streams * windows, "windows were lost")
    assert [sensor.wait() for sensor in sensors] == [0] * len(sensors)
    assert fleet.all_once(streams, windows)
    assert not [one.log for one in fleet.running if "gave up" in one.output or "Traceback" in one.output]
    right = [result for result in fleet.results.values() if result.truth is not None]
    assert sum(result.label_id == result.truth for result in right) >= 0.8 * len(right)


@pytest.mark.slow
def test_nodes_run_the_slices_of_a_plan_and_answer_as_static_stages_do(system: PipelineProcesses) -> None:
    fleet = system.fleet
    a, b = system.nodes("a", "b")
    device = fleet.statuses["a"].device
    assert device is not None and device.speed > 0 and device.link_bytes_per_s and device.round_trip_s
    system.files()
    system.plan("a", "b", "a")
    system.until_run(a=2, b=1)
    system.until(lambda: fleet.state("a") is fleet.state("b") is State.BUSY, "nodes with stages do not say busy")
    all_well(system, fleet.sensors("--subjects", "1,2", "--windows", "40", "--speed", "max"), 2, 40)
    answers = {key: (one.label_id, one.confidence) for key, one in fleet.results.items()}
    system.until(
        lambda: all(one.windows == 80 for beat in system.beats.values() for one in beat.stages), "counts differ"
    )
    system.plan()  # not a plan at all: no stage is placed
    system.until(lambda: fleet.counter("a", "plans_rejected") == 1, "what is no plan is not counted")
    system.say(encode_deployment(msgspec.structs.replace(system.deployment(), generations=(), epoch=0)))
    system.until(lambda: system.phases("a") == system.phases("b") == [], "the stages do not end")
    system.until(lambda: fleet.state("a") is State.READY, "a node without stages is not ready")
    fleet.results.clear()
    fleet.sink.__init__()  # type: ignore[misc]
    static = fleet.stages()
    all_well(system, fleet.sensors("--subjects", "1,2", "--windows", "40", "--speed", "max"), 2, 40)
    assert {key: (one.label_id, one.confidence) for key, one in fleet.results.items()} == answers
    assert [one.end() for one in (a, b, *static)] == [0] * 5
    system.until(lambda: fleet.state("a") is State.STOPPED, "no farewell")
    assert "node a stopped" in a.output and "node a connected: " in a.output


@pytest.mark.slow
def test_stages_that_move_under_load_lose_nothing(system: PipelineProcesses) -> None:
    fleet = system.fleet
    system.nodes("a", "b")
    system.files()
    system.plan("a", "a", "a")
    system.until_run(a=3)
    sensors = fleet.sensors(*LOAD)
    fleet.until_results(10)
    system.plan("a", "a", "a", standby=("b",))
    system.until(lambda: system.phases("b") == [StagePhase.PREPARED] * 3, "b does not get ready")
    system.plan("b", "a", "b")
    system.until_run(a=1, b=2)
    system.until_more(10)
    system.plan("a", "b", "a")
    system.until_run(a=2, b=1)
    system.until_more(10)
    system.plan("b", "b", "b")
    system.until_run(a=0, b=3)
    all_well(system, sensors)
    assert system.beats["a"].revision == system.beats["b"].revision == system.revision


@pytest.mark.slow
def test_a_killed_and_a_stopped_node_are_replaced_and_the_stopped_one_is_fenced(system: PipelineProcesses) -> None:
    fleet = system.fleet
    a, b, _ = system.nodes("a", "b", "c")
    system.files()
    system.plan("a", "b", "a", standby=("c",))
    system.until_run(a=2, b=1)
    sensors = fleet.sensors(*LOAD)
    fleet.until_results(10)
    a.process.kill()
    fleet.until(lambda: fleet.state("a") is State.LOST, "no will")
    system.plan("c", "b", "c")
    system.until_run(b=1, c=2)
    system.until_more(10)
    b.process.send_signal(signal.SIGSTOP)
    system.plan("c", "c", "c")
    system.until_run(c=3)
    system.until_more(10)
    b.process.send_signal(signal.SIGCONT)
    system.until(lambda: system.phases("b") == [] and system.beats["b"].revision == system.revision, "b was not fenced")
    all_well(system, sensors)
    assert system.phases("c") == [StagePhase.RUNNING] * 3 and b.end() == 0


@pytest.mark.slow
def test_a_node_that_is_told_to_stop_hands_over_first(system: PipelineProcesses) -> None:
    fleet = system.fleet
    a, b = system.node("a", "--drain-timeout", "60"), system.node("b")
    fleet.until_ready("a", "b")
    system.files()
    system.plan("a", "a", "a")
    system.until_run(a=3)
    sensors = fleet.sensors(*LOAD)
    fleet.until_results(10)
    a.process.send_signal(signal.SIGTERM)
    system.until(lambda: fleet.state("a") is State.DRAINING, "it does not say that it wants to go")
    system.until_more(5)
    assert a.process.poll() is None
    system.plan("b", "b", "b")
    system.until(lambda: a.process.poll() == 0, "it does not go")
    system.until(lambda: fleet.state("a") is State.STOPPED, "no farewell")
    all_well(system, sensors)
    began = time.monotonic()
    b.process.send_signal(signal.SIGTERM)
    system.until(lambda: fleet.state("b") is State.DRAINING, "it does not say that it wants to go")
    b.process.send_signal(signal.SIGTERM)  # a second signal ends it at once
    assert b.wait() == 130 and time.monotonic() - began < 8.0


@pytest.mark.slow
def test_what_is_no_plan_harms_nothing_and_a_broken_slice_is_fetched_again(system: PipelineProcesses) -> None:
    fleet = system.fleet
    entry = fleet.pipeline.manifest.slices[1]
    system.nodes("a")
    system.files()
    chunk = system.topics.chunk(entry.sha256, 0)
    fleet.bus.publish(chunk, bytes((fleet.slices / entry.file).stat().st_size), retain=True)
    system.plan("a", "a", "somebody-unknown")
    system.until(
        lambda: system.phases("a") == [StagePhase.RUNNING, StagePhase.FAILED], "the broken slice is not reported"
    )
    assert "forged or corrupt" in system.beats["a"].stages[1].detail
    system.say(b"{}")
    system.until(lambda: fleet.counter("a", "plans_rejected") == 1, "what is no plan is not counted")
    assert system.beats["a"].revision == 1
    system.files()
    system.until_run(a=2)
    system.plan("a", "a", "a")
    system.until_run(a=3)
    all_well(system, fleet.sensors("--subjects", "1", "--windows", "20", "--speed", "max"), 1, 20)


@pytest.mark.slow
def test_a_broker_that_restarts_loses_nothing(slices: Path, tmp_path: Path, own_broker: Mosquitto) -> None:
    port, directory = own_broker.address.port, Path(own_broker.process.args[2]).parent  # type: ignore[index]
    with Fleet(slices, tmp_path, own_broker.address) as fleet:
        system = PipelineProcesses(fleet)
        system.nodes("a", "b")
        system.files()
        system.plan("a", "b", "a")
        system.until_run(a=2, b=1)
        sensors = fleet.sensors(*LOAD)
        fleet.until_results(10)
        own_broker.stop()
        system.beats.clear()
        with start_mosquitto(find_folder("brokers") / "mosquitto.conf", directory, port=port):
            all_well(system, sensors)
            system.until_run(a=2, b=1)
            system.until(lambda: all(fleet.counter(node, "reconnects") >= 1 for node in "ab"), "not said again")
            system.until(
                lambda: fleet.state("a") is fleet.state("b") is State.BUSY, "nodes with stages do not say busy"
            )
            system.plan("b", "b", "b")
            system.until_run(a=0, b=3)
            system.bus.close(forget=True)


@pytest.mark.slow
def test_replicas_take_turns_and_one_that_moves_loses_nothing(
    cut_after_the_sources: Path, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    with Fleet(cut_after_the_sources, tmp_path, mosquitto.address) as fleet:
        system = PipelineProcesses(fleet)
        system.nodes("a", "b", "c")
        system.files()

        def plan(*nodes: str) -> None:
            plain = system.deployment("a", "a")
            placements = (Placement(0, "a"), *(Placement(1, node, number) for number, node in enumerate(nodes)))
            (generation,) = plain.generations
            moved = msgspec.structs.replace(generation, placements=placements)
            system.say(encode_deployment(msgspec.structs.replace(plain, generations=(moved,))))

        plan("a", "b")
        system.until_run(a=2, b=1)
        sensors = fleet.sensors(*LOAD)
        fleet.until_results(20)
        system.until(lambda: all(system.beats[name].stages[-1].windows > 2 for name in "ab"), "one has all the work")
        plan("a", "c")
        system.until_run(a=2, b=0, c=1)
        all_well(system, sensors)
        system.until(lambda: system.beats["c"].stages[0].windows > 2, "the one that moved has no work")
        system.bus.close(forget=True)


@pytest.fixture(scope="session")
def cut_after_the_sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped int8 model in two slices; the second takes what the first makes, and nothing else."""
    found, folder = find_model("int8"), tmp_path_factory.mktemp("two")
    last = len(read_model(found.path).main.operators) - 2
    prepare(found.path, found.entry.task, folder, stages=2, cuts=[last])
    return folder


@pytest.mark.slow
def test_of_two_nodes_of_one_name_on_a_machine_the_younger_one_goes_on(system: PipelineProcesses) -> None:
    fleet = system.fleet
    (older,) = system.nodes("a")
    system.files()
    system.plan("a", "a", "a")
    system.until_run(a=3)
    sensors = fleet.sensors(*LOAD)
    fleet.until_results(5)
    first = fleet.statuses["a"].instance
    younger = system.node("a")
    assert older.wait() == 3
    assert "node a: a younger node of this name has taken over; ending (give each its --name)" in older.output
    system.until(lambda: fleet.statuses["a"].instance != first and fleet.state("a") is State.BUSY, "it does not go on")
    system.until_run(a=3)
    all_well(system, sensors)
    assert younger.process.poll() is None


def test_a_name_that_lives_on_another_machine_is_refused(
    system: PipelineProcesses, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = system.fleet
    status = NodeStatus("a", "node", State.READY, "other", 1.0, device=CARD)
    fleet.bus.publish(system.topics.status("a"), encode_status(status), retain=True)
    system.until(lambda: fleet.state("a") in ALIVE, "the other one is not there")
    node = system.node("a")
    number = 0

    def beat() -> bool:
        nonlocal number
        number += 1
        fleet.bus.publish(system.topics.heartbeat("a"), encode_heartbeat(Heartbeat("a", "other", number, time.time())))
        return node.process.poll() is not None

    system.until(beat, "it does not end")
    assert node.process.returncode == 2
    assert "error: a node 'a' is alive on another machine, on Linux aarch64; expected a name of its own" in node.output
    assert fleet.statuses["a"].instance == "other"


def test_a_name_that_cannot_stand_in_a_topic_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["node", "--name", "my pi", "--broker", "mqtt://127.0.0.1:1"]) == 2
    assert "name of the node is 'my pi'; expected 1 to 128 letters" in capsys.readouterr().err


def test_own_samples_that_are_not_there_end_the_node_at_the_start(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    absent = tmp_path / "nosuch.npz"
    assert main(["node", "--data", str(absent), "--broker", "mqtt://127.0.0.1:1"]) == 2
    assert f"{absent}: no such file or folder, expected idx files" in " ".join(capsys.readouterr().err.split())


def test_nobody_takes_the_name_of_the_coordinator(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not even a node on a host that is called so: it would take the session of the coordinator."""
    assert NAME == COORDINATOR
    monkeypatch.setattr("har_edge.cli.commands.node.platform.node", lambda: NAME)
    assert main(["node", "--broker", "mqtt://127.0.0.1:1"]) == 2
    assert "'coordinator', which is that of the coordinator; choose another with --name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "name"),
    [("raspberrypi", "raspberrypi"), ("pi.local", "pi"), ("my pi.home.lan", "my-pi"), ("", "node"), ("...", "node")],
)
def test_a_node_is_named_after_its_host(monkeypatch: pytest.MonkeyPatch, host: str, name: str) -> None:
    monkeypatch.setattr("har_edge.cli.commands.node.platform.node", lambda: host)
    assert host_name() == name
