"""The known state of a deployment at one moment, as `har-edge status` shows it and `--json` writes it."""

from __future__ import annotations

import msgspec

from har_edge.protocol.training import TrainingProgress


class NodeView(msgspec.Struct, frozen=True):
    """One node: what its retained status and its last heartbeat say.

    `alive` means that it has not said goodbye, was not reported lost, and sends heartbeats if its role does. `ahead_s`
    is how far its clock is ahead of ours, by the heartbeat that was on its way the shortest; `beat_age_s` the time
    since the last one; both None without any. `lost_at` is when it last lost a window, as in SentView. `broker` is the
    address of the broker that it carries itself, empty where it carries none.
    """

    name: str
    role: str
    state: str
    alive: bool
    version: str
    detail: str
    epoch: int
    revision: int
    protocol: int | None
    machine: str
    cores: int
    memory_bytes: int
    speed: float
    ahead_s: float | None
    beat_age_s: float | None
    stages: tuple[str, ...]
    counters: dict[str, int]
    runtime: str = ""
    delegate: str = ""
    lost_at: float = 0.0
    broker: str = ""


class StageView(msgspec.Struct, frozen=True):
    """One stage of one generation on the node that the plan names; `phase` is "unreported" until it reports it.

    `rate` in windows/s, `service_s` a window, `queue_s` a message and `busy` (share of a core) are means over the last
    seconds; None where nothing came. A stage that is not `planned` still runs there although the plan moved it away. A
    stage of a folder reports its counters every 5 s: they are `age_s` old, None where only retained messages came in
    `listened_s`.
    """

    epoch: int
    stage: int
    replica: int
    node: str
    standby: tuple[str, ...]
    phase: str
    detail: str
    planned: bool
    windows: int
    rate: float | None
    queued: int
    waiting: int
    queue_s: float | None
    service_s: float | None
    busy: float | None
    idle_s: float
    lost: int
    errors: int
    age_s: float | None = None
    listened_s: float = 0.0


class EpochView(msgspec.Struct, frozen=True):
    """One generation of the plan: where it stands, the operators of each slice, what the planner expects.

    `flows` name the nodes whose own brokers flows go through.
    """

    epoch: int
    phase: str
    cuts: tuple[tuple[int, int], ...]
    predicted_latency_s: float
    flows: dict[str, str] = {}


class HopView(msgspec.Struct, frozen=True):
    """The seconds that a window waits and takes at one stage of the current generation."""

    stage: int
    queue_s: float
    service_s: float


class FlowView(msgspec.Struct, frozen=True):
    """Results that came: how many, per second, and from capture to answer in seconds (by the clocks that said so).

    `hops` are the stages on the longest way; `elsewhere_s` is the rest of the median: sensors, links, broker, joins.
    It is None where hops take more than that together: shards of a group compute at the same time.
    """

    results: int
    rate: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    hops: tuple[HopView, ...]
    elsewhere_s: float | None


class SentView(msgspec.Struct, frozen=True):
    """The report of one sensor on the windows of one stream since it started; `alive`: it still sends them again.

    `answered` is None, and `open` 0, where it listens to no results. `lost` are no longer awaited, or were open when
    the sensor went; `incomplete` are not awaited, since other sensors of the stream have not sent them. `lost_at` is
    when windows of this sensor were last lost (its clock, seconds since 1970); 0 where none were, or it does not say.
    """

    node: str
    stream: str
    alive: bool
    sent: int
    answered: int | None
    open: int
    lost: int
    incomplete: int = 0
    lost_at: float = 0.0


class CountsView(msgspec.Struct, frozen=True):
    """The losses of all living nodes, added up since their start.

    `lost` windows were given up by a stage, `unanswered` ones by sensors, these since the sensors' start, also of such
    that have gone (sensors of one stream count once); `errors` are unusable messages; `dropped` windows of live
    devices never left; `resent` ones were sent again, also by sensors that have gone; `unusable` messages came to us.
    """

    lost: int
    errors: int
    dropped: int
    resent: int
    unusable: int
    unanswered: int


class ProbeView(msgspec.Struct, frozen=True):
    """Whether a probe window went through: in how many seconds, or else where it got stuck.

    `where` also says which stage was away, where one went through all the same since a parity stands for it.
    """

    answered: bool
    seconds: float | None
    epoch: int
    where: str


class Snapshot(msgspec.Struct, frozen=True):
    """Everything at once. `ready` means that a probe window just went through; `probe` is None when none was sent.

    `obstacle` says, where none is sent, what is seen all the same that keeps windows from going through.
    `disagreement` says why answers may depend on the node that computes them, empty where nothing says so.
    """

    pipeline: str
    base: str
    time: float
    ready: bool
    probe: ProbeView | None
    plan: str
    author: str
    revision: int
    epoch: int
    model: str
    epochs: tuple[EpochView, ...]
    nodes: tuple[NodeView, ...]
    stages: tuple[StageView, ...]
    flow: FlowView
    counts: CountsView
    sent: tuple[SentView, ...] = ()
    disagreement: str = ""
    obstacle: str = ""
    trainings: tuple[TrainingProgress, ...] = ()


encode_snapshot = msgspec.json.Encoder().encode
