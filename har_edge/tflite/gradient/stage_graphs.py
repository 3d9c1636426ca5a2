"""Write the graphs of one stage of split training: operators [start, stop), forward and backward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from msgspec import structs

from har_edge.tflite.cuts import Dataflow, crossing_tensors, list_cuts, trace_dataflow
from har_edge.tflite.gradient.builder import Shape
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.losses import Loss
from har_edge.tflite.gradient.shapes import batch_shapes
from har_edge.tflite.gradient.spec import PortSpec, WeightSpec, weight_port
from har_edge.tflite.gradient.stage_spec import StageSpec
from har_edge.tflite.gradient.training_graph import (
    GraphJob,
    GraphWriter,
    slice_weights,
    trained_in_front,
    write_training_graph,
)
from har_edge.tflite.gradient.weights import list_weights
from har_edge.tflite.model import Model


@dataclass(frozen=True, slots=True)
class StageGraphs:
    """The files of a stage; no `forward` at the last stage, no `backward` where nothing is trained up to its end."""

    forward: memoryview | None = field(repr=False)
    backward: memoryview | None = field(repr=False)
    spec: StageSpec


def training_cuts(model: Model) -> tuple[int, ...]:
    """Return the operators before which a model can be cut for training, in order.

    A place where one weight is read on both sides is none: each side would change its copy.
    """
    spans = _weight_spans(model)
    return tuple(
        cut.index
        for cut in list_cuts(model)
        if cut.refusal is None and not any(first < cut.index <= last for first, last, _ in spans)
    )


def check_training_cuts(model: Model, cuts: Iterable[int]) -> None:
    """Raise GradientError for a cut that has a weight on both sides, or that the model cannot be cut at."""
    refusals = {cut.index: cut.refusal for cut in list_cuts(model)}
    for index in cuts:
        if index not in refusals or refusals[index]:
            raise GradientError(f"{model.name} cannot be cut before operator {index}: {refusals.get(index, 'none')}")
        for first, last, name in _weight_spans(model):
            if first < index <= last:
                raise GradientError(
                    f"{model.name} cannot be cut before operator {index} for training: operators {first} and {last} "
                    f"both read weight {name}; keep them in one stage"
                )


def write_stage(
    model: Model,
    start: int,
    stop: int,
    *,
    batch: int,
    loss: Loss,
    keep: bool = False,
    label_smoothing: float = 0.0,
) -> StageGraphs:
    """Return the graphs of operators [start, stop) for micro-batches of `batch` samples.

    The stage at the end of the model computes loss, forward and backward pass in one run. The others have a graph each
    for forward and backward. With `keep` the forward graph gives all that the backward graph reads; else that computes
    it anew from what entered. Raises GradientError for what cannot be differentiated, with its operator.
    """
    flow, shapes = trace_dataflow(model), batch_shapes(model, batch)
    in_front = slice_weights(model, None, start, stop)[1]
    trained = trained_in_front(model, in_front, start)
    entering = _crossing(model, flow, shapes, start)
    spec = StageSpec(
        start=start,
        stop=stop,
        batch=batch,
        entering=entering,
        leaving=(),
        returned=_with_gradient(model, entering, trained),
        awaited=(),
        weights=(),
        keep=keep,
    )
    if stop == len(model.main.operators):
        return _last_stage(model, spec, loss, label_smoothing)
    here = {place for one in list_weights(model) for place, _ in one.uses if start <= place < stop}
    leaving = _crossing(model, flow, shapes, stop)
    trained = trained_in_front(model, in_front | here, stop)
    spec = structs.replace(spec, leaving=leaving, awaited=_with_gradient(model, leaving, trained))
    return _middle_stage(model, spec, in_front)


def _crossing(model: Model, flow: Dataflow, shapes: dict[int, Shape], cut: int) -> tuple[PortSpec, ...]:
    """Return what crosses a cut: tensors that operators in front of it make, and inputs that are read behind it."""
    graph = model.main
    inputs = [index for index in graph.inputs if index not in flow.maker and flow.last_reader.get(index, -1) >= cut]
    found = [*(inputs if cut else graph.inputs), *(crossing_tensors(flow, cut) if cut else ())]
    ports: list[PortSpec] = []
    for index in found:
        tensor = graph.tensors[index]
        if tensor.dtype is None:
            raise GradientError(f"tensor {tensor.name} is of type {tensor.type_name}; expected numbers")
        if any(port.name == tensor.name for port in ports) or not tensor.name:
            raise GradientError(
                f"tensor {tensor.name!r} crosses the cut before operator {cut} of {model.name}, and has no name of its "
                "own; give each tensor one"
            )
        ports.append(PortSpec(tensor.name, tensor.name, shapes[index], tensor.dtype))
    return tuple(ports)


def _with_gradient(model: Model, ports: tuple[PortSpec, ...], trained: set[int]) -> tuple[str, ...]:
    names = {model.main.tensors[index].name for index in trained}
    return tuple(port.name for port in ports if port.dtype == "float32" and port.name in names)


def _weight_spans(model: Model) -> list[tuple[int, int, str]]:
    """Return the first and the last operator that read each weight, and its name."""
    return [
        (min(place for place, _ in one.uses), max(place for place, _ in one.uses), one.name)
        for one in list_weights(model)
    ]


def _last_stage(model: Model, spec: StageSpec, loss: Loss, label_smoothing: float) -> StageGraphs:
    graph = write_training_graph(model, batch=spec.batch, loss=loss, label_smoothing=label_smoothing, start=spec.start)
    own = graph.spec
    numbers = tuple(range(len(own.weights)))
    found = structs.replace(
        spec,
        weights=own.weights,
        backward_weights=numbers,
        x=own.x,
        kept=own.x,
        dx=own.dx,
        loss=own.loss,
        labels=own.y,
        sample_weight=own.sample_weight,
        loss_sum=own.loss_sum,
        predictions=own.predictions,
    )
    return StageGraphs(None, graph.data, found)


def _middle_stage(model: Model, spec: StageSpec, in_front: frozenset[int]) -> StageGraphs:
    """Write forward and backward pass into one builder, and cut its file between the two."""
    weights = slice_weights(model, None, spec.start, spec.stop)[0]
    job = GraphJob(model, spec.batch, spec.start, spec.stop, weights, {}, False, in_front, may_be_idle=True)
    writer = GraphWriter(job)
    while idle := writer.write():
        job = replace(job, weights=tuple(one for one in job.weights if one not in idle))
        writer = GraphWriter(job)
    return _StageFiles(writer, spec).graphs()


class _StageFiles:
    """The two files of a builder that holds forward and backward pass of a stage."""

    def __init__(self, writer: GraphWriter, spec: StageSpec) -> None:
        self.writer, self.builder, self.spec = writer, writer.builder, spec
        self.weights = [writer.ports[weight_port(number)] for number in range(len(writer.job.weights))]
        self.x = {writer.ports[port.port]: port.port for port in writer.x}
        self.dy = [writer.ports[port.port] for port in writer.dy]
        self.outputs = list(writer.outputs.values())
        self.names: dict[int, str] = dict(self.x)  # tensors that leave, or are kept, by port

    def graphs(self) -> StageGraphs:
        """Return the files and the description."""
        builder, y = self.builder, self.leaving()
        kept = self.kept()
        given = [*(number for number, port in self.names.items() if port.startswith("y/"))]
        forward = [*given, *(number for number in kept if number not in self.x and number not in given)]
        forward_weights = self.used([*self.weights, *self.x], forward)
        backward_weights = self.used([*self.weights, *kept, *self.dy], self.outputs)
        spec = structs.replace(
            self.spec,
            weights=tuple(WeightSpec(one.name, one.shape) for one in self.writer.job.weights),
            forward_weights=forward_weights,
            backward_weights=backward_weights,
            x=self.writer.x,
            y=y,
            kept=tuple(self.writer.port(self.names[number], "", number) for number in kept),
            dy=self.writer.dy,
            dx=self.writer.dx,
        )
        front = [*(self.weights[number] for number in forward_weights), *self.x]
        back = [*(self.weights[number] for number in backward_weights), *kept, *self.dy]
        backward = builder.encode(back, self.outputs) if self.outputs else None
        return StageGraphs(builder.encode(front, forward) if forward else None, backward, spec)

    def leaving(self) -> tuple[PortSpec, ...]:
        """Name what the stage makes and gives on; a tensor that is an input, or leaves twice, is copied."""
        tensors, wanted = self.writer.model.main.tensors, {port.name for port in self.spec.leaving}
        ports: list[PortSpec] = []
        for index in self.writer.walk.part.outputs:
            if tensors[index].name not in wanted:
                continue
            number = self.writer.walk.tensor(index)
            if number in self.names or self.builder.value(number) is not None:
                number = self.builder.identity(number)
            self.names[number] = f"y/{len(ports)}"
            self.builder.rename(number, self.names[number])
            ports.append(self.writer.port(self.names[number], tensors[index].name, number))
        return tuple(ports)

    def kept(self) -> list[int]:
        """Return what the backward file takes of the forward pass, and name it."""
        place = self.writer.forward_operators if self.spec.keep else 0
        inputs = [*self.weights, *self.x, *self.dy]
        found = self.builder.crossing(place, inputs, self.outputs)
        kept = [number for number in found if number not in self.weights and number not in self.dy]
        for number in kept:
            if number not in self.names:
                self.names[number] = f"kept/{number}"
                self.builder.rename(number, self.names[number])
        return kept

    def used(self, inputs: list[int], outputs: list[int]) -> tuple[int, ...]:
        """Return the numbers of the weights that outputs need, where a file begins at these inputs."""
        found = set(self.builder.crossing(0, inputs, outputs))
        return tuple(number for number, weight in enumerate(self.weights) if weight in found)
