"""Runs the graphs of a stage with LiteRT: what enters and the weights in, what leaves and the gradients out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from har_edge.errors import ModelError
from har_edge.inference.interpreter import Interpreter
from har_edge.learning.split.tensors import Array, Arrays
from har_edge.learning.updates.vectors import Vector, flatten, unflatten
from har_edge.tflite.gradient.spec import PortSpec, gradient_port, weight_port
from har_edge.tflite.gradient.stage_spec import StageSpec


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """The tensors that leave a stage, by name, and those that it holds for the backward pass, by port."""

    leaving: dict[str, Array] = field(repr=False)
    held: dict[str, Array] = field(repr=False)


@dataclass(frozen=True, slots=True)
class BackwardPass:
    """Sums over a micro-batch: the gradient of the weights, and the gradients of what entered, by name.

    At the last stage also the loss and the predictions.
    """

    gradient: Vector = field(repr=False)
    returned: dict[str, Array] = field(repr=False)
    loss: float = 0.0
    predictions: Array | None = field(default=None, repr=False)


class StageCompute(Protocol):
    """The means of a stage: its graphs."""

    spec: StageSpec

    def forward(self, weights: Vector, entering: Arrays) -> ForwardPass:
        """Return what leaves the stage."""

    def backward(self, weights: Vector, held: Arrays, dy: Arrays) -> BackwardPass:
        """Return the gradients, from those of what left, by name."""

    def finish(self, weights: Vector, entering: Arrays, labels: Array, sample_weight: Array) -> BackwardPass:
        """Return loss and gradients of the last stage."""


class StageStep:
    """The graphs of one stage. Raises ModelError where a file and the description do not belong together."""

    def __init__(
        self, forward: bytes | memoryview | None, backward: bytes | memoryview | None, spec: StageSpec, threads: int = 1
    ) -> None:
        self.spec = spec
        self._forward = None if forward is None else Interpreter(bytes(forward), threads=threads)
        self._backward = None if backward is None else Interpreter(bytes(backward), threads=threads)
        weights = {weight_port(number): tuple(one.shape) for number, one in enumerate(spec.weights)}
        if self._forward is not None:
            front = {weight_port(number): weights[weight_port(number)] for number in spec.forward_weights}
            _check(self._forward, front, spec.x, "forward")
        if self._backward is not None:
            back = {weight_port(number): weights[weight_port(number)] for number in spec.backward_weights}
            ends = [one for one in (spec.labels, spec.sample_weight) if one is not None]
            _check(self._backward, back, (*spec.kept, *spec.dy, *ends), "backward")

    def forward(self, weights: Vector, entering: Arrays) -> ForwardPass:
        """Return what leaves the stage: what it makes, and what passes it."""
        spec, found = self.spec, {}
        if self._forward is not None:
            values = self._weights(weights, spec.forward_weights)
            values |= {port.port: entering[port.name] for port in spec.x}
            found = self._forward.run(values)
        made = {port.name: found[port.port] for port in spec.y}
        leaving = {port.name: made.get(port.name, entering.get(port.name)) for port in spec.leaving}
        ports = {port.port: entering[port.name] for port in spec.x} | found
        held = {port.port: ports[port.port] for port in spec.kept}
        return ForwardPass({name: values for name, values in leaving.items() if values is not None}, held)

    def backward(self, weights: Vector, held: Arrays, dy: Arrays) -> BackwardPass:
        """Return the gradients of the weights and of what entered; what passed the stage brings its own."""
        spec = self.spec
        if self._backward is None:
            return BackwardPass(np.zeros(spec.elements, np.float32), self._returned({}, dy))
        values = self._weights(weights, spec.backward_weights)
        values |= {port.port: held[port.port] for port in spec.kept}
        values |= {port.port: dy[port.name] for port in spec.dy}
        found = self._backward.run(values)
        return BackwardPass(self._gradient(found), self._returned(found, dy))

    def finish(self, weights: Vector, entering: Arrays, labels: Array, sample_weight: Array) -> BackwardPass:
        """Return loss, predictions and gradients of the last stage, in one run."""
        spec = self.spec
        if self._backward is None or spec.labels is None or spec.sample_weight is None:
            raise ModelError("this stage is not the last one; call forward and backward")
        assert spec.loss_sum is not None and spec.predictions is not None
        values = self._weights(weights, spec.backward_weights)
        values |= {port.port: entering[port.name] for port in spec.x}
        values |= {spec.labels.port: labels, spec.sample_weight.port: sample_weight}
        found = self._backward.run(values)
        loss = float(found[spec.loss_sum.port].reshape(-1)[0])
        return BackwardPass(self._gradient(found), self._returned(found, {}), loss, found[spec.predictions.port])

    def _weights(self, weights: Vector, numbers: tuple[int, ...]) -> dict[str, Array]:
        arrays = unflatten(weights, self.spec.weights)
        return {weight_port(number): arrays[self.spec.weights[number].name] for number in numbers}

    def _gradient(self, found: Mapping[str, Array]) -> Vector:
        weights = self.spec.weights
        return flatten({one.name: found[gradient_port(number)] for number, one in enumerate(weights)}, weights)

    def _returned(self, found: Mapping[str, Array], dy: Arrays) -> dict[str, Array]:
        """Return the gradients of what entered: those of this stage, and those of what passed it, added up."""
        own = {port.name: found[port.port] for port in self.spec.dx if port.port in found}
        shapes = {port.name: port.shape for port in self.spec.entering}
        returned = {}
        for name in self.spec.returned:
            parts = [one[name] for one in (dy, own) if name in one]
            returned[name] = sum(parts[1:], parts[0]) if parts else np.zeros(shapes[name], np.float32)
        return returned


def _check(
    interpreter: Interpreter, weights: Mapping[str, tuple[int, ...]], ports: tuple[PortSpec, ...], what: str
) -> None:
    wanted = dict(weights) | {port.port: tuple(port.shape) for port in ports}
    there = {port.name: tuple(port.shape) for port in interpreter.inputs}
    if there != wanted:
        name = next(iter({name for name, shape in wanted.items() if there.get(name) != shape} or there))
        raise ModelError(
            f"{what} graph and description of a stage differ: {name} has shape {there.get(name)} in the file, and "
            f"{wanted.get(name)} in the description; send both anew"
        )


@dataclass(frozen=True, slots=True)
class StageTimes:
    """Seconds of one micro-batch, forward and backward; the last stage has them all in `backward_s`."""

    forward_s: float
    backward_s: float


def measure_stage(step: StageCompute, weights: Vector, clock: Callable[[], float], seconds: float = 0.3) -> StageTimes:
    """Return the median times of a stage with zeros for samples, measured for so many seconds each."""
    spec = step.spec
    entering = {port.name: np.zeros(port.shape, port.dtype) for port in spec.entering}
    if spec.last:
        assert spec.labels is not None and spec.sample_weight is not None
        labels, ones = np.zeros(spec.labels.shape, np.float32), np.ones(spec.sample_weight.shape, np.float32)
        return StageTimes(0.0, median_time(lambda: step.finish(weights, entering, labels, ones), clock, seconds))
    held = step.forward(weights, entering).held
    dy = {port.name: np.zeros(port.shape, np.float32) for port in spec.ports(spec.awaited, spec.leaving)}
    forward_s = median_time(lambda: step.forward(weights, entering), clock, seconds)
    backward_s = median_time(lambda: step.backward(weights, held, dy), clock, seconds) if spec.trains else 0.0
    return StageTimes(forward_s, backward_s)


def median_time(run: Callable[[], object], clock: Callable[[], float], seconds: float) -> float:
    """Return the median seconds of a call that is repeated for so many seconds, after a first one that counts not."""
    run()  # the first one allocates
    times: list[float] = []
    while not times or sum(times) < seconds:
        began = clock()
        run()
        times.append(clock() - began)
    return sorted(times)[len(times) // 2]
