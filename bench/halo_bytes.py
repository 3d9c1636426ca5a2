"""Bytes on the wire for one sample: halo exchange between blocks of rows against gather and scatter at the same cuts.

    python bench/halo_bytes.py VGG16.tflite [--devices 8] [--cuts NAME,NAME ...] [--samples 3]

The cuts are behind the first operators whose results have these texts in their names. At each, an operator that
changes nothing (RELU, of values that are at least 0) is put into the model. For halo exchange it belongs to the block
before it, and each device takes the rows that it lacks straight from who has them. For gather and scatter one device
computes it, whole: all rows travel to this device, and from there to those who take them. So both run the same
operators at the same cuts, and must give the same bits.

The stages are processes on this machine, with Mosquitto. "All" are the bytes that their MQTT clients sent and received,
whole packets, as their statuses say: with input, result, acknowledgements, and the gathering of rows before the last
block, which is whole in both. "Boundary" are the packets with what travels at the cuts, each counted where it enters
the broker and where it leaves. TCP and IP are not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from har_edge.cli.console import say
from har_edge.cluster.cluster import Cluster
from har_edge.cluster.processes import Processes
from har_edge.config.pipeline import Pipeline
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.config.wiring import flow_level
from har_edge.experiments.emulation import Emulated
from har_edge.experiments.model_under_test import find_model_under_test, make_windows
from har_edge.mqtt.broker.launcher import start_mosquitto
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.clients.transport import publish_bytes
from har_edge.mqtt.connect import open_bus
from har_edge.protocol.events import ResultsEvent, TensorsEvent, decode
from har_edge.resources import find_folder
from har_edge.runtime.build import topics_of
from har_edge.runtime.slicing import prepare
from har_edge.tflite.model import Model, read_model
from har_edge.tflite.schema import FILE_IDENTIFIER, flatbuffers, tflite

CUTS = "block1_pool,block2_pool,block3_pool,block4_pool"
END = "block5_pool"  # the result of the last block of rows
MARK = "/cut"  # behind the name of the tensor that a cut's operator makes


@dataclass(frozen=True, slots=True)
class Counted:
    """Bytes of one sample, and the scores of the samples."""

    everything: float
    boundary: float
    messages: float
    scores: tuple[object, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--cuts", default=CUTS)
    parser.add_argument("--end", default=END, help="the result of the last block of rows (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="har-edge-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        path = folder / args.model.name
        cuts = mark_cuts(args.model, args.cuts.split(","), path)
        model = read_model(path)
        end = find_operator(model, args.end) + 1
        counted = {}
        with start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker") as broker:
            say(f"{broker.description}, {model.name}, {args.devices} devices, made-up windows")
            for kind, text in splits(model, cuts, end, args.devices).items():
                under_test = find_model_under_test(str(path), folder / "model")
                at = BrokerConfig(url=broker.address.url)
                pipeline = prepare(
                    under_test.path, under_test.task, folder / kind, stages=1, split=text, name=kind, broker=at
                )
                counted[kind] = count(pipeline, broker.address, args.samples)
    report(counted)


def find_operator(model: Model, text: str) -> int:
    """Return the first operator whose result has this text in its name; ends the program where there is none."""
    for number, operator in enumerate(model.main.operators):
        if any(text in model.main.tensors[index].name for index in operator.outputs):
            return number
    raise SystemExit(f"no operator of {model.name} gives a tensor with {text!r} in its name")


def mark_cuts(source: Path, texts: Sequence[str], path: Path) -> list[int]:
    """Write the model with a RELU behind each cut, and return these operators by number."""
    model = read_model(source)
    places = sorted(find_operator(model, text) for text in texts)
    root = tflite.Model.GetRootAs(source.read_bytes(), 0)
    raw = tflite.ModelT.InitFromObj(root)
    graph = raw.subgraphs[0]
    code = tflite.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = tflite.BuiltinOperator.RELU
    raw.operatorCodes.append(code)
    for place in reversed(places):
        before = int(graph.operators[place].outputs[0])
        made = tflite.TensorT.InitFromObj(root.Subgraphs(0).Tensors(before))
        made.name, made.buffer = graph.tensors[before].name + MARK.encode(), 0
        graph.tensors.append(made)
        after = len(graph.tensors) - 1
        for operator in graph.operators[place + 1 :]:
            operator.inputs = [after if index == before else index for index in operator.inputs]
        marked = tflite.OperatorT()
        marked.opcodeIndex, marked.inputs, marked.outputs = len(raw.operatorCodes) - 1, [before], [after]
        graph.operators.insert(place + 1, marked)
    builder = flatbuffers.Builder(1024)
    builder.Finish(raw.Pack(builder), file_identifier=FILE_IDENTIFIER)
    path.write_bytes(builder.Output())
    return [place + 1 + number for number, place in enumerate(places)]


def splits(model: Model, cuts: Sequence[int], end: int, devices: int) -> dict[str, str]:
    """Return the texts of both splits, whose blocks of rows end at the same operators."""
    starts = [0, *(cut + 1 for cut in cuts)]
    halo = [rows(model, start, stop, devices) for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    tail = f"whole:{end}-{len(model.main.operators)}@{devices}"
    gather = list[str]()
    for start, cut in zip(starts, [*cuts, None], strict=True):
        gather.append(rows(model, start, end if cut is None else cut, devices))
        if cut is not None:
            gather.append(f"whole:{cut}-{cut + 1}@{devices}")
    return {"halo": " ".join([*halo, tail]), "gather": " ".join([*gather, tail])}


def rows(model: Model, start: int, stop: int, devices: int) -> str:
    """Return a block of rows in even shares; where there are fewer rows than devices, the last ones have none."""
    shape = model.main.tensors[model.main.operators[stop - 1].outputs[0]].shape
    shares = [shape[1] // devices + (k < shape[1] % devices) for k in range(devices)]
    return f"rows:{start}-{stop}={','.join(map(str, shares))}"


def count(pipeline: Pipeline, address: object, samples: int) -> Counted:
    """Run samples through the stages, one at a time, and count what these sent and received."""
    codes = make_windows(pipeline, samples)
    cluster = Cluster(pipeline, address, processes=Processes(patience_s=10.0))  # type: ignore[arg-type]
    with contextlib.closing(cluster):
        cluster.start_stages(timeout_s=300.0)
        watcher = Watcher(pipeline, open_bus(cluster.address, Session("bench-watcher", receive_max=8192)))
        cluster.steps.append(watcher.look)
        emulated = Emulated(cluster)
        emulated.ask(codes[0])
        watcher.clear()
        before = sum(said(cluster))
        for one in codes:
            emulated.ask(one)
        emulated.settle()
        cluster.processes.stop()
        for _ in range(8):
            cluster.step()
        everything = sum(said(cluster)) - before
        watcher.look()
        watcher.bus.close(forget=True)
    return Counted(everything / samples, watcher.boundary / samples, watcher.messages / samples, tuple(watcher.scores))


def said(cluster: Cluster) -> Iterator[int]:
    """Return the bytes that each stage says that it has sent and received."""
    for status in cluster.statuses.values():
        yield status.counters.get("sent_bytes", 0) + status.counters.get("received_bytes", 0)


class Watcher:
    """Counts what travels at the cuts, from a connection of its own."""

    def __init__(self, pipeline: Pipeline, bus: Bus) -> None:
        self.bus, self.topics = bus, topics_of(pipeline)
        self.boundary, self.messages, self.scores = 0, 0, list[object]()
        self._takers = dict(boundary_flows(pipeline))
        bus.subscribe([self.topics.activation("+", "+", "+"), self.topics.result("+")])
        while not bus.connected:
            bus.poll(0.1)

    def clear(self) -> None:
        self.look()
        self.boundary, self.messages = 0, 0
        self.scores.clear()

    def look(self) -> None:
        for delivery in self.bus.poll(0.0):
            self.bus.acknowledge(delivery)
            event = decode(delivery, self.topics)
            if isinstance(event, ResultsEvent):
                self.scores += [(one.label_id, one.confidence) for one in event.results]
            elif isinstance(event, TensorsEvent) and event.topic.levels[1] in self._takers:
                size = publish_bytes(delivery.topic, delivery.payload)
                self.boundary += size * (1 + self._takers[event.topic.levels[1]])
                self.messages += 1


def boundary_flows(pipeline: Pipeline) -> Iterator[tuple[str, int]]:
    """Return each flow with a tensor of a cut, on either side of its operator, and how many stages take it."""
    manifest = pipeline.manifest
    entered = [{spec.name for spec in entry.inputs} for entry in manifest.slices]
    marked = {spec.of for entry in manifest.slices for step in entry.steps for spec in step.outputs if MARK in spec.of}
    cut = marked | {name.removesuffix(MARK) for name in marked}
    for number, entry in enumerate(manifest.slices):
        for spec in entry.outputs:
            if spec.of in cut:
                yield flow_level(number, spec.flow), sum(spec.name in names for names in entered)


def report(counted: dict[str, Counted]) -> None:
    halo, gather = counted["halo"], counted["gather"]
    if halo.scores != gather.scores:
        raise SystemExit(f"the answers differ: {halo.scores} and {gather.scores}")
    say(f"{'':<20}{'boundary MB':>12}{'messages':>10}{'all MB':>10}")
    for kind, one in counted.items():
        say(f"{kind:<20}{one.boundary / 1e6:>12.3f}{one.messages:>10.0f}{one.everything / 1e6:>10.3f}")
    ratios = halo.boundary / gather.boundary, halo.everything / gather.everything
    say(f"{'halo over gather':<20}{ratios[0]:>12.3f}{'':>10}{ratios[1]:>10.3f}")
    say(f"same bits in {len(halo.scores)} answers")


if __name__ == "__main__":
    main()
