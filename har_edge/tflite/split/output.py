"""Split a block by its output channels, or by the batches of a matrix product: each shard computes a range of them."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.manifest import TensorRegion
from har_edge.tflite.model import Model
from har_edge.tflite.slices import part_of
from har_edge.tflite.split.block import BlockSplit, StepDraft
from har_edge.tflite.split.plan import Block, SplitMethod
from har_edge.tflite.split.ranges import AxisRange
from har_edge.tflite.split.share_file import ShareFile
from har_edge.tflite.split.share_graph import ShareGraph, Wanted, count_share, spec_of, trace_share


class OutputSplit(BlockSplit):
    """A block of which each shard computes a range of the last axis of each output: channels or units.

    Raises CutError for shares that do not add up, and for operators that cannot be shared so.
    """

    unit = "output channels"

    def __init__(self, model: Model, flow: Dataflow, block: Block) -> None:
        super().__init__(model, flow, block)
        self.outputs = part_of(model, flow, block.start, block.stop).outputs
        self.operators = range(block.start, block.stop)
        extent = self.extent(model, flow, block.start, block.stop)
        if block.bounds[-1] != extent:
            raise CutError(
                f"shares {list(block.bounds)} of operators [{block.start}, {block.stop}) came, which have {extent} "
                f"{self.unit}; expected shares that add up to {extent}"
            )
        shards = range(len(block.bounds) - 1)
        self.graphs: dict[int, ShareGraph] = {
            shard: self.trace(AxisRange(0, *block.share(shard)))
            for shard in shards
            if block.bounds[shard] < block.bounds[shard + 1]
        }

    @classmethod
    def extent(cls, model: Model, flow: Dataflow, start: int, stop: int) -> int:
        """Return how many channels the shards of these operators share. Raises CutError where they share none."""
        sizes = {}
        for index in part_of(model, flow, start, stop).outputs:
            tensor = model.main.tensors[index]
            if not tensor.shape or tensor.signature[-1] < 0:
                raise CutError(
                    f"operators [{start}, {stop}) give {tensor.name} {list(tensor.signature)}, which has no fixed "
                    "number of channels"
                )
            sizes[tensor.shape[-1]] = tensor.name
        if len(sizes) != 1:
            raise CutError(
                f"operators [{start}, {stop}) give tensors of {sorted(sizes)} channels; expected one number; split "
                "them in blocks of their own"
            )
        return next(iter(sizes))

    def trace(self, share: AxisRange) -> ShareGraph:
        """Return the graph of a share."""
        wanted: list[Wanted] = [
            (index, share.on(len(self.model.main.tensors[index].shape) - 1)) for index in self.outputs
        ]
        return trace_share(self.model, self.flow, self.operators, wanted)

    def steps(self, shard: int, urgent: Sequence[TensorRegion] = ()) -> list[StepDraft]:
        graph = self.graphs.get(shard)
        if graph is None:
            return []
        return [
            StepDraft(
                tuple(spec_of(self.model, wanted) for wanted in graph.inputs),
                tuple(spec_of(self.model, wanted) for wanted in graph.outputs),
                count_share(self.model, self.flow, graph),
                (self.block.method.value, self.block.start, self.block.stop, *self.block.share(shard)),
                lambda: self.write(graph),
            )
        ]

    def write(self, graph: ShareGraph) -> memoryview:
        """Return the file of a share."""
        file = ShareFile(self.model, self.flow, graph)
        return file.encode([file.numbers[wanted] for wanted in graph.outputs])


class HeadsSplit(OutputSplit):
    """A block around matrix products of which each shard computes some batches, such as attention heads.

    The shares are those of the last BATCH_MATMUL, along the first axis of its batches that has more than one element;
    the other operators of the block go along, by the axes where these batches stand in their tensors.
    """

    unit = "batches"

    @classmethod
    def extent(cls, model: Model, flow: Dataflow, start: int, stop: int) -> int:
        """Return how many batches the shards share. Raises CutError where there are none."""
        return cls._batches(model, start, stop)[2]

    @staticmethod
    def _batches(model: Model, start: int, stop: int) -> tuple[int, int, int]:
        """Return the last product, and the axis and the number of its batches."""
        for operator in reversed(model.main.operators[start:stop]):
            if operator.name != "BATCH_MATMUL":
                continue
            shape = model.main.tensors[operator.outputs[0]].shape
            for axis, size in enumerate(shape[:-2]):
                if size > 1:
                    return operator.index, axis, size
            raise CutError(f"operator {operator.index} (BATCH_MATMUL) gives {list(shape)}, which has one batch only")
        raise CutError(
            f"operators [{start}, {stop}) have no BATCH_MATMUL, whose batches the method {SplitMethod.HEADS.value} "
            "shares"
        )

    def trace(self, share: AxisRange) -> ShareGraph:
        product, batches, size = self._batches(self.model, self.block.start, self.block.stop)
        wanted: list[Wanted] = []
        for index in self.outputs:
            shape = self.model.main.tensors[index].shape
            found = (
                part
                for axis, length in enumerate(shape)
                if length % size == 0
                for part in [AxisRange(axis, share.start * length // size, share.stop * length // size)]
                if self._leads_to((index, part), product, share.on(batches))
            )
            part = next(found, None)
            if part is None:
                raise CutError(
                    f"operators [{self.block.start}, {self.block.stop}) give {self.model.main.tensors[index].name} "
                    f"{list(shape)}, where the batches of operator {product} (BATCH_MATMUL) are no range of an axis; "
                    "end the block before"
                )
            wanted.append((index, part))
        return trace_share(self.model, self.flow, self.operators, wanted)

    def _leads_to(self, wanted: Wanted, product: int, part: AxisRange) -> bool:
        """Return whether a range of an output takes just these batches of the product."""
        try:
            graph = trace_share(self.model, self.flow, self.operators, [wanted])
        except CutError:
            return False
        found = {shared.wanted for shared in graph.operators if shared.operator.index == product}
        return found == {part}
