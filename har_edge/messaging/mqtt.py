"""Opening an MQTT bus with the client asked for."""

from __future__ import annotations

import enum
import importlib.util

from har_edge.errors import ConfigError
from har_edge.messaging.address import Address
from har_edge.messaging.bus import Bus, Session


class Client(enum.Enum):
    """The MQTT client below a bus.

    `paho` is paho-mqtt, pure Python; `native` reads and writes packets with the mqtt5 library's native code; `auto` is
    `native` where that library is installed (it has wheels for 64-bit Linux and Python >= 3.11), else `paho`.
    """

    AUTO = "auto"
    PAHO = "paho"
    NATIVE = "native"


class Protocol(enum.Enum):
    """The MQTT version. 3.1.1 is for brokers that speak no newer one: no bound on messages under way, no size limit at
    the broker, and nobody says that a message found no subscriber."""

    V5 = "5"
    V311 = "3.1.1"


def choose_client(asked: Client, protocol: Protocol = Protocol.V5) -> Client:
    """Return PAHO or NATIVE; raises ConfigError when the native one is asked for and not installed, or too new."""
    installed = importlib.util.find_spec("mqtt5") is not None
    if asked is Client.NATIVE and not installed:
        raise ConfigError("client 'native' needs the library mqtt5; `pip install mqtt5`, or choose 'paho' or 'auto'")
    if asked is Client.NATIVE and protocol is not Protocol.V5:
        raise ConfigError(f"client 'native' speaks MQTT 5 only, not {protocol.value}; choose 'paho' or 'auto'")
    if asked is Client.AUTO:
        return Client.NATIVE if installed and protocol is Protocol.V5 else Client.PAHO
    return asked


def open_bus(address: Address, session: Session, client: Client = Client.AUTO, protocol: Protocol = Protocol.V5) -> Bus:
    """Connect to a broker; raises BrokerError when it cannot be reached or refuses."""
    if choose_client(client, protocol) is Client.NATIVE:
        from har_edge.messaging.native import NativeBus

        native = NativeBus(address, session)
        native.connect()
        return native
    from har_edge.messaging.paho import PahoBus

    paho = PahoBus(address, session, mqtt5=protocol is Protocol.V5)
    paho.connect()
    return paho
