"""A plan in which every layer with weights has a parity, so that any one of its shards may be away."""

from __future__ import annotations

from collections.abc import Sequence

from har_edge.errors import CutError
from har_edge.tflite.cuts import trace_dataflow
from har_edge.tflite.manifest import MAX_SHARDS
from har_edge.tflite.model import Model
from har_edge.tflite.split.coded import with_parity
from har_edge.tflite.split.methods import UNITS, share_bounds, share_extent, split_block
from har_edge.tflite.split.parity import CODED
from har_edge.tflite.split.plan import Block, SplitMethod, SplitPlan

# Operators with weights or products that no parity stands for: each shard would compute all of them.
_UNCODED = ("DEPTHWISE_CONV_2D", "BATCH_MATMUL", "CONV_3D_TRANSPOSE", "UNIDIRECTIONAL_SEQUENCE_LSTM", "SVDF")


def code_layers(model: Model, weights: Sequence[float], *, floats: bool = False) -> SplitPlan:
    """Return a plan in which shards share each layer in proportion to their weights, and one more has the parities.

    That last shard answers, so each of the others may be away. A layer goes with the operators behind it. With
    `floats`, floats may have parities, too. Raises CutError for a model with layers that cannot have one.
    """
    if not 2 <= len(weights) < MAX_SHARDS:
        raise CutError(f"{len(weights)} shares came for a parity; expected 2 to {MAX_SHARDS - 1}")
    flow, operators = trace_dataflow(model), model.main.operators
    own = [one for one in operators if one.index not in flow.folded]
    uncoded = next((one for one in own if one.name in _UNCODED), None)
    if uncoded is not None:
        raise CutError(
            f"operator {uncoded.index} ({uncoded.name}) can have no parity, since its outputs take different inputs or "
            "weights that are computed; share the model's layers without parity"
        )
    layers = [one.index for one in own if one.name in CODED]
    if not layers:
        raise CutError(f"{model.name} has no layer that can have a parity; expected some of {', '.join(CODED)}")
    method = SplitMethod.FLOAT_PARITY if floats else SplitMethod.PARITY
    blocks = []
    for number, index in enumerate(layers):
        start = 0 if number == 0 else index
        stop = layers[number + 1] if number + 1 < len(layers) else len(operators)
        channels = share_extent(model, flow, start, stop, method)
        if channels < len(weights):
            raise CutError(
                f"operator {index} ({operators[index].name}) has {channels} {UNITS[method]}; expected {len(weights)} "
                f"or more for {len(weights)} shares"
            )
        block = with_parity(Block(start, stop, method, share_bounds(model, flow, start, stop, method, weights)))
        split_block(model, flow, block)
        blocks.append(block)
    return SplitPlan(len(weights) + 1, tuple(blocks), border_first=False)


def spell(plan: SplitPlan) -> str:
    """Return the text of a plan (tflite/split/spec.py), with exact shares."""
    words = []
    for block in plan.blocks:
        shares = [block.share(k) for k in range(plan.shards)]
        sizes = [high - low for low, high in shares]
        if block.method in (SplitMethod.PARITY, SplitMethod.FLOAT_PARITY):
            sizes = [size for size in sizes if size]
        words.append(f"{block.method.value}:{block.start}-{block.stop}={','.join(map(str, sizes))}")
    return " ".join(words)
