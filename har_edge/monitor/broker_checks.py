"""Check the broker: whether it is there, accepts this user, and supports what a deployment needs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from enum import Enum

import msgspec

from har_edge.config.message_sizes import largest_message
from har_edge.errors import BrokerError
from har_edge.monitor.broker_behaviour import traits
from har_edge.monitor.identity import User
from har_edge.monitor.permissions import Connect, PermissionResult, Role, permissions_of, try_permission
from har_edge.mqtt.address import Address
from har_edge.mqtt.clients.transport import OtherVersion, Unanswered
from har_edge.mqtt.connect import speaks_older_only
from har_edge.mqtt.measure.broker_probe import (
    CREDENTIALS,
    UNSUPPORTED_VERSION,
    BrokerCapabilities,
    probe_broker,
    reach_port,
    speaks_tls,
)
from har_edge.mqtt.measure.conformance import BrokerMeasurement, measure
from har_edge.protocol.artifacts import CHUNK_BYTES
from har_edge.protocol.topics import Topics
from har_edge.tflite.manifest import SliceManifest

# With fewer messages at once, a join acknowledges what waits for a source that runs behind (receive_limit.py).
RECEIVE_MAX = 64
_BOTH = (
    "set `max_inflight_messages 0` and `max_queued_messages 100000` in its configuration: with the first alone it "
    "still drops what a slow or absent stage has not taken (brokers/mosquitto.conf has both)"
)


class Verdict(str, Enum):
    """How a check ended; a note is of what does no harm yet, and says what to do all the same."""

    OK = "ok"
    NOTE = "note"
    FAIL = "wrong"
    SKIPPED = "not reached"


class Finding(msgspec.Struct, frozen=True, rename={"remedy": "mend"}):
    """One check: what was found, and where it is wrong, what to do."""

    check: str
    verdict: Verdict
    said: str
    remedy: str = ""


def passed(check: str, said: str) -> Finding:
    """Return the finding of a check that found nothing wrong."""
    return Finding(check, Verdict.OK, said)


class BrokerChecks:
    """Checks the broker, step by step; each needs the ones before it.

    `assumed`: nobody said which role the `user` has, so that all are tried.
    """

    def __init__(
        self,
        address: Address,
        connect: Connect,
        topics: Topics,
        roles: Collection[Role],
        *,
        mqtt5: bool = True,
        user: User | None = None,
        assumed: bool = False,
    ) -> None:
        self.address, self.roles, self._assumed = address, frozenset(roles), assumed
        self._user = user or User.of(address)
        self._connect, self._topics, self._mqtt5 = connect, topics, mqtt5
        self._terms: BrokerCapabilities | None = None
        self.measured: BrokerMeasurement | None = None

    def too_small(self, name: str, manifest: SliceManifest) -> Finding | None:
        """Return what is wrong where the broker takes no packet as large as a message of these slices."""
        limit = None if self._terms is None else self._terms.max_packet_bytes
        needed = largest_message(manifest)
        if limit is None or limit >= needed:
            return None
        said = f"messages of these slices take up to {needed} bytes, and the broker takes {limit} at most"
        remedy = f"set `max_packet_size {needed}` in its configuration, or cut with --pack, or where less crosses"
        return Finding(name, Verdict.FAIL, said, remedy)

    def broker(self, name: str) -> Iterator[Finding]:
        """Open a TCP connection."""
        try:
            reach_port(self.address)
        except BrokerError as error:
            remedy = "start it (`har-edge broker`, or the service that runs it there), or name another with --broker"
            yield Finding(name, Verdict.FAIL, str(error), remedy)
            return
        yield passed(name, f"{self.address.url} takes connections")

    def mqtt(self, name: str) -> Iterator[Finding]:
        """Shake hands, over TLS where the address says so; with 3.1.1 where the broker takes no MQTT 5, as nodes do."""
        try:
            self._terms = probe_broker(self.address, mqtt5=self._mqtt5)
        except BrokerError as error:
            if not (self._mqtt5 and self._older(error)):
                if not self.address.tls and speaks_tls(self.address):
                    yield self._wants_tls(name)
                    return
                yield Finding(name, Verdict.FAIL, str(error), self._mqtt_remedy())
                return
        if self._terms is None or self._terms.code == UNSUPPORTED_VERSION:
            if not self._mqtt5:
                yield Finding(name, Verdict.FAIL, "the broker does not speak MQTT 3.1.1", self._mqtt_remedy())
                return
            self._mqtt5, self._terms = False, probe_broker(self.address, mqtt5=False)
            yield passed(name, "no MQTT 5, so nodes use 3.1.1; --protocol 3.1.1 saves them the first try")
            return
        version = "MQTT 5" if self._mqtt5 else "MQTT 3.1.1"
        yield passed(name, f"{version} over {'TLS' if self.address.tls else 'TCP, not encrypted'}")

    def _older(self, error: BrokerError) -> bool:
        return isinstance(error, Unanswered | OtherVersion) and speaks_older_only(self.address, error)

    def _wants_tls(self, name: str) -> Finding:
        _, _, place = self.address.url.partition("://")
        remedy = f"`--broker mqtts://{place}`, with --ca-file FILE where the system does not know who signed for it"
        return Finding(name, Verdict.FAIL, f"{place} speaks TLS, and mqtt:// does not", remedy)

    def _mqtt_remedy(self) -> str:
        if self.address.tls:
            return "look at --ca-file, and at the port: the one for mqtts:// is 8883 as a rule"
        return "look at the port, and whether it wants mqtts://"

    def credentials(self, name: str) -> Iterator[Finding]:
        """See whether the broker knows the user."""
        assert self._terms is not None
        who = str(self._user)
        if self._terms.code in CREDENTIALS:
            remedy = "give --username and --password-file (or HAR_EDGE_USERNAME, HAR_EDGE_PASSWORD) of a user it knows"
            yield Finding(name, Verdict.FAIL, f"the broker does not let {who} in", remedy)
        elif self._terms.code:
            yield Finding(name, Verdict.FAIL, self._terms.said, "see the log of the broker")
        else:
            unknown = "; that is its user where the broker takes names from certificates" * self._user.certified
            yield passed(name, f"{who} may connect{unknown}")

    def settings(self, name: str) -> Iterator[Finding]:
        """See whether its limits admit slices and stages."""
        terms = self._terms
        assert terms is not None
        if not self._mqtt5:
            yield passed(name, "MQTT 3.1.1 does not tell them")
            return
        least = CHUNK_BYTES + 4096
        if not terms.retain or not terms.wildcards:
            what = "retained messages" if not terms.retain else "subscriptions with wildcards"
            yield Finding(name, Verdict.FAIL, f"the broker permits no {what}", f"permit {what} in its configuration")
        elif terms.max_packet_bytes is not None and terms.max_packet_bytes < least:
            said = (
                f"the broker takes packets of at most {terms.max_packet_bytes} bytes; a piece of a slice takes {least}"
            )
            yield Finding(name, Verdict.FAIL, said, "set `max_packet_size 67112960` in its configuration")
        elif terms.receive_max is not None and terms.receive_max < RECEIVE_MAX:
            said = (
                f"the broker takes {terms.receive_max} messages at once, so joins acknowledge windows that lack a "
                f"source, which a stage that is killed then loses; {RECEIVE_MAX} or more do"
            )
            yield Finding(name, Verdict.FAIL, said, _BOTH)
        elif not terms.shared:
            said = "the broker has no shared subscriptions, so stages cannot take turns"
            yield Finding(name, Verdict.FAIL, said, "use Mosquitto 1.6 or newer, or a broker with MQTT 5 in full")
        else:
            packets = "of any size" if terms.max_packet_bytes is None else f"up to {terms.max_packet_bytes} bytes"
            at_once = "any number" if terms.receive_max is None else str(terms.receive_max)
            yield passed(
                name, f"packets {packets}, {at_once} at once; retained, wildcards and shared subscriptions permitted"
            )

    def behaviour(self, name: str) -> Iterator[Finding]:
        """Measure what the broker does, whatever it says: each thing that windows depend on."""
        if self.roles != frozenset(Role):
            who = " and ".join(sorted(role.value for role in self.roles))
            said = f"not measured as {who}: it takes a user who may publish and read {self._prefix}#"
            yield Finding(name, Verdict.SKIPPED, said)
            return
        try:
            self.measured = measure(self._connect, self._topics.prefix, mqtt5=self._mqtt5)
        except BrokerError as error:
            yield Finding(name, Verdict.SKIPPED, str(error))
            return
        for trait in traits(self.measured):
            verdict = Verdict.FAIL if trait.remedy else Verdict.OK
            yield Finding(f"broker's {trait.name}", verdict, trait.said, trait.remedy)

    @property
    def _prefix(self) -> str:
        return f"{self._topics.prefix}probe/"

    def permissions(self, name: str) -> Iterator[Finding]:
        """Try every topic of the roles, both ways."""
        for right in permissions_of(self.roles):
            ways = [word for word, wanted in (("publish", right.publishes), ("read", right.reads)) if wanted]
            tried = try_permission(self._connect, self._topics, right)
            check = f"topic {right.kind.value}"
            if tried.problem:
                yield Finding(check, Verdict.FAIL, tried.problem, self._right_remedy(tried))
            else:
                yield passed(check, f"may {' and '.join(ways)}" + (f" ({tried.remark})" if tried.remark else ""))

    def _right_remedy(self, tried: PermissionResult) -> str:
        """Say what permits this; nothing that a role does not need, so for a user of no known role, to name it."""
        if self._user.name is None:
            return "give the name of a user who may (--username and --password-file, or --cert-file and --key-file)"
        line = f"`{tried.permission.line(self._topics)}`"
        if self._assumed:
            return (
                f"name the role of {self._user.name} with --role, so that only what it needs is tried; the access list "
                f"of the broker gives {line} to nobody who has fewer roles than all; see brokers/README.md"
            )
        return f"permit {self._user.name} {line} in the access list of the broker; see brokers/README.md"
