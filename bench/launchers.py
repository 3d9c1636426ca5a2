"""Brokers that har_edge is tried on, each started on free ports of this machine and stopped again.

    with launch(Kind.RABBITMQ, Path("/tmp/somewhere")) as broker:
        open_bus(broker.address, ...)          # broker.addresses: one for each node of a bridge or a cluster

`launch` raises NotInstalled, with what to install, where a broker is not there.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.broker.embedded import start_embedded
from har_edge.mqtt.broker.launcher import find_mosquitto, free_port, start_mosquitto
from har_edge.mqtt.bus import Session
from har_edge.mqtt.connect import open_bus
from har_edge.resources import find_folder

HERE = Path(__file__).parent
RABBITMQ_HOME = Path("/usr/lib/rabbitmq")
_STOP_S = 10.0
# What Debian's package runs with: its own file, and a listener for others than this machine's users.
_DEBIAN = "allow_anonymous true\npersistence true\n"


class Kind(enum.Enum):
    """A broker, or several that are one to their clients."""

    MOSQUITTO = "mosquitto"
    DEBIAN = "mosquitto-debian"  # with the settings that Debian's package has: no file of har_edge
    EMBEDDED = "embedded"
    RABBITMQ = "rabbitmq"
    AEDES = "aedes"
    BRIDGE = "mosquitto-bridge"
    CLUSTER = "aedes-cluster"


class NotInstalled(Exception):
    """The broker is not on this machine; the text says how to get it."""


@dataclass(slots=True)
class Launched:
    """A running broker: its name and version, and where its nodes are reached, one or more."""

    kind: Kind
    version: str
    addresses: tuple[Address, ...]
    _stops: list[Callable[[], None]] = field(default_factory=list)

    @property
    def address(self) -> Address:
        """The first node's."""
        return self.addresses[0]

    def stop(self) -> None:
        """Stop all that was started for it, the last first."""
        while self._stops:
            self._stops.pop()()

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def launch(kind: Kind, directory: Path) -> Launched:
    """Start a broker with its files below `directory`. Raises NotInstalled, BrokerError when it does not come up."""
    directory.mkdir(parents=True, exist_ok=True)
    stops: list[Callable[[], None]] = []
    try:
        version, addresses = _STARTS[kind](directory, stops)
    except BaseException:
        Launched(kind, "", (), stops).stop()
        raise
    return Launched(kind, version, tuple(addresses), stops)


@contextlib.contextmanager
def launched(kind: Kind, directory: Path) -> Iterator[Launched]:
    """Run a broker for the length of a block."""
    with launch(kind, directory) as broker:
        yield broker


_Started = tuple[str, Sequence[Address]]
_Stops = list[Callable[[], None]]


def _mosquitto(directory: Path, stops: _Stops, *, config: Path | None = None, extra: str = "") -> _Started:
    if find_mosquitto() is None:
        raise NotInstalled("Mosquitto: apt-get install mosquitto")
    broker = start_mosquitto(config or find_folder("brokers") / "mosquitto.conf", directory, extra=extra)
    stops.append(broker.stop)
    return broker.description, [broker.address]


def _debian(directory: Path, stops: _Stops) -> _Started:
    config = directory / "debian.conf"
    config.write_text(_DEBIAN)
    version, addresses = _mosquitto(directory, stops, config=config)
    return f"{version}, Debian's settings", addresses


def _bridge(directory: Path, stops: _Stops) -> _Started:
    """Two Mosquittos; the second connects to the first and carries everything both ways."""
    version, [first] = _mosquitto(directory / "first", stops)
    lines = [
        "connection first",
        f"address {first.host}:{first.port}",
        "topic # both 1",
        "cleansession false",
        # Between brokers only. With mqttv50 and max_inflight_messages 0, 2.0.11 sends a Receive Maximum of 0, which is
        # a protocol error (MQTT 5, section 3.1.2.11.3).
        "bridge_protocol_version mqttv311",
        "notifications false",
        "restart_timeout 1",
        "bridge_max_packet_size 67112960",
    ]
    _, [second] = _mosquitto(directory / "second", stops, extra="\n".join(lines))
    _await_bridge(second, first)
    return f"two bridged {version}", [first, second]


def _embedded(directory: Path, stops: _Stops) -> _Started:
    del directory
    broker = start_embedded()
    stops.append(broker.stop)
    return broker.description, [broker.address]


def _rabbitmq(directory: Path, stops: _Stops) -> _Started:
    """RabbitMQ of Debian's package with its MQTT plugin, as a node of its own with a port mapper of its own."""
    server, epmd = RABBITMQ_HOME / "bin" / "rabbitmq-server", shutil.which("epmd")
    if not server.exists() or epmd is None:
        raise NotInstalled("RabbitMQ with its MQTT plugin: apt-get install rabbitmq-server")
    port, mapper, amqp, distribution = (free_port("127.0.0.1") for _ in range(4))
    (directory / "plugins").write_text("[rabbitmq_mqtt].\n")
    (directory / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{amqp}\nmqtt.listeners.tcp.1 = 127.0.0.1:{port}\n"
        "mqtt.allow_anonymous = true\nloopback_users = none\n"
        "disk_free_limit.absolute = 50MB\nvm_memory_high_watermark.absolute = 1GB\n"
    )
    environment = os.environ | {
        "HOME": str(directory),
        "ERL_EPMD_PORT": str(mapper),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_FLAGS": "-start_epmd false +S 1:1",
        "RABBITMQ_NODENAME": f"har{port}@localhost",
        "RABBITMQ_NODE_PORT": str(amqp),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
    }
    _spawn([epmd, "-port", str(mapper)], directory, stops, environment)
    _await_port(mapper, 5)
    _spawn([str(server)], directory, stops, environment)
    _await_port(port, 90)
    return f"RabbitMQ {_debian_version('rabbitmq-server')}", [Address("127.0.0.1", port)]


def _aedes(directory: Path, stops: _Stops, redis: int = 0, nodes: int = 1) -> _Started:
    installed = Path(os.environ.get("HAR_EDGE_AEDES", HERE / "aedes"))
    node, package = shutil.which("node"), installed / "node_modules" / "aedes" / "package.json"
    if node is None or not package.exists():
        raise NotInstalled(
            "aedes: apt-get install nodejs npm, then npm install in bench/aedes, or name the folder "
            "with its node_modules in HAR_EDGE_AEDES"
        )
    addresses = [Address("127.0.0.1", free_port("127.0.0.1")) for _ in range(nodes)]
    for address in addresses:
        command = [node, str(HERE / "aedes" / "broker.cjs"), str(address.port)]
        _spawn(command + [str(redis)] * bool(redis), directory, stops)
        _await_port(address.port, 15)
    return f"aedes {json.loads(package.read_text())['version']}", addresses


def _cluster(directory: Path, stops: _Stops) -> _Started:
    """Two aedes with sessions and retained messages in one Redis, which carries messages from one to the other."""
    redis = shutil.which("redis-server")
    if redis is None:
        raise NotInstalled("Redis: apt-get install redis-server")
    port = free_port("127.0.0.1")
    _spawn([redis, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""], directory, stops)
    _await_port(port, 10)
    version, addresses = _aedes(directory, stops, redis=port, nodes=2)
    return f"two {version} with Redis", addresses


_STARTS: dict[Kind, Callable[[Path, _Stops], _Started]] = {
    Kind.MOSQUITTO: _mosquitto,
    Kind.DEBIAN: _debian,
    Kind.EMBEDDED: _embedded,
    Kind.RABBITMQ: _rabbitmq,
    Kind.AEDES: _aedes,
    Kind.BRIDGE: _bridge,
    Kind.CLUSTER: _cluster,
}


def _spawn(command: list[str], directory: Path, stops: _Stops, environment: dict[str, str] | None = None) -> None:
    """Start a process in a group of its own, and note how to end the whole group.

    It also ends when this process does, killed or not: with the thread that starts it, which has to be the main one.
    """
    setpriv = shutil.which("setpriv")
    tied = [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []
    with (directory / f"{Path(command[0]).name}.log").open("ab") as log:
        process = subprocess.Popen(
            [*tied, *command], stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, env=environment
        )

    def stop() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):  # whoever of the group is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin is not None:
            process.stdin.close()

    stops.append(stop)


def _await_port(port: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def _await_bridge(sender: Address, receiver: Address) -> None:
    """Send until something comes out at the other end."""
    topic = f"har/bridge/{secrets.token_hex(4)}"
    ears, mouth = (open_bus(one, Session(secrets.token_hex(8), clean_start=True)) for one in (receiver, sender))
    ears.subscribe([topic])
    deadline = time.monotonic() + 15
    try:
        while not ears.poll(0.1):
            mouth.publish(topic, b"")
            mouth.poll(0.0)
            if time.monotonic() > deadline:
                raise BrokerError(f"the bridge from {sender.url} to {receiver.url} carries nothing")
    finally:
        ears.close(forget=True)
        mouth.close(forget=True)


def _debian_version(package: str) -> str:
    said = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Version}", package], capture_output=True, text=True, check=False
    )
    return said.stdout.partition("-")[0] or "of unknown version"
