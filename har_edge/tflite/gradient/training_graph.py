"""Write the training graph of a model, or of a slice of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from har_edge.tflite.gradient.builder import GraphBuilder
from har_edge.tflite.gradient.errors import GradientError
from har_edge.tflite.gradient.losses import Loss, LossTensors, cross_entropy, mean_squared
from har_edge.tflite.gradient.shapes import batch_shapes
from har_edge.tflite.gradient.spec import (
    MaskSpec,
    PortSpec,
    TrainingSpec,
    WeightSpec,
    gradient_port,
    weight_port,
)
from har_edge.tflite.gradient.walk import TrainingWalk
from har_edge.tflite.gradient.weights import Weight, find_weights, list_weights
from har_edge.tflite.model import Model


@dataclass(frozen=True, slots=True)
class TrainingGraph:
    """The file of a training graph, and what it takes and gives."""

    data: memoryview = field(repr=False)
    spec: TrainingSpec


@dataclass(frozen=True, slots=True)
class GraphJob:
    """Operators [start, stop) of a model to write, their weights, and what is asked of their gradients."""

    model: Model
    batch: int
    start: int
    stop: int
    weights: tuple[Weight, ...]
    dropout: Mapping[str, float]
    input_gradients: bool
    in_front: frozenset[int]  # the operators with weights in front of the slice
    loss: Loss | None = None
    smoothing: float = 0.0
    may_be_idle: bool = False  # whether it is no error that nothing has a gradient
    to_zero: bool = False


def write_training_graph(
    model: Model,
    *,
    batch: int,
    loss: Loss,
    label_smoothing: float = 0.0,
    start: int = 0,
    trainable: Collection[str] | None = None,
    dropout: Mapping[str, float] | None = None,
    input_gradients: bool = False,
    to_zero: bool = False,
) -> TrainingGraph:
    """Return the graph (weights, x, y, sample weights) -> (loss, predictions, gradients) of operators from `start` on.

    Args:
        batch: The samples of one run; a smaller batch is filled up with samples of weight 0.
        loss: Cross entropy takes the logits in front of a SOFTMAX at the end, else the output as logits.
        label_smoothing: The share of each one-hot target that is spread over all classes.
        start: The first operator of the last slice; 0 is the whole model. An input of a slice gets a gradient where
            something in front of it can be trained.
        trainable: The names of the weights to train, as `find_weights` gives them; None is all.
        dropout: The rate for each tensor, by name, whose values a mask drops.
        input_gradients: Whether all that enters gets a gradient, the samples too.
        to_zero: Whether the target of the mean squared error is 0. No operator reads y then, which has the shape of
            x: so a network learns to make its output vanish.

    Raises GradientError for what cannot be trained or differentiated.
    """
    if not 0 <= label_smoothing < 1:
        raise GradientError(f"label smoothing {label_smoothing} came; expected a number from 0 to below 1")
    stop = len(model.main.operators)
    weights, in_front = slice_weights(model, trainable, start, stop)
    if to_zero and loss is not Loss.MEAN_SQUARED:
        raise GradientError("a target of 0 is one of the mean squared error; choose that loss")
    job = GraphJob(model, batch, start, stop, weights, dropout or {}, input_gradients, in_front, loss, label_smoothing)
    job = replace(job, to_zero=to_zero)
    return _write(job, named=trainable is not None)


def write_backward_graph(
    model: Model,
    *,
    batch: int,
    start: int,
    stop: int,
    trainable: Collection[str] | None = None,
    dropout: Mapping[str, float] | None = None,
    input_gradients: bool = False,
) -> TrainingGraph:
    """Return the graph (weights, x, dy) -> (dx, gradients) of operators [start, stop); it runs them forward again.

    `dy` are the gradients of what leaves the slice, each the sum of what the slices behind it gave. The other arguments
    are those of `write_training_graph`.
    """
    weights, in_front = slice_weights(model, trainable, start, stop)
    job = GraphJob(model, batch, start, stop, weights, dropout or {}, input_gradients, in_front)
    return _write(job, named=trainable is not None)


def slice_weights(
    model: Model, trainable: Collection[str] | None, start: int, stop: int
) -> tuple[tuple[Weight, ...], frozenset[int]]:
    """Return the weights that a slice reads, and the operators in front of it that read weights."""
    n = len(model.main.operators)
    if not 0 <= start < stop <= n:
        raise GradientError(f"operators {start} to {stop} came; expected a slice of operators 0 to {n}")
    found = list_weights(model, trainable)
    here = [replace(one, uses=tuple(use for use in one.uses if start <= use[0] < stop)) for one in found]
    in_front = frozenset(place for one in found for place, _ in one.uses if place < start)
    return tuple(weight for weight in here if weight.uses), in_front


def _write(job: GraphJob, *, named: bool) -> TrainingGraph:
    """Write the graph; weights that have no part in what leaves the slice stay constants."""
    writer = GraphWriter(job)
    idle = writer.write()
    if not idle:
        return writer.graph()
    if named:
        raise GradientError(f"weight {idle[0].name} has no part in what is trained; leave it out")
    return _write(replace(job, weights=tuple(one for one in job.weights if one not in idle)), named=False)


class GraphWriter:
    """Writes the forward and the backward pass of one slice into one builder.

    The operators of the forward pass are the first `forward_operators` of the file.
    """

    def __init__(self, job: GraphJob) -> None:
        if not 1 <= job.batch <= 1 << 20:
            raise GradientError(f"a batch of {job.batch} came; expected 1 to {1 << 20} samples")
        self.job, self.model = job, job.model
        self.builder = GraphBuilder()
        shapes = batch_shapes(job.model, job.batch)
        self.walk = TrainingWalk(job.model, self.builder, shapes, job.start, job.stop)
        self.ports: dict[str, int] = {}  # inputs of the file
        self.outputs: dict[str, int] = {}
        self.dy: tuple[PortSpec, ...] = ()
        self.loss_sum: PortSpec | None = None
        self.predictions: PortSpec | None = None
        self.forward_operators = 0

    def write(self) -> list[Weight]:
        """Write all, and return the weights that have no gradient."""
        upstream = trained_in_front(self.model, self.job.in_front, self.job.start)
        for number, weight in enumerate(self.job.weights):
            self.ports[weight_port(number)] = self.walk.feed_weight(weight, weight_port(number))
        entering = self.walk.part.inputs
        self.x = tuple(
            self.feed(f"x/{number}", index, active=self.wants(index, upstream)) for number, index in enumerate(entering)
        )
        self.masks = self.feed_masks()
        gradients = self.with_loss() if self.job.loss else self.with_dy()
        self.dx = tuple(
            self.give(f"dx/{number}", spec.name, gradients[self.ports[spec.port]])
            for number, spec in enumerate(self.x)
            if self.ports[spec.port] in gradients and self.walk.is_active(self.ports[spec.port])
        )
        idle = [
            weight for number, weight in enumerate(self.job.weights) if self.ports[weight_port(number)] not in gradients
        ]
        for number, weight in enumerate(self.job.weights if not idle else ()):
            self.give(gradient_port(number), weight.name, gradients[self.ports[weight_port(number)]])
        if not idle and not self.job.weights and not self.dx and not self.job.may_be_idle:
            find_weights(self.model)  # says why a whole model has none
            raise GradientError(
                f"operators {self.job.start} to {self.job.stop} of {self.model.name} have nothing to train; "
                "take a slice with float weights"
            )
        return idle

    def wants(self, index: int, upstream: set[int]) -> bool:
        """Return whether something that enters needs a gradient."""
        tensor = self.model.main.tensors[index]
        return tensor.dtype == "float32" and (self.job.input_gradients or index in upstream)

    def feed(self, port: str, index: int, *, active: bool) -> PortSpec:
        """Add what enters as an input of the file."""
        number = self.ports[port] = self.walk.feed(index, port, active=active)
        return self.port(port, self.model.main.tensors[index].name, number)

    def feed_masks(self) -> tuple[MaskSpec, ...]:
        """Add the dropout masks of tensors that the slice makes."""
        made = {i for place in self.walk.part.operators for i in self.model.main.operators[place].outputs}
        names = {self.model.main.tensors[index].name: index for index in made}
        found: list[MaskSpec] = []
        for name, rate in self.job.dropout.items():
            if not 0 <= rate < 1:
                raise GradientError(f"dropout {rate} came for {name}; expected a rate from 0 to below 1")
            index = names.get(name)
            if index is None and self.job.start == 0 and self.job.stop == len(self.model.main.operators):
                raise GradientError(f"dropout came for {name!r}; expected a tensor that an operator of the model gives")
            if index is not None and self.model.main.tensors[index].dtype == "float32":
                port = f"mask/{len(found)}"
                self.ports[port] = self.walk.feed_mask(index, port)
                found.append(MaskSpec(port, name, self.builder.shape(self.ports[port]), rate))
        return tuple(found)

    def port(self, port: str, name: str, number: int) -> PortSpec:
        """Return the description of a tensor of the file."""
        return PortSpec(port, name, self.builder.shape(number), self.builder.dtype(number))

    def give(self, port: str, name: str, number: int) -> PortSpec:
        """Make a tensor an output of its own; one that is an input, a constant or another output is copied."""
        taken = {*self.ports.values(), *self.outputs.values()}
        if number in taken or self.builder.value(number) is not None:
            number = self.builder.identity(number)
        self.builder.rename(number, port)
        self.outputs[port] = number
        return self.port(port, name, number)

    def with_loss(self) -> dict[int, int]:
        """Write forward, loss and backward; return the gradients."""
        leaving = self.walk.part.outputs
        if len(leaving) != 1:
            raise GradientError(f"{self.model.name} has {len(leaving)} outputs; expected one to take a loss of")
        index = leaving[0]
        tensor = self.model.main.tensors[index]
        if tensor.dtype != "float32":
            find_weights(self.model)  # of a quantised model it names the weights
            raise GradientError(
                f"output {tensor.name} is {tensor.dtype}, and a loss needs float32; take the float file of this model"
            )
        shape = self.walk.shapes[index]
        if not shape or shape[0] != self.job.batch:
            raise GradientError(
                f"output {tensor.name} has shape {list(shape)} for {self.job.batch} samples; expected one row a sample"
            )
        wanted = self.builder.shape(self.ports[self.x[0].port]) if self.job.to_zero else shape
        self.ports["y"] = self.builder.empty(wanted, "float32", "y")
        self.ports["sample_weight"] = self.builder.empty((self.job.batch,), "float32", "sample_weight")
        result, seed = self.loss(index)
        self.loss_sum = self.give("loss", "", result.total)
        gradients = self.walk.backward({seed: result.gradient})
        self.predictions = self.give("predictions", tensor.name, result.predictions)
        return gradients

    def loss(self, index: int) -> tuple[LossTensors, int]:
        """Write the forward pass and the loss; return them with the tensor whose gradient the loss gives."""
        y, sample_weight = self.ports["y"], self.ports["sample_weight"]
        if self.job.loss is Loss.MEAN_SQUARED:
            self.walk.forward()
            output = self.walk.tensor(index)
            target = self.builder.constant(0.0) if self.job.to_zero else y
            return mean_squared(self.builder, output, target, sample_weight), output
        last = self.model.main.operators[self.walk.flow.maker[index]]
        joined = last.name == "SOFTMAX"
        if last.name == "LOGISTIC":
            raise GradientError(
                f"operator {last.index} (LOGISTIC) ends the model, and cross entropy needs a SOFTMAX or logits; "
                "take the mean squared error"
            )
        self.walk.forward(without=last.index if joined else None)
        logits = self.walk.tensor(last.inputs[0] if joined else index)
        beta = float(last.raw.builtinOptions.beta) if joined else 1.0
        result = cross_entropy(self.builder, logits, y, sample_weight, self.job.smoothing, beta)
        return (result if joined else replace(result, predictions=logits)), logits

    def with_dy(self) -> dict[int, int]:
        """Write forward and backward from the gradients that come in; return the gradients."""
        self.walk.forward()
        self.forward_operators = self.builder.operators
        seeds: dict[int, int] = {}
        specs: list[PortSpec] = []
        for index in self.walk.part.outputs:
            number = self.walk.tensor(index)
            if self.walk.is_active(number):
                port = f"dy/{len(specs)}"
                dy = self.ports[port] = self.builder.empty(self.builder.shape(number), "float32", port)
                # Two tensors of the model are one in the file where an operator changes nothing.
                seeds[number] = self.builder.plus(seeds[number], dy) if number in seeds else dy
                specs.append(self.port(port, self.model.main.tensors[index].name, self.ports[port]))
        self.dy = tuple(specs)
        return self.walk.backward(seeds)

    def graph(self) -> TrainingGraph:
        """Return the file and its description."""
        job = self.job
        ports = {name: self.port(name, "", number) for name, number in self.ports.items()}
        spec = TrainingSpec(
            batch=job.batch,
            loss=job.loss.value if job.loss else "",
            label_smoothing=job.smoothing,
            start=job.start,
            stop=job.stop,
            weights=tuple(WeightSpec(weight.name, weight.shape) for weight in job.weights),
            x=self.x,
            y=ports.get("y"),
            sample_weight=ports.get("sample_weight"),
            dy=self.dy,
            masks=self.masks,
            loss_sum=self.loss_sum,
            predictions=self.predictions,
            dx=self.dx,
        )
        return TrainingGraph(self.builder.encode(list(self.ports.values()), list(self.outputs.values())), spec)


def trained_in_front(model: Model, in_front: Collection[int], stop: int) -> set[int]:
    """Return the tensors that operators before `stop` make and a weight of the operators `in_front` has a part in."""
    found: set[int] = set()
    for operator in model.main.operators[:stop]:
        if operator.index in in_front or found.intersection(operator.inputs):
            found.update(operator.outputs)
    return found
