"""Which windows are lost on which broker, and does somebody say so? One row a broker and case, as Markdown.

    python bench/broker_matrix.py [--brokers mosquitto,mosquitto-debian,embedded] [--cases plain,kill] [--out FILE]

The int8 model in three stages; each stage, sensor and node is a process. Cases: `plain`; `kill`, stage 1 by kill -9 and
a new one a second later; `takeover`, a second stage 1 beside the first; `late`, stage 1 starts 4 s after the sensors;
`gap`, the sensors of three sources start 2 s apart; `coordinator`, three nodes that follow a plan, one killed;
`overload`, eight people with sensors of their own, stage 1 away for 14 s; `gateways`, eight gateways of three processes
(one a source), each with four streams, as fast as they can; `whole`, the same with one process a gateway.

Sent is what was to be sent; "said" are the lost windows that sensors or a watcher name; "silent" are all others;
"resent" are windows that sensors sent again. Exit code 1 when a window is lost silently or doubled. Recordings are real
where $HAR_EDGE_DATA has them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launchers import Kind, Launched, NotInstalled, launch

from har_edge.cluster.cluster import Arrival, Cluster
from har_edge.cluster.processes import Processes
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.data.recording import Recording
from har_edge.data.synthetic import synthesize
from har_edge.errors import HarEdgeError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import ClientLibrary, MqttVersion, open_bus
from har_edge.runtime.build import topics_of
from har_edge.runtime.slicing import prepare

DEADLINE_S = 200.0
READY_S = 60.0
QUIET_S = 3.0
OLD = frozenset({Kind.RABBITMQ, Kind.AEDES, Kind.CLUSTER})  # these speak MQTT 3.1.1 only
PACED = ("--subjects", "7", "--windows", "120", "--speed", "20")
FAST = ("--subjects", "7", "--windows", "120", "--speed", "max")
STREAMS = 4  # of a gateway
NOT_PROMISED = {
    (Kind.RABBITMQ, "coordinator"): "RabbitMQ 3.10 retains nothing for wildcards (docs/reference/brokers.md)"
}


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one case on one broker; `rate` in windows/s from the first result to the last."""

    sent: int
    answered: int
    said: int
    doubled: int
    resent: int
    rate: float
    seconds: float

    @property
    def lost(self) -> int:
        return self.sent - self.answered

    @property
    def silent(self) -> int:
        return max(0, self.lost - self.said)


class BrokerScenario(Cluster):
    """A pipeline whose processes are at the nodes of a broker, and the windows that were answered."""

    def __init__(self, broker: Launched, folder: Path, pipeline: Pipeline, protocol: str) -> None:
        self.launched, self.protocol = broker, protocol
        self.seen: set[tuple[str, int]] = set()
        self.times: list[float] = []
        self.doubled, self.gateways, self.windows = 0, 8, 100
        address, session = broker.addresses[-1], Session("matrix-watch", expiry_s=600, receive_max=60000)
        bus = open_bus(address, session, ClientLibrary.AUTO, MqttVersion(protocol))
        super().__init__(pipeline, address, described=broker.kind.value, folder=folder, bus=bus)
        # Gateways are processes of this file; they end with the others.
        script = (sys.executable, str(Path(__file__).resolve()))
        self.scripts = Processes(program=script, running=self.processes.running)

    def at(self, number: int) -> list[str]:
        """Return the options that lead to one of the nodes of the broker."""
        nodes = self.launched.addresses
        return ["--broker", nodes[number % len(nodes)].url, "--protocol", self.protocol]

    def stage(self, index: int) -> None:
        self.start("stage", "--index", str(index), *self.at(0), name=f"stage-{index}")

    def sensors(self, *options: str, sources: tuple[str, ...] = ("all",), apart_s: float = 0.0) -> None:
        for number, source in enumerate(sources):
            if number:
                self.run_for(apart_s)
            name = f"sensor-{source}"
            self.start("sensor", "--source", source, "--name", name, *options, *self.at(1), name=name)

    def gateway(self, name: str, *words: str, at: int) -> None:
        self.scripts.start(name, ["--gateway", name, *words, *self.at(at)], log=self.logs_of(name))

    def logs_of(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{name}.log"

    def poll(self, timeout_s: float = 0.05) -> list[Arrival]:
        arrivals = super().poll(timeout_s)
        for result in (arrival.result for arrival in arrivals):
            self.doubled += (result.stream, result.seq) in self.seen
            self.seen.add((result.stream, result.seq))
            self.times.append(time.monotonic())
        return arrivals

    @property
    def resends(self) -> int:
        """How many windows sensors sent again, as their last statuses say."""
        return self.view.sum_of("resent", "sensor")

    def settle(self) -> None:
        """Wait until the sensors have ended, then until nothing comes any more."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline and any(name.startswith("sensor") for name in self.processes.alive()):
            self.poll()
        quiet = time.monotonic()
        while time.monotonic() - max(quiet, *self.times[-1:]) < QUIET_S:
            self.poll()

    def close(self) -> None:
        self.stop()
        self.scripts.stop()
        self.bus.close(forget=True)


def plain(scenario: BrokerScenario) -> int:
    begin(scenario)
    scenario.sensors(*FAST)
    return 120


def kill(scenario: BrokerScenario) -> int:
    begin(scenario)
    scenario.sensors(*PACED)
    scenario.run_for(5.0)
    scenario.kill("stage-1")
    scenario.run_for(1.0)
    scenario.stage(1)
    return 120


def takeover(scenario: BrokerScenario) -> int:
    begin(scenario)
    scenario.sensors(*PACED)
    scenario.run_for(5.0)
    running = scenario.processes.running
    running["older-stage-1"] = running.pop("stage-1")
    scenario.stage(1)
    return 120


def late(scenario: BrokerScenario) -> int:
    scenario.stage(0)
    scenario.stage(2)
    scenario.wait_ready(["stage-2"], READY_S)
    scenario.sensors(*PACED)
    scenario.run_for(4.0)
    scenario.stage(1)
    return 120


def gap(scenario: BrokerScenario) -> int:
    begin(scenario)
    scenario.sensors(*FAST, sources=("chest", "ankle", "arm"), apart_s=2.0)
    return 120


def coordinator(scenario: BrokerScenario) -> int:
    name = scenario.pipeline.config.name
    there = ["--pipeline", name, *scenario.at(0)]
    scenario.start("coordinator", *there, "--model", "int8", "--stages", "3", name="coordinator")
    for node in ("a", "b", "c"):
        scenario.start("node", *there, "--name", node, "--cache", str(scenario.folder / f"cache-{node}"), name=node)
    sensor = ["--pipeline", name, "--name", "sensor-all", "--cache", str(scenario.folder / "cache-sensor")]
    scenario.start("sensor", *sensor, *PACED, *scenario.at(1), name="sensor-all")
    deadline = time.monotonic() + 90.0
    while len(scenario.seen) < 20 and time.monotonic() < deadline:
        scenario.poll()
    if len(scenario.seen) < 20:
        raise RuntimeError(f"{len(scenario.seen)} windows were answered within 90 s of the coordinator's start")
    scenario.kill("b")
    return 120


def overload(scenario: BrokerScenario) -> int:
    begin(scenario)
    for person in range(1, 9):
        name = f"sensor-{person}"
        options = ("--subjects", str(person), "--windows", "100", "--speed", "40", "--name", name)
        scenario.start("sensor", *options, *scenario.at(0), name=name)
    while len(scenario.seen) < 20:
        scenario.poll()
    scenario.kill("stage-1")
    scenario.run_for(14.0)
    scenario.stage(1)
    return 800


def gateways(scenario: BrokerScenario, *sources: str) -> int:
    """Start gateways with a process for each source, as fast as they can; return how many windows they send."""
    begin(scenario)
    for number in range(scenario.gateways):
        for source in sources:
            name, limit = f"sensor-{number}-{source}", str(scenario.windows)
            folder = str(scenario.pipeline.folder)
            scenario.gateway(name, folder, source, str(number), limit, at=number)
    return scenario.gateways * STREAMS * scenario.windows


def begin(scenario: BrokerScenario) -> None:
    for index in range(3):
        scenario.stage(index)
    scenario.wait_ready(["stage-0", "stage-1", "stage-2"], READY_S)


def run_gateway(argv: list[str]) -> int:
    """Send four streams of real or synthetic windows as one process of a gateway does."""
    from har_edge.cli import built_sensor
    from har_edge.config.pipeline import load_pipeline
    from har_edge.runtime.build import batches_of, build_sensor
    from har_edge.runtime.sensor.retransmission import Retransmitter
    from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer
    from har_edge.runtime.sensor.send_policy import SendPolicy, SensorLoop
    from har_edge.runtime.status_publisher import Identity
    from har_edge.runtime.stop import Stop

    name, folder, source, number, windows, _, url, _, protocol = argv
    pipeline, stop = load_pipeline(Path(folder)), Stop().catch_signals()
    sources = list(pipeline.task.inputs) if source == "all" else [source]
    where = find_data(None)
    names = [f"subject{k + 1}" for k in range(STREAMS)]
    recordings: list[Recording] = list(read_recordings(pipeline.stream, where, names) if where else synthesize(names))
    rows = pipeline.task.stream.length + pipeline.task.stream.hop * (int(windows) - 1)
    recordings = [lengthened(one, f"g{number}-{k}", rows) for k, one in enumerate(recordings)]
    sensor, topics = build_sensor(pipeline, sources), topics_of(pipeline)
    flow = Retransmitter(sensor, RetransmitBuffer(sources, time.time()), topics, run=built_sensor.new_run())
    flow.expect([one.stream for one in recordings])
    identity = Identity(topics, name, "sensor", f"{topics.base}.{topics.pipeline}.{name}")
    bus = open_bus(parse(url), identity.session(expiry_s=300), ClientLibrary.AUTO, MqttVersion(protocol))
    policy = SendPolicy(in_flight=64, real_time=False, total=pipeline.config.join.capacity // 2)
    loop = SensorLoop(bus, sensor, identity, policy, flow)
    loop.run(batches_of(pipeline, recordings, speed=None, batch=1, limit=int(windows)), stop)
    return 1 if sensor.counters.unanswered else 0


def lengthened(recording: Recording, stream: str, rows: int) -> Recording:
    """Return a recording of at least so many rows, by repeating it, under another name."""
    import numpy as np

    times = -(-rows // len(recording))
    samples = {source: np.tile(values, (times, 1)) for source, values in recording.samples.items()}
    return dataclasses.replace(
        recording, stream=stream, samples=samples, labels=np.tile(recording.labels, times), starts=(0,)
    )


def parse(url: str) -> Address:
    from har_edge.mqtt.address import read_address

    return read_address(url)


Case = Callable[[BrokerScenario], int]
CASES: dict[str, Case] = {
    "plain": plain,
    "kill": kill,
    "takeover": takeover,
    "late": late,
    "gap": gap,
    "coordinator": coordinator,
    "overload": overload,
    "gateways": lambda scenario: gateways(scenario, "chest", "ankle", "arm"),
    "whole": lambda scenario: gateways(scenario, "all"),
}
HEAD = (
    "| broker | case | sent | answered | lost | said | silent | doubled | resent | windows/s | s |\n"
    + "|---" * 11
    + "|"
)


def measure(kind: Kind, case: str, args: argparse.Namespace) -> Row:
    """Run one case on a broker of its own."""
    with contextlib.ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"har-edge-matrix-{kind.value}-{case}-", dir=args.keep))
        if args.keep is None:
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        broker = stack.enter_context(launch(kind, folder / "broker"))
        found = find_model("int8")
        assert found.entry is not None
        at, name = BrokerConfig(url=broker.address.url), f"matrix-{case}"
        pipeline = prepare(found.path, found.entry.task, folder / "slices", stages=3, name=name, broker=at)
        scenario = BrokerScenario(broker, folder, pipeline, "3.1.1" if kind in OLD else "5")
        scenario.gateways, scenario.windows = args.gateways, args.windows
        began = time.monotonic()
        try:
            sent = CASES[case](scenario)
            scenario.settle()
            seconds = time.monotonic() - began
        finally:
            scenario.close()
        scenario.account.close()
        took = scenario.times[-1] - scenario.times[0] if len(scenario.times) > 1 else 0.0
        rate = len(scenario.seen) / took if took else 0.0
        return Row(
            sent,
            len(scenario.seen),
            scenario.account.lost(time.time()),
            scenario.doubled,
            scenario.resends,
            rate,
            seconds,
        )


def rows(kinds: list[Kind], cases: list[str], args: argparse.Namespace) -> Iterator[tuple[str, Row | None]]:
    """Yield a line of Markdown for each broker and case."""
    for kind in kinds:
        for case in cases:
            if (kind, case) in NOT_PROMISED:
                yield f"| {kind.value} | {case} | not promised: {NOT_PROMISED[kind, case]} ||||||||||", None
                continue
            try:
                row = measure(kind, case, args)
            except NotInstalled as error:
                yield f"| {kind.value} | all | not installed: {error} ||||||||||", None
                break
            except (RuntimeError, HarEdgeError) as error:
                yield f"| {kind.value} | {case} | failed: {error} ||||||||||", Row(1, 0, 0, 0, 0, 0.0, 0.0)
                continue
            figures = (
                f"{row.sent} | {row.answered} | {row.lost} | {row.said} | {row.silent} | {row.doubled} | {row.resent}"
            )
            yield f"| {kind.value} | {case} | {figures} | {row.rate:.0f} | {row.seconds:.0f} |", row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--brokers", default=",".join(kind.value for kind in Kind), help="only these")
    parser.add_argument("--cases", default=",".join(CASES), help="only these")
    parser.add_argument("--gateways", type=int, default=8, metavar="N", help="of the last two cases (default: 8)")
    parser.add_argument("--windows", type=int, default=100, metavar="N", help="of each stream there (default: 100)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep what every process said")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the table there, too")
    args = parser.parse_args()
    kinds = [Kind(name) for name in args.brokers.split(",")]
    data = "real" if find_data(None) else "synthetic"
    said = f"int8 model in three stages, {data} windows, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines, bad = [said, "", HEAD], False
    print("\n".join(lines), flush=True)
    for line, row in rows(kinds, args.cases.split(","), args):
        print(line, flush=True)
        lines.append(line)
        bad |= row is not None and bool(row.silent or row.doubled)
    if args.out:
        args.out.write_text("\n".join(lines) + "\n")
    return 1 if bad else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--gateway"]:
        sys.exit(run_gateway(sys.argv[2:]))
    sys.exit(main())
