"""One bad sender hurts itself only: what a stage holds, drops and logs of what should not have been sent."""

import tracemalloc

import msgspec
import numpy as np
import pytest

from har_edge.mqtt.bus import Session
from har_edge.mqtt.memory import MemoryBroker
from har_edge.runtime.stage import loop as loop_module
from har_edge.runtime.stage.loop import StageLoop
from har_edge.runtime.stop import Stop
from tests.runtime.rig import CHANNELS, Clock, part, result_of, samples, small_stage

MEGABYTE = 1_000_000


def run_window(stage, seq, **options):
    """Handle both parts of a window; return its results."""
    outgoing = [one for source in CHANNELS for one in stage.handle(part(source, seq, **options))]
    return [(one.stream, one.seq) for one in result_of(outgoing)]


@pytest.mark.parametrize("forged", [("chest",), ("arm",), ("chest", "arm", "chest")])
def test_a_forged_batch_poisons_no_window(forged):
    """Six forged messages stopped six windows for good: each sender now completes its own."""
    stage = small_stage()
    for seq in range(6):
        for source in forged[:1]:
            stage.handle(part(source, seq, captured=(7.0, 8.0)))
        assert run_window(stage, seq) == [("s", seq)]
    assert stage.counters.rejected == 0 and stage.counters.windows == 6


def test_sensors_started_again_with_another_batch_go_on_at_once():
    stage = small_stage()
    stage.handle(part("chest", 0, captured=(1.0, 2.0)))
    stage.handle(part("arm", 4, captured=(5.0, 6.0)))
    assert [run_window(stage, seq, captured=(9.0 + seq,)) for seq in range(6)] == [[("s", seq)] for seq in range(6)]


def test_batches_that_do_not_fit_are_named_where_their_windows_are_given_up(caplog):
    clock = Clock()
    stage = small_stage(clock=clock, timeout_s=10.0)
    stage.handle(part("chest", 0, captured=(1.0, 2.0)))
    stage.handle(part("arm", 0))
    clock.now = 100.0
    stage.tick()
    clock.now = 200.0
    stage.tick()
    assert stage.counters.given_up == 3 and stage.waiting == 0
    assert "batches of 2 and of 1 came: give all its sensors the same --batch" in caplog.text


def test_a_forged_batch_of_an_answered_window_counts_as_no_loss():
    clock = Clock()
    stage = small_stage(clock=clock, timeout_s=10.0)
    stage.handle(part("chest", 0, captured=(1.0, 2.0)))
    assert run_window(stage, 0) == [("s", 0)]
    for clock.now in (100.0, 200.0):
        stage.tick()
    assert stage.counters.given_up == 0 and stage.counters.leftover == 2 and stage.waiting == 0


def test_a_tensor_that_nobody_takes_is_refused(caplog):
    stage = small_stage()
    tensors = {"chest": samples("chest"), "junk": np.zeros(10_000, np.uint8)}
    (released,) = stage.handle(part("chest", 0, tensors=tensors))
    assert stage.counters.rejected == 1 and released.acks[0].topic.endswith("s/chest") and stage.waiting == 0
    assert "junk came beside what stages take; expected nothing but arm, chest" in caplog.text


def test_parts_that_wait_do_not_hold_what_came_beside_them():
    """48 messages with 9 MB of another source each held 433 MB."""
    stage = small_stage(limit=10 * MEGABYTE)
    tracemalloc.start()
    try:
        for seq in range(24):
            tensors = {"chest": samples("chest"), "arm": np.zeros(2 * MEGABYTE, np.uint8)}
            stage.handle(part("chest", seq, tensors=tensors))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stage.waiting == 24 and held < 3 * MEGABYTE


def test_messages_larger_than_all_sources_need_are_refused(caplog):
    stage = small_stage(limit=10 * MEGABYTE, window_bytes=2000)
    tensors = {"chest": samples("chest"), "arm": np.zeros(2000, np.uint8)}
    stage.handle(part("chest", 0, tensors=tensors))
    assert "expected at most 2000 a window, which all its sources need" in caplog.text
    assert run_window(stage, 1) == [("s", 1)] and run_window(stage, 2, captured=[5.0] * 9) == [
        ("s", 2 + n) for n in range(9)
    ]


@pytest.mark.parametrize("topic", [None, "har/v1/test/act/1/0/s"])
def test_what_was_retained_is_dropped(topic, caplog):
    stage = small_stage()
    old = msgspec.structs.replace(part("chest", 0, captured=(1.0,), topic=topic), retained=True)
    (released,) = stage.handle(old)
    assert released.acks == (old,) and stage.counters.rejected == 1 and stage.waiting == 0
    assert "it was retained at the broker, as this kind never is" in caplog.text
    assert run_window(stage, 0) == [("s", 0)]


def test_a_text_of_megabytes_is_a_short_line_in_the_log(caplog):
    stage = small_stage(limit=16 * MEGABYTE)
    one = part("chest", 0)
    for stream in ("\U0001f4a5" * MEGABYTE, "x" * MEGABYTE):
        payload = msgspec.msgpack.encode((1, stream, 0, 1, (5.0,), None, []))
        stage.handle(msgspec.structs.replace(one, payload=payload))
    payload = msgspec.msgpack.encode((1, "s", 0, 1, (5.0,), None, [["chest", "f" * MEGABYTE, (1,), b"1234"]]))
    stage.handle(msgspec.structs.replace(one, payload=payload))
    assert stage.counters.rejected == 3 and len(caplog.text) < 3000 and len(stage.complaint) < 1100


def flooded(stage, monkeypatch, messages=2000, quiet_at=1000):
    """Let a loop handle a flood of one stream with one window of another in its midst; return the order of results."""
    monkeypatch.setattr(loop_module, "TURN_S", 1e-9)  # one message a turn
    broker = MemoryBroker()
    loop = StageLoop(broker.connect(Session("stage", expiry_s=60, receive_max=10**6)), stage, Stop())
    sender, watcher = broker.connect(Session("sensor")), broker.connect(Session("watch", receive_max=10**6))
    watcher.subscribe(["har/v1/test/result/+"])
    streams = ["flood"] * messages
    streams[quiet_at] = "quiet"
    for stream in ("flood", "quiet"):  # both are known
        for source in CHANNELS:
            sender.publish(*published(part(source, 0, stream=stream)))
    sender.poll(0.0)
    for _ in range(6):
        loop.turn()
    for seq, stream in enumerate(streams, 1):
        for source in CHANNELS:
            sender.publish(*published(part(source, seq, stream=stream)))
    sender.poll(0.0)
    while stage.counters.messages + stage.counters.shed < 2 * (messages + 2):
        loop.turn()
    loop.turn()  # the last result leaves
    return [one.topic.rsplit("/", 1)[1] for one in watcher.poll(0.0)][2:]


def published(delivery):
    return delivery.topic, delivery.payload


def test_the_window_of_another_stream_does_not_wait_behind_a_flood(monkeypatch):
    order = flooded(small_stage(limit=10_000), monkeypatch, messages=200, quiet_at=100)
    assert order.count("flood") == 199 and order.count("quiet") == 1  # nothing is lost
    assert order.index("quiet") <= 2


def test_a_deployed_stage_leaves_a_flood_to_be_sent_again(monkeypatch):
    """Windows that wait at the broker behind a flood have their turn soon, since the stage reads on."""
    monkeypatch.setattr(loop_module, "QUEUED_BYTES", 1_000_000)
    stage = small_stage(limit=10_000, deployed=True, capacity=8)
    order = flooded(stage, monkeypatch, messages=3000, quiet_at=2900)
    assert order.count("quiet") == 1 and order.index("quiet") < 1500
    assert stage.counters.shed > 2000 and stage.counters.rejected == 0
    assert stage.counters.messages + stage.counters.shed == 2 * 3002
