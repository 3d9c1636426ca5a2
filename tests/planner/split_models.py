"""Small models and devices for tests of the planner of splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement

import numpy as np

from har_edge.planner.devices import BrokerLink, DeviceClass, PlannerDevice
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_model import RowShare, SplitModel, SplitOperator, SplitTensor
from har_edge.planner.split_shares import whole_shares
from har_edge.tflite.split.plan import Block, SplitMethod

DEVICE = DeviceClass((), 1e-3, 2e-4, 1e-9, 1e6, 1e-3, None, 1000, 2.0, duplex=True)


@dataclass(frozen=True)
class Window:
    """Row r of an operator's result takes the rows [r * stride - pad, r * stride - pad + reach) of its input."""

    stride: int
    reach: int
    pad: int

    def needed(self, low: int, high: int, rows: int) -> tuple[int, int]:
        return max(0, low * self.stride - self.pad), min(rows, (high - 1) * self.stride - self.pad + self.reach)


@dataclass(frozen=True)
class ChainGeometry:
    """The geometry of a chain: tensor i goes into operator i, which has a window or none."""

    windows: tuple[Window | None, ...]
    rows_of: tuple[int, ...]
    bytes_of: tuple[int, ...]
    channels: tuple[bool, ...]

    def rows(self, start: int, stop: int) -> int:
        return 0 if None in self.windows[start:stop] else self.rows_of[stop]

    def share(self, start: int, stop: int, low: int, high: int) -> RowShare:
        made, parts, tile, borders = (low, high), [0.0] * (stop - start), 0, []
        for i in range(stop - 1, start - 1, -1):
            window, rows = self.windows[i], self.rows_of[i]
            assert window is not None
            parts[i - start] = (high - low) / self.rows_of[i + 1]
            size = self.bytes_of[i + 1] * (high - low) // self.rows_of[i + 1]
            borders.append((window.pad > 0 and low == 0, window.pad > 0 and high == self.rows_of[i + 1]))
            low, high = window.needed(low, high, rows)
            tile = max(tile, size + self.bytes_of[i] * (high - low) // rows)
        return RowShare(made, (low, high), tuple(parts), tile, (start, stop, *borders))

    def apart(
        self, start: int, stop: int, low: int, high: int, urgent: Sequence[tuple[int, int]]
    ) -> tuple[RowShare, ...]:
        first = [one for one in urgent if one != (low, high)]
        if stop - start > 1 or 2 * sum(b - a for a, b in first) > high - low or not first:
            return ()
        ends = [low, *(end for one in sorted(first) for end in one), high]
        rest = [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b]
        return tuple(self.share(start, stop, *one) for one in [*sorted(first), *rest])

    def can_output(self, start: int, stop: int) -> bool:
        return all(self.channels[start:stop])


def network(seed: int, operators: int = 4, rows: int = 6) -> SplitModel:
    """Return a chain of convolutions and pools, and a dense layer at its end."""
    rng = np.random.default_rng(seed)
    sizes, windows, chain = [_picture(rows, 2)], list[Window | None](), list[SplitOperator]()
    for index in range(operators - 1):
        before = sizes[-1]
        if rng.random() < 0.3 and before.rows >= 4:
            sizes.append(_picture(before.rows // 2, before.channels))
            windows.append(Window(2, 2, 0))
            chain.append(SplitOperator("MAX_POOL_2D", (index,), index + 1, 0, per_channel=True))
        else:
            sizes.append(_picture(before.rows, int(rng.integers(2, 4))))
            windows.append(Window(1, 3, 1))
            weights = 36 * before.channels * sizes[-1].channels
            chain.append(SplitOperator("CONV_2D", (index,), index + 1, weights, linear=True))
    last = SplitOperator("FULLY_CONNECTED", (operators - 1,), operators, 3 * sizes[-1].bytes, linear=True)
    return chain_model([*chain, last], [*sizes, SplitTensor(0, 3, 12)], [*windows, None])


def chain_model(
    operators: Sequence[SplitOperator], sizes: Sequence[SplitTensor], windows: Sequence[Window | None]
) -> SplitModel:
    """Return a chain of operators; tensor i goes into operator i."""
    geometry = ChainGeometry(
        tuple(windows),
        tuple(size.rows for size in sizes),
        tuple(size.bytes for size in sizes),
        tuple(one.linear or one.per_channel for one in operators),
    )
    return SplitModel(tuple(operators), dict(enumerate(sizes)), {i: i for i in range(len(operators))}, geometry)


def _picture(rows: int, channels: int) -> SplitTensor:
    return SplitTensor(rows, channels, 4 * rows * 64 * channels)


def costs_of(
    model: SplitModel,
    speeds: tuple[float, ...] = (1.0, 1.0),
    *,
    seconds: tuple[float, ...] | None = None,
    broker: float | None = None,
    **changes: object,
) -> SplitCosts:
    """Return the costs on devices of these speeds; an operator takes 10 ms by default."""
    seconds = seconds or (0.01,) * model.n
    devices = [
        PlannerDevice(f"pi-{k}", replace(DEVICE, overhead_s=DEVICE.overhead_s / speed, **changes))  # type: ignore[arg-type]
        for k, speed in enumerate(speeds)
    ]
    each = [[one / speed for one in seconds] for speed in speeds]
    return SplitCosts(model, devices, each, BrokerLink(broker))


def all_shares(costs: SplitCosts, block: Block) -> list[tuple[int, ...]]:
    """Return every way to share a small block."""
    if block.method is SplitMethod.WHOLE:
        return [whole_shares(costs.n, k) for k in range(costs.n)]
    size = costs.axis_size(block)
    return [(0, *bounds, size) for bounds in combinations_with_replacement(range(size + 1), costs.n - 1)]
