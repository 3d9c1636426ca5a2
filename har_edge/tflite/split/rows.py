"""Split a block by rows: each shard computes some rows of its result, and the rows between that these need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.manifest import TensorRegion, TensorSpec, is_covered
from har_edge.tflite.model import Model
from har_edge.tflite.split.block import BlockSplit, StepDraft, piece, whole
from har_edge.tflite.split.geometry import RowGeometry, Rows
from har_edge.tflite.split.plan import Block
from har_edge.tflite.split.row_file import recipe, write_rows

# Rows that others wait for are a step of their own where this costs at most this part of the share's arithmetic.
MAX_EXTRA = 0.1


class RowSplit(BlockSplit):
    """A block whose shards compute ranges of rows of its result."""

    def __init__(self, model: Model, flow: Dataflow, block: Block) -> None:
        super().__init__(model, flow, block)
        self.geometry = RowGeometry(model, block.start, block.stop, flow)
        if block.bounds[-1] != self.geometry.size:
            raise CutError(
                f"shares {list(block.bounds)} of operators [{block.start}, {block.stop}) came; expected them to end at "
                f"{self.geometry.size}, the rows of {self.geometry.reference.name}"
            )

    def steps(self, shard: int, urgent: Sequence[TensorRegion] = ()) -> list[StepDraft]:
        start, stop = self.block.share(shard)
        if start == stop:
            return []
        return [self.step(*rows) for rows in self.order(start, stop, urgent)]

    def step(self, start: int, stop: int) -> StepDraft:
        """Return the step that computes rows [start, stop)."""
        share = self.geometry.share(start, stop)
        if not share.inputs or not share.outputs:
            raise CutError(
                f"rows [{start}, {stop}) of operators [{self.block.start}, {self.block.stop}) take or make nothing; "
                "join the block to its neighbour"
            )
        key = ("rows", self.block.start, self.block.stop, recipe(self.geometry, share))
        return StepDraft(
            self.specs(share.inputs),
            self.specs(share.outputs),
            share.macs,
            key,
            lambda: write_rows(self.geometry, share),
        )

    def specs(self, rows: Mapping[int, Rows]) -> tuple[TensorSpec, ...]:
        tensors = self.model.main.tensors
        return tuple(
            whole(tensors[i]) if one.axis is None else piece(tensors[i], one.axis, one.start, one.stop)
            for i, one in rows.items()
        )

    def order(self, start: int, stop: int, urgent: Sequence[TensorRegion]) -> list[tuple[int, int]]:
        """Return the ranges of rows that a share computes one after the other: first those that others wait for.

        All rows stay together where the others wait for most of them, or where apart they take more than MAX_EXTRA more
        arithmetic.
        """
        first = _joined([self.reference_rows(region, start, stop) for region in urgent])
        if not first or 2 * sum(high - low for low, high in first) > stop - start:
            return [(start, stop)]
        rest, at = [], start
        for low, high in [*first, (stop, stop)]:
            if low > at:
                rest.append((at, low))
            at = high
        ranges = [*first, *rest]
        if len(ranges) == 1:
            return ranges
        together, apart = self.geometry.share(start, stop), [self.geometry.share(*rows) for rows in ranges]
        if sum(one.macs for one in apart) > (1 + MAX_EXTRA) * together.macs:
            return [(start, stop)]
        made = [spec for one in apart for spec in self.specs(one.outputs)]
        # Strides that are longer than kernels leave gaps between the ranges.
        if not all(is_covered(spec, made) for spec in self.specs(together.outputs)):
            return [(start, stop)]
        return ranges

    def reference_rows(self, region: TensorRegion, start: int, stop: int) -> tuple[int, int]:
        """Return the rows of the block's result, within a share, with which a step makes a region."""
        geometry = self.geometry
        index = next(i for i in geometry.leaving if self.model.main.tensors[i].name == region.of)
        if region.axis != geometry.owned(index, start, stop).axis:
            return start, stop
        low, high = start, stop
        while high - low > 1 and geometry.owned(index, low + 1, high).start <= region.start:
            low += 1
        while high - low > 1 and geometry.owned(index, low, high - 1).stop >= region.stop:
            high -= 1
        return low, high


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the union of ranges as ranges in order."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return found
