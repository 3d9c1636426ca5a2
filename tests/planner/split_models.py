"""Small models and devices for tests of the planner of splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from har_edge.planner.devices import BrokerLink, DeviceClass, PlannerDevice
from har_edge.planner.split_costs import SplitCosts
from har_edge.planner.split_model import RowWindow, SplitModel, SplitOperator, SplitTensor

DEVICE = DeviceClass((), 1e-3, 2e-4, 1e-9, 1e6, 1e-3, None, 1000, 2.0, duplex=True)


def network(seed: int, operators: int = 4, rows: int = 6) -> SplitModel:
    """Return a chain of convolutions and pools, and a dense layer at its end."""
    rng = np.random.default_rng(seed)
    tensors = {0: _picture(rows, 2)}
    chain: list[SplitOperator] = []
    for index in range(operators - 1):
        before = tensors[index]
        if rng.random() < 0.3 and before.rows >= 4:
            made = _picture(before.rows // 2, before.channels)
            operator = SplitOperator(
                "MAX_POOL_2D", (index,), index + 1, 0, (RowWindow(2, 2, 0),), False, made.channels, True
            )
        else:
            made = _picture(before.rows, int(rng.integers(2, 4)))
            weights = 36 * before.channels * made.channels
            operator = SplitOperator(
                "CONV_2D", (index,), index + 1, weights, (RowWindow(1, 3, 1),), True, made.channels
            )
        tensors[index + 1] = made
        chain.append(operator)
    last = tensors[operators - 1]
    tensors[operators] = SplitTensor(0, 3, 3, 12)
    chain.append(SplitOperator("FULLY_CONNECTED", (operators - 1,), operators, 12 * last.elements, units=3))
    return SplitModel(tuple(chain), tensors, {index: index for index in range(operators)})


def _picture(rows: int, channels: int) -> SplitTensor:
    elements = rows * 64 * channels
    return SplitTensor(rows, channels, elements, 4 * elements)


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
