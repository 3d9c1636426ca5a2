"""Open an MQTT bus with the client library that the user chose."""

from __future__ import annotations

import enum
import importlib.util
import logging

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import PollableBus, Session
from har_edge.mqtt.clients.transport import OtherVersion, Unanswered

_log = logging.getLogger(__name__)
# Host and port of brokers that speak no MQTT 5. A process asks and warns once for each.
_older: set[tuple[str, int]] = set()


class ClientLibrary(enum.Enum):
    """The MQTT library below a bus.

    `paho` is paho-mqtt, pure Python. `native` reads and writes packets with the native code of the mqtt5 library.
    `auto` is `native` where that library is installed (it has wheels for 64-bit Linux and Python >= 3.11), else `paho`.
    """

    AUTO = "auto"
    PAHO = "paho"
    NATIVE = "native"


class MqttVersion(enum.Enum):
    """The MQTT version.

    Version 3.1.1 is for brokers that speak no newer one. It bounds neither the messages in flight nor their size at the
    broker, and does not report that a message found no subscriber.
    """

    V5 = "5"
    V311 = "3.1.1"


def choose_client(asked: ClientLibrary, protocol: MqttVersion = MqttVersion.V5) -> ClientLibrary:
    """Return PAHO or NATIVE.

    Raises ConfigError when the native client was chosen and is not installed, or does not speak the version.
    """
    installed = importlib.util.find_spec("mqtt5") is not None
    if asked is ClientLibrary.NATIVE and not installed:
        raise ConfigError("client 'native' needs the library mqtt5; `pip install mqtt5`, or choose 'paho' or 'auto'")
    if asked is ClientLibrary.NATIVE and protocol is not MqttVersion.V5:
        raise ConfigError(f"client 'native' speaks MQTT 5 only, not {protocol.value}; choose 'paho' or 'auto'")
    if asked is ClientLibrary.AUTO:
        return ClientLibrary.NATIVE if installed and protocol is MqttVersion.V5 else ClientLibrary.PAHO
    return asked


def open_bus(
    address: Address,
    session: Session,
    client: ClientLibrary = ClientLibrary.AUTO,
    protocol: MqttVersion = MqttVersion.V5,
) -> PollableBus:
    """Connect to a broker.

    If a broker refuses MQTT 5 and answers to 3.1.1, the bus speaks 3.1.1 through paho, and a warning says so once.
    Raises BrokerError when the broker cannot be reached or refuses the client.
    """
    where = (address.host, address.port)
    if protocol is MqttVersion.V311 or where in _older:
        return _open(address, session, _paho_for(client) if where in _older else client, MqttVersion.V311)
    try:
        return _open(address, session, client, MqttVersion.V5)
    except (Unanswered, OtherVersion) as error:
        if not speaks_older_only(address, error):
            raise
    _older.add(where)
    _log.warning("the broker at %s speaks no MQTT 5; 3.1.1 is used instead (docs/reference/brokers.md)", address.url)
    return _open(address, session, _paho_for(client), MqttVersion.V311)


def _paho_for(client: ClientLibrary) -> ClientLibrary:
    """Return the client that speaks 3.1.1."""
    return ClientLibrary.PAHO if client is ClientLibrary.NATIVE else client


def speaks_older_only(address: Address, error: Unanswered | OtherVersion) -> bool:
    """Return whether a broker that did not accept MQTT 5, with this error, answers to 3.1.1.

    Any answer counts, a refused password too: it shows the version. If the broker only closed the connection, MQTT 5
    must fail a second time, since a broker that is starting closes some connections.
    """
    if not _answers(address, mqtt5=False):
        return False
    return not (isinstance(error, Unanswered) and error.closed and _answers(address, mqtt5=True))


def _answers(address: Address, *, mqtt5: bool) -> bool:
    from har_edge.mqtt.measure.broker_probe import UNSUPPORTED_VERSION, probe_broker

    try:
        return probe_broker(address, mqtt5=mqtt5).code != UNSUPPORTED_VERSION
    except BrokerError:
        return False


def _open(address: Address, session: Session, client: ClientLibrary, protocol: MqttVersion) -> PollableBus:
    if choose_client(client, protocol) is ClientLibrary.NATIVE:
        from har_edge.mqtt.clients.native import NativeBus

        native = NativeBus(address, session)
        native.connect()
        return native
    from har_edge.mqtt.clients.paho import PahoBus

    paho = PahoBus(address, session, mqtt5=protocol is MqttVersion.V5)
    paho.connect()
    return paho
