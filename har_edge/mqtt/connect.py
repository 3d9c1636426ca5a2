"""Opening an MQTT bus with the client asked for."""

from __future__ import annotations

import enum
import importlib.util
import logging

from har_edge.errors import BrokerError, ConfigError
from har_edge.mqtt.address import Address
from har_edge.mqtt.bus import Bus, Session
from har_edge.mqtt.transport import OtherVersion, Unanswered

_log = logging.getLogger(__name__)
# Where a broker was found to speak no MQTT 5: host and port. Asked once a process, said once a process.
_older: set[tuple[str, int]] = set()


class ClientLibrary(enum.Enum):
    """The MQTT client below a bus.

    `paho` is paho-mqtt, pure Python; `native` reads and writes packets with the mqtt5 library's native code; `auto` is
    `native` where that library is installed (it has wheels for 64-bit Linux and Python >= 3.11), else `paho`.
    """

    AUTO = "auto"
    PAHO = "paho"
    NATIVE = "native"


class MqttVersion(enum.Enum):
    """The MQTT version. 3.1.1 is for brokers that speak no newer one: no bound on messages under way, no size limit at
    the broker, and nobody says that a message found no subscriber."""

    V5 = "5"
    V311 = "3.1.1"


def choose_client(asked: ClientLibrary, protocol: MqttVersion = MqttVersion.V5) -> ClientLibrary:
    """Return PAHO or NATIVE; raises ConfigError when the native one is asked for and not installed, or too new."""
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
) -> Bus:
    """Connect to a broker; raises BrokerError when it cannot be reached or refuses.

    A broker that turns MQTT 5 away and answers to 3.1.1 is spoken to in 3.1.1, by paho, which is logged once.
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
    """Return the client that speaks 3.1.1, whichever was asked for."""
    return ClientLibrary.PAHO if client is ClientLibrary.NATIVE else client


def speaks_older_only(address: Address, error: Unanswered | OtherVersion) -> bool:
    """Return whether a broker that did not take MQTT 5, with this error, answers to 3.1.1.

    Any answer counts, a refused password too: it shows the version, and is then told in that version. After a
    connection that was just closed, MQTT 5 must fail again: a broker that is starting closes some.
    """
    if not _answers(address, mqtt5=False):
        return False
    return not (isinstance(error, Unanswered) and error.closed and _answers(address, mqtt5=True))


def _answers(address: Address, *, mqtt5: bool) -> bool:
    from har_edge.mqtt.broker_probe import UNSUPPORTED_VERSION, probe_broker

    try:
        return probe_broker(address, mqtt5=mqtt5).code != UNSUPPORTED_VERSION
    except BrokerError:
        return False


def _open(address: Address, session: Session, client: ClientLibrary, protocol: MqttVersion) -> Bus:
    if choose_client(client, protocol) is ClientLibrary.NATIVE:
        from har_edge.mqtt.native import NativeBus

        native = NativeBus(address, session)
        native.connect()
        return native
    from har_edge.mqtt.paho import PahoBus

    paho = PahoBus(address, session, mqtt5=protocol is MqttVersion.V5)
    paho.connect()
    return paho
