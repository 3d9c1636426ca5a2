"""The text of a split: which operators are shared how, by how many shards.

    rows:0-18@4 output:18-20@4 whole:20-22

Each word is a block: a method, its operators, and its shares. Blocks next to each other with the same number of shards
are one group of devices, unless `/` stands between them; a block without shares is a slice of its own.

    rows:0-18@4         four equal shares
    rows:0-18@3,2,1     shares in these proportions, for devices that are not equally fast
    rows:0-18=60,40,12  shares of so many rows, which must add up to those that the block gives
    whole:20-22@4       one of the four shards, the first, computes it alone
    whole:20-22=0,0,0,1 the last one does
    parity:20-21@4      four shares of output channels, and a fifth shard with their parity (floatparity for floats)
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from har_edge.errors import CutError
from har_edge.tflite.cuts import Dataflow, trace_dataflow
from har_edge.tflite.manifest import MAX_SHARDS
from har_edge.tflite.model import Model
from har_edge.tflite.split.coded import with_parity
from har_edge.tflite.split.methods import UNITS, share_bounds, share_extent
from har_edge.tflite.split.plan import PARITIES, Block, SplitMethod, SplitPlan
from har_edge.tflite.split.program import ordinary

_BLOCK = re.compile(
    r"(?P<method>[a-z]+):(?P<start>\d{1,9})-(?P<stop>\d{1,9})(?:(?P<kind>[@=])(?P<shares>[\d.,]{1,512}))?"
)
EXAMPLE = "rows:0-18@4 output:18-20@3,2,2,1 whole:20-22"


def parse_split(text: str, model: Model) -> list[SplitPlan]:
    """Return the groups of shards that a text names, in their order.

    Raises CutError for a text that is no split, and for shares that a block cannot have.
    """
    flow = trace_dataflow(model)
    groups: list[list[Block]] = []
    plain = False  # whether the last group is a slice of its own
    for word in text.split():
        if word == "/":
            plain = True
            continue
        block = _parse_block(word, model, flow)
        shards = len(block.bounds) - 1
        if groups and not plain and shards > 1 and len(groups[-1][0].bounds) == len(block.bounds):
            groups[-1].append(block)
        else:
            groups.append([block])
        plain = shards == 1
    if not groups:
        raise CutError(f"no block came; expected some, as in {EXAMPLE!r}")
    return [_plan(blocks) for blocks in groups]


def _plan(blocks: Sequence[Block]) -> SplitPlan:
    shards = len(blocks[0].bounds) - 1
    return ordinary(blocks[0].start, blocks[0].stop) if shards == 1 else SplitPlan(shards, tuple(blocks))


def _parse_block(word: str, model: Model, flow: Dataflow) -> Block:
    found, names = _BLOCK.fullmatch(word), [method.value for method in SplitMethod]
    if found is None or found["method"] not in names:
        raise CutError(
            f"{word[:64]!r} is no block of a split; expected METHOD:START-STOP@SHARDS, as in {EXAMPLE!r}, with one of "
            f"the methods {', '.join(names)}"
        )
    method, start, stop = SplitMethod(found["method"]), int(found["start"]), int(found["stop"])
    count = len(model.main.operators)
    if not start < stop <= count:
        raise CutError(f"{word!r} names operators [{start}, {stop}); expected some of the {count} of the model")
    if found["shares"] is None:
        if method is not SplitMethod.WHOLE:
            raise CutError(f"{word!r} says no shares; expected {word}@N for N shards")
        return Block(start, stop, method, (0, 1))
    shares = _shares(word, found["kind"], found["shares"])
    if not 1 <= len(shares) <= MAX_SHARDS:
        raise CutError(f"{word!r} has {len(shares)} shards; expected 1 to {MAX_SHARDS}")
    if method is SplitMethod.WHOLE:
        return Block(start, stop, method, _one_of(word, found["kind"], shares))
    if method in PARITIES and len(shares) == MAX_SHARDS:
        raise CutError(f"{word!r} has {MAX_SHARDS} shares and a parity; expected at most {MAX_SHARDS} shards")
    if found["kind"] == "@":
        block = Block(start, stop, method, share_bounds(model, flow, start, stop, method, shares))
        return with_parity(block) if method in PARITIES else block
    extent = share_extent(model, flow, start, stop, method)
    if sum(shares) != extent or any(share != int(share) for share in shares):
        raise CutError(
            f"{word!r} has shares that add up to {sum(shares):g}; expected whole numbers that add up to the {extent} "
            f"{UNITS[method]} of operators [{start}, {stop}), or proportions: {method.value}:{start}-{stop}@..."
        )
    block = Block(start, stop, method, (0, *itertools.accumulate(map(int, shares))))
    return with_parity(block) if method in PARITIES else block


def _one_of(word: str, kind: str, shares: Sequence[float]) -> tuple[int, ...]:
    """Return the bounds of the shard that computes a block alone: the first, unless `=` gives another the share."""
    if kind == "@" or sorted(shares) == [1.0] * len(shares):
        return (0, *[1] * len(shares))
    if sum(shares) != 1 or any(share not in (0, 1) for share in shares):
        raise CutError(f"{word!r} has shares {[f'{share:g}' for share in shares]}; expected one 1 and zeros")
    return (0, *itertools.accumulate(map(int, shares)))


def _shares(word: str, kind: str, text: str) -> list[float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        raise CutError(f"{word!r} has shares {text!r}; expected numbers with commas between them") from None
    if kind == "=" or len(shares) > 1:
        return shares
    if shares[0] != int(shares[0]) or not 1 <= shares[0] <= MAX_SHARDS:
        raise CutError(f"{word!r} has {text} shards; expected a whole number from 1 to {MAX_SHARDS}")
    return [1.0] * int(shares[0])
