"""Simulate one window on its way through the shards of a split: processors, links, and the broker's link.

Each processor and each direction of each link serves one thing at a time, in an order that the plan alone decides: by
block, then by step, then by shard. All times are therefore maxima and sums of the durations: a slower device or link
never makes a window faster (max-plus algebra; Baccelli et al., Synchronization and Linearity, 1992, section 2.5).

The processor runs the steps of a block, sends what each has made, and then takes in what came. A message enters the
broker while it leaves the device, at the slower of the two rates, and leaves the broker once it is there as a whole.
A device that carries a broker sends each taker a copy over its own link, and no other link carries it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from har_edge.planner.slice_graph import RESULT_BYTES
from har_edge.planner.split_costs import SOURCE, BlockTransfer, PlannedPiece, SplitCosts
from har_edge.planner.transfer_times import PieceTimes, RunTimes, TakerTimes, TransferTimes
from har_edge.tflite.split.plan import Block

# A Mosquitto on the device of a stage: the part of a stage's processor time that a message and its bytes take there,
# for each time that it comes in or goes out, and resident bytes (docs/explanation/planning.md has the measurement).
OWN_MESSAGE, OWN_BYTE, OWN_MEMORY_BYTES = 0.3, 1.9, 10_000_000
BROKER_LINK = "the broker's link"


@dataclass(slots=True)
class Timeline:
    """When each processor and each direction of each link is free, in seconds after the window was sent.

    `links` has two entries a device, upward and downward, and two of the broker: inward and outward.
    """

    processors: list[float]
    links: list[float]


@dataclass(frozen=True, slots=True)
class SplitForecast:
    """The prediction for a split, by device where there are several figures.

    Attributes:
        latency_s: Seconds from the window at the broker to its result there, as of a plan of whole layers.
        period_s: Seconds between two windows, if enough of them are on their way.
        compute_s, message_s: The processor's time for a window.
        up_bytes, down_bytes: Bytes on the device's link.
        broker_bytes: Bytes into and out of the central broker.
        memory_bytes: Resident bytes of each process, with the broker that the device carries.
        largest_bytes: The largest message.
        binding: The processor or link that sets the period.
        broker_s: How long the broker's link is busy for a window.
        loads: How long each processor and each link is busy for a window, by name.
    """

    latency_s: float
    period_s: float
    compute_s: tuple[float, ...]
    message_s: tuple[float, ...]
    up_bytes: tuple[int, ...]
    down_bytes: tuple[int, ...]
    broker_bytes: tuple[int, int]
    memory_bytes: tuple[int, ...]
    largest_bytes: int
    binding: str
    broker_s: float
    loads: dict[str, float]


@dataclass(slots=True)
class SplitSums:
    """The sums of a split: processor seconds and bytes of each device for a window, and what its memory holds."""

    compute_s: list[float]
    message_s: list[float]
    up_bytes: list[int]
    down_bytes: list[int]
    broker_bytes: list[int]
    weights: list[int]
    tiles: list[int]
    largest_bytes: int = RESULT_BYTES

    def copy(self) -> SplitSums:
        """Return one to which other pieces may be added."""
        return replace(
            self,
            message_s=self.message_s[:],
            up_bytes=self.up_bytes[:],
            down_bytes=self.down_bytes[:],
            broker_bytes=self.broker_bytes[:],
        )


class Simulator:
    """Moves timelines over blocks of a split.

    Shards may share processors and links: `processors` and `links` name the one of each shard, by default its own.
    """

    def __init__(
        self,
        costs: SplitCosts,
        *,
        border_first: bool,
        processors: Sequence[int] | None = None,
        links: Sequence[int] | None = None,
    ) -> None:
        self.costs, self.border_first, n = costs, border_first, costs.n
        self._processor = range(n) if processors is None else processors
        own = range(n) if links is None else links
        kinds = [device.kind for device in costs.devices]
        work = [sum(each) for each in costs.seconds]
        # Packing is measured on the fastest device.
        self._slower = [each / least if (least := min(work)) else 1.0 for each in work]
        self._latency = [kind.latency_s for kind in kinds]
        rate = costs.broker.link_bytes_per_s or math.inf
        each = [1 / kind.link_bytes_per_s for kind in kinds]
        self._seconds = [seconds for one in each for seconds in (one, one)] + [1 / rate, 1 / rate]
        # Both directions are one entry where they share the link.
        self._up = [2 * k for k in own]
        self._down = [2 * k + kind.duplex for k, kind in zip(own, kinds, strict=True)]
        self._in, self._out = 2 * n, 2 * n + costs.broker.duplex
        self._times: dict[int, tuple[BlockTransfer, TransferTimes]] = {}

    def start(self, first: Block) -> Timeline:
        """Return when each device has its part of the window, which the first block takes."""
        n = self.costs.n
        timeline = Timeline([0.0] * n, [0.0] * (2 * n + 2))
        return self.advance(timeline, self.costs.transfer(None, first, self.border_first))

    def advance(self, timeline: Timeline, transfer: BlockTransfer) -> Timeline:
        """Return the timeline after a block has run and the next one's inputs have arrived."""
        found = self._times.get(id(transfer))
        if found is None:
            # The transfer is kept, so that no other one has its id meanwhile.
            found = self._times[id(transfer)] = transfer, self.timed(transfer)
        return self.moved(timeline, found[1])

    def moved(self, timeline: Timeline, times: TransferTimes) -> Timeline:
        """Return the timeline after these runs and messages."""
        processors, links = timeline.processors[:], timeline.links[:]
        ready = times.run(processors)
        times.travel(processors, links, ready, self._in, self._out)
        return Timeline(processors, links)

    def timed(self, transfer: BlockTransfer) -> TransferTimes:
        """Return the seconds that a transfer takes of each processor and link."""
        pieces, runs = transfer.pieces, list[RunTimes]()
        made = dict[tuple[int, int], list[int]]()  # by shard and step
        for index, piece in enumerate(pieces):
            made.setdefault((piece.sender, piece.step), []).append(index)
        for shard, steps in enumerate(transfer.steps):
            parts = list[tuple[float, int]]()
            for number, step in enumerate(steps):
                parts.append((step.seconds, -1))
                for index in made.get((shard, number), ()):
                    parts.append((self._sending(transfer, pieces[index]), index))
            if parts:
                runs.append((self._processor[shard], parts))
        return TransferTimes(runs, [self._travelling(transfer, piece) for piece in pieces])

    def _sending(self, transfer: BlockTransfer, piece: PlannedPiece) -> float:
        """Return the seconds of the sender's processor for a piece, those of its own broker included."""
        k = piece.sender
        stage = self._taking(transfer, piece, k)
        if k not in self.costs.own_brokers:
            return stage
        message_s, byte_s = transfer.messages[k]
        return stage + (1 + len(piece.takers)) * (OWN_MESSAGE * message_s + piece.bytes * OWN_BYTE * byte_s)

    def _taking(self, transfer: BlockTransfer, piece: PlannedPiece, shard: int) -> float:
        """Return the processor seconds of a piece at one of its ends."""
        message_s, byte_s = transfer.messages[shard]
        return message_s + piece.bytes * byte_s + piece.packed_s * self._slower[shard]

    def _travelling(self, transfer: BlockTransfer, piece: PlannedPiece) -> PieceTimes:
        size, seconds, sender = piece.bytes, self._seconds, piece.sender
        takers, out_s = list[TakerTimes](), size * seconds[self._out]
        for k in piece.takers:
            down, took = self._down[k], self._taking(transfer, piece, k)
            takers.append((self._processor[k], down, out_s, size * seconds[down], self._latency[k], took))
        if sender == SOURCE:
            return -1, 0.0, 0.0, size * seconds[self._in], False, takers
        up, own = self._up[sender], sender in self.costs.own_brokers
        return up, size * seconds[up], self._latency[sender], size * seconds[self._in], own, takers

    def finish(self, timeline: Timeline, last: Block) -> float:
        """Return when the result is there. `last` is a block of one device."""
        (device,) = [k for k in range(self.costs.n) if last.bounds[k] < last.bounds[k + 1]]
        kind = self.costs.devices[device].kind
        run = self.costs.step_seconds(last, device, 0, 1)
        slower = max(1 / kind.link_bytes_per_s, self.costs.broker.byte_s)
        message_s, byte_s = kind.message_after(run)
        send = message_s + RESULT_BYTES * (byte_s + slower)
        return timeline.processors[self._processor[device]] + run + send + kind.latency_s

    def latency(self, blocks: Sequence[Block]) -> float:
        """Return the seconds of one window through these blocks."""
        timeline = self.start(blocks[0])
        for block, after in pairwise(blocks):
            timeline = self.advance(timeline, self.costs.transfer(block, after, self.border_first))
        return self.finish(timeline, blocks[-1])

    def forecast(self, blocks: Sequence[Block]) -> SplitForecast:
        """Return all figures of a split."""
        sums = self.sums(blocks)
        loads = dict(zip(self._names(), self.busy(sums), strict=True))
        period, binding = max((seconds, name) for name, seconds in loads.items())
        return SplitForecast(
            latency_s=self.latency(blocks),
            period_s=period,
            compute_s=tuple(sums.compute_s),
            message_s=tuple(sums.message_s),
            up_bytes=tuple(sums.up_bytes),
            down_bytes=tuple(sums.down_bytes),
            broker_bytes=(sums.broker_bytes[0], sums.broker_bytes[1]),
            memory_bytes=self.memory(sums),
            largest_bytes=sums.largest_bytes,
            binding=binding,
            broker_s=loads[BROKER_LINK],
            loads=loads,
        )

    def sums(self, blocks: Sequence[Block], *, between: bool = True) -> SplitSums:
        """Return the sums over all blocks, and the result; unless `between`, without what travels between them."""
        costs, n = self.costs, self.costs.n
        sums = SplitSums([0.0] * n, [0.0] * n, [0] * n, [0] * n, [RESULT_BYTES] * 2, [0] * n, [0] * n)
        for block, after in zip((None, *blocks), (*blocks, None), strict=True):
            transfer = costs.transfer(block, after, self.border_first)
            if between or block is None:
                self.add_pieces(sums, transfer)
            for shard, (steps, (weight, tile)) in enumerate(zip(transfer.steps, transfer.memory, strict=False)):
                sums.compute_s[shard] += sum(step.seconds for step in steps)
                sums.weights[shard] += weight
                sums.tiles[shard] = max(sums.tiles[shard], tile)
        last = next(k for k in range(n) if blocks[-1].bounds[k] < blocks[-1].bounds[k + 1])
        sums.up_bytes[last] += RESULT_BYTES
        message_s, byte_s = costs.devices[last].kind.message_after(costs.step_seconds(blocks[-1], last, 0, 1))
        sums.message_s[last] += message_s + RESULT_BYTES * byte_s
        return sums

    def add_pieces(self, sums: SplitSums, transfer: BlockTransfer) -> None:
        """Add what the pieces of a transfer take of processors and links."""
        for piece in transfer.pieces:
            copies = len(piece.takers)
            sums.largest_bytes = max(sums.largest_bytes, piece.bytes)
            own = piece.sender in self.costs.own_brokers
            if piece.sender != SOURCE:
                sums.up_bytes[piece.sender] += piece.bytes * (copies if own else 1)
                sums.message_s[piece.sender] += self._sending(transfer, piece)
            if not own:
                sums.broker_bytes[0] += piece.bytes
                sums.broker_bytes[1] += piece.bytes * copies
            for taker in piece.takers:
                sums.down_bytes[taker] += piece.bytes
                sums.message_s[taker] += self._taking(transfer, piece, taker)

    def memory(self, sums: SplitSums) -> tuple[int, ...]:
        """Return the resident bytes of each device, 0 for one without work."""
        return tuple(
            self.resident(k, weights, tile) if weights or tile else 0
            for k, (weights, tile) in enumerate(zip(sums.weights, sums.tiles, strict=True))
        )

    def loads(self, blocks: Sequence[Block]) -> list[float]:
        """Return the seconds that a window takes of each processor and link."""
        return self.busy(self.sums(blocks))

    def busy(self, sums: SplitSums) -> list[float]:
        """Return the seconds that a window takes of each resource, in the order of `_names`."""
        busy = [self.costs.broker.busy_bytes(*sums.broker_bytes) * self._seconds[-1]]
        for k, device in enumerate(self.costs.devices):
            up, down = sums.up_bytes[k], sums.down_bytes[k]
            busy.append(sums.compute_s[k] + sums.message_s[k])
            busy.append((max(up, down) if device.kind.duplex else up + down) * self._seconds[2 * k])
        return busy

    def _names(self) -> list[str]:
        names = [BROKER_LINK]
        for device in self.costs.devices:
            names += [f"the processor of {device.name}", f"the link of {device.name}"]
        return names

    def room(self, device: int) -> float:
        """Return the bytes of weights and activations that a device's memory does not hold any more."""
        kind = self.costs.devices[device].kind
        limit = math.inf if kind.memory_bytes is None else kind.memory_bytes
        return (limit + 1 - self.resident(device, 0, 0)) / kind.growth

    def resident(self, device: int, weights: int, tile: int) -> int:
        """Return the resident bytes of a process with these weights and activations, and of the broker beside it."""
        kind = self.costs.devices[device].kind
        broker = OWN_MEMORY_BYTES if device in self.costs.own_brokers else 0
        return int(kind.base_bytes + kind.growth * (weights + tile) + broker)
