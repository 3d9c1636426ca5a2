"""The costs of the blocks of a split on given devices: seconds of steps, pieces between blocks, memory.

A block by rows computes, for its share, every row that the last operator needs; seconds scale with these rows, the
redundant ones included. The convolutions of XNNPACK compute channels in tiles.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from har_edge.planner.devices import BrokerLink, PlannerDevice
from har_edge.planner.slice_graph import HEAD_BYTES
from har_edge.planner.split_model import SplitModel
from har_edge.tflite.split.plan import Block, SplitMethod

SOURCE = -1  # the sender of the model's input
CHANNEL_TILE = 16  # convolutions on fewer output channels take as long


@dataclass(frozen=True, slots=True)
class RowShare:
    """Rows of a block's output: the rows of its input that they need, the part of each operator, the largest tile."""

    needed: tuple[int, int]
    parts: tuple[float, ...]
    tile_bytes: int


@dataclass(frozen=True, slots=True)
class PlannedPiece:
    """A message: elements [start, stop) of the tensor between two blocks, from one shard to others.

    `step` is the step of the sender that makes it.
    """

    sender: int
    start: int
    stop: int
    takers: tuple[int, ...]
    bytes: int
    step: int = 0


@dataclass(frozen=True, slots=True)
class BlockTransfer:
    """A block's steps, given the block that follows: the share of each step, for each shard, and the pieces between
    them in the order in which they travel.
    """

    steps: tuple[tuple[tuple[int, int], ...], ...]
    pieces: tuple[PlannedPiece, ...]


@dataclass(frozen=True, slots=True)
class PackingCost:
    """How activations travel: one byte becomes 1 / `ratio`, and costs the processor of each end so many seconds."""

    ratio: float = 1.0
    seconds_per_byte: float = 0.0


@dataclass(slots=True, eq=False)
class SplitCosts:
    """A model on devices. `seconds[k][i]` are those of operator i, whole, on device k."""

    model: SplitModel
    devices: Sequence[PlannerDevice]
    seconds: Sequence[Sequence[float]]
    broker: BrokerLink = field(default_factory=BrokerLink)
    packing: PackingCost = PackingCost()
    _rows: dict[tuple[int, int, int, int], RowShare] = field(default_factory=dict)
    _seconds: dict[tuple[int, int, str, int, int, int], float] = field(default_factory=dict)
    _transfers: dict[tuple[Block | None, Block | None, bool], BlockTransfer] = field(default_factory=dict)
    _by_rows: dict[tuple[int, int], bool] = field(default_factory=dict)
    _alike: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        keys = [(device.kind, tuple(each)) for device, each in zip(self.devices, self.seconds, strict=True)]
        self._alike = [keys.index(key) for key in keys]  # the first device with the same costs

    @property
    def n(self) -> int:
        return len(self.devices)

    def is_legal(self, start: int, stop: int, method: SplitMethod) -> bool:
        """Return whether operators [start, stop) can be a block with this method."""
        places = self.model.places
        if start not in places or (stop != self.model.n and stop not in places):
            return False
        if method is SplitMethod.WHOLE:
            return True
        if stop == self.model.n:
            return False  # one device gives the answer
        if method is SplitMethod.ROWS:
            if (start, stop) not in self._by_rows:
                self._by_rows[start, stop] = self._can_rows(start, stop)
            return self._by_rows[start, stop]
        if method is SplitMethod.OUTPUT:
            last = self.model.operators[stop - 1]
            carried = self.model.operators[start : stop - 1]
            return last.units > 1 and all(one.carried and not last.per_channel for one in carried)
        return False

    def _can_rows(self, start: int, stop: int) -> bool:
        operators = [one for one in self.model.operators[start:stop] if one.inputs]
        return bool(operators) and all(
            one.windows is not None and self.model.tensors[one.output].rows > 1 for one in operators
        )

    def axis_size(self, block: Block) -> int:
        """Return how many rows or channels the shards of a block share."""
        if block.method is SplitMethod.ROWS:
            return self.model.tensors[self.model.places[block.stop]].rows
        return self.model.operators[block.stop - 1].units if block.method is SplitMethod.OUTPUT else 1

    def rows(self, start: int, stop: int, first: int, last: int) -> RowShare:
        """Return what rows [first, last) of the output of a block by rows take."""
        key = (start, stop, first, last)
        if key not in self._rows:
            self._rows[key] = self._trace(*key)
        return self._rows[key]

    def _trace(self, start: int, stop: int, first: int, last: int) -> RowShare:
        tensors, wanted = self.model.tensors, {self.model.places[stop]: (first, last)}
        parts, tile = [0.0] * (stop - start), 0
        for i in range(stop - 1, start - 1, -1):
            operator = self.model.operators[i]
            if operator.output not in wanted or operator.windows is None:
                continue  # prepares constants
            made, size = wanted[operator.output], tensors[operator.output]
            parts[i - start] = (made[1] - made[0]) / size.rows
            held = size.bytes * (made[1] - made[0]) // size.rows
            for source, window in zip(operator.inputs, operator.windows, strict=True):
                rows = tensors[source].rows
                low, high = window.needed(*made, rows)
                held += tensors[source].bytes * (high - low) // rows
                before = wanted.get(source, (low, high))
                wanted[source] = min(low, before[0]), max(high, before[1])
            tile = max(tile, held)
        return RowShare(wanted[self.model.places[start]], tuple(parts), tile)

    def step_seconds(self, block: Block, device: int, low: int, high: int) -> float:
        """Return the seconds of one run of a share [low, high) of a block on a device."""
        key = (block.start, block.stop, block.method.value, self._alike[device], low, high)
        if key not in self._seconds:
            self._seconds[key] = self._run(block, device, low, high)
        return self._seconds[key]

    def _run(self, block: Block, device: int, low: int, high: int) -> float:
        each, total = self.seconds[device][block.start : block.stop], self.devices[device].kind.overhead_s
        if block.method is SplitMethod.ROWS:
            parts = self.rows(block.start, block.stop, low, high).parts
            return total + sum(seconds * part for seconds, part in zip(each, parts, strict=True))
        if block.method is SplitMethod.OUTPUT:
            operator, share = self.model.operators[block.stop - 1], high - low
            if operator.name == "CONV_2D":
                share = min(operator.units, -(-share // CHANNEL_TILE) * CHANNEL_TILE)
            return total + sum(each[:-1]) + each[-1] * share / operator.units
        return total + sum(each)

    def needed(self, block: Block, shard: int) -> tuple[str, int, int] | None:
        """Return the region of its input that a shard needs: its axis, start and stop; None for a shard without work.

        The axis is "rows", "channels", or "" for all of it.
        """
        low, high = block.share(shard)
        if low == high:
            return None
        if block.method is SplitMethod.ROWS:
            return ("rows", *self.rows(block.start, block.stop, low, high).needed)
        if block.method is SplitMethod.OUTPUT and self.model.operators[block.stop - 1].per_channel:
            return ("channels", low, high)
        return ("", 0, 0)

    def transfer(self, block: Block | None, after: Block | None, border_first: bool) -> BlockTransfer:
        """Return the steps of a block (None: the source) and the pieces that the next one (None: the sink) takes."""
        key = (block, after, border_first)
        if key not in self._transfers:
            pieces = self._pieces(block, after) if after else []
            self._transfers[key] = self._order(block, pieces, border_first)
        return self._transfers[key]

    def _pieces(self, block: Block | None, after: Block) -> list[PlannedPiece]:
        tensor = self.model.tensors[self.model.places[after.start]]
        found: dict[tuple[int, str, int, int], list[int]] = {}
        for taker in range(self.n):
            need = self.needed(after, taker)
            if need is None:
                continue
            for sender, axis, low, high in self._held(block, tensor.rows, tensor.channels):
                if sender == taker:
                    continue
                if axis == "":
                    axis, low, high = need
                elif axis == need[0]:
                    low, high = max(low, need[1]), min(high, need[2])
                if axis == "" or low < high:
                    found.setdefault((sender, axis, low, high), []).append(taker)
        pieces = []
        for (sender, axis, low, high), takers in found.items():
            size = {"rows": tensor.rows, "channels": tensor.channels}.get(axis, 1)
            part = tensor.bytes * (high - low) / size if axis else float(tensor.bytes)
            bytes_ = math.ceil(part / self.packing.ratio) + HEAD_BYTES
            pieces.append(PlannedPiece(sender, low, high, tuple(takers), bytes_))
        return pieces

    def _held(self, block: Block | None, rows: int, channels: int) -> list[tuple[int, str, int, int]]:
        """Return who holds which part of the tensor behind a block."""
        if block is None:
            return [(SOURCE, "", 0, 0)]
        axis = {SplitMethod.ROWS: "rows", SplitMethod.OUTPUT: "channels"}.get(block.method, "")
        shares = enumerate(pairwise(block.bounds))
        return [(k, axis, low if axis else 0, high if axis else 0) for k, (low, high) in shares if low < high]

    def _order(self, block: Block | None, pieces: list[PlannedPiece], border_first: bool) -> BlockTransfer:
        """Return the steps that make the pieces, those that others wait for first."""
        if block is None:
            return BlockTransfer(((),) * self.n, tuple(pieces))
        steps, placed = [], []
        for shard, share in enumerate(pairwise(block.bounds)):
            own = [piece for piece in pieces if piece.sender == shard]
            ranges = [share] if share[0] < share[1] else []
            if border_first and block.method is SplitMethod.ROWS and ranges:
                ranges = _borders(share, own)
            steps.append(tuple(ranges))
            for piece in own:
                # The first step after which every row of the piece is there.
                inside = [i for i, (low, high) in enumerate(ranges) if low < piece.stop and piece.start < high]
                step = max(inside, default=0) if block.method is SplitMethod.ROWS else 0
                placed.append(PlannedPiece(shard, piece.start, piece.stop, piece.takers, piece.bytes, step))
        placed.sort(key=lambda piece: (piece.step, piece.sender, piece.start))
        return BlockTransfer(tuple(steps), tuple(placed))

    def memory(self, block: Block, shard: int, steps: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Return the bytes of the weights of a shard's files, and of the activations that it holds meanwhile.

        The upper and the lower border of the picture have files of their own if operators pad; the runtime keeps the
        weights of each.
        """
        if not steps:
            return 0, 0
        operators = self.model.operators[block.start : block.stop]
        weights = sum(one.weight_bytes for one in operators)
        low, high = block.share(shard)
        before, after = self.model.tensors[self.model.places[block.start]], self.model.tensors[operators[-1].output]
        if block.method is SplitMethod.ROWS:
            size = self.axis_size(block)
            kinds = {(first == 0, last == size) for first, last in steps} if any(o.padded for o in operators) else {0}
            need = self.rows(block.start, block.stop, low, high).needed
            tile = max(self.rows(block.start, block.stop, *step).tile_bytes for step in steps)
            held = before.bytes * (need[1] - need[0]) // before.rows + after.bytes * (high - low) // size
            return weights * len(kinds), tile + held
        if block.method is SplitMethod.OUTPUT:
            part = (high - low) / operators[-1].units
            taken = before.bytes * (part if operators[-1].per_channel else 1)
            return math.ceil(weights * part), math.ceil(2 * (taken + after.bytes * part))
        most = max(self._alive(one.inputs, one.output) for one in operators)
        return weights, most + before.bytes + after.bytes

    def _alive(self, inputs: Sequence[int], output: int) -> int:
        tensors = self.model.tensors
        return sum(tensors[i].bytes for i in (*inputs, output) if i in tensors)


def _borders(share: tuple[int, int], pieces: Sequence[PlannedPiece]) -> list[tuple[int, int]]:
    """Return the ranges of a share that others wait for, and then the rest."""
    ranges: list[tuple[int, int]] = []
    for low, high in sorted((piece.start, piece.stop) for piece in pieces):
        if ranges and low <= ranges[-1][1]:
            ranges[-1] = ranges[-1][0], max(high, ranges[-1][1])
        else:
            ranges.append((low, high))
    ends = [share[0], *(end for one in ranges for end in one), share[1]]
    return ranges + [(low, high) for low, high in zip(ends[::2], ends[1::2], strict=True) if low < high]
