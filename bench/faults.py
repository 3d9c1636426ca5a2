"""Faults one after the other under steady load: is every window answered, once and right, and how long is the gap?

    python bench/faults.py [--faults 50] [--seed 0] [--nodes 4] [--json FILE] [--logs FOLDER] [--bed]

A private Mosquitto with brokers/mosquitto.conf, a coordinator, nodes (each with a cache of its own), a sensor a source
that replays two subjects, and a live device at 50 Hz: each a process. Faults are drawn with the seed. `noticed` is the
time until the first plan in which the lost node holds nothing (after a join: in which it holds something); `gap` the
longest time between two results of a replayed stream around the fault, without the usual spacing. "came twice" counts
results that reached the sink again, which QoS 1 allows; "doubled" those that it let through. "different" are answers
without the class and the confidence, to the last bit, of the whole model run offline. With --bed every process has a
network of its own (as root), and cables are pulled, too. Ends with 1 when a window is lost, doubled or different, or
when the pipeline has not recovered from a fault within a minute. Real recordings where $HAR_EDGE_DATA has them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from har_edge.errors import NodeError
from har_edge.evaluation.composition import load_whole
from har_edge.evaluation.prediction import Classifier, Prediction, predict_recordings
from har_edge.inference.interpreter import Interpreter
from har_edge.messaging.mqtt import Client, choose_client
from har_edge.nodes.arena import COORDINATOR, Arena, MortalBroker, Spawn, spawn_here
from har_edge.nodes.build import topics_of
from har_edge.nodes.cutting import prepare
from har_edge.nodes.faults import Drill, Kind, Outcome
from har_edge.nodes.load import Answers, Device, Load, Verdict
from har_edge.planning.catalog import find_model
from har_edge.planning.pipeline import Pipeline
from har_edge.streams.files import read_recordings
from har_edge.streams.live import LiveStream, lay_out
from har_edge.streams.locate import find_data
from har_edge.streams.recording import Recording
from har_edge.streams.synthetic import synthesize
from har_edge.testbed.limits import BROKER, HOST, Limits, equal_devices
from har_edge.testbed.testbed import Testbed

MODEL = "int8"
STAGES = 3
SUBJECTS = ("subject7", "subject8")
LIVE = "live"
# A window every half second of recording instead of every 2.5 s: the same model, more windows of the same data.
HOP = 25
SPEED = 4.0
# Windows of the live device that may wait, so that an outage makes its sensor drop some.
QUEUE = 2
# What was asked for: (noticed, gap) in seconds at most.
WANTED: dict[Kind, tuple[float | None, float | None]] = {
    Kind.CRASH: (0.5, 1.5),
    Kind.CRASH_COLD: (0.5, 3.0),
    Kind.HANG: (2.0, None),
    Kind.LEAVE: (None, 0.5),
    Kind.JOIN: (None, 0.5),
}
HEAD = ("fault", "count", "noticed s", "max", "wanted", "gap s", "max", "wanted", "resent", "came twice")
WIDTHS = (24, 6, 10, 7, 8, 7, 7, 8, 7, 10)


@dataclass(frozen=True, slots=True)
class Ground:
    """Where it all runs: the broker, how a process starts, and how a cable is pulled, where there are cables."""

    broker: MortalBroker
    spawn: Spawn
    bed: Testbed | None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is deployed and replayed, and what the whole model answers to it."""

    pipeline: Pipeline
    recordings: Sequence[Recording]
    data: str
    whole: Interpreter
    expected: Answers

    @property
    def windows(self) -> int:
        """How many windows every stream has."""
        streams = [stream for stream, _ in self.expected]
        return min(streams.count(stream) for stream in set(streams))

    def classifier(self) -> Classifier:
        return Classifier(self.whole.run, self.whole.inputs, self.pipeline.task)

    def answers(self, predictions: Iterable[Prediction]) -> Answers:
        """Return label and confidence of each prediction, as a result gives them."""
        task = self.pipeline.task
        output = next(port for port in self.whole.outputs if port.name == task.output)
        return {
            (one.stream, one.seq): (task.label_ids[one.answer], float(output.real(one.scores)[one.answer]))
            for one in predictions
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What is printed and written: figures of each fault, verdicts on the replayed and the live windows."""

    faults: tuple[Outcome, ...]
    replayed: Verdict
    live: Verdict
    live_dropped: int
    repeated: int
    problem: str

    @property
    def good(self) -> bool:
        return self.replayed.good and self.live.good and not self.problem


def main() -> int:
    """Print a table by kind of fault; 1 when a window is lost, doubled or different."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="S")
    parser.add_argument("--nodes", type=int, default=4, metavar="N")
    parser.add_argument(
        "--kinds", default=",".join(Kind.__members__), metavar="LIST", help="only these (default: %(default)s)"
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
        ground = stack.enter_context(open_ground(folder, args.nodes if args.bed else 0))
        subject = prepare_load(folder)
        said = (
            f"{ground.broker.description} (persistence on), {MODEL} in {STAGES} stages on {args.nodes} nodes, "
            f"{subject.data} windows of {', '.join(SUBJECTS)}, {SPEED * 50 / HOP:g} a second and stream, MQTT client "
            f"{choose_client(Client(args.client)).value}, {os.cpu_count()} cores ({os.getloadavg()[0]:.1f} processes "
            f"ran when it began), {platform.machine()}, Python {platform.python_version()}, seed {args.seed}"
            + (", emulated devices with cables" if args.bed else "")
        )
        print(said, flush=True)
        report = run(args, ground, folder, names, subject)
    show(report)
    if args.json:
        args.json.write_bytes(as_json(report, said) + b"\n")
    return 0 if report.good else 1


@contextlib.contextmanager
def open_ground(folder: Path, devices: int) -> Iterator[Ground]:
    """Start the broker: on this machine, or among `devices` emulated ones; this thread is then in their network."""
    if not devices:
        yield Ground(MortalBroker(folder / "broker"), spawn_here, None)
        return
    with Testbed(equal_devices(devices, Limits())) as bed, bed.inside():
        place = bed.bed.place(BROKER)

        def spawn(
            name: str, command: Sequence[str], log: Path, environment: Mapping[str, str]
        ) -> subprocess.Popen[bytes]:
            where = name if name in {device.name for device in bed.devices} else HOST
            with log.open("ab") as file:
                return bed.run(where, command, stdout=file, stderr=file, environment=environment)

        # One of our own beside that of the bed, to be killed and to come back.
        broker = MortalBroker(folder / "broker", place.address, lambda: bed.inside(BROKER))
        yield Ground(broker, spawn, bed)


def prepare_load(folder: Path) -> Subject:
    """Write the pipeline's files, with a shorter hop, and run the whole model over every window."""
    found = find_model(MODEL)
    assert found.entry is not None
    task = found.entry.task
    task = msgspec.structs.replace(task, stream=msgspec.structs.replace(task.stream, hop=HOP))
    pipeline = prepare(found.path, task, folder / "slices", stages=STAGES, name="faults")
    where = find_data(None)
    recordings = read_recordings(pipeline.stream, where, SUBJECTS) if where else synthesize(SUBJECTS)
    subject = Subject(pipeline, recordings, "real" if where else "synthetic", load_whole(found.path, task), {})
    expected = subject.answers(predict_recordings(subject.classifier(), recordings, task))
    return dataclasses.replace(subject, expected=expected)


def run(args: argparse.Namespace, ground: Ground, folder: Path, names: Sequence[str], subject: Subject) -> Report:
    """Do the faults, wait for the last results, and compare them with the whole model."""
    pipeline = subject.pipeline
    topics, task = topics_of(pipeline), pipeline.task
    coordinator = ["coordinator", "--config", str(pipeline.folder), "--stages", str(STAGES)]
    with Arena(topics, ground.broker, folder, ground.spawn, choose_client(Client(args.client))) as arena:
        arena.start(COORDINATOR, *coordinator)
        for name in names:
            arena.start_node(name)
        arena.until(arena.record.is_settled, "the model is not deployed", 120)
        options = ["--subjects", ",".join(SUBJECTS), "--speed", str(SPEED), "--no-notice"]
        spacing_s = HOP / (task.stream.rate_hz * SPEED)
        load = Load(arena, list(task.inputs), SUBJECTS, subject.windows, spacing_s, options)
        layout = lay_out(pipeline.described, pipeline.stream, list(task.inputs), stamped=True)
        shadow = LiveStream(LIVE, layout, task.stream.rate_hz, task.stream.length, task.stream.hop)
        device = Device(arena, subject.recordings[0], shadow, LIVE, queue=QUEUE)
        cables = (ground.bed.cut, ground.bed.mend) if ground.bed else (None, None)
        drill = Drill(arena, load, names, coordinator, random.Random(args.seed), *cables)
        load.start()
        device.start()
        problem = hurt(drill, device, args.faults, [Kind[name] for name in args.kinds.split(",")])
        live = subject.answers(map(subject.classifier().predict, device.windows))
        verdicts = load.judge(subject.expected), device.judge(live)
        return Report(tuple(drill.outcomes), *verdicts, device.dropped, arena.record.repeated, problem)


def hurt(drill: Drill, device: Device, faults: int, kinds: Sequence[Kind]) -> str:
    """Do the faults and let the load come to its end; return what went wrong, empty where nothing did."""
    started = time.monotonic()
    try:
        for number in range(1, faults + 1):
            one = drill.run(drill.choose(kinds))
            noticed = "" if one.noticed_s is None else f"noticed {one.noticed_s:.2f} s, "
            figures = f"{noticed}gap {one.gap_s:.2f} s, {one.resent} resent, {one.repeated} came twice"
            print(
                f"{time.monotonic() - started:6.0f} s {number:3} {one.kind.value}: {figures} {one.detail}", flush=True
            )
        device.finish(60)
        drill.load.finish(300)
    except NodeError as error:
        return str(error)
    return ""


def show(report: Report) -> None:
    """Print a row a kind of fault, and the verdicts."""
    print(_line(HEAD))
    for kind in Kind:
        of_kind = [one for one in report.faults if one.kind is kind]
        if of_kind:
            noticed = [one.noticed_s for one in of_kind if one.noticed_s is not None]
            figures = zip((noticed, [one.gap_s for one in of_kind]), WANTED.get(kind, (None, None)), strict=True)
            cells = [cell for values, wanted in figures for cell in _figures(values, wanted)]
            sums = str(sum(one.resent for one in of_kind)), str(sum(one.repeated for one in of_kind))
            print(_line((kind.value, str(len(of_kind)), *cells, *sums)))
    for name, verdict in (("replayed", report.replayed), ("live", report.live)):
        print(
            f"{name}: {verdict.windows} windows, {verdict.answered} answered, {verdict.lost} lost, {verdict.doubled} "
            f"doubled, {verdict.different} different, {verdict.strange} nobody sent"
        )
    print(
        f"live: {report.live_dropped} windows dropped by the sensor's own count; {report.repeated} results came twice"
    )
    if report.problem:
        print(f"NOT RECOVERED: {report.problem}")
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
