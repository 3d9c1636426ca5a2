"""Split a block by rows: each shard computes some rows of its result, and the rows between that these need."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.manifest import TensorRegion, TensorSpec, is_covered
from har_edge.tflite.model import Model
from har_edge.tflite.split.block import BlockSplit, StepDraft, piece, whole
from har_edge.tflite.split.geometry import BlockShare, RowGeometry, Rows, add_rows
from har_edge.tflite.split.plan import Block
from har_edge.tflite.split.row_file import recipe, write_rows

# Rows that others wait for are computed first where this costs at most this part of the share's arithmetic, and leaves
# at least this part of its rows to compute while the first ones travel.
MAX_EXTRA = 0.03
MIN_INSIDE = 0.25


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
        shares = self.border_first(start, stop, urgent) or [self.geometry.share(start, stop)]
        return [self.step(share) for share in shares]

    def step(self, share: BlockShare) -> StepDraft:
        """Return the step that computes a share, or some operators of it."""
        if not share.inputs or not share.outputs:
            raise CutError(
                f"operators [{self.block.start}, {self.block.stop}) take or make nothing; join them to the next block"
            )
        return StepDraft(
            self.specs(share.inputs),
            self.specs(share.outputs),
            share.macs,
            ("rows", recipe(self.geometry, share)),
            lambda: write_rows(self.geometry, share),
        )

    def specs(self, rows: Mapping[int, Rows]) -> tuple[TensorSpec, ...]:
        tensors = self.model.main.tensors
        return tuple(
            whole(tensors[i]) if one.axis is None else piece(tensors[i], one.axis, one.start, one.stop)
            for i, one in rows.items()
        )

    def border_first(self, start: int, stop: int, urgent: Sequence[TensorRegion]) -> list[BlockShare]:
        """Return a share as several: the first operators for all of its rows, then the last ones, first for the rows
        that others wait for.

        As many operators come last as make at most MAX_EXTRA more arithmetic apart. The result is empty where the
        others wait for most of the rows, or that cannot be.
        """
        first = _joined([self.reference_rows(region, start, stop) for region in urgent])
        inside = stop - start - sum(high - low for low, high in first)
        if not first or inside < MIN_INSIDE * (stop - start):
            return []
        rest, at = list[tuple[int, int]](), start
        for low, high in [*first, (stop, stop)]:
            if low > at:
                rest.append((at, low))
            at = high
        together = self.geometry.share(start, stop)
        needed, ranges = self.specs(together.outputs), [*first, *rest]

        def is_cheap(number: int) -> bool:
            most = (1 + MAX_EXTRA) * together.macs
            return sum(one.macs for one in self.apart(number, start, stop, ranges)) <= most

        # The fewer operators come last, the less is done twice.
        numbers = range(len(self.geometry.operators))
        for number in numbers[bisect_left(numbers, True, key=is_cheap) :]:
            shares = self.apart(number, start, stop, ranges)
            made = [spec for one in shares for spec in self.specs(one.outputs)]
            # Strides that are longer than kernels leave gaps between the ranges.
            if all(one.inputs and one.outputs for one in shares) and all(is_covered(spec, made) for spec in needed):
                return shares
        return []

    def apart(self, number: int, start: int, stop: int, ranges: Sequence[tuple[int, int]]) -> list[BlockShare]:
        """Return the first `number` operators for all rows of a share, and then the others for each range of rows."""
        geometry, tensors = self.geometry, self.model.main.tensors
        before, after = geometry.operators[:number], geometry.operators[number:]
        last = [geometry.trace(after, geometry.wanted(after, low, high)) for low, high in ranges]
        if not before:
            return last
        made = {index for operator in before for index in operator.outputs}
        wanted = geometry.wanted(before, start, stop)
        for share in last:
            for index, rows in share.inputs.items():
                if index in made:
                    add_rows(wanted, tensors[index], rows)
        return [geometry.trace(before, wanted), *last]

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
