"""The cost of every slice on every class of device (docs/explanation/planning.md derives the model)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from har_edge.planner.devices import UNLIMITED, BrokerLink, DeviceClass
from har_edge.planner.problem import Floats, Ints, SearchProblem
from har_edge.planner.slice_graph import RESULT_BYTES, SliceGraph


@dataclass(frozen=True, slots=True, eq=False)
class SliceCosts:
    """Seconds and bytes, in arrays [device classes, slices of the slice graph].

    `compute_s` is the time of the model, `message_s` the processor's time for messages, and `link_s` how long the link
    is busy. `period_s` is the shortest time between two windows, inf where the slice does not fit the memory.
    `latency_s` is the time of one window, and `memory_bytes` the resident memory of the process. `broker_s` [slices] is
    how long the link of the broker's host is busy, and `broker_bytes` [slices] what passes it; all slices share it.
    """

    compute_s: Floats
    message_s: Floats
    link_s: Floats
    period_s: Floats
    latency_s: Floats
    memory_bytes: Ints
    broker_s: Floats
    broker_bytes: Ints


def slice_costs(slice_graph: SliceGraph, kinds: Sequence[DeviceClass], broker: BrokerLink = UNLIMITED) -> SliceCosts:
    """Return the cost of every slice on every class of device."""
    work = np.array([[0.0, *np.cumsum(kind.work_s)] for kind in kinds])

    def column(name: str) -> Floats:
        return np.array([[getattr(kind, name)] for kind in kinds], float)

    messages, total = slice_graph.received + slice_graph.sent, slice_graph.received_bytes + slice_graph.sent_bytes
    compute = column("overhead_s") + work[:, slice_graph.stops] - work[:, slice_graph.starts]
    each, byte = _message_costs(kinds, compute / np.maximum(1, messages))
    message = each * messages + byte * total
    widest = np.where(column("duplex") > 0, np.maximum(slice_graph.received_bytes, slice_graph.sent_bytes), total)
    link = widest / column("link_bytes_per_s")
    entering, leaving = _broker_bytes(slice_graph)
    # A message passes both links at the slower rate; what sensors send is at the broker before a stage takes it.
    way = total * np.maximum(1 / column("link_bytes_per_s"), broker.byte_s)
    way = way + (entering - slice_graph.sent_bytes) * broker.byte_s
    memory = (column("base_bytes") + column("growth") * slice_graph.tensor_bytes).astype(np.int64)
    limit = np.array([[np.inf if kind.memory_bytes is None else kind.memory_bytes] for kind in kinds])
    fits = memory <= limit
    return SliceCosts(
        compute_s=compute,
        message_s=message,
        link_s=link,
        # Bytes move while the processor works on another window; the slower of the two sets the period.
        period_s=np.where(fits, np.maximum(compute + message, link), np.inf),
        latency_s=np.where(fits, compute + message + way + 2 * column("latency_s"), np.inf),
        memory_bytes=memory,
        broker_s=np.asarray(broker.busy_bytes(entering, leaving) * broker.byte_s, float),
        broker_bytes=entering + leaving,
    )


def _message_costs(kinds: Sequence[DeviceClass], work_s: Floats) -> tuple[Floats, Floats]:
    """Return the seconds of a message, and of each byte of it, with so much work between two messages."""
    each, byte = np.empty_like(work_s), np.empty_like(work_s)
    for row, kind in enumerate(kinds):
        rates = kind.message_rates
        each[row], byte[row] = kind.message_s, kind.message_byte_s
        if rates:
            known = [rate.work_s for rate in rates]
            each[row] = np.interp(work_s[row], known, [rate.seconds for rate in rates])
            byte[row] = np.interp(work_s[row], known, [rate.seconds_per_byte for rate in rates])
    return each, byte


def _broker_bytes(slice_graph: SliceGraph) -> tuple[Ints, Ints]:
    """Return the bytes into and out of the broker by each slice; the first one also counts windows that enter."""
    whole = slice_graph.walk(())
    assert whole is not None
    entering = slice_graph.sent_bytes + (slice_graph.tails == 0) * slice_graph.received_bytes[whole[0]]
    return entering, slice_graph.received_bytes + slice_graph.results * RESULT_BYTES


def make_search_problem(
    slice_graph: SliceGraph, costs: SliceCosts, counts: Sequence[int], replicas: int
) -> SearchProblem:
    """Return the problem for the search. Only a slice that needs a single message for a window can have replicas."""
    return SearchProblem(
        nodes=len(slice_graph.places),
        tails=slice_graph.tails,
        heads=slice_graph.heads,
        period_s=costs.period_s,
        latency_s=costs.latency_s,
        # The broker hands each message of a shared subscription to another replica, so two would never meet.
        shareable=slice_graph.received == 1,
        counts=tuple(counts),
        replicas=replicas,
        shared_s=costs.broker_s if costs.broker_s.any() else None,
    )
