"""Write the file of a share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.schema import tflite
from har_edge.tflite.split.ranges import AxisRange, cut_data, cut_scales
from har_edge.tflite.split.share_graph import SharedOperator, ShareGraph, Wanted, name_of, normal
from har_edge.tflite.split.shares import OperatorShare, TakenInput
from har_edge.tflite.split.writer import ShardWriter, constant_data

_INTEGER_VERSION = 2  # of CONCATENATION and STRIDED_SLICE, the first that takes int8


class RescalingWriter(ShardWriter):
    """Gives tensors scales of their own."""

    def rescale(self, number: int, scale: float, zero: int) -> None:
        """Give a tensor one scale and zero point."""
        quantization = tflite.QuantizationParametersT()
        quantization.scale = np.array([scale], np.float32)
        quantization.zeroPoint = np.array([zero], np.int64)
        self._tensors[number].quantization = quantization


class ShareFile:
    """The tensors and operators of a share in a file in the making.

    `numbers` maps ranges of the model's tensors to tensors of the file.
    """

    def __init__(self, model: Model, flow: Dataflow, graph: ShareGraph) -> None:
        self.model = model
        self.writer = RescalingWriter(model, flow)
        self.numbers: dict[Wanted, int] = {}
        for wanted in graph.inputs:
            self.numbers[wanted] = self.computed(*wanted)
        for shared in graph.operators:
            self.numbers[shared.operator.outputs[0], shared.wanted] = self.operator(shared)
        self.inputs = [self.numbers[wanted] for wanted in graph.inputs]

    def encode(self, outputs: Sequence[int]) -> memoryview:
        """Return the file with these outputs."""
        return self.writer.encode(self.inputs, outputs)

    def computed(self, index: int, part: AxisRange | None, suffix: str = "") -> int:
        """Return a new tensor for a range of one that is no constant."""
        tensor = self.model.main.tensors[index]
        shape = tensor.shape if part is None else part.resized(tensor.shape)
        signature = tensor.signature if part is None else part.resized(tensor.signature)
        return self.writer.like(index, name_of(self.model, (index, part)) + suffix, shape, signature)

    def operator(self, shared: SharedOperator) -> int:
        """Add the shares of an operator, and return the tensor with the range that is wanted of it."""
        if len(shared.shares) == 1:
            return self.share(shared.operator, shared.shares[0], "")
        parts = [self.share(shared.operator, share, "/part") for share in shared.shares]
        result = self.computed(shared.operator.outputs[0], shared.wanted)
        options = tflite.ConcatenationOptionsT()
        options.axis = shared.wanted.axis
        self.writer.add("CONCATENATION", parts, [result], options, _INTEGER_VERSION)
        return result

    def share(self, operator: Operator, share: OperatorShare, suffix: str) -> int:
        """Add a share of an operator, and return what it keeps of the result."""
        output, keeps = operator.outputs[0], share.keeps or share.gives
        inputs = [self.taken(taken) for taken in share.inputs]
        result = self.computed(output, share.gives, suffix if keeps == share.gives else f"{suffix}/more")
        self.writer.copy(operator, inputs, [result], **share.options)
        return result if keeps == share.gives else self.trim(result, output, share.gives, keeps, suffix)

    def taken(self, taken: TakenInput) -> int:
        """Return the tensor of the file that holds an input of a share."""
        index = taken.tensor
        if index < 0:
            return -1
        tensor = self.model.main.tensors[index]
        if taken.data is not None:
            return self.writer.constant(tensor.name, taken.data)
        number = self.numbers.get((index, taken.range), self.numbers.get(normal(self.model, (index, taken.range))))
        if number is not None:
            return number
        if taken.range is None or not tensor.constant:
            return self.writer.take(index)
        data = cut_data(constant_data(self.model, tensor), taken.range)
        name = name_of(self.model, (index, taken.range))
        number = self.writer.constant(name, data, cut_scales(tensor.raw.quantization, taken.range))
        self.numbers[index, taken.range] = number
        return number

    def trim(self, number: int, output: int, gives: AxisRange, wanted: AxisRange, suffix: str) -> int:
        """Add the operator that takes a range out of a larger one, and return its result."""
        result = self.computed(output, wanted, suffix)
        rank = wanted.axis + 1
        begins, ends = np.zeros(rank, np.int32), np.zeros(rank, np.int32)
        begins[-1], ends[-1] = wanted.start - gives.start, wanted.stop - gives.start
        options = tflite.StridedSliceOptionsT()
        options.beginMask = options.endMask = (1 << wanted.axis) - 1
        places = [
            self.writer.constant(f"trim/{name}", values)
            for name, values in (("begin", begins), ("end", ends), ("strides", np.ones(rank, np.int32)))
        ]
        self.writer.add("STRIDED_SLICE", [number, *places], [result], options, _INTEGER_VERSION)
        return result
