"""The windows that sensors report: open, answered, lost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

from har_edge.monitor.snapshot import SentView
from har_edge.protocol.status import NodeStatus
from har_edge.protocol.text import printable


def sent_views(statuses: Mapping[str, NodeStatus], is_alive: Callable[[str], bool]) -> tuple[SentView, ...]:
    """Return what each sensor says of each stream; what was open when one went counts as lost."""
    views = []
    for name, status in statuses.items():
        alive = is_alive(name)
        for stream, count in status.streams.items():
            open_ = 0 if count.answered is None else count.open
            views.append(
                SentView(
                    node=name,
                    stream=printable(stream, 128),
                    alive=alive,
                    sent=count.sent,
                    answered=count.answered,
                    open=open_ if alive else 0,
                    lost=count.lost + (0 if alive else open_),
                    incomplete=count.incomplete,
                    lost_at=_lost_at(status, left=0 if alive else open_)
                    if count.lost or (open_ and not alive)
                    else 0.0,
                )
            )
    return tuple(sorted(views, key=lambda view: (view.stream, view.node)))


def _lost_at(status: NodeStatus, *, left: int) -> float:
    """Return when windows were last lost: those that are `left` when the sensor went."""
    at = status.said if left else status.lost_at or status.said
    return at if math.isfinite(at) else 0.0


def unanswered(views: tuple[SentView, ...]) -> int:
    """Return how many windows are lost; several sensors of a stream send the same ones."""
    by_stream = itertools.groupby(views, key=lambda view: view.stream)
    return sum(max(view.lost for view in of_stream) for _, of_stream in by_stream)


def incomplete(views: tuple[SentView, ...]) -> int:
    """Return how many windows not all sensors of their stream have sent, as the one that says most of a stream says."""
    by_stream = itertools.groupby(views, key=lambda view: view.stream)
    return sum(max(view.incomplete for view in of_stream) for _, of_stream in by_stream)
