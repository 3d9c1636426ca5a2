"""The figures of a run of a cluster that has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from har_edge.cluster.cluster import Arrival, Cluster


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run; bytes count whole MQTT packets, times are in milliseconds.

    `losses` names the lost windows by stream. `saturated` counts the `quantised` values beyond their fixed range.
    """

    windows_in: int
    windows_out: int
    lost: int
    duplicated: int
    duplicates_dropped: int
    scored: int
    accuracy: float | None
    raw_bytes: int
    sensor_wire_bytes: int
    stage_wire_bytes: int
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    seconds: float
    resident_bytes: Mapping[str, int]
    peak_bytes: Mapping[str, int]
    losses: str = ""
    quantised: int = 0
    saturated: int = 0


def summarize(cluster: Cluster, arrivals: Sequence[Arrival], seconds: float) -> Summary:
    """Return the figures of a run that has ended."""
    import numpy as np

    scored = [arrival.result for arrival in arrivals if arrival.result.truth is not None]
    correct = sum(result.label_id == result.truth for result in scored)
    latencies = [arrival.latency_ms for arrival in arrivals]
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99]).tolist() if latencies else (None, None, None)
    cluster.account.close()
    distinct = len({(arrival.result.stream, arrival.result.seq) for arrival in arrivals})
    return Summary(
        windows_in=cluster.windows_in,
        windows_out=len(arrivals),
        lost=cluster.windows_in - distinct,
        duplicated=len(arrivals) - distinct,
        duplicates_dropped=cluster.view.sink.counters.duplicates,
        scored=len(scored),
        accuracy=correct / len(scored) if scored else None,
        raw_bytes=cluster.view.sum_of("raw_bytes", "sensor"),
        sensor_wire_bytes=cluster.view.sum_of("sent_bytes", "sensor"),
        stage_wire_bytes=cluster.view.sum_of("sent_bytes", "stage"),
        latency_p50_ms=p50,
        latency_p95_ms=p95,
        latency_p99_ms=p99,
        seconds=seconds,
        resident_bytes=dict(cluster.resident_bytes),
        peak_bytes=dict(cluster.peak_bytes),
        losses=cluster.account.sentence(time.time()),
        quantised=cluster.view.sum_of("quantised", "sensor") + cluster.view.sum_of("quantised", "stage"),
        saturated=cluster.view.sum_of("saturated", "sensor") + cluster.view.sum_of("saturated", "stage"),
    )
