"""Stages of one pipeline name must be of one model and task: what the others say is looked at before a stage starts."""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections.abc import Callable, Collection

import msgspec

from har_edge.config.pipeline import Pipeline
from har_edge.config.task import Task
from har_edge.errors import BrokerError, NodeError
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.events import StatusEvent, Unreadable, decode
from har_edge.protocol.status import ALIVE, NodeStatus, SliceInfo
from har_edge.protocol.text import printable
from har_edge.protocol.topics import Topics
from har_edge.runtime.agreement import disagreement, way_of
from har_edge.runtime.node.capabilities import read_runtime, read_system

_log = logging.getLogger(__name__)
Connect = Callable[[Session], Bus]
# How long the broker may take to connect, and retained statuses to come after that.
LOOK_S = 5.0
QUIET_S = 0.25


def card_of(pipeline: Pipeline, index: int, delegate: str = "") -> SliceInfo:
    """Return what stage `index` says of what it runs; `delegate` is who computes on this device."""
    entry, task = pipeline.manifest.slices[index], pipeline.task
    return SliceInfo(
        index=index,
        count=len(pipeline.manifest.slices),
        model=pipeline.manifest.model,
        model_sha256=pipeline.manifest.model_sha256,
        task=describe_task(task),
        task_sha256=hash_task(task),
        start=entry.start,
        stop=entry.stop,
        runtime=read_runtime(),
        system=read_system(),
        delegate=delegate,
    )


def describe_task(task: Task) -> str:
    """Say what goes into a model and what comes out."""
    stream = task.stream
    windows = f"{stream.length} samples at {stream.rate_hz:g} Hz of {', '.join(task.inputs)}"
    if task.image is not None:
        windows = f"{task.image.shape} of {', '.join(task.inputs)}"
    made = [f"{len(task.labels)} classes"] if task.labels or not task.arrays else []
    made = ["scores of anomalies"] if task.anomaly is not None else made
    made += [f"{len(task.arrays)} arrays"] if task.arrays else []
    return f"{stream.description}: {windows}, {', '.join(made)}"


def hash_task(task: Task) -> str:
    """Return what tells tasks apart: streams, inputs, output and classes.

    Reducers are left out: sensors and stages that differ in them drop each other's messages by themselves.
    """
    inputs = {source: enters.tensor for source, enters in sorted(task.inputs.items())}
    kept: tuple[object, ...] = (task.stream, inputs, task.output, task.labels, task.label_ids)
    if task.image is not None or task.arrays:  # other tasks have the hash that they had before there were these
        kept += (task.image, task.arrays)
    if task.anomaly is not None:
        kept += (task.anomaly,)
    return hashlib.sha256(msgspec.json.encode(kept)).hexdigest()


def check_neighbours(
    connect: Connect, topics: Topics, card: SliceInfo, dtypes: Collection[str] = (), *, delegate: str | None = None
) -> None:
    """Raise NodeError when a stage that lives under this pipeline's name is of another model or task.

    `dtypes` are those of the tensors that enter and leave slices: with them, stages that may compute other bits than
    this one are warned of; `delegate` is what this pipeline was told.

    Another cut of the same model may take over, and so may a second process of a stage. Stages that do not say what
    they run are of an older har_edge, and pass.
    """
    ways = {f"stage-{card.index}": way_of(card)}
    statuses = _look(connect, topics, card.count)
    for status in statuses:
        other = status.slice
        if status.role != "stage" or status.state not in ALIVE or other is None:
            continue
        if other.model_sha256 != card.model_sha256 or other.task_sha256 != card.task_sha256:
            raise NodeError(
                f"pipeline {topics.pipeline!r} runs {_named(other)}, by {printable(status.node, 40)}, but this folder "
                f"is for {_named(card)}; expected one model and task under one name: give this pipeline a name of its "
                "own (`har-edge slice --name NAME`, or `name` in pipeline.toml), or stop those stages first"
            )
        if other.index != card.index:
            ways[printable(status.node, 40)] = way_of(other)
    end_leftovers(connect, topics, card.count, statuses)
    warning = disagreement(ways, dtypes, delegate=delegate) if dtypes else ""
    if warning:
        _log.warning("%s", warning)


def end_leftovers(connect: Connect, topics: Topics, count: int, statuses: Collection[NodeStatus]) -> list[str]:
    """End the sessions of stages beyond `count`, which an earlier cut had, and which have gone; return their names.

    Messages for them would pile up at the broker until their sessions expire. A stage that lives is left alone, and so
    is one whose session cannot be ended now.
    """
    ended = []
    for node in sorted({status.node for status in statuses if _is_leftover(status, count)}):
        try:
            bus = connect(Session(f"{topics.base}.{topics.pipeline}.{node}", clean_start=True))
        except BrokerError as error:
            _log.warning("the session of %s stays until it expires: %s", node, error)
            continue
        bus.publish(topics.status(node), b"", retain=True)
        bus.close(forget=True)
        _log.warning("%s is not part of this cut and has gone: its session at the broker is ended", node)
        ended.append(node)
    return ended


def _is_leftover(status: NodeStatus, count: int) -> bool:
    index = index_of(status.node)
    return status.role == "stage" and status.state not in ALIVE and index is not None and index >= count


def stage_name(index: int, turn: int = 0) -> str:
    """Return the name of the process that runs a slice, of one of several that take turns."""
    return f"stage-{index}-{turn}" if turn else f"stage-{index}"


def index_of(node: str) -> int | None:
    """Return which slice the stage of this name runs, or takes turns at; None for the name of another node.

    It must be written as `stage` writes it: a name from the network that only looks like one is another node's.
    """
    kind, _, rest = node.partition("-")
    number, _, turn = rest.partition("-")
    written = 0 < len(number) < 6 and number.isdecimal() and (not turn or (len(turn) < 11 and turn.isdecimal()))
    written = kind == "stage" and written and node == stage_name(int(number), int(turn or 0))
    return int(number) if written else None


def _named(card: SliceInfo) -> str:
    return f"{printable(card.model, 80)} (sha256 {printable(card.model_sha256, 12)}; {printable(card.task, 120)})"


def _look(connect: Connect, topics: Topics, count: int) -> list[NodeStatus]:
    """Return the retained statuses of a pipeline; those of stages by name too, as not every broker knows wildcards."""
    bus, found = connect(Session(f"look-{secrets.token_hex(8)}", clean_start=True)), dict[str, NodeStatus]()
    try:
        bus.subscribe([topics.status("+"), *(topics.status(f"stage-{index}") for index in range(count))])
        deadline = time.monotonic() + LOOK_S
        while time.monotonic() < deadline:
            for delivery in bus.poll(0.05):
                bus.acknowledge(delivery)
                match decode(delivery, topics):
                    case StatusEvent(status=NodeStatus() as status):
                        found[delivery.topic] = status
                    case Unreadable(reason=reason):
                        _log.warning("dropped %s: %s", delivery.topic, reason)
            if bus.connected:
                deadline = min(deadline, time.monotonic() + QUIET_S)
    finally:
        bus.close(forget=True)
    return list(found.values())
