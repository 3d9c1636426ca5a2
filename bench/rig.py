"""What the benchmarks share: a broker, the int8 model in slices, windows, the bare relay, and a driver for each."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from har_edge.cluster.cluster import Cluster
from har_edge.config.catalog import find_model
from har_edge.config.pipeline import Pipeline
from har_edge.config.pipeline_config import BrokerConfig
from har_edge.data.files import read_recordings
from har_edge.data.locate import find_data
from har_edge.data.synthetic import synthesize
from har_edge.data.windows import windows
from har_edge.mqtt.broker.launcher import Mosquitto, start_mosquitto
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import ClientLibrary, open_bus
from har_edge.protocol import wire
from har_edge.resources import find_folder
from har_edge.runtime.build import reducer_of, source_ids, topics_of
from har_edge.runtime.sink import Sink
from har_edge.runtime.slicing import prepare

Codes = dict[str, npt.NDArray[np.int8]]


@dataclass(frozen=True, slots=True)
class Rig:
    """A broker, a cut model, and the codes of real windows to send round and round."""

    broker: Mosquitto
    pipeline: Pipeline
    codes: list[Codes]
    data: str

    @property
    def port(self) -> int:
        return self.broker.address.port


@contextlib.contextmanager
def open_rig(model: str = "int8", stages: int = 3, cuts: list[int] | None = None) -> Iterator[Rig]:
    """Start a broker and cut a shipped model for it: before these operators, else into stages of even time."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="har-edge-bench-")))
        folder.chmod(0o755)
        broker = stack.enter_context(start_mosquitto(find_folder("brokers") / "mosquitto.conf", folder / "broker"))
        found = find_model(model)
        assert found.entry is not None
        at = BrokerConfig(url=broker.address.url)
        pipeline = prepare(
            found.path, found.entry.task, folder / "slices", stages=stages, cuts=cuts, name="bench", broker=at
        )
        where = find_data(None)
        names = ["subject7", "subject8"]
        recordings = read_recordings(pipeline.stream, where, names) if where else synthesize(names)
        task = pipeline.task
        reducers = {source: reducer_of(pipeline, source) for source in task.inputs}
        codes = [
            {source: reducer.encode(window.samples[source]) for source, reducer in reducers.items()}
            for recording in recordings
            for window in windows(recording, task.stream.length, task.stream.hop, within_activity=False)
        ]
        yield Rig(broker, pipeline, codes, "real" if where else "synthetic")


def describe(rig: Rig) -> str:
    """Say what the figures rest on."""
    slices = ", ".join(f"[{entry.start}, {entry.stop})" for entry in rig.pipeline.manifest.slices)
    return (
        f"{rig.broker.description}, {rig.pipeline.manifest.model} in slices {slices}, {rig.data} windows, "
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    )


class Relay:
    """The three relay processes of bench/relay.py and a driver, at one quality of service."""

    def __init__(self, rig: Rig, qos: int) -> None:
        self._qos = qos
        script, folder = Path(__file__).with_name("relay.py"), rig.pipeline.folder
        self._processes = [
            subprocess.Popen(
                [sys.executable, script, folder, str(index), str(qos), str(rig.port)], stderr=subprocess.DEVNULL
            )
            for index in range(len(rig.pipeline.manifest.slices))
        ]
        order = [name for entry in rig.pipeline.manifest.slices for name in (spec.name for spec in entry.inputs)]
        by_tensor = {enters.tensor: source for source, enters in rig.pipeline.task.inputs.items()}
        sources = [by_tensor[name] for name in dict.fromkeys(order) if name in by_tensor]
        self._payloads = [b"".join(codes[source].tobytes() for source in sources) for codes in rig.codes]
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self._client.max_inflight_messages_set(0)
        self._client.on_connect, self._client.on_message = self._on_connect, self._on_message
        self._room, self._got, self._due = threading.Semaphore(0), 0, threading.Event()
        self._subscribed, self._wanted = threading.Event(), 0
        self._times: list[float] = []
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._last = f"relay/{len(self._processes)}"
        self._client.connect("127.0.0.1", rig.port)
        self._client.loop_start()
        self._subscribed.wait(10)
        self._await_flow()

    def _on_connect(self, client: mqtt.Client, *_: object) -> None:
        client.socket().setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # type: ignore[union-attr]
        client.subscribe(self._last, self._qos)

    def _on_message(self, *_: object) -> None:
        self._times.append(time.perf_counter())
        self._got += 1
        self._room.release()
        if self._got >= self._wanted:
            self._due.set()

    def _await_flow(self) -> None:
        """Send until the first answer: then all relays have subscribed."""
        self._wanted = 1
        while not self._due.wait(0.2):
            self._client.publish("relay/0", self._payloads[0], self._qos)
        time.sleep(0.5)  # the rest of those answers

    def throughput(self, count: int, in_flight: int) -> float:
        """Return windows per second for `count` windows with at most `in_flight` on their way."""
        self._got, self._wanted = 0, count
        self._due.clear()
        self._room = threading.Semaphore(in_flight)
        started = time.perf_counter()
        for number in range(count):
            self._room.acquire()
            self._client.publish("relay/0", self._payloads[number % len(self._payloads)], self._qos)
        if not self._due.wait(60):
            raise RuntimeError(f"{self._got} of {count} windows came through the relay at QoS {self._qos}")
        return count / (time.perf_counter() - started)

    def latencies_ms(self, count: int, rate: float) -> list[float]:
        """Return the latency of `count` windows sent at a steady rate."""
        self._got, self._wanted = 0, count
        self._due.clear()
        self._times.clear()
        sent = []
        started = time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, started + number / rate - time.perf_counter()))
            sent.append(time.perf_counter())
            self._client.publish("relay/0", self._payloads[number % len(self._payloads)], self._qos)
        self._due.wait(10)
        return [(came - went) * 1000 for went, came in zip(sent, self._times, strict=True)]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()
        for process in self._processes:
            process.kill()
            process.wait()


class Staged:
    """The real pipeline: stages as processes, with every guarantee, and a driver on one bus."""

    def __init__(self, rig: Rig, client: str = "auto") -> None:
        self._pipeline = rig.pipeline
        self._codes, self._ids = rig.codes, source_ids(rig.pipeline)
        chosen = ClientLibrary(client)
        self.cluster = Cluster(rig.pipeline, rig.broker.address, client=chosen)
        self.cluster.start_stages()
        self._bus = open_bus(rig.broker.address, Session("bench-driver", receive_max=8192), chosen)
        self._topics = topics_of(rig.pipeline)
        self._bus.subscribe([self._topics.result("+")])
        self._sink, self._run = Sink(), 0
        while not self._bus.connected:
            self._bus.poll(0.1)

    def throughput(self, count: int, in_flight: int, batch: int = 1, *, apart: bool = False) -> float:
        """Return windows per second for `count` windows, `batch` a message, at most `in_flight` messages out."""
        stream = self._next_stream()
        before = self._sink.counters.windows
        messages = [self._stack(start, batch) for start in range(0, len(self._codes) - batch + 1, batch)]
        sent = 0
        started = time.perf_counter()
        while (done := self._sink.counters.windows - before) < count:
            while sent < count and sent - done < in_flight * batch:
                self._send(stream, sent, messages[(sent // batch) % len(messages)], batch, apart=apart)
                sent += batch
            for delivery in self._bus.poll(1.0):
                self._bus.acknowledge(delivery)
                self._sink.handle(delivery)
            if time.perf_counter() - started > 60:
                raise RuntimeError(f"{done} of {count} windows came through the pipeline")
        seconds = time.perf_counter() - started
        assert self._sink.counters.windows - before == sent and self._sink.counters.duplicates == 0
        return sent / seconds

    def latencies_ms(self, count: int, rate: float) -> list[float]:
        """Return the latency of `count` windows sent at a steady rate."""
        stream, latencies, sent, number = self._next_stream(), [], {}, 0
        started = time.perf_counter()
        while len(latencies) < count:
            due = started + number / rate
            if number < count and time.perf_counter() >= due:
                sent[number] = time.perf_counter()
                self._send(stream, number, self._stack(number % len(self._codes), 1), 1)
                number += 1
                due = started + number / rate
            wait = due - time.perf_counter() if number < count else 1.0
            for delivery in self._bus.poll(max(0.0, wait)):
                came = time.perf_counter()
                self._bus.acknowledge(delivery)
                latencies += [(came - sent[result.seq]) * 1000 for result in self._sink.handle(delivery)]
        return latencies

    def close(self) -> None:
        self.cluster.close()
        self._bus.close(forget=True)

    def _next_stream(self) -> str:
        self._run += 1
        return f"run{self._run}"

    def _stack(self, start: int, batch: int) -> Codes:
        group = self._codes[start : start + batch]
        return {source: np.stack([codes[source] for codes in group]) for source in group[0]}

    def _send(self, stream: str, seq: int, codes: Codes, batch: int, *, apart: bool = False) -> None:
        """Send one message with all sources, or (`apart`) one a source, as separate sensors do."""
        groups = {source: {source: code} for source, code in codes.items()} if apart else {"all": codes}
        for source, tensors in groups.items():
            message = wire.Message(stream, seq, self._pipeline.config.epoch, (time.time(),) * batch, tensors)
            payload = wire.encode(message, self._pipeline.manifest.wire, self._ids)
            self._bus.publish(self._topics.window(stream, source), payload)


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return p50, p95 and p99."""
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    return p50, p95, p99
