"""The losses that nodes report, of windows and of unusable messages, and what to do about them."""

from __future__ import annotations

from collections.abc import Iterator

from har_edge.monitor.broker_checks import Finding, Verdict, passed
from har_edge.monitor.sent import incomplete
from har_edge.monitor.snapshot import Snapshot
from har_edge.protocol.text import listed
from har_edge.units import ago

_NAMED = 4
_LOGS = "see the logs of stages and sensors for which and why; then whether the broker keeps what is queued"
_OTHERS = "see the logs of the nodes that reject: as a rule sensors and stages have other reducers, or another folder"


def losses(name: str, seen: Snapshot, clear_command: str) -> Iterator[Finding]:
    """Yield what living nodes say, which is wrong, and a note on who has gone; `clear_command` forgets that."""
    said, remedies = _lost(seen)
    rejecting = _rejecting(seen)
    if rejecting:
        said.append(f"messages could not be used since these started: {listed(rejecting, _NAMED)}")
        remedies.append(_OTHERS)
    if said:
        yield Finding(name, Verdict.FAIL, "; ".join(said), "; ".join(remedies))
    gone = _of_sensors(seen, alive=False)
    if gone:
        remedy = f"once you know why (their logs), forget sensors that have gone: `{clear_command}`"
        yield Finding(
            name, Verdict.NOTE, f"windows were lost by sensors that have gone: {listed(gone, _NAMED)}", remedy
        )
    if not said and not gone:
        yield passed(name, "no living node says that it lost a window or rejected a message")


def _of_sensors(seen: Snapshot, *, alive: bool) -> list[str]:
    """Return what was lost of each stream by which sensor, and when; the latest first, those of unknown time last."""
    lost = sorted((one for one in seen.sent if one.lost and one.alive is alive), key=lambda one: -one.lost_at)
    when = [f", the last {ago(seen.time - one.lost_at)}" if one.lost_at else "" for one in lost]
    return [
        f"{one.lost} of {one.sent} of {one.stream} by {one.node}{time}" for one, time in zip(lost, when, strict=True)
    ]


def _lost(seen: Snapshot) -> tuple[list[str], list[str]]:
    """Return what living nodes lost, and what to do."""
    said, counts = list[str](), seen.counts
    sensors = _of_sensors(seen, alive=True)
    if sensors:
        said.append(f"windows were lost: {listed(sensors, _NAMED)}")
    if counts.lost:
        also = min(counts.lost, incomplete(seen.sent))
        hint = f", {also} of them may be windows that not all sensors of their stream have sent" if also else ""
        said.append(f"{counts.lost} windows were given up by stages since these started{_last(seen, 'stage')}{hint}")
    if counts.dropped:
        said.append(f"{counts.dropped} windows were dropped at sensors since these started{_last(seen, 'sensor')}")
    return said, [_LOGS] if said else []


def _last(seen: Snapshot, role: str) -> str:
    """Say when living nodes of a role last lost a window; empty where none of them says it."""
    at = max((one.lost_at for one in seen.nodes if one.alive and one.role == role), default=0.0)
    return f" (the last {ago(seen.time - at)})" if at else ""


def _rejecting(seen: Snapshot) -> list[str]:
    """Return the living nodes that could not use messages, and how many."""
    counts = {one.name: one.counters.get("rejected", 0) for one in seen.nodes if one.alive}
    by_report: dict[str, int] = {}
    for one in seen.stages:
        by_report[one.node] = by_report.get(one.node, 0) + one.errors
    counts |= {node: max(count, counts[node]) for node, count in by_report.items() if node in counts}
    return [f"{count} by {node}" for node, count in sorted(counts.items()) if count]
