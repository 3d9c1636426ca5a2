"""The MQTT buses against a real Mosquitto that restarts, dies or freezes."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from har_edge.cluster.broker import RestartableBroker
from har_edge.mqtt.broker.launcher import find_mosquitto
from har_edge.mqtt.bus import Bus, Delivery, PublishOutcome, Session, Will
from har_edge.mqtt.connect import ClientLibrary, open_bus

pytestmark = pytest.mark.skipif(find_mosquitto() is None, reason="Mosquitto is not installed")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RestartableBroker]:
    for parent in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        parent.chmod(0o755)
    broker = RestartableBroker(tmp_path / "data")
    yield broker
    broker.stop()


@pytest.fixture(params=[ClientLibrary.PAHO, ClientLibrary.NATIVE], ids=lambda client: client.value)
def connect(request: pytest.FixtureRequest, broker: RestartableBroker) -> Iterator[Callable[..., Bus]]:
    if request.param is ClientLibrary.NATIVE:
        pytest.importorskip("mqtt5")
    buses: list[Bus] = []

    def connect(name: str, **options: object) -> Bus:
        buses.append(open_bus(broker.address, Session(name, **options), request.param))  # type: ignore[arg-type]
        return buses[-1]

    yield connect
    for bus in buses:
        bus.close(forget=True)


def ready(bus: Bus, *filters: str) -> Bus:
    bus.subscribe(filters)
    until(lambda: bus.connected, bus)
    return bus


def until(done: Callable[[], object], *buses: Bus, seconds: float = 20.0) -> list[Delivery]:
    came: list[Delivery] = []
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"not done after {seconds} s"
        for bus in buses:
            came += bus.poll(0.01)
    return came


@pytest.mark.slow
def test_nothing_is_lost_over_restarts(broker: RestartableBroker, connect: Callable[..., Bus]) -> None:
    receiver, sender = ready(connect("receiver", expiry_s=300), "t"), connect("sender", expiry_s=300)
    count, got, outcomes = 600, list[int](), list[PublishOutcome]()
    deadline, sent = time.monotonic() + 30, 0
    restarts = [150, 400]
    while restarts or len(set(got)) < count or sender.unsent:
        assert time.monotonic() < deadline, f"{len(set(got))} of {count} came, {sender.unsent} not safe"
        # The last messages wait for the last restart, so that both must come back to end this.
        for _ in range(min(10, (restarts[0] if restarts else count) - sent)):
            sender.publish("t", str(sent).encode(), on_outcome=outcomes.append)
            sent += 1
        sender.poll(0.0)
        for delivery in receiver.poll(0.002):
            got.append(int(delivery.payload))
            receiver.acknowledge(delivery)
        if restarts and sent >= restarts[0] and sender.connected and receiver.connected:
            restarts.pop(0)
            broker.stop()
            sender.poll(0.0)
            receiver.poll(0.0)
            broker.start()
    assert set(got) == set(range(count)) and outcomes == [PublishOutcome.ACKED] * count
    assert sender.traffic.reconnects >= 2 and receiver.traffic.reconnects >= 2
    firsts = sorted(set(got), key=got.index)
    assert firsts == list(range(count)), "first copies come in order"


def test_topics_keep_their_names_over_a_restart(broker: RestartableBroker, connect: Callable[..., Bus]) -> None:
    """What a topic was called on the last connection, another topic may be called on this one."""
    receiver, sender = ready(connect("receiver", expiry_s=300), "t/+"), connect("sender", expiry_s=300)
    for number in range(6):
        sender.publish(f"t/{number}", b"before")
    came: list[Delivery] = []
    until(lambda: len(came) == 6 or came.extend(receiver.poll(0.01)), sender)
    for delivery in came:
        receiver.acknowledge(delivery)
    until(lambda: sender.unsent == 0, sender, receiver)
    broker.stop()
    until(lambda: not (receiver.connected or sender.connected), receiver, sender)
    for number in (5, 5, 0, 3, 3, 5):
        sender.publish(f"t/{number}", b"after")
    broker.start()
    until(lambda: receiver.connected, receiver)
    again: list[Delivery] = []
    until(lambda: len(again) == 6 or again.extend(receiver.poll(0.01)), sender)
    assert [delivery.topic for delivery in again] == ["t/5", "t/5", "t/0", "t/3", "t/3", "t/5"]
    assert {delivery.payload for delivery in again} == {b"after"}


def test_both_come_back_after_a_kill(broker: RestartableBroker, connect: Callable[..., Bus]) -> None:
    receiver, sender = ready(connect("receiver", expiry_s=300), "t"), connect("sender", expiry_s=300)
    broker.stop(signal.SIGKILL)
    until(lambda: not (receiver.connected or sender.connected), receiver, sender)
    for number in range(5):
        sender.publish("t", str(number).encode())
    broker.start()
    until(lambda: receiver.connected, receiver)
    came = until(lambda: sender.unsent == 0, sender)
    deadline = time.monotonic() + 5
    while len(came) < 5 and time.monotonic() < deadline:
        came += receiver.poll(0.02)
    assert [delivery.payload for delivery in came] == [b"0", b"1", b"2", b"3", b"4"]


def test_what_was_held_unacknowledged_comes_again_after_a_restart(
    broker: RestartableBroker, connect: Callable[..., Bus]
) -> None:
    receiver, sender = ready(connect("receiver", expiry_s=300), "t"), connect("sender")
    sender.publish("t", b"held")
    sender.publish("t", b"done")
    held: list[Delivery] = []
    until(lambda: len(held) == 2 or held.extend(receiver.poll(0.01)), sender)
    broker.stop()
    receiver.poll(0.01)
    receiver.acknowledge(held[0])  # stale: that connection is gone
    broker.start()
    again: list[Delivery] = []
    until(lambda: len(again) == 2 or again.extend(receiver.poll(0.01)))
    assert [delivery.payload for delivery in again] == [b"held", b"done"]


@pytest.mark.slow
def test_a_frozen_broker_is_noticed_and_a_thawed_one_found_again(
    broker: RestartableBroker, connect: Callable[..., Bus]
) -> None:
    bus = connect("x", keepalive_s=1)
    os.kill(broker.pid, signal.SIGSTOP)
    try:
        bus.publish("t", bytes(5_000_000))
        thaw = threading.Timer(3.5, os.kill, (broker.pid, signal.SIGCONT))
        thaw.start()
        until(lambda: not bus.connected, bus, seconds=3.5)
        until(lambda: bus.unsent == 0, bus)
        assert bus.traffic.reconnects >= 1
    finally:
        os.kill(broker.pid, signal.SIGCONT)


@pytest.mark.slow
def test_reconnection_is_patient_and_jittered(
    broker: RestartableBroker, connect: Callable[..., Bus], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is no broker, the attempts thin out, and the process sleeps between them."""
    bus = connect("x")
    broker.stop(signal.SIGKILL)
    attempts: list[float] = []
    original = socket.create_connection

    def counted(*args: object, **options: object) -> socket.socket:
        attempts.append(time.monotonic())
        return original(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "create_connection", counted)
    busy, started = time.process_time(), time.monotonic()
    while time.monotonic() - started < 2.5:
        bus.poll(0.1)
    monkeypatch.undo()
    assert 3 <= len(attempts) <= 25 and time.process_time() - busy < 0.8
    broker.start()
    until(lambda: bus.connected, bus)


def test_closing_with_unread_messages_is_a_goodbye_not_a_loss(
    broker: RestartableBroker, connect: Callable[..., Bus]
) -> None:
    watcher, sender = ready(connect("watcher"), "status"), connect("sender")
    receiver = ready(connect("receiver", expiry_s=60, will=Will("status", b"lost")), "t")
    for _ in range(400):
        sender.publish("t", bytes(5000))
    until(lambda: sender.unsent == 0, sender)
    receiver.poll(0.05)
    receiver.close()
    ends = time.monotonic() + 0.4
    assert until(lambda: time.monotonic() > ends, watcher) == []
    again = connect("receiver", expiry_s=60)
    came: list[Delivery] = []
    until(lambda: len(came) >= 400 or came.extend(again.poll(0.01)))
    assert len(came) == 400


def test_a_killed_process_leaves_its_will(broker: RestartableBroker, connect: Callable[..., Bus]) -> None:
    import subprocess
    import sys

    watcher = ready(connect("watcher"), "status")
    script = (
        "import os, sys\n"
        "from har_edge.mqtt.address import Address\n"
        "from har_edge.mqtt.bus import Session, Will\n"
        "from har_edge.mqtt.connect import open_bus\n"
        "open_bus(Address('127.0.0.1', int(sys.argv[1])), Session('victim', will=Will('status', b'lost')))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(broker.address.port)], check=False, timeout=20)
    came: list[Delivery] = []
    until(lambda: came or came.extend(watcher.poll(0.02)))
    assert [(delivery.topic, delivery.payload) for delivery in came] == [("status", b"lost")]
