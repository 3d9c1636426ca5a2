"""`har-edge coordinator` with real nodes and sensors: whoever is killed, every window is answered once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from har_edge.cli.main import main
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.results import Result
from har_edge.protocol.status import NodeStatus, State
from har_edge.protocol.topics import Kind, Topics, is_probe
from har_edge.runtime.sink import Sink
from tests.cli.fleet import Running, environment
from tests.protocol.reading import read_plan, read_status

TIMEOUT_S = 60.0
WINDOWS = 60


@dataclass
class Crew:
    """Coordinator, nodes and sensors of one pipeline, and what they publish."""

    cwd: Path
    address: Address
    name: str
    cache: Path
    running: list[Running] = field(default_factory=list)
    results: dict[tuple[str, int], Result] = field(default_factory=dict)
    doubled: int = 0
    statuses: dict[str, NodeStatus] = field(default_factory=dict)
    plan: Deployment | None = None
    headers: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.topics, self.sink = Topics("har", self.name), Sink()
        self.bus = open_bus(self.address, Session(f"{self.name}-test", expiry_s=600), ClientLibrary.PAHO)
        topics = self.topics
        self.bus.subscribe([topics.result("+"), topics.status("+"), topics.plan(), topics.slice("+")])

    def start(self, command: str, *options: str) -> Running:
        log = self.cwd / f"{command}-{len(self.running)}.log"
        arguments = [sys.executable, "-m", "har_edge.cli.main", command, "--pipeline", self.name]
        arguments += ["--broker", self.address.url, *options]
        changes = {"XDG_CACHE_HOME": str(self.cache)}
        with log.open("wb") as file:
            process = subprocess.Popen(
                arguments, cwd=self.cwd, env=environment(**changes), stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )
        self.running.append(Running(process, log))
        return self.running[-1]

    def coordinator(self, *options: str) -> Running:
        return self.start("coordinator", "--model", "int8", "--settle", "1", *(options or ("--cuts", "4,9")))

    def node(self, name: str) -> Running:
        return self.start("node", "--name", name)

    def sensor(self, *options: str) -> Running:
        load = ("--subjects", "1,2", "--windows", str(WINDOWS), "--speed", "50", "--in-flight", "8")
        return self.start("sensor", *load, *options)

    def poll(self) -> None:
        for delivery in self.bus.poll(0.05):
            self.bus.acknowledge(delivery)
            topic = self.topics.read(delivery.topic)
            if topic.kind is Kind.STATUS:
                status = read_status(delivery)
                self.statuses[status.node] = status
            elif topic.kind is Kind.PLAN:
                self.plan = read_plan(delivery)
            elif topic.kind is Kind.SLICE:
                (self.headers.add if delivery.payload else self.headers.discard)(topic.levels[0])
            elif not is_probe(topic.levels[0]):
                for result in self.sink.handle(delivery):
                    self.doubled += (result.stream, result.seq) in self.results
                    self.results[result.stream, result.seq] = result

    def until(self, done: object, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not done():  # type: ignore[operator]
            said = "\n".join(f"--- {one.log.name}\n{one.said}" for one in self.running)
            assert time.monotonic() < deadline, f"{what}; {len(self.results)} results, {self.statuses}\n{said}"
            self.poll()

    @property
    def ready(self) -> bool:
        status = self.statuses.get("coordinator")
        return status is not None and status.state is State.READY

    @property
    def homes(self) -> list[str]:
        """The nodes of the current stages, in order; empty while another generation is there."""
        if self.plan is None or self.plan.current is None or len(self.plan.generations) > 1:
            return []
        return [placement.node for placement in self.plan.current.placements]

    def until_homes(self, *nodes: str) -> None:
        self.until(lambda: set(self.homes) == set(nodes) and self.ready, f"{nodes} never ran all stages")

    def until_done(self, sensor: Running) -> None:
        """Wait until every window is answered; each must be, once."""
        self.until(lambda: len(self.results) >= 2 * WINDOWS, "windows are missing")
        assert sensor.wait() == 0
        assert set(self.results) == {(f"subject{k}", seq) for k in (1, 2) for seq in range(WINDOWS)}
        assert not self.doubled


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model that was measured once need not be measured again."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def crew(tmp_path: Path, request: pytest.FixtureRequest, cache: Path) -> Iterator[Crew]:
    """A pipeline of its own on the Mosquitto of the test run."""
    mosquitto = request.getfixturevalue("mosquitto")
    crew = Crew(tmp_path, mosquitto.address, f"c{abs(hash(request.node.name)) % 10**6}", cache)
    yield crew
    for running in crew.running:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()
    crew.bus.close(forget=True)


@pytest.mark.slow
def test_nodes_crash_join_and_leave_while_windows_flow(crew: Crew) -> None:
    coordinator = crew.coordinator()
    nodes = {name: crew.node(name) for name in "abc"}
    crew.until_homes("a", "b", "c")
    sensor = crew.sensor()
    crew.until(lambda: len(crew.results) > 15, "nothing flows")
    nodes["b"].end(signal.SIGKILL)
    crew.until(lambda: crew.homes and "b" not in crew.homes and crew.ready, "nobody took the stage")
    epoch = crew.plan.epoch if crew.plan else 0
    assert "is lost: the broker lost its connection" in coordinator.said
    crew.node("d")
    crew.until_homes("a", "c", "d")
    assert crew.plan is not None and crew.plan.epoch > epoch
    assert nodes["a"].end() == 0
    crew.until(lambda: crew.homes and "a" not in crew.homes and crew.ready, "nobody took the stage over")
    assert "lost the broker" not in nodes["a"].said  # its stage was handed over
    crew.until_done(sensor)
    crew.until(lambda: crew.plan is not None and len(crew.plan.generations) == 1, "a generation stays")
    assert crew.plan.current is not None
    wanted = {entry.sha256 for entry in crew.plan.current.manifest.slices}
    crew.until(lambda: crew.headers == wanted, "slices that nobody names stay at the broker")
    assert coordinator.end() == 0 and "what is deployed runs on" in coordinator.said
    crew.until(lambda: crew.statuses["coordinator"].state is State.STOPPED, "no farewell")


@pytest.mark.slow
def test_a_coordinator_that_is_killed_or_replaced_disturbs_nobody(crew: Crew) -> None:
    options = ("--cuts", "4,9", "--margin", "0.9")  # no speed that is measured on a busy machine speaks for a change
    first = crew.coordinator(*options)
    for name in "abc":
        crew.node(name)
    crew.until_homes("a", "b", "c")
    before = crew.plan
    sensor = crew.sensor()
    crew.until(lambda: len(crew.results) > 15, "nothing flows")
    first.end(signal.SIGKILL)
    second = crew.coordinator(*options)
    crew.until(lambda: "adopted the plan of" in second.said, "the plan was not adopted")
    third = crew.coordinator(*options)
    assert second.wait() == 3 and "a younger coordinator of this pipeline has taken over" in second.said
    crew.until_done(sensor)
    crew.until(lambda: "adopted the plan of" in third.said, "the plan was not adopted")
    assert crew.plan is not None and before is not None
    assert crew.plan.epoch == before.epoch and crew.plan.revision > before.revision
    assert [one.manifest for one in crew.plan.generations] == [one.manifest for one in before.generations]


@pytest.mark.slow
def test_a_slice_that_somebody_spoils_at_the_broker_is_mended_there(crew: Crew) -> None:
    coordinator = crew.coordinator("--cuts", "4")
    first = crew.node("a")
    crew.until_homes("a")
    assert crew.plan is not None and crew.plan.current is not None
    sha256 = crew.plan.current.manifest.slices[1].sha256
    chunk = crew.topics.chunk(sha256, 0)
    seen: list[bytes] = []
    with closing(open_bus(crew.address, Session(f"{crew.name}-look", clean_start=True), ClientLibrary.PAHO)) as bus:
        bus.subscribe([chunk])

        def look() -> bool:
            for delivery in bus.poll(0.05):
                bus.acknowledge(delivery)
                seen.append(delivery.payload)
            return bool(seen)

        crew.until(look, "no chunk")
        bus.publish(chunk, bytes(len(seen[0])), retain=True)
        crew.until(lambda: look() and len(seen) == 2, "the chunk was not spoilt")
        crew.start("node", "--name", "b", "--cache", str(crew.cwd / "empty"))
        first.end(signal.SIGKILL)
        crew.until_homes("b")
        crew.until(lambda: look() and len(seen) >= 3, "the chunk was not mended")
    assert not any(seen[1]) and seen[0] == seen[2]
    assert f"node b could not get {sha256} from the broker: it is published again" in coordinator.said
    crew.until_done(crew.sensor())


@pytest.mark.slow
def test_another_model_takes_over_and_both_answer(crew: Crew) -> None:
    crew.coordinator("--stages", "2")
    for name in ("a", "b"):
        crew.node(name)
    crew.until_homes("a", "b")
    epoch = crew.plan.epoch if crew.plan else 0
    younger = crew.start("coordinator", "--model", "float", "--stages", "2", "--settle", "1")
    crew.until(lambda: crew.plan is not None and crew.plan.epoch > epoch and len(crew.homes) == 2, "no new epoch")
    assert crew.plan is not None and crew.plan.current is not None
    assert crew.plan.current.manifest.model == "har-float.tflite"
    assert "the plan there is for another task" in younger.said


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "nothing"], "no model 'nothing'"),
        (["--margin", "2"], "expected a part such as 0.15"),
        (["--stages", "2", "--cuts", "1"], "not allowed with argument"),
        (["--pipeline", "a/b"], "name of the pipeline is 'a/b'"),
        (["--devices", "none.toml"], "cannot read none.toml"),
        (["--reducer", "cheast=none"], "a reducer came for source cheast"),
    ],
)
def test_what_cannot_be_is_refused(options: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["coordinator", *options])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2 and text in capsys.readouterr().err
