"""A sensor that follows a deployment sends to the current generation until every window is answered."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection

from har_edge.config.pipeline import find_batch_problem
from har_edge.config.task import Task
from har_edge.errors import BrokerError, ConfigError, NodeError
from har_edge.mqtt.bus import Outgoing
from har_edge.protocol.deployment import Deployment
from har_edge.protocol.events import Event, PlanEvent
from har_edge.protocol.results import Result
from har_edge.protocol.topics import Topics
from har_edge.runtime.sensor.retransmission import Retransmitter
from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer
from har_edge.runtime.sensor.sensor import Sensor, SensorSetup
from har_edge.timing import FILES_AGAIN_S, GIVE_UP_S

_log = logging.getLogger(__name__)
# A plan may change everything while a sensor runs, except its windows.
Refit = Callable[[Deployment], SensorSetup]


class PlanFollower(Retransmitter):
    """Follows the plan: windows go to the epoch that is current, and again where theirs is gone.

    `refit` returns the setup for a plan whose task, or whose fitted files, are not those that the sensor has. A plan
    that cannot be read is dropped, counted and logged; where its files cannot be had now, windows go where they went,
    and `again` looks for them anew. Pure, but for what `refit` does.
    """

    def __init__(
        self,
        deployment: Deployment,
        sensor: Sensor,
        buffer: RetransmitBuffer,
        topics: Topics,
        refit: Refit,
        give_up_s: float = GIVE_UP_S,
        *,
        expires: bool = False,
        partial: bool = False,
        run: int = 0,
    ) -> None:
        super().__init__(sensor, buffer, topics, give_up_s, expires=expires, partial=partial, run=run)
        self._deployment, self._fitted, self._refit = deployment, deployment, refit
        self._postponed: Deployment | None = None
        self._postponed_until = 0.0

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        return [self._topics.plan(), *super().filters]

    @property
    def epoch(self) -> int:
        """The generation that new windows go to."""
        return self._target

    def _take(self, event: Event, topic: str, now: float) -> None:
        """Take a plan or results.

        Raises ConfigError when the plan is for windows that this sensor does not make, and what else `refit` does but
        BrokerError and NodeError.
        """
        if isinstance(event, PlanEvent):
            self._follow(event.deployment, now)
        else:
            super()._take(event, topic, now)

    def again(self, now: float, *, connected: bool, blocked: bool, forgotten: int = 0) -> list[Outgoing]:
        """Return what to send again, see Retransmitter; raises what `take` does."""
        if self._postponed and now >= self._postponed_until:
            deployment, self._postponed = self._postponed, None
            self._follow(deployment, now)
        return super().again(now, connected=connected, blocked=blocked, forgotten=forgotten)

    def _is_ours(self, result: Result) -> bool:
        """Return True: stages of any plan may answer, those of the next one before this sensor knows it."""
        return True

    @property
    def _waits_for_stages(self) -> bool:
        """Whether windows that nobody listens to are awaited for ever; the plan's own stages should be there."""
        return False

    @property
    def _alive(self) -> frozenset[int]:
        """The epochs whose stages may answer; none while the plan says to send nowhere."""
        deployment = self._deployment
        if deployment.current is None:
            return frozenset()
        return frozenset(generation.epoch for generation in deployment.generations)

    def _follow(self, new: Deployment | None, now: float) -> None:
        old = self._deployment
        if new is None:
            _log.warning("the plan was removed; going on as it was")
            return
        if not new.replaces(old):
            return  # sent again by the broker, or by one that lost its latest state
        moves = new.epoch != self.epoch and new.current is not None
        if moves and (new.config, new.files) != (self._fitted.config, self._fitted.files):
            check_windows(self._fitted, new, self._sensor.setup.reducers)
            try:
                self._sensor.setup, self._fitted = self._refit(new), new
            except (BrokerError, NodeError) as error:
                self._postponed, self._postponed_until = new, now + FILES_AGAIN_S
                _log.warning("cannot send to epoch %d yet, trying again in %g s: %s", new.epoch, FILES_AGAIN_S, error)
                return
        self._deployment, self._postponed = new, None
        if not moves:
            return
        alone = takes_one_window(new)
        self._sensor.setup = dataclasses.replace(self._sensor.setup, epoch=new.epoch, alone=alone)
        _log.info("sending to epoch %d", new.epoch)


def takes_one_window(deployment: Deployment) -> bool:
    """Return whether the slices of the current epoch take one window a message only."""
    if deployment.current is None:
        return False
    try:
        return bool(find_batch_problem(deployment.current.manifest, deployment.config.task))
    except ConfigError:  # no sense can be made of this plan: whatever its slices are, they take one
        return True


def check_windows(old: Deployment, new: Deployment, sources: Collection[str]) -> None:
    """Raise ConfigError, which says what changed, when windows that are cut for one plan do not fit another."""
    before, after = _windows_of(old), _windows_of(new)
    changed = [f"{name} was {before[name]}, is {after[name]}" for name in before if before[name] != after[name]]
    changed += [f"source {source!r} is no longer taken" for source in sources if source not in new.config.task.inputs]
    if changed:
        raise ConfigError(
            f"the plan changed, and the windows of this sensor do not fit epoch {new.epoch}: {'; '.join(changed)}; "
            "start the sensor again"
        )


def _windows_of(deployment: Deployment) -> dict[str, object]:
    """Return what windows depend on, by name."""
    task: Task = deployment.config.task
    stream = task.stream
    described = deployment.files.get(stream.description, stream.description)
    return {
        "description": stream.description,
        "its file": described,
        "rate_hz": stream.rate_hz,
        "length": stream.length,
        "hop": stream.hop,
        "grouping": stream.grouping,
        "pictures": None if task.image is None else f"{task.image.shape}, {task.image.fit.value}",
    }
