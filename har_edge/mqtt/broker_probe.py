"""Asking a broker what it permits, before anything depends on it: one connection, closed again at once."""

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
from har_edge.mqtt.transport import CONNECT_TIMEOUT_S, refusal, tls_context, unanswered, unreachable

FAILURE = 0x80
UNSUPPORTED_VERSION = 0x84
CREDENTIALS = frozenset({0x86, 0x87})


@dataclass(frozen=True, slots=True)
class BrokerCapabilities:
    """What a broker said in CONNACK (MQTT 5, section 3.2.2.3); `code` 0 means that it took us.

    None stands for no limit, or for one that MQTT 3.1.1 does not tell.
    """

    code: int
    said: str
    receive_max: int | None = None
    max_packet_bytes: int | None = None
    retain: bool = True
    shared: bool = True
    wildcards: bool = True


def reach_port(address: Address) -> None:
    """Open a TCP connection and close it; raises BrokerError that names what is wrong."""
    try:
        socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise BrokerError(unreachable(address, error)) from None


def speaks_tls(address: Address) -> bool:
    """Return whether what listens there answers a TLS handshake, whatever its certificate and whatever it wants."""
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
    """Connect, over TLS where the address says so, and return the answer, a refusal too; BrokerError for none."""
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
