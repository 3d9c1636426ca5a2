"""Find what nodes, sensors and stages that have gone left at the broker: statuses, sessions, files, a plan.

The module reads retained messages only. It removes nothing unless a person asks for it, and nothing that a living node
needs.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from har_edge.errors import BrokerError
from har_edge.monitor.broker_checks import Finding, Verdict, passed
from har_edge.mqtt.bus import Bus, Outgoing, PublishOutcome, Session
from har_edge.protocol.artifacts import Header
from har_edge.protocol.cluster_state import ClusterState
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import decode
from har_edge.protocol.status import ALIVE, NodeStatus
from har_edge.protocol.text import listed
from har_edge.protocol.topics import COORDINATOR, Topics
from har_edge.runtime.artifacts import clear
from har_edge.runtime.stage.neighbours import index_of
from har_edge.units import size

Connect = Callable[[Session], Bus]
# How long the broker may take to connect and to take a message; after that long a silence nothing more is retained.
PATIENCE_S = 5.0
QUIET_S = 0.5


@dataclass(frozen=True, slots=True)
class Retained:
    """The retained messages of a pipeline: statuses by node, the plan, and the headers of files."""

    statuses: Mapping[str, NodeStatus]
    plan: Deployment | None
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True, slots=True)
class Leftovers:
    """The leftovers to clear: `stages` with their queues, `others` that have gone, `headers` of files, a `plan`.

    `intruders` are stages that live although they belong to no slice: they must be stopped first.
    """

    stages: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    headers: tuple[Header, ...] = ()
    plan: bool = False
    intruders: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there is anything to clear."""
        return bool(self.stages or self.others or self.headers or self.plan)

    @property
    def matters(self) -> bool:
        """Whether there is more than statuses of sensors and nodes, which come and go."""
        return bool(self.stages or self.headers or self.plan)

    def __str__(self) -> str:
        said = [f"stages that no slice is for and that have gone: {listed(sorted(self.stages))}"] if self.stages else []
        if self.plan:
            said.append("the plan of a coordinator that has gone")
        if self.headers:
            total = size(sum(header.size for header in self.headers))
            said.append(f"{len(self.headers)} files ({total}) that no plan names")
        if self.others:
            said.append(f"statuses of others that have gone: {listed(sorted(self.others))}")
        return "; ".join(said)


def read_retained(connect: Connect, topics: Topics, count: int = 0) -> Retained:
    """Return what is retained; the statuses of `count` stages by name too, as not every broker knows wildcards."""
    state = ClusterState(time.monotonic())
    bus = connect(Session(f"look-{secrets.token_hex(8)}", clean_start=True))
    try:
        bus.subscribe([topics.status("+"), topics.plan(), topics.slice("+"), *map(topics.status, _stage_names(count))])
        deadline = time.monotonic() + PATIENCE_S
        quiet = deadline
        while time.monotonic() < min(deadline, quiet):
            came = bus.poll(0.05)
            for delivery in came:
                bus.acknowledge(delivery)
                state.apply(decode(delivery, topics), time.monotonic())
            if came or (bus.connected and quiet == deadline):
                quiet = time.monotonic() + QUIET_S
    finally:
        bus.close(forget=True)
    return Retained(state.statuses, state.deployment, tuple(state.artifacts.values()))


def leftovers_of_folder(kept: Retained, count: int) -> Leftovers:
    """Return what a fixed folder of `count` slices has no use for.

    Its own stages stay, however long they have gone: windows wait for them.
    """
    stages = [name for name, status in kept.statuses.items() if status.role == "stage"]
    beyond = [name for name in stages if (index := index_of(name)) is None or index >= count]
    alone = not is_alive(kept, COORDINATOR)
    return Leftovers(
        stages=tuple(name for name in beyond if not is_alive(kept, name)),
        others=tuple(name for name in kept.statuses if name not in stages and not is_alive(kept, name)),
        headers=kept.headers if alone else (),
        plan=alone and kept.plan is not None,
        intruders=tuple(name for name in beyond if is_alive(kept, name)),
    )


def leftovers_of_plan(kept: Retained) -> Leftovers:
    """Return what a coordinated pipeline has no use for.

    Without a plan, stages may be those of a fixed folder, and files those of a plan to come: these stay.
    """
    gone = [name for name in kept.statuses if not is_alive(kept, name) and name != COORDINATOR]
    stages = {name for name, status in kept.statuses.items() if status.role == "stage"}
    others = tuple(name for name in gone if name not in stages)
    if kept.plan is None:
        return Leftovers(others=others)
    slices = [entry for one in kept.plan.generations for entry in one.manifest.slices]
    wanted = {sha256 for entry in slices for sha256 in entry.files.values()}
    wanted.update(kept.plan.files.values())
    epochs = {one.epoch for one in kept.plan.generations}
    surplus = () if is_alive(kept, COORDINATOR) else tuple(one for one in kept.headers if one.sha256 not in wanted)
    return Leftovers(
        stages=tuple(name for name in gone if name in stages),
        others=others,
        headers=surplus,
        intruders=tuple(n for n in stages if is_alive(kept, n) and kept.statuses[n].epoch not in epochs),
    )


def report_leftovers(name: str, found: Leftovers, clear_command: str) -> Iterator[Finding]:
    """Yield what is to be said of leftovers; `clear_command` is the command that clears them."""
    if found.intruders:
        named = listed(sorted(found.intruders))
        said = f"{named} live under this name, but belong to another cut: they take windows in vain"
        yield Finding(name, Verdict.FAIL, said, "stop them, or give one of both a name of its own (`--name`)")
    if found.matters:
        yield Finding(name, Verdict.NOTE, str(found), f"clear them with `{clear_command}`")
    elif found.others:
        yield passed(name, f"{found} (`doctor --clear` removes them)")
    elif not found.intruders:
        yield passed(name, "nothing")


def report_sessions(name: str, away: int | None, stages: Collection[str]) -> Finding:
    """Return what is to be said of the sessions that wait at the broker for clients that are `away`.

    `stages` are those of this pipeline that are not connected: theirs have to wait.
    """
    if away is None:
        return passed(name, "the broker does not tell how many wait (Mosquitto: only for a minute after that changed)")
    waits = f"{away} session waits" if away == 1 else f"{away} sessions wait"
    own = f"stages of this pipeline that are away: {listed(sorted(stages))}"
    if not away:
        return passed(name, "none waits for a client that is away")
    if away <= len(stages):
        return passed(name, f"{waits} for {own}")
    whose = f"{len(stages)} of them for {own}" if stages else "none of them for a stage of this pipeline"
    said = f"{waits} at the broker for clients that are away, {whose}"
    return Finding(
        name,
        Verdict.NOTE,
        f"{said}; the others are those of other pipelines, or of processes that were killed",
        "a session of MQTT 5 ends by itself, one of 3.1.1 only with `persistent_client_expiration 7d` in Mosquitto's "
        "configuration (brokers/mosquitto.conf has it)",
    )


def clear_all(connect: Connect, topics: Topics, found: Leftovers) -> Iterator[str]:
    """Clear everything that was found, and say each thing; BrokerError where the broker does not permit it."""
    for name in sorted((*found.stages, *found.others)):
        forget(connect, topics, name)
        yield f"{name}: session ended, status removed"
    gone = [Outgoing(topics.plan(), b"", retain=True)] if found.plan else []
    for header in found.headers:
        gone += clear(topics, header.sha256, header.chunks)
    if not gone:
        return
    bus = connect(Session(f"clear-{secrets.token_hex(8)}", clean_start=True))
    try:
        send_all(bus, gone)
    finally:
        bus.close(forget=True)
    if found.plan:
        yield "plan: removed"
    if found.headers:
        yield f"files: {len(found.headers)} removed"


def forget(connect: Connect, topics: Topics, node: str) -> None:
    """End the session of a node that has gone, and remove its status. Raises BrokerError where that fails."""
    bus = connect(Session(f"{topics.base}.{topics.pipeline}.{node}", clean_start=True))
    try:
        send_all(bus, [Outgoing(topics.status(node), b"", retain=True)])
    finally:
        bus.close(forget=True)


def send_all(bus: Bus, messages: Collection[Outgoing]) -> None:
    """Publish and wait until the broker has all; BrokerError for a refusal, or for no answer."""
    refused: list[str] = []

    def note(topic: str) -> Callable[[PublishOutcome], None]:
        return lambda outcome: refused.append(topic) if outcome is PublishOutcome.REFUSED else None

    for one in messages:
        bus.publish(one.topic, one.payload, retain=one.retain, on_outcome=note(one.topic))
    left, deadline = bus.unsent, time.monotonic() + PATIENCE_S
    while bus.unsent or not bus.connected:
        bus.poll(0.05)
        if bus.unsent < left:
            left, deadline = bus.unsent, time.monotonic() + PATIENCE_S
        if time.monotonic() > deadline:
            raise BrokerError(f"{left} messages are not safe at the broker after {PATIENCE_S:g} s; try again")
    if refused:
        raise BrokerError(
            f"the broker refuses this user {len(refused)} topics, such as {refused[0]}; ask as a user who may publish "
            "below node/, plan, slice/, chunk/, train/, file/ and part/ (brokers/README.md)"
        )


def is_alive(kept: Retained, name: str) -> bool:
    status = kept.statuses.get(name)
    return status is not None and status.state in ALIVE


def _stage_names(count: int) -> list[str]:
    return [f"stage-{index}" for index in range(count)]
