"""Runs a coordinator on a bus: moves bytes, hands slow work to the planner's thread, says what was decided."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from har_edge.coordinator.coordinator import Coordinator
from har_edge.coordinator.model_replacement import ModelReplacer
from har_edge.coordinator.replan import PlanRequest, PlanResponse
from har_edge.coordinator.rollout import Step
from har_edge.mqtt.bus import Bus, Outgoing, TakenOver
from har_edge.protocol.status import State
from har_edge.runtime.counters import Counters
from har_edge.runtime.sender import Sender, drain
from har_edge.runtime.status_publisher import Identity
from har_edge.runtime.stop import Stop
from har_edge.timing import STATUS_S

# Short against the deadline of a node, long enough to cost nothing.
TURN_S = 0.05


class PlannerClient(Protocol):
    """The thread for slow work (coordinator/planner_thread.py)."""

    def request(self, request: PlanRequest) -> None:
        """Ask for a plan."""

    def delete_session(self, client_id: str, url: str = "") -> None:
        """Ask for a session to be deleted, at the broker with this address, by default at the central one."""

    def poll(self) -> list[PlanResponse]:
        """Return the plans that have been made since."""


class CoordinatorService:
    """One coordinator on one bus."""

    def __init__(
        self, bus: Bus, coordinator: Coordinator, identity: Identity, planner: PlannerClient, say: Callable[[str], None]
    ) -> None:
        self._bus, self._coordinator, self._identity, self._planner, self._say = (
            bus,
            coordinator,
            identity,
            planner,
            say,
        )
        self._sender = Sender(bus, Counters(), "")
        self._due, self._said, self._reconnects = 0.0, ("", ""), -1
        bus.subscribe(coordinator.filters)

    def step(self, timeout_s: float, clock: Callable[[], float]) -> None:
        """Wait for messages, and do what they and the time have made due; TakenOver when a younger one has it."""
        coordinator, came = self._coordinator, self._bus.poll(timeout_s)
        now = clock()
        coordinator.note_link(self._bus.connected, self._bus.traffic.reconnects, self._sender.pending, now)
        for delivery in came:
            self._bus.acknowledge(delivery)
            self._send(coordinator.handle(delivery, now))
        for response in self._planner.poll():
            self._send(coordinator.receive(response, now))
        self._send(coordinator.tick(now))
        while coordinator.requests:
            self._planner.request(coordinator.requests.pop(0))
        while coordinator.ended:
            self._planner.delete_session(*coordinator.ended.pop(0))
        while coordinator.lines:
            self._say(coordinator.lines.pop(0))
        self._sender.retry(time.monotonic())
        if coordinator.successor:
            raise TakenOver(coordinator.successor)
        self._announce(now)

    def farewell(self) -> None:
        """Say that the coordinator has gone on purpose; what is deployed runs on."""
        self._publish(State.STOPPED)
        drain(self._bus)

    def _send(self, messages: list[Outgoing]) -> None:
        for outgoing in messages:
            self._sender.send(outgoing)

    def _announce(self, now: float) -> None:
        said = (self._coordinator.state.value, self._coordinator.detail)
        fresh = said != self._said or self._reconnects != self._bus.traffic.reconnects
        if self._bus.connected and (fresh or now >= self._due):
            self._due, self._said, self._reconnects = now + STATUS_S, said, self._bus.traffic.reconnects
            self._publish(self._coordinator.state)

    def _publish(self, state: State) -> None:
        identity, coordinator = self._identity, self._coordinator
        identity.detail = coordinator.detail
        identity.epoch = coordinator.deployment.epoch if coordinator.deployment else 0
        self._bus.publish(identity.topic, identity.status(state, coordinator.counters), retain=True)


def run_coordinator(
    bus: Bus,
    coordinator: Coordinator,
    identity: Identity,
    planner: PlannerClient,
    stop: Stop,
    say: Callable[[str], None],
    replacer: ModelReplacer[Any] | None = None,
) -> None:
    """Run a coordinator until `stop`, or until `replacer` has another model ready and no rollout is under way.

    Raises TakenOver when a younger one has taken its place.
    """
    coordinator.hears_of_models = replacer is not None
    service = CoordinatorService(bus, coordinator, identity, planner, say)
    while not stop.asked:
        service.step(TURN_S, time.monotonic)
        if replacer is None:
            continue
        replacer.poll(time.monotonic())
        coordinator.held, coordinator.remark = replacer.pending, replacer.problem
        if replacer.ready is not None and coordinator.rollout.step is Step.IDLE:
            bus.close(forget=True)
            return
    service.farewell()
    bus.close(forget=True)
