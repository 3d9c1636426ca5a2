"""Every slice of a model that a stage can run, with its inputs, outputs and memory.

A stage gets each tensor straight from the stage that makes it, and a message carries all that its stage sends. The
messages that a stage receives therefore depend on the earlier cuts. So a node is a place to cut together with the
messages that hold tensors still needed. If no tensor skips over a cut, each place has one node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.planner.devices import SensorMessages
from har_edge.planner.problem import Ints
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.model import Model

RESULT_BYTES = 256  # the JSON of one result
HEAD_BYTES = 128  # topic, names, shapes and MQTT header of one message
MAX_EDGES = 60_000

# Messages in flight at a place: the tensors of each that are still needed, and its bytes.
InFlight = tuple[tuple[tuple[int, ...], int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class SliceGraph:
    """Slices as edges of a graph, in the order of their tails.

    `bounds` are operators: 0, the legal places to cut, and the number of operators. `places[v]` is the index into them
    of node v. Each edge has its first and last place, the messages and bytes that it receives and sends, and the bytes
    of its weights and of the most activations alive at once; `results` says whether it sends a result. `whole` says
    that no way to cut was left out.
    """

    bounds: tuple[int, ...]
    places: tuple[int, ...]
    tails: Ints
    heads: Ints
    starts: Ints
    stops: Ints
    received: Ints
    received_bytes: Ints
    sent: Ints
    sent_bytes: Ints
    tensor_bytes: Ints
    results: Ints
    whole: bool

    def edge(self, node: int, stop: int) -> int | None:
        """Return the edge from a node to a place, None where there is none."""
        first, last = np.searchsorted(self.tails, [node, node + 1])
        found = np.flatnonzero(self.stops[first:last] == stop)
        return int(first + found[0]) if len(found) else None

    def walk(self, places: Sequence[int]) -> list[int] | None:
        """Return the edges of the slices between places (without start and end), None where one was left out."""
        edges, node = [], 0
        for stop in (*places, len(self.bounds) - 1):
            edge = self.edge(node, stop)
            if edge is None:
                return None
            edges.append(edge)
            node = int(self.heads[edge])
        return edges


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor that may cross a cut: bytes, the segment that makes it (-1: a source), those that read it.

    A source that no operator reads enters no slice.
    """

    index: int
    bytes: int
    maker: int
    readers: tuple[int, ...]


def make_slice_graph(model: Model, bounds: Sequence[int], sensors: SensorMessages = SensorMessages.APART) -> SliceGraph:
    """Return every slice between two places to cut; the model can be cut at all `bounds` at once."""
    graph, values = model.main, _values(model, bounds)
    n = len(bounds) - 1
    memory = tensor_bytes(model, bounds)
    sources = [value for value in values if value.maker < 0]
    makes = [any(bounds[i] <= maker < bounds[i + 1] for maker in _answers(model)) for i in range(n)]
    if len(graph.outputs) and not any(makes):
        makes[-1] = True  # what the model passes through leaves with the last slice
    ways: list[dict[InFlight, None]] = [{} for _ in range(n + 1)]
    ways[0][()] = None
    edges: list[tuple[int, InFlight, int, InFlight, tuple[int, ...]]] = []
    whole, most = True, max(4, 2 * MAX_EDGES // (n * n))  # ways to come to one place
    for start in range(n):
        if len(ways[start]) > most:
            kept = sorted(ways[start], key=lambda in_flight: (sum(size for _, size in in_flight), in_flight))[:most]
            ways[start], whole = dict.fromkeys(kept), False
        last = {value.index: value.readers[-1] for value in values if -1 < value.maker < start <= value.readers[-1]}
        for stop in range(start + 1, n + 1):
            sent = tuple(v for v in values if start <= v.maker < stop <= v.readers[-1])
            size = sum(value.bytes for value in sent)
            result = any(makes[start:stop])
            takes = _sources([v for v in sources if v.readers], start, stop, sensors)
            gives = (bool(sent) + result, (size + HEAD_BYTES if sent else 0) + RESULT_BYTES * result)
            needed = {v.index for v in values if v.maker < start and any(start <= r < stop for r in v.readers)}
            fresh: InFlight = ((tuple(value.index for value in sent), size),) if sent else ()
            for in_flight in ways[start]:
                came = [bytes_ for tensors, bytes_ in in_flight if needed.intersection(tensors)]
                later = ((tuple(t for t in tensors if last[t] >= stop), bytes_) for tensors, bytes_ in in_flight)
                onward = tuple(sorted((*(part for part in later if part[0]), *fresh)))
                ways[stop].setdefault(onward, None)
                figures = (len(came) + takes[0], sum(came) + HEAD_BYTES * len(came) + takes[1], *gives)
                edges.append((start, in_flight, stop, onward, (*figures, int(memory[start, stop]), int(result))))
    return _assemble(tuple(bounds), ways, edges, whole)


def _assemble(
    bounds: tuple[int, ...],
    ways: list[dict[InFlight, None]],
    edges: list[tuple[int, InFlight, int, InFlight, tuple[int, ...]]],
    whole: bool,
) -> SliceGraph:
    number = {
        (place, in_flight): index
        for index, (place, in_flight) in enumerate(
            (place, in_flight) for place, found in enumerate(ways) for in_flight in found
        )
    }
    rows = [
        (number[start, in_flight], number[stop, onward], start, stop, *figures)
        for start, in_flight, stop, onward, figures in edges
        if (stop, onward) in number and (start, in_flight) in number
    ]
    rows.sort()
    tails, heads, starts, stops, received, received_bytes, sent, sent_bytes, tensor_bytes, results = np.array(
        rows, np.int64
    ).T
    return SliceGraph(
        bounds=bounds,
        places=tuple(place for place, _ in number),
        tails=tails,
        heads=heads,
        starts=starts,
        stops=stops,
        received=received,
        received_bytes=received_bytes,
        sent=sent,
        sent_bytes=sent_bytes,
        tensor_bytes=tensor_bytes,
        results=results,
        whole=whole,
    )


def _values(model: Model, bounds: Sequence[int]) -> list[_Value]:
    """Return the tensors that some segment needs from a source or from an earlier segment."""
    graph, flow = model.main, trace_dataflow(model)
    segment = {operator: i for i in range(len(bounds) - 1) for operator in range(bounds[i], bounds[i + 1])}
    readers: dict[int, set[int]] = {}
    for operator in graph.operators:
        if operator.index not in flow.folded:
            for index in operator.inputs:
                readers.setdefault(index, set()).add(segment[operator.index])
    for index in graph.inputs:
        passed = {len(bounds) - 2} if index in graph.outputs else set()  # it leaves with the last slice
        readers[index] = readers.get(index, set()) | passed
    for index in graph.gathered:
        makers = [flow.maker[one] for one in graph.gathered if one in flow.maker]
        readers[index] = readers.get(index, set()) | ({segment[max(makers)]} if makers else set())
    found = []
    for index, users in sorted(readers.items()):
        maker = flow.maker.get(index, -1)
        if maker in flow.folded or (maker < 0 and index not in graph.inputs):
            continue
        made = segment[maker] if maker >= 0 else -1
        if made < 0 or max(users, default=-1) > made:
            size = graph.sent_bytes.get(index, graph.tensors[index].bytes)
            found.append(_Value(index, size, made, tuple(sorted(users))))
    return found


def _answers(model: Model) -> list[int]:
    """Return the operators that make an output of the model, of outputs that are gathered the last one."""
    flow = trace_dataflow(model)
    made = [flow.maker[index] for index in model.main.gathered or model.main.outputs if index in flow.maker]
    return [max(made)] if model.main.gathered and made else made


def _sources(sources: Sequence[_Value], start: int, stop: int, sensors: SensorMessages) -> tuple[int, int]:
    """Return messages and bytes that come from sensors, counted as the tensors are, before any reduction."""
    taken = [v.bytes for v in sources if any(start <= reader < stop for reader in v.readers)]
    if taken and sensors is SensorMessages.TOGETHER:
        return 1, sum(value.bytes for value in sources) + HEAD_BYTES
    return len(taken), sum(taken) + HEAD_BYTES * len(taken)


def tensor_bytes(model: Model, bounds: Sequence[int]) -> Ints:
    """Return the bytes of weights and of the most activations alive at once, for operators between any two places."""
    graph, n = model.main, len(bounds) - 1
    alive = _alive(model)
    found = np.zeros((n + 1, n + 1), np.int64)
    for start in range(n):
        weights: set[int] = set()
        size, most = 0, 0
        for stop in range(start + 1, n + 1):
            for operator in graph.operators[bounds[stop - 1] : bounds[stop]]:
                for index in operator.inputs:
                    buffer = int(graph.tensors[index].raw.buffer)
                    if graph.tensors[index].constant and buffer not in weights:
                        weights.add(buffer)
                        size += graph.tensors[index].bytes
                most = max(most, alive[operator.index])
            found[start, stop] = size + most
    return found


def _alive(model: Model) -> list[int]:
    """Return the bytes of the tensors that are alive while each operator runs."""
    graph, flow, n = model.main, trace_dataflow(model), len(model.main.operators)
    change = np.zeros(n + 1, np.int64)
    for tensor in graph.tensors:
        first = 0 if tensor.index in graph.inputs else flow.maker.get(tensor.index, -1)
        if first < 0 or tensor.constant:
            continue
        last = n - 1 if tensor.index in graph.outputs else max(first, flow.last_reader.get(tensor.index, first))
        change[first] += tensor.bytes
        change[last + 1] -= tensor.bytes
    return [int(value) for value in np.cumsum(change)[:-1]]
