"""Checking a deployed pipeline: its coordinator, nodes, plan, files, stages and sensors, and a window through it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator

from har_edge.monitor.broker_behaviour import replicas
from har_edge.monitor.broker_checks import BrokerChecks, Finding, Verdict, passed
from har_edge.monitor.diagnostics import Check, Diagnostics, checks_of_broker
from har_edge.monitor.leftovers import leftovers_of_plan, read_retained, report_leftovers, report_sessions
from har_edge.monitor.lookups import nodes_elsewhere, try_fetch
from har_edge.monitor.losses import losses
from har_edge.monitor.missing import broken_off, missing_nodes
from har_edge.monitor.node_brokers import check_node_brokers
from har_edge.monitor.observer import Observer
from har_edge.monitor.permissions import Connect
from har_edge.monitor.probe_run import NO_PLAN, ProbeRun, fixed_here, no_plan, stalled
from har_edge.monitor.signatures import check_signatures
from har_edge.monitor.training_leftovers import check_trainings
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.cluster_state import BEATING
from har_edge.protocol.deployment import PROTOCOL
from har_edge.protocol.status import ALIVE, NodeStatus, State
from har_edge.protocol.text import listed, printable
from har_edge.protocol.topics import Kind, Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import Fetch, fetch_session
from har_edge.timing import DOCTOR_LISTEN_S
from har_edge.units import duration, size

# How long statuses and heartbeats are listened to at least.
LEAST_S = 1.0
# How far a clock may be from ours.
SKEW_S = 1.0
_POLL_S = 0.05
_FILES = (Kind.SLICE, Kind.CHUNK)
_NODES = (Kind.STATUS, Kind.HEARTBEAT)


def deployed_diagnostics(
    broker_checks: BrokerChecks,
    connect: Connect,
    topics: Topics,
    store: Store,
    timeout_s: float = 5.0,
    listen_s: float = DOCTOR_LISTEN_S,
) -> Diagnostics:
    """Return the diagnostics of a pipeline that a coordinator deploys: the broker's checks, then those of the plan.

    `connect` opens connections with the credentials of the person who asks. Heartbeats are listened to for `listen_s`;
    a file or the probe may take `timeout_s`.
    """
    checks = _Checks(broker_checks, connect, topics, store, timeout_s, listen_s)
    order = (
        *checks_of_broker(broker_checks),
        Check("coordinator", checks.coordinator, reads=(Kind.STATUS,)),
        Check("nodes", checks.nodes, reads=_NODES),
        Check("missing", checks.missing, ("credentials", "nodes"), _NODES),
        Check("clocks", checks.clocks, ("credentials", "nodes"), _NODES),
        Check("versions", checks.versions, ("credentials", "nodes"), _NODES),
        Check("plan", checks.plan, reads=(Kind.PLAN,)),
        Check("signatures", checks.signatures, ("nodes",), (Kind.STATUS,)),
        Check("replicas", checks.replicas, ("plan",), (Kind.PLAN,)),
        Check("slices", checks.slices, ("plan",), _FILES),
        Check("stages", checks.stages, ("plan", "nodes"), _NODES),
        Check("own brokers", checks.own_brokers, ("plan", "nodes"), _NODES),
        Check("sensors", checks.sensors, ("plan",), (Kind.STATUS,)),
        Check("flow", checks.flow, ("plan", "slices", "stages"), (Kind.RESULT, *_FILES), (Kind.WINDOW,)),
        Check("losses", checks.losses, reads=_NODES),
        Check("sessions", checks.sessions),
        Check("leftovers", checks.leftovers, reads=(Kind.STATUS, Kind.PLAN, Kind.SLICE)),
    )
    return Diagnostics(broker_checks.roles, order, checks.close)


class _Checks:
    """The checks of a deployed pipeline; the first that listens opens the connection that all use."""

    def __init__(
        self,
        broker_checks: BrokerChecks,
        connect: Connect,
        topics: Topics,
        store: Store,
        timeout_s: float,
        listen_s: float,
    ) -> None:
        self._broker_checks, self._connect, self._topics, self._store = broker_checks, connect, topics, store
        self._timeout_s, self._listen_s = timeout_s, listen_s
        self._bus: Bus | None = None
        self._observer: Observer | None = None

    def close(self) -> None:
        """End the connection."""
        if self._bus is not None:
            self._bus.close(forget=True)

    def _listen(self, seconds: float, done: Callable[[], object] = lambda: False) -> Observer:
        if self._bus is None or self._observer is None:
            name = f"{self._topics.base}-{self._topics.pipeline}-doctor-{secrets.token_hex(4)}"
            self._bus, self._observer = self._connect(Session(name, clean_start=True)), Observer(self._topics, _now())
            self._bus.subscribe(self._observer.filters)
        deadline = _now() + seconds
        while _now() < deadline and not done():
            for delivery in self._bus.poll(_POLL_S):
                self._bus.acknowledge(delivery)
                self._observer.handle(delivery, _now(), time.time())
        return self._observer

    def _alive(self, role: str) -> dict[str, NodeStatus]:
        seen = self._listen(0.0)
        return {
            name: status
            for name, status in seen.statuses().items()
            if status.role == role and seen.is_alive(name, _now())
        }

    def _all_beat(self, since: float) -> bool:
        """Return whether all nodes that should send heartbeats have done so, and there was time to receive them."""
        views = self._listen(0.0).snapshot(_now(), time.time()).nodes
        return _now() > since + LEAST_S and all(
            view.beat_age_s is not None for view in views if view.role in BEATING and view.alive
        )

    def coordinator(self, name: str) -> Iterator[Finding]:
        """See whether a coordinator lives, by its status."""
        since = _now()
        self._listen(self._listen_s, lambda: self._all_beat(since))
        known = [one for one in self._listen(0.0).statuses().values() if one.role == "coordinator"]
        alive = self._alive("coordinator")
        if alive:
            says = printable(next(iter(alive.values())).detail)
            yield passed(name, f"is there{': ' if says else ''}{says}")
            return
        if fixed := fixed_here(self._listen(0.0), _now()):
            remedy = "`har-edge doctor --config FOLDER`, with the folder that `har-edge slice` made"
            yield Finding(name, Verdict.FAIL, fixed, remedy)
            return
        state = f"the last one is {known[0].state.value}" if known else "none was ever seen"
        remedy = f"start one: `har-edge coordinator --model MODEL --pipeline {self._topics.pipeline}`"
        yield Finding(name, Verdict.FAIL, f"{state}; a plan that is there goes on, but nobody mends it", remedy)

    def nodes(self, name: str) -> Iterator[Finding]:
        """See which nodes live, and whether they are as many as were asked for."""
        alive = self._alive("node")
        if alive:
            left = self._gone("node", State.STOPPED)
            said = f"{', '.join(sorted(alive))}" + (f" (left on purpose: {listed(left)})" if left else "")
            asked = self._asked()
            if len(alive) >= asked:
                yield passed(name, said)
                return
            short = f"{said}: {len(alive)} {'is' if len(alive) == 1 else 'are'} there, {asked} were asked for"
            yield Finding(
                name, Verdict.NOTE, short, f"start more of them, until there are {asked}: `{self._start_node}`"
            )
            return
        seen = self._listen(0.0)
        silent = [one for one, status in seen.statuses().items() if status.role == "node" and status.state in ALIVE]
        others = {} if silent else nodes_elsewhere(self._connect, self._topics)
        if silent:
            said = f"{', '.join(sorted(silent)[:8])} do not beat: they hang, or have lost the broker without its notice"
            remedy = "see their logs, and start them again; and that this user may read beat/#"
        elif others:
            said = "none in this pipeline, but " + "; ".join(
                f"{', '.join(names)} with --base {base} --pipeline {pipeline}"
                for (base, pipeline), names in others.items()
            )
            remedy = f"start them with --base {self._topics.base} --pipeline {self._topics.pipeline}, or look there"
        else:
            said = "none, in this pipeline or another"
            remedy = f"on each device: `{self._start_node}`"
        yield Finding(name, Verdict.FAIL, said, remedy)

    @property
    def _start_node(self) -> str:
        return f"har-edge node --broker {self._broker_checks.address.url} --pipeline {self._topics.pipeline}"

    def _asked(self) -> int:
        """Return how many nodes the plan that was asked for can use; 0 where that is open, or nobody says it."""
        return max((one.counters.get("asked", 0) for one in self._alive("coordinator").values()), default=0)

    def _gone(self, role: str, *states: State) -> list[str]:
        """Return whose last status has one of these states, of a role, and who is not alive."""
        alive = self._alive(role)
        return [
            printable(name, 60)
            for name, status in sorted(self._listen(0.0).statuses().items())
            if status.role == role and status.state in states and name not in alive
        ]

    def missing(self, name: str) -> Iterator[Finding]:
        """Name nodes that went without leaving: killed, cut off, or hung."""
        silent, lost = self._gone("node", *ALIVE), self._gone("node", State.LOST)
        yield missing_nodes(name, silent, lost, len(self._alive("node")), self._asked(), self._clear_command)

    def clocks(self, name: str) -> Iterator[Finding]:
        """See how far the clocks of nodes are from ours, by their heartbeats."""
        views = self._listen(0.0).snapshot(_now(), time.time()).nodes
        ahead = {view.name: view.ahead_s for view in views if view.alive and view.ahead_s is not None}
        wrong = {node: seconds for node, seconds in ahead.items() if abs(seconds) > SKEW_S}
        if wrong:
            who = ", ".join(
                f"{node} by {'+' * (seconds > 0)}{duration(seconds)}" for node, seconds in sorted(wrong.items())
            )
            all_of = len(ahead) > 1 and len(wrong) == len(ahead)
            where = "this machine, since all others differ from it" if all_of else "those devices"
            yield Finding(
                name, Verdict.FAIL, f"clocks differ from ours: {who}", f"`timedatectl set-ntp true` on {where}"
            )
        elif ahead:
            yield passed(name, f"within {duration(max(map(abs, ahead.values())))} of ours, by their beats")
        else:
            yield passed(name, "not known: nobody beats")

    def versions(self, name: str) -> Iterator[Finding]:
        """See which versions the nodes run, and whether they speak our protocol."""
        alive = self._alive("node")
        older = [node for node, status in alive.items() if not status.device or status.device.protocol != PROTOCOL]
        versions = sorted({printable(status.version, 40) for status in alive.values()})
        if older:
            said = (
                f"{', '.join(sorted(older))} speak another protocol than ours, which is {PROTOCOL}; they get no stages"
            )
            yield Finding(name, Verdict.FAIL, said, "install the same har-edge on them as here and at the coordinator")
        else:
            yield passed(name, f"har-edge {', '.join(versions)}, protocol {PROTOCOL}")

    def plan(self, name: str) -> Iterator[Finding]:
        """See whether a plan is there, and one of its generations current."""
        seen = self._listen(0.0)
        deployment = seen.deployment
        if seen.plan_problem:
            yield Finding(
                name, Verdict.FAIL, seen.plan_problem, "see who else may publish the plan; restart the coordinator"
            )
        elif deployment is None:
            remedy = f"see the log of the coordinator of {self._topics.pipeline}; and that this user may read the plan"
            yield Finding(name, Verdict.FAIL, no_plan(seen, _now()), remedy)
        elif deployment.current is None:
            yield Finding(
                name,
                Verdict.FAIL,
                f"revision {deployment.revision} has no epoch yet that answers",
                "wait until its stages run (`har-edge status --live`), or see the log of the coordinator",
            )
        elif (finding := self._broker_checks.too_small(name, deployment.current.manifest)) is not None:
            yield finding
        else:
            slices = len(deployment.current.manifest.slices)
            yield passed(name, f"revision {deployment.revision}, epoch {deployment.epoch}, {slices} slices")

    def signatures(self, name: str) -> Iterator[Finding]:
        """See whether nodes refuse plans, and whether these are signed."""
        yield from check_signatures(name, self._alive("node"), self._alive("coordinator"), self._topics)

    def replicas(self, name: str) -> Iterator[Finding]:
        """See what stages on several nodes mean on this broker."""
        deployment = self._listen(0.0).deployment
        assert deployment is not None
        trait = replicas(deployment, self._broker_checks.measured)
        yield Finding(name, Verdict.FAIL if trait.remedy else Verdict.OK, trait.said, trait.remedy)

    def slices(self, name: str) -> Iterator[Finding]:
        """Fetch each file of the current generation, and check its hash."""
        deployment = self._listen(0.0).deployment
        assert deployment is not None and deployment.current is not None
        slices = deployment.current.manifest.slices
        wanted = {sha256: file for entry in slices for file, sha256 in entry.files.items()}
        wanted |= {sha256: file for file, sha256 in deployment.files.items()}
        total, bad = 0, dict[str, str]()
        bus = self._connect(fetch_session())
        try:
            for sha256, file in sorted(wanted.items(), key=lambda item: item[1]):
                got, problem = try_fetch(bus, Fetch(self._topics, sha256), self._timeout_s)
                total += got
                if problem:
                    bad[sha256] = f"{file}: {problem}"
        finally:
            bus.close(forget=True)
        if bad:
            yield Finding(name, Verdict.FAIL, "; ".join(list(bad.values())[:4]), self._slices_remedy(next(iter(bad))))
        else:
            yield passed(name, f"{len(wanted)} files, {size(total)} at the broker, hashes right")

    def _slices_remedy(self, sha256: str) -> str:
        """Say how a content is published anew: the coordinator does so when its header is gone."""
        address = self._broker_checks.address
        return (
            "with the coordinator running, take the header of each such file back, and it is published anew: "
            f"`mosquitto_pub -h {address.host} -p {address.port} -r -n -t {self._topics.slice(sha256)}`; "
            "see who else may publish there, and that the broker keeps retained messages"
        )

    def stages(self, name: str) -> Iterator[Finding]:
        """See whether each stage of the current generation runs."""
        seen = self._listen(0.0)

        def problem() -> str:
            """Look at what is current now: it may change while this waits."""
            current = seen.deployment.current if seen.deployment else None
            return stalled(seen, current, _now()) if current else NO_PLAN

        self._listen(self._listen_s, lambda: not problem())
        if problem():
            remedy = "see the log of that node; a stage is moved when its node is lost, or says that it failed"
            yield Finding(name, Verdict.FAIL, problem(), remedy)
        else:
            current = seen.deployment.current if seen.deployment else None
            placements = current.placements if current else ()
            yield passed(name, ", ".join(f"{one.stage} on {one.node}" for one in placements))

    def own_brokers(self, name: str) -> Iterator[Finding]:
        """See whether the brokers that nodes carry can be reached."""
        seen, alive = self._listen(0.0), self._alive("node")
        offers = {node: one.device.broker for node, one in alive.items() if one.device and one.device.broker}
        current = seen.deployment.current if seen.deployment else None
        reports = {node: tuple(one for key, one in seen.reports().items() if key[0] == node) for node in alive}
        yield from check_node_brokers(name, self._broker_checks.address, offers, current, reports)

    def sensors(self, name: str) -> Iterator[Finding]:
        """See which sensors live, and whether they send to the current generation."""
        seen = self._listen(0.0)
        assert seen.deployment is not None
        sensors, epoch = self._alive("sensor"), seen.deployment.epoch
        behind = [node for node, status in sensors.items() if status.epoch != epoch]
        lost = self._gone("sensor", State.LOST)
        if behind:
            said = f"not sending to epoch {epoch}: {', '.join(sorted(behind))}"
            yield Finding(name, Verdict.FAIL, said, "start them with --pipeline, so that they follow the plan")
        elif sensors and not lost:
            yield passed(name, f"sending to epoch {epoch}: {', '.join(sorted(sensors))}")
        elif not lost:
            start = f"`har-edge sensor --pipeline {self._topics.pipeline}`"
            yield passed(name, f"none is connected, so nothing flows until one is: {start}")
        if lost:
            yield broken_off(name, sensors, lost, self._clear_command)

    def flow(self, name: str) -> Iterator[Finding]:
        """Send a window of zeros through the current generation."""
        seen = self._listen(0.0)
        assert self._bus is not None
        run = ProbeRun(self._bus, self._topics, seen, self._store, self._connect, self._timeout_s)
        run.send(_now(), time.time())
        while run.under_way:
            for delivery in self._bus.poll(_POLL_S):
                self._bus.acknowledge(delivery)
                seen.handle(delivery, _now(), time.time())
                run.handle(delivery, _now())
            run.tick(_now(), time.time())
        view = run.view
        assert view is not None
        if view.answered and view.seconds is not None:
            yield passed(name, f"a probe window went through in {duration(view.seconds)}")
        else:
            remedy = "see the log of that node; `har-edge status --live` shows whether others wait too"
            yield Finding(name, Verdict.FAIL, f"a probe window did not come back: {view.where}", remedy)

    def losses(self, name: str) -> Iterator[Finding]:
        """See whether a node says that windows were lost, or that messages could not be used."""
        yield from losses(name, self._listen(0.0).snapshot(_now(), time.time()), self._clear_command)

    def sessions(self, name: str) -> Iterator[Finding]:
        """See how many sessions wait at the broker."""
        if self._broker_checks.measured is not None:
            yield report_sessions(name, self._broker_checks.measured.away, ())

    def leftovers(self, name: str) -> Iterator[Finding]:
        """See what is retained that this pipeline has no use for."""
        kept = read_retained(self._connect, self._topics)
        yield from report_leftovers(name, leftovers_of_plan(kept), self._clear_command)
        yield from check_trainings(name, self._connect, self._topics, kept, self._clear_command)

    @property
    def _clear_command(self) -> str:
        base = "" if self._topics.base == "har" else f" --base {self._topics.base}"
        url = self._broker_checks.address.url
        return f"har-edge doctor --clear --pipeline {self._topics.pipeline}{base} --broker {url}"


def _now() -> float:
    return time.monotonic()
