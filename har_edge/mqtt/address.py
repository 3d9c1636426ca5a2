"""The broker's address and this client's credentials."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from har_edge.errors import ConfigError

_log = logging.getLogger(__name__)
PORTS = {"mqtt": 1883, "mqtts": 8883}
USERNAME_VARIABLE = "HAR_EDGE_USERNAME"
PASSWORD_VARIABLE = "HAR_EDGE_PASSWORD"


@dataclass(frozen=True, slots=True)
class Address:
    """A broker's host, port, encryption and credentials; `repr` never shows the password.

    `ca_file` is a PEM file to trust instead of the system's certificates. `cert_file` and `key_file` are this client's
    own.
    """

    host: str
    port: int
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def url(self) -> str:
        """The address without credentials, fit to print."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def read_address(
    url: str,
    *,
    username: str | None = None,
    password_file: Path | None = None,
    ca_file: Path | None = None,
    cert_file: Path | None = None,
    key_file: Path | None = None,
) -> Address:
    """Read `mqtt[s]://[user@]host[:port]`.

    User and password come from the arguments, else from HAR_EDGE_USERNAME and HAR_EDGE_PASSWORD. Raises ConfigError for
    a malformed URL, and for a password inside it, since process lists show that.
    """
    expected = f"broker is {url!r}; expected mqtt://HOST[:PORT] or mqtts://HOST[:PORT]"
    try:
        parts = urlsplit(url)
        port = parts.port
        (parts.hostname or "").encode("idna")  # a name that resolution cannot handle is a ValueError, too
    except ValueError:
        raise ConfigError(expected) from None
    if (
        parts.scheme not in PORTS
        or not parts.hostname
        or port == 0
        or parts.path.strip("/")
        or parts.query
        or "\0" in parts.hostname
    ):
        raise ConfigError(expected)
    if parts.password is not None:
        raise ConfigError(
            f"broker URL for {parts.hostname} holds a password, which process lists show; "
            f"put it in {PASSWORD_VARIABLE} or in a file named by --password-file"
        )
    for path in (ca_file, cert_file, key_file):
        if path is not None and not path.is_file():
            raise ConfigError(f"{path} is no file; expected a certificate or key in PEM form")
    tls = parts.scheme == "mqtts"
    if not tls and (ca_file or cert_file or key_file):
        raise ConfigError(f"certificates came for {url!r}, which is not encrypted; use mqtts://")
    username = username or parts.username or os.environ.get(USERNAME_VARIABLE)
    password = _password(password_file)
    if password is not None and not tls and not _is_here(parts.hostname):
        _warn(f"the password for {parts.hostname} travels unencrypted, for all in the network to read; use mqtts://")
    return Address(
        parts.hostname,
        port or PORTS[parts.scheme],
        tls,
        username,
        password,
        ca_file,
        cert_file,
        key_file,
    )


def neighbour_address(central: Address, url: str) -> Address:
    """Return the address of another broker that a plan names, with the credentials of the central one.

    Raises ConfigError for a malformed URL, and where that broker would get credentials unencrypted that the central one
    gets encrypted.
    """
    found = read_address(url, ca_file=central.ca_file if url.startswith("mqtts:") else None)
    if central.tls and not found.tls:
        raise ConfigError(
            f"the plan names the broker {url}, which is not encrypted; the central one is, so this one must be mqtts://"
        )
    same = replace(central, host=found.host, port=found.port, tls=found.tls)
    return same if same.tls else replace(same, ca_file=None, cert_file=None, key_file=None)


def _is_here(host: str) -> bool:
    return host == "localhost" or host.startswith("127.") or host == "::1"


@lru_cache(maxsize=64)  # an address is read for each connection
def _warn(text: str) -> None:
    _log.warning("%s", text)


def _password(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(PASSWORD_VARIABLE)
    try:
        if file.stat().st_mode & 0o004:
            _warn(f"the password file {file} may be read by everybody on this machine: `chmod 600 {file}`")
        return file.read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the password file {file}: {error}; give a text file with one line") from None
