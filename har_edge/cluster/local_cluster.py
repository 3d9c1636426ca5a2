"""A whole pipeline on this machine, for a program of your own: broker, stages or nodes, and sensors as processes."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from har_edge.api.arguments import check_count, check_number, check_path, check_text, check_texts, python_words
from har_edge.api.model import Model, load_model, split
from har_edge.api.sensor import GIVE_UP_S, IN_FLIGHT, Sensor
from har_edge.api.watch import ResultWatcher, watch
from har_edge.cluster.broker import start_broker
from har_edge.cluster.cluster import POLL_S, Arrival, Cluster
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.data.locate import SYNTHETIC_NOTICE, find_data
from har_edge.errors import ConfigError, HarEdgeError, NodeError
from har_edge.files import write_atomic
from har_edge.monitor.leftovers import Leftovers, Retained, clear_all, read_retained
from har_edge.monitor.training_leftovers import clear_trainings, read_trainings
from har_edge.mqtt.address import read_address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.connect import open_bus
from har_edge.protocol.results import Result
from har_edge.protocol.topics import ALL_SOURCES

if TYPE_CHECKING:
    from har_edge.config.task import AnomalyOutput, Task
    from har_edge.mqtt.broker.launcher import RunningBroker

_log = logging.getLogger(__name__)
# A coordinator measures the model before it deploys it.
DEPLOY_TIMEOUT_S = 120.0
# The stream that is replayed where none is named.
FIRST = "subject1"


class LocalCluster(Cluster):
    """A pipeline that runs on this machine, each node a process of its own, as on several devices.

    All of it is ready when the constructor returns, and ends with the `with` block, or with this process, however that
    ends.

    Args:
        model: what `load_model` returned, or what it takes; or the folder or pipeline that `split` made.
        stages: into how many slices the model is cut, 2 by default; or
        cuts: before which operators.
        nodes: without, each slice is a process that stays what it is. With a number, a coordinator deploys the model on
            so many nodes, moves slices where one dies, and `scale` changes how many there are.
        reducers: by source, how its windows are reduced, instead of as the model was trained for.
        broker: `mqtt://HOST[:PORT]` of one that runs; by default one is started.
        directory: where slices and logs go; by default a folder that goes with the cluster.

    Raises what `split` raises, BrokerError for a broker that cannot be started or reached, NodeError with the end of
    the log of a process that fails.

    >>> import har_edge
    >>> with har_edge.LocalCluster("int8", stages=2) as cluster:
    ...     cluster.replay("subject7", windows=3)
    ...     for result in cluster.results():
    ...         print(result.stream, result.seq)
    subject7 0
    subject7 1
    subject7 2
    """

    @python_words()
    def __init__(
        self,
        model: Model | Pipeline | str | os.PathLike[str],
        *,
        stages: int | None = None,
        cuts: Sequence[int] | None = None,
        nodes: int | None = None,
        reducers: Mapping[str, str] = MappingProxyType({}),
        broker: str | None = None,
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        check_path("model", model, Model, Pipeline)
        check_count("nodes", nodes)
        check_text("broker", broker)
        if directory is not None:
            check_path("directory", directory)
        if nodes is not None and nodes < 1:
            raise ConfigError(f"nodes={nodes} came; expected at least 1, or none for stages that stay where they are")
        if nodes is not None and cuts is not None:
            raise ConfigError("cuts came with nodes; expected stages: the coordinator chooses where to cut")
        self._stack = contextlib.ExitStack()
        try:
            place = directory or self._stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-"))
            folder = Path(place)
            folder.mkdir(parents=True, exist_ok=True)
            pipeline, path = _cut(model, folder / "slices", stages, cuts, reducers)
            self._own_broker: RunningBroker | None = None
            if broker is None:
                files = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-broker-"))
                self._own_broker = start_broker(Path(files))
                self._stack.callback(self._own_broker.stop)
            address = self._own_broker.address if self._own_broker is not None else read_address(broker or "")
            described = "" if self._own_broker is None else self._own_broker.description
            super().__init__(pipeline, address, described=described, folder=folder, deployed=nodes is not None)
            if self.deployed and self._own_broker is None:
                self._stack.callback(self._clear_retained)
            self._stack.callback(super().close)
            self._count = 0
            self._streams, self._replay_at, self._answered = frozenset[str](), math.inf, 0
            self._closed = False
            if nodes is None:
                self.start_stages()
            else:
                options = picture_options(pipeline.task, folder)
                self.start_coordinator(path, stages or len(pipeline.manifest.slices), *options)
                self.scale(nodes)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> LocalCluster:
        return self

    @property
    def broker(self) -> str:
        """The URL of the broker."""
        return self.address.url

    @property
    def names(self) -> list[str]:
        """The names of the processes that run."""
        return self.processes.alive()

    def scale(self, nodes: int, timeout_s: float = DEPLOY_TIMEOUT_S) -> None:
        """Start or end nodes until there are so many, and wait until every stage runs again.

        Raises ConfigError in a cluster whose stages are fixed, NodeError where that takes too long.
        """
        if not self.deployed:
            raise ConfigError("the stages of this cluster are fixed; expected LocalCluster(..., nodes=N) for scale()")
        check_count("nodes", nodes)
        if nodes < 1:
            raise ConfigError(f"scale({nodes}) came; expected at least 1 node")
        running = [name for name in self.processes.alive() if name.startswith("node-")]
        for name in running[nodes:]:
            self.kill(name, signal.SIGTERM)
        for number in range(nodes - len(running)):
            self._count += 1
            self.start_node(f"node-{self._count}")
            del number
        self.wait_deployed(timeout_s)

    def wait_deployed(self, timeout_s: float = DEPLOY_TIMEOUT_S) -> None:
        """Wait until the plan that is deployed names only nodes that run, and every stage of it runs.

        Raises ConfigError in a cluster whose stages are fixed, NodeError, with the end of every log, when that takes
        too long.
        """
        if not self.deployed:
            raise ConfigError(
                "the stages of this cluster are fixed; expected LocalCluster(..., nodes=N) for wait_deployed()"
            )

        def is_deployed() -> bool:
            deployment = self.view.deployment
            if deployment is None or deployment.current is None or not self.view.is_settled():
                return False
            alive = set(self.processes.alive())
            return all(placement.node in alive for placement in deployment.current.placements)

        self.until(is_deployed, "the model is not deployed", timeout_s)

    def sensor(
        self,
        stream: str = "live",
        *,
        sources: Sequence[str] | None = None,
        name: str | None = None,
        in_flight: int = IN_FLIGHT,
        give_up_s: float = GIVE_UP_S,
    ) -> Sensor:
        """Return a sensor in this process that sends to this cluster; see `Sensor` for the arguments."""
        self._check_open()
        sensor = Sensor(
            None if self.deployed else self.pipeline,
            pipeline=self.topics.pipeline if self.deployed else None,
            stream=stream,
            sources=sources,
            broker=self.address,
            name=name,
            in_flight=in_flight,
            give_up_s=give_up_s,
        )
        if not self.deployed:
            sensor.watch_for(self._find_dead_stage)
        return sensor

    def _find_dead_stage(self) -> str:
        """Say which stage has ended, and its last words; empty while all run."""
        dead = [one for name, one in self.processes.running.items() if name.startswith("stage-") and not one.alive]
        return "\n".join(one.last_lines() for one in dead)

    def watch(self, *, limit: int | None = None, timeout_s: float | None = None) -> ResultWatcher:
        """Return the results that come from now on, as `har_edge.watch` does."""
        self._check_open()
        return watch(self.pipeline, broker=self.address, limit=limit, timeout_s=timeout_s)

    def replay(
        self,
        *streams: str,
        windows: int | None = None,
        speed: float | None = None,
        data: str | os.PathLike[str] | None = None,
    ) -> None:
        """Start sensors as processes, one a source, that send recordings; `results` then yields the answers.

        Args:
            streams: which of the recordings, as `subject7`, by default the first one of mHealth, or all of other data.
            windows: how many of each stream, by default all.
            speed: how many times as fast as they were recorded, by default as fast as results come.
            data: folder, zip or file with recordings; by default HAR_EDGE_DATA, then ./data, then synthetic ones.

        Raises ConfigError for numbers that are not positive, NodeError while an earlier replay still sends.
        """
        self._check_open()
        check_texts("streams", streams)
        check_count("windows", windows)
        check_number("speed", speed)
        if data is not None:
            check_path("data", data)
        if windows is not None and windows < 1:
            raise ConfigError(f"windows={windows} came; expected at least 1")
        if speed is not None and not speed > 0:
            raise ConfigError(f"speed={speed} came; expected a positive number")
        if find_data(None if data is None else Path(data), self.pipeline.described) is None:
            _log.warning("%s", SYNTHETIC_NOTICE)
        if not streams and self.pipeline.described.name == "mhealth":
            streams = (FIRST,)
        words = ["--speed", "max" if speed is None else str(speed), "--no-notice"]
        words += ["--subjects", ",".join(streams)] if streams else []
        words += [] if windows is None else ["--windows", str(windows)]
        words += [] if data is None else ["--data", os.fspath(data)]
        sources = [ALL_SOURCES] if self.pipeline.grouped else list(self.pipeline.task.inputs)
        began = time.time()
        self.start_sensors(sources, words)
        for source in sources:
            self.view.forget(f"sensor-{source}")  # the last word was about an earlier replay
        self._streams, self._replay_at, self._answered = frozenset(streams), began, 0

    def results(self) -> Iterator[Result]:
        """Yield the results of what the last `replay` sends, each window once, until every window is answered.

        Raises NodeError where windows are lost, and where a stage or a sensor fails.
        """
        self._check_open()
        for arrival in self.arrivals():
            if arrival is not None and self._is_replayed(arrival.result):
                yield arrival.result
        if self.answered < self.windows_in:
            lost = self.windows_in - self.answered
            raise NodeError(f"{lost} of {self.windows_in} windows were lost\n{self.processes.last_lines()}")

    def poll(self, timeout_s: float = POLL_S) -> list[Arrival]:
        """Take what has come and return the new results; count those of the last replay."""
        arrivals = super().poll(timeout_s)
        self._answered += sum(self._is_replayed(arrival.result) for arrival in arrivals)
        return arrivals

    @property
    def answered(self) -> int:
        """How many windows of the last replay have been answered, each once."""
        return self._answered

    def _is_replayed(self, result: Result) -> bool:
        """Return whether a result is of the last replay, and not of an earlier one, or of a sensor of a program."""
        return result.captured >= self._replay_at and (not self._streams or result.stream in self._streams)

    def _clear_retained(self) -> None:
        """Remove the plan and the slices that a broker of somebody else would keep of this pipeline."""

        def connect(session: Session) -> Bus:
            return open_bus(self.address, session)

        with contextlib.suppress(HarEdgeError):  # the broker may have gone
            kept = read_retained(connect, self.topics)
            found = Leftovers(others=tuple(kept.statuses), headers=kept.headers, plan=kept.plan is not None)
            for line in clear_all(connect, self.topics, found):
                _log.info("%s", line)
            for line in clear_trainings(connect, self.topics, read_trainings(connect, self.topics, Retained({}, None))):
                _log.info("%s", line)

    def _check_open(self) -> None:
        if self._closed:
            raise NodeError("the cluster has ended; make a new one")

    def close(self) -> None:
        """End every process, and the broker that was started here; closing twice does nothing more."""
        self._closed = True
        self._stack.close()


def picture_options(task: Task, folder: Path) -> list[str]:
    """Return the options that tell a coordinator what a model of pictures is for; labels go into a file in `folder`."""
    if task.image is None:
        return []
    words = ["--stream", "images", "--fit", task.image.fit.value]
    if task.image.mean:
        mean, std = ("/".join(map(repr, one)) for one in (task.image.mean, task.image.std))
        words.append(f"--normalize={mean},{std}")
    if task.anomaly is not None:
        return [*words, *_anomaly_options(task.anomaly)]
    if task.arrays:
        words.append("--arrays")
    if task.labels:
        file = folder / "labels.txt"
        write_atomic(file, ("\n".join(task.labels) + "\n").encode())
        words += ["--labels", str(file.absolute())]
    return words


def _anomaly_options(anomaly: AnomalyOutput) -> list[str]:
    """Return the options of a model that finds anomalies; its own threshold needs none."""
    words = ["--heat-map", str(anomaly.side)]
    return words if anomaly.limit is not None else [*words, f"--threshold={anomaly.threshold!r}"]


def _cut(
    model: Model | Pipeline | str | os.PathLike[str],
    folder: Path,
    stages: int | None,
    cuts: Sequence[int] | None,
    reducers: Mapping[str, str],
) -> tuple[Pipeline, Path]:
    """Return the pipeline, and the file of the model."""
    if not isinstance(model, Pipeline | Model) and (Path(model) / "pipeline.toml").is_file():
        model = load_pipeline(Path(model))
    if isinstance(model, Pipeline):
        if stages is not None or cuts is not None or reducers:
            raise ConfigError("slices came, with how to cut; expected a model, or slices alone")
        return model, model.folder
    chosen = model if isinstance(model, Model) else load_model(model)
    name = f"local-{secrets.token_hex(4)}"
    return split(chosen, folder, stages=stages, cuts=cuts, name=name, reducers=reducers), chosen.path
