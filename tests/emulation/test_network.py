"""What goes over a link: its rate either way, a cable pulled out, names, and a bed beside a bed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from har_edge.emulation.limits import Device, Layout, Limits
from har_edge.emulation.testbed import Testbed
from tests.emulation.machine import TIMEOUT_S, require_machine

RATE = 8_000_000
COUNT = 1_000_000
# Sends COUNT bytes to the host side, takes as many from there, and says so with one byte.
TRAFFIC = f"""
import socket
with socket.create_connection(("host", 7000), {TIMEOUT_S}) as link:
    link.sendall(bytes({COUNT}))
    left = {COUNT}
    while left:
        left -= len(link.recv(65536))
    link.sendall(b"x")
"""
# Answers every connection with what it sends.
ECHO = """
import socket
server = socket.create_server(("", 7001))
print("ready", flush=True)
while True:
    link, _ = server.accept()
    while said := link.recv(100):
        link.sendall(said)
"""


@pytest.fixture(scope="module")
def testbed() -> Iterator[Testbed]:
    require_machine()
    layout = Layout((Device("thin", Limits(link_bits_per_s=RATE)), Device("free", Limits())))
    with Testbed(layout) as testbed:
        yield testbed


def measure(testbed: Testbed, device: str) -> tuple[float, float]:
    """Return the bits a second from a device and to it."""
    with testbed.inside(), socket.create_server(("10.77.0.1", 7000)) as server:
        server.settimeout(TIMEOUT_S)
        process = testbed.run(device, [sys.executable, "-c", TRAFFIC])
        link, _ = server.accept()
        with link:
            link.settimeout(TIMEOUT_S)
            first = len(link.recv(65536))
            left, started = COUNT - first, time.perf_counter()
            while left:
                left -= len(link.recv(65536))
            up = time.perf_counter() - started
            started = time.perf_counter()
            link.sendall(bytes(COUNT))
            assert link.recv(1) == b"x"
            down = time.perf_counter() - started
    assert process.wait(TIMEOUT_S) == 0
    return (COUNT - first) * 8 / up, COUNT * 8 / down


def test_a_link_carries_its_rate_either_way(testbed: Testbed) -> None:
    # A busy machine may send slower than the link lets it, never faster.
    for bits_per_s in measure(testbed, "thin"):
        assert RATE * 0.3 < bits_per_s < RATE * 1.15


def test_a_link_without_a_limit_is_faster(testbed: Testbed) -> None:
    up, down = measure(testbed, "free")
    assert min(up, down) > 4 * RATE


def test_a_cut_device_hears_nothing_and_goes_on_where_it_was(testbed: Testbed) -> None:
    process = testbed.run("free", [sys.executable, "-c", ECHO], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    with testbed.inside():
        link = socket.create_connection(("10.77.1.2", 7001), TIMEOUT_S)
    with link:
        link.sendall(b"before")
        assert link.recv(100) == b"before"
        testbed.disconnect("free")
        link.sendall(b"during")
        link.settimeout(0.5)
        with pytest.raises(TimeoutError):
            link.recv(100)
        testbed.reconnect("free")
        link.settimeout(TIMEOUT_S)
        assert link.recv(100) == b"during"
    process.kill()
    process.wait()


def test_other_devices_do_not_notice_a_cut(testbed: Testbed) -> None:
    testbed.disconnect("free")
    connect = "import socket; socket.create_connection(('broker', 1883), 20)"
    assert testbed.run("thin", [sys.executable, "-c", connect]).wait(TIMEOUT_S) == 0
    testbed.reconnect("free")


def test_beds_do_not_see_each_other_and_end_apart(testbed: Testbed) -> None:
    with Testbed(Layout((Device("thin", Limits()),))) as other, other.inside():
        assert other.emulation.id != testbed.emulation.id and other.emulation.broker_url == testbed.emulation.broker_url
        with socket.create_server(("10.77.0.1", 7002)), testbed.inside(), pytest.raises(ConnectionRefusedError):
            socket.create_connection(("10.77.0.1", 7002), TIMEOUT_S)
    with testbed.inside():
        socket.create_connection(("10.77.0.2", 1883), TIMEOUT_S).close()
