"""Checking a fixed folder of slices from the broker up: its files, its stages, its sensors, and a window through it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator

from har_edge.config.pipeline import Pipeline
from har_edge.files import MAX_MODEL_BYTES, read_regular
from har_edge.monitor.broker_checks import BrokerChecks, Finding, Verdict, passed
from har_edge.monitor.diagnostics import Check, Diagnostics, checks_of_broker
from har_edge.monitor.fixed_pipeline import FixedObserver, FixedProbeRun
from har_edge.monitor.leftovers import leftovers_of_folder, read_retained, report_leftovers, report_sessions
from har_edge.monitor.losses import losses
from har_edge.monitor.missing import broken_off
from har_edge.monitor.permissions import Connect
from har_edge.monitor.training_leftovers import check_trainings
from har_edge.mqtt.bus import Bus, Session
from har_edge.protocol.status import ALIVE, State
from har_edge.protocol.text import printable
from har_edge.protocol.topics import Kind
from har_edge.runtime.build import topics_of
from har_edge.timing import DOCTOR_LISTEN_S, STAGE_SILENT_S
from har_edge.units import duration, size

_POLL_S = 0.05


def fixed_diagnostics(
    broker_checks: BrokerChecks,
    connect: Connect,
    pipeline: Pipeline,
    timeout_s: float,
    listen_s: float = DOCTOR_LISTEN_S,
) -> Diagnostics:
    """Return the diagnostics of a fixed pipeline: the broker's checks, and those of `_Checks` in place of a plan's."""
    checks = _Checks(broker_checks, connect, pipeline, timeout_s, listen_s)
    order = (
        *checks_of_broker(broker_checks),
        Check("folder", checks.folder, ()),
        Check("stages", checks.stages, ("credentials", "folder"), (Kind.STATUS,)),
        Check("sensors", checks.sensors, reads=(Kind.STATUS,)),
        Check("flow", checks.flow, ("stages",), (Kind.RESULT,), (Kind.WINDOW,)),
        Check("losses", checks.losses, reads=(Kind.STATUS,)),
        Check("sessions", checks.sessions, reads=(Kind.STATUS,)),
        Check("leftovers", checks.leftovers, reads=(Kind.STATUS, Kind.PLAN, Kind.SLICE)),
    )
    return Diagnostics(broker_checks.roles, order, checks.close)


class _Checks:
    """The checks of a fixed pipeline; the first that listens opens the connection that all use."""

    def __init__(
        self, broker_checks: BrokerChecks, connect: Connect, pipeline: Pipeline, timeout_s: float, listen_s: float
    ) -> None:
        self._broker_checks, self._connect, self._pipeline = broker_checks, connect, pipeline
        self._timeout_s, self._listen_s = timeout_s, listen_s
        self._seen = FixedObserver(pipeline, time.monotonic())
        self._bus: Bus | None = None

    def close(self) -> None:
        """End the connection."""
        if self._bus is not None:
            self._bus.close(forget=True)

    def folder(self, name: str) -> Iterator[Finding]:
        """See whether each slice is there, and what its hash says."""
        folder, total = self._pipeline.folder / self._pipeline.config.slices, 0
        files = {file: sha256 for entry in self._pipeline.manifest.slices for file, sha256 in entry.files.items()}
        for file, sha256 in files.items():
            path = folder / file
            try:
                content = read_regular(path, MAX_MODEL_BYTES)
            except OSError as error:
                said = f"cannot read {path}: {error.strerror}"
                yield Finding(name, Verdict.FAIL, said, "copy the whole folder again, or cut the model again")
                return
            if hashlib.sha256(content).hexdigest() != sha256:
                said = f"{path} is not what manifest.json says: its hash is another"
                yield Finding(name, Verdict.FAIL, said, "copy the whole folder again, or cut the model again")
                return
            total += len(content)
        finding = self._broker_checks.too_small(name, self._pipeline.manifest)
        if finding is not None:
            yield finding
            return
        slices = len(self._pipeline.manifest.slices)
        yield passed(name, f"{slices} slices of {self._pipeline.manifest.model}, {size(total)}, hashes right")

    def stages(self, name: str) -> Iterator[Finding]:
        """See whether each stage lives and runs the slice of this folder."""
        self._listen(self._listen_s)
        self._listen(STAGE_SILENT_S, self._seen.all_heard)
        count = len(self._pipeline.manifest.slices)
        problem, spared = self._seen.stalled(time.monotonic()), self._seen.spared(time.monotonic())
        for said, command in self._seen.away_turns():
            yield Finding(name, Verdict.NOTE, said, f"`{command}` on its device; with --forget, stop it then for good")
        if not problem and not spared:
            yield passed(name, f"all {count} run the slices of this folder")
            return
        said, remedy = problem or spared, "start that stage again with the same folder as the others"
        how, told, command = said.rpartition("start it with: ")
        if told:
            said, _, how = how.partition("; ")
            remedy = f"{how}`{command}` on its device"
        yield Finding(name, Verdict.FAIL if problem else Verdict.NOTE, said, remedy)

    def sensors(self, name: str) -> Iterator[Finding]:
        """See which sensors live."""
        self._listen(0.0)
        alive = [
            f"{printable(one, 60)} ({status.counters.get('windows', 0)} windows)"
            for one, status in sorted(self._seen.statuses().items())
            if status.role == "sensor" and status.state in ALIVE
        ]
        lost = [
            printable(one, 60)
            for one, status in self._seen.statuses().items()
            if status.role == "sensor" and status.state is State.LOST
        ]
        if lost:
            yield broken_off(name, alive, lost, self._clear_command)
            return
        start = f"`har-edge sensor --config {self._pipeline.folder}`"
        none = f"none is connected, so nothing flows until one is: {start}"
        yield passed(name, ", ".join(alive[:8]) if alive else none)

    def losses(self, name: str) -> Iterator[Finding]:
        """See whether a node says that windows were lost, or that messages could not be used."""
        self._listen(0.0)
        yield from losses(name, self._seen.snapshot(time.monotonic(), time.time()), self._clear_command)

    def sessions(self, name: str) -> Iterator[Finding]:
        """See how many sessions wait at the broker, beside those of stages of this folder."""
        self._listen(0.0)
        if self._broker_checks.measured is not None:
            now, count = time.monotonic(), len(self._pipeline.manifest.slices)
            own = (f"stage-{index}" for index in range(count))
            away = [one for one in own if one in self._seen.statuses() and not self._seen.is_alive(one, now)]
            yield report_sessions(name, self._broker_checks.measured.away, away)

    def leftovers(self, name: str) -> Iterator[Finding]:
        """See what is retained that this folder has no use for."""
        count = len(self._pipeline.manifest.slices)
        kept = read_retained(self._connect, topics_of(self._pipeline), count)
        yield from report_leftovers(name, leftovers_of_folder(kept, count), self._clear_command)
        yield from check_trainings(name, self._connect, topics_of(self._pipeline), kept, self._clear_command)

    @property
    def _clear_command(self) -> str:
        return f"har-edge doctor --clear --config {self._pipeline.folder} --broker {self._broker_checks.address.url}"

    def flow(self, name: str) -> Iterator[Finding]:
        """Send a window of zeros through it."""
        bus = self._listen(0.0)
        run = FixedProbeRun(bus, self._seen, self._connect, self._timeout_s)
        run.send(time.monotonic(), time.time())
        while run.under_way:
            for delivery in bus.poll(_POLL_S):
                bus.acknowledge(delivery)
                self._seen.handle(delivery, time.monotonic(), time.time())
                run.handle(delivery, time.monotonic())
            run.tick(time.monotonic(), time.time())
        view = run.view
        assert view is not None
        if view.answered and view.seconds is not None:
            yield passed(name, f"a probe window went through in {duration(view.seconds)}")
        else:
            remedy = "see the logs of the stages; `har-edge status --config FOLDER --live` shows their counters"
            yield Finding(name, Verdict.FAIL, f"a probe window did not come back: {view.where}", remedy)

    def _listen(self, seconds: float, done: Callable[[], bool] = lambda: False) -> Bus:
        if self._bus is None:
            topics = topics_of(self._pipeline)
            name = f"{topics.base}-{topics.pipeline}-doctor-{secrets.token_hex(4)}"
            self._bus = self._connect(Session(name, clean_start=True))
            self._seen = FixedObserver(self._pipeline, time.monotonic())
            self._bus.subscribe(self._seen.filters)
            seconds = max(seconds, self._listen_s)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not done():
            for delivery in self._bus.poll(_POLL_S):
                self._bus.acknowledge(delivery)
                self._seen.handle(delivery, time.monotonic(), time.time())
        return self._bus
