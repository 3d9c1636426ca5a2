"""Faults one after the other under steady load: is every window answered, once and right, and how long is the gap?

    python bench/faults.py [--faults 50] [--seed 0] [--nodes 4] [--json FILE] [--logs FOLDER] [--bed]
    python bench/faults.py --nodes 5 --coordinator "--shards --objective latency"

A private Mosquitto with brokers/mosquitto.conf, a coordinator, nodes (each with a cache of its own), a sensor a source
that replays two subjects, and a live device at 50 Hz: each a process. Faults are drawn with the seed. `noticed` is the
time until the first plan in which the lost node holds nothing (after a join: in which it holds something); `gap` the
longest time between two results of a replayed stream around the fault, without the usual spacing. "came twice" counts
results that reached the sink again, which QoS 1 allows; "doubled" those that it let through. "different" are answers
without the class and the confidence, to the last bit, of the whole model run offline. With --bed every process has a
network of its own (as root), and cables are pulled, too. Real recordings where $HAR_EDGE_DATA has them.

Exit codes: 1 when a window is lost, doubled or different, or when the pipeline has not recovered from a fault within a
minute; else 2 when a wanted limit is missed, by the median or only by the longest of a kind of fault; else 0.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from har_edge.cluster.cluster import CACHE
from har_edge.data.locate import find_data
from har_edge.errors import NodeError
from har_edge.experiments.cluster import RecordedCluster
from har_edge.experiments.environment import Environment, emulated_environment, local_environment
from har_edge.experiments.faults import FaultInjector, FaultKind, Outcome
from har_edge.experiments.load import AnswerCheck, LineDevice, Load
from har_edge.experiments.reference import Reference, prepare_reference
from har_edge.mqtt.connect import ClientLibrary, choose_client
from har_edge.protocol.topics import COORDINATOR

MODEL = "int8"
STAGES = 3
SUBJECTS = ("subject7", "subject8")
LIVE = "live"
# A window every half second of recording instead of every 2.5 s: the same model, more windows of the same data.
HOP = 25
SPEED = 8.0
# Windows of the live device that may wait, so that an outage makes its sensor drop some.
QUEUE = 2
# What was asked for: (noticed, gap) in seconds at most.
WANTED: dict[FaultKind, tuple[float | None, float | None]] = {
    FaultKind.CRASH: (0.5, 1.5),
    FaultKind.CRASH_COLD: (0.5, 3.0),
    FaultKind.HANG: (2.0, None),
    FaultKind.LEAVE: (None, 0.5),
    FaultKind.JOIN: (None, 0.5),
    FaultKind.REPLAN: (None, 0.5),
}
EXIT_WRONG, EXIT_SLOW = 1, 2
HEAD = ("fault", "count", "noticed s", "max", "wanted", "gap s", "max", "wanted", "resent", "came twice")
WIDTHS = (24, 6, 10, 7, 8, 7, 7, 8, 7, 10)


@dataclass(frozen=True, slots=True)
class Report:
    """What is printed and written: figures of each fault, verdicts on the replayed and the live windows."""

    faults: tuple[Outcome, ...]
    replayed: AnswerCheck
    live: AnswerCheck
    live_dropped: int
    repeated: int
    problem: str

    @property
    def good(self) -> bool:
        return self.replayed.good and self.live.good and not self.problem

    @property
    def missed(self) -> list[str]:
        """What took longer than was asked for, by kind of fault."""
        missed = []
        for kind, limits in WANTED.items():
            of_kind = [one for one in self.faults if one.kind is kind]
            noticed = [one.noticed_s for one in of_kind if one.noticed_s is not None]
            for what, values, wanted in zip(
                ("noticed", "gap"), (noticed, [one.gap_s for one in of_kind]), limits, strict=True
            ):
                late = [value for value in values if wanted is not None and value > wanted]
                if late:
                    figures = f"{len(late)} of {len(values)} above {wanted:g} s, the longest {max(late):.2f} s, "
                    missed.append(f"{kind.value}, {what}: {figures}the median {statistics.median(values):.2f} s")
        return missed


def main() -> int:
    """Print a table by kind of fault; return the exit code, as above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--nodes", type=int, default=4, metavar="N")
    parser.add_argument(
        "--kinds", default=",".join(FaultKind.__members__), metavar="LIST", help="only these (default: %(default)s)"
    )
    parser.add_argument(
        "--coordinator",
        default=f"--stages {STAGES}",
        metavar="WORDS",
        help="options of the coordinator that say how the model is cut: --shards, or --split and a split (default: "
        "%(default)s); without --stages, REPLAN is left out",
    )
    parser.add_argument("--client", default="auto", choices=("auto", "paho", "native"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="keep what every process said")
    parser.add_argument("--bed", action="store_true", help="emulated devices with cables, as root")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = args.logs or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-faults-")))
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o755)
        names = [f"device-{number}" for number in range(1, args.nodes + 1)]
        environment = stack.enter_context(
            emulated_environment(folder, names) if args.bed else local_environment(folder)
        )
        where = find_data(None)
        reference = prepare_reference(MODEL, folder, where, SUBJECTS, stages=STAGES, hop=HOP, name="faults")
        said = describe(args, environment, reference)
        print(said, flush=True)
        report = run(args, environment, folder, names, reference)
    show(report)
    if args.json:
        args.json.write_bytes(as_json(report, said) + b"\n")
    return exit_code(report)


def exit_code(report: Report) -> int:
    """Return how the bench ends: with 1 for wrong, else 2 for slow, else 0."""
    if not report.good:
        return EXIT_WRONG
    return EXIT_SLOW if report.missed else 0


def describe(args: argparse.Namespace, environment: Environment, reference: Reference) -> str:
    """Say what the figures rest on."""
    client = choose_client(ClientLibrary(args.client)).value
    return (
        f"{environment.broker.description} (persistence on), {MODEL}, coordinator {args.coordinator}, on "
        f"{args.nodes} nodes{', emulated devices with cables' if args.bed else ''}; {reference.data} windows of "
        f"{', '.join(SUBJECTS)}, {SPEED / reference.spacing_s:g} a second and stream; MQTT client {client}, "
        f"{os.cpu_count()} cores (load {os.getloadavg()[0]:.1f} when it began), {platform.machine()}, "
        f"Python {platform.python_version()}, seed {args.seed}"
    )


def run(
    args: argparse.Namespace, environment: Environment, folder: Path, names: Sequence[str], reference: Reference
) -> Report:
    """Do the faults, wait for the last results, and compare them with the whole model."""
    pipeline = reference.pipeline
    made = reference.windows()
    expected = reference.answers(made)
    each = min(sum(window.stream == stream for window in made) for stream in reference.streams)
    coordinator = ["coordinator", "--model", str(reference.model), *shlex.split(args.coordinator)]
    variables = {CACHE: str(folder / "caches" / "others")}
    client = choose_client(ClientLibrary(args.client))
    with RecordedCluster(pipeline, environment, folder, client=client, variables=variables) as cluster:
        cluster.start(*coordinator, name=COORDINATOR)
        for name in names:
            cluster.start_node(name)
        cluster.until(cluster.recorder.is_settled, "the model is not deployed", 120)
        options = ["--subjects", ",".join(SUBJECTS), "--speed", str(SPEED), "--no-notice"]
        load = Load(cluster, list(pipeline.task.inputs), SUBJECTS, each, reference.spacing_s / SPEED, options)
        device = LineDevice(cluster, reference.recordings[0], reference.live(LIVE), LIVE, queue=QUEUE)
        injector = FaultInjector(cluster, load, names, coordinator, random.Random(args.seed))
        environment.broker.save()
        load.start()
        device.start()
        kinds = [FaultKind[name] for name in args.kinds.split(",")]
        if "--stages" not in coordinator:  # it is another number of stages that cuts anew
            kinds = [kind for kind in kinds if kind is not FaultKind.REPLAN]
        problem = hurt(injector, device, args.faults, kinds)
        checks = load.check_answers(expected), device.check_answers(reference.answers(device.windows))
        return Report(tuple(injector.outcomes), *checks, device.dropped, cluster.recorder.repeated, problem)


def hurt(injector: FaultInjector, device: LineDevice, faults: int, kinds: Sequence[FaultKind]) -> str:
    """Do the faults and let the load come to its end; return what went wrong, empty where nothing did."""
    started = time.monotonic()
    try:
        for number in range(1, faults + 1):
            one = injector.run(injector.choose(kinds))
            noticed = "" if one.noticed_s is None else f"noticed {one.noticed_s:.2f} s, "
            figures = f"{noticed}gap {one.gap_s:.2f} s, {one.resent} resent, {one.repeated} came twice"
            print(
                f"{time.monotonic() - started:6.0f} s {number:3} {one.kind.value}: {figures} {one.detail}", flush=True
            )
        device.finish(60)
        injector.load.finish(300)
    except NodeError as error:
        return str(error)
    return ""


def show(report: Report) -> None:
    """Print a row a kind of fault, and the verdicts."""
    print(_line(HEAD))
    for kind in FaultKind:
        of_kind = [one for one in report.faults if one.kind is kind]
        if of_kind:
            noticed = [one.noticed_s for one in of_kind if one.noticed_s is not None]
            figures = zip((noticed, [one.gap_s for one in of_kind]), WANTED.get(kind, (None, None)), strict=True)
            cells = [cell for values, wanted in figures for cell in _figures(values, wanted)]
            sums = str(sum(one.resent for one in of_kind)), str(sum(one.repeated for one in of_kind))
            print(_line((kind.value, str(len(of_kind)), *cells, *sums)))
    for name, check in (("replayed", report.replayed), ("live", report.live)):
        print(
            f"{name}: {check.windows} windows, {check.answered} answered, {check.lost} lost, {check.doubled} "
            f"doubled, {check.different} different, {check.strange} nobody sent"
        )
        if check.examples:
            print(f"{name}: {', '.join(check.examples)}")
    print(
        f"live: {report.live_dropped} windows dropped by the sensor's own count; {report.repeated} results came twice"
    )
    if report.problem:
        print(f"NOT RECOVERED: {report.problem}")
    for line in report.missed:
        print(f"TOO LONG: {line}")
    print("every window answered once, as the whole model answers it" if report.good else "NOT every window is right")


def _figures(values: Sequence[float], wanted: float | None) -> tuple[str, str, str]:
    """Return median, maximum, and what was wanted, with a mark where the maximum is above it."""
    if not values:
        return "-", "-", "-"
    mark = "" if wanted is None else f"<={wanted:g}{'' if max(values) <= wanted else ' NO'}"
    return f"{statistics.median(values):.2f}", f"{max(values):.2f}", mark or "-"


def _line(cells: Sequence[str]) -> str:
    return " ".join(f"{cell:<{width}}" for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def as_json(report: Report, said: str) -> bytes:
    """Return the report and what it rests on."""
    return msgspec.json.format(msgspec.json.encode({"rests_on": said, "good": report.good, "report": report}), indent=1)


if __name__ == "__main__":
    sys.exit(main())
