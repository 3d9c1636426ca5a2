"""A broker that a node carries itself, for the messages of its stages: Mosquitto or the embedded one."""

from __future__ import annotations

import enum
import ipaddress
import logging
import socket
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.broker.embedded import start_embedded
from har_edge.mqtt.broker.launcher import start_mosquitto
from har_edge.resources import find_folder

if TYPE_CHECKING:
    from har_edge.mqtt.address import Address
    from har_edge.mqtt.broker.launcher import RunningBroker
    from har_edge.mqtt.measure.broker_probe import BrokerCapabilities

_log = logging.getLogger(__name__)
_ALL = "0.0.0.0"


class OwnBrokerKind(enum.Enum):
    """The broker that a node carries."""

    MOSQUITTO = "mosquitto"
    EMBEDDED = "embedded"


@dataclass(frozen=True, slots=True)
class OwnBrokerSettings:
    """The settings of a broker that a node carries.

    Other nodes reach it at the host `advertise`, by default the address by which this machine reaches the central
    broker. `port` 0 takes a free one. `config` is a Mosquitto configuration with users of its own; `folder` keeps
    Mosquitto's sessions and log.
    """

    kind: OwnBrokerKind
    folder: Path
    advertise: str | None = None
    port: int = 0
    config: Path | None = None


@dataclass(slots=True)
class OwnBroker:
    """A running broker of this node: its `url` for other nodes, and the `address` for this one."""

    running: RunningBroker
    url: str
    address: Address
    max_packet_bytes: int | None = None
    ended: str = ""

    @property
    def host(self) -> str:
        """The host in `url`."""
        return urlsplit(self.url).hostname or ""

    @property
    def server(self) -> str:
        return self.running.description

    def check(self) -> bool:
        """Return whether it still runs; log it once when it has ended by itself."""
        if not self.ended:
            try:
                self.running.check()
            except BrokerError as error:
                self.ended = str(error)
                _log.error("this node's own broker is gone, its flows go through the central one: %s", error)
        return not self.ended

    def stop(self) -> None:
        """Stop it, and wait until its process has ended."""
        self.running.stop()


def start_own(settings: OwnBrokerSettings, central: Address) -> OwnBroker:
    """Start the broker of a node that has these credentials at the central broker, and see that it keeps its rights.

    Raises ConfigError where the node needs credentials at the central broker and the settings would let in anybody,
    and BrokerError where the broker does not start, lets in anybody all the same, or does not let this node in.
    """
    secret = central.username is not None or central.tls
    _check_rights(settings, secret=secret)
    host = settings.advertise or local_host(central)
    listen = _ALL if settings.advertise else host
    running: RunningBroker
    if settings.kind is OwnBrokerKind.EMBEDDED:
        running = start_embedded(host=listen, port=settings.port)
    else:
        config = settings.config or find_folder("brokers") / "mosquitto.conf"
        running = start_mosquitto(config, settings.folder, host=listen, port=settings.port)
    try:
        # A certificate is one for the name that others use.
        local = host if running.address.tls else running.address.host
        address = replace(central, host=local, port=running.address.port, tls=running.address.tls)
        if not address.tls:
            address = replace(address, ca_file=None, cert_file=None, key_file=None)
        capabilities = _check_access(address, secret=secret)
    except BaseException:
        running.stop()
        raise
    url = replace(address, host=host).url
    return OwnBroker(running, url, address, capabilities.max_packet_bytes)


def local_host(central: Address) -> str:
    """Return the address of this machine on its way to the central broker. Raises BrokerError where there is no way."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(central.host, central.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # sends nothing with UDP
            return str(probe.getsockname()[0])
    except OSError as error:
        raise BrokerError(
            f"cannot find this machine's address on the way to {central.url}: {error}; give it with --advertise HOST"
        ) from None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _check_rights(settings: OwnBrokerSettings, *, secret: bool) -> None:
    if settings.config is not None and settings.kind is OwnBrokerKind.EMBEDDED:
        raise ConfigError("--own-broker-config is Mosquitto's; leave it away with --own-broker embedded")
    if secret and settings.config is None:
        raise ConfigError(
            "this node has a user or TLS at the central broker, and its own broker would let in anybody; give a "
            "Mosquitto configuration with the same users, access list and certificates "
            "(--own-broker mosquitto --own-broker-config FILE, such as secure.conf), or leave --own-broker away"
        )


def _check_access(address: Address, *, secret: bool) -> BrokerCapabilities:
    """Return what the broker offers this node; raise BrokerError unless it lets this node in, and nobody without a
    user where the central one has users.
    """
    from har_edge.mqtt.measure.broker_probe import CREDENTIALS, probe_broker

    found = probe_broker(address)
    if found.code:
        raise BrokerError(f"this node's own broker does not let it in: {found.said}")
    if secret:
        stranger = replace(address, username=None, password=None, cert_file=None, key_file=None)
        try:
            answer = probe_broker(stranger)
        except BrokerError:  # it wants a client's certificate, and ends the handshake
            return found
        if answer.code not in CREDENTIALS:
            raise BrokerError(
                "this node's own broker lets in clients without a user, and the central one knows this node by one; "
                "set `allow_anonymous false` in the file of --own-broker-config"
            )
    return found
