"""The methods by which a block can be split."""

from __future__ import annotations

from har_edge.tflite.cuts import Dataflow
from har_edge.tflite.model import Model
from har_edge.tflite.split.block import BlockSplit, WholeSplit
from har_edge.tflite.split.input import InputSplit
from har_edge.tflite.split.output import HeadsSplit, OutputSplit
from har_edge.tflite.split.plan import Block, SplitMethod
from har_edge.tflite.split.rows import RowSplit

METHODS: dict[SplitMethod, type[BlockSplit]] = {
    SplitMethod.WHOLE: WholeSplit,
    SplitMethod.OUTPUT: OutputSplit,
    SplitMethod.INPUT: InputSplit,
    SplitMethod.HEADS: HeadsSplit,
    SplitMethod.ROWS: RowSplit,
}


def split_block(model: Model, flow: Dataflow, block: Block) -> BlockSplit:
    """Return how the shards compute a block. Raises CutError where its method cannot take it."""
    return METHODS[block.method](model, flow, block)
