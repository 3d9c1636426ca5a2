"""The parts that both MQTT clients share: the socket, the wait between attempts, and the texts of refusals."""

from __future__ import annotations

import random
import socket
import sys
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from har_edge.errors import BrokerError
from har_edge.mqtt.address import Address
from har_edge.timing import BACKOFF_CAP_S, BACKOFF_FIRST_S, CONNECT_TIMEOUT_S

if TYPE_CHECKING:
    import ssl

_WMEM_MAX = Path("/proc/sys/net/core/wmem_max")
_KERNEL_BYTES = 64 * 1024  # what every connection takes at once without being asked
NO_LIMIT = 2**32  # of a packet's size: more than MQTT can say
_CREDENTIALS = frozenset({0x86, 0x87})  # bad user name or password, not authorized
_VERSIONS = frozenset({0x84})  # unsupported protocol version
# A later attempt may succeed after these: server unavailable, server busy, connection rate exceeded. Others are final.
_PASSING = frozenset({0x88, 0x89, 0x9F})


class FinalRefusal(BrokerError):
    """The broker refused this client for good; no retry can help."""


class Unanswered(BrokerError):
    """The broker accepted the connection and did not answer CONNECT: perhaps it speaks another version of MQTT.

    `closed` says whether the broker closed the connection or stayed silent.
    """

    def __init__(self, text: str, *, closed: bool) -> None:
        super().__init__(text)
        self.closed = closed


class OtherVersion(FinalRefusal):
    """The broker said that it does not speak this version of MQTT."""


class Backoff:
    """Waiting times between connection attempts: full jitter below a doubling bound.

    A broker that accepts a client and then closes the connection is no success, so the bound starts anew only after a
    connection that lasted. Source: Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 (the "full
    jitter" variant).
    """

    def __init__(self, rng: random.Random, *, base_s: float = BACKOFF_FIRST_S, cap_s: float = BACKOFF_CAP_S) -> None:
        self._rng, self._base_s, self._cap_s, self._attempt = rng, base_s, cap_s, 0

    def next_s(self) -> float:
        """Return how long to wait before the next attempt, in seconds."""
        bound = min(self._cap_s, self._base_s * 2**self._attempt)
        self._attempt = min(self._attempt + 1, 16)
        return self._rng.uniform(0.0, bound)

    def ended(self, lasted_s: float) -> None:
        """Record that a connection has ended after `lasted_s` seconds."""
        if lasted_s >= self._cap_s:
            self._attempt = 0


class AckOrder:
    """Puts acknowledgements in the order of arrival, as MQTT 5, section 4.6, demands of a receiver."""

    def __init__(self) -> None:
        self._arrived: deque[int] = deque()
        self._open: set[int] = set()
        self._done: set[int] = set()

    def arrived(self, packet_id: int) -> None:
        """Record a packet that needs an acknowledgement."""
        self._arrived.append(packet_id)
        self._open.add(packet_id)

    def done(self, packet_id: int) -> Iterator[int]:
        """Record that a packet is processed; yield the packets that may be acknowledged now.

        A second call for the same packet does nothing: its number may belong to another packet by then.
        """
        if packet_id not in self._open:
            return
        self._open.remove(packet_id)
        self._done.add(packet_id)
        while self._arrived and self._arrived[0] in self._done:
            first = self._arrived.popleft()
            self._done.remove(first)
            yield first

    def clear(self) -> None:
        """Forget all packets, since the connection is a new one."""
        self._arrived.clear()
        self._open.clear()
        self._done.clear()


def tls_context(address: Address) -> ssl.SSLContext | None:
    """Return the TLS context of an address, None without TLS.

    Raises BrokerError for certificates that cannot be used.
    """
    if not address.tls:
        return None
    import ssl  # only here: it costs a stage without TLS two megabytes

    try:
        context = ssl.create_default_context(cafile=str(address.ca_file) if address.ca_file else None)
        if address.cert_file:
            key = address.key_file or address.cert_file
            context.load_cert_chain(address.cert_file, address.key_file, lambda: _ask_passphrase(key))
    except (OSError, ssl.SSLError) as error:
        raise BrokerError(f"cannot use the certificates for {address.url}: {error}; expected PEM files") from None
    return context


@lru_cache(maxsize=8)  # asked once, and not again at each connection
def _ask_passphrase(key: Path) -> str:
    """Return the passphrase of an encrypted key, from the terminal; raise BrokerError where there is none to ask at."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise BrokerError(
            f"the key {key} is encrypted, and there is no terminal at which to ask for its passphrase; decrypt it "
            f"(openssl pkey -in {key} -out PLAIN) and protect the file by its permissions (chmod 600)"
        )
    import getpass

    return getpass.getpass(f"passphrase of {key}: ")


def open_socket(address: Address) -> socket.socket:
    """Connect over TCP or TLS, without Nagle's delay. Raises BrokerError, which names the address."""
    context = tls_context(address)
    try:
        plain = socket.create_connection((address.host, address.port), timeout=CONNECT_TIMEOUT_S)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return plain if context is None else context.wrap_socket(plain, server_hostname=address.host)
    except (OSError, ValueError) as error:  # ValueError: a host name that cannot be one
        raise BrokerError(unreachable(address, error)) from None


def widen_send_buffer(connection: socket.socket, message_bytes: int) -> None:
    """Let the kernel take two messages of this size at once: they leave while the next step of a shard computes.

    Without, it takes about 130 kB (Linux 6, tcp_wmem of 16 KiB). A size above net.core.wmem_max would fix the buffer
    below what the kernel may grow it to by itself; then it stays as it is.
    """
    wanted = 2 * message_bytes
    if _KERNEL_BYTES < wanted <= _most_send_bytes():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, wanted)


def _most_send_bytes() -> int:
    """Return what a process may ask for: socket(7), wmem_max; 0 where the system does not say."""
    try:
        return int(_WMEM_MAX.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def unreachable(address: Address, error: object) -> str:
    """Return the text for an address without a broker, or with one that cannot be trusted, and what to do."""
    kind = type(error).__name__  # by name, so that a bus without TLS need not import ssl
    if kind == "SSLCertVerificationError":
        return (
            f"the certificate of the broker at {address.url} is not to be trusted: "
            f"{getattr(error, 'verify_message', error)}; name the authority that signed it with --ca-file, "
            "and the broker by the name in its certificate"
        )
    if kind.startswith("SSL"):
        return (
            f"no TLS with the broker at {address.url}: {getattr(error, 'reason', None) or error}; check that the port "
            "is the one for mqtts://, and --cert-file and --key-file if the broker wants a client's certificate"
        )
    return f"no broker at {address.url}: {error}; start one with `har-edge broker`, or check host, port and firewall"


def unanswered(address: Address, *, closed: bool = True) -> Unanswered:
    """Return the error for a broker that does not answer CONNECT, with what to do."""
    what = "it closed the connection without an answer to CONNECT" if closed else "it did not answer CONNECT"
    advice = "it may want a client's certificate: --cert-file and --key-file" if address.tls else "it may want mqtts://"
    return Unanswered(unreachable(address, f"{what} ({advice})"), closed=closed)


def other_version(address: Address) -> OtherVersion:
    """Return the error for a broker that refuses MQTT 5, with what to do."""
    return OtherVersion(f"the broker at {address.url} does not speak MQTT 5; use --protocol 3.1.1, or a newer broker")


def publish_bytes(topic: str, payload: bytes, *, aliased: bool = False) -> int:
    """Return the bytes of a PUBLISH packet at QoS 1 (MQTT 5, section 3.3) with no property, or an alias only."""
    remaining = 2 + len(topic.encode()) + 2 + 1 + 3 * aliased + len(payload)
    length_bytes = 1 + (remaining > 127) + (remaining > 16383) + (remaining > 2097151)
    return 1 + length_bytes + remaining


def read_share(pattern: str) -> tuple[str, str] | None:
    """Return group and filter of `$share/<group>/<filter>` (MQTT 5, section 4.8.2), None for another filter."""
    first, _, rest = pattern.partition("/")
    group, slash, shared = rest.partition("/")
    return (group, shared) if first == "$share" and group and slash and shared else None


def too_large(topic: str, packet_bytes: int, limit: int) -> str:
    """Return the text for a message above the limit that the broker announced, and what to do."""
    return (
        f"a message for {topic} makes a packet of {packet_bytes} bytes; the broker takes at most {limit}; "
        "raise max_packet_size in the broker's configuration, or send fewer windows a message"
    )


def limit_below_need(address: Address, limit: int, needed: int) -> FinalRefusal:
    """Return the error for a broker whose limit is below what a client is to send, with what to do."""
    return FinalRefusal(
        f"the broker at {address.url} takes packets of at most {limit} bytes, and messages of this pipeline make "
        f"ones of up to {needed}; set max_packet_size {needed} or more in the broker's configuration, cut the model "
        "where less crosses (`har-edge slice --list`), or let activations travel in fewer bytes (`slice --pack`)"
    )


def stale_message(topic: str) -> str:
    """Return the text for messages that only an earlier process of this session asked for."""
    return (
        f"a message came on {topic}, which an earlier process of this name asked for and this one does not: it is put "
        "away, and the subscription ended"
    )


def refused_as_large(topic: str, packet_bytes: int) -> str:
    """Return the text for a broker that refused a message for its size and never announced a limit, and what to do."""
    return (
        f"a message for {topic} makes a packet of {packet_bytes} bytes, which the broker refuses as too large; it does "
        "not tell its limit (`har-edge doctor` measures it): raise message_size_limit in Mosquitto's configuration, "
        "or send fewer windows a message"
    )


def cut_off_by_size(topic: str, packet_bytes: int, times: int) -> str:
    """Return the text for a broker that closes the connection whenever a message is in flight, and what to do."""
    return (
        f"the broker closed the connection {times} times in a row with nothing acknowledged, and the largest message "
        f"under way makes a packet of {packet_bytes} bytes, for {topic}; it is given up. The broker's limit is below "
        "that, as it seems, and MQTT 3.1.1 cannot tell it: raise max_packet_size in Mosquitto's configuration, or "
        "send fewer windows a message"
    )


class ConsecutiveLosses:
    """Counts connections that ended soon, without an acknowledgement, while messages were in flight.

    An MQTT 3.1.1 broker cannot say that a message is too large. It closes the connection, receives the same message
    again, and so on for ever.
    """

    MOST = 5
    SOON_S = 5.0

    def __init__(self) -> None:
        self._count = 0

    def acknowledged(self) -> None:
        self._count = 0

    def lost(self, lasted_s: float, under_way: int) -> bool:
        """Record a lost connection; return whether to suspect the largest message in flight."""
        self._count = self._count + 1 if under_way and lasted_s < self.SOON_S else 0
        if self._count < self.MOST:
            return False
        self._count = 0
        return True


def refusal(address: Address, code: int, words: str) -> BrokerError:
    """Return the error for a CONNACK with a failure code (MQTT 5, section 3.2.2.2), final or not, with what to do."""
    if code in _VERSIONS:
        return other_version(address)
    advice = (
        "check the user, and the password in HAR_EDGE_PASSWORD or --password-file"
        if code in _CREDENTIALS
        else "see the broker's log"
    )
    text = f"the broker at {address.url} refused the connection: {words}; {advice}"
    return BrokerError(text) if code in _PASSING else FinalRefusal(text)
