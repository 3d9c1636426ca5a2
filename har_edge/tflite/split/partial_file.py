"""Write the file of a summand: a linear operator on some of its input channels, without bias and activation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.model import Model
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.input_rules import LinearView, SumKind, zero_of
from har_edge.tflite.split.ranges import AxisRange, cut_data
from har_edge.tflite.split.share_file import ShareFile
from har_edge.tflite.split.share_graph import ShareGraph, Wanted, trace_share
from har_edge.tflite.split.writer import constant_data

_EXACT = 1 << 24  # all integers up to this are float32 numbers
_BLOCK = 1 << 20  # weights that are looked at together
# The first versions of these operators that take 8-bit numbers.
_DEQUANTIZE_VERSION, _MATMUL_VERSION = 2, 4
_KNOWN: WeakKeyDictionary[Model, dict[int, NDArray[np.int64]]] = WeakKeyDictionary()


def cut_exactly(view: LinearView, share: AxisRange, integers: NDArray[np.int32] | None = None) -> list[AxisRange]:
    """Cut input channels into ranges whose sums of products are float32 numbers without rounding.

    `integers` are what the weights stand for, by default those of the model. Other kinds of sums are one range. Raises
    CutError where the products of a single channel are too many.
    """
    if view.kind is not SumKind.EXACT:
        return [share]
    sums = _model_sums(view) if integers is None else _channel_sums(view, integers, 0)
    found, start = list[AxisRange](), share.start
    while start < share.stop:
        # The sums of all filters grow with each channel, and so does the largest of them.
        held = np.cumsum(sums[:, start : share.stop], 1).max(0)
        count = int(np.searchsorted(held, _EXACT, "right"))
        if count == 0:
            raise CutError(
                f"operator {view.operator.index} ({view.operator.name}) has kernels of "
                f"{list(view.shape(view.places.weights)[1:-1])}, too large for exact sums; split it by output channels"
            )
        found.append(AxisRange(0, start, start + count))
        start += count
    return found


def _model_sums(view: LinearView) -> NDArray[np.int64]:
    """Return the channel sums of an operator of a model; a planner asks for those of many shares."""
    known = _KNOWN.setdefault(view.model, {})
    if view.operator.index not in known:
        weights = view.tensor(view.places.weights)
        known[view.operator.index] = _channel_sums(view, constant_data(view.model, weights), zero_of(weights.raw))
    return known[view.operator.index]


def _channel_sums(view: LinearView, weights: NDArray[Any], zero: int) -> NDArray[np.int64]:
    """Return the largest magnitude of the products of each filter and input channel, [filters, channels]."""
    values = view.tensor(view.places.values)
    own, limits = zero_of(values.raw), np.iinfo(np.dtype(values.dtype))
    filters, channels = weights.shape[0], weights.shape[-1]
    block = max(1, _BLOCK * filters // max(1, weights.size))
    sums = np.empty((filters, channels), np.int64)
    for low in range(0, filters, block):
        part = weights[low : low + block].reshape(-1, math.prod(weights.shape[1:-1]), channels).astype(np.int32)
        for number in range(part.shape[1]):
            magnitude = np.abs(part[:, number] - zero)
            sums[low : low + block] = magnitude if number == 0 else sums[low : low + block] + magnitude
    return sums * max(limits.max - own, own - limits.min)


def trace_partial(view: LinearView, flow: Dataflow, operators: Sequence[int], parts: Sequence[AxisRange]) -> ShareGraph:
    """Return what must run to give the operator these ranges of its input and of weights that are not constant."""
    wanted = list[Wanted]()
    for part in parts:
        wanted.append((view.tensor(view.places.values).index, view.values_range(part)))
        wanted.append((view.tensor(view.places.weights).index, view.weights_range(part)))
    return trace_share(view.model, flow, operators, wanted)


class PartialFile(ShareFile):
    """The file that computes a summand of the operator's result, named `name`, over ranges of input channels.

    A subclass may have other weights, of `channels` output channels.
    """

    def __init__(
        self,
        view: LinearView,
        flow: Dataflow,
        graph: ShareGraph,
        parts: Sequence[AxisRange],
        name: str,
        channels: int = 0,
    ) -> None:
        super().__init__(view.model, flow, graph)
        self.view, self.name = view, name
        self.channels = AxisRange(len(view.output.shape) - 1, 0, channels or view.output.shape[-1])
        compute = {SumKind.FLOAT: self.float_sum, SumKind.INTEGER: self.integer_sum, SumKind.EXACT: self.exact_sum}
        last = len(parts) - 1
        total = -1
        for number, part in enumerate(parts):
            one = compute[view.kind](part, "" if last == 0 else f"/part{number}")
            if number:
                added = self.result("int32", "" if number == last else f"/sum{number}")
                self.writer.add("ADD", [total, one], [added], tflite.AddOptionsT())
                one = added
            total = one
        self.total = total

    def content(self) -> memoryview:
        """Return the file."""
        return self.encode([self.total])

    def float_sum(self, share: AxisRange, suffix: str) -> int:
        """Add the operator on a range of its input."""
        result = self.result("float32", suffix)
        self.linear(self.values(share), self.float_weights(share), result)
        return result

    def float_weights(self, share: AxisRange) -> int:
        """Return the weights of a range of input channels."""
        return self.taken(self.view.part(self.view.places.weights, self.view.weights_range(share)))

    def exact_sum(self, share: AxisRange, suffix: str) -> int:
        """Add the operator in float32 on the integers that the values and weights stand for."""
        zero = zero_of(self.view.tensor(self.view.places.values).raw)
        index, part = self.view.tensor(self.view.places.values).index, self.view.values_range(share)
        shape = part.resized(self.view.shape(self.view.places.values))
        cast = self.writer.like(index, f"{self.name}{suffix}/cast", shape, dtype="float32")
        self.writer.add("CAST", [self.values(share)], [cast], tflite.CastOptionsT())
        centred = self.writer.like(index, f"{self.name}{suffix}/centred", shape, dtype="float32")
        number = self.writer.constant(f"{self.name}{suffix}/zero", np.array([zero], np.float32))
        self.writer.add("SUB", [cast, number], [centred], tflite.SubOptionsT())
        result = self.result("float32", f"{suffix}/float")
        self.linear(centred, self.plain_weights(share, suffix), result)
        return self.cast(result, suffix)

    def integer_sum(self, share: AxisRange, suffix: str) -> int:
        """Add the product of 8-bit matrices with 32-bit results; zero points follow after the sum of all shards."""
        values = self.reshaped(self.values(share), (-1, share.size), f"{suffix}/rows", "int8")
        total = self.multiplied(values, self.integer_weights(share), suffix)
        return self.reshaped(total, self.channels.resized(self.view.output.signature), suffix, "int32")

    def multiplied(self, values: int, weights: int, suffix: str) -> int:
        """Add the product of rows of values and rows of 8-bit weights."""
        flat = self.flat(f"{suffix}/product")
        options = tflite.BatchMatMulOptionsT()
        options.adjY = True
        self.writer.add("BATCH_MATMUL", [values, weights], [flat], options, _MATMUL_VERSION)
        return flat

    def flat(self, suffix: str) -> int:
        """Return a new tensor of 32-bit sums, one row for each row of values."""
        output = self.view.output
        rows = output.elements // output.shape[-1]
        name = f"{self.name}{suffix}"
        return self.writer.like(output.index, name, (rows, self.channels.size), (-1, self.channels.size), "int32")

    def integer_weights(self, share: AxisRange) -> int:
        """Return the 8-bit weights of a range of input channels."""
        tensor = self.view.tensor(self.view.places.weights)
        data = cut_data(constant_data(self.model, tensor), self.view.weights_range(share))
        return self.writer.constant(f"{tensor.name}/{share.start}", data)

    def values(self, share: AxisRange) -> int:
        return self.taken(self.view.part(self.view.places.values, self.view.values_range(share)))

    def result(self, dtype: str, suffix: str) -> int:
        """Return a new tensor of the summand's shape."""
        output = self.view.output
        shape, signature = (self.channels.resized(sizes) for sizes in (output.shape, output.signature))
        return self.writer.like(output.index, self.name + suffix, shape, signature, dtype)

    def linear(self, values: int, weights: int, result: int) -> None:
        """Add the operator without its bias and activation; convolutions take a bias of zeros."""
        view, places = self.view, self.view.places
        inputs = list(view.inputs)
        inputs[places.values], inputs[places.weights] = values, weights
        if view.operator.name == "TRANSPOSE_CONV":
            sizes = self.channels.resized(view.numbers(0))
            inputs = [self.taken(view.changed(0, list(sizes))), weights, values]
        elif view.operator.name == "FULLY_CONNECTED":
            inputs = [values, weights, -1]
        elif view.operator.name != "BATCH_MATMUL":
            zeros = np.zeros(self.channels.size, np.float32)
            inputs = [values, weights, self.writer.constant(f"{self.name}/zeros", zeros)]
        options = {"fusedActivationFunction": 0} if hasattr(view.options, "fusedActivationFunction") else {}
        self.writer.copy(view.operator, inputs, [result], **options)

    def plain_weights(self, share: AxisRange, suffix: str) -> int:
        """Return the integers that the weights stand for, as float32; the file holds them in 8 bits."""
        tensor = self.view.tensor(self.view.places.weights)
        data = cut_data(constant_data(self.model, tensor), self.view.weights_range(share))
        return self.unpacked(data, suffix)

    def unpacked(self, data: NDArray[Any], suffix: str) -> int:
        """Return 8-bit weights of the model as float32 integers."""
        tensor = self.view.tensor(self.view.places.weights)
        packed = self.writer.constant(f"{tensor.name}{suffix}", data)
        self.writer.rescale(packed, 1.0, zero_of(tensor.raw))
        unpacked = self.writer.like(tensor.index, f"{tensor.name}{suffix}/float", data.shape, dtype="float32")
        self.writer.add("DEQUANTIZE", [packed], [unpacked], tflite.DequantizeOptionsT(), _DEQUANTIZE_VERSION)
        return unpacked

    def cast(self, number: int, suffix: str) -> int:
        """Return float32 integers as 32-bit ones."""
        result = self.result("int32", suffix)
        self.writer.add("CAST", [number], [result], tflite.CastOptionsT())
        return result

    def reshaped(self, number: int, shape: Sequence[int], suffix: str, dtype: str) -> int:
        """Return the same numbers in another shape (-1: as many as there are)."""
        planned = [int(n) for n in shape]
        output = self.view.output
        if -1 in planned:
            rows = output.elements // output.shape[-1]
            planned = [rows if n == -1 else n for n in planned]
        result = self.writer.like(output.index, self.name + suffix, planned, shape, dtype)
        options = tflite.ReshapeOptionsT()
        options.newShape = np.array(shape, np.int32)
        sizes = self.writer.constant(f"{self.name}{suffix}/shape", np.array(shape, np.int32))
        self.writer.add("RESHAPE", [number, sizes], [result], options)
        return result
