"""Split a linear operator by its input channels: each shard adds up the products of some, and all summands are added.

The bias and the activation come once, after the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow, tensor_spec
from har_edge.tflite.manifest import TensorRegion, TensorSpec
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.slices import part_of
from har_edge.tflite.split.arithmetic import macs_of_element
from har_edge.tflite.split.block import BlockSplit, StepDraft
from har_edge.tflite.split.input_rules import LinearView, SumKind
from har_edge.tflite.split.partial_file import PartialFile, cut_exactly, trace_partial
from har_edge.tflite.split.plan import Block
from har_edge.tflite.split.ranges import AxisRange
from har_edge.tflite.split.share_graph import count_share, spec_of
from har_edge.tflite.split.sum_file import SumFile


class InputSplit(BlockSplit):
    """A block that ends in a linear operator, of whose input channels (or units) each shard takes some.

    Operators before it in the block go along with these channels. Every shard then adds the summands of a range of the
    output, in proportion to its share. Raises CutError for shares that do not add up, for quantised operators without
    32-bit sums, and for operators that add no products.
    """

    def __init__(self, model: Model, flow: Dataflow, block: Block) -> None:
        super().__init__(model, flow, block)
        operator = last_operator(model, flow, block.start, block.stop)
        self.view = LinearView(model, operator)
        if block.bounds[-1] != self.view.extent:
            raise CutError(
                f"shares {list(block.bounds)} of operators [{block.start}, {block.stop}) came, where operator "
                f"{operator.index} ({operator.name}) has {self.view.extent} input channels; expected shares that add "
                f"up to {self.view.extent}"
            )
        outputs = part_of(model, flow, block.start, block.stop).outputs
        if outputs != operator.outputs:
            raise CutError(
                f"operators [{block.start}, {block.stop}) give other tensors than operator {operator.index} "
                f"({operator.name}), which an input split adds up; begin the block later"
            )
        shares = [AxisRange(0, *block.share(shard)) for shard in range(len(block.bounds) - 1)]
        self.shares = {shard: share for shard, share in enumerate(shares) if share.size}
        self.parts = {shard: cut_exactly(self.view, share) for shard, share in self.shares.items()}
        before = [i for i in range(block.start, block.stop) if i != operator.index]
        self.graphs = {shard: trace_partial(self.view, flow, before, parts) for shard, parts in self.parts.items()}
        numbers = {shard: number for number, shard in enumerate(self.shares)}
        self.names = {shard: self._name(number) for shard, number in numbers.items()}

    @classmethod
    def extent(cls, model: Model, flow: Dataflow, start: int, stop: int) -> int:
        """Return how many input channels the shards share. Raises CutError where they share none."""
        return LinearView(model, last_operator(model, flow, start, stop)).extent

    def steps(self, shard: int, urgent: Sequence[TensorRegion] = ()) -> list[StepDraft]:
        if shard not in self.shares:
            return []
        graph, parts, name, share = self.graphs[shard], self.parts[shard], self.names[shard], self.shares[shard]
        macs = macs_of_element(self.model.main, self.view.operator) * self.view.output.elements
        partial = StepDraft(
            tuple(spec_of(self.model, wanted) for wanted in graph.inputs),
            (self._summand(name),),
            count_share(self.model, self.flow, graph) + round(macs * share.size / self.view.extent),
            ("input", self.block.start, self.block.stop, share.start, share.stop, name),
            lambda: PartialFile(self.view, self.flow, graph, parts, name).content(),
        )
        wanted = self._finished(shard)
        return [partial, self._sum(wanted)] if wanted.size else [partial]

    def _sum(self, wanted: AxisRange) -> StepDraft:
        """Return the step that adds the summands of a range of output channels."""
        inputs = tuple(self._summand(name, wanted) for name in self.names.values())
        elements = self.view.output.elements * wanted.size // self.view.output.shape[-1]
        return StepDraft(
            inputs,
            (spec_of(self.model, (self.view.output.index, wanted)),),
            elements * len(inputs),
            ("input sum", self.block.start, self.block.stop, wanted.start, wanted.stop, *self.names.values()),
            lambda: SumFile(self.view, self.flow, wanted, [spec.name for spec in inputs]).content(),
        )

    def _finished(self, shard: int) -> AxisRange:
        """Return the output channels whose summands a shard adds, in proportion to its share."""
        channels, extent = self.view.output.shape[-1], self.view.extent
        low, high = (round(channels * bound / extent) for bound in self.block.share(shard))
        return AxisRange(len(self.view.output.shape) - 1, low, high)

    def _name(self, number: int) -> str:
        """Return the name of a summand; no tensor of the model has it."""
        taken = {tensor.name for tensor in self.model.main.tensors}
        name = f"{self.view.output.name}+{number}/{len(self.shares)}"
        while name in taken:
            name += "#"
        return name

    def _summand(self, name: str, wanted: AxisRange | None = None) -> TensorSpec:
        """Return a summand, or a range of it; it is a tensor of its own."""
        dtype = "float32" if self.view.kind is SumKind.FLOAT else "int32"
        spec = msgspec.structs.replace(tensor_spec(self.view.output), name=name, dtype=dtype)
        if wanted is None or wanted.size == self.view.output.shape[wanted.axis]:
            return spec
        region = TensorRegion(name, wanted.axis, wanted.start, wanted.stop)
        own = f"{name}[{wanted.axis}:{wanted.start}:{wanted.stop}]"
        return msgspec.structs.replace(spec, name=own, shape=wanted.resized(spec.shape), region=region)


def last_operator(model: Model, flow: Dataflow, start: int, stop: int) -> Operator:
    """Return the last operator of a block that does not unpack a constant. Raises CutError where there is none."""
    for operator in reversed(model.main.operators[start:stop]):
        if operator.index not in flow.folded:
            return operator
    raise CutError(f"operators [{start}, {stop}) only unpack constants; join them to the next block")
