"""Write the file that adds the summands of all shards, and then the bias and the activation, once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.input_rules import ACTIVATIONS, LinearView, SumKind, zero_of
from har_edge.tflite.split.ranges import AxisRange
from har_edge.tflite.split.share_file import ShareFile
from har_edge.tflite.split.share_graph import ShareGraph, Wanted, trace_share
from har_edge.tflite.split.writer import constant_data


class SumFile(ShareFile):
    """The file that makes a range of the operator's output channels out of the same range of each summand.

    Floats are added in the order of the shards, then the bias. Integers are added in 32 bits and then scaled in
    float32, rounded to even and moved to the zero point, which is how XNNPACK makes 8 bits of its sums.
    """

    def __init__(self, view: LinearView, flow: Dataflow, wanted: AxisRange, summands: Sequence[str]) -> None:
        super().__init__(view.model, flow, _trace_bias(view, flow, wanted))
        self.view, self.wanted = view, wanted
        dtype = "float32" if view.kind is SumKind.FLOAT else "int32"
        self.inputs = [self.tensor(name, dtype) for name in summands]
        total = self.inputs[0]
        for number, one in enumerate(self.inputs[1:], 1):
            total = self.binary("ADD", total, one, dtype, f"sum{number}")
        self.output = self.finish(total) if view.kind is SumKind.FLOAT else self.requantize(total)

    def content(self) -> memoryview:
        """Return the file."""
        return self.encode([self.output])

    def tensor(self, name: str, dtype: str) -> int:
        output = self.view.output
        shape, signature = self.wanted.resized(output.shape), self.wanted.resized(output.signature)
        return self.writer.like(output.index, name, shape, signature, dtype)

    def binary(self, kind: str, first: int, second: int, dtype: str, name: str) -> int:
        """Add an element-wise operator of two tensors."""
        result = self.tensor(name, dtype)
        options = {"ADD": tflite.AddOptionsT, "MUL": tflite.MulOptionsT}.get(kind, tflite.MaximumMinimumOptionsT)()
        self.writer.add(kind, [first, second], [result], options)
        return result

    def finish(self, total: int) -> int:
        """Add the bias and the activation of a float operator."""
        bias = self.writer.constant("zero", np.zeros(1, np.float32))
        if self.view.has(self.view.places.bias):
            bias = self.taken(self.view.part(self.view.places.bias, self.wanted.on(0)))
        result = self.computed(self.view.output.index, self.wanted)
        options = tflite.AddOptionsT()
        options.fusedActivationFunction = self.view.activation
        self.writer.add("ADD", [total, bias], [result], options)
        return result

    def requantize(self, total: int) -> int:
        """Add the bias and the zero points of an integer operator, and round the sum to 8 bits."""
        output = self.view.output.raw
        with_bias = self.binary("ADD", total, self.writer.constant("bias", self.integer_bias()), "int32", "biased")
        real = self.tensor("real", "float32")
        self.writer.add("CAST", [with_bias], [real], tflite.CastOptionsT())
        number = self.binary("MUL", real, self.writer.constant("scale", self.scales()), "float32", "scaled")
        zero, inverse = np.float32(zero_of(output)), np.float32(1) / np.float32(output.quantization.scale[0])
        for kind, limit in zip(("MAXIMUM", "MINIMUM"), ACTIVATIONS[self.view.activation], strict=True):
            if np.isfinite(limit):
                bound = np.array([np.rint(np.float32(limit) * inverse + zero) - zero], np.float32)
                number = self.binary(kind, number, self.writer.constant(kind.lower(), bound), "float32", f"{kind}/out")
        result = self.computed(self.view.output.index, self.wanted)
        self.writer.rescale(result, 1.0, int(zero))
        self.writer.add("QUANTIZE", [number], [result], tflite.QuantizeOptionsT())
        return result

    def integer_bias(self) -> NDArray[np.int32]:
        """Return what comes to the sum of products: the bias, and without zero points, what these would have added."""
        view, channels = self.view, slice(self.wanted.start, self.wanted.stop)
        total = np.zeros(self.wanted.size, np.int64)
        if view.has(view.places.bias):
            total += constant_data(view.model, view.tensor(view.places.bias))[channels]
        if view.kind is SumKind.INTEGER:
            weights = constant_data(view.model, view.tensor(view.places.weights))[channels]
            total -= zero_of(view.tensor(view.places.values).raw) * weights.sum(1, dtype=np.int64)
        return total.astype(np.int32)  # sums of 32 bits wrap around, as those of the kernels do

    def scales(self) -> NDArray[np.float32]:
        """Return the factors from sums to results."""
        view = self.view
        values, weights, output = (
            np.asarray(tensor.raw.quantization.scale, np.float32)
            for tensor in (view.tensor(view.places.values), view.tensor(view.places.weights), view.output)
        )
        own = weights[self.wanted.start : self.wanted.stop] if len(weights) > 1 else weights
        return np.asarray(values[0] * own / output[0], np.float32)


def _trace_bias(view: LinearView, flow: Dataflow, wanted: AxisRange) -> ShareGraph:
    """Return the operators that unpack a bias."""
    bias = list[Wanted]()
    if view.kind is SumKind.FLOAT and view.has(view.places.bias):
        bias.append((view.tensor(view.places.bias).index, wanted.on(0)))
    return trace_share(view.model, flow, (), bias)
