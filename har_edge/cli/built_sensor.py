"""The sensor that `har-edge sensor` runs: of a pipeline file, or of the plan that it follows."""

from __future__ import annotations

import argparse
import hashlib
import secrets
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from har_edge.cli.arguments import options
from har_edge.cli.console import say
from har_edge.cli.trust import open_gate
from har_edge.errors import ConfigError, NodeError
from har_edge.protocol.topics import MAX_ID_LENGTH
from har_edge.timing import RESULT_SESSION_S
from har_edge.units import plural

if TYPE_CHECKING:
    from collections.abc import Iterable

    from har_edge.config.pipeline import Pipeline
    from har_edge.mqtt.bus import Bus, Session
    from har_edge.protocol.deployment import Deployment
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.sensor.flow_control import FlowController
    from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
    from har_edge.runtime.status_publisher import Identity
    from har_edge.runtime.stop import Stop
    from har_edge.trust.gate import PlanGate


@dataclass(frozen=True, slots=True)
class BuiltSensor:
    """A sensor, its pipeline, its sources, and what it does about windows that are on their way.

    `gate` verifies the plans that it follows; None where it follows any.
    """

    pipeline: Pipeline
    sensor: Sensor
    sources: list[str]
    flow: FlowController
    gate: PlanGate | None = None

    def report(self, faults: Iterable[tuple[str, int]] = (), *, how: str = "", total: int | None = None) -> str:
        """Say what was sent (of `total` windows), and what went wrong on the way.

        It is done only where every window was answered and nothing else is said (`how` it came to an end).
        """
        counts = self.sensor.counters
        told = [*faults, *((name, getattr(counts, name)) for name in ("resent", "incomplete", "unanswered"))]
        words = [f"{name.replace('_', ' ')} {count}" for name, count in told if count]
        how = how or ("ended" if counts.unanswered > 0 else "done" if self.flow.hears else "sent, answers not heard")
        of = "" if total is None else f" of {total}"
        sent = f"{how}: {plural(counts.windows, 'window') if not of else f'{counts.windows}{of} windows'}"
        sent += f" in {plural(counts.messages, 'message')}"
        return "; ".join([sent, ", ".join(words)] if words else [sent])

    @property
    def exit_code(self) -> int:
        """0, or 1 where windows were given up."""
        from har_edge.cluster.cluster import EXIT_UNANSWERED

        return EXIT_UNANSWERED if self.sensor.counters.unanswered > 0 else 0


def make_sensor(args: argparse.Namespace, stop: Stop) -> BuiltSensor | None:
    """Return the sensor that the options ask for; None where it waited for a plan and was stopped."""
    if args.pipeline is not None:
        return follow(args, stop)
    if args.trust is not None:
        raise ConfigError("--trust came without --pipeline; expected both: slices of a folder have no plan to verify")
    from har_edge.config.pipeline import check_batch
    from har_edge.runtime.build import build_sensor, override, topics_of
    from har_edge.runtime.sensor.flow_control import Untracked
    from har_edge.runtime.sensor.retransmission import Retransmitter
    from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer

    pipeline = options.load_source(args)
    check_batch(pipeline, args.batch)
    pipeline = override(pipeline, options.chosen_reducers(args.reducer, pipeline.task.inputs))
    sources = list(pipeline.task.inputs) if args.source == "all" else [args.source]
    # Who starts sensors and stages on one machine hears of values that saturate from the stages.
    sensor = build_sensor(pipeline, sources, combine=args.combine, look=not args.no_notice)
    run, live = new_run(), _is_live(args)
    if not (args.in_flight or live):
        return BuiltSensor(pipeline, sensor, sources, Untracked(sensor, run))
    buffer, partial = RetransmitBuffer(sources, time.time()), set(sources) < set(pipeline.task.inputs)
    topics = topics_of(pipeline)
    retransmitter = Retransmitter(sensor, buffer, topics, args.give_up, expires=live, partial=partial, run=run)
    return BuiltSensor(pipeline, sensor, sources, retransmitter)


def _is_live(args: argparse.Namespace) -> bool:
    """Return whether what the sensor reads does not wait for it."""
    return args.live is not None or args.images == ["-"]


def new_run() -> int:
    """Return a number that tells this start of a sensor from others."""
    from har_edge.runtime.sensor.sent_counter import RUN_BITS

    return secrets.randbits(RUN_BITS)


def name_of(args: argparse.Namespace) -> str:
    """Return the name of a sensor: as given, else of its source and its streams, so that two persons' have two."""
    if args.name is not None:
        return str(args.name)
    if own := options.own_name(args, "sensor"):
        return own
    streams = [args.stream] if args.live is not None or args.images else list(args.subjects or ())
    name = "-".join(["sensor", args.source, *streams])
    if len(name) <= MAX_ID_LENGTH:
        return name
    return f"sensor-{args.source[:32]}-{streams[0][:32]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def connect(args: argparse.Namespace, pipeline: Pipeline, identity: Identity, gate: PlanGate | None = None) -> Bus:
    """Return the bus of a sensor; NodeError where its name is that of something else that is alive."""
    from har_edge.runtime.node.registration import check_role

    def reach(session: Session) -> Bus:
        return options.connect(args, pipeline, session)

    check_role(reach, identity.topics, identity.node, identity.role)
    return gated(reach(identity.session(expiry_s=RESULT_SESSION_S)), gate, identity.topics)


def gated(bus: Bus, gate: PlanGate | None, topics: Topics) -> Bus:
    """Return the bus, behind the gate where there is one."""
    from har_edge.trust.gated_bus import GatedBus

    return bus if gate is None else GatedBus(bus, gate, topics)


def overtaken(source: str, identity: Identity) -> int:
    """Say that a younger sensor has this one's name; return the exit code."""
    text = f"another sensor named {identity.node} has connected; ending (give each its --name)"
    say(f"sensor {source}: {text}", file=sys.stderr)
    return options.EXIT_TAKEN_OVER


def follow(args: argparse.Namespace, stop: Stop) -> BuiltSensor | None:
    """Wait for the plan, fetch what it names, and return the sensor that follows it."""
    from har_edge.config.pipeline import check_batch
    from har_edge.protocol.topics import Topics
    from har_edge.runtime.artifact_store import Store, default_folder
    from har_edge.runtime.build import build_sensor
    from har_edge.runtime.sensor.plan_follower import PlanFollower
    from har_edge.runtime.sensor.reducer_loader import ReducerLoader
    from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer

    if args.reducer is not None:
        raise ConfigError("--reducer came with --pipeline; expected without: the plan says how windows are reduced")
    topics, store = Topics(args.base, args.pipeline), Store(args.cache or default_folder())
    gate = open_gate(args.trust, topics, name_of(args))
    loader = ReducerLoader(
        topics, store, lambda session: gated(options.reach(args, session), gate, topics), lambda: stop.asked
    )
    deployment = loader.await_plan()
    if deployment is None:
        return None
    try:
        pipeline = loader.pipeline_of(deployment)
    except NodeError:
        if stop.asked:
            return None
        raise
    check_batch(pipeline, args.batch)
    sources = list(pipeline.task.inputs) if args.source == "all" else [args.source]
    sensor = build_sensor(pipeline, sources, combine=args.combine)

    def refit(changed: Deployment) -> SensorSetup:
        return loader.setup_of(changed, sources, combine=args.combine)

    buffer, partial = RetransmitBuffer(sources, time.time()), set(sources) < set(pipeline.task.inputs)
    live, waits, run = _is_live(args), args.give_up, new_run()
    follower = PlanFollower(deployment, sensor, buffer, topics, refit, waits, expires=live, partial=partial, run=run)
    return BuiltSensor(pipeline, sensor, sources, follower, gate)
