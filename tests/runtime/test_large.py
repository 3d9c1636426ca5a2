"""Activations beyond 16 MiB: limits follow from the slices, memory stays bounded, and a small broker is refused."""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from har_edge.config.message_sizes import largest_message, message_bytes, sends_bytes, tensor_bytes, window_size
from har_edge.config.pipeline import Pipeline, load_pipeline
from har_edge.config.pipeline_config import LEAST_PAYLOAD_LIMIT, MQTT_MAX_BYTES, payload_limit
from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.broker.launcher import Mosquitto, find_mosquitto, start_mosquitto
from har_edge.mqtt.bus import Bus, Delivery, Session
from har_edge.mqtt.connect import ClientLibrary, MqttVersion, open_bus
from har_edge.protocol import wire
from har_edge.protocol.topics import Topics
from har_edge.resources import find_folder
from har_edge.runtime.build import UNDER_WAY_BYTES, build_sensor, build_stage, join_capacity, receive_max
from har_edge.runtime.slicing import prepare
from har_edge.runtime.stage.loop import StageLoop
from har_edge.runtime.stage.stage import Stage
from har_edge.runtime.stop import Stop
from har_edge.tflite.manifest import SliceEntry, SliceManifest, TensorSpec, load_manifest
from tests.protocol.reading import read_results
from tests.runtime.rig import Clock, small_stage, windows_of
from tests.runtime.test_odd_models import TASK, expected
from tests.tflite import models

HASH = "0" * 64
COUNT = 6
ROW = 4 * models.LENGTH * models.CHANNELS
LARGE = 60_000_000


def cut(folder: Path, nbytes: int, cuts: tuple[int, ...] = (2,)) -> Pipeline:
    """Cut a model across a tensor of so many bytes."""
    path = folder / "wide.tflite"
    path.write_bytes(models.wide(nbytes // ROW))
    return prepare(path, TASK, folder / "slices", stages=2, cuts=list(cuts))


# --- sizes ------------------------------------------------------------------------------------------------------------


def spec(name: str, *shape: int, flow: int = 0, packing: str = "") -> TensorSpec:
    return TensorSpec(name, shape, "float32", flow=flow, packing=packing)


def test_sizes_follow_from_the_manifest() -> None:
    a, b, c = spec("a", 1, 100, 100), spec("b", 1, 200, 100, flow=1), spec("c", -1, 300, 100, packing="f2")
    first = SliceEntry("s", HASH, 0, 1, (spec("x", 1, 50),), (a, b, c, spec("scores", 1, 10**6)))
    last = SliceEntry("t", HASH, 1, 2, (a, b, c), (spec("y", 1, 2),))
    manifest = SliceManifest(3, "m", HASH, (first, last), 3)
    assert [tensor_bytes(one) for one in (a, b, c)] == [40_000, 80_000, 120_000]
    assert tensor_bytes(c, packed=True) == 60_000
    assert sends_bytes(first, ("a", "b", "c")) == message_bytes((a, c)) > 100_000  # what nobody takes does not travel
    assert sends_bytes(last, ()) == 0 and window_size(last) > 240_000
    assert largest_message(manifest) == message_bytes((a, c))
    windows = msgspec.structs.replace(first, inputs=(spec("x", 1, 10**5), spec("z", 1, 10**5)))
    assert largest_message(msgspec.structs.replace(manifest, slices=(windows, last))) > 800_000


@pytest.mark.parametrize("packing", ["", "f2", "q8:0.1:0", "zstd"])
def test_no_message_is_larger_than_its_bound(packing: str) -> None:
    name = "n" * 1000
    one = spec(name, 2, 1000, packing=packing)
    dtype = {"f2": "f2", "q8:0.1:0": "i1"}.get(packing, "f4")
    array = np.frombuffer(np.random.default_rng(0).bytes(2000 * np.dtype(dtype).itemsize), dtype).reshape(2, 1000)
    missing = tuple(f"{number:02}" + "m" * 126 for number in range(wire.MAX_MISSING))
    message = wire.Message("s" * 128, 2**62, 2**62, (1.5,), {name: array}, (4,), missing, (2**64 - 1, 2**62))
    assert len(wire.encode(message, 3, {}, {name})) <= message_bytes([one])


def test_the_limit_is_what_the_file_says_or_what_the_slices_need(tmp_path: Path) -> None:
    pipeline = cut(tmp_path, 20_000_000)
    assert 20_000_000 < pipeline.payload_limit < 20_100_000
    small = msgspec.structs.replace(pipeline.manifest, slices=pipeline.manifest.slices[1:])
    assert payload_limit(pipeline.config, small) == 20_000_000 + message_bytes(()) + 128 + 4 * len("wide")
    file = pipeline.folder / "pipeline.toml"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace('slices = "."', 'slices = "."\nmax_payload_bytes = 30000000'), encoding="utf-8")
    assert load_pipeline(pipeline.folder).payload_limit == 30_000_000
    file.write_text(text.replace('slices = "."', 'slices = "."\nmax_payload_bytes = 16777216'), encoding="utf-8")
    with pytest.raises(
        ConfigError, match=r"sends takes 20000000 bytes a window, but max_payload_bytes is 16777216; ra"
    ):
        load_pipeline(pipeline.folder)


def test_small_models_keep_the_limit_of_16_mib(tmp_path: Path) -> None:
    pipeline = cut(tmp_path, 16_000)
    assert pipeline.payload_limit == LEAST_PAYLOAD_LIMIT == wire.MAX_PAYLOAD_BYTES
    assert join_capacity(pipeline) == pipeline.config.join.capacity == 256
    assert build_sensor(pipeline, ["chest"]).setup.first_room == 8


def test_beyond_mqtt_s_limit_nothing_helps_but_other_cuts(tmp_path: Path) -> None:
    folder = tmp_path / "slices"
    path = tmp_path / "wide.tflite"
    path.write_bytes(models.wide(100))
    pipeline = prepare(path, TASK, folder, stages=2, cuts=[2])
    manifest = load_manifest(folder)
    huge = [
        msgspec.structs.replace(
            entry,
            inputs=tuple(grown(one) for one in entry.inputs),
            outputs=tuple(grown(one) for one in entry.outputs),
        )
        for entry in manifest.slices
    ]
    assert payload_limit(pipeline.config, msgspec.structs.replace(manifest, slices=tuple(huge))) < MQTT_MAX_BYTES
    (folder / "manifest.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, slices=tuple(huge))))
    with pytest.raises(
        ConfigError, match=r"takes 320000000 bytes a window, but max_payload_bytes is 268\d+; cut the mo"
    ):
        load_pipeline(folder)


def grown(one: TensorSpec) -> TensorSpec:
    return msgspec.structs.replace(one, shape=(1, 2_000_000, 40)) if one.name == "wide" else one


def test_few_large_windows_are_under_way_at_once(tmp_path: Path) -> None:
    pipeline = cut(tmp_path, 20_000_000)
    most = UNDER_WAY_BYTES // largest_message(pipeline.manifest)
    assert join_capacity(pipeline) == most == 13
    assert build_sensor(pipeline, ["chest"]).setup.first_room == 8
    assert receive_max(pipeline.wiring(1)) == 3
    capacity = msgspec.structs.replace(pipeline.config.join, capacity=2)
    config = msgspec.structs.replace(pipeline.config, join=capacity)
    few = dataclasses.replace(pipeline, config=config)
    assert join_capacity(few) == 2 and build_sensor(few, ["chest"]).setup.first_room == 2


# --- joins ------------------------------------------------------------------------------------------------------------


def test_a_join_holds_and_a_replay_buffer_keeps_windows_larger_than_their_usual_bounds() -> None:
    clock = Clock()
    values = {name: np.full((1, 4, 2_500_000), number, np.float32) for number, name in enumerate("pq")}
    stage = small_stage(clock=clock, earlier={0: ("p",), 1: ("q",)}, timeout_s=3.0, limit=10**8, wire_version=3)
    setup = stage._setup
    wide = tuple(TensorSpec(name, (1, 4, 2_500_000), "float32") for name in "pq")
    entry = msgspec.structs.replace(setup.wiring.entry, inputs=wide)

    def run(inputs):
        return {"scores": np.array([[inputs["p"].max(), inputs["q"].max()]], np.float32)}

    wiring = dataclasses.replace(setup.wiring, entry=entry)
    stage = type(stage)(dataclasses.replace(setup, wiring=wiring, run=run), clock=clock, monotonic=clock)

    def give(maker: int, name: str, seq: int) -> list:
        payload = wire.encode(wire.Message("s", seq, 1, (5.0,), {name: values[name]}), 3)
        return stage.handle(Delivery(f"har/v1/test/act/1/{maker}/s", payload, (1, seq * 2 + maker)), clock.now)

    assert give(0, "p", 0) == [] and stage.waiting == 1  # 40 MB wait
    (answered,) = give(1, "q", 0)
    assert answered.topic.endswith("/result/s")
    give(0, "p", 1)
    clock.now = 4.0
    assert [one.topic for one in stage.tick(clock.now)] == [""]  # released into the replay buffer
    assert (stage.counters.shelved, stage.counters.given_up) == (1, 0)
    assert any(one.topic.endswith("/result/s") for one in give(1, "q", 1))


# --- a real broker ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broker() -> Iterator[Mosquitto]:
    if find_mosquitto() is None:
        pytest.skip("Mosquitto is not installed: apt-get install mosquitto")
    with tempfile.TemporaryDirectory(prefix="har-edge-test-") as folder:
        Path(folder).chmod(0o755)
        with start_mosquitto(find_folder("brokers") / "mosquitto.conf", Path(folder) / "broker") as running:
            yield running


CLIENTS = {
    "native": (ClientLibrary.NATIVE, MqttVersion.V5),
    "paho": (ClientLibrary.PAHO, MqttVersion.V5),
    "paho 3.1.1": (ClientLibrary.PAHO, MqttVersion.V311),
}


@pytest.mark.slow
@pytest.mark.parametrize("client", CLIENTS)
def test_60_megabytes_cross_a_real_broker(client: str, broker: Mosquitto, tmp_path: Path) -> None:
    """Each window's activation crosses the broker in one message, and the answers are those of the whole model."""
    pipeline = cut(tmp_path, LARGE)
    base = f"large-{client.replace(' ', '-').replace('.', '-')}"
    pipeline = dataclasses.replace(pipeline, config=msgspec.structs.replace(pipeline.config, base=base))
    stages, stop, limit = [build_stage(pipeline, index) for index in range(2)], Stop(), pipeline.payload_limit

    def connect(name: str, sends: int = 0) -> Bus:
        session = Session(f"{base}-{name}", clean_start=True, max_packet_bytes=limit + 4096, sends_bytes=sends)
        return open_bus(broker.address, session, *CLIENTS[client])

    def run(bus: Bus, stage: Stage) -> None:
        loop = StageLoop(bus, stage, stop)
        while not stop.asked:
            loop.turn()
        bus.close(forget=True)

    buses = [connect("first", limit), connect("last")]
    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in zip(buses, stages, strict=True)]
    for thread in threads:
        thread.start()
    bus, sensor, results = connect("sensor"), build_sensor(pipeline, ["chest"]), {}
    bus.subscribe([Topics(base, pipeline.config.name).result("+")])
    until = time.monotonic() + 120
    while not all(one.connected for one in (bus, *buses)) and time.monotonic() < until:
        bus.poll(0.05)
    waiting = windows_of(pipeline, "s", COUNT)
    while len(results) < COUNT and time.monotonic() < until:
        while waiting and COUNT - len(waiting) < len(results) + 2:
            for outgoing in sensor.handle([waiting.pop(0)], [time.time()]):
                bus.publish(outgoing.topic, outgoing.payload)
        for delivery in bus.poll(0.05):
            results |= {one.seq: (one.label_id, one.confidence) for one in read_results(delivery)}
            bus.acknowledge(delivery)
    stop.asked = True
    for thread in threads:
        thread.join(30)
    bus.close(forget=True)
    assert [(one.complaint, one.counters.rejected, one.counters.too_large) for one in stages] == [("", 0, 0)] * 2
    assert [results.get(seq) for seq in range(COUNT)] == expected(tmp_path / "wide.tflite", pipeline)
    assert buses[0].traffic.sent_bytes > COUNT * LARGE


@pytest.mark.slow
@pytest.mark.parametrize("client", [ClientLibrary.NATIVE, ClientLibrary.PAHO])
def test_a_broker_that_takes_less_is_refused_at_once(client: ClientLibrary, broker: Mosquitto) -> None:
    needed = 64 * 1024 * 1024 + 4097
    with pytest.raises(
        BrokerError, match=f"takes packets of at most 67112960 bytes, .* max_packet_size {needed} or mo"
    ):
        open_bus(broker.address, Session("too-large", clean_start=True, sends_bytes=needed), client)
    open_bus(broker.address, Session("fits", clean_start=True, sends_bytes=needed - 1), client).close()
