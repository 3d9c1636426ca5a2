"""Run a training graph: weights and samples in, loss and gradients out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import MessageError, ModelError
from har_edge.inference.interpreter import Array, Interpreter
from har_edge.tflite.gradient.spec import PortSpec, TrainingSpec, gradient_port, weight_port

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The results of one step: sums over its samples, each times its weight.

    Attributes:
        loss_sum: The loss; 0.0 for a slice in the middle.
        predictions: The outputs of the model for the samples that came, without those that filled the batch.
        gradients: By the name of the weight, in the order of the description.
        dx: The gradients of what entered the slice, by the name of the tensor; empty for a whole model.
    """

    loss_sum: float
    predictions: Floats | None
    gradients: dict[str, Floats] = field(repr=False)
    dx: dict[str, Floats] = field(repr=False)


class TrainingStep:
    """Holds a training graph and runs it; not safe for use from two threads at once.

    Raises ModelError where file and description do not belong together.
    """

    def __init__(self, data: bytes | memoryview, spec: TrainingSpec, *, threads: int = 1) -> None:
        self.spec = spec
        self._interpreter = Interpreter(bytes(data), threads=threads)
        self._check()

    def run(
        self,
        weights: Mapping[str, Floats],
        x: Array | Mapping[str, Array],
        y: Floats,
        sample_weight: Floats | None = None,
        masks: Mapping[str, Floats] | None = None,
    ) -> TrainingResult:
        """Return loss, predictions and gradients of at most `spec.batch` samples.

        Args:
            weights: By the name of the weight.
            x: The samples, or by input where there are several; [samples, ...].
            y: One-hot classes, or the target of the mean squared error; [samples, ...].
            sample_weight: [samples]; None is 1 each.
            masks: The dropout masks by tensor, [samples, ...]; None drops nothing.

        Raises MessageError for a wrong name, shape or type.
        """
        spec = self.spec
        if spec.y is None or spec.sample_weight is None or spec.loss_sum is None or spec.predictions is None:
            raise ModelError("this training graph is of a slice in the middle; call `backward` with its dy")
        count = len(y)
        given = np.ones(count, np.float32) if sample_weight is None else sample_weight
        values = self._values(weights, x, masks, count)
        values[spec.y.port] = self._filled(spec.y, y, count)
        values[spec.sample_weight.port] = self._filled(spec.sample_weight, given, count)
        got = self._interpreter.run(values)
        total = float(got[spec.loss_sum.port].reshape(-1)[0])
        return self._result(got, total, got[spec.predictions.port][:count], count)

    def backward(
        self,
        weights: Mapping[str, Floats],
        x: Array | Mapping[str, Array],
        dy: Floats | Mapping[str, Floats],
        masks: Mapping[str, Floats] | None = None,
    ) -> TrainingResult:
        """Return the gradients of a slice in the middle, from those of what leaves it."""
        if not self.spec.dy:
            raise ModelError("this training graph ends with a loss; call `run` with its y")
        by_name = _by_name(dy, self.spec.dy)
        count = len(next(iter(by_name.values())))
        values = self._values(weights, x, masks, count)
        for port in self.spec.dy:
            values[port.port] = self._filled(port, _taken(by_name, port.name), count)
        return self._result(self._interpreter.run(values), 0.0, None, count)

    def _values(
        self,
        weights: Mapping[str, Floats],
        x: Array | Mapping[str, Array],
        masks: Mapping[str, Floats] | None,
        count: int,
    ) -> dict[str, Array]:
        values: dict[str, Array] = {}
        for number, weight in enumerate(self.spec.weights):
            values[weight_port(number)] = _taken(weights, weight.name)
        samples = _by_name(x, self.spec.x)
        for port in self.spec.x:
            values[port.port] = self._filled(port, _taken(samples, port.name), count)
        for mask in self.spec.masks:
            given = np.ones((count, *mask.shape[1:]), np.float32) if masks is None else _taken(masks, mask.name)
            values[mask.port] = self._filled(PortSpec(mask.port, mask.name, mask.shape), given, count)
        return values

    def _filled(self, port: PortSpec, values: Array, count: int) -> Array:
        """Return values of fewer samples than the batch with zeros behind them."""
        rows = port.shape[0] // self.spec.batch  # several for a tensor with more than one row a sample
        wanted = (count * rows, *port.shape[1:])
        if count > self.spec.batch or values.shape != wanted:
            raise MessageError(
                f"{port.name or port.port} came with shape {list(values.shape)}; expected {list(wanted)} for {count} "
                f"samples, and at most {self.spec.batch} samples"
            )
        if count == self.spec.batch:
            return np.ascontiguousarray(values)
        filled = np.zeros(port.shape, values.dtype)
        filled[: len(values)] = values
        return filled

    def _result(self, got: Mapping[str, Array], loss: float, predictions: Floats | None, count: int) -> TrainingResult:
        gradients = {weight.name: got[gradient_port(i)] for i, weight in enumerate(self.spec.weights)}
        dx = {one.name: got[one.port][: count * (one.shape[0] // self.spec.batch)] for one in self.spec.dx}
        return TrainingResult(loss, predictions, gradients, dx)

    def _check(self) -> None:
        spec = self.spec
        ports = {weight_port(i): weight.shape for i, weight in enumerate(spec.weights)}
        ports |= {one.port: one.shape for one in (*spec.x, spec.y, spec.sample_weight, *spec.dy) if one is not None}
        ports |= {mask.port: mask.shape for mask in spec.masks}
        given = {gradient_port(i): weight.shape for i, weight in enumerate(spec.weights)}
        given |= {one.port: one.shape for one in (spec.loss_sum, spec.predictions, *spec.dx) if one is not None}
        for wanted, found in ((ports, self._interpreter.inputs), (given, self._interpreter.outputs)):
            there = {port.name: port.shape for port in found}
            if there != wanted:
                name = next(iter({name for name, shape in wanted.items() if there.get(name) != shape} or there))
                raise ModelError(
                    f"training graph and description differ: {name} has shape {there.get(name)} in the file, and "
                    f"{wanted.get(name)} in the description; send both anew"
                )


def _by_name(values: Array | Mapping[str, Array], ports: tuple[PortSpec, ...]) -> Mapping[str, Array]:
    if isinstance(values, Mapping):
        return values
    if len(ports) != 1:
        names = ", ".join(port.name for port in ports)
        raise MessageError(f"one array came for {len(ports)} tensors; expected one for each of {names}")
    return {ports[0].name: values}


def _taken(values: Mapping[str, Array], name: str) -> Array:
    if name not in values:
        raise MessageError(f"{name} is missing; {', '.join(sorted(values)) or 'nothing'} came")
    return values[name]
