"""What a sensor costs: processor time a window, memory, and bytes on the wire, for several reducers.

    python bench/sensor.py
    python bench/sensor.py --pipeline DIR     another row: the folder of a pipeline with reducers of its own

The sensor is the process that `har-edge sensor` starts, on a real Mosquitto, and real stages behind it answer. CPU is
the time that the kernel accounts to it, user and system, from its start to its end, divided by its windows: Python's
own start and reading the recordings are in it. Bytes are all that it sends, MQTT headers, acknowledgements and
statuses included; raw counts each sample once, as float32.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from har_edge.cluster.cluster import Cluster
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.data.locate import find_data
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.mqtt.bus import Bus
from har_edge.mqtt.connect import ClientLibrary
from har_edge.protocol.events import StatusEvent, decode
from har_edge.protocol.status import NodeStatus, State
from har_edge.resources import find_folder
from har_edge.runtime.build import topics_of
from har_edge.runtime.slicing import prepare

REDUCERS = ("none", "q8", "paa:5+q8", "decimate:5+q8", "sod:0.5", "door:0.5", "q8+zlib")
LIMIT_MS, LIMIT_MB = 5.0, 60.0
# How long the sensors of the other sources may take to end after this one.
COMPANION_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Cost:
    """What one run of a sensor took."""

    windows: int
    cpu_ms: float
    resident_bytes: int
    peak_bytes: int
    sent_bytes: int
    raw_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="arm", help="the source of the sensor, or all (default: arm, 9 channels)")
    parser.add_argument("--subjects", default="7,8", help="streams at full speed (default: 7,8)")
    parser.add_argument("--windows", default="200", help="windows of the first stream at 20 times real time")
    parser.add_argument("--reducers", default=" ".join(REDUCERS), help="specifications, with spaces between them")
    parser.add_argument("--client", default="auto", choices=[client.value for client in ClientLibrary])
    parser.add_argument("--pipeline", type=Path, help="folder of a pipeline to measure too, with its own reducers")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-bench-")))
        folder.chmod(0o755)
        broker = stack.enter_context(start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker"))
        found, at = find_model("float"), BrokerConfig(url=broker.address.url)
        assert found.entry is not None
        kind = "real" if find_data(None) else "synthetic"
        machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        print(f"{broker.description}, {kind} windows of {args.source}, {args.client} client, {machine}")
        print(f"{'':18}{'CPU, ms a window':>22}{'resident':>10}{'peak':>8}{'bytes':>10}{'of':>7}")
        print(f"{'reducer':18}{'full speed':>12}{'20 x':>10}{'MB':>10}{'MB':>8}{'a window':>10}{'raw':>7}")
        for number, reducer in enumerate(args.reducers.split()):
            place, name = folder / f"slices-{number}", f"bench-{number}"
            reducers = dict.fromkeys(found.entry.task.inputs, reducer)
            pipeline = prepare(
                found.path, found.entry.task, place, stages=1, cuts=[], name=name, broker=at, reducers=reducers
            )
            show(reducer, pipeline, broker, args)
        if args.pipeline:
            pipeline = load_pipeline(args.pipeline)
            show(next(iter(pipeline.task.inputs.values())).reducer[:17], pipeline, broker, args)
        print(f"limits{'':12}{LIMIT_MS:12.2f}{LIMIT_MS:10.2f}{LIMIT_MB:10.1f}")


def show(name: str, pipeline: Pipeline, broker: Mosquitto, args: argparse.Namespace) -> None:
    """Measure one pipeline at both speeds and print its row."""
    first = args.subjects.split(",")[0]
    fast = measure(pipeline, broker, args, ["--subjects", args.subjects, "--speed", "max"])
    slow = measure(pipeline, broker, args, ["--subjects", first, "--speed", "20", "--windows", args.windows])
    print(
        f"{name:18}{fast.cpu_ms / fast.windows:12.2f}{slow.cpu_ms / slow.windows:10.2f}"
        f"{max(fast.resident_bytes, slow.resident_bytes) / 1e6:10.1f}{max(fast.peak_bytes, slow.peak_bytes) / 1e6:8.1f}"
        f"{fast.sent_bytes / fast.windows:10.0f}{fast.sent_bytes / fast.raw_bytes:7.3f}",
        flush=True,
    )


def measure(pipeline: Pipeline, broker: Mosquitto, args: argparse.Namespace, options: list[str]) -> Cost:
    """Run stages, the sensor, and companions with the other sources; return what the sensor took."""
    others, name = [one for one in pipeline.task.inputs if args.source not in (one, "all")], f"sensor-{args.source}"
    with Cluster(pipeline, broker.address, client=ClientLibrary(args.client)) as cluster:
        cluster.start_stages()
        cluster.start_sensors(others, options)
        began = time.time()
        sensor = cluster.start("sensor", "--source", args.source, "--name", name, *options, name=name)
        cost = follow(sensor.process, cluster.bus, pipeline, name, began)
        for other in others:
            cluster.processes.find(f"sensor-{other}").wait(COMPANION_TIMEOUT_S)
    return cost


def follow(process: subprocess.Popen[bytes], bus: Bus, pipeline: Pipeline, node: str, began: float) -> Cost:
    """Read results and statuses until the sensor has said goodbye and ended."""
    topic, resident, ended = topics_of(pipeline).status(node), 0, 0
    status: NodeStatus | None = None
    while not ended or status is None or status.state is not State.STOPPED:
        deliveries = bus.poll(0.05)
        for delivery in deliveries:
            bus.acknowledge(delivery)
            event = decode(delivery)
            if delivery.topic == topic and isinstance(event, StatusEvent) and event.status is not None:
                status = event.status if event.status.started >= began else None  # not the last word of an earlier run
        resident = resident_bytes(process.pid) or resident
        if not ended:
            ended, code, usage = os.wait4(process.pid, os.WNOHANG)
        elif not deliveries:
            break
    process.returncode = os.waitstatus_to_exitcode(code)
    assert process.returncode == 0 and status is not None, f"{node} ended with exit code {process.returncode}"
    counters = status.counters
    return Cost(
        windows=counters["windows"],
        cpu_ms=(usage.ru_utime + usage.ru_stime) * 1000,
        resident_bytes=resident,
        peak_bytes=usage.ru_maxrss * 1024,
        sent_bytes=counters["sent_bytes"],
        raw_bytes=counters["raw_bytes"],
    )


def resident_bytes(pid: int) -> int:
    """Return what a process holds in memory now; 0 where it has none any more."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return 0


if __name__ == "__main__":
    main()
