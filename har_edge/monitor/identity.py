"""Who we are to a broker: the name of a user, or the one in a certificate, which a broker may take for it."""

from __future__ import annotations

from dataclasses import dataclass

from har_edge.mqtt.address import Address
from har_edge.mqtt.certificate import common_name
from har_edge.protocol.text import printable


@dataclass(frozen=True, slots=True)
class User:
    """Who a client is: its `name` is None without user and certificate; `certified` where it comes from the latter."""

    name: str | None = None
    certified: bool = False

    @classmethod
    def of(cls, address: Address) -> User:
        """Return who the client of an address is."""
        if address.username is not None or address.cert_file is None:
            return cls(address.username)
        name = common_name(address.cert_file)
        return cls(None if name is None else printable(name, 60), certified=True)

    def __str__(self) -> str:
        if self.certified:
            return f"the certificate of {self.name}" if self.name else "a certificate without a name"
        return f"user {self.name}" if self.name else "a client without user"
