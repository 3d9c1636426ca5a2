"""One sample, and a stream of them, on several small devices against one device that holds the whole model.

    python bench/shards.py --whole build/vgg16-1 rows4=build/vgg16-4 rows8=build/vgg16-8 --broker-link 1gbit
    python bench/shards.py --whole DIR NAME=DIR ... --measure throughput --seconds 30

NAME@own=DIR sends what a stage makes through a Mosquitto on the stage's own device. Every folder is one that
`har-edge slice` made: of the whole model in one slice, and of splits or cuts of the same model, each under a name of
its own. Each gets emulated devices of its own in one test bed, and they take turns, so that one machine in one state
runs all of them. Latency is from the moment the sample leaves the driver to the moment its result is there. Bytes are
what the link of the broker's host carried, both directions. Needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles

from har_edge.cli.console import say
from har_edge.codecs.reducer import Code
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.emulation.limits import BROKER, HOST, Device, Layout, Limits, read_rate, read_size
from har_edge.emulation.machine import call
from har_edge.emulation.testbed import Testbed
from har_edge.experiments.emulation import Emulated, MeasurementLimits, run_stages
from har_edge.experiments.model_under_test import make_windows
from har_edge.experiments.own_brokers import carry_brokers

WHOLE = "whole"
OWN = "@own"  # the end of the name of a folder whose flows go through brokers on the devices
SAMPLES = 4


@dataclass(frozen=True, slots=True)
class Row:
    """One folder: seconds of every repeat, how many times the whole's median, and what a sample cost on the way."""

    name: str
    devices: int
    seconds: tuple[float, ...]
    gain: float
    broker_bytes: float
    resident_mb: tuple[float, ...]
    charged_mb: tuple[float, ...]

    @property
    def spread(self) -> str:
        first, middle, third = quantiles(self.seconds, n=4)
        return f"{middle:.4f} ({first:.4f} to {third:.4f})"


@dataclass(slots=True)
class Candidate:
    """A folder that runs on devices of its own."""

    name: str
    pipeline: Pipeline
    hosts: list[str]
    codes: Sequence[Mapping[str, Code]]
    own_brokers: bool = False
    turns: Sequence[int] = ()  # devices that take turns at each stage
    running: Emulated | None = None


def main() -> None:
    """Print a row for each folder."""
    args = _arguments()
    folders = {WHOLE: args.whole} | dict(one.split("=", 1) for one in args.folders)
    candidates, number = [], 0
    for name, folder in folders.items():
        pipeline = load_pipeline(Path(folder))
        stages = len(pipeline.manifest.slices)
        hosts = [f"device-{number + k}" for k in range(stages)]
        number += stages
        own = name.endswith(OWN)
        candidates.append(Candidate(name, pipeline, hosts, make_windows(pipeline, SAMPLES), own))
    link, broker = read_rate(args.link), read_rate(args.broker_link)
    limits = {
        host: Limits(args.cpu, link, read_size(args.memory) if args.memory and one.name != WHOLE else None)
        for one in candidates
        for host in one.hosts
    }
    layout = Layout(tuple(Device(host, limit) for host, limit in limits.items()), Limits(link_bits_per_s=broker))
    say(f"devices: {args.cpu:g} of a core, {args.link} each way; broker's host: {args.broker_link}")
    with Testbed(layout) as testbed, running(testbed, candidates):
        measure = measure_latency if args.measure == "latency" else measure_throughput
        rows = list(measure(testbed, candidates, args))
    say(f"{'folder':<16}{'devices':>8}{'seconds a sample':>28}{'gain':>7}{'broker MB':>11}{'MB most':>9}")
    for row in rows:
        most = max((*row.charged_mb, *row.resident_mb))
        figures = f"{row.gain:>7.2f}{row.broker_bytes / 1e6:>11.2f}{most:>9.0f}"
        say(f"{row.name:<16}{row.devices:>8}{row.spread:>28}{figures}")
    if args.out:
        facts = {"cpu": args.cpu, "link": args.link, "broker_link": args.broker_link, "measure": args.measure}
        Path(args.out).write_text(json.dumps({**facts, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")


@contextlib.contextmanager
def running(testbed: Testbed, candidates: Sequence[Candidate]) -> Iterator[None]:
    """Run the stages of every folder until the end of the block; all are ready when it begins."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(testbed.inside())  # a lost connection is made anew
        turns = list[Emulated]()
        for one in candidates:
            if one.own_brokers:
                one.pipeline = stack.enter_context(carry_brokers(testbed, one.pipeline, one.hosts))
            one.running = stack.enter_context(run_stages(testbed, one.pipeline, one.hosts, turns, one.turns))
        yield


def measure_latency(testbed: Testbed, candidates: Sequence[Candidate], args: argparse.Namespace) -> Iterator[Row]:
    """Ask each folder for one sample in turn; the first round only warms up."""
    taken: dict[str, list[float]] = {one.name: [] for one in candidates}
    carried: dict[str, list[int]] = {one.name: [] for one in candidates}
    for repeat in range(args.repeats + 1):
        for one in candidates:
            assert one.running is not None
            before = broker_bytes(testbed)
            seconds = one.running.ask(one.codes[repeat % SAMPLES])
            if repeat:
                taken[one.name].append(seconds)
                carried[one.name].append(broker_bytes(testbed) - before)
    yield from make_rows(testbed, candidates, taken, {name: median(sizes) for name, sizes in carried.items()})


def measure_throughput(testbed: Testbed, candidates: Sequence[Candidate], args: argparse.Namespace) -> Iterator[Row]:
    """Let each folder answer as fast as it can for some seconds, in turn."""
    taken: dict[str, list[float]] = {one.name: [] for one in candidates}
    carried: dict[str, list[float]] = {one.name: [] for one in candidates}
    for _ in range(args.repeats):
        for one in candidates:
            assert one.running is not None
            pace = MeasurementLimits(args.in_flight * len(one.hosts), args.seconds / 3, args.seconds, args.windows)
            before, began = broker_bytes(testbed), time.monotonic()
            measured = one.running.measure(one.codes, pace)
            share = measured.seconds / (time.monotonic() - began)
            one.running.settle()
            taken[one.name].append(measured.period_s)
            carried[one.name].append((broker_bytes(testbed) - before) * share / measured.windows)
    yield from make_rows(testbed, candidates, taken, {name: median(sizes) for name, sizes in carried.items()})


def make_rows(
    testbed: Testbed,
    candidates: Sequence[Candidate],
    taken: Mapping[str, Sequence[float]],
    carried: Mapping[str, float],
) -> Iterator[Row]:
    """Put the figures of each folder together; the gain is the median of ratios within one round."""
    for one in candidates:
        assert one.running is not None
        gains = [whole / seconds for whole, seconds in zip(taken[WHOLE], taken[one.name], strict=True)]
        processes = one.running.cluster.processes
        resident = [processes.memory_bytes(name, "VmHWM") or 0 for name in processes.running]
        yield Row(
            one.name,
            len(one.hosts),
            tuple(taken[one.name]),
            median(gains),
            carried[one.name],
            tuple(size / 1e6 for size in resident),
            tuple(size / 1e6 for size in charged_bytes(testbed, one.hosts)),
        )


def charged_bytes(testbed: Testbed, hosts: Sequence[str]) -> Iterator[int]:
    """Return the most that the memory cgroup of each device was charged; nothing where memory has no limit."""
    for host in hosts:
        for group in testbed.emulation.groups_of(host):
            for name in ("memory.max_usage_in_bytes", "memory.peak"):
                if (group / name).exists():
                    yield int((group / name).read_text())


def broker_bytes(testbed: Testbed) -> int:
    """Return what the link of the broker's host has carried, both directions."""
    emulation = testbed.emulation
    said = call("ip", "-n", emulation.namespace(HOST), "-s", "-j", "link", "show", emulation.host(BROKER).port)
    stats = json.loads(said)[0]["stats64"]
    return int(stats["rx"]["bytes"]) + int(stats["tx"]["bytes"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="NAME=DIR", help="folders of splits or cuts")
    parser.add_argument("--whole", required=True, metavar="DIR", help="folder of the whole model in one slice")
    parser.add_argument("--measure", choices=("latency", "throughput"), default="latency")
    parser.add_argument("--cpu", type=float, default=0.1, metavar="CORES")
    parser.add_argument("--link", default="94mbit")
    parser.add_argument("--broker-link", default="1gbit")
    parser.add_argument("--memory", metavar="SIZE", help="limit of each device but that of the whole (default: none)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn (throughput)")
    parser.add_argument("--windows", type=int, default=8, help="at least so many in each turn (throughput)")
    parser.add_argument("--in-flight", type=int, default=3, help="samples under way a device (throughput)")
    parser.add_argument("--out", metavar="FILE", help="write all figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
