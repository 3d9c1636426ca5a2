"""A sensor inside a program of your own: arrays of samples in, windows out, each sent until it is answered."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from har_edge.api.arguments import check_count, check_number, check_text, check_texts, python_words
from har_edge.api.target import Target, find_target
from har_edge.data.pictures import fit_picture
from har_edge.data.recording import Samples, Window
from har_edge.data.windows import Windower
from har_edge.errors import ConfigError, DataError, HarEdgeError, NodeError
from har_edge.protocol.topics import check_id, check_node_name
from har_edge.runtime.build import build_sensor
from har_edge.runtime.node.registration import check_role
from har_edge.runtime.sensor.plan_follower import PlanFollower
from har_edge.runtime.sensor.publisher import SensorPublisher
from har_edge.runtime.sensor.reducer_loader import ReducerLoader
from har_edge.runtime.sensor.retransmission import Retransmitter
from har_edge.runtime.sensor.retransmit_buffer import RetransmitBuffer
from har_edge.runtime.sensor.sensor import Sensor as Packer
from har_edge.runtime.sensor.sent_counter import RUN_BITS
from har_edge.runtime.status_publisher import Identity

if TYPE_CHECKING:
    from har_edge.config.pipeline import Pipeline
    from har_edge.mqtt.address import Address
    from har_edge.protocol.deployment import Deployment
    from har_edge.runtime.sensor.sensor import SensorSetup

_log = logging.getLogger(__name__)
# How long the thread waits for the broker before it looks for new windows.
STEP_S = 0.01
IN_FLIGHT = 64
GIVE_UP_S = 120.0
# How long a stage of the same machine may be gone, as when a program starts it again, before nothing is waited for.
DEAD_S = 5.0
_LOOK_S = 0.5
SESSION_S = 300
Array = npt.ArrayLike


@dataclass(frozen=True, slots=True)
class _Due:
    """A window to send, and when its last sample was captured (seconds since 1970)."""

    window: Window
    captured: float


class Sensor:
    """Sends the samples of one stream to a pipeline, from arrays or from an iterator.

    Samples are cut into windows as the model wants them, reduced, and sent by a thread of its own; a window is kept
    until its result came, and sent again where it seems lost. Leaving the `with` block waits for that.

    Args:
        folder: the folder that `split` wrote, or what it returned; or
        pipeline: the name of a pipeline that a coordinator deploys, whose plan is then followed.
        stream: the name of the person, machine or camera.
        sources: which sources of the stream this sensor has, by default all.
        broker: `mqtt[s]://HOST[:PORT]`; by default HAR_EDGE_BROKER, then what the pipeline file says.
        name: of this sensor among the nodes; by default made of sources and stream.
        in_flight: how many windows may be unanswered before `send` waits.
        give_up_s: after how many seconds without any answer windows are given up.

    Raises ConfigError, BrokerError where the broker cannot be reached, NodeError where the name is taken, where another
    sensor of this program sends the same source of the same stream, or where no plan is deployed within `give_up_s`.

    >>> import har_edge, numpy
    >>> with har_edge.LocalCluster("int8", cuts=[9]) as cluster:
    ...     with cluster.sensor("alice") as sensor, cluster.watch(limit=1) as results:
    ...         sensor.send(numpy.zeros((250, 23)))
    ...         [(result.stream, result.seq) for result in results]
    1
    [('alice', 0)]
    """

    @python_words()
    def __init__(
        self,
        folder: str | os.PathLike[str] | Pipeline | None = None,
        *,
        pipeline: str | None = None,
        stream: str = "live",
        sources: Sequence[str] | None = None,
        broker: str | Address | None = None,
        name: str | None = None,
        in_flight: int = IN_FLIGHT,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        check_text("stream", stream)
        check_texts("sources", sources)
        check_text("name", name)
        check_count("in_flight", in_flight)
        check_number("give_up_s", give_up_s)
        check_id("name of the stream", stream)
        if in_flight < 1:
            raise ConfigError(f"in_flight={in_flight} came; expected at least 1")
        self.stream, self._in_flight, self._give_up_s = stream, in_flight, give_up_s
        self._waiting: deque[_Due] = deque()  # a window leaves it only once the flow counts it
        self._closing, self._deadline = False, 0.0
        self._error: Exception | None = None
        self._ended = threading.Event()
        built = _build(find_target(folder, pipeline, broker), sources, give_up_s, self._ended.is_set)
        self._packer, self._flow, self._fixed = built.packer, built.flow, built.pipeline
        self.sources, self._partial = built.sources, built.partial
        self._flow.expect([stream])
        task = self._fixed.task
        self.channels = {source: self._fixed.channels(source) for source in self.sources}
        self._windower = Windower(stream, task.stream.length, task.stream.hop)
        node = check_node_name(name or f"sensor-{'all' if not self._partial else '-'.join(self.sources)}-{stream}")
        target = built.target
        self._identity = Identity(
            target.topics, node, "sensor", target.client.value, f"arrays of {stream}", sources=tuple(self.sources)
        )
        self._where = f"--broker {target.address.url} --base {target.topics.base} --pipeline {target.topics.pipeline}"
        self._find_problem: Callable[[], str] = str
        self._problem, self._problem_at, self._look_at = "", 0.0, 0.0
        self._claim = _Claim(target, stream, self.sources)
        try:
            check_role(target.connect, target.topics, node, "sensor")
            bus = target.connect(self._identity.session(expiry_s=SESSION_S))
        except BaseException:
            self._claim.release()
            raise
        self._publisher = SensorPublisher(bus, self._packer, self._identity, self._flow, self._counters)
        self._thread = threading.Thread(target=self._run, name=node, daemon=True)
        self._thread.start()

    def watch_for(self, find_problem: Callable[[], str]) -> None:
        """Ask, while windows are unanswered, what keeps them from being answered; empty where nothing does.

        After a problem has lasted for DEAD_S seconds, windows are given up, and the error says what it is.
        """
        self._find_problem = find_problem

    def send(
        self, samples: Mapping[str, Array] | Array, *, captured: float | None = None, timeout_s: float | None = None
    ) -> int:
        """Take the next samples of the stream; return how many windows they completed.

        Args:
            samples: [n, channels] of each source, by its name; or one array with the channels of all sources side by
                side, in the order of `channels`. One sample may be [channels], an image [height, width, channels]. For
                a model that was loaded with `pictures`, one picture: uint8 [height, width], or with 3 channels (RGB)
                or 1; one of another size is resized, which needs Pillow.
            captured: when the last of them was captured (seconds since 1970), by default now.
            timeout_s: how long to wait while too many windows are unanswered, by default `give_up_s`.

        Raises DataError for samples of another shape or that are not finite, NodeError where windows were given up or
        too many stay unanswered.
        """
        check_number("captured", captured)
        check_number("timeout_s", timeout_s)
        self._check()
        if self._closing or self._ended.is_set():
            raise NodeError(f"the sensor of {self.stream} has ended; make a new one")
        made = self._windower.push(self._split(samples))
        at = time.time() if captured is None else captured
        stream = self._fixed.task.stream
        for behind, window in zip(reversed(range(len(made))), made, strict=True):
            # After the last of these windows ended, hop - missing samples came.
            samples_ago = stream.hop - self._windower.missing + behind * stream.hop
            due = _Due(window, at - samples_ago / stream.rate_hz)
            self._put(due, self._give_up_s if timeout_s is None else timeout_s)
        return len(made)

    def send_each(self, samples: Iterable[Mapping[str, Array] | Array]) -> int:
        """Send every item of an iterator as `send` does, as it comes; return how many windows there were."""
        return sum(self.send(item) for item in samples)

    @property
    def sent(self) -> int:
        """How many windows were sent."""
        return self._packer.counters.windows

    @property
    def lost(self) -> int:
        """How many windows were given up without an answer."""
        return self._packer.counters.unanswered

    @property
    def unanswered(self) -> int:
        """How many windows wait to be sent, or for their result."""
        return len(self._waiting) + self._flow.open

    def close(self, timeout_s: float | None = None) -> None:
        """Wait until every window is answered, and disconnect; closing twice does nothing more.

        Raises NodeError where windows are unanswered after `timeout_s` seconds, by default `give_up_s`.
        """
        check_number("timeout_s", timeout_s)
        self._deadline = time.monotonic() + (self._give_up_s if timeout_s is None else timeout_s)
        self._closing = True
        self._thread.join()
        self._check()
        unsent = len(self._waiting)
        if self.lost or unsent:
            raise NodeError(
                f"{self.lost + unsent} of {self.sent + unsent} windows of {self.stream} were given up without an answer"
                f"{f', {unsent} of them unsent' if unsent else ''}; {self._hint()}"
            )

    def _hint(self) -> str:
        """Say what was expected: with the last words of a stage that has ended, where that is known."""
        see = f"`har-edge status {self._where}`"
        if self._problem:
            return f"expected stages that run, but this one has ended: see {see}\n{self._problem}"
        return f"expected stages that run, and a broker that can be reached: see {see}"

    def __enter__(self) -> Sensor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        try:  # the error of the block is the one to be seen
            self.close(0.0)
        except HarEdgeError as late:
            _log.warning("%s", late)

    def _split(self, samples: Mapping[str, Array] | Array) -> dict[str, Samples]:
        """Return float32 [n, channels] by source."""
        image = self._fixed.task.image
        if image is not None:
            (source,) = self.channels
            given = samples[source] if isinstance(samples, Mapping) and set(samples) == {source} else samples
            pixels = fit_picture(np.asarray(given), image.shape, image.fit)
            return {source: pixels.reshape(-1, image.channels).astype(np.float32)}
        if isinstance(samples, Mapping):
            if set(samples) != set(self.channels):
                raise DataError(f"samples of {', '.join(samples)} came; expected {', '.join(self.channels)}")
            return {source: _rows(samples[source], self.channels[source], source) for source in self.channels}
        rows = _rows(samples, sum(self.channels.values()), " + ".join(self.channels))
        ends = np.cumsum(list(self.channels.values()))[:-1]
        return dict(zip(self.channels, np.split(rows, ends, axis=1), strict=True))

    def _put(self, due: _Due, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self.unanswered >= self._in_flight:
            self._check()
            now = time.monotonic()
            if now > deadline or self._is_hindered(now):
                waited = now - deadline + timeout_s
                raise NodeError(
                    f"{self.unanswered} windows of {self.stream} are unanswered after {waited:.0f} s; {self._hint()}"
                )
            self._ended.wait(STEP_S)
        self._waiting.append(due)

    def _is_hindered(self, now: float) -> bool:
        """Return whether a problem has lasted for DEAD_S seconds."""
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            problem = self._find_problem()
            if problem and not self._problem:
                self._problem_at = now
            self._problem = problem
        return bool(self._problem) and now > self._problem_at + DEAD_S

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- in the thread

    def _run(self) -> None:
        try:
            self._publisher.begin()
            while not self._is_over():
                while self._waiting and self._publisher.connected:
                    due = self._waiting[0]
                    self._publisher.send([due.window], [due.captured])
                    self._waiting.popleft()
                self._publisher.step(STEP_S)
            self._publisher.end(forget=True)
        except Exception as error:  # who calls send or close is to see it, whatever it is
            self._error = error
        finally:
            self._claim.release()
            self._ended.set()

    def _is_over(self) -> bool:
        now = time.monotonic()
        if not self._closing:
            return False
        if not self._waiting and self._flow.is_done(self._publisher.pending):
            return True
        return now > self._deadline or self._flow.is_hopeless(now) or self._is_hindered(now)

    def _counters(self) -> dict[str, int]:
        return self._packer.counters.as_dict() | {"raw_bytes": self._packer.raw_bytes}


class _Claim:
    """The sources of a stream that one sensor of this program sends: two would number different windows alike."""

    _held: ClassVar[set[tuple[str, str, str, str]]] = set()
    _lock = threading.Lock()

    def __init__(self, target: Target, stream: str, sources: Sequence[str]) -> None:
        self._keys = {(target.address.url, target.topics.prefix, stream, source) for source in sources}
        with self._lock:
            taken = sorted(source for *_, source in self._keys & self._held)
            if taken:
                raise NodeError(
                    f"a sensor of this program sends {', '.join(taken)} of stream {stream!r} already; expected one "
                    "sensor for each source of a stream: close that one first, or name another stream"
                )
            self._held.update(self._keys)

    def release(self) -> None:
        with self._lock:
            self._held.difference_update(self._keys)


@dataclass(frozen=True, slots=True)
class _Built:
    """The sender of the windows of some sources of a pipeline."""

    target: Target
    pipeline: Pipeline
    packer: Packer
    flow: Retransmitter
    sources: list[str]
    partial: bool


def _build(target: Target, asked: Sequence[str] | None, give_up_s: float, stopped: Callable[[], bool]) -> _Built:
    """Build the sensor of a fixed pipeline, or of the plan that is deployed."""
    run = secrets.randbits(RUN_BITS)
    if target.pipeline is not None:
        pipeline = target.pipeline
        sources, partial = _choose(pipeline, asked)
        packer, buffer = build_sensor(pipeline, sources, combine=not partial), RetransmitBuffer(sources, time.time())
        flow = Retransmitter(packer, buffer, target.topics, give_up_s, partial=partial, run=run)
        return _Built(target, pipeline, packer, flow, sources, partial)
    from har_edge.runtime.artifact_store import Store, default_folder

    deadline = time.monotonic() + give_up_s

    def ends() -> bool:
        return stopped() or time.monotonic() > deadline

    loader = ReducerLoader(target.topics, Store(default_folder()), target.connect, ends)
    deployment = loader.await_plan()
    if deployment is None:
        raise NodeError(
            f"no plan of pipeline {target.topics.pipeline!r} came for {give_up_s:.0f} s; expected a coordinator that "
            "deploys it: `har-edge coordinator`"
        )
    pipeline = loader.pipeline_of(deployment)
    sources, partial = _choose(pipeline, asked)
    packer, buffer = build_sensor(pipeline, sources, combine=not partial), RetransmitBuffer(sources, time.time())

    def refit(changed: Deployment) -> SensorSetup:
        return loader.setup_of(changed, sources, combine=not partial)

    follower = PlanFollower(
        deployment, packer, buffer, target.topics, refit, give_up_s, expires=False, partial=partial, run=run
    )
    return _Built(target, pipeline, packer, follower, sources, partial)


def _choose(pipeline: Pipeline, asked: Sequence[str] | None) -> tuple[list[str], bool]:
    """Return the sources of a sensor, and whether others are left to other sensors."""
    known = list(pipeline.task.inputs)
    sources = known if asked is None else list(asked)
    unknown = [source for source in sources if source not in known]
    if unknown or not sources:
        raise ConfigError(f"sources {', '.join(sources) or 'none'} came; expected some of {', '.join(known)}")
    return sources, set(sources) < set(known)


def _rows(samples: Array, channels: int, what: str) -> Samples:
    """Return samples as float32 [n, channels]; DataError for another shape, or values that are not finite."""
    try:
        values = np.asarray(samples, np.float32)
    except (TypeError, ValueError) as error:
        raise DataError(f"samples of {what} are no numbers: {error}; expected [n, {channels}]") from None
    if values.ndim == 1:
        values = values[np.newaxis]
    elif values.ndim in (3, 4):  # an image, a clip
        values = values.reshape(-1, values.shape[-1])
    if values.ndim != 2 or values.shape[1] != channels:
        raise DataError(f"samples of {what} have the shape {list(np.shape(samples))}; expected [n, {channels}]")
    if not np.isfinite(values).all():
        raise DataError(f"samples of {what} hold values that are not finite; expected numbers: fill or drop them first")
    return values
