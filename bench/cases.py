"""Run models whose tensors are not all [windows, ...] through stages: windows in and windows answered, at every cut.

    python bench/cases.py [--processes] MODEL.tflite ...

Each model takes windows [50, 9] (a source of mhealth) and answers with one of its 12 classes. Every cut that is offered
becomes a folder of slices; two stages of it handle ten windows, message by message, as behind a broker (there is
none here), and their answers are compared with the uncut model's. Windows are random. With PYTHONPATH set to another
checkout, the same is done with that code. Exit code 1 where a window was lost or answered otherwise.

With --processes, the cut that most bytes of tensors without a batch cross (else the middle one) is run for real too: a
broker, two stages and a sensor, each a process of its own, and ten windows of real recordings where they are installed.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import har_edge
from har_edge.config.pipeline import Pipeline
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.data.description import load_description
from har_edge.data.recording import Window
from har_edge.errors import HarEdgeError
from har_edge.inference.interpreter import Interpreter
from har_edge.mqtt.bus import Delivery
from har_edge.protocol.events import ResultsEvent, decode
from har_edge.runtime.build import build_sensor, build_stage
from har_edge.runtime.slicing import prepare
from har_edge.tflite.cuts import Cut, list_cuts
from har_edge.tflite.model import Model, read_model

try:
    from har_edge.inference.tensor_observation import open_model
except ImportError:  # code from before it
    open_model = read_model

LENGTH, CHANNELS, SOURCE, WINDOWS = 50, 9, "ankle", 10


def task_of(model: Model) -> Task:
    """Return a task for the first input and output of a model."""
    labels = list(load_description("mhealth").labels)[1:13]
    graph = model.main
    return Task(
        stream=StreamTask("mhealth", 50.0, LENGTH, LENGTH // 2),
        inputs={SOURCE: SourceInput(graph.tensors[graph.inputs[0]].name)},
        output=graph.tensors[graph.outputs[0]].name,
        labels=labels,
        label_ids=list(range(1, 13)),
    )


def made_up() -> list[Window]:
    rng = np.random.default_rng(0)
    return [
        Window("s", seq, 0, {SOURCE: rng.normal(0, 6, (LENGTH, CHANNELS)).astype(np.float32)}, None)
        for seq in range(WINDOWS)
    ]


def wanted(path: Path, windows: Sequence[Window]) -> list[int]:
    """Return the class that the uncut model gives each window, run by the runtime alone."""
    whole, answers = Interpreter(path), []
    for window in windows:
        values = {port.name: np.zeros([abs(n) for n in port.shape], port.dtype) for port in whole.inputs}
        first = whole.inputs[0]
        values[first.name] = window.samples[SOURCE].reshape([abs(n) for n in first.shape])
        scores: Any = next(iter(whole.run(values).values())).reshape(-1)
        answers.append(int(scores[0]) if scores.size == 1 else int(scores.argmax()))
    return answers


def send(pipeline: Pipeline, windows: Sequence[Window]) -> list[int]:
    """Return the classes that come out of the stages."""
    stages = [build_stage(pipeline, index) for index in range(len(pipeline.manifest.slices))]
    sensor, answers = build_sensor(pipeline, [SOURCE]), list[int]()
    for window in windows:
        todo = sensor.handle([window], [float(window.seq)])
        while todo:
            sent = todo.pop()
            event = decode(sent)
            if isinstance(event, ResultsEvent):
                answers += [result.label_id - 1 for result in event.results]
                continue
            takers = stages if "/window/" in sent.topic else stages[1 + int(sent.topic.split("/")[-2]) :]
            for stage in takers:
                if any(_hears(one, sent.topic) for one in stage.filters):
                    todo += [made for made in stage.handle(Delivery(sent.topic, sent.payload, (0, 0))) if made.topic]
    return answers


def _hears(pattern: str, topic: str) -> bool:
    levels = pattern.split("/"), topic.split("/")
    return len(levels[0]) == len(levels[1]) and all(a in ("+", b) for a, b in zip(*levels, strict=True))


def judge(path: Path, folder: Path) -> Counter[str]:
    """Return what came of the uncut model and of every cut."""
    model, windows, found = open_model(path), made_up(), Counter[str]()
    expected, task = wanted(path, windows), task_of(model)
    cuts = list_cuts(model)
    for way in [(), *((cut.index,) for cut in cuts if cut.refusal is None)]:
        what = "cuts" if way else "whole"
        try:
            pipeline = prepare(path, task, folder / f"{len(list(folder.iterdir()))}", stages=len(way) + 1, cuts=way)
            answers = send(pipeline, windows)
        except HarEdgeError as error:
            found[f"{what} refused at start: {' '.join(str(error).split())[-100:]}"] += 1
            continue
        outcome = "answered" if answers == expected else f"{len(answers)} of {WINDOWS} windows came out"
        found[f"{what} {outcome}"] += 1
    found["cuts refused by --list"] += sum(cut.refusal is not None for cut in cuts)
    return found


def run_processes(path: Path) -> str:
    """Run one cut of a model over a broker; return what went in and what came out."""
    from har_edge.cli.arguments import options
    from har_edge.cli.local_pipeline import open_cluster, start_nodes
    from har_edge.cli.main import build_parser
    from har_edge.config.catalog import FoundModel

    model = open_model(path)
    args = build_parser().parse_args(["demo"])
    _, data = options.load_recordings(args, load_description("mhealth"), ["subject1"])
    cuts = [cut for cut in list_cuts(model) if cut.refusal is None]
    middle = cuts[len(cuts) // 2]
    cut = max(cuts, key=lambda one: (_unbatched_bytes(one), one is middle))
    try:
        with open_cluster(args, FoundModel(path, "", None), stages=2, cuts=[cut.index], task=task_of(model)) as cluster:
            start_nodes(cluster, args, ["subject1"], speed=None, windows=WINDOWS)
            list(cluster.arrivals())
            counts = f"windows in {cluster.windows_in}, answered {cluster.answered}"
            return f"{counts}; cut before operator {cut.index}; {cluster.described}, {data}"
    except HarEdgeError as error:
        return f"refused at start: {' '.join(str(error).split())[-100:]}"


def _unbatched_bytes(cut: Cut) -> int:
    return sum(item.bytes for item in cut.crossing if not getattr(item.tensor, "batched", True))


def main() -> int:
    parser = argparse.ArgumentParser(description="Windows in and out, at every cut of models.")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument("--processes", action="store_true", help="run one cut of each over a broker too")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"code: {Path(har_edge.__file__).parent.parent.name}; random windows without a broker")
    wrong = 0
    for path in args.models:
        with tempfile.TemporaryDirectory() as folder:
            found = judge(path, Path(folder))
        print(path.name)
        for outcome, count in sorted(found.items()):
            if count:
                print(f"    {count:3} {outcome}")
                wrong += count * ("answered" not in outcome and "refused by" not in outcome)
        if args.processes:
            outcome = run_processes(path)
            print(f"    processes: {outcome}", flush=True)
            wrong += f"in {WINDOWS}, answered {WINDOWS};" not in outcome
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
