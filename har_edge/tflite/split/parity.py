"""One more shard for an output split of a linear operator: its sum of all shares stands in for any one of them.

A parity shard has the sum of the shares' weights, so that it makes the sum of their results with the work of one share
(Hadidi et al., Toward Collaborative Inferencing of Deep Neural Networks on Internet-of-Things Devices, IoTJ 2020;
coded distributed computing). A missing share is the parity without the other shares. That holds for sums, and not after
an activation or a rounding to 8 bits, so that shards give sums without bias, and a step after them finishes these.

Sums of integers have 32 bits, and a share that is decoded has the bits of the one that is missing. Sums of floats
differ from it by rounding (`float_bound`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow, tensor_spec
from har_edge.tflite.decoding import decode_share
from har_edge.tflite.manifest import TensorRegion, TensorSpec
from har_edge.tflite.model import Model
from har_edge.tflite.split.arithmetic import macs_of_element
from har_edge.tflite.split.block import StepDraft
from har_edge.tflite.split.input import last_operator
from har_edge.tflite.split.input_rules import LinearView, SumKind, zero_of
from har_edge.tflite.split.partial_file import PartialFile, cut_exactly
from har_edge.tflite.split.plan import Block
from har_edge.tflite.split.ranges import AxisRange, cut_data
from har_edge.tflite.split.share_graph import ShareGraph, normal, spec_of
from har_edge.tflite.split.sum_file import SumFile
from har_edge.tflite.split.writer import constant_data

Array: TypeAlias = NDArray[Any]
CODED = ("FULLY_CONNECTED", "CONV_2D", "TRANSPOSE_CONV", "CONV_3D")


class CodedSplit:
    """An output split of one linear operator whose shards give sums, with one parity shard more.

    `shares` are the output channels of each shard with a share. Raises CutError for a block of several operators, for
    shares that do not add up, and for operators without weights that are known and without sums of 32 bits.
    """

    def __init__(self, model: Model, flow: Dataflow, block: Block) -> None:
        self.model, self.flow, self.block = model, flow, block
        operator = last_operator(model, flow, block.start, block.stop)
        if [i for i in range(block.start, block.stop) if i not in flow.folded] != [operator.index]:
            raise CutError(
                f"operators [{block.start}, {block.stop}) came for a parity shard; expected one linear operator"
            )
        self.view = view = LinearView(model, operator)
        if operator.name not in CODED:
            raise CutError(
                f"operator {operator.index} ({operator.name}) has no weights to add; {', '.join(CODED)} have"
            )
        if view.kind is SumKind.INTEGER:  # weights of a parity have more than 8 bits, which those products do not take
            view.kind = SumKind.EXACT
        self.weights = _constant_weights(view, flow)
        channels = view.output.shape[-1]
        if block.bounds[-1] != channels:
            raise CutError(
                f"shares {list(block.bounds)} of operator {operator.index} ({operator.name}) came; expected some that "
                f"add up to its {channels} output channels"
            )
        bounds = (share for share in pairwise(block.bounds) if share[0] < share[1])
        self.shares = tuple(AxisRange(view.places.filters_axis, *share) for share in bounds)
        self.axis = len(view.output.shape) - 1
        self.sums = _free_name(model, f"{view.output.name}+sums")

    @property
    def dtype(self) -> str:
        """The type of the sums."""
        return "float32" if self.view.kind is SumKind.FLOAT else "int32"

    def share_step(self, number: int) -> StepDraft:
        """Return the step of a shard: the sums of its output channels."""
        share = self.shares[number]
        return self._step((share,), self._region(share.on(self.axis)), share.size)

    def parity_step(self) -> StepDraft:
        """Return the step of the parity shard: the sum of all shares, each from its first channel on."""
        size = max(share.size for share in self.shares)
        shape = AxisRange(self.axis, 0, size).resized(self.view.output.signature)
        bounds = (0, *(share.stop for share in self.shares))
        region = TensorRegion(self.sums, self.axis, 0, size, parity=bounds)
        spec = msgspec.structs.replace(self._spec(), name=f"{self.sums}/parity", shape=shape, region=region)
        return self._step(self.shares, spec, size)

    def finish_step(self) -> StepDraft:
        """Return the step that makes the operator's result of all sums: bias, activation, rounding."""
        wanted = AxisRange(self.axis, 0, self.view.output.shape[-1])
        return StepDraft(
            (self._spec(),),
            (spec_of(self.model, (self.view.output.index, wanted)),),
            self.view.output.elements,
            ("parity finish", self.block.start, self.block.stop),
            lambda: SumFile(self.view, self.flow, wanted, [self.sums]).content(),
        )

    def decode(self, missing: int, parity: Array, others: Mapping[int, Array]) -> Array:
        """Return the sums of a missing share out of the parity and all other shares, by number."""
        sizes = [share.size for share in self.shares]
        return decode_share(sizes, missing, parity, others, self.axis)

    def _step(self, shares: Sequence[AxisRange], output: TensorSpec, channels: int) -> StepDraft:
        exact = self.added(shares) if self.view.kind is SumKind.EXACT else None
        parts = cut_exactly(self.view, AxisRange(0, 0, self.view.extent), exact)
        values = self.view.tensor(self.view.places.values).index
        inputs = tuple(normal(self.model, (values, self.view.values_range(part))) for part in parts)
        graph = ShareGraph((), inputs, ())
        macs = macs_of_element(self.model.main, self.view.operator) * self.view.output.elements
        key = ("parity", self.block.start, self.block.stop, *((one.start, one.stop) for one in shares))
        return StepDraft(
            tuple(spec_of(self.model, one) for one in inputs),
            (output,),
            round(macs * channels / self.view.output.shape[-1]),
            key,
            lambda: _CodedFile(self, graph, parts, shares, output.name).content(),
        )

    def added(self, shares: Sequence[AxisRange]) -> Array:
        """Return the weights of a share, or the sum of those of several: the integers that they stand for, or floats
        of 64 bits.
        """
        if self.view.kind is SumKind.FLOAT:
            return added_weights(self.weights, shares, "float64")
        return added_weights(self.weights, shares, "int32", zero_of(self.view.tensor(self.view.places.weights).raw))

    def _spec(self) -> TensorSpec:
        return msgspec.structs.replace(tensor_spec(self.view.output), name=self.sums, dtype=self.dtype)

    def _region(self, share: AxisRange) -> TensorSpec:
        spec, region = self._spec(), TensorRegion(self.sums, self.axis, share.start, share.stop)
        name = f"{self.sums}[{self.axis}:{share.start}:{share.stop}]"
        return msgspec.structs.replace(spec, name=name, shape=share.resized(spec.shape), region=region)


def float_bound(products: int, shares: int, magnitude: float) -> float:
    """Return by how much a decoded share of floats can differ from the one that is missing.

    `magnitude` is the largest sum, over all shares, of the magnitudes of the products of one output and its result.
    """
    return (products + shares + 2) * 2.0**-24 * magnitude


class _CodedFile(PartialFile):
    """The sums of a share, or with several shares their sum."""

    def __init__(
        self,
        split: CodedSplit,
        graph: ShareGraph,
        parts: Sequence[AxisRange],
        shares: Sequence[AxisRange],
        name: str,
    ) -> None:
        self.added, self.shares, self.whole = split.added(shares), shares, split.weights
        super().__init__(split.view, split.flow, graph, parts, name, max(share.size for share in shares))

    def float_weights(self, share: AxisRange) -> int:
        return self.writer.constant("weights", self.added.astype(np.float32))

    def plain_weights(self, share: AxisRange, suffix: str) -> int:
        """Return the integers that the weights stand for, as float32; the file of one share holds them in 8 bits."""
        part = self.view.weights_range(share)
        if len(self.shares) == 1:
            return self.unpacked(cut_data(cut_data(self.whole, self.shares[0]), part), suffix)
        data = cut_data(self.added, part)
        return self.writer.constant(f"weights{suffix}", np.ascontiguousarray(data, np.float32))


def added_weights(weights: Array, shares: Sequence[AxisRange], dtype: str, zero: int = 0) -> Array:
    """Return the sum of the shares of weights, each from its first channel on; shorter ones end with zeros.

    `zero` is the zero point of the weights, and `dtype` the type of the sum.
    """
    size = max(share.size for share in shares)
    axis = shares[0].axis
    total = np.zeros(AxisRange(axis, 0, size).resized(weights.shape), dtype)
    for share in shares:
        total[AxisRange(axis, 0, share.size).index()] += cut_data(weights, share).astype(dtype) - zero
    return total


def _constant_weights(view: LinearView, flow: Dataflow) -> Array:
    """Return the weights as they stand in the file; those behind DEQUANTIZE are float16."""
    tensor = view.tensor(view.places.weights)
    if tensor.constant:
        return constant_data(view.model, tensor)
    maker = flow.maker.get(tensor.index, -1)
    operator = view.model.main.operators[maker] if maker in flow.folded else None
    source = view.model.main.tensors[operator.inputs[0]] if operator else tensor
    if operator is None or operator.name != "DEQUANTIZE" or source.dtype != "float16":
        raise CutError(
            f"operator {view.operator.index} ({view.operator.name}) takes weights that another operator computes, "
            "which a parity shard cannot add up; expected constant ones"
        )
    return constant_data(view.model, source)


def _free_name(model: Model, name: str) -> str:
    taken = {tensor.name for tensor in model.main.tensors}
    while name in taken:
        name += "#"
    return name
