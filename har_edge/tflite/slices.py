"""Cut a model: find the operators and tensors of each slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow, check_cuts, slice_refusal, tensor_spec, trace_dataflow
from har_edge.tflite.encode import ModelPart, encode
from har_edge.tflite.manifest import ModelState, TensorSpec
from har_edge.tflite.metadata import append_files, keep_files, read_annotations
from har_edge.tflite.model import Graph, Model
from har_edge.tflite.schema import text
from har_edge.tflite.state import state_of


@dataclass(frozen=True, slots=True)
class Slice:
    """Operators [start, stop) of a model as a model of their own.

    `inputs` are inputs of the model or outputs of any earlier slice. `outputs` are the tensors that a later slice reads
    or the model gives. `part` holds both by index, with the operators that only unpack constants and are repeated here.
    `state` is the state that the slice keeps from one run to the next.
    """

    start: int
    stop: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    part: ModelPart
    state: ModelState


def slice_model(model: Model, cuts: Sequence[int]) -> list[Slice]:
    """Return the slices between the given cuts, in the order in which they run; no cut gives the whole model.

    Raises CutError for a cut that is out of range or refused, and for two cuts with nothing to run between them.
    """
    graph, flow = model.main, trace_dataflow(model)
    places = check_cuts(graph, flow, cuts)
    bounds = [0, *places, len(graph.operators)]
    slices = []
    for start, stop in pairwise(bounds):
        refusal = slice_refusal(graph, flow, start, stop) if places else None
        if refusal:
            raise CutError(f"cannot cut before both operator {start} and operator {stop}: {refusal}; leave one out")
        slices.append(make_slice(model, flow, start, stop))
    return slices


def part_of(model: Model, flow: Dataflow, start: int, stop: int) -> ModelPart:
    """Return the operators [start, stop) with what they take and give, as a slice of them has it; checks no cut."""
    return _part(model.main, flow, start, stop)


def make_slice(model: Model, flow: Dataflow, start: int, stop: int) -> Slice:
    """Return operators [start, stop) as a slice; whether the model can be cut there is not checked."""
    graph, part = model.main, _part(model.main, flow, start, stop)
    return Slice(
        start=start,
        stop=stop,
        inputs=tuple(tensor_spec(graph.tensors[i]) for i in part.inputs),
        outputs=tuple(tensor_spec(graph.tensors[i]) for i in part.outputs),
        part=part,
        state=state_of(model, part.operators),
    )


def write_whole(model: Model) -> bytes:
    """Return the whole model as the runtime can load it: the bytes of its file, unless a name in it is no text.

    Outputs that no message can carry, and that not every runtime can describe, are left out. Raises CutError when a
    model that must be written anew makes no slice.
    """
    if not model.main.unsent and all(_is_text(tensor.raw.name) for tensor in model.main.tensors):
        return bytes(model.data)
    return bytes(write_slice(model, slice_model(model, [])[0]))


def _is_text(name: bytes | str | None) -> bool:
    """Return whether the runtime reads the name that the file holds; it reads UTF-8 up to a NUL."""
    raw = name.encode() if isinstance(name, str) else name or b""
    return text(raw).encode() == raw


def write_slice(model: Model, piece: Slice) -> memoryview:
    """Return a slice as a .tflite file. The weights are copied once, from the model's file into the result.

    Metadata about the inputs goes with a slice that has all inputs, labels with the slice that has all outputs.
    """
    graph, part = model.main, piece.part
    inputs, outputs = part.inputs == graph.inputs, part.outputs == graph.outputs and not graph.unsent
    files = keep_files(read_annotations(model), inputs=inputs, outputs=outputs)
    return append_files(encode(model, part), files)


def _part(graph: Graph, flow: Dataflow, start: int, stop: int) -> ModelPart:
    n = len(graph.operators)
    whole = (start, stop) == (0, n)
    operators = tuple(range(n)) if whole else _operators(graph, flow, start, stop)
    here = set(operators)
    read = {i for index in operators for i in graph.operators[index].inputs}
    made = {i: maker for i, maker in flow.maker.items() if start <= maker < stop}
    crossing_in = [i for i, maker in flow.maker.items() if i in read and maker not in here]
    inputs = [i for i in graph.inputs if i in read]
    outputs = [i for i in graph.outputs if i in made]
    if stop == n:  # an output that is an input or a constant leaves with the last slice
        passed = [i for i in graph.outputs if i not in flow.maker]
        inputs = [i for i in graph.inputs if i in inputs or i in passed]
        outputs = [i for i in graph.outputs if i in made or i in passed]
    crossing_out = [
        i
        for i, maker in made.items()
        if maker not in flow.folded and flow.last_reader.get(i, -1) >= stop and i not in outputs
    ]
    return ModelPart(
        whole=whole,
        operators=operators,
        inputs=(*inputs, *crossing_in),
        outputs=(*outputs, *crossing_out),
    )


def _operators(graph: Graph, flow: Dataflow, start: int, stop: int) -> tuple[int, ...]:
    """Return the operators of a slice: the constant ones that it needs, wherever they stand, and then its own."""
    keep = {i for i in range(start, stop) if i not in flow.folded}
    keep |= {flow.maker[i] for i in graph.outputs if start <= flow.maker.get(i, -1) < stop}
    todo = list(keep)
    while todo:
        for tensor in graph.operators[todo.pop()].inputs:
            maker = flow.maker.get(tensor, -1)
            if maker in flow.folded and maker not in keep:
                keep.add(maker)
                todo.append(maker)
    return tuple(sorted(keep))
