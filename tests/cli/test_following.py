"""`har-edge sensor` and `har-edge watch` as processes that follow a plan which the test writes, on Mosquitto."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from har_edge.cli.main import main
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline
from har_edge.data.live import LiveStream, lay_out
from har_edge.mqtt.bus import Bus, Outgoing, Session
from har_edge.protocol import wire
from har_edge.protocol.deployment import Deployment, Generation, Placement, encode_deployment, session_name
from har_edge.protocol.results import Result, encode_results
from har_edge.protocol.topics import PROBE
from har_edge.runtime.artifacts import encode_chunks
from har_edge.runtime.build import build_stage
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.loop import run_stage
from har_edge.runtime.status_publisher import Identity
from har_edge.runtime.stop import Stop
from tests.cli.deployed import Stand
from tests.cli.fleet import Fleet, Running

SOURCES = ("chest", "ankle", "arm")
WINDOWS = 60


@pytest.fixture(scope="session")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> list[Pipeline]:
    """The default model, whose sensors need fitted files, in two slices and in three."""
    found = find_model("bottleneck")
    folders = [tmp_path_factory.mktemp(f"cut-{stages}") for stages in (2, 3)]
    return [
        prepare(found.path, found.entry.task, folder, stages=stages)
        for stages, folder in zip((2, 3), folders, strict=True)
    ]


@dataclass
class Generations:
    """Stages of several epochs, each on a bus and a thread of its own, and the plan that names them."""

    fleet: Fleet
    cuts: list[Pipeline]
    stand: Stand = field(init=False)
    running: dict[int, tuple[Stop, list[threading.Thread]]] = field(default_factory=dict)
    revision: int = 1

    def __post_init__(self) -> None:
        self.stand = Stand(self.fleet)
        task = self.cuts[0].task
        files = [(self.cuts[0].folder / name).read_bytes() for name in task.files]
        self.stand.publish(*(one for content in files for one in encode_chunks(self.fleet.topics, content)))

    def plan(self, *epochs: int, current: int) -> None:
        """Retain a plan with these epochs; odd ones have two slices, even ones three."""
        generations = tuple(Generation(epoch, self.cut(epoch).manifest, self._placed(epoch)) for epoch in epochs)
        config = msgspec.structs.replace(self.cuts[0].config, name=self.fleet.name)
        self.revision += 1
        files = dict(self.cuts[0].task.files)
        deployment = Deployment(1, self.revision, "test", 1.0, config, current, files, generations)
        self.stand.publish(Outgoing(self.fleet.topics.plan(), encode_deployment(deployment), retain=True))

    def cut(self, epoch: int) -> Pipeline:
        return self.cuts[(epoch + 1) % 2]

    def _placed(self, epoch: int) -> tuple[Placement, ...]:
        return tuple(Placement(stage, "here") for stage in range(len(self.cut(epoch).manifest.slices)))

    def begin(self, epoch: int) -> None:
        """Start the stages of an epoch, and wait until they listen."""
        cut, stop, threads = self.cut(epoch), Stop(), []
        config = msgspec.structs.replace(cut.config, name=self.fleet.name, epoch=epoch)
        pipeline = dataclasses.replace(cut, config=config)
        for index in range(len(cut.manifest.slices)):
            name = session_name(config.base, config.name, epoch, index, 0)
            bus = self.fleet.open(Session(name, expiry_s=600))
            identity = Identity(self.fleet.topics, f"stage-{epoch}-{index}", "stage", "test")
            stage = build_stage(pipeline, index, deployed=True)
            threads.append(threading.Thread(target=run_stage, args=(bus, stage, identity, stop), daemon=True))
            threads[-1].start()
        self.running[epoch] = stop, threads
        self.fleet.until_ready(*(f"stage-{epoch}-{index}" for index in range(len(cut.manifest.slices))))

    def end(self, epoch: int) -> None:
        stop, threads = self.running.pop(epoch)
        stop.asked = True
        for thread in threads:
            thread.join(20.0)
            assert not thread.is_alive()

    def sensor(self, source: str, *options: str) -> Running:
        cache = self.fleet.cwd / f"cache-{source}"
        return self.stand.start("sensor", "--source", source, "--subjects", "7", "--cache", str(cache), *options)

    def epoch_of(self, source: str) -> int:
        status = self.fleet.statuses.get(f"sensor-{source}-subject7")
        return status.epoch if status else 0


@pytest.fixture
def generations(cuts: list[Pipeline], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Generations]:
    with Fleet(cuts[0].folder, tmp_path, request.getfixturevalue("mosquitto").address) as fleet:
        made = Generations(fleet, cuts)
        yield made
        for epoch in list(made.running):
            made.end(epoch)


class Ear:
    """Hears which epoch the windows of each source were sent to."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet, self.heard = fleet, list[tuple[str, int, int]]()
        self._bus: Bus = fleet.open(Session(f"{fleet.name}-ear", clean_start=True))
        self._bus.subscribe([fleet.topics.window("+", "+")])
        fleet.until(lambda: self.listen() or self._bus.connected, "no connection")

    def listen(self) -> None:
        for delivery in self._bus.poll(0.0):
            self._bus.acknowledge(delivery)
            message = wire.decode(delivery.payload)
            self.heard.append((self._fleet.topics.read(delivery.topic).levels[1], message.seq, message.epoch))

    def first(self, source: str) -> dict[int, int]:
        """Return the epoch to which each window of a source went first."""
        return {seq: epoch for name, seq, epoch in reversed(self.heard) if name == source}

    def last(self, source: str) -> int:
        """Return the number of the last window of a source."""
        return max((seq for name, seq, _ in self.heard if name == source), default=-1)

    def close(self) -> None:
        self.listen()
        self._bus.close(forget=True)


@pytest.mark.slow
def test_three_sensors_that_switch_at_different_windows_lose_and_double_nothing(generations: Generations) -> None:
    fleet, ear = generations.fleet, Ear(generations.fleet)

    def until(done: Callable[[], object], what: str) -> None:
        fleet.until(lambda: ear.listen() or done(), what)

    generations.begin(1)
    sensors = {source: generations.sensor(source, "--speed", "20", "--windows", str(WINDOWS)) for source in SOURCES}
    generations.plan(1, current=1)
    until(lambda: len(fleet.results) >= 5, "no results")
    generations.begin(2)
    generations.plan(1, 2, current=1)
    before = len(fleet.results)
    until(lambda: len(fleet.results) > before, "no results beside a generation that gets ready")
    sensors["chest"].process.send_signal(signal.SIGSTOP)
    # The others send windows to the older generation that chest has not sent: one may have been on its way, and it
    # sends one more before it reads the plan.
    until(lambda: min(ear.last("ankle"), ear.last("arm")) >= ear.last("chest") + 4, "the others do not go on")
    generations.plan(1, 2, current=2)
    until(lambda: generations.epoch_of("ankle") == generations.epoch_of("arm") == 2, "no switch")
    sensors["chest"].process.send_signal(signal.SIGCONT)
    until(lambda: generations.epoch_of("chest") == 2, "no switch of the last")
    generations.plan(2, current=2)
    generations.end(1)
    until(lambda: len(fleet.results) >= WINDOWS, "windows are missing")
    assert [one.wait() for one in sensors.values()] == [0, 0, 0]
    ear.close()
    assert set(fleet.results) == {("subject7", seq) for seq in range(WINDOWS)} and not fleet.doubled
    firsts = {source: ear.first(source) for source in SOURCES}
    split = [seq for seq in range(WINDOWS) if len({firsts[source].get(seq) for source in SOURCES}) > 1]
    assert {one.epoch for one in fleet.results.values()} == {1, 2}
    assert split, "all sensors switched at the same window: nothing was tested"
    assert all(fleet.results["subject7", seq].epoch == 2 for seq in split)
    said = sensors["chest"].output
    assert "reducer: bottleneck:" in said and f"sensor chest done: {WINDOWS} windows in" in said
    assert "unanswered" not in said and "Traceback" not in "".join(one.output for one in sensors.values())


@pytest.mark.slow
def test_a_sensor_of_all_sources_waits_for_the_plan_and_for_every_answer(generations: Generations) -> None:
    fleet = generations.fleet
    sensor = generations.sensor("all", "--speed", "max", "--windows", "20", "--batch", "4", "--in-flight", "2")
    fleet.until(lambda: "waiting for a plan at" in sensor.output, "it does not say what it waits for")
    generations.plan(1, current=0)
    generations.plan(1, 2, current=2)
    fleet.until(lambda: "sensor all connected" in sensor.output, "the plan is not followed")
    generations.begin(2)
    assert sensor.wait() == 0
    fleet.until_results(20)
    assert not fleet.doubled and "sensor all done: 20 windows in 15 messages" in sensor.output
    cached = sorted(path.name for path in (fleet.cwd / "cache-all").iterdir() if path.is_file())
    assert cached == sorted(generations.cuts[0].task.files.values())


@pytest.mark.slow
def test_a_sensor_that_nobody_answers_gives_up_and_says_so(generations: Generations) -> None:
    generations.plan(1, current=1)
    sensor = generations.sensor("all", "--speed", "max", "--windows", "3", "--give-up", "2")
    assert sensor.wait() == 1
    assert "sensor all ended: 3 windows in 9 messages; unanswered 3" in sensor.output


@pytest.mark.slow
def test_a_device_follows_a_plan_too(generations: Generations) -> None:
    fleet, path = generations.fleet, generations.fleet.cwd / "device"
    generations.plan(1, current=1)
    generations.begin(1)
    row = b"\t".join(b"%d" % k for k in range(23)) + b"\n"
    path.write_bytes(b"".join(b"%.3f\t" % (1_700_000_000 + k / 50) + row for k in range(50 * 60)))
    sensor = generations.stand.start(
        "sensor", "--live", str(path), "--timestamps", "--stream", "anna", "--stuck-after", "9999"
    )
    assert sensor.wait() == 0
    fleet.until_results(22)
    assert not fleet.doubled and {one.epoch for one in fleet.results.values()} == {1}
    assert fleet.counter("sensor-all-anna", "dropped") == 0 and fleet.statuses["sensor-all-anna"].epoch == 1


@pytest.mark.slow
def test_while_the_pipeline_stands_a_device_loses_its_oldest_unsent_windows_and_no_others(
    generations: Generations,
) -> None:
    """64 windows may be unanswered, 8 may wait; 150 come while the stages are away."""
    fleet, path = generations.fleet, generations.fleet.cwd / "fifo"
    os.mkfifo(path)
    generations.plan(1, current=1)
    generations.begin(1)
    options = ("--live", str(path), "--timestamps", "--stream", "anna", "--stuck-after", "9999", "--queue", "8")
    sensor = generations.stand.start("sensor", *options)
    task, stream = generations.cuts[0].task, generations.cuts[0].stream
    shadow = LiveStream(
        "anna", lay_out(generations.cuts[0].described, stream, list(task.inputs), stamped=True), 50.0, 250, 125
    )
    produced: list[int] = []
    row, rows = b"\t".join(b"%d" % k for k in range(23)), itertools.count()

    def counted() -> int:
        return len(fleet.results) + fleet.counter("sensor-all-anna", "dropped")

    with path.open("wb", buffering=0) as device:

        def play(windows: int) -> None:
            for _ in range(windows):
                lines = b"".join(b"%.3f\t%s\n" % (1_700_000_000 + next(rows) / 50, row) for _ in range(125))
                produced.extend(window.seq for _, window in shadow.feed(lines, 0.0))
                device.write(lines)

        fleet.until_ready("sensor-all-anna")  # what comes before it has the broker is dropped beyond its queue
        play(20)
        fleet.until(lambda: len(fleet.results) == len(produced), "the first windows are not answered")
        generations.end(1)
        play(150)
        fleet.until(lambda: fleet.counter("sensor-all-anna", "dropped") > 0, "nothing is dropped")
        generations.begin(1)
        fleet.until(lambda: counted() == len(produced), "not all that is not dropped is answered")
        play(10)
        fleet.until(lambda: counted() == len(produced), "it does not go on")
        assert sensor.end() == 0
    lost = sorted(set(produced) - {seq for _, seq in fleet.results})
    assert not fleet.doubled and fleet.counter("sensor-all-anna", "dropped") == len(lost) == 150 - 64 - 8
    # Which ones depends on how many lines each read brings; never one of the first, or of those that waited last.
    assert (
        produced[20] <= lost[0] and lost[-1] < produced[-10 - 8] and fleet.counter("sensor-all-anna", "unanswered") == 0
    )
    assert f"dropped windows {len(lost)}" in sensor.output and "dropped the oldest of 8 windows" in sensor.output


def test_a_watcher_needs_no_pipeline_file_and_goes_on_over_epochs(generations: Generations) -> None:
    fleet, numbers = generations.fleet, itertools.count()
    running = fleet.start("watch", "--pipeline", fleet.name, "--json", "--windows", "8")

    def say(epoch: int, stream: str = "anna") -> None:
        seq = next(numbers)
        result = Result(stream, seq, "walking", 4, 0.5, 1.0 + seq, 2.0 + seq, epoch)
        generations.stand.publish(Outgoing(fleet.topics.result(stream), encode_results([result])))

    generations.plan(1, current=1)
    fleet.until(lambda: say(1) or '"epoch":1' in running.output, "no line")
    generations.plan(1, 2, current=2)
    generations.stand.publish(Outgoing(fleet.topics.plan(), b"{", retain=True))
    say(2, PROBE + "1")
    fleet.until(lambda: say(2) or not running.alive, "it does not end")
    lines = [json.loads(line) for line in running.output.splitlines() if line.startswith("{")]
    assert running.wait() == 0 and len(lines) == 8 and {line["stream"] for line in lines} == {"anna"}
    assert {line["epoch"] for line in lines} == {1, 2} and "what came is no plan" in running.output


@pytest.mark.parametrize("command", ["sensor", "watch"])
def test_a_pipeline_file_and_a_plan_exclude_each_other(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--config", "x", "--pipeline", "har"])
    assert ended.value.code == 2 and "--pipeline: not allowed with argument --config" in capsys.readouterr().err


def test_the_plan_says_how_windows_are_reduced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sensor", "--pipeline", "har", "--reducer", "q8"]) == 2
    assert "the plan says how windows are reduced" in capsys.readouterr().err
