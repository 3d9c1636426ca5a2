"""Find the places where a model can be cut, the tensors that cross there, and the reason of each refusal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from har_edge.errors import CutError
from har_edge.tflite import schema
from har_edge.tflite.manifest import MAX_RANK, MAX_TENSORS, TensorSpec
from har_edge.tflite.model import Graph, Model, Operator, Tensor


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor made before a cut and needed after it; `bytes` is its size for the planned shape."""

    tensor: TensorSpec
    bytes: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The place before operator `index`. `refusal` says why the model cannot be cut there, None when it can."""

    index: int
    before: str
    after: str
    crossing: tuple[Crossing, ...]
    refusal: str | None

    @property
    def bytes(self) -> int:
        """Bytes that cross, for the planned shapes."""
        return sum(crossing.bytes for crossing in self.crossing)


@dataclass(frozen=True, slots=True)
class ColocationConstraint:
    """Operators `first` to `last`, both included, must stay in one slice."""

    first: int
    last: int
    reason: str


@dataclass(frozen=True, slots=True)
class Dataflow:
    """The producers and consumers of the tensors in the main graph.

    `maker` maps a tensor to the operator that makes it, `last_reader` to the last operator that reads it, or beside
    which it leaves the model. `folded`
    holds the operators whose result never changes, such as one that unpacks a weight. Every slice that needs them
    repeats them, so that no weight crosses a cut.
    """

    maker: dict[int, int]
    last_reader: dict[int, int]
    folded: frozenset[int]
    constraints: tuple[ColocationConstraint, ...]


def tensor_spec(tensor: Tensor) -> TensorSpec:
    """Return the entry of a tensor in a manifest."""
    dynamic = tensor.signature[:1] == (-1,)
    return TensorSpec(
        tensor.name,
        tensor.signature,
        tensor.dtype or tensor.type_name.lower(),
        batched=tensor.batched or not dynamic,  # a fixed first dimension leaves no doubt
    )


def list_cuts(model: Model) -> list[Cut]:
    """Return every place between two operators of the main graph, in order; refused ones carry the reason."""
    flow = trace_dataflow(model)
    return [_cut(model.main, flow, index) for index in range(1, len(model.main.operators))]


def check_cuts(graph: Graph, flow: Dataflow, wanted: Sequence[int]) -> list[int]:
    """Return `wanted` in order, each once. Raises CutError for one that is out of range or refused."""
    n = len(graph.operators)
    for index in wanted:
        if not 1 <= index < n:
            legal = f"1 to {n - 1}" if n > 1 else "nowhere, it has one operator"
            raise CutError(f"cut {index} is out of range; this model can be cut before operators {legal}")
        cut = _cut(graph, flow, index)
        if cut.refusal:
            raise CutError(f"cannot cut before operator {index} ({cut.after}): {cut.refusal}; --list shows other cuts")
    return sorted(set(wanted))


def _cut(graph: Graph, flow: Dataflow, index: int) -> Cut:
    crossing = tuple(graph.tensors[i] for i in crossing_tensors(flow, index))
    return Cut(
        index=index,
        before=graph.operators[index - 1].name,
        after=graph.operators[index].name,
        crossing=tuple(Crossing(tensor_spec(tensor), tensor.bytes) for tensor in crossing),
        refusal=_refusal(graph, flow, index, crossing),
    )


def crossing_tensors(flow: Dataflow, index: int) -> list[int]:
    """Return the tensors made before operator `index` and read from there on, in the order they are made."""
    return [
        tensor
        for tensor, maker in flow.maker.items()
        if maker < index <= flow.last_reader.get(tensor, -1) and maker not in flow.folded
    ]


def trace_dataflow(model: Model) -> Dataflow:
    """Find the producer and the last consumer of each tensor in the main graph."""
    graph = model.main
    maker: dict[int, int] = {}
    for operator in graph.operators:
        for index in operator.outputs:
            maker.setdefault(index, operator.index)
    folded = _folded(graph)
    last_reader: dict[int, int] = {}
    for operator in graph.operators:
        if operator.index not in folded:
            for index in operator.inputs:
                last_reader[index] = operator.index
    last = max((maker.get(index, -1) for index in graph.gathered), default=-1)
    for index in graph.gathered:
        last_reader[index] = max(last_reader.get(index, -1), last)
    return Dataflow(maker, last_reader, folded, tuple(_constraints(model, maker)))


def _folded(graph: Graph) -> frozenset[int]:
    """Return the operators that depend on constants only and always give the same result."""
    fixed = {tensor.index for tensor in graph.tensors if tensor.constant}
    folded = set()
    for operator in graph.operators:
        plain = not (operator.custom or operator.calls or operator.inner or operator.resource)
        written = [graph.tensors[i] for i in operator.outputs]
        if (
            plain
            and operator.inputs
            and operator.name not in schema.RANDOM
            and fixed.issuperset(operator.inputs)
            and all(t.dtype and not t.variable and t.index not in graph.inputs for t in written)
        ):
            folded.add(operator.index)
            fixed.update(operator.outputs)
    return frozenset(folded)


def _constraints(model: Model, maker: dict[int, int]) -> list[ColocationConstraint]:
    """Return the constraints that hold operators together for another reason than the tensors between them."""
    graph = model.main
    inputs = set(graph.inputs)
    ties: dict[str, list[int]] = {}
    writers: dict[int, list[int]] = {}
    for operator in graph.operators:
        touched = {*operator.inputs, *operator.outputs, *operator.inner}
        for index in operator.outputs:
            writers.setdefault(index, []).append(operator.index)
        for tensor in (graph.tensors[i] for i in sorted(touched)):
            if tensor.variable:
                ties.setdefault(f"both sides use the recurrent state {tensor.name}", []).append(operator.index)
            elif not (tensor.constant or tensor.index in maker or tensor.index in inputs):
                ties.setdefault(f"both sides use {tensor.name}, which nothing fills", []).append(operator.index)
        for resource in sorted(_resources(model, operator)):
            ties.setdefault(f"both sides use {resource}", []).append(operator.index)
        if operator.custom and any(graph.tensors[i].type_name in ("RESOURCE", "VARIANT") for i in operator.outputs):
            ties.setdefault("both sides hold custom operators that may share a resource", []).append(operator.index)
    for index, made in writers.items():
        # A tensor written twice means different things before and after the second write.
        if len(made) > 1 or index in inputs:
            readers = [o.index for o in graph.operators if index in o.inputs]
            first = 0 if index in inputs else made[0]
            last = len(graph.operators) - 1 if index in graph.outputs else max(made + readers)
            ties[f"tensor {graph.tensors[index].name} is written more than once"] = [first, last]
    ties |= _fused(graph)
    return [ColocationConstraint(min(found), max(found), reason) for reason, found in ties.items()]


def _fused(graph: Graph) -> dict[str, list[int]]:
    """Return the operators that the runtime fuses, where the fused operator rounds otherwise than its parts.

    XNNPACK (LiteRT 2.3) adds up squares of floats without rounding each. bench/operator_pairs.py ran 26 kinds of
    operators, each followed by each: only a square and the MEAN or SUM of it gave other bits apart than together, even
    where another operator reads the square, too. Short rows may be equal on one processor and not on another.
    """
    squares = {
        operator.outputs[0]: operator.index
        for operator in graph.operators
        if (operator.name == "SQUARE" or (operator.name == "MUL" and len(set(operator.inputs)) == 1))
        and graph.tensors[operator.outputs[0]].dtype in ("float32", "float16")
    }
    return {
        f"{operator.name} of the squares {graph.tensors[operator.inputs[0]].name} is rounded otherwise apart from "
        "them, since the runtime makes one operator of both": [squares[operator.inputs[0]], operator.index]
        for operator in graph.operators
        if operator.name in ("MEAN", "SUM") and operator.inputs and operator.inputs[0] in squares
    }


def _resources(model: Model, operator: Operator) -> set[str]:
    """Return the named resources that an operator opens, also in the graphs that it calls."""
    found: set[str] = set()
    seen: set[int] = set()
    todo = [operator]
    while todo:
        current = todo.pop()
        if current.resource:
            found.add(current.resource)
        for index in set(current.calls) - seen:
            seen.add(index)
            todo.extend(model.graphs[index].operators)
    return found


def _refusal(graph: Graph, flow: Dataflow, index: int, crossing: Sequence[Tensor]) -> str | None:
    for constraint in flow.constraints:
        if constraint.first < index <= constraint.last:
            return constraint.reason
    if len(crossing) > MAX_TENSORS:
        return f"{len(crossing)} tensors would cross, and a message carries {MAX_TENSORS}"
    ranked = any(tensor.raw.hasRank for tensor in graph.tensors)
    for tensor in crossing:
        reason = _immovable(tensor, ranked)
        if reason:
            return f"tensor {tensor.name} would cross, and {reason}"
    return slice_refusal(graph, flow, 0, index) or slice_refusal(graph, flow, index, len(graph.operators))


def _immovable(tensor: Tensor, ranked: bool) -> str | None:
    """Return why a tensor cannot be sent from one device to another, None if it can."""
    if tensor.dtype is None:
        return f"its type {tensor.type_name} cannot be sent between devices"
    if tensor.sparse:
        return "it is sparse"
    if len(tensor.shape) > MAX_RANK:
        return f"it has {len(tensor.shape)} dimensions, of which messages carry {MAX_RANK}"
    if tensor.unranked and ranked:
        return "the file does not say how many dimensions it has"
    return None


def slice_refusal(graph: Graph, flow: Dataflow, start: int, stop: int) -> str | None:
    """Return why operators [start, stop) cannot make a slice of their own, None if they can."""
    which = f"operators {start} to {stop - 1}"
    own = [operator for operator in graph.operators[start:stop] if operator.index not in flow.folded]
    if not own:
        return f"{which} only prepare constants"
    here = range(start, stop)
    fed = {i for operator in own for i in operator.inputs if i in graph.inputs or i in flow.maker}
    if all(i in flow.maker and (flow.maker[i] in here or flow.maker[i] in flow.folded) for i in fed):
        return f"{which} need no input, so nothing would start them"
    made = {i: maker for i, maker in flow.maker.items() if maker in here}
    wanted = any(i in graph.outputs for i in made) or any(
        flow.last_reader.get(i, -1) >= stop for i, maker in made.items() if maker not in flow.folded
    )
    passed = stop == len(graph.operators) and any(i not in flow.maker for i in graph.outputs)
    if not (wanted or passed):
        return f"{which} make nothing that is needed later"
    return None
