"""The report of a node: its status, retained at the broker, and its heartbeats; its will says that it is lost.

The status also settles who owns a session (protocol/leases.py).
"""

from __future__ import annotations

import enum
from typing import Annotated, TypeVar

import msgspec

from har_edge.errors import MessageError

# Bounds of figures that come over the network, since other code computes with them. (JSON's integers have no bound.)
Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Cores = Annotated[int, msgspec.Meta(ge=1, le=2**16)]
Figure = Annotated[float, msgspec.Meta(ge=0, le=2**53)]
# A node may report any capability; coordinator/candidates.py bounds it for planning.
Claim = Annotated[float, msgspec.Meta(ge=0)]
# Any text of a node. Its `detail` may be the error of a library; it cuts that to DETAIL characters itself.
Word = Annotated[str, msgspec.Meta(max_length=2**14)]
DETAIL = 4000
# The most bytes of a status or heartbeat, and the most of what they list: far above what any node of ours says.
MAX_BYTES = 256 * 1024
MAX_COUNTERS = 1024
MAX_STREAMS = 1024
MAX_SOURCES = 1024
MAX_STAGES = 256


class State(str, enum.Enum):
    """The state of a node; NEXT has the transitions."""

    INIT = "init"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPED = "stopped"
    LOST = "lost"


# Every state a node may go to from each. A node starts in INIT; READY waits for stages to run, BUSY runs some (nodes
# that are a stage, a sensor or a coordinator are READY when they run); DRAINING hands its stages over and takes no
# more; STOPPED has gone on purpose. LOST is said by the broker, for a node that went without a word; it may come back.
NEXT = {
    State.INIT: frozenset({State.READY, State.STOPPED, State.LOST}),
    State.READY: frozenset({State.BUSY, State.DRAINING, State.STOPPED, State.LOST}),
    State.BUSY: frozenset({State.READY, State.DRAINING, State.STOPPED, State.LOST}),
    State.DRAINING: frozenset({State.STOPPED, State.LOST}),
    State.STOPPED: frozenset({State.INIT}),
    State.LOST: frozenset({State.INIT, State.READY, State.BUSY, State.DRAINING}),
}
ALIVE = frozenset({State.INIT, State.READY, State.BUSY, State.DRAINING})


class BrokerOffer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A broker that a node carries: the `url` at which other nodes reach it, and who it is (name and version).

    `max_packet_bytes` bounds a message there; None where it has no limit.
    """

    url: Annotated[str, msgspec.Meta(max_length=300)]
    server: Annotated[str, msgspec.Meta(max_length=200)] = ""
    max_packet_bytes: Count | None = None


class NodeCapabilities(msgspec.Struct, frozen=True, omit_defaults=True):
    """The capabilities of a device, as its node reports them.

    `protocol` is the version of what nodes and coordinator say to each other. `machine` tells hosts apart. `speed` is
    how many times a fixed reference network runs in a second; the link is None until it has been measured. `delegate`
    is who computed that network: "xnnpack", "none", or empty where an older node does not say it. `packings` are the
    ways in which activations may travel to and from it, beside as they are: f2, q8, zstd. `routes` says that the node
    can follow a plan that names brokers of nodes, `broker` is the one that it carries itself.
    """

    protocol: Count
    machine: Word
    system: Word
    cores: Cores
    memory_bytes: Count
    runtime: Word
    speed: Claim
    link_bytes_per_s: Claim | None = None
    round_trip_s: Claim | None = None
    delegate: Word = ""
    packings: Annotated[tuple[Annotated[str, msgspec.Meta(max_length=16)], ...], msgspec.Meta(max_length=16)] = ()
    routes: bool = False
    broker: BrokerOffer | None = None


class SliceInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """The slice of a stage in a fixed folder: `index` of `count`, of a model (file name and SHA-256), for a task.

    `task` says in words what goes in and out, `task_sha256` tells tasks apart; `start` and `stop` are operators.
    `runtime`, `system` and `delegate` say what computes it, as in NodeCapabilities; an older stage does not say so.
    """

    index: Count
    count: Count
    model: Word
    model_sha256: Word
    task: Word
    task_sha256: Word
    start: Count = 0
    stop: Count = 0
    runtime: Word = ""
    system: Word = ""
    delegate: Word = ""


class StreamCount(msgspec.Struct, frozen=True, omit_defaults=True):
    """How many windows of a stream one start of a sensor has sent, its `run`; windows sent again count once.

    `began` is when the first of them was captured (seconds since 1970). `answered` and `lost`, which are no longer
    awaited, are what the sensor heard of: None, and 0, where it listens to no results. `incomplete` ones cannot be
    answered, since other sensors of the stream have not sent them. The others are open.
    """

    run: Count
    began: float
    sent: Count = 0
    answered: Count | None = None
    lost: Count = 0
    incomplete: Count = 0

    @property
    def open(self) -> int:
        """How many windows may still be answered, as far as the sensor knows."""
        return max(0, self.sent - (self.answered or 0) - self.lost - self.incomplete)


class PlanRefusal(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last plan that a node refused, where none was accepted since.

    `code` names the kind of reason (trust/verdict.py), `reason` is the text for people. `plan` is the SHA-256 of its
    bytes, by which its author knows it; `serial` is the newest number that the node has accepted.
    """

    code: Annotated[str, msgspec.Meta(max_length=32)]
    reason: Annotated[str, msgspec.Meta(max_length=400)] = ""
    plan: Annotated[str, msgspec.Meta(max_length=64)] = ""
    serial: Count = 0


class NodeStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The retained self-description of a node.

    `instance` is new with each start of the process, `started` the time of that start (seconds since 1970); `counters`
    are those that the node keeps, by name. A node that runs whatever stages it is told to says what its `device` can
    do; a sensor that follows a deployment says which `epoch` its windows go to, and every sensor what it sent of its
    `streams`, and which `sources` of each (none where it is older); a stage of a fixed folder says which `slice` it
    runs, and the `epoch` of its cut. `said` is when it said this, and `lost_at` when windows that it lost last
    became more (its clock, seconds since 1970; 0 where it does not say, or for never). `signer` is the key by which it
    verifies plans, empty where it follows any; `refused` is the last plan that it did not follow.
    """

    node: Word
    role: Word
    state: State
    instance: Word
    started: float
    version: Word = ""
    client: Word = ""
    detail: Word = ""
    counters: Annotated[dict[Word, Count], msgspec.Meta(max_length=MAX_COUNTERS)] = {}
    device: NodeCapabilities | None = None
    epoch: Count = 0
    slice: SliceInfo | None = None
    streams: Annotated[dict[Word, StreamCount], msgspec.Meta(max_length=MAX_STREAMS)] = {}
    sources: Annotated[tuple[Word, ...], msgspec.Meta(max_length=MAX_SOURCES)] = ()
    said: float = 0.0
    lost_at: float = 0.0
    signer: Annotated[str, msgspec.Meta(max_length=64)] = ""
    refused: PlanRefusal | None = None


class StagePhase(str, enum.Enum):
    """How far a stage on a node has come."""

    FETCHING = "fetching"
    PREPARED = "prepared"
    RUNNING = "running"
    DRAINED = "drained"
    FAILED = "failed"


class StageReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """The work of a stage on a node: `windows`, `lost` and `errors` since its start, the rest since the last heartbeat.

    `queued` messages have come and wait to be handled, `waiting` windows wait for parts; `service_s` is the mean time a
    window took in the slice and around it, `queue_s` the mean time a message waited before; `idle_s` the time since the
    last message. `lost` counts windows given up, `errors` unusable messages. `lacks` is the SHA-256 of the content for
    want of which it failed. `routed` is the last revision of the plan at all of whose brokers the stage was connected
    and subscribed, `unreachable` names the nodes whose brokers it cannot reach. `refuses` are the stages of which it
    refused messages, `running_s` is for how long it has been in one run of its slice; an older node says neither.
    """

    epoch: Count
    stage: Count
    replica: Count
    phase: StagePhase
    detail: Word = ""
    windows: Count = 0
    lost: Count = 0
    errors: Count = 0
    queued: Count = 0
    waiting: Count = 0
    service_s: Figure = 0.0
    queue_s: Figure = 0.0
    busy: Figure = 0.0
    idle_s: Figure = 0.0
    lacks: Word = ""
    routed: Count = 0
    unreachable: Annotated[tuple[Word, ...], msgspec.Meta(max_length=MAX_STAGES)] = ()
    refuses: Annotated[tuple[Count, ...], msgspec.Meta(max_length=MAX_STAGES)] = ()
    running_s: Figure = 0.0


class Heartbeat(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sign of life. `time` is the clock of the node, `revision` the deployment it has read last."""

    node: Word
    instance: Word
    number: Count
    time: Figure
    revision: Count = 0
    stages: Annotated[tuple[StageReport, ...], msgspec.Meta(max_length=MAX_STAGES)] = ()


encode_heartbeat = msgspec.json.Encoder().encode
encode_status = msgspec.json.Encoder().encode
_heartbeats = msgspec.json.Decoder(Heartbeat)
_statuses = msgspec.json.Decoder(NodeStatus)
_Said = TypeVar("_Said", NodeStatus, Heartbeat)


def decode_status(payload: bytes) -> NodeStatus:
    """Read a status. Raises MessageError for one that is malformed or too large."""
    return _decode(_statuses, payload, "status")


def decode_heartbeat(payload: bytes) -> Heartbeat:
    """Read a heartbeat. Raises MessageError for one that is malformed or too large."""
    return _decode(_heartbeats, payload, "heartbeat")


def _decode(decoder: msgspec.json.Decoder[_Said], payload: bytes, what: str) -> _Said:
    if len(payload) > MAX_BYTES:
        raise MessageError(f"a {what} of {len(payload)} bytes came; expected at most {MAX_BYTES}")
    try:
        return decoder.decode(payload)
    # msgspec has no error of its own for broken UTF-8 and for deep nesting.
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise MessageError(f"what came is no {what}: {error}; expected the JSON of docs/reference/wire.md") from None
