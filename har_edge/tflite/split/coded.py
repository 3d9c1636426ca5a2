"""Split a block by the output channels of its linear operator, with one parity shard that stands in for any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.manifest import TensorRegion
from har_edge.tflite.model import Model, Operator
from har_edge.tflite.slices import part_of
from har_edge.tflite.split.block import BlockSplit, StepDraft, WholeSplit
from har_edge.tflite.split.input_rules import LinearView, SumKind
from har_edge.tflite.split.parity import CODED, CodedSplit
from har_edge.tflite.split.plan import Block, SplitMethod, parity_shard


class ParitySplit(BlockSplit):
    """A block around one linear operator, of which each shard sums up some output channels and one shard the parity.

    The parity shard is the first one without a share. Operators before the linear one run whole on each of these
    shards. Every shard that takes the result makes it of any n of the n + 1 sums, by `finish_steps`: bias, activation,
    rounding, and the operators behind. So no shard waits for a late one.

    Raises CutError for blocks with another number of linear operators, for shares that do not add up, without a parity
    shard, and for floats, whose decoded sums differ from those that are missing by rounding.
    """

    floats = False

    def __init__(self, model: Model, flow: Dataflow, block: Block) -> None:
        super().__init__(model, flow, block)
        operator = self._linear(model, flow, block.start, block.stop)
        shards = range(len(block.bounds) - 1)
        self.sharers = [k for k in shards if block.bounds[k] < block.bounds[k + 1]]
        parity = parity_shard(block)
        if len(self.sharers) < 2 or parity is None:
            raise CutError(
                f"shares {list(block.bounds)} of operators [{block.start}, {block.stop}) came for a parity shard; "
                "expected two or more, and a shard without a share, which computes the parity"
            )
        self.parity = parity
        self.coded = CodedSplit(model, flow, Block(operator.index, operator.index + 1, block.method, block.bounds))
        if self.coded.view.kind is SumKind.FLOAT and not self.floats:
            raise CutError(
                f"operator {operator.index} ({operator.name}) sums up floats: a share that is decoded differs from the "
                "missing one in its last bits, so that answers would depend on which shard is late; take a quantised "
                f"model, or ask for such answers with the method {SplitMethod.FLOAT_PARITY.value} (of a "
                "plan: --float-parity)"
            )
        self.before = self._whole(block.start, operator.index)
        self.after = self._whole(operator.index + 1, block.stop)
        own = set(operator.outputs) | (set(self._outputs(operator.index + 1, block.stop)) if self.after else set())
        early = [index for index in self._outputs(block.start, block.stop) if index not in own]
        if early:
            raise CutError(
                f"operators [{block.start}, {block.stop}) give {model.main.tensors[early[0]].name}, which operators "
                f"before operator {operator.index} ({operator.name}) make; begin the block later"
            )

    @classmethod
    def extent(cls, model: Model, flow: Dataflow, start: int, stop: int) -> int:
        """Return how many output channels the shards of these operators share."""
        return LinearView(model, cls._linear(model, flow, start, stop)).output.shape[-1]

    def steps(self, shard: int, urgent: Sequence[TensorRegion] = ()) -> list[StepDraft]:
        if shard == self.parity:
            return [*self.before, self.coded.parity_step()]
        if shard in self.sharers:
            return [*self.before, self.coded.share_step(self.sharers.index(shard))]
        return []

    def finish_steps(self) -> list[StepDraft]:
        """Return what makes the block's result of the sums, on each shard that takes it."""
        return [self.coded.finish_step(), *self.after]

    def _whole(self, start: int, stop: int) -> list[StepDraft]:
        """Return the step of operators that run whole; none where there are none but those that unpack constants."""
        if all(index in self.flow.folded for index in range(start, stop)):
            return []
        return WholeSplit(self.model, self.flow, Block(start, stop, SplitMethod.WHOLE, (0, 1))).steps(0)

    def _outputs(self, start: int, stop: int) -> tuple[int, ...]:
        return part_of(self.model, self.flow, start, stop).outputs

    @staticmethod
    def _linear(model: Model, flow: Dataflow, start: int, stop: int) -> Operator:
        found = [one for one in model.main.operators[start:stop] if one.name in CODED and one.index not in flow.folded]
        if len(found) != 1:
            names = ", ".join(f"{one.index} ({one.name})" for one in found[:4])
            raise CutError(
                f"operators [{start}, {stop}) have {len(found)} linear operators with weights{': ' if names else ''}"
                f"{names}; a parity shard takes one, of {', '.join(CODED)}, and other operators around it"
            )
        return found[0]


class FloatParitySplit(ParitySplit):
    """The same for floats, too: answers depend, in their last bits, on which shard was late."""

    floats = True


def with_parity(block: Block) -> Block:
    """Return a block with one shard more, which has no share."""
    return replace(block, bounds=(*block.bounds, block.bounds[-1]))
