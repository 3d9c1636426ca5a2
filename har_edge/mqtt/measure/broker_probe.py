"""Ask a broker for its capabilities before anything depends on them: one connection, closed at once."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.mqtt.clients.transport import refusal, tls_context, unanswered, unreachable
from har_edge.timing import CONNECT_TIMEOUT_S

FAILURE = 0x80
UNSUPPORTED_VERSION = 0x84
CREDENTIALS = frozenset({0x86, 0x87})


@dataclass(frozen=True, slots=True)
class BrokerCapabilities:
    """The answer of a broker in CONNACK (MQTT 5, section 3.2.2.3); `code` 0 means that it accepted the client.

    None stands for no limit, or for a limit that MQTT 3.1.1 does not announce.
    """

    code: int
    said: str
    receive_max: int | None = None
    max_packet_bytes: int | None = None
    retain: bool = True
    shared: bool = True
    wildcards: bool = True


def reach_port(address: Address) -> None:
    """Open a TCP connection and close it.

    Raises BrokerError, which names the cause, when the port cannot be reached.
    """
    try:
        socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise BrokerError(unreachable(address, error)) from None


def speaks_tls(address: Address) -> bool:
    """Return whether the listener answers a TLS handshake, with any certificate."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain) as wrapped,
        ):
            return wrapped.version() is not None
    except ssl.SSLError as error:  # an alert is an answer in TLS too; other bytes, or none, are not
        return error.reason is not None and "ALERT" in error.reason
    except (OSError, ValueError):
        return False


def probe_broker(address: Address, *, mqtt5: bool = True) -> BrokerCapabilities:
    """Connect, over TLS where the address says so, and return the broker's answer; a refusal is an answer, too.

    Raises BrokerError when no answer comes.
    """
    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"knock-{secrets.token_hex(8)}",
        protocol=mqtt.MQTTv5 if mqtt5 else mqtt.MQTTv311,
        clean_session=None if mqtt5 else True,
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    context = tls_context(address)
    if context is not None:
        client.tls_set_context(context)
    if address.username is not None:
        client.username_pw_set(address.username, address.password)
    answers: list[BrokerCapabilities] = []

    def take(_client: mqtt.Client, _user: Any, _flags: Any, code: ReasonCode, properties: Any) -> None:
        answers.append(_terms(address, code, properties))

    client.on_connect = take
    try:
        client.connect(address.host, address.port, 30)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not answers and time.monotonic() < deadline:
            if client.loop(0.1) != mqtt.MQTT_ERR_SUCCESS and not answers:
                raise unanswered(address)
    except (OSError, ValueError) as error:
        raise BrokerError(unreachable(address, error)) from None
    finally:
        client.disconnect()
    if not answers:
        raise unanswered(address, closed=False)
    return answers[0]


def _terms(address: Address, code: ReasonCode, properties: Any) -> BrokerCapabilities:
    if code.value >= FAILURE:
        return BrokerCapabilities(code.value, str(refusal(address, code.value, str(code).lower())))

    def told(name: str, default: int | None) -> int | None:
        return getattr(properties, name, default)

    return BrokerCapabilities(
        code=0,
        said=str(code).lower(),
        receive_max=told("ReceiveMaximum", None),
        max_packet_bytes=told("MaximumPacketSize", None),
        retain=told("RetainAvailable", 1) == 1,
        shared=told("SharedSubscriptionAvailable", 1) == 1,
        wildcards=told("WildcardSubscriptionAvailable", 1) == 1,
    )
