"""Simulate one window on its way through the shards of a split: processors, links, and the broker's link.

Each processor and each direction of each link serves one thing at a time, in an order that the plan alone decides: by
block, then by step, then by shard. All times are therefore maxima and sums of the durations: a slower device or link
never makes a window faster (max-plus algebra; Baccelli et al., Synchronization and Linearity, 1992, section 2.5).

The processor runs the steps of a block, sends what each has made, and then takes in what came. A message enters the
broker while it leaves the device, at the slower of the two rates, and leaves the broker once it is there as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from har_edge.planner.slice_graph import RESULT_BYTES
from har_edge.planner.split_costs import SOURCE, BlockTransfer, PlannedPiece, SplitCosts
from har_edge.tflite.split.plan import Block


@dataclass(slots=True)
class Timeline:
    """When each processor and each direction of each link is free, in seconds after the window was sent.

    `links` has two entries a device, upward and downward, and two of the broker: inward and outward.
    """

    processors: list[float]
    links: list[float]

    def copy(self) -> Timeline:
        return Timeline(self.processors[:], self.links[:])


@dataclass(frozen=True, slots=True)
class SplitForecast:
    """The prediction for a split, by device where there are several figures.

    Attributes:
        latency_s: Seconds from the window at the broker to its result there, as of a plan of whole layers.
        period_s: Seconds between two windows, if enough of them are on their way.
        compute_s, message_s: The processor's time for a window.
        up_bytes, down_bytes: Bytes on the device's link.
        broker_bytes: Bytes into and out of the broker.
        memory_bytes: Resident bytes of each process.
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
        packing = costs.packing
        work = [sum(each) for each in costs.seconds]
        slower = [each / least if (least := min(work)) else 1.0 for each in work]
        self._pack = [packing.seconds_per_byte * packing.ratio * factor for factor in slower]
        self._latency = [kind.latency_s for kind in kinds]
        rate = costs.broker.link_bytes_per_s or math.inf
        each = [1 / kind.link_bytes_per_s for kind in kinds]
        self._seconds = [seconds for one in each for seconds in (one, one)] + [1 / rate, 1 / rate]
        # Both directions are one entry where they share the link.
        self._up = [2 * k for k in own]
        self._down = [2 * k + kind.duplex for k, kind in zip(own, kinds, strict=True)]
        self._in, self._out = 2 * n, 2 * n + costs.broker.duplex

    def start(self, first: Block) -> Timeline:
        """Return when each device has its part of the window, which the first block takes."""
        n = self.costs.n
        timeline = Timeline([0.0] * n, [0.0] * (2 * n + 2))
        return self.advance(timeline, None, self.costs.transfer(None, first, self.border_first))

    def advance(self, timeline: Timeline, block: Block | None, transfer: BlockTransfer) -> Timeline:
        """Return the timeline after a block has run and the next one's inputs have arrived."""
        after = timeline.copy()
        ready = self._run(after.processors, block, transfer)
        arrivals = self._travel(after.links, transfer, ready)
        processors, messages, pack, where = after.processors, transfer.messages, self._pack, self._processor
        for taker, arrival, size in arrivals:
            core, (message_s, byte_s) = where[taker], messages[taker]
            processors[core] = max(processors[core], arrival) + message_s + size * (byte_s + pack[taker])
        return after

    def _run(self, processors: list[float], block: Block | None, transfer: BlockTransfer) -> list[float]:
        """Run the steps; return when each piece is sent."""
        ready = [0.0] * len(transfer.pieces)
        if block is None:
            return ready
        mine: list[list[int]] = [[] for _ in processors]
        for index, piece in enumerate(transfer.pieces):
            mine[piece.sender].append(index)
        for shard, steps in enumerate(transfer.steps):
            core = self._processor[shard]
            now = processors[core]
            for number, step in enumerate(steps):
                now += step.seconds
                for index in mine[shard]:
                    if transfer.pieces[index].step == number:
                        now += self._piece_s(transfer, shard, transfer.pieces[index])
                        ready[index] = now
            processors[core] = now
        return ready

    def _piece_s(self, transfer: BlockTransfer, shard: int, piece: PlannedPiece) -> float:
        """Return the processor seconds of a piece at one of its ends."""
        message_s, byte_s = transfer.messages[shard]
        return message_s + piece.bytes * (byte_s + self._pack[shard])

    def _travel(
        self, links: list[float], transfer: BlockTransfer, ready: Sequence[float]
    ) -> list[tuple[int, float, int]]:
        """Send the pieces; return who gets each, when, and its size."""
        arrivals, seconds, latency = [], self._seconds, self._latency
        inward, outward = self._in, self._out
        for piece, sent in zip(transfer.pieces, ready, strict=True):
            start, size, came = sent, piece.bytes, sent
            if piece.sender != SOURCE:
                up = self._up[piece.sender]
                start = max(start, links[up])
                links[up] = start + size * seconds[up]
                start += latency[piece.sender]
                came = start + size * seconds[up]
            links[inward] = max(start, links[inward]) + size * seconds[inward]
            came = max(came, links[inward])
            for taker in piece.takers:
                down = self._down[taker]
                begin = max(came, links[outward])
                links[outward] = begin + size * seconds[outward]
                links[down] = max(begin, links[down]) + size * seconds[down]
                arrivals.append((taker, max(links[down], links[outward]) + latency[taker], size))
        return arrivals

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
            timeline = self.advance(timeline, block, self.costs.transfer(block, after, self.border_first))
        return self.finish(timeline, blocks[-1])

    def forecast(self, blocks: Sequence[Block]) -> SplitForecast:
        """Return all figures of a split."""
        costs, n = self.costs, self.costs.n
        compute, message = [0.0] * n, [0.0] * n
        up, down, broker, largest = [0] * n, [0] * n, [0, 0], RESULT_BYTES
        weights, tiles = [0] * n, [0] * n
        for block, after in zip((None, *blocks), (*blocks, None), strict=True):
            transfer = costs.transfer(block, after, self.border_first)
            for shard, steps in enumerate(transfer.steps if block else ()):
                assert block is not None
                compute[shard] += sum(step.seconds for step in steps)
                weight, tile = transfer.memory[shard]
                weights[shard] += weight
                tiles[shard] = max(tiles[shard], tile)
            for piece in transfer.pieces:
                largest = max(largest, piece.bytes)
                broker[0] += piece.bytes
                broker[1] += piece.bytes * len(piece.takers)
                if piece.sender != SOURCE:
                    up[piece.sender] += piece.bytes
                    message[piece.sender] += self._piece_s(transfer, piece.sender, piece)
                for taker in piece.takers:
                    down[taker] += piece.bytes
                    message[taker] += self._piece_s(transfer, taker, piece)
        last = next(k for k in range(n) if blocks[-1].bounds[k] < blocks[-1].bounds[k + 1])
        up[last] += RESULT_BYTES
        broker = [broker[0] + RESULT_BYTES, broker[1] + RESULT_BYTES]
        message_s, byte_s = costs.devices[last].kind.message_after(costs.step_seconds(blocks[-1], last, 0, 1))
        message[last] += message_s + RESULT_BYTES * (byte_s + self._pack[last])
        memory = tuple(self.resident(k, weights[k], tiles[k]) if weights[k] or tiles[k] else 0 for k in range(n))
        loads = self._loads(compute, message, up, down, broker)
        period, binding = max((seconds, name) for name, seconds in loads.items())
        return SplitForecast(
            latency_s=self.latency(blocks),
            period_s=period,
            compute_s=tuple(compute),
            message_s=tuple(message),
            up_bytes=tuple(up),
            down_bytes=tuple(down),
            broker_bytes=(broker[0], broker[1]),
            memory_bytes=memory,
            largest_bytes=largest,
            binding=binding,
            broker_s=loads["the broker's link"],
            loads=loads,
        )

    def loads(self, blocks: Sequence[Block]) -> list[float]:
        """Return the seconds that a window takes of each processor and link."""
        return list(self.forecast(blocks).loads.values())

    def _loads(
        self, compute: list[float], message: list[float], up: list[int], down: list[int], broker: list[int]
    ) -> dict[str, float]:
        """Return the seconds that a window takes of each resource."""
        ways = self.costs.broker.busy_bytes(*broker)
        loads = {"the broker's link": ways * self._seconds[-1]}
        for k, device in enumerate(self.costs.devices):
            loads[f"the processor of {device.name}"] = compute[k] + message[k]
            way = max(up[k], down[k]) if device.kind.duplex else up[k] + down[k]
            loads[f"the link of {device.name}"] = way * self._seconds[2 * k]
        return loads

    def resident(self, device: int, weights: int, tile: int) -> int:
        """Return the resident bytes of a process with these weights and activations."""
        kind = self.costs.devices[device].kind
        return int(kind.base_bytes + kind.growth * (weights + tile))
