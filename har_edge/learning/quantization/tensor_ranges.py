"""The ranges of a model's tensors, measured by workers on their own samples: no sample travels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import HarEdgeError, MessageError, ModelError
from har_edge.inference.interpreter import Array, Interpreter
from har_edge.learning.data.blocks import epoch_order
from har_edge.learning.data.input_layout import InputLayout
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import TrainingFile, TrainingJob, encode_training
from har_edge.protocol.training_results import RangeReport, RangeRequest
from har_edge.tflite import schema
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.encode import ModelPart, encode
from har_edge.tflite.model import Model

# A worker measures on so many of its samples at most, so many at a time.
SAMPLES, _BATCH = 512, 32
# Between two requests to workers that have not answered, and until those are given up.
AGAIN_S, PATIENCE_S = 10.0, 120.0
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RangeGraph:
    """A model whose outputs are all its float tensors that depend on a sample; `names` and `ranks` are theirs."""

    content: bytes = field(repr=False)
    names: tuple[str, ...]
    ranks: tuple[int, ...]

    @property
    def file(self) -> TrainingFile:
        """The file by its hash and size."""
        return TrainingFile(hashlib.sha256(self.content).hexdigest(), len(self.content))


def write_range_graph(model: Model) -> RangeGraph:
    """Return a model with every float32 tensor as an output, but constants and what is computed of these alone."""
    graph, flow = model.main, trace_dataflow(model)
    made = [index for index, maker in flow.maker.items() if maker not in flow.folded]
    indices = [
        index
        for index in (*graph.inputs, *made)
        if graph.tensors[index].dtype == "float32" and not graph.tensors[index].constant
    ]
    # An input cannot be an output: its range is measured where it is given.
    outputs = tuple(dict.fromkeys(index for index in indices if index not in graph.inputs))
    part = ModelPart(False, tuple(range(len(graph.operators))), graph.inputs, outputs)
    listed = (*(index for index in graph.inputs if graph.tensors[index].dtype == "float32"), *outputs)
    return RangeGraph(
        bytes(encode(model, part)),
        tuple(schema.text(graph.tensors[index].raw.name) for index in listed),
        tuple(len(graph.tensors[index].shape) for index in listed),
    )


@dataclass(frozen=True, slots=True)
class TensorRanges:
    """The least and the largest value of each tensor, float32 [tensors], and who measured them on how many samples."""

    graph: RangeGraph
    lows: Floats
    highs: Floats
    workers: tuple[str, ...]
    samples: int


class RangeCollection:
    """Asks workers for ranges, and merges what they send: a pure machine. `problems` names those that have none."""

    def __init__(
        self, topics: Topics, job: TrainingJob, graph: RangeGraph, blocks: Mapping[str, tuple[int, ...]], now: float
    ) -> None:
        self._topics, self._job, self._graph, self._blocks = topics, job, graph, dict(blocks)
        self._reports: dict[str, RangeReport] = {}
        self.problems: dict[str, str] = {}
        self._until, self._due = now + PATIENCE_S, -math.inf

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        return [self._topics.training(self._job.run, "ranges", "+")]

    @property
    def awaited(self) -> list[str]:
        """The workers that have not answered."""
        return sorted(self._blocks.keys() - self._reports.keys() - self.problems.keys())

    def ended(self, now: float) -> bool:
        """Return whether all have answered, or the time is over."""
        return not self.awaited or now >= self._until

    def tick(self, now: float) -> list[Outgoing]:
        """Return the request, and again for those that have not answered."""
        if not self.awaited or now < self._due:
            return []
        self._due = now + AGAIN_S
        file = self._graph.file
        request = RangeRequest(
            run=self._job.run,
            author=self._job.author,
            sha256=file.sha256,
            size=file.size,
            outputs=len(self._graph.names),
            samples=SAMPLES,
            blocks={name: self._blocks[name] for name in self.awaited},
        )
        return [Outgoing(self._topics.training(self._job.run, "calibrate"), encode_training(request))]

    def handle(self, delivery: Delivery) -> None:
        """Take the ranges of a worker; those of no use are named in `problems`."""
        event = decode(delivery, self._topics)
        report = event.message if isinstance(event, TrainingEvent) else None
        if not isinstance(report, RangeReport) or report.author != self._job.author:
            return
        if report.worker not in self._blocks or report.sha256 != self._graph.file.sha256:
            return
        problem = report.problem or _flaw(report, len(self._graph.names))
        if problem:
            self.problems[report.worker] = problem
        else:
            self.problems.pop(report.worker, None)
            self._reports[report.worker] = report

    def merged(self) -> TensorRanges | None:
        """Return the ranges over all workers that sent some; None where there were none."""
        if not self._reports:
            return None
        lows, highs = (
            np.stack([_values(getattr(one, key)) for one in self._reports.values()]) for key in ("lows", "highs")
        )
        samples = sum(one.samples for one in self._reports.values())
        return TensorRanges(self._graph, lows.min(axis=0), highs.max(axis=0), tuple(sorted(self._reports)), samples)


def _values(packed: bytes) -> Floats:
    return np.frombuffer(packed, "<f4").astype(np.float32)


def _flaw(report: RangeReport, count: int) -> str:
    """Return what is wrong with ranges; empty where nothing is."""
    if {len(report.lows), len(report.highs)} != {4 * count}:
        return f"ranges of {len(report.lows) // 4} and {len(report.highs) // 4} tensors came; expected {count}"
    lows, highs = _values(report.lows), _values(report.highs)
    if not (np.isfinite(lows).all() and np.isfinite(highs).all() and (lows <= highs).all()):
        return "ranges came that are no finite numbers, or whose least value is above the largest"
    return "" if report.samples else "ranges of no sample came"


class SampleSource(Protocol):
    """The samples of a worker, by block (learning/worker/graph_learner.py has the real one)."""

    def samples(self, block: int) -> int:
        """Return how many samples a block has."""

    def missing(self, block: int) -> bool:
        """Return whether the samples of a block are not here."""

    def values(self, block: int, indices: NDArray[np.int64]) -> Array:
        """Return samples as the model takes them, float32 [n, ...]."""


class RangeMeter:
    """Measures ranges on a worker, a batch at each step, so that its thread hears the broker between two."""

    def __init__(
        self,
        job: TrainingJob,
        node: str,
        topics: Topics,
        source: SampleSource,
        layout: InputLayout,
        bring: Callable[[TrainingFile], bytes],
    ) -> None:
        self._job, self._node, self._topics, self._source = job, node, topics, source
        self._layout, self._bring = layout, bring
        self._request: RangeRequest | None = None
        self._interpreter: Interpreter | None = None
        self._parts: list[tuple[int, NDArray[np.int64]]] = []
        self._lows = self._highs = np.zeros(0, np.float32)
        self._count = 0
        self._last: RangeReport | None = None

    @property
    def filter(self) -> str:
        """The topic to subscribe to."""
        return self._topics.training(self._job.run, "calibrate")

    @property
    def busy(self) -> bool:
        """Whether there is something to measure now."""
        return self._request is not None

    def handle(self, delivery: Delivery) -> list[Outgoing]:
        """Take a request; return the answer where it was given before."""
        event = decode(delivery, self._topics)
        request = event.message if isinstance(event, TrainingEvent) else None
        if not isinstance(request, RangeRequest) or request.author != self._job.author or self.busy:
            return []
        if self._node not in request.blocks:
            return []
        if self._last is not None and self._last.sha256 == request.sha256 and not self._last.problem:
            return [self._outgoing(self._last)]
        self._request, self._interpreter = request, None
        return []

    def step(self) -> list[Outgoing]:
        """Load the file, or run one batch; return the report once all are done."""
        request = self._request
        if request is None:
            return []
        try:
            if self._interpreter is None:
                self._begin(request)
            elif self._parts:
                self._run(*self._parts.pop())
            if self._parts:
                return []
            report = self._report(request, samples=self._count, lows=self._lows, highs=self._highs)
        except (HarEdgeError, OSError) as error:
            report = self._report(request, problem=str(error)[:400])
        self._request, self._last = None, report
        return [self._outgoing(report)]

    def _begin(self, request: RangeRequest) -> None:
        interpreter = Interpreter(self._bring(TrainingFile(request.sha256, request.size)))
        inputs = [port for port in interpreter.inputs if port.dtype == np.float32]
        if len(inputs) + len(interpreter.outputs) != request.outputs:
            raise MessageError(
                f"a file with {len(inputs)} inputs and {len(interpreter.outputs)} outputs came for ranges of "
                f"{request.outputs} tensors; expected as many together"
            )
        step = _BATCH if interpreter.inputs[0].shape[:1] == (-1,) else 1
        self._interpreter, self._parts, self._count = interpreter, [], 0
        self._lows = np.full(request.outputs, np.inf, np.float32)
        self._highs = np.full(request.outputs, -np.inf, np.float32)
        blocks = [block for block in request.blocks[self._node] if not self._source.missing(block)]
        for block in blocks:
            size = self._source.samples(block)
            most = min(size, -(-request.samples // len(blocks)))
            order = epoch_order(self._job.seed, 0, block, size)[:most]
            self._parts += [(block, order[start : start + step]) for start in range(0, most, step)]
        if not self._parts:
            raise ModelError("none of the samples that ranges were asked for are here")

    def _run(self, block: int, indices: NDArray[np.int64]) -> None:
        assert self._interpreter is not None
        given = self._layout.split(self._source.values(block, indices))
        found = self._interpreter.run(given)
        inputs = [given[port.name] for port in self._interpreter.inputs if port.dtype == np.float32]
        for place, values in enumerate((*inputs, *(found[port.name] for port in self._interpreter.outputs))):
            if values.size:
                self._lows[place] = min(self._lows[place], values.min())
                self._highs[place] = max(self._highs[place], values.max())
        self._count += len(indices)

    def _report(
        self,
        request: RangeRequest,
        *,
        samples: int = 0,
        lows: Floats | None = None,
        highs: Floats | None = None,
        problem: str = "",
    ) -> RangeReport:
        return RangeReport(
            run=self._job.run,
            author=self._job.author,
            worker=self._node,
            sha256=request.sha256,
            samples=samples,
            lows=b"" if lows is None else lows.astype("<f4").tobytes(),
            highs=b"" if highs is None else highs.astype("<f4").tobytes(),
            problem=problem,
        )

    def _outgoing(self, report: RangeReport) -> Outgoing:
        return Outgoing(self._topics.training(self._job.run, "ranges", self._node), encode_training(report))
