"""Where a sensor sends that follows a deployment: to the epoch that is current, until every window is answered."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections import deque
from collections.abc import Callable, Collection, Sequence

from har_edge.errors import BrokerError, ConfigError, MessageError, NodeError
from har_edge.messaging.bus import Delivery, Outgoing
from har_edge.messaging.topics import Topics
from har_edge.nodes.deployment import Deployment
from har_edge.nodes.follow import read_deployment
from har_edge.nodes.outbox import Kept, Outbox
from har_edge.nodes.results import decode_results
from har_edge.nodes.sensor import Sensor, SensorSetup
from har_edge.planning.task import Task
from har_edge.streams.recording import Window

_log = logging.getLogger(__name__)
GIVE_UP_S = 120.0
# How long after the broker forgot it a sensor sends again what was answered meanwhile: by then the others are back too.
# Not all at once: new windows would wait behind it at the stages.
ECHO_S = 8.0
# When to look again for files that a new plan names.
POSTPONE_S = 5.0
ECHO_SPACING_S = 0.04
ECHOES_A_STEP = 4
# What a plan may change while a sensor runs: everything but what its windows are.
Refit = Callable[[Deployment], SensorSetup]


class Course:
    """Follows the plan, keeps what is unanswered, and says what to send again. Pure, but for what `refit` does.

    A recording waits for answers. With `expires`, for a device, which does not wait, no window is kept for longer than
    `give_up_s` without a sign of progress: where another sensor of the stream was away, nobody will ever answer.

    `refit` returns the setup for a plan whose task, or whose fitted files, are not those that the sensor has. A plan
    that cannot be read is dropped, counted and logged; where its files cannot be had now, windows go where they went,
    and `again` looks for them anew. When windows are open and no answer comes for `give_up_s`
    while there is a broker, there is no hope; 0: there always is.
    """

    def __init__(
        self,
        deployment: Deployment,
        sensor: Sensor,
        outbox: Outbox,
        topics: Topics,
        refit: Refit,
        give_up_s: float = GIVE_UP_S,
        *,
        expires: bool = False,
    ) -> None:
        self._deployment, self._sensor, self._outbox = deployment, sensor, outbox
        self._topics, self._refit, self._give_up_s = topics, refit, give_up_s
        self._expires = expires
        self._fitted = deployment
        self._progress_at = 0.0
        self._was_here, self._was_away, self._echo_at = False, False, math.inf
        self._forgotten, self._owes, self._echo = 0, False, deque[Kept]()
        self._away_since, self._is_gone = 0.0, False
        self._postponed, self._postponed_until = b"", 0.0

    @property
    def filters(self) -> list[str]:
        """The topics to subscribe to."""
        return [self._topics.plan(), self._topics.result("+")]

    @property
    def epoch(self) -> int:
        """Where new windows go."""
        return self._sensor.setup.epoch

    @property
    def open(self) -> int:
        """How many windows are unanswered."""
        return len(self._outbox)

    def open_of(self, stream: str) -> int:
        """Return how many windows of a stream are unanswered."""
        return self._outbox.open(stream)

    def send(self, windows: Sequence[Window], captured: Sequence[float], now: float) -> list[Outgoing]:
        """Return the messages for new windows, and keep these."""
        outgoing = self._sensor.handle(windows, captured)
        if not self.open:
            self._progress_at = now
        self._sensor.counters.unanswered += self._outbox.put(windows, captured, self.epoch, now)
        return outgoing

    def take(self, delivery: Delivery, now: float) -> None:
        """Take a plan or results; drop, count and log what cannot be read.

        Raises ConfigError when the plan is for windows that this sensor does not make, and what else `refit` does but
        BrokerError and NodeError.
        """
        if delivery.topic == self._topics.plan():
            self._follow(delivery.payload, now)
            return
        try:
            results = decode_results(delivery.payload)
        except MessageError as error:
            self._reject(delivery.topic, error)
            return
        for result in results:
            if self._outbox.settle(result):
                self._progress_at = now

    def again(self, now: float, *, connected: bool, kept: bool, forgotten: int = 0) -> list[Outgoing]:
        """Return what to send again. Call it now and then.

        `kept` says that some of what was sent has not left yet, `forgotten` how often the broker has lost this session.
        Raises what `take` does.
        """
        if self._postponed and now >= self._postponed_until:
            payload, self._postponed = self._postponed, b""
            self._follow(payload, now)
        if not connected:
            self._progress_at = now
        self._notice(now, connected, forgotten)
        if self._expires and self._give_up_s and (lost := self._outbox.expire(now - self._give_up_s)):
            self._sensor.counters.unanswered += lost
            _log.warning("no result of %d windows for %.0f s: going on without them", lost, self._give_up_s)
        if self._deployment.current is None:
            return []
        alive = frozenset(generation.epoch for generation in self._deployment.generations)
        due = self._outbox.due(self.epoch, alive, now, out=connected and not kept)
        echo = self._due_echo(now)
        return [one for kept in due + echo for one in self._sensor.handle(kept.windows, kept.captured, again=True)]

    def _notice(self, now: float, connected: bool, forgotten: int) -> None:
        """Keep what is answered while the broker is away; forget it if, back again, it still knows this sensor.

        Such a broker has kept the results for whoever was away, so that all sensors have them.
        """
        if not connected and self._was_here:
            self._was_here, self._was_away, self._away_since = False, True, now
            self._outbox.start_echo()
        elif connected:
            if forgotten != self._forgotten:
                self._outbox.start_echo()
                self._forgotten, self._owes, self._echo_at = forgotten, True, now + ECHO_S
            elif self._was_away and not self._owes:
                self._outbox.stop_echo()
            self._was_here, self._was_away = True, False
        self._is_gone = self._was_away and 0 < self._give_up_s < now - self._away_since

    def _due_echo(self, now: float) -> list[Kept]:
        """Return some of what was answered around the time the broker forgot all, when all sensors should be back."""
        if now < self._echo_at or self._was_away:
            return []
        if self._owes:
            self._owes = False
            self._echo.extend(self._outbox.take_echo())
        count = min(len(self._echo), ECHOES_A_STEP, 1 + int((now - self._echo_at) / ECHO_SPACING_S))
        echo = [self._echo.popleft() for _ in range(count)]
        self._echo_at = now + ECHO_SPACING_S if self._echo else math.inf
        return echo

    def is_done(self, pending: int) -> bool:
        """Tell whether every window is answered, and an echo that others may need has been sent, or never can be."""
        return not self.open and (self._is_gone or (not self._was_away and self._echo_at == math.inf))

    def is_hopeless(self, now: float) -> bool:
        """Tell whether windows are open and no answer has come for too long."""
        return bool(self.open and self._give_up_s and now - self._progress_at > self._give_up_s)

    def abandon(self) -> None:
        """Count what was not answered and will not be awaited."""
        self._sensor.counters.unanswered += self.open

    def _follow(self, payload: bytes, now: float) -> None:
        try:
            self._take_plan(payload, now)
        except MessageError as error:
            self._reject(self._topics.plan(), error)

    def _reject(self, topic: str, error: MessageError) -> None:
        self._sensor.counters.rejected += 1
        _log.warning("dropped %s: %s", topic, error)

    def _take_plan(self, payload: bytes, now: float) -> None:
        if not payload:
            _log.warning("the plan was removed; going on as it was")
            return
        new, old = read_deployment(self._topics, payload), self._deployment
        if not new.replaces(old):
            return  # sent again by the broker, or by one that lost its latest state
        moves = new.epoch != self.epoch and new.current is not None
        if moves and (new.config, new.files) != (self._fitted.config, self._fitted.files):
            check_windows(self._fitted, new, self._sensor.setup.reducers)
            try:
                self._sensor.setup, self._fitted = self._refit(new), new
            except (BrokerError, NodeError) as error:
                self._postponed, self._postponed_until = payload, now + POSTPONE_S
                _log.warning("cannot send to epoch %d yet, trying again in %g s: %s", new.epoch, POSTPONE_S, error)
                return
        self._deployment, self._postponed = new, b""
        if not moves:
            return
        self._sensor.setup = dataclasses.replace(self._sensor.setup, epoch=new.epoch)
        _log.info("sending to epoch %d", new.epoch)


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
    }
