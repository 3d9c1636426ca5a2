"""Checking a deployment from the broker up: every check in order, and what to do about the first that fails."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from har_edge.errors import BrokerError, HarEdgeError, MessageError
from har_edge.monitor.broker_behaviour import replicas
from har_edge.monitor.broker_checks import BrokerChecks, Finding, Verdict, passed
from har_edge.monitor.leftovers import leftovers_of_plan, read_retained, report_leftovers, report_sessions
from har_edge.monitor.losses import losses
from har_edge.monitor.missing import broken_off, missing_nodes
from har_edge.monitor.observer import Observer
from har_edge.monitor.permissions import Connect, can_see
from har_edge.monitor.probe_run import NO_PLAN, ProbeRun, fixed_here, no_plan, stalled
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.cluster_state import BEATING
from har_edge.protocol.deployment import PROTOCOL
from har_edge.protocol.events import StatusEvent, decode
from har_edge.protocol.status import ALIVE, NodeStatus, State
from har_edge.protocol.text import listed, printable
from har_edge.protocol.topics import EVERY_STATUS, Kind, Topics
from har_edge.runtime.artifact_store import Store
from har_edge.runtime.artifacts import Fetch, fetch_session
from har_edge.timing import DOCTOR_LISTEN_S
from har_edge.units import duration, size

LEAST_S = 1.0
OTHERS_S = 1.0
SKEW_S = 1.0
MAX_OTHERS = 16
_POLL_S = 0.05


@dataclass(slots=True)
class Diagnostics:
    """Runs the checks. `connect` opens connections with the credentials of the person who asks.

    `listen_s` is how long beats are listened to, `timeout_s` how long a file or the probe may take. `checks` is what is
    checked in place of CHECKS, and `ended` is called after it. `announce` is told the name of each check before it.
    """

    broker_checks: BrokerChecks
    connect: Connect
    topics: Topics
    store: Store
    timeout_s: float = 5.0
    listen_s: float = DOCTOR_LISTEN_S
    broker_only: bool = False
    checks: tuple[Check, ...] = ()
    ended: Callable[[], None] = lambda: None
    announce: Callable[[str], object] = lambda name: None
    _bus: Bus | None = None
    _observer: Observer | None = None
    _failed: set[str] = field(default_factory=set)

    def run(self) -> Iterator[Finding]:
        """Yield findings in order; a check whose ground failed is not reached."""
        try:
            for check in BROKER_CHECKS if self.broker_only else self.checks or CHECKS:
                self.announce(check.name)
                findings = list(self._run_check(check))
                if any(finding.verdict in (Verdict.FAIL, Verdict.SKIPPED) for finding in findings):
                    self._failed.add(check.name)
                yield from findings
        finally:
            self.ended()
            if self._bus is not None:
                self._bus.close(forget=True)

    def _run_check(self, check: Check) -> Iterator[Finding]:
        """Make one check, if its ground holds and the person who asks may see what it is about."""
        missing, roles = [need for need in check.needs if need in self._failed], self.broker_checks.roles
        if missing:
            yield Finding(check.name, Verdict.SKIPPED, f"needs: {', '.join(missing)}")
        elif not can_see(roles, check.reads, check.publishes):
            who = " and ".join(sorted(role.value for role in roles))
            yield Finding(check.name, Verdict.SKIPPED, f"not for the eyes of a {who}; ask as operator")
        else:
            try:
                yield from check.step(self, check.name)
            except HarEdgeError as error:
                yield Finding(check.name, Verdict.FAIL, printable(str(error), 500), "see the log of the broker")

    # --- who is there -----------------------------------------------------------------------------------------------

    def _listen(self, seconds: float, done: Callable[[], object] = lambda: False) -> Observer:
        if self._bus is None or self._observer is None:
            name = f"{self.topics.base}-{self.topics.pipeline}-doctor-{secrets.token_hex(4)}"
            self._bus, self._observer = self.connect(Session(name, clean_start=True)), Observer(self.topics, _now())
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

    def _coordinator(self, name: str) -> Iterator[Finding]:
        since = _now()
        self._listen(self.listen_s, lambda: self._all_beat(since))
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
        remedy = f"start one: `har-edge coordinator --model MODEL --pipeline {self.topics.pipeline}`"
        yield Finding(name, Verdict.FAIL, f"{state}; a plan that is there goes on, but nobody mends it", remedy)

    def _nodes(self, name: str) -> Iterator[Finding]:
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
        others = {} if silent else self._elsewhere()
        if silent:
            said = f"{', '.join(sorted(silent)[:8])} do not beat: they hang, or have lost the broker without its notice"
            remedy = "see their logs, and start them again; and that this user may read beat/#"
        elif others:
            said = "none in this pipeline, but " + "; ".join(
                f"{', '.join(names)} with --base {base} --pipeline {pipeline}"
                for (base, pipeline), names in others.items()
            )
            remedy = f"start them with --base {self.topics.base} --pipeline {self.topics.pipeline}, or look there"
        else:
            said = "none, in this pipeline or another"
            remedy = f"on each device: `{self._start_node}`"
        yield Finding(name, Verdict.FAIL, said, remedy)

    @property
    def _start_node(self) -> str:
        return f"har-edge node --broker {self.broker_checks.address.url} --pipeline {self.topics.pipeline}"

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

    def _missing(self, name: str) -> Iterator[Finding]:
        """Name nodes that went without leaving: killed, cut off, or hung."""
        silent, lost = self._gone("node", *ALIVE), self._gone("node", State.LOST)
        yield missing_nodes(name, silent, lost, len(self._alive("node")), self._asked(), self._clear_command)

    def _elsewhere(self) -> dict[tuple[str, str], list[str]]:
        """Return the nodes that say they are alive in other pipelines of this broker."""
        found: dict[tuple[str, str], list[str]] = {}
        bus = self.connect(Session(f"doctor-{secrets.token_hex(8)}", clean_start=True))
        try:
            bus.subscribe([EVERY_STATUS])
            deadline = _now() + OTHERS_S
            while _now() < deadline:
                for delivery in bus.poll(_POLL_S):
                    bus.acknowledge(delivery)
                    event = decode(delivery)
                    if isinstance(event, StatusEvent) and event.status is not None and _is_living_node(event.status):
                        names = found.setdefault((event.topic.base, event.topic.pipeline), [])
                        names += [event.node] if len(names) < MAX_OTHERS else []
        except BrokerError:  # not permitted: then nothing is known of others
            return {}
        finally:
            bus.close(forget=True)
        found.pop((self.topics.base, self.topics.pipeline), None)
        return dict(list(found.items())[:MAX_OTHERS])

    def _clocks(self, name: str) -> Iterator[Finding]:
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

    def _versions(self, name: str) -> Iterator[Finding]:
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

    # --- what is deployed -------------------------------------------------------------------------------------------

    def _plan(self, name: str) -> Iterator[Finding]:
        seen = self._listen(0.0)
        deployment = seen.deployment
        if seen.plan_problem:
            yield Finding(
                name, Verdict.FAIL, seen.plan_problem, "see who else may publish the plan; restart the coordinator"
            )
        elif deployment is None:
            remedy = f"see the log of the coordinator of {self.topics.pipeline}; and that this user may read the plan"
            yield Finding(name, Verdict.FAIL, no_plan(seen, _now()), remedy)
        elif deployment.current is None:
            yield Finding(
                name,
                Verdict.FAIL,
                f"revision {deployment.revision} has no epoch yet that answers",
                "wait until its stages run (`har-edge status --live`), or see the log of the coordinator",
            )
        else:
            slices = len(deployment.current.manifest.slices)
            yield passed(name, f"revision {deployment.revision}, epoch {deployment.epoch}, {slices} slices")

    def _replicas(self, name: str) -> Iterator[Finding]:
        deployment = self._listen(0.0).deployment
        assert deployment is not None
        trait = replicas(deployment, self.broker_checks.measured)
        yield Finding(name, Verdict.FAIL if trait.remedy else Verdict.OK, trait.said, trait.remedy)

    def _slices(self, name: str) -> Iterator[Finding]:
        deployment = self._listen(0.0).deployment
        assert deployment is not None and deployment.current is not None
        wanted = {entry.sha256: entry.file for entry in deployment.current.manifest.slices}
        wanted |= {sha256: file for file, sha256 in deployment.files.items()}
        total, bad = 0, dict[str, str]()
        bus = self.connect(fetch_session())
        try:
            for sha256, file in sorted(wanted.items(), key=lambda item: item[1]):
                got, problem = _look_at(bus, Fetch(self.topics, sha256), self.timeout_s)
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
        address = self.broker_checks.address
        return (
            "with the coordinator running, take the header of each such file back, and it is published anew: "
            f"`mosquitto_pub -h {address.host} -p {address.port} -r -n -t {self.topics.slice(sha256)}`; "
            "see who else may publish there, and that the broker keeps retained messages"
        )

    def _stages(self, name: str) -> Iterator[Finding]:
        seen = self._listen(0.0)

        def problem() -> str:
            """Look at what is current now: it may change while this waits."""
            current = seen.deployment.current if seen.deployment else None
            return stalled(seen, current, _now()) if current else NO_PLAN

        self._listen(self.listen_s, lambda: not problem())
        if problem():
            remedy = "see the log of that node; a stage is moved when its node is lost, or says that it failed"
            yield Finding(name, Verdict.FAIL, problem(), remedy)
        else:
            current = seen.deployment.current if seen.deployment else None
            placements = current.placements if current else ()
            yield passed(name, ", ".join(f"{one.stage} on {one.node}" for one in placements))

    def _sensors(self, name: str) -> Iterator[Finding]:
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
            start = f"`har-edge sensor --pipeline {self.topics.pipeline}`"
            yield passed(name, f"none is connected, so nothing flows until one is: {start}")
        if lost:
            yield broken_off(name, sensors, lost, self._clear_command)

    def _flow(self, name: str) -> Iterator[Finding]:
        seen = self._listen(0.0)
        assert self._bus is not None
        run = ProbeRun(self._bus, self.topics, seen, self.store, self.connect, self.timeout_s)
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

    # --- what was lost, and what is left over ------------------------------------------------------------------------

    def _losses(self, name: str) -> Iterator[Finding]:
        yield from losses(name, self._listen(0.0).snapshot(_now(), time.time()), self._clear_command)

    def _sessions(self, name: str) -> Iterator[Finding]:
        if self.broker_checks.measured is not None:
            yield report_sessions(name, self.broker_checks.measured.away, ())

    def _leftovers(self, name: str) -> Iterator[Finding]:
        yield from report_leftovers(
            name, leftovers_of_plan(read_retained(self.connect, self.topics)), self._clear_command
        )

    @property
    def _clear_command(self) -> str:
        base = "" if self.topics.base == "har" else f" --base {self.topics.base}"
        url = self.broker_checks.address.url
        return f"har-edge doctor --clear --pipeline {self.topics.pipeline}{base} --broker {url}"


def _receive(step: Callable[[BrokerChecks, str], Iterator[Finding]]) -> Step:
    return lambda diagnostics, name: step(diagnostics.broker_checks, name)


Step = Callable[[Diagnostics, str], Iterator[Finding]]


@dataclass(frozen=True, slots=True)
class Check:
    """One check: the checks whose success it needs, what must be read and published for it, how it is made."""

    name: str
    step: Step
    needs: tuple[str, ...] = ("credentials",)
    reads: tuple[Kind, ...] = ()
    publishes: tuple[Kind, ...] = ()


_FILES = (Kind.SLICE, Kind.CHUNK)
_NODES = (Kind.STATUS, Kind.HEARTBEAT)
CHECKS = (
    Check("broker", _receive(BrokerChecks.broker), ()),
    Check("mqtt", _receive(BrokerChecks.mqtt), ("broker",)),
    Check("credentials", _receive(BrokerChecks.credentials), ("broker", "mqtt")),
    Check("settings", _receive(BrokerChecks.settings)),
    Check("permissions", _receive(BrokerChecks.permissions)),
    Check("behaviour", _receive(BrokerChecks.behaviour)),
    Check("coordinator", Diagnostics._coordinator, reads=(Kind.STATUS,)),
    Check("nodes", Diagnostics._nodes, reads=_NODES),
    Check("missing", Diagnostics._missing, ("credentials", "nodes"), _NODES),
    Check("clocks", Diagnostics._clocks, ("credentials", "nodes"), _NODES),
    Check("versions", Diagnostics._versions, ("credentials", "nodes"), _NODES),
    Check("plan", Diagnostics._plan, reads=(Kind.PLAN,)),
    Check("replicas", Diagnostics._replicas, ("plan",), (Kind.PLAN,)),
    Check("slices", Diagnostics._slices, ("plan",), _FILES),
    Check("stages", Diagnostics._stages, ("plan", "nodes"), _NODES),
    Check("sensors", Diagnostics._sensors, ("plan",), (Kind.STATUS,)),
    Check("flow", Diagnostics._flow, ("plan", "slices", "stages"), (Kind.RESULT, *_FILES), (Kind.WINDOW,)),
    Check("losses", Diagnostics._losses, reads=_NODES),
    Check("sessions", Diagnostics._sessions),
    Check("leftovers", Diagnostics._leftovers, reads=(Kind.STATUS, Kind.PLAN, Kind.SLICE)),
)

BROKER_CHECKS = CHECKS[: [check.name for check in CHECKS].index("behaviour") + 1]


def _is_living_node(status: NodeStatus) -> bool:
    return status.role == "node" and status.state in ALIVE


def _look_at(bus: Bus, one: Fetch, timeout_s: float) -> tuple[int, str]:
    """Fetch a content and throw it away; return its size, and what is wrong with it."""
    subscribed: set[str] = set()
    last, since = one.progress, _now()
    while True:
        fresh = [text for text in one.filters if text not in subscribed]
        if fresh:
            bus.subscribe(fresh)
            subscribed.update(fresh)
        complete = False
        for delivery in bus.poll(_POLL_S):
            bus.acknowledge(delivery)
            complete = one.take(delivery) or complete
        if complete:
            try:
                one.check()
            except MessageError as error:
                return 0, str(error)
            return len(one.content), ""
        if one.progress != last:
            last, since = one.progress, _now()
        if _now() > since + timeout_s:
            return 0, last


def _now() -> float:
    return time.monotonic()
