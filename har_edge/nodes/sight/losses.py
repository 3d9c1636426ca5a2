"""What nodes say of windows that were lost and of messages that they could not use, and what to do about it."""

from __future__ import annotations

from har_edge.nodes.sight.reception import Finding, Verdict, passed
from har_edge.nodes.sight.sent import incomplete
from har_edge.nodes.sight.snapshot import Snapshot

_NAMED = 4
_LOGS = "see the logs of stages and sensors for which and why; then whether the broker keeps what is queued"
_OTHERS = "see the logs of the nodes that reject: as a rule sensors and stages have other reducers, or another folder"


def losses(name: str, seen: Snapshot, clear_command: str) -> Finding:
    """Return the finding on what living nodes, and sensors that have gone, say; `clear_command` forgets the latter."""
    said, mends = _lost(seen, clear_command)
    rejecting = _rejecting(seen)
    if rejecting:
        said.append(f"messages could not be used since these started: {_list(rejecting)}")
        mends.append(_OTHERS)
    if not said:
        return passed(name, "no living node says that it lost a window or rejected a message")
    return Finding(name, Verdict.WRONG, "; ".join(said), "; ".join(mends))


def _lost(seen: Snapshot, clear_command: str) -> tuple[list[str], list[str]]:
    """Return what was lost, and what to do."""
    said, mends, counts = list[str](), list[str](), seen.counts
    lost = [one for one in seen.sent if one.lost]
    if lost:
        who = [
            f"{one.lost} of {one.sent} of {one.stream} by {one.node}{'' if one.alive else ', which has gone'}"
            for one in lost
        ]
        said.append(f"windows were lost: {_list(who)}")
    if counts.lost:
        also = min(counts.lost, incomplete(seen.sent))
        hint = f", {also} of them may be windows that not all sensors of their stream have sent" if also else ""
        said.append(f"{counts.lost} windows were given up by stages since these started{hint}")
    if counts.dropped:
        said.append(f"{counts.dropped} windows were dropped at sensors since these started")
    if said:
        mends.append(_LOGS)
    if any(not one.alive for one in lost):
        mends.append(f"once you know why, forget sensors that have gone: `{clear_command}`")
    return said, mends


def _rejecting(seen: Snapshot) -> list[str]:
    """Return the living nodes that could not use messages, and how many."""
    counts = {one.name: one.counters.get("rejected", 0) for one in seen.nodes if one.alive}
    by_report: dict[str, int] = {}
    for one in seen.stages:
        by_report[one.node] = by_report.get(one.node, 0) + one.errors
    counts |= {node: max(count, counts[node]) for node, count in by_report.items() if node in counts}
    return [f"{count} by {node}" for node, count in sorted(counts.items()) if count]


def _list(parts: list[str]) -> str:
    more = f" and {len(parts) - _NAMED} more" if len(parts) > _NAMED else ""
    return ", ".join(parts[:_NAMED]) + more
