"""The trainings of a pipeline, from their retained progress, on a connection of their own.

A broker whose access list knows nothing of trainings may refuse the subscription: then none are shown, and the rest is.
"""

from __future__ import annotations

from collections.abc import Callable

from har_edge.errors import BrokerError
from har_edge.monitor.snapshot import Snapshot
from har_edge.mqtt.bus import Bus, Delivery, Session
from har_edge.protocol.events import TrainingEvent, decode
from har_edge.protocol.topics import Topics
from har_edge.protocol.training import RunState, TrainingLevel, TrainingProgress

# Names come from the network: so many trainings are kept.
MAX_SHOWN = 32
# A training of which nothing was heard for so long is not called alive.
SILENT_S = 10.0
# The roles of those that may be there without a pipeline.
_BESIDE = ("node",)


def lives(progress: TrainingProgress, time: float) -> bool:
    """Return whether a training goes on, at this time of the wall clock: it says how far it is every second."""
    return progress.state in (RunState.WAITING, RunState.RUNNING) and time - progress.time <= SILENT_S


def trains_alone(seen: Snapshot) -> list[str]:
    """Return the names of trainings that go on where no pipeline is: no plan, no stage, no coordinator."""
    coordinated = any(one.alive and one.role not in _BESIDE for one in seen.nodes)
    if seen.plan != "none" or seen.stages or coordinated:
        return []
    return [one.run for one in seen.trainings if lives(one, seen.time)]


class TrainingWatch:
    """Keeps the last progress of each training."""

    def __init__(self, connect: Callable[[Session], Bus], topics: Topics, name: str) -> None:
        self._topics, self._seen = topics, dict[str, TrainingProgress]()
        self._bus: Bus | None = None
        try:
            self._bus = connect(Session(name, clean_start=True))
            self._bus.subscribe([topics.training("+", TrainingLevel.PROGRESS.value)])
        except BrokerError:
            self.close()

    def poll(self) -> tuple[TrainingProgress, ...]:
        """Take what came; return the trainings by name."""
        try:
            for delivery in self._bus.poll(0.0) if self._bus is not None else ():
                self._take(delivery)
        except BrokerError:
            self.close()
        return tuple(self._seen[run] for run in sorted(self._seen))

    def _take(self, delivery: Delivery) -> None:
        assert self._bus is not None
        self._bus.acknowledge(delivery)
        match decode(delivery, self._topics):
            case TrainingEvent(message=TrainingProgress() as progress):
                if progress.run in self._seen or len(self._seen) < MAX_SHOWN:
                    self._seen[progress.run] = progress
            case TrainingEvent(message=None) as event:
                self._seen.pop(event.run, None)

    def close(self) -> None:
        """End the connection."""
        bus, self._bus = self._bus, None
        if bus is not None:
            bus.close(forget=True)
