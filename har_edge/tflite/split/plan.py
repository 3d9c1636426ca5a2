"""How a model is split: blocks of operators, the method of each, and the share of every shard.

A shard computes its share of each block in turn. Regions that the next block needs of other shards travel between them;
its own stay where they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from har_edge.errors import CutError


class SplitMethod(str, Enum):
    """How the operators of a block are shared."""

    WHOLE = "whole"  # one shard computes all of it
    ROWS = "rows"  # each shard computes some rows of the block's output, and the halo that these need
    OUTPUT = "output"  # each shard computes some output channels (or units)
    INPUT = "input"  # each shard takes some input channels (or units), and the sums of all shards are added
    HEADS = "heads"  # each shard computes some of the batches of a BATCH_MATMUL, such as attention heads
    # As OUTPUT, and the first shard without a share computes the sum of all shares, which stands for one that is late.
    PARITY = "parity"
    FLOAT_PARITY = "floatparity"  # the same for floats, where a decoded share differs from the missing one by rounding


PARITIES = frozenset({SplitMethod.PARITY, SplitMethod.FLOAT_PARITY})


@dataclass(frozen=True, slots=True)
class Block:
    """Operators [start, stop), and the shares of the shards along the axis of the method.

    `bounds` has one entry more than there are shards: shard k computes [bounds[k], bounds[k + 1]) of the rows, channels
    or batches of what the block gives (for INPUT: takes). A shard without a share does nothing in this block. For
    WHOLE, the shard with the share (0, 1) computes it.
    """

    start: int
    stop: int
    method: SplitMethod
    bounds: tuple[int, ...]

    def share(self, shard: int) -> tuple[int, int]:
        """Return the share of a shard, [start, stop)."""
        return self.bounds[shard], self.bounds[shard + 1]


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Consecutive blocks of operators that the same shards compute; with `border_first`, rows that others need are
    computed and sent before the rest.

    Raises CutError for blocks with a gap, or with shares that do not add up.
    """

    shards: int
    blocks: tuple[Block, ...]
    border_first: bool = True

    def __post_init__(self) -> None:
        if not self.blocks:
            raise CutError("a split without blocks came; expected one or more")
        for before, block in zip((None, *self.blocks), self.blocks, strict=False):
            if block.stop <= block.start or (before is not None and block.start != before.stop):
                raise CutError(f"a block of operators [{block.start}, {block.stop}) came; expected one without a gap")
            bounds = block.bounds
            if len(bounds) != self.shards + 1 or bounds[0] != 0 or any(a > b for a, b in pairwise(bounds)):
                raise CutError(
                    f"shares {list(bounds)} of operators [{block.start}, {block.stop}) came; expected "
                    f"{self.shards + 1} ascending numbers from 0"
                )

    @property
    def start(self) -> int:
        return self.blocks[0].start

    @property
    def stop(self) -> int:
        return self.blocks[-1].stop


def parity_shard(block: Block) -> int | None:
    """Return the shard of a block with a parity that computes it: the first one without a share."""
    return next((k for k, (low, high) in enumerate(pairwise(block.bounds)) if low == high), None)
