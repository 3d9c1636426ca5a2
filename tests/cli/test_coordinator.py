"""`har-edge coordinator` with real nodes and sensors: whoever is killed, every window is answered once."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.cluster.cluster import CACHE, Arrival, Cluster
from har_edge.cluster.processes import Processes, Running
from har_edge.cluster.view import ClusterView
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Delivery, Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.results import Result
from har_edge.protocol.status import State
from har_edge.protocol.topics import Kind
from har_edge.runtime.build import topics_of
from tests.cli.fleet import NO_DATA

WINDOWS = 60


@dataclass(slots=True)
class View(ClusterView):
    """Sees which slices the broker keeps, too."""

    headers: set[str] = field(default_factory=set)

    def handle(self, delivery: Delivery) -> list[Result]:
        topic = self.topics.read(delivery.topic)
        if topic.kind is Kind.SLICE:
            (self.headers.add if delivery.payload else self.headers.discard)(topic.levels[0])
        # A class with slots is another one than that which super() knows.
        return ClusterView.handle(self, delivery)


class PipelineProcesses(Cluster):
    """Coordinator, nodes and sensors of one pipeline, and what they publish."""

    def __init__(self, pipeline: Pipeline, cwd: Path, address: Address, cache: Path) -> None:
        self.results: dict[tuple[str, int], Result] = {}
        self.doubled, self.kept = 0, View(topics_of(pipeline))
        self.work, name = cwd, pipeline.config.name
        super().__init__(
            pipeline,
            address,
            folder=cwd,
            deployed=True,
            connection=["--broker", address.url],
            bus=open_bus(address, Session(f"{name}-test", expiry_s=600), ClientLibrary.PAHO),
            processes=Processes(variables={**NO_DATA, CACHE: str(cache)}, patience_s=0.0, folder=cwd),
            view=self.kept,
        )
        self.bus.subscribe([self.topics.slice("+")])

    def cache_folder(self, name: str) -> Path:
        """All nodes share one: what a test deploys is fetched once."""
        return Path(self.processes.variables[CACHE])

    def coordinator(self, *options: str) -> Running:
        return self.start("coordinator", "--model", "int8", "--settle", "1", *(options or ("--cuts", "4,9")))

    def node(self, name: str) -> Running:
        return self.start("node", "--name", name)

    def sensor(self, *options: str) -> Running:
        load = ("--subjects", "1,2", "--windows", str(WINDOWS), "--speed", "50", "--in-flight", "8")
        return self.start("sensor", *load, *options)

    def poll(self, timeout_s: float = 0.05) -> list[Arrival]:
        arrivals = super().poll(timeout_s)
        for result in (arrival.result for arrival in arrivals):
            self.doubled += (result.stream, result.seq) in self.results
            self.results[result.stream, result.seq] = result
        return arrivals

    @property
    def plan(self) -> Deployment | None:
        return self.view.deployment

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
def system(
    tmp_path: Path, request: pytest.FixtureRequest, cache: Path, cut: Callable[..., Pipeline]
) -> Iterator[PipelineProcesses]:
    """A pipeline of its own on the Mosquitto of the test run."""
    pipeline, mosquitto = cut("int8", 4, 9), request.getfixturevalue("mosquitto")
    config = msgspec.structs.replace(pipeline.config, name=f"c{abs(hash(request.node.name)) % 10**6}")
    system = PipelineProcesses(dataclasses.replace(pipeline, config=config), tmp_path, mosquitto.address, cache)
    yield system
    system.processes.stop()
    system.bus.close(forget=True)


@pytest.mark.slow
def test_nodes_crash_join_and_leave_while_windows_flow(system: PipelineProcesses) -> None:
    coordinator = system.coordinator()
    nodes = {name: system.node(name) for name in "abc"}
    system.until_homes("a", "b", "c")
    sensor = system.sensor()
    system.until(lambda: len(system.results) > 15, "nothing flows")
    nodes["b"].end(signal.SIGKILL)
    system.until(lambda: system.homes and "b" not in system.homes and system.ready, "nobody took the stage")
    epoch = system.plan.epoch if system.plan else 0
    assert "is lost: the broker lost its connection" in coordinator.output
    system.node("d")
    system.until_homes("a", "c", "d")
    assert system.plan is not None and system.plan.epoch > epoch
    assert nodes["a"].end() == 0
    system.until(lambda: system.homes and "a" not in system.homes and system.ready, "nobody took the stage over")
    assert "lost the broker" not in nodes["a"].output  # its stage was handed over
    system.until_done(sensor)
    system.until(lambda: system.plan is not None and len(system.plan.generations) == 1, "a generation stays")
    assert system.plan.current is not None
    wanted = {entry.sha256 for entry in system.plan.current.manifest.slices}
    system.until(lambda: system.kept.headers == wanted, "slices that nobody names stay at the broker")
    assert coordinator.end() == 0 and "what is deployed runs on" in coordinator.output
    system.until(lambda: system.statuses["coordinator"].state is State.STOPPED, "no farewell")


@pytest.mark.slow
def test_a_coordinator_that_is_killed_or_replaced_disturbs_nobody(system: PipelineProcesses) -> None:
    options = ("--cuts", "4,9", "--margin", "0.9")  # no speed that is measured on a busy machine speaks for a change
    first = system.coordinator(*options)
    for name in "abc":
        system.node(name)
    system.until_homes("a", "b", "c")
    before = system.plan
    sensor = system.sensor()
    system.until(lambda: len(system.results) > 15, "nothing flows")
    first.end(signal.SIGKILL)
    second = system.coordinator(*options)
    system.until(lambda: "adopted the plan of" in second.output, "the plan was not adopted")
    third = system.coordinator(*options)
    assert second.wait() == 3 and "a younger coordinator of this pipeline has taken over" in second.output
    system.until_done(sensor)
    system.until(lambda: "adopted the plan of" in third.output, "the plan was not adopted")
    assert system.plan is not None and before is not None
    assert system.plan.epoch == before.epoch and system.plan.revision > before.revision
    assert [one.manifest for one in system.plan.generations] == [one.manifest for one in before.generations]


@pytest.mark.slow
def test_a_slice_that_somebody_spoils_at_the_broker_is_mended_there(system: PipelineProcesses) -> None:
    coordinator = system.coordinator("--cuts", "4")
    first = system.node("a")
    system.until_homes("a")
    assert system.plan is not None and system.plan.current is not None
    sha256 = system.plan.current.manifest.slices[1].sha256
    chunk = system.topics.chunk(sha256, 0)
    seen: list[bytes] = []
    with closing(
        open_bus(system.address, Session(f"{system.topics.pipeline}-look", clean_start=True), ClientLibrary.PAHO)
    ) as bus:
        bus.subscribe([chunk])

        def look() -> bool:
            for delivery in bus.poll(0.05):
                bus.acknowledge(delivery)
                seen.append(delivery.payload)
            return bool(seen)

        system.until(look, "no chunk")
        bus.publish(chunk, bytes(len(seen[0])), retain=True)
        system.until(lambda: look() and len(seen) == 2, "the chunk was not spoilt")
        system.start("node", "--name", "b", "--cache", str(system.work / "empty"))
        first.end(signal.SIGKILL)
        system.until_homes("b")
        system.until(lambda: look() and len(seen) >= 3, "the chunk was not mended")
    assert not any(seen[1]) and seen[0] == seen[2]
    assert f"node b could not get {sha256} from the broker: it is published again" in coordinator.output
    system.until_done(system.sensor())


@pytest.mark.slow
def test_another_model_takes_over_and_both_answer(system: PipelineProcesses) -> None:
    system.coordinator("--stages", "2")
    for name in ("a", "b"):
        system.node(name)
    system.until_homes("a", "b")
    epoch = system.plan.epoch if system.plan else 0
    younger = system.start("coordinator", "--model", "float", "--stages", "2", "--settle", "1")
    system.until(
        lambda: system.plan is not None and system.plan.epoch > epoch and len(system.homes) == 2, "no new epoch"
    )
    assert system.plan is not None and system.plan.current is not None
    assert system.plan.current.manifest.model == "har-float.tflite"
    assert "the plan there is for another task" in younger.output


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--model", "int8", "--plan", "turns.json"], "lets c and d take turns at stage 2, which takes more than one"),
        (["--model", "nothing"], "no model 'nothing'"),
        (["--margin", "2"], "expected a part such as 0.15"),
        (["--stages", "2", "--cuts", "1"], "not allowed with argument"),
        (["--pipeline", "a/b"], "name of the pipeline is 'a/b'"),
        (["--devices", "none.toml"], "cannot read none.toml"),
        (["--reducer", "cheast=none"], "a reducer came for source cheast"),
    ],
)
def test_what_cannot_be_is_refused(
    options: list[str], text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    block = {"start": 0, "stop": 3, "method": "rows", "bounds": [0, 12, 23]}
    groups = [
        {"start": 0, "stop": 3, "devices": ["a", "b"], "split": {"shards": 2, "blocks": [block]}},
        {"start": 3, "stop": 17, "devices": ["c", "d"]},
    ]
    Path("turns.json").write_text(json.dumps({"model_sha256": find_model("int8").sha256, "stages": groups}))
    try:
        code = main(["coordinator", *options])
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    assert code == 2 and text in " ".join(capsys.readouterr().err.split())
