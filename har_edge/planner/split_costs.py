"""The costs of the blocks of a split on given devices: seconds of steps, pieces between blocks, memory.

A block by rows computes, for its share, every row that the last operator needs; seconds scale with these rows, the
redundant ones included. The convolutions of XNNPACK compute channels in tiles.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from har_edge.planner.devices import BrokerLink, PlannerDevice
from har_edge.planner.slice_graph import HEAD_BYTES
from har_edge.planner.split_model import ALL_INPUTS, RowShare, SplitModel, SplitOperator, SplitTensor
from har_edge.tflite.split.plan import Block, SplitMethod

SOURCE = -1  # the sender of the model's input
CHANNEL_TILE = 16  # convolutions on fewer output channels take as long


@dataclass(frozen=True, slots=True)
class PlannedPiece:
    """A message: elements [start, stop) of the tensor between two blocks, from one shard to others.

    `step` is the step of the sender that makes it. Packing takes `packed_s` seconds of the fastest device at each end.
    """

    sender: int
    start: int
    stop: int
    takers: tuple[int, ...]
    bytes: int
    step: int = 0
    packed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class BlockStep:
    """One run of a shard: the rows or channels that it makes, its seconds, and what its file and its tiles take."""

    low: int
    high: int
    seconds: float
    file: Hashable
    weight_bytes: int
    tile_bytes: int


@dataclass(frozen=True, slots=True)
class BlockTransfer:
    """A block's steps, given the block that follows, for each shard, and the pieces between these blocks in the order
    in which they travel. `messages` are the seconds of a message and of each byte of it for each shard, whose work of
    the block lies between them. `memory` are the bytes of each shard's weights and activations.
    """

    steps: tuple[tuple[BlockStep, ...], ...]
    pieces: tuple[PlannedPiece, ...]
    messages: tuple[tuple[float, float], ...]
    memory: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class PackingCost:
    """How activations travel: a byte becomes 1 / `ratio`, and costs each end so many seconds of the fastest device."""

    ratio: float = 1.0
    seconds_per_byte: float = 0.0

    def packed(self, size: float) -> tuple[int, float]:
        """Return the bytes that so many become, and the seconds of one end."""
        return math.ceil(size / self.ratio), size * self.seconds_per_byte


UNPACKED = PackingCost()


@dataclass(slots=True, eq=False)
class SplitCosts:
    """A model on devices. `seconds[k][i]` are those of operator i, whole, on device k.

    Activations travel by `packing`, those at a place of `packings` by that one; the model's input travels as it is.
    The devices of `own_brokers` send through brokers of their own. `shares` are those found by speed.
    """

    model: SplitModel
    devices: Sequence[PlannerDevice]
    seconds: Sequence[Sequence[float]]
    broker: BrokerLink = field(default_factory=BrokerLink)
    packing: PackingCost = UNPACKED
    packings: Mapping[int, PackingCost] = field(default_factory=dict)
    own_brokers: frozenset[int] = frozenset()
    shares: dict[tuple[int, int, SplitMethod, tuple[int, ...]], tuple[int, ...]] = field(
        default_factory=dict, init=False
    )
    _rows: dict[tuple[int, int, int, int], RowShare] = field(default_factory=dict, init=False)
    _seconds: dict[tuple[int, int, str, int, int, int], float] = field(default_factory=dict, init=False)
    _transfers: dict[tuple[Block | None, Block | None, bool], BlockTransfer] = field(default_factory=dict, init=False)
    _legal: dict[tuple[int, int, SplitMethod], bool] = field(default_factory=dict, init=False)
    _steps: dict[
        tuple[int, int, SplitMethod, int, tuple[int, int], tuple[tuple[int, int], ...]], tuple[BlockStep, ...]
    ] = field(default_factory=dict, init=False)
    _alike: list[int] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        keys = [(device.kind, tuple(each)) for device, each in zip(self.devices, self.seconds, strict=True)]
        self._alike = [keys.index(key) for key in keys]  # the first device with the same costs

    @property
    def n(self) -> int:
        return len(self.devices)

    def with_flows(
        self,
        *,
        broker: BrokerLink | None = None,
        packing: PackingCost | None = None,
        packings: Mapping[int, PackingCost] | None = None,
        own_brokers: frozenset[int] | None = None,
    ) -> SplitCosts:
        """Return the costs with other ways for what travels; all that is known of blocks and steps stays known."""
        found = replace(
            self,
            broker=self.broker if broker is None else broker,
            packing=self.packing if packing is None else packing,
            packings=self.packings if packings is None else packings,
            own_brokers=self.own_brokers if own_brokers is None else own_brokers,
        )
        found.shares = self.shares
        found._rows, found._seconds, found._legal, found._steps = self._rows, self._seconds, self._legal, self._steps
        if (found.packing, found.packings) == (self.packing, self.packings):
            found._transfers = self._transfers
        return found

    def packing_at(self, place: int) -> PackingCost:
        """Return how the tensor travels that crosses this place; at the first place that is the model's input."""
        return self.packings.get(place, self.packing) if place else UNPACKED

    def is_legal(self, start: int, stop: int, method: SplitMethod) -> bool:
        """Return whether operators [start, stop) can be a block with this method."""
        places = self.model.places
        if start not in places or (stop != self.model.n and stop not in places):
            return False
        if method is SplitMethod.WHOLE:
            return True
        if stop == self.model.n:
            return False  # one device gives the answer
        key = (start, stop, method)
        if key not in self._legal:
            check = {SplitMethod.ROWS: self._can_rows, SplitMethod.OUTPUT: self._can_output}.get(method)
            self._legal[key] = check is not None and check(start, stop)
        return self._legal[key]

    def _can_rows(self, start: int, stop: int) -> bool:
        """Return whether a block can be split by rows, and its result has as many rows as its shards share."""
        rows = self.model.geometry.rows(start, stop)
        return rows > 1 and rows == self.model.tensors[self.model.places[stop]].rows

    def _can_output(self, start: int, stop: int) -> bool:
        """Return whether a block computes channels from all channels at most once: more would be computed by all."""
        operators = [one for one in self.model.operators[start:stop] if one.inputs]
        rest = [one for one in operators if not one.carried]
        first = operators[: len(operators) - len(rest)]
        return (
            bool(rest)
            and all(one.carried for one in first)
            and (rest[0].linear or (rest[0].per_channel and not first))
            and all(one.per_channel and len(one.inputs) == 1 for one in rest[1:])
            and self.model.geometry.can_output(start, stop)
        )

    def axis_size(self, block: Block) -> int:
        """Return how many rows or channels the shards of a block share."""
        if block.method is SplitMethod.WHOLE:
            return 1
        tensor = self.model.tensors[self.model.places[block.stop]]
        return tensor.rows if block.method is SplitMethod.ROWS else tensor.channels

    def has_tiles(self, block: Block) -> bool:
        """Return whether channels are computed in tiles of CHANNEL_TILE."""
        return any(one.name == "CONV_2D" for one in self.model.operators[block.start : block.stop])

    def rows(self, start: int, stop: int, first: int, last: int) -> RowShare:
        """Return what rows [first, last) of the output of a block by rows take."""
        key = (start, stop, first, last)
        if key not in self._rows:
            self._rows[key] = self.model.geometry.share(*key)
        return self._rows[key]

    def step_seconds(self, block: Block, device: int, low: int, high: int) -> float:
        """Return the seconds of one run of a share [low, high) of a block on a device."""
        key = (block.start, block.stop, block.method.value, self._alike[device], low, high)
        if key not in self._seconds:
            self._seconds[key] = self._run(block, device, low, high)
        return self._seconds[key]

    def _run(self, block: Block, device: int, low: int, high: int) -> float:
        if block.method is SplitMethod.ROWS:
            return self._rows_seconds(block, device, self.rows(block.start, block.stop, low, high).parts)
        if block.method is SplitMethod.OUTPUT:
            parts = self._channel_parts(block, high - low)
        else:
            parts = (1.0,) * (block.stop - block.start)
        return self._seconds_of(block, device, parts)

    def _rows_seconds(self, block: Block, device: int, parts: Sequence[float]) -> float:
        """Return the seconds of a run that computes parts of the rows of a block's operators, with all of its weights.

        Weights come from memory once a run, which takes as long for one row as for all.
        """
        kind, total = self.devices[device].kind, 0.0
        for index, part in zip(range(block.start, block.stop), parts, strict=True):
            whole = self.seconds[device][index]
            weights = min(whole, kind.weight_byte_s * self.model.operators[index].weight_bytes)
            total += weights + (whole - weights) * part if part else 0.0
        return kind.overhead_s + total

    def _seconds_of(self, block: Block, device: int, parts: Sequence[float]) -> float:
        """Return the seconds of a run that computes these parts of the channels of a block's operators."""
        each = self.seconds[device][block.start : block.stop]
        work = sum(seconds * part for seconds, part in zip(each, parts, strict=True))
        return self.devices[device].kind.overhead_s + work

    def _channel_parts(self, block: Block, share: int) -> tuple[float, ...]:
        """Return the part of each operator that a share of so many output channels takes."""
        size, parts = self.axis_size(block), []
        for operator in self.model.operators[block.start : block.stop]:
            made = min(size, -(-share // CHANNEL_TILE) * CHANNEL_TILE) if operator.name == "CONV_2D" else share
            parts.append(made / size if operator.linear or operator.per_channel else 1.0)
        return tuple(parts)

    def needed(self, block: Block, shard: int) -> tuple[str, int, int] | None:
        """Return the region of its input that a shard needs: its axis, start and stop; None for a shard without work.

        The axis is "rows", "channels", or "" for all of it.
        """
        low, high = block.share(shard)
        if low == high:
            return None
        if self.model.places[block.start] == ALL_INPUTS:
            return ("", 0, 0)
        if block.method is SplitMethod.ROWS:
            needed = self.rows(block.start, block.stop, low, high).needed
            return ("", 0, 0) if needed is None else ("rows", *needed)
        if block.method is SplitMethod.OUTPUT and self._is_per_channel(block):
            return ("channels", low, high)
        return ("", 0, 0)

    def _is_per_channel(self, block: Block) -> bool:
        operators = self.model.operators[block.start : block.stop]
        return all(one.per_channel for one in operators if one.inputs)

    def transfer(self, block: Block | None, after: Block | None, border_first: bool) -> BlockTransfer:
        """Return the steps of a block (None: the source) and the pieces that the next one (None: the sink) takes."""
        key = (block, after, border_first)
        if key not in self._transfers:
            pieces = self._pieces(block, after) if after else []
            self._transfers[key] = self._order(block, pieces, border_first)
        return self._transfers[key]

    def _pieces(self, block: Block | None, after: Block) -> list[PlannedPiece]:
        if self.model.places[after.start] == ALL_INPUTS:
            takers = tuple(k for k in range(self.n) if self.needed(after, k) is not None)
            return [PlannedPiece(SOURCE, 0, 0, takers, size + HEAD_BYTES) for size in self.model.inputs]
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
        pieces, packing = [], self.packing_at(after.start)
        for (sender, axis, low, high), takers in _apart(found).items():
            size = {"rows": tensor.rows, "channels": tensor.channels}.get(axis, 1)
            part = tensor.bytes * (high - low) / size if axis else float(tensor.bytes)
            packed, packed_s = packing.packed(part)
            pieces.append(PlannedPiece(sender, low, high, tuple(takers), packed + HEAD_BYTES, packed_s=packed_s))
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
            cold = tuple((device.kind.message_s, device.kind.message_byte_s) for device in self.devices)
            return BlockTransfer(((),) * self.n, tuple(pieces), cold)
        steps, placed = [], []
        for shard, share in enumerate(pairwise(block.bounds)):
            own = [piece for piece in pieces if piece.sender == shard]
            runs = self._runs(block, shard, share, own if border_first else []) if share[0] < share[1] else ()
            steps.append(runs)
            for piece in own:
                # The first step after which every row of the piece is there.
                inside = [i for i, one in enumerate(runs) if one.low < piece.stop and piece.start < one.high]
                step = max(inside, default=0) if block.method is SplitMethod.ROWS else 0
                placed.append(
                    PlannedPiece(shard, piece.start, piece.stop, piece.takers, piece.bytes, step, piece.packed_s)
                )
        placed.sort(key=lambda piece: (piece.step, piece.sender, piece.start))
        memory = tuple(self.memory(block, shard, own) for shard, own in enumerate(steps))
        return BlockTransfer(tuple(steps), tuple(placed), self._messages(steps, placed), memory)

    def _messages(
        self, steps: Sequence[Sequence[BlockStep]], pieces: Sequence[PlannedPiece]
    ) -> tuple[tuple[float, float], ...]:
        """Return what a message costs each shard, and each byte of it, with its share of the work between them."""
        counts = [0] * self.n
        for piece in pieces:
            for shard in (piece.sender, *piece.takers):
                counts[shard] += 1
        return tuple(
            device.kind.message_after(sum(step.seconds for step in own) / max(1, count))
            for device, own, count in zip(self.devices, steps, counts, strict=True)
        )

    def _runs(
        self, block: Block, shard: int, share: tuple[int, int], urgent: Sequence[PlannedPiece]
    ) -> tuple[BlockStep, ...]:
        """Return the steps of a shard, those first that make what others wait for."""
        ranges = tuple((piece.start, piece.stop) for piece in urgent)
        key = (block.start, block.stop, block.method, self._alike[shard], share, ranges)
        if key not in self._steps:
            self._steps[key] = self._make_steps(block, shard, share, ranges)
        return self._steps[key]

    def _make_steps(
        self, block: Block, shard: int, share: tuple[int, int], urgent: tuple[tuple[int, int], ...]
    ) -> tuple[BlockStep, ...]:
        if block.method is SplitMethod.ROWS:
            apart = self.model.geometry.apart(block.start, block.stop, *share, urgent) if urgent else ()
            shares = apart or (self.rows(block.start, block.stop, *share),)
            return tuple(
                BlockStep(
                    *one.made,
                    self._rows_seconds(block, shard, one.parts),
                    one.file,
                    self._weights(block, one.parts),
                    one.tile_bytes,
                )
                for one in shares
            )
        seconds = self.step_seconds(block, shard, *share)
        before, after = self._ends(block)
        if block.method is SplitMethod.OUTPUT:
            part = (share[1] - share[0]) / self.axis_size(block)
            taken = before.bytes * (part if self._is_per_channel(block) else 1)
            weights, tile = self._weights(block) * part, taken + after.bytes * part
            return (BlockStep(*share, seconds, share, math.ceil(weights), math.ceil(tile)),)
        most = max(self._alive(one) for one in self.model.operators[block.start : block.stop])
        return (BlockStep(*share, seconds, share, self._weights(block), most),)

    def _weights(self, block: Block, parts: Sequence[float] = ()) -> int:
        """Return the bytes of the weights of a block, or of the operators that a run of it computes."""
        operators = self.model.operators[block.start : block.stop]
        return sum(one.weight_bytes for i, one in enumerate(operators) if not parts or parts[i])

    def _ends(self, block: Block) -> tuple[SplitTensor, SplitTensor]:
        """Return the tensors that a block takes and gives."""
        tensors = self.model.tensors
        return tensors[self.model.places[block.start]], tensors[self.model.operators[block.stop - 1].output]

    def memory(self, block: Block, shard: int, steps: Sequence[BlockStep]) -> tuple[int, int]:
        """Return the bytes of the weights of a shard's files, and of the activations that it holds meanwhile.

        The runtime keeps the weights of each file. Rows at the border of the picture have a file of their own if
        operators pad.
        """
        if not steps:
            return 0, 0
        weights = sum({one.file: one.weight_bytes for one in steps}.values())
        tile, (before, after) = max(one.tile_bytes for one in steps), self._ends(block)
        low, high = block.share(shard)
        part = (high - low) / self.axis_size(block)
        need, taken = self.needed(block, shard), float(before.bytes)
        if need is not None and need[0]:
            size = before.rows if need[0] == "rows" else before.channels
            taken *= (need[2] - need[1]) / size
        return weights, math.ceil(tile + taken + after.bytes * part)

    def _alive(self, operator: SplitOperator) -> int:
        tensors = self.model.tensors
        return sum(tensors[i].bytes for i in (*operator.inputs, operator.output) if i in tensors)


def _apart(found: dict[tuple[int, str, int, int], list[int]]) -> dict[tuple[int, str, int, int], tuple[int, ...]]:
    """Return regions that do not overlap, with all who take each; a source gives each region as it is asked for."""
    apart: dict[tuple[int, str, int, int], tuple[int, ...]] = {}
    groups: dict[tuple[int, str], list[tuple[int, int, list[int]]]] = {}
    for (sender, axis, low, high), takers in found.items():
        if axis and sender != SOURCE:
            groups.setdefault((sender, axis), []).append((low, high, takers))
        else:
            apart[sender, axis, low, high] = tuple(takers)
    for (sender, axis), regions in groups.items():
        for low, high in pairwise(sorted({end for region in regions for end in region[:2]})):
            over = {taker for first, last, takers in regions if first <= low and high <= last for taker in takers}
            if over:
                apart[sender, axis, low, high] = tuple(sorted(over))
    return apart
