"""The folder of a secured broker: its certificate, users, passwords and access list, and a folder for each client."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import hmac
import os
import pwd
import re
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from har_edge.errors import ConfigError
from har_edge.extras import require
from har_edge.files import read_regular, write_atomic
from har_edge.protocol.topics import MAX_ID_LENGTH, is_id
from har_edge.resources import find_folder
from har_edge.trust.authority import certify, make_authority

VERSION = 1
STATE, CLIENT, CLIENTS = "credentials.json", "client.json", "clients"
MAX_FILE_BYTES = 16 * 1024 * 1024
MAX_CLIENT_BYTES = 64 * 1024
# Mosquitto's own figures (mosquitto_passwd of 2.0): PBKDF2 with SHA-512. Few rounds are enough for 256 random bits.
ROUNDS, SALT_BYTES, SECRET_BYTES = 101, 12, 32
# Roles whose sessions pass from one device to another: they share the secret in their client ids.
_SHARED = frozenset({"node", "coordinator"})
# The role that may write the statuses of others.
_OVERSEER = "coordinator"
_USER = re.compile(r"user (\w+)\n((?:topic .*\n)+)")
_OWN = re.compile(r"topic (?:readwrite|write) (\S+/(?:node/\+/status|beat/\+))")

_Text = Annotated[str, msgspec.Meta(max_length=4096)]


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    url: str
    hosts: tuple[str, ...]
    secret: str
    users: dict[str, str]


class ClientCredentials(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The address and the password of a device; `ca.crt` lies beside them. `secret` is part of its client ids."""

    version: int
    url: _Text
    username: _Text
    password: _Text
    role: _Text
    secret: _Text


_read_state = msgspec.json.Decoder(_State).decode
_read_client = msgspec.json.Decoder(ClientCredentials).decode


@dataclass(slots=True)
class BrokerCredentials:
    """The users of a broker, by name with their roles; each change is written at once."""

    folder: Path
    _state: _State

    @property
    def users(self) -> dict[str, str]:
        return dict(self._state.users)

    @property
    def url(self) -> str:
        return self._state.url

    def add(self, name: str, role: str) -> Path:
        """Add a user with a new password, and return the folder to bring to its device.

        Raises ConfigError for a name that is taken or cannot stand in a topic, and for an unknown role.
        """
        lists = role_lists()
        if not is_id(name):
            raise ConfigError(f"name {name!r}; expected 1 to {MAX_ID_LENGTH} letters, digits, '_' or '-'")
        if role not in lists:
            raise ConfigError(f"role {role!r}; expected one of {', '.join(lists)}")
        if name in self._state.users:
            raise ConfigError(f"{name} is there with the role {self._state.users[name]}; remove it first")
        password, place = secrets.token_urlsafe(SECRET_BYTES), self.folder / CLIENTS / name
        secret = self._state.secret if role in _SHARED else secrets.token_hex(SECRET_BYTES)
        client = ClientCredentials(VERSION, self.url, name, password, role, secret)
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        place.parent.chmod(0o700)
        write_atomic(place / CLIENT, msgspec.json.format(msgspec.json.encode(client)), 0o600)
        write_atomic(place / "ca.crt", (self.folder / "ca.crt").read_bytes(), 0o644)
        self._write({**self._state.users, name: role}, [*self._lines(), password_line(name, password)])
        return place

    def remove(self, name: str) -> None:
        """Remove a user. Raises ConfigError for one that is not there."""
        if name not in self._state.users:
            raise ConfigError(f"no user {name!r}; expected one of {', '.join(self._state.users) or 'none'}")
        users = {one: role for one, role in self._state.users.items() if one != name}
        self._write(users, [line for line in self._lines() if line.split(":", 1)[0] != name])
        shutil.rmtree(self.folder / CLIENTS / name, ignore_errors=True)

    def config(self) -> Path:
        """Write the configuration of Mosquitto for this folder, and return it."""
        shipped = (find_folder("brokers") / "secure.conf").read_text(encoding="utf-8")
        path = self.folder / "mosquitto.conf"
        write_atomic(path, shipped.replace("/etc/har-edge", str(self.folder.resolve())).encode(), 0o644)
        return path

    def _lines(self) -> list[str]:
        return (self.folder / "passwords").read_text(encoding="utf-8").splitlines()

    def _write(self, users: dict[str, str], passwords: list[str]) -> None:
        self._state = msgspec.structs.replace(self._state, users=users)
        lists = role_lists()
        access = "".join(access_of(name, role, lists[role]) for name, role in users.items())
        self._put("passwords", "".join(f"{line}\n" for line in passwords).encode())
        self._put("acl", access.encode())
        write_atomic(self.folder / STATE, msgspec.json.format(msgspec.json.encode(self._state)), 0o600)

    def _put(self, name: str, content: bytes) -> None:
        write_atomic(self.folder / name, content, 0o600)
        _give_to_broker(self.folder / name)


def open_credentials(folder: Path, url: str | None, host: str) -> BrokerCredentials:
    """Return the credentials in a folder; with the `url` of a broker, they are made where there are none.

    `host` is the name of this machine, which the broker's certificate has too. Raises ConfigError without an URL where
    there is nothing yet, and for a damaged folder.
    """
    require("credentials of a broker", "cryptography")
    try:
        state = _read_state(read_regular(folder / STATE, MAX_FILE_BYTES))
    except FileNotFoundError:
        if url is None:
            raise ConfigError(f"{folder} has no credentials; add the first with --url mqtts://NAME:8883") from None
        return _begin(folder, url, host)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{folder / STATE} cannot be read: {error}; expected what `credentials add` wrote") from None
    if url is not None and url != state.url:
        raise ConfigError(f"{folder} is for {state.url}; {url} came: choose another --folder for another broker")
    return BrokerCredentials(folder, state)


def _begin(folder: Path, url: str, host: str) -> BrokerCredentials:
    """Make an authority, a certificate of the broker, and files without a user."""
    match = re.fullmatch(r"mqtts://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?", url)
    if match is None:
        raise ConfigError(f"--url {url!r}; expected mqtts://NAME[:PORT], as devices will write it")
    hosts = tuple(dict.fromkeys((match[1].strip("[]"), host, "localhost", "127.0.0.1")))
    now = datetime.datetime.now(datetime.timezone.utc)
    authority = make_authority(now)
    broker = certify(authority, hosts, now)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # Mosquitto, as a user of its own, reads what is its own here, and lists nothing
    made = BrokerCredentials(folder, _State(VERSION, url, hosts, secrets.token_hex(SECRET_BYTES), {}))
    write_atomic(folder / "ca.key", authority.key, 0o600)
    write_atomic(folder / "ca.crt", authority.certificate, 0o644)
    write_atomic(folder / "broker.crt", broker.certificate, 0o644)
    made._put("broker.key", broker.key)
    made._write({}, [])
    return made


def password_line(name: str, password: str) -> str:
    """Return the line of Mosquitto's password file for a user, as mosquitto_passwd of 2.0 writes it."""
    salt = secrets.token_bytes(SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, ROUNDS)
    return f"{name}:$7${ROUNDS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def role_lists() -> dict[str, list[str]]:
    """Return the lines of the access list of each role, as har_edge ships them."""
    text = (find_folder("brokers") / "roles.acl").read_text(encoding="utf-8")
    return {role: lines.splitlines() for role, lines in _USER.findall(text)}


def access_of(name: str, role: str, lines: list[str]) -> str:
    """Return the access list of a user: it writes no status and no heartbeat but its own."""
    access = [f"user {name}"]
    for line in lines:
        match = _OWN.fullmatch(line)
        if match is None or role == _OVERSEER:
            access.append(line)
        else:
            access += [f"topic read {match[1]}", f"topic write {match[1].replace('/+/status', f'/{name}/status')}"]
            access[-1] = access[-1].replace("beat/+", f"beat/{name}")
    return "\n".join(access) + "\n\n"


def read_client(folder: Path) -> ClientCredentials:
    """Read the credentials of a device. Raises ConfigError for a folder without, and where others may read them."""
    path = folder / CLIENT
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{path} may be read by others; expected its owner only: `chmod 600 {path}`")
        return _read_client(read_regular(path, MAX_CLIENT_BYTES))
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path}: {error}; expected a folder of `har-edge credentials add`") from None


def secret_id(client_id: str, secret: str) -> str:
    """Return a client id that nobody guesses without the secret, the same one for all that have it."""
    digest = hmac.new(secret.encode(), client_id.encode(), hashlib.sha256).hexdigest()
    return f"{client_id}.{digest[:32]}"


def _give_to_broker(path: Path) -> None:
    """Give a file to the user that Mosquitto becomes where root starts it."""
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError, OSError):
            user = pwd.getpwnam("mosquitto")
            os.chown(path, user.pw_uid, user.pw_gid)
