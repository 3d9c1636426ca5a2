"""The stages of one way to cut a model, joined by messages, and what they give against the whole (model_cuts.py)."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from har_edge.config.pipeline import Pipeline
from har_edge.config.pipeline_config import PipelineConfig
from har_edge.config.task import SourceInput, StreamTask, Task
from har_edge.inference.interpreter import Interpreter
from har_edge.mqtt.bus import Delivery
from har_edge.protocol import wire
from har_edge.protocol.topics import ALL_SOURCES, Topics
from har_edge.runtime.build import names_of, source_ids
from har_edge.runtime.stage.setup import StageSetup
from har_edge.runtime.stage.stage import Stage
from har_edge.tflite import slices as slicing
from har_edge.tflite.manifest import ModelState, SliceManifest
from har_edge.tflite.model import Model
from har_edge.tflite.slices import write_slice

FREE = 2**28 - 1  # the largest message of MQTT: a small limit would be a setting's doing, not the cut's
TOPICS = Topics("bench", "cuts")
STREAM = "s"

Values = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class Window:
    """One run of the whole model: how many windows, what went in, and what came out."""

    count: int
    values: Values
    results: Values


class Line:
    """The stages of one way to cut, joined by messages."""

    def __init__(self, model: Model, pieces: Sequence[slicing.Slice], manifest: SliceManifest, fresh: bool) -> None:
        graph = model.main
        self.outputs = [graph.tensors[i].name for i in graph.outputs]
        self.sources = {f"source-{number}": graph.tensors[i].name for number, i in enumerate(graph.inputs)}
        task = Task(
            StreamTask("none", 1.0, 1, 1),
            {source: SourceInput(tensor) for source, tensor in self.sources.items()},
            self.outputs[0],
            ["a"],
            [0],
        )
        config = PipelineConfig(task, name="cuts", base="bench", epoch=1)
        self.pipeline = Pipeline(config, Path(), manifest, None, None)  # type: ignore[arg-type]
        self.said: list[str] = []
        self.stages = [self._stage(model, index, piece, fresh) for index, piece in enumerate(pieces)]

    def _stage(self, model: Model, index: int, piece: slicing.Slice, fresh: bool) -> Stage:
        wiring = self.pipeline.wiring(index)
        made = [spec.name for spec in wiring.entry.outputs]
        # What the model answers goes on too, so that every output can be compared.
        wiring = replace(wiring, sends=tuple(name for name in made if name in wiring.sends or name in self.outputs))
        interpreter = Interpreter(bytes(write_slice(model, piece)), fresh=fresh and piece.state is ModelState.TENSORS)
        ports = {port.name: port for port in interpreter.inputs}
        setup = StageSetup(
            topics=TOPICS,
            epoch=1,
            task=self.pipeline.task,
            wiring=wiring,
            run=interpreter.run,
            result_port=None,
            feeds={source: lambda codes, count=1: codes for source in wiring.sources},
            max_payload_bytes=FREE,
            join_timeout_s=3600.0,
            join_capacity=16,
            ports={source: ports[tensor] for source, tensor in wiring.sources.items()},
            wire_version=self.pipeline.manifest.wire,
            ids=self.pipeline.manifest.ids,
            names=names_of(self.pipeline),
        )
        return Stage(setup, clock=lambda: 0.0, monotonic=lambda: 0.0)

    def compare(self, windows: Sequence[Window]) -> tuple[str, str]:
        """Send windows through, and compare every output with the whole model's."""
        handler = _Notes(self.said)
        logging.getLogger("har_edge").setLevel(logging.WARNING)
        logging.getLogger("har_edge").addHandler(handler)
        try:
            seq = 0
            for window in windows:
                came = self._send(window, seq)
                seq += window.count
                missing = [name for name in self.outputs if name not in came]
                if missing or any(stage.counters.rejected for stage in self.stages):
                    return "dropped", (self.said or [f"no output {missing[0]}"])[0]
                for name, wanted in window.results.items():
                    got = came[name]
                    if not same(wanted, got):
                        return "wrong", f"output {name}: {describe(wanted, got)} at window {seq}"
        finally:
            logging.getLogger("har_edge").removeHandler(handler)
        return "equal", ""

    def _send(self, window: Window, seq: int) -> Values:
        """Return every tensor that stages published for a window."""
        manifest, came = self.pipeline.manifest, Values()
        codes = {source: window.values[tensor] for source, tensor in self.sources.items()}
        message = wire.Message(STREAM, seq, 1, (0.0,) * window.count, codes)
        payload = wire.encode(message, manifest.wire, source_ids(self.pipeline))
        tokens = itertools.count()
        todo = [(stage, TOPICS.window(STREAM, ALL_SOURCES), payload) for stage in self.stages if _takes_windows(stage)]
        while todo:
            stage, topic, payload = todo.pop(0)
            for outgoing in stage.handle(Delivery(topic, payload, (1, next(tokens)))):
                if not outgoing.topic:
                    continue
                made = wire.decode(outgoing.payload, FREE, names_of(self.pipeline))
                came.update(made.tensors)
                maker = int(TOPICS.read(outgoing.topic).levels[1])
                takers = [one for one in self.stages if maker in one._setup.wiring.earlier]
                todo += [(one, outgoing.topic, outgoing.payload) for one in takers]
        # An output that a model only passes through, and that its last slice does not make, comes from the sensor.
        return {name: window.values[name] for name in self.outputs if name in window.values} | came


def _takes_windows(stage: Stage) -> bool:
    return bool(stage._setup.wiring.sources)


class _Notes(logging.Handler):
    """Keeps what stages say."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self.said = said

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def same(wanted: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> bool:
    """Return whether two arrays have the same bits; any NaN is like any other, of whatever sign and payload."""
    if (got.dtype, got.shape) != (wanted.dtype, wanted.shape):
        return False
    if wanted.dtype.kind not in "fc":
        return wanted.tobytes() == got.tobytes()
    nan = np.array(np.nan, wanted.dtype)
    return np.where(np.isnan(wanted), nan, wanted).tobytes() == np.where(np.isnan(got), nan, got).tobytes()


def describe(wanted: np.ndarray[Any, Any], got: np.ndarray[Any, Any]) -> str:
    """Say how two arrays differ."""
    if (got.dtype, got.shape) != (wanted.dtype, wanted.shape):
        return f"{got.dtype} {list(got.shape)} instead of {wanted.dtype} {list(wanted.shape)}"
    return f"{int(np.count_nonzero(wanted != got))} of {wanted.size} elements differ"
