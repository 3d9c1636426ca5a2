"""The life of a window at a stage, from its first part to its end: one table of states and events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

import numpy.typing as npt

from har_edge.inference.shard_program import ShardRun
from har_edge.mqtt.bus import Delivery, Outgoing
from har_edge.protocol.wire import Message
from har_edge.runtime.transitions import advance

Array = npt.NDArray[Any]
Key = tuple[str, int]
Slot = tuple[str, int, int]  # a key, and the number of windows in a message: where parts wait for each other


class WindowState(str, Enum):  # a str keeps its hash: the table is read for each message
    """The state of a window at a stage, and the table that holds it."""

    WAITING = "lacks parts; what brought the others is not acknowledged"
    OVERTAKEN = "lacks parts although a later window of its stream was run; waits a moment longer"
    SHELVED = "lacks parts; what came is acknowledged and kept in the replay buffer"
    COMPLETE = "run with all its parts; remembered, so that a repetition is answered from the output cache"
    PARTIAL = "run without sources, or a share, that did not come; remembered, so that these are late when they come"
    STALE = "released: it was run before, and the sensors that it lacks are at later windows"
    LEFTOVER = "released: its other parts were settled before, so nothing is lost with it"
    LOST = "released, and counted as given up unless its sensors count that themselves"


class WindowEvent(str, Enum):
    """An event of a window at a stage."""

    PART = "a part comes, others are missing"
    LAST_PART = "the last missing part comes"
    REPEATED = "a part comes again that it was run with"
    LATE_PART = "a part comes that it was run without"
    LATER_RUN = "a later window of its stream is run"
    SOURCES_MISSING = "only sources are missing, and the time for them is over"
    DECODED = "all steps are run although a share, or the parity, is missing"
    EVICTED = "it waited too long, or too much waits"
    SETTLED_BEFORE = "all that came had been delivered before, and the rest was acknowledged then"
    SOURCES_WENT_ON = "the sensors that it lacks sent later windows"
    STREAM_RESTARTED = "a sensor of its stream begins anew"
    EXPIRED = "its time in the replay buffer is over, or others need the room"


_S, _E = WindowState, WindowEvent
TRANSITIONS: Mapping[tuple[WindowState, WindowEvent], WindowState] = MappingProxyType(
    {
        (_S.WAITING, _E.PART): _S.WAITING,
        (_S.WAITING, _E.LAST_PART): _S.COMPLETE,
        (_S.WAITING, _E.LATER_RUN): _S.OVERTAKEN,
        (_S.WAITING, _E.SOURCES_MISSING): _S.PARTIAL,
        (_S.WAITING, _E.DECODED): _S.PARTIAL,
        (_S.WAITING, _E.EVICTED): _S.SHELVED,
        (_S.WAITING, _E.SOURCES_WENT_ON): _S.STALE,
        (_S.OVERTAKEN, _E.PART): _S.OVERTAKEN,
        (_S.OVERTAKEN, _E.LAST_PART): _S.COMPLETE,
        (_S.OVERTAKEN, _E.SOURCES_MISSING): _S.PARTIAL,
        (_S.OVERTAKEN, _E.DECODED): _S.PARTIAL,
        (_S.OVERTAKEN, _E.EVICTED): _S.SHELVED,
        (_S.OVERTAKEN, _E.SOURCES_WENT_ON): _S.STALE,
        (_S.OVERTAKEN, _E.SETTLED_BEFORE): _S.LEFTOVER,
        (_S.SHELVED, _E.PART): _S.WAITING,
        (_S.SHELVED, _E.STREAM_RESTARTED): _S.LEFTOVER,
        (_S.SHELVED, _E.SETTLED_BEFORE): _S.LEFTOVER,
        (_S.SHELVED, _E.EXPIRED): _S.LOST,
        (_S.COMPLETE, _E.REPEATED): _S.COMPLETE,
        (_S.COMPLETE, _E.PART): _S.WAITING,
        (_S.COMPLETE, _E.LAST_PART): _S.COMPLETE,
        (_S.PARTIAL, _E.REPEATED): _S.PARTIAL,
        (_S.PARTIAL, _E.LATE_PART): _S.PARTIAL,
        (_S.PARTIAL, _E.PART): _S.WAITING,
        (_S.PARTIAL, _E.LAST_PART): _S.COMPLETE,
    }
)
INITIAL = WindowState.WAITING
REMEMBERED_STATES = frozenset({WindowState.COMPLETE, WindowState.PARTIAL})


@dataclass(slots=True)
class ShardProgress:
    """The steps of a shard that were run of a window, and `made`: what was published of it, as far as it is kept."""

    run: ShardRun
    made: list[Outgoing] = field(default_factory=list)
    made_bytes: int = 0


@dataclass(slots=True)
class PartialWindow:
    """The parts of one (stream, seq) so far; `deliveries` are acknowledged together, `deadline` ends the waiting.

    `position` counts the messages that came before its first part, `nbytes` the bytes of its own. `redelivered` says
    that the broker had delivered every part before, `reopened` that the window had been run before its first part came.
    `progress` is that of a shard, which runs steps before all parts are there.
    """

    message: Message
    came: float
    deadline: float
    position: int = 0
    nbytes: int = 0
    redelivered: bool = True
    reopened: bool = False
    state: WindowState = INITIAL
    parts: dict[str, Array] = field(default_factory=dict)
    captured: dict[str, tuple[float, ...]] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    progress: ShardProgress | None = None

    @property
    def key(self) -> Key:
        return self.message.stream, self.message.seq

    @property
    def slot(self) -> Slot:
        """The place where it waits: parts in messages of another number of windows have another one."""
        return self.message.stream, self.message.seq, self.message.count

    @property
    def settled_before(self) -> bool:
        """Whether the parts it lacks were settled before, so that nothing is lost with it."""
        return self.redelivered and self.state is WindowState.OVERTAKEN

    def take(self, event: WindowEvent) -> None:
        """Go to the state that follows."""
        self.state = advance(TRANSITIONS, self.state, event)


def merge(first: Message, second: Message) -> Message:
    """Keep the later capture time of each window (a window is complete with its last part), and any known label."""
    captured = tuple(map(max, first.captured, second.captured))
    truth = first.truth if first.truth is not None else second.truth
    missing = tuple(sorted({*first.missing, *second.missing}))
    sent = _merge_sent(first.sent, second.sent)
    return Message(first.stream, first.seq, first.epoch, captured, {}, truth, missing, sent)


def _merge_sent(first: tuple[int, int] | None, second: tuple[int, int] | None) -> tuple[int, int] | None:
    """Keep the pair with the smaller number, of the sensor that began last: windows are complete from there on only."""
    if first is None or second is None:
        return first or second
    return second if (second[1], second[0]) < (first[1], first[0]) else first
