"""The meaning of a measured broker for a deployment: its traits in words, har_edge's guarantees, a table's row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from har_edge.mqtt.measure.conformance import ASKED, IN_FLIGHT, QUEUED, SIZES, BrokerMeasurement
from har_edge.protocol.artifacts import CHUNK_BYTES
from har_edge.protocol.deployment import Deployment, Placement

# With fewer messages under way, a join acknowledges what waits for a source that runs behind (holdback.py).
LEAST_IN_FLIGHT = 64
LEAST_BYTES = CHUNK_BYTES + 4096
_QUEUE = "set `max_queued_messages 100000` (brokers/mosquitto.conf has it; Mosquitto's default is 1000)"


@dataclass(frozen=True, slots=True)
class Trait:
    """One thing that a broker does or does not: `remedy` is empty where nothing is wrong."""

    name: str
    said: str
    remedy: str = ""


def traits(broker: BrokerMeasurement) -> Iterator[Trait]:
    """Yield what was measured, in words, and what to do where windows or plans are lost for it."""
    yield _kept(broker)
    yield _retained(broker)
    if broker.taken_over:
        yield Trait("take-over", "a second process of a stage gets what the first one held")
    else:
        yield Trait("take-over", "a second process of a stage gets nothing", "stop a stage before you start it again")
    if broker.says_unheard:
        yield Trait("listeners", "the broker says when nobody listens (0x10)")
    else:
        yield Trait("listeners", "it does not say when nobody listens; sensors that await results send again")
    if broker.shared:
        yield Trait("groups", "members of a shared subscription take turns")
    else:
        yield Trait("groups", "shared subscriptions deliver nothing: no plan may put a stage on several nodes")
    yield _in_flight(broker)
    yield _queue(broker)
    yield _size(broker)
    if broker.dropped:
        said = f"the broker has dropped {broker.dropped} messages since it started, whoever they were for"
        yield Trait("drops", said, f"{_QUEUE}, and restart it; sensors that await results send those windows again")
    else:
        none = "it tells no count of them (Mosquitto: only for a minute after the count changed)"
        yield Trait("drops", "none since it started" if broker.dropped == 0 else none)


def _kept(broker: BrokerMeasurement) -> Trait:
    again = "says so" if broker.marked_again else "does not say so"
    if broker.session_kept and broker.redelivered:
        return Trait("sessions", f"kept; what was not acknowledged comes again, and {again}")
    lost = "what comes while a stage is away" if broker.redelivered else "what a stage holds when it dies"
    return Trait("sessions", f"not kept: {lost} is lost", "use a broker that keeps sessions: `har-edge broker`")


def _retained(broker: BrokerMeasurement) -> Trait:
    if broker.retained_wildcards:
        return Trait("retained", "greet new subscriptions, with wildcards too")
    remedy = "use `har-edge stage` with fixed slices here, or another broker for a coordinator"
    if broker.retained:
        return Trait("retained", "do not greet a filter with a wildcard: a coordinator does not find its nodes", remedy)
    return Trait("retained", "greet nobody: statuses, plans and slices are lost", "use another broker")


def _in_flight(broker: BrokerMeasurement) -> Trait:
    count = f"{IN_FLIGHT} or more" if broker.in_flight >= IN_FLIGHT else str(broker.in_flight)
    if broker.in_flight < LEAST_IN_FLIGHT:
        remedy = "set `max_inflight_messages 0` in Mosquitto's configuration, `mqtt.prefetch = 1000` in RabbitMQ's"
        said = "joins acknowledge windows that still lack a source, so a stage that is killed loses them"
        return Trait("in flight", f"{count} unacknowledged messages a client: {said}", remedy)
    if broker.max_held is None or broker.max_held <= ASKED:
        kept = ", and no more than a client asks for" if broker.max_held is not None else ""
        return Trait("in flight", f"{count} unacknowledged messages a client{kept}")
    said = (
        f"{count} a client; one that asked for {ASKED} came to hold {broker.max_held}, so nodes bound their own memory"
    )
    return Trait("in flight", said)


def _queue(broker: BrokerMeasurement) -> Trait:
    if broker.queued >= QUEUED:
        return Trait("queue", f"{QUEUED} messages or more wait for a client that is away")
    said = (
        f"{broker.queued} messages wait for a client that is away; the rest is dropped, and its sender told all is well"
    )
    return Trait("queue", said, _QUEUE)


def _size(broker: BrokerMeasurement) -> Trait:
    count = f"{broker.largest_bytes // 1024} KiB"
    if broker.largest_bytes == SIZES[-1]:
        return Trait("size", f"messages of {count} and more come through")
    if broker.largest_bytes >= LEAST_BYTES:
        return Trait("size", f"messages of {count} come through, of {SIZES[-1] // 1024} KiB not")
    said = f"nothing larger than {count} comes through; a piece of a slice has {LEAST_BYTES // 1024} KiB"
    remedy = "raise `message_size_limit` and `max_packet_size` in its configuration: 67112960 is what har_edge may send"
    return Trait("size", said, remedy)


def replicas(deployment: Deployment, broker: BrokerMeasurement | None) -> Trait:
    """Return what a plan that puts a stage on several nodes means on a broker, which may not have been measured."""
    shared = sorted({one.stage for one in _placements(deployment) if one.replica})
    if not shared:
        return Trait("replicas", "every stage runs on one node")
    nodes = {stage: [one.node for one in _placements(deployment) if one.stage == stage] for stage in shared}
    said = ", ".join(f"stage {stage} on {' and '.join(dict.fromkeys(names))}" for stage, names in nodes.items())
    if broker is None:
        return Trait("replicas", f"take turns: {said}; whether the broker's shared subscriptions deliver is not known")
    if broker.shared:
        return Trait("replicas", f"take turns: {said}")
    remedy = "start the coordinator with --replicas 1, or use a broker whose groups deliver (docs/reference/brokers.md)"
    return Trait("replicas", f"{said}: these take turns by shared subscriptions, which deliver nothing here", remedy)


def _placements(deployment: Deployment) -> list[Placement]:
    return [one for generation in deployment.generations for one in generation.placements]


HEADER = (
    "broker", "MQTT", "sessions kept", "comes again (marked)", "take-over", "retained (with wildcards)", "says 0x10",
    "shared", "in flight", "Receive Maximum", "queue", "largest",
)  # fmt: skip


def row(name: str, broker: BrokerMeasurement) -> tuple[str, ...]:
    """Return a broker's row of the table in docs/reference/brokers.md, under HEADER."""

    def word(value: bool) -> str:
        return "yes" if value else "**no**"

    held = (
        "-" if broker.max_held is None else "kept" if broker.max_held <= ASKED else f"{ASKED} asked, {broker.max_held}"
    )
    return (
        name,
        broker.protocol,
        word(broker.session_kept),
        f"{word(broker.redelivered)} ({word(broker.marked_again)})",
        word(broker.taken_over),
        f"{word(broker.retained)} ({word(broker.retained_wildcards)})",
        word(broker.says_unheard),
        word(broker.shared),
        f">= {IN_FLIGHT}" if broker.in_flight >= IN_FLIGHT else f"**{broker.in_flight}**",
        held,
        f">= {QUEUED}" if broker.queued >= QUEUED else f"**{broker.queued}**",
        f">= {SIZES[-1] // 1024} KiB"
        if broker.largest_bytes == SIZES[-1]
        else f"**{broker.largest_bytes // 1024} KiB**",
    )


def promises(broker: BrokerMeasurement) -> list[str]:
    """Return what har_edge promises on a broker, one line each way of running it."""
    if not (broker.session_kept and broker.redelivered and broker.taken_over):
        return ["fixed slices: a stage that is killed or replaced loses what it held, unless sensors await results"]
    lines = []
    joins = "" if broker.in_flight >= LEAST_IN_FLIGHT else "; what a killed join had put aside must be sent again"
    queue = "" if broker.queued >= QUEUED else f"; a backlog above {broker.queued} is dropped and must be sent again"
    lines.append(f"fixed slices: killed and replaced stages lose nothing{joins}{queue}")
    if not broker.retained_wildcards:
        lines.append("coordinator: no")
    else:
        lines.append("coordinator: yes" + ("" if broker.shared else ", one node a stage"))
    return lines
