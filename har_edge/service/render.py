"""Render the text of a service: its unit file, and the file with its environment. Nothing is read or written here."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path

from har_edge.errors import ConfigError

# Both files begin with a line that holds the hash of the rest, which reveals an edited file.
_MARK = re.compile(r"# har-edge service, sha256 ([0-9a-f]{64}) of the lines below; an edited file is not overwritten\n")
# A user's own manager cannot change users, nor the view of devices and file systems.
_SYSTEM_ONLY = (
    "ProtectSystem",
    "ProtectHome",
    "PrivateTmp",
    "PrivateDevices",
    "DevicePolicy",
    "DeviceAllow",
    "SupplementaryGroups",
    "ProtectClock",
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "RemoveIPC",
    "CapabilityBoundingSet",
    "AmbientCapabilities",
    "After",
    "Wants",
)
_INSTANCE = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_PLAIN = re.compile(r"[A-Za-z0-9_@:,.=/+-]+")


class ServiceRole(Enum):
    """The commands of har-edge that may run as a service."""

    BROKER = "broker"
    NODE = "node"
    COORDINATOR = "coordinator"
    SENSOR = "sensor"
    STAGE = "stage"


@dataclass(frozen=True, slots=True)
class Service:
    """One service: a role, and an instance name if several run on this machine."""

    role: ServiceRole
    instance: str = ""

    def __post_init__(self) -> None:
        """Raise ConfigError for an instance that cannot be part of a file name."""
        if self.instance and not _INSTANCE.fullmatch(self.instance):
            raise ConfigError(f"instance is {self.instance!r}; expected up to 64 letters, digits, '_' or '-'")

    @property
    def name(self) -> str:
        """The part of the unit's name behind `har-edge-`, and of the environment file's name before `.env`."""
        return f"{self.role.value}-{self.instance}" if self.instance else self.role.value

    @property
    def unit(self) -> str:
        return f"har-edge-{self.name}.service"

    @property
    def environment(self) -> str:
        return f"{self.name}.env"


def render_unit(
    service: Service, command: Sequence[str], environment: Path, *, of_user: bool = False, run_as: str = ""
) -> str:
    """Return the unit file of a service that runs `command` with the variables in the file `environment`.

    A system service runs as the user `run_as`, or as a user that systemd makes for it while it runs. A service
    `of_user` runs as that user, by the user's own manager, with the hardening that such a manager supports.
    """
    template = resources.files("har_edge.service") / f"har-edge-{service.role.value}.service"
    text = template.read_text("utf-8")
    text = text.replace("@ENVIRONMENT_FILE@", quote_path(environment))
    text = text.replace("@EXEC_START@", " ".join(map(quote_argument, command)))
    text = text.replace("@USER@\n", "" if of_user else f"User={run_as}\n" if run_as else "DynamicUser=yes\n")
    if of_user:
        lines = [line for line in text.splitlines() if line.partition("=")[0] not in _SYSTEM_ONLY]
        text = "\n".join(lines).replace("multi-user.target", "default.target") + "\n"
    return sign(text)


def render_environment(variables: Mapping[str, str]) -> str:
    """Return an environment file (systemd.exec(5), EnvironmentFile=) with these variables.

    Raises ConfigError for a value of several lines.
    """
    lines = ["# One NAME=VALUE a line. Keep this file to its owner: it may hold a password."]
    for name, value in variables.items():
        if not value.isprintable():
            raise ConfigError(f"the value of {name} holds a line end or another control character; expected one line")
        escaped = re.sub(r'(["\\`$])', r"\\\1", value)
        lines.append(f'{name}="{escaped}"')
    return sign("\n".join(lines) + "\n")


def sign(text: str) -> str:
    """Return a text behind a line with its hash."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"# har-edge service, sha256 {digest} of the lines below; an edited file is not overwritten\n{text}"


def is_own(text: str) -> bool:
    """Return whether a file is unchanged since it was written, by the hash in its first line."""
    found = _MARK.match(text)
    return found is not None and hashlib.sha256(text[found.end() :].encode()).hexdigest() == found[1]


def quote_argument(text: str) -> str:
    """Return an argument for the command line of a unit (systemd.service(5)), with specifiers and variables escaped."""
    if not text.isprintable():
        raise ConfigError(f"argument {text!r} holds a line end or another control character; expected one line")
    if _PLAIN.fullmatch(text):
        return text
    escaped = re.sub(r'(["\\])', r"\\\1", text).replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def quote_path(path: Path) -> str:
    """Return a path for a setting of a unit."""
    text = str(path)
    if not text.isprintable():
        raise ConfigError(f"path {text!r} holds a line end or another control character; expected one line")
    return text.replace("%", "%%")
